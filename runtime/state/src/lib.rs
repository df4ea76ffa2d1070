//! The database: schema, migrations, typed queries. The only room that knows SQL.
//!
//! One SQLite file in WAL mode, one owner process, one writer. Each noun has a
//! module with its own schema, rows and queries:
//!
//! ```text
//!   Db ── images       blobs' meanings: images, tags, layers
//!      ── containers   what should be: specification, state, exit
//!      ── networks     networks, endpoints, addresses
//!      ── volumes      volumes and who uses them
//! ```
//!
//! Every reference between objects is a row with a foreign key, never a count
//! in memory. Queries take tens of microseconds and are called directly from
//! async code; only [`Db::write_durable`] waits for the disk.
//!
//! The database is an index. Each object has a record beside it ([`record`]),
//! from which its rows are written again; nothing is deleted because there is
//! no row of it.
//!
//! **How it fails.** A database of a newer schema is refused with both versions
//! named; a damaged one is moved aside and a new one begun ([`Db::found`]). A
//! row that cannot be read is left out of every list and named by
//! [`Db::unreadable`]. A killed process loses nothing that was committed; a
//! power cut may lose what was committed by [`Db::write`] alone since the last
//! durable write, never what [`Db::write_durable`] acknowledged. On a full file
//! system rows change and go, and none is added.

#![forbid(unsafe_code)]

pub mod containers;
pub mod images;
pub mod networks;
mod open;
pub mod record;
mod unreadable;
pub mod volumes;

use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use rusqlite::{Connection, Transaction, TransactionBehavior};

pub use open::{ASIDE, Found, aside};
pub use unreadable::Unreadable;

/// The database of one engine.
#[derive(Debug)]
pub struct Db {
    /// None while it is dropped.
    connection: Mutex<Option<Connection>>,
    path: PathBuf,
    found: Found,
}

/// Why a query failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// SQLite's own word, constraint violations included.
    #[error("state database: {0}")]
    Sqlite(#[from] rusqlite::Error),
    /// A column holds JSON that this version cannot read.
    #[error("state database: {0}")]
    Json(#[from] serde_json::Error),
    /// It is no whole database of its version.
    #[error("state database: {0}")]
    Damaged(String),
    /// A file of it cannot be used.
    #[error("state database {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The host's word.
        source: std::io::Error,
    },
    /// Nothing new is written: the rest of the space is for removals.
    #[error("no space left on device: {} has less than 1 MiB", .0.display())]
    Full(PathBuf),
    /// Written by a later version of Knarr.
    #[error(
        "state database has schema {found}, this version knows {known}: it was written by a newer knarrd"
    )]
    Newer {
        /// What the file says.
        found: u32,
        /// What this code knows.
        known: u32,
    },
}

/// What a query answers.
pub type Result<T> = std::result::Result<T, Error>;

/// One step of the schema, applied once, in order, in one transaction each.
type Migration = &'static str;

/// Append only: a released migration is never edited.
const MIGRATIONS: &[Migration] =
    &[images::SCHEMA, containers::SCHEMA, networks::SCHEMA, volumes::SCHEMA, REVISIONS];

/// A record that is newer than its row was written after the database was.
const REVISIONS: Migration = "
ALTER TABLE containers ADD COLUMN revision INTEGER NOT NULL DEFAULT 0;
ALTER TABLE images ADD COLUMN revision INTEGER NOT NULL DEFAULT 0;
";

impl Db {
    /// Opens or creates the database and brings its schema up to date. What is
    /// no database, or a broken one, is moved aside first: see [`Db::found`].
    ///
    /// # Errors
    /// When the file cannot be used or was written by a newer version.
    pub fn open(path: &Path) -> Result<Self> {
        let (connection, found) = open::open(path)?;
        Ok(Self { connection: Mutex::new(Some(connection)), path: path.to_owned(), found })
    }

    /// What was found where the database belongs.
    pub fn found(&self) -> &Found {
        &self.found
    }

    /// The directory that the database lies in: the data root.
    pub fn directory(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("."))
    }

    fn lock(&self) -> Held<'_> {
        // A panic in a query left no transaction open: it was rolled back.
        Held(self.connection.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Runs a query.
    pub(crate) fn read<T>(&self, query: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
        query(self.lock().connection()?)
    }

    /// Runs a change in a transaction. Survives the death of the process, not of the host.
    pub(crate) fn write<T>(&self, change: impl FnOnce(&Transaction<'_>) -> Result<T>) -> Result<T> {
        transact(self.lock().connection()?, change)
    }

    /// Runs a change that adds an object. It is refused where the file system is
    /// nearly full: what is left is for removals.
    pub(crate) fn write_new<T>(
        &self,
        change: impl FnOnce(&Transaction<'_>) -> Result<T>,
    ) -> Result<T> {
        self.check_space()?;
        self.write(change)
    }

    /// [`Db::write_new`], and waits until the disk has it.
    pub(crate) fn write_new_durable<T>(
        &self,
        change: impl FnOnce(&Transaction<'_>) -> Result<T>,
    ) -> Result<T> {
        self.check_space()?;
        self.write_durable(change)
    }

    /// Waits until the disk has everything that was committed before. Others read and write
    /// meanwhile. Blocks.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub fn sync(&self) -> Result<()> {
        // What is in the database itself was flushed before the log began anew.
        let log = open::beside(&self.path, "-wal");
        File::open(&log)
            .and_then(|log| log.sync_all())
            .map_err(|source| Error::Io { path: log.clone(), source })
    }

    /// Closes it, whoever has it: everything is in the database itself then, and nothing in
    /// its log. What is asked from now on is an error. Blocks.
    pub fn close(&self) {
        let connection = self.lock().0.take();
        if let Some(connection) = connection {
            open::close(connection, &self.path);
        }
    }

    /// Whether something new may be written.
    ///
    /// # Errors
    /// [`Error::Full`] where the file system is nearly full.
    pub fn check_space(&self) -> Result<()> {
        let directory = self.directory();
        let space = rustix::fs::statvfs(directory)
            .map_err(|e| Error::Io { path: directory.to_owned(), source: e.into() })?;
        if space.f_bfree.saturating_mul(space.f_frsize) < open::LEAST_FREE {
            return Err(Error::Full(directory.to_owned()));
        }
        Ok(())
    }

    /// Runs a change in a transaction and waits until the disk has it.
    pub(crate) fn write_durable<T>(
        &self,
        change: impl FnOnce(&Transaction<'_>) -> Result<T>,
    ) -> Result<T> {
        let mut held = self.lock();
        let connection = held.connection()?;
        connection.pragma_update(None, "synchronous", "full")?;
        let outcome = transact(connection, change);
        connection.pragma_update(None, "synchronous", "normal")?;
        outcome
    }
}

impl Drop for Db {
    fn drop(&mut self) {
        self.close();
    }
}

/// The connection, while nobody else has it.
struct Held<'a>(MutexGuard<'a, Option<Connection>>);

impl Held<'_> {
    fn connection(&mut self) -> Result<&mut Connection> {
        self.0.as_mut().ok_or_else(|| Error::Damaged("it is closed".into()))
    }
}

fn transact<T>(
    connection: &mut Connection,
    change: impl FnOnce(&Transaction<'_>) -> Result<T>,
) -> Result<T> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let value = change(&transaction)?;
    transaction.commit()?;
    Ok(value)
}

fn migrate(connection: &mut Connection) -> Result<()> {
    let known = MIGRATIONS.len() as u32;
    let found: u32 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    if found > known {
        return Err(Error::Newer { found, known });
    }
    for (at, step) in MIGRATIONS.iter().enumerate().skip(found as usize) {
        transact(connection, |transaction| {
            transaction.execute_batch(step)?;
            Ok(transaction.pragma_update(None, "user_version", at as u32 + 1)?)
        })?;
    }
    Ok(())
}

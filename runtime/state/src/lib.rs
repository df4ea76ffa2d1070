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
//! **How it fails.** A database of a newer schema is refused with both versions
//! named. A killed process loses nothing that was committed; a power cut may
//! lose what was committed by [`Db::write`] alone since the last durable write,
//! never what [`Db::write_durable`] acknowledged.

#![forbid(unsafe_code)]

pub mod containers;
pub mod images;
pub mod networks;
pub mod volumes;

use std::{
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};

use rusqlite::{Connection, Transaction, TransactionBehavior};

/// The database of one engine.
#[derive(Debug)]
pub struct Db {
    connection: Mutex<Connection>,
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
    &[images::SCHEMA, containers::SCHEMA, networks::SCHEMA, volumes::SCHEMA];

impl Db {
    /// Opens or creates the database and brings its schema up to date.
    ///
    /// # Errors
    /// When the file cannot be used or was written by a newer version.
    pub fn open(path: &Path) -> Result<Self> {
        let mut connection = Connection::open(path)?;
        connection.pragma_update(None, "journal_mode", "wal")?;
        connection.pragma_update(None, "synchronous", "normal")?;
        connection.pragma_update(None, "foreign_keys", true)?;
        migrate(&mut connection)?;
        Ok(Self { connection: Mutex::new(connection) })
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        // A panic in a query left no transaction open: it was rolled back.
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a query.
    pub(crate) fn read<T>(&self, query: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
        query(&self.lock())
    }

    /// Runs a change in a transaction. Survives the death of the process, not of the host.
    pub(crate) fn write<T>(&self, change: impl FnOnce(&Transaction<'_>) -> Result<T>) -> Result<T> {
        let mut connection = self.lock();
        transact(&mut connection, change)
    }

    /// Runs a change in a transaction and waits until the disk has it.
    pub(crate) fn write_durable<T>(
        &self,
        change: impl FnOnce(&Transaction<'_>) -> Result<T>,
    ) -> Result<T> {
        let mut connection = self.lock();
        connection.pragma_update(None, "synchronous", "full")?;
        let outcome = transact(&mut connection, change);
        connection.pragma_update(None, "synchronous", "normal")?;
        outcome
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

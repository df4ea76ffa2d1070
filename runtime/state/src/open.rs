//! Opening the database, whatever became of it.
//!
//! ```text
//!   missing            ─► a new one
//!   whole              ─► brought up to date
//!   of a newer version ─► refused, untouched
//!   anything else      ─► moved aside as state.db.damaged-<seconds>, then a new one
//! ```
//!
//! What a new database lacks is written again by the rooms, from the records
//! beside their objects ([`crate::record`]).
//!
//! **Room to remove things.** On a full file system a removal has to write
//! before it frees anything. So the log is as large from the beginning as it
//! ever becomes, and the database has free pages: neither needs a block of the
//! file system when rows change or go. The log stays when the database is
//! closed, and nothing that is new is written when the file system is nearly
//! full ([`Db::write_new`](crate::Db)).

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use rusqlite::{Connection, ErrorCode, config::DbConfig};

use crate::{Error, MIGRATIONS, Result, migrate};

/// With what the names of databases begin that were moved aside.
pub const ASIDE: &str = "state.db.damaged-";

/// The smallest page of a database: what is shorter, SQLite takes for a new one.
const SMALLEST: u64 = 512;
/// Pages after which the log is written into the database and begins anew;
/// SQLite's own default, said here because [`LOG_BYTES`] depends on it.
const LOG_PAGES: u32 = 1000;
/// Bytes of the log from the beginning: those pages with their headers, and the
/// transaction that goes beyond.
const LOG_BYTES: u64 = 1100 * (4096 + 24);
/// Free pages that the database keeps.
const FREE_PAGES: u32 = 64;
/// The least free space of the file system with which something new is written.
pub(crate) const LEAST_FREE: u64 = 1 << 20;

/// What was found where the database belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// A database.
    Whole,
    /// Nothing.
    Nothing,
    /// Something that is no database of ours, or a broken one.
    Damaged {
        /// Where it is now.
        aside: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

/// Opens the database, or moves it aside and makes a new one.
pub(crate) fn open(path: &Path) -> Result<(Connection, Found)> {
    let there = fs::symlink_metadata(path).is_ok();
    let log = beside(path, "-wal");
    let problem = if !there {
        // A log alone is no database, and must not become a part of a new one.
        let left = fs::metadata(&log).is_ok_and(|log| log.len() > 0);
        left.then(|| "it is missing, and its log is there".to_owned())
    } else if fs::metadata(path).is_ok_and(|meta| !meta.is_file() || meta.len() < SMALLEST) {
        Some("it is empty, or no file".to_owned())
    } else {
        match connect(path) {
            Ok(connection) => return Ok((connection, Found::Whole)),
            Err(error) if is_damage(&error) => Some(error.to_string()),
            Err(error) => return Err(error),
        }
    };
    let Some(why) = problem else { return Ok((connect(path)?, Found::Nothing)) };
    let aside = set_aside(path)?;
    Ok((connect(path)?, Found::Damaged { aside, why }))
}

/// The file that SQLite has beside a database.
pub(crate) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Moves the database and its log away, under a name that says so.
fn set_aside(path: &Path) -> Result<PathBuf> {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let directory = path.parent().unwrap_or(Path::new("."));
    let mut aside = directory.join(format!("{ASIDE}{seconds}"));
    let taken = |aside: &Path| {
        ["", "-wal", "-shm"].iter().any(|suffix| beside(aside, suffix).symlink_metadata().is_ok())
    };
    for number in 1.. {
        if !taken(&aside) {
            break;
        }
        aside = directory.join(format!("{ASIDE}{seconds}.{number}"));
    }
    // The log first: a database without it is found again, a log alone is not used.
    for suffix in ["-wal", "-shm", ""] {
        match fs::rename(beside(path, suffix), beside(&aside, suffix)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Error::Io { path: path.to_owned(), source: error });
            }
            _ => {}
        }
    }
    Ok(aside)
}

fn is_damage(error: &Error) -> bool {
    use ErrorCode::{DatabaseCorrupt, NotADatabase, SystemIoFailure};
    match error {
        Error::Damaged(_) => true,
        Error::Sqlite(error) => {
            matches!(code(error), Some(DatabaseCorrupt | NotADatabase | SystemIoFailure))
        }
        _ => false,
    }
}

/// SQLite's code, also of an error that names a place in a statement.
fn code(error: &rusqlite::Error) -> Option<ErrorCode> {
    match error {
        rusqlite::Error::SqliteFailure(failure, _) => Some(failure.code),
        rusqlite::Error::SqlInputError { error, .. } => Some(error.code),
        _ => None,
    }
}

fn connect(path: &Path) -> Result<Connection> {
    let mut connection = Connection::open(path)?;
    // One owner: no memory is shared through a file, which could be damaged or
    // lack its block on a full file system.
    connection.pragma_update(None, "locking_mode", "exclusive")?;
    connection.pragma_update(None, "journal_mode", "wal")?;
    connection.pragma_update(None, "synchronous", "normal")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.pragma_update(None, "wal_autocheckpoint", LOG_PAGES)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    let found: u32 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    if found <= MIGRATIONS.len() as u32 {
        let verdict: String =
            connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
        if verdict != "ok" {
            return Err(Error::Damaged(verdict));
        }
    }
    migrate(&mut connection).map_err(as_damage)?;
    check_schema(&connection)?;
    // Where that fails, the file system is full already.
    reserve(&connection, path).or_else(|error| match error {
        Error::Sqlite(error) if code(&error) == Some(ErrorCode::DatabaseCorrupt) => {
            Err(Error::Sqlite(error))
        }
        _ => Ok(()),
    })?;
    Ok(connection)
}

/// A migration that the tables refuse finds other tables than its version says.
fn as_damage(error: Error) -> Error {
    match error {
        Error::Sqlite(error) if code(&error) == Some(ErrorCode::Unknown) => {
            Error::Damaged(error.to_string())
        }
        other => other,
    }
}

/// The tables must be those of this version, to the letter.
fn check_schema(connection: &Connection) -> Result<()> {
    let mut fresh = Connection::open_in_memory()?;
    migrate(&mut fresh)?;
    if schema(connection)? == schema(&fresh)? {
        return Ok(());
    }
    Err(Error::Damaged("its tables are not those of its version".into()))
}

fn schema(connection: &Connection) -> Result<Vec<(String, String)>> {
    let mut query = connection.prepare(
        "SELECT name, coalesce(sql, '') FROM sqlite_schema
         WHERE name NOT LIKE 'sqlite%' AND name <> 'filler' ORDER BY 1",
    )?;
    let rows = query.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// Gives the log its size and the database its free pages.
fn reserve(connection: &Connection, path: &Path) -> Result<()> {
    let free: u32 = connection.query_row("PRAGMA freelist_count", [], |row| row.get(0))?;
    let log = beside(path, "-wal");
    let size = |log: &Path| fs::metadata(log).map_or(0, |meta| meta.len());
    if free < FREE_PAGES {
        let checkpoint = || connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()));
        // Written before they are free: pages that never were have no blocks.
        connection.execute_batch(&format!(
            "BEGIN; DROP TABLE IF EXISTS filler; CREATE TABLE filler (bytes BLOB);
             INSERT INTO filler VALUES (zeroblob({})); COMMIT;",
            FREE_PAGES * 4096
        ))?;
        checkpoint()?;
        connection.execute_batch("DROP TABLE filler")?;
        checkpoint()?;
    } else if size(&log) == 0 {
        // The first write makes the file.
        connection.pragma_update(None, "user_version", MIGRATIONS.len() as u32)?;
    }
    // Zeros behind the last frame are no frames (SQLite's file format, section 4).
    let has = size(&log);
    let lacking = LOG_BYTES.saturating_sub(has);
    let filled = OpenOptions::new().append(true).open(&log).and_then(|mut file| {
        let zeros = vec![0; 64 * 1024];
        let mut left = lacking;
        while left > 0 {
            let some = left.min(zeros.len() as u64);
            file.write_all(&zeros[..some as usize])?;
            left -= some;
        }
        Ok(())
    });
    filled.map_err(|source| Error::Io { path: log, source })
}

/// Closes the database so that its log says nothing any more: whoever puts
/// another database in its place gets that database.
pub(crate) fn close(connection: Connection, path: &Path) {
    let whole = connection
        .query_row("PRAGMA wal_checkpoint(RESTART)", [], |row| {
            let (busy, log, done): (u32, i64, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
            Ok(busy == 0 && log == done)
        })
        .unwrap_or(false);
    if connection.close().is_ok() && whole {
        // A header of zeros is no header; the file keeps its blocks.
        let _ = OpenOptions::new()
            .write(true)
            .open(beside(path, "-wal"))
            .and_then(|log| log.write_all_at(&[0; 32], 0));
    }
}

/// The databases that were moved aside and that nobody removed.
pub fn aside(directory: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| {
            entry.file_name().to_str().is_some_and(|name| {
                name.starts_with(ASIDE) && !name.ends_with("-wal") && !name.ends_with("-shm")
            })
        })
        .map(|entry| entry.path())
        .collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use crate::Db;

    use super::*;

    /// A closed database with a row.
    fn made() -> (tempfile::TempDir, PathBuf) {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("state.db");
        let db = Db::open(&path).unwrap();
        assert_eq!(*db.found(), Found::Nothing);
        db.set_fact("id", "one").unwrap();
        (scratch, path)
    }

    #[test]
    fn k08_what_is_no_database_is_moved_aside_and_a_new_one_begun() {
        let (_scratch, path) = made();
        let whole = fs::read(&path).unwrap();
        let pages = whole.len() / 4096;
        let mut damaged: Vec<Vec<u8>> = vec![vec![], vec![7; 5000], b"SQLite format 3\0".to_vec()];
        // Rows are on the first pages; the last ones are free, and their content
        // says nothing.
        for page in [0, 1, 2, 5, 11, pages / 2, pages - 1] {
            damaged.push(whole[..page * 4096].to_vec());
            if page < pages / 2 {
                damaged.push(whole[..page * 4096 + 1].to_vec());
            }
        }
        // The tables are listed on the first page, the rows are on the next ones.
        let mut noise = whole.clone();
        noise[100..4096].fill(0xa5);
        damaged.push(noise);
        // A table that nobody asks while the database is opened: only a look at all pages finds it.
        let root: u32 = Connection::open(&path)
            .unwrap()
            .query_row("SELECT rootpage FROM sqlite_schema WHERE name = 'containers'", [], |row| {
                row.get(0)
            })
            .unwrap();
        let mut unasked = whole.clone();
        unasked[(root as usize - 1) * 4096..root as usize * 4096].fill(0xa5);
        damaged.push(unasked);
        for bytes in damaged {
            let (_scratch, path) = made();
            fs::write(&path, &bytes).unwrap();
            let db = Db::open(&path).unwrap();
            let Found::Damaged { aside, why } = db.found().clone() else {
                panic!("{} bytes are taken for a database", bytes.len());
            };
            assert_eq!(fs::read(&aside).unwrap(), bytes, "{why}");
            assert!(aside.file_name().unwrap().to_str().unwrap().starts_with(ASIDE));
            assert_eq!(super::aside(path.parent().unwrap()), [aside]);
            assert_eq!(db.fact("id").unwrap(), None);
            db.set_fact("id", "two").unwrap();
            drop(db);
            let db = Db::open(&path).unwrap();
            assert_eq!(*db.found(), Found::Whole);
            assert_eq!(db.fact("id").unwrap().as_deref(), Some("two"));
        }
    }

    #[test]
    fn k08_a_newer_database_is_refused_and_left_as_it_is() {
        let (scratch, path) = made();
        let newer = MIGRATIONS.len() + 1;
        Connection::open(&path)
            .unwrap()
            .execute_batch(&format!("PRAGMA user_version = {newer}; CREATE TABLE more (x);"))
            .unwrap();
        for _ in 0..2 {
            let error = Db::open(&path).unwrap_err().to_string();
            assert!(error.contains("newer knarrd"), "{error}");
        }
        assert!(super::aside(scratch.path()).is_empty());
        let tables = Connection::open(&path).unwrap().query_row(
            "SELECT count(*) FROM sqlite_schema WHERE name = 'more'",
            [],
            |r| r.get(0),
        );
        assert_eq!(tables, Ok(1));
    }

    #[test]
    fn k08_other_tables_than_those_of_the_version_are_damage() {
        for change in [
            "DROP TABLE volume_uses",
            "ALTER TABLE containers DROP COLUMN revision",
            "PRAGMA user_version = 3",
            "DROP INDEX images_by_manifest",
        ] {
            let (_scratch, path) = made();
            Connection::open(&path).unwrap().execute_batch(change).unwrap();
            let db = Db::open(&path).unwrap();
            assert!(matches!(db.found(), Found::Damaged { .. }), "{change}: {:?}", db.found());
        }
    }

    #[test]
    fn k08_the_log_of_another_database_is_not_used() {
        let (scratch, path) = made();
        let older = scratch.path().join("older");
        fs::copy(&path, &older).unwrap();
        {
            let db = Db::open(&path).unwrap();
            db.set_fact("id", "newer").unwrap();
        }
        fs::copy(&older, &path).unwrap();
        {
            let db = Db::open(&path).unwrap();
            assert_eq!(*db.found(), Found::Whole);
            assert_eq!(db.fact("id").unwrap().as_deref(), Some("one"));
        }
        fs::remove_file(&path).unwrap();
        let db = Db::open(&path).unwrap();
        assert!(matches!(db.found(), Found::Damaged { .. }), "a log alone is no database");
        assert_eq!(db.fact("id").unwrap(), None);
    }

    #[test]
    fn k01_a_killed_process_loses_nothing_that_was_committed() {
        let (scratch, path) = made();
        let db = Db::open(&path).unwrap();
        db.set_fact("id", "committed").unwrap();
        // What a killed process leaves: the files as they are now.
        let left = scratch.path().join("left.db");
        fs::copy(&path, &left).unwrap();
        fs::copy(beside(&path, "-wal"), beside(&left, "-wal")).unwrap();
        let again = Db::open(&left).unwrap();
        assert_eq!(again.fact("id").unwrap().as_deref(), Some("committed"));
    }

    #[test]
    fn k06_the_log_and_the_database_have_their_size_from_the_beginning() {
        let (_scratch, path) = made();
        let sizes = || {
            let size = |path: &Path| fs::metadata(path).unwrap().len();
            (size(&path), size(&beside(&path, "-wal")))
        };
        for _ in 0..2 {
            let db = Db::open(&path).unwrap();
            let begun = sizes();
            assert!(begun.1 >= LOG_BYTES, "{begun:?}");
            for number in 0..3 * LOG_PAGES {
                db.set_fact("number", &number.to_string()).unwrap();
            }
            // Rows that come and go use the free pages.
            for number in 0..FREE_PAGES / 2 {
                db.set_fact(&format!("row {number}"), &"x".repeat(3000)).unwrap();
            }
            db.write(|db| Ok(db.execute("DELETE FROM facts WHERE key LIKE 'row %'", [])?)).unwrap();
            assert_eq!(sizes(), begun, "neither needs a block more");
            drop(db);
            assert_eq!(sizes(), begun, "nor gives one back");
        }
    }
}

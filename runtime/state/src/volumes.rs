//! Volumes and who uses them.
//!
//! A row is written after the volume's directory exists durably and deleted
//! after the directory has the name of a removed one. A use is a row with
//! foreign keys to both sides: a volume in use cannot be deleted, and a
//! container's uses go with its row.

use std::collections::BTreeMap;

use knarr_model::{ContainerId, Name};
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::{Deserialize, Serialize};

use crate::{Db, Result, Unreadable};

pub(crate) const SCHEMA: &str = "
CREATE TABLE volumes (
    name      TEXT PRIMARY KEY,
    created   TEXT NOT NULL,    -- RFC 3339
    anonymous INTEGER NOT NULL, -- made by the engine for one container
    labels    TEXT NOT NULL,    -- JSON object
    options   TEXT NOT NULL     -- JSON object: the driver's options
) STRICT, WITHOUT ROWID;

CREATE TABLE volume_uses (
    volume    TEXT NOT NULL REFERENCES volumes(name),
    container TEXT NOT NULL REFERENCES containers(id) ON DELETE CASCADE,
    PRIMARY KEY (volume, container)
) STRICT, WITHOUT ROWID;
CREATE INDEX volume_uses_container ON volume_uses(container);
";

/// One volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeRow {
    /// Its name, unique.
    pub name: Name,
    /// RFC 3339 with nanoseconds.
    pub created: String,
    /// Made by the engine for one container, and goes with it.
    pub anonymous: bool,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// The driver's options.
    pub options: BTreeMap<String, String>,
}

/// Whether a volume's row was deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VolumeRemoval {
    /// It is gone.
    Removed,
    /// There was none.
    Missing,
    /// These containers use it.
    InUse(Vec<ContainerId>),
}

impl Db {
    /// Adds a volume, unless there is one of that name; answers the row that
    /// is there now and whether it is this one. On disk when it returns.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn insert_volume(&self, row: &VolumeRow) -> Result<(VolumeRow, bool)> {
        let labels = serde_json::to_string(&row.labels)?;
        let options = serde_json::to_string(&row.options)?;
        self.write_new_durable(|db| {
            if let Some(there) = find(db, row.name.as_str())? {
                return Ok((there, false));
            }
            db.prepare_cached(
                "INSERT INTO volumes (name, created, anonymous, labels, options)
                 VALUES (?1, ?2, ?3, ?4, ?5)",
            )?
            .execute(params![
                row.name.as_str(),
                row.created,
                row.anonymous,
                labels,
                options
            ])?;
            Ok((row.clone(), true))
        })
    }

    /// Writes a volume's row as its record, or what is left of it, has it.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn adopt_volume(&self, row: &VolumeRow) -> Result<()> {
        let labels = serde_json::to_string(&row.labels)?;
        let options = serde_json::to_string(&row.options)?;
        self.write(|db| {
            db.execute(
                "INSERT INTO volumes (name, created, anonymous, labels, options)
                 VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT (name) DO UPDATE SET
                 created = excluded.created, anonymous = excluded.anonymous,
                 labels = excluded.labels, options = excluded.options",
                params![row.name.as_str(), row.created, row.anonymous, labels, options],
            )?;
            Ok(())
        })
    }

    /// The volume of that name.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn volume(&self, name: &str) -> Result<Option<VolumeRow>> {
        self.read(|db| find(db, name))
    }

    /// All volumes by name.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn volumes(&self) -> Result<Vec<VolumeRow>> {
        self.read(|db| {
            let mut query = db.prepare_cached("SELECT * FROM volumes ORDER BY name")?;
            let mut rows = query.query([])?;
            let mut all = Vec::new();
            while let Some(row) = rows.next()? {
                // One that cannot be read is nobody's answer: see `unreadable`.
                all.extend(parse(row).ok());
            }
            Ok(all)
        })
    }

    /// Deletes a volume's row, unless a container uses it.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn delete_volume(&self, name: &str) -> Result<VolumeRemoval> {
        self.write(|db| {
            let users = users(db, name)?;
            if !users.is_empty() {
                return Ok(VolumeRemoval::InUse(users));
            }
            let gone = db.prepare_cached("DELETE FROM volumes WHERE name = ?1")?.execute([name])?;
            Ok(if gone == 0 { VolumeRemoval::Missing } else { VolumeRemoval::Removed })
        })
    }

    /// Records that a container uses a volume; idempotent.
    ///
    /// # Errors
    /// When there is no such volume or container.
    pub fn use_volume(&self, volume: &str, container: &ContainerId) -> Result<()> {
        self.write(|db| {
            db.prepare_cached(
                "INSERT INTO volume_uses (volume, container) VALUES (?1, ?2)
                 ON CONFLICT DO NOTHING",
            )?
            .execute(params![volume, container.as_str()])?;
            Ok(())
        })
    }

    /// Forgets all uses by a container; answers what it used.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn release_volumes(&self, container: &ContainerId) -> Result<Vec<VolumeRow>> {
        self.write(|db| {
            let used = used_by(db, container)?;
            db.prepare_cached("DELETE FROM volume_uses WHERE container = ?1")?
                .execute([container.as_str()])?;
            Ok(used)
        })
    }

    /// Who uses a volume.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn volume_users(&self, volume: &str) -> Result<Vec<ContainerId>> {
        self.read(|db| users(db, volume))
    }

    /// What a container uses.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn volumes_of(&self, container: &ContainerId) -> Result<Vec<VolumeRow>> {
        self.read(|db| used_by(db, container))
    }
}

fn find(db: &Connection, name: &str) -> Result<Option<VolumeRow>> {
    let mut query = db.prepare_cached("SELECT * FROM volumes WHERE name = ?1")?;
    query.query_row([name], |row| Ok(parse(row))).optional()?.transpose()
}

fn users(db: &Connection, volume: &str) -> Result<Vec<ContainerId>> {
    let mut query =
        db.prepare_cached("SELECT container FROM volume_uses WHERE volume = ?1 ORDER BY 1")?;
    let mut rows = query.query([volume])?;
    let mut all = Vec::new();
    while let Some(row) = rows.next()? {
        all.push(text(row.get(0)?)?);
    }
    Ok(all)
}

fn used_by(db: &Connection, container: &ContainerId) -> Result<Vec<VolumeRow>> {
    let mut query = db.prepare_cached(
        "SELECT volumes.* FROM volumes JOIN volume_uses ON volume = name
         WHERE container = ?1 ORDER BY name",
    )?;
    let mut rows = query.query([container.as_str()])?;
    let mut all = Vec::new();
    while let Some(row) = rows.next()? {
        all.extend(parse(row).ok());
    }
    Ok(all)
}

pub(crate) fn unreadable(db: &Connection) -> Result<Vec<Unreadable>> {
    let mut query = db.prepare("SELECT * FROM volumes ORDER BY name")?;
    let mut rows = query.query([])?;
    let mut bad = Vec::new();
    while let Some(row) = rows.next()? {
        if let Err(error) = parse(row) {
            let key = row.get("name").unwrap_or_default();
            bad.push(Unreadable { kind: "volume", key, why: error.to_string() });
        }
    }
    Ok(bad)
}

fn parse(row: &Row<'_>) -> Result<VolumeRow> {
    let labels: String = row.get("labels")?;
    let options: String = row.get("options")?;
    Ok(VolumeRow {
        name: text(row.get("name")?)?,
        created: row.get("created")?,
        anonymous: row.get("anonymous")?,
        labels: serde_json::from_str(&labels)?,
        options: serde_json::from_str(&options)?,
    })
}

/// Ids and names come back through their own grammar.
fn text<T: serde::de::DeserializeOwned>(value: String) -> Result<T> {
    Ok(serde_json::from_value(serde_json::Value::String(value))?)
}

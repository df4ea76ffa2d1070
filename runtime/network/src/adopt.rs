//! Rows of networks are written again from the records beside them.
//!
//! ```text
//!   record, no row        adopted, with its id, its bridge and its addresses
//!   record, unreadable row  mended
//!   row, no record        the record is written
//! ```
//!
//! The default networks have records too: endpoints name them by their ids.
//!
//! **How it fails.** A record that cannot be used is left alone, and so is the
//! bridge of its network; people are told in a sentence.

use std::{collections::BTreeSet, fs, path::PathBuf};

use knarr_model::NetworkId;
use knarr_state::{
    Db,
    networks::{Inserted, NetworkRow},
    record,
};

use crate::{Error, Result};

const KIND: &str = "network";

/// `networks/<id>.json` of the data root.
fn path(db: &Db, id: &str) -> PathBuf {
    db.directory().join("networks").join(format!("{id}.json"))
}

/// Writes the record of a network that has a row.
pub(crate) fn write(db: &Db, row: &NetworkRow) {
    // The row is durable, and the next start writes what is not written here.
    if let Err(error) = record::write(&path(db, row.id.as_str()), KIND, row) {
        tracing::warn!(%error, network = row.name, "no record of a network");
    }
}

/// Removes the record of a network whose row is gone.
pub(crate) fn remove(db: &Db, id: &NetworkId) {
    if let Err(error) = record::remove(&path(db, id.as_str())) {
        tracing::warn!(%error, "the record of a network stays");
    }
}

/// The ids of all networks that have a record, whether it can be read or not.
pub(crate) fn recorded(db: &Db) -> BTreeSet<String> {
    let entries = fs::read_dir(db.directory().join("networks")).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let name = entry.file_name();
            let id = name.to_str()?.strip_suffix(".json")?;
            Some(id.parse::<NetworkId>().ok()?.to_string())
        })
        .collect()
}

/// Makes rows and records agree; answers what people should know.
pub(crate) fn adopt(db: &Db) -> Result<Vec<String>> {
    let directory = db.directory().join("networks");
    fs::create_dir_all(&directory)
        .map_err(Error::kernel(format!("make directory {}", directory.display())))?;
    db.forget_unreadable_endpoints()?;
    let rows = db.networks()?;
    let mut notices = Vec::new();
    for id in recorded(db) {
        let row = rows.iter().find(|row| row.id.as_str() == id);
        let file = path(db, &id);
        let recorded = match record::read::<NetworkRow>(&file, KIND) {
            Ok(Some(recorded)) if recorded.id.as_str() == id => recorded,
            Ok(None) => continue,
            damaged => {
                match (row, damaged) {
                    (Some(row), _) => write(db, row),
                    (None, Err(error)) => notices.push(format!("a network is set aside: {error}")),
                    (None, Ok(_)) => notices.push(format!(
                        "a network is set aside: {} is of another one",
                        file.display()
                    )),
                }
                continue;
            }
        };
        if row.is_some() {
            continue;
        }
        if take_in(db, &rows, &recorded)? {
            tracing::warn!(network = recorded.name, "adopted: the database did not know it");
        } else {
            notices.push(format!(
                "network {} ({}) is set aside: another has its name or its bridge",
                recorded.name,
                recorded.id.short()
            ));
        }
    }
    // These are made anew.
    for name in ["bridge", "host", "none"] {
        db.delete_unreadable_network(name)?;
    }
    for row in db.networks()? {
        if !path(db, row.id.as_str()).exists() {
            write(db, &row);
        }
    }
    Ok(notices)
}

/// Writes a network's row; one in its place that has no record is older and goes.
fn take_in(db: &Db, rows: &[NetworkRow], recorded: &NetworkRow) -> Result<bool> {
    if db.adopt_network(recorded)? == Inserted::Yes {
        return Ok(true);
    }
    let in_place = rows.iter().filter(|row| {
        row.name == recorded.name || (row.bridge.is_some() && row.bridge == recorded.bridge)
    });
    for row in in_place.filter(|row| !path(db, row.id.as_str()).exists()) {
        for endpoint in db.endpoints_in(&row.id)? {
            db.delete_endpoint(&row.id, &endpoint.container)?;
        }
        db.delete_network(&row.id)?;
    }
    Ok(db.adopt_network(recorded)? == Inserted::Yes)
}

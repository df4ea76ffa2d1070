//! Directories and rows are made to agree, and no volume is lost by it.
//!
//! ```text
//!   .removed-…           was removed: its deletion is finished
//!   directory, row       a record is written where there is none
//!   directory, no row    adopted: from volume.json, else by what is left of it
//!   row, no directory    unused: removed since; used: an empty one is made again
//! ```
//!
//! A volume whose record is gone is adopted under its own name, as a named
//! volume: those are never removed but by name.
//!
//! **How it fails.** What cannot be done is answered as a sentence for people
//! and tried again at the next start.

use std::{collections::BTreeSet, fs, io, path::Path};

use knarr_model::Name;
use knarr_state::{
    record,
    volumes::{VolumeRemoval, VolumeRow},
};

use crate::{DATA, Result, Volumes, at, make_dir, parse_name, remove_tree};

/// The record beside `_data`.
pub(crate) const RECORD: &str = "volume.json";
/// What the record calls itself.
pub(crate) const KIND: &str = "volume";
/// With what the names of removed volumes' directories begin: no volume's does.
pub(crate) const REMOVED: &str = ".removed-";

impl Volumes {
    /// Gives every volume on the disk its row, and finishes removals. Answers
    /// what people should know.
    ///
    /// # Errors
    /// When the directory or the database cannot be read.
    pub fn adopt(&self) -> Result<Vec<String>> {
        let mut notices = self.finish_removals();
        let known: BTreeSet<String> =
            self.db.volumes()?.into_iter().map(|row| row.name.to_string()).collect();
        for entry in at(&self.root, fs::read_dir(&self.root))?.flatten() {
            let Some(name) = entry.file_name().to_str().and_then(|name| parse_name(name).ok())
            else {
                continue;
            };
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            let outcome = if known.contains(name.as_str()) {
                self.complete(&name).map(|()| None)
            } else {
                self.adopt_one(&name, &entry.path())
            };
            match outcome {
                Ok(notice) => notices.extend(notice),
                Err(error) => notices.push(format!("volume {name}: {error}")),
            }
        }
        Ok(notices)
    }

    /// Rows whose directories are gone: for when it is known who uses what.
    /// Answers what people should know.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn settle(&self) -> Result<Vec<String>> {
        let mut notices = Vec::new();
        for row in self.db.volumes()? {
            let dir = self.root.join(row.name.as_str());
            if dir.join(DATA).is_dir() {
                continue;
            }
            let name = &row.name;
            let outcome = match self.db.delete_volume(name.as_str())? {
                VolumeRemoval::Removed | VolumeRemoval::Missing => {
                    tracing::warn!(volume = %name, "it was removed: its directory is gone");
                    continue;
                }
                VolumeRemoval::InUse(_) => make_dir(&dir, 0o711)
                    .and_then(|()| make_dir(&dir.join(DATA), 0o755))
                    .and_then(|()| self.complete(name)),
            };
            notices.push(match outcome {
                Ok(()) => {
                    format!("volume {name}: its directory was gone, and an empty one was made")
                }
                Err(error) => format!("volume {name}: its directory is gone: {error}"),
            });
        }
        Ok(notices)
    }

    /// Tries again to delete what was removed; answers what stays.
    pub fn finish_removals(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.root).into_iter().flatten().flatten();
        entries
            .filter(|entry| entry.file_name().to_string_lossy().starts_with(REMOVED))
            .filter_map(|entry| remove_tree(&entry.path()).err())
            .map(|error| format!("a removed volume is not deleted yet: {error}"))
            .collect()
    }

    /// Takes a volume's name away: what is answered is to be deleted.
    pub(crate) fn retire(&self, name: &Name) -> Result<std::path::PathBuf> {
        static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        let dir = self.root.join(name.as_str());
        loop {
            let next = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let retired = self.root.join(format!("{REMOVED}{next}-{name}"));
            if retired.symlink_metadata().is_ok() {
                continue;
            }
            match fs::rename(&dir, &retired) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return at(&dir, Err(error));
                }
                _ => return Ok(retired),
            }
        }
    }

    /// Makes the record of a volume say what its row says.
    pub(crate) fn complete(&self, name: &Name) -> Result<()> {
        let path = self.root.join(name.as_str()).join(RECORD);
        let Some(row) = self.db.volume(name.as_str())? else { return Ok(()) };
        match record::read::<VolumeRow>(&path, KIND) {
            Ok(Some(found)) if found == row => Ok(()),
            _ => Ok(record::write(&path, KIND, &row)?),
        }
    }

    fn adopt_one(&self, name: &Name, dir: &Path) -> Result<Option<String>> {
        let path = dir.join(RECORD);
        let found = record::read::<VolumeRow>(&path, KIND);
        let why = match found {
            Ok(Some(row)) if row.name == *name => {
                self.db.adopt_volume(&row)?;
                tracing::warn!(volume = %name, "adopted: the database did not know it");
                return Ok(None);
            }
            Ok(Some(row)) => format!("its record is of {}", row.name),
            // Made by a `create` that never came to its end: nothing is in it.
            Ok(None) if fs::remove_dir(dir.join(DATA)).is_ok() || !dir.join(DATA).exists() => {
                return at(dir, fs::remove_dir(dir)).map(|()| None);
            }
            Ok(None) => "it has no record".into(),
            Err(error @ record::Error::Io { .. }) => return Err(error.into()),
            Err(error) => error.to_string(),
        };
        if path.symlink_metadata().is_ok() {
            at(&path, fs::rename(&path, dir.join("volume.json.damaged")))?;
        }
        let made = fs::metadata(dir).and_then(|meta| meta.modified()).ok();
        let made = made.and_then(|made| jiff::Timestamp::try_from(made).ok());
        self.db.adopt_volume(&VolumeRow {
            name: name.clone(),
            created: made.unwrap_or_else(jiff::Timestamp::now).to_string(),
            anonymous: false,
            labels: Default::default(),
            options: Default::default(),
        })?;
        self.complete(name)?;
        Ok(Some(format!("volume {name}: {why}: it was adopted as a named volume without labels")))
    }
}

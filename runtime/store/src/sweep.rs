//! Removing what nobody names.
//!
//! The caller says what is named, and makes sure that nobody names anything
//! new while this runs. Names disappear first (renamed away), deletion follows.
//!
//! **How it fails.** It goes on after a failure and reports the first.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::PoisonError,
    time::Duration,
};

use knarr_model::Digest;

use crate::{Error, Result, Store, remove_tree};

/// Partial blobs that nobody touched for so long are given up.
const PARTIAL_LIFE: Duration = Duration::from_secs(7 * 24 * 3600);

/// What stays.
#[derive(Debug, Clone, Default)]
pub struct Keep {
    /// Blobs by digest.
    pub blobs: BTreeSet<Digest>,
    /// Layers by diff id.
    pub layers: BTreeSet<Digest>,
    /// Wasm modules whose compiled code stays.
    pub modules: BTreeSet<Digest>,
}

/// What a sweep took away.
#[derive(Debug, Clone, Default)]
pub struct Swept {
    /// Blobs that are gone.
    pub blobs: Vec<Digest>,
    /// Layers that are gone.
    pub layers: Vec<Digest>,
    /// Bytes of both.
    pub bytes: u64,
    /// Trees still to delete with [`Store::delete_retired`], outside of any lock.
    pub retired: Vec<PathBuf>,
}

impl Store {
    /// Takes the names of all blobs, layers and compiled modules away that are
    /// not to be kept.
    ///
    /// # Errors
    /// When the host fails.
    pub fn sweep(&self, keep: &Keep) -> Result<Swept> {
        let mut swept = Swept::default();
        for (digest, path) in named_by_digest(&self.root().join("blobs/sha256"), "")? {
            if !keep.blobs.contains(&digest) {
                swept.bytes += path.metadata().map_or(0, |m| m.len());
                std::fs::remove_file(&path).map_err(Error::io("remove", &path))?;
                swept.blobs.push(digest);
            }
        }
        for (digest, path) in named_by_digest(&self.root().join("layers"), "")? {
            if !keep.layers.contains(&digest) {
                swept.bytes += self.layer_info(&digest).map_or(0, |info| info.size);
                swept.retired.extend(self.retire(&path)?);
                swept.layers.push(digest);
            }
        }
        if let Ok(hosts) = std::fs::read_dir(self.root().join("wasm")) {
            for host in hosts.flatten() {
                for (digest, path) in named_by_digest(&host.path(), ".cwasm").unwrap_or_default() {
                    if !keep.modules.contains(&digest) {
                        swept.bytes += path.metadata().map_or(0, |m| m.len());
                        std::fs::remove_file(&path).map_err(Error::io("remove", &path))?;
                    }
                }
            }
        }
        Ok(swept)
    }

    /// Removes what broken transfers left and nobody goes on with just now, and
    /// tries again what could not be deleted before. Answers the bytes. It goes
    /// on after a failure and reports the first.
    ///
    /// # Errors
    /// When the host fails.
    pub fn sweep_partial(&self) -> Result<u64> {
        let path = self.root().join("ingest");
        let (mut bytes, mut outcome) = (0, Ok(()));
        for (digest, path) in named_by_digest(&path, "")? {
            // Whoever begins to write it comes before or after, not between.
            let writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
            if writing.contains(&digest) {
                continue;
            }
            let length = path.metadata().map_or(0, |m| m.len());
            match std::fs::remove_file(&path) {
                Ok(()) => bytes += length,
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
                Err(e) => outcome = outcome.and(Err(Error::io("remove", &path)(e))),
            }
        }
        for entry in std::fs::read_dir(&path).map_err(Error::io("read", &path))?.flatten() {
            if entry.file_name().as_encoded_bytes().starts_with(b"trash-") {
                outcome = outcome.and(remove_tree(&entry.path()));
            }
        }
        outcome.map(|()| bytes)
    }

    /// Bytes of all blobs.
    ///
    /// # Errors
    /// When the host fails.
    pub fn blobs_size(&self) -> Result<BTreeMap<Digest, u64>> {
        sizes(&self.root().join("blobs/sha256"), "")
    }

    /// Bytes of the code compiled from each module, for whatever host.
    ///
    /// # Errors
    /// When the host fails.
    pub fn code_size(&self) -> Result<BTreeMap<Digest, u64>> {
        let mut all = BTreeMap::new();
        if let Ok(hosts) = std::fs::read_dir(self.root().join("wasm")) {
            for host in hosts.flatten().map(|host| host.path()).filter(|path| path.is_dir()) {
                for (module, bytes) in sizes(&host, ".cwasm")? {
                    *all.entry(module).or_default() += bytes;
                }
            }
        }
        Ok(all)
    }

    /// Bytes of what is neither whole nor gone yet: transfers, broken or under
    /// way, layers that are being unpacked, trees that are being deleted.
    ///
    /// # Errors
    /// When the host fails.
    pub fn staged_size(&self) -> Result<u64> {
        let path = self.root().join("ingest");
        Ok(knarr_tree::usage(&path).map_err(Error::io("count", &path))?.disk)
    }

    /// Removes what only a crash can have left, and partial blobs that nobody wants.
    pub(crate) fn sweep_temporary(&self) -> Result<()> {
        let path = self.root().join("ingest");
        for entry in std::fs::read_dir(&path).map_err(Error::io("read", &path))?.flatten() {
            let name = entry.file_name();
            let partial = name.to_str().is_some_and(|n| n.len() == 64);
            let old = || {
                let modified = entry.metadata().and_then(|m| m.modified());
                modified.is_ok_and(|m| m.elapsed().is_ok_and(|age| age > PARTIAL_LIFE))
            };
            if !partial || old() {
                remove_tree(&entry.path())?;
            }
        }
        Ok(())
    }
}

/// Entries of a directory whose names are a digest's digits and a suffix.
fn named_by_digest(directory: &Path, suffix: &str) -> Result<Vec<(Digest, PathBuf)>> {
    let entries = std::fs::read_dir(directory).map_err(Error::io("read", directory))?;
    Ok(entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name();
            let hex = name.to_str()?.strip_suffix(suffix)?;
            Some((format!("sha256:{hex}").parse().ok()?, entry.path()))
        })
        .collect())
}

fn sizes(directory: &Path, suffix: &str) -> Result<BTreeMap<Digest, u64>> {
    let files = named_by_digest(directory, suffix)?.into_iter();
    Ok(files.map(|(digest, path)| (digest, path.metadata().map_or(0, |m| m.len()))).collect())
}

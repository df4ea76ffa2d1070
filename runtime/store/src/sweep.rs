//! Removing what nobody names.
//!
//! The caller says what is named, and makes sure that nobody names anything
//! new while this runs. Names disappear first (renamed away), deletion follows.
//!
//! **How it fails.** It goes on after a failure and reports them all: what
//! cannot be deleted today keeps nothing from working, and is tried again.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fs::DirEntry,
    path::{Path, PathBuf},
    sync::PoisonError,
    time::Duration,
};

use knarr_model::Digest;

use crate::{Error, Result, Store, remove_tree, snapshots::TRASH};

/// Partial blobs that nobody touched for so long are given up.
const PARTIAL_LIFE: Duration = Duration::from_secs(7 * 24 * 3600);

/// Files of the code cache: compiled code, and what makes it believed.
const COMPILED: [&str; 2] = [".cwasm", ".seal"];

/// What stays.
#[derive(Debug, Clone, Default)]
pub struct Keep {
    /// Blobs by digest.
    pub blobs: BTreeSet<Digest>,
    /// Layers by diff id.
    pub layers: BTreeSet<Digest>,
    /// Wasm modules whose compiled code stays.
    pub modules: BTreeSet<Digest>,
    /// The fingerprint of the Wasm host that it must be compiled for; none is any.
    pub wasm_host: Option<String>,
}

/// What a sweep took away.
#[derive(Debug, Default)]
pub struct Swept {
    /// Blobs that are gone.
    pub blobs: Vec<Digest>,
    /// Layers that are gone.
    pub layers: Vec<Digest>,
    /// Bytes of both.
    pub bytes: u64,
    /// Trees still to delete with [`Store::delete_retired`], outside of any lock.
    pub retired: Vec<PathBuf>,
    /// What stays although nothing names it.
    pub failed: Vec<Error>,
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
            if !keep.blobs.contains(&digest) && swept.remove_file(&path) {
                swept.blobs.push(digest);
            }
        }
        for (digest, path) in named_by_digest(&self.root().join("layers"), "")? {
            if !keep.layers.contains(&digest) {
                let bytes = self.layer_info(&digest).map_or(0, |info| info.size);
                match self.retire(&path) {
                    Ok(retired) => {
                        swept.bytes += bytes;
                        swept.retired.extend(retired);
                        swept.layers.push(digest);
                    }
                    Err(error) => swept.failed.push(error),
                }
            }
        }
        if let Ok(hosts) = std::fs::read_dir(self.root().join("wasm")) {
            for host in hosts.flatten().map(|host| host.path()) {
                let ours = keep.wasm_host.as_ref();
                let ours = ours.is_none_or(|ours| host.file_name() == Some(OsStr::new(ours)));
                let files = COMPILED.map(|suffix| named_by_digest(&host, suffix));
                for (digest, path) in files.into_iter().flatten().flatten() {
                    if !(ours && keep.modules.contains(&digest)) {
                        swept.remove_file(&path);
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
                // What still stays is told by whoever takes care of it.
                let _ = remove_tree(&entry.path());
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

    /// Removes what only a crash can have left, and partial blobs that nobody
    /// wants. For the start, before anything comes into the store. Answers what
    /// stays.
    pub fn sweep_temporary(&self) -> Vec<Error> {
        self.sweep_ingest(|entry, name| {
            let partial = name.len() == 64;
            let old = || {
                let modified = entry.metadata().and_then(|m| m.modified());
                modified.is_ok_and(|m| m.elapsed().is_ok_and(|age| age > PARTIAL_LIFE))
            };
            !partial || old()
        })
    }

    /// Tries again to delete what was removed and stayed, at any time. Answers
    /// what still stays.
    pub fn sweep_removed(&self) -> Vec<Error> {
        self.sweep_ingest(|_, name| name.starts_with(TRASH))
    }

    /// Deletes entries of `ingest/`, and what is marked as removed.
    fn sweep_ingest(&self, wanted: impl Fn(&DirEntry, &str) -> bool) -> Vec<Error> {
        let path = self.root().join("ingest");
        let mut failed = Vec::new();
        match std::fs::read_dir(&path) {
            Err(error) => failed.push(Error::io("read", &path)(error)),
            Ok(entries) => {
                for entry in entries.flatten() {
                    if wanted(&entry, &entry.file_name().to_string_lossy()) {
                        failed.extend(remove_tree(&entry.path()).err());
                    }
                }
            }
        }
        match self.removed_snapshots() {
            Err(error) => failed.push(error),
            Ok(removed) => {
                for id in removed {
                    failed.extend(self.delete_retired(&self.container_path(&id)).err());
                }
            }
        }
        failed
    }
}

impl Swept {
    /// Removes a file and counts it; true where it is gone.
    fn remove_file(&mut self, path: &Path) -> bool {
        let bytes = path.metadata().map_or(0, |m| m.len());
        match std::fs::remove_file(path) {
            Ok(()) => self.bytes += bytes,
            Err(error) => self.failed.push(Error::io("remove", path)(error)),
        }
        !path.exists()
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

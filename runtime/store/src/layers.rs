//! Layers: archives unpacked once, shared by every image and container.
//!
//! ```text
//!   unpack(reader) ─▶ ingest/layer-<random>/fs ─▶ Unpacked ─▶ publish
//!     hash ─ inflate ─ hash ─ extract               │ diff id checked by the caller
//!                                                   └ dropped: removed
//! ```
//!
//! **How it fails.** Whatever goes wrong before `publish` removes the temporary
//! directory; a crash leaves it to the next open. `publish` flushes the file
//! system once, then renames; a layer that is there already wins.

use std::{
    io::{BufReader, Read},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
};

use knarr_model::Digest;
use rustix::fs::AtFlags;
use serde::{Deserialize, Serialize};

use crate::{Compression, Error, Inflated, Limits, Result, Store, Tarball, extract, remove_tree};

/// What a layer weighs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerInfo {
    /// Bytes of its regular files.
    pub size: u64,
    /// Its entries.
    pub entries: u64,
}

/// A layer that is unpacked and not yet visible; removed when it is dropped.
#[derive(Debug)]
pub struct Unpacked {
    store: Arc<Store>,
    directory: Option<PathBuf>,
    diff_id: Digest,
    info: LayerInfo,
    compression: Compression,
}

impl Unpacked {
    /// The digest of the uncompressed archive.
    pub fn diff_id(&self) -> Digest {
        self.diff_id
    }

    /// What it weighs.
    pub fn info(&self) -> LayerInfo {
        self.info
    }

    /// How the archive was compressed.
    pub fn compression(&self) -> Compression {
        self.compression
    }

    /// Makes the layer visible and durable.
    ///
    /// # Errors
    /// When the host fails.
    pub fn publish(self) -> Result<LayerInfo> {
        let info = self.info;
        let store = Arc::clone(&self.store);
        store.publish(vec![self])?;
        Ok(info)
    }
}

impl Drop for Unpacked {
    fn drop(&mut self) {
        if let Some(directory) = self.directory.take() {
            // The next open sweeps what is left.
            let _ = remove_tree(&directory);
        }
    }
}

/// What came of unpacking an archive.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Done {
    pub(crate) diff_id: Digest,
    pub(crate) info: LayerInfo,
    pub(crate) compression: Compression,
    /// Entries, with directories that the archive only implied.
    pub(crate) entries: u64,
    /// Bytes beyond the ratio of the limits.
    pub(crate) beyond: u64,
}

/// Inflates, hashes and extracts an archive in one pass, and reads the reader to
/// its end. `root` is the directory at `path`.
pub(crate) fn unpack_here(
    reader: impl Read,
    root: &OwnedFd,
    path: &Path,
    limits: &Limits,
) -> Result<Done> {
    let mut inflated = Inflated::new(reader, "layer", limits)?.hashed();
    let compression = inflated.compression();
    let mut buffered = BufReader::with_capacity(256 * 1024, &mut inflated);
    let most = limits.entries_left();
    let outcome = Tarball::new(&mut buffered, most).and_then(|mut tarball| {
        let extracted = extract::extract(&mut tarball, root, path, most)?;
        tarball.drain()?;
        Ok(extracted)
    });
    drop(buffered);
    // A broken stream shows as whatever the parser made of it; the limit or
    // the source that ended it is the real reason.
    let (info, implied) = match (outcome, inflated.refusal()) {
        (_, Some(refusal)) => return Err(refusal),
        (outcome, None) => outcome?,
    };
    let (diff_id, beyond) = inflated.finish()?;
    Ok(Done { diff_id, info, compression, entries: info.entries + implied, beyond })
}

impl Store {
    /// Unpacks a layer's archive, in another process where there is a
    /// [`Worker`](crate::Worker): inflates, hashes and extracts in one pass and
    /// reads the reader to its end.
    ///
    /// # Errors
    /// [`Error::Source`] when the reader fails, [`Error::Archive`] or
    /// [`Error::Entry`] for what is not unpacked, [`Error::TooLarge`].
    pub fn unpack(self: &Arc<Self>, reader: impl Read, limits: &Limits) -> Result<Unpacked> {
        let directory = self.ingest_path(&format!("layer-{}", crate::unique()));
        let fs = directory.join("fs");
        std::fs::create_dir(&directory)
            .and_then(|()| std::fs::create_dir(&fs))
            .map_err(Error::io("make directory", &fs))?;
        let mut unpacked = Unpacked {
            store: Arc::clone(self),
            directory: Some(directory.clone()),
            diff_id: Digest::from_bytes([0; 32]),
            info: LayerInfo { size: 0, entries: 0 },
            compression: Compression::None,
        };
        let done = match &self.worker {
            Some(worker) => worker.unpack(reader, &directory, limits)?,
            None => unpack_here(reader, &crate::open_directory(&fs)?, &fs, limits)?,
        };
        limits.count_entries(done.entries);
        (unpacked.diff_id, unpacked.info) = (done.diff_id, done.info);
        unpacked.compression = done.compression;
        let description = serde_json::to_vec(&unpacked.info)
            .map_err(|e| Error::Archive(format!("describe layer: {e}")))?;
        let path = directory.join("layer.json");
        std::fs::write(&path, description).map_err(Error::io("write", &path))?;
        Ok(unpacked)
    }

    /// Makes unpacked layers visible and durable: the file system is flushed
    /// once for all of them. One that is there already stays as it is.
    ///
    /// # Errors
    /// When the host fails.
    pub fn publish(&self, layers: Vec<Unpacked>) -> Result<()> {
        let path = self.root().join("layers");
        if layers.iter().any(|layer| !self.has_layer(&layer.diff_id)) {
            rustix::fs::syncfs(&self.layers).map_err(|e| Error::io("flush", &path)(e.into()))?;
        }
        for mut layer in layers {
            let Some(directory) = layer.directory.as_deref() else { continue };
            match rustix::fs::rename(directory, path.join(layer.diff_id.hex())) {
                Ok(()) => layer.directory = None,
                // Somebody else was first; ours is removed as it is dropped.
                Err(rustix::io::Errno::EXIST | rustix::io::Errno::NOTEMPTY) => {}
                Err(e) => return Err(Error::io("rename", directory)(e.into())),
            }
        }
        crate::flush_directory(&self.layers, &path)
    }

    /// `layers/<diff id>/fs`: the layer in overlayfs' terms.
    pub fn layer_path(&self, diff_id: &Digest) -> PathBuf {
        self.root().join("layers").join(diff_id.hex()).join("fs")
    }

    /// Whether the layer is here, whole.
    pub fn has_layer(&self, diff_id: &Digest) -> bool {
        rustix::fs::statat(&self.layers, diff_id.hex(), AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }

    /// What a layer weighs.
    ///
    /// # Errors
    /// [`Error::NotFound`], or when the host fails.
    pub fn layer_info(&self, diff_id: &Digest) -> Result<LayerInfo> {
        let path = self.root().join("layers").join(diff_id.hex()).join("layer.json");
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(Error::NotFound { what: "layer", digest: *diff_id });
            }
            Err(e) => return Err(Error::io("read", &path)(e)),
        };
        serde_json::from_slice(&bytes)
            .map_err(|e| Error::io("read", &path)(std::io::Error::other(e)))
    }
}

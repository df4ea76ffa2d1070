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
    path::PathBuf,
    sync::Arc,
};

use knarr_model::Digest;
use rustix::fs::AtFlags;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{Compression, Decompressor, Error, Result, Store, Tarball, extract, remove};

/// What an archive may ask for (RELIABILITY I08).
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Entries of one layer.
    pub entries: u64,
    /// Bytes of one layer, unpacked.
    pub bytes: u64,
    /// Unpacked bytes for each compressed one, beyond [`Limits::free_bytes`].
    pub ratio: u64,
    /// Below this many unpacked bytes the ratio does not matter.
    pub free_bytes: u64,
}

impl Default for Limits {
    /// 4 million entries, 256 GiB, and beyond 512 MiB no more than 200 to 1:
    /// text and sparse images reach some 100 to 1, deflate's bound is 1032 to 1.
    fn default() -> Self {
        Self { entries: 4_000_000, bytes: 256 << 30, ratio: 200, free_bytes: 512 << 20 }
    }
}

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
            let _ = remove::tree(&directory);
        }
    }
}

impl Store {
    /// Unpacks a layer's archive: inflates, hashes and extracts in one pass and
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
        let mut inflated = Inflated::new(reader, *limits)?;
        unpacked.compression = inflated.decompressor.compression();
        let mut buffered = BufReader::with_capacity(256 * 1024, &mut inflated);
        let root = crate::open_directory(&fs)?;
        let outcome = Tarball::new(&mut buffered, limits.entries).and_then(|mut tarball| {
            let info = extract::extract(&mut tarball, &root, &fs)?;
            tarball.drain()?;
            Ok(info)
        });
        drop(buffered);
        // A broken stream shows as whatever the parser made of it; the limit or
        // the source that ended it is the real reason.
        unpacked.info = match (outcome, inflated.refused.take()) {
            (_, Some(refusal)) => return Err(refusal),
            (outcome, None) => outcome?,
        };
        unpacked.diff_id = inflated.finish()?;
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

/// Counts compressed bytes.
struct Counted<R> {
    reader: R,
    bytes: std::rc::Rc<std::cell::Cell<u64>>,
    failed: std::rc::Rc<std::cell::Cell<Option<std::io::Error>>>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self.reader.read(buffer) {
            Ok(read) => {
                self.bytes.set(self.bytes.get() + read as u64);
                Ok(read)
            }
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => Err(e),
            Err(e) => {
                let copy = std::io::Error::new(e.kind(), e.to_string());
                self.failed.set(Some(e));
                Err(copy)
            }
        }
    }
}

/// The uncompressed archive: hashed and bounded as it is read.
struct Inflated<R: Read> {
    decompressor: Decompressor<Counted<R>>,
    compressed: std::rc::Rc<std::cell::Cell<u64>>,
    source_failed: std::rc::Rc<std::cell::Cell<Option<std::io::Error>>>,
    hash: Sha256,
    bytes: u64,
    limits: Limits,
    refused: Option<Error>,
}

impl<R: Read> Inflated<R> {
    fn new(reader: R, limits: Limits) -> Result<Self> {
        let compressed = std::rc::Rc::default();
        let source_failed = std::rc::Rc::<std::cell::Cell<Option<std::io::Error>>>::default();
        let counted = Counted {
            reader,
            bytes: std::rc::Rc::clone(&compressed),
            failed: std::rc::Rc::clone(&source_failed),
        };
        let decompressor = Decompressor::new(counted).map_err(|e| match source_failed.take() {
            Some(source) => Error::Source(source),
            None => Error::Archive(e.to_string()),
        })?;
        Ok(Self {
            decompressor,
            compressed,
            source_failed,
            hash: Sha256::new(),
            bytes: 0,
            limits,
            refused: None,
        })
    }

    fn refuse(&mut self, error: Error) -> std::io::Error {
        let message = error.to_string();
        self.refused.get_or_insert(error);
        std::io::Error::other(message)
    }

    /// Reads both streams to their ends and answers the hash.
    fn finish(mut self) -> Result<Digest> {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            match self.read(&mut buffer) {
                Ok(0) => break,
                Ok(_) => {}
                Err(e) => return Err(self.refused.take().unwrap_or(Error::Source(e))),
            }
        }
        self.decompressor.drain_source().map_err(Error::Source)?;
        Ok(Digest::from_bytes(self.hash.finalize().into()))
    }
}

impl<R: Read> Read for Inflated<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = match self.decompressor.read(buffer) {
            Ok(read) => read,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => return Err(e),
            Err(e) => {
                let error = match self.source_failed.take() {
                    Some(source) => Error::Source(source),
                    None => Error::Archive(format!("decompress layer: {e}")),
                };
                return Err(self.refuse(error));
            }
        };
        self.hash.update(&buffer[..read]);
        self.bytes += read as u64;
        if self.bytes > self.limits.bytes {
            let limit = self.limits.bytes;
            return Err(self.refuse(Error::TooLarge { what: "layer".into(), limit }));
        }
        let fair = self.compressed.get().saturating_mul(self.limits.ratio);
        if self.bytes > self.limits.free_bytes && self.bytes > fair {
            let message = format!(
                "layer inflates more than {} to 1: taken for a decompression bomb",
                self.limits.ratio
            );
            return Err(self.refuse(Error::Archive(message)));
        }
        Ok(read)
    }
}

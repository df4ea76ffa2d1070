//! Blobs: files named by the sha256 of their content.
//!
//! ```text
//!   ingest(digest) ─▶ ingest/<hex> grows ─▶ commit: size, digest, flush, rename
//!        ▲                 │ broken off
//!        └─────────────────┘ the partial file stays and is read back first
//! ```
//!
//! **How it fails.** Content that turns out wrong is deleted with its partial
//! file; content that is merely short is kept. A partial file that a power cut
//! damaged shows as a wrong digest at commit, and the next attempt starts anew.

use std::{
    fs::File,
    io::{Read, Seek, Write},
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    sync::{Arc, PoisonError},
};

use knarr_model::Digest;
use rustix::fs::{AtFlags, Mode, OFlags};
use sha2::{Digest as _, Sha256};

use crate::{Error, Result, Store};

/// Documents are never read beyond this (image configurations, CATALOGUE I11).
pub const MAX_READ: u64 = 8 << 20;

/// A blob on its way into the store.
#[derive(Debug)]
pub struct Ingest {
    store: Arc<Store>,
    file: File,
    path: PathBuf,
    /// The partial file belongs to this digest and outlives us; else it is a
    /// private one, because somebody else is writing the same blob just now.
    shared: bool,
    expected: Digest,
    size: Option<u64>,
    hash: Sha256,
    /// Bytes of the partial file that were there at first.
    found: u64,
    /// Bytes that went through the hash.
    hashed: u64,
}

impl Ingest {
    /// How many bytes an earlier attempt left; the source may go on there.
    pub fn offset(&self) -> u64 {
        self.found
    }

    /// Bytes that are in the file and went through the hash.
    pub fn written(&self) -> u64 {
        self.hashed
    }

    /// Reads the bytes that an earlier attempt left, in order, hashing them;
    /// 0 when there are no more.
    ///
    /// # Errors
    /// When the partial file cannot be read.
    pub fn read_back(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let left = self.found.saturating_sub(self.hashed).min(buffer.len() as u64) as usize;
        if left == 0 {
            return Ok(0);
        }
        let read = self.file.read(&mut buffer[..left]).map_err(Error::io("read", &self.path))?;
        if read == 0 {
            // Somebody cut it short. What follows would not fit.
            return Err(Error::io("read", &self.path)(std::io::ErrorKind::UnexpectedEof.into()));
        }
        self.hash.update(&buffer[..read]);
        self.hashed += read as u64;
        Ok(read)
    }

    /// Appends what the source sends. Bytes left by an earlier attempt are read
    /// back first.
    ///
    /// # Errors
    /// When there is more than was announced, or no space.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let mut buffer = [0; 16 * 1024];
        while self.read_back(&mut buffer)? > 0 {}
        let total = self.hashed + bytes.len() as u64;
        if let Some(want) = self.size.filter(|want| total > *want) {
            self.discard()?;
            return Err(Error::Size { digest: self.expected, found: total, want });
        }
        self.file.write_all(bytes).map_err(Error::io("write", &self.path))?;
        self.hash.update(bytes);
        self.hashed = total;
        Ok(())
    }

    /// Forgets all bytes: what comes next begins at 0.
    ///
    /// # Errors
    /// When the file cannot be truncated.
    pub fn discard(&mut self) -> Result<()> {
        self.file
            .set_len(0)
            .and_then(|()| self.file.rewind())
            .map_err(Error::io("truncate", &self.path))?;
        (self.found, self.hashed, self.hash) = (0, 0, Sha256::new());
        Ok(())
    }

    /// Verifies size and digest and makes the blob visible and durable.
    ///
    /// # Errors
    /// [`Error::Size`] when it is short (the partial file stays),
    /// [`Error::Digest`] when it is wrong (the partial file goes).
    pub fn commit(mut self) -> Result<()> {
        let mut buffer = [0; 16 * 1024];
        while self.read_back(&mut buffer)? > 0 {}
        if let Some(want) = self.size.filter(|want| *want != self.hashed) {
            return Err(Error::Size { digest: self.expected, found: self.hashed, want });
        }
        let found = Digest::from_bytes(self.hash.clone().finalize().into());
        if found != self.expected {
            self.discard()?;
            return Err(Error::Digest { what: "blob", found, want: self.expected });
        }
        self.file.sync_data().map_err(Error::io("flush", &self.path))?;
        let target = self.store.blob_path(&self.expected);
        std::fs::rename(&self.path, &target).map_err(Error::io("rename", &self.path))?;
        crate::flush_directory(&self.store.blobs, &target)
    }
}

impl Drop for Ingest {
    fn drop(&mut self) {
        if self.shared {
            self.store
                .writing
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .remove(&self.expected);
        }
        if !self.shared || self.hashed.max(self.found) == 0 {
            // After a commit the name is gone already.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// A blob that is in the store, but not under its name yet; removed when dropped.
#[derive(Debug)]
pub struct StagedBlob {
    store: Arc<Store>,
    file: File,
    path: PathBuf,
    digest: Digest,
    size: u64,
}

impl StagedBlob {
    /// What its bytes hash to.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Its bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Makes it visible and durable.
    ///
    /// # Errors
    /// When the host fails.
    pub fn commit(self) -> Result<()> {
        self.file.sync_data().map_err(Error::io("flush", &self.path))?;
        let target = self.store.blob_path(&self.digest);
        std::fs::rename(&self.path, &target).map_err(Error::io("rename", &self.path))?;
        crate::flush_directory(&self.store.blobs, &target)
    }
}

impl Drop for StagedBlob {
    fn drop(&mut self) {
        // After a commit the name is gone already.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Store {
    /// Begins or resumes writing a blob. `size` is what its descriptor says.
    ///
    /// # Errors
    /// When the partial file cannot be opened.
    pub fn ingest(self: &Arc<Self>, expected: Digest, size: Option<u64>) -> Result<Ingest> {
        let shared = self.writing.lock().unwrap_or_else(PoisonError::into_inner).insert(expected);
        let name = if shared { expected.hex() } else { format!("blob-{}", crate::unique()) };
        let path = self.ingest_path(&name);
        let opened = open_partial(self.ingest.as_fd(), &name, &path);
        let file = match opened {
            Ok(file) => file,
            Err(e) => {
                if shared {
                    self.writing.lock().unwrap_or_else(PoisonError::into_inner).remove(&expected);
                }
                return Err(e);
            }
        };
        let mut ingest = Ingest {
            store: Arc::clone(self),
            file,
            path,
            shared,
            expected,
            size,
            hash: Sha256::new(),
            found: 0,
            hashed: 0,
        };
        let found = ingest.file.metadata().map_err(Error::io("stat", &ingest.path))?.len();
        if size.is_some_and(|size| found > size) {
            ingest.discard()?;
        } else {
            ingest.found = found;
        }
        Ok(ingest)
    }

    /// Stores bytes that are in memory already.
    ///
    /// # Errors
    /// When the host fails.
    pub fn put_blob(self: &Arc<Self>, bytes: &[u8]) -> Result<Digest> {
        let digest = Digest::from_bytes(Sha256::digest(bytes).into());
        if !self.has_blob(&digest) {
            let mut ingest = self.ingest(digest, Some(bytes.len() as u64))?;
            ingest.discard()?;
            ingest.write(bytes)?;
            ingest.commit()?;
        }
        Ok(digest)
    }

    /// Takes in what a reader gives, to be named by what it hashes to.
    ///
    /// # Errors
    /// [`Error::TooLarge`] beyond `limit` bytes, [`Error::Source`] when the
    /// reader fails.
    pub fn stage_blob(self: &Arc<Self>, reader: &mut dyn Read, limit: u64) -> Result<StagedBlob> {
        let name = format!("blob-{}", crate::unique());
        let path = self.ingest_path(&name);
        let file = open_partial(self.ingest.as_fd(), &name, &path)?;
        let digest = Digest::from_bytes([0; 32]);
        let mut staged = StagedBlob { store: Arc::clone(self), file, path, digest, size: 0 };
        (staged.digest, staged.size) = copy_hashed(reader, &mut staged.file, limit, &staged.path)?;
        Ok(staged)
    }

    /// Where a blob lies.
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.root().join("blobs/sha256").join(digest.hex())
    }

    /// Whether the blob is here, whole.
    pub fn has_blob(&self, digest: &Digest) -> bool {
        rustix::fs::statat(&self.blobs, digest.hex(), AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }

    /// Opens a blob for reading.
    ///
    /// # Errors
    /// [`Error::NotFound`], or when the host fails.
    pub fn open_blob(&self, digest: &Digest) -> Result<File> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(&self.blobs, digest.hex(), flags, Mode::empty()) {
            Ok(fd) => Ok(fd.into()),
            Err(rustix::io::Errno::NOENT) => Err(Error::NotFound { what: "blob", digest: *digest }),
            Err(e) => Err(Error::io("open", &self.blob_path(digest))(e.into())),
        }
    }

    /// Reads a document whole and hashes it again: a configuration or manifest
    /// that rotted on the disk is an error, not something to act on.
    ///
    /// # Errors
    /// [`Error::TooLarge`] beyond `limit`, [`Error::Digest`] where it rotted.
    pub fn read_blob(&self, digest: &Digest, limit: u64) -> Result<Vec<u8>> {
        let limit = limit.min(MAX_READ);
        let mut bytes = Vec::new();
        self.open_blob(digest)?
            .take(limit + 1)
            .read_to_end(&mut bytes)
            .map_err(Error::io("read", &self.blob_path(digest)))?;
        if bytes.len() as u64 > limit {
            return Err(Error::TooLarge { what: format!("blob {digest}"), limit });
        }
        let found = Digest::from_bytes(Sha256::digest(&bytes).into());
        if found != *digest {
            return Err(Error::Digest { what: "blob on disk", found, want: *digest });
        }
        Ok(bytes)
    }

    /// All blobs of at most so many bytes: documents, where that is little.
    ///
    /// # Errors
    /// When the host fails.
    pub fn blobs_up_to(&self, bytes: u64) -> Result<Vec<Digest>> {
        let path = self.root().join("blobs/sha256");
        let small = |entry: &std::fs::DirEntry| entry.metadata().is_ok_and(|m| m.len() <= bytes);
        let entries = std::fs::read_dir(&path).map_err(Error::io("read", &path))?.flatten();
        let digest = |name: std::ffi::OsString| format!("sha256:{}", name.to_str()?).parse().ok();
        Ok(entries.filter(small).filter_map(|entry| digest(entry.file_name())).collect())
    }

    /// Bytes of a blob.
    ///
    /// # Errors
    /// [`Error::NotFound`], or when the host fails.
    pub fn blob_size(&self, digest: &Digest) -> Result<u64> {
        let metadata = self.open_blob(digest)?.metadata();
        Ok(metadata.map_err(Error::io("stat", &self.blob_path(digest)))?.len())
    }

    /// Removes a blob and its partial file. Nothing there is success.
    ///
    /// # Errors
    /// When the host fails.
    pub fn remove_blob(&self, digest: &Digest) -> Result<()> {
        for path in [self.blob_path(digest), self.ingest_path(&digest.hex())] {
            match std::fs::remove_file(&path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::io("remove", &path)(e));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn open_partial(ingest: impl AsFd, name: &str, path: &std::path::Path) -> Result<File> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd: OwnedFd = rustix::fs::openat(ingest, name, flags, Mode::RUSR | Mode::WUSR)
        .map_err(|e| Error::io("open", path)(e.into()))?;
    Ok(fd.into())
}

fn copy_hashed(
    reader: &mut dyn Read,
    file: &mut File,
    limit: u64,
    path: &std::path::Path,
) -> Result<(Digest, u64)> {
    let mut hash = Sha256::new();
    let mut size = 0u64;
    let mut buffer = vec![0; 128 * 1024];
    loop {
        let read = match reader.read(&mut buffer) {
            Ok(0) => return Ok((Digest::from_bytes(hash.finalize().into()), size)),
            Ok(read) => read,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(Error::Source(e)),
        };
        size += read as u64;
        if size > limit {
            return Err(Error::TooLarge { what: "blob".into(), limit });
        }
        hash.update(&buffer[..read]);
        file.write_all(&buffer[..read]).map_err(Error::io("write", path))?;
    }
}

//! A compressed stream as it is read: bounded, and hashed where somebody asks.
//!
//! There is no other way to a decompressor, so each has a budget (CATALOGUE
//! I08): bytes, bytes for each compressed one, and for what goes beyond that
//! ratio an allowance that all streams with the same [`Limits`] share, so that
//! a bomb is not cut into layers.
//!
//! **How it fails.** A read that is refused is an I/O error; [`Inflated::refusal`]
//! then has the reason.

use std::{
    cell::{Cell, RefCell},
    io::{self, Read},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use knarr_model::Digest;
use sha2::{Digest as _, Sha256};

use crate::{Compression, Error, Result, decompress::Decompressor};

/// What an archive may ask for (CATALOGUE I08). Clones share what is shared.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Entries of all layers that share these limits.
    pub entries: u64,
    /// Bytes of one layer, unpacked.
    pub bytes: u64,
    /// Unpacked bytes for each compressed one, beyond [`Limits::free_bytes`].
    pub ratio: u64,
    /// So many unpacked bytes may be beyond the ratio, of all that share these limits.
    pub free_bytes: u64,
    /// What those who share them have spent.
    pub spent: Arc<Spent>,
}

/// What a whole image has spent of its [`Limits`].
#[derive(Debug, Default)]
pub struct Spent {
    pub(crate) beyond: AtomicU64,
    entries: AtomicU64,
}

impl Limits {
    /// Entries that the next layer may have.
    pub(crate) fn entries_left(&self) -> u64 {
        self.entries.saturating_sub(self.spent.entries.load(Ordering::Relaxed))
    }

    /// Counts the entries of a layer.
    pub(crate) fn count_entries(&self, entries: u64) {
        self.spent.entries.fetch_add(entries, Ordering::Relaxed);
    }
}

impl Default for Limits {
    /// 8 million entries, 256 GiB, and beyond 512 MiB no more than 200 to 1:
    /// text and sparse images reach some 100 to 1, deflate's bound is 1032 to 1.
    fn default() -> Self {
        Self {
            entries: 8_000_000,
            bytes: 256 << 30,
            ratio: 200,
            free_bytes: 512 << 20,
            spent: Arc::default(),
        }
    }
}

/// Counts compressed bytes.
struct Counted<R> {
    reader: R,
    bytes: Rc<Cell<u64>>,
    failed: Rc<RefCell<Option<io::Error>>>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.reader.read(buffer) {
            Ok(read) => {
                self.bytes.set(self.bytes.get() + read as u64);
                Ok(read)
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => Err(e),
            Err(e) => {
                let copy = io::Error::new(e.kind(), e.to_string());
                self.failed.replace(Some(e));
                Err(copy)
            }
        }
    }
}

/// The uncompressed bytes of a stream.
pub struct Inflated<R: Read> {
    what: &'static str,
    decompressor: Decompressor<Counted<R>>,
    compressed: Rc<Cell<u64>>,
    source_failed: Rc<RefCell<Option<io::Error>>>,
    hash: Option<Sha256>,
    bytes: u64,
    /// Bytes beyond the ratio that were taken from the allowance.
    beyond: u64,
    limits: Limits,
    refused: Option<Error>,
}

impl<R: Read> Inflated<R> {
    /// Recognises the compression by the first bytes. `what` is the stream's
    /// name in messages.
    ///
    /// # Errors
    /// [`Error::Source`] when the reader fails, [`Error::Archive`] for a
    /// compression that is not supported.
    pub fn new(reader: R, what: &'static str, limits: &Limits) -> Result<Self> {
        let compressed = Rc::default();
        let source_failed = Rc::<RefCell<Option<io::Error>>>::default();
        let counted =
            Counted { reader, bytes: Rc::clone(&compressed), failed: Rc::clone(&source_failed) };
        let decompressor = Decompressor::new(counted).map_err(|e| match source_failed.take() {
            Some(source) => Error::Source(source),
            None => Error::Archive(e.to_string()),
        })?;
        Ok(Self {
            what,
            decompressor,
            compressed,
            source_failed,
            hash: None,
            bytes: 0,
            beyond: 0,
            limits: limits.clone(),
            refused: None,
        })
    }

    /// The same, hashed as it is read.
    pub(crate) fn hashed(mut self) -> Self {
        self.hash = Some(Sha256::new());
        self
    }

    /// How the stream is compressed.
    pub fn compression(&self) -> Compression {
        self.decompressor.compression()
    }

    /// Why a read failed: the limit that it went beyond, or what is wrong with
    /// the source or the compressed data. Once.
    pub fn refusal(&mut self) -> Option<Error> {
        self.refused.take()
    }

    fn refuse(&mut self, error: Error) -> io::Error {
        let message = error.to_string();
        self.refused.get_or_insert(error);
        io::Error::other(message)
    }

    /// Reads both streams to their ends and answers the hash, and how many bytes
    /// were beyond the ratio.
    pub(crate) fn finish(mut self) -> Result<(Digest, u64)> {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            match self.read(&mut buffer) {
                Ok(0) => break,
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(self.refused.take().unwrap_or(Error::Source(e))),
            }
        }
        self.decompressor.drain_source().map_err(Error::Source)?;
        let hash = self.hash.take().unwrap_or_default().finalize();
        Ok((Digest::from_bytes(hash.into()), self.beyond))
    }

    /// Charges what went beyond the ratio to the allowance; false where it is spent.
    fn fits(&mut self) -> bool {
        let fair = self.compressed.get().saturating_mul(self.limits.ratio);
        let beyond = self.bytes.saturating_sub(fair);
        if beyond <= self.beyond {
            return true;
        }
        let more = beyond - self.beyond;
        self.beyond = beyond;
        let spent =
            self.limits.spent.beyond.fetch_add(more, Ordering::Relaxed).saturating_add(more);
        spent <= self.limits.free_bytes
    }
}

impl<R: Read> Read for Inflated<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = match self.decompressor.read(buffer) {
            Ok(read) => read,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => return Err(e),
            Err(e) => {
                let error = match self.source_failed.take() {
                    Some(source) => Error::Source(source),
                    None => Error::Archive(format!("decompress {}: {e}", self.what)),
                };
                return Err(self.refuse(error));
            }
        };
        if let Some(hash) = &mut self.hash {
            hash.update(&buffer[..read]);
        }
        self.bytes += read as u64;
        if self.bytes > self.limits.bytes {
            let limit = self.limits.bytes;
            return Err(self.refuse(Error::TooLarge { what: self.what.into(), limit }));
        }
        if !self.fits() {
            let (what, ratio) = (self.what, self.limits.ratio);
            return Err(self.refuse(Error::Archive(format!(
                "{what} inflates more than {ratio} to 1: taken for a decompression bomb"
            ))));
        }
        Ok(read)
    }
}

//! Content on disk: blobs named by digest, unpacked layers, writable snapshots.
//!
//! ```text
//!   <data root>/
//!     blobs/sha256/<hex>          whole and verified, or not there at all
//!     ingest/<hex>                a blob on its way; survives a crash and goes on
//!     ingest/layer-<unique>/      a layer on its way; swept at the next start
//!     ingest/trash-<unique>/      something being deleted; swept likewise
//!     layers/<diff id>/fs         an unpacked layer in overlayfs' terms
//!     layers/<diff id>/layer.json what it weighs
//!     empty/                      the lower directory of images without layers
//!     containers/<id>/{upper,work}  the writable layer of a container
//!     containers/<id>.removed       it is to be deleted where it is
//!     wasm/<fingerprint>/<hex>.cwasm  compiled code, written by the image room
//!     wasm/host                     whose fingerprint it is, for programs that live shortly
//! ```
//!
//! Life of everything here: written under `ingest/`, verified, flushed, renamed
//! into place, its directory flushed. What can be seen under its final name is
//! complete; a crash leaves only things under `ingest/`.
//!
//! The store knows nothing of images: who needs what is told to
//! [`Store::sweep`] by its caller, who also keeps sweeps and new claims apart.
//! A container's directory is deleted only after it has the name of something
//! removed, or a mark that says so beside it.
//!
//! **How it fails.** [`Error`] says whose fault it was: the content's (a wrong
//! digest, a hostile archive) or the host's (I/O, no space). Content errors
//! leave nothing behind; a transfer that merely broke off leaves its partial
//! file, where the next [`Store::ingest`] goes on.

#![forbid(unsafe_code)]

mod blobs;
mod calls;
mod decompress;
mod error;
mod extract;
mod inflate;
mod layers;
mod names;
mod pax;
mod resolve;
mod snapshots;
mod sparse;
mod sweep;
mod tarball;
mod times;
mod worker;

use std::{
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::fs::{Mode, OFlags};

pub use blobs::{Ingest, MAX_READ, StagedBlob};
pub use decompress::Compression;
pub use error::{Error, Result};
pub use inflate::{Inflated, Limits, Spent};
pub use layers::{LayerInfo, Unpacked};
pub use snapshots::{Snapshot, Usage};
pub use sparse::Sparse;
pub use sweep::{Keep, Swept};
pub use tarball::{Entry, EntryKind, Tarball};
pub use worker::{Worker, work};

/// The content store of one engine.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    blobs: OwnedFd,
    ingest: OwnedFd,
    layers: OwnedFd,
    /// Who unpacks layers; none is this process.
    worker: Option<Worker>,
    /// Partial blobs that a writer of this process holds.
    writing: std::sync::Mutex<std::collections::HashSet<knarr_model::Digest>>,
}

impl Store {
    /// Opens or makes the store below `data_root`. What a crash left half done is
    /// removed by [`Store::sweep_temporary`].
    ///
    /// The caller makes sure that no other process uses the same directory.
    ///
    /// # Errors
    /// When a directory cannot be made or read.
    pub fn open(data_root: &Path) -> Result<Self> {
        let make = |name: &str| -> Result<OwnedFd> {
            let path = data_root.join(name);
            std::fs::create_dir_all(&path).map_err(Error::io("make directory", &path))?;
            open_directory(&path)
        };
        let store = Self {
            root: data_root.to_owned(),
            blobs: make("blobs/sha256")?,
            ingest: make("ingest")?,
            layers: make("layers")?,
            worker: None,
            writing: std::sync::Mutex::default(),
        };
        make("containers")?;
        make("empty")?;
        Ok(store)
    }

    /// Has layers unpacked by another process.
    #[must_use]
    pub fn with_worker(mut self, worker: Option<Worker>) -> Self {
        self.worker = worker;
        self
    }

    /// The directory that the store was opened on.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn ingest_path(&self, name: &str) -> PathBuf {
        self.root.join("ingest").join(name)
    }
}

fn open_directory(path: &Path) -> Result<OwnedFd> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| Error::io("open directory", path)(e.into()))
}

/// Removes a tree; nothing there is success.
fn remove_tree(path: &Path) -> Result<()> {
    knarr_tree::remove(path).map_err(Error::io("remove", path))
}

/// Flushes a directory, so that names made in it survive a power cut.
fn flush_directory(directory: impl AsFd, path: &Path) -> Result<()> {
    rustix::fs::fsync(directory).map_err(|e| Error::io("flush", path)(e.into()))
}

/// A name that nothing else under `ingest/` has, what an earlier process could
/// not delete included: the store has one owner process at a time.
fn unique() -> String {
    use std::{
        sync::{
            OnceLock,
            atomic::{AtomicU64, Ordering},
        },
        time::{SystemTime, UNIX_EPOCH},
    };
    static BEGUN: OnceLock<u128> = OnceLock::new();
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let begun = BEGUN
        .get_or_init(|| SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos()));
    format!("{}-{begun:x}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

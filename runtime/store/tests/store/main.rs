//! The store against archives and streams that lie (CATALOGUE, I).

#[path = "../../../../tests/harness/src/evil_tar.rs"]
#[allow(dead_code)]
mod evil_tar;

mod blobs;
mod budgets;
mod extraction;
mod snapshots;
mod trees;

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    sync::Arc,
};

use knarr_model::Digest;
use knarr_store::{Error, Limits, Store, Unpacked};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

/// Memory where there is some: the machine's disk is not what is tested.
fn scratch() -> TempDir {
    let memory = Path::new("/dev/shm");
    let place = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    tempfile::Builder::new().prefix("knarr-store-").tempdir_in(place).unwrap()
}

struct Fixture {
    scratch: TempDir,
    store: Arc<Store>,
}

impl Fixture {
    fn new() -> Self {
        let scratch = scratch();
        let store = Arc::new(Store::open(&scratch.path().join("data")).unwrap());
        Self { scratch, store }
    }

    fn unpack(&self, archive: &[u8]) -> Result<Unpacked, Error> {
        self.store.unpack(archive, &Limits::default())
    }

    /// Unpacks and publishes; answers the layer's directory.
    fn layer(&self, archive: &[u8]) -> PathBuf {
        let unpacked = self.unpack(archive).unwrap();
        let diff_id = unpacked.diff_id();
        assert_eq!(diff_id, digest(archive));
        unpacked.publish().unwrap();
        self.store.layer_path(&diff_id)
    }

    /// Nothing is left of what was refused.
    fn assert_clean(&self) {
        let left: Vec<_> =
            fs::read_dir(self.scratch.path().join("data/ingest")).unwrap().flatten().collect();
        assert!(left.is_empty(), "{left:?}");
    }

    fn refused(&self, archive: &[u8], word: &str) {
        let error = self.unpack(archive).map(|_| ()).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(word), "want {word:?} in {text:?}");
        assert!(error.is_content(), "{text}");
        self.assert_clean();
    }
}

fn digest(bytes: &[u8]) -> Digest {
    Digest::from_bytes(Sha256::digest(bytes).into())
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

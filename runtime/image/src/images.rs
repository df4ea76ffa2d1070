//! The images of one engine.

use std::{path::PathBuf, sync::Arc};

use knarr_model::{Digest, Platform, Reference};
use knarr_registry::{Auth, Registry};
use knarr_state::Db;
use knarr_store::Store;
use tokio::io::AsyncRead;

use crate::{
    DiskUsage, HistoryEntry, Image, ImageUser, Inspect, Loaded, Prefer, ProgressSender, Pruned,
    RemoveOptions, Removed, Result, WasmCompiler,
};

/// What the images of an engine need to know.
#[derive(Debug, Clone)]
pub struct Options {
    /// The platform of native programs here.
    pub platform: Platform,
    /// What is taken from an index with native and Wasm variants.
    pub prefer: Prefer,
    /// How Wasm is compiled.
    pub compiler: WasmCompiler,
}

/// The images of one engine. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Images(Arc<()>);

fn soon<T>() -> Result<T> {
    Err(crate::Error::Internal("not built yet".into()))
}

impl Images {
    /// Opens the images of one engine.
    ///
    /// # Errors
    /// When the store or the database fails.
    pub fn open(
        store: Arc<Store>,
        db: Arc<Db>,
        registry: Arc<dyn Registry>,
        options: Options,
    ) -> Result<Self> {
        let _ = (store, db, registry, options);
        soon()
    }

    /// The store underneath.
    pub fn store(&self) -> &Arc<Store> {
        unreachable!()
    }

    /// Pulls an image and answers it. Progress is told in Docker's words; the
    /// last line is `Status: …`. Dropping the future breaks the transfer off;
    /// the next pull goes on where it stopped.
    ///
    /// # Errors
    /// See [`crate::Error`].
    pub async fn pull(
        &self,
        reference: &Reference,
        platform: Option<&Platform>,
        auth: &Auth,
        progress: Option<ProgressSender>,
    ) -> Result<Image> {
        let _ = (reference, platform, auth, progress);
        soon()
    }

    /// Stores the images of a docker-archive or OCI layout tar (gzip and zstd too).
    ///
    /// # Errors
    /// See [`crate::Error`].
    pub async fn load(
        &self,
        archive: impl AsyncRead + Send + Unpin + 'static,
        platform: Option<&Platform>,
        progress: Option<ProgressSender>,
    ) -> Result<Vec<Loaded>> {
        let _ = (archive, platform, progress);
        soon()
    }

    /// Finds an image by reference, id, `sha256:` and digits, or the first digits of its id.
    ///
    /// # Errors
    /// [`crate::Error::NotFound`] with Docker's wording; [`crate::Error::Ambiguous`].
    pub fn resolve(&self, name: &str) -> Result<Image> {
        let _ = name;
        soon()
    }

    /// The image with this id.
    ///
    /// # Errors
    /// [`crate::Error::NotFound`].
    pub fn get(&self, id: &Digest) -> Result<Image> {
        let _ = id;
        soon()
    }

    /// All images, the newest first. One whose configuration cannot be read any
    /// more is left out (and named in the log).
    ///
    /// # Errors
    /// When the database fails.
    pub fn list(&self) -> Result<Vec<Image>> {
        soon()
    }

    /// Everything about an image.
    ///
    /// # Errors
    /// As [`Images::resolve`].
    pub fn inspect(&self, name: &str) -> Result<Inspect> {
        let _ = name;
        soon()
    }

    /// How an image was built.
    ///
    /// # Errors
    /// As [`Images::resolve`].
    pub fn history(&self, name: &str) -> Result<Vec<HistoryEntry>> {
        let _ = name;
        soon()
    }

    /// Gives an image another name.
    ///
    /// # Errors
    /// As [`Images::resolve`].
    pub fn tag(&self, name: &str, target: &Reference) -> Result<()> {
        let _ = (name, target);
        soon()
    }

    /// Untags or deletes an image (`DELETE /images/{name}`). `users` answers
    /// which containers have the image; a container's row must also name its
    /// image by a foreign key, which has the last word.
    ///
    /// # Errors
    /// [`crate::Error::Conflict`] in Docker's words.
    pub async fn remove(
        &self,
        name: &str,
        options: RemoveOptions,
        users: impl Fn(&Digest) -> Vec<ImageUser> + Send + Sync,
    ) -> Result<Vec<Removed>> {
        let _ = (name, options, users);
        soon()
    }

    /// Deletes images that no container has: those without a tag, or all; only
    /// those that `wanted` says.
    ///
    /// # Errors
    /// When the store or the database fails.
    pub async fn prune(
        &self,
        all: bool,
        wanted: impl Fn(&Image) -> bool + Send + Sync,
        users: impl Fn(&Digest) -> Vec<ImageUser> + Send + Sync,
    ) -> Result<Pruned> {
        let _ = (all, wanted, users);
        soon()
    }

    /// Removes content that neither an image nor a pull under way names.
    ///
    /// # Errors
    /// When the store or the database fails.
    pub async fn sweep(&self) -> Result<Pruned> {
        soon()
    }

    /// What images take on the disk.
    ///
    /// # Errors
    /// When the store or the database fails.
    pub fn disk_usage(&self) -> Result<DiskUsage> {
        soon()
    }

    /// The code compiled ahead from a module for this host; compiles it where it
    /// is missing (another wasmtime version, another CPU).
    ///
    /// # Errors
    /// [`crate::Error::Compile`].
    pub async fn compiled(&self, module: &Digest) -> Result<PathBuf> {
        let _ = module;
        soon()
    }
}

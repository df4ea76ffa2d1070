//! The images of one engine: the face of this room.

use std::{collections::BTreeMap, sync::Arc};

use knarr_guest::{Code, Compiler};
use knarr_model::{Digest, Platform, Reference, Workload};
use knarr_registry::{Auth, Registry};
use knarr_state::{Db, images::ImageRow};
use knarr_store::Store;
use knarr_work::CONTENT;
use tokio::io::AsyncRead;

use crate::{
    DiskUsage, Error, HistoryEntry, Image, ImageUser, Inspect, Loaded, Prefer, ProgressSender,
    Pruned, RemoveOptions, Removed, Result, WasmCompiler, config,
    content::Contents,
    document::CONFIG_MAX,
    load,
    progress::Report,
    pull::{self, long},
    remove, stored,
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
pub struct Images(pub(crate) Arc<Inner>);

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) contents: Arc<Contents>,
    pub(crate) registry: Arc<dyn Registry>,
    pub(crate) compiler: Compiler,
    pub(crate) host: Platform,
    pub(crate) prefer: Prefer,
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
        let records = store.root().join("images");
        std::fs::create_dir_all(&records)
            .map_err(|e| Error::Internal(format!("make directory {}: {e}", records.display())))?;
        let compiler = Compiler::new(options.compiler, store.root());
        Ok(Self(Arc::new(Inner {
            contents: Arc::new(Contents::new(store, db)),
            registry,
            compiler,
            host: options.platform,
            prefer: options.prefer,
        })))
    }

    /// The store underneath.
    pub fn store(&self) -> &Arc<Store> {
        &self.0.contents.store
    }

    /// Whether a registry lets these credentials in (`login`).
    ///
    /// # Errors
    /// The registry's refusal, `Unauthorized` where it refuses these credentials.
    pub async fn check_credentials(&self, domain: &str, auth: &Auth) -> Result<()> {
        Ok(self.0.registry.check(domain, auth).await?)
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
        pull::pull(&self.0, reference, platform, auth, &Report(progress)).await
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
        load::load(&self.0, archive, platform, &Report(progress)).await
    }

    /// Finds an image by reference, id, `sha256:` and digits, or the first digits of its id.
    ///
    /// # Errors
    /// [`crate::Error::NotFound`] with Docker's wording; [`crate::Error::Ambiguous`].
    pub fn resolve(&self, name: &str) -> Result<Image> {
        self.0.resolve(name)
    }

    /// The image with this id.
    ///
    /// # Errors
    /// [`crate::Error::NotFound`].
    pub fn get(&self, id: &Digest) -> Result<Image> {
        self.0.get(id)
    }

    /// All images, the newest first. One whose configuration cannot be read any
    /// more is left out (and named in the log).
    ///
    /// # Errors
    /// When the database fails.
    pub fn list(&self) -> Result<Vec<Image>> {
        let rows = self.0.contents.db.images()?;
        Ok(rows
            .into_iter()
            .filter_map(|row| {
                let id = row.id;
                self.0
                    .image(row)
                    .inspect_err(|error| tracing::warn!(image = %id, %error, "unreadable image"))
                    .ok()
            })
            .collect())
    }

    /// How many there are.
    ///
    /// # Errors
    /// When the database fails.
    pub fn count(&self) -> Result<usize> {
        Ok(self.0.contents.db.image_count()?)
    }

    /// Everything about an image.
    ///
    /// # Errors
    /// As [`Images::resolve`].
    pub fn inspect(&self, name: &str) -> Result<Inspect> {
        let image = self.resolve(name)?;
        let config = self.0.config(&image.row)?;
        let store = self.store();
        let interface = match stored::program(store, &image.row.workload, &image.row.layers)? {
            Some(file) => knarr_guest::interface(&file, "program")?,
            None => knarr_guest::Interface::default(),
        };
        Ok(Inspect {
            size: image.row.size,
            created: config.created,
            author: config.author,
            comment: config.history.last().and_then(|step| step.comment.clone()),
            docker_version: config.docker_version,
            raw_config: config.raw,
            lower: store.view(&image.row.layers)?.lower,
            wasm_imports: interface.imports,
            wasm_exports: interface.exports,
            stored: jiff::Timestamp::from_second(image.row.stored).unwrap_or_default().to_string(),
            image,
        })
    }

    /// How an image was built.
    ///
    /// # Errors
    /// As [`Images::resolve`].
    pub fn history(&self, name: &str) -> Result<Vec<HistoryEntry>> {
        let image = self.resolve(name)?;
        let config = self.0.config(&image.row)?;
        let mut layers = image.row.layers.iter();
        let seconds = |text: &Option<String>| {
            let time = text.as_deref().and_then(|text| text.parse::<jiff::Timestamp>().ok());
            time.map_or(0, jiff::Timestamp::as_second)
        };
        let mut entries: Vec<HistoryEntry> = config
            .history
            .iter()
            .map(|step| HistoryEntry {
                id: None,
                created: seconds(&step.created),
                created_by: step.created_by.clone().unwrap_or_default(),
                tags: vec![],
                size: match step.empty_layer {
                    true => 0,
                    false => layers.next().map_or(0, |layer| self.0.layer_size(layer)),
                },
                comment: step.comment.clone().unwrap_or_default(),
            })
            .collect();
        // Layers that the history does not speak of.
        entries.extend(layers.map(|layer| HistoryEntry {
            id: None,
            created: image.row.created,
            created_by: String::new(),
            tags: vec![],
            size: self.0.layer_size(layer),
            comment: String::new(),
        }));
        if entries.is_empty() {
            entries.push(HistoryEntry {
                id: None,
                created: image.row.created,
                created_by: String::new(),
                tags: vec![],
                size: image.row.size,
                comment: String::new(),
            });
        }
        entries.reverse();
        entries[0].id = Some(image.row.id);
        entries[0].tags = image.row.tags;
        Ok(entries)
    }

    /// Gives an image another name.
    ///
    /// # Errors
    /// As [`Images::resolve`].
    pub fn tag(&self, name: &str, target: &Reference) -> Result<()> {
        if target.digest().is_some() {
            return Err(Error::invalid("tag", "refusing to create a tag with a digest reference"));
        }
        let image = self.resolve(name)?;
        match self.0.name(target, &image.row.id)? {
            true => Ok(()),
            false => Err(Error::NotFound(name.to_owned())),
        }
    }

    /// Untags or deletes an image (`DELETE /images/{name}`). `users` answers
    /// which containers have the image; a container's row must also name its
    /// image by a foreign key, which has the last word. Blocking: waits for the disk,
    /// and deletes what nothing names any more.
    ///
    /// # Errors
    /// [`crate::Error::Conflict`] in Docker's words.
    pub fn remove(
        &self,
        name: &str,
        options: RemoveOptions,
        users: impl Fn(&Digest) -> Vec<ImageUser>,
    ) -> Result<Vec<Removed>> {
        remove::remove(&self.0, name, options, &users)
    }

    /// Deletes images that no container has: those without a tag, or all; only
    /// those that `wanted` says. Blocking, as [`Images::remove`].
    ///
    /// # Errors
    /// When the store or the database fails.
    pub fn prune(
        &self,
        all: bool,
        wanted: impl Fn(&Image) -> bool,
        users: impl Fn(&Digest) -> Vec<ImageUser>,
    ) -> Result<Pruned> {
        remove::prune(&self.0, self.list()?, all, &wanted, &users)
    }

    /// Removes content that neither an image nor a pull under way names.
    ///
    /// # Errors
    /// When the store or the database fails.
    pub async fn sweep(&self) -> Result<Pruned> {
        self.0.sweep().await
    }

    /// What images take on the disk. Walks the blobs' directory.
    ///
    /// # Errors
    /// When the store or the database fails.
    pub fn disk_usage(&self) -> Result<DiskUsage> {
        let rows = self.0.contents.db.images()?;
        let mut users = BTreeMap::<Digest, u32>::new();
        for row in &rows {
            let each: std::collections::BTreeSet<&Digest> = row.layers.iter().collect();
            each.into_iter().for_each(|layer| *users.entry(*layer).or_default() += 1);
        }
        let shared = rows.iter().map(|row| {
            let others = row.layers.iter().filter(|layer| users.get(layer).is_some_and(|n| *n > 1));
            (row.id, others.map(|layer| self.0.layer_size(layer)).sum())
        });
        let (blobs, code) = (self.store().blobs_size()?, self.store().code_size()?);
        let of = |sizes: &BTreeMap<Digest, u64>, digest| sizes.get(digest).copied().unwrap_or(0);
        let named = self.0.contents.db.image_blobs()?;
        let sizes = rows.iter().map(|row| {
            let layers: u64 = row.layers.iter().map(|layer| self.0.layer_size(layer)).sum();
            let blobs: u64 = named.get(&row.id).into_iter().flatten().map(|b| of(&blobs, b)).sum();
            let code = match &row.workload {
                Workload::Wasm { module, .. } => of(&code, module),
                Workload::Native { .. } => 0,
            };
            (row.id, layers + blobs + code)
        });
        Ok(DiskUsage {
            sizes: sizes.collect(),
            shared: shared.collect(),
            layers: users.keys().map(|layer| self.0.layer_size(layer)).sum(),
            blobs: blobs.values().chain(code.values()).sum(),
            staged: self.store().staged_size()?,
        })
    }

    /// The code compiled ahead from a module for this host; compiles it where it
    /// is missing (another wasmtime version, another CPU) or is not what was compiled.
    ///
    /// # Errors
    /// [`crate::Error::Guest`].
    pub async fn compiled(&self, module: &Digest) -> Result<Code> {
        if let Some(code) = self.0.compiler.ready(module).await? {
            return Ok(code);
        }
        let row = self.0.contents.db.image_by_module(module)?;
        let row = row.ok_or_else(|| Error::NotFound(module.to_string()))?;
        let store = Arc::clone(self.store());
        let source =
            long(&CONTENT, move || stored::program(&store, &row.workload, &row.layers)).await?;
        match source {
            Some(source) => Ok(self.0.compiler.compile(module, source).await?),
            None => Err(Error::NotFound(module.to_string())),
        }
    }
}

fn pruned(swept: knarr_store::Swept) -> Pruned {
    Pruned {
        removed: swept.layers.into_iter().map(Removed::Deleted).collect(),
        reclaimed: swept.bytes,
    }
}

impl Inner {
    pub(crate) fn config(&self, row: &ImageRow) -> Result<config::Config> {
        config::parse(&self.contents.store.read_blob(&row.config, CONFIG_MAX)?)
    }

    pub(crate) fn image(&self, row: ImageRow) -> Result<Image> {
        Ok(Image { config: self.config(&row)?.run, row })
    }

    pub(crate) fn get(&self, id: &Digest) -> Result<Image> {
        match self.contents.db.image(id)? {
            Some(row) => self.image(row),
            None => Err(Error::NotFound(id.to_string())),
        }
    }

    pub(crate) fn resolve(&self, name: &str) -> Result<Image> {
        self.row(name).and_then(|row| self.image(row))
    }

    /// Docker's order: a whole id, a reference, the first digits of an id.
    pub(crate) fn row(&self, name: &str) -> Result<ImageRow> {
        let db = &self.contents.db;
        // Docker shows what it looked for: the tag that was not written, too.
        let not_found = || {
            let familiar = name.parse::<Reference>().map(|reference| reference.familiar());
            Error::NotFound(familiar.unwrap_or_else(|_| name.chars().take(300).collect()))
        };
        let digits = name.strip_prefix("sha256:").unwrap_or(name);
        if let Ok(id) = format!("sha256:{digits}").parse::<Digest>() {
            return db.image(&id)?.ok_or_else(not_found);
        }
        let prefixed = digits.len() < name.len();
        if !prefixed {
            match name.parse::<Reference>() {
                Ok(reference) => {
                    // A tag beside a digest says nothing more.
                    let reference = match reference.digest() {
                        Some(digest) => reference.with_digest(digest),
                        None => reference,
                    };
                    if let Some(row) = db.image_by_name(&reference)? {
                        return Ok(row);
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
        let hex = |c: u8| matches!(c, b'0'..=b'9' | b'a'..=b'f');
        if digits.is_empty() || digits.len() > 64 || !digits.bytes().all(hex) {
            return Err(not_found());
        }
        let mut rows = db.images_by_prefix(digits)?;
        match rows.len() {
            0 => Err(not_found()),
            1 => Ok(rows.remove(0)),
            _ => Err(Error::Ambiguous(name.to_owned())),
        }
    }

    pub(crate) fn layer_size(&self, layer: &Digest) -> u64 {
        self.contents.store.layer_info(layer).map_or(0, |info| info.size)
    }

    pub(crate) async fn sweep(self: &Arc<Self>) -> Result<Pruned> {
        let inner = Arc::clone(self);
        long(&CONTENT, move || inner.sweep_now()).await
    }

    /// The same where blocking is allowed.
    pub(crate) fn sweep_now(&self) -> Result<Pruned> {
        Ok(pruned(self.contents.sweep(self.compiler.host())?))
    }

    /// A sweep that takes what broken pulls left, too. Blocking.
    pub(crate) fn sweep_all(&self) -> Result<Pruned> {
        Ok(pruned(self.contents.prune(self.compiler.host())?))
    }

    /// A sweep after a failure, which is what the caller wants to know of.
    pub(crate) async fn sweep_quietly(self: &Arc<Self>) {
        if let Err(error) = self.sweep().await {
            tracing::warn!(%error, "sweep after a refused image");
        }
    }
}

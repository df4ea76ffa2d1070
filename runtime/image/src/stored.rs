//! From content in the store to an image: decide, compile, write the row.

use std::{fs::File, path::PathBuf, sync::Arc};

use knarr_model::{Digest, Platform, Reference, Workload};
use knarr_state::images::ImageRow;
use knarr_store::Store;
use knarr_work::CONTENT;

use crate::{
    Error, Image, Result,
    config::Config,
    content::{Lease, now},
    detect::{self, Subject},
    document::{LayerKind, Manifest},
    images::Inner,
    progress::Report,
    pull::{blocking, long},
    rootfs,
};

/// An image whose content is in the store and held by a lease.
#[derive(Debug)]
pub(crate) struct Arrival {
    /// The manifest's digest.
    pub(crate) digest: Digest,
    pub(crate) manifest: Manifest,
    pub(crate) config: Config,
    /// What an index promised.
    pub(crate) described: Option<Platform>,
    pub(crate) tags: Vec<Reference>,
    pub(crate) digests: Vec<Reference>,
    /// Diff ids of the archives among its layers, lowest first.
    pub(crate) layers: Vec<Digest>,
}

impl Arrival {
    fn id(&self) -> Digest {
        if detect::is_artifact(&self.manifest) { self.digest } else { self.manifest.config.digest }
    }
}

/// The diff ids of the archives among the layers.
pub(crate) fn diff_ids(kinds: &[LayerKind], config: &Config) -> Result<Vec<Digest>> {
    let archives = kinds.iter().filter(|kind| **kind == LayerKind::Tar).count();
    let said = &config.diff_ids;
    if said.len() == kinds.len() {
        let each = said.iter().zip(kinds).filter(|(_, kind)| **kind == LayerKind::Tar);
        return Ok(each.map(|(id, _)| *id).collect());
    }
    // Raw Wasm layers have no diff id with some tools.
    if said.len() == archives {
        return Ok(said.clone());
    }
    Err(Error::invalid(
        "image",
        format!("its manifest has {} layers, its configuration {}", kinds.len(), said.len()),
    ))
}

impl Inner {
    /// Whether this image is here already, and under these very names.
    pub(crate) fn known(&self, arrival: &Arrival) -> Result<(Option<ImageRow>, bool)> {
        let Some(row) = self.contents.db.image(&arrival.id())? else { return Ok((None, false)) };
        let named = arrival.tags.iter().all(|tag| row.tags.contains(tag))
            && arrival.digests.iter().all(|name| row.digests.contains(name));
        Ok((Some(row), named))
    }

    /// Gives an image that is here the names it came under this time; none where
    /// it was removed meanwhile.
    pub(crate) fn rename(&self, row: ImageRow, arrival: &Arrival) -> Result<Option<Image>> {
        for name in arrival.tags.iter().chain(&arrival.digests) {
            let known = row.tags.contains(name) || row.digests.contains(name);
            if !known && !self.name(name, &row.id)? {
                return Ok(None);
            }
        }
        match self.get(&row.id) {
            Err(Error::NotFound(_)) => Ok(None),
            other => other.map(Some),
        }
    }

    /// Names an image; the name moves where another image had it. False where
    /// there is no such image.
    pub(crate) fn name(&self, name: &Reference, id: &Digest) -> Result<bool> {
        let owners = self.contents.owners([name])?;
        let named = self.contents.db.image_name(name, id)?;
        self.contents.record(owners.into_iter().chain([*id]));
        Ok(named)
    }

    /// Decides what an image is, compiles it if it is Wasm, and writes its row.
    pub(crate) async fn put(
        self: &Arc<Self>,
        arrival: Arrival,
        lease: &Lease,
        report: &Report,
    ) -> Result<Image> {
        let inner = Arc::clone(self);
        let (arrival, decision, size, source) = long(&CONTENT, move || {
            let store = &inner.contents.store;
            let decision = detect::detect(&Subject {
                store,
                manifest: &arrival.manifest,
                config: &arrival.config,
                described: arrival.described.as_ref(),
                layers: &arrival.layers,
                host: &inner.host,
            })?;
            let mut size = 0;
            for layer in &arrival.layers {
                size += store.layer_info(layer)?.size;
            }
            let source = program(store, &decision.workload, &arrival.layers)?;
            Ok((arrival, decision, size, source))
        })
        .await?;
        if let (Some(source), Workload::Wasm { module, .. }) = (source, &decision.workload) {
            report.say("", format!("Compiling {}", crate::progress::short(module))).await;
            self.compiler.compile(module, source).await?;
        }
        let created = arrival.config.created.as_deref().and_then(|text| text.parse().ok());
        let id = arrival.id();
        let row = ImageRow {
            id,
            manifest: arrival.digest,
            config: arrival.manifest.config.digest,
            workload: decision.workload,
            reason: decision.reason,
            platform: decision.platform,
            size: size + raw_size(&arrival.manifest),
            created: created.map_or(0, |time: jiff::Timestamp| time.as_second()),
            stored: now(),
            layers: arrival.layers,
            tags: arrival.tags,
            digests: arrival.digests,
        };
        let mut blobs = vec![row.manifest, row.config];
        blobs.extend(arrival.manifest.layers.iter().map(|layer| layer.digest));
        let contents = Arc::clone(&self.contents);
        let lease = lease.name.clone();
        blocking(move || {
            let owners = contents.owners(row.tags.iter().chain(&row.digests))?;
            contents.db.image_put(&row, &blobs, &lease)?;
            contents.record(owners.into_iter().chain([row.id]));
            Ok(())
        })
        .await?;
        self.get(&id)
    }
}

/// Bytes of raw Wasm layers.
pub(crate) fn raw_size(manifest: &Manifest) -> u64 {
    let wasm =
        |media_type: &str| matches!(crate::document::layer_kind(media_type), Ok(LayerKind::Wasm));
    manifest.layers.iter().filter(|layer| wasm(&layer.media_type)).map(|layer| layer.size).sum()
}

/// The bytes of an image's Wasm program.
pub(crate) fn program(
    store: &Store,
    workload: &Workload,
    layers: &[Digest],
) -> Result<Option<File>> {
    match workload {
        Workload::Native { .. } => Ok(None),
        Workload::Wasm { module, path: None, .. } => Ok(Some(store.open_blob(module)?)),
        Workload::Wasm { path: Some(path), .. } => {
            let lower: Vec<PathBuf> = store.view(layers)?.lower;
            let found = rootfs::find(&lower, path.as_ref())
                .map_err(|e| Error::Internal(format!("open {path}: {e}")))?;
            match found {
                Some(found) => Ok(Some(found.file)),
                None => Err(Error::Internal(format!("{path} is not in the image any more"))),
            }
        }
    }
}

//! Loading images from an archive: `docker save`'s, or an OCI layout.
//!
//! ```text
//!   tar ─▶ documents (kept in memory, bounded)      manifest.json, index.json
//!      └─▶ everything else: blobs, named by hash    layers, configurations
//!                     │ end of the archive
//!                     ▼
//!   index.json ─▶ manifests ─┐
//!   manifest.json ───────────┴─▶ layers unpacked ─▶ decide, compile, row
//! ```
//!
//! The archive is read once, from its beginning to its end, whatever the order
//! of its entries. Names in it are looked up among its own entries and never
//! used as paths (CATALOGUE I17); symbolic links, with which old versions of
//! Docker shared layers, are followed among those names only.
//!
//! **How it fails.** Nothing of an archive is stored as an image before all of
//! it was read. An archive with several images stores those before a bad one.
//! What is remembered of an archive is bounded in bytes, and so is what its
//! compression may unfold to in the store (CATALOGUE I08).

use std::{
    cell::Cell,
    collections::{BTreeMap, HashMap, HashSet},
    io::Read,
    sync::Arc,
};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use knarr_model::{Digest, Platform, Reference};
use knarr_state::images::Content;
use knarr_store::{Compression, EntryKind, Inflated, Limits, Tarball, Unpacked};
use knarr_work::{CONTENT, FEEDS};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    sync::mpsc,
};

use crate::{
    Error, Loaded, Result, config,
    content::{Lease, Unpacking, unpack_blob},
    detect,
    document::{
        self, CONFIG_MAX, Descriptor, Document, LayerKind, MANIFEST_MAX, Manifest, OCI_CONFIG,
        OCI_LAYER, OCI_MANIFEST,
    },
    feed::{self, Feed, Piece},
    images::Inner,
    progress::{Report, short},
    pull::long,
    select::{self, Want},
    stored::{self, Arrival},
};

/// Entries of an image archive: a few for each of at most 500 layers and some images.
const ENTRIES_MAX: u64 = 100_000;
/// Bytes of their names and links together, as they are remembered.
const NAMES_MAX: usize = 16 << 20;
/// Longest name, as paths have it.
const NAME_MAX: usize = 4095;
/// One layer, as it lies in the archive.
const BLOB_MAX: u64 = 256 << 30;
/// The whole archive, uncompressed.
const ARCHIVE_MAX: u64 = 1 << 40;
/// Images of one archive.
const IMAGES_MAX: usize = 1000;
/// Bytes of the manifests and configurations of its images together.
const DOCUMENTS_MAX: u64 = 32 << 20;
/// How many layers are unpacked at once.
const LAYERS_AT_ONCE: usize = 3;
/// Index levels in a layout.
const LEVELS_MAX: usize = 4;

pub(crate) async fn load(
    inner: &Arc<Inner>,
    archive: impl AsyncRead + Send + Unpin + 'static,
    platform: Option<&Platform>,
    report: &Report,
) -> Result<Vec<Loaded>> {
    let lease = inner.contents.lease("load");
    let outcome = load_under(inner, archive, platform, report, &lease).await;
    lease.end()?;
    if outcome.is_err() {
        inner.sweep_quietly().await;
    }
    outcome
}

async fn load_under(
    inner: &Arc<Inner>,
    archive: impl AsyncRead + Send + Unpin + 'static,
    platform: Option<&Platform>,
    report: &Report,
    lease: &Lease,
) -> Result<Vec<Loaded>> {
    let (sender, pieces) = mpsc::channel(feed::DEPTH);
    let taking = {
        let (inner, lease) = (Arc::clone(inner), lease.clone());
        FEEDS.place().await.start(move || take_in(&inner, &lease, Feed::new(pieces)))?
    };
    let sent = send(archive, sender).await;
    let taken = taking.outcome().await?;
    let taken = match (sent, taken) {
        (Err(sent), Err(Error::Store(knarr_store::Error::Source(_)))) => return Err(sent),
        (_, taken) => Arc::new(taken?),
    };
    let arrivals = {
        let (inner, lease) = (Arc::clone(inner), lease.clone());
        let (taken, platform) = (Arc::clone(&taken), platform.cloned());
        long(&CONTENT, move || plan(&inner, &lease, &taken, platform.as_ref())).await?
    };
    if arrivals.is_empty() {
        return Err(Error::invalid(
            "image archive",
            "it holds neither a manifest.json nor an index.json with images",
        ));
    }
    let mut loaded = Vec::new();
    for arrival in arrivals {
        unpack(inner, &arrival, lease, report).await?;
        let tags = arrival.tags.clone();
        // The lease holds the other images' content until the last is stored.
        let own = inner.contents.lease("load");
        let image = inner.put(arrival, &own, report).await?;
        loaded.push(Loaded { id: image.row.id, tags });
    }
    Ok(loaded)
}

/// Moves the archive's bytes to the blocking side.
async fn send(mut archive: impl AsyncRead + Send + Unpin, feed: mpsc::Sender<Piece>) -> Result<()> {
    loop {
        let mut piece = Vec::with_capacity(128 * 1024);
        let read = archive.read_buf(&mut piece).await;
        let read = read.map_err(knarr_store::Error::Source)?;
        let (piece, last) =
            if read == 0 { (Piece::End, true) } else { (Piece::Data(Bytes::from(piece)), false) };
        if feed.send(piece).await.is_err() || last {
            return Ok(());
        }
    }
}

/// What an archive held.
#[derive(Debug, Default)]
struct Taken {
    /// Content by its name in the archive, without `.` and doubled slashes.
    files: HashMap<String, (Digest, u64)>,
    /// Links among those names.
    links: HashMap<String, String>,
    manifest_json: Option<Vec<u8>>,
    index_json: Option<Vec<u8>>,
    /// What the names and links take.
    names: usize,
}

impl Taken {
    /// Makes room to remember a name and a link's target.
    fn remember(&mut self, name: &str, target: &str) -> Result<()> {
        // A digest, two strings and their place in a table besides.
        self.names += name.len() + target.len() + 128;
        if self.names > NAMES_MAX {
            return Err(knarr_store::Error::TooLarge {
                what: "the list of an image archive's entries".into(),
                limit: NAMES_MAX as u64,
            }
            .into());
        }
        Ok(())
    }

    fn find(&self, name: &str) -> Option<(Digest, u64)> {
        let mut name = join("", name)?;
        for _ in 0..8 {
            if let Some(found) = self.files.get(&name) {
                return Some(*found);
            }
            name.clone_from(self.links.get(&name)?);
        }
        None
    }

    fn by_digest(&self, digest: &Digest) -> Option<(Digest, u64)> {
        self.files.get(&format!("blobs/sha256/{}", digest.hex())).copied()
    }
}

/// A name relative to a directory of the archive; none where it leaves the archive.
fn join(directory: &str, name: &str) -> Option<String> {
    let mut parts: Vec<&str> = directory.split('/').filter(|part| !part.is_empty()).collect();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

/// Reads the archive: documents into memory, everything else into the store. Blocks.
fn take_in(inner: &Inner, lease: &Lease, feed: Feed) -> Result<Taken> {
    let limits = Limits { bytes: ARCHIVE_MAX, ..Limits::default() };
    let mut source = Inflated::new(feed, "image archive", &limits)?;
    let outcome = read_in(inner, lease, &mut source);
    // A broken stream shows as whatever the parser made of it; the limit or the
    // source that ended it is the real reason.
    match source.refusal() {
        Some(refusal) => Err(refusal.into()),
        None => outcome,
    }
}

fn read_in(inner: &Inner, lease: &Lease, source: impl Read) -> Result<Taken> {
    let store = &inner.contents.store;
    let mut tarball =
        Tarball::new(std::io::BufReader::with_capacity(256 * 1024, source), ENTRIES_MAX)?;
    let mut taken = Taken::default();
    while let Some(entry) = tarball.next_entry()? {
        let shown = entry.shown();
        let bad = |why: &str| Error::invalid("image archive", format!("entry {shown:?}: {why}"));
        if entry.path.len() > NAME_MAX || entry.link.len() > NAME_MAX {
            return Err(bad("its name is longer than 4095 bytes"));
        }
        let name = std::str::from_utf8(&entry.path).ok().and_then(|path| join("", path));
        let name = name.ok_or_else(|| bad("its name leads out of the archive"))?;
        match entry.kind {
            EntryKind::Directory => {}
            EntryKind::File if entry.sparse.is_some() => return Err(bad("it has holes")),
            EntryKind::File => {
                let twice = match name.as_str() {
                    "manifest.json" => {
                        taken.manifest_json.replace(tarball.read_all(CONFIG_MAX)?).is_some()
                    }
                    "index.json" => {
                        taken.index_json.replace(tarball.read_all(MANIFEST_MAX)?).is_some()
                    }
                    "oci-layout" | "repositories" => false,
                    _ => {
                        let staged = store.stage_blob(&mut tarball, BLOB_MAX)?;
                        let (digest, size) = (staged.digest(), staged.size());
                        if let Some(hex) = name.strip_prefix("blobs/sha256/")
                            && hex != digest.hex()
                        {
                            return Err(bad("its content does not hash to its name"));
                        }
                        taken.remember(&name, "")?;
                        lease.hold_with(&[Content::Blob(digest)], || Ok(staged.commit()?))?;
                        taken.files.insert(name, (digest, size)).is_some()
                    }
                };
                if twice {
                    return Err(bad("it is there twice"));
                }
            }
            EntryKind::Symlink => {
                let directory = name.rsplit_once('/').map_or("", |(directory, _)| directory);
                let target = std::str::from_utf8(&entry.link).ok();
                let target = target.filter(|target| !target.starts_with('/'));
                let target = target.and_then(|target| join(directory, target));
                let target = target.ok_or_else(|| bad("a link out of the archive"))?;
                taken.remember(&name, &target)?;
                taken.links.insert(name, target);
            }
            _ => return Err(bad("it is neither a file, a directory nor a link")),
        }
    }
    tarball.drain()?;
    Ok(taken)
}

/// One image of `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

/// Which images the archive holds. Reads documents from the store. Blocks.
fn plan(
    inner: &Inner,
    lease: &Lease,
    taken: &Taken,
    platform: Option<&Platform>,
) -> Result<Vec<Arrival>> {
    let docker: Vec<DockerImage> = match &taken.manifest_json {
        None => vec![],
        Some(bytes) => {
            let invalid = |e: serde_json::Error| Error::invalid("manifest.json", e.to_string());
            serde_json::from_value(document::strict(bytes).map_err(invalid)?).map_err(invalid)?
        }
    };
    if docker.len() > IMAGES_MAX {
        let why = format!("it has more than {IMAGES_MAX} images");
        return Err(Error::invalid("image archive", why));
    }
    let documents = Documents { inner, left: Cell::new(DOCUMENTS_MAX) };
    let Some(index) = &taken.index_json else {
        return docker.iter().map(|image| docker_image(&documents, lease, taken, image)).collect();
    };
    let Document::Index(entries) = document::parse(index, document::OCI_INDEX)? else {
        return Err(Error::invalid("index.json", "it is no index"));
    };
    let mut arrivals: BTreeMap<Digest, Arrival> = BTreeMap::new();
    for group in by_name(&entries) {
        let Some(mut arrival) = layout_image(&documents, taken, &group, platform)? else {
            continue;
        };
        // Newer versions of Docker write both documents; tags are in either.
        let config = taken.by_digest(&arrival.manifest.config.digest);
        for image in docker.iter().filter(|image| taken.find(&image.config) == config) {
            arrival.tags.extend(tags(image)?);
        }
        match arrivals.entry(arrival.digest) {
            std::collections::btree_map::Entry::Occupied(mut known) => {
                known.get_mut().tags.extend(arrival.tags);
            }
            std::collections::btree_map::Entry::Vacant(place) => {
                place.insert(arrival);
            }
        }
    }
    let mut arrivals: Vec<Arrival> = arrivals.into_values().collect();
    for arrival in &mut arrivals {
        arrival.tags.sort();
        arrival.tags.dedup();
    }
    Ok(arrivals)
}

fn tags(image: &DockerImage) -> Result<Vec<Reference>> {
    let tags = image.repo_tags.iter().flatten();
    let tags = tags.filter(|tag| *tag != "<none>:<none>").map(|tag| tag.parse::<Reference>());
    Ok(tags.collect::<std::result::Result<_, _>>()?)
}

/// The documents of an archive's images, which stay in memory until all are stored.
struct Documents<'a> {
    inner: &'a Inner,
    /// Bytes of them that may still be read.
    left: Cell<u64>,
}

impl Documents<'_> {
    /// Reads one from the store.
    fn read(&self, digest: &Digest, what: &str, limit: u64) -> Result<Vec<u8>> {
        let bytes = self.inner.contents.store.read_blob(digest, limit).map_err(|e| match e {
            knarr_store::Error::NotFound { .. } => {
                Error::invalid("image archive", format!("{what} {digest} is missing"))
            }
            other => other.into(),
        })?;
        let left = self.left.get().checked_sub(bytes.len() as u64);
        self.left.set(left.ok_or_else(|| knarr_store::Error::TooLarge {
            what: "the manifests and configurations of an image archive".into(),
            limit: DOCUMENTS_MAX,
        })?);
        Ok(bytes)
    }
}

/// An image of `manifest.json`: it has no manifest, so one is made for it.
fn docker_image(
    documents: &Documents<'_>,
    lease: &Lease,
    taken: &Taken,
    image: &DockerImage,
) -> Result<Arrival> {
    let missing = |what: &str, name: &str| {
        let name: String = name.chars().take(200).collect();
        Error::invalid("image archive", format!("{what} {name:?} is not in the archive"))
    };
    let (config_digest, config_size) =
        taken.find(&image.config).ok_or_else(|| missing("configuration", &image.config))?;
    let config = config::parse(&documents.read(&config_digest, "configuration", CONFIG_MAX)?)?;
    let names = image.layers.as_deref().unwrap_or_default();
    if names.len() > document::LAYERS_MAX {
        return Err(Error::invalid("image archive", "it has more than 500 layers"));
    }
    let mut layers = Vec::new();
    for name in names {
        let (digest, size) = taken.find(name).ok_or_else(|| missing("layer", name))?;
        layers.push(described(layer_type(documents.inner, &digest)?, digest, size));
    }
    let body = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": described(OCI_CONFIG.into(), config_digest, config_size),
        "layers": layers,
    });
    let bytes = body.to_string().into_bytes();
    let digest = Digest::from_bytes(Sha256::digest(&bytes).into());
    lease.hold(&[Content::Blob(digest)])?;
    documents.inner.contents.store.put_blob(&bytes)?;
    let Document::Manifest(manifest) = document::parse(&bytes, OCI_MANIFEST)? else {
        return Err(Error::Internal("a manifest of our own is none".into()));
    };
    let diff_ids = stored::diff_ids(&detect::layer_kinds(&manifest)?, &config)?;
    Ok(Arrival {
        digest,
        manifest,
        config,
        described: None,
        tags: tags(image)?,
        digests: vec![],
        layers: diff_ids,
    })
}

fn layer_type(inner: &Inner, layer: &Digest) -> Result<String> {
    let mut start = Vec::new();
    inner
        .contents
        .store
        .open_blob(layer)?
        .take(Compression::START as u64)
        .read_to_end(&mut start)
        .map_err(knarr_store::Error::Source)?;
    let suffix = match Compression::detect(&start) {
        Ok(Compression::Gzip) => "+gzip",
        Ok(Compression::Zstd) => "+zstd",
        Ok(Compression::None) => "",
        Err(e) => return Err(Error::invalid("image archive", e.to_string())),
    };
    Ok(format!("{OCI_LAYER}{suffix}"))
}

fn described(media_type: String, digest: Digest, size: u64) -> Descriptor {
    Descriptor { media_type, digest, size, platform: None, artifact_type: None, annotations: None }
}

/// The entries of a layout's index, those of one name together: the variants of one image.
fn by_name(entries: &[Descriptor]) -> Vec<Vec<Descriptor>> {
    let mut groups: Vec<(Option<String>, Vec<Descriptor>)> = Vec::new();
    for entry in entries {
        let name = entry_name(entry).map(str::to_owned);
        match groups.iter_mut().find(|(other, _)| *other == name && entry.platform.is_some()) {
            Some((_, group)) => group.push(entry.clone()),
            None => groups.push((name, vec![entry.clone()])),
        }
    }
    groups.into_iter().map(|(_, group)| group).collect()
}

fn entry_name(entry: &Descriptor) -> Option<&str> {
    let name = entry.annotation("io.containerd.image.name");
    name.or_else(|| entry.annotation("org.opencontainers.image.ref.name"))
}

/// An image of a layout; none for attestations and their like.
fn layout_image(
    documents: &Documents<'_>,
    taken: &Taken,
    group: &[Descriptor],
    platform: Option<&Platform>,
) -> Result<Option<Arrival>> {
    let inner = documents.inner;
    let want = Want { platform, host: &inner.host, prefer: inner.prefer };
    let mut entries = group.to_vec();
    let mut promised = None;
    let name = group.first().and_then(entry_name).map(str::to_owned);
    for _ in 0..=LEVELS_MAX {
        let alone = entries.len() == 1 && entries[0].platform.is_none();
        let (entry, platform) = match select::select(&entries, &want) {
            Ok((entry, platform)) => (entry.clone(), platform),
            // One image alone is what the user wants, whatever it was built for.
            Err(_) if entries.len() == 1 && platform.is_none() && !is_attestation(&entries[0]) => {
                (entries[0].clone(), None)
            }
            Err(_) if entries.iter().all(is_attestation) => return Ok(None),
            Err(error) => return Err(error),
        };
        promised = if alone { promised } else { platform.or(promised) };
        if document::known(&entry.media_type).is_none() {
            return Ok(None);
        }
        let (digest, _) = taken.by_digest(&entry.digest).ok_or_else(|| {
            Error::invalid("image archive", format!("manifest {} is missing", entry.digest))
        })?;
        let bytes = documents.read(&digest, "manifest", MANIFEST_MAX)?;
        let manifest = match document::parse(&bytes, &entry.media_type)? {
            Document::Index(inside) => {
                entries = inside;
                continue;
            }
            Document::Manifest(manifest) => manifest,
        };
        return arrival(documents, taken, digest, manifest, promised, name.as_deref()).map(Some);
    }
    Err(Error::invalid("index", format!("more than {LEVELS_MAX} indexes inside one another")))
}

fn is_attestation(entry: &Descriptor) -> bool {
    entry.platform.as_ref().is_some_and(|p| p.os == "unknown")
        || entry.annotation("vnd.docker.reference.type").is_some()
}

fn arrival(
    documents: &Documents<'_>,
    taken: &Taken,
    digest: Digest,
    manifest: Manifest,
    promised: Option<Platform>,
    name: Option<&str>,
) -> Result<Arrival> {
    let kinds = detect::layer_kinds(&manifest)?;
    for blob in manifest.layers.iter().chain([&manifest.config]) {
        match taken.by_digest(&blob.digest) {
            Some((_, size)) if size == blob.size => {}
            Some((_, size)) => {
                let (digest, want) = (blob.digest, blob.size);
                return Err(knarr_store::Error::Size { digest, found: size, want }.into());
            }
            None => {
                return Err(Error::invalid(
                    "image archive",
                    format!("blob {} is missing", blob.digest),
                ));
            }
        }
    }
    let config = documents.read(&manifest.config.digest, "configuration", CONFIG_MAX)?;
    let config = config::parse(&config)?;
    let layers = stored::diff_ids(&kinds, &config)?;
    // skopeo and umoci may write a bare tag here, which names no repository.
    let tags = name.filter(|name| name.contains([':', '/'])).and_then(|name| name.parse().ok());
    Ok(Arrival {
        digest,
        manifest,
        config,
        described: promised,
        tags: tags.into_iter().filter(|tag: &Reference| tag.tag().is_some()).collect(),
        digests: vec![],
        layers,
    })
}

/// Unpacks the layers of one image, and makes them visible together.
async fn unpack(
    inner: &Arc<Inner>,
    arrival: &Arrival,
    lease: &Lease,
    report: &Report,
) -> Result<()> {
    let store = &inner.contents.store;
    // What all its layers together may unpack to.
    let limits = Limits::default();
    let mut content: Vec<Content> = arrival.layers.iter().map(|id| Content::Layer(*id)).collect();
    content.push(Content::Blob(arrival.digest));
    lease.hold(&content)?;
    if !store.has_blob(&arrival.digest) {
        return Err(Error::Internal("the archive's manifest was swept".into()));
    }
    let kinds = detect::layer_kinds(&arrival.manifest)?;
    let archives = arrival.manifest.layers.iter().zip(&kinds);
    let archives = archives.filter(|(_, kind)| **kind == LayerKind::Tar).map(|(layer, _)| layer);
    let mut seen = HashSet::new();
    // Collected first: a lazy map over borrowed items is not `Send` for the compiler.
    let missing: Vec<_> = archives
        .zip(&arrival.layers)
        .enumerate()
        .filter(|(_, (_, diff_id))| seen.insert(**diff_id) && !store.has_layer(diff_id))
        .map(|(at, (layer, diff_id))| {
            let want = Unpacking { diff_id: *diff_id, position: at + 1 };
            let (store, blob, limits) = (Arc::clone(store), layer.digest, limits.clone());
            report.bar(&layer.digest, layer.size).downloading(layer.size);
            async move {
                let unpacked =
                    long(&CONTENT, move || unpack_blob(&store, &blob, want, &limits)).await?;
                report.say(short(&blob), "Pull complete").await;
                Ok::<_, Error>(unpacked)
            }
        })
        .collect();
    let unpacked: Vec<Unpacked> =
        stream::iter(missing).buffer_unordered(LAYERS_AT_ONCE).try_collect().await?;
    let store = Arc::clone(store);
    long(&CONTENT, move || Ok(store.publish(unpacked)?)).await
}

//! Pulling an image from a registry.
//!
//! ```text
//!   resolve ─▶ index? select ─▶ manifest ─▶ configuration ─▶ layers, three at a time ─▶ decide, compile, row
//!                                  lease ──────────────────────────────────────────────────────▶ ends
//! ```
//!
//! Each layer is written, hashed, inflated, hashed and unpacked while it comes.
//! A transfer that broke off, in this process or an earlier one, goes on at the
//! byte where it stopped: what is on the disk is fed to the unpacker first.
//!
//! **How it fails.** Content that is wrong ends the lease, and a sweep frees its
//! space; anything else leaves the lease and the partial blobs for the next try.

use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt, stream};
use knarr_model::{Digest, Kinded, Platform, Reference};
use knarr_registry::{Auth, Chunk};
use knarr_state::images::Content;
use knarr_store::Limits;
use knarr_work::{CONTENT, FEEDS, Lane};
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use crate::{
    Error, Image, Result, config,
    content::{Lease, Unpacking, land, unpack_blob},
    detect,
    document::{self, CONFIG_MAX, Descriptor, Document, LayerKind, MANIFEST_MAX, Manifest},
    feed::{self, Feed, Piece, Tee},
    images::Inner,
    progress::{Report, short},
    select::{self, Want},
    stored::Arrival,
};

/// How many layers come at once.
const LAYERS_AT_ONCE: usize = 3;
/// Indexes of indexes (CATALOGUE I11).
const LEVELS_MAX: usize = 4;

/// A manifest that was found behind a reference.
struct Resolved {
    /// Of what the reference names: an index, perhaps.
    top: Digest,
    digest: Digest,
    bytes: Vec<u8>,
    manifest: Manifest,
    described: Option<Platform>,
}

struct Pull<'a> {
    inner: &'a Arc<Inner>,
    reference: &'a Reference,
    auth: &'a Auth,
    report: &'a Report,
    /// What all its layers together may unpack to.
    limits: Limits,
    /// Shared by those who write content; whoever has it alone knows that nobody does.
    writers: Arc<tokio::sync::RwLock<()>>,
}

pub(crate) async fn pull(
    inner: &Arc<Inner>,
    reference: &Reference,
    platform: Option<&Platform>,
    auth: &Auth,
    report: &Report,
) -> Result<Image> {
    let limits = Limits::default();
    let pull = Pull { inner, reference, auth, report, limits, writers: Arc::default() };
    let title = reference.tag().map_or_else(|| reference.tag_or_digest(), str::to_owned);
    let resolved = pull.resolve(platform).await?;
    report.say(title, format!("Pulling from {}", reference.path())).await;
    let top = resolved.top;
    let lease = inner.contents.lease("pull");
    let outcome = pull.fetch(resolved, platform, &lease).await;
    let (image, news) = match outcome {
        Ok(done) => done,
        Err(error) => {
            // Wrong content is not kept; a broken transfer is.
            if error.is_content() {
                // Other layers may be under way to the disk: what they write must not
                // come behind the sweep.
                drop(pull.writers.write().await);
                lease.end()?;
                inner.sweep_quietly().await;
            }
            return Err(error);
        }
    };
    lease.end()?;
    report.say("", format!("Digest: {top}")).await;
    let verdict = if news { "Downloaded newer image" } else { "Image is up to date" };
    report.say("", format!("Status: {verdict} for {}", reference.familiar())).await;
    Ok(image)
}

impl Pull<'_> {
    /// Follows indexes down to one manifest.
    async fn resolve(&self, platform: Option<&Platform>) -> Result<Resolved> {
        let registry = &self.inner.registry;
        let first = registry.resolve(self.reference, self.auth).await?;
        let top = first.descriptor.digest;
        check("manifest", &first.bytes, &top)?;
        if self.reference.digest().is_some_and(|want| want != top) {
            return Err(Error::invalid("manifest", format!("the registry answered {top}")));
        }
        let want = Want { platform, host: &self.inner.host, prefer: self.inner.prefer };
        let (mut bytes, mut digest) = (first.bytes.to_vec(), top);
        let mut media_type = first.descriptor.media_type;
        let mut described = None;
        for _ in 0..=LEVELS_MAX {
            let entries = match document::parse(&bytes, &media_type)? {
                Document::Manifest(manifest) => {
                    return Ok(Resolved { top, digest, bytes, manifest, described });
                }
                Document::Index(entries) => entries,
            };
            let (entry, promised) = select::select(&entries, &want)?;
            if document::known(&entry.media_type).is_none() {
                return Err(Error::Unsupported(format!(
                    "index entries of type {:?} are not supported",
                    entry.media_type
                )));
            }
            if entry.size > MANIFEST_MAX {
                return Err(Error::invalid("manifest", "it is too large"));
            }
            bytes = registry.manifest(self.reference, &wire(entry), self.auth).await?.to_vec();
            check("manifest", &bytes, &entry.digest)?;
            digest = entry.digest;
            media_type.clone_from(&entry.media_type);
            described = promised.or(described);
        }
        Err(Error::invalid("index", format!("more than {LEVELS_MAX} indexes inside one another")))
    }

    /// Brings everything in and stores the image; true where it was not here before.
    async fn fetch(
        &self,
        resolved: Resolved,
        platform: Option<&Platform>,
        lease: &Lease,
    ) -> Result<(Image, bool)> {
        let Resolved { top, digest, bytes, manifest, described } = resolved;
        let kinds = detect::layer_kinds(&manifest)?;
        if manifest.config.size > CONFIG_MAX {
            return Err(Error::invalid("image configuration", "it is larger than 8 MiB"));
        }
        let mut held = vec![Content::Blob(digest), Content::Blob(manifest.config.digest)];
        held.extend(manifest.layers.iter().map(|layer| Content::Blob(layer.digest)));
        lease.hold(&held)?;
        let store = Arc::clone(&self.inner.contents.store);
        {
            let store = Arc::clone(&store);
            blocking(move || Ok(store.put_blob(&bytes)?)).await?;
        }
        self.blob(&manifest.config, None).await?;
        let config = config::parse(&store.read_blob(&manifest.config.digest, CONFIG_MAX)?)?;
        self.check_platform(&config, platform, described.as_ref())?;

        let diff_ids = crate::stored::diff_ids(&kinds, &config)?;
        lease.hold(&diff_ids.iter().map(|id| Content::Layer(*id)).collect::<Vec<_>>())?;
        let arrival = Arrival {
            digest,
            described,
            tags: self.tag().into_iter().collect(),
            digests: vec![self.reference.with_digest(top)],
            layers: diff_ids.clone(),
            manifest,
            config,
        };
        let (image, known) = self.inner.known(&arrival)?;
        let mut unpackings = diff_ids.iter().enumerate();
        let layers: Vec<(Descriptor, Option<Unpacking>)> = arrival
            .manifest
            .layers
            .iter()
            .zip(&kinds)
            .map(|(layer, kind)| {
                let unpacking = match kind {
                    LayerKind::Wasm => None,
                    LayerKind::Tar => unpackings
                        .next()
                        .map(|(at, id)| Unpacking { diff_id: *id, position: at + 1 }),
                };
                (layer.clone(), unpacking)
            })
            .collect();
        if let Some(image) = image
            && layers.iter().all(|(layer, unpacking)| self.is_here(layer, *unpacking))
            && let Some(image) = self.inner.rename(image, &arrival)?
        {
            return Ok((image, !known));
        }
        for (layer, unpacking) in &layers {
            let here = self.is_here(layer, *unpacking);
            let status = if here { "Already exists" } else { "Pulling fs layer" };
            self.report.say(short(&layer.digest), status).await;
        }
        // Collected first: a lazy map over borrowed items is not `Send` for the compiler.
        let missing: Vec<_> = layers
            .iter()
            .filter(|(layer, unpacking)| !self.is_here(layer, *unpacking))
            .map(|(layer, unpacking)| self.layer(layer, *unpacking))
            .collect();
        stream::iter(missing).buffer_unordered(LAYERS_AT_ONCE).try_collect::<Vec<()>>().await?;
        Ok((self.inner.put(arrival, lease, self.report).await?, true))
    }

    /// The tag that the image gets; none where a digest was asked for.
    fn tag(&self) -> Option<Reference> {
        (self.reference.digest().is_none() && self.reference.tag().is_some())
            .then(|| self.reference.clone())
    }

    fn is_here(&self, layer: &Descriptor, unpacking: Option<Unpacking>) -> bool {
        let store = &self.inner.contents.store;
        store.has_blob(&layer.digest) && unpacking.is_none_or(|u| store.has_layer(&u.diff_id))
    }

    /// A single manifest of another platform than the one that was asked for.
    fn check_platform(
        &self,
        config: &config::Config,
        wanted: Option<&Platform>,
        described: Option<&Platform>,
    ) -> Result<()> {
        let Some(wanted) = wanted else { return Ok(()) };
        let Some(actual) = config.platform.parsed().or_else(|| described.cloned()) else {
            return Ok(());
        };
        let same = actual.os == wanted.os && actual.architecture == wanted.architecture;
        if same || (actual.is_wasm() && wanted.is_wasm()) {
            return Ok(());
        }
        Err(Error::invalid(
            "platform",
            format!(
                "image with reference {} was found but does not match the specified platform: \
                 wanted {wanted}, actual: {actual}",
                self.reference.familiar()
            ),
        ))
    }

    /// One layer, with its words.
    async fn layer(&self, layer: &Descriptor, unpacking: Option<Unpacking>) -> Result<()> {
        self.blob(layer, unpacking).await?;
        let id = short(&layer.digest);
        self.report.say(id.clone(), "Download complete").await;
        self.report.say(id, "Pull complete").await;
        Ok(())
    }

    /// Brings one blob in, unpacked where it is a layer's archive.
    async fn blob(&self, descriptor: &Descriptor, unpacking: Option<Unpacking>) -> Result<()> {
        let store = &self.inner.contents.store;
        let claim = self.inner.contents.claim(&descriptor.digest).await;
        if self.is_here(descriptor, unpacking) {
            return Ok(());
        }
        if store.has_blob(&descriptor.digest) {
            let (store, digest) = (Arc::clone(store), descriptor.digest);
            let writing = Arc::clone(&self.writers).read_owned().await;
            let limits = self.limits.clone();
            return long(&CONTENT, move || {
                let (_claim, _writing) = (claim, writing);
                if let Some(want) = unpacking {
                    unpack_blob(&store, &digest, want, &limits)?.publish()?;
                }
                Ok(())
            })
            .await;
        }
        // A layer that is unpacked already only lacks its blob.
        let unpacking = unpacking.filter(|want| !store.has_layer(&want.diff_id));
        let claim = Arc::new(claim);
        let mut resumed = true;
        loop {
            let outcome = self.transfer(descriptor, unpacking, &claim, &mut resumed).await;
            match outcome {
                // The partial file was bad, not what the registry sent: once more from 0.
                Err(Error::Store(knarr_store::Error::Digest { .. })) if resumed => {}
                other => return other,
            }
        }
    }

    async fn transfer(
        &self,
        descriptor: &Descriptor,
        unpacking: Option<Unpacking>,
        claim: &Arc<tokio::sync::OwnedMutexGuard<()>>,
        resumed: &mut bool,
    ) -> Result<()> {
        let store = Arc::clone(&self.inner.contents.store);
        // Before the registry is asked, which would not like to wait.
        let place = FEEDS.place().await;
        let ingest = store.ingest(descriptor.digest, Some(descriptor.size))?;
        let offset = ingest.offset();
        *resumed = offset > 0;
        let (sender, pieces) = mpsc::channel(feed::DEPTH);
        let bar = self.report.bar(&descriptor.digest, descriptor.size);
        let tee = Tee { ingest, feed: Feed::new(pieces), bar, failed: None };
        let claim = Arc::clone(claim);
        let writing = Arc::clone(&self.writers).read_owned().await;
        let limits = self.limits.clone();
        let landing = place.start(move || {
            let (_claim, _writing) = (claim, writing);
            land(&store, tee, unpacking, &limits)
        })?;
        let sent = self.send(descriptor, offset, sender).await;
        let landed = landing.outcome().await?;
        match (sent, landed) {
            // A feed that broke off is why the landing failed.
            (Err(sent), Err(Error::Store(knarr_store::Error::Source(_)))) => Err(sent),
            (Err(sent), Ok(())) => Err(sent),
            (_, landed) => landed,
        }
    }

    /// Moves a blob's bytes into a feed.
    async fn send(
        &self,
        descriptor: &Descriptor,
        offset: u64,
        feed: mpsc::Sender<Piece>,
    ) -> Result<()> {
        if offset < descriptor.size {
            let mut stream =
                self.inner.registry.blob(self.reference, &wire(descriptor), offset, self.auth);
            while let Some(chunk) = stream.next().await {
                let piece = match chunk? {
                    Chunk::Data(data) => Piece::Data(data),
                    Chunk::Restart => Piece::Restart,
                };
                // The other end gave up and knows why.
                if feed.send(piece).await.is_err() {
                    return Ok(());
                }
            }
        }
        let _ = feed.send(Piece::End).await;
        Ok(())
    }
}

fn wire(descriptor: &Descriptor) -> knarr_registry::Descriptor {
    knarr_registry::Descriptor {
        media_type: descriptor.media_type.clone(),
        digest: descriptor.digest,
        size: descriptor.size,
    }
}

fn check(what: &'static str, bytes: &[u8], want: &Digest) -> Result<()> {
    let found = Digest::from_bytes(Sha256::digest(bytes).into());
    if found == *want {
        return Ok(());
    }
    Err(knarr_store::Error::Digest { what, found, want: *want }.into())
}

/// Runs what blocks for a bounded time where blocking is allowed.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|e| Error::Internal(e.to_string()))?
}

/// Runs what takes as long as content is large.
pub(crate) async fn long<T: Send + 'static>(
    lane: &'static Lane,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    lane.run(work).await?
}

impl Error {
    /// Whether what came is wrong, so that nothing of it is worth keeping.
    pub(crate) fn is_content(&self) -> bool {
        match self {
            Self::Store(error) => error.is_content(),
            Self::Invalid { .. }
            | Self::Unsupported(_)
            | Self::Dispatch { .. }
            | Self::DiffId { .. } => true,
            other => matches!(other.kind(), knarr_model::ErrorKind::NotSupported),
        }
    }
}

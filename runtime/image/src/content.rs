//! Bringing content into the store, held by a lease until an image names it.
//!
//! ```text
//!   Lease::hold(digests) ─▶ is it there? ─▶ fetch, verify, unpack, publish ─▶ row put, lease ends
//! ```
//!
//! A lease is written before the store is asked whether something is there, and
//! a sweep keeps everything that a lease names; both under one lock, so that
//! nothing found here can vanish (CATALOGUE I22). A lease that is not ended
//! expires after a day: what a broken pull left is found by the next one.

use std::{
    collections::{BTreeSet, HashMap},
    io::Read,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use knarr_model::Digest;
use knarr_state::{
    Db,
    images::{Content, Named},
};
use knarr_store::{Keep, Limits, Store, Unpacked};
use tokio::sync::OwnedMutexGuard;

use crate::{Error, Result, feed::Tee};

/// How long content of an unfinished pull is kept.
const LEASE_SECONDS: i64 = 24 * 3600;

/// The store and the database together.
#[derive(Debug)]
pub(crate) struct Contents {
    pub(crate) store: Arc<Store>,
    pub(crate) db: Arc<Db>,
    /// Read: naming content. Written: sweeping.
    naming: RwLock<()>,
    /// Leases of pulls and loads that are under way in this process.
    live: Mutex<BTreeSet<String>>,
    /// There is a damaged record of an image whose content nothing names.
    pub(crate) keep_all: AtomicBool,
    /// One writer of a layer at a time.
    claims: Mutex<HashMap<Digest, Weak<tokio::sync::Mutex<()>>>>,
}

/// Seconds since 1970.
pub(crate) fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64)
}

/// Content that a pull or load under way keeps from the sweep.
#[derive(Debug, Clone)]
pub(crate) struct Lease {
    contents: Arc<Contents>,
    pub(crate) name: String,
    _live: Arc<Live>,
}

/// Somebody works under a lease; its row may outlive them.
#[derive(Debug)]
struct Live {
    contents: Arc<Contents>,
    name: String,
}

impl Drop for Live {
    fn drop(&mut self) {
        self.contents.live().remove(&self.name);
    }
}

impl Lease {
    /// Keeps content, whether it is there already or comes later.
    pub(crate) fn hold(&self, content: &[Content]) -> Result<()> {
        self.hold_with(content, || Ok(()))
    }

    /// Keeps content and does something before any sweep can come between.
    pub(crate) fn hold_with(
        &self,
        content: &[Content],
        then: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let _naming = self.contents.naming.read().unwrap_or_else(PoisonError::into_inner);
        self.contents.db.lease_add(&self.name, content, now() + LEASE_SECONDS)?;
        then()
    }

    /// Lets everything go: nothing of it is worth keeping.
    pub(crate) fn end(&self) -> Result<()> {
        Ok(self.contents.db.lease_end(&self.name)?)
    }
}

impl Contents {
    pub(crate) fn new(store: Arc<Store>, db: Arc<Db>) -> Self {
        Self {
            store,
            db,
            naming: RwLock::default(),
            live: Mutex::default(),
            keep_all: AtomicBool::new(false),
            claims: Mutex::default(),
        }
    }

    pub(crate) fn lease(self: &Arc<Self>, what: &str) -> Lease {
        static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        let next = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let since = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos());
        let name = format!("{what}-{since}-{next}");
        self.live().insert(name.clone());
        let live = Live { contents: Arc::clone(self), name: name.clone() };
        Lease { contents: Arc::clone(self), name, _live: Arc::new(live) }
    }

    fn live(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until nobody else brings this content in.
    pub(crate) async fn claim(&self, digest: &Digest) -> OwnedMutexGuard<()> {
        let lock = {
            let mut claims = self.claims.lock().unwrap_or_else(PoisonError::into_inner);
            claims.retain(|_, lock| lock.strong_count() > 0);
            claims.get(digest).and_then(Weak::upgrade).unwrap_or_else(|| {
                let lock = Arc::<tokio::sync::Mutex<()>>::default();
                claims.insert(*digest, Arc::downgrade(&lock));
                lock
            })
        };
        lock.lock_owned().await
    }

    /// As [`Contents::sweep`], and what broken pulls left to go on with later
    /// goes too: their partial blobs, and their leases with what those held. Blocks.
    pub(crate) fn prune(&self, wasm_host: Option<String>) -> Result<knarr_store::Swept> {
        // First what needs no write to the database, which may have no space for it.
        let partial = self.store.sweep_partial()?;
        let mut swept = self.sweep_with(wasm_host, || Ok(self.db.leases_keep(&self.live())?))?;
        swept.bytes += partial;
        Ok(swept)
    }

    /// Takes the names of everything away that nothing names, then deletes it; and the code
    /// compiled for other Wasm hosts than this one, where it is known. Blocks.
    pub(crate) fn sweep(&self, wasm_host: Option<String>) -> Result<knarr_store::Swept> {
        self.sweep_with(wasm_host, || Ok(()))
    }

    fn sweep_with(
        &self,
        wasm_host: Option<String>,
        before: impl FnOnce() -> Result<()>,
    ) -> Result<knarr_store::Swept> {
        if self.keep_all.load(Ordering::Relaxed) {
            tracing::warn!("nothing is swept: the record of an image is damaged");
            return Ok(knarr_store::Swept::default());
        }
        let swept = {
            let _naming = self.naming.write().unwrap_or_else(PoisonError::into_inner);
            before()?;
            let Named { blobs, layers, modules } = self.db.content_named(now())?;
            self.store.sweep(&Keep { blobs, layers, modules, wasm_host })?
        };
        for retired in &swept.retired {
            // Its name is gone; it is tried again.
            if let Err(error) = self.store.delete_retired(retired) {
                tracing::warn!(%error, "sweep");
            }
        }
        for error in &swept.failed {
            tracing::warn!(%error, "sweep");
        }
        Ok(swept)
    }
}

/// What is to be made of a layer's bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Unpacking {
    /// The diff id that the configuration announces.
    pub(crate) diff_id: Digest,
    /// Counted from 1, for messages.
    pub(crate) position: usize,
}

/// Checks an unpacked layer against the configuration.
fn checked(unpacked: Unpacked, want: Unpacking) -> Result<Unpacked> {
    if unpacked.diff_id() == want.diff_id {
        return Ok(unpacked);
    }
    let (position, found) = (want.position, unpacked.diff_id());
    Err(Error::DiffId { position, found, want: want.diff_id })
}

/// Unpacks a blob that is in the store; the caller publishes it. Blocks.
pub(crate) fn unpack_blob(
    store: &Arc<Store>,
    blob: &Digest,
    want: Unpacking,
    limits: &Limits,
) -> Result<Unpacked> {
    let file = store.open_blob(blob)?;
    checked(store.unpack(file, limits)?, want)
}

/// Writes a blob and unpacks it as it comes. Blocks until the feed ends.
pub(crate) fn land(
    store: &Arc<Store>,
    mut tee: Tee,
    want: Option<Unpacking>,
    limits: &Limits,
) -> Result<()> {
    loop {
        let outcome = match want {
            Some(_) => store.unpack(&mut tee, limits).map(Some),
            None => std::io::copy(&mut tee, &mut std::io::sink())
                .map(|_| None)
                .map_err(knarr_store::Error::Source),
        };
        // Wrong bytes show as a broken archive. Is it the archive, or the bytes?
        let rest = match &outcome {
            Err(error) if error.is_content() => drain(&mut tee),
            _ => Ok(()),
        };
        if tee.feed.restarted {
            tee.restart()?;
            continue;
        }
        if let Some(error) = tee.failed.take() {
            return Err(error.into());
        }
        rest?;
        let unpacked = match outcome {
            Ok(unpacked) => unpacked,
            Err(error) => {
                if error.is_content() {
                    tee.ingest.commit()?;
                }
                return Err(error.into());
            }
        };
        tee.ingest.commit()?;
        tee.bar.extracting();
        if let (Some(unpacked), Some(want)) = (unpacked, want) {
            checked(unpacked, want)?.publish()?;
        }
        return Ok(());
    }
}

fn drain(tee: &mut Tee) -> Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    while tee.read(&mut buffer).map_err(knarr_store::Error::Source)? > 0 {}
    Ok(())
}

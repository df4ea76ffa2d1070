//! Containers' records: what their rows are written again from.
//!
//! ```text
//!   <data-root>/containers/<id>/container.json   the whole row
//!   <exec-root>/containers/<id>/network.json     a run's addresses and ports
//! ```
//!
//! The first record is written by `create` and is what makes a container whole:
//! without one, a `create` never came to its end. Later ones follow their rows
//! within [`SOON`], off the way of whatever changed them: a container that starts
//! and ends in that time is written once, or not at all.
//!
//! What a verb acknowledges is on the disk by then ([`Engine::persist`]); that a container
//! runs, or ended, follows with the record.
//!
//! **How it fails.** A record that cannot be written stays as it is, is told in
//! the log, and is written with the next change or at the next start.

use std::{
    collections::BTreeSet,
    fs::File,
    io,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use knarr_model::{ContainerId, ContainerSpec};
use knarr_state::{
    containers::ContainerRow,
    networks::{EndpointRow, PortRow},
    record,
};
use serde::{Deserialize, Serialize};

use crate::{
    Error, Result, container::Container, engine::Engine, facades::blocking, failpoint, host,
};

/// What a container's record calls itself.
pub(crate) const CONTAINER: &str = "container";
/// What the record of a run's network calls itself.
pub(crate) const NETWORK: &str = "container network";

/// How long records may lag behind their rows.
const SOON: Duration = Duration::from_millis(250);

/// The record of a container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ContainerRecord {
    /// How often the row had changed.
    pub(crate) revision: u64,
    /// The boot in which it was written.
    pub(crate) boot: String,
    pub(crate) row: ContainerRow,
}

/// Where a running container is in its networks.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct NetworkRecord {
    pub(crate) endpoints: Vec<EndpointRow>,
    pub(crate) ports: Vec<PortRow>,
}

/// Who writes the records.
#[derive(Debug, Default)]
pub(crate) struct Scribe {
    /// Whose rows have changed since.
    changed: Mutex<BTreeSet<ContainerId>>,
    wake: tokio::sync::Notify,
    /// One writer at a time: each writes what is true then.
    writing: Mutex<()>,
}

impl Scribe {
    fn note(&self, id: &ContainerId) {
        self.changed.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone());
        self.wake.notify_one();
    }

    fn take(&self) -> BTreeSet<ContainerId> {
        std::mem::take(&mut *self.changed.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Engine {
    /// Where a container's record is.
    pub(crate) fn record_path(&self, id: &ContainerId) -> PathBuf {
        self.directory(id).join("container.json")
    }

    /// Where the record of a run's network is.
    pub(crate) fn network_record_path(&self, id: &ContainerId) -> PathBuf {
        self.bundle(id).join("network.json")
    }

    /// Writes where a container is in its life.
    pub(crate) fn save(&self, container: &Container) -> Result<()> {
        let revision = self.0.db.set_container_state(&container.id, &container.row_state())?;
        container.facts().revision = revision;
        self.0.scribe.note(&container.id);
        Ok(())
    }

    /// Replaces what was asked of a container.
    pub(crate) fn save_spec(&self, container: &Container, spec: ContainerSpec) -> Result<()> {
        let revision = self.0.db.set_container_spec(&container.id, &spec)?;
        {
            let mut facts = container.facts();
            facts.spec = Arc::new(spec);
            facts.revision = revision;
        }
        self.0.scribe.note(&container.id);
        Ok(())
    }

    /// A container's row, or its place in networks, has changed.
    pub(crate) fn changed(&self, id: &ContainerId) {
        self.0.scribe.note(id);
    }

    /// Writes the record of a container at once.
    pub(crate) fn write_record(&self, container: &Container) -> Result<()> {
        let _one = self.0.scribe.writing.lock().unwrap_or_else(PoisonError::into_inner);
        // Its own statement: facts are not held twice.
        let revision = container.facts().revision;
        let record = ContainerRecord { revision, boot: host::boot_id(), row: container.row()? };
        record::write(&self.record_path(&container.id), CONTAINER, &record)
            .map_err(|error| Error::internal(format!("record of container: {error}")))
    }

    /// Waits until the disk has what was asked of a container: before a change of it is
    /// acknowledged, so that a power cut does not take it back. One that goes with its end
    /// goes with a power cut, too, and nothing is waited for. Never on the way of a start.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub(crate) async fn persist(&self, container: &Container) -> Result<()> {
        if container.spec().auto_remove {
            return Ok(());
        }
        let (engine, directory) = (self.clone(), self.directory(&container.id));
        blocking(move || {
            failpoint::hit("persist")?;
            // The one that was removed is no more in the directory above.
            let place = match File::open(&directory) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    File::open(directory.parent().unwrap_or(&directory))
                }
                place => place,
            };
            place
                .and_then(|place| place.sync_all())
                .map_err(|error| Error::io(format!("flush {}", directory.display()), error))?;
            Ok(engine.0.db.sync()?)
        })
        .await?
    }

    /// Writes the records of all that changed, and has the disk take their rows. Blocks.
    pub(crate) fn write_records(&self) {
        let mut lasting = false;
        for id in self.0.scribe.take() {
            // What was removed meanwhile needs none.
            let Ok(container) = self.find(id.as_str()) else { continue };
            lasting |= !container.spec().auto_remove;
            let mut outcome = self.write_record(&container);
            if container.status().is_running() {
                outcome = outcome.and(self.write_network_record(&id));
            }
            if let Err(error) = outcome
                && self.directory(&id).is_dir()
            {
                tracing::warn!(%error, container = id.short(), "write record");
            }
        }
        if lasting && let Err(error) = self.0.db.sync() {
            tracing::warn!(%error, "flush the rows of containers");
        }
    }

    fn write_network_record(&self, id: &ContainerId) -> Result<()> {
        let record = NetworkRecord {
            endpoints: self.0.db.endpoints_of(id)?,
            ports: self.0.db.ports_of(id)?,
        };
        let path = self.network_record_path(id);
        let written = record::write(&path, NETWORK, &record);
        // It may have ended meanwhile, and its bundle with it.
        written.or_else(|error| {
            let ended = !self.bundle(id).is_dir();
            if ended { Ok(()) } else { Err(Error::internal(error.to_string())) }
        })
    }

    /// Writes records soon after their rows, for as long as the engine lives.
    pub(crate) fn start_scribe(&self) {
        let engine = Arc::downgrade(&self.0);
        tokio::spawn(async move {
            loop {
                let Some(inner) = engine.upgrade() else { return };
                let waiting = Arc::clone(&inner.scribe);
                drop(inner);
                waiting.wake.notified().await;
                tokio::time::sleep(SOON).await;
                let Some(inner) = engine.upgrade() else { return };
                let engine = Self(inner);
                if let Err(error) = blocking(move || engine.write_records()).await {
                    tracing::warn!(%error, "write records");
                }
            }
        });
    }
}

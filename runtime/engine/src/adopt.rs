//! Containers and rows are made to agree, and no container is lost by it.
//!
//! ```text
//!   directory, record newer than its row, or no row   the row is written from it
//!   directory, record older or missing                the record is written
//!   directory, neither row nor record can be read     left alone, named in `info`
//!   row, no directory                                 it was removed since: the row goes
//! ```
//!
//! So the database may be lost, damaged or an old copy: what containers there
//! are is known from their directories. Which of them runs is asked afterwards,
//! of their shims.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use knarr_image::Images;
use knarr_model::{ContainerId, Platform, Workload};
use knarr_state::{
    Db, Found,
    containers::{AdoptedContainer, ContainerRow},
    images::{ImageRecord, ImageRow},
    record,
};

use crate::{
    Error, Result,
    container::{Container, Resolved},
    create::CREATING,
    engine::Engine,
    mounts::StoredKind,
    record::{CONTAINER, ContainerRecord, NETWORK, NetworkRecord},
};

/// What was found on the disk and in the database.
#[derive(Debug, Default)]
pub(crate) struct Adopted {
    /// Containers whose rows were written from their records.
    pub(crate) mended: BTreeSet<ContainerId>,
    /// Containers of which neither row nor record can be read.
    pub(crate) quarantined: BTreeSet<String>,
}

/// What is found of one container.
enum Verdict {
    /// The row is right, and so is the record.
    Right,
    /// The row is right, and the record is not.
    Unrecorded,
    /// The record is right.
    Newer(Box<ContainerRecord>),
    /// Nothing is in it: its `create` never came to an end.
    Nothing,
    /// Nothing can be read of it.
    Unknown(String),
}

impl Engine {
    /// Makes rows and directories of containers agree.
    pub(crate) fn adopt_containers(&self) -> Result<Adopted> {
        let (rows, bad) = self.0.db.containers()?;
        let revisions = self.0.db.container_revisions()?;
        let mut bad: HashMap<String, String> =
            bad.into_iter().map(|(id, error)| (id, error.to_string())).collect();
        let mut good = BTreeMap::new();
        for row in rows {
            match Container::check(&row) {
                Ok(()) => {
                    good.insert(row.id.clone(), row);
                }
                Err(error) => {
                    bad.insert(row.id.to_string(), error.to_string());
                }
            }
        }
        let directories: BTreeSet<ContainerId> =
            self.0.store.snapshots().map_err(Error::from_room)?.into_iter().collect();
        let (mut adopted, mut notices) = (Adopted::default(), Vec::new());
        let (mut newer, mut unrecorded) = (Vec::new(), Vec::new());
        for id in &directories {
            let revision = revisions.get(id.as_str()).copied().unwrap_or_default();
            let row = good.get(id).map(|row| (row, revision));
            match self.judge(id, row, bad.get(id.as_str())) {
                Verdict::Right => {}
                Verdict::Unrecorded => unrecorded.push(id.clone()),
                Verdict::Newer(record) => newer.push(*record),
                Verdict::Nothing => {
                    if let Err(error) = self.0.store.remove_snapshot(id) {
                        notices.push(format!("container {}: {error}", id.short()));
                    }
                }
                Verdict::Unknown(why) => {
                    notices.push(format!("container {id} is left alone: {why}"));
                    adopted.quarantined.insert(id.to_string());
                }
            }
        }
        for (id, why) in &bad {
            if !directories.iter().any(|directory| directory.as_str() == id) {
                notices
                    .push(format!("container {id} is left alone: its row cannot be read: {why}"));
                adopted.quarantined.insert(id.clone());
            }
        }
        for (id, row) in &good {
            let removing =
                matches!(row.state.status.as_str(), CREATING | "removing" | "removing-volumes");
            if !removing && !directories.contains(id) && !self.bundle(id).exists() {
                tracing::warn!(container = id.short(), name = %row.name, "its directory is gone: it was removed");
                self.0.db.delete_container(id)?;
            }
        }
        for row in self.0.db.unreadable(&["network", "volume"])? {
            notices.push(format!("{} {} is left alone: {}", row.kind, row.key, row.why));
        }
        adopted.mended = newer.iter().map(|record| record.row.id.clone()).collect();
        match self.write_rows(newer) {
            Ok(more) => notices.extend(more),
            Err(error) => notices.push(format!("containers are not adopted: {error}")),
        }
        self.0.notices.set("containers", notices);
        self.write_missing_records(&unrecorded)?;
        Ok(adopted)
    }

    fn judge(
        &self,
        id: &ContainerId,
        row: Option<(&ContainerRow, u64)>,
        bad: Option<&String>,
    ) -> Verdict {
        let found = record::read::<ContainerRecord>(&self.record_path(id), CONTAINER);
        let recorded = match found {
            Ok(Some(record)) if record.row.id == *id => match Container::check(&record.row) {
                Ok(()) => Ok(Some(record)),
                Err(error) => Err(error.to_string()),
            },
            Ok(Some(record)) => Err(format!("its record is of {}", record.row.id)),
            Ok(None) => Ok(None),
            Err(error) => Err(error.to_string()),
        };
        match (row, recorded) {
            // The record makes a container whole.
            (Some((row, _)), Ok(Some(record))) if row.state.status == CREATING => {
                Verdict::Newer(Box::new(record))
            }
            (Some((row, _)), _) if row.state.status == CREATING => Verdict::Right,
            (Some((_, revision)), Ok(Some(record))) if record.revision > revision => {
                Verdict::Newer(Box::new(record))
            }
            (Some((_, revision)), Ok(Some(record))) if record.revision == revision => {
                Verdict::Right
            }
            (Some(_), _) => Verdict::Unrecorded,
            (None, Ok(Some(record))) => Verdict::Newer(Box::new(record)),
            (None, Ok(None)) => match bad {
                Some(why) => Verdict::Unknown(format!("its row cannot be read: {why}")),
                None if self.is_untouched(id) => Verdict::Nothing,
                None => Verdict::Unknown("it has no row and no record".into()),
            },
            (None, Err(why)) => Verdict::Unknown(why),
        }
    }

    /// Whether a container's directory holds nothing that anybody wrote.
    fn is_untouched(&self, id: &ContainerId) -> bool {
        if self.bundle(id).exists() {
            return false;
        }
        let directory = self.directory(id);
        let logged = directory.join("json.log").exists();
        let written = std::fs::read_dir(directory.join("upper"))
            .is_ok_and(|mut entries| entries.next().is_some());
        !logged && !written
    }

    /// Writes rows from records, their images' first.
    fn write_rows(&self, records: Vec<ContainerRecord>) -> Result<Vec<String>> {
        let images: BTreeSet<_> =
            self.0.db.image_revisions()?.into_iter().map(|(id, _)| id).collect();
        let boot = records.iter().map(|record| &record.boot).max();
        if let Some(boot) = boot
            && self.0.db.fact("boot")?.is_none()
        {
            self.0.db.set_fact("boot", boot)?;
        }
        let mut all = Vec::new();
        for record in records {
            let resolved = Container::resolved(&record.row)?;
            if !images.contains(&record.row.image) {
                self.0.db.image_adopt(&stand_in(&record.row, &resolved))?;
            }
            let volumes = resolved
                .mounts
                .into_iter()
                .filter_map(|mount| match mount.kind {
                    StoredKind::Volume { name, .. } => Some(name),
                    _ => None,
                })
                .collect();
            all.push(AdoptedContainer { row: record.row, revision: record.revision, volumes });
        }
        let names = self.0.db.adopt_containers(&all)?;
        let mut notices = Vec::new();
        for (id, name) in &names {
            tracing::warn!(container = id.short(), %name, "adopted: the database did not know it as it is");
            let renamed = |one: &&AdoptedContainer| one.row.id == *id && one.row.name != *name;
            if let Some(one) = all.iter().find(renamed) {
                notices.push(format!(
                    "container {} is called {name}: another one is called {}",
                    id.short(),
                    one.row.name
                ));
            }
        }
        Ok(notices)
    }

    /// Writes the records of containers whose rows are right.
    fn write_missing_records(&self, ids: &[ContainerId]) -> Result<()> {
        if ids.is_empty() {
            return Ok(());
        }
        let revisions = self.0.db.container_revisions()?;
        for row in self.0.db.containers()?.0.into_iter().filter(|row| ids.contains(&row.id)) {
            let revision = revisions.get(row.id.as_str()).copied().unwrap_or_default();
            let container = Container::new(row, revision)?;
            if let Err(error) = self.write_record(&container) {
                tracing::warn!(%error, container = container.id.short(), "write record");
            }
        }
        Ok(())
    }

    /// Gives a running container its addresses and ports again, where the
    /// database does not know them.
    pub(crate) fn adopt_network(&self, id: &ContainerId, mended: bool) {
        let known = self.0.db.endpoints_of(id).is_ok_and(|endpoints| !endpoints.is_empty());
        if known && !mended {
            return;
        }
        let found = record::read::<NetworkRecord>(&self.network_record_path(id), NETWORK);
        let outcome = match found {
            Ok(None) => return,
            Ok(Some(record)) => self
                .0
                .db
                .adopt_endpoints(id, &record.endpoints, &record.ports)
                .map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = outcome {
            tracing::warn!(error, container = id.short(), "adopt its network");
        }
    }
}

/// An image's rows as far as its container tells: enough to run it.
fn stand_in(row: &ContainerRow, resolved: &Resolved) -> ImageRecord {
    let platform = match &row.workload {
        Workload::Native { platform } => platform.clone(),
        Workload::Wasm { .. } => Platform::host(),
    };
    ImageRecord {
        image: ImageRow {
            id: row.image,
            manifest: row.image,
            config: row.image,
            workload: row.workload.clone(),
            reason: "known from a container only".into(),
            platform,
            size: 0,
            created: 0,
            stored: 0,
            layers: resolved.layers.clone(),
            tags: Vec::new(),
            digests: Vec::new(),
        },
        blobs: vec![row.image],
        revision: 0,
    }
}

/// What people should know of the database.
pub(crate) fn of_database(db: &Db) -> Vec<String> {
    let mut notices = Vec::new();
    let mut now = None;
    if let Found::Damaged { aside, why } = db.found() {
        notices.push(format!(
            "{why}: it was moved to {} and written anew from the records of what there is",
            aside.display()
        ));
        now = Some(aside.clone());
    }
    let older =
        knarr_state::aside(db.directory()).into_iter().filter(|path| Some(path) != now.as_ref());
    notices.extend(older.map(|path| {
        format!("{} is a database that was damaged; delete it when nobody needs it", path.display())
    }));
    notices
}

/// What people should know of the images.
pub(crate) fn of_images(images: &Images) -> Vec<String> {
    images.adopt().unwrap_or_else(|error| vec![format!("images: {error}")])
}

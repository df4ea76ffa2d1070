//! The root filesystem of a container: layers below, a writable directory on top.
//!
//! ```text
//!   prepare(id, layers)  containers/<id>/{upper,work} made, mount described
//!   view(layers)         no writable part: read-only
//!   remove(id)           renamed away at once, deleted at leisure
//! ```
//!
//! Nothing is mounted here: a [`Snapshot`] is a description that the sandbox
//! mounts inside the container's own mount namespace, where it vanishes with it.
//!
//! **How it fails.** `remove` of what is not there is success. A removal that is
//! interrupted leaves the directory under `ingest/trash-…`, swept at the next
//! start. A directory that cannot be renamed (it is immutable, or something is
//! mounted on it) is marked by `containers/<id>.removed` and deleted in its place.

use std::{
    collections::HashSet,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use knarr_model::{ContainerId, Digest};

use crate::{Error, Result, Store, remove_tree};

/// With what the names of removed things begin.
pub(crate) const TRASH: &str = "trash-";
/// What marks a container's directory that is removed and still in its place.
const REMOVED: &str = ".removed";

/// The overlay of one container, as paths.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Lower directories, the topmost first; never empty, none twice.
    pub lower: Vec<PathBuf>,
    /// Where changes go; none for a read-only view.
    pub upper: Option<PathBuf>,
    /// overlayfs' own directory beside `upper`.
    pub work: Option<PathBuf>,
}

impl Snapshot {
    /// Options of a containerd mount of type `overlay`.
    pub fn overlay_options(&self) -> Vec<String> {
        let lower: Vec<String> = self.lower.iter().map(|path| path.display().to_string()).collect();
        let mut options = vec![format!("lowerdir={}", lower.join(":"))];
        if let (Some(upper), Some(work)) = (&self.upper, &self.work) {
            options.push(format!("upperdir={}", upper.display()));
            options.push(format!("workdir={}", work.display()));
        }
        options
    }
}

/// What a writable layer holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of disk.
    pub bytes: u64,
    /// Files and directories.
    pub inodes: u64,
}

impl Store {
    /// Makes the writable directories of a container and describes its root
    /// filesystem. Idempotent.
    ///
    /// # Errors
    /// When a layer (diff ids, lowest first) is not in the store or the host fails.
    pub fn prepare(&self, id: &ContainerId, layers: &[Digest]) -> Result<Snapshot> {
        let snapshot = self.snapshot(id, layers)?;
        let directory = self.container_path(id);
        for (name, mode) in [("", 0o700), ("upper", 0o755), ("work", 0o700)] {
            let path = directory.join(name);
            match std::fs::DirBuilder::new().mode(mode).create(&path) {
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
                other => other.map_err(Error::io("make directory", &path))?,
            }
        }
        Ok(snapshot)
    }

    /// Describes the root filesystem of a container that was prepared before.
    ///
    /// # Errors
    /// When a layer is not in the store.
    pub fn snapshot(&self, id: &ContainerId, layers: &[Digest]) -> Result<Snapshot> {
        let directory = self.container_path(id);
        Ok(Snapshot {
            upper: Some(directory.join("upper")),
            work: Some(directory.join("work")),
            ..self.view(layers)?
        })
    }

    /// Describes layers (diff ids, lowest first) without anything writable.
    ///
    /// # Errors
    /// When a layer is not in the store.
    pub fn view(&self, layers: &[Digest]) -> Result<Snapshot> {
        let mut seen = HashSet::new();
        let mut lower = Vec::new();
        // overlayfs refuses a directory that is there twice. Of a layer that is,
        // the topmost place alone counts: it hides the lower one entirely.
        for layer in layers.iter().rev().filter(|layer| seen.insert(**layer)) {
            if !self.has_layer(layer) {
                return Err(Error::NotFound { what: "layer", digest: *layer });
            }
            let path = self.layer_path(layer);
            // overlayfs does not look for it on a root: what lies below is left out.
            let opaque = crate::extract::is_opaque(&path);
            lower.push(path);
            if opaque {
                break;
            }
        }
        if lower.is_empty() {
            lower.push(self.root().join("empty"));
        }
        Ok(Snapshot { lower, upper: None, work: None })
    }

    /// `containers/<id>`: the writable layer, the log and the files of one container.
    pub fn container_path(&self, id: &ContainerId) -> PathBuf {
        self.root().join("containers").join(id.as_str())
    }

    /// Removes `containers/<id>` with everything in it. The name is gone when
    /// this returns; deep or large trees are deleted before it returns, so call
    /// it where blocking is allowed.
    ///
    /// # Errors
    /// When the host fails.
    pub fn remove_snapshot(&self, id: &ContainerId) -> Result<()> {
        match self.retire_snapshot(id)? {
            Some(retired) => self.delete_retired(&retired),
            None => Ok(()),
        }
    }

    /// The first half of [`Store::remove_snapshot`]: takes the name away and
    /// answers what is left to delete with [`Store::delete_retired`].
    ///
    /// # Errors
    /// When the host fails.
    pub fn retire_snapshot(&self, id: &ContainerId) -> Result<Option<PathBuf>> {
        let path = self.container_path(id);
        self.retire(&path).or_else(|error| {
            std::fs::write(mark(&path), "").map_err(|_| error)?;
            Ok(Some(path))
        })
    }

    /// The second half: deletes. Interrupted, it is finished at the next start.
    ///
    /// # Errors
    /// When the host fails.
    pub fn delete_retired(&self, retired: &Path) -> Result<()> {
        remove_tree(retired)?;
        let mark = mark(retired);
        match std::fs::remove_file(&mark) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io("remove", &mark)(e))
            }
            _ => Ok(()),
        }
    }

    /// What a container wrote. Walks its upper directory.
    ///
    /// # Errors
    /// When the host fails.
    pub fn usage(&self, id: &ContainerId) -> Result<Usage> {
        let upper = self.container_path(id).join("upper");
        let usage = knarr_tree::usage(&upper).map_err(Error::io("count", &upper))?;
        Ok(Usage { bytes: usage.disk, inodes: usage.inodes })
    }

    /// The ids of all containers that have a directory here, for reconciling;
    /// without those that are removed.
    ///
    /// # Errors
    /// When the host fails.
    pub fn snapshots(&self) -> Result<Vec<ContainerId>> {
        let removed = self.removed_snapshots()?;
        let mut all = self.named_snapshots("")?;
        all.retain(|id| !removed.contains(id));
        Ok(all)
    }

    /// The ids of the containers whose directories are marked as removed.
    pub(crate) fn removed_snapshots(&self) -> Result<Vec<ContainerId>> {
        self.named_snapshots(REMOVED)
    }

    fn named_snapshots(&self, suffix: &str) -> Result<Vec<ContainerId>> {
        let path = self.root().join("containers");
        let entries = std::fs::read_dir(&path).map_err(Error::io("read", &path))?;
        let id = |name: &str| name.strip_suffix(suffix)?.parse().ok();
        Ok(entries.flatten().filter_map(|entry| id(entry.file_name().to_str()?)).collect())
    }

    /// Renames something into the trash.
    pub(crate) fn retire(&self, path: &Path) -> Result<Option<PathBuf>> {
        let trash = self.ingest_path(&format!("{TRASH}{}", crate::unique()));
        match std::fs::rename(path, &trash) {
            Ok(()) => Ok(Some(trash)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io("remove", path)(e)),
        }
    }
}

/// The file that says of a directory that it is removed.
fn mark(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(REMOVED);
    name.into()
}

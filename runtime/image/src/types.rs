//! What callers see of an image.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use knarr_model::{Digest, PortSpec, Reference, Signal, Workload};
use knarr_state::images::ImageRow;
use serde::{Deserialize, Serialize};

/// One image with its checked configuration.
#[derive(Debug, Clone)]
pub struct Image {
    /// Id, names, workload, layers: see [`ImageRow`].
    pub row: ImageRow,
    /// What the image says about running it.
    pub config: ImageConfig,
}

impl Image {
    /// The image's id.
    pub fn id(&self) -> Digest {
        self.row.id
    }

    /// What it asks us to run.
    pub fn workload(&self) -> &Workload {
        &self.row.workload
    }

    /// Diff ids, lowest first: what `Store::prepare` takes.
    pub fn layers(&self) -> &[Digest] {
        &self.row.layers
    }
}

/// What an image says about running it, parsed and checked (CATALOGUE I21).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageConfig {
    /// `user[:group]`, names or numbers.
    pub user: Option<String>,
    /// Ports the program listens on.
    pub exposed_ports: BTreeSet<PortSpec>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// What is run; none where the image has none.
    pub entrypoint: Option<Vec<String>>,
    /// Its arguments, or what is run where there is no entrypoint.
    pub cmd: Option<Vec<String>>,
    /// Anonymous volumes: absolute paths without `..`, neither `/` nor `/proc`, `/sys`, `/dev`.
    pub volumes: BTreeSet<PathBuf>,
    /// Working directory; absolute.
    pub working_dir: Option<PathBuf>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// What `stop` sends.
    pub stop_signal: Option<Signal>,
    /// Docker's health check, as it was written.
    pub healthcheck: Option<serde_json::Value>,
    /// Docker's shell for builds.
    pub shell: Option<Vec<String>>,
    /// Docker's triggers for builds.
    pub on_build: Vec<String>,
}

/// Everything that `image inspect` shows.
#[derive(Debug, Clone)]
pub struct Inspect {
    /// The image.
    pub image: Image,
    /// Bytes of the layers, unpacked.
    pub size: u64,
    /// Build time as the configuration says it (RFC 3339).
    pub created: Option<String>,
    /// Author.
    pub author: Option<String>,
    /// The configuration document's `comment` of the last step, if any.
    pub comment: Option<String>,
    /// Version of the program that built it, as Docker records it.
    pub docker_version: Option<String>,
    /// The `config` object as it was written.
    pub raw_config: serde_json::Value,
    /// Lower directories, the topmost first.
    pub lower: Vec<PathBuf>,
    /// For Wasm: what the program imports (interfaces of a component, `module.name`
    /// of a core module).
    pub wasm_imports: Vec<String>,
    /// For Wasm: what it exports.
    pub wasm_exports: Vec<String>,
    /// When the image was last tagged here is not kept; when it was stored (RFC 3339).
    pub stored: String,
}

/// One line of `history`, the newest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryEntry {
    /// The image's id on the first line, none (`<missing>`) below.
    pub id: Option<Digest>,
    /// Seconds since 1970.
    pub created: i64,
    /// The step's command.
    pub created_by: String,
    /// Tags, on the first line.
    pub tags: Vec<Reference>,
    /// Bytes that the step's layer adds.
    pub size: u64,
    /// The step's comment.
    pub comment: String,
}

/// What happens during a pull or load, in Docker's words
/// (`POST /images/create`, `jsonmessage`).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Progress {
    /// The layer's short id, or the tag on the first line; empty on lines for all.
    pub id: String,
    /// `Pulling from library/busybox`, `Downloading`, `Pull complete` …
    pub status: String,
    /// Bytes so far and in total, where there is a bar.
    pub detail: Option<(u64, u64)>,
}

/// Where progress goes. A full channel drops `Downloading` lines only.
pub type ProgressSender = tokio::sync::mpsc::Sender<Progress>;

/// Which variant of an index is taken where the request names no platform.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Prefer {
    /// The native one; a Wasm one where there is no native one for this machine.
    #[default]
    Native,
    /// The Wasm one; the native one where there is no Wasm one.
    Wasm,
}

/// An image that `load` stored.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The image's id.
    pub id: Digest,
    /// Its tags in the archive; none is `Loaded image ID: …`.
    pub tags: Vec<Reference>,
}

/// A container that uses an image, as the engine knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageUser {
    /// The container's short id.
    pub container: String,
    /// It runs (or is paused, or restarts).
    pub running: bool,
}

/// How `remove` behaves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RemoveOptions {
    /// Also where several repositories name it or stopped containers use it.
    pub force: bool,
}

/// One line of what `remove` answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Removed {
    /// `Untagged: NAME`, as Docker shows names.
    Untagged(String),
    /// `Deleted: sha256:…`: an image or a layer.
    Deleted(Digest),
}

/// What `prune` removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Images and layers, in order.
    pub removed: Vec<Removed>,
    /// Bytes that are free again.
    pub reclaimed: u64,
}

/// What images take on the disk (`system df`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DiskUsage {
    /// Bytes of all unpacked layers, each counted once.
    pub layers: u64,
    /// Bytes of blobs and compiled code.
    pub blobs: u64,
    /// Bytes of what is neither whole nor gone yet: partial blobs above all.
    pub staged: u64,
    /// By image id: bytes of its layers, blobs and compiled code.
    pub sizes: BTreeMap<Digest, u64>,
    /// By image id: bytes of layers that other images have too.
    pub shared: BTreeMap<Digest, u64>,
}

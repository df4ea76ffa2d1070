//! The engine: containers, exec, logs, events, recovery.
//!
//! ```text
//!   api ──► Engine ──┬── images, networks, volumes   rooms below, with use by containers checked
//!                    ├── container                   one state machine each, see its picture
//!                    ├── shims ── task (ttrpc)       warm processes that own the tasks
//!                    └── events                      what happened, for whoever listens
//! ```
//!
//! **Life.** [`Engine::open`] is start and recovery in one: it reads the rows,
//! asks every shim, records what ended meanwhile, sweeps what no row names, and
//! applies restart policies once. Dropping the last clone leaves containers
//! running; the next `open` finds them again.
//!
//! **How it fails.** Every verb is linearizable per container and idempotent;
//! whatever a failed `create` or `start` had made is undone before it answers.
//! A killed engine loses nothing: rows are written before resources are made
//! and deleted after they are gone.

#![forbid(unsafe_code)]

mod error;
mod view;

use std::{path::PathBuf, sync::Arc};

use knarr_model::{ContainerSpec, ExecId, Signal};

pub use error::{Error, Result};
pub use view::*;

/// Where things are and how many of them.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// What survives a reboot; 0700. Default `/var/lib/knarr`.
    pub data_root: PathBuf,
    /// What does not (tmpfs); 0711. Default `/run/knarr`.
    pub exec_root: PathBuf,
    /// The shim program, `containerd-shim-knarr-v1`.
    pub shim: PathBuf,
    /// The Wasm host program, `knarr-wasm`; Wasm images are refused where it is missing.
    pub wasm_host: PathBuf,
    /// Where shims write what they have to say; none is nowhere.
    pub shim_log: Option<PathBuf>,
    /// Shims kept ready.
    pub warm_shims: usize,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            data_root: "/var/lib/knarr".into(),
            exec_root: "/run/knarr".into(),
            shim: "containerd-shim-knarr-v1".into(),
            wasm_host: "knarr-wasm".into(),
            shim_log: None,
            warm_shims: 2,
        }
    }
}

/// The engine. Clones are handles of one engine.
///
/// `key` is always what a user wrote: a name, an id or an unambiguous prefix of
/// an id; an exact name wins.
#[derive(Debug, Clone)]
pub struct Engine {
    #[expect(dead_code)]
    inner: Arc<()>,
}

/// A wait that has begun: nothing that happens after it was made is missed.
#[derive(Debug)]
pub struct Wait {}

impl Wait {
    /// Waits.
    pub async fn outcome(self) -> WaitOutcome {
        WaitOutcome { code: 0, error: None }
    }
}

fn soon<T>() -> Result<T> {
    Err(Error::not_supported("not yet"))
}

impl Engine {
    /// Opens the engine and recovers what ran before.
    ///
    /// # Errors
    /// When a directory or the database cannot be used, or another engine has them.
    pub async fn open(config: EngineConfig) -> Result<Self> {
        let _ = config;
        soon()
    }

    /// Makes a container. The image must be in the store; the error is
    /// `NotFound` with Docker's `No such image: x` where it is not.
    ///
    /// # Errors
    /// `InvalidArgument`, `Conflict` (name), `NotFound` (image, network, container of a mode).
    pub async fn create(&self, name: Option<&str>, spec: ContainerSpec) -> Result<Created> {
        let _ = (name, spec);
        soon()
    }

    /// Starts it; `NotModified` if it runs.
    ///
    /// # Errors
    /// Docker's texts, from which its client takes exit codes 125, 126 and 127.
    pub async fn start(&self, key: &str) -> Result<()> {
        let _ = key;
        soon()
    }

    /// Stops it; `NotModified` if it does not run.
    ///
    /// # Errors
    /// When it cannot be ended.
    pub async fn stop(&self, key: &str, options: StopOptions) -> Result<()> {
        let _ = (key, options);
        soon()
    }

    /// Stops it if it runs, and starts it.
    ///
    /// # Errors
    /// As `stop` and `start`.
    pub async fn restart(&self, key: &str, options: StopOptions) -> Result<()> {
        let _ = (key, options);
        soon()
    }

    /// Sends a signal (SIGKILL unless said) to its first process.
    ///
    /// # Errors
    /// `Conflict` where it does not run.
    pub async fn kill(&self, key: &str, signal: Option<Signal>) -> Result<()> {
        let _ = (key, signal);
        soon()
    }

    /// Removes it.
    ///
    /// # Errors
    /// `Conflict` where it runs and `force` was not said.
    pub async fn remove(&self, key: &str, options: RemoveOptions) -> Result<()> {
        let _ = (key, options);
        soon()
    }

    /// Gives it another name.
    ///
    /// # Errors
    /// `Conflict` where the name is taken.
    pub async fn rename(&self, key: &str, name: &str) -> Result<()> {
        let _ = (key, name);
        soon()
    }

    /// Freezes it.
    ///
    /// # Errors
    /// `Conflict` where it does not run or is paused.
    pub async fn pause(&self, key: &str) -> Result<()> {
        let _ = key;
        soon()
    }

    /// Thaws it.
    ///
    /// # Errors
    /// `Conflict` where it is not paused.
    pub async fn unpause(&self, key: &str) -> Result<()> {
        let _ = key;
        soon()
    }

    /// Changes limits and restart policy; answers warnings.
    ///
    /// # Errors
    /// When the kernel refuses the limits.
    pub async fn update(&self, key: &str, update: Update) -> Result<Vec<String>> {
        let _ = (key, update);
        soon()
    }

    /// Begins to wait. The client may be answered its headers when this returns.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn wait(&self, key: &str, condition: WaitCondition) -> Result<Wait> {
        let _ = (key, condition);
        soon()
    }

    /// Attaches to its first process; to a container that was not started yet,
    /// the stream carries what comes from its start on.
    ///
    /// # Errors
    /// `Conflict` where it is paused; `InvalidArgument` for bad detach keys.
    pub async fn attach(&self, key: &str, options: AttachOptions) -> Result<Attached> {
        let _ = (key, options);
        soon()
    }

    /// What it wrote.
    ///
    /// # Errors
    /// `NotSupported` with log driver `none`.
    pub async fn logs(&self, key: &str, options: LogOptions) -> Result<Logs> {
        let _ = (key, options);
        soon()
    }

    /// Sets the size of its terminal.
    ///
    /// # Errors
    /// `Conflict` where it does not run.
    pub async fn resize(&self, key: &str, rows: u16, columns: u16) -> Result<()> {
        let _ = (key, rows, columns);
        soon()
    }

    /// Prepares a further process.
    ///
    /// # Errors
    /// `Conflict` where the container does not run or is paused.
    pub async fn exec_create(&self, key: &str, spec: ExecSpec) -> Result<ExecId> {
        let _ = (key, spec);
        soon()
    }

    /// Starts it: with streams unless `detach`.
    ///
    /// # Errors
    /// Docker's texts, from which its client takes exit codes 126 and 127.
    pub async fn exec_start(&self, id: &str, options: ExecStart) -> Result<Option<Attached>> {
        let _ = (id, options);
        soon()
    }

    /// Sets the size of its terminal.
    ///
    /// # Errors
    /// `NotFound`, or when it does not run.
    pub async fn exec_resize(&self, id: &str, rows: u16, columns: u16) -> Result<()> {
        let _ = (id, rows, columns);
        soon()
    }

    /// What it is and how it ended.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn exec_inspect(&self, id: &str) -> Result<ExecView> {
        let _ = id;
        soon()
    }

    /// Its processes, in the columns of `ps -ef` or those of `ps_args`.
    ///
    /// # Errors
    /// `Conflict` where it does not run; `InvalidArgument` for `ps_args` that are not understood.
    pub async fn top(&self, key: &str, ps_args: &str) -> Result<Top> {
        let _ = (key, ps_args);
        soon()
    }

    /// One sample. Whoever wants rates takes two.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn stats(&self, key: &str) -> Result<StatsSample> {
        let _ = key;
        soon()
    }

    /// One container.
    ///
    /// # Errors
    /// `NotFound` with Docker's text, `InvalidArgument` for an ambiguous prefix.
    pub fn inspect(&self, key: &str) -> Result<ContainerView> {
        let _ = key;
        soon()
    }

    /// All containers, the newest first. Filters are the caller's.
    pub fn list(&self) -> Vec<ContainerView> {
        Vec::new()
    }

    /// Bytes in its writable layer, and in all its layers.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn size(&self, key: &str) -> Result<(u64, u64)> {
        let _ = key;
        soon()
    }

    /// Removes all that do not run and that `wanted` picks.
    ///
    /// # Errors
    /// When none could be removed.
    pub async fn prune_containers(
        &self,
        wanted: impl Fn(&ContainerView) -> bool + Send,
    ) -> Result<Pruned> {
        let _ = wanted;
        soon()
    }

    /// What happened since a time (as far as it is remembered), then what happens.
    pub fn events(&self, since: Option<jiff::Timestamp>) -> BoxStream<Event> {
        let _ = since;
        Box::pin(futures_util::stream::empty())
    }

    /// What the host and the engine are.
    pub fn info(&self) -> Info {
        Info::default()
    }
}

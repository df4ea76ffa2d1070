//! Warm shims: processes that are ready before anyone asks for a container.
//!
//! ```text
//!   spawn ──"ready"──► idle ──take──► a container's ──Delete──┬─Shutdown─► gone
//!                       │ └──────────────◄─give back──────────┘
//!                       └──lifeline's end (the engine died)──► gone
//! ```
//!
//! Starting a program costs milliseconds, so it is done off the way of a
//! container's start, and a shim whose task is deleted serves the next
//! container. An idle shim holds the read end of a pipe whose write end only
//! this process has: the kernel ends the idle ones with the engine. A shim with
//! a task ignores it and waits to be found again; such a one is not given back.

use std::{
    fs::OpenOptions,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use tokio::{
    io::AsyncReadExt,
    process::{ChildStdin, Command},
};

use crate::{
    Error, Result, names,
    task::{Task, Ttrpc},
};

/// How long a shim may take to be ready: a loaded machine is slow, a broken
/// program never is.
const READY: Duration = Duration::from_secs(20);

/// An empty pool is refilled once the container that emptied it has been started.
const SOON: Duration = Duration::from_millis(10);

/// One that is not empty waits so long for containers that end soon, and give
/// their shims back.
const LATER: Duration = Duration::from_millis(100);

/// So that no shim grows old.
const MOST_TASKS: u32 = 64;

/// A shim and the connection to it.
#[derive(Debug)]
pub(crate) struct Shim {
    pub(crate) task: Arc<dyn Task>,
    pub(crate) socket: PathBuf,
    /// None for one of an earlier engine.
    lifeline: Option<ChildStdin>,
    /// How often it was taken.
    taken: AtomicU32,
}

impl Shim {
    /// Finds a shim again that an earlier engine started.
    pub(crate) async fn find(socket: &Path) -> Result<Self> {
        let task = Ttrpc::connect(socket)
            .await
            .map_err(|error| Error::internal(format!("shim at {}: {error}", socket.display())))?;
        Ok(Self { task, socket: socket.to_owned(), lifeline: None, taken: AtomicU32::new(0) })
    }
}

/// Where shims come from.
#[derive(Debug)]
pub(crate) struct Shims {
    program: PathBuf,
    sockets: PathBuf,
    log: Option<PathBuf>,
    size: usize,
    /// Soft limit of open files that they begin with; none is ours.
    nofile: Option<u64>,
    idle: Mutex<Vec<Arc<Shim>>>,
}

impl Shims {
    pub(crate) fn new(
        program: PathBuf,
        sockets: PathBuf,
        log: Option<PathBuf>,
        size: usize,
        nofile: Option<u64>,
    ) -> Self {
        Self { program, sockets, log, size, nofile, idle: Mutex::default() }
    }

    /// A shim without a task: a warm one, else a new one.
    pub(crate) async fn take(&self) -> Result<Arc<Shim>> {
        let idle = self.idle().pop();
        let shim = match idle {
            Some(shim) => shim,
            None => Arc::new(self.spawn().await?),
        };
        shim.taken.fetch_add(1, Ordering::Relaxed);
        Ok(shim)
    }

    /// Takes back a shim whose task was deleted, or ends it.
    pub(crate) async fn give_back(&self, shim: &Arc<Shim>) {
        if shim.lifeline.is_some() && shim.taken.load(Ordering::Relaxed) < MOST_TASKS {
            let mut idle = self.idle();
            if idle.len() < self.size {
                idle.push(Arc::clone(shim));
                return;
            }
        }
        let _ = shim.task.shutdown().await;
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Arc<Shim>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the pool full again, in the background.
    pub(crate) fn refill(self: &Arc<Self>) {
        let pool = Arc::clone(self);
        tokio::spawn(async move {
            tokio::time::sleep(SOON).await;
            if !pool.idle().is_empty() {
                tokio::time::sleep(LATER).await;
            }
            while pool.idle().len() < pool.size {
                match pool.spawn().await {
                    Ok(shim) => {
                        let mut idle = pool.idle();
                        if idle.len() < pool.size {
                            idle.push(Arc::new(shim));
                        }
                    }
                    Err(error) => {
                        tracing::warn!(%error, "no warm shim");
                        return;
                    }
                }
            }
        });
    }

    /// A container that asks for no limit of its own has its shim's, which must not
    /// be what the engine needs for itself. Told before the shim has a task.
    fn restore_limit(&self, shim: Option<u32>) {
        let pid = shim.and_then(|pid| Pid::from_raw(pid.cast_signed()));
        let (Some(pid), Some(soft)) = (pid, self.nofile) else { return };
        let limit = Rlimit { current: Some(soft), ..getrlimit(Resource::Nofile) };
        if let Err(error) = prlimit(Some(pid), Resource::Nofile, limit) {
            tracing::warn!(%error, "limit of open files of a shim");
        }
    }

    /// Starts a shim and waits until it listens.
    async fn spawn(&self) -> Result<Shim> {
        let id =
            names::random::<5>().iter().fold(String::new(), |id, byte| format!("{id}{byte:02x}"));
        let socket = self.sockets.join(format!("{id}.sock"));
        let failed = |what: &str, error: std::io::Error| {
            Error::io(format!("shim {}: {what}", self.program.display()), error)
        };
        let stderr = match &self.log {
            Some(path) => OpenOptions::new()
                .append(true)
                .create(true)
                .open(path)
                .map_err(|error| failed("log file", error))?
                .into(),
            None => Stdio::null(),
        };
        let mut command = Command::new(&self.program);
        command
            .args(["-namespace", "knarr", "-id", &id, "-address", "", "-knarr-socket"])
            .arg(&socket)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(stderr);
        // Starting a process stops the thread that does it until the program runs.
        let start = move || {
            let child = command.spawn()?;
            // The engine is to be killed after everything else when memory runs out; its
            // shims, and the containers that inherit this from them, are not.
            if let Some(pid) = child.id()
                && let Err(error) = knarr_sys::usual_oom_score(pid)
            {
                // It has ended already, which is found out below.
                tracing::debug!(%error, pid, "OOM score of a shim");
            }
            Ok(child)
        };
        let mut child = tokio::task::spawn_blocking(start)
            .await
            .unwrap_or_else(|panic| Err(panic.into()))
            .map_err(|error| failed("start", error))?;
        self.restore_limit(child.id());
        let lifeline = child.stdin.take();
        let mut stdout = child.stdout.take();
        // Somebody has to reap it, whenever it ends.
        tokio::spawn(async move { child.wait().await });
        let ready = async {
            let mut word = [0; 6];
            match &mut stdout {
                Some(stdout) => stdout.read_exact(&mut word).await.map(|_| word),
                None => Ok(word),
            }
        };
        match tokio::time::timeout(READY, ready).await {
            Ok(Ok(word)) if &word == b"ready\n" => {}
            Ok(Ok(word)) => {
                let word = String::from_utf8_lossy(&word).into_owned();
                return Err(Error::internal(format!(
                    "shim {} said {word:?} instead of being ready",
                    self.program.display()
                )));
            }
            Ok(Err(error)) => return Err(failed("ended before it was ready", error)),
            Err(_) => {
                return Err(Error::internal(format!(
                    "shim {} was not ready within {READY:?}",
                    self.program.display()
                )));
            }
        }
        let task = Ttrpc::connect(&socket)
            .await
            .map_err(|error| Error::internal(format!("shim at {}: {error}", socket.display())))?;
        Ok(Shim { task, socket, lifeline, taken: AtomicU32::new(0) })
    }
}

//! One task: a container with its first process and its execs.
//!
//! ```text
//!          Create            Start              end of the first process
//!   (none) ─────▶ created ─────────▶ running ─────────────────────────▶ stopped ──Delete──▶ (none)
//!                    │                │  ▲                                ▲
//!                    │        Pause ▼ │  │ Resume                         │
//!                    │                paused ───────SIGKILL───────────────┤
//!                    └──────────── Start fails, SIGKILL ──────────────────┘
//! ```
//!
//! A first process may end before `Start`: with knarrd, where its network is made between
//! the two. That end waits for `Start` (or `Kill`, or `Delete`), and so does what was said
//! before it: whoever attaches in between hears it, `Start` says why where it is to say so,
//! and until then the process is not reaped, so that its number is nobody else's.
//!
//! The end of the first process, in order: everything else in the cgroup is
//! killed (a grandchild may hold the pipes); execs report; what is left in the
//! pipes goes to the log and to the attached clients, whose connections close;
//! `exit.json` is renamed into place; `Wait` answers.
//!
//! The calls into the sandbox block for a few milliseconds and are made on the
//! shim's only thread on purpose: the kernel ties `PR_SET_PDEATHSIG` to the
//! thread that made the process, so a helper thread's end would end containers.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use containerd_shim_protos::events::task as events;
use jiff::Timestamp;
use knarr_model::{
    Signal,
    task::{ExitRecord, InitRecord, TaskStats, WASM_ANNOTATION},
};
use knarr_sandbox::{Child, Container, CreateOptions, Created, Manner, RootfsMount};
use oci_spec::runtime as oci;
use tokio::{net::UnixListener, time::timeout};
use tokio_util::task::TaskTracker;

use crate::{
    attach,
    error::{Error, Result},
    netdev,
    options::Options,
    process::{Exit, Process},
    publish::{Event, Publisher},
    records,
    service::timestamp,
    stdio::{Addresses, Owner},
    streams::{Streams, lock},
};

/// Everybody who could hold the pipes was killed; it only remains for the
/// kernel to do it.
const PATIENCE_INIT: Duration = Duration::from_secs(10);
/// An exec's children live on with its pipes; dockerd waits as long.
const PATIENCE_EXEC: Duration = Duration::from_secs(2);

/// What a task is made of.
pub(crate) struct NewTask<'a> {
    pub(crate) id: &'a str,
    pub(crate) bundle: &'a Path,
    pub(crate) rootfs: &'a [RootfsMount],
    pub(crate) addresses: Addresses,
    /// The shim's socket, for `init.json`.
    pub(crate) socket: &'a Path,
    /// Clients that are attached to any task.
    pub(crate) clients: &'a TaskTracker,
    /// containerd's namespace; none with knarrd.
    pub(crate) namespace: Option<&'a str>,
    /// Who tells containerd of ends.
    pub(crate) publisher: Option<&'a Publisher>,
    /// With what a Wasm program is launched with, where it is one.
    pub(crate) spec: &'a oci::Spec,
    /// containerd's, of the runtime.
    pub(crate) options: Options,
}

/// One task.
#[derive(Debug)]
pub(crate) struct Task {
    pub(crate) id: String,
    pub(crate) bundle: PathBuf,
    pub(crate) init: Arc<Process>,
    execs: Mutex<HashMap<String, Arc<Process>>>,
    life: Mutex<Life>,
    paused: AtomicBool,
    /// SIGKILL was sent: its end is only a matter of time.
    killed: AtomicBool,
    wasm: bool,
    /// containerd's.
    namespace: Option<String>,
    publisher: Option<Publisher>,
    attach: Mutex<Option<tokio::task::AbortHandle>>,
}

#[derive(Debug)]
enum Life {
    Created(Box<Created>),
    Running(Box<Container>),
    /// A start has failed; the sandbox has removed everything.
    Gone,
}

/// Where a process is, for `State`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Created,
    Running,
    Paused,
    Stopped,
}

impl Task {
    /// Makes the container; its first process waits for [`start`](Self::start).
    pub(crate) fn create(new: NewTask<'_>) -> Result<Arc<Self>> {
        let spec = new.spec;
        let size = spec.process().as_ref().and_then(|process| process.console_size());
        let wasm = spec.annotations().as_ref().is_some_and(|all| all.contains_key(WASM_ANNOTATION));
        let owner = new.namespace.map(|namespace| Owner { namespace, id: new.id });
        let init = Process::new("", new.addresses, None, box_size(size), owner)?;
        // containerd's clients attach to FIFOs before, and hear of an end at any time.
        if new.namespace.is_none() {
            init.streams.hold();
        }
        let options = CreateOptions {
            id: new.id,
            bundle: new.bundle,
            spec,
            rootfs: new.rootfs,
            stdio: init.stdio()?,
        };
        // To knarrd, which makes the network between the two, an error of create
        // and one of start are the same; containerd's clients tell them apart.
        let manner = Manner {
            hasty: new.namespace.is_none(),
            no_pivot: new.options.no_pivot_root,
            no_new_keyring: new.options.no_new_keyring,
            rootless: new.namespace.is_some() && knarr_sandbox::rootless::contained(),
            ..Manner::default()
        };
        let mut created = knarr_sandbox::create_with(options, manner)?;
        let child = created.container().init().clone();
        init.started(child.clone(), created.console())?;
        let record = InitRecord {
            pid: child.pid(),
            start_time: child.start_time(),
            shim_pid: std::process::id(),
            socket: new.socket.to_owned(),
            cgroup: created.container().cgroup().path().to_owned(),
        };
        records::write(new.bundle, records::INIT, &record)
            .map_err(|error| Error::internal("write init.json", error))?;
        let task = Arc::new(Self {
            id: new.id.to_owned(),
            bundle: new.bundle.to_owned(),
            init,
            execs: Mutex::default(),
            life: Mutex::new(Life::Created(Box::new(created))),
            paused: AtomicBool::new(false),
            killed: AtomicBool::new(false),
            wasm,
            namespace: new.namespace.map(str::to_owned),
            publisher: new.publisher.cloned(),
            attach: Mutex::default(),
        });
        // containerd's clients attach through its FIFOs.
        if new.namespace.is_none() {
            task.listen(new.clients)
                .map_err(|error| Error::internal("listen on attach.sock", error))?;
        }
        tokio::spawn(task.clone().supervise_init(child));
        Ok(task)
    }

    fn listen(self: &Arc<Self>, clients: &TaskTracker) -> std::io::Result<()> {
        let listener = UnixListener::from_std(attach::listen(&self.attach_path())?)?;
        let serving = tokio::spawn(attach::serve(listener, Arc::downgrade(self), clients.clone()));
        *lock(&self.attach) = Some(serving.abort_handle());
        Ok(())
    }

    fn attach_path(&self) -> PathBuf {
        self.bundle.join("attach.sock")
    }

    /// Lets the first process become the program.
    pub(crate) fn start(&self) -> Result<u32> {
        let mut life = lock(&self.life);
        let created = match std::mem::replace(&mut *life, Life::Gone) {
            Life::Created(created) if self.init.exit().is_none() => created,
            other => {
                let early = matches!(other, Life::Created(_));
                *life = other;
                return Err(Error::precondition(if early {
                    "the container has ended before it was started"
                } else {
                    "task was started already"
                }));
            }
        };
        self.init.streams.flow();
        match created.start() {
            Ok(container) => {
                let pid = container.init().pid();
                *life = Life::Running(Box::new(container));
                Ok(pid)
            }
            Err(error) => {
                self.init.start_failed(error.exit_code());
                Err(error.into())
            }
        }
    }

    /// Registers another process, which [`start_exec`](Self::start_exec) starts.
    pub(crate) fn add_exec(
        &self,
        exec: &str,
        addresses: Addresses,
        spec: oci::Process,
    ) -> Result<()> {
        if self.wasm {
            return Err(Error::unimplemented(
                "exec is not supported in a Wasm container: there is one program in it",
            ));
        }
        let mut execs = lock(&self.execs);
        if execs.contains_key(exec) {
            return Err(Error::exists(format!("exec {exec} already exists")));
        }
        let size = box_size(spec.console_size());
        let owner = self.namespace.as_deref().map(|namespace| Owner { namespace, id: exec });
        let process = Process::new(exec, addresses, Some(spec), size, owner)?;
        execs.insert(exec.to_owned(), process);
        Ok(())
    }

    /// Starts a process that was registered.
    pub(crate) fn start_exec(self: &Arc<Self>, exec: &str) -> Result<u32> {
        let process = self.process(exec)?;
        match self.phase(&self.init) {
            Phase::Running => {}
            Phase::Paused => {
                return Err(Error::precondition(format!("container {} is paused", self.id)));
            }
            _ => return Err(Error::precondition(format!("container {} is not running", self.id))),
        }
        let Some(spec) = process.take_spec() else {
            return Err(Error::precondition("exec was started already"));
        };
        let result = process.stdio().and_then(|stdio| {
            let (child, console) =
                self.with(|container| container.exec(&spec, stdio)).map_err(|(code, error)| {
                    process.start_failed(code);
                    error
                })?;
            process.started(child.clone(), console)?;
            Ok(child)
        });
        match result {
            Ok(child) => {
                let pid = child.pid();
                tokio::spawn(self.clone().supervise_exec(process, child));
                Ok(pid)
            }
            Err(error) => {
                tokio::spawn(give_up_exec(process));
                Err(error)
            }
        }
    }

    /// The first process (empty id) or an exec.
    pub(crate) fn process(&self, exec: &str) -> Result<Arc<Process>> {
        if exec.is_empty() {
            return Ok(self.init.clone());
        }
        let missing = || Error::not_found(format!("no such exec: {exec}"));
        lock(&self.execs).get(exec).cloned().ok_or_else(missing)
    }

    /// Where a process is.
    pub(crate) fn phase(&self, process: &Process) -> Phase {
        let started = match &*lock(&self.life) {
            Life::Created(_) => !process.exec.is_empty(),
            _ => true,
        };
        match process.child() {
            _ if process.exit().is_some() => Phase::Stopped,
            Some(_) if self.paused.load(Ordering::Relaxed) => Phase::Paused,
            Some(_) if started => Phase::Running,
            _ => Phase::Created,
        }
    }

    /// Sends a signal to a process, or to all of them.
    pub(crate) fn kill(&self, exec: &str, signal: Signal, all: bool) -> Result<()> {
        let process = self.process(exec)?;
        if all && exec.is_empty() {
            if self.init.exit().is_some() {
                return Err(Error::not_found("process already finished: not found"));
            }
            if signal == Signal::KILL {
                self.killed.store(true, Ordering::Relaxed);
                self.thaw();
                self.init.streams.flow();
            }
            return self.kill_all(signal);
        }
        process.kill(signal)?;
        if signal == Signal::KILL {
            // A frozen process (cgroup v1) does not even die.
            self.thaw();
            if exec.is_empty() {
                self.killed.store(true, Ordering::Relaxed);
                self.init.streams.flow();
            }
        }
        Ok(())
    }

    /// Everybody in the container's group, and whom we started there: who has moved to
    /// another group is found by his pidfd.
    fn kill_all(&self, signal: Signal) -> Result<()> {
        let pids = self.pids().unwrap_or_default();
        let children: Vec<Child> = lock(&self.execs).values().flat_map(|e| e.child()).collect();
        let told = children
            .iter()
            .filter(|child| !pids.contains(&child.pid()))
            .try_for_each(|child| child.kill(signal));
        let all = |container: &Container| match signal {
            Signal::KILL => container.kill_all(),
            other => container.signal_all(other),
        };
        self.with(all).map_err(|(_, error)| error)?;
        Ok(told?)
    }

    fn thaw(&self) {
        if self.paused.swap(false, Ordering::Relaxed)
            && let Err((_, error)) = self.with(Container::resume)
        {
            tracing::warn!("resume {} to kill it: {error}", self.id);
        }
    }

    /// Freezes the container.
    pub(crate) fn pause(&self) -> Result<()> {
        match self.phase(&self.init) {
            Phase::Running => {}
            Phase::Paused => return Ok(()),
            _ => return Err(Error::precondition(format!("container {} is not running", self.id))),
        }
        self.with(Container::pause).map_err(|(_, error)| error)?;
        self.paused.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Thaws it.
    pub(crate) fn resume(&self) -> Result<()> {
        if self.init.exit().is_some() {
            return Err(Error::precondition(format!("container {} is not running", self.id)));
        }
        self.with(Container::resume).map_err(|(_, error)| error)?;
        self.paused.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// Its processes, in our own pid namespace.
    pub(crate) fn pids(&self) -> Result<Vec<u32>> {
        self.with(Container::pids).map_err(|(_, error)| error)
    }

    /// What it uses.
    pub(crate) fn stats(&self) -> Result<TaskStats> {
        if self.init.exit().is_some() {
            return Err(Error::precondition(format!("container {} is not running", self.id)));
        }
        let mut stats = self.with(Container::stats).map_err(|(_, error)| error)?;
        stats.networks = netdev::counters(self.init.pid());
        Ok(stats)
    }

    /// Changes its limits.
    pub(crate) fn update(&self, resources: &oci::LinuxResources) -> Result<()> {
        self.with(|container| container.update(resources)).map_err(|(_, error)| error)
    }

    /// Whether this is one of the processes that we reap by name.
    pub(crate) fn owns(&self, pid: u32) -> bool {
        self.init.pid() == pid || lock(&self.execs).values().any(|exec| exec.pid() == pid)
    }

    /// Forgets an exec that has ended or was never started.
    pub(crate) fn delete_exec(&self, exec: &str) -> Result<(u32, Option<Exit>)> {
        let process = self.process(exec)?;
        if process.child().is_some() && process.exit().is_none() {
            return Err(Error::precondition(format!("exec {exec} is still running")));
        }
        lock(&self.execs).remove(exec);
        if process.exit().is_none() {
            tokio::spawn(give_up_exec(process.clone()));
        }
        Ok((process.pid(), process.exit()))
    }

    /// Removes the container. It must have ended, or be about to: killed, failed
    /// to start, or never started.
    pub(crate) async fn delete(&self) -> Result<(u32, Exit)> {
        if self.init.exit().is_none() {
            let running = matches!(&*lock(&self.life), Life::Running(_));
            if running && !self.killed.load(Ordering::Relaxed) {
                return Err(Error::precondition(format!("container {} is still running", self.id)));
            }
            if matches!(&*lock(&self.life), Life::Created(_)) {
                // It may just have ended by itself.
                let _ = self.init.kill(Signal::KILL);
                self.init.streams.flow();
            }
        }
        let exit = self.init.wait().await?;
        match &mut *lock(&self.life) {
            Life::Gone => {}
            Life::Running(container) => container.delete()?,
            created @ Life::Created(_) => {
                if let Life::Created(created) = &*created {
                    created.container().delete()?;
                }
                *created = Life::Gone;
            }
        }
        if let Some(serving) = lock(&self.attach).take() {
            serving.abort();
        }
        match std::fs::remove_file(self.attach_path()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!("remove attach.sock: {error}");
            }
            _ => {}
        }
        Ok((self.init.pid(), exit))
    }

    /// Calls the sandbox; with an error comes the exit code it stands for.
    fn with<T>(
        &self,
        call: impl FnOnce(&Container) -> std::result::Result<T, knarr_sandbox::Error>,
    ) -> std::result::Result<T, (u32, Error)> {
        let life = lock(&self.life);
        let container = match &*life {
            Life::Created(created) => created.container(),
            Life::Running(container) => container,
            Life::Gone => {
                let message = format!("container {} is not running", self.id);
                return Err((128, Error::precondition(message)));
            }
        };
        call(container).map_err(|error| (error.exit_code(), error.into()))
    }

    async fn supervise_init(self: Arc<Self>, child: Child) {
        self.init.streams.flowing().await;
        let code = self.init.ended(&child).await;
        let at = Timestamp::now();
        self.thaw();
        let oom_killed = match &*lock(&self.life) {
            Life::Created(created) => kill_rest(created.container()),
            Life::Running(container) => kill_rest(container),
            Life::Gone => false,
        };
        let execs: Vec<_> = lock(&self.execs).values().cloned().collect();
        for child in execs.iter().filter_map(|exec| exec.child()) {
            // One that has left the group, where no pid namespace ends with the first process.
            let _ = child.kill(Signal::KILL);
        }
        let reported = async {
            for exec in execs.iter().filter(|exec| exec.child().is_some()) {
                let _ = exec.wait().await;
            }
        };
        if timeout(PATIENCE_INIT, reported).await.is_err() {
            tracing::warn!("execs of {} outlive it", self.id);
        }
        self.init.streams.drain(PATIENCE_INIT).await;
        let record = ExitRecord { code, finished_at: records::rfc3339(at), oom_killed };
        if let Err(error) = records::write(&self.bundle, records::EXIT, &record) {
            // The answer to `Wait` still tells; only a reader that comes after
            // our death will not know.
            tracing::error!("write exit.json of {}: {error}", self.id);
        }
        if oom_killed && let Some(publisher) = &self.publisher {
            let container_id = self.id.clone();
            publisher.publish(&Event::Oom(events::TaskOOM { container_id, ..Default::default() }));
        }
        self.exited(&self.init, Exit { code, at });
    }

    async fn supervise_exec(self: Arc<Self>, process: Arc<Process>, child: Child) {
        let code = process.ended(&child).await;
        let at = Timestamp::now();
        // Where nobody listens there is nothing to wait for.
        let listened = process.addresses.keeps_output() || process.streams.has_clients();
        let patience = if listened { PATIENCE_EXEC } else { Duration::ZERO };
        process.streams.drain(patience).await;
        self.exited(&process, Exit { code, at });
    }

    /// Tells containerd, then those who wait.
    fn exited(&self, process: &Process, exit: Exit) {
        if let Some(publisher) = &self.publisher {
            let id = if process.exec.is_empty() { &self.id } else { &process.exec };
            publisher.publish(&Event::Exit(events::TaskExit {
                container_id: self.id.clone(),
                id: id.clone(),
                pid: process.pid(),
                exit_status: exit.code,
                exited_at: timestamp(Some(exit)),
                ..Default::default()
            }));
        }
        process.publish(exit);
    }
}

impl attach::Lookup for Task {
    fn streams(&self, exec: &str) -> Option<Arc<Streams>> {
        self.process(exec).ok().map(|process| process.streams.clone())
    }
}

/// Kills whoever is left in the cgroup; whether the OOM killer has been there.
fn kill_rest(container: &Container) -> bool {
    let oom_killed = container.oom_killed();
    if let Err(error) = container.kill_all() {
        tracing::error!("kill what is left of the container: {error}");
    }
    oom_killed
}

/// An exec that never came to be: its clients must not wait for it.
async fn give_up_exec(process: Arc<Process>) {
    process.streams.drain(Duration::ZERO).await;
    let code = process.failure().unwrap_or(128);
    process.publish(Exit { code, at: Timestamp::now() });
}

fn box_size(size: Option<oci::Box>) -> (u16, u16) {
    let clamp = |n: u64| u16::try_from(n).unwrap_or(u16::MAX);
    size.map_or((0, 0), |size| (clamp(size.height()), clamp(size.width())))
}

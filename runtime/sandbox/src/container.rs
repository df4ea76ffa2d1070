//! A container's life: created, running, gone.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
};

use knarr_model::{
    Signal,
    task::{InterfaceStats, TaskStats},
};
use oci_spec::runtime::{LinuxResources, Process};
use rustix::{
    fs::{Mode, OFlags},
    process::{WaitId, WaitIdOptions},
};

use crate::{
    Cgroup, Child, CreateOptions, Error, Failure, INIT_ANNOTATION, Stdio,
    launch::{Birth, Launched, launch, oom_score, pid_namespace},
    ops::{Ops, Wish},
    plan::{self, Context, Identity, Namespaces, PidNamespace, annotation},
    seccomp::{self, Filter},
    user, wishes,
};

/// A container whose first process waits for [`start`](Created::start): its
/// namespaces, mounts and cgroup are made, its program is known to exist.
/// Dropping it kills the process and removes what was made.
#[derive(Debug)]
pub struct Created {
    /// None once it has been started.
    parts: Option<(Container, Launched, Ops)>,
    console: Option<OwnedFd>,
}

/// A container whose program has been started.
#[derive(Debug)]
pub struct Container {
    id: String,
    init: Child,
    cgroup: Cgroup,
    filter: Option<Arc<Filter>>,
    seccomp: seccomp::Choice,
    /// CLONE_NEW* bits that an exec joins.
    kinds: u32,
    wasm: bool,
}

/// Removes the cgroup, and kills what is in it, unless everything went well.
struct Undo<'a> {
    cgroup: Option<&'a Cgroup>,
    child: Option<Child>,
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        if let Some(child) = &self.child {
            let _ = child.kill(Signal::KILL);
            let _ = child.wait_blocking();
        }
        if let Some(cgroup) = self.cgroup {
            let _ = cgroup.delete();
        }
    }
}

/// Makes the container: namespaces, cgroup, root filesystem, mounts. Its first
/// process is `knarr-init`, which waits.
pub fn create(options: CreateOptions<'_>) -> Result<Created, Error> {
    let CreateOptions { id, bundle, spec, rootfs, stdio } = options;
    let process = spec
        .process()
        .as_ref()
        .ok_or_else(|| Error::new(Failure::InvalidSpec, "the specification has no process"))?;
    let linux = spec.linux().as_ref().ok_or_else(|| {
        Error::new(Failure::InvalidSpec, "the specification has no linux section")
    })?;
    if spec.hooks().as_ref().is_some_and(has_hooks) {
        return Err(Error::new(Failure::NotSupported, "hooks are not supported"));
    }
    let namespaces = Namespaces::of(spec)?;
    let wasm = plan::is_wasm(spec);
    let seccomp = seccomp::Choice::of(spec)?;
    let filter = seccomp.filter(process)?;

    let path = linux
        .cgroups_path()
        .clone()
        .filter(|path| !path.as_os_str().is_empty())
        .unwrap_or_else(|| PathBuf::from("/knarr").join(id));
    let cgroup = Cgroup::create(&path)?;
    let mut undo = Undo { cgroup: Some(&cgroup), child: None };

    let terminal = terminal(&stdio);
    let (stdio, host_console) = match (wasm, terminal) {
        (true, Some((rows, cols))) => wishes::terminal(rows, cols)?,
        _ => (stdio, None),
    };
    // From here on the kernel makes the child on another processor.
    let joined = pid_namespace(&namespaces)?;
    let birth = Birth {
        created: namespaces.created,
        pid_namespace: joined.as_ref().map(AsFd::as_fd),
        cgroup: cgroup.born_in(),
    };
    let mut launched = launch(&birth, &stdio)?;
    undo.child = Some(launched.child.clone());

    let root = wishes::root(rootfs, spec, bundle)?;
    let identity = identity(Some(root.as_fd()), process)?;
    let ops = plan::create(
        spec,
        &Context {
            id,
            identity: &identity,
            filter: filter.as_deref(),
            bound: !matches!(namespaces.pid, PidNamespace::Joined(_)),
            available: available()?,
            cgroups: &cgroup.visible(),
            terminal,
            init: annotation(spec, INIT_ANNOTATION) == Some("true"),
        },
    )?;
    drop(stdio);
    if let Some(resources) = linux.resources() {
        cgroup.limit(resources, true)?;
    } else {
        cgroup.limit(&LinuxResources::default(), true)?;
    }
    cgroup.place(launched.child.pid(), true)?;
    oom_score(&launched.child, process.oom_score_adj())?;
    let mut root = Some(root);
    launched.send(&ops, |wish| match wish {
        Wish::Root => root.take().map(Ok),
        _ => None,
    })?;
    launched.await_ready(&ops)?;
    let console = launched.console().or(host_console);

    undo.child = None;
    undo.cgroup = None;
    drop(undo);
    let container = Container {
        id: id.to_owned(),
        init: launched.child.clone(),
        cgroup,
        filter,
        seccomp,
        kinds: exec_kinds(&namespaces),
        wasm,
    };
    Ok(Created { parts: Some((container, launched, ops)), console })
}

fn has_hooks(hooks: &oci_spec::runtime::Hooks) -> bool {
    [
        hooks.prestart(),
        hooks.create_runtime(),
        hooks.create_container(),
        hooks.start_container(),
        hooks.poststart(),
        hooks.poststop(),
    ]
    .into_iter()
    .any(|list| list.as_ref().is_some_and(|list| !list.is_empty()))
}

/// What an exec joins: everything that the container does not share with us.
/// Joining what is shared already is harmless for all but the pid namespace,
/// which the exec is born in.
fn exec_kinds(namespaces: &Namespaces) -> u32 {
    let joined = namespaces.joined.iter().fold(0, |kinds, (kind, _)| kinds | kind);
    let kinds = namespaces.created as u32 | namespaces.unshared | joined;
    kinds & !plan::PID
}

fn terminal(stdio: &Stdio) -> Option<(u16, u16)> {
    match stdio {
        Stdio::Terminal { rows, cols } => Some((*rows, *cols)),
        Stdio::Fds { .. } => None,
    }
}

/// Who a process is: by name where the specification has one.
fn identity(root: Option<BorrowedFd<'_>>, process: &Process) -> Result<Identity, Error> {
    let user = process.user();
    let additional = user.additional_gids().as_deref().unwrap_or_default();
    match (user.username().as_deref().filter(|name| !name.is_empty()), root) {
        (Some(name), Some(root)) => user::resolve(root, name, additional),
        (Some(_), None) => {
            Err(Error::new(Failure::Gone, "the container has no root filesystem any more"))
        }
        (None, root) => {
            let has_home = process
                .env()
                .as_ref()
                .is_some_and(|env| env.iter().any(|entry| entry.starts_with("HOME=")));
            user::numeric(root.filter(|_| !has_home), user.uid(), user.gid(), additional)
        }
    }
}

impl Created {
    fn parts(&self) -> &(Container, Launched, Ops) {
        self.parts.as_ref().expect("only start() and drop() take them")
    }

    /// The first process, in our own pid namespace.
    pub fn pid(&self) -> u32 {
        self.container().init.pid()
    }

    /// The container as it is, for its pidfd and cgroup.
    pub fn container(&self) -> &Container {
        &self.parts().0
    }

    /// The master side of the terminal, where one was asked for; once.
    pub fn console(&mut self) -> Option<OwnedFd> {
        self.console.take()
    }

    /// Lets the first process become the program; returns when `execve` has
    /// succeeded. On failure everything is removed.
    pub fn start(mut self) -> Result<Container, Error> {
        let (_, launched, ops) = self.parts.as_mut().expect("taken only below");
        launched.go()?;
        launched.await_exec(ops)?;
        let (container, ..) = self.parts.take().expect("taken only here");
        Ok(container)
    }
}

impl Drop for Created {
    fn drop(&mut self) {
        if let Some((container, ..)) = self.parts.take() {
            let _ = container.init.kill(Signal::KILL);
            let _ = container.init.wait_blocking();
            let _ = container.delete();
        }
    }
}

impl Container {
    /// The first process.
    pub fn init(&self) -> &Child {
        &self.init
    }

    /// Its control group.
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// Runs another process in it. The second value is the master side of its
    /// terminal, where one was asked for.
    pub fn exec(&self, process: &Process, stdio: Stdio) -> Result<(Child, Option<OwnedFd>), Error> {
        if self.wasm {
            let text = "a wasm container has no other programs to run";
            return Err(Error::new(Failure::NotSupported, text));
        }
        // The number is ours as long as we have not reaped it, so its files in
        // procfs are those of the first process.
        let gone = || Error::new(Failure::Gone, format!("container {} is not running", self.id));
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = format!("/proc/{}/root", self.init.pid());
        let root = rustix::fs::open(root, flags, Mode::empty()).map_err(|_| gone())?;
        if self.has_ended() {
            return Err(gone());
        }
        if self.cgroup.is_paused() {
            // Docker's words.
            let text =
                format!("Container {} is paused, unpause the container before exec", self.id);
            return Err(Error::new(Failure::Gone, text));
        }
        let identity = identity(Some(root.as_fd()), process)?;
        let filter = self.seccomp.filter_again(process, self.filter.as_ref())?;
        let ops = plan::exec(
            process,
            &Context {
                id: &self.id,
                identity: &identity,
                filter: filter.as_deref(),
                bound: false,
                available: available()?,
                cgroups: &[],
                terminal: terminal(&stdio),
                init: false,
            },
            self.kinds,
        )?;
        // It is moved into its cgroup rather than born there: in one that is being
        // frozen it would never execute, and we would wait for that in the kernel.
        let birth = Birth { created: 0, pid_namespace: Some(self.init.pidfd()), cgroup: None };
        let mut launched = launch(&birth, &stdio)
            .map_err(|error| if self.has_ended() { gone() } else { error })?;
        drop(stdio);
        let mut undo = Undo { cgroup: None, child: Some(launched.child.clone()) };
        self.cgroup.place(launched.child.pid(), false)?;
        oom_score(&launched.child, process.oom_score_adj())?;
        launched.send(&ops, |wish| match wish {
            Wish::Container => Some(
                self.init
                    .pidfd()
                    .try_clone_to_owned()
                    .map_err(|error| Error::system("copy a descriptor", error)),
            ),
            _ => None,
        })?;
        launched.await_exec(&ops)?;
        undo.child = None;
        Ok((launched.child.clone(), launched.console()))
    }

    /// Whether the first process has ended, reaped or not.
    fn has_ended(&self) -> bool {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        !matches!(rustix::process::waitid(WaitId::PidFd(self.init.pidfd()), options), Ok(None))
    }

    /// Sends a signal to the first process.
    pub fn kill(&self, signal: Signal) -> Result<(), Error> {
        self.init.kill(signal)
    }

    /// Kills every process of the container's cgroup, also when it is paused.
    pub fn kill_all(&self) -> Result<(), Error> {
        self.cgroup.kill_all()
    }

    /// Freezes it; success means that it is frozen.
    pub fn pause(&self) -> Result<(), Error> {
        self.cgroup.pause()
    }

    /// Thaws it.
    pub fn resume(&self) -> Result<(), Error> {
        self.cgroup.resume()
    }

    /// What it uses.
    pub fn stats(&self) -> Result<TaskStats, Error> {
        let mut stats = self.cgroup.stats()?;
        let path = format!("/proc/{}/net/dev", self.init.pid());
        if let Ok(text) = std::fs::read_to_string(path) {
            stats.networks = text.lines().filter_map(interface).collect();
        }
        Ok(stats)
    }

    /// Its processes, in our own pid namespace.
    pub fn pids(&self) -> Result<Vec<u32>, Error> {
        self.cgroup.pids()
    }

    /// Whether the kernel's OOM killer has killed a process of it.
    pub fn oom_killed(&self) -> bool {
        self.cgroup.oom_kills() > 0
    }

    /// Changes its limits.
    pub fn update(&self, resources: &LinuxResources) -> Result<(), Error> {
        self.cgroup.limit(resources, false)
    }

    /// Kills what is left of it and removes its cgroup. Idempotent.
    pub fn delete(&self) -> Result<(), Error> {
        self.cgroup.delete()
    }
}

/// The capabilities that we have.
fn available() -> Result<u64, Error> {
    rustix::thread::capabilities(None)
        .map(|sets| sets.permitted.bits())
        .map_err(|errno| Error::system("look up our own capabilities", errno))
}

/// A line of `/proc/net/dev`; loopback does not count.
fn interface(line: &str) -> Option<(String, InterfaceStats)> {
    let (name, numbers) = line.split_once(':')?;
    let name = name.trim();
    let numbers: Vec<u64> =
        numbers.split_ascii_whitespace().filter_map(|word| word.parse().ok()).collect();
    if name == "lo" || numbers.len() < 16 {
        return None;
    }
    let stats = InterfaceStats {
        rx_bytes: numbers[0],
        rx_packets: numbers[1],
        rx_errors: numbers[2],
        rx_dropped: numbers[3],
        tx_bytes: numbers[8],
        tx_packets: numbers[9],
        tx_errors: numbers[10],
        tx_dropped: numbers[11],
    };
    Some((name.to_owned(), stats))
}

/// Removes what a container left behind whose shim is gone: its processes and
/// its control group. Idempotent.
pub fn clean_up(cgroup: &Path) -> Result<(), Error> {
    Cgroup::open(cgroup)?.delete()
}

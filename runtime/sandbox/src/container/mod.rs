//! A container's life: created, running, gone.

mod create;
mod join;

use std::{
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
};

pub use create::{Created, Left, create, create_with};
use knarr_model::{
    Signal,
    task::{GROUPS_ANNOTATION, InterfaceStats, TaskStats},
};
use knarr_sys::read;
use oci_spec::runtime::{LinuxResources, Spec};
use rustix::fs::{Mode, OFlags};

use crate::{
    Cgroup, Child, Error, Failure,
    cgroup::PATIENCE,
    hooks::{Hooks, Moment},
    launch::Launched,
    ops::Ops,
    plan::{self, Namespaces, PidNamespace, annotation},
    rootless,
    seccomp::{self, Filter},
    systemd::Unit,
    teller::Teller,
    wishes,
};

/// A container whose program has been started.
#[derive(Debug)]
pub struct Container {
    id: String,
    init: Child,
    cgroup: Cgroup,
    filter: Option<Arc<Filter>>,
    seccomp: seccomp::Choice,
    /// What systemd knows its group as, where that made it.
    unit: Option<Box<Unit>>,
    /// CLONE_NEW* bits that an exec joins.
    kinds: u32,
    /// Its first process is that of a pid namespace.
    rules_pids: bool,
    /// Supplementary groups by name, which every process has.
    groups: Vec<String>,
    habits: plan::Habits,
    wasm: bool,
    /// Its specification is an operator's.
    foreign: bool,
    hooks: Option<Box<Hooks>>,
    teller: Option<Arc<Teller>>,
}

/// Takes away the mounts of a container that had none of its own: they lie on
/// its root filesystem in the host's namespace.
fn unmount_root(spec: &Spec, bundle: &Path) {
    if Namespaces::of(spec).is_ok_and(|namespaces| namespaces.shares_mounts)
        && let Ok(path) = wishes::root_path(spec, bundle)
    {
        let _ = rustix::mount::unmount(&path, rustix::mount::UnmountFlags::DETACH);
    }
}

/// Where its control group is.
fn cgroup_path(spec: &Spec, id: &str, unit: Option<&Unit>) -> Result<PathBuf, Error> {
    if let Some(unit) = unit {
        return unit.path();
    }
    Ok(named_group(spec).unwrap_or_else(|| PathBuf::from("/knarr").join(id)))
}

/// The control group that the specification names.
fn named_group(spec: &Spec) -> Option<PathBuf> {
    let given = spec.linux().as_ref().and_then(|linux| linux.cgroups_path().clone());
    given.filter(|path| !path.as_os_str().is_empty())
}

/// Kills what is left in a group and removes it, and systemd's unit of it.
fn delete(cgroup: &Cgroup, unit: Option<&Unit>) -> Result<(), Error> {
    let Some(unit) = unit else { return cgroup.delete() };
    // systemd would first ask the processes to end.
    let killed = cgroup.kill_all();
    let stopped = unit.stop();
    killed.and(stopped).and(cgroup.delete())
}

/// What an exec joins: everything that the container does not share with us.
/// Joining what is shared already is harmless for all but the pid namespace,
/// which the exec is born in.
fn exec_kinds(namespaces: &Namespaces) -> u32 {
    namespaces.all() & !plan::PID
}

/// Whether the first process of the container is that of a pid namespace: the one that is
/// started, and not a child of it.
fn rules_pids(namespaces: &Namespaces) -> bool {
    namespaces.pid == PidNamespace::New && !namespaces.reborn()
}

/// Supplementary groups that the engine knows by name only.
fn group_names(spec: &Spec) -> Vec<String> {
    let names = annotation(spec, GROUPS_ANNOTATION);
    names.map(|names| names.split(',').map(str::to_owned).collect()).unwrap_or_default()
}

impl Container {
    /// A container that another process made; none where its first process has ended.
    pub fn find(id: &str, bundle: &Path, spec: &Spec, left: &Left) -> Result<Option<Self>, Error> {
        let Some(init) = Child::of(left.pid, left.start_time)? else { return Ok(None) };
        let unit = Unit::of(spec, id)?;
        let path = cgroup_path(spec, id, unit.as_deref())?;
        let namespaces = Namespaces::of(spec)?;
        Ok(Some(Self {
            id: id.to_owned(),
            init,
            cgroup: Cgroup::open_where_it_is(&path)?,
            unit,
            filter: None,
            seccomp: seccomp::Choice::of(spec)?,
            kinds: exec_kinds(&namespaces),
            rules_pids: rules_pids(&namespaces),
            groups: group_names(spec),
            habits: plan::Habits::of(spec)?,
            wasm: plan::is_wasm(spec),
            // Only such are left by one process for another.
            foreign: true,
            hooks: Hooks::of(spec, id, bundle)?,
            teller: Teller::of(spec, id, bundle),
        }))
    }

    /// Starts one that was [left](Created::leave), over a connection to its
    /// listener; returns when `execve` has succeeded.
    pub fn start(&self, connection: OwnedFd, left: &Left) -> Result<(), Error> {
        let mut launched = Launched::left(self.init.clone(), connection, self.teller.clone())?;
        let ops = Ops::left(left.plan.clone());
        self.run_to_exec(&mut launched, &ops)
    }

    /// The way from created to running, with the hooks on it.
    fn run_to_exec(&self, launched: &mut Launched, ops: &Ops) -> Result<(), Error> {
        launched.await_ready(ops)?;
        if let Some(hooks) = &self.hooks
            && let Some(process) = hooks.guest()
        {
            self.run_start_hooks(hooks, process)?;
        }
        if ops.begins_by_itself() {
            launched.go_ahead();
        } else {
            launched.go()?;
        }
        launched.await_exec(ops)?;
        match &self.hooks {
            Some(hooks) => hooks.run(Moment::Poststart, Some(self.init.pid()), None),
            None => Ok(()),
        }
    }

    /// The root of its first process, as long as that is there.
    fn root(&self) -> Result<OwnedFd, Error> {
        // The number is ours as long as we have not reaped it, so its files in
        // procfs are those of the first process.
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = format!("/proc/{}/root", self.init.pid());
        let root = rustix::fs::open(root, flags, Mode::empty()).map_err(|_| self.gone())?;
        if self.has_ended() { Err(self.gone()) } else { Ok(root) }
    }

    fn gone(&self) -> Error {
        Error::new(Failure::Gone, format!("container {} is not running", self.id))
    }

    /// The first process.
    pub fn init(&self) -> &Child {
        &self.init
    }

    /// The SECCOMP_FILTER_FLAG_* bits of its filter, where it has one and we made it.
    pub fn seccomp_flags(&self) -> Option<u32> {
        const NEW_LISTENER: u32 = 8;
        let listener = |filter: &Filter| if filter.notifies() { NEW_LISTENER } else { 0 };
        self.filter.as_ref().map(|filter| filter.flags() | listener(filter))
    }

    /// Its control group.
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// Whether the first process has ended, reaped or not.
    fn has_ended(&self) -> bool {
        self.init.has_ended()
    }

    /// Sends a signal to the first process.
    pub fn kill(&self, signal: Signal) -> Result<(), Error> {
        self.init.kill(signal)
    }

    /// Sends a signal to the first process and to everybody in its cgroup.
    pub fn signal_all(&self, signal: Signal) -> Result<(), Error> {
        // It may have moved itself out of its group; nobody is to be told twice.
        let told = match self.cgroup.pids()?.contains(&self.init.pid()) {
            true => Ok(()),
            false => self.init.kill(signal),
        };
        self.cgroup.signal(signal).and(told)
    }

    /// Kills the first process and every process of the container's cgroup, also when it
    /// is paused; success means that they are dead. A group that is empty says nothing of
    /// the first process: it may have moved itself to another one.
    pub fn kill_all(&self) -> Result<(), Error> {
        // The kernel has ended, and waited for, everybody in its pid namespace before it.
        if self.rules_pids && self.init.has_ended() {
            return Ok(());
        }
        let told = self.init.kill(Signal::KILL);
        self.cgroup.kill_all().and(told)?;
        if self.init.dies_within(PATIENCE) {
            return Ok(());
        }
        let text = format!("first process of container {} does not die", self.id);
        Err(Error::new(Failure::System, text))
    }

    /// Whether it is frozen or about to be.
    pub fn is_paused(&self) -> bool {
        self.cgroup.is_paused()
    }

    /// Freezes it; success means that it is frozen.
    pub fn pause(&self) -> Result<(), Error> {
        self.cgroup.pause()?;
        if self.cgroup.pids()?.contains(&self.init.pid()) || self.has_ended() {
            return Ok(());
        }
        let _ = self.cgroup.resume();
        let text = format!(
            "the first process of container {} has moved itself to another control group, \
             which is not the container's to pause",
            self.id
        );
        Err(Error::new(Failure::NotSupported, text))
    }

    /// Thaws it.
    pub fn resume(&self) -> Result<(), Error> {
        self.cgroup.resume()
    }

    /// What it uses.
    pub fn stats(&self) -> Result<TaskStats, Error> {
        let mut stats = self.cgroup.stats()?;
        let path = format!("/proc/{}/net/dev", self.init.pid());
        // Names of interfaces are the container's to choose.
        if let Ok(text) = read::text(path, read::LIST)
            && !self.has_ended()
        {
            stats.networks = text.lines().filter_map(interface).collect();
        }
        Ok(stats)
    }

    /// Its processes, in our own pid namespace.
    pub fn pids(&self) -> Result<Vec<u32>, Error> {
        let first = self.init.pid();
        let mut pids = match self.cgroup.is_anywhere() {
            true => self.cgroup.pids()?,
            false => rootless::neighbours(first)
                .map_err(|error| Error::system("look for its processes", error))?,
        };
        if self.has_ended() {
            // The number may be another's by now, and so may be those beside it.
            match self.cgroup.is_anywhere() {
                true => pids.retain(|pid| *pid != first),
                false => pids.clear(),
            }
        } else if !pids.contains(&first) {
            pids.insert(0, first);
        }
        Ok(pids)
    }

    /// Whether the kernel's OOM killer has killed a process of it.
    pub fn oom_killed(&self) -> bool {
        self.cgroup.oom_kills() > 0
    }

    /// Changes its limits.
    pub fn update(&self, resources: &LinuxResources) -> Result<(), Error> {
        if let Some(unit) = &self.unit {
            unit.set(resources)?;
        }
        self.cgroup.limit(resources, false)
    }

    /// Kills what is left of it and removes its cgroup. Idempotent.
    pub fn delete(&self) -> Result<(), Error> {
        let killed = self.kill_all();
        let deleted = killed.and(delete(&self.cgroup, self.unit.as_deref()));
        let told = self.hooks.as_ref().map(|hooks| hooks.run(Moment::Poststop, None, None));
        deleted.and(told.unwrap_or(Ok(())))
    }
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

/// The control group of a container, made or not.
pub fn cgroup_of(spec: &Spec, id: &str) -> Result<Cgroup, Error> {
    Cgroup::open(&cgroup_path(spec, id, Unit::of(spec, id)?.as_deref())?)
}

/// Removes what a container left behind whose shim is gone: its processes and
/// its control group. Idempotent. The first process is killed by number and start
/// time as well: it may have moved itself to another group.
pub fn clean_up(cgroup: &Path, left: &Left) -> Result<(), Error> {
    let first = Child::of(left.pid, left.start_time)?;
    let told = first.as_ref().map_or(Ok(()), |first| first.kill(Signal::KILL));
    Cgroup::open(cgroup)?.delete().and(told)?;
    match first {
        Some(first) if !first.dies_within(PATIENCE) => {
            let text = format!("process {} does not die", first.pid());
            Err(Error::new(Failure::System, text))
        }
        _ => Ok(()),
    }
}

/// The same for a container whose specification is known, with its poststop hooks.
pub fn clean_up_after(id: &str, bundle: &Path, spec: &Spec) -> Result<(), Error> {
    let unit = Unit::of(spec, id)?;
    let cleaned = cgroup_path(spec, id, unit.as_deref())
        .and_then(|path| Cgroup::open(&path))
        .and_then(|cgroup| delete(&cgroup, unit.as_deref()));
    unmount_root(spec, bundle);
    let told = match Hooks::of(spec, id, bundle)? {
        Some(hooks) => hooks.run(Moment::Poststop, None, None),
        None => Ok(()),
    };
    cleaned.and(told)
}

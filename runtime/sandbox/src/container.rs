//! A container's life: created, running, gone.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
};

use knarr_model::{
    Signal,
    task::{GROUPS_ANNOTATION, InterfaceStats, TaskStats},
};
use oci_spec::runtime::{LinuxResources, Process, Spec};
use rustix::fs::{Mode, OFlags};

use crate::{
    Cgroup, Child, CreateOptions, Error, ExecManner, Failure, INIT_ANNOTATION, Manner, Stdio,
    copyup,
    hooks::{Guest, Hooks, Inside, Moment},
    launch::{Birth, Launched, launch, oom_score, pid_namespace},
    lsm,
    ops::{IdMaps, Ops, Wish},
    plan::{self, Context, Identity, Namespaces, PidNamespace, Style, annotation},
    rootless,
    seccomp::{self, Filter},
    systemd::Unit,
    teller::Teller,
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
    /// What systemd knows its group as, where that made it.
    unit: Option<Box<Unit>>,
    /// CLONE_NEW* bits that an exec joins.
    kinds: u32,
    /// Supplementary groups by name, which every process has.
    groups: Vec<String>,
    habits: plan::Habits,
    wasm: bool,
    /// Its specification is an operator's.
    foreign: bool,
    hooks: Option<Box<Hooks>>,
    teller: Option<Arc<Teller>>,
}

/// Removes the cgroup, and kills what is in it, unless everything went well.
struct Undo<'a> {
    cgroup: Option<&'a Cgroup>,
    unit: Option<&'a Unit>,
    child: Option<Child>,
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        if let Some(child) = &self.child {
            let _ = child.kill(Signal::KILL);
            let _ = child.wait_blocking();
        }
        if let Some(cgroup) = self.cgroup {
            let _ = delete(cgroup, self.unit);
        }
    }
}

/// Makes the container: namespaces, cgroup, root filesystem, mounts. Its first
/// process is `knarr-init`, which waits.
pub fn create(options: CreateOptions<'_>) -> Result<Created, Error> {
    create_with(options, Manner::default())
}

/// The same in another manner than the shim's.
pub fn create_with(options: CreateOptions<'_>, manner: Manner) -> Result<Created, Error> {
    let CreateOptions { id, bundle, spec, rootfs, stdio } = options;
    let process = spec
        .process()
        .as_ref()
        .ok_or_else(|| Error::new(Failure::InvalidSpec, "the specification has no process"))?;
    let linux = spec.linux().as_ref().ok_or_else(|| {
        Error::new(Failure::InvalidSpec, "the specification has no linux section")
    })?;
    let hooks = Hooks::of(spec, id, bundle)?;
    let namespaces = Namespaces::of(spec)?;
    if namespaces.shares_mounts && !manner.foreign {
        let text = "a container needs a mount namespace of its own";
        return Err(Error::new(Failure::InvalidSpec, text));
    }
    let wasm = plan::is_wasm(spec);
    let maps = IdMaps::of_spec(spec, &namespaces)?;
    let seccomp = seccomp::Choice::of(spec)?;
    let mount_label = lsm::mount_label(spec);
    lsm::check(process)?;

    let unit = Unit::of(spec, id)?;
    let path = cgroup_path(spec, id, unit.as_deref())?;
    let adopted;
    // systemd makes its groups around processes only.
    let passing_over = manner.rootless && named_group(spec).is_none();
    let made = match &unit {
        None => Some(Cgroup::create_in(&path, passing_over)?),
        Some(_) => None,
    };
    let mut undo = Undo { cgroup: made.as_ref(), unit: unit.as_deref(), child: None };

    let terminal = terminal(&stdio);
    let (stdio, host_console) = match (wasm, terminal) {
        (true, Some((rows, cols))) => wishes::terminal(rows, cols)?,
        _ => (stdio, None),
    };
    // From here on the kernel makes the child on another processor.
    let joined = pid_namespace(&namespaces)?;
    let contained = rootless::contained();
    let teller = Teller::of(spec, id, bundle);
    let birth = Birth {
        created: namespaces.created,
        visible: contained && maps.is_some(),
        // Who does not wait for it to be ready may look too early.
        network_later: !manner.hasty,
        pid_namespace: joined.as_ref().map(AsFd::as_fd),
        cgroup: made.as_ref().and_then(Cgroup::born_in),
        teller: teller.clone(),
    };
    let mut launched = launch(&birth, &stdio)?;
    undo.child = Some(launched.child.clone());
    if let Some(unit) = &unit {
        unit.start(launched.child.pid(), id, linux.resources().as_ref())?;
        adopted = Some(Cgroup::adopt(&path)?);
    } else {
        adopted = None;
    }
    let cgroup = made.as_ref().or(adopted.as_ref()).expect("one of the two has made it");
    undo.cgroup = Some(cgroup);
    if let Some(maps) = &maps {
        maps.write(launched.child.pid())?;
    }

    // A profile that nobody has compiled yet is compiled meanwhile.
    let filter = seccomp.filter(process)?;
    let holds = hooks.as_ref().is_some_and(|hooks| hooks.holds());
    // Where hooks look for it; and where it can be found again among the host's.
    let placed = holds || namespaces.shares_mounts;
    let known = placed || manner.foreign && !wasm;
    let root_path = known.then(|| wishes::root_path(spec, bundle)).transpose()?;
    let root = wishes::root(rootfs, spec, bundle)?;
    let groups = group_names(spec);
    let identity = identity(Some(root.as_fd()), process, &groups, manner.foreign)?;
    let identity = rootless::identity(identity)?;
    let available = available()?;
    let ops = plan::create(
        spec,
        &Context {
            id,
            identity: &identity,
            filter: filter.as_deref(),
            bound: !manner.outlives && !matches!(namespaces.pid, PidNamespace::Joined(_)),
            available,
            cgroups: cgroup.visible().as_deref(),
            tasks: &cgroup.tasks(),
            terminal,
            init: annotation(spec, INIT_ANNOTATION) == Some("true"),
            maps: maps.clone(),
            mount_label,
            style: Style {
                listens: manner.listener.is_some(),
                inherited: manner.inherited.len() as u32,
                no_pivot: manner.no_pivot,
                uncovered: if manner.no_pivot { wishes::kernel_mounts()? } else { Vec::new() },
                no_new_keyring: manner.no_new_keyring,
                holds,
                root: root_path,
                placed,
                foreign: manner.foreign,
                unprivileged: available & plan::SYS_ADMIN == 0,
                contained,
            },
        },
    )?;
    drop(stdio);
    if let Some(resources) = linux.resources() {
        cgroup.limit(resources, true)?;
    } else {
        cgroup.limit(&LinuxResources::default(), true)?;
    }
    oom_score(&launched.child, process.oom_score_adj())?;
    if manner.foreign {
        crate::affinity::set(&launched.child, None)?;
    }
    let (mut root, mut listener) = (Some(root), manner.listener);
    let mut inherited = manner.inherited.into_iter();
    let copies = ops.wishes.iter().any(|wish| matches!(wish, Wish::Copied { .. }));
    let image = root.as_ref().filter(|_| copies).map(|root| root.try_clone()).transpose();
    let image = image.map_err(|error| Error::system("copy a descriptor", error))?;
    launched.send(&ops, |wish| match wish {
        Wish::Copied { target, attributes, options } => {
            let image = image.as_ref()?;
            Some(copyup::tmpfs(image.as_fd(), target, *attributes, options))
        }
        // An operator has granted it by writing it down.
        Wish::Bind(bind) if manner.foreign => Some(wishes::bind(bind)),
        Wish::Root => root.take().map(Ok),
        Wish::Listener => listener.take().map(Ok),
        Wish::Inherited(_) => inherited.next().map(Ok),
        _ => None,
    })?;
    if namespaces.reborn() {
        launched.await_birth(&ops)?;
        undo.child = Some(launched.child.clone());
    }
    if let Some(hooks) = hooks.as_ref().filter(|hooks| hooks.holds()) {
        launched.await_hold(&ops)?;
        let pid = Some(launched.child.pid());
        hooks.run(Moment::Prestart, pid, None)?;
        hooks.run(Moment::CreateRuntime, pid, None)?;
        let kinds = exec_kinds(&namespaces);
        let inside = Inside { init: &launched.child, kinds, guest: None };
        hooks.run(Moment::CreateContainer, pid, Some(inside))?;
        launched.go()?;
    }
    if !(manner.hasty && hooks.is_none() && terminal.is_none() && !tunes_interfaces(linux)) {
        launched.await_ready(&ops)?;
    }
    let console = launched.console().or(host_console);

    undo.child = None;
    undo.cgroup = None;
    drop(undo);
    let container = Container {
        id: id.to_owned(),
        init: launched.child.clone(),
        cgroup: made.or(adopted).expect("one of the two has made it"),
        unit,
        filter,
        seccomp,
        kinds: exec_kinds(&namespaces),
        groups,
        habits: plan::Habits::of(spec)?,
        wasm,
        foreign: manner.foreign,
        hooks,
        teller,
    };
    Ok(Created { parts: Some((container, launched, ops)), console })
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

/// Whether a sysctl is about interfaces: it must be there before them.
fn tunes_interfaces(linux: &oci_spec::runtime::Linux) -> bool {
    let per_interface = |name: &String| name.contains(".conf.") || name.contains(".neigh.");
    linux.sysctl().as_ref().is_some_and(|all| all.keys().any(per_interface))
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

fn terminal(stdio: &Stdio) -> Option<(u16, u16)> {
    match stdio {
        Stdio::Terminal { rows, cols } => Some((*rows, *cols)),
        Stdio::Fds { .. } => None,
    }
}

/// Supplementary groups that the engine knows by name only.
fn group_names(spec: &Spec) -> Vec<String> {
    let names = annotation(spec, GROUPS_ANNOTATION);
    names.map(|names| names.split(',').map(str::to_owned).collect()).unwrap_or_default()
}

/// Who a process is: by name where the specification has one. The primary group is among
/// the others, unless an operator has written them down.
fn identity(
    root: Option<BorrowedFd<'_>>,
    process: &Process,
    groups: &[String],
    foreign: bool,
) -> Result<Identity, Error> {
    let user = process.user();
    let mut additional = user.additional_gids().clone().unwrap_or_default();
    if let Some(root) = root {
        additional.extend(user::groups(root, groups)?);
    }
    let additional = &additional[..];
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
            let mut identity =
                user::numeric(root.filter(|_| !has_home), user.uid(), user.gid(), additional)?;
            if foreign {
                identity.groups = Some(additional.to_vec());
            }
            Ok(identity)
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

    /// Lets go of a container that waits on its [`listener`](Manner::listener):
    /// it stays as it is, for another process to find and start.
    pub fn leave(mut self) -> Left {
        let (container, launched, ops) = self.parts.take().expect("taken only here and in start");
        let child = &launched.child;
        drop(container);
        Left { pid: child.pid(), start_time: child.start_time(), plan: ops.bytes }
    }

    /// Lets the first process become the program; returns when `execve` has
    /// succeeded. On failure everything is removed.
    pub fn start(mut self) -> Result<Container, Error> {
        let (container, launched, ops) = self.parts.as_mut().expect("taken only below");
        container.run_to_exec(launched, ops)?;
        let (container, ..) = self.parts.take().expect("taken only here");
        Ok(container)
    }
}

/// What another process needs to find a container again, beside its
/// specification: see [`Container::find`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Left {
    /// The first process, in our own pid namespace.
    pub pid: u32,
    /// Field 22 of `/proc/PID/stat`.
    pub start_time: u64,
    /// What it carries out, for the words of an error.
    pub plan: Vec<u8>,
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
    /// A container that another process made; none where its first process has ended.
    pub fn find(id: &str, bundle: &Path, spec: &Spec, left: &Left) -> Result<Option<Self>, Error> {
        let Some(init) = Child::of(left.pid, left.start_time)? else { return Ok(None) };
        let unit = Unit::of(spec, id)?;
        let path = cgroup_path(spec, id, unit.as_deref())?;
        Ok(Some(Self {
            id: id.to_owned(),
            init,
            cgroup: match rootless::contained() {
                true => Cgroup::open_where_it_is(&path)?,
                false => Cgroup::open(&path)?,
            },
            unit,
            filter: None,
            seccomp: seccomp::Choice::of(spec)?,
            kinds: exec_kinds(&Namespaces::of(spec)?),
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

    /// startContainer hooks are the container's own files: they have its program's rights.
    fn run_start_hooks(&self, hooks: &Hooks, process: &Process) -> Result<(), Error> {
        let root = self.root()?;
        let identity = identity(Some(root.as_fd()), process, &self.groups, self.foreign)?;
        let filter = self.seccomp.filter_again(process, self.filter.as_ref())?;
        let available = available()?;
        let tasks = self.cgroup.tasks();
        let context = Context {
            id: &self.id,
            identity: &rootless::identity(identity)?,
            filter: filter.as_deref(),
            bound: false,
            available,
            cgroups: None,
            tasks: &tasks,
            terminal: None,
            init: false,
            maps: None,
            mount_label: None,
            style: Style {
                foreign: self.foreign,
                unprivileged: available & plan::SYS_ADMIN == 0,
                no_new_keyring: true,
                ..Style::default()
            },
        };
        let cgroup = self.cgroup.born_in();
        let guest = Guest { process, context: &context, cgroup, teller: self.teller.as_ref() };
        let inside = Inside { init: &self.init, kinds: self.kinds, guest: Some(guest) };
        hooks.run(Moment::StartContainer, Some(self.init.pid()), Some(inside))
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

    /// Runs another process in it. The second value is the master side of its
    /// terminal, where one was asked for.
    pub fn exec(&self, process: &Process, stdio: Stdio) -> Result<(Child, Option<OwnedFd>), Error> {
        self.exec_with(process, stdio, ExecManner::default())
    }

    /// The same in another manner than the shim's.
    pub fn exec_with(
        &self,
        process: &Process,
        stdio: Stdio,
        manner: ExecManner,
    ) -> Result<(Child, Option<OwnedFd>), Error> {
        if self.wasm {
            let text = "a wasm container has no other programs to run";
            return Err(Error::new(Failure::NotSupported, text));
        }
        let root = self.root()?;
        if !manner.even_paused && self.cgroup.is_paused() {
            // Docker's words.
            let text =
                format!("Container {} is paused, unpause the container before exec", self.id);
            return Err(Error::new(Failure::Gone, text));
        }
        lsm::check(process)?;
        let ExecManner { inherited, foreign, groups, .. } = manner;
        let below = match &groups[..] {
            [] => None,
            groups => Some(self.cgroup.below(groups)?),
        };
        let own = self.cgroup.tasks();
        let identity = identity(Some(root.as_fd()), process, &self.groups, foreign)?;
        let identity = rootless::identity(identity)?;
        let filter = self.seccomp.filter_again(process, self.filter.as_ref())?;
        let available = available()?;
        let ops = plan::exec(
            process,
            &Context {
                id: &self.id,
                identity: &identity,
                filter: filter.as_deref(),
                bound: false,
                available,
                cgroups: None,
                tasks: below.as_ref().map_or(&own, |below| &below.tasks),
                terminal: terminal(&stdio),
                init: false,
                maps: None,
                mount_label: None,
                style: Style {
                    inherited: inherited.len() as u32,
                    foreign,
                    unprivileged: available & plan::SYS_ADMIN == 0,
                    ..Style::default()
                },
            },
            self.kinds,
            &self.habits,
        )?;
        // It is not born in a cgroup that can be frozen: there it would never
        // execute, and we would wait for that in the kernel.
        let cgroup = self.cgroup.born_in().filter(|_| !self.cgroup.freezes_its_newborn());
        let cgroup = cgroup.filter(|_| below.is_none());
        let birth = Birth {
            pid_namespace: Some(self.init.pidfd()),
            cgroup,
            teller: self.teller.clone(),
            ..Birth::default()
        };
        let mut launched = launch(&birth, &stdio)
            .map_err(|error| if self.has_ended() { self.gone() } else { error })?;
        drop(stdio);
        let mut undo = Undo { cgroup: None, unit: None, child: Some(launched.child.clone()) };
        match &below {
            Some(below) => below.take(launched.child.pid())?,
            None if cgroup.is_none() => self.cgroup.place(launched.child.pid())?,
            None => {}
        }
        if foreign {
            crate::affinity::set(&launched.child, process.exec_cpu_affinity().as_ref())?;
        }
        oom_score(&launched.child, process.oom_score_adj())?;
        let mut inherited = inherited.into_iter();
        launched.send(&ops, |wish| match wish {
            Wish::Inherited(_) => inherited.next().map(Ok),
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
        self.init.has_ended()
    }

    /// Sends a signal to the first process.
    pub fn kill(&self, signal: Signal) -> Result<(), Error> {
        self.init.kill(signal)
    }

    /// Kills every process of the container's cgroup, also when it is paused.
    pub fn kill_all(&self) -> Result<(), Error> {
        self.cgroup.kill_all()
    }

    /// Whether it is frozen or about to be.
    pub fn is_paused(&self) -> bool {
        self.cgroup.is_paused()
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
        if self.cgroup.is_anywhere() {
            return self.cgroup.pids();
        }
        rootless::neighbours(self.init.pid())
            .map_err(|error| Error::system("look for its processes", error))
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
        let deleted = delete(&self.cgroup, self.unit.as_deref());
        let told = self.hooks.as_ref().map(|hooks| hooks.run(Moment::Poststop, None, None));
        deleted.and(told.unwrap_or(Ok(())))
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

/// The control group of a container, made or not.
pub fn cgroup_of(spec: &Spec, id: &str) -> Result<Cgroup, Error> {
    Cgroup::open(&cgroup_path(spec, id, Unit::of(spec, id)?.as_deref())?)
}

/// Removes what a container left behind whose shim is gone: its processes and
/// its control group. Idempotent.
pub fn clean_up(cgroup: &Path) -> Result<(), Error> {
    Cgroup::open(cgroup)?.delete()
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

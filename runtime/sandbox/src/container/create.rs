//! Making a container, up to the moment at which it waits to be started.

use std::os::fd::{AsFd, OwnedFd};

use super::{
    Container, cgroup_path, delete, exec_kinds, group_names,
    join::{available, identity, terminal},
    named_group, rules_pids,
};
use crate::{
    Cgroup, Child, CreateOptions, Error, Failure, INIT_ANNOTATION, Manner, copyup,
    hooks::{Hooks, Inside, Moment},
    interfaces::{Interfaces, Taken},
    launch::{Birth, Launched, launch, oom_score, pid_namespace},
    lsm,
    ops::{IdMaps, Ops, Wish},
    plan::{self, Context, Namespaces, PidNamespace, Style, annotation},
    rootless, seccomp,
    systemd::Unit,
    teller::Teller,
    wishes,
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

/// What a create has made so far. Dropped, it takes all of that away again.
#[derive(Default)]
struct Undo {
    cgroup: Option<Cgroup>,
    unit: Option<Box<Unit>>,
    child: Option<Child>,
    interfaces: Option<Taken>,
}

impl Undo {
    /// The container's group, and what systemd knows it as.
    fn keep(mut self) -> (Cgroup, Option<Box<Unit>>) {
        self.child = None;
        if let Some(taken) = self.interfaces.take() {
            taken.keep();
        }
        (self.cgroup.take().expect("every container has one"), self.unit.take())
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        // As long as their namespace is there.
        self.interfaces = None;
        if let Some(child) = &self.child {
            let _ = child.end();
        }
        if let Some(cgroup) = &self.cgroup {
            let _ = delete(cgroup, self.unit.as_deref());
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
    let (foreign, hasty) = (manner.foreign, manner.hasty);
    let process = spec
        .process()
        .as_ref()
        .ok_or_else(|| Error::new(Failure::InvalidSpec, "the specification has no process"))?;
    let linux = spec.linux().as_ref().ok_or_else(|| {
        Error::new(Failure::InvalidSpec, "the specification has no linux section")
    })?;
    let hooks = Hooks::of(spec, id, bundle)?;
    let habits = plan::Habits::of(spec)?;
    let namespaces = Namespaces::of(spec)?;
    if namespaces.shares_mounts && !foreign {
        let text = "a container needs a mount namespace of its own";
        return Err(Error::new(Failure::InvalidSpec, text));
    }
    let wasm = plan::is_wasm(spec);
    let maps = IdMaps::of_spec(spec, &namespaces)?;
    let seccomp = seccomp::Choice::of(spec)?;
    let mount_label = lsm::mount_label(spec);
    lsm::check(process)?;
    let interfaces = Interfaces::of(spec, &namespaces)?;

    let mut undo = Undo::default();
    let unit = Unit::of(spec, id)?;
    let path = cgroup_path(spec, id, unit.as_deref())?;
    if unit.is_none() {
        let passing_over = manner.rootless && named_group(spec).is_none();
        undo.cgroup = Some(Cgroup::create_in(&path, passing_over)?);
    }
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
        network_later: !hasty && interfaces.is_empty(),
        pid_namespace: joined.as_ref().map(AsFd::as_fd),
        cgroup: undo.cgroup.as_ref().and_then(Cgroup::born_in),
        teller: teller.clone(),
    };
    let mut launched = launch(&birth, &stdio)?;
    undo.child = Some(launched.child.clone());
    if let Some(unit) = unit {
        // systemd makes its groups around processes only.
        unit.start(launched.child.pid(), id, linux.resources().as_ref())?;
        undo.unit = Some(unit);
        undo.cgroup = Some(Cgroup::adopt(&path)?);
    }
    let cgroup = undo.cgroup.as_ref().expect("made or adopted");
    if let Some(maps) = &maps {
        maps.write(launched.child.pid())?;
    }
    // One that is to belong to a joined user namespace is made later, from within that.
    let network_inside = namespaces.inside & plan::NET != 0;
    if !network_inside {
        undo.interfaces = interfaces.take(&namespaces, launched.child.pid())?;
    }

    // A profile that nobody has compiled yet is compiled meanwhile.
    let filter = seccomp.filter()?;
    let holds = hooks.as_ref().is_some_and(|hooks| hooks.holds());
    // Where hooks look for it; and where it can be found again among the host's.
    let placed = holds || namespaces.shares_mounts;
    let known = placed || foreign && !wasm;
    let root_path = known.then(|| wishes::root_path(spec, bundle)).transpose()?;
    let root = wishes::root(rootfs, spec, bundle)?;
    let groups = group_names(spec);
    let identity = identity(Some(root.as_fd()), process, &groups, foreign)?;
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
                foreign,
                unprivileged: available & plan::SYS_ADMIN == 0,
                contained,
            },
        },
    )?;
    drop(stdio);
    let limits = linux.resources().clone().unwrap_or_default();
    cgroup.limit(&limits, true)?;
    oom_score(&launched.child, process.oom_score_adj())?;
    if foreign {
        crate::affinity::set(&launched.child, None)?;
    }
    send(&launched, &ops, root, manner)?;
    if namespaces.reborn() {
        launched.await_birth(&ops)?;
        undo.child = Some(launched.child.clone());
    }
    let holding = hooks.as_ref().filter(|hooks| hooks.holds());
    let unseen = hasty && hooks.is_none() && terminal.is_none() && !tunes_interfaces(linux);
    if holding.is_some() {
        launched.await_hold(&ops)?;
    } else if !unseen || network_inside {
        launched.await_ready(&ops)?;
    }
    if network_inside {
        undo.interfaces = interfaces.take(&namespaces, launched.child.pid())?;
    }
    if let Some(hooks) = holding {
        run_create_hooks(hooks, &launched.child, exec_kinds(&namespaces))?;
        launched.go()?;
        launched.await_ready(&ops)?;
    }
    let console = launched.console().or(host_console);

    let (cgroup, unit) = undo.keep();
    let container = Container {
        id: id.to_owned(),
        init: launched.child.clone(),
        cgroup,
        unit,
        filter,
        seccomp,
        kinds: exec_kinds(&namespaces),
        rules_pids: rules_pids(&namespaces),
        groups,
        habits,
        wasm,
        foreign,
        hooks,
        teller,
    };
    Ok(Created { parts: Some((container, launched, ops)), console })
}

/// Sends the launch, with what only the caller has.
fn send(launched: &Launched, ops: &Ops, root: OwnedFd, manner: Manner) -> Result<(), Error> {
    let copies = ops.wishes.iter().any(|wish| matches!(wish, Wish::Copied { .. }));
    let image = copies.then(|| root.try_clone()).transpose();
    let image = image.map_err(|error| Error::system("copy a descriptor", error))?;
    let (mut root, mut listener) = (Some(root), manner.listener);
    let mut inherited = manner.inherited.into_iter();
    launched.send(ops, |wish| match wish {
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
    })
}

/// Those that are run before the root is entered.
fn run_create_hooks(hooks: &Hooks, init: &Child, kinds: u32) -> Result<(), Error> {
    let pid = Some(init.pid());
    hooks.run(Moment::Prestart, pid, None)?;
    hooks.run(Moment::CreateRuntime, pid, None)?;
    hooks.run(Moment::CreateContainer, pid, Some(Inside { init, kinds, guest: None }))
}

/// Whether a sysctl is about interfaces: it must be there before them.
fn tunes_interfaces(linux: &oci_spec::runtime::Linux) -> bool {
    let per_interface = |name: &String| name.contains(".conf.") || name.contains(".neigh.");
    linux.sysctl().as_ref().is_some_and(|all| all.keys().any(per_interface))
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
            let _ = container.init.end();
            let _ = container.delete();
        }
    }
}

//! OCI specification to launch: pure functions, nothing is opened or asked.
//!
//! The order of a native launch, and why:
//!
//! 1. labels of security modules, namespaces by path, session, propagation: nothing
//!    of ours reaches the host;
//! 2. the root, entered at once and the host's mounts let go: from here on names
//!    mean the container's files;
//! 3. mounts in the specification's order; sysctls right after procfs, while
//!    nothing lies on it; device nodes, links, terminal;
//! 4. read-only and masked paths;
//! 5. working directory (made if missing, so the root becomes read-only only
//!    after it) and executable are looked up, so that their absence is an error
//!    of `create`; limits;
//! 6. signals, keyring, umask, bounding set, identity, descriptors closed, capabilities:
//!    what the kernel refuses of these is an error of `create`, too; **ready**, wait
//!    for go;
//! 7. filter, exec. `SYS_ADMIN` stays until the filter is loaded where no_new_privs is
//!    not set: the kernel wants one of the two.

mod capabilities;
mod habits;
mod identity;
mod mounts;
mod namespaces;
mod process;
mod wasm;

use std::path::{Path, PathBuf};

use knarr_init::wire::Op;
use oci_spec::runtime::{LinuxDevice, LinuxDeviceType, Process, Spec};

pub(crate) use capabilities::{SYS_ADMIN, mask_of};
pub(crate) use habits::Habits;
pub(crate) use identity::Identity;
pub(crate) use namespaces::{NET, Namespaces, PID, PidNamespace, USER};

use crate::{
    Error, Failure, HOLD_ANNOTATION,
    ops::{IdMaps, Ops, Strings, Wish, c_string, container_path},
    seccomp::Filter,
};

/// What a plan is made of beside the specification.
#[derive(Debug)]
pub(crate) struct Context<'a> {
    /// The container's id.
    pub(crate) id: &'a str,
    /// Who it runs as.
    pub(crate) identity: &'a Identity,
    /// What it may call.
    pub(crate) filter: Option<&'a Filter>,
    /// It dies with the thread that started it. Not for one that was born by a
    /// passing thread, to join a pid namespace: it dies with that namespace.
    pub(crate) bound: bool,
    /// Capabilities that can be given at all.
    pub(crate) available: u64,
    /// Cgroup directories of v1 by name; none at all is v2.
    pub(crate) cgroups: Option<&'a [(String, PathBuf)]>,
    /// The `tasks` files of its cgroups of v1.
    pub(crate) tasks: &'a [PathBuf],
    /// Height and width of its terminal.
    pub(crate) terminal: Option<(u16, u16)>,
    /// knarr-init stays as process 1.
    pub(crate) init: bool,
    /// Who is who in its user namespace, where it has one.
    pub(crate) maps: Option<IdMaps>,
    /// The SELinux label of the files of its new filesystems.
    pub(crate) mount_label: Option<&'a str>,
    /// What the caller wants otherwise than the engine does.
    pub(crate) style: Style,
}

/// See [`Manner`](crate::Manner).
#[derive(Debug, Clone, Default)]
pub(crate) struct Style {
    /// It waits on a socket of the caller's to be started.
    pub(crate) listens: bool,
    /// How many descriptors the program inherits behind its streams.
    pub(crate) inherited: u32,
    /// The root is entered with chroot.
    pub(crate) no_pivot: bool,
    /// The session keyring stays.
    pub(crate) no_new_keyring: bool,
    /// The host's procfs and sysfs, which such a root would leave beneath.
    pub(crate) uncovered: Vec<std::ffi::CString>,
    /// Hooks are waited for before the root is entered.
    pub(crate) holds: bool,
    /// Where the root filesystem is on the host: what is bound from beneath it is what
    /// the container has there by then.
    pub(crate) root: Option<PathBuf>,
    /// It lies there until it is entered; else over the host's root.
    pub(crate) placed: bool,
    /// The specification is an operator's, not the engine's.
    pub(crate) foreign: bool,
    /// We have no privileges in our own user namespace.
    pub(crate) unprivileged: bool,
    /// We are in a user namespace ourselves, which makes no devices and takes no flags
    /// off the host's mounts.
    pub(crate) contained: bool,
}

impl Style {
    /// The descriptors that the program inherits come first in the list.
    fn inherit(&self, ops: &mut Ops) {
        for place in 0..self.inherited {
            ops.wish(Wish::Inherited(place));
        }
    }

    /// Whether the host's mounts are needed while the container's are made: by
    /// hooks, by a kernel that shows a user namespace only a procfs it can see
    /// already, by those whose mounts they are.
    fn late(&self, namespaces: &Namespaces) -> bool {
        self.holds || self.stays(namespaces) || self.owned(namespaces)
    }

    /// Whether what the container is made in belongs to a user namespace.
    fn owned(&self, namespaces: &Namespaces) -> bool {
        self.contained || namespaces.has(namespaces::USER)
    }

    /// Whether the root is entered without letting go of the mounts around it.
    fn stays(&self, namespaces: &Namespaces) -> bool {
        self.no_pivot || namespaces.shares_mounts
    }

    /// Everything is ready: whom it waits for.
    fn ready(&self, ops: &mut Ops) {
        if self.listens {
            let fd = ops.wish(Wish::Listener);
            ops.push(Op::Listen { fd });
        } else {
            ops.push(Op::Ready {});
        }
    }
}

const MS_PRIVATE: u64 = 1 << 18;
const MS_SLAVE: u64 = 1 << 19;
const MS_SHARED: u64 = 1 << 20;
const MS_UNBINDABLE: u64 = 1 << 17;

/// Docker's devices (runc `AllowedDevices`): name, major, minor.
const DEVICES: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

/// runc's links in `/dev`.
const LINKS: [(&str, &str); 5] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
    ("/dev/ptmx", "pts/ptmx"),
];

/// The launch of a container's first process.
pub(crate) fn create(spec: &Spec, context: &Context<'_>) -> Result<Ops, Error> {
    let process = required(spec.process().as_ref(), "process")?;
    let namespaces = Namespaces::of(spec)?;
    if annotation(spec, HOLD_ANNOTATION) == Some("true") {
        return hold(spec, process, &namespaces, context);
    }
    match wasm::launch_of(spec)? {
        Some(launch) => wasm::create(spec, process, &namespaces, &launch, context),
        None => native(spec, process, &namespaces, context),
    }
}

/// Whether the specification is that of a Wasm program.
pub(crate) fn is_wasm(spec: &Spec) -> bool {
    annotation(spec, knarr_model::task::WASM_ANNOTATION).is_some()
}

/// The launch of another process in the container.
pub(crate) fn exec(
    process: &Process,
    context: &Context<'_>,
    kinds: u32,
    habits: &Habits,
) -> Result<Ops, Error> {
    let mut ops = Ops::default();
    context.style.inherit(&mut ops);
    join_cgroups(&mut ops, context);
    labels(&mut ops, process)?;
    let fd = ops.wish(Wish::Container);
    // Its namespaces may belong to several user namespaces: who has the right to
    // joins that of its users last. Others get the right by joining it.
    if context.style.unprivileged || kinds & USER == 0 {
        ops.push(Op::Setns { fd, kinds });
    } else {
        if kinds != USER {
            ops.push(Op::Setns { fd, kinds: kinds & !USER });
        }
        ops.push(Op::Setns { fd, kinds: USER });
    }
    ops.push(Op::Setsid {});
    if let Some((rows, cols)) = context.terminal {
        let uid = context.identity.uid;
        ops.push(Op::Terminal { rows: rows.into(), cols: cols.into(), uid, console: false });
    }
    process::limits(&mut ops, process, &context.style)?;
    habits.push(&mut ops);
    process::place(&mut ops, process, context, false)?;
    process::become_program(&mut ops, process, context, false)?;
    Ok(ops)
}

/// Gives up what a program of the container's is not to have.
pub(crate) fn drop_privileges(
    ops: &mut Ops,
    process: &Process,
    context: &Context<'_>,
) -> Result<(), Error> {
    process::drop_privileges(ops, process, context, None, 0, false)
}

fn required<T>(value: Option<T>, name: &str) -> Result<T, Error> {
    value
        .ok_or_else(|| Error::new(Failure::InvalidSpec, format!("the specification has no {name}")))
}

/// An annotation's value.
pub(crate) fn annotation<'a>(spec: &'a Spec, name: &str) -> Option<&'a str> {
    spec.annotations().as_ref()?.get(name).map(String::as_str)
}

fn native(
    spec: &Spec,
    process: &Process,
    namespaces: &Namespaces,
    context: &Context<'_>,
) -> Result<Ops, Error> {
    let linux = required(spec.linux().as_ref(), "linux section")?;
    let read_only = spec.root().as_ref().and_then(|root| root.readonly()).unwrap_or(false);
    let mut ops = Ops::default();
    context.style.inherit(&mut ops);
    join_cgroups(&mut ops, context);
    labels(&mut ops, process)?;
    // The host's mounts are let go of at once, unless somebody needs them.
    let style = &context.style;
    let clocks = clocks(linux);
    enter(&mut ops, namespaces, linux.rootfs_propagation().as_deref(), Wish::Root, style, &clocks)?;

    let mounts = spec.mounts().as_deref().unwrap_or_default();
    let sysctls = linux.sysctl().clone().unwrap_or_default();
    mounts::all(&mut ops, mounts, sysctls, namespaces, context)?;
    let own_dev = !mounts.iter().any(|mount| {
        mount.destination() == Path::new("/dev") && mount.typ().as_deref() != Some("tmpfs")
    });
    if own_dev {
        let host = context.style.owned(namespaces);
        devices(&mut ops, linux.devices().as_deref().unwrap_or_default(), host)?;
    }
    names(&mut ops, spec, namespaces)?;
    if let Some((rows, cols)) = context.terminal {
        let uid = context.identity.uid;
        ops.push(Op::Terminal { rows: rows.into(), cols: cols.into(), uid, console: own_dev });
    }
    let_go(&mut ops, style, namespaces);
    for path in linux.readonly_paths().iter().flatten() {
        // One that is not absolute begins at the root (as runc).
        ops.push(Op::ReadOnly { path: &container_path(&Path::new("/").join(path))? });
    }
    let mut masked = std::collections::HashSet::new();
    for path in linux.masked_paths().iter().flatten().filter(|path| masked.insert(path.as_str())) {
        ops.push(Op::Mask { path: &container_path(Path::new(path))? });
    }
    for mount in mounts::read_only_later(mounts) {
        ops.push(Op::ReadOnlyMount { path: &container_path(mount)? });
    }
    process::place(&mut ops, process, context, true)?;
    if read_only {
        ops.push(Op::ReadOnlyMount { path: c"/" });
    }
    match linux.rootfs_propagation().as_deref() {
        _ if namespaces.shares_mounts => {}
        Some("shared" | "rshared") => ops.push(Op::Propagation { flags: MS_SHARED }),
        Some("slave" | "rslave") => ops.push(Op::Propagation { flags: MS_SLAVE }),
        Some("unbindable" | "runbindable") => ops.push(Op::SetMount {
            target: c"/",
            recursive: false,
            set: 0,
            clear: 0,
            propagation: MS_UNBINDABLE,
        }),
        _ => {}
    }
    process::limits(&mut ops, process, &context.style)?;
    Habits::of(spec)?.push(&mut ops);
    process::become_program(&mut ops, process, context, true)?;
    Ok(ops)
}

/// One that has no program: nothing is in it but its namespaces.
fn hold(
    spec: &Spec,
    process: &Process,
    namespaces: &Namespaces,
    context: &Context<'_>,
) -> Result<Ops, Error> {
    let linux = required(spec.linux().as_ref(), "linux section")?;
    let mut ops = Ops::default();
    join_cgroups(&mut ops, context);
    enter(&mut ops, namespaces, None, Wish::Empty { mode: 0o555 }, &context.style, "")?;
    mounts::all(&mut ops, &[], linux.sysctl().clone().unwrap_or_default(), namespaces, context)?;
    names(&mut ops, spec, namespaces)?;
    let_go(&mut ops, &context.style, namespaces);
    ops.push(Op::ReadOnlyMount { path: c"/" });
    ops.push(Op::Chdir { path: c"/", create: false });
    process::drop_privileges(&mut ops, process, context, None, 0, true)?;
    ops.push(Op::Hold {});
    Ok(ops)
}

/// Before anything else: a cgroup namespace shows the groups of who makes it.
pub(crate) fn join_cgroups(ops: &mut Ops, context: &Context<'_>) {
    for tasks in context.tasks {
        let fd = ops.wish(Wish::Tasks(tasks.clone()));
        ops.push(Op::JoinCgroup { fd });
    }
}

/// What security modules are to make of the program; while the host's procfs is
/// at hand, and so that a profile that is not there is an error of `create`.
fn labels(ops: &mut Ops, process: &Process) -> Result<(), Error> {
    let mut set = |names: &[&str], value: String| -> Result<(), Error> {
        let names = Strings::new("an attribute", names)?;
        ops.push(Op::Attribute {
            names: names.list(),
            value: knarr_init::wire::Bytes(value.as_bytes()),
        });
        Ok(())
    };
    if let Some(profile) = crate::lsm::profile(process) {
        // Before Linux 5.8 the modules had one name for all of them.
        set(&["apparmor/exec", "exec"], format!("exec {profile}"))?;
    }
    if let Some(label) = crate::lsm::label(process) {
        set(&["exec"], label.to_owned())?;
        set(&["keycreate"], label.to_owned())?;
    }
    Ok(())
}

/// The beginning of every container.
fn enter(
    ops: &mut Ops,
    namespaces: &Namespaces,
    propagation: Option<&str>,
    root: Wish,
    style: &Style,
    clocks: &str,
) -> Result<(), Error> {
    let mut join = |kinds: u32, path: &PathBuf| {
        let fd = ops.wish(Wish::Namespace(path.clone()));
        ops.push(Op::Setns { fd, kinds });
    };
    // As in an exec: some may not be the user namespace's own.
    let (first, last) = match &namespaces.user {
        user if style.unprivileged => (user.as_ref(), None),
        user => (None, user.as_ref()),
    };
    first.into_iter().for_each(|path| join(USER, path));
    namespaces.joined.iter().for_each(|(kind, path)| join(*kind, path));
    last.into_iter().for_each(|path| join(USER, path));
    if namespaces.reborn() {
        ops.push(Op::Reborn { kinds: namespaces.inside });
    } else if namespaces.inside != 0 {
        ops.push(Op::Unshare { kinds: namespaces.inside });
    }
    if namespaces.unshared != 0 {
        ops.push(Op::Unshare { kinds: namespaces.unshared });
    }
    if !clocks.is_empty() {
        ops.push(Op::TimeOffsets { text: knarr_init::wire::Bytes(clocks.as_bytes()) });
    }
    if style.owned(namespaces) {
        // Whoever it was on the host, from here on it is the namespace's root.
        ops.push(Op::Identity { uid: 0, gid: 0 });
    }
    ops.push(Op::Setsid {});
    // The host's mounts are never ours to share; as slaves they may follow the
    // host until they are let go of.
    let flags = match propagation {
        None | Some("private" | "rprivate" | "unbindable" | "runbindable" | "") => MS_PRIVATE,
        Some("slave" | "rslave" | "shared" | "rshared") => MS_SLAVE,
        Some(other) => {
            let text = format!("rootfs propagation {other:?} is unknown");
            return Err(Error::new(Failure::InvalidSpec, text));
        }
    };
    if !namespaces.shares_mounts {
        ops.push(Op::Propagation { flags });
    }
    ops.push(Op::OpenNull {});
    let fd = ops.wish(root);
    if style.late(namespaces) {
        // Hooks look for it where the specification says.
        let path = style.root.as_deref().filter(|_| style.placed);
        let path = path.map(|path| path.as_os_str().as_encoded_bytes());
        let target = c_string("the root filesystem's path", path.unwrap_or_default())?;
        ops.push(Op::PlaceRoot { fd, target: &target });
    } else {
        ops.push(Op::EnterRoot { fd });
    }
    Ok(())
}

/// The host's mounts are needed no longer, where they were kept.
fn let_go(ops: &mut Ops, style: &Style, namespaces: &Namespaces) {
    if style.holds {
        ops.push(Op::Ready {});
    }
    // What procfs and sysfs keep from a container can be seen in the host's own, and
    // who sees those may mount them whole in a user namespace.
    if style.no_pivot && !namespaces.shares_mounts {
        for path in &style.uncovered {
            ops.push(Op::Unmount { path });
        }
    }
    if style.late(namespaces) {
        ops.push(if style.stays(namespaces) { Op::Chroot {} } else { Op::Pivot {} });
    }
}

/// Offsets of the clocks of a time namespace, as the kernel takes them.
fn clocks(linux: &oci_spec::runtime::Linux) -> String {
    let mut lines: Vec<String> = linux
        .time_offsets()
        .iter()
        .flatten()
        .map(|(clock, offset)| {
            let (seconds, rest) = (offset.secs().unwrap_or(0), offset.nanosecs().unwrap_or(0));
            format!("{clock} {seconds} {rest}\n")
        })
        .collect();
    lines.sort();
    lines.concat()
}

/// Host name, domain name, loopback.
fn names(ops: &mut Ops, spec: &Spec, namespaces: &Namespaces) -> Result<(), Error> {
    let too_long = |name: &str| {
        let text = format!("host name {name:?} is longer than 64 bytes");
        Error::new(Failure::InvalidSpec, text)
    };
    for (name, is_domain) in [(spec.hostname(), false), (spec.domainname(), true)] {
        let Some(name) = name.as_deref().filter(|name| !name.is_empty()) else { continue };
        if name.len() > 64 || name.contains('\0') {
            return Err(too_long(name));
        }
        if !namespaces.has(self::namespaces::UTS) {
            let text = "a host name needs a uts namespace of the container's own";
            return Err(Error::new(Failure::InvalidSpec, text));
        }
        let name = knarr_init::wire::Bytes(name.as_bytes());
        ops.push(if is_domain { Op::Domainname { name } } else { Op::Hostname { name } });
    }
    if namespaces.makes(self::namespaces::NET) {
        ops.push(Op::Loopback {});
    }
    Ok(())
}

/// Device nodes and the links of `/dev`.
fn devices(ops: &mut Ops, asked: &[LinuxDevice], host: bool) -> Result<(), Error> {
    // A user namespace cannot make devices: they are the host's own.
    let bound = |ops: &mut Ops, path: &Path| {
        mounts::attach(ops, crate::wishes::plain(path.to_owned(), false), path)
    };
    let number = |major: u32, minor: u32| {
        let (major, minor) = (u64::from(major), u64::from(minor));
        minor & 0xff | (major & 0xfff) << 8 | (minor & !0xff) << 12 | (major & !0xfff) << 32
    };
    for (path, major, minor) in DEVICES {
        if asked.iter().any(|device| device.path() == Path::new(path)) {
            continue;
        }
        if host {
            bound(ops, Path::new(path))?;
            continue;
        }
        let path = c_string("device", path)?;
        let mode = 0o020_666;
        ops.push(Op::Mknod { path: &path, mode, device: number(major, minor), uid: 0, gid: 0 });
    }
    for device in asked {
        if host && device.typ() != LinuxDeviceType::P {
            bound(ops, device.path())?;
            continue;
        }
        let kind = match device.typ() {
            LinuxDeviceType::B => 0o060_000,
            LinuxDeviceType::C | LinuxDeviceType::U => 0o020_000,
            LinuxDeviceType::P => 0o010_000,
            LinuxDeviceType::A => {
                let text = format!("device {} has no type", device.path().display());
                return Err(Error::new(Failure::InvalidSpec, text));
            }
        };
        let (Ok(major), Ok(minor)) = (u32::try_from(device.major()), u32::try_from(device.minor()))
        else {
            let text = format!("device {} has no valid number", device.path().display());
            return Err(Error::new(Failure::InvalidSpec, text));
        };
        ops.push(Op::Mknod {
            path: &container_path(device.path())?,
            mode: kind | device.file_mode().unwrap_or(0o666) & 0o7777,
            device: if kind == 0o010_000 { 0 } else { number(major, minor) },
            uid: device.uid().unwrap_or(0),
            gid: device.gid().unwrap_or(0),
        });
    }
    for (path, target) in LINKS {
        let (path, target) = (c_string("link", path)?, c_string("link", target)?);
        ops.push(Op::Symlink { path: &path, target: &target });
    }
    Ok(())
}

#[cfg(test)]
mod tests;

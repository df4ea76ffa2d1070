//! The mounts of a specification, in its order.

use std::{
    collections::HashMap,
    ffi::CString,
    path::{Path, PathBuf},
};

use knarr_init::wire::{Bytes, Op};
use knarr_sys::MountAttr;
use oci_spec::runtime::Mount;

use super::{Context, MS_PRIVATE, MS_SHARED, MS_SLAVE, MS_UNBINDABLE, Namespaces, namespaces};
use crate::{
    Error, Failure,
    ops::{Bind, IdMaps, Ops, Owners, Strings, Wish, c_string, container_path},
};

const MS_RDONLY: u64 = 1;
const MS_NOSUID: u64 = 2;
const MS_NODEV: u64 = 4;
const MS_NOEXEC: u64 = 8;
const MS_SYNCHRONOUS: u64 = 16;
const MS_REMOUNT: u64 = 32;
const MS_MANDLOCK: u64 = 64;
const MS_DIRSYNC: u64 = 128;
const MS_SILENT: u64 = 1 << 15;
const MS_POSIXACL: u64 = 1 << 16;
const MS_I_VERSION: u64 = 1 << 23;
const MS_LAZYTIME: u64 = 1 << 25;
const MS_NOSYMFOLLOW: u64 = 256;
const MS_NOATIME: u64 = 1024;
const MS_NODIRATIME: u64 = 2048;
const MS_RELATIME: u64 = 1 << 21;
const MS_STRICTATIME: u64 = 1 << 24;

/// Options of one mount, understood.
#[derive(Debug, Default, PartialEq, Eq)]
struct Options {
    bind: bool,
    recursive: bool,
    /// MS_* bits of a new filesystem.
    flags: u64,
    set: u64,
    clear: u64,
    /// One of these was said, even if it was that it is not so.
    explicit: bool,
    deep_set: u64,
    deep_clear: u64,
    propagation: Option<(u64, bool)>,
    /// What only the filesystem understands.
    data: Vec<String>,
    /// What lies beneath a tmpfs is copied into it.
    copies: bool,
    /// Owners are mapped; with the mounts beneath.
    mapped: Option<bool>,
}

impl Options {
    fn parse(mount: &Mount) -> Result<Self, Error> {
        let mut new = Self::default();
        for option in mount.options().iter().flatten() {
            new.one(option);
        }
        if mount.typ().as_deref() == Some("bind") && !new.bind {
            new.bind = true;
        }
        if mount.uid_mappings().as_ref().is_some_and(|maps| !maps.is_empty()) {
            new.mapped = new.mapped.or(Some(false));
        }
        Ok(new)
    }

    fn one(&mut self, option: &str) {
        // Name, MS_* bit, MOUNT_ATTR_* bit, whether it sets.
        const BITS: [(&str, u64, u64, bool); 15] = [
            ("ro", MS_RDONLY, MountAttr::RDONLY, true),
            ("rw", MS_RDONLY, MountAttr::RDONLY, false),
            ("nosuid", MS_NOSUID, MountAttr::NOSUID, true),
            ("suid", MS_NOSUID, MountAttr::NOSUID, false),
            ("nodev", MS_NODEV, MountAttr::NODEV, true),
            ("dev", MS_NODEV, MountAttr::NODEV, false),
            ("noexec", MS_NOEXEC, MountAttr::NOEXEC, true),
            ("exec", MS_NOEXEC, MountAttr::NOEXEC, false),
            ("nodiratime", MS_NODIRATIME, MountAttr::NODIRATIME, true),
            ("diratime", MS_NODIRATIME, MountAttr::NODIRATIME, false),
            ("nosymfollow", MS_NOSYMFOLLOW, MountAttr::NOSYMFOLLOW, true),
            ("symfollow", MS_NOSYMFOLLOW, MountAttr::NOSYMFOLLOW, false),
            ("noatime", MS_NOATIME, MountAttr::NOATIME, true),
            ("strictatime", MS_STRICTATIME, MountAttr::STRICTATIME, true),
            ("relatime", MS_RELATIME, 0, true),
        ];
        match option {
            "bind" => self.bind = true,
            "rbind" => (self.bind, self.recursive) = (true, true),
            "private" => self.propagation = Some((MS_PRIVATE, false)),
            "rprivate" => self.propagation = Some((MS_PRIVATE, true)),
            "slave" => self.propagation = Some((MS_SLAVE, false)),
            "rslave" => self.propagation = Some((MS_SLAVE, true)),
            "shared" => self.propagation = Some((MS_SHARED, false)),
            "rshared" => self.propagation = Some((MS_SHARED, true)),
            "sync" => self.flags |= MS_SYNCHRONOUS,
            "async" => self.flags &= !MS_SYNCHRONOUS,
            "dirsync" => self.flags |= MS_DIRSYNC,
            "unbindable" => self.propagation = Some((MS_UNBINDABLE, false)),
            "runbindable" => self.propagation = Some((MS_UNBINDABLE, true)),
            "tmpcopyup" => self.copies = true,
            "idmap" => self.mapped = Some(false),
            "ridmap" => self.mapped = Some(true),
            "remount" => self.flags |= MS_REMOUNT,
            "mand" => self.flags |= MS_MANDLOCK,
            "nomand" => self.flags &= !MS_MANDLOCK,
            "silent" => self.flags |= MS_SILENT,
            "loud" => self.flags &= !MS_SILENT,
            "acl" => self.flags |= MS_POSIXACL,
            "noacl" => self.flags &= !MS_POSIXACL,
            "iversion" => self.flags |= MS_I_VERSION,
            "noiversion" => self.flags &= !MS_I_VERSION,
            "lazytime" => self.flags |= MS_LAZYTIME,
            "nolazytime" => self.flags &= !MS_LAZYTIME,
            "ratime" => self.deep(0, MountAttr::ATIME),
            // The kernel's own choice is relatime: not to want it changes nothing (as runc).
            "rrelatime" | "rnostrictatime" | "rnorelatime" => self.deep(0, MountAttr::ATIME),
            "defaults" | "atime" | "norelatime" | "nostrictatime" | "copyup" | "nocopyup" | "z"
            | "Z" | "consistent" | "cached" | "delegated" => {}
            _ => {
                let deep = option.strip_prefix('r').filter(|rest| *rest != "w" && *rest != "o");
                let find = |name: &str| BITS.iter().find(|bit| bit.0 == name);
                if let Some((_, flag, attribute, sets)) = find(option) {
                    self.explicit = true;
                    change(&mut self.flags, *flag, *sets);
                    // What is said of access times is all that is said of them.
                    let times = MountAttr::ATIME | MountAttr::NODIRATIME;
                    if *sets && (attribute & times != 0 || option == "relatime") {
                        self.clear |= times;
                    }
                    change(&mut self.set, *attribute, *sets);
                    change(&mut self.clear, *attribute, !*sets);
                    if attribute & MountAttr::ATIME != 0 {
                        self.clear |= MountAttr::ATIME;
                    }
                } else if let Some((_, _, attribute, sets)) = deep.and_then(find) {
                    change(&mut self.deep_set, *attribute, *sets);
                    change(&mut self.deep_clear, *attribute, !*sets);
                    if attribute & MountAttr::ATIME != 0 {
                        self.deep_clear |= MountAttr::ATIME;
                    }
                } else {
                    self.data.push(option.to_owned());
                }
            }
        }
    }
}

impl Options {
    fn deep(&mut self, set: u64, clear: u64) {
        self.deep_set = self.deep_set & !clear | set;
        self.deep_clear |= clear;
    }

    /// What a new filesystem's mount becomes after it was mounted.
    fn afterwards(&self, ops: &mut Ops, target: &std::ffi::CStr) {
        if self.deep_set | self.deep_clear != 0 {
            ops.push(Op::SetMount {
                target,
                recursive: true,
                set: self.deep_set,
                clear: self.deep_clear,
                propagation: 0,
            });
        }
        if let Some((propagation, recursive)) = self.propagation {
            ops.push(Op::SetMount { target, recursive, set: 0, clear: 0, propagation });
        }
    }
}

fn change(bits: &mut u64, bit: u64, set: bool) {
    *bits = if set { *bits | bit } else { *bits & !bit };
}

/// All mounts; sysctls right after procfs.
pub(super) fn all(
    ops: &mut Ops,
    mounts: &[Mount],
    sysctls: HashMap<String, String>,
    namespaces: &Namespaces,
    context: &Context<'_>,
) -> Result<(), Error> {
    let sysctls = self::sysctls(sysctls, namespaces)?;
    let has_proc = mounts.iter().any(|mount| mount.typ().as_deref() == Some("proc"));
    if !has_proc && !sysctls.is_empty() {
        let options = Strings::default();
        ops.push(Op::Proc { target: c"", attributes: 0, options: options.list() });
        write_sysctls(ops, &sysctls)?;
    }
    let mut pending = has_proc.then_some(&sysctls);
    for mount in mounts {
        let target = target(mount)?;
        let options = Options::parse(mount)?;
        let kind = mount.typ().as_deref().unwrap_or(if options.bind { "bind" } else { "none" });
        let procfs = kind == "proc" || options.bind && is_procfs(mount.source().as_deref());
        guard_proc(mount.destination(), procfs)?;
        match kind {
            _ if options.bind => bind(ops, mount, &options, namespaces, context)?,
            "proc" => {
                let source = mount.source().as_ref().map(|source| source.to_string_lossy());
                let mut all = options.data.clone();
                all.extend(source.map(|source| format!("source={source}")));
                let list = Strings::new("a mount option", &all)?;
                ops.push(Op::Proc {
                    target: &target,
                    attributes: options.set,
                    options: list.list(),
                });
                if let Some(sysctls) = pending.take() {
                    write_sysctls(ops, sysctls)?;
                }
                options.afterwards(ops, &target);
            }
            "cgroup" | "cgroup2" => cgroup(ops, mount, &options, namespaces, context)?,
            _ => filesystem(ops, mount, kind, &options, context)?,
        }
    }
    Ok(())
}

/// Where a mount is to be. Links may still lead elsewhere: knarr-init looks at the place itself.
fn target(mount: &Mount) -> Result<CString, Error> {
    let target = container_path(mount.destination())?;
    if target.as_c_str() == c"/" {
        let text = "a mount on / would hide the root filesystem";
        return Err(Error::new(Failure::InvalidSpec, text));
    }
    Ok(target)
}

/// The host's own procfs may be bound where there is no other (as runc); knarr-init verifies that
/// it is one.
fn is_procfs(source: Option<&Path>) -> bool {
    source == Some(Path::new("/proc"))
}

/// One bind or tmpfs, wherever it is to be.
pub(super) fn one(
    ops: &mut Ops,
    mount: &Mount,
    namespaces: &Namespaces,
    context: &Context<'_>,
) -> Result<(), Error> {
    target(mount)?;
    let options = Options::parse(mount)?;
    match mount.typ().as_deref() {
        _ if options.bind => bind(ops, mount, &options, namespaces, context),
        Some("tmpfs") => filesystem(ops, mount, "tmpfs", &options, context),
        other => {
            let kind = other.unwrap_or("none");
            let text = format!("mount of type {kind:?} is not for a wasm container");
            Err(Error::new(Failure::NotSupported, text))
        }
    }
}

/// Tmpfs at `/dev` is filled after it is mounted, so read-only comes later.
pub(super) fn read_only_later(mounts: &[Mount]) -> impl Iterator<Item = &Path> {
    mounts.iter().filter(|mount| is_dev(mount)).filter_map(|mount| {
        let options = Options::parse(mount).ok()?;
        (options.flags & MS_RDONLY != 0).then_some(mount.destination().as_path())
    })
}

fn is_dev(mount: &Mount) -> bool {
    mount.destination() == Path::new("/dev") && mount.typ().as_deref() == Some("tmpfs")
}

/// Nothing but procfs on `/proc`, and in it only what lxcfs puts there (runc
/// `checkProcMount`): what writes to procfs must reach the kernel.
fn guard_proc(destination: &Path, procfs: bool) -> Result<(), Error> {
    const ALLOWED: [&str; 10] = [
        "cpuinfo",
        "diskstats",
        "meminfo",
        "stat",
        "swaps",
        "uptime",
        "loadavg",
        "slabinfo",
        "net/dev",
        "sys/kernel/ns_last_pid",
    ];
    let clean: PathBuf = destination.components().collect();
    let Ok(inside) = clean.strip_prefix("/proc") else { return Ok(()) };
    let fine = if inside.as_os_str().is_empty() {
        procfs
    } else {
        ALLOWED.iter().any(|name| inside == Path::new(name))
    };
    if fine {
        return Ok(());
    }
    // runc's words.
    let text = format!("{:?} cannot be mounted because it is inside /proc", destination.display());
    Err(Error::new(Failure::InvalidSpec, text))
}

fn bind(
    ops: &mut Ops,
    mount: &Mount,
    options: &Options,
    namespaces: &Namespaces,
    context: &Context<'_>,
) -> Result<(), Error> {
    let Some(source) = mount.source().clone().filter(|source| source.is_absolute()) else {
        let text =
            format!("bind mount on {} has no absolute source", mount.destination().display());
        return Err(Error::new(Failure::InvalidSpec, text));
    };
    // Whoever says one of a bind's flags says all of them: others of the source's
    // are not inherited (as runc, and mount(2) with MS_REMOUNT). A user namespace
    // could not take them off either.
    const IMPLIED: u64 = MountAttr::RDONLY
        | MountAttr::NOSUID
        | MountAttr::NODEV
        | MountAttr::NOEXEC
        | MountAttr::NOSYMFOLLOW;
    let owned = context.maps.is_some() || context.style.contained;
    let implied = match options.explicit && context.style.foreign {
        true if owned => MountAttr::NOSYMFOLLOW & !options.set,
        true => IMPLIED & !options.set,
        false => 0,
    };
    let bind = Bind {
        source,
        recursive: options.recursive,
        attributes: (options.set, options.clear | implied),
        deep_attributes: (options.deep_set, options.deep_clear),
        propagation: options.propagation.unwrap_or((MS_PRIVATE, true)),
    };
    let owners = match options.mapped {
        None => None,
        Some(deep) => Some((owners(mount, namespaces, context)?, deep)),
    };
    let root = context.style.root.as_deref().filter(|root| *root != Path::new("/"));
    if let Some(inside) = root.and_then(|root| bind.source.strip_prefix(root).ok()) {
        let source = container_path(&Path::new("/").join(inside))?;
        return of_its_own(ops, &source, &bind, owners.as_ref(), mount.destination());
    }
    let target = container_path(mount.destination())?;
    let wish = match owners {
        Some((owners, deep)) => Wish::Mapped(bind, owners, deep),
        None => Wish::Bind(bind),
    };
    // What an operator lists in an order is in that order.
    let fd = if context.style.foreign { ops.wish_later(wish) } else { ops.wish(wish) };
    ops.push(Op::Attach { fd, target: &target });
    Ok(())
}

/// Whose a mapped mount's files are: by its own maps, or those of the container.
fn owners(mount: &Mount, namespaces: &Namespaces, context: &Context<'_>) -> Result<Owners, Error> {
    let maps = match (mount.uid_mappings(), mount.gid_mappings(), &namespaces.user) {
        (Some(users), Some(groups), _) => IdMaps::of(users, groups),
        (None, None, Some(path)) => return Ok(Owners::Namespace(path.clone())),
        (None, None, None) => context.maps.clone(),
        _ => None,
    };
    maps.map(Owners::Maps).ok_or_else(|| {
        let place = mount.destination().display();
        let text = format!("mount {place}: both user and group mappings are needed");
        Error::new(Failure::InvalidSpec, text)
    })
}

/// Binds what lies beneath the container's own root: what earlier mounts have put there.
fn of_its_own(
    ops: &mut Ops,
    source: &std::ffi::CStr,
    bind: &Bind,
    owners: Option<&(Owners, bool)>,
    destination: &Path,
) -> Result<(), Error> {
    ops.push(Op::CopyTree { source, recursive: bind.recursive });
    for (recursive, (set, clear), propagation) in bind.changes().into_iter().flatten() {
        ops.push(Op::ChangeTree { recursive, set, clear, propagation });
    }
    match owners {
        None => {}
        Some((Owners::Maps(maps), deep)) => {
            let (users, groups) = (Bytes(maps.users.as_bytes()), Bytes(maps.groups.as_bytes()));
            ops.push(Op::MapTree { users, groups, recursive: *deep });
        }
        Some((Owners::Namespace(_), _)) => {
            let place = destination.display();
            let text = format!(
                "mount {place}: the container's own files are mapped by maps of the mount only"
            );
            return Err(Error::new(Failure::NotSupported, text));
        }
    }
    ops.push(Op::AttachTree { target: &container_path(destination)? });
    Ok(())
}

pub(super) fn attach(ops: &mut Ops, bind: Bind, destination: &Path) -> Result<(), Error> {
    let fd = ops.wish(Wish::Bind(bind));
    ops.push(Op::Attach { fd, target: &container_path(destination)? });
    Ok(())
}

fn filesystem(
    ops: &mut Ops,
    mount: &Mount,
    kind: &str,
    options: &Options,
    context: &Context<'_>,
) -> Result<(), Error> {
    // A filesystem that reads a device of the host's kernel is the host's
    // business; these make no use of a source.
    const HARMLESS: [&str; 6] = ["tmpfs", "devpts", "sysfs", "mqueue", "ramfs", "overlay"];
    if !HARMLESS.contains(&kind) && !context.style.foreign {
        let text =
            format!("mount of type {kind:?} on {} is not supported", mount.destination().display());
        return Err(Error::new(Failure::NotSupported, text));
    }
    let source = mount.source().as_ref().map_or(kind.as_bytes(), |source| {
        use std::os::unix::ffi::OsStrExt;
        source.as_os_str().as_bytes()
    });
    let target = container_path(mount.destination())?;
    if kind == "tmpfs" && options.copies {
        let fd = ops.wish(Wish::Copied {
            target: mount.destination().clone(),
            attributes: options.set,
            options: options.data.iter().cloned().chain(labelled(context)).collect(),
        });
        ops.push(Op::Attach { fd, target: &target });
        options.afterwards(ops, &target);
        return Ok(());
    }
    let mut flags = options.flags;
    if is_dev(mount) {
        flags &= !MS_RDONLY;
    }
    let mut data = options.data.clone();
    // As runc: the kernel labels sysfs itself, and mqueue's root takes its label late.
    data.extend(labelled(context).filter(|_| !matches!(kind, "sysfs" | "mqueue")));
    ops.push(Op::Mount {
        target: &target,
        kind: &c_string("a mount's type", kind)?,
        source: &c_string("a mount's source", source)?,
        flags,
        data: &c_string("a mount option", data.join(","))?,
        no_symlinks: kind == "sysfs",
    });
    if let Some(label) = context.mount_label.filter(|_| kind == "mqueue") {
        ops.push(Op::FileLabel { path: &target, label: Bytes(label.as_bytes()) });
    }
    options.afterwards(ops, &target);
    Ok(())
}

/// The option that labels the files of a new filesystem.
fn labelled(context: &Context<'_>) -> Option<String> {
    context.mount_label.map(|label| format!("context=\"{label}\""))
}

/// v2: its own view of the hierarchy. v1: its own group of each hierarchy.
fn cgroup(
    ops: &mut Ops,
    mount: &Mount,
    options: &Options,
    namespaces: &Namespaces,
    context: &Context<'_>,
) -> Result<(), Error> {
    let destination = mount.destination();
    let target = container_path(destination)?;
    let flags = options.flags;
    let mut new = |kind, source, flags, data| {
        let (target, no_symlinks) = (&*target, false);
        ops.push(Op::Mount { target, kind, source, flags, data, no_symlinks });
    };
    let Some(groups) = context.cgroups else {
        // Where all of the host's `/sys` was bound, its groups lie there: the kernel mounts
        // no hierarchy on itself, and only who has a namespace for it may mount it at all.
        if context.style.contained {
            new(c"tmpfs", c"tmpfs", flags, c"mode=755,size=0");
        }
        if !context.style.contained || namespaces.has(namespaces::CGROUP) {
            new(c"cgroup2", c"cgroup", flags, c"");
        }
        return Ok(());
    };
    new(c"tmpfs", c"tmpfs", flags & !MS_RDONLY, c"mode=755,size=0");
    let attributes = options.set | MountAttr::NOSUID | MountAttr::NODEV | MountAttr::NOEXEC;
    for (name, dir) in groups {
        let bind = Bind {
            source: dir.clone(),
            recursive: false,
            attributes: (attributes, 0),
            deep_attributes: (0, 0),
            propagation: (MS_PRIVATE, true),
        };
        attach(ops, bind, &destination.join(name))?;
    }
    if flags & MS_RDONLY != 0 {
        ops.push(Op::ReadOnly { path: &target });
    }
    Ok(())
}

/// Sysctls that have a namespace, and only where the container has that of its
/// own (runc `validate.sysctl`); as paths beneath procfs.
fn sysctls(
    asked: HashMap<String, String>,
    namespaces: &Namespaces,
) -> Result<Vec<(String, String)>, Error> {
    const IPC: [&str; 9] = [
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
        "kernel.msg_next_id",
    ];
    let mut all = Vec::new();
    for (name, value) in asked {
        // `a.b/c` and `a/b.c` are the two spellings; a name component may hold the other separator.
        let dotted = match name.find(['.', '/']) {
            Some(at) if name.as_bytes()[at] == b'/' => name
                .chars()
                .map(|c| match c {
                    '/' => '.',
                    '.' => '/',
                    c => c,
                })
                .collect(),
            _ => name.clone(),
        };
        let refused =
            |why: &str| Err(Error::new(Failure::InvalidSpec, format!("sysctl {name:?} {why}")));
        let needed = if IPC.contains(&dotted.as_str()) || dotted.starts_with("fs.mqueue.") {
            namespaces::IPC
        } else if dotted.starts_with("net.") {
            namespaces::NET
        } else if matches!(dotted.as_str(), "kernel.domainname" | "kernel.hostname") {
            namespaces::UTS
        } else {
            return refused("is not in a separate kernel namespace");
        };
        if !namespaces.has(needed) {
            return refused("is not allowed: the container uses the host's namespace");
        }
        let path: String = dotted
            .chars()
            .map(|c| match c {
                '.' => '/',
                '/' => '.',
                c => c,
            })
            .collect();
        if path.split('/').any(|part| matches!(part, "" | "." | "..")) || path.contains('\0') {
            return refused("is no name of a sysctl");
        }
        all.push((format!("sys/{path}"), value));
    }
    all.sort();
    Ok(all)
}

fn write_sysctls(ops: &mut Ops, sysctls: &[(String, String)]) -> Result<(), Error> {
    for (path, value) in sysctls {
        let path = c_string("a sysctl", path)?;
        ops.push(Op::Sysctl { path: &path, value: Bytes(value.as_bytes()) });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::MountBuilder;

    use super::*;

    fn options(list: &[&str]) -> Options {
        let options: Vec<String> = list.iter().map(|&option| option.to_owned()).collect();
        let mount = MountBuilder::default().destination("/x").options(options).build();
        Options::parse(&mount.expect("mount")).expect("options")
    }

    #[test]
    fn options_are_understood() {
        let both = options(&["rbind", "rro", "nosuid", "rslave", "noatime"]);
        assert!(both.bind && both.recursive);
        assert_eq!(both.deep_set, MountAttr::RDONLY);
        assert_eq!(both.set, MountAttr::NOSUID | MountAttr::NOATIME);
        assert_eq!(both.clear, MountAttr::ATIME | MountAttr::NODIRATIME);
        assert_eq!(both.propagation, Some((MS_SLAVE, true)));
        let tmpfs = options(&["ro", "rw", "size=1m", "mode=1777", "noexec"]);
        assert_eq!(tmpfs.flags, MS_NOEXEC);
        assert_eq!(tmpfs.data, ["size=1m", "mode=1777"]);
    }

    #[test]
    fn r05_nothing_is_mounted_over_proc() {
        for bad in ["/proc", "/proc/", "//proc/self", "/proc/sys", "/proc/./1/x"] {
            assert!(guard_proc(Path::new(bad), false).is_err(), "{bad}");
        }
        for good in ["/proc/cpuinfo", "/procfs", "/x/proc"] {
            assert!(guard_proc(Path::new(good), false).is_ok(), "{good}");
        }
        // What is one goes on it and not into it.
        assert!(guard_proc(Path::new("/proc"), true).is_ok());
        assert!(guard_proc(Path::new("/proc/1"), true).is_err());
    }

    #[test]
    fn s02_only_sysctls_with_a_namespace_of_our_own() {
        let host = Namespaces {
            created: u64::from(namespaces::NET),
            unshared: 0,
            joined: Vec::new(),
            user: None,
            inside: 0,
            shares_mounts: false,
            pid: super::super::PidNamespace::New,
        };
        let one = |name: &str| sysctls(HashMap::from([(name.to_owned(), "1".to_owned())]), &host);
        assert_eq!(one("net.ipv4.ip_forward").expect("net")[0].0, "sys/net/ipv4/ip_forward");
        assert_eq!(
            one("net.ipv4.conf.eth0/1.forwarding").expect("vlan")[0].0,
            "sys/net/ipv4/conf/eth0.1/forwarding"
        );
        assert_eq!(
            one("net/ipv4/conf/eth0.1/forwarding").expect("vlan")[0].0,
            "sys/net/ipv4/conf/eth0.1/forwarding"
        );
        for bad in [
            "kernel.core_pattern",
            "kernel.shmmax",
            "net..x",
            "net.",
            "vm.overcommit",
            "net/../kernel/sysrq",
        ] {
            assert!(one(bad).is_err(), "{bad}");
        }
    }
}

//! Containers of a user without privileges.
//!
//! The kernel lets such a user make one thing: a user namespace, in which he may do
//! the rest. So we make that of the specification first and become root in it, in a
//! copy of the host's mounts; from there on there is one path for everybody.
//!
//! ```text
//!  knarr-oci (1000) ──▶ idle child in a new user namespace ──▶ its maps are written
//!        │                                                     (newuidmap, for more than ourselves)
//!        └── joins it, takes mounts of its own ──▶ create(), exec() … as its root
//! ```
//!
//! What is different there: devices are the host's, bound; locked flags of the host's
//! mounts stay; control groups are passed over where they may not be made
//! ([`Manner::rootless`](crate::Manner::rootless)); who has one number only has no
//! other groups.

use std::{
    fs, io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use knarr_sys::read;
use nix::sched::{CloneFlags, setns, unshare};
use oci_spec::runtime::{LinuxNamespaceType, Spec};

use crate::{
    Child, Error, Failure, Stdio,
    launch::{Birth, launch},
    ops::IdMaps,
    plan::{Identity, USER},
};

/// We have joined one ourselves.
static JOINED: AtomicBool = AtomicBool::new(false);

/// Whether we have become root of a user's namespace ourselves.
pub(crate) fn joined() -> bool {
    JOINED.load(Relaxed)
}

/// Whether we are in a user namespace that is not the host's.
pub fn contained() -> bool {
    static BORN: OnceLock<bool> = OnceLock::new();
    // The first one maps everybody to himself (user_namespaces(7)).
    let mapped = || {
        let map = read::text("/proc/self/uid_map", read::SMALL).unwrap_or_default();
        map.split_ascii_whitespace().ne(["0", "0", "4294967295"])
    };
    joined() || *BORN.get_or_init(|| !rustix::process::geteuid().is_root() || mapped())
}

/// Whether a user's own is meant, his runtime directory and his systemd, rather than the
/// host's: not for its root, nor for who says that he is root (runc
/// `shouldHonorXDGRuntimeDir`).
pub fn is_a_users() -> bool {
    let root = std::env::var_os("USER").is_some_and(|user| user == "root");
    joined() || !rustix::process::geteuid().is_root() || contained() && !root
}

/// Makes the user namespace of a specification, becomes its root, and takes it out of
/// the specification: what is left to be made is made within it.
///
/// Whoever calls has one thread, and is another afterwards: it sees the host's files
/// by the numbers of the namespace, and what it mounts nobody else sees.
///
/// # Errors
/// The specification asks for no user namespace of its own, or for maps that the user
/// is not given (`/etc/subuid`, `/etc/subgid`).
pub fn enter(spec: &mut Spec) -> Result<(), Error> {
    let bad = |text: &str| Error::new(Failure::InvalidSpec, text);
    let linux = spec.linux().clone();
    let mut linux = linux.ok_or_else(|| bad("the specification has no linux section"))?;
    let mut namespaces = linux.namespaces().clone().unwrap_or_default();
    let own = |typ, path: &Option<_>| {
        let none =
            path.as_ref().is_none_or(|path: &std::path::PathBuf| path.as_os_str().is_empty());
        typ == LinuxNamespaceType::User && none
    };
    let before = namespaces.len();
    namespaces.retain(|one| !own(one.typ(), one.path()));
    // runc's words.
    if namespaces.len() == before {
        return Err(bad("rootless container requires user namespaces"));
    }
    let users = linux.uid_mappings().clone().unwrap_or_default();
    let groups = linux.gid_mappings().clone().unwrap_or_default();
    let maps = IdMaps::of(&users, &groups).ok_or_else(|| {
        let what = if users.is_empty() { "UID" } else { "GID" };
        bad(&format!("rootless containers requires at least one {what} mapping"))
    })?;
    join(maps.namespace()?.as_fd())?;
    unshare(CloneFlags::CLONE_NEWNS)
        .map_err(|errno| Error::system("make a mount namespace", io::Error::from(errno)))?;
    linux.set_namespaces(Some(namespaces)).set_uid_mappings(None).set_gid_mappings(None);
    spec.set_linux(Some(linux));
    Ok(())
}

/// Joins the user namespace of a process, as the user who made it; where it has ended
/// there is nothing to join.
pub fn rejoin(process: &Child) -> Result<(), Error> {
    let path = format!("/proc/{}/ns/user", process.pid());
    let namespace = fs::File::open(&path).map_err(|error| Error::system(&path, error))?;
    let own = fs::metadata("/proc/self/ns/user").map(|own| (own.dev(), own.ino()));
    let theirs = namespace.metadata().map(|theirs| (theirs.dev(), theirs.ino()));
    // The number, and with it the path, may have become another's meanwhile.
    if process.has_ended() || own.ok() == theirs.ok() {
        return Ok(());
    }
    join(namespace.as_fd())
}

fn join(namespace: BorrowedFd<'_>) -> Result<(), Error> {
    setns(namespace, CloneFlags::CLONE_NEWUSER)
        .map_err(|errno| Error::system("join the user namespace", io::Error::from(errno)))?;
    JOINED.store(true, Relaxed);
    Ok(())
}

impl IdMaps {
    /// A namespace of these maps in which nobody lives.
    pub(crate) fn namespace(&self) -> Result<OwnedFd, Error> {
        let birth = Birth { created: USER.into(), visible: true, ..Birth::default() };
        let launched = launch(&birth, &Stdio::Terminal { rows: 0, cols: 0 })?;
        let pid = launched.child.pid();
        let opened = self.write(pid).and_then(|()| {
            fs::File::open(format!("/proc/{pid}/ns/user"))
                .map_err(|error| Error::system("open a user namespace", error))
        });
        let _ = launched.child.end();
        opened.map(OwnedFd::from)
    }
}

/// The processes of a pid namespace, for who has no group to ask.
pub(crate) fn neighbours(pid: u32) -> io::Result<Vec<u32>> {
    let namespace = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/pid"));
    let wanted = namespace(pid)?;
    // Everybody's is not its own: then only it is known.
    if fs::read_link("/proc/self/ns/pid")? == wanted {
        return Ok(vec![pid]);
    }
    let all = fs::read_dir("/proc")?.flatten();
    let numbers = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    Ok(numbers.filter(|pid| namespace(*pid).is_ok_and(|other| other == wanted)).collect())
}

/// Who has no choice of groups has none but his own.
pub(crate) fn identity(identity: Identity) -> Result<Identity, Error> {
    let denied = contained()
        && read::text("/proc/self/setgroups", read::SMALL).is_ok_and(|text| text.trim() == "deny");
    if !denied {
        return Ok(identity);
    }
    if identity.groups.iter().flatten().any(|group| *group != identity.gid) {
        // runc's words.
        let text = "cannot set any additional groups in a rootless container";
        return Err(Error::new(Failure::InvalidSpec, text));
    }
    Ok(Identity { groups: None, ..identity })
}

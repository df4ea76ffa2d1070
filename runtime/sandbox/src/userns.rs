//! User namespaces: who is who in them, and mounts whose owners are mapped.
//!
//! The maps of a container's namespace are written by us, from outside, between
//! its birth and its first operation. For a mount the kernel wants a namespace
//! too: a process that does nothing is born in one, is looked at, and ends.

use std::{
    fmt, fs, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    process::{self, Command},
};

use knarr_sys::{MountAttr, mount_setattr};
use oci_spec::runtime::{LinuxIdMapping, Spec};

use crate::{
    Error, Failure,
    ops::{Bind, IdMaps, Owners, Wish},
    plan::{Namespaces, USER},
    wishes,
};

impl IdMaps {
    /// None where one of them is empty.
    pub(crate) fn of(users: &[LinuxIdMapping], groups: &[LinuxIdMapping]) -> Option<Self> {
        let lines = |maps: &[LinuxIdMapping]| {
            let line = |map: &LinuxIdMapping| {
                format!("{} {} {}\n", map.container_id(), map.host_id(), map.size())
            };
            maps.iter().map(line).collect::<String>()
        };
        let maps = Self { users: lines(users), groups: lines(groups) };
        (!maps.users.is_empty() && !maps.groups.is_empty()).then_some(maps)
    }

    /// Those of a container, where it has a user namespace of its own.
    pub(crate) fn of_spec(spec: &Spec, namespaces: &Namespaces) -> Result<Option<Self>, Error> {
        let linux = spec.linux().as_ref();
        let list = |maps: Option<&Option<Vec<LinuxIdMapping>>>| {
            maps.and_then(|maps| maps.clone()).unwrap_or_default()
        };
        let users = list(linux.map(|linux| linux.uid_mappings()));
        let groups = list(linux.map(|linux| linux.gid_mappings()));
        let bad = |text: &str| Err(Error::new(Failure::InvalidSpec, text));
        // runc's words.
        if namespaces.user.is_some() {
            // It has maps already. Podman writes some down that mean nothing, as
            // runc wants some.
            return Ok(None);
        }
        match (namespaces.created & u64::from(USER) != 0, Self::of(&users, &groups)) {
            (true, Some(maps)) => Ok(Some(maps)),
            (true, None) => bad("user namespaces enabled, but no user mapping found"),
            (false, None) => Ok(None),
            (false, Some(_)) => bad(
                "user namespace mappings specified, but user namespace isn't enabled in the config",
            ),
        }
    }

    /// Says the kernel who is who in the namespace of a process.
    pub(crate) fn write(&self, pid: u32) -> Result<(), Error> {
        let write = |file: &str, text: &str| fs::write(format!("/proc/{pid}/{file}"), text);
        match write("uid_map", &self.users) {
            // For others than himself a user asks a program that may look up whom he is given.
            Err(error) if refused(&error) => ask("newuidmap", pid, &self.users, error)?,
            other => other.map_err(|error| Error::system("write uid_map", error))?,
        }
        match write("gid_map", &self.groups) {
            Err(error) if refused(&error) => {}
            other => return other.map_err(|error| Error::system("write gid_map", error)),
        }
        // A user without privileges may not let its namespace drop groups.
        if self.groups.lines().count() == 1 && self.groups.trim_end().ends_with(" 1") {
            write("setgroups", "deny").map_err(|error| Error::system("write setgroups", error))?;
            match write("gid_map", &self.groups) {
                Err(error) if refused(&error) => ask("newgidmap", pid, &self.groups, error),
                other => other.map_err(|error| Error::system("write gid_map", error)),
            }
        } else {
            ask("newgidmap", pid, &self.groups, io::ErrorKind::PermissionDenied.into())
        }
    }
}

fn refused(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::PermissionDenied
}

/// newuidmap(1) and newgidmap(1), from the package uidmap; `refused` is what the kernel said.
fn ask(program: &str, pid: u32, map: &str, refused: io::Error) -> Result<(), Error> {
    let mut command = Command::new(program);
    command.arg(pid.to_string()).args(map.split_ascii_whitespace()).stdin(process::Stdio::null());
    let output = match command.output() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let what = format!("map users (without {program} only one's own number)");
            return Err(Error::system(what, refused));
        }
        other => other.map_err(|error| Error::system(format_args!("run {program}"), error))?,
    };
    if output.status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    Err(Error::new(Failure::InvalidSpec, format!("{program}: {}", words.trim())))
}

/// A bind mount whose owners are mapped.
pub(crate) fn mapped(bind: &Bind, owners: &Owners, deep: bool) -> Result<OwnedFd, Error> {
    let mount = wishes::bind(bind)?;
    map(mount.as_fd(), owners, deep, bind.source.display())?;
    Ok(mount)
}

/// Maps the owners of a detached mount; `what` it is, for the words of an error.
pub(crate) fn map(
    mount: BorrowedFd<'_>,
    owners: &Owners,
    deep: bool,
    what: impl fmt::Display,
) -> Result<(), Error> {
    let namespace = match owners {
        Owners::Maps(maps) => maps.namespace()?,
        Owners::Namespace(path) => wishes::open(&Wish::Namespace(path.clone()))?,
    };
    mount_setattr(mount, deep, &MountAttr::idmapped(namespace.as_fd()))
        .map_err(|errno| Error::system(format_args!("map the owners of {what}"), errno))
}

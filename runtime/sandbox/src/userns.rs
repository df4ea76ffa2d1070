//! User namespaces: who is who in them, and mounts whose owners are mapped.
//!
//! The maps of a container's namespace are written by us, from outside, between
//! its birth and its first operation. For a mount the kernel wants a namespace
//! too: a process that does nothing is born in one, is looked at, and ends.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use knarr_sys::{MountAttr, mount_setattr};
use oci_spec::runtime::{LinuxIdMapping, Spec};

use crate::{
    Error, Failure, Stdio,
    launch::{Birth, launch},
    ops::{Bind, IdMaps},
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
        let write = |file: &str, text: &str| std::fs::write(format!("/proc/{pid}/{file}"), text);
        let failed =
            |what| move |error: io::Error| Error::system(format_args!("write {what}"), error);
        write("uid_map", &self.users).map_err(failed("uid_map"))?;
        match write("gid_map", &self.groups) {
            // A user without privileges may not let its namespace drop groups.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                write("setgroups", "deny").map_err(failed("setgroups"))?;
                write("gid_map", &self.groups).map_err(failed("gid_map"))
            }
            other => other.map_err(failed("gid_map")),
        }
    }

    /// A namespace of these maps in which nobody lives.
    fn namespace(&self) -> Result<OwnedFd, Error> {
        let birth =
            Birth { created: USER.into(), network_later: false, pid_namespace: None, cgroup: None };
        let launched = launch(&birth, &Stdio::Terminal { rows: 0, cols: 0 })?;
        let pid = launched.child.pid();
        let opened = self.write(pid).and_then(|()| {
            std::fs::File::open(format!("/proc/{pid}/ns/user"))
                .map_err(|error| Error::system("open a user namespace", error))
        });
        let _ = launched.child.kill(knarr_model::Signal::KILL);
        let _ = launched.child.wait_blocking();
        opened.map(OwnedFd::from)
    }
}

/// A bind mount whose owners are mapped.
pub(crate) fn mapped(bind: &Bind, maps: &IdMaps, deep: bool) -> Result<OwnedFd, Error> {
    let mount = wishes::bind(bind)?;
    let namespace = maps.namespace()?;
    mount_setattr(mount.as_fd(), deep, &MountAttr::idmapped(namespace.as_fd())).map_err(
        |errno| Error::system(format_args!("map the owners of {}", bind.source.display()), errno),
    )?;
    Ok(mount)
}

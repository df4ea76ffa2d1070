//! Sockets to listen on.

use std::{
    collections::BTreeSet,
    fs,
    net::TcpListener,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{
            fs::{DirBuilderExt, FileTypeExt, PermissionsExt},
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};
use knarr_api::Listener;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use crate::options::Host;

/// The first descriptor that a service manager passes (sd_listen_fds(3)).
const FIRST_PASSED: i32 = 3;

/// Opens what was asked for.
pub(crate) fn open(hosts: &[Host], group: Option<&str>) -> Result<Vec<Listener>> {
    let mut listeners = Vec::new();
    for host in hosts {
        match host {
            Host::Unix(path) => {
                let socket =
                    unix(path, group).with_context(|| format!("listen on {}", path.display()))?;
                listeners.push(Listener::Unix(tokio::net::UnixListener::from_std(socket)?));
            }
            Host::Tcp(address) => {
                let socket =
                    TcpListener::bind(address).with_context(|| format!("listen on {address}"))?;
                socket.set_nonblocking(true)?;
                listeners.push(Listener::Tcp(tokio::net::TcpListener::from_std(socket)?));
            }
            Host::Activated => listeners.extend(activated().context("listen on fd://")?),
        }
    }
    Ok(listeners)
}

/// The TCP ports on which the engine is served.
pub(crate) fn ports(listeners: &[Listener]) -> Result<BTreeSet<u16>> {
    let tcp = listeners.iter().filter_map(|listener| match listener {
        Listener::Tcp(socket) => Some(socket.local_addr()),
        Listener::Unix(_) => None,
    });
    tcp.map(|address| Ok(address?.port())).collect()
}

/// A socket that its owner and one group may open. Made in a directory of its
/// own and renamed into place, so that it is never there with wider rights.
fn unix(path: &Path, group: Option<&str>) -> Result<UnixListener> {
    if let Ok(metadata) = fs::symlink_metadata(path) {
        ensure!(metadata.file_type().is_socket(), "{} exists and is no socket", path.display());
        // The roots' locks are held: whoever answers here has others.
        ensure!(UnixStream::connect(path).is_err(), "another daemon listens on {}", path.display());
    }
    let parent = path.parent().context("a socket needs a directory")?;
    fs::create_dir_all(parent)?;
    let nursery = parent.join(format!(".knarrd-{}", std::process::id()));
    let _ = knarr_tree::remove(&nursery);
    fs::DirBuilder::new().mode(0o700).create(&nursery)?;
    let made = nursery.join("s");
    let socket = (|| -> Result<UnixListener> {
        let socket = UnixListener::bind(&made)?;
        socket.set_nonblocking(true)?;
        if let Some(id) = group_id(group)? {
            std::os::unix::fs::chown(&made, None, Some(id))?;
        }
        fs::set_permissions(&made, fs::Permissions::from_mode(0o660))?;
        fs::rename(&made, path)?;
        Ok(socket)
    })();
    let _ = knarr_tree::remove(&nursery);
    socket
}

/// The group that was asked for, or one that is there for this purpose.
fn group_id(asked: Option<&str>) -> Result<Option<u32>> {
    let groups = knarr_sys::read::text("/etc/group", knarr_sys::read::LIST).unwrap_or_default();
    match asked {
        Some(name) => {
            let found = name.parse().ok().or_else(|| find_group(&groups, name));
            Ok(Some(found.with_context(|| format!("group {name} not found"))?))
        }
        None => Ok(find_group(&groups, "knarr").or_else(|| find_group(&groups, "docker"))),
    }
}

fn find_group(groups: &str, name: &str) -> Option<u32> {
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok()).flatten()
    })
}

/// Sockets of the service manager.
fn activated() -> Result<Vec<Listener>> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<i32>().ok());
    if number("LISTEN_PID") != i32::try_from(std::process::id()).ok() {
        bail!(
            "no sockets found via socket activation: make sure the service was started by systemd"
        );
    }
    let count = number("LISTEN_FDS").filter(|count| (1..=64).contains(count));
    let count = count.context("no sockets found via socket activation")?;
    (FIRST_PASSED..FIRST_PASSED + count)
        .map(|fd| passed(fd).with_context(|| format!("descriptor {fd}")))
        .collect()
}

fn passed(number: i32) -> Result<Listener> {
    let socket = duplicate(number)?;
    rustix::io::ioctl_fionbio(&socket, true)?;
    let family = rustix::net::sockopt::socket_domain(socket.as_fd())?;
    if family == rustix::net::AddressFamily::UNIX {
        return Ok(Listener::Unix(tokio::net::UnixListener::from_std(socket.into())?));
    }
    let socket = TcpListener::from(socket);
    let address = socket.local_addr()?;
    ensure!(address.ip().is_loopback(), "refusing to serve {address}: it is no loopback address");
    Ok(Listener::Tcp(tokio::net::TcpListener::from_std(socket)?))
}

/// A descriptor that this process inherited, by its number.
fn duplicate(number: i32) -> Result<OwnedFd> {
    let myself = Pid::from_raw(i32::try_from(std::process::id())?).context("no process id")?;
    let pidfd = pidfd_open(myself, PidfdFlags::empty())?;
    Ok(pidfd_getfd(&pidfd, number, PidfdGetfdFlags::empty())?)
}

/// Unix sockets that are removed at the end.
pub(crate) fn paths(hosts: &[Host]) -> Vec<PathBuf> {
    let path = |host: &Host| match host {
        Host::Unix(path) => Some(path.clone()),
        Host::Tcp(_) | Host::Activated => None,
    };
    hosts.iter().filter_map(path).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a01_the_socket_is_not_for_everybody() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b.sock");
        let socket = unix(&path, Some("0")).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o660);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        // Somebody answers: refused. Nobody does: replaced.
        assert!(unix(&path, None).is_err());
        drop(socket);
        unix(&path, None).unwrap();
    }

    #[test]
    fn what_is_no_socket_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "precious").unwrap();
        assert!(unix(&path, None).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn groups_are_found() {
        let groups = "root:x:0:\ndocker:x:998:me,you\n";
        assert_eq!(find_group(groups, "docker"), Some(998));
        assert_eq!(find_group(groups, "knarr"), None);
    }
}

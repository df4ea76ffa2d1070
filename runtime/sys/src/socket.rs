//! Unix sockets that only their owner can open.

use std::{
    fs::{File, Permissions},
    io,
    os::{
        fd::AsRawFd as _,
        unix::{ffi::OsStrExt as _, fs::PermissionsExt as _, net::UnixListener},
    },
    path::Path,
};

use rustix::{
    fs::{Mode, fchmod},
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with},
};

/// What `sun_path` of a socket's address holds, with its end (unix(7)).
const ADDRESS: usize = 108;

/// Connections that wait to be accepted; the kernel has a limit of its own below it.
const BACKLOG: i32 = 4096;

/// Listens at a path of any length, with mode 0600 from its first moment, whatever
/// the umask says. What does not fit into an address is reached through its
/// directory, which must exist.
///
/// # Errors
/// The kernel's: `AddrInUse` where something has that name.
pub fn listen_privately(path: &Path) -> io::Result<UnixListener> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // bind(2) gives the name the socket's own mode, less the bits of the umask.
    let mode = Mode::RUSR | Mode::WUSR;
    fchmod(&socket, mode)?;
    let directory;
    let address = if path.as_os_str().as_bytes().len() < ADDRESS {
        SocketAddrUnix::new(path)?
    } else {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        directory = File::open(parent)?;
        let number = directory.as_raw_fd().to_string();
        SocketAddrUnix::new(Path::new("/proc/self/fd").join(number).join(name))?
    };
    bind(&socket, &address)?;
    // A umask that takes away what the owner needs is not meant for this.
    std::fs::set_permissions(path, Permissions::from_mode(mode.bits()))?;
    listen(&socket, BACKLOG)?;
    Ok(UnixListener::from(socket))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn s06_a_socket_is_its_owners_alone_wherever_it_lies() {
        let dir = tempfile::tempdir().expect("a directory");
        let deep = dir.path().join("d".repeat(100)).join("e".repeat(100));
        std::fs::create_dir_all(&deep).expect("a long path");
        for path in [dir.path().join("short"), deep.join("long")] {
            let before = rustix::process::umask(Mode::empty());
            let listener = listen_privately(&path);
            rustix::process::umask(before);
            let listener = listener.expect("a socket");
            assert_eq!(std::fs::metadata(&path).expect("its name").mode() & 0o7777, 0o600);
            let taken = listen_privately(&path).expect_err("the name is taken");
            assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
            drop(listener);
        }
    }
}

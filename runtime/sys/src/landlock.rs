//! landlock(7): a process gives up files, ports and neighbours that it was not granted.
//!
//! ```text
//!  Ruleset::new ─ allow a tree, a port … ─ restrict ─▶ this thread, and those it starts
//! ```
//!
//! What is restricted is all that the kernel knows to restrict; older kernels know
//! less, and what they do not know stays as it is. So this is a second line behind
//! mounts, namespaces and filters, never the only one.

use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use rustix::io::Errno;

use crate::process::check;

const EXECUTE: u64 = 1 << 0;
const WRITE_FILE: u64 = 1 << 1;
const READ_FILE: u64 = 1 << 2;
const READ_DIR: u64 = 1 << 3;
const REMOVE_DIR: u64 = 1 << 4;
const REMOVE_FILE: u64 = 1 << 5;
const MAKE_CHAR: u64 = 1 << 6;
const MAKE_DIR: u64 = 1 << 7;
const MAKE_REG: u64 = 1 << 8;
const MAKE_SOCK: u64 = 1 << 9;
const MAKE_FIFO: u64 = 1 << 10;
const MAKE_BLOCK: u64 = 1 << 11;
const MAKE_SYM: u64 = 1 << 12;
const REFER: u64 = 1 << 13;
const TRUNCATE: u64 = 1 << 14;
const IOCTL_DEV: u64 = 1 << 15;

const READING: u64 = READ_FILE | READ_DIR;
/// Files, directories and links; no devices, sockets or pipes.
const WRITING: u64 = READING
    | WRITE_FILE
    | REMOVE_DIR
    | REMOVE_FILE
    | MAKE_DIR
    | MAKE_REG
    | MAKE_SYM
    | REFER
    | TRUNCATE;

const BIND_TCP: u64 = 1;
const CONNECT_TCP: u64 = 2;
const ABSTRACT_UNIX_SOCKET: u64 = 1;
const SIGNAL: u64 = 2;

/// What is done with TCP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tcp {
    /// Nothing.
    Denied,
    /// Connections go anywhere; ports are bound that [`Ruleset::allow_port`] names.
    BindsGranted,
}

/// `struct landlock_ruleset_attr`.
#[repr(C)]
#[derive(Default)]
struct Attr {
    files: u64,
    net: u64,
    scoped: u64,
}

/// `struct landlock_path_beneath_attr`.
#[repr(C, packed)]
struct PathBeneath {
    allowed: u64,
    parent: i32,
}

/// `struct landlock_net_port_attr`.
#[repr(C)]
struct Port {
    allowed: u64,
    port: u64,
}

/// Rules that are not in force yet.
#[derive(Debug)]
pub struct Ruleset {
    fd: OwnedFd,
    files: u64,
    net: u64,
}

impl Ruleset {
    /// Denies every use of files by name, what `tcp` says of TCP, and signals and abstract
    /// sockets of processes outside. None where the kernel has no Landlock, or the first
    /// one, which lets nobody move a file between directories (before Linux 5.19).
    ///
    /// # Errors
    /// Where the kernel has it and refuses.
    pub fn new(tcp: Tcp) -> Result<Option<Self>, Errno> {
        const VERSION: u32 = 1;
        // JUSTIFICATION: neither nix nor rustix has Landlock.
        // SAFETY: no memory is passed.
        let version = unsafe {
            libc::syscall(
                libc::SYS_landlock_create_ruleset,
                std::ptr::null::<Attr>(),
                0usize,
                VERSION,
            )
        };
        let version = match check(version) {
            Ok(version) => version,
            // Not built in, not switched on, or a filter of system calls that does not know it.
            Err(Errno::NOSYS | Errno::OPNOTSUPP | Errno::PERM) => return Ok(None),
            Err(error) => return Err(error),
        };
        if version < 2 {
            return Ok(None);
        }
        let mut files = EXECUTE | WRITING | MAKE_CHAR | MAKE_SOCK | MAKE_FIFO | MAKE_BLOCK;
        if version < 3 {
            files &= !TRUNCATE;
        }
        if version >= 5 {
            files |= IOCTL_DEV;
        }
        let net = match tcp {
            _ if version < 4 => 0,
            Tcp::Denied => BIND_TCP | CONNECT_TCP,
            Tcp::BindsGranted => BIND_TCP,
        };
        let scoped = if version < 6 { 0 } else { ABSTRACT_UNIX_SOCKET | SIGNAL };
        let attr = Attr { files, net, scoped };
        // SAFETY: the structure is the kernel's, and read during the call only; fields that
        // the kernel does not know yet are zero.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_landlock_create_ruleset,
                &raw const attr,
                size_of::<Attr>(),
                0u32,
            )
        };
        let fd = check(fd)? as i32;
        // SAFETY: a new descriptor, which nobody else knows; close-on-exec, as the manual says.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Some(Self { fd, files, net }))
    }

    /// Whether the kernel restricts TCP (Linux 6.7).
    pub fn knows_tcp(&self) -> bool {
        self.net != 0
    }

    /// Allows what lies beneath a directory: to read, and to write where `write` is set.
    ///
    /// # Errors
    /// Where it is no directory.
    pub fn allow_tree(&self, tree: BorrowedFd<'_>, write: bool) -> Result<(), Errno> {
        const PATH_BENEATH: u32 = 1;
        let allowed = self.files & if write { WRITING } else { READING };
        let rule = PathBeneath { allowed, parent: tree.as_raw_fd() };
        self.add(PATH_BENEATH, (&raw const rule).cast())
    }

    /// Allows to bind a TCP port; 0 is any that the kernel chooses.
    ///
    /// # Errors
    /// The kernel's.
    pub fn allow_port(&self, port: u16) -> Result<(), Errno> {
        const NET_PORT: u32 = 2;
        if self.net & BIND_TCP == 0 {
            return Ok(());
        }
        let rule = Port { allowed: BIND_TCP, port: port.into() };
        self.add(NET_PORT, (&raw const rule).cast())
    }

    fn add(&self, kind: u32, rule: *const libc::c_void) -> Result<(), Errno> {
        // SAFETY: the callers above pass the structure of this kind, which is read during
        // the call only.
        let added = unsafe {
            libc::syscall(libc::SYS_landlock_add_rule, self.fd.as_raw_fd(), kind, rule, 0u32)
        };
        check(added).map(drop)
    }

    /// Puts the rules in force for this thread and those that it starts from now on.
    ///
    /// # Errors
    /// Where `no_new_privs` is not set.
    pub fn restrict(self) -> Result<(), Errno> {
        // SAFETY: no memory is passed.
        let done =
            unsafe { libc::syscall(libc::SYS_landlock_restrict_self, self.fd.as_raw_fd(), 0u32) };
        check(done).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        net::{TcpListener, TcpStream},
        os::{fd::AsFd as _, unix::net::UnixListener},
        thread,
    };

    use super::*;

    /// In a thread of its own: nothing is given back.
    fn restricted(
        tcp: Tcp,
        rules: impl FnOnce(&Ruleset) + Send + 'static,
        then: fn(&str),
        dir: String,
    ) -> bool {
        thread::spawn(move || {
            rustix::thread::set_no_new_privs(true).unwrap();
            let Some(ruleset) = Ruleset::new(tcp).unwrap() else { return false };
            rules(&ruleset);
            ruleset.restrict().unwrap();
            then(&dir);
            true
        })
        .join()
        .unwrap()
    }

    #[test]
    fn w27_files_and_ports_are_those_that_were_granted() {
        let dir = tempfile::tempdir().unwrap();
        let name = dir.path().to_str().unwrap().to_owned();
        for part in ["read", "write"] {
            fs::create_dir(dir.path().join(part)).unwrap();
        }
        fs::write(dir.path().join("read/file"), "x").unwrap();
        fs::write(dir.path().join("other"), "x").unwrap();
        let (read, write) = (
            fs::File::open(dir.path().join("read")).unwrap(),
            fs::File::open(dir.path().join("write")).unwrap(),
        );
        let rules = move |ruleset: &Ruleset| {
            ruleset.allow_tree(read.as_fd(), false).unwrap();
            ruleset.allow_tree(write.as_fd(), true).unwrap();
        };
        let done = restricted(
            Tcp::Denied,
            rules,
            |dir| {
                let denied = |result: std::io::Result<()>| {
                    assert_eq!(result.unwrap_err().kind(), std::io::ErrorKind::PermissionDenied);
                };
                assert_eq!(fs::read_to_string(format!("{dir}/read/file")).unwrap(), "x");
                denied(fs::write(format!("{dir}/read/file"), "y"));
                denied(fs::write(format!("{dir}/read/new"), "y"));
                denied(fs::read(format!("{dir}/other")).map(drop));
                denied(fs::read("/etc/passwd").map(drop));
                fs::write(format!("{dir}/write/new"), "y").unwrap();
                fs::create_dir(format!("{dir}/write/sub")).unwrap();
                fs::rename(format!("{dir}/write/new"), format!("{dir}/write/sub/new")).unwrap();
                denied(UnixListener::bind(format!("{dir}/write/socket")).map(drop));
                denied(TcpListener::bind("127.0.0.1:0").map(drop));
                denied(TcpStream::connect("127.0.0.1:1").map(drop));
            },
            name,
        );
        if !done {
            eprintln!("this kernel has no Landlock");
        }
    }

    #[test]
    fn w27_only_granted_ports_are_bound() {
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        restricted(
            Tcp::BindsGranted,
            move |ruleset| ruleset.allow_port(free).unwrap(),
            |port| {
                let port: u16 = port.parse().unwrap();
                drop(TcpListener::bind(("127.0.0.1", port)).unwrap());
                let denied = TcpListener::bind("127.0.0.1:0").unwrap_err();
                assert_eq!(denied.kind(), std::io::ErrorKind::PermissionDenied);
                let refused = TcpStream::connect(("127.0.0.1", port)).unwrap_err();
                assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
            },
            free.to_string(),
        );
    }
}

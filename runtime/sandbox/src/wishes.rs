//! Opening what a launch needs, in the host's namespaces: detached mounts,
//! namespaces, files. Nothing becomes visible anywhere; closing is undoing.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use knarr_sys::{MountAttr, mount_setattr, read};
use oci_spec::runtime::Spec;
use rustix::{
    fs::{MemfdFlags, Mode, OFlags, SealFlags},
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags, fsconfig_create,
        fsconfig_set_string, fsmount, fsopen, open_tree,
    },
};

use crate::{
    Error, Failure, RootfsMount, Stdio,
    ops::{Bind, Wish},
    overlay, userns,
};

/// Opens one wish. The root is the caller's: it may have been needed earlier.
pub(crate) fn open(wish: &Wish) -> Result<OwnedFd, Error> {
    match wish {
        Wish::Root
        | Wish::Container
        | Wish::Inherited(_)
        | Wish::Listener
        | Wish::Copied { .. } => {
            Err(Error::new(Failure::System, "a descriptor of the caller's was asked for twice"))
        }
        Wish::Empty { mode } => empty(*mode),
        Wish::Namespace(path) | Wish::File(path) => file(path),
        Wish::Tasks(path) => OpenOptions::new()
            .write(true)
            .open(path)
            .map(OwnedFd::from)
            .map_err(|error| Error::system(format_args!("open {}", path.display()), error)),
        Wish::Bind(wish) => {
            if wish.propagation.0 == 1 << 20 {
                consented(&wish.source)?;
            }
            bind(wish)
        }
        Wish::Mapped(wish, owners, deep) => userns::mapped(wish, owners, *deep),
        Wish::Data(bytes) => sealed("knarr-data", bytes.as_bytes(), false),
    }
}

fn file(path: &Path) -> Result<OwnedFd, Error> {
    File::open(path)
        .map(OwnedFd::from)
        .map_err(|error| Error::system(format_args!("open {}", path.display()), error))
}

/// Bytes in memory that nobody can change any more.
pub(crate) fn sealed(name: &str, bytes: &[u8], executable: bool) -> Result<OwnedFd, Error> {
    let make = || -> io::Result<OwnedFd> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let wanted = flags | if executable { MemfdFlags::EXEC } else { MemfdFlags::NOEXEC_SEAL };
        let fd = match rustix::fs::memfd_create(name, wanted) {
            // Before Linux 6.3 there was no such flag, and everything was executable.
            Err(Errno::INVAL) => rustix::fs::memfd_create(name, flags)?,
            other => other?,
        };
        let mut file = File::from(fd);
        file.write_all(bytes)?;
        io::Seek::rewind(&mut file)?;
        let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
        rustix::fs::fcntl_add_seals(&file, seals)?;
        Ok(file.into())
    };
    make().map_err(|error| Error::system(format_args!("make {name} in memory"), error))
}

pub(crate) fn empty(mode: u32) -> Result<OwnedFd, Error> {
    let make = || -> Result<OwnedFd, Errno> {
        let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(context.as_fd(), "mode", format!("{mode:o}"))?;
        // Room for mount points and nothing else.
        fsconfig_set_string(context.as_fd(), "size", "64k")?;
        fsconfig_create(context.as_fd())?;
        let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
    };
    make().map_err(|errno| Error::system("make an empty root", errno))
}

/// A detached copy of what is at a path of the host.
pub(crate) fn bind(wish: &Bind) -> Result<OwnedFd, Error> {
    let failed =
        |errno: Errno| Error::system(format_args!("bind {}", wish.source.display()), errno);
    let deep = if wish.recursive { OpenTreeFlags::AT_RECURSIVE } else { OpenTreeFlags::empty() };
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | deep;
    let mount = match container_path(&wish.source) {
        Some((namespace, inside)) => of_container(&namespace, &inside, flags).map_err(failed)?,
        None => open_tree(rustix::fs::CWD, &wish.source, flags).map_err(failed)?,
    };
    for (recursive, (set, clear), propagation) in wish.changes().into_iter().flatten() {
        let change = MountAttr::new(set, clear, propagation);
        mount_setattr(mount.as_fd(), recursive, &change).map_err(failed)?;
    }
    Ok(mount)
}

/// The mount namespace and the path in it of `/proc/PID/root/…`.
fn container_path(source: &Path) -> Option<(PathBuf, PathBuf)> {
    let mut words = source.strip_prefix("/proc").ok()?.components();
    let process = Path::new("/proc").join(words.next()?);
    let rest = words.as_path().strip_prefix("root").ok()?;
    Some((process.join("ns/mnt"), Path::new("/").join(rest)))
}

/// A detached copy of a mount of another container's. The kernel clones mounts of
/// the caller's own namespace only: a thread goes there, and ends.
fn of_container(namespace: &Path, path: &Path, flags: OpenTreeFlags) -> Result<OwnedFd, Errno> {
    use nix::sched::{CloneFlags, setns, unshare};
    let namespace = rustix::fs::open(namespace, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let errno = |errno: nix::errno::Errno| Errno::from_raw_os_error(errno as i32);
    let work = || {
        // The thread's own view of the filesystem, which joining needs.
        unshare(CloneFlags::CLONE_FS).map_err(errno)?;
        setns(&namespace, CloneFlags::CLONE_NEWNS).map_err(errno)?;
        // What lies there is the other container's: no link of its leads on.
        open_tree(rustix::fs::CWD, path, flags | OpenTreeFlags::AT_SYMLINK_NOFOLLOW)
    };
    std::thread::scope(|scope| scope.spawn(work).join()).unwrap_or(Err(Errno::IO))
}

/// Sharing is for the host to grant.
fn consented(source: &Path) -> Result<(), Error> {
    if is_shared(source).unwrap_or(false) {
        return Ok(());
    }
    // Docker's words.
    let text = format!("path {} is mounted but it is not a shared mount", source.display());
    Err(Error::new(Failure::InvalidSpec, text))
}

/// `/proc/thread-self/mountinfo` (proc_pid_mountinfo(5)): bytes, for so are its paths.
pub(crate) fn mountinfo() -> io::Result<Vec<u8>> {
    read::bytes("/proc/thread-self/mountinfo", read::LIST)
}

/// Whether the mount that a path lies on has peers.
fn is_shared(path: &Path) -> io::Result<bool> {
    use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
    let id = statx(CWD, path, AtFlags::empty(), StatxFlags::MNT_ID)?.stx_mnt_id.to_string();
    let mounts = read::lossy(mountinfo()?);
    Ok(mounts.lines().any(|line| {
        let mut words = line.split(' ');
        words.next() == Some(id.as_str())
            && words.skip(5).take_while(|word| *word != "-").any(|word| word.starts_with("shared:"))
    }))
}

/// Where the host's procfs and sysfs are mounted, the last one first.
pub(crate) fn kernel_mounts() -> Result<Vec<std::ffi::CString>, Error> {
    let mounts = mountinfo().map_err(|error| Error::system("read the host's mounts", error))?;
    Ok(kernel_mounts_of(&mounts))
}

fn kernel_mounts_of(mounts: &[u8]) -> Vec<std::ffi::CString> {
    let place = |line: &[u8]| {
        let mut words = line.split(|byte| *byte == b' ');
        let place = words.nth(4)?;
        let kind = words.skip_while(|word| *word != b"-").nth(1)?;
        matches!(kind, b"proc" | b"sysfs")
            .then(|| std::ffi::CString::new(unescaped(place)).ok())
            .flatten()
    };
    mounts.split(|byte| *byte == b'\n').rev().filter_map(place).collect()
}

/// A path of mountinfo: blanks, line ends and backslashes are three octal digits there.
fn unescaped(path: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path;
    while let [first, behind @ ..] = rest {
        let octal = behind.get(..3).filter(|digits| {
            *first == b'\\' && digits.iter().all(|digit| (b'0'..=b'7').contains(digit))
        });
        match octal {
            Some(digits) => {
                let value =
                    digits.iter().fold(0u32, |sum, digit| sum * 8 + u32::from(digit - b'0'));
                bytes.push(value as u8);
                rest = &behind[3..];
            }
            None => {
                bytes.push(*first);
                rest = behind;
            }
        }
    }
    bytes
}

/// A pair of the host's own devpts: streams for a program that sees no devpts,
/// and the master.
pub(crate) fn terminal(rows: u16, cols: u16) -> Result<(Stdio, Option<OwnedFd>), Error> {
    use rustix::{
        pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt},
        termios::{Winsize, tcsetwinsize},
    };
    let make = || -> io::Result<(Stdio, OwnedFd)> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let slave = ioctl_tiocgptpeer(&master, flags)?;
        if rows != 0 && cols != 0 {
            let size = Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 };
            tcsetwinsize(&master, size)?;
        }
        let (stdout, stderr) = (slave.try_clone()?, slave.try_clone()?);
        Ok((Stdio::Fds { stdin: slave, stdout, stderr }, master))
    };
    let (stdio, master) = make().map_err(|error| Error::system("open a terminal", error))?;
    Ok((stdio, Some(master)))
}

/// The root filesystem as a detached mount.
pub(crate) fn root(mounts: &[RootfsMount], spec: &Spec, bundle: &Path) -> Result<OwnedFd, Error> {
    match mounts {
        [] => {
            let mut wish = plain(root_path(spec, bundle)?, true);
            let linux = spec.linux().as_ref();
            let propagation = linux.and_then(|linux| linux.rootfs_propagation().as_deref());
            if matches!(propagation, Some("slave" | "rslave")) {
                // What the host mounts there later arrives.
                wish.propagation.0 = 1 << 19;
            }
            bind(&wish)
        }
        [one] if one.kind == "overlay" => overlay::mount(&one.options),
        [one] if matches!(one.kind.as_str(), "bind" | "none" | "") => {
            let has = |name: &str| one.options.iter().any(|option| option == name);
            // A colon separates layers.
            let plain_name = one.source.to_str().filter(|source| !source.contains([':', '\\']));
            if let Some(source) = plain_name.filter(|_| has("ro") && !has("rbind")) {
                return overlay::mount(&[format!("lowerdir={source}")]);
            }
            let mut wish = plain(one.source.clone(), has("rbind"));
            if has("ro") {
                wish.attributes.0 = MountAttr::RDONLY;
            }
            bind(&wish)
        }
        [one] => {
            let text = format!("root filesystem of type {:?} is not supported", one.kind);
            Err(Error::new(Failure::NotSupported, text))
        }
        _ => {
            let text = "a root filesystem of several mounts is not supported";
            Err(Error::new(Failure::NotSupported, text))
        }
    }
}

/// Where the root filesystem is on the host.
pub(crate) fn root_path(spec: &Spec, bundle: &Path) -> Result<PathBuf, Error> {
    let root = spec
        .root()
        .as_ref()
        .ok_or_else(|| Error::new(Failure::InvalidSpec, "the specification has no root"))?;
    let path = bundle.join(root.path());
    path.canonicalize()
        .map_err(|error| Error::system(format_args!("root filesystem {}", path.display()), error))
}

pub(crate) fn plain(source: PathBuf, recursive: bool) -> Bind {
    Bind {
        source,
        recursive,
        attributes: (0, 0),
        deep_attributes: (0, 0),
        propagation: (1 << 18, true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_of_procfs_are_found_at_any_path() {
        let text = b"22 1 0:20 / / rw - ext4 /dev/a rw\n\
            23 22 0:21 / /proc rw,nosuid shared:5 master:2 - proc proc rw\n\
            24 22 0:22 / /a\\040b\\134\xff rw - sysfs - rw\n";
        let found = kernel_mounts_of(text);
        let found: Vec<&[u8]> = found.iter().map(|path| path.as_bytes()).collect();
        assert_eq!(found, [&b"/a b\\\xff"[..], b"/proc"]);
    }

    #[test]
    fn r01_memory_is_sealed() {
        let fd = sealed("test", b"abc", true).expect("memfd");
        assert_eq!(rustix::io::write(&fd, b"x"), Err(Errno::PERM));
        assert_eq!(rustix::fs::ftruncate(&fd, 1), Err(Errno::PERM));
        let seals = rustix::fs::fcntl_get_seals(&fd).expect("seals");
        assert!(seals.contains(SealFlags::SEAL | SealFlags::WRITE));
        let mut text = String::new();
        io::Read::read_to_string(&mut File::from(fd), &mut text).expect("read");
        assert_eq!(text, "abc");
    }
}

//! Opening what a launch needs, in the host's namespaces: detached mounts,
//! namespaces, files. Nothing becomes visible anywhere; closing is undoing.

use std::{
    fs::File,
    io::{self, Write},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use knarr_sys::{MountAttr, mount_setattr};
use oci_spec::runtime::Spec;
use rustix::{
    fs::{MemfdFlags, Mode, OFlags, SealFlags},
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_fd,
        fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, open_tree,
    },
};

use crate::{
    Error, Failure, RootfsMount, Stdio,
    error::describe,
    ops::{Bind, Wish},
};

/// Longest string that fsconfig takes, with its zero byte.
const FSCONFIG_STRING: usize = 256;

/// Opens one wish. The root is the caller's: it may have been needed earlier.
pub(crate) fn open(wish: &Wish) -> Result<OwnedFd, Error> {
    match wish {
        Wish::Root | Wish::Container => {
            Err(Error::new(Failure::System, "a descriptor of the caller's was asked for twice"))
        }
        Wish::Empty { mode } => empty(*mode),
        Wish::Namespace(path) | Wish::File(path) => file(path),
        Wish::Bind(wish) => bind(wish),
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

fn empty(mode: u32) -> Result<OwnedFd, Error> {
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
    let mount = open_tree(rustix::fs::CWD, &wish.source, flags).map_err(failed)?;
    let (propagation, everywhere) = wish.propagation;
    if propagation == 1 << 20 && !is_shared(&wish.source).unwrap_or(false) {
        // Docker's words: sharing is for the host to grant.
        let text =
            format!("path {} is mounted but it is not a shared mount", wish.source.display());
        return Err(Error::new(Failure::InvalidSpec, text));
    }
    let attr = |(set, clear), propagation| MountAttr::new(set, clear, propagation);
    let nothing = MountAttr::default();
    if !wish.recursive {
        // One mount: what is for all of them is for it.
        let ((set, clear), (more, less)) = (wish.attributes, wish.deep_attributes);
        let change = attr((set | more, clear | less), propagation);
        mount_setattr(mount.as_fd(), false, &change).map_err(failed)?;
        return Ok(mount);
    }
    let (one, all) = if everywhere { (0, propagation) } else { (propagation, 0) };
    for (recursive, attr) in
        [(true, attr(wish.deep_attributes, all)), (false, attr(wish.attributes, one))]
    {
        if attr != nothing {
            mount_setattr(mount.as_fd(), recursive, &attr).map_err(failed)?;
        }
    }
    Ok(mount)
}

/// Whether the mount that a path lies on has peers.
fn is_shared(path: &Path) -> io::Result<bool> {
    use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
    let id = statx(CWD, path, AtFlags::empty(), StatxFlags::MNT_ID)?.stx_mnt_id.to_string();
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    Ok(mounts.lines().any(|line| {
        let mut words = line.split(' ');
        words.next() == Some(id.as_str())
            && words.skip(5).take_while(|word| *word != "-").any(|word| word.starts_with("shared:"))
    }))
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
            let root = spec
                .root()
                .as_ref()
                .ok_or_else(|| Error::new(Failure::InvalidSpec, "the specification has no root"))?;
            let path = bundle.join(root.path());
            let path = path.canonicalize().map_err(|error| {
                Error::system(format_args!("root filesystem {}", path.display()), error)
            })?;
            bind(&plain(path, true))
        }
        [one] if one.kind == "overlay" => overlay(&one.options),
        [one] if matches!(one.kind.as_str(), "bind" | "none" | "") => {
            let has = |name: &str| one.options.iter().any(|option| option == name);
            if has("ro") && !has("rbind") {
                return overlay(&[format!("lowerdir={}", one.source.display())]);
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

fn plain(source: PathBuf, recursive: bool) -> Bind {
    Bind {
        source,
        recursive,
        attributes: (0, 0),
        deep_attributes: (0, 0),
        propagation: (1 << 18, true),
    }
}

/// An overlay of any number of layers: each is a parameter of its own, so
/// neither their number nor the sum of their lengths is limited by a page.
fn overlay(options: &[String]) -> Result<OwnedFd, Error> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)
        .map_err(|errno| Error::system("overlay", errno))?;
    let mut attributes = MountAttrFlags::empty();
    let mut upper = false;
    let mut layers: &str = "";
    for option in options {
        let result = match option.split_once('=') {
            Some(("lowerdir", dirs)) => {
                layers = dirs;
                Ok(())
            }
            Some((name @ ("upperdir" | "workdir"), dir)) => {
                upper = true;
                layer(context.as_fd(), name, Path::new(dir))
            }
            Some((name, value)) => {
                fsconfig_set_string(context.as_fd(), name, value).map_err(io::Error::from)
            }
            None => {
                match option.as_str() {
                    "ro" => attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY,
                    "nosuid" => attributes |= MountAttrFlags::MOUNT_ATTR_NOSUID,
                    "nodev" => attributes |= MountAttrFlags::MOUNT_ATTR_NODEV,
                    "rw" => {}
                    flag => fsconfig_set_flag(context.as_fd(), flag)
                        .map_err(|errno| overlay_error(context.as_fd(), option, errno.into()))?,
                }
                Ok(())
            }
        };
        result.map_err(|error| overlay_error(context.as_fd(), option, error))?;
    }
    // Without a writable layer there would be no place for mount points that
    // the image does not have: a scratch image has no /proc. What is made there
    // is in memory and dies with the mount.
    let scratch = if upper { None } else { scratch(context.as_fd()) };
    // Overlayfs wants two layers or a writable one.
    if layers.split(':').count() == 1 && !upper && scratch.is_none() {
        let mut wish = plain(PathBuf::from(layers), false);
        wish.attributes.0 = MountAttr::RDONLY;
        return bind(&wish);
    }
    let mut one_by_one = true;
    for dir in layers.split(':') {
        match layer(context.as_fd(), "lowerdir+", Path::new(dir)) {
            Ok(()) => {}
            // Before Linux 6.7 there was no such parameter.
            Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
                one_by_one = false;
                break;
            }
            Err(error) => return Err(overlay_error(context.as_fd(), dir, error)),
        }
    }
    if !one_by_one {
        fsconfig_set_string(context.as_fd(), "lowerdir", layers)
            .map_err(|errno| overlay_error(context.as_fd(), "lowerdir", errno.into()))?;
    }
    fsconfig_create(context.as_fd())
        .map_err(|errno| overlay_error(context.as_fd(), "create", errno.into()))?;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
        .map_err(|errno| Error::system("mount overlay", errno))
}

/// A writable layer in memory; none before Linux 6.13, which takes no
/// descriptors for layers.
fn scratch(context: BorrowedFd<'_>) -> Option<OwnedFd> {
    let tmpfs = empty(0o755).ok()?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    for (name, dir) in [("upperdir", "upper"), ("workdir", "work")] {
        rustix::fs::mkdirat(&tmpfs, dir, 0o755.into()).ok()?;
        let dir = rustix::fs::openat(&tmpfs, dir, flags, Mode::empty()).ok()?;
        fsconfig_set_fd(context, name, dir.as_fd()).ok()?;
    }
    Some(tmpfs)
}

fn layer(context: BorrowedFd<'_>, name: &str, dir: &Path) -> io::Result<()> {
    if dir.as_os_str().len() < FSCONFIG_STRING {
        return Ok(fsconfig_set_string(context, name, dir.as_os_str().as_bytes())?);
    }
    // Since Linux 6.13 overlayfs takes layers as descriptors, however long their path.
    let fd =
        rustix::fs::open(dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    Ok(fsconfig_set_fd(context, name, fd.as_fd())?)
}

/// The error with what the kernel wrote about it to the context's log.
fn overlay_error(context: BorrowedFd<'_>, what: &str, error: io::Error) -> Error {
    let mut buffer = [0u8; 1024];
    let mut said = String::new();
    while let Ok(count) = rustix::io::read(context, &mut buffer) {
        let line = String::from_utf8_lossy(&buffer[..count]);
        let line = line.trim().trim_start_matches(['e', 'w', 'i', ' ']);
        said.push_str(if said.is_empty() { "" } else { "; " });
        said.push_str(line);
    }
    let what: String = what.chars().take(100).collect();
    let text = if said.is_empty() { describe(&error) } else { said };
    Error::system(format_args!("mount overlay ({what}: {text})"), error)
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn i18_five_hundred_layers_are_mounted() {
        let dir = tempfile::tempdir().expect("tempdir");
        // Long names, so that all of them would not fit in a page by far.
        let name = "l".repeat(180);
        let mut dirs = Vec::new();
        for number in 0..500 {
            let layer = dir.path().join(format!("{name}{number}"));
            std::fs::create_dir(&layer).expect("layer");
            std::fs::write(layer.join(format!("f{number}")), "").expect("file");
            dirs.push(layer.display().to_string());
        }
        for one in ["upper", "work"] {
            std::fs::create_dir(dir.path().join(one)).expect("dir");
        }
        let options = [
            format!("lowerdir={}", dirs.join(":")),
            format!("upperdir={}/upper", dir.path().display()),
            format!("workdir={}/work", dir.path().display()),
        ];
        let mount = overlay(&options).expect("overlay");
        for number in [0, 250, 499] {
            rustix::fs::statat(&mount, format!("f{number}"), rustix::fs::AtFlags::empty())
                .expect("a file of each layer");
        }
    }

    #[test]
    fn a_layer_with_a_very_long_path_is_mounted() {
        let dir = tempfile::tempdir().expect("tempdir");
        let deep = dir.path().join("d".repeat(200)).join("e".repeat(200));
        let other = dir.path().join("other");
        std::fs::create_dir_all(&deep).expect("deep");
        std::fs::create_dir_all(&other).expect("other");
        std::fs::write(deep.join("file"), "").expect("file");
        let options = [format!("lowerdir={}:{}", deep.display(), other.display())];
        let mount = overlay(&options).expect("overlay");
        rustix::fs::statat(&mount, "file", rustix::fs::AtFlags::empty()).expect("file");
    }

    #[test]
    fn a_missing_layer_is_named() {
        let error = overlay(&["lowerdir=/nonexistent-a:/nonexistent-b".to_owned()]);
        let text = error.expect_err("no such layer").to_string();
        assert!(text.contains("nonexistent"), "{text}");
    }
}

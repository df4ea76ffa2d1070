//! `tmpcopyup`: a tmpfs with what the root filesystem has at its place.
//!
//! The image's tree is read beneath the root and without following its links;
//! files, directories, links and device nodes are copied with owner and mode.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{
        AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, fchmod, fstat, mkdirat, mknodat,
        openat, openat2, readlinkat, statat, symlinkat,
    },
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag,
        fsconfig_set_string, fsmount, fsopen,
    },
};

use crate::Error;

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// The mount, detached.
pub(crate) fn tmpfs(
    root: BorrowedFd<'_>,
    target: &Path,
    attributes: u64,
    options: &[String],
) -> Result<OwnedFd, Error> {
    let failed = |error: io::Error| {
        Error::system(format_args!("copy {} into a tmpfs", target.display()), error)
    };
    // Read-only only after it was filled.
    let attributes = MountAttrFlags::from_bits_retain(attributes as u32);
    let later = attributes & MountAttrFlags::MOUNT_ATTR_RDONLY;
    let mount = new(options, attributes - later).map_err(|errno| failed(errno.into()))?;
    fill(root, target, &mount).map_err(failed)?;
    if !later.is_empty() {
        let attr = knarr_sys::MountAttr::new(knarr_sys::MountAttr::RDONLY, 0, 0);
        knarr_sys::mount_setattr(mount.as_fd(), false, &attr)
            .map_err(|errno| failed(errno.into()))?;
    }
    Ok(mount)
}

fn new(options: &[String], attributes: MountAttrFlags) -> Result<OwnedFd, Errno> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for option in options {
        match option.split_once('=') {
            Some((name, value)) => fsconfig_set_string(context.as_fd(), name, value)?,
            None => fsconfig_set_flag(context.as_fd(), option.as_str())?,
        }
    }
    fsconfig_create(context.as_fd())?;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

fn fill(root: BorrowedFd<'_>, target: &Path, mount: &OwnedFd) -> io::Result<()> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let from = match openat2(root, target, DIRECTORY, Mode::empty(), resolve) {
        Ok(from) => from,
        Err(Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(errno.into()),
    };
    let to = openat(mount, ".", DIRECTORY, Mode::empty())?;
    same_owner(&from, &to)?;
    tree(&from, &to)
}

/// Owner and mode of a file or directory.
fn same_owner(from: &OwnedFd, to: &OwnedFd) -> io::Result<()> {
    let stat = fstat(from)?;
    std::os::unix::fs::fchown(to, Some(stat.st_uid), Some(stat.st_gid))?;
    Ok(fchmod(to, Mode::from_raw_mode(stat.st_mode & 0o7777))?)
}

fn tree(from: &OwnedFd, to: &OwnedFd) -> io::Result<()> {
    for entry in Dir::read_from(from)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let stat = statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                mkdirat(to, name, mode)?;
                let below = openat(from, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())?;
                let copy = openat(to, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())?;
                same_owner(&below, &copy)?;
                tree(&below, &copy)?;
            }
            FileType::RegularFile => {
                let source = openat(from, name, flags | OFlags::NONBLOCK, Mode::empty())?;
                let new = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                let copy = openat(to, name, new, mode)?;
                same_owner(&source, &copy)?;
                io::copy(&mut File::from(source), &mut File::from(copy))?;
            }
            FileType::Symlink => {
                symlinkat(readlinkat(from, name, Vec::new())?, to, name)?;
            }
            kind => mknodat(to, name, kind, mode, stat.st_rdev)?,
        }
    }
    Ok(())
}

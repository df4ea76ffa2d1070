//! `tmpcopyup`: a tmpfs with what the root filesystem has at its place.
//!
//! The image's tree is read beneath the root and without following its links;
//! files, directories, links and device nodes are copied with owner and mode,
//! however deep it is (`knarr-tree`).

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::OFlags,
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
    let from = match knarr_sys::open_in_root(root, target, DIRECTORY) {
        Ok(from) => from,
        Err(Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(errno.into()),
    };
    knarr_tree::copy_into(from.as_fd(), mount.as_fd())
}

//! An image's files as one tree, without a mount point on the host.
//!
//! Several layers are joined by a detached overlay mount: it exists only as a
//! file descriptor and is gone when that is closed, a crash included.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use knarr_sys::Overlay;
use rustix::{
    fs::{CWD, Mode, OFlags, ResolveFlags},
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount,
        fsopen,
    },
};

use crate::{Error, Result};

/// The merged layers of an image, read-only.
#[derive(Debug)]
pub struct LayeredView {
    root: OwnedFd,
}

impl LayeredView {
    /// Joins layer directories, the topmost first.
    ///
    /// # Errors
    /// When the kernel cannot.
    pub fn open(layers: &[PathBuf]) -> Result<Self> {
        let root = match layers {
            [] => Err(io::Error::from(io::ErrorKind::InvalidInput)),
            // Overlay wants two layers; one is its own merged view.
            [only] => open_dir(only),
            _ => overlay(layers),
        };
        Ok(Self { root: root.map_err(|error| Error::io("join the image's layers", error))? })
    }

    /// The directory at a path of the image; links are followed inside the
    /// image only. `None` where the image has no directory there.
    ///
    /// # Errors
    /// When the kernel refuses for another reason.
    pub fn dir(&self, path: &Path) -> Result<Option<OwnedFd>> {
        match open_in_root(self.root.as_fd(), path) {
            Ok(dir) => Ok(Some(dir)),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::ACCESS) => Ok(None),
            Err(errno) => Err(Error::io(path.display(), errno.into())),
        }
    }
}

fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(CWD, path, flags, Mode::empty())?)
}

fn open_in_root(root: BorrowedFd<'_>, path: &Path) -> std::result::Result<OwnedFd, Errno> {
    knarr_sys::open_in_root(root, path, OFlags::RDONLY | OFlags::DIRECTORY)
}

/// The directory `subpath` below `root` (a volume's data), for
/// `volume-subpath`: no component may be a link, leave the root or cross a
/// mount, and what was checked is what is answered (CATALOGUE V05).
///
/// # Errors
/// [`Error::Subpath`] when it is not such a directory.
pub fn open_beneath(root: BorrowedFd<'_>, subpath: &Path) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY;
    let resolve = ResolveFlags::BENEATH
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_MAGICLINKS
        | ResolveFlags::NO_XDEV;
    knarr_sys::open_with(root, subpath, flags, resolve).map_err(|errno| Error::Subpath {
        path: subpath.display().to_string(),
        source: errno.into(),
    })
}

fn overlay(layers: &[PathBuf]) -> io::Result<OwnedFd> {
    let fs = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let added = layers.iter().try_for_each(|layer| fsconfig_set_string(&fs, "lowerdir+", layer));
    // Linux 6.5 and 6.6 do not know the parameter. Older ones took any word and
    // thought about it at the end.
    let made = added.and_then(|()| fsconfig_create(&fs));
    match made {
        Err(Errno::INVAL) => Ok(Overlay {
            layers: layers.iter().map(PathBuf::as_path).collect(),
            attributes: ATTRIBUTES.bits().into(),
            ..Overlay::default()
        }
        .mount()?),
        made => Ok(made.and_then(|()| fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, ATTRIBUTES))?),
    }
}

const ATTRIBUTES: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_RDONLY
    .union(MountAttrFlags::MOUNT_ATTR_NODEV)
    .union(MountAttrFlags::MOUNT_ATTR_NOEXEC)
    .union(MountAttrFlags::MOUNT_ATTR_NOSUID);

//! A look into a root filesystem before anything runs in it.

use std::{fs::File, os::fd::OwnedFd, path::Path};

use knarr_sys::Found;
use oci_spec::runtime::Spec;
use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
};

use crate::{Error, RootfsMount, wishes};

/// Opens a regular file of the container's root filesystem to be read; none where
/// there is none. Links are followed with that root as `/`, devices and pipes are
/// not opened at all; the mounts of the specification are not there.
///
/// # Errors
/// When the root filesystem cannot be mounted.
pub fn open_in_root(
    spec: &Spec,
    bundle: &Path,
    rootfs: &[RootfsMount],
    path: &Path,
) -> Result<Option<File>, Error> {
    let root: OwnedFd = match rootfs {
        [] => {
            let root = wishes::root_path(spec, bundle)?;
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            rustix::fs::open(&root, flags, Mode::empty())
                .map_err(|errno| Error::system(format_args!("open {}", root.display()), errno))?
        }
        mounts => wishes::root(mounts, spec, bundle)?,
    };
    match knarr_sys::open_file(&root, path) {
        Ok(Found::Regular(file)) => Ok(Some(file)),
        Ok(Found::Other(_)) => Ok(None),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::ACCESS) => Ok(None),
        Err(errno) => Err(Error::system(format_args!("open {}", path.display()), errno)),
    }
}

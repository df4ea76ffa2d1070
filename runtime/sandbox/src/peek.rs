//! A look into a root filesystem before anything runs in it.

use std::{
    fs::File,
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
};

use oci_spec::runtime::Spec;
use rustix::{
    fs::{FileType, Mode, OFlags, ResolveFlags},
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
    let relative = path.strip_prefix("/").unwrap_or(path);
    let found = rustix::fs::openat2(
        &root,
        relative,
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    );
    let failed = |errno: Errno| Error::system(format_args!("open {}", path.display()), errno);
    let found = match found {
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::ACCESS) => return Ok(None),
        other => other.map_err(failed)?,
    };
    let stat = rustix::fs::fstat(&found).map_err(failed)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Ok(None);
    }
    let handle = format!("/proc/self/fd/{}", found.as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY;
    rustix::fs::open(handle, flags, Mode::empty()).map(|fd| Some(File::from(fd))).map_err(failed)
}

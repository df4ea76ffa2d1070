//! Copy-up: a tree into an empty volume, whole or not at all.
//!
//! ```text
//!   _data has an entry ──► nothing to do
//!   empty ──► copy into .fill ──rename──► .filled ──each entry──► _data ──► rmdir .filled
//!   found .fill: discard, start over        found .filled: go on with the moves
//! ```
//!
//! The entries move, not the directory: a container that has the empty volume
//! mounted already goes on seeing the same directory. The source is walked by
//! file descriptor and no link in it is followed.

use std::{
    collections::HashMap,
    ffi::{CString, OsStr},
    fs, io,
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{
        AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid,
        XattrFlags, chownat, copy_file_range, fchmod, fchown, fgetxattr, flistxattr, fsetxattr,
        fstat, linkat, mkdirat, mknodat, openat, readlinkat, statat, symlinkat, utimensat,
    },
    io::Errno,
};

use crate::{Error, Result, at, remove_tree, sync_dir};

const FILL: &str = ".fill";
const FILLED: &str = ".filled";

/// Fills the volume at `volume` from `source` if it is empty.
pub(crate) fn fill(volume: &Path, source: BorrowedFd<'_>) -> Result<()> {
    let (data, fill, filled) = (volume.join(crate::DATA), volume.join(FILL), volume.join(FILLED));
    if !filled.exists() {
        if at(&data, fs::read_dir(&data))?.next().is_some() {
            return Ok(());
        }
        remove_tree(&fill)?;
        let copied = Copier::default().root(source, &fill);
        if let Err(error) = copied.and_then(|()| fs::rename(&fill, &filled)) {
            let discarded = remove_tree(&fill);
            return Err(Error::io("copy the image's files into the volume", error))
                .or_else(|error| discarded.and(Err(error)));
        }
    }
    for entry in at(&filled, fs::read_dir(&filled))? {
        let entry = at(&filled, entry)?;
        at(&data, fs::rename(entry.path(), data.join(entry.file_name())))?;
    }
    let outcome = (|| -> io::Result<()> {
        let from = open_dir(CWD, filled.as_os_str())?;
        let to = open_dir(CWD, data.as_os_str())?;
        dress(from.as_fd(), to.as_fd(), &fstat(&from)?)
    })();
    at(&data, outcome)?;
    at(&filled, fs::remove_dir(&filled))?;
    sync_dir(volume)
}

fn open_dir(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(parent, name, flags, Mode::empty())?)
}

/// Names of files with several links, by where their first copy went.
#[derive(Default)]
struct Copier {
    linked: HashMap<(u64, u64), PathBuf>,
    root: PathBuf,
}

impl Copier {
    fn root(mut self, source: BorrowedFd<'_>, target: &Path) -> io::Result<()> {
        mkdirat(CWD, target, Mode::from_raw_mode(0o700))?;
        self.root = target.to_owned();
        let to = open_dir(CWD, target.as_os_str())?;
        self.dir(source, to.as_fd(), target)
    }

    /// Copies what is in a directory, then its own owner, mode and times.
    fn dir(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
        for entry in Dir::read_from(from)? {
            let entry = entry?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name != "." && name != ".." {
                self.entry(from, to, name, &path.join(name))?;
            }
        }
        dress(from, to, &fstat(from)?)
    }

    fn entry(
        &mut self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        name: &OsStr,
        path: &Path,
    ) -> io::Result<()> {
        let stat = statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind != FileType::Directory && stat.st_nlink > 1 {
            if let Some(first) = self.linked.get(&(stat.st_dev, stat.st_ino)) {
                return Ok(linkat(CWD, first, to, name, AtFlags::empty())?);
            }
            self.linked.insert((stat.st_dev, stat.st_ino), path.to_owned());
        }
        match kind {
            FileType::Directory => {
                mkdirat(to, name, Mode::from_raw_mode(0o700))?;
                self.dir(open_dir(from, name)?.as_fd(), open_dir(to, name)?.as_fd(), path)
            }
            FileType::RegularFile => {
                let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let read =
                    openat(from, name, flags | OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty())?;
                let create = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
                let write = openat(to, name, flags | create, Mode::from_raw_mode(0o600))?;
                copy_bytes(&read, &write)?;
                dress(read.as_fd(), write.as_fd(), &stat)
            }
            FileType::Symlink => {
                let target: CString = readlinkat(from, name, Vec::new())?;
                symlinkat(&target, to, name)?;
                owner_and_times(to, name, &stat)
            }
            FileType::Fifo | FileType::CharacterDevice | FileType::BlockDevice => {
                let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
                mknodat(to, name, kind, mode, stat.st_rdev)?;
                owner_and_times(to, name, &stat)?;
                Ok(rustix::fs::chmodat(to, name, mode, AtFlags::empty())?)
            }
            // A socket without its process is nothing (Docker leaves it out too).
            FileType::Socket | FileType::Unknown => Ok(()),
        }
    }
}

fn copy_bytes(from: &OwnedFd, to: &OwnedFd) -> io::Result<()> {
    loop {
        match copy_file_range(from, None, to, None, 1 << 30) {
            Ok(0) => return Ok(()),
            Ok(_) | Err(Errno::INTR) => {}
            // File systems that cannot; nothing was copied by this call.
            Err(Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => break,
            Err(errno) => return Err(errno.into()),
        }
    }
    let (mut from, mut to) = (fs::File::from(from.try_clone()?), fs::File::from(to.try_clone()?));
    io::copy(&mut from, &mut to).map(drop)
}

fn times(stat: &Stat) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: stat.st_atime, tv_nsec: stat.st_atime_nsec as _ },
        last_modification: Timespec { tv_sec: stat.st_mtime, tv_nsec: stat.st_mtime_nsec as _ },
    }
}

fn owner_and_times(dir: BorrowedFd<'_>, name: &OsStr, stat: &Stat) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(utimensat(dir, name, &times(stat), AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Owner, extended attributes, mode and times, in the order in which none
/// undoes the one before: chown clears setuid bits and file capabilities.
fn dress(from: BorrowedFd<'_>, to: BorrowedFd<'_>, stat: &Stat) -> io::Result<()> {
    fchown(to, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    xattrs(from, to)?;
    fchmod(to, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    Ok(rustix::fs::futimens(to, &times(stat))?)
}

fn xattrs(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    const LONGEST: usize = 64 << 10; // XATTR_LIST_MAX, XATTR_SIZE_MAX
    let mut names = vec![MaybeUninit::<u8>::uninit(); LONGEST];
    let names = match flistxattr(from, names.as_mut_slice()) {
        Ok(([], _)) => return Ok(()),
        Ok((names, _)) => names.to_vec(),
        Err(Errno::OPNOTSUPP) => return Ok(()),
        Err(errno) => return Err(errno.into()),
    };
    let mut value = vec![0_u8; LONGEST];
    for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        // The overlay's own marks say nothing outside it.
        if name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.") {
            continue;
        }
        let length = fgetxattr(from, name, value.as_mut_slice())?;
        match fsetxattr(to, name, &value[..length], XattrFlags::empty()) {
            // The volume's file system has no such thing (moby: ignored too).
            Ok(()) | Err(Errno::OPNOTSUPP) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

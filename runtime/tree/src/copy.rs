//! Copying a tree.
//!
//! Two trails go down side by side, one in the source and one in the copy. A
//! file with several names is copied once; its first copy gets another name in a
//! directory beside the target, `<target>.links`, from where further names are
//! linked: so nothing is remembered, and no path is longer than one component.

use std::{
    ffi::{CStr, CString, OsString},
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStringExt,
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{
        AtFlags, CWD, FileType, Gid, Mode, OFlags, SeekFrom, Stat, Timespec, Timestamps, Uid,
        XattrFlags, chmodat, chownat, copy_file_range, fchmod, fchown, fgetxattr, flistxattr,
        fsetxattr, fstat, ftruncate, futimens, linkat, mkdirat, mknodat, openat, readlinkat, seek,
        statat, symlinkat, unlinkat, utimensat,
    },
    io::{Errno, pread, pwrite},
};

use crate::{
    remove, remove_at,
    trail::{Patience, Trail, open_root},
    walk::{Left, Seen, Visitor, walk},
};

/// Longest list of names, and longest value, of extended attributes (xattr(7)).
const ATTRIBUTES_MAX: usize = 64 << 10;
const PIECE: usize = 128 * 1024;
/// Where names of files with several lie, in a target that has nothing beside it.
const LINKS: &str = ".knarr-copy.links";

/// Copies a directory and everything below it to `target`, which must not be
/// there: contents with their holes, owners, modes, times, extended attributes
/// (but overlayfs' own), symbolic links as they are, hard links among what is
/// copied, devices and pipes. Sockets are left out. No link is followed and no
/// mount is entered. Blocks.
///
/// `<target>.links` is used meanwhile; one that an interrupted copy left is
/// removed first.
///
/// # Errors
/// The first failure; what was copied by then stays at `target`.
pub fn copy(source: BorrowedFd<'_>, target: &Path) -> io::Result<()> {
    let mut links = target.to_owned().into_os_string();
    links.push(".links");
    let links = PathBuf::from(links);
    remove(&links)?;
    mkdirat(CWD, target, Mode::from_raw_mode(0o700))?;
    let to = Trail::new(open_root(CWD, target)?)?;
    run(source, Copier { metadata: Some(Metadata::new()), ..Copier::new(to, None, links) })
}

/// As [`copy`], into a directory that is there and empty, and with owners and
/// modes alone: no times, no extended attributes.
///
/// # Errors
/// As [`copy`].
pub fn copy_into(source: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    let again = || open_root(target, c".");
    run(source, Copier::new(Trail::new(again()?)?, Some(again()?), PathBuf::from(LINKS)))
}

fn run(source: BorrowedFd<'_>, mut copier: Copier) -> io::Result<()> {
    // A descriptor with a place of its own in the listing.
    let root = open_root(source, c".")?;
    let copied = walk(root, &mut copier);
    let removed = remove_at(copier.place(), &copier.links_path);
    copied.and(removed)
}

/// Gives one directory the owner, extended attributes, mode and times of another.
///
/// # Errors
/// When one of them is no directory, or the host fails.
pub fn copy_metadata(from: &Path, to: &Path) -> io::Result<()> {
    let (from, to) = (open_root(CWD, from)?, open_root(CWD, to)?);
    Metadata::new().copy(from.as_fd(), to.as_fd(), &fstat(&from)?)
}

struct Copier {
    to: Trail,
    /// Where `links_path` begins; none is the process's own directory.
    place: Option<OwnedFd>,
    links_path: PathBuf,
    /// Other names of files with several, once there is one.
    links: Option<OwnedFd>,
    /// Whether the kernel copies between these file systems.
    ranges: bool,
    /// None copies owners and modes alone.
    metadata: Option<Metadata>,
    piece: Vec<u8>,
}

/// Copies what is no content; with room for the longest attributes.
struct Metadata {
    names: Vec<u8>,
    value: Vec<u8>,
}

impl Visitor for Copier {
    fn entry(&mut self, trail: &Trail, name: &CStr, _kind: FileType) -> io::Result<Seen> {
        let stat = statat(trail.here(), name, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        match kind {
            FileType::Directory => {
                mkdirat(self.to.here(), name, Mode::from_raw_mode(0o700))?;
                return Ok(Seen::Inside);
            }
            // A socket without its process is nothing (Docker leaves it out too).
            FileType::Socket | FileType::Unknown => return Ok(Seen::Passed),
            _ => {}
        }
        if stat.st_nlink < 2 {
            self.make(trail, name, kind, &stat)?;
            return Ok(Seen::Passed);
        }
        let known = link_name(&stat)?;
        let links = match self.links.take() {
            Some(links) => links,
            None => {
                mkdirat(self.place(), &self.links_path, Mode::from_raw_mode(0o700))?;
                open_root(self.place(), &self.links_path)?
            }
        };
        let linked = linkat(&links, &known, self.to.here(), name, AtFlags::empty());
        match linked {
            Ok(()) => {}
            Err(Errno::NOENT | Errno::MLINK) => {
                if linked == Err(Errno::MLINK) {
                    // As many names as the file system allows: another copy.
                    unlinkat(&links, &known, AtFlags::empty())?;
                }
                self.make(trail, name, kind, &stat)?;
                linkat(self.to.here(), name, &links, &known, AtFlags::empty())?;
            }
            Err(errno) => return Err(errno.into()),
        }
        self.links = Some(links);
        Ok(Seen::Passed)
    }

    fn entered(&mut self, trail: &Trail, name: &CStr) -> io::Result<()> {
        self.to.down(name, || trail.relieve()).map(drop)
    }

    fn leave(&mut self, directory: BorrowedFd<'_>) -> io::Result<()> {
        let stat = fstat(directory)?;
        dress(&mut self.metadata, directory, self.to.here(), &stat)
    }

    fn left(&mut self, trail: &Trail, _: Option<&CStr>, _: bool) -> io::Result<Left> {
        match self.to.up(|| trail.relieve())? {
            1 => Ok(Left::Stays),
            _ => Err(Errno::STALE.into()),
        }
    }

    fn relieve(&self) -> bool {
        self.to.relieve()
    }

    fn failed(&mut self, errno: Errno) -> io::Result<()> {
        Err(errno.into())
    }

    fn lost(&mut self) -> io::Result<()> {
        Err(Errno::STALE.into())
    }
}

impl Copier {
    fn new(to: Trail, place: Option<OwnedFd>, links_path: PathBuf) -> Self {
        Self { to, place, links_path, links: None, ranges: true, metadata: None, piece: Vec::new() }
    }

    fn place(&self) -> BorrowedFd<'_> {
        self.place.as_ref().map_or(CWD, AsFd::as_fd)
    }

    /// Makes what is no directory.
    fn make(&mut self, trail: &Trail, name: &CStr, kind: FileType, stat: &Stat) -> io::Result<()> {
        let (from, to) = (trail.here(), self.to.here());
        match kind {
            FileType::RegularFile => {
                // What is open and can be opened again makes room.
                let relieve = || trail.relieve() | self.to.relieve();
                let read = open(from, name, OFlags::RDONLY | OFlags::NONBLOCK, relieve)?;
                let write = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
                let write = open(to, name, write, relieve)?;
                self.contents(read.as_fd(), write.as_fd(), stat.st_size as u64)?;
                dress(&mut self.metadata, read.as_fd(), write.as_fd(), stat)
            }
            FileType::Symlink => {
                let target: CString = readlinkat(from, name, Vec::new())?;
                symlinkat(&target, to, name)?;
                owner_and_times(to, name, stat, self.metadata.is_some())
            }
            _ => {
                let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
                mknodat(to, name, kind, mode, stat.st_rdev)?;
                owner_and_times(to, name, stat, self.metadata.is_some())?;
                Ok(chmodat(to, name, mode, AtFlags::empty())?)
            }
        }
    }

    /// Copies a file's data; holes stay holes.
    fn contents(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>, size: u64) -> io::Result<()> {
        ftruncate(to, size)?;
        let mut at = 0;
        while at < size {
            let start = match seek(from, SeekFrom::Data(at)) {
                Ok(start) => start,
                Err(Errno::NXIO) => break,
                // A file system that does not know of holes.
                Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => at,
                Err(errno) => return Err(errno.into()),
            };
            let end = seek(from, SeekFrom::Hole(start)).unwrap_or(size).clamp(start, size);
            self.range(from, to, start, end)?;
            at = end.max(start + 1);
        }
        Ok(())
    }

    fn range(
        &mut self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        mut at: u64,
        end: u64,
    ) -> io::Result<()> {
        while self.ranges && at < end {
            let (mut read, mut written) = (at, at);
            let most = usize::try_from(end - at).unwrap_or(usize::MAX).min(1 << 30);
            match copy_file_range(from, Some(&mut read), to, Some(&mut written), most) {
                // Somebody cut it short.
                Ok(0) => return Ok(()),
                Ok(copied) => at += copied as u64,
                Err(Errno::INTR) => {}
                // File systems that cannot; nothing was copied by this call.
                Err(Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => {
                    self.ranges = false;
                }
                Err(errno) => return Err(errno.into()),
            }
        }
        self.piece.resize(PIECE, 0);
        while at < end {
            let most = usize::try_from(end - at).unwrap_or(usize::MAX).min(PIECE);
            let read = match pread(from, &mut self.piece[..most], at) {
                Ok(0) => return Ok(()),
                Ok(read) => read,
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(errno.into()),
            };
            let mut done = 0;
            while done < read {
                match pwrite(to, &self.piece[done..read], at + done as u64) {
                    Ok(written) => done += written,
                    Err(Errno::INTR) => {}
                    Err(errno) => return Err(errno.into()),
                }
            }
            at += read as u64;
        }
        Ok(())
    }
}

impl Metadata {
    fn new() -> Self {
        Self { names: vec![0; ATTRIBUTES_MAX], value: vec![0; ATTRIBUTES_MAX] }
    }

    /// Owner, extended attributes, mode and times, in the order in which none
    /// undoes the one before: chown clears setuid bits and file capabilities.
    fn copy(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>, stat: &Stat) -> io::Result<()> {
        fchown(to, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
        self.attributes(from, to)?;
        fchmod(to, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
        Ok(futimens(to, &times(stat))?)
    }

    fn attributes(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
        let length = match flistxattr(from, self.names.as_mut_slice()) {
            Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(()),
            Ok(length) => length,
            Err(errno) => return Err(errno.into()),
        };
        for name in self.names[..length].split(|byte| *byte == 0) {
            // The overlay's own marks say nothing outside it.
            let marks = [b"trusted.overlay.".as_slice(), b"user.overlay."];
            if name.is_empty() || marks.iter().any(|mark| name.starts_with(mark)) {
                continue;
            }
            let length = fgetxattr(from, name, self.value.as_mut_slice())?;
            match fsetxattr(to, name, &self.value[..length], XattrFlags::empty()) {
                // The copy's file system has no such thing (moby: ignored too).
                Ok(()) | Err(Errno::OPNOTSUPP) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }
}

fn open(
    at: BorrowedFd<'_>,
    name: &CStr,
    flags: OFlags,
    mut relieve: impl FnMut() -> bool,
) -> io::Result<OwnedFd> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut patience = Patience::default();
    loop {
        match openat(at, name, flags, Mode::from_raw_mode(0o600)) {
            Err(errno) if patience.is_for(errno, &mut relieve) => {}
            other => return Ok(other?),
        }
    }
}

/// The name of a file with several names in the directory beside the target.
fn link_name(stat: &Stat) -> io::Result<CString> {
    let name = OsString::from(format!("{:x}-{:x}", stat.st_dev, stat.st_ino));
    Ok(CString::new(name.into_vec())?)
}

fn times(stat: &Stat) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: stat.st_atime, tv_nsec: stat.st_atime_nsec as _ },
        last_modification: Timespec { tv_sec: stat.st_mtime, tv_nsec: stat.st_mtime_nsec as _ },
    }
}

/// Owner, mode, and the rest where it is copied, too.
fn dress(
    metadata: &mut Option<Metadata>,
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    stat: &Stat,
) -> io::Result<()> {
    if let Some(metadata) = metadata {
        return metadata.copy(from, to, stat);
    }
    fchown(to, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    Ok(fchmod(to, Mode::from_raw_mode(stat.st_mode & 0o7777))?)
}

fn owner_and_times(
    dir: BorrowedFd<'_>,
    name: &CStr,
    stat: &Stat,
    with_times: bool,
) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    if !with_times {
        return Ok(());
    }
    Ok(utimensat(dir, name, &times(stat), AtFlags::SYMLINK_NOFOLLOW)?)
}

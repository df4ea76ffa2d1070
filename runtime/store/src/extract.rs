//! Putting a layer's entries on disk, beneath one directory.
//!
//! Nothing an archive says is ever used as a path of more than one component:
//! parents are opened with `openat2(RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS)`,
//! the last component is created exclusively and never followed, metadata is
//! set through the descriptor of what was just made. A parent that is a
//! symbolic link of this very layer (`lib -> usr/lib`, then `lib/x`) is read
//! and resolved component by component with the layer's root as `/`, before
//! anything is opened (CATALOGUE I02, `resolve.rs`).
//!
//! Whiteouts become what overlayfs understands: a character device 0:0 for a
//! name, the attribute `trusted.overlay.opaque=y` for a directory. They speak of
//! lower layers only, so their place in the archive does not matter: a directory
//! that is both here and whited out is opaque, any other entry wins (I05).
//!
//! **How it fails.** The first refused entry ends it; the caller removes the
//! directory. Work grows with the number and the size of the entries only, and
//! nothing is remembered of those that are done: directories' times lie in a
//! file (`times.rs`), and what is open is at most [`OPEN_PARENTS`].

use std::{
    collections::HashMap,
    ffi::OsStr,
    fs::File,
    io::{Read, Seek, SeekFrom, Write},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use rustix::{
    fs::{
        AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags, chownat,
        fchmod, fchown, fsetxattr, futimens, linkat, lsetxattr, makedev, mkdirat, mknodat, openat,
        statat, symlinkat, unlinkat, utimensat,
    },
    io::Errno,
};

use crate::{
    Entry, EntryKind, Error, LayerInfo, Result, Tarball,
    names::{self, Meaning},
    resolve::{self, Work},
    times::Times,
};

/// Descriptors of directories that are kept open between entries.
const OPEN_PARENTS: usize = 32;
const OPAQUE: &str = "trusted.overlay.opaque";
/// Longest target of a symbolic link.
const TARGET_MAX: usize = 4095;

/// Unpacks a whole archive into an empty directory, in which it makes at most
/// `entries` directories that it only implies; answers how many it made.
pub(crate) fn extract<R: Read>(
    tarball: &mut Tarball<R>,
    root: &OwnedFd,
    path: &Path,
    entries: u64,
) -> Result<(LayerInfo, u64)> {
    let mut extractor = Extractor {
        root: root.as_fd(),
        path,
        parents: HashMap::new(),
        times: Times::default(),
        work: Work::new(),
        implied_left: entries,
        buffer: vec![0; 256 * 1024],
        info: LayerInfo { size: 0, entries: 0 },
    };
    // Docker's root directory, where the archive does not speak of it.
    fchmod(root, Mode::from_raw_mode(0o755)).map_err(|e| extractor.host(e))?;
    while let Some(entry) = tarball.next_entry()? {
        extractor.entry(&entry, tarball).map_err(|failure| match failure {
            Failure::Refused(reason) => Error::Entry { entry: entry.shown(), reason },
            Failure::Host(e) => extractor.host(e),
            Failure::Other(error) => error,
        })?;
        extractor.info.entries += 1;
    }
    let implied = entries - extractor.implied_left;
    Ok((extractor.finish()?, implied))
}

struct Extractor<'a> {
    root: BorrowedFd<'a>,
    path: &'a Path,
    /// Open directories by their joined components.
    parents: HashMap<Vec<u8>, OwnedFd>,
    times: Times,
    /// What links may still cost.
    work: Work,
    /// Directories that the archive does not speak of may still be made.
    implied_left: u64,
    buffer: Vec<u8>,
    info: LayerInfo,
}

/// Why one entry was not unpacked.
pub(crate) enum Failure {
    Refused(String),
    Host(Errno),
    Other(Error),
}

impl From<Errno> for Failure {
    fn from(e: Errno) -> Self {
        Self::Host(e)
    }
}

pub(crate) fn refused<T>(reason: impl Into<String>) -> std::result::Result<T, Failure> {
    Err(Failure::Refused(reason.into()))
}

pub(crate) type Step<T = ()> = std::result::Result<T, Failure>;

impl Extractor<'_> {
    fn host(&self, e: Errno) -> Error {
        Error::io("unpack into", self.path)(e.into())
    }

    fn entry<R: Read>(&mut self, entry: &Entry, data: &mut Tarball<R>) -> Step {
        let parts = names::components(&entry.path).or_else(refused)?;
        let meaning = names::meaning(&parts).or_else(refused)?;
        let resolved = self.without_links(&parts)?;
        let parts: Vec<&[u8]> = match &resolved {
            Some(owned) => owned.iter().map(Vec::as_slice).collect(),
            None => parts,
        };
        if meaning != Meaning::Plain {
            if meaning != Meaning::Ignored && entry.kind != EntryKind::File {
                return refused("a whiteout must be a regular file");
            }
            let parents = &parts[..parts.len().saturating_sub(1)];
            return match meaning {
                Meaning::Whiteout(name) => self.whiteout(parents, name),
                Meaning::Opaque => self.opaque(parents),
                Meaning::Plain | Meaning::Ignored => Ok(()),
            };
        }
        let Some((name, parents)) = parts.split_last() else {
            return self.root_entry(entry);
        };
        self.open_parents(parents)?;
        match entry.kind {
            EntryKind::File => self.file(parents, name, entry, data),
            EntryKind::Directory => self.directory(parents, name, entry),
            EntryKind::HardLink => self.hard_link(parents, name, entry),
            EntryKind::Symlink => self.symlink(parents, name, entry),
            EntryKind::CharDevice | EntryKind::BlockDevice | EntryKind::Fifo => {
                self.node(parents, name, entry)
            }
        }
    }

    // --- directories on the way ------------------------------------------

    /// The same path without links among its parents; none where there are none.
    fn without_links(&mut self, parts: &[&[u8]]) -> Step<Option<Vec<Vec<u8>>>> {
        let Some((name, parents)) = parts.split_last() else { return Ok(None) };
        let key = parents.join(&b'/');
        if self.parents.contains_key(&key) {
            return Ok(None);
        }
        match self.open_beneath(&key) {
            Err(Errno::LOOP) => {}
            Ok(opened) => {
                self.keep_open(key, opened);
                return Ok(None);
            }
            // Anything else is for those who open it.
            Err(_) => return Ok(None),
        }
        let mut resolved = resolve::directories(self.root, parents, &mut self.work)?;
        resolved.push(name.to_vec());
        Ok(Some(resolved))
    }

    /// Makes sure that the directory of these components is open in `parents`,
    /// creating what the archive does not mention.
    fn open_parents(&mut self, parts: &[&[u8]]) -> Step {
        let key = parts.join(&b'/');
        if self.parents.contains_key(&key) {
            return Ok(());
        }
        let opened = match self.open_beneath(&key) {
            Err(Errno::NOENT) => self.make_parents(parts)?,
            Err(Errno::LOOP | Errno::NOTDIR) => {
                // A whiteout in the way: the lower entry was removed and a directory
                // put in its place.
                self.make_parents(parts)?
            }
            other => other?,
        };
        self.keep_open(key, opened);
        Ok(())
    }

    fn keep_open(&mut self, key: Vec<u8>, opened: OwnedFd) {
        if self.parents.len() >= OPEN_PARENTS {
            self.parents.clear();
        }
        self.parents.insert(key, opened);
    }

    fn parent(&self, parts: &[&[u8]]) -> Step<BorrowedFd<'_>> {
        match self.parents.get(&parts.join(&b'/')) {
            Some(fd) => Ok(fd.as_fd()),
            None => Err(Failure::Host(Errno::NOENT)),
        }
    }

    fn open_beneath(&self, path: &[u8]) -> std::result::Result<OwnedFd, Errno> {
        let path = if path.is_empty() { b".".as_slice() } else { path };
        knarr_sys::open_beneath(self.root, path, OFlags::RDONLY | OFlags::DIRECTORY)
    }

    fn make_parents(&mut self, parts: &[&[u8]]) -> Step<OwnedFd> {
        let mut at = self.open_beneath(b"")?;
        for part in parts {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let next = match openat(&at, *part, flags, Mode::empty()) {
                Err(Errno::NOENT) => {
                    self.implied()?;
                    mkdirat(&at, *part, Mode::from_raw_mode(0o755))?;
                    let next = openat(&at, *part, flags, Mode::empty())?;
                    fchown(&next, Some(Uid::ROOT), Some(Gid::ROOT))?;
                    fchmod(&next, Mode::from_raw_mode(0o755))?;
                    next
                }
                Err(Errno::LOOP | Errno::NOTDIR) => {
                    if !is_whiteout(at.as_fd(), part)? {
                        let shown = String::from_utf8_lossy(part).into_owned();
                        return refused(format!("its parent {shown:?} is no directory"));
                    }
                    self.implied()?;
                    unlinkat(&at, *part, AtFlags::empty())?;
                    mkdirat(&at, *part, Mode::from_raw_mode(0o755))?;
                    let next = openat(&at, *part, flags, Mode::empty())?;
                    fchown(&next, Some(Uid::ROOT), Some(Gid::ROOT))?;
                    fchmod(&next, Mode::from_raw_mode(0o755))?;
                    make_opaque(&next)?;
                    next
                }
                other => other?,
            };
            at = next;
        }
        Ok(at)
    }

    /// Counts a directory that is made without an entry of its own.
    fn implied(&mut self) -> Step {
        match self.implied_left.checked_sub(1) {
            Some(left) => {
                self.implied_left = left;
                Ok(())
            }
            None => refused("the layer has too many directories"),
        }
    }

    /// Removes what has an entry's name; true where it was a whiteout.
    fn clear(&mut self, parents: &[&[u8]], name: &[u8]) -> Step<bool> {
        let parent = self.parent(parents)?;
        if is_whiteout(parent, name)? {
            unlinkat(parent, name, AtFlags::empty())?;
            return Ok(true);
        }
        match unlinkat(parent, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => return Ok(false),
            Err(Errno::ISDIR | Errno::PERM) => {}
            Err(e) => return Err(e.into()),
        }
        // A directory makes way for something else: descriptors below it are stale.
        let prefix = [parents, &[name]].concat().join(&b'/');
        let within = |key: &Vec<u8>| {
            key.strip_prefix(prefix.as_slice())
                .is_some_and(|rest| rest.first().is_none_or(|c| *c == b'/'))
        };
        let removed = knarr_tree::remove_at(parent, name);
        self.written(removed)?;
        self.parents.retain(|key, _| !within(key));
        Ok(false)
    }

    // --- kinds of entries --------------------------------------------------

    /// `./`: the root directory's own metadata.
    fn root_entry(&mut self, entry: &Entry) -> Step {
        if entry.kind != EntryKind::Directory {
            return refused("only a directory can be the root");
        }
        let root = self.open_beneath(b"")?;
        self.directory_metadata(&root, b"", entry)
    }

    fn file<R: Read>(
        &mut self,
        parents: &[&[u8]],
        name: &[u8],
        entry: &Entry,
        data: &mut Tarball<R>,
    ) -> Step {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let create = |parent: BorrowedFd<'_>| openat(parent, name, flags, Mode::RUSR | Mode::WUSR);
        let fd = match create(self.parent(parents)?) {
            Err(Errno::EXIST) => {
                self.clear(parents, name)?;
                create(self.parent(parents)?)?
            }
            other => other?,
        };
        let mut file = File::from(fd);
        match &entry.sparse {
            None => self.copy(data, &mut file, entry.size)?,
            Some(sparse) => {
                for (at, length) in &sparse.pieces {
                    self.written(file.seek(SeekFrom::Start(*at)))?;
                    self.copy(data, &mut file, *length)?;
                }
                self.written(file.set_len(sparse.size))?;
            }
        }
        self.info.size += entry.size;
        // Changing the owner drops set-id bits and capabilities: it comes first.
        fchown(&file, Some(uid(entry)), Some(gid(entry)))?;
        for (key, value) in &entry.xattrs {
            attribute_outcome(key, fsetxattr(&file, key.as_slice(), value, XattrFlags::empty()))?;
        }
        fchmod(&file, Mode::from_raw_mode(entry.mode))?;
        futimens(&file, &times(entry))?;
        Ok(())
    }

    /// Copies so many bytes of the archive to where a file stands.
    fn copy<R: Read>(&mut self, data: &mut Tarball<R>, file: &mut File, length: u64) -> Step {
        let mut left = length;
        while left > 0 {
            let want = self.buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let read = match data.read(&mut self.buffer[..want]) {
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                other => other.map_err(|e| Failure::Other(Error::Source(e)))?,
            };
            self.written(file.write_all(&self.buffer[..read]))?;
            left -= read as u64;
        }
        Ok(())
    }

    fn written<T>(&self, outcome: std::io::Result<T>) -> Step<T> {
        outcome.map_err(|e| Failure::Other(Error::io("unpack into", self.path)(e)))
    }

    fn directory(&mut self, parents: &[&[u8]], name: &[u8], entry: &Entry) -> Step {
        let mut opaque = false;
        let mode = Mode::from_raw_mode(0o700);
        match mkdirat(self.parent(parents)?, name, mode) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                let stat = statat(self.parent(parents)?, name, AtFlags::SYMLINK_NOFOLLOW)?;
                if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
                    opaque = self.clear(parents, name)?;
                    mkdirat(self.parent(parents)?, name, mode)?;
                }
            }
            Err(e) => return Err(e.into()),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(self.parent(parents)?, name, flags, Mode::empty())?;
        if opaque {
            make_opaque(&fd)?;
        }
        let key = [parents, &[name]].concat().join(&b'/');
        self.directory_metadata(&fd, &key, entry)
    }

    fn directory_metadata(&mut self, fd: &OwnedFd, key: &[u8], entry: &Entry) -> Step {
        fchown(fd, Some(uid(entry)), Some(gid(entry)))?;
        for (name, value) in &entry.xattrs {
            attribute_outcome(name, fsetxattr(fd, name.as_slice(), value, XattrFlags::empty()))?;
        }
        fchmod(fd, Mode::from_raw_mode(entry.mode))?;
        let pushed = self.times.push(self.root, key, &times(entry));
        self.written(pushed)
    }

    fn hard_link(&mut self, parents: &[&[u8]], name: &[u8], entry: &Entry) -> Step {
        let target =
            names::components(&entry.link).or_else(|why| refused(format!("hard link: {why}")))?;
        let shown = String::from_utf8_lossy(&entry.link).into_owned();
        let missing =
            || Failure::Refused(format!("hard link to {shown:?}, which is not in this layer"));
        if names::meaning(&target).or_else(refused)? != Meaning::Plain {
            return refused("hard link to a whiteout");
        }
        let resolved = self.without_links(&target)?;
        let target: Vec<&[u8]> = match &resolved {
            Some(owned) => owned.iter().map(Vec::as_slice).collect(),
            None => target,
        };
        let Some((target_name, target_parents)) = target.split_last() else {
            return refused("hard link to the root");
        };
        if target_parents == parents && *target_name == name {
            return refused("hard link to itself");
        }
        // Existing parents only: a link makes no directories for its target.
        let from = match self.open_beneath(&target_parents.join(&b'/')) {
            Err(Errno::NOENT) => return Err(missing()),
            Err(Errno::LOOP | Errno::NOTDIR | Errno::XDEV) => {
                return refused(format!("hard link to {shown:?}, whose parent is no directory"));
            }
            other => other?,
        };
        let stat = match statat(&from, *target_name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Err(missing()),
            other => other?,
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => return refused("hard link to a directory"),
            FileType::CharacterDevice if stat.st_rdev == 0 => return Err(missing()),
            _ => {}
        }
        let link =
            |parent: BorrowedFd<'_>| linkat(&from, *target_name, parent, name, AtFlags::empty());
        match link(self.parent(parents)?) {
            Err(Errno::EXIST) => {
                self.clear(parents, name)?;
                match link(self.parent(parents)?) {
                    // The name was a directory and the target lay inside it.
                    Err(Errno::NOENT) => return Err(missing()),
                    other => other?,
                }
            }
            other => other?,
        }
        Ok(())
    }

    fn symlink(&mut self, parents: &[&[u8]], name: &[u8], entry: &Entry) -> Step {
        let target = entry.link.as_slice();
        if target.is_empty() || target.len() > TARGET_MAX || target.contains(&0) {
            return refused("symbolic link with a malformed target");
        }
        match symlinkat(target, self.parent(parents)?, name) {
            Err(Errno::EXIST) => {
                self.clear(parents, name)?;
                symlinkat(target, self.parent(parents)?, name)?;
            }
            other => other?,
        }
        self.unopened_metadata(parents, name, entry)
    }

    fn node(&mut self, parents: &[&[u8]], name: &[u8], entry: &Entry) -> Step {
        let kind = match entry.kind {
            EntryKind::CharDevice => FileType::CharacterDevice,
            EntryKind::BlockDevice => FileType::BlockDevice,
            _ => FileType::Fifo,
        };
        let device = makedev(entry.device.0, entry.device.1);
        if kind == FileType::CharacterDevice && device == 0 {
            return refused("character device 0:0 is overlayfs' own whiteout");
        }
        // No bits until the owner is right.
        let make = |parent: BorrowedFd<'_>| mknodat(parent, name, kind, Mode::empty(), device);
        match make(self.parent(parents)?) {
            Err(Errno::EXIST) => {
                self.clear(parents, name)?;
                make(self.parent(parents)?)?;
            }
            other => other?,
        }
        self.unopened_metadata(parents, name, entry)?;
        // It was made just now, and nobody else works in this directory: no link.
        rustix::fs::chmodat(
            self.parent(parents)?,
            name,
            Mode::from_raw_mode(entry.mode),
            AtFlags::empty(),
        )?;
        // Changing bits leaves the times alone.
        Ok(())
    }

    /// Owner, attributes and times of what cannot be opened.
    fn unopened_metadata(&self, parents: &[&[u8]], name: &[u8], entry: &Entry) -> Step {
        let parent = self.parent(parents)?;
        chownat(parent, name, Some(uid(entry)), Some(gid(entry)), AtFlags::SYMLINK_NOFOLLOW)?;
        if !entry.xattrs.is_empty() {
            // There is no call for this with a descriptor. The way there is the
            // host's, then directories of this layer without links.
            let path = self.path.join(OsStr::from_bytes(&[parents, &[name]].concat().join(&b'/')));
            for (key, value) in &entry.xattrs {
                let outcome = lsetxattr(&path, key.as_slice(), value, XattrFlags::empty());
                attribute_outcome(key, outcome)?;
            }
        }
        utimensat(parent, name, &times(entry), AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(())
    }

    // --- whiteouts ---------------------------------------------------------

    fn whiteout(&mut self, parents: &[&[u8]], name: &[u8]) -> Step {
        self.open_parents(parents)?;
        let parent = self.parent(parents)?;
        match mknodat(parent, name, FileType::CharacterDevice, Mode::empty(), 0) {
            Err(Errno::EXIST) => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                match openat(parent, name, flags, Mode::empty()) {
                    Ok(directory) => make_opaque(&directory)?,
                    // Any other entry of this layer hides the lower one by itself.
                    Err(Errno::NOTDIR | Errno::LOOP) => {}
                    Err(e) => return Err(e.into()),
                }
            }
            other => other?,
        }
        Ok(())
    }

    fn opaque(&mut self, parents: &[&[u8]]) -> Step {
        self.open_parents(parents)?;
        let directory = self.open_beneath(&parents.join(&b'/'))?;
        make_opaque(&directory)?;
        Ok(())
    }

    fn finish(mut self) -> Result<LayerInfo> {
        let set = std::mem::take(&mut self.times).each(|path, times| {
            match self.open_beneath(path).and_then(|fd| futimens(&fd, times)) {
                // Replaced by something else later in the archive.
                Ok(()) | Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(()),
                Err(e) => Err(e.into()),
            }
        });
        set.map_err(Error::io("set times in", self.path))?;
        Ok(self.info)
    }
}

fn is_whiteout(parent: BorrowedFd<'_>, name: &[u8]) -> std::result::Result<bool, Errno> {
    match statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => {
            Ok(FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
                && stat.st_rdev == 0)
        }
        Err(Errno::NOENT) => Ok(false),
        Err(e) => Err(e),
    }
}

fn make_opaque(directory: &OwnedFd) -> std::result::Result<(), Errno> {
    fsetxattr(directory, OPAQUE, b"y", XattrFlags::empty())
}

/// Whether a layer's root hides everything below it.
pub(crate) fn is_opaque(root: &Path) -> bool {
    let mut value = [0u8; 4];
    let read = rustix::fs::lgetxattr(root, OPAQUE, &mut value[..]);
    matches!(read, Ok(1)) && value[0] == b'y'
}

/// User attributes cannot be set on everything; other engines leave them out too.
fn attribute_outcome(key: &[u8], outcome: std::result::Result<(), Errno>) -> Step {
    match outcome {
        Err(Errno::NOTSUP) => Ok(()),
        Err(Errno::PERM) if key.starts_with(b"user.") => Ok(()),
        Err(Errno::INVAL | Errno::NOSPC | Errno::TOOBIG | Errno::RANGE) => {
            refused(format!("malformed extended attribute {}", String::from_utf8_lossy(key)))
        }
        other => Ok(other?),
    }
}

fn uid(entry: &Entry) -> Uid {
    Uid::from_raw(entry.uid)
}

fn gid(entry: &Entry) -> Gid {
    Gid::from_raw(entry.gid)
}

fn times(entry: &Entry) -> Timestamps {
    let time = Timespec { tv_sec: entry.mtime.0, tv_nsec: i64::from(entry.mtime.1) };
    Timestamps { last_access: time, last_modification: time }
}

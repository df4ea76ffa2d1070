//! Parents that are symbolic links, resolved with the layer's root as `/`.
//!
//! Real layers say `lib -> usr/lib` and then `lib/x` (merged-usr trees written by
//! tools that keep their packages' own names). Other engines unpack such an entry
//! to `usr/lib/x` of the layer; so do we: links are read one at a time and what
//! comes out is a path without any, which is then opened like all others. An
//! absolute target begins at the layer's root, `..` ends there.
//!
//! What lies between two links is opened at once, and where the next link is, is
//! found by halving. So an entry costs what its names and its links' targets are
//! long, and [`Work`] bounds that over the whole layer.
//!
//! **How it fails.** A parent that is a file or device, more than [`LINKS_MAX`]
//! links (a loop), a path beyond the kernel's limit, one that leads into a
//! whiteout's name, or more work than the entries are worth refuses the entry.

use std::{
    collections::VecDeque,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, openat, readlinkat, statat},
    io::Errno,
};

use crate::extract::{Failure, Step, refused};

/// Links on the way to one entry; the kernel itself follows 40.
const LINKS_MAX: usize = 40;
/// Bytes of all components together.
const PATH_MAX: usize = 4096;

/// What a layer's links may still cost: about as many components of paths.
#[derive(Debug)]
pub(crate) struct Work {
    left: u64,
}

impl Work {
    /// What every layer may cost, some tenths of a second.
    const FIRST: u64 = 4_000_000;
    /// What each entry adds, about as long as making a file takes.
    const ENTRY: u64 = 1024;
    /// What each component of an entry's own path adds.
    const COMPONENT: u64 = 4;
    /// What a name costs that is looked at by itself: a few calls, where the names of a
    /// whole path cost one together.
    const LOOK: usize = 16;

    pub(crate) fn new() -> Self {
        Self { left: Self::FIRST }
    }

    fn add(&mut self, components: usize) {
        self.left = self.left.saturating_add(Self::ENTRY + Self::COMPONENT * components as u64);
    }

    fn spend(&mut self, components: usize) -> Step {
        match self.left.checked_sub(1 + components as u64) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => refused("the layer's links take too long to resolve"),
        }
    }
}

/// The components of a directory without links among them. What does not exist
/// yet is left as it is named.
pub(crate) fn directories(
    root: BorrowedFd<'_>,
    parts: &[&[u8]],
    work: &mut Work,
) -> Step<Vec<Vec<u8>>> {
    work.add(parts.len());
    let mut way = Way {
        root,
        at: None,
        missing: 0,
        resolved: Vec::new(),
        length: parts.iter().map(|part| part.len() + 1).sum(),
        left: parts.iter().map(|part| part.to_vec()).collect(),
    };
    let mut links = 0;
    while !way.left.is_empty() {
        if way.length >= PATH_MAX {
            return refused("its parent's path is longer than 4095 bytes");
        }
        if way.missing == 0 {
            way.run(work)?;
        }
        if let Some(target) = way.step(work)? {
            links += 1;
            if links > LINKS_MAX {
                return refused("its parent is a loop of symbolic links");
            }
            way.follow(&target);
        }
    }
    Ok(way.resolved)
}

/// Where a resolution stands.
struct Way<'a> {
    root: BorrowedFd<'a>,
    /// The deepest directory of `resolved` that exists; none is the root.
    at: Option<OwnedFd>,
    /// How many of the last of `resolved` are no directories yet.
    missing: usize,
    resolved: Vec<Vec<u8>>,
    left: VecDeque<Vec<u8>>,
    /// Bytes of `resolved` and `left`, each component with its slash.
    length: usize,
}

const FLAGS: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

impl Way<'_> {
    fn here(&self) -> BorrowedFd<'_> {
        self.at.as_ref().map_or(self.root, AsFd::as_fd)
    }

    fn open(&self, components: usize) -> Result<OwnedFd, Errno> {
        let parts: Vec<&[u8]> = self.left.iter().take(components).map(Vec::as_slice).collect();
        knarr_sys::open_beneath(self.here(), parts.join(&b'/'), FLAGS)
    }

    /// Goes through the directories that come next.
    fn run(&mut self, work: &mut Work) -> Step {
        let plain = self.left.iter().take_while(|part| is_plain(part)).count();
        // `known` components can be opened, `known + beyond` cannot.
        let (mut known, mut opened) = (0, None);
        let mut attempt = plain;
        let mut bound = plain + 1;
        while known + 1 < bound {
            work.spend(attempt)?;
            match self.open(attempt) {
                Ok(fd) => (known, opened) = (attempt, Some(fd)),
                Err(Errno::LOOP | Errno::NOTDIR | Errno::NOENT) => bound = attempt,
                Err(e) => return stopped(b"", e),
            }
            attempt = known + (bound - known) / 2;
        }
        if let Some(fd) = opened {
            self.at = Some(fd);
            self.resolved.extend(self.left.drain(..known));
        }
        Ok(())
    }

    /// Takes the next component; answers the target where it is a link.
    fn step(&mut self, work: &mut Work) -> Step<Option<Vec<u8>>> {
        let Some(part) = self.left.pop_front() else { return Ok(None) };
        work.spend(1)?;
        let shown = || String::from_utf8_lossy(&part).into_owned();
        match part.as_slice() {
            b"" | b"." => self.length -= part.len() + 1,
            b".." => {
                self.length -= part.len() + 1;
                self.leave()?;
            }
            name if name.starts_with(b".wh.") => {
                return refused(format!("its parent is a link to the whiteout {:?}", shown()));
            }
            _ if self.missing > 0 => {
                self.missing += 1;
                self.resolved.push(part);
            }
            _ => {
                work.spend(Work::LOOK)?;
                match look(self.here(), &part) {
                    Ok(Found::Link(target)) => {
                        self.length -= part.len() + 1;
                        return Ok(Some(target));
                    }
                    Ok(Found::Directory(fd)) => {
                        self.at = Some(fd);
                        self.resolved.push(part);
                    }
                    // A whiteout makes way for a directory when it is opened.
                    Ok(Found::Whiteout | Found::Nothing) => {
                        self.missing = 1;
                        self.resolved.push(part);
                    }
                    Ok(Found::Other) => {
                        return refused(format!("its parent {:?} is no directory", shown()));
                    }
                    Err(e) => return stopped(&part, e),
                }
            }
        }
        Ok(None)
    }

    /// Goes up one; the root is its own parent.
    fn leave(&mut self) -> Result<(), Errno> {
        let Some(left) = self.resolved.pop() else { return Ok(()) };
        self.length -= left.len() + 1;
        if self.missing > 0 {
            self.missing -= 1;
        } else if self.resolved.is_empty() {
            self.at = None;
        } else {
            self.at = Some(openat(self.here(), c"..", FLAGS, Mode::empty())?);
        }
        Ok(())
    }

    fn follow(&mut self, target: &[u8]) {
        if target.starts_with(b"/") {
            self.length -= self.resolved.drain(..).map(|part| part.len() + 1).sum::<usize>();
            (self.at, self.missing) = (None, 0);
        }
        for piece in target.split(|byte| *byte == b'/').rev() {
            self.length += piece.len() + 1;
            self.left.push_front(piece.to_vec());
        }
    }
}

/// What stopped a resolution: a name that no file system takes, or the host.
fn stopped<T>(part: &[u8], e: Errno) -> Step<T> {
    match e {
        Errno::NAMETOOLONG => {
            refused(format!("its parent {:?}: {e}", String::from_utf8_lossy(part)))
        }
        e => Err(Failure::Host(e)),
    }
}

/// Neither a step back nor a name that means something else.
fn is_plain(part: &[u8]) -> bool {
    !matches!(part, b"" | b"." | b"..") && !part.starts_with(b".wh.")
}

enum Found {
    Nothing,
    Directory(OwnedFd),
    Link(Vec<u8>),
    Whiteout,
    Other,
}

fn look(parent: BorrowedFd<'_>, name: &[u8]) -> Result<Found, Errno> {
    let stat = match statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => return Ok(Found::Nothing),
        other => other?,
    };
    Ok(match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => {
            Found::Directory(openat(parent, name, FLAGS | OFlags::NOFOLLOW, Mode::empty())?)
        }
        FileType::Symlink => Found::Link(readlinkat(parent, name, Vec::new())?.into_bytes()),
        FileType::CharacterDevice if stat.st_rdev == 0 => Found::Whiteout,
        _ => Found::Other,
    })
}

//! The way from a tree's root down to where a walk stands.
//!
//! ```text
//!   root ─ a ─ b ─ c ─ … ─ x ─ y ─ z
//!   open   closed          open, at most OPEN_MAX
//! ```
//!
//! **How it fails.** A directory that was moved away meanwhile is not found
//! again through `..` of what was in it: the way back is lost as far as the root.

use std::{cell::Cell, ffi::CStr, io, os::fd::AsFd, thread::sleep, time::Duration};

use rustix::{
    fd::{BorrowedFd, OwnedFd},
    fs::{Mode, OFlags, ResolveFlags, Stat, fstat, openat, openat2},
    io::Errno,
};

/// Directories that one trail has open at once, besides the root.
pub(crate) const OPEN_MAX: usize = 16;
/// How often, and how long each time, to wait for a descriptor: five seconds in all.
const WAITS: u32 = 100;
const WAIT: Duration = Duration::from_millis(50);

/// A directory above the one where the walk stands.
struct Spot {
    fd: Cell<Option<OwnedFd>>,
    /// Which directory it is: file system and inode.
    is: (u64, u64),
}

/// The directories from the root to where the walk stands, both included.
pub(crate) struct Trail {
    /// The directory where the walk stands, and which one it is.
    here: OwnedFd,
    is: (u64, u64),
    /// Those above it; the root is the first, and always open.
    above: Vec<Spot>,
    /// The first below the root that is open; all that follow are, too.
    first_open: Cell<usize>,
}

impl Trail {
    pub(crate) fn new(root: OwnedFd) -> io::Result<Self> {
        let stat = fstat(&root)?;
        let is = (stat.st_dev, stat.st_ino);
        Ok(Self { here: root, is, above: Vec::new(), first_open: Cell::new(1) })
    }

    /// The directory where the walk stands.
    pub(crate) fn here(&self) -> BorrowedFd<'_> {
        self.here.as_fd()
    }

    /// Goes into a directory; answers what it is. `relieve` closes descriptors
    /// of others, and says whether there were any.
    pub(crate) fn down(
        &mut self,
        name: &CStr,
        mut relieve: impl FnMut() -> bool,
    ) -> io::Result<Stat> {
        while self.above.len() > self.first_open.get() + OPEN_MAX {
            self.close_one();
        }
        let mut patience = Patience::default();
        let fd = loop {
            match open_directory(self.here(), name) {
                Err(errno) if patience.is_for(errno, || self.relieve() | relieve()) => {}
                other => break other?,
            }
        };
        let stat = fstat(&fd)?;
        let above = std::mem::replace(&mut self.here, fd);
        self.above.push(Spot { fd: Cell::new(Some(above)), is: self.is });
        self.is = (stat.st_dev, stat.st_ino);
        Ok(stat)
    }

    /// Leaves the directory where the walk stands; answers how many were left:
    /// one, or all below the root where the way back is lost.
    pub(crate) fn up(&mut self, mut relieve: impl FnMut() -> bool) -> io::Result<usize> {
        let Some(above) = self.above.pop() else { return Ok(0) };
        self.first_open.set(self.first_open.get().min(self.above.len()).max(1));
        if let Some(fd) = above.fd.take() {
            (self.here, self.is) = (fd, above.is);
            return Ok(1);
        }
        let mut patience = Patience::default();
        let opened = loop {
            match openat(&self.here, c"..", DIRECTORY, Mode::empty()) {
                Err(errno) if patience.is_for(errno, &mut relieve) => {}
                Err(errno @ (Errno::MFILE | Errno::NFILE)) => return Err(errno.into()),
                other => break other,
            }
        };
        let same = opened
            .ok()
            .filter(|fd| fstat(fd).is_ok_and(|stat| (stat.st_dev, stat.st_ino) == above.is));
        if let Some(fd) = same {
            (self.here, self.is) = (fd, above.is);
            return Ok(1);
        }
        // What is closed is below the root.
        let lost = self.above.len();
        let root = self.above.drain(..).next();
        if let Some((Some(fd), is)) = root.map(|root| (root.fd.take(), root.is)) {
            (self.here, self.is) = (fd, is);
        }
        self.first_open.set(1);
        Ok(1 + lost)
    }

    /// Closes everything but the root and the directory where the walk stands;
    /// false where there was nothing to close.
    pub(crate) fn relieve(&self) -> bool {
        let mut closed = false;
        while self.close_one() {
            closed = true;
        }
        closed
    }

    fn close_one(&self) -> bool {
        let first = self.first_open.get();
        let Some(spot) = self.above.get(first) else { return false };
        spot.fd.set(None);
        self.first_open.set(first + 1);
        true
    }
}

/// Waiting for a descriptor, which others may have all of for a while.
#[derive(Debug, Default)]
pub(crate) struct Patience {
    waits: u32,
}

impl Patience {
    /// Whether to try again after this error: `relieve` closes what can be
    /// closed and says whether that was anything.
    pub(crate) fn is_for(&mut self, errno: Errno, mut relieve: impl FnMut() -> bool) -> bool {
        if !matches!(errno, Errno::MFILE | Errno::NFILE) || self.waits >= WAITS {
            return false;
        }
        if !relieve() {
            self.waits += 1;
            sleep(WAIT);
        }
        true
    }
}

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Opens a directory of this very mount by its name.
fn open_directory(at: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    openat2(at, name, DIRECTORY, Mode::empty(), resolve)
}

/// Opens the directory that a walk begins at.
pub(crate) fn open_root(
    at: BorrowedFd<'_>,
    path: impl rustix::path::Arg + Copy,
) -> rustix::io::Result<OwnedFd> {
    let mut patience = Patience::default();
    loop {
        match openat(at, path, DIRECTORY, Mode::empty()) {
            Err(errno) if patience.is_for(errno, || false) => {}
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::{CWD, mkdirat, rename};

    use super::*;

    #[test]
    fn a_directory_that_was_moved_away_is_not_mistaken_for_another() {
        let scratch = tempfile::tempdir().unwrap();
        let tree = scratch.path().join("tree");
        std::fs::create_dir(&tree).unwrap();
        let mut trail = Trail::new(open_root(CWD, &tree).unwrap()).unwrap();
        let root = trail.is;
        let open =
            |trail: &Trail| trail.above.len() - trail.first_open.get().min(trail.above.len());
        for depth in 0..3 * OPEN_MAX {
            mkdirat(trail.here(), c"d", Mode::RWXU).unwrap();
            trail.down(c"d", || false).unwrap();
            assert!(open(&trail) <= OPEN_MAX + 1);
            assert_eq!(trail.above.len(), depth + 1);
        }
        assert!(trail.relieve() && !trail.relieve());
        for _ in 0..OPEN_MAX {
            assert_eq!(trail.up(|| false).unwrap(), 1);
        }
        // The one where it stands goes elsewhere, outside the tree.
        let here = scratch.path().join("elsewhere");
        let deep = tree.join("d/".repeat(2 * OPEN_MAX));
        rename(&deep, &here).unwrap();
        let left = trail.up(|| false).unwrap();
        assert_eq!(left, 2 * OPEN_MAX, "the way back is lost as far as the root");
        let stat = fstat(trail.here()).unwrap();
        assert!(trail.above.is_empty() && (stat.st_dev, stat.st_ino) == root);
    }
}

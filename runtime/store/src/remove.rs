//! Deleting trees that somebody else grew.
//!
//! A container may leave a directory 100,000 levels deep or a million files
//! (RELIABILITY X10). So there is no recursion, at most [`DEPTH`] directories
//! are open at once, and no path is ever longer than one name: what lies deeper
//! is first moved up beside the root. No symbolic link is followed.
//!
//! **How it fails.** It goes on after an entry that cannot be removed and
//! reports the first failure at the end.

use std::{ffi::CString, os::fd::OwnedFd, path::Path};

use rustix::{
    fs::{AtFlags, CWD, FileType, Mode, OFlags, RawDir, openat, renameat, unlinkat},
    io::Errno,
};

use crate::{Error, Result};

/// How many directories are open at once.
const DEPTH: usize = 32;

/// Removes a directory with everything in it, or a file. Nothing there is success.
pub(crate) fn tree(path: &Path) -> Result<()> {
    match unlinkat(CWD, path, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(_) => {}
    }
    // Another round for each directory that was moved up; their number shrinks.
    let mut failure = None;
    loop {
        let root = match open(CWD, path) {
            Ok(root) => root,
            Err(Errno::NOENT) => return Ok(()),
            Err(e) => return Err(Error::io("open directory", path)(e.into())),
        };
        let moved = empty(&root, &mut failure);
        if !moved {
            break;
        }
    }
    if let Some(e) = failure {
        return Err(Error::io("remove", path)(e.into()));
    }
    rustix::fs::rmdir(path).or_else(gone).map_err(|e| Error::io("remove", path)(e.into()))
}

fn gone(e: Errno) -> std::result::Result<(), Errno> {
    if e == Errno::NOENT { Ok(()) } else { Err(e) }
}

fn open(at: impl rustix::fd::AsFd, name: impl rustix::path::Arg) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(at, name, flags, Mode::empty())
}

/// One open directory on the way down.
struct Level {
    fd: OwnedFd,
    /// Its name in the level above; none for the root.
    name: Option<CString>,
    directories: Vec<CString>,
}

/// Empties a directory; true where something was moved up into it, to be
/// removed by another round.
fn empty(root: &OwnedFd, failure: &mut Option<Errno>) -> bool {
    let mut moved = false;
    let mut levels: Vec<Level> = Vec::new();
    let Ok(first) = open(root, c".") else { return false };
    levels.push(scan(first, None, failure));
    loop {
        let depth = levels.len();
        let Some(level) = levels.last_mut() else { break };
        if let Some(name) = level.directories.pop() {
            match unlinkat(&level.fd, &name, AtFlags::REMOVEDIR) {
                Ok(()) | Err(Errno::NOENT) => continue,
                Err(_) if depth >= DEPTH => {
                    let up = format!(".up-{}", crate::unique());
                    match renameat(&level.fd, &name, root, up) {
                        Ok(()) => moved = true,
                        Err(e) => note(failure, e),
                    }
                }
                Err(_) => match open(&level.fd, &name) {
                    Ok(fd) => {
                        let next = scan(fd, Some(name), failure);
                        levels.push(next);
                    }
                    Err(e) => note(failure, e),
                },
            }
        } else if let Some(done) = levels.pop()
            && let (Some(name), Some(above)) = (done.name, levels.last())
            && let Err(e) = unlinkat(&above.fd, &name, AtFlags::REMOVEDIR).or_else(gone)
        {
            note(failure, e);
        }
    }
    moved && failure.is_none()
}

fn note(failure: &mut Option<Errno>, e: Errno) {
    failure.get_or_insert(e);
}

/// Removes what is no directory and lists what is.
fn scan(fd: OwnedFd, name: Option<CString>, failure: &mut Option<Errno>) -> Level {
    let mut directories = Vec::new();
    let mut files = Vec::new();
    let mut buffer = Vec::with_capacity(32 * 1024);
    // The listing is read to its end before anything changes.
    let mut listing = RawDir::new(&fd, buffer.spare_capacity_mut());
    while let Some(entry) = listing.next() {
        match entry {
            Ok(entry) if matches!(entry.file_name().to_bytes(), b"." | b"..") => {}
            Ok(entry) if entry.file_type() == FileType::Directory => {
                directories.push(entry.file_name().to_owned());
            }
            Ok(entry) => files.push(entry.file_name().to_owned()),
            Err(e) => {
                note(failure, e);
                break;
            }
        }
    }
    for file in files {
        match unlinkat(&fd, &file, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            // Some file systems do not tell types in listings.
            Err(Errno::ISDIR) => directories.push(file),
            Err(e) => note(failure, e),
        }
    }
    Level { fd, name, directories }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn x10_a_tree_deeper_than_any_path_is_removed() {
        // In memory where there is some: a disk takes its time over 10,000 directories.
        let memory = Path::new("/dev/shm");
        let place = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let scratch = tempfile::tempdir_in(place).unwrap();
        let root = scratch.path().join("tree");
        std::fs::create_dir(&root).unwrap();
        let outside = scratch.path().join("outside");
        std::fs::write(&outside, "kept").unwrap();
        let mut at = open(CWD, &root).unwrap();
        for depth in 0..10_000 {
            rustix::fs::mkdirat(&at, c"d", Mode::RWXU).unwrap();
            if depth % 100 == 0 {
                rustix::fs::symlinkat(outside.as_path(), &at, c"link").unwrap();
                rustix::fs::symlinkat(scratch.path(), &at, c"up").unwrap();
            }
            at = open(&at, c"d").unwrap();
        }
        drop(at);
        tree(&root).unwrap();
        assert!(!root.exists());
        assert_eq!(std::fs::read_to_string(outside).unwrap(), "kept");
        tree(&root).unwrap();
    }
}

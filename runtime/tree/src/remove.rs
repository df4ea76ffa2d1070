//! Removing a tree.

use std::{ffi::CStr, io, os::fd::BorrowedFd, path::Path};

use rustix::{
    fs::{AtFlags, CWD, FileType, unlinkat},
    io::Errno,
    path::Arg,
};

use crate::{
    trail::{Trail, open_root},
    walk::{Left, Seen, Visitor, walk},
};

/// How often directories are walked anew because something was left in them
/// after all: file systems whose listings skip entries while others are removed,
/// or somebody who goes on writing.
const REPEATS_MAX: u32 = 100_000;

/// Removes a directory with everything in it, or a file. Nothing there is
/// success. No link is followed and no mount is entered. Blocks.
///
/// # Errors
/// The first failure, after everything that can be removed was removed.
pub fn remove(path: &Path) -> io::Result<()> {
    remove_at(CWD, path)
}

/// As [`remove`], of a name in an open directory.
///
/// # Errors
/// As [`remove`].
pub fn remove_at(at: BorrowedFd<'_>, path: impl Arg + Copy) -> io::Result<()> {
    let is_no_file = match unlinkat(at, path, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(errno) => errno,
    };
    let mut remover = Remover { failure: None, repeats: 0 };
    loop {
        match unlinkat(at, path, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::NOTDIR) => return Err(is_no_file.into()),
            Err(_) => {}
        }
        let root = match open_root(at, path) {
            Ok(root) => root,
            Err(Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        };
        walk(root, &mut remover)?;
        let errno = match unlinkat(at, path, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(errno) => errno,
        };
        let may_repeat = errno == Errno::NOTEMPTY && remover.repeats < REPEATS_MAX;
        match remover.failure {
            Some(failure) => return Err(failure.into()),
            None if may_repeat => remover.repeats += REPEATS_MAX / 100,
            None => return Err(errno.into()),
        }
    }
}

struct Remover {
    failure: Option<Errno>,
    repeats: u32,
}

impl Remover {
    fn note(&mut self, errno: Errno) {
        self.failure.get_or_insert(errno);
    }
}

impl Visitor for Remover {
    fn entry(&mut self, trail: &Trail, name: &CStr, kind: FileType) -> io::Result<Seen> {
        // An empty directory needs no walk.
        let flags = match kind {
            FileType::Directory => AtFlags::REMOVEDIR,
            _ => AtFlags::empty(),
        };
        match unlinkat(trail.here(), name, flags) {
            Ok(()) => return Ok(Seen::Gone),
            Err(Errno::NOENT) => {}
            // Some file systems do not tell kinds in listings.
            Err(Errno::NOTEMPTY | Errno::EXIST | Errno::ISDIR) => return Ok(Seen::Inside),
            Err(errno) if kind == FileType::Directory => {
                // What is in it may go, even where it cannot itself.
                self.note(errno);
                return Ok(Seen::Inside);
            }
            Err(errno) => self.note(errno),
        }
        Ok(Seen::Passed)
    }

    fn left(&mut self, trail: &Trail, name: Option<&CStr>, changed: bool) -> io::Result<Left> {
        let again = changed && self.repeats < REPEATS_MAX;
        let Some(name) = name else {
            // Found anew, and empty now, when the one above is listed again.
            return Ok(if again { Left::Again } else { Left::Stays });
        };
        match unlinkat(trail.here(), name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => return Ok(Left::Gone),
            Err(Errno::NOTEMPTY | Errno::EXIST) if again => {
                self.repeats += 1;
                return Ok(Left::Again);
            }
            Err(errno) => self.note(errno),
        }
        Ok(Left::Stays)
    }

    fn failed(&mut self, errno: Errno) -> io::Result<()> {
        if errno != Errno::NOENT {
            self.note(errno);
        }
        Ok(())
    }

    fn lost(&mut self) -> io::Result<()> {
        // What was not reached is found by the next round.
        Ok(())
    }
}

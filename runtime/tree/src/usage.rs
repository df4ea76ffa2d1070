//! What a tree takes.

use std::{collections::HashSet, ffi::CStr, io, path::Path};

use rustix::{
    fs::{AtFlags, CWD, FileType, statat},
    io::Errno,
};

use crate::{
    trail::{Trail, open_root},
    walk::{Seen, Visitor, walk},
};

/// Files with several names that are remembered, some 32 MiB.
const LINKED_MAX: usize = 1_000_000;

/// What everything below a directory takes; the directory itself is not counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of disk that are allocated, directories included.
    pub disk: u64,
    /// Lengths of all files (holes count, directories do not), in bytes.
    pub length: u64,
    /// Files and directories.
    pub inodes: u64,
}

/// Counts what is below a directory; nothing there is nothing. A file with
/// several names counts once. What others remove or move meanwhile is counted
/// or not. No link is followed and no mount is entered. Blocks.
///
/// # Errors
/// When the host fails.
pub fn usage(directory: &Path) -> io::Result<Usage> {
    let root = match open_root(CWD, directory) {
        Ok(root) => root,
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(Usage::default()),
        Err(errno) => return Err(errno.into()),
    };
    let mut counter = Counter::default();
    walk(root, &mut counter)?;
    Ok(counter.usage)
}

#[derive(Default)]
struct Counter {
    usage: Usage,
    /// Files with several names that were counted.
    linked: HashSet<(u64, u64)>,
}

impl Visitor for Counter {
    fn entry(&mut self, trail: &Trail, name: &CStr, _kind: FileType) -> io::Result<Seen> {
        // What somebody removed meanwhile is gone, not a failure.
        let Ok(stat) = statat(trail.here(), name, AtFlags::SYMLINK_NOFOLLOW) else {
            return Ok(Seen::Passed);
        };
        let directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        let (mut disk, mut length) = (stat.st_blocks as u64 * 512, stat.st_size as u64);
        if directory {
            length = 0;
        } else if stat.st_nlink > 1 {
            let is = (stat.st_dev, stat.st_ino);
            if self.linked.len() < LINKED_MAX {
                if !self.linked.insert(is) {
                    return Ok(Seen::Passed);
                }
            } else if self.linked.contains(&is) {
                return Ok(Seen::Passed);
            } else {
                // Too many to remember: each name counts for its share.
                #[allow(clippy::useless_conversion, reason = "other machines have 32 bits")]
                let names = u64::from(stat.st_nlink);
                (disk, length) = (disk / names, length / names);
            }
        }
        // Files of holes may be of any length.
        self.usage.disk = self.usage.disk.saturating_add(disk);
        self.usage.length = self.usage.length.saturating_add(length);
        self.usage.inodes += 1;
        Ok(if directory { Seen::Inside } else { Seen::Passed })
    }

    fn failed(&mut self, errno: Errno) -> io::Result<()> {
        match errno {
            Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV | Errno::STALE => Ok(()),
            errno => Err(errno.into()),
        }
    }

    fn lost(&mut self) -> io::Result<()> {
        Ok(())
    }
}

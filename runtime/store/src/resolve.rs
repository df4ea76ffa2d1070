//! Parents that are symbolic links, resolved with the layer's root as `/`.
//!
//! Real layers say `lib -> usr/lib` and then `lib/x` (merged-usr trees written by
//! tools that keep their packages' own names). Other engines unpack such an entry
//! to `usr/lib/x` of the layer; so do we: links are read one component at a time
//! and what comes out is a path without any, which is then opened like all others.
//! An absolute target begins at the layer's root, `..` ends there.
//!
//! **How it fails.** A parent that is a file or device, more than [`LINKS_MAX`]
//! links (a loop), a path beyond the kernel's limit, or one that leads into a
//! whiteout's name refuses the entry.

use std::{collections::VecDeque, os::fd::BorrowedFd};

use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, openat2, readlinkat, statat},
    io::Errno,
};

/// Links on the way to one entry; the kernel itself follows 40.
const LINKS_MAX: usize = 40;
/// Bytes of all components together.
const PATH_MAX: usize = 4096;

/// The components of a directory without links among them. What does not exist
/// yet is left as it is named.
pub(crate) fn directories(root: BorrowedFd<'_>, parts: &[&[u8]]) -> Result<Vec<Vec<u8>>, String> {
    let mut left: VecDeque<Vec<u8>> = parts.iter().map(|part| part.to_vec()).collect();
    let mut resolved: Vec<Vec<u8>> = Vec::new();
    let mut links = 0;
    while let Some(part) = left.pop_front() {
        let shown = || String::from_utf8_lossy(&part).into_owned();
        match part.as_slice() {
            b"" | b"." => continue,
            b".." => {
                resolved.pop();
                continue;
            }
            name if name.starts_with(b".wh.") => {
                return Err(format!("its parent is a link to the whiteout {:?}", shown()));
            }
            _ => {}
        }
        match look(root, &resolved, &part) {
            Ok(Found::Link(target)) => {
                links += 1;
                if links > LINKS_MAX {
                    return Err("its parent is a loop of symbolic links".into());
                }
                if target.starts_with(b"/") {
                    resolved.clear();
                }
                for piece in target.split(|byte| *byte == b'/').rev() {
                    left.push_front(piece.to_vec());
                }
            }
            // A whiteout makes way for a directory when it is opened.
            Ok(Found::Directory | Found::Whiteout | Found::Nothing) => resolved.push(part),
            Ok(Found::Other) => return Err(format!("its parent {:?} is no directory", shown())),
            Err(e) => return Err(format!("its parent {:?}: {e}", shown())),
        }
        let length: usize = resolved.iter().chain(&left).map(|part| part.len() + 1).sum();
        if length >= PATH_MAX {
            return Err("its parent's path is longer than 4095 bytes".into());
        }
    }
    Ok(resolved)
}

enum Found {
    Nothing,
    Directory,
    Link(Vec<u8>),
    Whiteout,
    Other,
}

fn look(root: BorrowedFd<'_>, parents: &[Vec<u8>], name: &[u8]) -> Result<Found, Errno> {
    let path = if parents.is_empty() { b".".to_vec() } else { parents.join(&b'/') };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let parent = match openat2(root, path.as_slice(), flags, Mode::empty(), resolve) {
        // Below what is still to be made.
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(Found::Nothing),
        other => other?,
    };
    let stat = match statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => return Ok(Found::Nothing),
        other => other?,
    };
    Ok(match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => Found::Directory,
        FileType::Symlink => Found::Link(readlinkat(&parent, name, Vec::new())?.into_bytes()),
        FileType::CharacterDevice if stat.st_rdev == 0 => Found::Whiteout,
        _ => Found::Other,
    })
}

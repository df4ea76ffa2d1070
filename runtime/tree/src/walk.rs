//! The walk itself: depth first, in pieces, without recursion.
//!
//! ```text
//!   list a piece ─▶ entry, entry, … ─▶ each directory of the piece: down ─▶ list …
//!        ▲                                                           │
//!        └──────────── where the piece ended ◀── leave, up, left ◀───┘
//! ```

use std::{
    ffi::{CStr, CString},
    io,
    os::fd::{BorrowedFd, OwnedFd},
};

use rustix::{
    fs::{FileType, RawDir, SeekFrom, seek},
    io::Errno,
};

use crate::trail::Trail;

/// Bytes of one piece of a listing.
const PIECE: usize = 32 * 1024;
/// The same where much is remembered already; the longest entry fits.
const SMALL_PIECE: usize = 1024;
/// Bytes of names that are remembered before the walk becomes sparing.
const NAMES_MAX: usize = 16 << 20;

/// What an entry is to the walk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Seen {
    /// Nothing more to do with it.
    Passed,
    /// It was removed.
    Gone,
    /// A directory to go into.
    Inside,
}

/// What became of a directory that was left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Left {
    /// It is still there.
    Stays,
    /// It was removed.
    Gone,
    /// It is to be walked once more.
    Again,
}

/// What a walk is made for. An error ends the walk.
pub(crate) trait Visitor {
    /// An entry of the directory where the trail ends. File systems may not know
    /// its kind.
    fn entry(&mut self, trail: &Trail, name: &CStr, kind: FileType) -> io::Result<Seen>;

    /// The walk went into a directory.
    fn entered(&mut self, _trail: &Trail, _name: &CStr) -> io::Result<()> {
        Ok(())
    }

    /// Everything in a directory was seen; the walk still stands in it.
    fn leave(&mut self, _directory: BorrowedFd<'_>) -> io::Result<()> {
        Ok(())
    }

    /// A directory was left for the one above. `changed`: something in it was
    /// removed. Its name is `None` where too much would have to be remembered.
    fn left(&mut self, _trail: &Trail, _name: Option<&CStr>, _changed: bool) -> io::Result<Left> {
        Ok(Left::Stays)
    }

    /// Closes descriptors that can be opened again; false where there are none.
    fn relieve(&self) -> bool {
        false
    }

    /// A directory could not be opened or listed; `Ok` goes on without it.
    fn failed(&mut self, errno: Errno) -> io::Result<()>;

    /// Directories were moved, so that the way back is lost: the walk goes on at the root.
    fn lost(&mut self) -> io::Result<()>;
}

/// One directory on the way, and how far it was listed.
#[derive(Debug, Default)]
struct Frame {
    /// Its name in the one above.
    name: Option<CString>,
    /// Directories of the piece that was listed last.
    pending: Vec<CString>,
    /// Where the next piece begins.
    cookie: u64,
    listed: bool,
    changed: bool,
    /// It is to be listed from the beginning once more.
    again: bool,
}

impl Frame {
    fn bytes(&self) -> usize {
        self.name.iter().chain(&self.pending).map(|name| weight(name)).sum()
    }
}

/// What a remembered name takes.
fn weight(name: &CStr) -> usize {
    name.count_bytes() + 48
}

/// Walks everything below `root`, which is not an entry itself.
pub(crate) fn walk(root: OwnedFd, visitor: &mut impl Visitor) -> io::Result<()> {
    let mut trail = Trail::new(root)?;
    let mut frames = vec![Frame::default()];
    let mut held = 0;
    let mut buffer = Vec::with_capacity(PIECE);
    while let Some(frame) = frames.last_mut() {
        if let Some(name) = frame.pending.pop() {
            match trail.down(&name, || visitor.relieve()) {
                Ok(_) => {
                    visitor.entered(&trail, &name)?;
                    let mut inside = Frame::default();
                    if held <= NAMES_MAX {
                        inside.name = Some(name);
                    } else {
                        held -= weight(&name);
                    }
                    frames.push(inside);
                }
                Err(error) => {
                    held -= weight(&name);
                    match Errno::from_io_error(&error) {
                        Some(errno) => visitor.failed(errno)?,
                        None => return Err(error),
                    }
                }
            }
        } else if !frame.listed {
            list(&trail, frame, visitor, &mut buffer, held > NAMES_MAX)?;
            held += frame.pending.iter().map(|name| weight(name)).sum::<usize>();
        } else if std::mem::take(&mut frame.again) {
            (frame.cookie, frame.listed, frame.changed) = (0, false, false);
        } else {
            visitor.leave(trail.here())?;
            if frames.len() == 1 {
                break;
            }
            let count = trail.up(|| visitor.relieve())?;
            let gone = frames.split_off(frames.len() - count);
            held -= gone.iter().map(Frame::bytes).sum::<usize>();
            let (Some(above), Some(left)) = (frames.last_mut(), gone.into_iter().next()) else {
                break;
            };
            if count > 1 {
                visitor.lost()?;
                continue;
            }
            match visitor.left(&trail, left.name.as_deref(), left.changed)? {
                Left::Stays => {}
                Left::Gone => above.changed = true,
                Left::Again => match left.name {
                    Some(name) => {
                        held += weight(&name);
                        above.pending.push(name);
                    }
                    None => (above.again, above.changed) = (true, true),
                },
            }
        }
    }
    Ok(())
}

/// Lists one piece of the directory where the walk stands.
fn list(
    trail: &Trail,
    frame: &mut Frame,
    visitor: &mut impl Visitor,
    buffer: &mut Vec<u8>,
    sparing: bool,
) -> io::Result<()> {
    let here = trail.here();
    // The descriptor may be a new one of the same directory.
    if let Err(errno) = seek(here, SeekFrom::Start(frame.cookie)) {
        frame.listed = true;
        return visitor.failed(errno);
    }
    let piece = if sparing { SMALL_PIECE } else { PIECE };
    let mut listing = RawDir::new(here, &mut buffer.spare_capacity_mut()[..piece]);
    loop {
        match listing.next() {
            None => {
                frame.listed = true;
                return Ok(());
            }
            Some(Err(errno)) => {
                frame.listed = true;
                return visitor.failed(errno);
            }
            Some(Ok(entry)) => {
                frame.cookie = entry.next_entry_cookie();
                let name = entry.file_name();
                if !matches!(name.to_bytes(), b"." | b"..") {
                    match visitor.entry(trail, name, entry.file_type())? {
                        Seen::Passed => {}
                        Seen::Gone => frame.changed = true,
                        Seen::Inside => frame.pending.push(name.to_owned()),
                    }
                }
            }
        }
        // What was read is seen; the kernel stands where the next piece begins.
        if listing.is_buffer_empty() {
            return Ok(());
        }
    }
}

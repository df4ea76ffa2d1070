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
//! file descriptor and no link in it is followed (`knarr-tree`).

use std::{fs, os::fd::BorrowedFd, path::Path};

use crate::{Error, Result, at, remove_tree, sync_dir};

const FILL: &str = ".fill";
const FILLED: &str = ".filled";

/// Removes an unfinished copy, and the names of its files with several.
fn discard(fill: &Path) -> Result<()> {
    remove_tree(&fill.with_extension("links"))?;
    remove_tree(fill)
}

/// Fills the volume at `volume` from `source` if it is empty.
pub(crate) fn fill(volume: &Path, source: BorrowedFd<'_>) -> Result<()> {
    let (data, fill, filled) = (volume.join(crate::DATA), volume.join(FILL), volume.join(FILLED));
    if !filled.exists() {
        if at(&data, fs::read_dir(&data))?.next().is_some() {
            // Somebody else filled it after a copy-up was interrupted.
            return discard(&fill);
        }
        discard(&fill)?;
        let copied = knarr_tree::copy(source, &fill);
        if let Err(error) = copied.and_then(|()| fs::rename(&fill, &filled)) {
            let discarded = discard(&fill);
            return Err(Error::io("copy the image's files into the volume", error))
                .or_else(|error| discarded.and(Err(error)));
        }
    }
    for entry in at(&filled, fs::read_dir(&filled))? {
        let entry = at(&filled, entry)?;
        at(&data, fs::rename(entry.path(), data.join(entry.file_name())))?;
    }
    at(&data, knarr_tree::copy_metadata(&filled, &data))?;
    at(&filled, fs::remove_dir(&filled))?;
    sync_dir(volume)
}

//! Walks over trees that somebody else grew: an image, a container, a volume's users.
//!
//! ```text
//!   remove(path)           everything below, and the path itself
//!   copy(source, target)   owners, modes, times, attributes, links, holes
//!   usage(directory)       bytes and inodes
//! ```
//!
//! Such a tree may be 100,000 levels deep or hold a million files
//! (CATALOGUE X10). So there is one walk for all three ([`walk`]), and it
//!
//! - does not recurse: its own stack does not grow with the depth;
//! - has at most [`trail::OPEN_MAX`] directories open: those further up are
//!   closed and opened again through `..`, where the file system and the inode
//!   say whether it is still the same directory;
//! - names one component at a time, beneath a descriptor, and follows no link;
//! - never crosses into another mount;
//! - lists a directory in pieces, so that what it remembers does not grow with
//!   the number of entries.
//!
//! Nothing outside this room calls `std::fs::remove_dir_all` (`clippy.toml`).
//!
//! **How it fails.** Where no descriptor is to be had, the walk closes its own
//! and waits for some seconds before it says so. [`remove`] goes on after what
//! cannot be removed and reports the first failure; [`copy`] ends at the first;
//! [`usage`] counts what is there and ends only where the host fails.

#![forbid(unsafe_code)]

mod copy;
mod remove;
mod trail;
mod usage;
mod walk;

pub use copy::{copy, copy_into, copy_metadata};
pub use remove::{remove, remove_at};
pub use usage::{Usage, usage};

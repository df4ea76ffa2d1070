//! Images: pull, load, tag, select, and decide what an image asks us to run.
//!
//! ```text
//!   pull ─┐                                    ┌─▶ native
//!         ├─▶ manifest ─▶ blobs + layers ─▶ detect ─▶ Wasm ─▶ compile ahead
//!   load ─┘    (lease)     (store)             └─▶ refused, both readings named
//!                                                     │
//!                                  row, names ◀───────┘   (database, lease ends)
//! ```
//!
//! Decided once, when the image is stored: [`knarr_model::Workload`] and the
//! reason for it. `run` reads the row. An image is visible when its row is, and
//! its row is written last: whatever happens before leaves only content that a
//! lease names, which the next attempt finds again or the sweep removes. Its
//! record (`images/<digits>.json`) follows the row, and a database that was lost
//! is written again from the records.
//!
//! **How it fails.** [`Error`] with Docker's wording where Docker has one.
//! Content that breaks a rule (a wrong digest, a hostile archive, a lying
//! document) is removed again; a transfer that broke off is kept for the next
//! attempt.

#![forbid(unsafe_code)]

mod adopt;
mod config;
mod content;
mod detect;
mod document;
mod error;
mod feed;
mod images;
mod load;
mod progress;
mod pull;
mod remove;
mod rootfs;
mod select;
mod stored;
mod types;

pub use error::{Error, Result};
pub use images::{Images, Options};
pub use knarr_guest::WasmCompiler;
pub use types::{
    DiskUsage, HistoryEntry, Image, ImageConfig, ImageUser, Inspect, Loaded, Prefer, Progress,
    ProgressSender, Pruned, RemoveOptions, Removed,
};

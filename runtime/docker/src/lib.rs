//! The Docker REST vocabulary: types only (moby `api/types`, API 1.24 to 1.50).
//!
//! What both ends of the socket say: `knarr-api` answers with these types, and
//! `knarr-client` reads them. Nothing here validates; the engine has validated
//! types of its own.
//!
//! Two habits of Go's JSON are kept, because clients rely on them: `null` reads
//! as the zero value wherever it stands, and fields that this version does not
//! know are ignored on the way in. [`HostConfig`] keeps unknown fields, so that
//! `inspect` answers what was asked.

#![forbid(unsafe_code)]

use serde::{Deserialize, Deserializer, Serialize};

/// A struct of the wire: every field has a default and reads `null` as it.
macro_rules! wire {
    ($(
        $(#[$meta:meta])*
        pub struct $name:ident { $( $(#[$field_meta:meta])* pub $field:ident: $type:ty ),* $(,)? }
    )*) => {$(
        #[derive(Debug, Clone, PartialEq, Default, serde::Serialize, serde::Deserialize)]
        #[serde(default)]
        $(#[$meta])*
        pub struct $name {
            $( $(#[$field_meta])* #[serde(deserialize_with = "crate::null_default")] pub $field: $type ),*
        }
    )*};
}

mod container;
mod exec;
mod host_config;
mod image;
mod inspect;
mod network;
mod stats;
mod stream;
mod system;
mod volume;

pub use container::*;
pub use exec::*;
pub use host_config::*;
pub use image::*;
pub use inspect::*;
pub use network::*;
pub use stats::*;
pub use stream::*;
pub use system::*;
pub use volume::*;

/// The newest API version that Knarr speaks.
pub const API_VERSION: &str = "1.50";
/// The oldest API version that Knarr speaks.
pub const MIN_API_VERSION: &str = "1.24";
/// Content type of output in frames: see [`StreamKind`].
pub const MULTIPLEXED_STREAM: &str = "application/vnd.docker.multiplexed-stream";
/// Content type of output without frames (a terminal's).
pub const RAW_STREAM: &str = "application/vnd.docker.raw-stream";
/// Go's zero time, which Docker writes where a time is not set.
pub const ZERO_TIME: &str = "0001-01-01T00:00:00Z";

/// The body of every error.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ErrorBody {
    /// What went wrong, for people.
    pub message: String,
}

/// Reads `null` as the default.
fn null_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Go's `omitempty` for numbers.
#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// `{}`: Go's `struct{}`, the value of Docker's sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Empty {}

/// A command: a list of words, or one string that is the only word (moby `strslice`).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(transparent)]
pub struct Words(pub Vec<String>);

impl<'de> Deserialize<'de> for Words {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            One(String),
            Many(Vec<String>),
        }
        Ok(Self(match Either::deserialize(deserializer)? {
            Either::One(word) => vec![word],
            Either::Many(words) => words,
        }))
    }
}

#[cfg(test)]
mod tests;

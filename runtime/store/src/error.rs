//! Why the store refused or failed.

use std::{io, path::Path};

use knarr_model::{Digest, ErrorKind, Kinded};

/// What the store answers.
pub type Result<T> = std::result::Result<T, Error>;

/// Why the store refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No blob or layer of this digest.
    #[error("{what} {digest} is not in the store")]
    NotFound {
        /// `blob` or `layer`.
        what: &'static str,
        /// Its digest.
        digest: Digest,
    },
    /// The bytes are not what their name says.
    #[error("{what}: digest is {found}, want {want}")]
    Digest {
        /// What was hashed.
        what: &'static str,
        /// What the bytes hash to.
        found: Digest,
        /// What they should hash to.
        want: Digest,
    },
    /// More or fewer bytes than announced.
    #[error("{digest}: {found} bytes, want {want}")]
    Size {
        /// The content's name.
        digest: Digest,
        /// How many came.
        found: u64,
        /// How many were announced.
        want: u64,
    },
    /// Larger than such a thing may be.
    #[error("{what} is larger than {limit} bytes")]
    TooLarge {
        /// What it is.
        what: String,
        /// The limit.
        limit: u64,
    },
    /// An archive that breaks the rules of its format, or ours.
    #[error("{0}")]
    Archive(String),
    /// An entry of an archive that is not unpacked.
    #[error("layer entry {entry:?}: {reason}")]
    Entry {
        /// Its path, as it was written.
        entry: String,
        /// Why not.
        reason: String,
    },
    /// The process that unpacked it came to the end of what it may use.
    #[error("layer needs more memory or time to unpack than it may have (signal {signal})")]
    Stopped {
        /// What ended it.
        signal: i32,
    },
    /// Where the archive comes from failed: nothing is wrong with the archive.
    #[error("read layer: {0}")]
    Source(#[source] io::Error),
    /// The host's file system.
    #[error("{action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: String,
        /// What the kernel said.
        source: io::Error,
    },
}

impl Error {
    /// For `map_err`: an operation of the host's file system failed.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, path: path.display().to_string(), source }
    }

    /// Whether the content itself is wrong, so that trying again is of no use.
    pub fn is_content(&self) -> bool {
        matches!(
            self,
            Self::Digest { .. }
                | Self::Size { .. }
                | Self::TooLarge { .. }
                | Self::Archive(_)
                | Self::Entry { .. }
                | Self::Stopped { .. }
        )
    }
}

impl Kinded for Error {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::NotFound { .. } => ErrorKind::NotFound,
            Self::Digest { .. }
            | Self::Size { .. }
            | Self::TooLarge { .. }
            | Self::Archive(_)
            | Self::Entry { .. }
            | Self::Stopped { .. } => ErrorKind::InvalidArgument,
            Self::Source(_) => ErrorKind::Unavailable,
            Self::Io { .. } => ErrorKind::Internal,
        }
    }
}

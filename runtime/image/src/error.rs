//! Why an image could not be had.

use knarr_model::{Digest, ErrorKind, Kinded};

/// What this room answers.
pub type Result<T> = std::result::Result<T, Error>;

/// Why an image could not be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No image of this name or id; Docker's wording.
    #[error("No such image: {0}")]
    NotFound(String),
    /// Several images whose ids start so.
    #[error("image id prefix {0:?} is ambiguous: more than one image has it")]
    Ambiguous(String),
    /// Malformed reference or id.
    #[error(transparent)]
    Reference(#[from] knarr_model::ReferenceError),
    /// The image is in use; Docker's wording.
    #[error("conflict: unable to {action} {name} ({how}) - {why}")]
    Conflict {
        /// `remove repository reference` or `delete`.
        action: &'static str,
        /// As the user wrote it, or the short id.
        name: String,
        /// `must be forced` or `cannot be forced`.
        how: &'static str,
        /// Who uses it.
        why: String,
    },
    /// The index has no variant for the platform.
    #[error("no matching manifest for {want} in the manifest list entries: it has {have}")]
    NoPlatform {
        /// What was asked for.
        want: String,
        /// What there is.
        have: String,
    },
    /// A manifest, index, configuration or archive that breaks a rule.
    #[error("invalid {what}: {why}")]
    Invalid {
        /// Which document.
        what: String,
        /// Which rule.
        why: String,
    },
    /// Something that Knarr does not run or read, with the reason.
    #[error("{0}")]
    Unsupported(String),
    /// What the image says and what its bytes say contradict each other.
    #[error("conflicting image: {one}, but {other}")]
    Dispatch {
        /// One reading.
        one: String,
        /// The other.
        other: String,
    },
    /// A layer does not unpack to what the configuration announces (CATALOGUE I10).
    #[error("layer {position}: diff id is {found}, the image configuration says {want}")]
    DiffId {
        /// Counted from 1.
        position: usize,
        /// What it unpacks to.
        found: Digest,
        /// What the configuration says.
        want: Digest,
    },
    /// A Wasm program is refused, or its compilation failed.
    #[error(transparent)]
    Guest(#[from] knarr_guest::Error),
    /// The store refused or failed.
    #[error(transparent)]
    Store(#[from] knarr_store::Error),
    /// The database failed.
    #[error(transparent)]
    State(#[from] knarr_state::Error),
    /// The record of an image.
    #[error(transparent)]
    Record(#[from] knarr_state::record::Error),
    /// The registry refused or failed.
    #[error(transparent)]
    Registry(#[from] knarr_registry::Error),
    /// There was no thread for the work, or it died.
    #[error(transparent)]
    Work(#[from] knarr_work::Error),
    /// A worker of ours died.
    #[error("internal: {0}")]
    Internal(String),
}

impl Error {
    /// For documents that break a rule.
    pub(crate) fn invalid(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Invalid { what: what.into(), why: why.into() }
    }
}

impl Kinded for Error {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::NotFound(_) | Self::NoPlatform { .. } => ErrorKind::NotFound,
            Self::Ambiguous(_)
            | Self::Reference(_)
            | Self::Invalid { .. }
            | Self::Dispatch { .. }
            | Self::DiffId { .. } => ErrorKind::InvalidArgument,
            Self::Guest(error) => match error {
                knarr_guest::Error::Invalid { .. } | knarr_guest::Error::Compile { .. } => {
                    ErrorKind::InvalidArgument
                }
                knarr_guest::Error::Unsupported(_) => ErrorKind::NotSupported,
                knarr_guest::Error::Internal(_) => ErrorKind::Internal,
            },
            Self::Conflict { .. } => ErrorKind::Conflict,
            Self::Unsupported(_) => ErrorKind::NotSupported,
            Self::Store(error) => error.kind(),
            Self::Registry(error) => error.kind(),
            Self::State(_) | Self::Record(_) | Self::Work(_) | Self::Internal(_) => {
                ErrorKind::Internal
            }
        }
    }
}

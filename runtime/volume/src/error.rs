//! Why a volume operation failed; Docker's wording where it has one.

use std::{fmt, io};

use knarr_model::{ContainerId, ErrorKind, Kinded};

/// What an operation answers.
pub type Result<T> = std::result::Result<T, Error>;

/// A failed volume operation.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such volume.
    #[error("get {0}: no such volume")]
    NotFound(String),
    /// Outside the grammar of names.
    #[error(
        "create {0}: {0:?} includes invalid characters for a local volume name, only \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. If you intended to pass a host directory, use absolute path"
    )]
    Name(String),
    /// There is no such driver.
    #[error("error looking up volume plugin {0}: plugin \"{0}\" not found")]
    Driver(String),
    /// The local driver of Knarr takes no such option.
    #[error(
        "invalid option: {0:?}: the local driver takes no options here; use a bind mount or --tmpfs"
    )]
    Option(String),
    /// There is one with other options.
    #[error("volume {0:?} already exists with other options")]
    Differs(String),
    /// Containers use it.
    #[error("remove {name}: volume is in use - [{users}]")]
    InUse {
        /// The volume.
        name: String,
        /// The containers.
        users: Users,
    },
    /// `volume-subpath` or an image path that leaves its root, or is no directory.
    #[error("{path:?} must be a directory inside its root: {source}")]
    Subpath {
        /// As the user wrote it.
        path: String,
        /// The kernel's word.
        source: io::Error,
    },
    /// The host.
    #[error("volume: {what}: {source}")]
    Io {
        /// The path or the operation.
        what: String,
        /// The kernel's word.
        source: io::Error,
    },
    /// The database.
    #[error(transparent)]
    State(#[from] knarr_state::Error),
    /// A volume's record.
    #[error("volume: {0}")]
    Record(#[from] knarr_state::record::Error),
}

/// The containers that use a volume, joined as Docker shows them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Users(pub Vec<ContainerId>);

impl From<Vec<ContainerId>> for Users {
    fn from(users: Vec<ContainerId>) -> Self {
        Self(users)
    }
}

impl fmt::Display for Users {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, user) in self.0.iter().enumerate() {
            write!(f, "{}{user}", if at == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

impl Error {
    pub(crate) fn io(what: impl fmt::Display, source: io::Error) -> Self {
        Self::Io { what: what.to_string(), source }
    }
}

impl Kinded for Error {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::NotFound(_) | Self::Driver(_) => ErrorKind::NotFound,
            Self::Name(_) | Self::Option(_) | Self::Subpath { .. } => ErrorKind::InvalidArgument,
            Self::Differs(_) | Self::InUse { .. } => ErrorKind::Conflict,
            Self::Io { .. } | Self::State(_) | Self::Record(_) => ErrorKind::Internal,
        }
    }
}

//! The engine's error: a kind, Docker's wording, and what caused it.

use std::fmt;

use knarr_model::{ErrorKind, Kinded};

/// What an operation of the engine answers.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation failed.
///
/// The message is what the user reads, in Docker's own words where Docker has
/// them: clients match on some of them to choose an exit code.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    message: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error of a kind with its message.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    /// The object does not exist.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotFound, message)
    }

    /// The object's state forbids it.
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Conflict, message)
    }

    /// The request makes no sense.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidArgument, message)
    }

    /// It is so already.
    pub fn not_modified() -> Self {
        Self::new(ErrorKind::NotModified, "not modified")
    }

    /// Knarr does not do this.
    pub fn not_supported(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotSupported, message)
    }

    /// Our fault or the host's.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, message)
    }

    /// An I/O error with what was being done.
    pub fn io(doing: impl fmt::Display, error: std::io::Error) -> Self {
        Self {
            kind: ErrorKind::Internal,
            message: format!("{doing}: {error}"),
            source: Some(Box::new(error)),
        }
    }

    /// Another room's error, with its kind kept.
    pub fn from_room(error: impl Kinded + Send + Sync + 'static) -> Self {
        Self { kind: error.kind(), message: error.to_string(), source: Some(Box::new(error)) }
    }

    /// The same failure, told with what was being attempted.
    #[must_use]
    pub fn context(mut self, doing: impl fmt::Display) -> Self {
        self.message = format!("{doing}: {}", self.message);
        self
    }

    /// The message as the user reads it.
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

impl Kinded for Error {
    fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl From<knarr_state::Error> for Error {
    fn from(error: knarr_state::Error) -> Self {
        let message = error.to_string();
        Self { kind: ErrorKind::Internal, message, source: Some(Box::new(error)) }
    }
}

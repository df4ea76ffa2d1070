//! Why a container or a process in it could not be made.

use std::io;

use knarr_model::{ErrorKind, Kinded};

/// Why a container or a process in it could not be made, in Docker's words
/// where Docker has them.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    failure: Failure,
    message: String,
    #[source]
    source: Option<io::Error>,
}

/// What kind of failure it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// There is no such executable (exit code 127).
    NotFound,
    /// It is there but cannot be executed (exit code 126).
    NotExecutable,
    /// The specification asks for something that is wrong or contradictory.
    InvalidSpec,
    /// The specification asks for something that Knarr does not do.
    NotSupported,
    /// The container is not running (any more, or because it is paused).
    Gone,
    /// The kernel refused something.
    System,
}

impl Error {
    pub(crate) fn new(failure: Failure, message: impl Into<String>) -> Self {
        Self { failure, message: message.into(), source: None }
    }

    /// The kernel refused `what`.
    pub(crate) fn system(what: impl std::fmt::Display, source: impl Into<io::Error>) -> Self {
        let source = source.into();
        Self {
            failure: Failure::System,
            message: format!("{what}: {}", describe(&source)),
            source: Some(source),
        }
    }

    /// What kind of failure it was.
    pub fn failure(&self) -> Failure {
        self.failure
    }

    /// The exit code that Docker gives a container that failed so: 127 where
    /// the executable is missing, 126 where it cannot be executed, 128 else.
    pub fn exit_code(&self) -> u32 {
        match self.failure {
            Failure::NotFound => 127,
            Failure::NotExecutable => 126,
            _ => 128,
        }
    }
}

/// The kernel's words without Rust's `(os error N)`.
pub(crate) fn describe(error: &io::Error) -> String {
    let text = error.to_string().to_lowercase();
    match text.find(" (os error") {
        Some(at) => text[..at].to_owned(),
        None => text,
    }
}

impl Kinded for Error {
    fn kind(&self) -> ErrorKind {
        match self.failure {
            // Docker answers 400 for both (moby `errdefs.InvalidParameter`).
            Failure::NotFound | Failure::NotExecutable | Failure::InvalidSpec => {
                ErrorKind::InvalidArgument
            }
            Failure::NotSupported => ErrorKind::NotSupported,
            Failure::Gone => ErrorKind::Conflict,
            Failure::System => ErrorKind::Internal,
        }
    }
}

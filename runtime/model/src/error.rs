//! The kinds of failure that callers tell apart.

/// What kind of failure an error is; decides the HTTP status and the exit code.
///
/// Each crate's error type answers [`Kinded::kind`]; the REST room maps the
/// kind to Docker's status (moby `errdefs`), nobody matches on messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The named object does not exist (404).
    NotFound,
    /// The request contradicts the object's state or a name is taken (409).
    Conflict,
    /// The request is malformed or its values make no sense (400).
    InvalidArgument,
    /// It is already so (304).
    NotModified,
    /// The caller may not do this (403).
    Forbidden,
    /// Credentials are missing or wrong (401).
    Unauthorized,
    /// Knarr does not do this, by design or not yet (501).
    NotSupported,
    /// Something else that is needed did not answer: a registry, a shim (503).
    Unavailable,
    /// The operation was given up on request (499, never seen by a client that is gone).
    Cancelled,
    /// Our fault or the host's: I/O, no space, a broken promise (500).
    Internal,
}

/// An error that knows its kind.
pub trait Kinded: std::error::Error {
    /// The kind of this failure.
    fn kind(&self) -> ErrorKind;
}

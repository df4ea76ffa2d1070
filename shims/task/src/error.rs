//! Errors of the Task and the Sandbox API, as gRPC status codes with containerd's meanings.
//!
//! | code | when |
//! |---|---|
//! | `NOT_FOUND` | no such task or exec; "process already finished" |
//! | `ALREADY_EXISTS` | the id is in use |
//! | `FAILED_PRECONDITION` | not in that state: delete while running, exec while stopped or paused |
//! | `INVALID_ARGUMENT` | the request or the bundle is wrong, or the program cannot be executed, in Docker's words; `Wait` then answers 127, 126 or 128 |
//! | `UNIMPLEMENTED` | Knarr does not do that |
//! | `DEADLINE_EXCEEDED` | a sandbox does not end in time |
//! | `INTERNAL` | the kernel refused |

use knarr_model::{ErrorKind, Kinded};
use ttrpc::Code;

/// Why a request was refused.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Error {
    code: Code,
    message: String,
}

/// What this crate's functions answer.
pub(crate) type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self { code: Code::NOT_FOUND, message: message.into() }
    }

    pub(crate) fn exists(message: impl Into<String>) -> Self {
        Self { code: Code::ALREADY_EXISTS, message: message.into() }
    }

    pub(crate) fn precondition(message: impl Into<String>) -> Self {
        Self { code: Code::FAILED_PRECONDITION, message: message.into() }
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self { code: Code::INVALID_ARGUMENT, message: message.into() }
    }

    pub(crate) fn unimplemented(message: impl Into<String>) -> Self {
        Self { code: Code::UNIMPLEMENTED, message: message.into() }
    }

    pub(crate) fn deadline(message: impl Into<String>) -> Self {
        Self { code: Code::DEADLINE_EXCEEDED, message: message.into() }
    }

    pub(crate) fn internal(what: impl std::fmt::Display, error: impl std::fmt::Display) -> Self {
        Self { code: Code::INTERNAL, message: format!("{what}: {error}") }
    }
}

impl From<knarr_sandbox::Error> for Error {
    fn from(error: knarr_sandbox::Error) -> Self {
        let code = match error.kind() {
            ErrorKind::InvalidArgument => Code::INVALID_ARGUMENT,
            ErrorKind::NotFound => Code::NOT_FOUND,
            ErrorKind::Conflict => Code::FAILED_PRECONDITION,
            ErrorKind::NotSupported => Code::UNIMPLEMENTED,
            _ => Code::INTERNAL,
        };
        Self { code, message: error.to_string() }
    }
}

impl From<knarr_bundle::Error> for Error {
    fn from(error: knarr_bundle::Error) -> Self {
        match error {
            knarr_bundle::Error::Sandbox(error) => error.into(),
            other => Self::invalid(other.to_string()),
        }
    }
}

impl From<Error> for ttrpc::Error {
    fn from(error: Error) -> Self {
        ttrpc::Error::RpcStatus(ttrpc::get_status(error.code, error.message))
    }
}

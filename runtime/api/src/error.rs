//! What a client is told: Docker's status codes and `{"message": …}`.

use axum::response::{IntoResponse, Response};
use http::{StatusCode, header};
use knarr_docker::ErrorBody;
use knarr_model::{ErrorKind, Kinded};

/// What a handler answers.
pub(crate) type Result<T, E = ApiError> = std::result::Result<T, E>;

/// A failure as a client sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    pub(crate) message: String,
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    /// 400.
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// 404.
    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }

    /// 501 with the reason.
    pub(crate) fn not_supported(what: &str) -> Self {
        Self::new(
            StatusCode::NOT_IMPLEMENTED,
            format!("{what} is not supported by this version of Knarr"),
        )
    }
}

/// What a message quotes of a client's own words: not more than a line.
pub(crate) fn short(text: &str) -> String {
    text.chars().take(80).collect()
}

/// Docker's status of a kind (moby `errdefs`).
pub(crate) fn status(kind: ErrorKind) -> StatusCode {
    match kind {
        ErrorKind::NotFound => StatusCode::NOT_FOUND,
        ErrorKind::Conflict => StatusCode::CONFLICT,
        ErrorKind::InvalidArgument => StatusCode::BAD_REQUEST,
        ErrorKind::NotModified => StatusCode::NOT_MODIFIED,
        ErrorKind::Forbidden => StatusCode::FORBIDDEN,
        ErrorKind::Unauthorized => StatusCode::UNAUTHORIZED,
        ErrorKind::NotSupported => StatusCode::NOT_IMPLEMENTED,
        ErrorKind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        // nginx's 499: the client that asked to give up is not there to read it.
        ErrorKind::Cancelled => StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST),
        ErrorKind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

impl<E: Kinded> From<E> for ApiError {
    fn from(error: E) -> Self {
        Self::new(status(error.kind()), error.to_string())
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        if self.status == StatusCode::NOT_MODIFIED {
            return self.status.into_response();
        }
        if self.status.is_server_error() && self.status != StatusCode::NOT_IMPLEMENTED {
            tracing::warn!(status = self.status.as_u16(), "request failed: {}", self.message);
        }
        let body = serde_json::to_vec(&ErrorBody { message: self.message }).unwrap_or_default();
        (self.status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_become_dockers_status_codes() {
        for (kind, code) in [
            (ErrorKind::NotFound, 404),
            (ErrorKind::Conflict, 409),
            (ErrorKind::InvalidArgument, 400),
            (ErrorKind::NotModified, 304),
            (ErrorKind::Forbidden, 403),
            (ErrorKind::Unauthorized, 401),
            (ErrorKind::NotSupported, 501),
            (ErrorKind::Unavailable, 503),
            (ErrorKind::Cancelled, 499),
            (ErrorKind::Internal, 500),
        ] {
            assert_eq!(status(kind).as_u16(), code, "{kind:?}");
        }
    }

    #[test]
    fn a_304_has_no_body() {
        let error = ApiError::new(StatusCode::NOT_MODIFIED, "x");
        assert!(error.into_response().headers().get(header::CONTENT_TYPE).is_none());
    }
}

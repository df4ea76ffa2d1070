//! Why a registry did not give what it was asked for.

use knarr_model::{Digest, ErrorKind, Kinded};

/// A failed request to a registry; wording as dockerd's where it has one.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such tag or digest.
    #[error("manifest for {reference} not found: manifest unknown: manifest unknown")]
    ManifestUnknown {
        /// As the user wrote it.
        reference: String,
    },
    /// There is no such repository.
    #[error(
        "repository {repository} not found: name unknown: repository name not known to registry"
    )]
    RepositoryUnknown {
        /// The repository as Docker shows it.
        repository: String,
    },
    /// The manifest names a blob that the registry does not have.
    #[error("blob {digest} of {reference} not found: blob unknown to registry")]
    BlobUnknown {
        /// The repository.
        reference: String,
        /// The blob.
        digest: Digest,
    },
    /// The registry wants credentials or better ones; it does not say which
    /// repositories exist.
    #[error(
        "pull access denied for {repository}, repository does not exist or may require 'docker login': {detail}"
    )]
    Denied {
        /// The repository as Docker shows it.
        repository: String,
        /// The registry's own words.
        detail: String,
    },
    /// Credentials would leave the registry they belong to.
    #[error("refusing to send credentials of {host} to {realm}: {why}")]
    CredentialTheft {
        /// Whose credentials.
        host: String,
        /// Who would get them.
        realm: String,
        /// The rule.
        why: &'static str,
    },
    /// Plain HTTP where it is not allowed.
    #[error(
        "refusing plain HTTP to {host}: it is neither on loopback nor configured as an insecure registry"
    )]
    PlainHttp {
        /// Who.
        host: String,
    },
    /// A redirect that is not followed.
    #[error("refusing the redirect of {host} to {location}: {why}")]
    Redirect {
        /// Who sent it.
        host: String,
        /// Where to.
        location: String,
        /// The rule.
        why: &'static str,
    },
    /// The content is not what its name says.
    #[error("{what} of {reference} does not match: want {want}, got {got}")]
    Mismatch {
        /// Digest, size, validator.
        what: &'static str,
        /// The reference.
        reference: String,
        /// By its descriptor.
        want: String,
        /// By the registry.
        got: String,
    },
    /// Larger than anything sensible.
    #[error("manifest of {reference} is larger than {limit} bytes")]
    TooLarge {
        /// The reference.
        reference: String,
        /// The limit.
        limit: u64,
    },
    /// The registry answered with a failure.
    #[error("{method} \"{url}\": registry answered {status}{detail}")]
    Status {
        /// HTTP method.
        method: &'static str,
        /// Without query, which may hold signatures.
        url: String,
        /// HTTP status code.
        status: u16,
        /// `: ` and the registry's words, or empty.
        detail: String,
    },
    /// No answer, a broken or stalled transfer.
    #[error("{method} \"{url}\": {reason}")]
    Transport {
        /// HTTP method.
        method: &'static str,
        /// Without query.
        url: String,
        /// What happened.
        reason: String,
        /// Nobody was reached: no such name, nothing listens, no TLS.
        unreachable: bool,
    },
    /// Something the registry said cannot be understood.
    #[error("{host} sent {what}")]
    Protocol {
        /// Who.
        host: String,
        /// What.
        what: String,
    },
    /// The configuration holds something unusable.
    #[error("invalid registry configuration: {0}")]
    Config(String),
}

impl Kinded for Error {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::ManifestUnknown { .. }
            | Self::RepositoryUnknown { .. }
            | Self::BlobUnknown { .. }
            | Self::Denied { .. } => ErrorKind::NotFound,
            Self::CredentialTheft { .. } | Self::PlainHttp { .. } | Self::Redirect { .. } => {
                ErrorKind::Forbidden
            }
            Self::Config(_) => ErrorKind::InvalidArgument,
            Self::Transport { .. } => ErrorKind::Unavailable,
            Self::Status { status: 401, .. } => ErrorKind::Unauthorized,
            Self::Status { status: 429 | 502..=504, .. } => ErrorKind::Unavailable,
            Self::Mismatch { .. }
            | Self::TooLarge { .. }
            | Self::Status { .. }
            | Self::Protocol { .. } => ErrorKind::Internal,
        }
    }
}

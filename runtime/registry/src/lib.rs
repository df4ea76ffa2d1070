//! OCI distribution client: resolve, pull with resume, authenticate, mirror.
//!
//! ```text
//!   resolve(tag)  ->  Manifest { descriptor, bytes }      capped, hashed
//!   manifest(digest)  ->  bytes                           capped, hashed
//!   blob(digest, offset)  ->  Data Data … (Restart) Data … end
//!                             |  broken, stalled, 5xx, 429: back off, go on by Range
//! ```
//!
//! **Who may see credentials.** They belong to the host of the reference. They
//! go there, and to the token realm that this host names if the realm is of
//! the same site and spoken to over TLS. They never follow a redirect to
//! another origin, never go to a mirror, never to an `urls` entry (which are
//! never fetched at all). Plain HTTP is spoken only with loopback registries,
//! registries configured as insecure and mirrors configured with `http://`.
//!
//! **How it fails.** Every failure is an [`Error`] with Docker's wording where
//! Docker has one. What may pass by itself is retried with back-off; a blob
//! that stays broken keeps what its consumer has written, and a later call
//! with that offset goes on there. Blobs are not hashed here: the store hashes
//! what it writes; only the length is checked. Dropping a future or stream
//! closes its connection.

#![forbid(unsafe_code)]

mod auth;
mod blob;
mod challenge;
mod client;
mod endpoint;
mod error;
mod lookup;
mod token;
mod transport;

use bytes::Bytes;
use futures_util::{future::BoxFuture, stream::BoxStream};
use knarr_model::{Digest, Reference};
use serde::{Deserialize, Serialize};

pub use auth::{Auth, AuthError};
pub use client::{Client, Config, Timing};

pub use error::Error;
pub use lookup::{Lookup, System};

/// A manifest or index may not be larger (CATALOGUE I11).
pub const MANIFEST_LIMIT: u64 = 4 << 20;

/// The media types of manifests and indexes that Knarr understands, in the
/// order in which it likes them; all are asked for (`Accept`).
pub const MANIFEST_TYPES: [&str; 4] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];

/// What a request answers.
pub type Result<T> = std::result::Result<T, Error>;

/// What something is, what it is called and how long it is (OCI image
/// specification, "Content Descriptors"; `urls` are dropped on purpose).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// The media type, without parameters.
    pub media_type: String,
    /// The content's name.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
}

/// A manifest or index whose bytes hash to the descriptor's digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// Its media type is what the registry's `Content-Type` says; whether the
    /// body agrees is the reader's to check.
    pub descriptor: Descriptor,
    /// The document as it came.
    pub bytes: Bytes,
}

/// A piece of a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Chunk {
    /// The next bytes.
    Data(Bytes),
    /// The registry has other content now than what it sent before (its
    /// validator changed): everything received so far, earlier calls included,
    /// is void; the bytes that follow begin at 0.
    Restart,
}

/// A registry, as the pull pipeline sees it.
pub trait Registry: Send + Sync + std::fmt::Debug {
    /// Whether a registry's host (`docker.io`, `localhost:5000`) lets these
    /// credentials in (`login`).
    fn check<'a>(&'a self, domain: &'a str, auth: &'a Auth) -> BoxFuture<'a, Result<()>> {
        let _ = auth;
        Box::pin(async move { Err(Error::Config(format!("{domain}: no way to log in"))) })
    }

    /// Fetches the manifest or index that the reference's digest, else its
    /// tag, names.
    fn resolve<'a>(
        &'a self,
        reference: &'a Reference,
        auth: &'a Auth,
    ) -> BoxFuture<'a, Result<Manifest>>;

    /// Fetches a manifest of the reference's repository by its descriptor;
    /// digest and size are verified.
    fn manifest<'a>(
        &'a self,
        reference: &'a Reference,
        descriptor: &'a Descriptor,
        auth: &'a Auth,
    ) -> BoxFuture<'a, Result<Bytes>>;

    /// Streams a blob of the reference's repository from `offset` on. The
    /// stream ends after exactly `descriptor.size` bytes, or with an error:
    /// more and fewer bytes are errors.
    fn blob(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
        offset: u64,
        auth: &Auth,
    ) -> BoxStream<'static, Result<Chunk>>;
}

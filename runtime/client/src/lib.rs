//! A client of the Docker REST API, over a unix socket or plain TCP.
//!
//! One connection a request: connecting to a unix socket costs less than
//! keeping a pool honest. Requests carry no version, so the engine answers in
//! its newest.
//!
//! ```text
//!   Client ── json / send / lines / bytes / upload ──> answers
//!          └─ hijack ──> Hijacked (raw bytes both ways) ── Frames ──> output by stream
//! ```
//!
//! **How it fails.** [`Error::Connect`] where nothing listens, [`Error::Api`]
//! with the engine's own words where it refuses, [`Error::Protocol`] where it
//! breaks off, says what this client does not understand, or does not stop: every
//! document, line and message has a longest length (CATALOGUE A13).

#![forbid(unsafe_code)]

mod frames;
mod host;
mod lines;

use bytes::Bytes;
use futures_util::{Stream, TryStreamExt as _};
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::{
    BodyExt as _, Full, LengthLimitError, Limited, StreamBody, combinators::UnsyncBoxBody,
};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use knarr_resolver::Resolver;
use serde::{Serialize, de::DeserializeOwned};
use tokio::net::{TcpStream, UnixStream};

pub use frames::Frames;
pub use host::{Host, HostError};
pub use lines::read_lines;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing answers there.
    #[error("{}", cannot_connect(host, reason))]
    Connect {
        /// Where.
        host: String,
        /// Why.
        reason: std::io::Error,
    },
    /// The engine refused.
    #[error("Error response from daemon: {message}")]
    Api {
        /// HTTP status.
        status: u16,
        /// The engine's own words.
        message: String,
    },
    /// The conversation broke.
    #[error("{0}")]
    Protocol(String),
}

impl Error {
    /// The HTTP status, where the engine refused.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Api { status, .. } => Some(*status),
            _ => None,
        }
    }
}

/// Docker's words, which leave out the reason unless it helps.
fn cannot_connect(host: &str, reason: &std::io::Error) -> String {
    match reason.kind() {
        std::io::ErrorKind::PermissionDenied => format!(
            "permission denied while trying to connect to the Docker daemon socket at {host}"
        ),
        _ => {
            format!("Cannot connect to the Docker daemon at {host}. Is the docker daemon running?")
        }
    }
}

fn protocol(error: impl std::fmt::Display) -> Error {
    Error::Protocol(format!("error during connect: {error}"))
}

/// What a request answers.
pub type Result<T> = std::result::Result<T, Error>;

/// A raw connection that was an HTTP request once.
pub type Hijacked = TokioIo<hyper::upgrade::Upgraded>;

type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// A client of one engine.
#[derive(Debug, Clone)]
pub struct Client {
    host: Host,
    headers: HeaderMap,
}

impl Client {
    /// A client of the engine at `host`.
    pub fn new(host: Host) -> Self {
        Self { host, headers: HeaderMap::new() }
    }

    /// The engine's address.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The same client with a header in each request (`X-Registry-Auth`).
    ///
    /// # Errors
    /// When the value is no header value.
    pub fn with_header(mut self, name: &'static str, value: &str) -> Result<Self> {
        self.headers.insert(name, value.parse().map_err(protocol)?);
        Ok(self)
    }

    /// Whether something listens there.
    pub async fn reachable(&self) -> bool {
        match &self.host {
            Host::Unix(path) => UnixStream::connect(path).await.is_ok(),
            Host::Tcp(address) => connect(address).await.is_ok(),
        }
    }

    /// A request whose answer is JSON.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn json<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&(impl Serialize + Sync)>,
    ) -> Result<T> {
        let bytes = whole(self.send(method, path, body).await?).await?;
        serde_json::from_slice(&bytes)
            .map_err(|e| protocol(format_args!("unexpected answer to {path}: {e}")))
    }

    /// `GET` whose answer is JSON.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.json(Method::GET, path, NOTHING).await
    }

    /// A request whose answer only matters by its status.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn post(&self, path: &str) -> Result<StatusCode> {
        Ok(self.send(Method::POST, path, NOTHING).await?.status())
    }

    /// `DELETE`.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn delete(&self, path: &str) -> Result<()> {
        self.send(Method::DELETE, path, NOTHING).await.map(drop)
    }

    /// A request with a JSON body, or none; the answer's body is still to be read.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&(impl Serialize + Sync)>,
    ) -> Result<Response<Incoming>> {
        let (body, json) = match body {
            Some(body) => (serde_json::to_vec(body).map_err(protocol)?, true),
            None => (Vec::new(), false),
        };
        let mut request = self.request(method, path);
        if json {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let body = Full::new(body.into()).map_err(|never| match never {}).boxed_unsync();
        self.execute(request.body(body).map_err(protocol)?).await
    }

    /// A request with a body that flows (`load`).
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn upload(
        &self,
        path: &str,
        content_type: &str,
        body: impl Stream<Item = std::io::Result<Bytes>> + Send + 'static,
    ) -> Result<Response<Incoming>> {
        let request = self.request(Method::POST, path).header(header::CONTENT_TYPE, content_type);
        let body = StreamBody::new(body.map_ok(Frame::data)).boxed_unsync();
        self.execute(request.body(body).map_err(protocol)?).await
    }

    /// A request whose answer is a stream of JSON values, one a line.
    ///
    /// # Errors
    /// See [`Error`]; an item is an error where the stream breaks.
    pub async fn lines<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
    ) -> Result<impl Stream<Item = Result<T>> + Unpin + use<T>> {
        Ok(lines::json(self.send(method, path, NOTHING).await?))
    }

    /// A request whose answer is a stream of bytes.
    ///
    /// # Errors
    /// See [`Error`]; an item is an error where the stream breaks.
    pub async fn bytes(
        &self,
        path: &str,
    ) -> Result<impl Stream<Item = std::io::Result<Bytes>> + Unpin + use<>> {
        let answer = self.send(Method::GET, path, NOTHING).await?;
        Ok(Box::pin(answer.into_body().into_data_stream().map_err(std::io::Error::other)))
    }

    /// A request that turns its connection into a raw stream (attach, exec).
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn hijack(
        &self,
        path: &str,
        body: Option<&(impl Serialize + Sync)>,
    ) -> Result<Hijacked> {
        let body = match body {
            Some(body) => serde_json::to_vec(body).map_err(protocol)?,
            None => Vec::new(),
        };
        let request = self
            .request(Method::POST, path)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, "tcp")
            .body(Full::new(body.into()).map_err(|never| match never {}).boxed_unsync())
            .map_err(protocol)?;
        let answer = self.execute(request).await?;
        if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(protocol(format_args!(
                "unable to upgrade to tcp, received {}",
                answer.status().as_u16()
            )));
        }
        hyper::upgrade::on(answer).await.map(TokioIo::new).map_err(protocol)
    }

    fn request(&self, method: Method, path: &str) -> http::request::Builder {
        let mut request =
            Request::builder().method(method).uri(path).header(header::HOST, "docker");
        if let Some(headers) = request.headers_mut() {
            headers.extend(self.headers.clone());
        }
        request
    }

    async fn execute(&self, request: Request<Body>) -> Result<Response<Incoming>> {
        let failed = |reason| Error::Connect { host: self.host.to_string(), reason };
        let answer = match &self.host {
            Host::Unix(path) => {
                exchange(UnixStream::connect(path).await.map_err(failed)?, request).await
            }
            Host::Tcp(address) => exchange(connect(address).await.map_err(failed)?, request).await,
        }?;
        let status = answer.status();
        if status.is_client_error() || status.is_server_error() {
            let bytes = match read(answer, LONGEST_MESSAGE).await {
                Ok(bytes) => bytes,
                Err(Unread::TooLong) => {
                    return Err(Error::Protocol(format!(
                        "request returned {status} with a message (> {LONGEST_MESSAGE} bytes), check if the server supports the requested API version"
                    )));
                }
                Err(Unread::Broken(error)) => return Err(error),
            };
            let message = match serde_json::from_slice::<knarr_docker::ErrorBody>(&bytes) {
                Ok(body) => body.message,
                Err(_) => String::from_utf8_lossy(&bytes).trim().to_owned(),
            };
            return Err(Error::Api { status: status.as_u16(), message });
        }
        Ok(answer)
    }
}

/// The longest document that is believed: ten thousand containers with their labels
/// are a tenth of it.
pub const LONGEST: usize = 64 << 20;

/// The longest message of a failure, as Docker's client reads it.
const LONGEST_MESSAGE: usize = 1 << 20;

/// The whole body of an answer, up to [`LONGEST`].
///
/// # Errors
/// [`Error::Protocol`] where it breaks off or is longer.
pub async fn whole(answer: Response<Incoming>) -> Result<Bytes> {
    read(answer, LONGEST).await.map_err(|unread| match unread {
        Unread::TooLong => protocol(format_args!("the answer is longer than {LONGEST} bytes")),
        Unread::Broken(error) => error,
    })
}

/// Why a body was not read.
enum Unread {
    TooLong,
    Broken(Error),
}

async fn read(answer: Response<Incoming>, limit: usize) -> std::result::Result<Bytes, Unread> {
    match Limited::new(answer.into_body(), limit).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(Unread::TooLong),
        Err(error) => Err(Unread::Broken(protocol(error))),
    }
}

/// No body; the type is any that serializes.
pub const NOTHING: Option<&()> = None;

/// To a host by address or name, without the C library's name services.
async fn connect(address: &str) -> std::io::Result<TcpStream> {
    let (host, port) = knarr_resolver::host_and_port(address)?;
    Resolver::system().connect(host, port).await
}

async fn exchange<S>(stream: S, request: Request<Body>) -> Result<Response<Incoming>>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(protocol)?;
    // The connection drives itself until its answer has been read.
    tokio::spawn(connection.with_upgrades());
    sender.send_request(request).await.map_err(protocol)
}

/// A path with its query, percent-encoded.
///
/// ```
/// assert_eq!(knarr_client::path("/images/create", &[("fromImage", "a b")]), "/images/create?fromImage=a%20b");
/// ```
pub fn path(path: &str, query: &[(&str, &str)]) -> String {
    let mut text = path.to_owned();
    for (at, (key, value)) in query.iter().enumerate() {
        text.push(if at == 0 { '?' } else { '&' });
        text.push_str(key);
        text.push('=');
        text.push_str(&encode(value));
    }
    text
}

/// Percent-encodes everything that is not plainly a letter of a path or query.
pub fn encode(text: &str) -> String {
    use std::fmt::Write as _;
    text.bytes().fold(String::with_capacity(text.len()), |mut out, byte| {
        match byte {
            b'a'..=b'z'
            | b'A'..=b'Z'
            | b'0'..=b'9'
            | b'-'
            | b'_'
            | b'.'
            | b'~'
            | b'/'
            | b':'
            | b'@' => {
                out.push(byte as char);
            }
            _ => {
                let _ = write!(out, "%{byte:02X}");
            }
        }
        out
    })
}

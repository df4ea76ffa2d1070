//! An HTTP server that answers exactly what a test tells it, lies included.
//!
//! ```text
//!   accept ──► read one request ──► log it ──► handler(request, how many before it)
//!          ──► write the reply: whole, cut short, reset, stalled, endless ──► close
//! ```
//!
//! Spoken by hand over TCP, because no HTTP library lets a server break the
//! protocol on purpose. One request a connection. It does not speak TLS: a
//! client that tries is closed on, and not logged.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::{Context, Result, bail};
use sha2::Digest as _;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

use crate::RegistryImage;

/// One request, as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoggedRequest {
    /// `GET`.
    pub method: String,
    /// With its query.
    pub path: String,
    /// Names in lower case; of several, the last.
    pub headers: BTreeMap<String, String>,
    /// The body.
    pub body: Vec<u8>,
}

impl LoggedRequest {
    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// The first byte of a `Range: bytes=N-`.
    pub fn range(&self) -> Option<u64> {
        self.header("range")?.strip_prefix("bytes=")?.split('-').next()?.parse().ok()
    }
}

/// What a reply's body does.
#[derive(Debug, Clone)]
pub enum ReplyBody {
    /// All of it, with its length.
    Whole(Vec<u8>),
    /// These bytes under another `Content-Length`, then a proper close.
    Length(Vec<u8>, u64),
    /// As `Length`, then a TCP reset, which may take back what the client has not read yet.
    Reset(Vec<u8>, u64),
    /// As `Length`, then silence until the client goes.
    Stall(Vec<u8>, u64),
    /// In chunks, ended properly.
    Chunked(Vec<u8>),
    /// These bytes in chunks, then more of them until the client goes.
    Endless(Vec<u8>),
}

/// One reply.
#[derive(Debug, Clone)]
pub struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: ReplyBody,
}

impl Reply {
    /// A status and a body that does what it should not.
    pub fn new(status: u16, body: ReplyBody) -> Self {
        Self { status, headers: Vec::new(), body }
    }

    /// 200 and a body.
    pub fn ok(body: impl Into<Vec<u8>>) -> Self {
        Self::new(200, ReplyBody::Whole(body.into()))
    }

    /// A status and no body.
    pub fn status(status: u16) -> Self {
        Self::new(status, ReplyBody::Whole(Vec::new()))
    }

    /// A status and a registry's error document.
    pub fn error(status: u16, code: &str, message: &str) -> Self {
        let text = serde_json::json!({ "errors": [{ "code": code, "message": message }] });
        Self::new(status, ReplyBody::Whole(text.to_string().into()))
    }

    /// With a header.
    pub fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }

    /// What an honest server answers: the whole, or the range that was asked
    /// for if `If-Range` allows it, with a validator.
    pub fn ranged(request: &LoggedRequest, content: &[u8], etag: &str) -> Self {
        let matches = request.header("if-range").is_none_or(|wanted| wanted == etag);
        let total = content.len();
        match request.range().map(|first| first as usize).filter(|_| matches) {
            Some(first) if first < total => {
                let range = format!("bytes {first}-{}/{total}", total - 1);
                Self::new(206, ReplyBody::Whole(content[first..].to_vec()))
                    .with("content-range", range)
                    .with("etag", etag)
            }
            Some(_) => Self::status(416).with("content-range", format!("bytes */{total}")),
            None => Self::ok(content).with("etag", etag),
        }
    }
}

type Handler = dyn Fn(&LoggedRequest, usize) -> Reply + Send + Sync;

/// The server; it ends when dropped.
#[derive(Debug)]
pub struct LyingRegistry {
    address: SocketAddr,
    log: Arc<Mutex<Vec<LoggedRequest>>>,
    sent: Arc<AtomicU64>,
    task: JoinHandle<()>,
    /// Closed when the server's task ends.
    over: watch::Receiver<()>,
}

impl LyingRegistry {
    /// Serves on a free port of 127.0.0.1. The handler gets each request and
    /// how many of the same path (without query) came before it.
    ///
    /// # Errors
    /// When it cannot listen.
    pub async fn start(
        handler: impl Fn(&LoggedRequest, usize) -> Reply + Send + Sync + 'static,
    ) -> Result<Self> {
        Self::start_at(Ipv4Addr::LOCALHOST.into(), handler).await
    }

    /// As [`Self::start`], at another address of this machine (127.0.0.2 is
    /// another host to a client).
    ///
    /// # Errors
    /// When it cannot listen.
    pub async fn start_at(
        host: IpAddr,
        handler: impl Fn(&LoggedRequest, usize) -> Reply + Send + Sync + 'static,
    ) -> Result<Self> {
        let listener = TcpListener::bind((host, 0)).await.context("listen")?;
        let address = listener.local_addr()?;
        let (log, sent) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicU64::new(0)));
        let shared = (log.clone(), sent.clone(), Arc::new(handler) as Arc<Handler>);
        let (alive, over) = watch::channel(());
        let task = tokio::spawn(async move {
            let _alive = alive;
            while let Ok((stream, _)) = listener.accept().await {
                let (log, sent, handler) = shared.clone();
                // A client that goes away in the middle is part of the game.
                tokio::spawn(async move { serve(stream, &log, &sent, &*handler).await.ok() });
            }
        });
        Ok(Self { address, log, sent, task, over })
    }

    /// As [`Self::start`], on a thread of its own, for tests that are not
    /// async; it is in the namespaces of the calling thread.
    ///
    /// # Errors
    /// When it cannot listen.
    pub fn in_background(
        handler: impl Fn(&LoggedRequest, usize) -> Reply + Send + Sync + 'static,
    ) -> Result<Self> {
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::spawn(move || -> Result<()> {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let server = Self::start(handler).await;
                let over = server.as_ref().ok().map(|server| server.over.clone());
                sender.send(server)?;
                // Dropping the server closes the channel.
                if let Some(mut over) = over {
                    while over.changed().await.is_ok() {}
                }
                Ok(())
            })
        });
        receiver.recv().context("the server's thread ended")?
    }

    /// `127.0.0.1:PORT`, as a reference's domain.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// All requests so far.
    pub fn requests(&self) -> Vec<LoggedRequest> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Bytes of bodies written so far.
    pub fn bytes_sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

impl Drop for LyingRegistry {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// An honest registry's answer for one image: manifest by tag or digest, blobs
/// with ranges.
pub fn serve_image(request: &LoggedRequest, image: &RegistryImage) -> Reply {
    let name = request.path.rsplit('/').next().unwrap_or_default();
    if request.path.contains("/manifests/") {
        return Reply::ok(image.manifest.clone())
            .with("content-type", RegistryImage::MANIFEST_TYPE)
            .with("docker-content-digest", digest_of(&image.manifest));
    }
    match image.blobs.get(name) {
        Some(blob) => Reply::ranged(request, blob, &format!("\"{name}\"")),
        None => Reply::error(404, "BLOB_UNKNOWN", "blob unknown to registry"),
    }
}

/// `sha256:…` of some content.
pub fn digest_of(content: &[u8]) -> String {
    let hex: String = sha2::Sha256::digest(content).iter().map(|b| format!("{b:02x}")).collect();
    format!("sha256:{hex}")
}

async fn serve(
    mut stream: TcpStream,
    log: &Mutex<Vec<LoggedRequest>>,
    sent: &AtomicU64,
    handler: &Handler,
) -> Result<()> {
    let request = read(&mut stream).await?;
    let before = {
        let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
        let bare = |path: &str| path.split('?').next().unwrap_or_default().to_owned();
        let same = log.iter().filter(|old| bare(&old.path) == bare(&request.path)).count();
        log.push(request.clone());
        same
    };
    let Reply { status, headers, body } = handler(&request, before);
    let mut head = format!("HTTP/1.1 {status} Status\r\nconnection: close\r\n");
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    let chunked = matches!(body, ReplyBody::Chunked(_) | ReplyBody::Endless(_));
    match &body {
        ReplyBody::Whole(bytes) => head += &format!("content-length: {}\r\n", bytes.len()),
        ReplyBody::Length(_, length)
        | ReplyBody::Reset(_, length)
        | ReplyBody::Stall(_, length) => {
            head += &format!("content-length: {length}\r\n");
        }
        ReplyBody::Chunked(_) | ReplyBody::Endless(_) => head += "transfer-encoding: chunked\r\n",
    }
    stream.write_all(format!("{head}\r\n").as_bytes()).await?;
    let bytes = match &body {
        ReplyBody::Whole(bytes)
        | ReplyBody::Length(bytes, _)
        | ReplyBody::Reset(bytes, _)
        | ReplyBody::Stall(bytes, _)
        | ReplyBody::Chunked(bytes)
        | ReplyBody::Endless(bytes) => bytes,
    };
    loop {
        for piece in bytes.chunks(16 << 10) {
            if chunked {
                stream.write_all(format!("{:x}\r\n", piece.len()).as_bytes()).await?;
            }
            stream.write_all(piece).await?;
            sent.fetch_add(piece.len() as u64, Ordering::Relaxed);
            if chunked {
                stream.write_all(b"\r\n").await?;
            }
        }
        if !matches!(body, ReplyBody::Endless(_)) {
            break;
        }
    }
    match body {
        ReplyBody::Chunked(_) => stream.write_all(b"0\r\n\r\n").await?,
        ReplyBody::Reset(..) => {
            stream.set_zero_linger()?;
            return Ok(());
        }
        ReplyBody::Stall(..) => {
            let mut byte = [0];
            while stream.read(&mut byte).await? > 0 {}
        }
        _ => {}
    }
    Ok(stream.shutdown().await?)
}

async fn read(stream: &mut TcpStream) -> Result<LoggedRequest> {
    let mut bytes: Vec<u8> = Vec::new();
    let head = loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break end;
        }
        if bytes.first().is_some_and(|first| !first.is_ascii_alphabetic()) || bytes.len() > 64 << 10
        {
            bail!("no HTTP");
        }
        if stream.read_buf(&mut bytes).await? == 0 {
            bail!("closed");
        }
    };
    let text = String::from_utf8_lossy(&bytes[..head]).into_owned();
    let mut lines = text.split("\r\n");
    let mut first = lines.next().unwrap_or_default().split(' ');
    let (method, path) = (first.next().unwrap_or_default(), first.next().unwrap_or_default());
    let headers: BTreeMap<String, String> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let length = headers.get("content-length").and_then(|n| n.parse().ok()).unwrap_or(0);
    let mut body = bytes[head + 4..].to_vec();
    while body.len() < length {
        if stream.read_buf(&mut body).await? == 0 {
            bail!("closed");
        }
    }
    Ok(LoggedRequest { method: method.to_owned(), path: path.to_owned(), headers, body })
}

//! HTTP requests that a component makes.
//!
//! Sent from the container's own network, where one was granted; over TCP
//! without TLS, which is how services of one network speak. `https` is refused
//! in words: the host has no store of certificates to trust.

use std::{future::Future, io, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::{
    Request, Response, Uri,
    body::{Body, Frame, Incoming},
    client::conn::http1,
    http::uri::Scheme,
};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, time::timeout};
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody, WasiHttpHooks};

use crate::{
    body::{Fate, Whole},
    names::Names,
};

/// Where the guest sets no time limit of its own.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(120);

type Finished = Box<dyn Future<Output = Result<(), Error>> + Send>;
type Answer = Result<(Response<WasiBody>, Finished), Error>;

/// What one write of a body may hold, in bytes; two of them wait at most.
const CHUNK: usize = 64 << 10;

/// The way out of one instance.
pub(crate) struct Outgoing {
    granted: bool,
    fate: Fate,
    names: Arc<Names>,
}

impl Outgoing {
    /// Open where a network was granted; its requests are as whole as the instance of that
    /// fate leaves them.
    pub(crate) fn new(granted: bool, fate: &Fate, names: Arc<Names>) -> Self {
        Self { granted, fate: fate.clone(), names }
    }
}

impl WasiHttpHooks for Outgoing {
    fn default_scheme(&mut self) -> Option<Scheme> {
        Some(Scheme::HTTP)
    }

    fn send_request(
        &mut self,
        request: Request<WasiBody>,
        options: Option<RequestOptions>,
        _sent: Finished,
    ) -> Box<dyn Future<Output = Answer> + Send> {
        let (granted, names) = (self.granted, Arc::clone(&self.names));
        let request = request.map(|body| Whole::new(body, &self.fate).boxed_unsync());
        Box::new(async move {
            if !granted {
                return Err(Error::HttpRequestDenied);
            }
            send(request, options.unwrap_or_default(), &names).await
        })
    }

    fn p2_outgoing_body_chunk_size(&mut self) -> usize {
        CHUNK
    }
}

async fn send(mut request: Request<WasiBody>, options: RequestOptions, names: &Names) -> Answer {
    if request.uri().scheme() == Some(&Scheme::HTTPS) {
        return Err(Error::InternalError(Some(
            "https is not supported: the Wasm host speaks plain http to other services".to_owned(),
        )));
    }
    let authority = request.uri().authority().ok_or(Error::HttpRequestUriInvalid)?;
    let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
    let port = authority.port_u16().unwrap_or(80);
    let connecting = options.connect_timeout.unwrap_or(DEFAULT_TIMEOUT);
    let stream = timeout(connecting, connect(names, &host, port))
        .await
        .map_err(|_| Error::ConnectionTimeout)??;
    // The origin form: the authority is in the Host header.
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    *request.uri_mut() = path.parse::<Uri>().map_err(|_| Error::HttpRequestUriInvalid)?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let connection = wasmtime_wasi::runtime::spawn(async move {
        // A broken connection shows in the answer's head or body.
        let _ = connection.await;
    });
    let first = options.first_byte_timeout.unwrap_or(DEFAULT_TIMEOUT);
    let answer = timeout(first, sender.send_request(request))
        .await
        .map_err(|_| Error::ConnectionReadTimeout)??;
    let between = options.between_bytes_timeout.unwrap_or(DEFAULT_TIMEOUT);
    let body = |body| Timed { body, between, waiting: None }.boxed_unsync();
    // The connection's task ends with what this future holds.
    Ok((
        answer.map(body),
        Box::new(async move {
            connection.await;
            Ok(())
        }),
    ))
}

/// To the first address of a host that takes the connection.
async fn connect(names: &Names, host: &str, port: u16) -> Result<TcpStream, Error> {
    let addresses = names.lookup(host).await.map_err(|error| Error::DnsError {
        rcode: Some(format!("{host}: {error}")),
        info_code: None,
    })?;
    let mut last = Error::DestinationNotFound;
    for address in addresses {
        match TcpStream::connect(SocketAddr::new(address, port)).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = refused(error),
        }
    }
    Err(last)
}

fn refused(error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Error::ConnectionRefused,
        io::ErrorKind::NetworkUnreachable | io::ErrorKind::HostUnreachable => {
            Error::DestinationIpUnroutable
        }
        _ => Error::Connect(error),
    }
}

/// A body whose next part must come in time.
struct Timed {
    body: Incoming,
    between: Duration,
    waiting: Option<std::pin::Pin<Box<tokio::time::Sleep>>>,
}

impl Body for Timed {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, Error>>> {
        use std::{pin::Pin, task::Poll};
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) {
            self.waiting = None;
            return Poll::Ready(frame.map(|frame| frame.map_err(Error::from)));
        }
        let between = self.between;
        let sleep = self.waiting.get_or_insert_with(|| Box::pin(tokio::time::sleep(between)));
        match sleep.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Some(Err(Error::ConnectionReadTimeout))),
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        self.body.size_hint()
    }
}

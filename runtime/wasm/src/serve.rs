//! `knarr-wasm serve`: a `wasi:http/proxy` component behind the host's listener.
//!
//! ```text
//! accept (bounded) -- HTTP/1.1, keep-alive -- request (bounded) -- new instance
//!      |                                                |  trap 500, no answer 502,
//!  SIGTERM: accept no more,                             |  late 504, too many 503
//!  finish what runs, exit 0                             `- dropped with all it holds
//! ```
//!
//! An instance serves one request and is gone: nothing of one request is there
//! for the next. Guests take turns at epochs, so that a loop holds up nobody,
//! and dropping a request's task ends its guest.

use std::{
    convert::Infallible,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    thread,
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{
    Request, Response, StatusCode,
    body::{Body, Frame, Incoming, SizeHint},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::{Semaphore, oneshot, watch},
    task::{AbortHandle, JoinSet},
    time::{sleep, timeout},
};
use wasmtime::{Engine, EngineWeak, Result, Store, error::Context as _};
use wasmtime_wasi_http::{
    Error, WasiHttpView as _,
    p2::{
        bindings::{ProxyPre, http::types::Scheme},
        body::HyperOutgoingBody,
    },
};

use crate::{
    engine::{self, Kind},
    grants::{Files, Grants, Launch, Stdin},
    guest::{Budget, Guest, Limits},
    inherited::{Code, Gate, Inherited},
    outgoing::Outgoing,
    run, signals,
};

/// Where no port is granted by name, the one that WASI's own tools use.
const DEFAULT_PORT: u16 = 8080;
/// Connections at once; further ones wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 1024;
/// Instances at once; further requests wait for [`QUEUE`].
const MAX_REQUESTS: u32 = 128;
/// How long a request waits for its turn.
const QUEUE: Duration = Duration::from_secs(10);
/// How long a client may take for a request's head, or idle before it.
const HEAD: Duration = Duration::from_secs(30);
/// The largest head, give or take one read of the same size.
const MAX_HEAD: usize = 64 << 10;
/// How long a guest may take until its answer begins.
const ANSWER: Duration = Duration::from_secs(60);
/// How long a guest may go on once nobody reads its answer.
const AFTERWARDS: Duration = Duration::from_secs(10);
/// How long a drain may take; `stop` kills after ten seconds.
const DRAIN: Duration = Duration::from_secs(8);
/// How long a guest runs before others have their turn.
const TURN: Duration = Duration::from_millis(10);

/// Serves until a signal; the code that the process is to exit with.
pub(crate) fn serve() -> Result<u8> {
    let inherited = Inherited::take()?;
    let (stop, stopping) = watch::channel(false);
    signals::on_ending(move |signal| {
        // The second one is meant.
        if stop.send_replace(true) {
            signals::exit(signal);
        }
    })
    .context("cannot wait for signals")?;
    let (text, code) = inherited.launch()?;
    let launch = Launch::parse(&text)?;
    let budget = Budget::new(launch.launch.memory);
    let gate = Gate::take(launch.gate)?;
    let Some(network) = launch.launch.network.clone() else {
        wasmtime::bail!("an HTTP component without a network cannot be reached");
    };
    let grants = launch.grants(Files::Elsewhere, Stdin::Closed)?;
    let pre = load(code)?;
    let ticker = Ticker::start(pre.engine()).context("cannot start the epoch's clock")?;
    let server = Arc::new(Server {
        pre,
        grants,
        budget,
        ticker,
        requests: Arc::new(Semaphore::new(MAX_REQUESTS as usize)),
        connections: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
    });
    let workers = thread::available_parallelism().map_or(1, |count| count.get().min(8));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers)
        .enable_all()
        .build()
        .context("cannot start the event loop")?;
    gate.wait()?;
    let ended = runtime.block_on(listen(server, &network.listen_tcp, stopping));
    runtime.shutdown_background();
    ended.map(|()| 0)
}

/// Loads the component, with a pool of instances where the component fits one.
fn load(code: Code) -> Result<ProxyPre<Guest>> {
    let prepare = |engine: Engine, code: Code| {
        let component = code.component(&engine)?;
        ProxyPre::new(run::linker(&engine)?.instantiate_pre(&component)?)
    };
    // A pool reserves its address space at once, which a limit or a small
    // address space refuses; and it has sizes that a component may exceed.
    if let Ok(engine) = engine::running(Kind::Component, Some(MAX_REQUESTS))
        && let Ok(pre) = prepare(engine, code.again()?)
    {
        return Ok(pre);
    }
    prepare(engine::running(Kind::Component, None)?, code).context("the program cannot be started")
}

struct Server {
    pre: ProxyPre<Guest>,
    grants: Grants,
    budget: Arc<Budget>,
    ticker: Ticker,
    requests: Arc<Semaphore>,
    connections: Arc<Semaphore>,
}

/// Listens on every port until told to stop, then waits for what runs.
async fn listen(
    server: Arc<Server>,
    ports: &[u16],
    mut stopping: watch::Receiver<bool>,
) -> Result<()> {
    let ports = if ports.is_empty() { &[DEFAULT_PORT] } else { ports };
    let mut listeners = JoinSet::new();
    for port in ports {
        for address in [
            SocketAddr::from((Ipv4Addr::UNSPECIFIED, *port)),
            SocketAddr::from((Ipv6Addr::UNSPECIFIED, *port)),
        ] {
            let listener = match bind(address) {
                Ok(listener) => listener,
                // A host without IPv6.
                Err(error) if address.is_ipv6() && no_ipv6(&error) => continue,
                Err(error) => {
                    return Err(error).with_context(|| format!("cannot listen on {address}"));
                }
            };
            listeners.spawn(accept(Arc::clone(&server), listener, stopping.clone()));
        }
    }
    let said = ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", ");
    eprintln!("knarr-wasm: serving HTTP on port {said}");
    // Only a dropped sender fails, and the signal thread never ends.
    let _ = stopping.wait_for(|stop| *stop).await;
    let all = u32::try_from(MAX_CONNECTIONS).unwrap_or(u32::MAX);
    let drained = async {
        while listeners.join_next().await.is_some() {}
        let _ = server.connections.acquire_many(all).await;
        let _ = server.requests.acquire_many(MAX_REQUESTS).await;
    };
    if timeout(DRAIN, drained).await.is_err() {
        eprintln!("knarr-wasm: requests were still running after {} s", DRAIN.as_secs());
    }
    Ok(())
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        let socket = TcpSocket::new_v6()?;
        rustix::net::sockopt::set_ipv6_v6only(&socket, true)?;
        socket
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(1024)
}

fn no_ipv6(error: &io::Error) -> bool {
    use rustix::io::Errno;
    matches!(Errno::from_io_error(error), Some(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL))
}

async fn accept(server: Arc<Server>, listener: TcpListener, mut stopping: watch::Receiver<bool>) {
    loop {
        let Ok(permit) = Arc::clone(&server.connections).acquire_owned().await else { return };
        let accepted = tokio::select! {
            biased;
            _ = stopping.wait_for(|stop| *stop) => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let connection = connection(Arc::clone(&server), stream, stopping.clone());
                tokio::spawn(async move {
                    connection.await;
                    drop(permit);
                });
            }
            // Out of descriptors or memory: the client waits, nothing spins.
            Err(_) => sleep(Duration::from_millis(100)).await,
        }
    }
}

/// One connection, until either side closes it.
async fn connection(server: Arc<Server>, stream: TcpStream, mut stopping: watch::Receiver<bool>) {
    // A small answer is one packet anyway; it must not wait for another.
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| {
        let server = Arc::clone(&server);
        async move { Ok::<_, Infallible>(server.answer(request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        // What breaks a connection is the client's to see.
        _ = connection.as_mut() => return,
        _ = stopping.wait_for(|stop| *stop) => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = connection.await;
}

impl Server {
    async fn answer(&self, request: Request<Incoming>) -> Response<HyperOutgoingBody> {
        let method = request.method().clone();
        let path = request.uri().path().to_owned();
        match self.instance(request).await {
            Ok(response) => response,
            Err(failure) => {
                if let Some(message) = &failure.message {
                    eprintln!("{message}\n  while answering {method} {path}");
                }
                let text = Full::new(Bytes::from(format!("{}\n", failure.words)))
                    .map_err(|never| match never {})
                    .boxed_unsync();
                let mut response = Response::new(text);
                *response.status_mut() = failure.status;
                response
            }
        }
    }

    /// Runs one instance; answers when its answer begins.
    async fn instance(
        &self,
        mut request: Request<Incoming>,
    ) -> Result<Response<HyperOutgoingBody>, Failure> {
        // HTTP/1.0 does not ask for a host; a guest does.
        if request.version() == hyper::Version::HTTP_10
            && !request.headers().contains_key(hyper::header::HOST)
        {
            request
                .headers_mut()
                .insert(hyper::header::HOST, hyper::header::HeaderValue::from_static("localhost"));
        }
        let permit = timeout(QUEUE, Arc::clone(&self.requests).acquire_owned())
            .await
            .ok()
            .and_then(|permit| permit.ok())
            .ok_or_else(|| Failure::new(StatusCode::SERVICE_UNAVAILABLE, "too many requests"))?;
        let wasi = self.grants.context();
        let guest =
            Guest::new(wasi, Outgoing::new(self.grants.connects()), Limits::new(&self.budget));
        let mut store = Store::new(self.pre.engine(), guest);
        store.limiter(|guest| &mut guest.limits);
        store.set_epoch_deadline(1);
        store.epoch_deadline_async_yield_and_update(1);

        let (answer, answered) = oneshot::channel();
        let request = store
            .data_mut()
            .http()
            .new_incoming_request(Scheme::Http, request)
            .map_err(|_| Failure::new(StatusCode::BAD_REQUEST, "a request without a host"))?;
        let outparam =
            store.data_mut().http().new_response_outparam(answer).map_err(Failure::host)?;
        let pre = self.pre.clone();
        let running = self.ticker.running();
        let mut task = tokio::spawn(async move {
            let _held = (permit, running);
            let proxy = pre.instantiate_async(&mut store).await?;
            proxy.wasi_http_incoming_handler().call_handle(store, request, outparam).await
        });
        // A client that goes away takes its instance with it.
        let mut guard = EndWith { task: task.abort_handle(), after: Duration::ZERO };
        match timeout(ANSWER, answered).await {
            Ok(Ok(Ok(response))) => {
                guard.after = AFTERWARDS;
                tokio::spawn(report(task));
                Ok(response.map(|body| Watched { body, _guard: guard }.boxed_unsync()))
            }
            Ok(Ok(Err(code))) => Err(Failure {
                message: Some(format!("knarr-wasm: the program answered with an error: {code:?}")),
                ..Failure::new(StatusCode::BAD_GATEWAY, "the program answered with an error")
            }),
            // The store is gone, and with it the way to answer.
            Ok(Err(_)) => Err(match (&mut task).await {
                Ok(Err(error)) => Failure::trap(&error),
                _ => Failure {
                    message: Some("knarr-wasm: the program did not answer".to_owned()),
                    ..Failure::new(StatusCode::BAD_GATEWAY, "the program did not answer")
                },
            }),
            Err(_) => Err(Failure {
                message: Some(format!(
                    "knarr-wasm: the program did not answer within {} s",
                    ANSWER.as_secs()
                )),
                ..Failure::new(StatusCode::GATEWAY_TIMEOUT, "the program did not answer in time")
            }),
        }
    }
}

/// Says what happened to a guest after its answer had begun.
async fn report(task: tokio::task::JoinHandle<Result<()>>) {
    if let Ok(Err(error)) = task.await {
        eprintln!("{}\n  after its answer had begun", run::trapped(&error));
    }
}

/// Why there is no answer of the guest's.
struct Failure {
    status: StatusCode,
    /// To the client.
    words: &'static str,
    /// To the container's log.
    message: Option<String>,
}

impl Failure {
    fn new(status: StatusCode, words: &'static str) -> Self {
        Self { status, words, message: None }
    }

    fn host(error: wasmtime::Error) -> Self {
        Self {
            message: Some(format!("knarr-wasm: {error:#}")),
            ..Self::new(StatusCode::INTERNAL_SERVER_ERROR, "the program cannot be started")
        }
    }

    fn trap(error: &wasmtime::Error) -> Self {
        Self {
            message: Some(run::trapped(error)),
            ..Self::new(StatusCode::INTERNAL_SERVER_ERROR, "the program trapped")
        }
    }
}

/// Ends a guest some time after nobody waits for it any more.
struct EndWith {
    task: AbortHandle,
    after: Duration,
}

impl Drop for EndWith {
    fn drop(&mut self) {
        if self.task.is_finished() {
            return;
        }
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) if !self.after.is_zero() => {
                let (task, after) = (self.task.clone(), self.after);
                runtime.spawn(async move {
                    sleep(after).await;
                    task.abort();
                });
            }
            _ => self.task.abort(),
        }
    }
}

/// A guest's answer; its guest may go on for a moment after it is dropped.
struct Watched {
    body: HyperOutgoingBody,
    _guard: EndWith,
}

impl Body for Watched {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Advances the epoch while guests run, and sleeps while none does.
struct Ticker {
    running: Arc<AtomicUsize>,
    thread: thread::Thread,
}

impl Ticker {
    fn start(engine: &Engine) -> io::Result<Self> {
        let running = Arc::new(AtomicUsize::new(0));
        let seen = Arc::clone(&running);
        let engine: EngineWeak = engine.weak();
        let thread = thread::Builder::new().name("epoch".to_owned()).stack_size(64 << 10).spawn(
            move || {
                loop {
                    while seen.load(Ordering::Acquire) == 0 {
                        thread::park();
                    }
                    thread::sleep(TURN);
                    match engine.upgrade() {
                        Some(engine) => engine.increment_epoch(),
                        None => return,
                    }
                }
            },
        )?;
        Ok(Self { running, thread: thread.thread().clone() })
    }

    fn running(&self) -> Running {
        if self.running.fetch_add(1, Ordering::AcqRel) == 0 {
            self.thread.unpark();
        }
        Running(Arc::clone(&self.running))
    }
}

/// A guest that runs.
struct Running(Arc<AtomicUsize>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

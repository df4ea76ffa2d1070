//! `knarr-wasm serve`: a `wasi:http/proxy` component behind the host's listener.
//!
//! ```text
//! accept (bounded) -- HTTP/1.1, keep-alive -- request (bounded) -- new instance
//!      |                                                |  trap 500, no answer 502,
//!  SIGTERM: accept no more,                             |  late 504, too many 503,
//!  finish what runs, exit 0                             |  trap after the head: cut off
//!                                                       `- dropped with all it holds
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
    sync::{oneshot, watch},
    task::{AbortHandle, JoinSet},
    time::{sleep, timeout},
};
use wasmtime::{Engine, EngineWeak, Result, error::Context as _};
use wasmtime_wasi_http::{
    Error, WasiHttpView as _,
    p2::{
        bindings::{ProxyPre, http::types::Scheme},
        body::HyperOutgoingBody,
    },
};

use crate::{
    body::{Fate, Whole},
    budget::{Budget, Division, Limits},
    calls,
    confine::confine,
    connection::{Busy, HEAD, Life, Paced, Seat, Seats, Upload},
    engine::{self, Kind},
    grants::{Files, Grants, Launch, Stdin},
    guest::Guest,
    inherited::{Code, Gate, Inherited},
    run, signals,
    turns::Turns,
};

/// Where no port is granted by name, the one that WASI's own tools use.
const DEFAULT_PORT: u16 = 8080;
/// Instances at once, where the memory is enough for so many; further requests wait for
/// [`QUEUE`].
const MAX_REQUESTS: u32 = 128;
/// How long a request waits for its turn.
const QUEUE: Duration = Duration::from_secs(10);
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
/// Threads for file calls: so many calls that never return hold up those of all guests.
const FILE_THREADS: usize = 64;

/// Serves until a signal; the code that the process is to exit with.
pub(crate) fn serve() -> Result<u8> {
    let inherited = Inherited::take()?;
    let (stop, stopping) = watch::channel(false);
    let (text, code) = inherited.launch()?;
    let launch = Launch::parse(&text)?;
    code.is(launch.launch.identity.as_ref())?;
    let budget = Budget::new(Division::served(launch.launch.memory, code.size()?));
    let gate = Gate::take(launch.gate)?;
    let Some(network) = launch.launch.network.clone() else {
        wasmtime::bail!("an HTTP component without a network cannot be reached");
    };
    let ports = match network.listen_tcp {
        ports if ports.is_empty() => vec![DEFAULT_PORT],
        ports => ports,
    };
    let descriptors = launch.descriptors;
    let mut grants = launch.grants(Files::Elsewhere, Stdin::Closed)?;
    confine(&grants.take_trees(), Some(&ports), descriptors)?;
    signals::on_ending(move |signal| {
        // The second one is meant.
        if stop.send_replace(true) {
            signals::exit(signal);
        }
    })
    .context("cannot wait for signals")?;
    let pre = load(code, budget.division())?;
    let turns = Turns::new(&budget, beginning(&pre), MAX_REQUESTS);
    let ticker = Ticker::start(pre.engine()).context("cannot start the epoch's clock")?;
    let server = Arc::new(Server {
        pre,
        grants,
        ticker,
        turns,
        seats: Seats::new(budget.division().connections),
        budget,
    });
    let workers = thread::available_parallelism().map_or(1, |count| count.get().min(8));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers)
        .max_blocking_threads(FILE_THREADS)
        .enable_all()
        .build()
        .context("cannot start the event loop")?;
    calls::confine_guest(true)?;
    gate.wait()?;
    let ended = runtime.block_on(listen(server, &ports, stopping));
    runtime.shutdown_background();
    ended.map(|()| 0)
}

/// Loads the component, with a pool of instances where the component fits one.
fn load(code: Code, division: &Division) -> Result<ProxyPre<Guest>> {
    let prepare = |engine: Engine, code: Code| {
        let component = code.component(&engine)?;
        component.initialize_copy_on_write_image()?;
        ProxyPre::new(run::linker(&engine)?.instantiate_pre(&component)?)
    };
    // A pool reserves its address space at once, which a limit or a small
    // address space refuses; and it has sizes that a component may exceed.
    if let Ok(engine) = engine::running(Kind::Component, division, Some(MAX_REQUESTS))
        && let Ok(pre) = prepare(engine, code.again()?)
    {
        return Ok(pre);
    }
    prepare(engine::running(Kind::Component, division, None)?, code)
        .context("the program cannot be started")
}

/// The memory that an instance of the program begins with, in bytes.
fn beginning(pre: &ProxyPre<Guest>) -> u64 {
    let Some(needs) = pre.instance_pre().component().resources_required() else { return 0 };
    let memories = u64::from(needs.num_memories)
        .saturating_mul(needs.max_initial_memory_size.unwrap_or(0))
        .saturating_mul(64 << 10);
    let tables = u64::from(needs.num_tables)
        .saturating_mul(needs.max_initial_table_size.unwrap_or(0))
        .saturating_mul(8);
    memories.saturating_add(tables)
}

struct Server {
    pre: ProxyPre<Guest>,
    grants: Grants,
    budget: Arc<Budget>,
    ticker: Ticker,
    turns: Arc<Turns>,
    seats: Arc<Seats>,
}

/// Listens on every port until told to stop, then waits for what runs.
async fn listen(
    server: Arc<Server>,
    ports: &[u16],
    mut stopping: watch::Receiver<bool>,
) -> Result<()> {
    let mut listeners = JoinSet::new();
    for port in ports {
        for address in [
            SocketAddr::from((Ipv4Addr::UNSPECIFIED, *port)),
            SocketAddr::from((Ipv6Addr::UNSPECIFIED, *port)),
        ] {
            let listener = match bind(address, server.budget.division().socket) {
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
    let drained = async {
        while listeners.join_next().await.is_some() {}
        server.seats.all_free().await;
        server.turns.all_free().await;
    };
    if timeout(DRAIN, drained).await.is_err() {
        eprintln!("knarr-wasm: requests were still running after {} s", DRAIN.as_secs());
    }
    Ok(())
}

/// Listens; `buffer` is the kernel's for each direction of a connection, in bytes.
fn bind(address: SocketAddr, buffer: Option<usize>) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        let socket = TcpSocket::new_v6()?;
        rustix::net::sockopt::set_ipv6_v6only(&socket, true)?;
        socket
    };
    socket.set_reuseaddr(true)?;
    if let Some(bytes) = buffer {
        // Connections inherit them. The kernel counts its own part in addition.
        rustix::net::sockopt::set_socket_send_buffer_size(&socket, bytes)?;
        rustix::net::sockopt::set_socket_recv_buffer_size(&socket, bytes)?;
    }
    socket.bind(address)?;
    socket.listen(1024)
}

fn no_ipv6(error: &io::Error) -> bool {
    use rustix::io::Errno;
    matches!(Errno::from_io_error(error), Some(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL))
}

async fn accept(server: Arc<Server>, listener: TcpListener, mut stopping: watch::Receiver<bool>) {
    loop {
        let Some(permit) = server.seats.free().await else { return };
        let accepted = tokio::select! {
            biased;
            _ = stopping.wait_for(|stop| *stop) => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, client)) => {
                // Whose source has its part of them already is not served.
                let Some(seat) = server.seats.seat(permit, client.ip()) else { continue };
                tokio::spawn(connection(Arc::clone(&server), stream, seat, stopping.clone()));
            }
            // Out of descriptors or memory: the client waits, nothing spins.
            Err(_) => sleep(Duration::from_millis(100)).await,
        }
    }
}

/// One connection, until either side closes it.
async fn connection(
    server: Arc<Server>,
    stream: TcpStream,
    seat: Seat,
    mut stopping: watch::Receiver<bool>,
) {
    // A small answer is one packet anyway; it must not wait for another.
    let _ = stream.set_nodelay(true);
    let life = Life::new();
    let stream = Paced::new(stream, &server.turns, &life);
    let service = service_fn(|request| {
        let (server, busy) = (Arc::clone(&server), life.busy());
        async move { Ok::<_, Infallible>(server.answer(request, busy).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let mut waited = std::pin::pin!(life.waited(&seat));
    tokio::select! {
        // What breaks a connection is the client's to see.
        _ = connection.as_mut() => return,
        () = waited.as_mut() => return,
        _ = stopping.wait_for(|stop| *stop) => {}
    }
    connection.as_mut().graceful_shutdown();
    tokio::select! {
        _ = connection => {}
        () = waited => {}
    }
}

impl Server {
    async fn answer(&self, request: Request<Incoming>, busy: Busy) -> Response<HyperOutgoingBody> {
        let method = request.method().clone();
        let path = request.uri().path().to_owned();
        // Before HTTP/1.1 the end of a connection is the end of an answer.
        let plain = request.version() < hyper::Version::HTTP_11;
        let (head, body, kept) = match self.instance(request).await {
            Ok((response, guard, fate)) => {
                let (head, body) = response.into_parts();
                (head, body, Some((guard, fate)))
            }
            Err(failure) => {
                if let Some(message) = &failure.message {
                    eprintln!("{message}\n  while answering {method} {path}");
                }
                let text = Full::new(Bytes::from(format!("{}\n", failure.words)))
                    .map_err(|never| match never {})
                    .boxed_unsync();
                let mut response = Response::new(text);
                *response.status_mut() = failure.status;
                if failure.status == StatusCode::BAD_REQUEST {
                    // What follows on this connection may be read in two ways, too.
                    let close = hyper::header::HeaderValue::from_static("close");
                    response.headers_mut().insert(hyper::header::CONNECTION, close);
                }
                let (head, body) = response.into_parts();
                (head, body, None)
            }
        };
        let (guard, fate) = kept.unzip();
        let body = Whole::new(body, &fate.unwrap_or_default());
        let body = Watched { body, _guard: guard, busy, plain };
        Response::from_parts(head, body.boxed_unsync())
    }

    /// Runs one instance; answers when its answer begins.
    async fn instance(
        &self,
        mut request: Request<Incoming>,
    ) -> Result<(Response<HyperOutgoingBody>, EndWith, Fate), Failure> {
        let hosts = request.headers().get_all(hyper::header::HOST).iter().count();
        if hosts > 1 {
            // Who stands before us may have chosen the other one (RFC 9112, 3.2).
            return Err(Failure::new(StatusCode::BAD_REQUEST, "a request with several hosts"));
        }
        // HTTP/1.0 does not ask for a host; a guest does.
        if request.version() == hyper::Version::HTTP_10 && hosts == 0 {
            request
                .headers_mut()
                .insert(hyper::header::HOST, hyper::header::HeaderValue::from_static("localhost"));
        }
        let permit = self.turns.take(QUEUE).await.ok_or_else(Failure::full)?;
        let limits = Limits::new(&self.budget).ok_or_else(Failure::full)?;
        let fate = Fate::default();
        let mut store = Guest::store(
            self.pre.engine(),
            self.grants.context(self.budget.division().call),
            self.grants.outgoing(&fate),
            self.grants.names(),
            limits,
        );
        let request = request.map(|body| Upload::new(body, &self.turns));
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
        let ending = fate.ending();
        let mut task = tokio::spawn(async move {
            let _held = (permit, running);
            let mut store = store;
            // Dropped before the store, so that nobody takes its end for the body's.
            let mut ending = ending;
            let proxy = match pre.instantiate_async(&mut store).await {
                // It may have begun to run, and traps then.
                Err(error) if store.data().limits.refused() && !error.is::<wasmtime::Trap>() => {
                    return Ok(Begun::NoRoom);
                }
                proxy => proxy?,
            };
            proxy.wasi_http_incoming_handler().call_handle(&mut store, request, outparam).await?;
            ending.well();
            Ok(Begun::Yes)
        });
        // A client that goes away takes its instance with it.
        let mut guard = EndWith { task: task.abort_handle(), after: Duration::ZERO };
        match timeout(ANSWER, answered).await {
            Ok(Ok(Ok(response))) => {
                guard.after = AFTERWARDS;
                tokio::spawn(report(task));
                Ok((response, guard, fate))
            }
            Ok(Ok(Err(code))) => Err(Failure {
                message: Some(format!("knarr-wasm: the program answered with an error: {code:?}")),
                ..Failure::new(StatusCode::BAD_GATEWAY, "the program answered with an error")
            }),
            // The store is gone, and with it the way to answer.
            Ok(Err(_)) => Err(match (&mut task).await {
                Ok(Err(error)) => Failure::trap(&error),
                Ok(Ok(Begun::NoRoom)) => Failure::full(),
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

/// Whether an instance was made.
enum Begun {
    Yes,
    /// The others leave it no memory.
    NoRoom,
}

/// Says what happened to a guest after its answer had begun.
async fn report(task: tokio::task::JoinHandle<Result<Begun>>) {
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

    /// As many run as the container has room for.
    fn full() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "too many requests")
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

/// An answer on its way; its guest may go on for a moment after it is dropped.
struct Watched {
    body: Whole<HyperOutgoingBody>,
    _guard: Option<EndWith>,
    busy: Busy,
    /// The client takes the connection's end for the answer's.
    plain: bool,
}

impl Body for Watched {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        if self.plain && matches!(frame, Poll::Ready(Some(Err(_)))) {
            self.busy.life().reset();
        }
        frame
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

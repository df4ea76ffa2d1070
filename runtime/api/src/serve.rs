//! Listening and serving.
//!
//! One task a connection. A connection that is closed by us is read to its end
//! first ([`crate::linger`]), so that its client gets the whole answer, also where
//! its request was refused before it was sent. Shutdown lets verbs that are being carried out end,
//! but not for long; whoever only looks or follows a stream is cut.

use std::{sync::Arc, time::Duration};

use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, UnixListener},
    sync::{Semaphore, watch},
    task::JoinSet,
};

use crate::{
    Api,
    gate::{self, Transport},
    linger::{Lingering, Socket},
};

/// Where clients come from.
#[derive(Debug)]
pub enum Listener {
    /// Whoever may open the socket may speak.
    Unix(UnixListener),
    /// Loopback only: the daemon sees to it.
    Tcp(TcpListener),
}

/// Tells all listeners to stop.
#[derive(Debug, Clone)]
pub struct Shutdown(watch::Sender<bool>);

impl Default for Shutdown {
    fn default() -> Self {
        Self(watch::Sender::new(false))
    }
}

impl Shutdown {
    /// Stops accepting; [`Api::serve`] returns when its clients are served or
    /// their time is up.
    pub fn begin(&self) {
        self.0.send_replace(true);
    }
}

/// Connections at once, those that became streams included; more wait in the
/// kernel's queue (CATALOGUE A03). A client that follows a container's run has
/// two or three of them.
const CONNECTIONS: usize = 8192;
/// Never more than this share of the descriptors that this process may have: the
/// others are for containers.
const SHARE: u64 = 4;
/// A client that takes longer to say what it wants is not serious.
const HEADER_TIME: Duration = Duration::from_secs(30);
/// How long verbs may take to end at a shutdown.
const GRACE: Duration = Duration::from_secs(2);
/// How long answers may take to be written that are there already.
const FLUSH: Duration = Duration::from_millis(50);
/// Requests that change something and have no answer yet.
type Busy = watch::Sender<usize>;

impl Api {
    /// Serves until `shutdown` begins.
    pub async fn serve(self, listener: Listener, shutdown: Shutdown) {
        let mut stop = shutdown.0.subscribe();
        let busy = Arc::new(Busy::new(0));
        let permits = Arc::new(Semaphore::new(connections()));
        let mut connections = JoinSet::new();
        loop {
            // Closed only when the process ends.
            let Ok(permit) = permits.clone().acquire_owned().await else { break };
            let accepted = tokio::select! {
                () = stopped(&mut stop) => break,
                accepted = accept(&listener) => accepted,
                // Finished connections are forgotten as they finish.
                Some(_) = connections.join_next() => continue,
            };
            match accepted {
                Ok(Io::Unix(socket)) => {
                    let socket = Lingering::new(socket, Some(permit));
                    let api = self.clone();
                    connections.spawn(api.connection(
                        socket,
                        Transport::Unix,
                        Arc::clone(&busy),
                        stop.clone(),
                    ));
                }
                Ok(Io::Tcp(socket)) => {
                    let socket = Lingering::new(socket, Some(permit));
                    let api = self.clone();
                    connections.spawn(api.connection(
                        socket,
                        Transport::Tcp,
                        Arc::clone(&busy),
                        stop.clone(),
                    ));
                }
                Err(error) => {
                    // Out of descriptors, most likely: it passes when some client goes.
                    tracing::warn!("accept: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
        drop(listener);
        let mut verbs = busy.subscribe();
        let ended = async { while connections.join_next().await.is_some() {} };
        let carried_out = async {
            let _ = tokio::time::timeout(GRACE, verbs.wait_for(|count| *count == 0)).await;
            tokio::time::sleep(FLUSH).await;
        };
        tokio::select! {
            () = ended => {}
            () = carried_out => {}
        }
    }

    async fn connection(
        self,
        socket: Lingering<impl Socket>,
        transport: Transport,
        busy: Arc<Busy>,
        mut stop: watch::Receiver<bool>,
    ) {
        let service = hyper::service::service_fn(move |request: http::Request<_>| {
            let api = self.clone();
            let verb = (!request.method().is_safe()).then(|| Verb::begin(&busy));
            async move {
                let _verb = verb;
                let request = request.map(axum::body::Body::new);
                Ok::<_, std::convert::Infallible>(gate::handle(api, transport, request).await)
            }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIME)
            .max_buf_size(64 << 10)
            .serve_connection(TokioIo::new(socket), service)
            .with_upgrades();
        let mut connection = std::pin::pin!(connection);
        let outcome = tokio::select! {
            outcome = connection.as_mut() => outcome,
            () = stopped(&mut stop) => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = outcome {
            tracing::debug!("connection: {error}");
        }
    }
}

/// As many as the limit of descriptors (getrlimit(2)) allows.
fn connections() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let share = limit.map_or(u64::MAX, |limit| limit / SHARE);
    usize::try_from(share).unwrap_or(usize::MAX).clamp(64, CONNECTIONS)
}

/// Counts as busy for as long as it lives.
struct Verb(Arc<Busy>);

impl Verb {
    fn begin(busy: &Arc<Busy>) -> Self {
        busy.send_modify(|count| *count += 1);
        Self(Arc::clone(busy))
    }
}

impl Drop for Verb {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error means that nobody can stop us any more: then it is over, too.
    let _ = stop.wait_for(|stop| *stop).await;
}

enum Io {
    Unix(tokio::net::UnixStream),
    Tcp(tokio::net::TcpStream),
}

async fn accept(listener: &Listener) -> std::io::Result<Io> {
    Ok(match listener {
        Listener::Unix(listener) => Io::Unix(listener.accept().await?.0),
        Listener::Tcp(listener) => {
            let stream = listener.accept().await?.0;
            stream.set_nodelay(true)?;
            Io::Tcp(stream)
        }
    })
}

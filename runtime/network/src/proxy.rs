//! The userland path of published ports.
//!
//! The kernel forwards almost everything by itself (`filter`). What it cannot
//! arrives at the sockets that hold the ports: IPv6 (so that `localhost`, which
//! means `::1` first, works), and whatever comes while somebody has flushed
//! the packet filter. It is carried from here, each connection on a seat of the
//! [`Budget`](crate::budget::Budget): what strangers open here is bounded, for one
//! port and for all (CATALOGUE N11).

use std::{
    collections::HashMap,
    io,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, UdpSocket},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError, Weak},
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional_with_sizes},
    net::TcpStream,
    task::JoinSet,
    time::timeout,
};

use crate::budget::{Ear, Seat, Seats};

const CONNECT: Duration = Duration::from_secs(10);
/// A UDP peer that is silent so long is forgotten, as conntrack does.
const SILENCE: Duration = Duration::from_secs(90);
/// Bytes of a connection that are on their way, in each direction.
const BUFFER: usize = 8 << 10;

/// Carries TCP connections to a container until dropped.
pub(crate) async fn tcp(listener: TcpListener, to: SocketAddrV4, seats: Arc<Seats>) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::warn!(%error, %to, "published port"),
    };
    let port = seats.port();
    let mut clients = JoinSet::new();
    loop {
        while clients.try_join_next().is_some() {}
        let client = match listener.accept().await {
            Ok((client, _)) => client,
            Err(error) => {
                tracing::debug!(%error, %to, "published port");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        // While this one waits, the others do in the kernel's queue.
        let seat = seats.take(port).await;
        clients.spawn(carry(client, to, seat));
    }
}

/// One connection, until either side ends it or its seat is another's.
async fn carry(client: TcpStream, to: SocketAddrV4, mut seat: Seat) {
    let ear = seat.ear().clone();
    let carried = async move {
        let server = timeout(CONNECT, TcpStream::connect(to)).await;
        let Ok(Ok(server)) = server else { return };
        for stream in [&client, &server] {
            let _ = stream.set_nodelay(true);
            keep_alive(stream);
        }
        let mut client = Heard { stream: client, ear: ear.clone() };
        let mut server = Heard { stream: server, ear };
        let _ = copy_bidirectional_with_sizes(&mut client, &mut server, BUFFER, BUFFER).await;
    };
    tokio::select! {
        () = carried => {}
        () = seat.lost() => {}
    }
}

/// A stream whose bytes are heard by the budget.
struct Heard {
    stream: TcpStream,
    ear: Ear,
}

impl AsyncRead for Heard {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        self.ear.heard();
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Heard {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(context, bytes))?;
        self.ear.heard();
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// A peer that is gone without a word is noticed.
fn keep_alive(stream: &TcpStream) {
    use nix::sys::socket::{setsockopt, sockopt};
    let _ = setsockopt(stream, sockopt::KeepAlive, &true);
    let _ = setsockopt(stream, sockopt::TcpKeepIdle, &60);
    let _ = setsockopt(stream, sockopt::TcpKeepInterval, &15);
}

struct Peer {
    socket: Weak<tokio::net::UdpSocket>,
    ear: Ear,
}

/// Carries datagrams to a container and back until dropped.
pub(crate) async fn udp(socket: UdpSocket, to: SocketAddrV4, seats: Arc<Seats>) {
    let socket = match tokio::net::UdpSocket::from_std(socket) {
        Ok(socket) => Arc::new(socket),
        Err(error) => return tracing::warn!(%error, %to, "published port"),
    };
    let port = seats.port();
    let mut peers: HashMap<SocketAddr, Peer> = HashMap::new();
    let mut answers = JoinSet::new();
    let mut buffer = vec![0; 1 << 16];
    // One for all answers: a peer's own would be most of what it costs.
    let datagram = Arc::new(Mutex::new(vec![0; 1 << 16]));
    loop {
        while answers.try_join_next().is_some() {}
        let Ok((length, from)) = socket.recv_from(&mut buffer).await else {
            tokio::task::yield_now().await;
            continue;
        };
        let known = peers.get(&from).and_then(|peer| {
            peer.ear.heard();
            peer.socket.upgrade()
        });
        let server = match known {
            Some(server) => server,
            None => {
                peers.retain(|_, peer| peer.socket.strong_count() > 0);
                // Lost, as datagrams may be, where all seats are in use.
                let Some(seat) = seats.try_take(port) else { continue };
                let Ok(server) = connect(to).await else { continue };
                let server = Arc::new(server);
                let ear = seat.ear().clone();
                peers.insert(from, Peer { socket: Arc::downgrade(&server), ear });
                // Weak: a peer keeps no port open.
                let (answering, client) = (Arc::clone(&server), Arc::downgrade(&socket));
                answers.spawn(answer(answering, client, from, seat, Arc::clone(&datagram)));
                server
            }
        };
        let _ = server.send(&buffer[..length]).await;
    }
}

/// Brings a container's datagrams to one peer, until both are silent or its seat is another's.
async fn answer(
    server: Arc<tokio::net::UdpSocket>,
    client: Weak<tokio::net::UdpSocket>,
    peer: SocketAddr,
    mut seat: Seat,
    datagram: Arc<Mutex<Vec<u8>>>,
) {
    loop {
        let ready = tokio::select! {
            ready = timeout(SILENCE, server.readable()) => ready,
            () = seat.lost() => return,
        };
        match ready {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return,
            Err(_) if seat.ear().silence() >= SILENCE => return,
            Err(_) => continue,
        }
        let mut datagram = datagram.lock().unwrap_or_else(PoisonError::into_inner);
        match server.try_recv(&mut datagram) {
            Ok(length) => {
                seat.ear().heard();
                let Some(client) = client.upgrade() else { return };
                let _ = client.try_send_to(&datagram[..length], peer);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // Nobody listens in the container yet, or any more.
            Err(_) => return,
        }
    }
}

async fn connect(to: SocketAddrV4) -> io::Result<tokio::net::UdpSocket> {
    let socket = tokio::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
    socket.connect(to).await?;
    Ok(socket)
}

//! The userland path of published ports.
//!
//! The kernel forwards almost everything by itself (`filter`). What it cannot
//! arrives at the sockets that hold the ports: IPv6 (so that `localhost`, which
//! means `::1` first, works), and whatever comes while somebody has flushed
//! the packet filter. It is carried from here, with bounds on connections and
//! idle time (RELIABILITY N11).

use std::{
    collections::HashMap,
    io,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, UdpSocket},
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{
    io::copy_bidirectional, net::TcpStream, sync::Semaphore, task::JoinSet, time::timeout,
};

/// Connections, or peers over UDP, of one port at a time.
const CLIENTS: usize = 512;
const CONNECT: Duration = Duration::from_secs(10);
/// A UDP peer that is silent so long is forgotten, as conntrack does.
const SILENCE: Duration = Duration::from_secs(90);

/// Carries TCP connections to a container until dropped.
pub(crate) async fn tcp(listener: TcpListener, to: SocketAddrV4) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::warn!(%error, %to, "published port"),
    };
    let places = Arc::new(Semaphore::new(CLIENTS));
    let mut clients = JoinSet::new();
    loop {
        while clients.try_join_next().is_some() {}
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let mut client = match listener.accept().await {
            Ok((client, _)) => client,
            Err(error) => {
                tracing::debug!(%error, %to, "published port");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        clients.spawn(async move {
            let server = timeout(CONNECT, TcpStream::connect(to)).await;
            if let Ok(Ok(mut server)) = server {
                let _ = client.set_nodelay(true);
                let _ = server.set_nodelay(true);
                keep_alive(&client);
                keep_alive(&server);
                let _ = copy_bidirectional(&mut client, &mut server).await;
            }
            drop(place);
        });
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
    /// Milliseconds since the start when it was last heard.
    heard: Arc<AtomicU64>,
}

/// Carries datagrams to a container and back until dropped.
pub(crate) async fn udp(socket: UdpSocket, to: SocketAddrV4) {
    let socket = match tokio::net::UdpSocket::from_std(socket) {
        Ok(socket) => Arc::new(socket),
        Err(error) => return tracing::warn!(%error, %to, "published port"),
    };
    let start = Instant::now();
    let now = move || start.elapsed().as_millis() as u64;
    let mut peers: HashMap<SocketAddr, Peer> = HashMap::new();
    let mut answers = JoinSet::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        while answers.try_join_next().is_some() {}
        let Ok((length, from)) = socket.recv_from(&mut buffer).await else {
            tokio::task::yield_now().await;
            continue;
        };
        let known = peers.get(&from).and_then(|peer| {
            peer.heard.store(now(), Ordering::Relaxed);
            peer.socket.upgrade()
        });
        let server = match known {
            Some(server) => server,
            None => {
                peers.retain(|_, peer| peer.socket.strong_count() > 0);
                if peers.len() >= CLIENTS {
                    continue;
                }
                let Ok(server) = connect(to).await else { continue };
                let server = Arc::new(server);
                let heard = Arc::new(AtomicU64::new(now()));
                peers.insert(
                    from,
                    Peer { socket: Arc::downgrade(&server), heard: Arc::clone(&heard) },
                );
                // Weak: a peer keeps no port open.
                let (answering, client) = (Arc::clone(&server), Arc::downgrade(&socket));
                answers.spawn(async move {
                    let mut buffer = vec![0; 1 << 16];
                    loop {
                        match timeout(SILENCE, answering.recv(&mut buffer)).await {
                            Ok(Ok(length)) => {
                                heard.store(now(), Ordering::Relaxed);
                                let Some(client) = client.upgrade() else { return };
                                let _ = client.try_send_to(&buffer[..length], from);
                            }
                            // Nobody listens in the container yet, or any more.
                            Ok(Err(_)) => return,
                            Err(_) => {
                                let silent = now().saturating_sub(heard.load(Ordering::Relaxed));
                                if u128::from(silent) >= SILENCE.as_millis() {
                                    return;
                                }
                            }
                        }
                    }
                });
                server
            }
        };
        let _ = server.send(&buffer[..length]).await;
    }
}

async fn connect(to: SocketAddrV4) -> io::Result<tokio::net::UdpSocket> {
    let socket = tokio::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
    socket.connect(to).await?;
    Ok(socket)
}

//! The name server at 127.0.0.11 that containers of user-defined networks have.
//!
//! Its sockets lie inside the container's namespace, its code in the engine:
//! names of the container's networks are answered from [`Names`], everything
//! else goes to the host's name servers (or those the container asked for)
//! from the host's namespace, which also rules out asking ourselves.
//!
//! **How it fails.** What is no DNS query is dropped or `FORMERR`; what cannot be
//! answered in time is `SERVFAIL`. Each container has so many questions
//! and connections in flight and no more, and all together a share of the
//! [`Budget`] (CATALOGUE N09): a flood hurts the container that makes it.

mod answer;
mod upstream;

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddrV4, TcpListener, UdpSocket},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use knarr_model::ContainerId;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use crate::{budget::Budget, filter::redirect, names::Names, tasks::Tasks};
use answer::Verdict;
use upstream::Transport;
pub(crate) use upstream::nameservers;

/// Where containers find it, as under Docker.
pub(crate) const ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);
/// A TCP connection without a question is closed after this.
const IDLE: Duration = Duration::from_secs(10);

/// Sockets inside a container's namespace.
#[derive(Debug)]
pub(crate) struct Sockets {
    udp: UdpSocket,
    tcp: TcpListener,
}

impl Sockets {
    /// Opens them. Called inside the namespace, with loopback up.
    ///
    /// They get ports of the kernel's choice, to which the namespace's packet
    /// filter turns port 53: a name server that is the container's own work
    /// can bind that port at every address.
    pub(crate) fn open() -> io::Result<Self> {
        let address = SocketAddrV4::new(ADDRESS, 0);
        let (udp, tcp) = (UdpSocket::bind(address)?, TcpListener::bind(address)?);
        udp.set_nonblocking(true)?;
        tcp.set_nonblocking(true)?;
        redirect(ADDRESS, udp.local_addr()?.port(), tcp.local_addr()?.port())?;
        Ok(Self { udp, tcp })
    }
}

/// What answering one container takes.
#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) names: Arc<Names>,
    pub(crate) container: ContainerId,
    /// Name servers that the container or the engine asked for.
    pub(crate) dns: Vec<IpAddr>,
    /// The host's resolver configuration.
    pub(crate) resolv_conf: PathBuf,
    /// What all containers' questions and connections come out of.
    pub(crate) budget: Arc<Budget>,
}

/// Serves one container until the tasks are dropped.
pub(crate) fn serve(service: Service, sockets: Sockets, tasks: &mut Tasks) {
    let service = Arc::new(service);
    let in_flight = Arc::new(Semaphore::new(service.budget.questions_each));
    let (udp, tcp) = (sockets.udp, sockets.tcp);
    tasks.spawn(serve_udp(Arc::clone(&service), udp, Arc::clone(&in_flight)));
    tasks.spawn(serve_tcp(service, tcp, in_flight));
}

async fn serve_udp(service: Arc<Service>, socket: UdpSocket, in_flight: Arc<Semaphore>) {
    let socket = match tokio::net::UdpSocket::from_std(socket) {
        Ok(socket) => Arc::new(socket),
        Err(error) => return tracing::warn!(%error, "name server"),
    };
    let mut buffer = vec![0; 4096];
    let mut asking = tokio::task::JoinSet::new();
    loop {
        while asking.try_join_next().is_some() {}
        let (length, from) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            // An earlier answer found nobody (ECONNREFUSED): not the end.
            Err(_) => {
                tokio::task::yield_now().await;
                continue;
            }
        };
        let question = &buffer[..length];
        let reply = match answer::decide(&service.names, &service.container, question) {
            Verdict::Ignore => continue,
            Verdict::Answer(reply) => reply.datagram(),
            Verdict::Ask(question) => match service.place(&in_flight) {
                None => question.refuse(),
                Some(place) => {
                    // Weak: who waits for an answer keeps no socket open.
                    let (service, socket) = (Arc::clone(&service), Arc::downgrade(&socket));
                    asking.spawn(async move {
                        let reply = service.ask(question, Transport::Udp).await;
                        drop(place);
                        if let Some(socket) = socket.upgrade() {
                            let _ = socket.try_send_to(&reply, from);
                        }
                    });
                    continue;
                }
            },
        };
        // A full socket buffer loses the answer, as any network may.
        let _ = socket.try_send_to(&reply, from);
    }
}

async fn serve_tcp(service: Arc<Service>, listener: TcpListener, in_flight: Arc<Semaphore>) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::warn!(%error, "name server"),
    };
    let connections = Arc::new(Semaphore::new(service.budget.conversations_each));
    let mut clients = tokio::task::JoinSet::new();
    loop {
        while clients.try_join_next().is_some() {}
        let Ok(permit) = Arc::clone(&connections).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "name server");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        // Closed at once where other containers have all of them.
        let all = Arc::clone(&service.budget.conversations);
        let Ok(share) = all.try_acquire_owned() else { continue };
        let (service, in_flight) = (Arc::clone(&service), Arc::clone(&in_flight));
        clients.spawn(async move {
            // A client that breaks off is its own affair.
            let _ = converse(&service, stream, &in_flight).await;
            drop((permit, share));
        });
    }
}

async fn converse(
    service: &Service,
    mut stream: TcpStream,
    in_flight: &Arc<Semaphore>,
) -> io::Result<()> {
    loop {
        let length = timeout(IDLE, stream.read_u16()).await??;
        let mut question = vec![0; usize::from(length)];
        timeout(IDLE, stream.read_exact(&mut question)).await??;
        let reply = match answer::decide(&service.names, &service.container, &question) {
            Verdict::Ignore => return Ok(()),
            Verdict::Answer(reply) => reply.whole(),
            Verdict::Ask(question) => match service.place(in_flight) {
                None => question.refuse(),
                Some(_place) => service.ask(question, Transport::Tcp).await,
            },
        };
        let mut framed = (reply.len() as u16).to_be_bytes().to_vec();
        framed.extend_from_slice(&reply);
        timeout(IDLE, stream.write_all(&framed)).await??;
    }
}

impl Service {
    /// A place for one question to the outside: one of the container's own and
    /// one of all containers'.
    fn place(&self, own: &Arc<Semaphore>) -> Option<[OwnedSemaphorePermit; 2]> {
        let own = Arc::clone(own).try_acquire_owned().ok()?;
        Some([own, Arc::clone(&self.budget.questions).try_acquire_owned().ok()?])
    }

    async fn ask(&self, question: answer::Question, transport: Transport) -> Vec<u8> {
        let servers = if self.dns.is_empty() {
            let path = self.resolv_conf.clone();
            let text = tokio::task::spawn_blocking(move || {
                knarr_sys::read::text(path, knarr_sys::read::SMALL)
            })
            .await;
            let text = text.ok().and_then(Result::ok).unwrap_or_default();
            nameservers(&text)
        } else {
            self.dns.clone()
        };
        match upstream::ask(&servers, &question, transport).await {
            Some(reply) => reply,
            None => question.refuse(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn n09_a_flood_of_one_container_leaves_places_for_another() {
        let service = Service {
            names: Arc::default(),
            container: ContainerId::from_random([1; 32]),
            dns: Vec::new(),
            resolv_conf: PathBuf::new(),
            budget: Arc::new(Budget::of(1024)),
        };
        let each = service.budget.questions_each;
        let own = || Arc::new(Semaphore::new(each));
        let (one, two, three) = (own(), own(), own());
        let take = |own: &Arc<Semaphore>| (0..1000).map_while(|_| service.place(own)).collect();
        let flood: Vec<_> = take(&one);
        assert_eq!(flood.len(), each);
        let neighbour: Vec<_> = take(&two);
        assert!(!neighbour.is_empty());
        // All of them together have an end, too.
        let late: Vec<_> = take(&three);
        assert_eq!((flood.len() + neighbour.len() + late.len()) as u64, 1024 / 8);
        drop(flood);
        assert!(service.place(&three).is_some());
    }
}

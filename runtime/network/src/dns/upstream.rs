//! Asking name servers outside, from the host's namespace.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use rustix::rand::{GetRandomFlags, getrandom};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    time::timeout,
};

use super::answer::Question;

/// How long one server may take. Three of them fit into a client's patience.
const PATIENCE: Duration = Duration::from_millis(2500);
/// Servers asked at most, as the C libraries do.
const SERVERS: usize = 3;

/// How the client asked, and how its question goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    Udp,
    Tcp,
}

/// The `nameserver` lines of a resolv.conf(5).
pub(crate) fn nameservers(resolv_conf: &str) -> Vec<IpAddr> {
    let lines = resolv_conf.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next()? == "nameserver").then(|| words.next())?
    });
    // An IPv6 address may have a zone, which is of no use without its interface.
    lines.filter_map(|address| address.split('%').next()?.parse().ok()).collect()
}

/// The first good answer of the servers, in their order; none when there is none.
pub(super) async fn ask(
    servers: &[IpAddr],
    question: &Question,
    transport: Transport,
) -> Option<Vec<u8>> {
    for server in servers.iter().take(SERVERS) {
        let server = SocketAddr::new(*server, 53);
        let asked = timeout(PATIENCE, async {
            match transport {
                Transport::Udp => by_udp(server, question).await,
                Transport::Tcp => by_tcp(server, question).await,
            }
        });
        match asked.await {
            Ok(Ok(reply)) => return Some(reply),
            Ok(Err(error)) => tracing::debug!(%server, %error, "name server"),
            Err(_) => tracing::debug!(%server, "name server does not answer"),
        }
    }
    None
}

/// The question under an id that nobody can guess.
fn disguised(question: &Question) -> io::Result<(u16, Vec<u8>)> {
    let mut id = [0; 2];
    getrandom(&mut id, GetRandomFlags::empty())?;
    let mut bytes = question.bytes.clone();
    bytes[..2].copy_from_slice(&id);
    Ok((u16::from_be_bytes(id), bytes))
}

/// The answer under the client's own id again.
fn restored(question: &Question, mut reply: Vec<u8>) -> Vec<u8> {
    reply[..2].copy_from_slice(&question.id().to_be_bytes());
    reply
}

async fn by_udp(server: SocketAddr, question: &Question) -> io::Result<Vec<u8>> {
    let local: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    // A socket a question: its random port is the other half of the disguise,
    // and being connected it hears nobody but the server.
    let socket = UdpSocket::bind((local, 0)).await?;
    socket.connect(server).await?;
    let (id, bytes) = disguised(question)?;
    socket.send(&bytes).await?;
    let mut buffer = vec![0; 4096];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if question.is_answered_by(id, &buffer[..length]) {
            buffer.truncate(length);
            return Ok(restored(question, buffer));
        }
    }
}

async fn by_tcp(server: SocketAddr, question: &Question) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let (id, bytes) = disguised(question)?;
    let mut framed = (bytes.len() as u16).to_be_bytes().to_vec();
    framed.extend_from_slice(&bytes);
    stream.write_all(&framed).await?;
    let mut reply = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut reply).await?;
    if question.is_answered_by(id, &reply) {
        Ok(restored(question, reply))
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidData, "an answer to another question"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_are_read() {
        let text = "# nameserver 9.9.9.9\nsearch a\nnameserver 127.0.0.53\n nameserver\tfe80::1%eth0\nnameserver x\nnameserver\n";
        let found = nameservers(text);
        assert_eq!(found, ["127.0.0.53".parse::<IpAddr>().unwrap(), "fe80::1".parse().unwrap()]);
    }
}

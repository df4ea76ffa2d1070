//! One question to the name servers, and what counts as its answer.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use hickory_proto::{
    op::{Message, MessageType, OpCode, Query, ResponseCode},
    rr::{Name, RData, RecordType},
};
use rustix::rand::{GetRandomFlags, getrandom};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UdpSocket},
    time::timeout,
};

use crate::{MAX_ADDRESSES, config::Config};

/// The largest datagram that a server sends to who does not say that it takes more.
const MAX_DATAGRAM: usize = 512;
/// Links from name to name that are followed within an answer.
const MAX_CHAIN: usize = 16;

/// Nobody gave an answer.
#[derive(Debug)]
pub(crate) struct NoAnswer;

/// The addresses of this type; none where the servers say that there are none.
pub(crate) async fn ask(
    config: &Config,
    name: &Name,
    kind: RecordType,
) -> Result<Vec<IpAddr>, NoAnswer> {
    for _ in 0..config.attempts {
        for server in &config.servers {
            let asked = timeout(config.timeout, exchange(*server, name, kind, config.tcp));
            let Ok(Ok(reply)) = asked.await else { continue };
            match reply.metadata.response_code {
                ResponseCode::NoError => return Ok(addresses(&reply, name, kind)),
                ResponseCode::NXDomain => return Ok(Vec::new()),
                // It cannot or will not: another may.
                _ => {}
            }
        }
    }
    Err(NoAnswer)
}

async fn exchange(
    server: SocketAddr,
    name: &Name,
    kind: RecordType,
    tcp: bool,
) -> io::Result<Message> {
    if !tcp {
        let reply = by_udp(server, name, kind).await?;
        if !reply.metadata.truncation {
            return Ok(reply);
        }
    }
    by_tcp(server, name, kind).await
}

/// A question under an id that nobody can guess.
fn question(name: &Name, kind: RecordType) -> io::Result<(u16, Vec<u8>)> {
    let mut id = [0; 2];
    getrandom(&mut id, GetRandomFlags::empty())?;
    let id = u16::from_be_bytes(id);
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name.clone(), kind));
    let bytes = message.to_vec().map_err(io::Error::other)?;
    Ok((id, bytes))
}

/// The message, where it answers the question of this id.
fn answer(id: u16, name: &Name, kind: RecordType, reply: &[u8]) -> Option<Message> {
    let message = Message::from_vec(reply).ok()?;
    let [query] = message.queries.as_slice() else { return None };
    let ours = message.metadata.id == id
        && message.metadata.message_type == MessageType::Response
        && query.name().eq_ignore_root(name)
        && query.query_type() == kind;
    ours.then_some(message)
}

async fn by_udp(server: SocketAddr, name: &Name, kind: RecordType) -> io::Result<Message> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    // A socket a question: its random port is the other half of what nobody can guess,
    // and being connected it hears nobody but the server.
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    let (id, bytes) = question(name, kind)?;
    socket.send(&bytes).await?;
    let mut buffer = [0; MAX_DATAGRAM];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if let Some(message) = answer(id, name, kind, &buffer[..length]) {
            return Ok(message);
        }
    }
}

async fn by_tcp(server: SocketAddr, name: &Name, kind: RecordType) -> io::Result<Message> {
    let mut stream = TcpStream::connect(server).await?;
    let (id, bytes) = question(name, kind)?;
    let mut framed = (bytes.len() as u16).to_be_bytes().to_vec();
    framed.extend_from_slice(&bytes);
    stream.write_all(&framed).await?;
    let mut reply = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut reply).await?;
    answer(id, name, kind, &reply)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "an answer to another question"))
}

/// The addresses of the name and of what it is another name for.
fn addresses(message: &Message, name: &Name, kind: RecordType) -> Vec<IpAddr> {
    let mut name = name.clone();
    for _ in 0..MAX_CHAIN {
        let of_name = message.answers.iter().filter(|record| record.name.eq_ignore_root(&name));
        let found: Vec<IpAddr> = of_name
            .clone()
            .filter_map(|record| match &record.data {
                RData::A(address) if kind == RecordType::A => Some(address.0.into()),
                RData::AAAA(address) if kind == RecordType::AAAA => Some(address.0.into()),
                _ => None,
            })
            .take(MAX_ADDRESSES)
            .collect();
        if !found.is_empty() {
            return found;
        }
        let other = of_name.filter_map(|record| match &record.data {
            RData::CNAME(other) => Some(other.0.clone()),
            _ => None,
        });
        match other.into_iter().next() {
            Some(other) => name = other,
            None => break,
        }
    }
    Vec::new()
}

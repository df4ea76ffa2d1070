//! Bodies that flow: JSON lines as they happen, and connections that stop
//! being HTTP ("hijacked") and become a byte stream in both directions.
//!
//! ```text
//!   client ── connection ──► pump ──► engine's stream ── process
//!          ◄───────────────       ◄──
//! ```
//!
//! A half-close travels in both directions: the client's end of input closes
//! the process's standard input while its output goes on; the end of the
//! output closes the connection. Input that the process left unread is thrown
//! away then ([`crate::linger`]), so that the client sees an end and no reset.

use std::{convert::Infallible, io, time::Duration};

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use http::{HeaderMap, StatusCode, header};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use knarr_docker::{MULTIPLEXED_STREAM, RAW_STREAM};
use knarr_engine::Duplex;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UnixStream},
};

use crate::linger::{Lingering, Socket};

/// How much is read at once.
const CHUNK: usize = 16 << 10;

/// How often a connection whose client sends no more is asked whether its
/// client is still there: a half-closed socket does not say so by itself.
const VANISHED: Duration = Duration::from_secs(5);

/// A body of JSON documents, each flushed when it is there.
pub(crate) fn json_lines<T, S>(lines: S) -> Response
where
    T: serde::Serialize,
    S: Stream<Item = T> + Send + 'static,
{
    let bytes = lines.map(|line| {
        let mut bytes = serde_json::to_vec(&line).unwrap_or_default();
        // As Docker ends them; some clients split at it.
        bytes.extend_from_slice(b"\r\n");
        Ok::<_, Infallible>(Bytes::from(bytes))
    });
    ([(header::CONTENT_TYPE, "application/json")], Body::from_stream(bytes)).into_response()
}

/// Content type of output.
pub(crate) fn content_type(tty: bool) -> &'static str {
    if tty { RAW_STREAM } else { MULTIPLEXED_STREAM }
}

/// Turns the connection over to `stream`: by `101 Switching Protocols` where the
/// client asked for it, else as two HTTP bodies.
///
/// The stream is waited for when the client has its answer: what is started then
/// cannot write before the client listens. Some clients (docker-py) lose what
/// comes in one piece with the headers.
pub(crate) async fn hijack(
    headers: &HeaderMap,
    upgrade: Option<OnUpgrade>,
    body: Body,
    stream: impl Future<Output = Box<dyn Duplex>> + Send + 'static,
    tty: bool,
) -> Response {
    let asked = headers.contains_key(header::UPGRADE);
    match upgrade.filter(|_| asked) {
        Some(upgrade) => {
            tokio::spawn(upgraded(upgrade, stream));
            let headers = [
                (header::CONTENT_TYPE, content_type(tty)),
                (header::CONNECTION, "Upgrade"),
                (header::UPGRADE, "tcp"),
            ];
            (StatusCode::SWITCHING_PROTOCOLS, headers).into_response()
        }
        None => two_bodies(body, stream.await, tty),
    }
}

async fn upgraded(upgrade: OnUpgrade, stream: impl Future<Output = Box<dyn Duplex>> + Send) {
    let upgraded = match upgrade.await {
        Ok(upgraded) => upgraded,
        Err(error) => {
            tracing::debug!("upgrade: {error}");
            return;
        }
    };
    let stream = stream.await;
    let outcome = match upgraded.downcast::<TokioIo<Lingering<UnixStream>>>() {
        Ok(parts) => pump(parts.io.into_inner(), parts.read_buf, stream).await,
        Err(upgraded) => match upgraded.downcast::<TokioIo<Lingering<TcpStream>>>() {
            Ok(parts) => pump(parts.io.into_inner(), parts.read_buf, stream).await,
            Err(_) => Err(io::Error::other("connection of unknown kind")),
        },
    };
    if let Err(error) = outcome {
        // The client went away, which is its right.
        tracing::debug!("attached client: {error}");
    }
}

async fn pump<S: Socket>(
    client: Lingering<S>,
    early: Bytes,
    stream: Box<dyn Duplex>,
) -> io::Result<()> {
    let watch = client.watch()?;
    let (reader, writer) = tokio::io::split(client);
    both_ways(reader, writer, early, stream, || watch.as_ref().is_some_and(hung_up)).await
}

/// Both ends of a Unix connection are closed.
fn hung_up(socket: &impl std::os::fd::AsFd) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::new(socket, PollFlags::empty())];
    poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok()
        && fds[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)
}

/// Ends when the output has ended, or when the client is gone.
async fn both_ways(
    mut from_client: impl AsyncRead + Unpin,
    mut to_client: impl AsyncWrite + Unpin,
    early: Bytes,
    stream: Box<dyn Duplex>,
    gone: impl Fn() -> bool,
) -> io::Result<()> {
    let (mut from_process, mut to_process) = tokio::io::split(stream);
    let input = async {
        // A process that reads no more is no reason to stop its output.
        let copied = async {
            to_process.write_all(&early).await?;
            copy(&mut from_client, &mut to_process).await
        };
        match copied.await {
            Ok(()) | Err(Side::Write(_)) => {
                let _ = to_process.shutdown().await;
            }
            Err(Side::Read(error)) => return Err(error),
        }
        loop {
            tokio::time::sleep(VANISHED).await;
            if gone() {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
        }
    };
    let output = async {
        match copy(&mut from_process, &mut to_client).await {
            Ok(()) => to_client.shutdown().await,
            Err(Side::Read(error) | Side::Write(error)) => Err(error),
        }
    };
    tokio::select! {
        outcome = output => outcome,
        outcome = input => outcome,
    }
}

/// Which side of a copy failed.
enum Side {
    Read(io::Error),
    Write(io::Error),
}

impl From<io::Error> for Side {
    fn from(error: io::Error) -> Self {
        Self::Write(error)
    }
}

/// Copies until the end of file. A slow writer slows the reader: nothing piles
/// up between them (CATALOGUE A04).
async fn copy(
    reader: &mut (impl AsyncRead + Unpin),
    writer: &mut (impl AsyncWrite + Unpin),
) -> Result<(), Side> {
    let mut buffer = vec![0; CHUNK];
    loop {
        let length = reader.read(&mut buffer).await.map_err(Side::Read)?;
        if length == 0 {
            return Ok(());
        }
        writer.write_all(&buffer[..length]).await?;
        writer.flush().await?;
    }
}

/// For clients that do not ask for an upgrade: the request's body is the input,
/// the answer's body the output.
fn two_bodies(body: Body, stream: Box<dyn Duplex>, tty: bool) -> Response {
    let (reader, mut writer) = tokio::io::split(stream);
    tokio::spawn(async move {
        let mut chunks = body.into_data_stream();
        while let Some(Ok(chunk)) = chunks.next().await {
            if writer.write_all(&chunk).await.is_err() {
                break;
            }
        }
        let _ = writer.shutdown().await;
    });
    let output = tokio_util::io::ReaderStream::with_capacity(reader, CHUNK);
    ([(header::CONTENT_TYPE, content_type(tty))], Body::from_stream(output)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A process that answers all of its input when the input has ended.
    async fn late_cat(mut process: tokio::io::DuplexStream) {
        let mut input = Vec::new();
        process.read_to_end(&mut input).await.unwrap();
        process.write_all(b"got ").await.unwrap();
        process.write_all(&input).await.unwrap();
    }

    #[tokio::test]
    async fn p04_half_close_reaches_the_process_and_output_still_arrives() {
        let (ours, process) = tokio::io::duplex(64);
        tokio::spawn(late_cat(process));
        let (mut client, server) = UnixStream::pair().unwrap();
        let early = Bytes::from_static(b"early ");
        let pumping = tokio::spawn(pump(Lingering::new(server, None), early, Box::new(ours)));
        client.write_all(b"late").await.unwrap();
        client.shutdown().await.unwrap();
        let mut output = String::new();
        client.read_to_string(&mut output).await.unwrap();
        assert_eq!(output, "got early late");
        pumping.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn p05_a_client_that_vanishes_ends_the_pump() {
        let (ours, process) = tokio::io::duplex(64);
        let (client, server) = UnixStream::pair().unwrap();
        let client_of = Lingering::new(server, None);
        let pumping = tokio::spawn(pump(client_of, Bytes::new(), Box::new(ours)));
        drop(client);
        let (mut reader, mut writer) = tokio::io::split(process);
        // Its input has ended; what it writes finds nobody and ends the pump.
        assert_eq!(reader.read(&mut [0; 1]).await.unwrap(), 0);
        while writer.write_all(b"anybody?").await.is_ok() {}
        pumping.await.unwrap().unwrap_err();
    }

    /// A process that says something and ends, and reads nothing.
    async fn ends_without_reading(mut client: impl Socket, server: impl Socket) {
        let (ours, mut process) = tokio::io::duplex(64);
        let early = Bytes::from_static(&[b'i'; 1000]);
        let pumping = tokio::spawn(pump(Lingering::new(server, None), early, Box::new(ours)));
        client.write_all(&[b'i'; 10_000]).await.unwrap();
        process.write_all(b"enough").await.unwrap();
        drop(process);
        pumping.await.unwrap().unwrap();
        client.write_all(&[b'i'; 10_000]).await.unwrap();
        let mut output = String::new();
        client.read_to_string(&mut output).await.unwrap();
        assert_eq!(output, "enough");
    }

    #[tokio::test]
    async fn p03_input_left_unread_does_not_cost_the_output_its_end() {
        let (client, server) = UnixStream::pair().unwrap();
        ends_without_reading(client, server).await;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        ends_without_reading(client, listener.accept().await.unwrap().0).await;
    }

    #[tokio::test]
    async fn a_whole_close_is_told_from_a_half_close() {
        let (client, server) = UnixStream::pair().unwrap();
        let std_client = client.into_std().unwrap();
        std_client.shutdown(std::net::Shutdown::Write).unwrap();
        assert!(!hung_up(&server));
        drop(std_client);
        assert!(hung_up(&server));
    }

    #[tokio::test]
    async fn a04_a_client_that_does_not_read_stops_the_source() {
        let (ours, mut process) = tokio::io::duplex(1024);
        let (_client, server) = UnixStream::pair().unwrap();
        tokio::spawn(pump(Lingering::new(server, None), Bytes::new(), Box::new(ours)));
        let flood = async {
            let mut sent = 0_usize;
            loop {
                process.write_all(&[b'y'; 1024]).await.unwrap();
                sent += 1024;
                assert!(sent < 4 << 20, "output is buffered without end");
            }
        };
        assert!(tokio::time::timeout(Duration::from_millis(300), flood).await.is_err());
    }
}

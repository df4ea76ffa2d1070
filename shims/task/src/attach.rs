//! `attach.sock`: clients that watch and feed the processes of a task.
//!
//! ```text
//! client                                shim
//!   {"exec":"","stdin":true,…}\n   ──▶
//!                                  ◀──  ok\n   or   error: no such exec: …\n
//!   standard input                 ──▶
//!   shutdown(WR): end of input     ──▶  closes the process's stdin
//!                                  ◀──  frames (raw on a terminal)
//!   close: detached                ──▶  the process goes on
//!                                  ◀──  close: the process is gone
//! ```
//!
//! Failure: a client that sends no request within ten seconds, or one that is
//! no request, is dropped; nothing that a client does reaches the container but
//! its input.

use std::{
    io,
    os::fd::AsFd,
    path::Path,
    sync::{Arc, Weak},
    time::Duration,
};

use knarr_model::task::AttachRequest;
use rustix::event::{PollFd, PollFlags, poll};
use tokio::{
    net::{UnixListener, UnixStream},
    time::timeout,
};
use tokio_util::task::TaskTracker;

use crate::streams::{Client, Streams};

/// Input is read in pieces of this size.
const CHUNK: usize = 16 * 1024;
/// The longest request.
const REQUEST: usize = 4096;

/// Finds the streams of an exec; the empty id is the first process.
pub(crate) trait Lookup: Send + Sync + 'static {
    /// The streams, while the process is known.
    fn streams(&self, exec: &str) -> Option<Arc<Streams>>;
}

/// Serves clients until it is aborted; `clients` are those who still want
/// something, and may outlive that.
pub(crate) async fn serve(listener: UnixListener, lookup: Weak<impl Lookup>, clients: TaskTracker) {
    loop {
        match listener.accept().await {
            Ok((socket, _)) if !admits(&socket) => {}
            Ok((socket, _)) => {
                let Some(lookup) = lookup.upgrade() else { return };
                clients.spawn(async move {
                    if let Err(error) = client(socket, lookup).await {
                        tracing::debug!("attach: {error}");
                    }
                });
            }
            Err(error) => {
                // Out of file descriptors: those who are here will go.
                tracing::warn!("accept on attach socket: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Listens at a path of any length, for its owner alone, in the place of whoever
/// listened there before.
pub(crate) fn listen(path: &Path) -> io::Result<std::os::unix::net::UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = knarr_sys::listen_privately(path)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Whether a caller may speak to us: root, and the user that we are. The socket's mode
/// says so too; this holds where somebody changed it.
pub(crate) fn admits(caller: &UnixStream) -> bool {
    let own = rustix::process::geteuid().as_raw();
    match caller.peer_cred() {
        Ok(peer) if peer.uid() == 0 || peer.uid() == own => true,
        Ok(peer) => {
            tracing::warn!(uid = peer.uid(), "refused a caller: this socket is its owner's");
            false
        }
        Err(error) => {
            tracing::warn!("refused a caller: who it is: {error}");
            false
        }
    }
}

async fn client(socket: UnixStream, lookup: Arc<impl Lookup>) -> io::Result<()> {
    let (request, early) = match timeout(Duration::from_secs(10), read_request(&socket)).await {
        Ok(request) => request?,
        Err(_) => return Err(io::ErrorKind::TimedOut.into()),
    };
    let request = match request {
        Ok(request) => request,
        Err(error) => return refuse(&socket, &format!("bad request: {error}")).await,
    };
    let Some(streams) = lookup.streams(&request.exec) else {
        return refuse(&socket, &format!("no such exec: {}", request.exec)).await;
    };
    // A slow client may outlive the task.
    drop(lookup);
    let client = streams.attach([request.stdout, request.stderr]);
    // Whatever ends this function, the pumps must not wait for this client.
    let _gone = Gone(&client);
    write_all(&socket, b"ok\n").await?;
    let all_sent = tokio::select! {
        result = send(&socket, &client) => result.is_ok(),
        () = receive(&socket, &streams, &client, &request, early) => false,
    };
    if all_sent {
        close(&socket);
    } else if request.stdin && request.stdin_once {
        streams.close_stdin();
    }
    Ok(())
}

struct Gone<'a>(&'a Client);

impl Drop for Gone<'_> {
    fn drop(&mut self) {
        self.0.gone();
    }
}

async fn refuse(socket: &UnixStream, why: &str) -> io::Result<()> {
    write_all(socket, format!("error: {why}\n").as_bytes()).await?;
    close(socket);
    Ok(())
}

/// Closes so that the client sees an end and no reset: input that was sent but
/// never read would make one.
fn close(socket: &UnixStream) {
    let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Both);
    let mut sink = [0; 4096];
    while let Ok(1..) = rustix::io::read(socket, &mut sink) {}
}

type Request = Result<AttachRequest, serde_json::Error>;

async fn read_request(socket: &UnixStream) -> io::Result<(Request, Vec<u8>)> {
    let mut bytes = Vec::new();
    loop {
        if let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            let early = bytes.split_off(end + 1);
            return Ok((serde_json::from_slice(&bytes), early));
        }
        if bytes.len() >= REQUEST {
            return Err(io::ErrorKind::InvalidData.into());
        }
        match read(socket, REQUEST - bytes.len()).await? {
            more if more.is_empty() => return Err(io::ErrorKind::UnexpectedEof.into()),
            more => bytes.extend(more),
        }
    }
}

async fn send(socket: &UnixStream, client: &Client) -> io::Result<()> {
    while let Some(chunk) = client.next().await {
        write_all(socket, &chunk).await?;
        client.done(chunk.len());
    }
    Ok(())
}

/// Passes input on; returns when the client is gone.
async fn receive(
    socket: &UnixStream,
    streams: &Streams,
    client: &Client,
    request: &AttachRequest,
    early: Vec<u8>,
) {
    let mut chunk = early;
    let mut open = request.stdin;
    loop {
        if open && !chunk.is_empty() && streams.write_stdin(&chunk).await.is_err() {
            // The process takes no more; it is no reason to stop listening.
            open = false;
        }
        chunk = match read(socket, CHUNK).await {
            Ok(chunk) if !chunk.is_empty() => chunk,
            Ok(_) if !hung_up(socket) => {
                if request.stdin {
                    streams.close_stdin();
                }
                // Only output is left. The kernel has no news for us when the
                // client goes away now: the next write finds out, or the
                // question that the next client's coming brings.
                while !hung_up(socket) {
                    client.poked().await;
                }
                return;
            }
            _ => return,
        };
    }
}

/// Both directions are closed: the client is gone, not just done with input.
fn hung_up(socket: &UnixStream) -> bool {
    let fd = socket.as_fd();
    let mut fds = [PollFd::new(&fd, PollFlags::empty())];
    let now = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut fds, Some(&now)).is_ok() && fds[0].revents().contains(PollFlags::HUP)
}

async fn read(socket: &UnixStream, size: usize) -> io::Result<Vec<u8>> {
    loop {
        socket.readable().await?;
        let mut chunk = vec![0; size];
        match socket.try_read(&mut chunk) {
            Ok(n) => {
                chunk.truncate(n);
                return Ok(chunk);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

async fn write_all(socket: &UnixStream, mut data: &[u8]) -> io::Result<()> {
    while !data.is_empty() {
        match socket.try_write(data) {
            Ok(n) => data = &data[n..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => socket.writable().await?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "attach_tests.rs"]
mod tests;

//! Closing a connection so that its client reads to the end.
//!
//! A socket that is closed while bytes lie in it that nobody read is reset: its
//! client gets `ECONNRESET` in the place of the end of the output, and over TCP it
//! may lose output that is still under way (RFC 9112, section 9.6; unix(7) sockets
//! do the same). A program that ends without reading its input, and a request that
//! is refused before its body was read, are ordinary: their answers must arrive.
//!
//! ```text
//!   dropped ──► our end is closed ──► input is read and thrown away ──► closed
//!                                       until the client closes its end,
//!                                       or for so long and so much
//! ```
//!
//! **How it fails.** A client that neither reads nor closes is reset after
//! [`PATIENCE`].

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::{TcpStream, UnixStream},
    sync::OwnedSemaphorePermit,
    time::timeout,
};

/// How long a client may go on sending to nobody.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long it may do nothing at all.
const IDLE: Duration = Duration::from_secs(5);
/// How much of its input is thrown away.
const MOST: usize = 256 << 20;
/// How much is read at once.
const CHUNK: usize = 16 << 10;

/// A socket that clients are served on.
pub(crate) trait Socket: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// What tells whether both of its directions are closed: none where the kernel
    /// does not tell a half-close from a whole one before a write fails.
    fn watch(&self) -> io::Result<Option<OwnedFd>>;
}

impl Socket for UnixStream {
    fn watch(&self) -> io::Result<Option<OwnedFd>> {
        Ok(Some(rustix::io::fcntl_dupfd_cloexec(self.as_fd(), 3)?))
    }
}

impl Socket for TcpStream {
    fn watch(&self) -> io::Result<Option<OwnedFd>> {
        Ok(None)
    }
}

/// A client's connection. It counts as one of those that are allowed at once
/// until it is closed, whatever has become of it meanwhile.
#[derive(Debug)]
pub(crate) struct Lingering<S: Socket> {
    /// None once it was dropped.
    socket: Option<S>,
    permit: Option<OwnedSemaphorePermit>,
    /// The client has closed its end: there is nothing left to read.
    ended: bool,
}

impl<S: Socket> Lingering<S> {
    pub(crate) fn new(socket: S, permit: Option<OwnedSemaphorePermit>) -> Self {
        Self { socket: Some(socket), permit, ended: false }
    }

    /// See [`Socket::watch`].
    pub(crate) fn watch(&self) -> io::Result<Option<OwnedFd>> {
        self.socket.as_ref().map_or(Ok(None), S::watch)
    }

    fn socket(&mut self) -> io::Result<Pin<&mut S>> {
        self.socket.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl<S: Socket> Drop for Lingering<S> {
    fn drop(&mut self) {
        let (Some(socket), permit) = (self.socket.take(), self.permit.take()) else { return };
        if self.ended {
            return;
        }
        // Without a runtime the process is ending, and with it every connection.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                let _ = timeout(PATIENCE, throw_away(socket)).await;
                drop(permit);
            });
        }
    }
}

/// Closes our end, and reads what still comes.
async fn throw_away(mut socket: impl Socket) {
    if socket.shutdown().await.is_err() {
        return;
    }
    let mut chunk = vec![0; CHUNK];
    let mut left = MOST;
    while left > 0 {
        match timeout(IDLE, socket.read(&mut chunk)).await {
            Ok(Ok(length @ 1..)) => left = left.saturating_sub(length),
            // Its end, a broken connection, or silence.
            Ok(_) | Err(_) => return,
        }
    }
}

impl<S: Socket> AsyncRead for Lingering<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let outcome = self.socket()?.poll_read(context, buffer);
        if let Poll::Ready(Ok(())) = outcome
            && buffer.filled().len() == before
            && buffer.remaining() > 0
        {
            self.ended = true;
        }
        outcome
    }
}

impl<S: Socket> AsyncWrite for Lingering<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.socket()?.poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.socket()?.poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.as_ref().is_some_and(AsyncWrite::is_write_vectored)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket()?.poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket()?.poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends more than is read, and then looks how the connection ends.
    async fn reads_to_the_end(mut client: impl Socket, server: impl Socket) {
        let mut server = Lingering::new(server, None);
        client.write_all(&[b'i'; 10_000]).await.unwrap();
        // Something of it has arrived for certain.
        server.read_exact(&mut [0; 1]).await.unwrap();
        server.write_all(b"the answer").await.unwrap();
        drop(server);
        client.write_all(&[b'i'; 10_000]).await.unwrap();
        let mut output = String::new();
        client.read_to_string(&mut output).await.unwrap();
        assert_eq!(output, "the answer");
        drop(client);
    }

    #[tokio::test]
    async fn input_that_nobody_reads_makes_no_reset() {
        let (client, server) = UnixStream::pair().unwrap();
        reads_to_the_end(client, server).await;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        reads_to_the_end(client, listener.accept().await.unwrap().0).await;
    }

    #[tokio::test]
    async fn a03_a_connection_counts_until_it_is_closed() {
        let permits = std::sync::Arc::new(tokio::sync::Semaphore::new(1));
        let (client, server) = UnixStream::pair().unwrap();
        let permit = permits.clone().try_acquire_owned().unwrap();
        drop(Lingering::new(server, Some(permit)));
        tokio::task::yield_now().await;
        assert_eq!(permits.available_permits(), 0, "the client is still there");
        drop(client);
        drop(permits.acquire().await.unwrap());
    }
}

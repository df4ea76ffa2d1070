//! Detach keys: the sequence after which a client leaves and the process stays.
//!
//! Only a terminal's input is searched (moby `daemon/attach.go`). Bytes that
//! may begin the sequence are held back until it is clear whether they do.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{Error, Result, view::Duplex};

/// ctrl-p, ctrl-q.
const DEFAULT: &[u8] = &[16, 17];

/// Reads Docker's notation: `ctrl-p,ctrl-q`, `a`, `ctrl-@`; empty is the default.
pub(crate) fn parse(text: Option<&str>) -> Result<Vec<u8>> {
    let Some(text) = text.filter(|text| !text.is_empty()) else {
        return Ok(DEFAULT.to_vec());
    };
    text.split(',')
        .map(|key| {
            let code = match key.as_bytes() {
                [byte] => Some(*byte),
                [b'c', b't', b'r', b'l', b'-', byte] => match byte {
                    b'a'..=b'z' => Some(byte - b'a' + 1),
                    b'@' => Some(0),
                    b'[' => Some(27),
                    b'\\' => Some(28),
                    b']' => Some(29),
                    b'^' => Some(30),
                    b'_' => Some(31),
                    _ => None,
                },
                b"DEL" => Some(127),
                _ => None,
            };
            code.ok_or_else(|| Error::invalid(format!("Unknown character: '{key}'")))
        })
        .collect()
}

/// A duplex that ends when its writer sends the sequence.
pub(crate) struct Detachable {
    inner: Box<dyn Duplex>,
    keys: Vec<u8>,
    /// How many bytes of the sequence have been seen and held back.
    matched: usize,
    /// Bytes on their way to the process.
    pending: Vec<u8>,
    detached: bool,
    on_detach: Option<Box<dyn FnOnce() + Send>>,
}

impl Detachable {
    pub(crate) fn new(
        inner: Box<dyn Duplex>,
        keys: Vec<u8>,
        on_detach: impl FnOnce() + Send + 'static,
    ) -> Self {
        Self {
            inner,
            keys,
            matched: 0,
            pending: Vec::new(),
            detached: false,
            on_detach: Some(Box::new(on_detach)),
        }
    }

    /// Moves input into `pending`, less the sequence.
    fn scan(&mut self, input: &[u8]) {
        for &byte in input {
            if self.keys.get(self.matched) == Some(&byte) {
                self.matched += 1;
                if self.matched == self.keys.len() {
                    self.detached = true;
                    if let Some(on_detach) = self.on_detach.take() {
                        on_detach();
                    }
                    return;
                }
                continue;
            }
            // What was held back was not the sequence after all.
            self.pending.extend_from_slice(&self.keys[..self.matched]);
            self.matched = 0;
            if self.keys.first() == Some(&byte) {
                self.matched = 1;
            } else {
                self.pending.push(byte);
            }
        }
    }

    fn drain(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.pending.is_empty() {
            let written = ready!(Pin::new(&mut self.inner).poll_write(context, &self.pending))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.pending.drain(..written);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Detachable {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.detached {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl AsyncWrite for Detachable {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        input: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.drain(context))?;
        if self.detached {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        self.scan(input);
        // Taken over; what does not fit now goes before the next bytes.
        if let Poll::Ready(Err(error)) = self.drain(context) {
            return Poll::Ready(Err(error));
        }
        Poll::Ready(Ok(input.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.drain(context))?;
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.matched > 0 && !self.detached {
            let held = self.keys[..self.matched].to_vec();
            self.pending.extend(held);
            self.matched = 0;
        }
        ready!(self.drain(context))?;
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    };

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[test]
    fn keys_are_read_as_docker_writes_them() {
        assert_eq!(parse(None).unwrap(), [16, 17]);
        assert_eq!(parse(Some("")).unwrap(), [16, 17]);
        assert_eq!(parse(Some("ctrl-a,x,ctrl-@,DEL")).unwrap(), [1, b'x', 0, 127]);
        for bad in ["ctrl-", "ctrl-aa", "xy", "ctrl-p,,"] {
            assert!(parse(Some(bad)).is_err(), "{bad}");
        }
    }

    async fn through(chunks: &[&[u8]]) -> (Vec<u8>, bool) {
        let (near, mut far) = tokio::io::duplex(1024);
        let flag = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&flag);
        let mut stream = Detachable::new(Box::new(near), vec![16, 17], move || {
            seen.store(true, Ordering::SeqCst);
        });
        for chunk in chunks {
            if stream.write_all(chunk).await.is_err() {
                break;
            }
        }
        if !flag.load(Ordering::SeqCst) {
            stream.shutdown().await.unwrap();
        } else {
            assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0);
        }
        drop(stream);
        let mut got = Vec::new();
        far.read_to_end(&mut got).await.unwrap();
        (got, flag.load(Ordering::SeqCst))
    }

    #[tokio::test]
    async fn p08_the_sequence_detaches_and_its_beginning_alone_does_not() {
        assert_eq!(through(&[b"ab\x10\x11cd"]).await, (b"ab".to_vec(), true));
        assert_eq!(through(&[b"ab\x10", b"\x11"]).await, (b"ab".to_vec(), true));
        assert_eq!(through(&[b"ab\x10", b"c\x11"]).await, (b"ab\x10c\x11".to_vec(), false));
        assert_eq!(through(&[b"\x10\x10\x11"]).await, (b"\x10".to_vec(), true));
        assert_eq!(through(&[b"x\x10"]).await, (b"x\x10".to_vec(), false));
    }
}

//! Streams of a process: its attach socket, and what lies between it and a client.
//!
//! A client that attaches before the start gets one end of a pipe in memory;
//! the other end is connected to the shim between `Create` and `Start`, so that
//! not one byte of output is missed. Afterwards the client speaks to the shim's
//! socket directly.

use std::{io, os::fd::AsRawFd as _, path::Path, sync::Arc};

use bytes::Bytes;
use futures_util::StreamExt;
use knarr_model::{ContainerSpec, task::AttachRequest};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};
use tokio_util::io::StreamReader;

use crate::{
    Error, Result,
    container::{Container, PendingAttach},
    detach::{self, Detachable},
    engine::Engine,
    view::{AttachOptions, Attached, BoxStream, Duplex, LogLine, LogOptions, OutputStream, Status},
};

/// Bytes on their way between a client and a container that was not started yet.
const PIPE: usize = 64 << 10;

/// Connects to the streams of a process.
pub(crate) async fn dial(bundle: &Path, request: &AttachRequest) -> Result<UnixStream> {
    let failed = |error: std::io::Error| Error::io("attach to the container's streams", error);
    // Through the directory: an address holds 108 bytes, a bundle's path may be longer.
    let directory = std::fs::File::open(bundle).map_err(failed)?;
    let socket = format!("/proc/self/fd/{}/attach.sock", directory.as_raw_fd());
    let mut stream = UnixStream::connect(&socket).await.map_err(failed)?;
    let mut line = serde_json::to_vec(request)
        .map_err(|error| Error::internal(format!("attach request: {error}")))?;
    line.push(b'\n');
    stream.write_all(&line).await.map_err(failed)?;
    // Byte by byte: what follows the line belongs to the client.
    let mut answer = Vec::new();
    loop {
        let byte = stream.read_u8().await.map_err(failed)?;
        if byte == b'\n' {
            break;
        }
        answer.push(byte);
        if answer.len() > 4096 {
            return Err(Error::internal("attach: the shim does not stop talking"));
        }
    }
    match answer.as_slice() {
        b"ok" => Ok(stream),
        other => {
            let reason = String::from_utf8_lossy(other);
            let reason = reason.strip_prefix("error: ").unwrap_or(&reason);
            Err(Error::internal(format!("attach: {reason}")))
        }
    }
}

impl Engine {
    /// Attaches to its first process; to a container that was not started yet,
    /// the stream carries what comes from its start on.
    ///
    /// # Errors
    /// `Conflict` where it is paused; `InvalidArgument` for bad detach keys.
    pub async fn attach(&self, key: &str, options: AttachOptions) -> Result<Attached> {
        let container = self.find(key)?;
        let keys = detach::parse(options.detach_keys.as_deref())?;
        let spec = container.spec();
        let backlog =
            if options.logs { self.backlog(&container, &spec, &options).await } else { None };
        let stream: Box<dyn Duplex> = if options.stream {
            // Not while it is being started or ended: either before or after.
            let _op = container.op.lock().await;
            match container.status() {
                Status::Paused => {
                    return Err(Error::conflict(format!(
                        "container {} is paused, unpause the container before attach",
                        container.id
                    )));
                }
                Status::Restarting => {
                    return Err(Error::conflict(format!(
                        "container {} is restarting, wait until the container is running",
                        container.id
                    )));
                }
                Status::Running => {
                    let request = AttachRequest {
                        exec: String::new(),
                        stdin: options.stdin && spec.open_stdin,
                        stdout: options.stdout,
                        stderr: options.stderr,
                        stdin_once: spec.stdin_once,
                    };
                    match dial(&self.bundle(&container.id), &request).await {
                        Ok(stream) => Box::new(stream),
                        // It ended just now: all it wrote is in its log.
                        Err(_) if !container.is_running_now() => Box::new(tokio::io::empty()),
                        Err(error) => return Err(error),
                    }
                }
                Status::Created | Status::Exited | Status::Removing | Status::Dead => {
                    let (near, far) = tokio::io::duplex(PIPE);
                    container.facts().pending.push(PendingAttach {
                        far,
                        stdin: options.stdin && spec.open_stdin,
                        stdout: options.stdout,
                        stderr: options.stderr,
                    });
                    Box::new(near)
                }
            }
        } else {
            Box::new(tokio::io::empty())
        };
        self.tell(&container, "attach", &[]);
        let stream: Box<dyn Duplex> = match backlog {
            None => stream,
            Some(backlog) => {
                let (reader, writer) = tokio::io::split(stream);
                Box::new(tokio::io::join(backlog.chain(reader), writer))
            }
        };
        let stream: Box<dyn Duplex> = if spec.tty && options.stdin {
            let engine = self.clone();
            let detached = Arc::clone(&container);
            Box::new(Detachable::new(stream, keys, move || engine.tell(&detached, "detach", &[])))
        } else {
            stream
        };
        Ok(Attached { stream, tty: spec.tty })
    }

    /// What was logged so far, framed as the stream is, and read as the client reads: it
    /// may be more than fits into memory. None where nothing is kept.
    async fn backlog(
        &self,
        container: &Container,
        spec: &ContainerSpec,
        options: &AttachOptions,
    ) -> Option<StreamReader<BoxStream<io::Result<Bytes>>, Bytes>> {
        let wanted =
            LogOptions { stdout: options.stdout, stderr: options.stderr, ..LogOptions::default() };
        let logs = self.logs(container.id.as_str(), wanted).await.ok()?;
        let tty = spec.tty;
        let framed = move |line: Result<LogLine>| {
            let line = line.map_err(io::Error::other)?;
            if tty {
                return Ok(line.bytes);
            }
            let mut bytes = Vec::with_capacity(8 + line.bytes.len());
            frame(&line, &mut bytes);
            Ok(Bytes::from(bytes))
        };
        Some(StreamReader::new(Box::pin(logs.lines.map(framed))))
    }

    /// Connects the clients that attached before the start.
    pub(crate) async fn join_pending(
        &self,
        container: &Container,
        bundle: &Path,
        spec: &ContainerSpec,
    ) -> Result<()> {
        let pending = std::mem::take(&mut container.facts().pending);
        for client in pending {
            let request = AttachRequest {
                exec: String::new(),
                stdin: client.stdin,
                stdout: client.stdout,
                stderr: client.stderr,
                stdin_once: spec.stdin_once,
            };
            let shim = dial(bundle, &request).await?;
            let wants_input = client.stdin;
            tokio::spawn(async move { splice(client.far, shim, wants_input).await });
        }
        Ok(())
    }
}

/// Docker's frame: stream, three zero bytes, length in big endian.
fn frame(line: &LogLine, bytes: &mut Vec<u8>) {
    let stream = match line.stream {
        OutputStream::Stdout => 1,
        OutputStream::Stderr => 2,
    };
    let length = u32::try_from(line.bytes.len()).unwrap_or(u32::MAX).to_be_bytes();
    bytes.extend_from_slice(&[stream, 0, 0, 0]);
    bytes.extend_from_slice(&length);
    bytes.extend_from_slice(&line.bytes);
}

/// Copies both ways until the process's output ends; a half-close of the
/// client's goes through as one (CATALOGUE P04).
async fn splice(client: tokio::io::DuplexStream, shim: UnixStream, wants_input: bool) {
    let (mut from_client, mut to_client) = tokio::io::split(client);
    let (mut from_shim, mut to_shim) = shim.into_split();
    let input = tokio::spawn(async move {
        if wants_input {
            let _ = tokio::io::copy(&mut from_client, &mut to_shim).await;
            let _ = to_shim.shutdown().await;
        } else {
            // Not wanted, but it must not stand still; and an end of it is no end of ours.
            let _ = tokio::io::copy(&mut from_client, &mut tokio::io::sink()).await;
            std::future::pending::<()>().await;
        }
        drop(to_shim);
    });
    let _ = tokio::io::copy(&mut from_shim, &mut to_client).await;
    let _ = to_client.shutdown().await;
    input.abort();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_dockers() {
        let mut bytes = Vec::new();
        let line =
            LogLine { stream: OutputStream::Stderr, time: String::new(), bytes: "hi\n".into() };
        frame(&line, &mut bytes);
        assert_eq!(bytes, b"\x02\0\0\0\0\0\0\x03hi\n");
    }

    #[tokio::test]
    async fn p04_a_half_close_passes_and_output_still_comes() {
        let (near, far) = tokio::io::duplex(64);
        let (shim, mut process) = UnixStream::pair().unwrap();
        let copying = tokio::spawn(splice(far, shim, true));
        let (mut read, mut write) = tokio::io::split(near);
        write.write_all(b"question").await.unwrap();
        write.shutdown().await.unwrap();
        let mut heard = Vec::new();
        process.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"question");
        process.write_all(b"answer").await.unwrap();
        drop(process);
        let mut got = Vec::new();
        read.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"answer");
        copying.await.unwrap();
    }
}

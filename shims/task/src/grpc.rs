//! containerd's gRPC API, as much of it as the shim asks: one message, and answers until
//! the stream ends.
//!
//! gRPC is HTTP/2 with five bytes before each message (a flag for compression and the
//! length, big-endian) and the outcome in the trailers
//! (<https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>).
//!
//! **How it fails.** [`Refusal`] has containerd's code; what is no gRPC is `UNAVAILABLE`.
//! Each step is given up after [`PATIENCE`].

use std::{future::Future, path::Path, time::Duration};

use bytes::{Buf as _, Bytes, BytesMut};
use containerd_shim_protos::protobuf::Message;
use h2::{RecvStream, client::SendRequest};
use http::{HeaderMap, Request};
use tokio::net::UnixStream;

/// Connecting, a question, and each part of an answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// containerd's own limit for one message.
const MESSAGE_MAX: usize = 16 << 20;
const NOT_FOUND: u32 = 5;
const UNAVAILABLE: u32 = 14;

/// A connection to containerd, for one of its namespaces.
#[derive(Debug)]
pub(crate) struct Grpc {
    sender: SendRequest<Bytes>,
    namespace: String,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
#[error("{message} (gRPC code {code})")]
pub(crate) struct Refusal {
    code: u32,
    message: String,
}

/// Answers to one question.
#[derive(Debug)]
pub(crate) struct Answers {
    body: RecvStream,
    buffer: BytesMut,
}

impl Refusal {
    pub(crate) fn is_not_found(&self) -> bool {
        self.code == NOT_FOUND
    }

    fn unavailable(why: impl std::fmt::Display) -> Self {
        Self { code: UNAVAILABLE, message: why.to_string() }
    }
}

impl Grpc {
    pub(crate) async fn connect(socket: &Path, namespace: &str) -> Result<Self, Refusal> {
        let sender = patiently(async {
            let stream = UnixStream::connect(socket).await.map_err(|error| {
                Refusal::unavailable(format_args!("{}: {error}", socket.display()))
            })?;
            let (sender, connection) =
                h2::client::handshake(stream).await.map_err(Refusal::unavailable)?;
            // Ends with the last sender.
            tokio::spawn(connection);
            Ok(sender)
        });
        Ok(Self { sender: sender.await?, namespace: namespace.to_owned() })
    }

    /// The one answer to a question. `method` is `package.Service/Method`.
    pub(crate) async fn ask<A: Message>(
        &self,
        method: &str,
        question: &impl Message,
    ) -> Result<A, Refusal> {
        let mut answers = self.stream(method, question).await?;
        let answer = answers.next().await?;
        answer.ok_or_else(|| Refusal::unavailable(format_args!("{method}: no answer")))
    }

    pub(crate) async fn stream(
        &self,
        method: &str,
        question: &impl Message,
    ) -> Result<Answers, Refusal> {
        let request = Request::post(format!("http://containerd/{method}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("containerd-namespace", &self.namespace)
            .body(())
            .map_err(Refusal::unavailable)?;
        let content = question.write_to_bytes().map_err(Refusal::unavailable)?;
        let mut frame = vec![0];
        frame.extend(u32::try_from(content.len()).map_err(Refusal::unavailable)?.to_be_bytes());
        frame.extend(content);
        patiently(async {
            let mut sender = self.sender.clone().ready().await.map_err(Refusal::unavailable)?;
            let (response, mut body) =
                sender.send_request(request, false).map_err(Refusal::unavailable)?;
            body.send_data(frame.into(), true).map_err(Refusal::unavailable)?;
            let (head, body) = response.await.map_err(Refusal::unavailable)?.into_parts();
            outcome(&head.headers)?;
            Ok(Answers { body, buffer: BytesMut::new() })
        })
        .await
    }
}

impl Answers {
    /// The next one; none after the last.
    pub(crate) async fn next<A: Message>(&mut self) -> Result<Option<A>, Refusal> {
        loop {
            if let Some(message) = self.whole()? {
                return A::parse_from_bytes(&message).map(Some).map_err(Refusal::unavailable);
            }
            let chunk = patiently(async { Ok(self.body.data().await) }).await?;
            let Some(chunk) = chunk else {
                let trailers =
                    patiently(async { self.body.trailers().await.map_err(Refusal::unavailable) });
                outcome(&trailers.await?.unwrap_or_default())?;
                return Ok(None);
            };
            let chunk = chunk.map_err(Refusal::unavailable)?;
            let _ = self.body.flow_control().release_capacity(chunk.len());
            self.buffer.extend_from_slice(&chunk);
        }
    }

    /// Takes a message off the buffer, once all of it is there.
    fn whole(&mut self) -> Result<Option<Bytes>, Refusal> {
        let &[compressed, a, b, c, d, ..] = &self.buffer[..] else { return Ok(None) };
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        if compressed != 0 || length > MESSAGE_MAX {
            return Err(Refusal::unavailable("an answer that was not asked for"));
        }
        if self.buffer.len() < 5 + length {
            return Ok(None);
        }
        self.buffer.advance(5);
        Ok(Some(self.buffer.split_to(length).freeze()))
    }
}

async fn patiently<T>(step: impl Future<Output = Result<T, Refusal>>) -> Result<T, Refusal> {
    let late = |_| Refusal::unavailable("no answer in time");
    tokio::time::timeout(PATIENCE, step).await.map_err(late)?
}

fn outcome(headers: &HeaderMap) -> Result<(), Refusal> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    match text("grpc-status") {
        None | Some("0") => Ok(()),
        Some(code) => Err(Refusal {
            code: code.parse().unwrap_or(UNAVAILABLE),
            message: text("grpc-message").unwrap_or_default().to_owned(),
        }),
    }
}

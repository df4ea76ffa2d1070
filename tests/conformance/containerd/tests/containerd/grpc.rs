//! A gRPC client as small as the tests need: one connection, calls one after the
//! other, answers that stream.

use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use h2::{RecvStream, client::SendRequest};
use http::{HeaderMap, Request};
use protobuf::Message;
use tokio::{net::UnixStream, runtime::Runtime};

/// Nothing here takes longer, unless it hangs.
const PATIENCE: Duration = Duration::from_secs(45);

/// A connection to containerd.
pub struct Grpc {
    runtime: Runtime,
    sender: SendRequest<Bytes>,
    /// containerd's namespace, where the service has such.
    namespace: Option<String>,
}

/// What was answered instead: gRPC's code and its sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub code: u32,
    pub message: String,
}

/// Answers that keep coming.
pub struct Answers<'a> {
    runtime: &'a Runtime,
    body: RecvStream,
    buffer: BytesMut,
}

impl Grpc {
    pub fn connect(socket: &str, namespace: Option<&str>) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let sender = runtime.block_on(async {
            let stream = UnixStream::connect(socket).await.unwrap();
            let (sender, connection) = h2::client::handshake(stream).await.unwrap();
            tokio::spawn(connection);
            sender.ready().await.unwrap()
        });
        Self { runtime, sender, namespace: namespace.map(str::to_owned) }
    }

    /// One question, one answer. `method` is `package.Service/Method`.
    pub fn call<A: Message>(&self, method: &str, question: &impl Message) -> Result<A, Refusal> {
        let answers = self.runtime.block_on(async {
            let call = async {
                let (body, headers) = self.ask(method, question).await?;
                let mut buffer = BytesMut::new();
                let answer = next(&mut buffer, body, headers).await?;
                Ok::<_, Refusal>(answer)
            };
            let hung = || Refusal { code: 4, message: format!("{method}: no answer") };
            tokio::time::timeout(PATIENCE, call).await.map_err(|_| hung())?
        })?;
        Ok(A::parse_from_bytes(&answers).unwrap())
    }

    /// One question, answers until the connection is dropped. A server says
    /// nothing before its first answer: `nudge` makes it have one, again and again.
    pub fn follow(
        &self,
        method: &str,
        question: &impl Message,
        mut nudge: impl FnMut(),
    ) -> Result<Answers<'_>, Refusal> {
        let mut asked = std::pin::pin!(self.ask(method, question));
        loop {
            let turn = Duration::from_millis(20);
            let heard = async { tokio::time::timeout(turn, &mut asked).await };
            if let Ok(heard) = self.runtime.block_on(heard) {
                let (body, headers) = heard?;
                refused(&headers)?;
                return Ok(Answers { runtime: &self.runtime, body, buffer: BytesMut::new() });
            }
            nudge();
        }
    }

    async fn ask(
        &self,
        method: &str,
        question: &impl Message,
    ) -> Result<(RecvStream, HeaderMap), Refusal> {
        let mut request = Request::post(format!("http://containerd/{method}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        if let Some(namespace) = &self.namespace {
            request = request.header("containerd-namespace", namespace);
        }
        let content = question.write_to_bytes().unwrap();
        let mut frame = vec![0];
        frame.extend(u32::try_from(content.len()).unwrap().to_be_bytes());
        frame.extend(content);
        let mut sender = self.sender.clone().ready().await.map_err(broken)?;
        let (response, mut body) =
            sender.send_request(request.body(()).unwrap(), false).map_err(broken)?;
        body.send_data(frame.into(), true).map_err(broken)?;
        let (head, body) = response.await.map_err(broken)?.into_parts();
        Ok((body, head.headers))
    }
}

impl Answers<'_> {
    /// The next one; whoever waits for it does so as long as it takes.
    pub fn next<A: Message>(&mut self) -> A {
        let bytes = self.runtime.block_on(async {
            loop {
                if let Some(message) = whole(&mut self.buffer) {
                    return message;
                }
                let chunk = self.body.data().await.expect("the stream goes on").unwrap();
                let _ = self.body.flow_control().release_capacity(chunk.len());
                self.buffer.extend_from_slice(&chunk);
            }
        });
        A::parse_from_bytes(&bytes).unwrap()
    }
}

async fn next(
    buffer: &mut BytesMut,
    mut body: RecvStream,
    headers: HeaderMap,
) -> Result<Bytes, Refusal> {
    refused(&headers)?;
    while let Some(chunk) = body.data().await {
        let chunk = chunk.map_err(broken)?;
        let _ = body.flow_control().release_capacity(chunk.len());
        buffer.extend_from_slice(&chunk);
    }
    refused(&body.trailers().await.map_err(broken)?.unwrap_or_default())?;
    Ok(whole(buffer).expect("an answer"))
}

/// Takes a message off the buffer, once all of it is there.
fn whole(buffer: &mut BytesMut) -> Option<Bytes> {
    let length: [u8; 4] = buffer.get(1..5)?.try_into().unwrap();
    let length = u32::from_be_bytes(length) as usize;
    if buffer.len() < 5 + length {
        return None;
    }
    buffer.advance(5);
    Some(buffer.split_to(length).freeze())
}

fn refused(headers: &HeaderMap) -> Result<(), Refusal> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    match text("grpc-status") {
        None | Some("0") => Ok(()),
        Some(code) => Err(Refusal {
            code: code.parse().unwrap(),
            message: text("grpc-message").unwrap_or_default().replace("%20", " "),
        }),
    }
}

fn broken(error: h2::Error) -> Refusal {
    Refusal { code: 14, message: error.to_string() }
}

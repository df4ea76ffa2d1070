//! A blob as a stream that outlives broken connections.
//!
//! ```text
//!           ┌──────────── broken, short, stalled, 5xx, 429: pause ───────────┐
//!           ▼                                                                │
//!   ask (Range: bytes=N-, If-Range: validator) ──► receive ──► N == size ──► end
//!     │ 206 from N, same validator   go on                      │ more bytes: error
//!     │ 200, same validator          skip N bytes
//!     │ 200/206, other validator     Restart, N = 0
//!     │ 416                          Restart, N = 0, once
//!     └ 404, denied                  the next endpoint, else error
//! ```

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use futures_util::{Stream, stream};
use knarr_model::Reference;
use reqwest::{
    Method, Response, Url,
    header::{CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderMap, HeaderValue},
};

use crate::{
    Auth, Chunk, Descriptor, Error, Result,
    client::{Attempt, Core, Retry, named, retry_after, scope, url},
    endpoint::Endpoint,
    transport::{Request, reason, transport},
};

/// Bytes that count as progress, after which tries are counted anew.
const PROGRESS: u64 = 64 << 10;
/// How often a changed validator may void what was received.
const RESTARTS: u32 = 2;

pub(crate) fn stream(
    core: Arc<Core>,
    reference: &Reference,
    descriptor: &Descriptor,
    offset: u64,
    auth: &Auth,
) -> impl Stream<Item = Result<Chunk>> + Send + use<> {
    let transfer = Transfer {
        endpoints: core.endpoints(reference).map(|all| all.into_iter().collect()),
        core,
        reference: reference.clone(),
        descriptor: descriptor.clone(),
        auth: auth.clone(),
        position: offset,
        skip: 0,
        body: None,
        validator: None,
        failures: 0,
        progress: 0,
        restarts: 0,
        ended: false,
    };
    stream::unfold(transfer, |mut transfer| async move {
        let item = transfer.next().await?;
        transfer.ended |= item.is_err();
        Some((item, transfer))
    })
}

struct Transfer {
    core: Arc<Core>,
    endpoints: Result<std::collections::VecDeque<Endpoint>>,
    reference: Reference,
    descriptor: Descriptor,
    auth: Auth,
    /// Bytes that the consumer has.
    position: u64,
    /// Bytes of the current body that the consumer has already.
    skip: u64,
    body: Option<Body>,
    /// Of the content that was received from the current endpoint.
    validator: Option<HeaderValue>,
    failures: u32,
    /// Bytes since the last failure.
    progress: u64,
    restarts: u32,
    ended: bool,
}

struct Body {
    response: Response,
    url: Url,
    /// When and where the rate was last looked at.
    since: Instant,
    received: u64,
}

/// What an answer to a request for a range means.
enum Opened {
    /// Bytes from the position on follow.
    Here,
    /// What the consumer has is void; bytes from 0 on follow.
    Void,
    /// What the consumer has is void; ask again.
    VoidAskAgain,
}

impl Transfer {
    async fn next(&mut self) -> Option<Result<Chunk>> {
        if self.ended {
            return None;
        }
        loop {
            let outcome = match &mut self.body {
                None if self.position == self.descriptor.size => return None,
                None => self.open().await,
                Some(_) => match self.receive().await {
                    Ok(None) => {
                        self.ended = true;
                        return None;
                    }
                    Ok(Some(piece)) if piece.is_empty() => continue,
                    Ok(Some(piece)) => return Some(Ok(Chunk::Data(piece))),
                    Err(attempt) => Err(attempt),
                },
            };
            match outcome {
                Ok(Opened::Here) => {}
                Ok(Opened::Void | Opened::VoidAskAgain) => return Some(self.restart()),
                Err(attempt) => {
                    if let Err(error) = self.recover(attempt).await {
                        return Some(Err(error));
                    }
                }
            }
        }
    }

    fn restart(&mut self) -> Result<Chunk> {
        self.restarts += 1;
        if self.restarts > RESTARTS {
            return Err(self.mismatch(
                "validator",
                "one and the same content",
                "another each time",
            ));
        }
        Ok(Chunk::Restart)
    }

    /// Pauses, or goes to the next endpoint, or gives up.
    async fn recover(&mut self, attempt: Attempt) -> Result<()> {
        self.body = None;
        let Attempt { error, retry } = attempt;
        let endpoints = match &mut self.endpoints {
            Ok(endpoints) => endpoints,
            Err(_) => return Err(error),
        };
        let Some(current) = endpoints.front() else { return Err(error) };
        if self.progress >= PROGRESS {
            self.failures = 0;
        }
        self.progress = 0;
        self.failures += 1;
        tracing::debug!(%error, position = self.position, failures = self.failures, "blob transfer broke");
        match retry {
            Retry::After(asked) if self.failures < self.core.attempts(current) => {
                self.core.pause(self.failures, asked).await;
                Ok(())
            }
            _ if endpoints.len() > 1 => {
                endpoints.pop_front();
                (self.failures, self.validator) = (0, None);
                Ok(())
            }
            _ => Err(error),
        }
    }

    async fn open(&mut self) -> std::result::Result<Opened, Attempt> {
        let endpoint = match &self.endpoints {
            Ok(endpoints) => endpoints.front().cloned(),
            Err(error) => return Err(Attempt::from(Error::Config(error.to_string()))),
        };
        let Some(endpoint) = endpoint else {
            return Err(Error::Config("no registry".into()).into());
        };
        if self.position > self.descriptor.size {
            return Err(self
                .mismatch("size", self.descriptor.size, format!("{} already stored", self.position))
                .into());
        }
        let url = url(&endpoint, &self.reference, "blobs", &self.descriptor.digest.to_string())?;
        // If-Range takes strong validators only (RFC 9110, section 13.1.5).
        let strong = self.validator.clone().filter(|tag| tag.as_bytes().starts_with(b"\""));
        let request = Request {
            range: (self.position > 0).then_some((self.position, strong)),
            ..Request::get(url.clone())
        };
        let response = self
            .core
            .send(&endpoint, request, &scope(&self.reference), &self.auth)
            .await
            .map_err(|error| self.denied(error))?;
        let status = response.status().as_u16();
        let tag = response.headers().get(ETAG).cloned();
        let changed = self.validator.is_some() && tag.is_some() && self.validator != tag;
        let size = self.descriptor.size;
        let opened = match status {
            206 if self.position > 0 => {
                let (first, total) = content_range(response.headers());
                if changed || total.is_some_and(|total| total != size) {
                    self.forget();
                    return Ok(Opened::VoidAskAgain);
                }
                if first != Some(self.position) {
                    return Err(Error::Protocol {
                        host: url.host_str().unwrap_or_default().to_owned(),
                        what: "another range than it was asked for".into(),
                    }
                    .into());
                }
                Opened::Here
            }
            200 | 206 => {
                let length = content_length(response.headers());
                if status == 206 || length.is_some_and(|length| length != size) {
                    let got = length.map_or("a part".to_owned(), |length| length.to_string());
                    return Err(self.mismatch("blob size", size, got).into());
                }
                if changed {
                    self.forget();
                    Opened::Void
                } else {
                    self.skip = self.position;
                    Opened::Here
                }
            }
            416 if self.position > 0 => {
                self.forget();
                return Ok(Opened::VoidAskAgain);
            }
            404 => {
                return Err(Error::BlobUnknown {
                    reference: self.reference.familiar_name(),
                    digest: self.descriptor.digest,
                }
                .into());
            }
            _ => {
                let asked = retry_after(response.headers());
                let status = response.status();
                let error = self.core.status(&Method::GET, &url, status, response).await;
                let mut attempt = self.denied(error);
                if let Retry::After(pause) = &mut attempt.retry {
                    *pause = asked;
                }
                return Err(attempt);
            }
        };
        self.validator = tag.or(self.validator.take());
        self.body = Some(Body { url, response, since: Instant::now(), received: 0 });
        Ok(opened)
    }

    fn forget(&mut self) {
        (self.position, self.skip, self.validator, self.body) = (0, 0, None, None);
    }

    /// A redirect's target that answers 401 or 403 is an expired signature as
    /// often as a refusal: nothing about the repository follows from it alone.
    fn denied(&self, error: Error) -> Attempt {
        match error {
            Error::Status { status: 401 | 403, .. } => named(error, &self.reference).into(),
            other => other.into(),
        }
    }

    /// The next new bytes; none when the blob is complete.
    async fn receive(&mut self) -> std::result::Result<Option<Bytes>, Attempt> {
        let timing = self.core.transport.config().timing.clone();
        let size = self.descriptor.size;
        let Some(body) = &mut self.body else { return Ok(None) };
        let broken = |url: &Url, why: String| Attempt::from(transport(&Method::GET, url, why));
        let complete = self.position == size && self.skip == 0;
        let mut piece = match tokio::time::timeout(timing.stall, body.response.chunk()).await {
            Ok(Ok(Some(piece))) => piece,
            // Whatever happens behind the last byte is of no interest.
            _ if complete => return Ok(None),
            Ok(Ok(None)) => {
                let why = format!("ended after {} of {size} bytes", self.position);
                return Err(broken(&body.url, why));
            }
            Ok(Err(error)) => return Err(broken(&body.url, reason(&error))),
            Err(_) => {
                let why =
                    format!("stalled: nothing came for {} seconds", timing.stall.as_secs_f32());
                return Err(broken(&body.url, why));
            }
        };
        body.received += piece.len() as u64;
        let elapsed = body.since.elapsed();
        if elapsed >= timing.stall {
            let least = (timing.min_rate as f64 * elapsed.as_secs_f64()) as u64;
            if body.received < least {
                let why = format!("stalled: less than {} bytes a second came", timing.min_rate);
                return Err(broken(&body.url, why));
            }
            (body.since, body.received) = (Instant::now(), 0);
        }
        if self.skip > 0 {
            let skipped = self.skip.min(piece.len() as u64);
            self.skip -= skipped;
            piece = piece.slice(skipped as usize..);
        }
        if piece.len() as u64 > size - self.position {
            return Err(self.mismatch("blob size", size, "more").into());
        }
        self.position += piece.len() as u64;
        self.progress += piece.len() as u64;
        Ok(Some(piece))
    }

    fn mismatch(&self, what: &'static str, want: impl ToString, got: impl ToString) -> Error {
        Error::Mismatch {
            what,
            reference: format!("{}@{}", self.reference.familiar_name(), self.descriptor.digest),
            want: want.to_string(),
            got: got.to_string(),
        }
    }
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// First byte and whole length of `bytes 5-9/10`.
fn content_range(headers: &HeaderMap) -> (Option<u64>, Option<u64>) {
    let value = headers.get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
    let Some((range, total)) =
        value.and_then(|value| value.trim().strip_prefix("bytes ")?.split_once('/'))
    else {
        return (None, None);
    };
    (range.split_once('-').and_then(|(first, _)| first.trim().parse().ok()), total.parse().ok())
}

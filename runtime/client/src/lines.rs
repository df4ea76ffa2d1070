//! JSON values that flow, one a line.

use bytes::BytesMut;
use futures_util::{Stream, stream};
use http_body_util::BodyExt as _;
use hyper::{Response, body::Incoming};
use serde::de::DeserializeOwned;

use crate::{Result, protocol};

/// The longest line that is believed: progress and events are far below.
const LONGEST: usize = 16 << 20;

/// Reads the body of an answer line by line.
pub(crate) fn json<T: DeserializeOwned>(
    answer: Response<Incoming>,
) -> impl Stream<Item = Result<T>> + Unpin + use<T> {
    // How much of the buffer has no end of a line for certain.
    let state = (answer.into_body(), BytesMut::new(), 0);
    Box::pin(stream::try_unfold(state, |(mut body, mut buffer, mut seen)| async move {
        loop {
            if let Some(end) = buffer[seen..].iter().position(|byte| *byte == b'\n') {
                let line = buffer.split_to(seen + end + 1);
                seen = 0;
                if line.iter().all(u8::is_ascii_whitespace) {
                    continue;
                }
                let value = serde_json::from_slice(&line).map_err(protocol)?;
                return Ok(Some((value, (body, buffer, seen))));
            }
            seen = buffer.len();
            if buffer.len() > LONGEST {
                return Err(protocol("a line of the answer has no end"));
            }
            match body.frame().await {
                Some(frame) => {
                    if let Ok(data) = frame.map_err(protocol)?.into_data() {
                        buffer.extend_from_slice(&data);
                    }
                }
                None if buffer.iter().all(u8::is_ascii_whitespace) => return Ok(None),
                None => {
                    let value = serde_json::from_slice(&buffer).map_err(protocol)?;
                    return Ok(Some((value, (body, BytesMut::new(), 0))));
                }
            }
        }
    }))
}

/// Reads the body of an answer to a request that this crate's users sent.
pub fn read_lines<T: DeserializeOwned>(
    answer: Response<Incoming>,
) -> impl Stream<Item = Result<T>> + Unpin + use<T> {
    json(answer)
}

//! `GET /containers/{id}/logs`.

use std::io;

use axum::{
    body::Body,
    extract::{Path, State},
    response::{IntoResponse, Response},
};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use http::header;
use jiff::Timestamp;
use knarr_docker::StreamKind;
use knarr_engine::{LogLine, LogOptions, OutputStream};

use crate::{
    Api,
    error::{ApiError, Result},
    query::Query,
    streams::content_type,
};

/// What the container wrote, in frames (raw with a terminal).
pub(crate) async fn logs(
    State(api): State<Api>,
    Path(id): Path<String>,
    query: Query,
) -> Result<Response> {
    let options = LogOptions {
        follow: query.flag("follow"),
        stdout: query.flag("stdout"),
        stderr: query.flag("stderr"),
        since: time(&query, "since")?,
        until: time(&query, "until")?,
        tail: match query.text("tail") {
            None | Some("all") => None,
            // Docker reads anything else that is no number as all.
            Some(lines) => lines.parse().ok(),
        },
    };
    if !options.stdout && !options.stderr {
        return Err(ApiError::invalid("Bad parameters: you must choose at least one stream"));
    }
    let timestamps = query.flag("timestamps");
    let logs = api.engine.logs(&id, options).await?;
    let tty = logs.tty;
    let body = logs.lines.map(move |line| match line {
        Ok(line) => Ok(render(&line, timestamps, tty)),
        Err(error) => Err(io::Error::other(error)),
    });
    Ok(([(header::CONTENT_TYPE, content_type(tty))], Body::from_stream(body)).into_response())
}

fn render(line: &LogLine, timestamps: bool, tty: bool) -> Bytes {
    let prefix = if timestamps { line.time.len() + 1 } else { 0 };
    let length = prefix + line.bytes.len();
    let mut bytes = BytesMut::with_capacity(length + 8);
    if !tty {
        let kind = match line.stream {
            OutputStream::Stdout => StreamKind::Stdout,
            OutputStream::Stderr => StreamKind::Stderr,
        };
        bytes.extend_from_slice(&kind.header(u32::try_from(length).unwrap_or(u32::MAX)));
    }
    if timestamps {
        bytes.extend_from_slice(line.time.as_bytes());
        bytes.extend_from_slice(b" ");
    }
    bytes.extend_from_slice(&line.bytes);
    bytes.freeze()
}

/// Seconds since 1970 with an optional fraction, as clients send it, or RFC 3339;
/// 0 is as good as nothing.
pub(crate) fn time(query: &Query, name: &str) -> Result<Option<Timestamp>> {
    match query.text(name) {
        None | Some("0") => Ok(None),
        Some(text) => parse_time(text).map(Some).ok_or_else(|| {
            ApiError::invalid(format!("invalid value for {name:?}: {}", crate::error::short(text)))
        }),
    }
}

pub(crate) fn parse_time(text: &str) -> Option<Timestamp> {
    if let Ok(time) = text.parse::<Timestamp>() {
        return Some(time);
    }
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    if fraction.len() > 9 || !fraction.bytes().all(|c| c.is_ascii_digit()) {
        return None;
    }
    let nanoseconds: i32 = format!("{fraction:0<9}").parse().ok()?;
    let seconds: i64 = seconds.parse().ok()?;
    Timestamp::new(seconds, if seconds < 0 { -nanoseconds } else { nanoseconds }).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_as_clients_send_them() {
        let text = |text: &str| parse_time(text).map(|time| time.to_string());
        assert_eq!(text("1136073845.000000001").unwrap(), "2006-01-01T00:04:05.000000001Z");
        assert_eq!(text("1136073845").unwrap(), "2006-01-01T00:04:05Z");
        assert_eq!(text("1136073845.5").unwrap(), "2006-01-01T00:04:05.5Z");
        assert_eq!(text("2006-01-01T00:04:05+01:00").unwrap(), "2005-12-31T23:04:05Z");
        for bad in ["", "x", "1.x", "1.0000000001", "99999999999999999999"] {
            assert_eq!(text(bad), None, "{bad}");
        }
    }

    #[test]
    fn lines_have_a_frame_and_perhaps_a_time() {
        let line = LogLine {
            stream: OutputStream::Stderr,
            time: "2006-01-01T00:04:05Z".into(),
            bytes: Bytes::from_static(b"hi\n"),
        };
        assert_eq!(&render(&line, false, false)[..], b"\x02\0\0\0\0\0\0\x03hi\n");
        assert_eq!(&render(&line, true, true)[..], b"2006-01-01T00:04:05Z hi\n");
        assert_eq!(render(&line, true, false)[7], 24);
    }
}

//! Query strings and bodies, read as Docker reads them.

use std::collections::BTreeMap;

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::error::{ApiError, Result};

/// The most bytes of a JSON body (CATALOGUE A02).
pub(crate) const MAX_JSON: usize = 4 << 20;

/// Parameters of a query string; of several values of one name all are kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Query(BTreeMap<String, Vec<String>>);

impl Query {
    /// Reads what is behind the `?`.
    pub(crate) fn parse(text: Option<&str>) -> Self {
        let mut query = BTreeMap::<String, Vec<String>>::new();
        for pair in text.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            query.entry(decode(key)).or_default().push(decode(value));
        }
        Self(query)
    }

    /// The first value of a name; empty counts as absent.
    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.first().map(String::as_str).filter(|value| !value.is_empty())
    }

    /// All values of a name.
    pub(crate) fn all(&self, key: &str) -> &[String] {
        self.0.get(key).map_or(&[], Vec::as_slice)
    }

    /// Docker's truth: all but these words (moby `httputils.BoolValue`).
    pub(crate) fn flag(&self, key: &str) -> bool {
        self.text(key).is_some_and(is_true)
    }

    /// The same with another default.
    pub(crate) fn flag_or(&self, key: &str, default: bool) -> bool {
        self.text(key).map_or(default, is_true)
    }

    /// A number.
    pub(crate) fn number(&self, key: &str) -> Result<Option<i64>> {
        let bad = |value: &str| {
            ApiError::invalid(format!(
                "strconv.Atoi: parsing {value:?}: invalid syntax in parameter {key}"
            ))
        };
        self.text(key).map(|value| value.parse().map_err(|_| bad(value))).transpose()
    }
}

fn is_true(value: &str) -> bool {
    !matches!(value.trim().to_ascii_lowercase().as_str(), "" | "0" | "no" | "false" | "none")
}

/// Undoes percent encoding; `+` is a space. What is no UTF-8 is replaced.
fn decode(text: &str) -> String {
    let digit = |byte: Option<&u8>| byte.and_then(|c| char::from(*c).to_digit(16));
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        at += 1;
        match byte {
            b'+' => decoded.push(b' '),
            b'%' => match (digit(bytes.get(at)), digit(bytes.get(at + 1))) {
                (Some(high), Some(low)) => {
                    decoded.push((high << 4 | low) as u8);
                    at += 2;
                }
                _ => decoded.push(b'%'),
            },
            _ => decoded.push(byte),
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

/// The whole body, up to a limit.
pub(crate) async fn body(body: Body, limit: usize) -> Result<Bytes> {
    match Limited::new(body, limit).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => {
            Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "http: request body too large"))
        }
        Err(error) => Err(ApiError::invalid(format!("reading the request body: {error}"))),
    }
}

/// A JSON body; an empty one is `None`.
pub(crate) async fn optional_json<T: DeserializeOwned>(
    headers: &HeaderMap,
    content: Body,
) -> Result<Option<T>> {
    let bytes = body(content, MAX_JSON).await?;
    if bytes.is_empty() {
        return Ok(None);
    }
    check_content_type(headers)?;
    parse_json(&bytes).map(Some)
}

/// A JSON body that must be there.
pub(crate) async fn json<T: DeserializeOwned>(headers: &HeaderMap, content: Body) -> Result<T> {
    optional_json(headers, content)
        .await?
        .ok_or_else(|| ApiError::invalid("invalid JSON: got EOF while reading request body"))
}

/// Docker's own check (moby `httputils.CheckForJSON`).
fn check_content_type(headers: &HeaderMap) -> Result<()> {
    let Some(value) = headers.get(header::CONTENT_TYPE) else { return Ok(()) };
    let text = String::from_utf8_lossy(value.as_bytes());
    let kind = text.split(';').next().unwrap_or_default().trim();
    if kind.is_empty() || kind.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    Err(ApiError::invalid(format!(
        "unsupported Content-Type header ({}): must be 'application/json'",
        text.chars().filter(|c| !c.is_control()).take(80).collect::<String>()
    )))
}

fn parse_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    let value: Value = serde_json::from_slice(bytes)
        .map_err(|error| ApiError::invalid(format!("invalid JSON: {error}")))?;
    if has_nul(&value) {
        return Err(ApiError::invalid("invalid JSON: a string contains a NUL character"));
    }
    serde_json::from_value(value)
        .map_err(|error| ApiError::invalid(format!("invalid JSON: {error}")))
}

/// No string of a request may hold a NUL: it would end early in the kernel.
fn has_nul(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('\0'),
        Value::Array(items) => items.iter().any(has_nul),
        Value::Object(fields) => {
            fields.iter().any(|(key, value)| key.contains('\0') || has_nul(value))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn query_strings_read_as_docker_reads_them() {
        let query =
            Query::parse(Some("all=1&size=false&x=a%2Fb+c&names=a&names=b&empty=&t=-1&%zz=q"));
        assert!(query.flag("all"));
        assert!(!query.flag("size"));
        assert!(!query.flag("nothing"));
        assert!(query.flag_or("nothing", true));
        assert_eq!(query.text("x"), Some("a/b c"));
        assert_eq!(query.text("empty"), None);
        assert_eq!(query.all("names"), ["a", "b"]);
        assert_eq!(query.number("t").unwrap(), Some(-1));
        assert!(query.number("x").is_err());
        assert_eq!(query.text("%zz"), Some("q"));
    }

    #[tokio::test]
    async fn a02_bodies_are_bounded_and_checked() {
        let json_headers = HeaderMap::from_iter([(
            header::CONTENT_TYPE,
            "application/json; charset=utf-8".parse().unwrap(),
        )]);
        let value: Value = json(&json_headers, Body::from("{\"a\":1}")).await.unwrap();
        assert_eq!(value["a"], 1);
        let status = |result: Result<Value>| result.unwrap_err().status.as_u16();
        assert_eq!(status(json(&json_headers, Body::empty()).await), 400);
        assert_eq!(status(json(&json_headers, Body::from("{")).await), 400);
        assert_eq!(status(json(&json_headers, Body::from("{\"a\":\"x\\u0000\"}")).await), 400);
        let deep = "[".repeat(100_000);
        assert_eq!(status(json(&json_headers, Body::from(deep)).await), 400);
        let big = vec![b' '; MAX_JSON + 1];
        assert_eq!(status(json(&json_headers, Body::from(big)).await), 413);
        let text = HeaderMap::from_iter([(header::CONTENT_TYPE, "text/plain".parse().unwrap())]);
        assert_eq!(status(json(&text, Body::from("{}")).await), 400);
    }
}

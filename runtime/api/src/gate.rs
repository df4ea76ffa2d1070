//! What every request passes: versions, `Host` and `Origin`, Docker's headers;
//! and what is refused by name.

use axum::{
    body::Body,
    extract::{FromRequestParts, Request},
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderValue, StatusCode, Uri, header, request::Parts, uri::PathAndQuery};
use knarr_docker::API_VERSION;
use tower::ServiceExt;

use crate::{
    Api,
    error::ApiError,
    query::Query,
    version::{ApiVersion, negotiate},
};

/// How a request came here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    /// The socket's permissions decided who may speak.
    Unix,
    /// Anybody on this machine may speak, web pages included.
    Tcp,
}

/// Answers one request.
pub(crate) async fn handle(api: Api, transport: Transport, request: Request) -> Response {
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let mut response = match admit(transport, request) {
        // The router was set when the API was made.
        Ok(request) => match api.router.get().cloned() {
            Some(router) => router.oneshot(request).await.into_response(),
            None => ApiError::not_found("page not found").into_response(),
        },
        Err(error) => error.into_response(),
    };
    // Never the query or a header: they may hold secrets (CATALOGUE A10).
    tracing::debug!(%method, path, status = response.status().as_u16(), "request");
    let headers = response.headers_mut();
    let server = concat!("Knarr/", env!("CARGO_PKG_VERSION"), " (linux)");
    for (name, value) in [
        ("api-version", API_VERSION),
        ("docker-experimental", "false"),
        ("ostype", "linux"),
        ("server", server),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

fn admit(transport: Transport, mut request: Request) -> Result<Request, ApiError> {
    check_origin(transport, request.headers())?;
    if request.uri().path().contains('\0') {
        return Err(ApiError::invalid("invalid path"));
    }
    let (version, path) = negotiate(request.uri().path())?;
    let path = match request.uri().query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    let path: PathAndQuery = path.parse().map_err(|_| ApiError::invalid("invalid path"))?;
    *request.uri_mut() = Uri::from(path);
    request.extensions_mut().insert(version);
    Ok(request)
}

/// A web page may make a browser speak to a local port: it says so in `Origin`,
/// and by the name that it resolved in `Host` (CATALOGUE A01).
fn check_origin(transport: Transport, headers: &HeaderMap) -> Result<(), ApiError> {
    let forbidden = |why: &str| Err(ApiError::new(StatusCode::FORBIDDEN, why));
    if headers.contains_key(header::ORIGIN) {
        return forbidden("requests of web pages are refused");
    }
    if transport == Transport::Unix {
        return Ok(());
    }
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    match is_loopback(host) {
        true => Ok(()),
        false => forbidden("requests for another host are refused"),
    }
}

fn is_loopback(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|c| c.is_ascii_digit()) => name,
        _ => host,
    };
    let name = name.trim_matches(['[', ']']);
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

impl<S: Sync> FromRequestParts<S> for Query {
    type Rejection = std::convert::Infallible;
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        Ok(Self::parse(parts.uri.query()))
    }
}

impl<S: Sync> FromRequestParts<S> for ApiVersion {
    type Rejection = std::convert::Infallible;
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        Ok(parts.extensions.get().copied().unwrap_or_else(Self::newest))
    }
}

/// Answers with JSON.
pub(crate) fn json<T: serde::Serialize>(value: &T) -> Response {
    json_with(StatusCode::OK, value)
}

/// Answers with JSON and another status.
pub(crate) fn json_with<T: serde::Serialize>(status: StatusCode, value: &T) -> Response {
    match serde_json::to_vec(value) {
        Ok(mut body) => {
            body.push(b'\n');
            (status, [(header::CONTENT_TYPE, "application/json")], Body::from(body)).into_response()
        }
        Err(error) => {
            ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response()
        }
    }
}

/// Unknown paths and methods.
pub(crate) async fn not_found() -> ApiError {
    ApiError::not_found("page not found")
}

macro_rules! refused {
    ($($name:ident: $what:literal),* $(,)?) => {
        $( pub(crate) async fn $name() -> ApiError { ApiError::not_supported($what) } )*
    };
}

refused! {
    no_build: "building images",
    no_commit: "committing a container",
    no_copy: "copying files from and to containers",
    no_diff: "listing changes of a container",
    no_export: "exporting a container",
    no_plugin: "managing plugins",
    no_save: "saving images",
    no_search: "searching a registry",
    no_websocket: "attaching over a web socket",
}

/// The words that clients know.
pub(crate) async fn no_swarm() -> ApiError {
    ApiError::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "This node is not a swarm manager. Knarr does not support swarm mode.",
    )
}

/// There are none, which is no error.
pub(crate) async fn no_plugins() -> Response {
    json(&[(); 0])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a01_web_pages_are_refused() {
        let headers = |name: header::HeaderName, value: &'static str| {
            HeaderMap::from_iter([(name, HeaderValue::from_static(value))])
        };
        let origin = headers(header::ORIGIN, "http://evil.example");
        assert_eq!(check_origin(Transport::Unix, &origin).unwrap_err().status, 403);
        for (host, fine) in [
            ("localhost:2375", true),
            ("127.0.0.1:2375", true),
            ("[::1]:2375", true),
            ("evil.example:2375", false),
            ("127.0.0.1.evil.example", false),
            ("", false),
        ] {
            let result = check_origin(Transport::Tcp, &headers(header::HOST, host));
            assert_eq!(result.is_ok(), fine, "{host}");
        }
        assert!(
            check_origin(Transport::Unix, &headers(header::HOST, "api.moby.localhost")).is_ok()
        );
    }
}

//! The client: endpoints in order, authorization, retries, manifests.

use std::{sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::BoxStream};
use knarr_model::{Digest, Reference};
use reqwest::{
    Method, Response, StatusCode, Url,
    header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE},
};
use sha2::Digest as _;

use crate::{
    Auth, Chunk, Descriptor, Error, Lookup, MANIFEST_LIMIT, MANIFEST_TYPES, Manifest, Registry,
    Result, System, blob, challenge,
    endpoint::{Endpoint, authority, mirror, origin},
    token::{Realm, Tokens},
    transport::{Answer, Request, Transport, shown, transport, verb},
};

/// Which registries there are beside the references' own, and how patient to be.
#[derive(Debug, Clone)]
pub struct Config {
    /// Asked before Docker Hub for its repositories, in this order
    /// (`registry-mirrors`): URLs, `http://` where plain HTTP is meant.
    pub mirrors: Vec<String>,
    /// Hosts, `host:port` or networks that may be spoken to without TLS or
    /// with a certificate that does not verify (`insecure-registries`).
    pub insecure: Vec<String>,
    /// Further root certificates, PEM.
    pub certificates: Vec<Vec<u8>>,
    /// How patient to be.
    pub timing: Timing,
    /// How names of hosts become addresses; the system's way unless said.
    pub lookup: Arc<dyn Lookup>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            mirrors: Vec::new(),
            insecure: Vec::new(),
            certificates: Vec::new(),
            timing: Timing::default(),
            lookup: Arc::new(System),
        }
    }
}

/// How patient the client is.
#[derive(Debug, Clone, PartialEq)]
pub struct Timing {
    /// TCP and TLS, 10 s.
    pub connect: Duration,
    /// Silence after which a transfer counts as stalled, 30 s.
    pub stall: Duration,
    /// Bytes a second, over a stall time, below which it counts as stalled too; 256.
    pub min_rate: u64,
    /// Tries without progress before giving up, 5.
    pub attempts: u32,
    /// Pause before the second try, 500 ms; doubled for each further one.
    pub backoff: Duration,
    /// The longest pause, also where the registry asks for more; 30 s.
    pub backoff_limit: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            stall: Duration::from_secs(30),
            min_rate: 256,
            attempts: 5,
            backoff: Duration::from_millis(500),
            backoff_limit: Duration::from_secs(30),
        }
    }
}

/// A client of any number of registries. Clones share connections and tokens.
#[derive(Debug, Clone)]
pub struct Client {
    pub(crate) core: Arc<Core>,
}

#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) transport: Transport,
    tokens: Tokens,
    mirrors: Vec<Endpoint>,
}

impl Client {
    /// Makes a client; opens nothing yet.
    ///
    /// # Errors
    /// When a mirror is no URL.
    pub fn new(config: Config) -> Result<Self> {
        let mirrors = config.mirrors.iter().map(|text| mirror(text)).collect::<Result<_>>()?;
        let transport = Transport::new(config);
        Ok(Self { core: Arc::new(Core { transport, tokens: Tokens::default(), mirrors }) })
    }
}

impl Registry for Client {
    fn check<'a>(&'a self, domain: &'a str, auth: &'a Auth) -> BoxFuture<'a, Result<()>> {
        async move {
            let base = origin(domain)?;
            let endpoint = Endpoint { base, fixed_scheme: false, mirror: false };
            let url =
                endpoint.base.join("v2/").map_err(|error| Error::Config(error.to_string()))?;
            let answer = self.core.send(&endpoint, Request::get(url.clone()), "", auth).await?;
            match answer.status() {
                status if status.is_success() => Ok(()),
                status => Err(self.core.status(&Method::GET, &url, status, answer).await),
            }
        }
        .boxed()
    }

    fn resolve<'a>(
        &'a self,
        reference: &'a Reference,
        auth: &'a Auth,
    ) -> BoxFuture<'a, Result<Manifest>> {
        let name = reference.tag_or_digest();
        let want = reference.digest();
        async move { self.core.manifest(reference, &name, want, None, auth).await }.boxed()
    }

    fn manifest<'a>(
        &'a self,
        reference: &'a Reference,
        descriptor: &'a Descriptor,
        auth: &'a Auth,
    ) -> BoxFuture<'a, Result<Bytes>> {
        async move {
            let name = descriptor.digest.to_string();
            let (digest, size) = (Some(descriptor.digest), Some(descriptor.size));
            Ok(self.core.manifest(reference, &name, digest, size, auth).await?.bytes)
        }
        .boxed()
    }

    fn blob(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
        offset: u64,
        auth: &Auth,
    ) -> BoxStream<'static, Result<Chunk>> {
        blob::stream(self.core.clone(), reference, descriptor, offset, auth).boxed()
    }
}

/// A failure, and whether trying again may help.
pub(crate) struct Attempt {
    pub(crate) error: Error,
    pub(crate) retry: Retry,
}

/// What may be done about a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Retry {
    /// Nothing.
    Never,
    /// The same again after a pause; the registry may have asked for one.
    After(Option<Duration>),
}

impl From<Error> for Attempt {
    fn from(error: Error) -> Self {
        let retry = match &error {
            Error::Transport { .. } => Retry::After(None),
            Error::Status { status: 408 | 429 | 500..=599, .. } => Retry::After(None),
            _ => Retry::Never,
        };
        Self { error, retry }
    }
}

impl Core {
    /// Where a repository may be asked for, in order.
    pub(crate) fn endpoints(&self, reference: &Reference) -> Result<Vec<Endpoint>> {
        let own =
            Endpoint { base: origin(reference.domain())?, fixed_scheme: false, mirror: false };
        let mut all = Vec::new();
        if reference.domain() == "docker.io" {
            all.extend(self.mirrors.iter().cloned());
        }
        all.push(own);
        Ok(all)
    }

    /// The pause before try number `failures` + 1.
    pub(crate) async fn pause(&self, failures: u32, asked: Option<Duration>) {
        let timing = &self.transport.config().timing;
        let own = timing.backoff.saturating_mul(1 << failures.saturating_sub(1).min(16));
        let pause = asked.unwrap_or_default().max(own).min(timing.backoff_limit);
        // Up to a quarter more, so that many clients do not come back at once.
        let spread = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |now| now.subsec_nanos() % 256);
        tokio::time::sleep(pause + pause * spread / 1024).await;
    }

    /// Sends to an endpoint, answering a challenge once. What comes back is
    /// any status but 401.
    pub(crate) async fn send(
        &self,
        endpoint: &Endpoint,
        mut request: Request,
        scope: &str,
        auth: &Auth,
    ) -> Result<Response> {
        let realm = Realm {
            origin: format!("{}://{}", endpoint.base.scheme(), authority(&endpoint.base)),
            scope: scope.to_owned(),
            auth: if endpoint.mirror { Auth::Anonymous } else { auth.clone() },
        };
        let guess = !endpoint.fixed_scheme;
        request.authorization = self.tokens.known(&realm);
        let first = self.transport.send(&request, guess).await?;
        if first.response.status() != StatusCode::UNAUTHORIZED {
            return Ok(first.response);
        }
        if !first.from_origin {
            // Another host's challenge is none of ours (CVE-2020-15157).
            return Err(self.unauthorized(&request, first, "").await);
        }
        self.tokens.forget(&realm);
        let lines: Vec<String> = first
            .response
            .headers()
            .get_all(WWW_AUTHENTICATE)
            .iter()
            .filter_map(|value| value.to_str().ok().map(str::to_owned))
            .collect();
        let challenges = challenge::parse(lines.iter().map(String::as_str));
        let answer = self.tokens.answer(&self.transport, &request.url, &challenges, &realm).await?;
        let Some(header) = answer else {
            return Err(self.unauthorized(&request, first, "no basic auth credentials").await);
        };
        request.authorization = Some(header);
        let second = self.transport.send(&request, guess).await?;
        if second.response.status() == StatusCode::UNAUTHORIZED {
            self.tokens.forget(&realm);
            return Err(self.unauthorized(&request, second, "").await);
        }
        Ok(second.response)
    }

    async fn unauthorized(&self, request: &Request, answer: Answer, why: &str) -> Error {
        let error = self
            .status(&request.method, &request.url, StatusCode::UNAUTHORIZED, answer.response)
            .await;
        match error {
            Error::Status { method, url, status, detail }
                if !why.is_empty() && detail.is_empty() =>
            {
                Error::Status { method, url, status, detail: format!(": {why}") }
            }
            error => error,
        }
    }

    /// The error that a status means, with the registry's words.
    pub(crate) async fn status(
        &self,
        method: &Method,
        url: &Url,
        status: StatusCode,
        response: Response,
    ) -> Error {
        let stall = self.transport.config().timing.stall;
        let text = body(method, response, 64 << 10, stall).await.unwrap_or_default();
        Error::Status {
            method: verb(method),
            url: shown(url),
            status: status.as_u16(),
            detail: detail(&text),
        }
    }

    async fn manifest(
        &self,
        reference: &Reference,
        name: &str,
        want: Option<Digest>,
        size: Option<u64>,
        auth: &Auth,
    ) -> Result<Manifest> {
        let mut outcome = None;
        for endpoint in self.endpoints(reference)? {
            let mut failures = 0;
            let error = loop {
                match self.manifest_once(&endpoint, reference, name, want, size, auth).await {
                    Ok(manifest) => return Ok(manifest),
                    // Nothing has been received yet: who cannot be reached is said at once.
                    Err(Attempt {
                        error: error @ Error::Transport { unreachable: true, .. },
                        ..
                    }) => {
                        break error;
                    }
                    Err(Attempt { error, retry: Retry::After(asked) })
                        if failures + 1 < self.attempts(&endpoint) =>
                    {
                        failures += 1;
                        tracing::debug!(%error, failures, "trying again");
                        self.pause(failures, asked).await;
                    }
                    Err(Attempt { error, .. }) => break error,
                }
            };
            if endpoint.mirror {
                tracing::info!(mirror = %endpoint.base, %error, "mirror does not have it");
            }
            outcome = Some(error);
        }
        // The last is the registry itself: its word counts.
        Err(outcome.unwrap_or_else(|| Error::Config("no registry".into())))
    }

    /// A mirror that fails is left sooner: there is another place to ask.
    pub(crate) fn attempts(&self, endpoint: &Endpoint) -> u32 {
        let attempts = self.transport.config().timing.attempts.max(1);
        if endpoint.mirror { attempts.min(2) } else { attempts }
    }

    async fn manifest_once(
        &self,
        endpoint: &Endpoint,
        reference: &Reference,
        name: &str,
        want: Option<Digest>,
        size: Option<u64>,
        auth: &Auth,
    ) -> std::result::Result<Manifest, Attempt> {
        let url = url(endpoint, reference, "manifests", name)?;
        let request = Request {
            accept: MANIFEST_TYPES.iter().copied().map(HeaderValue::from_static).collect(),
            ..Request::get(url.clone())
        };
        let response = self
            .send(endpoint, request, &scope(reference), auth)
            .await
            .map_err(|error| named(error, reference))?;
        let status = response.status();
        let retry_after = retry_after(response.headers());
        if !status.is_success() {
            let error = self.status(&Method::GET, &url, status, response).await;
            let mut attempt = Attempt::from(named(error, reference));
            if let Retry::After(asked) = &mut attempt.retry {
                *asked = retry_after;
            }
            return Err(attempt);
        }
        let media_type = media_type(response.headers());
        let said = digest_header(response.headers());
        let stall = self.transport.config().timing.stall;
        let bytes = match body(&Method::GET, response, MANIFEST_LIMIT, stall).await {
            Err(Error::TooLarge { limit, .. }) => {
                return Err(Error::TooLarge { reference: reference.familiar(), limit }.into());
            }
            outcome => outcome?,
        };
        let digest = Digest::from_bytes(sha2::Sha256::digest(&bytes).into());
        let mismatch = |what, want: String, got: String| {
            let reference = reference.familiar();
            Attempt::from(Error::Mismatch { what, reference, want, got })
        };
        if let Some(want) = want.or(said)
            && want != digest
        {
            return Err(mismatch("manifest digest", want.to_string(), digest.to_string()));
        }
        let length = bytes.len() as u64;
        if let Some(size) = size
            && size != length
        {
            return Err(mismatch("manifest size", size.to_string(), length.to_string()));
        }
        Ok(Manifest { descriptor: Descriptor { media_type, digest, size: length }, bytes })
    }
}

pub(crate) fn scope(reference: &Reference) -> String {
    format!("repository:{}:pull", reference.path())
}

pub(crate) fn url(
    endpoint: &Endpoint,
    reference: &Reference,
    kind: &str,
    name: &str,
) -> Result<Url> {
    endpoint
        .base
        .join(&format!("v2/{}/{kind}/{name}", reference.path()))
        .map_err(|error| Error::Config(format!("registry {}: {error}", endpoint.base)))
}

/// The status of a manifest request in Docker's words.
pub(crate) fn named(error: Error, reference: &Reference) -> Error {
    match error {
        Error::Status { status: 404, detail, .. } if detail.contains("name unknown") => {
            Error::RepositoryUnknown { repository: reference.familiar_name() }
        }
        Error::Status { status: 404, .. } => {
            Error::ManifestUnknown { reference: reference.familiar() }
        }
        Error::Status { status: 401 | 403, detail, .. } => Error::Denied {
            repository: reference.familiar_name(),
            detail: match detail.strip_prefix(": ") {
                Some(words) => words.to_owned(),
                None => "denied: requested access to the resource is denied".to_owned(),
            },
        },
        other => other,
    }
}

/// `Retry-After` in seconds; the date form is not used by registries.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

fn media_type(headers: &HeaderMap) -> String {
    let value = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

fn digest_header(headers: &HeaderMap) -> Option<Digest> {
    headers.get("docker-content-digest")?.to_str().ok()?.trim().parse().ok()
}

/// A whole body, not longer than `limit`, each piece within `stall`.
pub(crate) async fn body(
    method: &Method,
    mut response: Response,
    limit: u64,
    stall: Duration,
) -> Result<Bytes> {
    let url = response.url().clone();
    let too_large = || Error::TooLarge { reference: shown(&url), limit };
    let length = response
        .headers()
        .get(CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if length.is_some_and(|length| length > limit) {
        return Err(too_large());
    }
    let mut bytes = BytesMut::new();
    loop {
        let piece = match tokio::time::timeout(stall, response.chunk()).await {
            Ok(Ok(Some(piece))) => piece,
            Ok(Ok(None)) => return Ok(bytes.freeze()),
            Ok(Err(error)) => {
                return Err(transport(method, &url, crate::transport::reason(&error)));
            }
            Err(_) => return Err(transport(method, &url, "the transfer stalled".into())),
        };
        if (bytes.len() + piece.len()) as u64 > limit {
            return Err(too_large());
        }
        bytes.extend_from_slice(&piece);
    }
}

/// `: code: message` of a registry's error document (distribution
/// specification, "Error Codes"), or nothing: other words are not shown.
pub(crate) fn detail(body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Errors {
        errors: Vec<Item>,
    }
    #[derive(serde::Deserialize)]
    struct Item {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let Ok(Errors { errors }) = serde_json::from_slice(body) else { return String::new() };
    let clean =
        |text: &str| -> String { text.chars().filter(|c| !c.is_control()).take(300).collect() };
    match errors.first() {
        None => String::new(),
        Some(Item { code, message }) => {
            let code = clean(code).to_ascii_lowercase().replace('_', " ");
            format!(": {code}: {}", clean(message))
        }
    }
}

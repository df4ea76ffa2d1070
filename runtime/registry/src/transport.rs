//! One request and its redirects, under the rules of who may see what.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use reqwest::{
    Method, Response, StatusCode, Url,
    header::{ACCEPT, AUTHORIZATION, HeaderMap, HeaderValue, IF_RANGE, LOCATION, RANGE},
    redirect,
};

use crate::{
    Config, Error, Result,
    endpoint::{Trust, authority, is_loopback, trust},
    lookup::{ELSEWHERE, Forbidden, Names, Resolver, is_own},
};

/// What is asked for.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: Method,
    pub(crate) url: Url,
    pub(crate) accept: Vec<HeaderValue>,
    /// First byte wanted, and the validator that its content must still have.
    pub(crate) range: Option<(u64, Option<HeaderValue>)>,
    pub(crate) authorization: Option<HeaderValue>,
    /// A form (token endpoints).
    pub(crate) form: Option<String>,
    /// The registry that sent us to the URL, where it is not the user who did.
    pub(crate) sent_by: Option<Url>,
}

impl Request {
    pub(crate) fn get(url: Url) -> Self {
        Self {
            method: Method::GET,
            url,
            accept: Vec::new(),
            range: None,
            authorization: None,
            form: None,
            sent_by: None,
        }
    }

    fn headers(&self, authorization: bool) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for accept in &self.accept {
            headers.append(ACCEPT, accept.clone());
        }
        if let Some((first, validator)) = &self.range {
            if let Ok(value) = HeaderValue::from_str(&format!("bytes={first}-")) {
                headers.insert(RANGE, value);
            }
            if let Some(validator) = validator {
                headers.insert(IF_RANGE, validator.clone());
            }
        }
        if let Some(value) = self.authorization.as_ref().filter(|_| authorization) {
            headers.insert(AUTHORIZATION, value.clone());
        }
        headers
    }
}

/// An answer that is no redirect.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) response: Response,
    /// It came from the origin that was asked: its challenges count.
    pub(crate) from_origin: bool,
}

/// Connections, pooled by how far their host is trusted.
#[derive(Debug)]
pub(crate) struct Transport {
    config: Config,
    /// Made when first needed: the machine's root certificates take memory.
    clients: [OnceLock<reqwest::Client>; 6],
    names: Arc<Names>,
    /// Insecure registries by authority, and whether they speak plain HTTP.
    plain: Mutex<HashMap<String, bool>>,
}

const MAX_REDIRECTS: usize = 5;

impl Transport {
    pub(crate) fn new(config: Config) -> Self {
        let names = Names::new(Arc::clone(&config.lookup));
        Self { config, clients: Default::default(), names, plain: Mutex::default() }
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    pub(crate) fn trust(&self, url: &Url) -> Trust {
        trust(url, &self.config.insecure)
    }

    /// `guarded` ones connect to no address of this machine.
    fn client(&self, trust: Trust, guarded: bool) -> Result<&reqwest::Client> {
        let slot = &self.clients[trust as usize + if guarded { 3 } else { 0 }];
        if slot.get().is_none() {
            let mut builder = reqwest::Client::builder()
                .user_agent(concat!("knarr/", env!("CARGO_PKG_VERSION")))
                .redirect(redirect::Policy::none())
                .connect_timeout(self.config.timing.connect)
                .dns_resolver(Arc::new(Resolver { names: Arc::clone(&self.names), guarded }))
                .pool_idle_timeout(Duration::from_secs(30));
            for pem in &self.config.certificates {
                let certificate = reqwest::Certificate::from_pem(pem)
                    .map_err(|error| Error::Config(format!("certificate: {error}")))?;
                builder = builder.add_root_certificate(certificate);
            }
            if trust.plain_http() {
                builder = builder.danger_accept_invalid_certs(true);
            }
            if trust == Trust::Loopback {
                builder = builder.no_proxy();
            }
            let client = builder.build().map_err(|error| Error::Config(reason(&error)))?;
            let _ = slot.set(client);
        }
        slot.get().ok_or_else(|| Error::Config("no HTTP client".into()))
    }

    /// Sends a request and follows its redirects. `guess_scheme` lets an
    /// `https` URL of an insecure host be asked by plain HTTP where it does
    /// not speak TLS.
    pub(crate) async fn send(&self, request: &Request, guess_scheme: bool) -> Result<Answer> {
        let mut url = request.url.clone();
        let asked = request.sent_by.as_ref().unwrap_or(&request.url);
        let mut origin = None;
        for _ in 0..=MAX_REDIRECTS {
            self.check_host(asked, &url)?;
            let guess = guess_scheme && origin.is_none();
            let with_credentials = origin.as_ref().is_none_or(|origin| *origin == url.origin());
            let guarded = self.is_guarded(asked, &url);
            let response = self.one(request, &mut url, with_credentials, guess, guarded).await?;
            let origin = origin.get_or_insert_with(|| url.origin());
            let from_origin = *origin == url.origin();
            if !is_redirect(response.status()) || request.method == Method::POST {
                return Ok(Answer { response, from_origin });
            }
            url = self.next_hop(&url, response.headers())?;
        }
        Err(Error::Redirect {
            host: authority(&request.url),
            location: shown(&url),
            why: "too many redirects",
        })
    }

    /// Whether a URL is another's word than the user's, and that other is not on
    /// this machine itself.
    fn is_guarded(&self, asked: &Url, url: &Url) -> bool {
        let host = asked.host_str().unwrap_or_default();
        url.host_str() != asked.host_str()
            && !is_loopback(host)
            && !literal(host).is_some_and(|address| is_own(&address))
            && !self.names.was_own(host)
    }

    /// Refuses what says by itself that it is this machine; what a name means is
    /// seen when it is connected to.
    fn check_host(&self, asked: &Url, url: &Url) -> Result<()> {
        let host = url.host_str().unwrap_or_default();
        let own = is_loopback(host) || literal(host).is_some_and(|address| is_own(&address));
        if own && self.is_guarded(asked, url) { Err(elsewhere(asked, url)) } else { Ok(()) }
    }

    fn next_hop(&self, from: &Url, headers: &HeaderMap) -> Result<Url> {
        let location =
            headers.get(LOCATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let refuse = |why| Error::Redirect {
            host: authority(from),
            location: location.split('?').next().unwrap_or_default().chars().take(200).collect(),
            why,
        };
        if location.is_empty() {
            return Err(refuse("it has no location"));
        }
        let url = from.join(location).map_err(|_| refuse("it is no URL"))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(refuse("only http and https are followed"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(refuse("it contains credentials"));
        }
        if url.scheme() == "http" && !self.trust(&url).plain_http() {
            return Err(refuse("plain HTTP to a host that is not configured as insecure"));
        }
        Ok(url)
    }

    async fn one(
        &self,
        request: &Request,
        url: &mut Url,
        authorization: bool,
        guess: bool,
        guarded: bool,
    ) -> Result<Response> {
        let trust = self.trust(url);
        let key = authority(url);
        let known = self.plain.lock().unwrap_or_else(PoisonError::into_inner).get(&key).copied();
        let guess = guess && trust.plain_http() && url.scheme() == "https";
        if guess && known == Some(true) {
            *url = plain(url);
        }
        if url.scheme() == "http" && !trust.plain_http() && !self.is_plain_mirror(url) {
            return Err(Error::PlainHttp { host: authority(url) });
        }
        let way = Way { trust, authorization, guarded };
        let first = self.exchange(request, url, way).await;
        let no_tls = matches!(&first, Err(Failed { connect: true, .. }));
        if !(guess && known.is_none()) {
            return first.map_err(|failed| failed.error);
        }
        if !no_tls {
            self.remember(key, false);
            return first.map_err(|failed| failed.error);
        }
        *url = plain(url);
        let second = self.exchange(request, url, way).await;
        if second.is_ok() {
            self.remember(key, true);
        }
        second.map_err(|failed| failed.error)
    }

    fn remember(&self, key: String, plain: bool) {
        self.plain.lock().unwrap_or_else(PoisonError::into_inner).insert(key, plain);
    }

    /// A mirror that is configured with `http://` was configured to be plain.
    fn is_plain_mirror(&self, url: &Url) -> bool {
        self.config.mirrors.iter().any(|mirror| {
            mirror.starts_with("http://")
                && Url::parse(mirror).is_ok_and(|mirror| mirror.origin() == url.origin())
        })
    }

    async fn exchange(
        &self,
        request: &Request,
        url: &Url,
        way: Way,
    ) -> std::result::Result<Response, Failed> {
        let client = self
            .client(way.trust, way.guarded)
            .map_err(|error| Failed { error, connect: false })?;
        let mut builder = client
            .request(request.method.clone(), url.clone())
            .headers(request.headers(way.authorization));
        if let Some(form) = &request.form {
            builder = builder
                .header("content-type", "application/x-www-form-urlencoded")
                .body(form.clone());
        }
        let stalled = self.config.timing.stall;
        match tokio::time::timeout(stalled, builder.send()).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) if Forbidden::is_in(&error) => {
                let asked = request.sent_by.as_ref().unwrap_or(&request.url);
                Err(Failed { error: elsewhere(asked, url), connect: false })
            }
            Ok(Err(error)) => {
                let connect = error.is_connect();
                let mut failed = transport(&request.method, url, reason(&error));
                if let Error::Transport { unreachable, .. } = &mut failed {
                    *unreachable = connect;
                }
                Err(Failed { error: failed, connect })
            }
            Err(_) => {
                let reason = format!("no answer within {} seconds", stalled.as_secs_f32());
                Err(Failed { error: transport(&request.method, url, reason), connect: false })
            }
        }
    }
}

/// How one request is made.
#[derive(Debug, Clone, Copy)]
struct Way {
    trust: Trust,
    authorization: bool,
    /// To no address of this machine.
    guarded: bool,
}

struct Failed {
    error: Error,
    connect: bool,
}

/// The address that a URL's host is, where it is no name.
fn literal(host: &str) -> Option<std::net::IpAddr> {
    host.trim_start_matches('[').trim_end_matches(']').parse().ok()
}

fn elsewhere(asked: &Url, url: &Url) -> Error {
    let location = shown(url).chars().take(200).collect();
    Error::Redirect { host: authority(asked), location, why: ELSEWHERE }
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

fn plain(url: &Url) -> Url {
    let mut url = url.clone();
    // Cannot fail between two schemes of the same kind; if it did, TLS stays.
    let _ = url.set_scheme("http");
    url
}

/// A URL without its query, which may hold a signature.
pub(crate) fn shown(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.set_fragment(None);
    url.to_string()
}

pub(crate) fn transport(method: &Method, url: &Url, reason: String) -> Error {
    Error::Transport { method: verb(method), url: shown(url), reason, unreachable: false }
}

/// As Go's HTTP client writes it, which Docker's messages have.
pub(crate) fn verb(method: &Method) -> &'static str {
    match *method {
        Method::HEAD => "Head",
        Method::POST => "Post",
        _ => "Get",
    }
}

/// The innermost cause says it best; reqwest's own text repeats the URL.
pub(crate) fn reason(error: &reqwest::Error) -> String {
    let mut source: Option<&dyn std::error::Error> = std::error::Error::source(error);
    let mut words = Vec::new();
    while let Some(cause) = source {
        words.push(cause.to_string());
        source = cause.source();
    }
    let last = words.pop().unwrap_or_else(|| error.to_string());
    // As Go's client says it: without the number, in lower case.
    let plain = last.split(" (os error").next().unwrap_or(&last);
    let mut letters = plain.chars();
    match (letters.next(), letters.next()) {
        (Some(first), Some(second)) if first.is_uppercase() && second.is_lowercase() => {
            first.to_lowercase().chain(plain.chars().skip(1)).collect()
        }
        _ => plain.to_owned(),
    }
}

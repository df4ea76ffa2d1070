//! Authorization headers: answering a challenge, and remembering the answer.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use reqwest::{Method, Url, header::HeaderValue};
use serde::Deserialize;

use crate::{
    Auth, Error, Result,
    challenge::Challenge,
    client::{body, detail},
    endpoint::{authority, is_loopback, same_site},
    transport::{Request, Transport},
};

/// Who is asked for what, as whom.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Realm {
    /// Scheme, host and port of the registry.
    pub(crate) origin: String,
    /// `repository:library/busybox:pull`.
    pub(crate) scope: String,
    /// Anonymous for a mirror.
    pub(crate) auth: Auth,
}

/// Headers by realm, until they expire.
#[derive(Debug, Default)]
pub(crate) struct Tokens {
    known: Mutex<HashMap<Realm, (HeaderValue, Option<Instant>)>>,
}

/// What is asked again this long before a token expires.
const SLACK: Duration = Duration::from_secs(10);
/// What a token lasts where nothing is said (distribution token specification).
const DEFAULT_LIFE: u64 = 60;
const ANSWER_LIMIT: u64 = 1 << 20;

impl Tokens {
    pub(crate) fn known(&self, realm: &Realm) -> Option<HeaderValue> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        known.retain(|_, (_, until)| until.is_none_or(|until| until > now));
        known.get(realm).map(|(header, _)| header.clone())
    }

    pub(crate) fn forget(&self, realm: &Realm) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).remove(realm);
    }

    /// Answers the challenges of `registry`: the header to try again with, or
    /// none where nothing can be offered.
    pub(crate) async fn answer(
        &self,
        transport: &Transport,
        registry: &Url,
        challenges: &[Challenge],
        realm: &Realm,
    ) -> Result<Option<HeaderValue>> {
        for challenge in challenges {
            let (header, life) = match (challenge, &realm.auth) {
                (Challenge::Bearer { .. }, Auth::Token(token)) => (secret("Bearer", token)?, None),
                (Challenge::Bearer { realm: url, service, .. }, _) => {
                    let service = service.as_deref();
                    fetch(transport, registry, url, service, realm).await?
                }
                (Challenge::Basic, Auth::Basic { username, password }) => {
                    (secret("Basic", &STANDARD.encode(format!("{username}:{password}")))?, None)
                }
                (Challenge::Basic, _) => continue,
            };
            let until = life.map(|life: Duration| Instant::now() + life.saturating_sub(SLACK));
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            known.insert(realm.clone(), (header.clone(), until));
            return Ok(Some(header));
        }
        Ok(None)
    }
}

fn secret(scheme: &str, value: &str) -> Result<HeaderValue> {
    let mut header = HeaderValue::from_str(&format!("{scheme} {value}"))
        .map_err(|_| Error::Config("credentials hold characters that HTTP cannot carry".into()))?;
    header.set_sensitive(true);
    Ok(header)
}

/// Whether this realm may be asked at all, and with credentials.
fn check(transport: &Transport, registry: &Url, url: &str, realm: &Realm) -> Result<Url> {
    let registry_host = registry.host_str().unwrap_or_default();
    let bad = |what: &str| Error::Protocol {
        host: authority(registry),
        what: format!("{what} as its token realm: {:?}", url.chars().take(200).collect::<String>()),
    };
    let url = Url::parse(url).map_err(|_| bad("no URL"))?;
    if !matches!(url.scheme(), "http" | "https") || !url.username().is_empty() {
        return Err(bad("no plain http or https URL"));
    }
    let host = url.host_str().unwrap_or_default();
    let same_host = host == registry_host || (is_loopback(host) && is_loopback(registry_host));
    if is_loopback(host) && !same_host {
        return Err(bad("a service on this machine"));
    }
    if url.scheme() == "http" && !(same_host && transport.trust(registry).plain_http()) {
        return Err(if realm.auth == Auth::Anonymous {
            Error::PlainHttp { host: authority(&url) }
        } else {
            theft(registry, &url, "the token realm is not spoken to over TLS")
        });
    }
    if realm.auth != Auth::Anonymous && !same_host && !same_site(registry_host, host) {
        return Err(theft(registry, &url, "the token realm is of another site"));
    }
    Ok(url)
}

fn theft(registry: &Url, realm: &Url, why: &'static str) -> Error {
    Error::CredentialTheft { host: authority(registry), realm: authority(realm), why }
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

async fn fetch(
    transport: &Transport,
    registry: &Url,
    url: &str,
    service: Option<&str>,
    realm: &Realm,
) -> Result<(HeaderValue, Option<Duration>)> {
    let mut url = check(transport, registry, url, realm)?;
    let mut parameters: Vec<(&str, &str)> = Vec::new();
    parameters.extend(service.map(|service| ("service", service)));
    if !realm.scope.is_empty() {
        parameters.push(("scope", &realm.scope));
    }
    let sent_by = Some(registry.clone());
    let request = match &realm.auth {
        Auth::Identity(refresh) => {
            parameters.extend([
                ("grant_type", "refresh_token"),
                ("client_id", "knarr"),
                ("refresh_token", refresh),
            ]);
            let form = Url::parse_with_params("http://form/", &parameters)
                .ok()
                .and_then(|url| url.query().map(str::to_owned));
            Request { method: Method::POST, form, sent_by, ..Request::get(url) }
        }
        auth => {
            if let Auth::Basic { username, .. } = auth {
                parameters.push(("account", username));
            }
            url.query_pairs_mut().extend_pairs(parameters);
            let authorization = match auth {
                Auth::Basic { username, password } => {
                    Some(secret("Basic", &STANDARD.encode(format!("{username}:{password}")))?)
                }
                _ => None,
            };
            Request { authorization, sent_by, ..Request::get(url) }
        }
    };
    let answer = transport.send(&request, false).await?.response;
    let (status, host) = (answer.status(), authority(&request.url));
    let url = request.url.clone();
    let text = body(&request.method, answer, ANSWER_LIMIT, transport.config().timing.stall).await?;
    if !status.is_success() {
        return Err(Error::Status {
            method: crate::transport::verb(&request.method),
            url: crate::transport::shown(&url),
            status: status.as_u16(),
            detail: detail(&text),
        });
    }
    let nonsense = |what: &str| Error::Protocol { host: host.clone(), what: what.to_owned() };
    let answer: TokenAnswer =
        serde_json::from_slice(&text).map_err(|_| nonsense("a token answer that is no JSON"))?;
    let token = answer
        .token
        .or(answer.access_token)
        .filter(|token| !token.is_empty())
        .ok_or_else(|| nonsense("a token answer without a token"))?;
    let life = answer.expires_in.unwrap_or(DEFAULT_LIFE).min(24 * 3600);
    Ok((secret("Bearer", &token)?, Some(Duration::from_secs(life))))
}

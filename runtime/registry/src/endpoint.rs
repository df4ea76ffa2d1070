//! Who a registry is, and what may be said to it how.

use reqwest::Url;

use crate::Error;

/// How far a host is trusted with its transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Trust {
    /// TLS with a certificate that verifies, nothing else.
    Tls,
    /// TLS with any certificate, or plain HTTP (`insecure-registries`).
    Insecure,
    /// As `Insecure`, and never through a proxy.
    Loopback,
}

impl Trust {
    pub(crate) fn plain_http(self) -> bool {
        self != Self::Tls
    }
}

/// One place to ask for a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// Scheme, host, port, and the path that comes before `/v2/`. The scheme
    /// of an insecure registry is found out at the first request.
    pub(crate) base: Url,
    /// The scheme is given: a mirror's.
    pub(crate) fixed_scheme: bool,
    /// A mirror never sees credentials.
    pub(crate) mirror: bool,
}

/// Whether a host name or address is this machine's own.
pub(crate) fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let name = bare.strip_suffix('.').unwrap_or(bare);
    name.eq_ignore_ascii_case("localhost")
        || bare.parse().is_ok_and(|ip: std::net::IpAddr| ip.to_canonical().is_loopback())
}

/// `host` or `host:port` of a URL, with the port only where it is not the scheme's own.
pub(crate) fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

/// How a URL's host may be spoken to; `insecure` holds hosts, hosts with port
/// and networks (`10.0.0.0/8`), as dockerd's `insecure-registries`.
pub(crate) fn trust(url: &Url, insecure: &[String]) -> Trust {
    let host = url.host_str().unwrap_or_default();
    if is_loopback(host) {
        return Trust::Loopback;
    }
    let with_port = format!("{host}:{}", url.port_or_known_default().unwrap_or(443));
    let listed = insecure.iter().any(|entry| {
        entry.eq_ignore_ascii_case(host)
            || entry.eq_ignore_ascii_case(&with_port)
            || entry.eq_ignore_ascii_case(&authority(url))
            || in_network(host, entry)
    });
    if listed { Trust::Insecure } else { Trust::Tls }
}

fn in_network(host: &str, network: &str) -> bool {
    use std::net::IpAddr;
    let Some((base, bits)) = network.split_once('/') else { return false };
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    let (Ok(address), Ok(base), Ok(bits)) = (address, base.parse::<IpAddr>(), bits.parse::<u32>())
    else {
        return false;
    };
    let same = |a: u128, b: u128, width: u32| {
        bits <= width && (bits == 0 || (a ^ b) >> (width - bits) == 0)
    };
    match (address, base) {
        (IpAddr::V4(a), IpAddr::V4(b)) => same(a.to_bits().into(), b.to_bits().into(), 32),
        (IpAddr::V6(a), IpAddr::V6(b)) => same(a.to_bits(), b.to_bits(), 128),
        _ => false,
    }
}

/// Whether `realm` belongs to the same site as `registry`: the same host, one
/// below it, or one below its parent domain (`registry-1.docker.io` and
/// `auth.docker.io`), where that parent is a domain that one party owns.
pub(crate) fn same_site(registry: &str, realm: &str) -> bool {
    let (registry, realm) = (registry.to_ascii_lowercase(), realm.to_ascii_lowercase());
    let below = |name: &str, domain: &str| {
        name == domain || name.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'))
    };
    let is_address = |host: &str| host.starts_with('[') || host.parse::<std::net::IpAddr>().is_ok();
    if registry == realm {
        return true;
    }
    if is_address(&registry) || is_address(&realm) {
        return false;
    }
    if below(&realm, &registry) {
        return true;
    }
    match registry.split_once('.') {
        Some((_, parent)) => owned_by_one(parent) && below(&realm, parent),
        None => false,
    }
}

/// `docker.io` is, `io`, `co.uk` and `com.br` are not. Without the public
/// suffix list this errs towards refusing: short second levels of countries
/// count as public.
fn owned_by_one(domain: &str) -> bool {
    let labels: Vec<&str> = domain.split('.').collect();
    match labels[..] {
        [] | [_] => false,
        [second, top] => !(top.len() == 2 && second.len() <= 3),
        _ => true,
    }
}

/// The base URL of a registry's host as a reference names it.
pub(crate) fn origin(domain: &str) -> Result<Url, Error> {
    let host = match domain {
        "docker.io" => "registry-1.docker.io",
        other => other,
    };
    Url::parse(&format!("https://{host}/"))
        .map_err(|error| Error::Config(format!("registry host {host:?}: {error}")))
}

/// A mirror as the configuration names it: a URL, or a host (TLS).
pub(crate) fn mirror(text: &str) -> Result<Endpoint, Error> {
    let whole = if text.contains("://") { text.to_owned() } else { format!("https://{text}") };
    let bad = |why: &str| Error::Config(format!("registry mirror {text:?}: {why}"));
    let mut base = Url::parse(&whole).map_err(|error| bad(&error.to_string()))?;
    if !matches!(base.scheme(), "http" | "https") {
        return Err(bad("must be an http or https URL"));
    }
    if !base.username().is_empty() || base.password().is_some() {
        return Err(bad("must not contain credentials"));
    }
    if base.query().is_some() || base.fragment().is_some() {
        return Err(bad("must have no query and no fragment"));
    }
    if !base.path().ends_with('/') {
        let path = format!("{}/", base.path());
        base.set_path(&path);
    }
    Ok(Endpoint { base, fixed_scheme: true, mirror: true })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn i14_only_loopback_and_configured_hosts_are_trusted_without_tls() {
        let insecure = ["r.example".into(), "s.example:5000".into(), "10.1.0.0/16".into()];
        for (host, want) in [
            ("localhost:5000", Trust::Loopback),
            ("127.9.9.9", Trust::Loopback),
            ("[::1]:5000", Trust::Loopback),
            ("[::ffff:127.0.0.1]", Trust::Loopback),
            ("r.example", Trust::Insecure),
            ("r.example:5000", Trust::Insecure),
            ("s.example:5000", Trust::Insecure),
            ("s.example", Trust::Tls),
            ("10.1.2.3:80", Trust::Insecure),
            ("10.2.2.3", Trust::Tls),
            ("localhost.evil.example", Trust::Tls),
            ("127.0.0.1.evil.example", Trust::Tls),
            ("r.example.evil", Trust::Tls),
        ] {
            let url = Url::parse(&format!("http://{host}/")).unwrap();
            assert_eq!(trust(&url, &insecure), want, "{host}");
        }
    }

    #[test]
    fn i14_realms_are_of_the_same_site_or_not() {
        for (registry, realm) in [
            ("registry-1.docker.io", "auth.docker.io"),
            ("ghcr.io", "ghcr.io"),
            ("registry.gitlab.com", "gitlab.com"),
            ("a.example.co.uk", "auth.example.co.uk"),
            ("quay.io", "auth.quay.io"),
            ("10.0.0.1", "10.0.0.1"),
        ] {
            assert!(same_site(registry, realm), "{registry} {realm}");
        }
        for (registry, realm) in [
            ("ghcr.io", "evil.io"),
            ("registry-1.docker.io", "evildocker.io"),
            ("victim.co.uk", "evil.co.uk"),
            ("registry.example.com", "example.com.evil.net"),
            ("10.0.0.1", "9.0.0.1"),
            ("localhost", "evil.localhost.net"),
        ] {
            assert!(!same_site(registry, realm), "{registry} {realm}");
        }
    }

    #[test]
    fn mirrors_are_urls_without_secrets() {
        assert_eq!(mirror("http://m:5000/x").unwrap().base.as_str(), "http://m:5000/x/");
        assert_eq!(mirror("mirror.example").unwrap().base.as_str(), "https://mirror.example/");
        for bad in ["ftp://m", "https://u:p@m", "https://m/?q", "http://", "file:///etc"] {
            assert!(mirror(bad).is_err(), "{bad}");
        }
    }
}

//! Names of hosts to addresses, and which of them a stranger may send us to.
//!
//! The registry that a user names may be anywhere, this machine included. Where
//! *it* sends us, by a redirect or as its token realm, may not be this machine or
//! its link unless the registry itself is there: the address decides, at the moment
//! of connecting, and not the name, which says nothing.
//!
//! ```text
//!   host of the reference ──► any address            (noted: is it this machine's?)
//!   another host ──► addresses elsewhere; all, where the registry is on this machine
//! ```
//!
//! Private networks are elsewhere: registries keep their blobs there. Literal
//! addresses are judged by [`is_own`] before the request; a proxy looks names up
//! itself, and its own is not judged.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
};

use futures_util::future::BoxFuture;
use reqwest::{
    Url,
    dns::{Addrs, Name, Resolve, Resolving},
};

/// Hosts that users named and that are remembered.
const REMEMBERED: usize = 1000;

/// How the name of a host becomes addresses.
pub trait Lookup: Send + Sync + std::fmt::Debug {
    /// The addresses of a host, the best first; an error where it has none.
    fn lookup(&self, host: &str) -> BoxFuture<'static, io::Result<Vec<IpAddr>>>;
}

/// The system's way: `/etc/hosts`, then name servers.
#[derive(Debug, Clone, Copy, Default)]
pub struct System;

impl Lookup for System {
    fn lookup(&self, host: &str) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
        let host = host.to_owned();
        Box::pin(async move {
            knarr_resolver::Resolver::system().lookup(&host).await.map_err(io::Error::other)
        })
    }
}

/// What clients resolve names with.
#[derive(Debug)]
pub(crate) struct Names {
    lookup: Arc<dyn Lookup>,
    /// Hosts that users named, and whether they were on this machine.
    named: Mutex<HashMap<String, bool>>,
    /// Hosts of proxies.
    proxies: Vec<String>,
}

impl Names {
    pub(crate) fn new(lookup: Arc<dyn Lookup>) -> Arc<Self> {
        let variables =
            ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"];
        let host = |text: String| {
            let whole = if text.contains("://") { text } else { format!("http://{text}") };
            Url::parse(&whole).ok()?.host_str().map(str::to_owned)
        };
        let proxies = variables.iter().filter_map(|name| host(std::env::var(name).ok()?));
        Arc::new(Self { lookup, named: Mutex::default(), proxies: proxies.collect() })
    }

    /// Whether the last answer for a host that a user named was on this machine.
    pub(crate) fn was_own(&self, host: &str) -> bool {
        let named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
        named.get(host).copied().unwrap_or_default()
    }

    fn remember(&self, host: &str, own: bool) {
        let mut named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
        if named.len() >= REMEMBERED {
            named.clear();
        }
        named.insert(host.to_owned(), own);
    }
}

/// One client's way to resolve names.
#[derive(Debug)]
pub(crate) struct Resolver {
    pub(crate) names: Arc<Names>,
    /// For hosts that strangers name.
    pub(crate) guarded: bool,
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let (names, host) = (Arc::clone(&self.names), name.as_str().to_owned());
        let guarded = self.guarded && !names.proxies.contains(&host);
        Box::pin(async move {
            let mut addresses = names.lookup.lookup(&host).await?;
            if guarded {
                addresses.retain(|address| !is_own(address));
                if addresses.is_empty() {
                    return Err(Forbidden.into());
                }
            } else {
                names.remember(&host, addresses.iter().any(is_own));
            }
            let addresses = addresses.into_iter().map(|address| SocketAddr::new(address, 0));
            Ok(Box::new(addresses) as Addrs)
        })
    }
}

/// All addresses of a host are this machine's own.
#[derive(Debug, thiserror::Error)]
#[error("{ELSEWHERE}")]
pub(crate) struct Forbidden;

/// Why a stranger's word is not followed to this machine.
pub(crate) const ELSEWHERE: &str = "a registry elsewhere has no business on this machine";

impl Forbidden {
    /// Whether that is why a request failed.
    pub(crate) fn is_in(error: &reqwest::Error) -> bool {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
        while let Some(error) = cause {
            if error.is::<Self>() {
                return true;
            }
            cause = error.source();
        }
        false
    }
}

/// Loopback, unspecified and link-local addresses, those of many at once, and where
/// clouds keep their metadata; also inside addresses of IPv6 that stand for one of IPv4.
pub(crate) fn is_own(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_own_v4(*address),
        IpAddr::V6(address) => {
            const AMAZON: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
            address.is_loopback()
                || address.is_unspecified()
                || address.is_unicast_link_local()
                || address.is_multicast()
                || *address == AMAZON
                || embedded(*address).is_some_and(is_own_v4)
        }
    }
}

fn is_own_v4(address: Ipv4Addr) -> bool {
    const ALIBABA: Ipv4Addr = Ipv4Addr::new(100, 100, 100, 200);
    address.is_loopback()
        || address.octets()[0] == 0
        || address.is_link_local()
        || address.is_multicast()
        || address.is_broadcast()
        || address == ALIBABA
}

/// `::ffff:a.b.c.d`, `::a.b.c.d`, 6to4 (`2002::/16`) and NAT64 (`64:ff9b::/96`).
fn embedded(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let last = || Some(Ipv4Addr::from_bits(address.to_bits() as u32));
    match address.segments() {
        [0, 0, 0, 0, 0, 0 | 0xffff, ..] | [0x64, 0xff9b, 0, 0, 0, 0, ..] => last(),
        [0x2002, high, low, ..] => {
            Some(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn n10_addresses_of_this_machine_are_known_in_every_dress() {
        for own in [
            "127.0.0.1",
            "127.9.9.9",
            "0.0.0.0",
            "0.1.2.3",
            "169.254.169.254",
            "224.0.0.1",
            "255.255.255.255",
            "100.100.100.200",
            "::",
            "::1",
            "fe80::1",
            "ff02::1",
            "fd00:ec2::254",
            "::ffff:127.0.0.1",
            "::127.0.0.1",
            "64:ff9b::a9fe:a9fe",
            "2002:7f00:1::",
        ] {
            assert!(is_own(&own.parse().unwrap()), "{own}");
        }
        for elsewhere in [
            "8.8.8.8",
            "10.0.0.1",
            "172.17.0.1",
            "192.168.1.1",
            "100.64.0.1",
            "2606:4700::1",
            "fd00::1",
            "::ffff:8.8.8.8",
            "64:ff9b::808:808",
            "2002:808:808::",
        ] {
            assert!(!is_own(&elsewhere.parse().unwrap()), "{elsewhere}");
        }
    }
}

//! resolv.conf(5): pure.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use hickory_proto::rr::Name;

/// Servers asked at most, as the C libraries do (MAXNS).
const MAX_SERVERS: usize = 3;
/// Domains of the search list.
const MAX_SEARCH: usize = 32;

/// What decides whom a name is asked of, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Config {
    /// In the order in which they are asked.
    pub(crate) servers: Vec<SocketAddr>,
    /// How long one is waited for.
    pub(crate) timeout: Duration,
    /// How often all are asked.
    pub(crate) attempts: usize,
    /// Ask by TCP from the start.
    pub(crate) tcp: bool,
    search: Vec<Name>,
    ndots: usize,
}

impl Config {
    /// What is not understood is left out, as the C libraries do.
    pub(crate) fn parse(text: &[u8]) -> Self {
        let mut config = Self {
            servers: Vec::new(),
            timeout: Duration::from_secs(5),
            attempts: 2,
            tcp: false,
            search: Vec::new(),
            ndots: 1,
        };
        for line in text.split(|byte| *byte == b'\n') {
            // A comment is a line that begins so: the search list may have a # in it.
            let Ok(line) = std::str::from_utf8(line) else { continue };
            let mut words = line.split_ascii_whitespace();
            match words.next() {
                Some("nameserver") => config.server(words.next().unwrap_or_default()),
                // The last of these lines counts.
                Some("search" | "domain") => config.search = search(words),
                Some("options") => words.for_each(|option| config.option(option)),
                _ => {}
            }
        }
        if config.servers.is_empty() {
            config.servers.push(SocketAddr::from((Ipv4Addr::LOCALHOST, 53)));
        }
        config
    }

    fn server(&mut self, address: &str) {
        // A zone is of no use without its interface.
        let address = address.split('%').next().unwrap_or_default();
        if let Ok(address) = address.parse::<IpAddr>()
            && self.servers.len() < MAX_SERVERS
        {
            self.servers.push(SocketAddr::new(address, 53));
        }
    }

    /// With glibc's own bounds (RES_MAXNDOTS, RES_MAXRETRANS, RES_MAXRETRY).
    fn option(&mut self, option: &str) {
        let number = |text: &str, most: usize| text.parse::<usize>().map(|n| n.min(most));
        match option.split_once(':') {
            Some(("ndots", text)) => self.ndots = number(text, 15).unwrap_or(self.ndots),
            Some(("timeout", text)) => {
                if let Ok(seconds) = number(text, 30) {
                    self.timeout = Duration::from_secs(seconds.max(1) as u64);
                }
            }
            Some(("attempts", text)) => {
                self.attempts = number(text, 5).unwrap_or(self.attempts).max(1);
            }
            None if option == "use-vc" => self.tcp = true,
            _ => {}
        }
    }

    /// The names that are asked for one after the other. One that ends in a dot, and one
    /// with as many dots as `ndots` says, is first asked for as it is.
    pub(crate) fn candidates(&self, name: &Name, rooted: bool) -> Vec<Name> {
        let mut absolute = name.clone();
        absolute.set_fqdn(true);
        if rooted {
            return vec![absolute];
        }
        let mut all: Vec<Name> = self
            .search
            .iter()
            .filter_map(|domain| name.clone().append_domain(domain).ok())
            .collect();
        let dots = usize::from(name.num_labels()).saturating_sub(1);
        let at = if dots >= self.ndots { 0 } else { all.len() };
        all.insert(at, absolute);
        all
    }
}

fn search<'a>(words: impl Iterator<Item = &'a str>) -> Vec<Name> {
    let mut domains = Vec::new();
    for word in words.take(MAX_SEARCH) {
        // The root alone is the name as it is, which is asked for anyway.
        if let Ok(mut domain) = crate::parse(word) {
            domain.set_fqdn(true);
            domains.push(domain);
        }
    }
    domains
}

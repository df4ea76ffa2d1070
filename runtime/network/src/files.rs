//! The texts of a container's `/etc/resolv.conf` and `/etc/hosts`: pure.

use std::{fmt::Write, net::IpAddr};

use crate::{Error, HostsFile, ResolvConf, dns};

/// The text of `/etc/resolv.conf`. `host` is the host's own.
pub(crate) fn resolv_conf(file: &ResolvConf<'_>, defaults: &[IpAddr], host: &str) -> String {
    let words = |key: &str| {
        let mut found = Vec::new();
        for line in host.lines() {
            let mut words = line.split_whitespace();
            let word = words.next();
            if word == Some(key) || (key == "search" && word == Some("domain")) {
                found = words.map(str::to_owned).collect();
            }
        }
        found
    };
    let servers: Vec<IpAddr> = if file.embedded {
        vec![dns::ADDRESS.into()]
    } else if !file.dns.is_empty() {
        file.dns.to_vec()
    } else if !defaults.is_empty() {
        defaults.to_vec()
    } else {
        // Nobody answers at the host's loopback inside a container.
        let mut servers = dns::nameservers(host);
        servers.retain(|server| !server.is_loopback());
        if servers.is_empty() {
            // Docker's own fallback (moby libnetwork/internal/resolvconf).
            servers = vec![[8, 8, 8, 8].into(), [8, 8, 4, 4].into()];
        }
        servers
    };
    let mut text = String::from("# Made by Knarr: changes last until the container stops.\n");
    for server in servers {
        let _ = writeln!(text, "nameserver {server}");
    }
    let search = if file.search.is_empty() { words("search") } else { file.search.to_vec() };
    let search: Vec<_> = search.into_iter().filter(|domain| domain != ".").collect();
    if !search.is_empty() {
        let _ = writeln!(text, "search {}", search.join(" "));
    }
    let mut options =
        if file.options.is_empty() { words("options") } else { file.options.to_vec() };
    if file.embedded && !options.iter().any(|option| option.starts_with("ndots:")) {
        // Names of containers are looked up as they are first.
        options.push("ndots:0".into());
    }
    if !options.is_empty() {
        let _ = writeln!(text, "options {}", options.join(" "));
    }
    text
}

/// The text of `/etc/hosts`.
pub(crate) fn hosts(file: &HostsFile<'_>, host_gateway: Option<IpAddr>) -> Result<String, Error> {
    let mut text = String::from(
        "127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::\tip6-localnet\n\
         ff00::\tip6-mcastprefix\n\
         ff02::1\tip6-allnodes\n\
         ff02::2\tip6-allrouters\n",
    );
    for (name, address) in file.extra {
        let clean = |text: &str| {
            !text.is_empty() && !text.contains(|c: char| c.is_whitespace() || c == '#')
        };
        if !clean(name) {
            return Err(Error::Invalid(format!("bad format for add-host: {name:?}")));
        }
        let address = match address.as_str() {
            "host-gateway" => host_gateway.ok_or_else(|| {
                Error::Invalid("unable to derive the IP value for host-gateway".into())
            })?,
            address => address.trim_matches(['[', ']']).parse().map_err(|_| {
                Error::Invalid(format!("invalid IP address in add-host: {address:?}"))
            })?,
        };
        let _ = writeln!(text, "{address}\t{name}");
    }
    if !file.hostname.is_empty() {
        for address in file.addresses {
            let _ = match file.domainname.filter(|domain| !domain.is_empty()) {
                Some(domain) => {
                    writeln!(text, "{address}\t{0}.{domain} {0}", file.hostname)
                }
                None => writeln!(text, "{address}\t{}", file.hostname),
            };
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: &str =
        "nameserver 127.0.0.53\nnameserver 10.0.0.1\ndomain a\nsearch b c\noptions edns0\n";

    fn lines(text: &str) -> Vec<&str> {
        text.lines().skip(1).collect()
    }

    #[test]
    fn resolvers_of_a_container() {
        let plain = resolv_conf(&ResolvConf::default(), &[], HOST);
        assert_eq!(lines(&plain), ["nameserver 10.0.0.1", "search b c", "options edns0"]);
        let embedded = ResolvConf { embedded: true, ..ResolvConf::default() };
        let text = resolv_conf(&embedded, &[], HOST);
        assert_eq!(lines(&text), ["nameserver 127.0.0.11", "search b c", "options edns0 ndots:0"]);
        let lonely = resolv_conf(&ResolvConf::default(), &[], "nameserver ::1\n");
        assert_eq!(lines(&lonely), ["nameserver 8.8.8.8", "nameserver 8.8.4.4"]);
        let asked = ResolvConf {
            dns: &["9.9.9.9".parse().unwrap()],
            search: &[".".into()],
            options: &["ndots:2".into()],
            ..ResolvConf::default()
        };
        assert_eq!(
            lines(&resolv_conf(&asked, &[], HOST)),
            ["nameserver 9.9.9.9", "options ndots:2"]
        );
    }

    #[test]
    fn hosts_of_a_container() {
        let file = HostsFile {
            addresses: &["172.17.0.2".parse().unwrap()],
            hostname: "web",
            domainname: Some("example.org"),
            extra: &[("up".into(), "host-gateway".into()), ("six".into(), "[::2]".into())],
        };
        let text = hosts(&file, Some([172, 17, 0, 1].into())).unwrap();
        assert!(
            text.ends_with("172.17.0.1\tup\n::2\tsix\n172.17.0.2\tweb.example.org web\n"),
            "{text}"
        );
        assert!(hosts(&file, None).is_err());
        for bad in [("a b", "1.2.3.4"), ("", "1.2.3.4"), ("a", "1.2.3"), ("a\n", "::1"), ("a", "")]
        {
            let extra = [(bad.0.to_owned(), bad.1.to_owned())];
            assert!(hosts(&HostsFile { extra: &extra, ..HostsFile::default() }, None).is_err());
        }
    }
}

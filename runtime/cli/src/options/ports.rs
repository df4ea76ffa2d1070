//! `-p`: `[[address:]host port[-end]:]container port[-end][/protocol]` (docker/go-connections `nat`).

use std::{collections::BTreeMap, net::IpAddr};

use anyhow::{Context as _, Result, bail, ensure};
use knarr_docker::{Empty, HostPortBinding};

/// Published ports by container port, and all ports that are exposed.
#[derive(Debug, Default, PartialEq)]
pub struct Ports {
    /// `80/tcp` to nothing.
    pub exposed: BTreeMap<String, Empty>,
    /// `80/tcp` to host addresses.
    pub bindings: BTreeMap<String, Option<Vec<HostPortBinding>>>,
}

impl Ports {
    /// Parses the words of `-p` and `--expose`.
    ///
    /// # Errors
    /// With Docker's wording.
    pub fn parse(published: &[String], exposed: &[String]) -> Result<Self> {
        let mut ports = Self::default();
        for word in published {
            ports.publish(word)?;
        }
        for word in exposed {
            let (range, protocol) = protocol(word)?;
            let (start, end) = parse_range(range)
                .with_context(|| format!("invalid range format for --expose: {word}"))?;
            for port in start..=end {
                ports.exposed.insert(format!("{port}/{protocol}"), Empty {});
            }
        }
        Ok(ports)
    }

    fn publish(&mut self, word: &str) -> Result<()> {
        let bad = || format!("invalid containerPort: {word}");
        let (spec, protocol) = protocol(word)?;
        let (rest, container) = match spec.rsplit_once(':') {
            Some((rest, container)) => (Some(rest), container),
            None => (None, spec),
        };
        ensure!(!container.is_empty(), "no port specified: {word}<empty>");
        let (start, end) = parse_range(container).with_context(bad)?;
        let (address, host) = match rest {
            None => ("", ""),
            Some(rest) => split_host(rest),
        };
        let address = address.trim_start_matches('[').trim_end_matches(']');
        if !address.is_empty() {
            let _: IpAddr =
                address.parse().ok().with_context(|| format!("invalid IP address: {address}"))?;
        }
        let host_range = match host {
            "" => None,
            host => Some(parse_range(host).with_context(|| format!("invalid hostPort: {host}"))?),
        };
        for (at, port) in (start..=end).enumerate() {
            let host_port = match host_range {
                None => String::new(),
                Some((first, last)) if last - first == end - start => {
                    (first + at as u16).to_string()
                }
                // One container port, several host ports: the engine chooses.
                Some((first, last)) if start == end => format!("{first}-{last}"),
                Some(_) => bail!(
                    "invalid ranges specified for container and host Ports: {container} and {host}"
                ),
            };
            let key = format!("{port}/{protocol}");
            self.exposed.insert(key.clone(), Empty {});
            let binding = HostPortBinding { host_ip: address.to_owned(), host_port };
            self.bindings.entry(key).or_default().get_or_insert_default().push(binding);
        }
        Ok(())
    }
}

/// `address:port`, `[v6]:port`, `address:` or a port alone.
fn split_host(rest: &str) -> (&str, &str) {
    match rest.rsplit_once(':') {
        Some((address, port)) if !port.contains(']') => (address, port),
        _ if rest.contains(['.', ']']) => (rest, ""),
        _ => ("", rest),
    }
}

fn protocol(word: &str) -> Result<(&str, String)> {
    let (spec, protocol) = word.split_once('/').unwrap_or((word, "tcp"));
    let protocol = protocol.to_ascii_lowercase();
    ensure!(matches!(protocol.as_str(), "tcp" | "udp" | "sctp"), "invalid proto: {protocol}");
    Ok((spec, protocol))
}

fn parse_range(text: &str) -> Option<(u16, u16)> {
    let port =
        |text: &str| text.parse::<u16>().ok().filter(|_| text.bytes().all(|c| c.is_ascii_digit()));
    let (start, end) = match text.split_once('-') {
        Some((start, end)) => (port(start)?, port(end)?),
        None => (port(text)?, port(text)?),
    };
    (start <= end).then_some((start, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(word: &str) -> String {
        match Ports::parse(&[word.to_owned()], &[]) {
            Ok(ports) => ports
                .bindings
                .iter()
                .map(|(key, bindings)| {
                    let hosts: Vec<String> = bindings
                        .iter()
                        .flatten()
                        .map(|binding| format!("{}:{}", binding.host_ip, binding.host_port))
                        .collect();
                    format!("{key}={}", hosts.join("+"))
                })
                .collect::<Vec<_>>()
                .join(" "),
            Err(_) => "error".to_owned(),
        }
    }

    #[test]
    fn published_ports() {
        for (word, want) in [
            ("80", "80/tcp=:"),
            ("8080:80", "80/tcp=:8080"),
            ("127.0.0.1:8080:80", "80/tcp=127.0.0.1:8080"),
            ("127.0.0.1::80/udp", "80/udp=127.0.0.1:"),
            ("[::1]:8080:80", "80/tcp=::1:8080"),
            ("8000-8001:80-81", "80/tcp=:8000 81/tcp=:8001"),
            ("8000-8010:80", "80/tcp=:8000-8010"),
            ("53:53/UDP", "53/udp=:53"),
            ("8000-8001:80-90", "error"),
            ("70000:80", "error"),
            ("8080:", "error"),
            ("x:80", "error"),
            ("1.2.3:8080:80", "error"),
            ("80/icmp", "error"),
            ("90-80", "error"),
        ] {
            assert_eq!(shown(word), want, "{word}");
        }
    }
}

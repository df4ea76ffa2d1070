//! Network mode, endpoints, ports, names.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use knarr_docker::{ContainerConfig, EndpointSettings, HostConfig, NetworkingConfig};
use knarr_model::{ContainerSpec, EndpointSpec, NetworkMode, PortBinding, PortSpec, Transport};

use super::counts::{self, MOST_PORTS};
use crate::error::{ApiError, Result, short};

/// The network that `default` means.
const DEFAULT_NETWORK: &str = "bridge";

pub(super) fn apply(
    config: &ContainerConfig,
    host: &HostConfig,
    networking: &NetworkingConfig,
    spec: &mut ContainerSpec,
    warnings: &mut Vec<String>,
) -> Result<()> {
    spec.network_mode = match config.network_disabled {
        true => NetworkMode::None,
        false => network_mode(&host.network_mode)?,
    };
    for (name, settings) in networking.endpoints_config.iter().flatten() {
        let name = if name == "default" { DEFAULT_NETWORK } else { name };
        let settings = settings.clone().unwrap_or_default();
        let mut endpoint = endpoint(&settings)?;
        if name == DEFAULT_NETWORK && !endpoint.aliases.is_empty() {
            return Err(ApiError::invalid(
                "network-scoped aliases are only supported for user-defined networks",
            ));
        }
        endpoint.mac =
            endpoint.mac.or_else(|| config.mac_address.clone().filter(|m| !m.is_empty()));
        spec.endpoints.insert(name.to_owned(), endpoint);
    }
    reconcile_endpoints(config, spec)?;
    ports(config, host, spec)?;
    names(host, spec)?;
    conflicts(spec)?;
    if spec.network_mode == NetworkMode::Host && (!spec.published.is_empty() || spec.publish_all) {
        warnings.push("Published ports are discarded when using host network mode".into());
        spec.published.clear();
        spec.publish_all = false;
    }
    Ok(())
}

fn network_mode(text: &str) -> Result<NetworkMode> {
    Ok(match text {
        "" | "default" | DEFAULT_NETWORK => NetworkMode::Default,
        "none" => NetworkMode::None,
        "host" => NetworkMode::Host,
        _ => match text.strip_prefix("container:") {
            Some("") => {
                return Err(ApiError::invalid(
                    "invalid network mode: invalid container format container:<name|id>",
                ));
            }
            Some(other) => NetworkMode::Container(other.to_owned()),
            None => NetworkMode::Network(text.to_owned()),
        },
    })
}

/// Mode and endpoints tell the same story: where a client named endpoints only,
/// the first of them is the mode; where it named a mode only, it is an endpoint.
fn reconcile_endpoints(config: &ContainerConfig, spec: &mut ContainerSpec) -> Result<()> {
    let primary = match &spec.network_mode {
        NetworkMode::Default => DEFAULT_NETWORK.to_owned(),
        NetworkMode::Network(name) => name.clone(),
        NetworkMode::None | NetworkMode::Host | NetworkMode::Container(_) => {
            // The docker client names an endpoint for these modes, too.
            let mode = ["none", "host", DEFAULT_NETWORK];
            let foreign =
                |name: &&String| !mode.contains(&name.as_str()) && !name.starts_with("container:");
            if let Some(name) = spec.endpoints.keys().find(foreign) {
                return Err(ApiError::invalid(format!(
                    "conflicting options: cannot attach both user-defined and non-user-defined network-modes ({name})"
                )));
            }
            spec.endpoints.clear();
            return Ok(());
        }
    };
    if spec.endpoints.is_empty() {
        let mac = config.mac_address.clone().filter(|mac| !mac.is_empty());
        spec.endpoints.insert(primary, EndpointSpec { mac, ..EndpointSpec::default() });
    } else if !spec.endpoints.contains_key(&primary) {
        match spec.network_mode {
            NetworkMode::Default => {
                if let Some(first) = spec.endpoints.keys().next() {
                    spec.network_mode = NetworkMode::Network(first.clone());
                }
            }
            // The mode may be an id where the endpoint has the name: the engine,
            // which knows both, finds out.
            _ => {
                spec.endpoints.insert(primary, EndpointSpec::default());
            }
        }
    }
    Ok(())
}

/// What a client asks of one endpoint.
pub(crate) fn endpoint(settings: &EndpointSettings) -> Result<EndpointSpec> {
    counts::check_endpoint(settings)?;
    let ipam = settings.ipam_config.clone().unwrap_or_default();
    let ipv4 = match ipam.ipv4_address.as_str() {
        "" => None,
        text => Some(
            text.parse::<Ipv4Addr>()
                .map_err(|_| ApiError::invalid(format!("invalid IPv4 address: {}", short(text))))?,
        ),
    };
    let ipv6 = match ipam.ipv6_address.as_str() {
        "" => None,
        text => Some(
            text.parse::<Ipv6Addr>()
                .map_err(|_| ApiError::invalid(format!("invalid IPv6 address: {}", short(text))))?,
        ),
    };
    let mac = match settings.mac_address.as_str() {
        "" => None,
        text if is_mac(text) => Some(text.to_ascii_lowercase()),
        text => return Err(ApiError::invalid(format!("invalid MAC address: {}", short(text)))),
    };
    let aliases = settings.aliases.clone().unwrap_or_default();
    if let Some(bad) = aliases.iter().find(|alias| !is_host_name(alias)) {
        return Err(ApiError::invalid(format!("invalid network alias {:?}", short(bad))));
    }
    Ok(EndpointSpec { aliases, ipv4, ipv6, mac })
}

fn is_mac(text: &str) -> bool {
    let bytes: Vec<&str> = text.split(':').collect();
    let byte = |part: &&str| part.len() == 2 && part.bytes().all(|c| c.is_ascii_hexdigit());
    bytes.len() == 6 && bytes.iter().all(byte)
}

fn is_host_name(text: &str) -> bool {
    (1..=253).contains(&text.len())
        && text.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'-' | b'_'))
}

/// `80/tcp` (or `80`).
pub(crate) fn port(text: &str) -> Result<PortSpec> {
    let bad = || ApiError::invalid(format!("invalid port specification: {:?}", short(text)));
    let (number, transport) = match text.split_once('/') {
        None => (text, Transport::Tcp),
        Some((number, kind)) => match kind.to_ascii_lowercase().as_str() {
            "" | "tcp" => (number, Transport::Tcp),
            "udp" => (number, Transport::Udp),
            "sctp" => return Err(ApiError::not_supported("publishing an SCTP port")),
            _ => return Err(ApiError::invalid(format!("invalid proto: {}", short(kind)))),
        },
    };
    match number.parse::<u16>() {
        Ok(port) if port > 0 && number.bytes().all(|c| c.is_ascii_digit()) => {
            Ok(PortSpec { port, transport })
        }
        _ => Err(bad()),
    }
}

fn ports(config: &ContainerConfig, host: &HostConfig, spec: &mut ContainerSpec) -> Result<()> {
    let mut count = 0_usize;
    let mut counted = |more: usize| {
        count += more;
        match count <= MOST_PORTS {
            true => Ok(()),
            false => Err(ApiError::invalid(format!("too many ports: {MOST_PORTS} at most"))),
        }
    };
    for exposed in config.exposed_ports.iter().flatten().map(|(text, _)| text) {
        let range = exposed_range(exposed)?;
        counted(range.len())?;
        spec.exposed_ports.extend(range);
    }
    for (text, bindings) in host.port_bindings.iter().flatten() {
        let container = port(text)?;
        counted(1)?;
        spec.exposed_ports.insert(container);
        for binding in bindings.iter().flatten() {
            counted(1)?;
            let host_ip = match binding.host_ip.as_str() {
                "" => None,
                ip => Some(ip.trim_matches(['[', ']']).parse::<IpAddr>().map_err(|_| {
                    ApiError::invalid(format!("invalid host IP address: {}", short(ip)))
                })?),
            };
            let (host_port, host_port_end) = host_ports(&binding.host_port)?;
            spec.published.push(PortBinding { container, host_ip, host_port, host_port_end });
        }
    }
    spec.publish_all = host.publish_all_ports;
    Ok(())
}

/// `80/tcp` or `8000-8010/udp`.
fn exposed_range(text: &str) -> Result<Vec<PortSpec>> {
    let (numbers, kind) = text.split_once('/').unwrap_or((text, "tcp"));
    match numbers.split_once('-') {
        None => Ok(vec![port(text)?]),
        Some((first, last)) => {
            let first = port(&format!("{first}/{kind}"))?;
            let last = port(&format!("{last}/{kind}"))?;
            if first.port > last.port {
                return Err(ApiError::invalid(format!("invalid range format: {:?}", short(text))));
            }
            Ok((first.port..=last.port).map(|port| PortSpec { port, ..first }).collect())
        }
    }
}

fn host_ports(text: &str) -> Result<(Option<u16>, Option<u16>)> {
    let number = |part: &str| {
        part.parse::<u16>().map_err(|_| {
            ApiError::invalid(format!("invalid port specification: {:?}", short(text)))
        })
    };
    match text.split_once('-') {
        None if text.is_empty() => Ok((None, None)),
        None => Ok((Some(number(text)?).filter(|port| *port > 0), None)),
        Some((first, last)) => {
            let (first, last) = (number(first)?, number(last)?);
            if first == 0 || first > last {
                return Err(ApiError::invalid(format!("invalid port range: {:?}", short(text))));
            }
            Ok((Some(first), Some(last)))
        }
    }
}

fn names(host: &HostConfig, spec: &mut ContainerSpec) -> Result<()> {
    for text in host.extra_hosts.iter().flatten() {
        let bad = || ApiError::invalid(format!("bad format for add-host: {:?}", short(text)));
        let (name, address) = text.split_once([':', '=']).ok_or_else(bad)?;
        let address = address.trim_matches(['[', ']']);
        if !is_host_name(name) || (address != "host-gateway" && address.parse::<IpAddr>().is_err())
        {
            return Err(ApiError::invalid(format!(
                "invalid IP address in add-host: {:?}",
                short(address)
            )));
        }
        spec.extra_hosts.push((name.to_owned(), address.to_owned()));
    }
    for text in host.dns.iter().flatten() {
        let address = text.parse().map_err(|_| {
            ApiError::invalid(format!("invalid DNS server address: {:?}", short(text)))
        })?;
        spec.dns.push(address);
    }
    // Each becomes a word of a line of resolv.conf.
    let word = |text: &String| {
        !text.is_empty() && text.len() <= 255 && text.bytes().all(|c| c.is_ascii_graphic())
    };
    for text in host.dns_search.iter().chain(&host.dns_options).flatten() {
        if !word(text) {
            return Err(ApiError::invalid(format!(
                "invalid DNS search or option: {:?}",
                short(text)
            )));
        }
    }
    spec.dns_search = host.dns_search.clone().unwrap_or_default();
    spec.dns_options = host.dns_options.clone().unwrap_or_default();
    Ok(())
}

/// What another container's namespace decides cannot be asked here.
fn conflicts(spec: &ContainerSpec) -> Result<()> {
    let NetworkMode::Container(_) = spec.network_mode else { return Ok(()) };
    let conflicts: BTreeMap<&str, bool> = BTreeMap::from([
        ("hostname and the network mode", spec.hostname.is_some()),
        ("dns and the network mode", !spec.dns.is_empty()),
        ("custom host-to-IP mapping and the network mode", !spec.extra_hosts.is_empty()),
        (
            "port publishing and the container type network mode",
            !spec.published.is_empty() || spec.publish_all,
        ),
        ("port exposing and the container type network mode", !spec.exposed_ports.is_empty()),
    ]);
    match conflicts.into_iter().find(|(_, asked)| *asked) {
        Some((what, _)) => Err(ApiError::invalid(format!("conflicting options: {what}"))),
        None => Ok(()),
    }
}

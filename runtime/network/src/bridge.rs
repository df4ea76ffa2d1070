//! A network's bridge on the host: made, found again, told from strangers'.
//!
//! A bridge carries `knarr:<instance>:<network id>` as its alias. One with the
//! alias of another engine, or an interface that is no bridge, is never touched.

use std::{collections::BTreeMap, io, net::Ipv4Addr};

use knarr_netlink::Socket;
use knarr_state::networks::NetworkRow;

use crate::{
    Error, Result,
    link::{self, Link},
    sysctl,
};

/// Option of Docker for the bridge's interface name.
pub(crate) const OPTION_NAME: &str = "com.docker.network.bridge.name";
/// Option of Docker: `false` keeps containers of one bridge apart.
pub(crate) const OPTION_ICC: &str = "com.docker.network.bridge.enable_icc";
/// Option of Docker: `false` lets containers out under their own addresses.
pub(crate) const OPTION_MASQUERADE: &str = "com.docker.network.bridge.enable_ip_masquerade";
/// Option of Docker: where ports are published that name no address.
pub(crate) const OPTION_HOST: &str = "com.docker.network.bridge.host_binding_ipv4";
/// Option of Docker: largest packet.
pub(crate) const OPTION_MTU: &str = "com.docker.network.driver.mtu";

/// Names an engine's bridges.
pub(crate) fn alias(instance: &str, network: &NetworkRow) -> String {
    format!("{}{}", prefix(instance), network.id)
}

/// With what the alias of every bridge of an engine begins.
pub(crate) fn prefix(instance: &str) -> String {
    format!("knarr:{instance}:")
}

/// The network's largest packet.
pub(crate) fn mtu(network: &NetworkRow, default: u32) -> u32 {
    network.options.get(OPTION_MTU).and_then(|mtu| mtu.parse().ok()).unwrap_or(default)
}

/// Whether a driver option says yes; as Go reads booleans.
pub(crate) fn says_no(options: &BTreeMap<String, String>, key: &str) -> bool {
    let no = ["0", "f", "F", "false", "False", "FALSE"];
    options.get(key).is_some_and(|value| no.contains(&value.as_str()))
}

/// Checks the driver options that are understood.
pub(crate) fn check_options(options: &BTreeMap<String, String>) -> Result<()> {
    if let Some(mtu) = options.get(OPTION_MTU)
        && !mtu.parse::<u32>().is_ok_and(|mtu| (68..=65535).contains(&mtu))
    {
        return Err(Error::Invalid(format!("invalid MTU {mtu:?}: want 68 to 65535")));
    }
    if let Some(name) = options.get(OPTION_NAME) {
        check_name(name)?;
    }
    if let Some(host) = options.get(OPTION_HOST)
        && host.parse::<Ipv4Addr>().is_err()
    {
        return Err(Error::Invalid(format!("invalid {OPTION_HOST} {host:?}: no IPv4 address")));
    }
    Ok(())
}

/// Checks the name of an interface as the kernel does.
pub(crate) fn check_name(name: &str) -> Result<()> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if (1..=15).contains(&name.len())
        && name.chars().all(good)
        && !name.trim_matches('.').is_empty()
    {
        Ok(())
    } else {
        Err(Error::Invalid(format!(
            "invalid bridge name {name:?}: want 1 to 15 letters and digits"
        )))
    }
}

/// Makes the bridge be there, up, with its address and settings. `links` is
/// what the host has. Answers its index.
pub(crate) fn ensure(
    socket: &Socket,
    network: &NetworkRow,
    instance: &str,
    default_mtu: u32,
    links: &[Link],
) -> Result<u32> {
    let Some(name) = network.bridge.as_deref() else { return Ok(0) };
    let what = format!("bridge {name} of network {}", network.name);
    let alias = alias(instance, network);
    match links.iter().find(|link| link.name == name) {
        Some(link) if link.kind != "bridge" => {
            return Err(Error::Conflict(format!("{what}: an interface of that name is no bridge")));
        }
        // One of this engine that had another id is taken over: no other network
        // of it has the bridge.
        Some(link)
            if link.alias.starts_with("knarr:") && !link.alias.starts_with(&prefix(instance)) =>
        {
            return Err(Error::Conflict(format!(
                "{what}: it belongs to another engine\n\nhint: give this engine a bridge of its own with --bridge"
            )));
        }
        Some(_) => {}
        None => {
            let mac = link::mac_of(network.gateway.unwrap_or(Ipv4Addr::UNSPECIFIED));
            link::create_bridge(socket, name, mac, mtu(network, default_mtu))
                .map_err(Error::kernel(format!("create {what}")))?;
        }
    }
    configure(socket, network, name, &alias).map_err(Error::kernel(format!("set up {what}")))
}

fn configure(socket: &Socket, network: &NetworkRow, name: &str, alias: &str) -> io::Result<u32> {
    let index = link::index(name)?;
    // IPv6 is off on our bridges: no address, so no way to the host that the
    // packet filter does not know. (Before the link is up, so that it has none yet.)
    sysctl::write(&format!("ipv6/conf/{name}/disable_ipv6"), "1")?;
    sysctl::write(&format!("ipv6/conf/{name}/accept_ra"), "0")?;
    let address = network.gateway.zip(network.subnet);
    link::configure_bridge(socket, index, alias, address)?;
    for other in link::addresses(socket, index)? {
        if address.is_none_or(|(gateway, subnet)| other != (gateway, subnet.prefix())) {
            link::remove_address(socket, index, other)?;
        }
    }
    // Lets 127.0.0.1 on the host reach published ports; the chain `raw` keeps
    // containers away from the host's loopback.
    sysctl::write(&format!("ipv4/conf/{name}/route_localnet"), "1")?;
    Ok(index)
}

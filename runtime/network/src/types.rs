//! What callers say and hear.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    path::Path,
};

use knarr_model::{ContainerId, EndpointSpec, PortSpec, Subnet4};
use knarr_state::networks::{EndpointRow, NetworkRow};

/// What is asked of a new network.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetworkSpec {
    /// Its name.
    pub name: String,
    /// `bridge` unless said.
    pub driver: Option<String>,
    /// No way out of it.
    pub internal: bool,
    /// Kept for inspect.
    pub attachable: bool,
    /// IPv6 is asked for.
    pub ipv6: bool,
    /// IPv6 subnet.
    pub subnet6: Option<String>,
    /// Its addresses; from the pools unless said.
    pub subnet: Option<Subnet4>,
    /// The host's address in it; the first one unless said.
    pub gateway: Option<Ipv4Addr>,
    /// Addresses are chosen from here.
    pub ip_range: Option<Subnet4>,
    /// Addresses that are never chosen, by the user's name for them.
    pub aux_addresses: BTreeMap<String, Ipv4Addr>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Driver options (`com.docker.network.bridge.name`, `com.docker.network.driver.mtu`, …).
    pub options: BTreeMap<String, String>,
}

/// A network, with those in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// What is known of it.
    pub row: NetworkRow,
    /// The running containers in it.
    pub endpoints: Vec<Endpoint>,
}

impl Network {
    /// `bridge`, `host` and `none` are always there.
    pub fn is_predefined(&self) -> bool {
        is_predefined(&self.row.name)
    }
}

pub(crate) fn is_predefined(name: &str) -> bool {
    matches!(name, "bridge" | "host" | "none")
}

/// A running container's place in one network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// What is kept of it.
    pub row: EndpointRow,
    /// The network's name.
    pub network_name: String,
    /// The network's driver: `bridge`, `host` or `null`.
    pub driver: String,
    /// The network's addresses.
    pub subnet: Option<Subnet4>,
    /// The network's gateway; none on internal networks.
    pub gateway: Option<Ipv4Addr>,
    /// Names that the network's DNS answers to; empty on the default bridge.
    pub dns_names: Vec<String>,
}

impl Endpoint {
    /// Interface name inside the container.
    pub fn interface(&self) -> String {
        format!("eth{}", self.row.index)
    }
}

/// What is asked of a container's place in a network.
#[derive(Debug, Clone, Copy)]
pub struct Attach<'a> {
    /// The container.
    pub container: &'a ContainerId,
    /// Its name.
    pub name: &'a str,
    /// Its host name.
    pub hostname: &'a str,
    /// Its network namespace: `/proc/<pid>/ns/net`.
    pub netns: &'a Path,
    /// The network by name or id.
    pub network: &'a str,
    /// Aliases and fixed addresses.
    pub spec: &'a EndpointSpec,
    /// Name servers that this container asked for (`--dns`); empty is the engine's.
    pub dns: &'a [IpAddr],
    /// It may give itself addresses (CAP_NET_ADMIN), so its packets may have any
    /// source; those of others have to have their own.
    pub any_source: bool,
}

/// A host port that is forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PublishedPort {
    /// The host's address; the unspecified one is every address of its family.
    pub host_ip: IpAddr,
    /// The host's port.
    pub host_port: u16,
    /// The container's port.
    pub port: PortSpec,
}

/// What decides a container's `/etc/resolv.conf`.
#[derive(Debug, Clone, Copy, Default)]
pub struct ResolvConf<'a> {
    /// The container is in a user-defined network: the name server is 127.0.0.11.
    pub embedded: bool,
    /// Name servers that the container asked for.
    pub dns: &'a [IpAddr],
    /// Search domains that it asked for; `.` alone is none at all.
    pub search: &'a [String],
    /// Options that it asked for.
    pub options: &'a [String],
}

/// What decides a container's `/etc/hosts`.
#[derive(Debug, Clone, Copy, Default)]
pub struct HostsFile<'a> {
    /// Its addresses.
    pub addresses: &'a [IpAddr],
    /// Its host name.
    pub hostname: &'a str,
    /// Its domain name.
    pub domainname: Option<&'a str>,
    /// `name`, `address` or `host-gateway`.
    pub extra: &'a [(String, String)],
}

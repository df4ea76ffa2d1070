//! Networks.

use std::collections::BTreeMap;

use crate::EndpointSettings;

wire! {
    /// A network, in the list and alone.
    #[serde(rename_all = "PascalCase")]
    pub struct Network {
        /// Name.
        pub name: String,
        /// Id.
        pub id: String,
        /// RFC 3339.
        pub created: String,
        /// `local`.
        pub scope: String,
        /// `bridge`, `host`, `null`.
        pub driver: String,
        /// Always on here, unless told otherwise.
        #[serde(rename = "EnableIPv4")]
        pub enable_ipv4: bool,
        /// IPv6 addresses.
        #[serde(rename = "EnableIPv6")]
        pub enable_ipv6: bool,
        /// Addresses.
        #[serde(rename = "IPAM")]
        pub ipam: Ipam,
        /// No way out.
        pub internal: bool,
        /// Swarm only.
        pub attachable: bool,
        /// Swarm only.
        pub ingress: bool,
        /// Swarm only.
        pub config_from: ConfigReference,
        /// Swarm only.
        pub config_only: bool,
        /// By container id; empty in the list.
        pub containers: BTreeMap<String, NetworkContainer>,
        /// Driver options.
        pub options: Option<BTreeMap<String, String>>,
        /// Labels.
        pub labels: Option<BTreeMap<String, String>>,
    }

    /// Swarm only.
    #[serde(rename_all = "PascalCase")]
    pub struct ConfigReference {
        /// Empty here.
        pub network: String,
    }

    /// Addresses of a network.
    #[serde(rename_all = "PascalCase")]
    pub struct Ipam {
        /// `default`.
        pub driver: String,
        /// Its options.
        pub options: Option<BTreeMap<String, String>>,
        /// Pools.
        pub config: Option<Vec<IpamConfig>>,
    }

    /// A pool of addresses.
    #[serde(rename_all = "PascalCase")]
    pub struct IpamConfig {
        /// `172.18.0.0/16`.
        #[serde(skip_serializing_if = "String::is_empty")]
        pub subnet: String,
        /// The part that is given out.
        #[serde(rename = "IPRange", skip_serializing_if = "String::is_empty")]
        pub ip_range: String,
        /// The bridge's own address.
        #[serde(skip_serializing_if = "String::is_empty")]
        pub gateway: String,
        /// Addresses that are taken.
        #[serde(rename = "AuxiliaryAddresses", skip_serializing_if = "Option::is_none")]
        pub aux_addresses: Option<BTreeMap<String, String>>,
    }

    /// A container in a network.
    #[serde(rename_all = "PascalCase")]
    pub struct NetworkContainer {
        /// Without the slash.
        pub name: String,
        /// Endpoint.
        #[serde(rename = "EndpointID")]
        pub endpoint_id: String,
        /// Hardware address.
        pub mac_address: String,
        /// With prefix length.
        #[serde(rename = "IPv4Address")]
        pub ipv4_address: String,
        /// With prefix length.
        #[serde(rename = "IPv6Address")]
        pub ipv6_address: String,
    }

    /// Body of `POST /networks/create`.
    #[serde(rename_all = "PascalCase")]
    pub struct NetworkCreateRequest {
        /// Name.
        pub name: String,
        /// `bridge` where empty.
        pub driver: String,
        /// `local` where empty.
        pub scope: String,
        /// Off only with IPv6.
        #[serde(rename = "EnableIPv4", skip_serializing_if = "Option::is_none")]
        pub enable_ipv4: Option<bool>,
        /// IPv6 addresses.
        #[serde(rename = "EnableIPv6", skip_serializing_if = "Option::is_none")]
        pub enable_ipv6: Option<bool>,
        /// Addresses.
        #[serde(rename = "IPAM")]
        pub ipam: Option<Ipam>,
        /// No way out.
        pub internal: bool,
        /// Swarm only.
        pub attachable: bool,
        /// Swarm only.
        pub ingress: bool,
        /// Swarm only.
        pub config_only: bool,
        /// Driver options.
        pub options: Option<BTreeMap<String, String>>,
        /// Labels.
        pub labels: Option<BTreeMap<String, String>>,
    }

    /// Answer of `POST /networks/create`.
    #[serde(rename_all = "PascalCase")]
    pub struct NetworkCreateResponse {
        /// The new network.
        pub id: String,
        /// What was accepted but does nothing.
        pub warning: String,
    }

    /// Body of `POST /networks/{id}/connect`.
    #[serde(rename_all = "PascalCase")]
    pub struct NetworkConnectRequest {
        /// Name or id.
        pub container: String,
        /// What is asked of its place.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub endpoint_config: Option<EndpointSettings>,
    }

    /// Body of `POST /networks/{id}/disconnect`.
    #[serde(rename_all = "PascalCase")]
    pub struct NetworkDisconnectRequest {
        /// Name or id.
        pub container: String,
        /// Whatever its state.
        pub force: bool,
    }
}

//! Containers: what is asked, and the list.

use std::collections::BTreeMap;

use crate::{Empty, HostConfig, Words, is_zero};

wire! {
    /// What runs in a container, independent of the host (`Config`).
    #[serde(rename_all = "PascalCase")]
    pub struct ContainerConfig {
        /// Host name; the short id where empty.
        pub hostname: String,
        /// NIS domain name.
        pub domainname: String,
        /// `user[:group]`.
        pub user: String,
        /// The client attaches standard input.
        pub attach_stdin: bool,
        /// The client attaches standard output.
        pub attach_stdout: bool,
        /// The client attaches standard error.
        pub attach_stderr: bool,
        /// `80/tcp` to nothing.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub exposed_ports: Option<BTreeMap<String, Empty>>,
        /// A pseudo-terminal.
        pub tty: bool,
        /// Standard input is a pipe.
        pub open_stdin: bool,
        /// It closes when the first client goes.
        pub stdin_once: bool,
        /// `NAME=value`.
        pub env: Option<Vec<String>>,
        /// Replaces the image's command.
        pub cmd: Option<Words>,
        /// How health is probed.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub healthcheck: Option<HealthConfig>,
        /// Windows only.
        #[serde(skip_serializing_if = "is_zero")]
        pub args_escaped: bool,
        /// Reference or id.
        pub image: String,
        /// Anonymous volumes by path.
        pub volumes: Option<BTreeMap<String, Empty>>,
        /// Working directory.
        pub working_dir: String,
        /// Replaces the image's entrypoint.
        pub entrypoint: Option<Words>,
        /// No network at all.
        #[serde(skip_serializing_if = "is_zero")]
        pub network_disabled: bool,
        /// Deprecated by 1.44 for the endpoint's.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub mac_address: Option<String>,
        /// Build triggers of the image.
        pub on_build: Option<Vec<String>>,
        /// Labels.
        pub labels: Option<BTreeMap<String, String>>,
        /// What `stop` sends.
        #[serde(skip_serializing_if = "String::is_empty")]
        pub stop_signal: String,
        /// Seconds that `stop` waits.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub stop_timeout: Option<i64>,
        /// Shell of the image's shell forms.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub shell: Option<Vec<String>>,
    }

    /// How health is probed; durations in nanoseconds.
    #[serde(rename_all = "PascalCase")]
    pub struct HealthConfig {
        /// `["NONE"]`, `["CMD", …]` or `["CMD-SHELL", …]`.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub test: Option<Vec<String>>,
        /// Between two probes.
        #[serde(skip_serializing_if = "is_zero")]
        pub interval: i64,
        /// Of one probe.
        #[serde(skip_serializing_if = "is_zero")]
        pub timeout: i64,
        /// Before failures count.
        #[serde(skip_serializing_if = "is_zero")]
        pub start_period: i64,
        /// Between two probes in that time.
        #[serde(skip_serializing_if = "is_zero")]
        pub start_interval: i64,
        /// Failures in a row until it is unhealthy.
        #[serde(skip_serializing_if = "is_zero")]
        pub retries: i64,
    }

    /// Body of `POST /containers/create`: a [`ContainerConfig`] with two more fields.
    #[serde(rename_all = "PascalCase")]
    pub struct ContainerCreateRequest {
        /// The configuration's own fields stand beside the other two.
        #[serde(flatten)]
        pub config: ContainerConfig,
        /// What the host gives.
        pub host_config: Option<HostConfig>,
        /// Networks.
        pub networking_config: Option<NetworkingConfig>,
    }

    /// Networks of a new container.
    #[serde(rename_all = "PascalCase")]
    pub struct NetworkingConfig {
        /// By name or id; `null` is the default place.
        pub endpoints_config: Option<BTreeMap<String, Option<EndpointSettings>>>,
    }

    /// A container's place in one network: asked and found.
    #[serde(rename_all = "PascalCase")]
    pub struct EndpointSettings {
        /// Fixed addresses that were asked for.
        #[serde(rename = "IPAMConfig")]
        pub ipam_config: Option<EndpointIpamConfig>,
        /// Legacy links.
        pub links: Option<Vec<String>>,
        /// Names that were asked for.
        pub aliases: Option<Vec<String>>,
        /// Hardware address.
        pub mac_address: String,
        /// Driver options.
        pub driver_opts: Option<BTreeMap<String, String>>,
        /// Who is the default gateway, where several could be.
        #[serde(skip_serializing_if = "is_zero")]
        pub gw_priority: i64,
        /// The network.
        #[serde(rename = "NetworkID")]
        pub network_id: String,
        /// The endpoint.
        #[serde(rename = "EndpointID")]
        pub endpoint_id: String,
        /// IPv4 gateway.
        pub gateway: String,
        /// IPv4 address.
        #[serde(rename = "IPAddress")]
        pub ip_address: String,
        /// Of the IPv4 address.
        #[serde(rename = "IPPrefixLen")]
        pub ip_prefix_len: i64,
        /// IPv6 gateway.
        #[serde(rename = "IPv6Gateway")]
        pub ipv6_gateway: String,
        /// IPv6 address.
        #[serde(rename = "GlobalIPv6Address")]
        pub global_ipv6_address: String,
        /// Of the IPv6 address.
        #[serde(rename = "GlobalIPv6PrefixLen")]
        pub global_ipv6_prefix_len: i64,
        /// Every name that resolves to it there.
        #[serde(rename = "DNSNames")]
        pub dns_names: Option<Vec<String>>,
    }

    /// Fixed addresses.
    #[serde(rename_all = "PascalCase")]
    pub struct EndpointIpamConfig {
        /// IPv4.
        #[serde(rename = "IPv4Address", skip_serializing_if = "String::is_empty")]
        pub ipv4_address: String,
        /// IPv6.
        #[serde(rename = "IPv6Address", skip_serializing_if = "String::is_empty")]
        pub ipv6_address: String,
        /// Link-local addresses.
        #[serde(rename = "LinkLocalIPs", skip_serializing_if = "Option::is_none")]
        pub link_local_ips: Option<Vec<String>>,
    }

    /// Answer of `POST /containers/create`.
    #[serde(rename_all = "PascalCase")]
    pub struct ContainerCreateResponse {
        /// The new container.
        pub id: String,
        /// What was accepted but does nothing.
        pub warnings: Vec<String>,
    }

    /// One row of `GET /containers/json`.
    #[serde(rename_all = "PascalCase")]
    pub struct ContainerSummary {
        /// Id.
        pub id: String,
        /// With a leading `/`.
        pub names: Vec<String>,
        /// As the user named it.
        pub image: String,
        /// `sha256:…`.
        #[serde(rename = "ImageID")]
        pub image_id: String,
        /// Entrypoint and arguments in one line.
        pub command: String,
        /// Seconds since 1970.
        pub created: i64,
        /// Ports.
        pub ports: Vec<Port>,
        /// Bytes of the writable layer, where asked for.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub size_rw: Option<i64>,
        /// Bytes with the image, where asked for.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub size_root_fs: Option<i64>,
        /// Labels.
        pub labels: BTreeMap<String, String>,
        /// `running`, `exited` …
        pub state: String,
        /// `Up 5 minutes`.
        pub status: String,
        /// A part of the host's configuration.
        pub host_config: SummaryHostConfig,
        /// Networks.
        pub network_settings: Option<SummaryNetworkSettings>,
        /// Mounts.
        pub mounts: Vec<MountPoint>,
        /// Knarr's own: `native` or the Wasm ABI.
        #[serde(rename = "Knarr", skip_serializing_if = "Option::is_none")]
        pub knarr: Option<KnarrSummary>,
    }

    /// What the list says of a container beyond Docker.
    #[serde(rename_all = "PascalCase")]
    pub struct KnarrSummary {
        /// `native` or `wasm`.
        pub workload: String,
        /// `preview1-command`, `component-command`, `http-proxy`; empty for native.
        #[serde(skip_serializing_if = "String::is_empty")]
        pub abi: String,
    }

    /// A part of the host's configuration.
    #[serde(rename_all = "PascalCase")]
    pub struct SummaryHostConfig {
        /// `bridge`, `host`, …
        pub network_mode: String,
        /// Annotations.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub annotations: Option<BTreeMap<String, String>>,
    }

    /// Networks of a row.
    #[serde(rename_all = "PascalCase")]
    pub struct SummaryNetworkSettings {
        /// By name.
        pub networks: BTreeMap<String, EndpointSettings>,
    }

    /// A port of a row; the order of the fields is Docker's.
    #[serde(rename_all = "PascalCase")]
    pub struct Port {
        /// Host address.
        #[serde(rename = "IP", skip_serializing_if = "String::is_empty")]
        pub ip: String,
        /// In the container.
        pub private_port: u16,
        /// On the host; 0 where it is not published.
        #[serde(skip_serializing_if = "is_zero")]
        pub public_port: u16,
        /// `tcp` or `udp`.
        #[serde(rename = "Type")]
        pub kind: String,
    }

    /// A mount of a container as it is.
    #[serde(rename_all = "PascalCase")]
    pub struct MountPoint {
        /// `bind`, `volume` or `tmpfs`.
        #[serde(rename = "Type", skip_serializing_if = "String::is_empty")]
        pub kind: String,
        /// Volume's name.
        #[serde(skip_serializing_if = "String::is_empty")]
        pub name: String,
        /// Path on the host.
        pub source: String,
        /// Path in the container.
        pub destination: String,
        /// Volume's driver.
        #[serde(skip_serializing_if = "String::is_empty")]
        pub driver: String,
        /// As `-v` said it.
        pub mode: String,
        /// Writable.
        #[serde(rename = "RW")]
        pub rw: bool,
        /// Mount propagation.
        pub propagation: String,
    }

    /// Answer of `GET /containers/{id}/top`.
    #[serde(rename_all = "PascalCase")]
    pub struct TopResponse {
        /// Column names.
        pub titles: Vec<String>,
        /// A row a process.
        pub processes: Vec<Vec<String>>,
    }

    /// Answer of `POST /containers/{id}/wait`.
    #[serde(rename_all = "PascalCase")]
    pub struct WaitResponse {
        /// Exit code.
        pub status_code: i64,
        /// Why the wait failed.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub error: Option<WaitError>,
    }

    /// Why a wait failed.
    #[serde(rename_all = "PascalCase")]
    pub struct WaitError {
        /// For people.
        pub message: String,
    }
}

//! The engine itself.

use std::collections::BTreeMap;

use crate::{ContainerSummary, ImageDelete, ImageSummary, Volume};

wire! {
    /// Answer of `GET /version`.
    #[serde(rename_all = "PascalCase")]
    pub struct Version {
        /// Who this is.
        pub platform: VersionPlatform,
        /// Parts with versions of their own.
        pub components: Vec<VersionComponent>,
        /// Of the engine.
        pub version: String,
        /// Newest it speaks.
        pub api_version: String,
        /// Oldest it speaks.
        #[serde(rename = "MinAPIVersion")]
        pub min_api_version: String,
        /// Of the source.
        pub git_commit: String,
        /// Docker's word for the compiler's version.
        pub go_version: String,
        /// `linux`.
        pub os: String,
        /// `amd64`.
        pub arch: String,
        /// Of the kernel.
        pub kernel_version: String,
        /// RFC 3339.
        pub build_time: String,
    }

    /// Who this is.
    #[serde(rename_all = "PascalCase")]
    pub struct VersionPlatform {
        /// `Knarr`.
        pub name: String,
    }

    /// A part with a version of its own.
    #[serde(rename_all = "PascalCase")]
    pub struct VersionComponent {
        /// Name.
        pub name: String,
        /// Version.
        pub version: String,
        /// Facts.
        pub details: Option<BTreeMap<String, String>>,
    }

    /// Answer of `GET /info`.
    #[serde(rename_all = "PascalCase")]
    pub struct Info {
        /// Of this engine's data root.
        #[serde(rename = "ID")]
        pub id: String,
        /// All.
        pub containers: i64,
        /// Running.
        pub containers_running: i64,
        /// Frozen.
        pub containers_paused: i64,
        /// The others.
        pub containers_stopped: i64,
        /// Images.
        pub images: i64,
        /// `overlay2`.
        pub driver: String,
        /// Facts of it.
        pub driver_status: Option<Vec<[String; 2]>>,
        /// Drivers.
        pub plugins: Plugins,
        /// Can be limited.
        pub memory_limit: bool,
        /// Can be limited.
        pub swap_limit: bool,
        /// Can be limited.
        pub cpu_cfs_period: bool,
        /// Can be limited.
        pub cpu_cfs_quota: bool,
        /// Can be weighed.
        #[serde(rename = "CPUShares")]
        pub cpu_shares: bool,
        /// Can be chosen.
        #[serde(rename = "CPUSet")]
        pub cpu_set: bool,
        /// Can be limited.
        pub pids_limit: bool,
        /// The host forwards packets.
        #[serde(rename = "IPv4Forwarding")]
        pub ipv4_forwarding: bool,
        /// Debug logs.
        pub debug: bool,
        /// Open files.
        #[serde(rename = "NFd")]
        pub n_fd: i64,
        /// Can be disabled.
        pub oom_kill_disable: bool,
        /// Docker's word for tasks.
        pub n_goroutines: i64,
        /// RFC 3339.
        pub system_time: String,
        /// `json-file`.
        pub logging_driver: String,
        /// `cgroupfs`.
        pub cgroup_driver: String,
        /// `1` or `2`.
        pub cgroup_version: String,
        /// Who listens for events.
        pub n_events_listener: i64,
        /// Of the host.
        pub kernel_version: String,
        /// Of the host.
        pub operating_system: String,
        /// Of the host.
        #[serde(rename = "OSVersion")]
        pub os_version: String,
        /// `linux`.
        #[serde(rename = "OSType")]
        pub os_type: String,
        /// As the kernel says it.
        pub architecture: String,
        /// Where a name without one is looked up.
        pub index_server_address: String,
        /// Registries by configuration.
        pub registry_config: Option<serde_json::Value>,
        /// Processors.
        #[serde(rename = "NCPU")]
        pub ncpu: i64,
        /// Bytes.
        pub mem_total: i64,
        /// Swarm only.
        pub generic_resources: Option<Vec<serde_json::Value>>,
        /// Data root.
        pub docker_root_dir: String,
        /// Of the engine's environment.
        pub http_proxy: String,
        /// Of the engine's environment.
        pub https_proxy: String,
        /// Of the engine's environment.
        pub no_proxy: String,
        /// Host name.
        pub name: String,
        /// Of the engine.
        pub labels: Vec<String>,
        /// Off.
        pub experimental_build: bool,
        /// Of the engine.
        pub server_version: String,
        /// What `--runtime` may name.
        pub runtimes: BTreeMap<String, Runtime>,
        /// What it is by default.
        pub default_runtime: String,
        /// Always inactive.
        pub swarm: SwarmInfo,
        /// Containers outlive the daemon.
        pub live_restore_enabled: bool,
        /// Windows only.
        pub isolation: String,
        /// What `--init` runs.
        pub init_binary: String,
        /// Docker's word for a part of it.
        pub containerd_commit: Commit,
        /// Docker's word for a part of it.
        pub runc_commit: Commit,
        /// Docker's word for a part of it.
        pub init_commit: Commit,
        /// `name=seccomp,profile=builtin`.
        pub security_options: Vec<String>,
        /// Pools of new networks.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub default_address_pools: Option<Vec<AddressPool>>,
        /// What the host lacks.
        pub warnings: Option<Vec<String>>,
    }

    /// Drivers.
    #[serde(rename_all = "PascalCase")]
    pub struct Plugins {
        /// Of volumes.
        pub volume: Vec<String>,
        /// Of networks.
        pub network: Vec<String>,
        /// None.
        pub authorization: Option<Vec<String>>,
        /// Of logs.
        pub log: Vec<String>,
    }

    /// A runtime.
    pub struct Runtime {
        /// Program.
        pub path: String,
    }

    /// Swarm: inactive.
    #[serde(rename_all = "PascalCase")]
    pub struct SwarmInfo {
        /// Empty.
        #[serde(rename = "NodeID")]
        pub node_id: String,
        /// Empty.
        pub node_addr: String,
        /// `inactive`.
        pub local_node_state: String,
        /// No.
        pub control_available: bool,
        /// Empty.
        pub error: String,
        /// None.
        pub remote_managers: Option<Vec<serde_json::Value>>,
    }

    /// A part's version.
    pub struct Commit {
        /// As it names itself.
        #[serde(rename = "ID")]
        pub id: String,
    }

    /// A pool that new networks take their subnets from.
    #[serde(rename_all = "PascalCase")]
    pub struct AddressPool {
        /// `172.17.0.0/12`.
        pub base: String,
        /// Prefix length of one subnet.
        pub size: i64,
    }

    /// Answer of `GET /system/df`.
    #[serde(rename_all = "PascalCase")]
    pub struct DiskUsage {
        /// Bytes of all layers, each once.
        pub layers_size: i64,
        /// Images.
        pub images: Vec<ImageSummary>,
        /// Containers.
        pub containers: Vec<ContainerSummary>,
        /// Volumes with usage.
        pub volumes: Vec<Volume>,
        /// None yet.
        pub build_cache: Vec<serde_json::Value>,
    }

    /// Answer of `POST /containers/prune`.
    #[serde(rename_all = "PascalCase")]
    pub struct ContainersPruned {
        /// Gone.
        pub containers_deleted: Option<Vec<String>>,
        /// Bytes.
        pub space_reclaimed: u64,
    }

    /// Answer of `POST /images/prune`.
    #[serde(rename_all = "PascalCase")]
    pub struct ImagesPruned {
        /// Gone.
        pub images_deleted: Option<Vec<ImageDelete>>,
        /// Bytes.
        pub space_reclaimed: u64,
    }

    /// Answer of `POST /volumes/prune`.
    #[serde(rename_all = "PascalCase")]
    pub struct VolumesPruned {
        /// Gone.
        pub volumes_deleted: Option<Vec<String>>,
        /// Bytes.
        pub space_reclaimed: u64,
    }

    /// Answer of `POST /networks/prune`.
    #[serde(rename_all = "PascalCase")]
    pub struct NetworksPruned {
        /// Gone.
        pub networks_deleted: Option<Vec<String>>,
    }

    /// Credentials: body of `POST /auth` and content of `X-Registry-Auth`.
    #[serde(rename_all = "lowercase")]
    pub struct AuthConfig {
        /// User.
        #[serde(skip_serializing_if = "String::is_empty")]
        pub username: String,
        /// Password.
        #[serde(skip_serializing_if = "String::is_empty")]
        pub password: String,
        /// `user:password` in base64.
        #[serde(skip_serializing_if = "String::is_empty")]
        pub auth: String,
        /// Registry.
        #[serde(skip_serializing_if = "String::is_empty")]
        pub serveraddress: String,
        /// OAuth2 refresh token.
        #[serde(skip_serializing_if = "String::is_empty")]
        pub identitytoken: String,
        /// Bearer token.
        #[serde(skip_serializing_if = "String::is_empty")]
        pub registrytoken: String,
    }

    /// Answer of `POST /auth`.
    #[serde(rename_all = "PascalCase")]
    pub struct AuthResponse {
        /// `Login Succeeded`.
        pub status: String,
        /// OAuth2 refresh token.
        pub identity_token: String,
    }
}

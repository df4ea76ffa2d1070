//! `GET /containers/{id}/json`.

use std::collections::BTreeMap;

use crate::{ContainerConfig, EndpointSettings, HostConfig, HostPortBinding, MountPoint};

wire! {
    /// Everything about one container.
    #[serde(rename_all = "PascalCase")]
    pub struct ContainerInspect {
        /// Id.
        pub id: String,
        /// RFC 3339.
        pub created: String,
        /// The program.
        pub path: String,
        /// Its arguments.
        pub args: Vec<String>,
        /// What it is doing.
        pub state: ContainerState,
        /// Image id.
        pub image: String,
        /// On the host.
        pub resolv_conf_path: String,
        /// On the host.
        pub hostname_path: String,
        /// On the host.
        pub hosts_path: String,
        /// On the host.
        pub log_path: String,
        /// With a leading `/`.
        pub name: String,
        /// Times the restart policy started it.
        pub restart_count: i64,
        /// `overlay2`.
        pub driver: String,
        /// `linux`.
        pub platform: String,
        /// Empty here.
        pub mount_label: String,
        /// Empty here.
        pub process_label: String,
        /// The AppArmor profile, where one was asked for.
        pub app_armor_profile: String,
        /// Execs that run.
        #[serde(rename = "ExecIDs")]
        pub exec_ids: Option<Vec<String>>,
        /// What was asked of the host.
        pub host_config: HostConfig,
        /// Where the layers are.
        pub graph_driver: GraphDriver,
        /// Bytes of the writable layer, where asked for.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub size_rw: Option<i64>,
        /// Bytes with the image, where asked for.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub size_root_fs: Option<i64>,
        /// Mounts as they are.
        pub mounts: Vec<MountPoint>,
        /// Configuration with the image's merged in.
        pub config: ContainerConfig,
        /// Networks as they are.
        pub network_settings: NetworkSettings,
        /// Knarr's own.
        #[serde(rename = "Knarr", skip_serializing_if = "Option::is_none")]
        pub knarr: Option<KnarrWorkload>,
    }

    /// What an image or a container is, beyond Docker.
    #[serde(rename_all = "PascalCase")]
    pub struct KnarrWorkload {
        /// `native` or `wasm`.
        pub workload: String,
        /// The rule that decided it.
        #[serde(skip_serializing_if = "String::is_empty")]
        pub reason: String,
        /// `preview1-command`, `component-command`, `http-proxy`.
        #[serde(skip_serializing_if = "String::is_empty")]
        pub abi: String,
        /// Digest of the module.
        #[serde(skip_serializing_if = "String::is_empty")]
        pub module: String,
        /// Where it lies in the root filesystem.
        #[serde(skip_serializing_if = "String::is_empty")]
        pub module_path: String,
        /// What the program imports.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub imports: Option<Vec<String>>,
        /// What it exports.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub exports: Option<Vec<String>>,
    }

    /// What a container is doing.
    #[serde(rename_all = "PascalCase")]
    pub struct ContainerState {
        /// `created`, `running`, `paused`, `restarting`, `removing`, `exited`, `dead`.
        pub status: String,
        /// It has a process.
        pub running: bool,
        /// It is frozen.
        pub paused: bool,
        /// The restart policy waits.
        pub restarting: bool,
        /// The OOM killer ended it.
        #[serde(rename = "OOMKilled")]
        pub oom_killed: bool,
        /// Removal failed half way.
        pub dead: bool,
        /// On the host; 0 without a process.
        pub pid: i64,
        /// Of the last run.
        pub exit_code: i64,
        /// Why the last start failed.
        pub error: String,
        /// RFC 3339.
        pub started_at: String,
        /// RFC 3339.
        pub finished_at: String,
        /// Where health is probed.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub health: Option<serde_json::Value>,
    }

    /// Where the layers are.
    #[serde(rename_all = "PascalCase")]
    pub struct GraphDriver {
        /// Driver's facts.
        pub data: Option<BTreeMap<String, String>>,
        /// `overlay2`.
        pub name: String,
    }

    /// Networks of a container as they are.
    #[serde(rename_all = "PascalCase")]
    pub struct NetworkSettings {
        /// Bridge of the default network.
        pub bridge: String,
        /// Network namespace.
        #[serde(rename = "SandboxID")]
        pub sandbox_id: String,
        /// Its path.
        pub sandbox_key: String,
        /// Published ports as they are.
        pub ports: Option<BTreeMap<String, Option<Vec<HostPortBinding>>>>,
        /// Deprecated, always off.
        #[serde(rename = "HairpinMode")]
        pub hairpin_mode: bool,
        /// Of the default bridge.
        #[serde(rename = "EndpointID")]
        pub endpoint_id: String,
        /// Of the default bridge.
        pub gateway: String,
        /// Of the default bridge.
        #[serde(rename = "GlobalIPv6Address")]
        pub global_ipv6_address: String,
        /// Of the default bridge.
        #[serde(rename = "GlobalIPv6PrefixLen")]
        pub global_ipv6_prefix_len: i64,
        /// Of the default bridge.
        #[serde(rename = "IPAddress")]
        pub ip_address: String,
        /// Of the default bridge.
        #[serde(rename = "IPPrefixLen")]
        pub ip_prefix_len: i64,
        /// Of the default bridge.
        #[serde(rename = "IPv6Gateway")]
        pub ipv6_gateway: String,
        /// Of the default bridge.
        pub mac_address: String,
        /// By name.
        pub networks: BTreeMap<String, EndpointSettings>,
    }
}

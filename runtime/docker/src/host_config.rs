//! What the host gives a container (`HostConfig`, 69 fields).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Words, is_zero};

/// What the host gives a container. Fields without a meaning here are kept as
/// they came, so that `inspect` answers what was asked.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct HostConfig {
    /// The fields that mean something.
    #[serde(flatten)]
    pub known: KnownHostConfig,
    /// All others.
    #[serde(flatten)]
    pub other: BTreeMap<String, serde_json::Value>,
}

impl std::ops::Deref for HostConfig {
    type Target = KnownHostConfig;
    fn deref(&self) -> &KnownHostConfig {
        &self.known
    }
}

impl std::ops::DerefMut for HostConfig {
    fn deref_mut(&mut self) -> &mut KnownHostConfig {
        &mut self.known
    }
}

wire! {
    /// The known fields of a [`HostConfig`].
    #[serde(rename_all = "PascalCase")]
    pub struct KnownHostConfig {
        /// `source:target[:mode]`.
        pub binds: Option<Vec<String>>,
        /// Where the client wrote the id.
        #[serde(rename = "ContainerIDFile")]
        pub container_id_file: String,
        /// How output is kept.
        pub log_config: HostLogConfig,
        /// `default`, `bridge`, `host`, `none`, `container:ID`, a network.
        pub network_mode: String,
        /// `80/tcp` to host addresses.
        pub port_bindings: Option<BTreeMap<String, Option<Vec<HostPortBinding>>>>,
        /// What happens at the exit.
        pub restart_policy: HostRestartPolicy,
        /// Removed at the exit.
        pub auto_remove: bool,
        /// Driver of volumes made by `binds`.
        pub volume_driver: String,
        /// Containers whose volumes are taken over.
        pub volumes_from: Option<Vec<String>>,
        /// Rows and columns of the first terminal.
        pub console_size: [u16; 2],
        /// Annotations for the runtime.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub annotations: Option<BTreeMap<String, String>>,
        /// More capabilities.
        pub cap_add: Option<Words>,
        /// Fewer capabilities.
        pub cap_drop: Option<Words>,
        /// `private`, `host`.
        pub cgroupns_mode: String,
        /// Name servers.
        pub dns: Option<Vec<String>>,
        /// Resolver options.
        pub dns_options: Option<Vec<String>>,
        /// Search domains.
        pub dns_search: Option<Vec<String>>,
        /// `name:address`.
        pub extra_hosts: Option<Vec<String>>,
        /// Supplementary groups.
        pub group_add: Option<Vec<String>>,
        /// IPC namespace.
        pub ipc_mode: String,
        /// Legacy.
        pub cgroup: String,
        /// Legacy links.
        pub links: Option<Vec<String>>,
        /// -1000 to 1000.
        pub oom_score_adj: i64,
        /// Process namespace.
        pub pid_mode: String,
        /// No confinement.
        pub privileged: bool,
        /// Every exposed port is published.
        pub publish_all_ports: bool,
        /// Nothing can be written to the root filesystem.
        pub readonly_rootfs: bool,
        /// `no-new-privileges`, `seccomp=…`.
        pub security_opt: Option<Vec<String>>,
        /// Storage driver options.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub storage_opt: Option<BTreeMap<String, String>>,
        /// Path to mount options.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub tmpfs: Option<BTreeMap<String, String>>,
        /// Host name namespace.
        #[serde(rename = "UTSMode")]
        pub uts_mode: String,
        /// User namespace.
        pub userns_mode: String,
        /// Bytes of `/dev/shm`.
        pub shm_size: i64,
        /// Namespaced sysctls.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub sysctls: Option<BTreeMap<String, String>>,
        /// OCI runtime.
        pub runtime: String,
        /// Windows only.
        pub isolation: String,
        /// Relative CPU weight.
        pub cpu_shares: i64,
        /// Bytes of memory.
        pub memory: i64,
        /// Billionths of a CPU.
        pub nano_cpus: i64,
        /// Parent cgroup.
        pub cgroup_parent: String,
        /// Block I/O weight.
        pub blkio_weight: u16,
        /// Microseconds of a CPU period.
        pub cpu_period: i64,
        /// Microseconds of CPU a period.
        pub cpu_quota: i64,
        /// Realtime period.
        pub cpu_realtime_period: i64,
        /// Realtime runtime.
        pub cpu_realtime_runtime: i64,
        /// `0-2,4`.
        pub cpuset_cpus: String,
        /// Memory nodes.
        pub cpuset_mems: String,
        /// Devices of the host.
        pub devices: Option<Vec<DeviceMapping>>,
        /// `c 1:3 rwm`.
        pub device_cgroup_rules: Option<Vec<String>>,
        /// Devices by driver (`--gpus`).
        pub device_requests: Option<Vec<serde_json::Value>>,
        /// Soft memory limit in bytes.
        pub memory_reservation: i64,
        /// Memory and swap in bytes; -1 without limit.
        pub memory_swap: i64,
        /// 0 to 100; -1 or null keeps the kernel's.
        pub memory_swappiness: Option<i64>,
        /// The OOM killer leaves it alone.
        pub oom_kill_disable: Option<bool>,
        /// Processes; 0, -1 or null without limit.
        pub pids_limit: Option<i64>,
        /// Resource limits.
        pub ulimits: Option<Vec<HostUlimit>>,
        /// `--mount`.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub mounts: Option<Vec<Mount>>,
        /// Paths hidden; null is the default list.
        pub masked_paths: Option<Vec<String>>,
        /// Paths read-only; null is the default list.
        pub readonly_paths: Option<Vec<String>>,
        /// An init as PID 1.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub init: Option<bool>,
    }

    /// How output is kept.
    #[serde(rename_all = "PascalCase")]
    pub struct HostLogConfig {
        /// `json-file`, `local`, `none`.
        #[serde(rename = "Type")]
        pub kind: String,
        /// `max-size`, `max-file`.
        pub config: Option<BTreeMap<String, String>>,
    }

    /// What happens at the exit.
    #[serde(rename_all = "PascalCase")]
    pub struct HostRestartPolicy {
        /// `no`, `always`, `unless-stopped`, `on-failure` or empty.
        pub name: String,
        /// For `on-failure`.
        pub maximum_retry_count: i64,
    }

    /// A host address and port.
    #[serde(rename_all = "PascalCase")]
    pub struct HostPortBinding {
        /// Address; empty is all.
        pub host_ip: String,
        /// Port or range; empty is any.
        pub host_port: String,
    }

    /// A device of the host.
    #[serde(rename_all = "PascalCase")]
    pub struct DeviceMapping {
        /// On the host.
        pub path_on_host: String,
        /// In the container.
        pub path_in_container: String,
        /// `rwm`.
        pub cgroup_permissions: String,
    }

    /// A resource limit.
    #[serde(rename_all = "PascalCase")]
    pub struct HostUlimit {
        /// `nofile`.
        pub name: String,
        /// Hard.
        pub hard: i64,
        /// Soft.
        pub soft: i64,
    }

    /// A mount as `--mount` says it.
    #[serde(rename_all = "PascalCase")]
    pub struct Mount {
        /// `bind`, `volume`, `tmpfs`, `image`, `npipe`, `cluster`.
        #[serde(rename = "Type", skip_serializing_if = "String::is_empty")]
        pub kind: String,
        /// Host path or volume.
        #[serde(skip_serializing_if = "String::is_empty")]
        pub source: String,
        /// Path in the container.
        #[serde(skip_serializing_if = "String::is_empty")]
        pub target: String,
        /// Nothing can be written.
        #[serde(skip_serializing_if = "is_zero")]
        pub read_only: bool,
        /// macOS only.
        #[serde(skip_serializing_if = "String::is_empty")]
        pub consistency: String,
        /// For binds.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub bind_options: Option<BindOptions>,
        /// For volumes.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub volume_options: Option<VolumeOptions>,
        /// For images.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub image_options: Option<serde_json::Value>,
        /// For tmpfs.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub tmpfs_options: Option<TmpfsOptions>,
    }

    /// Options of a bind.
    #[serde(rename_all = "PascalCase")]
    pub struct BindOptions {
        /// Mount propagation.
        #[serde(skip_serializing_if = "String::is_empty")]
        pub propagation: String,
        /// Submounts stay behind.
        #[serde(skip_serializing_if = "is_zero")]
        pub non_recursive: bool,
        /// The source is made where it is missing.
        #[serde(skip_serializing_if = "is_zero")]
        pub create_mountpoint: bool,
        /// Only the mount itself is read-only.
        #[serde(skip_serializing_if = "is_zero")]
        pub read_only_non_recursive: bool,
        /// Refused where submounts cannot be made read-only.
        #[serde(skip_serializing_if = "is_zero")]
        pub read_only_force_recursive: bool,
    }

    /// Options of a volume.
    #[serde(rename_all = "PascalCase")]
    pub struct VolumeOptions {
        /// No copy-up.
        #[serde(skip_serializing_if = "is_zero")]
        pub no_copy: bool,
        /// Labels of a volume made by this mount.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub labels: Option<BTreeMap<String, String>>,
        /// A directory inside.
        #[serde(skip_serializing_if = "String::is_empty")]
        pub subpath: String,
        /// Driver of a volume made by this mount.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub driver_config: Option<DriverConfig>,
    }

    /// A volume driver.
    #[serde(rename_all = "PascalCase")]
    pub struct DriverConfig {
        /// `local`.
        #[serde(skip_serializing_if = "String::is_empty")]
        pub name: String,
        /// Its options.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub options: Option<BTreeMap<String, String>>,
    }

    /// Options of a tmpfs.
    #[serde(rename_all = "PascalCase")]
    pub struct TmpfsOptions {
        /// Bytes.
        #[serde(skip_serializing_if = "is_zero")]
        pub size_bytes: i64,
        /// Permission bits.
        #[serde(skip_serializing_if = "is_zero")]
        pub mode: u32,
        /// Each a flag or a key and a value.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub options: Option<Vec<Vec<String>>>,
    }
}

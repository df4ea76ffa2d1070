//! What a user asks of one container, parsed and checked.
//!
//! The REST room turns Docker's `ContainerConfig`, `HostConfig` and
//! `NetworkingConfig` into a [`ContainerSpec`]; the engine merges it with the
//! image's configuration. Fields are `None` or empty where the request says
//! nothing, so that the image's word counts.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
};

use serde::{Deserialize, Serialize};

use crate::{Platform, Signal};

/// What a user asks of one container.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerSpec {
    /// The image as the user wrote it: a reference, an id or a prefix of one.
    pub image: String,
    /// The variant to run, where the reference holds several.
    pub platform: Option<Platform>,
    /// Replaces the image's entrypoint; `Some(empty)` removes it.
    pub entrypoint: Option<Vec<String>>,
    /// Replaces the image's command.
    pub cmd: Option<Vec<String>>,
    /// `NAME=value`; `NAME` alone removes the image's.
    pub env: Vec<String>,
    /// Working directory inside the container; absolute.
    pub working_dir: Option<PathBuf>,
    /// `user[:group]`, names or numbers, resolved in the image's own passwd.
    pub user: Option<String>,
    /// Supplementary groups, names or numbers.
    pub group_add: Vec<String>,
    /// Host name; the short id where none is given.
    pub hostname: Option<String>,
    /// NIS domain name.
    pub domainname: Option<String>,
    /// A pseudo-terminal for the process.
    pub tty: bool,
    /// Standard input is a pipe that stays open.
    pub open_stdin: bool,
    /// Standard input is closed when the first attached client goes.
    pub stdin_once: bool,
    /// Labels of the container (the image's are merged in by the engine).
    pub labels: BTreeMap<String, String>,
    /// What `stop` sends.
    pub stop_signal: Option<Signal>,
    /// How long `stop` waits before SIGKILL, in seconds; Docker's default is 10.
    pub stop_timeout: Option<u32>,
    /// An init of our own as PID 1 that forwards signals and reaps.
    pub init: bool,
    /// Removed by the engine when it exits.
    pub auto_remove: bool,
    /// What happens when it exits.
    pub restart: RestartPolicy,

    /// Volumes, binds and tmpfs.
    pub mounts: Vec<MountSpec>,
    /// Anonymous volumes asked for by path (`Volumes` of the request).
    pub anonymous_volumes: BTreeSet<PathBuf>,
    /// The root filesystem is mounted read-only.
    pub read_only_rootfs: bool,
    /// Size of `/dev/shm` in bytes; Docker's default is 64 MiB.
    pub shm_size: Option<u64>,

    /// The one network namespace decision.
    pub network_mode: NetworkMode,
    /// Networks by name or id, with what is asked of each endpoint.
    pub endpoints: BTreeMap<String, EndpointSpec>,
    /// Ports that the container listens on.
    pub exposed_ports: BTreeSet<PortSpec>,
    /// Host ports forwarded to it.
    pub published: Vec<PortBinding>,
    /// Every exposed port gets a host port of the engine's choice.
    pub publish_all: bool,
    /// `name:address` lines for `/etc/hosts`; the address may be `host-gateway`.
    pub extra_hosts: Vec<(String, String)>,
    /// Name servers instead of the host's.
    pub dns: Vec<IpAddr>,
    /// Search domains.
    pub dns_search: Vec<String>,
    /// `resolv.conf` options.
    pub dns_options: Vec<String>,

    /// Limits.
    pub resources: Resources,
    /// `ulimit`s by name without `RLIMIT_`, lower case: `nofile`.
    pub ulimits: Vec<Ulimit>,
    /// Namespaced sysctls.
    pub sysctls: BTreeMap<String, String>,
    /// Devices of the host.
    pub devices: Vec<DeviceRequest>,
    /// Everything a security profile decides.
    pub security: SecurityOptions,
    /// Adjustment of the OOM killer's score.
    pub oom_score_adj: Option<i32>,
    /// Parent of the container's cgroup.
    pub cgroup_parent: Option<String>,
    /// Process namespace: private, `host` or another container's.
    pub pid_mode: NamespaceMode,
    /// IPC namespace: private, `host` or another container's.
    pub ipc_mode: NamespaceMode,
    /// Host name namespace: private or `host`.
    pub uts_mode: NamespaceMode,

    /// How output is kept.
    pub log: LogConfig,
    /// The client's own words (`Config`, `HostConfig`, `NetworkingConfig`), kept
    /// so that `inspect` answers what was asked; the engine never reads them.
    pub request: serde_json::Value,
}

/// What happens when a container exits (`--restart`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartPolicy {
    /// Nothing.
    #[default]
    No,
    /// Started again, whatever its exit code, unless a user stopped it; and when the engine starts.
    Always,
    /// Like `Always`, but not after an engine start if it was stopped before.
    UnlessStopped,
    /// Started again after a failure, at most so many times; 0 is without end.
    OnFailure {
        /// How often at most.
        max_retries: u32,
    },
}

/// When an image is fetched (`--pull`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PullPolicy {
    /// When it is not in the store.
    #[default]
    Missing,
    /// Before every create.
    Always,
    /// Never.
    Never,
}

/// One mount into a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountSpec {
    /// Absolute path inside the container.
    pub target: PathBuf,
    /// Nothing can be written through it.
    pub read_only: bool,
    /// What is mounted.
    pub kind: MountKind,
}

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum MountKind {
    /// A path of the host.
    Bind {
        /// Absolute path on the host.
        source: PathBuf,
        /// Create the source as a directory where it is missing (`-v`, not `--mount`).
        create_source: bool,
        /// Mount propagation; private unless said.
        propagation: Propagation,
        /// Submounts of the source come along.
        recursive: bool,
        /// Read-only is the mount alone, not those beneath it.
        #[serde(default)]
        read_only_shallow: bool,
    },
    /// A volume of the engine.
    Volume {
        /// Its name; none makes an anonymous one.
        name: Option<String>,
        /// Fill an empty volume with what the image has there.
        copy_up: bool,
        /// A directory inside the volume instead of its root.
        subpath: Option<PathBuf>,
        /// Labels for a volume that this mount creates.
        labels: BTreeMap<String, String>,
        /// Driver options for a volume that this mount creates.
        options: BTreeMap<String, String>,
    },
    /// Memory.
    Tmpfs {
        /// Size in bytes; none is half of the host's memory.
        size: Option<u64>,
        /// Permission bits of its root; 1777 unless said.
        mode: Option<u32>,
        /// Further mount options: `exec`, `uid=…`.
        options: Vec<String>,
    },
}

/// Mount propagation (mount_namespaces(7)), each with its recursive form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Propagation {
    /// `private`.
    Private,
    /// `rprivate`, the default.
    #[default]
    Rprivate,
    /// `shared`.
    Shared,
    /// `rshared`.
    Rshared,
    /// `slave`.
    Slave,
    /// `rslave`.
    Rslave,
}

/// The network namespace of a container (`--network`).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetworkMode {
    /// The default bridge.
    #[default]
    Default,
    /// No network but loopback.
    None,
    /// The host's own.
    Host,
    /// Another container's, by name or id.
    Container(String),
    /// A network by name or id.
    Network(String),
}

/// A namespace that may be shared.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NamespaceMode {
    /// Its own.
    #[default]
    Private,
    /// Its own, and others may join it (IPC).
    Shareable,
    /// The host's.
    Host,
    /// Another container's, by name or id.
    Container(String),
}

/// What is asked of a container's place in one network.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct EndpointSpec {
    /// Further names there.
    pub aliases: Vec<String>,
    /// A fixed IPv4 address.
    pub ipv4: Option<Ipv4Addr>,
    /// A fixed IPv6 address.
    pub ipv6: Option<Ipv6Addr>,
    /// A fixed hardware address.
    pub mac: Option<String>,
}

/// TCP or UDP.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
}

/// A port of a container: `80/tcp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PortSpec {
    /// 1 to 65535.
    pub port: u16,
    /// The protocol.
    pub transport: Transport,
}

impl std::fmt::Display for PortSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let transport = match self.transport {
            Transport::Tcp => "tcp",
            Transport::Udp => "udp",
        };
        write!(f, "{}/{transport}", self.port)
    }
}

/// A host port forwarded to a container's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortBinding {
    /// The container's port.
    pub container: PortSpec,
    /// The host's address; none is every address of both families.
    pub host_ip: Option<IpAddr>,
    /// First host port; none lets the engine choose.
    pub host_port: Option<u16>,
    /// Last host port, where a range was given and the engine may choose from it.
    pub host_port_end: Option<u16>,
}

/// Limits of a container; none is without limit.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Resources {
    /// Memory in bytes.
    pub memory: Option<u64>,
    /// Memory and swap together in bytes; -1 is without limit.
    pub memory_swap: Option<i64>,
    /// Soft limit in bytes.
    pub memory_reservation: Option<u64>,
    /// A billionth of a CPU: 1_500_000_000 is one and a half.
    pub nano_cpus: Option<u64>,
    /// Relative weight, 2 to 262144.
    pub cpu_shares: Option<u64>,
    /// Microseconds of CPU in each period.
    pub cpu_quota: Option<i64>,
    /// Length of a period in microseconds.
    pub cpu_period: Option<u64>,
    /// CPUs in list form: `0-2,4`.
    pub cpuset_cpus: Option<String>,
    /// Memory nodes in list form.
    pub cpuset_mems: Option<String>,
    /// Processes and threads.
    pub pids: Option<u64>,
    /// The OOM killer leaves it alone (cgroup v1).
    pub oom_kill_disable: bool,
}

/// A resource limit of the process (setrlimit(2)).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ulimit {
    /// Lower case, without `RLIMIT_`.
    pub name: String,
    /// -1 is unlimited.
    pub soft: i64,
    /// -1 is unlimited.
    pub hard: i64,
}

/// A device of the host inside a container (`--device`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceRequest {
    /// Path on the host.
    pub host: PathBuf,
    /// Path in the container.
    pub container: PathBuf,
    /// Some of `rwm`.
    pub access: String,
}

/// What a container may do.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct SecurityOptions {
    /// Everything: all capabilities and devices, no seccomp, nothing masked.
    pub privileged: bool,
    /// Capabilities beyond the default, without `CAP_`, upper case; `ALL`.
    pub cap_add: Vec<String>,
    /// Default capabilities taken away; `ALL`.
    pub cap_drop: Vec<String>,
    /// execve can gain nothing.
    pub no_new_privileges: bool,
    /// The system call filter.
    pub seccomp: SeccompChoice,
    /// Masked and read-only paths are left open (`systempaths=unconfined`).
    pub unconfined_paths: bool,
    /// The AppArmor profile, by the name that the host has it under.
    pub apparmor: Option<String>,
}

/// The system call filter of a container.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SeccompChoice {
    /// Docker's profile.
    #[default]
    Builtin,
    /// None.
    Unconfined,
    /// A profile in Docker's JSON, as text.
    Profile(String),
}

/// How output is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogConfig {
    /// `json-file`, `local` (the same files) or `none`.
    pub driver: String,
    /// A file is closed and renamed when it has grown so large, in bytes.
    pub max_size: u64,
    /// How many files there are at most.
    pub max_files: u32,
}

impl Default for LogConfig {
    /// 10 MB times 3: logs cannot fill a disk unless asked to (moby issue 40207).
    fn default() -> Self {
        Self { driver: "json-file".into(), max_size: 10_000_000, max_files: 3 }
    }
}

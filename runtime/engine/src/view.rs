//! What the engine is asked with and what it answers: plain data.
//!
//! The REST room turns these into Docker's JSON and back.

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf, pin::Pin, sync::Arc};

use bytes::Bytes;
use futures_util::Stream;
use knarr_model::{
    ContainerId, ContainerSpec, Digest, EndpointSpec, ExecId, PortSpec, Resources, RestartPolicy,
    Signal, Workload, task::TaskStats,
};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::Result;

/// What `create` answers.
#[derive(Debug, Clone)]
pub struct Created {
    /// The new container.
    pub id: ContainerId,
    /// What the user should know, in sentences.
    pub warnings: Vec<String>,
}

/// Where a container is in its life; see the picture in `container.rs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Made, never started (or its last start failed).
    #[default]
    Created,
    /// Its first process runs.
    Running,
    /// Frozen.
    Paused,
    /// Ended; the restart policy will start it again.
    Restarting,
    /// Being removed.
    Removing,
    /// Ended.
    Exited,
    /// Could not be removed entirely.
    Dead,
}

impl Status {
    /// Docker's word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Restarting => "restarting",
            Self::Removing => "removing",
            Self::Exited => "exited",
            Self::Dead => "dead",
        }
    }

    /// Whether there is a first process (Docker's `State.Running`).
    pub fn is_running(self) -> bool {
        matches!(self, Self::Running | Self::Paused)
    }
}

/// Docker's `State`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    /// Where it is.
    pub status: Status,
    /// The first process in the host's namespace; 0 where there is none.
    pub pid: u32,
    /// Exit code of the last run; 0 before.
    pub exit_code: u32,
    /// The kernel's OOM killer ended the last run.
    pub oom_killed: bool,
    /// Why the last start failed, or what was lost.
    pub error: String,
    /// RFC 3339 with nanoseconds; none before the first start.
    pub started_at: Option<String>,
    /// RFC 3339 with nanoseconds; none before the first exit.
    pub finished_at: Option<String>,
}

/// A container as `inspect` and `list` show it.
#[derive(Debug, Clone)]
pub struct ContainerView {
    /// Its id.
    pub id: ContainerId,
    /// Its name, without Docker's slash.
    pub name: String,
    /// RFC 3339 with nanoseconds.
    pub created: String,
    /// What was asked, merged with the image's configuration. `spec.image` and
    /// `spec.request` are the client's own words.
    pub spec: Arc<ContainerSpec>,
    /// The image's id (the digest of its configuration).
    pub image_id: Digest,
    /// Native or Wasm, with the platform or the calling convention.
    pub workload: Workload,
    /// The program that is executed.
    pub path: String,
    /// Its arguments, without the program.
    pub args: Vec<String>,
    /// Where it is.
    pub state: State,
    /// Restarts by the policy.
    pub restart_count: u32,
    /// Mounts, as they were resolved.
    pub mounts: Vec<MountView>,
    /// Endpoints by network name. Addresses are there while it runs.
    pub endpoints: BTreeMap<String, EndpointView>,
    /// Host ports in force while it runs, in the order of container ports.
    pub ports: Vec<PublishedPort>,
    /// Directory of the writable layer (`upperdir`); a Wasm container has it for
    /// mount points only.
    pub upper: Option<PathBuf>,
    /// Directories of the image's layers, the uppermost first.
    pub lower: Vec<PathBuf>,
    /// `resolv.conf`, `hostname`, `hosts` of the container on the host.
    pub etc: PathBuf,
    /// The log file; none with log driver `none`.
    pub log_path: Option<PathBuf>,
    /// Execs that are known.
    pub execs: Vec<ExecId>,
}

/// One mount, as `inspect` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountView {
    /// `bind`, `volume` or `tmpfs`.
    pub kind: String,
    /// The volume's name.
    pub name: Option<String>,
    /// On the host; empty for tmpfs.
    pub source: PathBuf,
    /// In the container.
    pub target: PathBuf,
    /// `local` for volumes.
    pub driver: String,
    /// Nothing can be written through it.
    pub read_only: bool,
    /// `rprivate` and so on; empty for volumes.
    pub propagation: String,
    /// Made for this container: `rm -v` and `--rm` remove it.
    #[serde(default)]
    pub anonymous: bool,
}

/// A container's place in one network.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EndpointView {
    /// The network's id.
    pub network_id: String,
    /// Of this endpoint; empty while the container does not run.
    pub endpoint_id: String,
    /// What was asked.
    pub asked: EndpointSpec,
    /// IPv4 address and prefix length.
    pub ipv4: Option<(IpAddr, u8)>,
    /// IPv6 address and prefix length.
    pub ipv6: Option<(IpAddr, u8)>,
    /// The IPv4 gateway.
    pub gateway: Option<IpAddr>,
    /// The IPv6 gateway.
    pub gateway6: Option<IpAddr>,
    /// Hardware address.
    pub mac: String,
    /// Names in the network's DNS.
    pub dns_names: Vec<String>,
}

/// A host port in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedPort {
    /// The container's port.
    pub container: PortSpec,
    /// The host's address.
    pub host_ip: IpAddr,
    /// The host's port.
    pub host_port: u16,
}

/// How `stop` and `restart` end the process.
#[derive(Debug, Clone, Copy, Default)]
pub struct StopOptions {
    /// Instead of the container's stop signal.
    pub signal: Option<Signal>,
    /// Seconds before SIGKILL instead of the container's; -1 waits without end.
    pub timeout: Option<i64>,
}

/// How `remove` removes.
#[derive(Debug, Clone, Copy, Default)]
pub struct RemoveOptions {
    /// Kill it first.
    pub force: bool,
    /// Its anonymous volumes go with it.
    pub volumes: bool,
}

/// What `wait` waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WaitCondition {
    /// Now, if it does not run; else its exit.
    #[default]
    NotRunning,
    /// The next exit, even if it does not run yet.
    NextExit,
    /// Its removal.
    Removed,
}

/// What `wait` answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WaitOutcome {
    /// Exit code.
    pub code: u32,
    /// Why there is no better answer: its start or its removal failed.
    pub error: Option<String>,
}

/// A byte stream in both directions.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// Streams of a process.
///
/// Reading yields what Docker's client expects after the upgrade: multiplexed
/// frames, or raw bytes with a terminal. Shutting down the writing half closes
/// the process's standard input; end of file means that the process is gone and
/// its output was delivered (or that the detach keys were pressed).
pub struct Attached {
    /// Both directions.
    pub stream: Box<dyn Duplex>,
    /// Raw rather than multiplexed.
    pub tty: bool,
}

impl std::fmt::Debug for Attached {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Attached").field("tty", &self.tty).finish_non_exhaustive()
    }
}

/// How `attach` attaches.
#[derive(Debug, Clone, Default)]
pub struct AttachOptions {
    /// Send standard input.
    pub stdin: bool,
    /// Receive standard output.
    pub stdout: bool,
    /// Receive standard error.
    pub stderr: bool,
    /// First what was logged so far.
    pub logs: bool,
    /// Stay attached. Without it, only `logs` are sent.
    pub stream: bool,
    /// The sequence that detaches, as Docker writes it (`ctrl-p,ctrl-q`); none is that.
    pub detach_keys: Option<String>,
}

/// Which log lines are wanted.
#[derive(Debug, Clone, Default)]
pub struct LogOptions {
    /// Go on with what is to come.
    pub follow: bool,
    /// Standard output.
    pub stdout: bool,
    /// Standard error.
    pub stderr: bool,
    /// Not before.
    pub since: Option<jiff::Timestamp>,
    /// Not after.
    pub until: Option<jiff::Timestamp>,
    /// Only so many of the last lines; none is all.
    pub tail: Option<usize>,
}

/// Standard output or standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// One logged line (or a part of one, if it is longer than 16 KiB).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// Where the process wrote it.
    pub stream: OutputStream,
    /// When, as it is in the file: RFC 3339 with nanoseconds, UTC.
    pub time: String,
    /// With its line feed, where it has one.
    pub bytes: Bytes,
}

/// A stream that is boxed.
pub type BoxStream<T> = Pin<Box<dyn Stream<Item = T> + Send>>;

/// What `logs` answers.
pub struct Logs {
    /// The container has a terminal: send lines raw, not multiplexed.
    pub tty: bool,
    /// In the order of writing.
    pub lines: BoxStream<Result<LogLine>>,
}

impl std::fmt::Debug for Logs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Logs").field("tty", &self.tty).finish_non_exhaustive()
    }
}

/// A process to run inside a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ExecSpec {
    /// Program and arguments.
    pub cmd: Vec<String>,
    /// `NAME=value`, beside the container's own.
    pub env: Vec<String>,
    /// Instead of the container's user.
    pub user: Option<String>,
    /// Instead of the container's working directory.
    pub working_dir: Option<PathBuf>,
    /// With a terminal.
    pub tty: bool,
    /// The client will send standard input.
    pub stdin: bool,
    /// The client wants standard output.
    pub stdout: bool,
    /// The client wants standard error.
    pub stderr: bool,
    /// All capabilities.
    pub privileged: bool,
    /// The sequence that detaches.
    pub detach_keys: Option<String>,
}

/// How an exec is started.
#[derive(Debug, Clone, Copy, Default)]
pub struct ExecStart {
    /// Nobody listens.
    pub detach: bool,
    /// Terminal size: rows, columns.
    pub size: Option<(u16, u16)>,
}

/// An exec, as inspect shows it.
#[derive(Debug, Clone)]
pub struct ExecView {
    /// Its id.
    pub id: ExecId,
    /// Its container.
    pub container: ContainerId,
    /// What it runs.
    pub spec: ExecSpec,
    /// It was started and has not ended.
    pub running: bool,
    /// Once it has ended.
    pub exit_code: Option<u32>,
    /// In the host's namespace; 0 before it starts.
    pub pid: u32,
}

/// What `top` answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Top {
    /// Column heads.
    pub titles: Vec<String>,
    /// One row for each process.
    pub processes: Vec<Vec<String>>,
}

/// One sample of a container's use.
#[derive(Debug, Clone)]
pub struct StatsSample {
    /// Container id.
    pub id: ContainerId,
    /// Container name.
    pub name: String,
    /// When it was taken.
    pub read: jiff::Timestamp,
    /// Counters of the task; none while it does not run.
    pub task: Option<TaskStats>,
    /// CPU time of the host in nanoseconds since boot, idle time included.
    pub system_cpu_ns: u64,
    /// CPUs of the host.
    pub online_cpus: u32,
    /// Memory of the host in bytes: the limit where there is none.
    pub host_memory: u64,
}

/// What `update` changes; none leaves it.
#[derive(Debug, Clone, Default)]
pub struct Update {
    /// Limits: each `Some` replaces the container's.
    pub resources: Resources,
    /// The restart policy.
    pub restart: Option<RestartPolicy>,
}

/// What `prune` answers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Ids or names of what was removed.
    pub removed: Vec<String>,
    /// Bytes that became free.
    pub reclaimed: u64,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// `container`, `image`, `network`, `volume`, `daemon`.
    pub kind: String,
    /// Docker's word: `create`, `start`, `die` …
    pub action: String,
    /// Id of the object (or name, as Docker has it for volumes).
    pub actor: String,
    /// Docker's attributes: `name`, `image`, `exitCode`, labels …
    pub attributes: BTreeMap<String, String>,
    /// Nanoseconds since the epoch.
    pub time_nano: i64,
}

/// What the host and the engine are.
#[derive(Debug, Clone, Default)]
pub struct Info {
    /// A random id of this data root, kept across restarts.
    pub id: String,
    /// Containers in all.
    pub containers: usize,
    /// Of them, running.
    pub running: usize,
    /// Of them, paused.
    pub paused: usize,
    /// Of them, neither.
    pub stopped: usize,
    /// Images.
    pub images: usize,
    /// 1 or 2.
    pub cgroup_version: u8,
    /// Release of the kernel.
    pub kernel: String,
    /// Host name.
    pub hostname: String,
    /// `NAME` and `PRETTY_NAME` of the host's os-release.
    pub operating_system: String,
    /// CPUs.
    pub cpus: u32,
    /// Bytes.
    pub memory: u64,
    /// Where everything is kept.
    pub data_root: PathBuf,
    /// The kernel accounts swap.
    pub swap_limit: bool,
    /// The kernel confines by AppArmor profiles.
    pub apparmor: bool,
    /// What the user should know.
    pub warnings: Vec<String>,
}

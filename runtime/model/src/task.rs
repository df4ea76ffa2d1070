//! What the engine and the shim say to each other beside containerd's Task API.
//!
//! Files in a task's bundle (`<exec-root>/containers/<id>/`, tmpfs, mode 0700):
//!
//! | file | written by | what |
//! |---|---|---|
//! | `config.json` | engine | OCI runtime specification |
//! | `init.json` | shim | [`InitRecord`]: who the first process is |
//! | `exit.json` | shim | [`ExitRecord`], renamed into place before `wait` answers |
//! | `attach.sock` | shim | streams of the init process and of execs, see [`AttachRequest`] |
//!
//! A whole start: `Create` (namespaces, mounts, cgroup; the first process waits),
//! the engine wires the network by the pid that `Create` answered, connects the
//! attached clients, then `Start`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::WasmAbi;

/// Annotation of the OCI specification that makes a task a Wasm task; its value
/// is a [`WasmLaunch`] as JSON. Only the engine writes it: labels and
/// annotations of images never reach the specification (CATALOGUE R18).
pub const WASM_ANNOTATION: &str = "dev.knarr.wasm";

/// Annotation with names of supplementary groups, separated by commas, that the
/// sandbox looks up in the container's own `/etc/group`, for execs too.
pub const GROUPS_ANNOTATION: &str = "dev.knarr.groups";

/// `stdout` and `stderr` of a task whose output the shim writes to log files
/// itself: the value is a [`LogTarget`] as JSON behind this prefix.
pub const LOG_SCHEME: &str = "knarr-log:";

/// `stdin`, `stdout` and `stderr` of an exec whose streams are only offered on
/// the attach socket.
pub const ATTACH_SCHEME: &str = "knarr-attach:";

/// Where the shim writes the output of a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogTarget {
    /// The file that grows, in Docker's json-file format; rotated ones get
    /// `.1`, `.2` … behind it. None keeps nothing.
    pub path: Option<PathBuf>,
    /// Bytes after which it is rotated.
    pub max_size: u64,
    /// How many files there are at most.
    pub max_files: u32,
}

/// The first line that a client of `attach.sock` sends, as JSON and `\n`.
///
/// After it the shim answers `ok\n` or `error: …\n`, then sends output: without
/// a terminal in Docker's multiplexed frames (one byte stream, three zero
/// bytes, length in big endian), with a terminal raw. What the client sends is
/// standard input; its half-close closes the process's standard input. The shim
/// closes the connection when the process is gone and all its output was sent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AttachRequest {
    /// The exec; empty is the container's first process.
    pub exec: String,
    /// The client sends standard input.
    pub stdin: bool,
    /// The client wants standard output.
    pub stdout: bool,
    /// The client wants standard error.
    pub stderr: bool,
    /// Standard input is closed when this client goes (`StdinOnce`).
    pub stdin_once: bool,
}

/// Who the first process is: enough to never signal a stranger after a crash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InitRecord {
    /// Process id in the host's namespace.
    pub pid: u32,
    /// Field 22 of `/proc/PID/stat`: start time in clock ticks since boot.
    pub start_time: u64,
    /// The shim's own process id.
    pub shim_pid: u32,
    /// The shim's ttrpc socket.
    pub socket: PathBuf,
    /// Path of the container's cgroup below each hierarchy's mount point.
    pub cgroup: PathBuf,
}

/// How the first process ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// 0 to 255, or 128 and the signal's number.
    pub code: u32,
    /// RFC 3339 with nanoseconds, UTC.
    pub finished_at: String,
    /// The kernel's OOM killer ended it.
    pub oom_killed: bool,
}

/// What the sandbox needs beside the OCI specification to run a Wasm program.
///
/// Everything here is a grant, derived from the request by the engine: what is
/// absent is denied. Arguments, environment and working directory are the
/// specification's `process`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WasmLaunch {
    /// The host program, `knarr-wasm`.
    pub host: PathBuf,
    /// Code compiled ahead by this very host, from the engine's own cache.
    pub code: PathBuf,
    /// The file that was checked there; the host runs no other.
    #[serde(default)]
    pub identity: Option<CodeIdentity>,
    /// How the program is called.
    pub abi: WasmAbi,
    /// Directories: the image's root filesystem and each mount.
    pub preopens: Vec<Preopen>,
    /// Sockets; none denies them all.
    pub network: Option<WasmNetwork>,
    /// What the kernel lets the container have, in bytes: the guest's part is what the
    /// host program leaves of it.
    pub memory: Option<u64>,
}

/// Which file it is, and that nobody has written to it since: the kernel changes the time
/// with every write, and nobody else can.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CodeIdentity {
    /// The device of its filesystem.
    pub device: u64,
    /// Its number there.
    pub inode: u64,
    /// Bytes.
    pub size: u64,
    /// The time of its last change, content or not: seconds since 1970.
    pub changed: i64,
    /// And nanoseconds.
    pub changed_nanoseconds: i64,
}

/// A directory that a Wasm program may open things beneath.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preopen {
    /// Absolute path in the container, which is also the guest's name for it.
    pub path: PathBuf,
    /// Nothing can be written beneath it.
    pub read_only: bool,
}

/// What a Wasm program may do on its network.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct WasmNetwork {
    /// TCP ports it may bind; for `wasi:http` the host listens on each of them.
    pub listen_tcp: Vec<u16>,
    /// UDP ports it may bind.
    pub listen_udp: Vec<u16>,
    /// Names may be looked up (with the container's own resolv.conf and hosts).
    pub dns: bool,
}

/// What `Stats` answers under the type URL [`TaskStats::TYPE_URL`], as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct TaskStats {
    /// CPU time of the cgroup in nanoseconds.
    pub cpu_ns: u64,
    /// Of that, in user mode.
    pub cpu_user_ns: u64,
    /// Of that, in the kernel.
    pub cpu_system_ns: u64,
    /// Periods, throttled periods, throttled nanoseconds.
    pub cpu_throttling: (u64, u64, u64),
    /// Bytes in use.
    pub memory_usage: u64,
    /// The most bytes ever in use (0 where the kernel does not say).
    pub memory_max_usage: u64,
    /// Limit in bytes.
    pub memory_limit: u64,
    /// `memory.stat`, as the kernel names it.
    pub memory_stat: std::collections::BTreeMap<String, u64>,
    /// How often the limit was hit.
    pub memory_failcnt: u64,
    /// Processes and threads.
    pub pids: u64,
    /// Their limit; 0 is none.
    pub pids_limit: u64,
    /// `(major, minor, operation, bytes)`.
    pub io_bytes: Vec<(u64, u64, String, u64)>,
    /// Interfaces of the container's network namespace.
    pub networks: std::collections::BTreeMap<String, InterfaceStats>,
    /// 1 or 2.
    pub cgroup_version: u8,
}

impl TaskStats {
    /// The type URL of the `Any` that carries it.
    pub const TYPE_URL: &'static str = "dev.knarr.task.v1.Stats";
}

/// Counters of one network interface.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct InterfaceStats {
    /// Bytes received.
    pub rx_bytes: u64,
    /// Packets received.
    pub rx_packets: u64,
    /// Errors while receiving.
    pub rx_errors: u64,
    /// Packets dropped while receiving.
    pub rx_dropped: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Errors while sending.
    pub tx_errors: u64,
    /// Packets dropped while sending.
    pub tx_dropped: u64,
}

//! What a caller says beside the OCI specification.

use std::{
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use oci_spec::runtime::Spec;

use crate::SubGroup;

/// Annotation: `default` is the embedded Docker seccomp profile.
pub const SECCOMP_ANNOTATION: &str = "dev.knarr.seccomp";

/// Annotation: lets systemd make the control group, a scope by the specification's
/// `cgroupsPath`: `slice:prefix:name`. The value is [`systemd_manager`](crate::systemd_manager)'s.
pub const SYSTEMD_ANNOTATION: &str = "dev.knarr.systemd";

/// Annotation: `true` keeps knarr-init as PID 1 (`docker run --init`).
pub const INIT_ANNOTATION: &str = "dev.knarr.init";

/// Annotation: `true` lets knarr-init stay in place of a program, to hold namespaces that
/// others join (a pod's sandbox). It has an empty root, reaps, and ends at SIGTERM.
pub const HOLD_ANNOTATION: &str = "dev.knarr.hold";

/// All that [`create`](crate::create) needs.
#[derive(Debug)]
pub struct CreateOptions<'a> {
    /// The container's id; only used in messages and as default cgroup name.
    pub id: &'a str,
    /// The directory of `config.json`; `root.path` is relative to it.
    pub bundle: &'a Path,
    /// What to run.
    pub spec: &'a Spec,
    /// How the root filesystem is mounted; empty means that `root.path` of the
    /// specification is the root filesystem itself.
    pub rootfs: &'a [RootfsMount],
    /// Standard streams of the first process.
    pub stdio: Stdio,
}

/// How a container stands to the process that makes it. The default is the
/// shim's: it dies with its maker, and is started by it.
#[derive(Debug, Default)]
pub struct Manner {
    /// It lives on when the thread that made it ends.
    pub outlives: bool,
    /// A listening stream socket on which it waits to be started, by whoever
    /// connects: its maker may be gone ([`Created::leave`](crate::Created::leave)).
    pub listener: Option<OwnedFd>,
    /// What its first process inherits as descriptors 3, 4, …
    pub inherited: Vec<OwnedFd>,
    /// The root is entered with chroot, for a host whose root is an initial
    /// ramdisk. The host's mounts stay, beneath it.
    pub no_pivot: bool,
    /// The specification is an operator's, who may do with this host as he likes,
    /// rather than the engine's: any filesystem, mounts shared with the host's,
    /// the host's own mount namespace.
    pub foreign: bool,
    /// Control groups that its maker may not make are passed over, unless the
    /// specification names one.
    pub rootless: bool,
    /// It keeps its maker's session keyring.
    pub no_new_keyring: bool,
    /// `create` returns while the first process still prepares, where nobody
    /// could tell: its network can be made meanwhile. What goes wrong there is
    /// an error of [`Created::start`](crate::Created::start).
    pub hasty: bool,
}

/// The same for another process in a container.
#[derive(Debug, Default)]
pub struct ExecManner {
    /// What it inherits as descriptors 3, 4, …
    pub inherited: Vec<OwnedFd>,
    /// Its specification is an operator's: its capabilities and CPUs are as they
    /// are written down, whatever its maker's are.
    pub foreign: bool,
    /// A paused container is no reason to refuse it: it runs when that thaws.
    pub even_paused: bool,
    /// Groups below the container's own that it is to be in.
    pub groups: Vec<SubGroup>,
}

/// A mount of the root filesystem, in containerd's form.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RootfsMount {
    /// `overlay` or `bind`.
    pub kind: String,
    /// The directory of a bind; ignored by overlay.
    pub source: PathBuf,
    /// `lowerdir=A:B`, `upperdir=`, `workdir=`, `ro`, `rbind`, …
    pub options: Vec<String>,
}

/// Standard streams of a process.
#[derive(Debug)]
pub enum Stdio {
    /// Three open files; the caller's copies are closed by the call.
    Fds {
        /// Standard input.
        stdin: OwnedFd,
        /// Standard output.
        stdout: OwnedFd,
        /// Standard error.
        stderr: OwnedFd,
    },
    /// A pseudo-terminal of the container's own devpts; zero means that the
    /// size is not known yet.
    Terminal {
        /// Height in characters.
        rows: u16,
        /// Width in characters.
        cols: u16,
    },
}

//! OCI runtime specification to launch plan; spawn, exec, signal, wait; cgroups and seccomp.
//!
//! ```text
//!            create()                start()              wait
//!  Spec ──▶ plan (pure) ──▶ Created ─────────▶ Container ──────▶ ExitStatus
//!           mounts by fd    knarr-init waits,   the program runs
//!           clone3          all is mounted      exec(), kill(), pause() …
//! ```
//!
//! Everything that a container's image or volumes could touch is done by
//! `knarr-init` inside the new namespaces, beneath the new root, by file
//! descriptor. The parent makes namespaces, mounts of its own files (detached),
//! the cgroup, and a flat list of operations; `knarr-init` makes no choices.
//!
//! All calls block for as long as the kernel takes (a few milliseconds); an
//! async caller puts them on a blocking thread. No process-global state is
//! touched: no current directory, no umask, no environment, no signal handlers.
//! `SIGCHLD` must not be ignored by the process, and nobody else may reap
//! children with `waitpid(-1)`: each child is waited for by its pidfd. A
//! container dies with the thread that created it (PR_SET_PDEATHSIG is a
//! thread's, not a process's): create on one that lives as long as the process.
//!
//! What the specification may say beyond OCI, as annotations (only the engine
//! writes them; labels of images never become annotations):
//!
//! | annotation | meaning |
//! |---|---|
//! | [`knarr_model::task::WASM_ANNOTATION`] | the Wasm jail: see [`wasm`](crate::Container) |
//! | [`SECCOMP_ANNOTATION`] = `default` | the embedded Docker profile, resolved for the process's capabilities (leave `linux.seccomp` out) |
//! | [`SYSTEMD_ANNOTATION`] = [`systemd_manager`]'s | systemd makes the control group |
//! | [`INIT_ANNOTATION`] = `true` | knarr-init stays as PID 1, forwards signals and reaps (`--init`) |
//! | [`HOLD_ANNOTATION`] = `true` | knarr-init stays in place of a program: a pod's sandbox |
//!
//! `process.user.username`, where set, is Docker's `user[:group]`: it is
//! resolved in the merged root filesystem (names, numbers, supplementary groups
//! by membership), replaces `uid` and `gid`, adds to `additionalGids`, and gives
//! `HOME` where the environment has none.

#![forbid(unsafe_code)]

mod affinity;
mod cgroup;
mod child;
mod container;
mod copyup;
mod error;
mod hooks;
mod interfaces;
mod launch;
mod lsm;
mod ops;
mod options;
mod overlay;
mod peek;
mod plan;
mod ranges;
pub mod rootless;
mod seccomp;
mod systemd;
mod teller;
mod user;
mod userns;
mod wishes;

pub use affinity::cpu_mask;
pub use cgroup::{Cgroup, SubGroup};
pub use child::{Child, ExitStatus};
pub use container::{
    Container, Created, Left, cgroup_of, clean_up, clean_up_after, create, create_with,
};
pub use error::{Error, Failure};
pub use lsm::{apparmor, selinux};
pub use options::{
    CreateOptions, ExecManner, HOLD_ANNOTATION, INIT_ANNOTATION, Manner, RootfsMount,
    SECCOMP_ANNOTATION, SYSTEMD_ANNOTATION, Stdio,
};
pub use peek::open_in_root;
pub use systemd::systemd_manager;
pub use user::{ResolvedUser, resolve_user};

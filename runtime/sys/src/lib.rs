//! The system calls that nix and rustix lack, made safe.
//!
//! Every `unsafe` block of the engine lives here, in `knarr-init`, which has no
//! libc at all, and in two files of the Wasm host. Each says why it is needed and
//! why it is sound. All file descriptors that come out are close-on-exec.

mod background;
mod beneath;
mod bpf;
mod groups;
mod heap;
mod held;
pub mod landlock;
mod mount;
mod names;
mod oom;
mod overlay;
mod process;
pub mod read;
pub mod seccomp;
mod socket;

pub use background::work_in_background;
pub use beneath::{Found, TRIES, open_beneath, open_file, open_in_root, open_with};
pub use bpf::{BpfInstruction, attach_device_filter, load_device_filter};
pub use groups::{groups, members};
pub use heap::{CountedHeap, give_heap_back, heap_held};
pub use held::{HeldProcess, ends_within, signal_members};
pub use mount::{MountAttr, mount_setattr};
pub use names::without_name_services;
pub use oom::{lower_oom_score, usual_oom_score};
pub use overlay::{Overlay, OverlayError};
pub use process::{Launch, close_on_exec, launch, pidfd_send_signal, spawn_with};
pub use read::ProcessStat;
pub use socket::listen_privately;

//! The system calls that nix and rustix lack, made safe.
//!
//! Every `unsafe` block of the engine lives here (and in `knarr-init`, which
//! has no libc at all). Each says why it is needed and why it is sound. All
//! file descriptors that come out are close-on-exec.

mod background;
mod beneath;
mod bpf;
mod heap;
pub mod landlock;
mod mount;
mod names;
mod overlay;
mod process;
pub mod seccomp;
mod socket;

pub use background::work_in_background;
pub use beneath::{Found, TRIES, open_beneath, open_file, open_in_root, open_with};
pub use bpf::{BpfInstruction, attach_device_filter, load_device_filter};
pub use heap::{CountedHeap, give_heap_back, heap_held};
pub use mount::{MountAttr, mount_setattr};
pub use names::without_name_services;
pub use overlay::{Overlay, OverlayError};
pub use process::{Launch, close_on_exec, launch, pidfd_send_signal, spawn_with};
pub use socket::listen_privately;

//! The system calls that nix and rustix lack, made safe.
//!
//! Every `unsafe` block of the engine lives here (and in `knarr-init`, which
//! has no libc at all). Each says why it is needed and why it is sound. All
//! file descriptors that come out are close-on-exec.

mod process;

pub use process::pidfd_send_signal;

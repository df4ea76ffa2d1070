//! The shim under containerd. Each scenario passes on containerd's own runc shim
//! first, then on ours: what it asks is then containerd's word and not our own.
//!
//! They need root (namespaces), and Debian's containerd and runc.

#![forbid(unsafe_code)]

//! containerd-shim-knarr-v1: the Task service over the sandbox.

fn main() {}

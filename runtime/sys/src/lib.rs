//! The system calls that nix and rustix lack, made safe.

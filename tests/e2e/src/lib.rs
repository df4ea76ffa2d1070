//! End-to-end scenarios: each starts an engine of its own, acts as a user
//! would, and looks at what came of it. The scenarios are in `tests/e2e`.
//!
//! They need root (namespaces) and the packages that `cargo xtask test` installs.

#![forbid(unsafe_code)]

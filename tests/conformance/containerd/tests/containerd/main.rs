//! Scenarios under a containerd of one's own, one module a theme.

#![forbid(unsafe_code)]

mod bootstrap;
mod lifecycle;
mod pods;
mod streams;
mod support;
mod survival;
mod wasm;

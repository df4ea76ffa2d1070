//! Scenarios under a containerd of one's own, one module a theme.

#![forbid(unsafe_code)]

mod api;
mod bootstrap;
mod cri;
mod cri_rights;
mod example;
mod figures;
mod grpc;
mod lifecycle;
mod manifest;
mod pod;
mod pods;
mod sandbox;
mod streams;
mod support;
mod survival;
mod user;
mod wasm;
mod wasm_life;
mod websocket;

/// The messages of `proto/`, made by the build script.
mod proto {
    #![allow(missing_docs, clippy::all)]
    include!(concat!(env!("OUT_DIR"), "/proto/mod.rs"));
}

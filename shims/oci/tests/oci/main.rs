//! The command line against real containers: runc's verbs, exit codes and words.

#![allow(missing_docs)]

mod callers;
mod engines;
mod hooks;
mod interfaces;
mod life;
mod rights;
mod rootless;
mod specification;
mod streams;
mod support;
mod wasm;

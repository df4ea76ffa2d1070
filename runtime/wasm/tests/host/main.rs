//! The Wasm host as a process: what goes in by descriptors, what comes out.

#![allow(missing_docs, reason = "a test's name says what it shows")]

mod commands;
mod compiling;
mod evil;
mod files;
mod guests;
mod http;
mod names;
mod owned;
mod support;
mod wild;

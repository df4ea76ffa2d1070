//! The Wasm host: runs, serves and compiles WASI programs.
//!
//! ```text
//! knarr-wasm run          a command: fd 3 says what is granted, fd 4 is its code
//! knarr-wasm serve        a wasi:http/proxy component, one instance a request
//! knarr-wasm compile      fd 0: a module or component, fd 1: its code
//! knarr-wasm fingerprint  one line: what the code depends on beside the module
//! ```
//!
//! `run` and `serve` are the first process of a container, behind the jail that
//! `knarr-sandbox` makes: an empty root with the granted directories beneath
//! `/rootfs`, no /proc, no /dev, no capability, the system calls listed in
//! `syscalls.rs`. Exit codes are the guest's own, 0 to 255; beside them
//!
//! | code | what happened |
//! |---|---|
//! | 125 | the host was started wrongly (its files are not there, or lie) |
//! | 126 | the program cannot be started: an import nobody grants, too little memory |
//! | 134 | the program trapped; why, and where, is on standard error |
//! | 128+n | ended by signal n |
//!
//! No argument parser, no logger, one thread until the guest needs another: a
//! whole start is to take less than 3 ms.

#![deny(unsafe_code)]

mod body;
mod budget;
mod calls;
mod compile;
mod confine;
mod connection;
mod engine;
mod grants;
mod guest;
mod inherited;
mod names;
mod outgoing;
mod random;
mod run;
mod serve;
mod signals;
#[cfg(test)]
mod syscalls;
mod turns;

use std::process::ExitCode;

/// The host itself was started wrongly.
const HOST_FAILED: u8 = 125;

/// What guests make this program hold is counted.
#[global_allocator]
static HEAP: knarr_sys::CountedHeap = knarr_sys::CountedHeap;

const USAGE: &str = "usage: knarr-wasm run | serve | compile | fingerprint";

fn main() -> ExitCode {
    knarr_sys::without_name_services();
    knarr_sys::give_heap_back();
    let mut arguments = std::env::args_os().skip(1);
    let verb = arguments.next().unwrap_or_default();
    let done = match verb.to_str() {
        Some("run") => run::run(),
        Some("serve") => serve::serve(),
        Some("compile") => compile::supervise(),
        Some(compile::WORKER) => compile::work(),
        Some("fingerprint") => engine::fingerprint().map(|line| {
            println!("{line}");
            0
        }),
        _ => Err(wasmtime::Error::msg(USAGE)),
    };
    match done {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("knarr-wasm: {error:#}");
            ExitCode::from(if verb == "compile" || verb == compile::WORKER {
                1
            } else {
                HOST_FAILED
            })
        }
    }
}

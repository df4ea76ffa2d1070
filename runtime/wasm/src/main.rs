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
//! | 125 | the host was started wrongly (its files are not there, or lie), or has a fault |
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

/// The host itself was started wrongly, or has a fault.
const HOST_FAILED: u8 = 125;

/// What guests make this program hold is counted.
#[global_allocator]
static HEAP: knarr_sys::CountedHeap = knarr_sys::CountedHeap;

const USAGE: &str = "usage: knarr-wasm run | serve | compile | fingerprint";

/// A fault of the host's own ends the process, whichever thread or request has met it: what
/// it has left half done is nothing to serve others with (CATALOGUE W17). The container's
/// log has the reason, and its restart policy the next word.
#[allow(clippy::exit, reason = "threads and tasks catch what unwinds")]
fn end_with_a_panic() {
    std::panic::set_hook(Box::new(|panic| {
        eprintln!("knarr-wasm: internal error: {panic}");
        std::process::exit(i32::from(HOST_FAILED));
    }));
}

fn main() -> ExitCode {
    knarr_sys::without_name_services();
    knarr_sys::give_heap_back();
    end_with_a_panic();
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

#[cfg(test)]
mod tests {
    use std::process::Command;

    use wasmtime::{Linker, Module, Store};

    use super::*;

    /// Said to the process that is to end.
    const PANICS: &str = "KNARR_TEST_PANICS";

    /// Runs a guest that calls a host function with a fault, in a task as requests are.
    #[tokio::main(flavor = "current_thread")]
    async fn call_a_fault() {
        let engine = engine::compiling(engine::Kind::Module).expect("engine");
        let text = r#"(module (import "host" "fault" (func $fault)) (start $fault))"#;
        let module = Module::new(&engine, wat::parse_str(text).expect("text")).expect("module");
        let mut linker = Linker::new(&engine);
        let fault = || -> () { panic!("a fault of the host") };
        linker.func_wrap("host", "fault", fault).expect("function");
        let task = tokio::spawn(async move {
            let mut store = Store::new(&engine, ());
            linker.instantiate_async(&mut store, &module).await.map(|_| ())
        });
        let _ = task.await;
    }

    #[test]
    fn w17_a_panic_in_a_host_function_ends_the_container_with_a_reason() {
        if std::env::var_os(PANICS).is_some() {
            end_with_a_panic();
            return call_a_fault();
        }
        let name = "tests::w17_a_panic_in_a_host_function_ends_the_container_with_a_reason";
        let program = std::env::current_exe().expect("this program");
        let ended = Command::new(program)
            .args(["--exact", name, "--nocapture"])
            .env(PANICS, "1")
            .output()
            .expect("started");
        let said = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.code(), Some(i32::from(HOST_FAILED)), "{said}");
        assert!(said.contains("knarr-wasm: internal error: "), "{said}");
        assert!(said.contains("a fault of the host"), "{said}");
    }
}

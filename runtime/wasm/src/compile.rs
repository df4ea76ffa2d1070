//! `knarr-wasm compile`: untrusted bytes in, code out, within limits.
//!
//! ```text
//! engine -- compile (supervisor) -- compile-worker (limits, no rights) -- cranelift
//! ```
//!
//! Compiling is the one place where a module's author chooses how much work is
//! done: a compile bomb is no bug of the compiler. So a worker does it, which
//! first gives away everything it does not need, and a supervisor says in words
//! what the worker died of.

use std::{
    io::{self, Read as _, Write as _},
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    process::Command,
};

use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    unistd::{Gid, Uid, setgid, setgroups, setuid},
};
use rustix::{
    process::{Resource, Rlimit, Signal},
    thread::{CapabilitySet, CapabilitySets},
};
use wasmtime::{Result, error::Context as _};

use crate::engine::{self, Kind};

/// The verb of the worker.
pub(crate) const WORKER: &str = "compile-worker";

/// The largest module; clang's is 76 MB.
const MAX_MODULE: u64 = 256 << 20;
/// Processor time: clang takes 80 s on the machine this was chosen on.
const MAX_SECONDS: u64 = 240;
/// Memory of the worker, which on cgroup v1 nothing else bounds.
const MAX_MEMORY: u64 = 4 << 30;
/// The largest code: up to three times the module.
const MAX_CODE: u64 = 1 << 30;
/// `nobody`, in Debian as elsewhere.
const NOBODY: u32 = 65534;

/// Runs the worker and says what became of it.
pub(crate) fn supervise() -> Result<u8> {
    let program = std::env::current_exe().context("cannot find this program")?;
    let status = Command::new(program)
        .arg0("knarr-wasm")
        .arg(WORKER)
        .env_clear()
        .status()
        .context("cannot start the compiler")?;
    let Some(signal) = status.signal() else {
        return Ok(if status.success() { 0 } else { 1 });
    };
    match Signal::from_named_raw(signal) {
        Some(Signal::XCPU | Signal::KILL) => wasmtime::bail!(
            "compile limit: the module takes more than {MAX_SECONDS} s of processor time"
        ),
        Some(Signal::ABORT) => wasmtime::bail!(
            "compile limit: the module takes more than {} GiB of memory",
            MAX_MEMORY >> 30
        ),
        Some(Signal::XFSZ) => {
            wasmtime::bail!("compile limit: the code is larger than {} GiB", MAX_CODE >> 30)
        }
        _ => wasmtime::bail!("the compiler crashed on this module (signal {signal})"),
    }
}

/// Compiles descriptor 0 to descriptor 1.
pub(crate) fn work() -> Result<u8> {
    confine().context("cannot confine the compiler")?;
    let mut binary = Vec::new();
    io::stdin().lock().take(MAX_MODULE + 1).read_to_end(&mut binary).context("cannot read")?;
    wasmtime::ensure!(
        binary.len() as u64 <= MAX_MODULE,
        "compile limit: the module is larger than {} MiB",
        MAX_MODULE >> 20
    );
    let kind = Kind::of(&binary)?;
    let engine = engine::compiling(kind)?;
    let code = match kind {
        Kind::Module => engine.precompile_module(&binary),
        Kind::Component => engine.precompile_component(&binary),
    }
    .context("the module cannot be compiled")?;
    let mut output = io::stdout().lock();
    output.write_all(&code).and_then(|()| output.flush()).context("cannot write the code")?;
    Ok(0)
}

/// Gives away what compiling does not need.
fn confine() -> Result<()> {
    // The engine that asked may die; then nobody waits for the answer.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    rustix::thread::set_no_new_privs(true)?;
    let limits = [
        (Resource::Cpu, MAX_SECONDS, MAX_SECONDS + 5),
        (Resource::Data, MAX_MEMORY, MAX_MEMORY),
        (Resource::Fsize, MAX_CODE, MAX_CODE),
        (Resource::Core, 0, 0),
        (Resource::Nofile, 64, 64),
    ];
    for (resource, current, maximum) in limits {
        let inherited = rustix::process::getrlimit(resource).maximum.unwrap_or(u64::MAX);
        let limit =
            Rlimit { current: Some(current.min(inherited)), maximum: Some(maximum.min(inherited)) };
        rustix::process::setrlimit(resource, limit)?;
    }
    if Uid::effective().is_root() {
        // A network without interfaces, and a root without files that nothing
        // can be reached from; then a user without rights.
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWIPC)?;
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some("none"), "/proc", Some("tmpfs"), flags | MsFlags::MS_RDONLY, none)?;
        nix::unistd::chroot("/proc")?;
        nix::unistd::chdir("/")?;
        match become_nobody() {
            // In a namespace of his own a user may be all that there is: then as himself,
            // with nothing of what he may do there.
            Err(Errno::EPERM | Errno::EINVAL) => {
                let none = CapabilitySet::empty();
                let sets = CapabilitySets { effective: none, permitted: none, inheritable: none };
                rustix::thread::set_capabilities(None, sets)?;
            }
            done => done?,
        }
    }
    Ok(())
}

fn become_nobody() -> nix::Result<()> {
    setgroups(&[])?;
    setgid(Gid::from_raw(NOBODY))?;
    setuid(Uid::from_raw(NOBODY))
}

//! `knarr-wasm compile`: untrusted bytes in, code out, within limits.
//!
//! ```text
//! engine -- compile (supervisor) -- compile-worker (limits, no rights) -- cranelift
//! ```
//!
//! Compiling is the one place where a module's author chooses how much work is
//! done: a compile bomb is no bug of the compiler. So a worker does it, which
//! first gives away everything it does not need (limits, user, root, network,
//! Landlock, nearly all system calls), goes behind everybody else, and has limits
//! that grow with the module: a small one cannot take the time of a large one. A
//! supervisor says in words what the worker died of, and ends it when nobody waits any
//! more.

use std::{
    io::{self, Read as _, Write as _},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::process::{CommandExt as _, ExitStatusExt as _},
    },
    process::Command,
    thread,
};

use knarr_sys::landlock::{Ruleset, Tcp};
use nix::{
    errno::Errno,
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    unistd::{Gid, Uid, setgid, setgroups, setuid},
};
use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::FileType,
    process::{Pid, PidfdFlags, Resource, Rlimit, Signal, pidfd_open, pidfd_send_signal},
    thread::{CapabilitySet, CapabilitySets},
};
use wasmtime::{Result, error::Context as _};

use crate::{
    calls,
    confine::limit,
    engine::{self, Kind},
};

/// The verb of the worker.
pub(crate) const WORKER: &str = "compile-worker";

/// The largest module; clang's is 76 MB.
const MAX_MODULE: u64 = 256 << 20;
/// Processor time: clang takes 80 s on the machine this was chosen on.
const MAX_SECONDS: u64 = 240;
/// The same of a module without contents, and for each MiB; programs take about 1 s for one,
/// and twenty times as long on a small or emulated machine.
const SECONDS: (u64, u64) = (60, 4);
/// Memory of the worker, which on cgroup v1 nothing else bounds.
const MAX_MEMORY: u64 = 4 << 30;
/// The same of a module without contents (threads and their arenas), and for each byte.
const MEMORY: (u64, u64) = (1 << 30, 48);
/// Less urgent than what serves somebody, but not at the mercy of a busy machine.
const NICE: i32 = 10;
/// The largest code: up to three times the module.
const MAX_CODE: u64 = 1 << 30;
/// `nobody`, in Debian as elsewhere.
const NOBODY: u32 = 65534;

/// Runs the worker and says what became of it.
pub(crate) fn supervise() -> Result<u8> {
    let program = std::env::current_exe().context("cannot find this program")?;
    let limits = Limits::of(&io::stdin());
    let mut worker = Command::new(program)
        .arg0("knarr-wasm")
        .arg(WORKER)
        .env_clear()
        .spawn()
        .context("cannot start the compiler")?;
    let worker_process = Pid::from_child(&worker);
    let pidfd = pidfd_open(worker_process, PidfdFlags::empty()).context("the compiler")?;
    thread::spawn(move || end_with_listener(pidfd.as_fd()));
    let status = worker.wait().context("cannot wait for the compiler")?;
    let Some(signal) = status.signal() else {
        return Ok(if status.success() { 0 } else { 1 });
    };
    match Signal::from_named_raw(signal) {
        Some(Signal::XCPU | Signal::KILL) => wasmtime::bail!(
            "compile limit: the module takes more than {} s of processor time",
            limits.seconds
        ),
        Some(Signal::ABORT) => wasmtime::bail!(
            "compile limit: the module takes more than {} MiB of memory",
            limits.memory >> 20
        ),
        Some(Signal::XFSZ) => {
            wasmtime::bail!("compile limit: the code is larger than {} GiB", MAX_CODE >> 30)
        }
        _ => wasmtime::bail!("the compiler crashed on this module (signal {signal})"),
    }
}

/// Ends the worker when whoever reads what it says is gone: nobody waits for the code then.
fn end_with_listener(worker: BorrowedFd<'_>) {
    let stderr = io::stderr();
    let mut ends = [PollFd::new(&stderr, PollFlags::empty())];
    // Where it is no pipe, it never says so.
    while poll(&mut ends, None) == Err(rustix::io::Errno::INTR) {}
    if ends[0].revents().contains(PollFlags::ERR) {
        let _ = pidfd_send_signal(worker, Signal::KILL);
    }
}

/// What a module may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Limits {
    /// Of processor time.
    seconds: u64,
    /// In bytes.
    memory: u64,
}

impl Limits {
    /// Of the module in an open file; the most, where its size is not known before.
    fn of(module: &impl AsFd) -> Self {
        let known = rustix::fs::fstat(module).ok();
        let known = known.filter(|stat| FileType::from_raw_mode(stat.st_mode).is_file());
        known.map_or(Self { seconds: MAX_SECONDS, memory: MAX_MEMORY }, |stat| {
            Self::of_size(u64::try_from(stat.st_size).unwrap_or(u64::MAX))
        })
    }

    fn of_size(bytes: u64) -> Self {
        Self {
            seconds: (SECONDS.0 + SECONDS.1 * (bytes >> 20)).min(MAX_SECONDS),
            memory: bytes.saturating_mul(MEMORY.1).saturating_add(MEMORY.0).min(MAX_MEMORY),
        }
    }
}

/// Compiles descriptor 0 to descriptor 1.
pub(crate) fn work() -> Result<u8> {
    confine(Limits::of(&io::stdin())).context("cannot confine the compiler")?;
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
fn confine(most: Limits) -> Result<()> {
    // The engine that asked may die; then nobody waits for the answer.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    rustix::thread::set_no_new_privs(true)?;
    // Not at the cost of what serves somebody. Where it is not allowed, it is not needed.
    let _ = rustix::process::nice(NICE);
    let _ = knarr_sys::work_in_background();
    // The signal comes some seconds before the end, so that it can be told from others.
    let hard = rustix::process::getrlimit(Resource::Cpu).maximum.unwrap_or(u64::MAX);
    let cpu = |seconds: u64| Some(seconds.min(hard));
    rustix::process::setrlimit(
        Resource::Cpu,
        Rlimit { current: cpu(most.seconds), maximum: cpu(most.seconds + 5) },
    )?;
    limit(&[
        (Resource::Data, most.memory),
        (Resource::Fsize, MAX_CODE),
        (Resource::Core, 0),
        (Resource::Nofile, 64),
        (Resource::Memlock, 0),
        (Resource::Msgqueue, 0),
    ])?;
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
    // Whoever started it, and wherever: no file by name, no port, no neighbour; then no
    // system call but for reading, writing and computing.
    grant_nothing()?;
    calls::confine_compiler()
}

/// Landlock without a rule, for this thread and those that it starts.
fn grant_nothing() -> Result<()> {
    if let Some(rules) = Ruleset::new(Tcp::Denied).context("cannot use Landlock")? {
        rules.restrict().context("cannot use Landlock")?;
    }
    Ok(())
}

fn become_nobody() -> nix::Result<()> {
    setgroups(&[])?;
    setgid(Gid::from_raw(NOBODY))?;
    setuid(Uid::from_raw(NOBODY))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn w05_a_small_module_cannot_take_what_a_large_one_may() {
        let at = |mebibytes: u64| Limits::of_size(mebibytes << 20);
        assert_eq!(at(0), Limits { seconds: 60, memory: 1 << 30 });
        assert_eq!(at(3).seconds, 72);
        // clang's 75 MB take 80 s and the whole of the memory.
        assert_eq!(at(75), Limits { seconds: MAX_SECONDS, memory: MAX_MEMORY });
        assert_eq!(Limits::of_size(u64::MAX).memory, MAX_MEMORY);
    }

    #[test]
    fn w27_no_file_is_opened_where_the_filter_of_system_calls_is_not() {
        // In a thread of its own: nothing is given back.
        let confined = thread::spawn(|| {
            if Ruleset::new(Tcp::Denied).unwrap().is_none() {
                eprintln!("this kernel has no Landlock");
                return;
            }
            rustix::thread::set_no_new_privs(true).unwrap();
            grant_nothing().unwrap();
            for path in ["/etc/passwd", "/proc/self/status", "/"] {
                let denied = std::fs::File::open(path).unwrap_err();
                assert_eq!(denied.kind(), io::ErrorKind::PermissionDenied, "{path}");
            }
            let denied = std::net::TcpListener::bind("127.0.0.1:0").map(drop);
            let knows_tcp = Ruleset::new(Tcp::Denied).unwrap().is_some_and(|one| one.knows_tcp());
            assert_eq!(denied.is_err(), knows_tcp);
        });
        confined.join().unwrap();
    }
}

//! Unpacking in a process of its own.
//!
//! ```text
//!   knarrd                                      knarrd unpack-layer <order>
//!   reader ─ hash, ingest ─▶ pipe ────────────▶ stdin: inflate, hash, extract into ./fs
//!   Unpacked ◀─ checked ◀─── one line of JSON ── stdout
//! ```
//!
//! What a stranger's archive does to a decompressor and a parser, it does to a
//! process that has nothing: no privilege but those that owners, nodes and
//! overlayfs' marks need, no more of the file system than the one layer's
//! directory (it is the process's root, and devices in it cannot be opened), no
//! network, no descriptors but its three, limits of memory, processor time and
//! descriptors of its own, and no system calls but those of its work (`calls.rs`).
//! The digest of the compressed bytes is the parent's; that of the archive is the
//! child's, so the child is trusted with the layer that it makes, and with nothing
//! else.
//!
//! **How it fails.** Where the child ends without an answer, the layer is
//! refused: [`Error::Stopped`] where its own limits ended it. The caller removes
//! the directory, as always.

use std::{
    ffi::OsString,
    fs::File,
    io::{self, Read, Write},
    os::{fd::AsFd, unix::process::ExitStatusExt},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::{Arc, atomic::Ordering},
};

use nix::sched::{CloneFlags, unshare};
use rustix::{
    io::Errno,
    mount::{MountFlags, MountPropagationFlags, mount_bind, mount_change, mount_remount},
    process::{Resource, Rlimit, Signal, getrlimit, set_parent_process_death_signal, setrlimit},
    thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities, set_no_new_privs},
};
use serde::{Deserialize, Serialize};

use crate::{
    Error, Limits, Result, calls,
    layers::{Done, unpack_here},
};

/// Memory of its own that the child may have; zstd's largest window is 128 MiB.
const MEMORY: u64 = 512 << 20;
/// Seconds of processor time; the largest layer that is allowed takes less.
const TIME: u64 = 3600;
/// Descriptors that it may have open.
const DESCRIPTORS: u64 = 256;
/// Bytes of an answer.
const ANSWER_MAX: u64 = 64 * 1024;
/// The pipe to it; with a small one both wait for each other too often.
const PIPE: usize = 1 << 20;

/// What owners, modes, nodes, file capabilities and `trusted.overlay.*` need.
const NEEDED: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::SETFCAP)
    .union(CapabilitySet::SYS_ADMIN);

/// The program that unpacks: it calls [`work`] and ends.
#[derive(Debug, Clone)]
pub struct Worker {
    /// Its path.
    pub program: PathBuf,
    /// What it is called with, before the order.
    pub arguments: Vec<OsString>,
}

/// The limits of one layer: what is left of an image's.
#[derive(Debug, Serialize, Deserialize)]
struct Order {
    entries: u64,
    bytes: u64,
    ratio: u64,
    free_bytes: u64,
}

#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    Done(Done),
    Archive(String),
    Entry {
        entry: String,
        reason: String,
    },
    TooLarge {
        what: String,
        limit: u64,
    },
    /// The host failed, with a number of errno.
    Host {
        what: String,
        errno: i32,
    },
}

impl Worker {
    /// Has a layer unpacked into `directory`'s `fs`.
    pub(crate) fn unpack(
        &self,
        mut reader: impl Read,
        directory: &Path,
        limits: &Limits,
    ) -> Result<Done> {
        let beyond = limits.spent.beyond.load(Ordering::Relaxed);
        let order = Order {
            entries: limits.entries_left(),
            bytes: limits.bytes,
            ratio: limits.ratio,
            free_bytes: limits.free_bytes.saturating_sub(beyond),
        };
        let order = serde_json::to_string(&order).map_err(|e| self.failed(e.into()))?;
        let child = Command::new(&self.program)
            .args(&self.arguments)
            .arg(order)
            .env_clear()
            .current_dir(directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|e| self.failed(e))?;
        let mut child = Running(child);
        // Whoever fails from here on ends the child, too.
        if let Some(stdin) = child.0.stdin.take() {
            feed(&mut reader, stdin)?;
        }
        let mut text = Vec::new();
        if let Some(stdout) = child.0.stdout.take() {
            stdout.take(ANSWER_MAX).read_to_end(&mut text).map_err(|e| self.failed(e))?;
        }
        let status = child.0.wait().map_err(|e| self.failed(e))?;
        match serde_json::from_slice(&text) {
            Ok(Answer::Done(done)) if status.success() => {
                limits.spent.beyond.fetch_add(done.beyond, Ordering::Relaxed);
                Ok(done)
            }
            Ok(Answer::Archive(why)) => Err(Error::Archive(why)),
            Ok(Answer::Entry { entry, reason }) => Err(Error::Entry { entry, reason }),
            Ok(Answer::TooLarge { what, limit }) => Err(Error::TooLarge { what, limit }),
            Ok(Answer::Host { what, errno }) => {
                let source = io::Error::from_raw_os_error(errno);
                Err(Error::Io { action: "unpack: ", path: what, source })
            }
            Ok(Answer::Done(_)) | Err(_) => Err(self.ended(status)),
        }
    }

    /// The child ended without an answer.
    fn ended(&self, status: ExitStatus) -> Error {
        match status.signal() {
            // SIGXCPU; SIGABRT is what a failed allocation ends with.
            Some(signal @ (24 | 6)) => Error::Stopped { signal },
            _ => self.failed(io::Error::other(format!("it ended with {status}"))),
        }
    }

    fn failed(&self, source: io::Error) -> Error {
        Error::io("run", &self.program)(source)
    }
}

/// Moves the archive into the child, until one of them ends.
fn feed(reader: &mut impl Read, mut child: ChildStdin) -> Result<()> {
    // The kernel may say no; it is only slower then.
    let _ = rustix::pipe::fcntl_setpipe_size(&child, PIPE);
    let mut buffer = vec![0; 128 * 1024];
    loop {
        let read = match reader.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(read) => read,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(Error::Source(e)),
        };
        // A child that reads no more has its answer ready, or is gone.
        if child.write_all(&buffer[..read]).is_err() {
            return Ok(());
        }
    }
}

/// A child that does not outlive whoever waits for it.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Gone already is fine.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The child's whole work: the order is its last argument, the layer's directory
/// the one where it was started, the archive its standard input. Writes the
/// answer to standard output; an error is that this cannot be done. For a
/// process that does nothing else: it gives up all other privileges.
///
/// # Errors
/// When the answer cannot be written.
pub fn work() -> io::Result<()> {
    let answer = match unpack() {
        Ok(done) => Answer::Done(done),
        Err(Error::Archive(why)) => Answer::Archive(why),
        Err(Error::Entry { entry, reason }) => Answer::Entry { entry, reason },
        Err(Error::TooLarge { what, limit }) => Answer::TooLarge { what, limit },
        Err(Error::Io { action, path, source }) => Answer::Host {
            what: format!("{action} {path}"),
            errno: source.raw_os_error().unwrap_or(Errno::IO.raw_os_error()),
        },
        Err(other) => Answer::Archive(other.to_string()),
    };
    let mut output = io::stdout();
    output.write_all(&serde_json::to_vec(&answer)?)?;
    output.flush()
}

fn unpack() -> Result<Done> {
    let order = std::env::args().next_back().unwrap_or_default();
    let order: Order = serde_json::from_str(&order)
        .map_err(|e| Error::Archive(format!("order of an unpacker: {e}")))?;
    let limits = Limits {
        entries: order.entries,
        bytes: order.bytes,
        ratio: order.ratio,
        free_bytes: order.free_bytes,
        spent: Arc::default(),
    };
    let here = Path::new(".");
    confine().map_err(|e| Error::io("confine the unpacker to", here)(e.into()))?;
    let fs = Path::new("/fs");
    let root = crate::open_directory(fs)?;
    let input = io::stdin().as_fd().try_clone_to_owned().map_err(Error::io("read", fs))?;
    unpack_here(File::from(input), &root, fs, &limits)
}

/// Gives up what unpacking does not need. There is one thread.
fn confine() -> rustix::io::Result<()> {
    // The engine's next start sweeps what the last one left: nobody works there then.
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // The first to go where memory is short; its parent is among the last.
    let _ = std::fs::write("/proc/self/oom_score_adj", "500");
    for (resource, most) in [
        (Resource::Data, MEMORY),
        (Resource::Cpu, TIME),
        (Resource::Nofile, DESCRIPTORS),
        (Resource::Core, 0),
    ] {
        // Nobody raises the limit that its parent has.
        let most = getrlimit(resource).maximum.unwrap_or(u64::MAX).min(most);
        setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) })?;
    }
    set_no_new_privs(true)?;
    // No network, and mounts that nobody else sees: the layer's directory alone,
    // where no device can be opened.
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWIPC)
        .map_err(|e| Errno::from_raw_os_error(e as i32))?;
    let here = rustix::process::getcwd(Vec::new())?;
    let here = here.as_c_str();
    mount_change(c"/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    mount_bind(here, here)?;
    let inert = MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOEXEC;
    mount_remount(here, MountFlags::BIND | inert, c"")?;
    rustix::process::chdir(here)?;
    rustix::process::chroot(c".")?;
    rustix::process::chdir(c"/")?;
    let have = capabilities(None)?;
    let kept = have.permitted.intersection(NEEDED);
    let none = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: kept, permitted: kept, inheritable: none })?;
    calls::confine()
}

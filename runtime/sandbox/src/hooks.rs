//! Hooks: programs of the operator's that a container's life is told to.
//!
//! ```text
//!  namespaces made ─▶ prestart, createRuntime (host) ─▶ createContainer (inside, host's files)
//!  root entered ─▶ created ─▶ startContainer (inside, the container's files) ─▶ the program
//!  started ─▶ poststart (host)      deleted ─▶ poststop (host)
//! ```
//!
//! Each reads the container's state as JSON from its standard input, has the
//! environment that the specification gives it and nothing else, and is killed
//! when its time is over. The first one that fails ends the create or the start;
//! of poststop hooks each is tried. A hook inside is a launch like any other
//! process of the container, by knarr-init: one from the host's files with the
//! runtime's own rights, one from the container's with those of its program and no more.

use std::{
    fs::File,
    io::{Read, Seek, Write},
    os::{
        fd::{BorrowedFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Command, ExitStatus as StdStatus},
    sync::Arc,
    time::Duration,
};

use knarr_init::wire::Op;
use oci_spec::runtime::{Hook, Process, Spec};
use rustix::{
    fs::MemfdFlags,
    process::{PidfdFlags, pidfd_open},
};
use serde_json::json;

use crate::{
    Child, Error, Failure, Stdio,
    error::describe,
    launch::{Birth, launch},
    ops::{Ops, Strings, Wish, c_string},
    plan::{self, Context},
    teller::Teller,
};

/// When a hook is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moment {
    Prestart,
    CreateRuntime,
    CreateContainer,
    StartContainer,
    Poststart,
    Poststop,
}

impl Moment {
    fn name(self) -> &'static str {
        match self {
            Self::Prestart => "prestart",
            Self::CreateRuntime => "createRuntime",
            Self::CreateContainer => "createContainer",
            Self::StartContainer => "startContainer",
            Self::Poststart => "poststart",
            Self::Poststop => "poststop",
        }
    }

    /// What the state says meanwhile (runc's words).
    fn status(self) -> &'static str {
        match self {
            Self::CreateRuntime | Self::CreateContainer => "creating",
            // Once this was the moment between create and start.
            Self::Prestart | Self::StartContainer => "created",
            Self::Poststart => "running",
            Self::Poststop => "stopped",
        }
    }
}

/// Where a hook inside is run.
#[derive(Clone, Copy)]
pub(crate) struct Inside<'a> {
    /// Whose namespaces it joins.
    pub(crate) init: &'a Child,
    /// The kinds of these.
    pub(crate) kinds: u32,
    /// As whom, where not as who we are.
    pub(crate) guest: Option<Guest<'a>>,
}

/// A hook from the container's own files: whoever made the image has made it.
#[derive(Clone, Copy)]
pub(crate) struct Guest<'a> {
    pub(crate) process: &'a Process,
    pub(crate) context: &'a Context<'a>,
    /// The directory of its cgroup2.
    pub(crate) cgroup: Option<BorrowedFd<'a>>,
    /// Whom its filter may have to be told of.
    pub(crate) teller: Option<&'a Arc<Teller>>,
}

/// The hooks of a container, and what they are told.
#[derive(Debug)]
pub(crate) struct Hooks {
    lists: [Vec<Hook>; 6],
    version: String,
    id: String,
    bundle: PathBuf,
    annotations: serde_json::Value,
    /// The program, whose rights startContainer hooks have.
    process: Option<Process>,
    /// Its environment, for those without one of their own.
    environment: Vec<String>,
    /// Where createContainer hooks begin.
    root: PathBuf,
}

impl Hooks {
    /// None where there are none, as for every container of the engine's.
    pub(crate) fn of(spec: &Spec, id: &str, bundle: &Path) -> Result<Option<Box<Self>>, Error> {
        let Some(hooks) = spec.hooks() else { return Ok(None) };
        let list = |hooks: &Option<Vec<Hook>>| hooks.clone().unwrap_or_default();
        let prestart = list(hooks.prestart());
        let lists = [
            prestart,
            list(hooks.create_runtime()),
            list(hooks.create_container()),
            list(hooks.start_container()),
            list(hooks.poststart()),
            list(hooks.poststop()),
        ];
        if lists.iter().all(Vec::is_empty) {
            return Ok(None);
        }
        if let Some(hook) = lists.iter().flatten().find(|hook| !hook.path().is_absolute()) {
            let text = format!("hook path {:?} is not absolute", hook.path().display());
            return Err(Error::new(Failure::InvalidSpec, text));
        }
        Ok(Some(Box::new(Self {
            lists,
            version: spec.version().clone(),
            id: id.to_owned(),
            bundle: bundle.to_owned(),
            annotations: json!(spec.annotations().clone().unwrap_or_default()),
            process: spec.process().clone(),
            environment: environment(spec),
            root: spec.root().as_ref().map(|root| bundle.join(root.path())).unwrap_or_default(),
        })))
    }

    fn list(&self, moment: Moment) -> &[Hook] {
        &self.lists[moment as usize]
    }

    /// Whether the first process must pause before it enters its root.
    pub(crate) fn holds(&self) -> bool {
        use Moment::*;
        [Prestart, CreateRuntime, CreateContainer].iter().any(|one| !self.list(*one).is_empty())
    }

    /// The program that startContainer hooks are run as, where there are any.
    pub(crate) fn guest(&self) -> Option<&Process> {
        self.process.as_ref().filter(|_| !self.list(Moment::StartContainer).is_empty())
    }

    /// Runs those of a moment.
    pub(crate) fn run(
        &self,
        moment: Moment,
        pid: Option<u32>,
        inside: Option<Inside<'_>>,
    ) -> Result<(), Error> {
        let hooks = self.list(moment);
        if hooks.is_empty() {
            return Ok(());
        }
        let mut state = json!({
            "ociVersion": self.version,
            "id": self.id,
            "status": moment.status(),
            "bundle": self.bundle,
            "annotations": self.annotations,
        });
        if let Some(pid) = pid {
            state["pid"] = pid.into();
        }
        let state = state.to_string();
        let mut result = Ok(());
        for (number, hook) in hooks.iter().enumerate() {
            let done = match inside {
                None => self.outside(hook, &state),
                Some(inside) => {
                    // Both as runc, where they are not written down.
                    let (dir, env) = match moment {
                        Moment::StartContainer => (Path::new("/"), &self.environment[..]),
                        _ => (&*self.root, &[][..]),
                    };
                    let env = hook.env().as_deref().unwrap_or(env);
                    run_inside(hook, &state, inside, dir, env)
                }
            };
            if let Err(why) = done {
                // runc's words.
                let text = format!("error running {} hook #{number}: {why}", moment.name());
                result = result.and(Err(Error::new(Failure::System, text)));
                if moment != Moment::Poststop {
                    break;
                }
            }
        }
        result
    }

    fn outside(&self, hook: &Hook, state: &str) -> Result<(), String> {
        let words = memory("knarr-hook", b"").map_err(|error| error.to_string())?;
        let copy = || words.try_clone().map_err(|error| error.to_string());
        let input = memory("knarr-state", state.as_bytes()).map_err(|error| error.to_string())?;
        let mut command = Command::new(hook.path());
        let mut args = hook.args().iter().flatten();
        if let Some(name) = args.next() {
            command.arg0(name);
        }
        command.args(args).env_clear().current_dir(&self.bundle);
        command.envs(hook.env().iter().flatten().filter_map(|entry| entry.split_once('=')));
        command.stdin(input).stdout(copy()?).stderr(copy()?);
        let mut child = command
            .spawn()
            .map_err(|error| format!("{}: {}", hook.path().display(), describe(&error)))?;
        let pid = rustix::process::Pid::from_child(&child);
        let ended = pidfd_open(pid, PidfdFlags::empty()).map(|fd| within(&fd, hook.timeout()));
        if !matches!(ended, Ok(true)) {
            let _ = child.kill();
            let _ = child.wait();
            return Err(late(hook, &words));
        }
        let status = child.wait().map_err(|error| error.to_string())?;
        judge(status.success(), || end_of(status), &words)
    }
}

/// The program's environment, with a home.
fn environment(spec: &Spec) -> Vec<String> {
    let Some(process) = spec.process() else { return Vec::new() };
    let mut all = process.env().clone().unwrap_or_default();
    if !all.iter().any(|entry| entry.starts_with("HOME=")) {
        all.push(if process.user().uid() == 0 { "HOME=/root" } else { "HOME=/" }.to_owned());
    }
    all
}

/// A launch that joins the container and runs the hook.
fn run_inside(
    hook: &Hook,
    state: &str,
    Inside { init, kinds, guest }: Inside<'_>,
    dir: &Path,
    env: &[String],
) -> Result<(), String> {
    let run = || -> Result<(Child, File), Error> {
        let failed = |error| Error::system("make a hook's files", error);
        let words = memory("knarr-hook", b"").map_err(failed)?;
        let stdio = Stdio::Fds {
            stdin: memory("knarr-state", state.as_bytes()).map_err(failed)?.into(),
            stdout: words.try_clone().map_err(failed)?.into(),
            stderr: words.try_clone().map_err(failed)?.into(),
        };
        let path = hook.path().to_string_lossy().into_owned();
        let args = hook.args().clone().unwrap_or_else(|| vec![path.clone()]);
        let candidates = Strings::new("a hook's path", [&path])?;
        let (argv, env) =
            (Strings::new("a hook's argument", &args)?, Strings::new("a hook's environment", env)?);
        let dir = c_string("a hook's directory", dir.as_os_str().as_encoded_bytes())?;
        let mut ops = Ops::default();
        if let Some(guest) = guest {
            plan::join_cgroups(&mut ops, guest.context);
        }
        let fd = ops.wish(Wish::Container);
        ops.push(Op::Setns { fd, kinds });
        ops.push(Op::Chdir { path: &dir, create: false });
        ops.push(Op::Lookup { candidates: candidates.list() });
        ops.push(Op::Signals {});
        match guest {
            Some(Guest { process, context, .. }) => {
                plan::drop_privileges(&mut ops, process, context)?;
            }
            None => ops.push(Op::CloseFrom { first: 3 }),
        }
        ops.push(Op::Exec { argv: argv.list(), env: env.list() });
        let birth = Birth {
            pid_namespace: Some(init.pidfd()),
            cgroup: guest.and_then(|guest| guest.cgroup),
            teller: guest.and_then(|guest| guest.teller.cloned()),
            ..Birth::default()
        };
        let mut launched = launch(&birth, &stdio)?;
        let sent = launched.send(&ops, |wish| match wish {
            Wish::Container => Some(init.pidfd_copy()),
            _ => None,
        });
        let begun = sent.and_then(|()| launched.await_exec(&ops));
        launched.or_end(begun)?;
        Ok((launched.child.clone(), words))
    };
    let (child, words) = run().map_err(|error| error.to_string())?;
    if !within(child.pidfd(), hook.timeout()) {
        let _ = child.end();
        return Err(late(hook, &words));
    }
    let status = child.wait_blocking().map_err(|error| error.to_string())?;
    let end = || match status.signal {
        Some(signal) => name_of(signal.into()),
        None => format!("exit status {}", status.code),
    };
    judge(status.code == 0, end, &words)
}

/// Whether a process ends in its time; no time is as much as it wants.
fn within(pidfd: impl std::os::fd::AsFd, seconds: Option<i64>) -> bool {
    let time = seconds.map_or(Duration::MAX, |seconds| Duration::from_secs(seconds.max(0) as u64));
    knarr_sys::ends_within(pidfd.as_fd(), time)
}

fn late(hook: &Hook, words: &File) -> String {
    let seconds = hook.timeout().unwrap_or_default();
    format!("hook ran past specified timeout of {seconds}s{}", said(words))
}

fn judge(good: bool, end: impl FnOnce() -> String, words: &File) -> Result<(), String> {
    if good { Ok(()) } else { Err(format!("{}{}", end(), said(words))) }
}

fn end_of(status: StdStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match status.signal() {
        Some(signal) => name_of(signal),
        None => format!("exit status {}", status.code().unwrap_or_default()),
    }
}

/// A signal's name, in the words of runc's messages where they are often met.
fn name_of(signal: i32) -> String {
    use nix::sys::signal::Signal;
    let name = match Signal::try_from(signal) {
        Ok(Signal::SIGKILL) => "killed",
        Ok(Signal::SIGTERM) => "terminated",
        Ok(Signal::SIGABRT) => "aborted",
        Ok(Signal::SIGSEGV) => "segmentation fault",
        Ok(Signal::SIGSYS) => "bad system call",
        Ok(other) => other.as_str(),
        Err(_) => return format!("signal: {signal}"),
    };
    format!("signal: {name}")
}

/// What a hook wrote, as much of it as belongs in a message.
fn said(words: &File) -> String {
    let read = || -> std::io::Result<String> {
        let mut file = words.try_clone()?;
        file.rewind()?;
        let mut bytes = Vec::new();
        file.take(4096).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
    };
    match read() {
        Ok(text) if !text.is_empty() => format!(", output: {text}"),
        _ => String::new(),
    }
}

fn memory(name: &str, bytes: &[u8]) -> std::io::Result<File> {
    let fd: OwnedFd = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC)?;
    let mut file = File::from(fd);
    file.write_all(bytes)?;
    file.rewind()?;
    Ok(file)
}

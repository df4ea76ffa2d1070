//! `create`, `run` and `start`: how a container comes to life.

use std::{fs, io::Write, path::Path};

use anyhow::{Context, Result, anyhow};
use knarr_bundle::Entry;
use knarr_sandbox::{Container, CreateOptions, Created, ExitStatus, Manner, create_with};
use oci_spec::runtime::Spec;

use crate::{
    Global, Outcome,
    args::Verb,
    config::{self, Bundle},
    state::{Home, Known, Record, Status},
    streams::{self, Console, Joined, Signals},
};

pub(crate) fn create(global: &Global, verb: &Verb) -> Outcome {
    let id = verb.container(1)?;
    let home = Home::of(global, id)?;
    let mut bundle = config::bundle(global, &verb.flags)?;
    enter(&mut bundle)?;
    home.make()?;
    make(global, &home, &bundle, verb, true)
        .and_then(|made| made.leave(&home))
        .inspect_err(|_| drop(home.remove()))
        .context("knarr-oci create failed")?;
    Ok(0)
}

pub(crate) fn run(global: &Global, verb: &Verb) -> Outcome {
    let id = verb.container(1)?;
    let detached = verb.flags.has("detach");
    let home = Home::of(global, id)?;
    let mut bundle = config::bundle(global, &verb.flags)?;
    enter(&mut bundle)?;
    home.make()?;
    let signals = if detached { None } else { Some(Signals::hold()?) };
    if !detached && !verb.flags.has("no-subreaper") {
        nix::sys::prctl::set_child_subreaper(true).context("become a subreaper")?;
    }
    let done = make(global, &home, &bundle, verb, detached).and_then(|made| {
        let record = made.record;
        home.save(&record, None)?;
        let terminal = made.terminal.map(Joined::new).transpose()?;
        // What fails from here on has taken the container with it.
        let container = made.created.start()?;
        match &signals {
            Some(signals) => finish(&container, signals, terminal, verb.flags.has("keep")),
            None => Ok(None),
        }
    });
    let kept = matches!(&done, Ok(None)) || verb.flags.has("keep") && done.is_ok();
    if !kept {
        home.remove()?;
    }
    match done.context("knarr-oci run failed")? {
        None => Ok(0),
        Some(status) => Ok(status.code as u8),
    }
}

/// Gives a user without privileges those that his own namespace holds.
fn enter(bundle: &mut Bundle) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        knarr_sandbox::rootless::enter(&mut bundle.spec)?;
        bundle.rootless = true;
    }
    Ok(())
}

/// Waits for the program's end; removes the container unless it is kept.
fn finish(
    container: &Container,
    signals: &Signals,
    terminal: Option<Joined>,
    keep: bool,
) -> Result<Option<ExitStatus>> {
    let status = signals.wait(container.init(), terminal)?;
    if !keep {
        container.delete()?;
    }
    Ok(Some(status))
}

pub(crate) fn start(global: &Global, verb: &Verb) -> Outcome {
    let known = Known::find_within(global, verb.container(1)?)?;
    // runc's words.
    let running = || anyhow!("cannot start an already running container");
    let container = match known.status() {
        Status::Stopped => return Err(anyhow!("cannot start a container that has stopped").into()),
        Status::Running => return Err(running().into()),
        Status::Created | Status::Paused => known.alive()?,
    };
    let connection = known.home.connect()?.ok_or_else(running)?;
    container
        .start(connection, &known.left()?)
        .inspect_err(|_| drop(container.kill_all()))
        .context("knarr-oci start failed")?;
    known.home.started();
    Ok(0)
}

/// A container that was just made.
struct Made {
    created: Created,
    record: Record,
    terminal: Option<std::os::fd::OwnedFd>,
}

impl Made {
    /// Lets it wait for `start`.
    fn leave(self, home: &Home) -> Result<()> {
        let left = self.created.leave();
        home.save(&self.record, Some(&left.plan))
    }
}

/// Says in the specification whether the program is Wasm, and what it is launched with.
fn adopt(spec: &mut Spec, bundle: &Path) -> Result<()> {
    let launch = match knarr_bundle::entry(spec, bundle, &[])? {
        Entry::Native | Entry::Missing => None,
        Entry::Wasm(guest) => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            Some(runtime.block_on(knarr_bundle::Host::new().launch(spec, guest))?)
        }
    };
    Ok(knarr_bundle::adopt(spec, launch.as_ref())?)
}

fn make(
    global: &Global,
    home: &Home,
    bundle: &Bundle,
    verb: &Verb,
    detached: bool,
) -> Result<Made> {
    let Bundle { dir, text, spec, owner, rootless } = bundle;
    let mut spec = spec.clone();
    let terminal = spec.process().as_ref().and_then(|process| process.terminal()) == Some(true);
    let console = streams::console(terminal, verb.flags.get("console-socket"), detached)?;
    let size = spec.process().as_ref().and_then(|process| process.console_size());
    let size = size.map(|size| (size.height() as u16, size.width() as u16));
    let (inherited, listening) = global.inherited.take();
    adopt(&mut spec, dir)?;
    if global.flags.has("systemd-cgroup") {
        knarr_bundle::by_systemd(&mut spec)?;
    }
    if listening > 0 {
        tell_of_sockets(&mut spec, listening);
    }
    if spec.annotations() == bundle.spec.annotations() && !bundle.rootless {
        home.save_spec(text)?;
    } else {
        // What the sandbox was told is what later calls must know.
        home.save_spec(&serde_json::to_vec(&spec)?)?;
    }
    let manner = Manner {
        outlives: true,
        foreign: true,
        listener: if verb.name == "create" { Some(home.listen()?) } else { None },
        inherited,
        no_pivot: verb.flags.has("no-pivot"),
        no_new_keyring: verb.flags.has("no-new-keyring"),
        rootless: config::rootless(&global.flags)?,
        hasty: false,
    };
    let options = CreateOptions {
        id: &home.id,
        bundle: dir,
        spec: &spec,
        rootfs: &[],
        stdio: streams::stdio(&console, size)?,
    };
    let mut created = create_with(options, manner)
        // runc's words, which engines look for.
        .context("unable to start container process")?;
    let pid = created.pid();
    global.log.debug(&format!("process {pid} of container {} is ready", home.id));
    if let Some(flags) = created.container().seccomp_flags() {
        global.log.debug(&format!("seccomp filter flags: {flags}"));
    }
    let mut ours = None;
    if let Some(master) = created.console() {
        match console {
            Console::Socket(path) => streams::send_console(path, &master)?,
            _ => ours = Some(master),
        }
    }
    streams::send_pidfd(&verb.flags, created.container().init().pidfd())?;
    if let Some(path) = verb.flags.get("pid-file") {
        write_pid(Path::new(path), pid)?;
    }
    let record = Record {
        oci_version: spec.version().clone(),
        id: home.id.clone(),
        pid,
        start_time: created.container().init().start_time(),
        bundle: dir.clone(),
        rootfs: rootfs(&spec, dir),
        created: jiff::Timestamp::now().to_string(),
        annotations: bundle.spec.annotations().clone().unwrap_or_default(),
        owner: *owner,
        rootless: *rootless,
    };
    Ok(Made { created, record, terminal: ours })
}

fn rootfs(spec: &Spec, bundle: &Path) -> std::path::PathBuf {
    spec.root().as_ref().map(|root| bundle.join(root.path())).unwrap_or_default()
}

/// A service manager's sockets are the program's.
fn tell_of_sockets(spec: &mut Spec, count: u32) {
    let Some(mut process) = spec.process().clone() else { return };
    let mut env = process.env().clone().unwrap_or_default();
    env.extend([format!("LISTEN_FDS={count}"), "LISTEN_PID=1".to_owned()]);
    process.set_env(Some(env));
    spec.set_process(Some(process));
}

/// Appears with its content or not at all.
pub(crate) fn write_pid(path: &Path, pid: u32) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let new = path.with_file_name(format!(".{name}"));
    let write = || {
        fs::File::create(&new)?.write_all(pid.to_string().as_bytes())?;
        fs::rename(&new, path)
    };
    write().with_context(|| format!("write pid file {}", path.display()))
}

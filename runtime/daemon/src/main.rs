//! knarrd: configuration, sockets, signals; wires the API to the engine.
//!
//! ```text
//!   flags + file ─► settings ─► engine (locks, recovery) ─► sockets ─► ready
//!                                                                        │
//!   containers run on ◄── sockets closed, clients served ◄── SIGTERM ◄───┘
//! ```
//!
//! **How it fails.** Bad configuration, a root that another engine holds, or a
//! socket that cannot be had: one message on stderr and exit code 1, before
//! anything is ready. Killed at any moment it loses nothing: the next start
//! recovers.

#![forbid(unsafe_code)]

mod options;
mod ready;
mod settings;
mod socket;

use std::{io::IsTerminal, process::ExitCode, time::Duration};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use knarr_api::{Api, Facts, Shutdown};
use knarr_engine::Engine;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};

use options::{Flags, Host, Settings};

/// Of the daemon itself; what it starts has the usual one.
const OOM_SCORE: i32 = -500;

fn main() -> ExitCode {
    knarr_sys::without_name_services();
    // Before anything else is made: the process that unpacks layers does nothing else.
    if std::env::args_os().nth(1).is_some_and(|word| word == settings::UNPACK) {
        return match knarr_store::work() {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        };
    }
    let flags = Flags::parse();
    match run(&flags) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("knarrd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(flags: &Flags) -> Result<()> {
    let settings = options::load(flags)?;
    let nofile = raise_nofile();
    let mut config = settings::engine(&settings, flags.libexec.as_deref())?;
    config.nofile = nofile;
    if flags.validate {
        println!("configuration OK");
        return Ok(());
    }
    let level = options::level(&settings)?;
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(level >= tracing::Level::DEBUG)
        .init();
    ensure!(
        rustix::process::geteuid().is_root(),
        "knarrd needs to be started with root privileges"
    );
    // Whoever started us may have said that everybody may write what we make, or that
    // nobody may read it: as dockerd, neither.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    // Docker's score: containers are to be killed before the daemon when memory runs out.
    match knarr_sys::lower_oom_score(OOM_SCORE) {
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            tracing::info!("oom_score_adj stays as it is: {OOM_SCORE} needs CAP_SYS_RESOURCE");
        }
        Err(error) => tracing::warn!(%error, "set oom_score_adj to {OOM_SCORE}"),
        Ok(()) => {}
    }
    // The starter's pipe, and whatever else was left open, is not for shims.
    knarr_sys::close_on_exec(3).context("mark inherited descriptors")?;
    // One thread of control: what blocks has threads of its own, few and small,
    // which go when there is nothing to do.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(32)
        .thread_stack_size(1 << 20)
        .thread_keep_alive(Duration::from_secs(2))
        .build()
        .context("start the runtime")?;
    let outcome = runtime.block_on(daemon(flags, &settings, config));
    // A worker that hangs in the kernel must not keep the daemon from ending.
    runtime.shutdown_timeout(Duration::from_millis(250));
    outcome
}

/// Raises the limit of open files to what may be had, as Go's programs do.
/// Answers what it was, for programs that are started from here.
fn raise_nofile() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, ..limit };
    // Without it there is less room, and nothing else is different.
    setrlimit(Resource::Nofile, raised).ok().and(limit.current)
}

async fn daemon(
    flags: &Flags,
    settings: &Settings,
    config: knarr_engine::EngineConfig,
) -> Result<()> {
    // Before anything is ready, so that no signal finds the default action.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let hosts = match settings.hosts.is_empty() {
        true => vec![options::DEFAULT_HOST.parse()?],
        false => settings.hosts.iter().map(|host| host.parse()).collect::<Result<Vec<Host>>>()?,
    };
    let engine = Engine::open(config).await.context("failed to start daemon")?;
    let _pid_file = settings.pidfile.as_deref().map(ready::PidFile::write).transpose()?;
    let listeners = socket::open(&hosts, settings.group.as_deref())?;
    let own = socket::ports(&listeners)?;
    engine.ask_networks(move |networks| networks.guard(own)).await??;
    let api = Api::new(engine.clone(), facts(settings));
    let shutdown = Shutdown::default();
    let mut serving = tokio::task::JoinSet::new();
    for listener in listeners {
        serving.spawn(api.clone().serve(listener, shutdown.clone()));
    }
    tracing::info!(version = env!("CARGO_PKG_VERSION"), ?hosts, "knarrd listens");
    if let Some(descriptor) = flags.ready_fd {
        ready::tell(descriptor)?;
    }
    ready::notify("READY=1");
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hangup.recv() => {
                tracing::info!("configuration is read at the start only: restart knarrd, containers run on");
            }
        }
    }
    tracing::info!("knarrd ends; containers run on");
    ready::notify("STOPPING=1");
    shutdown.begin();
    while serving.join_next().await.is_some() {}
    for path in socket::paths(&hosts) {
        let _ = std::fs::remove_file(path);
    }
    engine.leave().await;
    Ok(())
}

fn facts(settings: &Settings) -> Facts {
    Facts {
        version: env!("CARGO_PKG_VERSION").into(),
        compiler: format!("rust{}", env!("CARGO_PKG_RUST_VERSION")),
        debug: settings.debug == Some(true),
        insecure_registries: settings.insecure_registries.clone(),
        registry_mirrors: settings.registry_mirrors.clone(),
        labels: settings.labels.clone(),
        ..Facts::default()
    }
}

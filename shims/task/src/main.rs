//! containerd-shim-knarr-v1: the Task service over the sandbox.
//!
//! The shim is the truth for the life and death of its tasks: it started their
//! processes, holds their pidfds, reads their output and reaps them. knarrd may
//! die and come back; whoever connects to the shim's socket finds all as it is.
//!
//! ```text
//!  knarrd ──spawn──▶ warm: listens, says "ready\n" on fd 1
//!                      │         └── fd 0 (lifeline) ends: exits
//!                    Create ──▶ owns a task: the lifeline means nothing
//!                      │
//!                    Delete ──▶ as before Create, for the next one
//!                      │
//!                    Shutdown ──▶ unlinks its socket, exits
//! ```
//!
//! containerd starts the same program otherwise (`containerd.rs`): `start` binds
//! the socket and leaves a shim behind that serves it, for one container or for
//! all of a pod; its events go to containerd (`publish.rs`).
//!
//! One thread, no buffers while nothing happens: an idle shim is small
//! (SPECIFICATION.md has the number). If the shim is killed, the kernel kills
//! its containers' first processes (`PR_SET_PDEATHSIG`), and the engine records
//! that it was so.

#![forbid(unsafe_code)]

mod args;
mod artifact;
mod attach;
mod containerd;
mod error;
mod grpc;
mod io;
mod json_log;
mod lifeline;
mod metrics;
mod netdev;
mod options;
mod pod;
mod process;
mod publish;
mod reaper;
mod records;
mod sandbox;
mod service;
mod stdio;
mod streams;
mod task;

use std::{io::Write, path::Path, process::ExitCode, sync::Arc, time::Duration};

use anyhow::Context;
use tokio::net::UnixListener;
use tokio_util::{io::InspectReader, task::TaskTracker};
use ttrpc::asynchronous::{Server, transport::Listener};

use crate::{args::Mode, artifact::Artifacts, publish::Publisher, service::Tasks};

/// A shim whose daemon is gone and whose last task was deleted waits so long
/// for a new daemon to say `Shutdown`.
const ORPHANED: Duration = Duration::from_secs(5);

/// A shim of containerd's without a task waits so long for one, or for `Shutdown`.
const UNUSED: Duration = Duration::from_secs(60);

/// The messages of `proto/`, made by the build script.
mod proto {
    #![allow(missing_docs, clippy::all)]
    include!(concat!(env!("OUT_DIR"), "/proto/mod.rs"));
}

/// The last events wait so long for a containerd that is away.
const EVENTS: Duration = Duration::from_secs(10);

/// Who was answered hangs up so soon.
const GOODBYE: Duration = Duration::from_secs(5);

/// The last output of a task belongs to the clients that were attached to it,
/// also when they read slowly (`docker run … | less`).
const SLOW_CLIENTS: Duration = Duration::from_secs(3600);

fn main() -> ExitCode {
    knarr_sys::without_name_services();
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "containerd-shim-knarr-v1: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    match args::parse(std::env::args().skip(1))? {
        Mode::Version => {
            writeln!(std::io::stdout(), "containerd-shim-knarr-v1 {}", env!("CARGO_PKG_VERSION"))?;
            Ok(())
        }
        Mode::Info => containerd::info(),
        Mode::Serve { socket, debug } => runtime(debug)?.block_on(serve(&socket)),
        Mode::Start(caller) => containerd::start(&caller),
        Mode::Delete { bundle, .. } => {
            containerd::delete(bundle.as_deref().unwrap_or(Path::new(".")))
        }
        Mode::Listen { caller, socket, systemd } => {
            let listener = lifeline::take_listener()?;
            runtime(caller.debug)?.block_on(listen(&caller, &socket, systemd, listener))
        }
    }
}

/// Makes this process one that keeps containers.
fn runtime(debug: bool) -> anyhow::Result<tokio::runtime::Runtime> {
    let level = if debug { tracing::Level::DEBUG } else { tracing::Level::WARN };
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    // A container's program finds descriptors of its own only.
    knarr_sys::close_on_exec(3).context("mark inherited descriptors")?;
    // Signals to the caller's terminal are not for us. An error means that
    // we lead a group already.
    let _ = nix::unistd::setsid();
    // Whoever started us may have said that everybody may write what we make
    // (containers have a umask of their own). dockerd does the same.
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    // No directory of whoever started us is kept busy.
    nix::unistd::chdir("/").context("change to /")?;
    nix::sys::prctl::set_child_subreaper(true).context("become a subreaper")?;
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the event loop")
}

/// Serves containerd on a socket that `start` has bound.
async fn listen(
    caller: &args::Caller,
    socket: &Path,
    systemd: bool,
    listener: std::os::unix::net::UnixListener,
) -> anyhow::Result<()> {
    let address = std::env::var(containerd::TTRPC_ADDRESS).unwrap_or_default();
    // Older ones say only where gRPC is spoken.
    let address = if address.is_empty() { format!("{}.ttrpc", caller.address) } else { address };
    let publisher = Publisher::new(&caller.namespace, &address);
    let artifacts = Artifacts::new(&caller.address, &caller.namespace);
    let tasks = Tasks::for_containerd(
        socket.to_owned(),
        &caller.namespace,
        publisher.clone(),
        artifacts,
        systemd,
    );
    let callers = TaskTracker::new();
    let mut server = Server::new()
        .add_listener(counted(listener, callers.clone())?)
        .register_service(tasks.services());
    server.start().await.context("serve")?;
    tokio::spawn(reaper::reap_strangers(tasks.clone())?);
    let callers_first = tokio::select! {
        callers_first = tasks.shutdown() => callers_first,
        () = unused(tasks.clone()) => false,
    };
    let _ = std::fs::remove_file(socket);
    if callers_first {
        callers.close();
        let _ = tokio::time::timeout(GOODBYE, callers.wait()).await;
    }
    let _ = tokio::time::timeout(EVENTS, publisher.delivered()).await;
    let _ = tokio::time::timeout(Duration::from_secs(2), server.shutdown()).await;
    Ok(())
}

/// Connections of those who may speak to us, tracked until they are closed.
fn counted(
    listener: std::os::unix::net::UnixListener,
    callers: TaskTracker,
) -> anyhow::Result<Listener> {
    let listener = UnixListener::from_std(listener)?;
    Ok(Listener::new(futures_util::stream::unfold(listener, move |listener| {
        let callers = callers.clone();
        async move {
            let accepted = loop {
                match listener.accept().await {
                    Ok((caller, _)) if !attach::admits(&caller) => {}
                    accepted => break accepted,
                }
            };
            let tracked = accepted.map(|(caller, _)| {
                let token = callers.token();
                InspectReader::new(caller, move |_: &[u8]| {
                    let _lives_as_long = &token;
                })
            });
            Some((tracked, listener))
        }
    })))
}

/// Returns when containerd seems to have forgotten us: no task for a long time,
/// and no `Shutdown` either.
async fn unused(tasks: Arc<Tasks>) {
    let mut count = tasks.count();
    loop {
        let _ = count.wait_for(|count| *count == 0).await;
        let again = count.wait_for(|count| *count > 0);
        if tokio::time::timeout(UNUSED, again).await.is_err() {
            return;
        }
    }
}

async fn serve(socket: &Path) -> anyhow::Result<()> {
    let tasks = Tasks::new(socket.to_owned());
    let listener =
        attach::listen(socket).with_context(|| format!("listen on {}", socket.display()))?;
    let mut server = Server::new()
        .add_listener(counted(listener, TaskTracker::new())?)
        .register_service(tasks.services());
    server.start().await.context("serve")?;
    tokio::spawn(reaper::reap_strangers(tasks.clone())?);
    let lifeline = lifeline::take()?;
    tokio::select! {
        _ = tasks.shutdown() => {}
        () = idle_without_daemon(lifeline, tasks.clone()) => {}
    }
    // Nobody new finds us; those who asked get their answers.
    let _ = std::fs::remove_file(socket);
    let _ = tokio::time::timeout(Duration::from_secs(2), server.shutdown()).await;
    let _ = tokio::time::timeout(SLOW_CLIENTS, tasks.clients_served()).await;
    Ok(())
}

/// Returns when the daemon that started us is gone and there is nothing to keep.
async fn idle_without_daemon(lifeline: lifeline::Lifeline, tasks: Arc<Tasks>) {
    lifeline.ended().await;
    let mut count = tasks.count();
    if *count.borrow() == 0 {
        return;
    }
    loop {
        let _ = count.wait_for(|count| *count == 0).await;
        let again = count.wait_for(|count| *count > 0);
        if tokio::time::timeout(ORPHANED, again).await.is_err() {
            return;
        }
    }
}

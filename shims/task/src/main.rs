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
//!                    Delete, Shutdown ──▶ unlinks its socket, exits
//! ```
//!
//! One thread, no buffers while nothing happens: an idle shim is small
//! (SPECIFICATION.md has the number). If the shim is killed, the kernel kills
//! its containers' first processes (`PR_SET_PDEATHSIG`), and the engine records
//! that it was so.

#![forbid(unsafe_code)]

mod args;
mod attach;
mod error;
mod io;
mod json_log;
mod lifeline;
mod netdev;
mod process;
mod reaper;
mod records;
mod service;
mod stdio;
mod streams;
mod task;

use std::{io::Write, path::Path, process::ExitCode, sync::Arc, time::Duration};

use anyhow::Context;
use ttrpc::asynchronous::{Server, transport::Listener};

use crate::{args::Mode, service::Tasks};

/// A shim whose daemon is gone and whose last task was deleted waits so long
/// for a new daemon to say `Shutdown`.
const ORPHANED: Duration = Duration::from_secs(5);

/// The last output of a task belongs to the clients that were attached to it,
/// also when they read slowly (`docker run … | less`).
const SLOW_CLIENTS: Duration = Duration::from_secs(3600);

fn main() -> ExitCode {
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
        Mode::Serve { socket, debug } => {
            let level = if debug { tracing::Level::DEBUG } else { tracing::Level::WARN };
            tracing_subscriber::fmt()
                .with_max_level(level)
                .with_writer(std::io::stderr)
                .with_ansi(false)
                .init();
            // Signals to knarrd's terminal are not for us. An error means that
            // we lead a group already.
            let _ = nix::unistd::setsid();
            nix::sys::prctl::set_child_subreaper(true).context("become a subreaper")?;
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .context("start the event loop")?
                .block_on(serve(&socket))
        }
    }
}

async fn serve(socket: &Path) -> anyhow::Result<()> {
    let tasks = Tasks::new(socket.to_owned());
    let listener =
        attach::listen(socket).with_context(|| format!("listen on {}", socket.display()))?;
    let mut server = Server::new()
        .add_listener(Listener::try_from(listener)?)
        .register_service(tasks.services());
    server.start().await.context("serve")?;
    tokio::spawn(reaper::reap_strangers(tasks.clone())?);
    let lifeline = lifeline::take()?;
    tokio::select! {
        () = tasks.shutdown() => {}
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

//! One attached client: this process's streams and a container's, joined.
//!
//! ```text
//!   stdin ──> (detach keys are the engine's business) ──> connection ──> frames ──> stdout, stderr
//!     └ end of input ──> half-close; the output still comes
//! ```

use std::{
    io::Write as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::{Context as _, Result};
use knarr_client::{Client, Frames, Hijacked};
use knarr_docker::StreamKind;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf},
    signal::unix::{SignalKind, signal},
};

use crate::{
    detach::Watch,
    terminal::{self, Raw},
};

/// What to join.
#[derive(Debug, Clone, Copy)]
pub struct Join<'a> {
    /// Standard input is sent.
    pub stdin: bool,
    /// The container has a terminal: no frames, and ours becomes raw.
    pub tty: bool,
    /// `--detach-keys`.
    pub detach_keys: Option<&'a str>,
}

/// How the streams ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The process closed them.
    Closed,
    /// The user typed the detach keys: it goes on.
    Detached,
}

/// Copies both ways until the container's side ends.
///
/// # Errors
/// Where the connection breaks, or our own output cannot be written.
pub async fn join(connection: Hijacked, join: Join<'_>) -> Result<Ended> {
    let raw = (join.tty && join.stdin).then(Raw::enter).flatten();
    let (reader, writer) = tokio::io::split(connection);
    let detached = Arc::new(AtomicBool::new(false));
    let watch = join.tty.then(|| (Watch::new(join.detach_keys), detached.clone()));
    let input = join.stdin.then(|| tokio::spawn(copy_input(writer, watch)));
    let outcome = copy_output(reader, join.tty).await;
    if let Some(input) = input {
        input.abort();
    }
    drop(raw);
    outcome?;
    Ok(if detached.load(Ordering::Relaxed) { Ended::Detached } else { Ended::Closed })
}

async fn copy_output(mut reader: ReadHalf<Hijacked>, tty: bool) -> Result<()> {
    let mut frames = Frames::new(tty);
    let mut buffer = vec![0; 32 * 1024];
    let (mut stdout, mut stderr) = (std::io::stdout().lock(), std::io::stderr().lock());
    loop {
        let read = reader.read(&mut buffer).await.context("read from the container")?;
        if read == 0 {
            return Ok(());
        }
        frames.feed(&buffer[..read]);
        while let Some((kind, piece)) = frames.next_piece() {
            match kind {
                StreamKind::Stdin | StreamKind::Stdout => {
                    stdout.write_all(&piece).and_then(|()| stdout.flush())
                }
                StreamKind::Stderr | StreamKind::System => stderr.write_all(&piece),
            }
            .context("write the container's output")?;
        }
    }
}

/// Read by a thread of its own, since a terminal shared with others must not be
/// made non-blocking.
async fn copy_input(
    mut writer: WriteHalf<Hijacked>,
    mut watch: Option<(Watch, Arc<AtomicBool>)>,
) -> Result<()> {
    let (mut stdin, mut buffer) = (tokio::io::stdin(), vec![0; 32 * 1024]);
    loop {
        let read = stdin.read(&mut buffer).await?;
        if read == 0 {
            return Ok(writer.shutdown().await?);
        }
        if let Some((watch, detached)) = &mut watch
            && watch.feed(&buffer[..read])
        {
            detached.store(true, Ordering::Relaxed);
        }
        writer.write_all(&buffer[..read]).await?;
    }
}

/// Follows the size of our terminal for a container's or an exec's.
/// `path` is the resize endpoint.
pub fn follow_size(client: &Client, path: String) -> tokio::task::JoinHandle<()> {
    let client = client.clone();
    tokio::spawn(async move {
        let Ok(mut changes) = signal(SignalKind::window_change()) else { return };
        loop {
            if let Some((rows, columns)) = terminal::size() {
                // The process may be gone already: then there is nothing to size.
                let _ = client.post(&format!("{path}?h={rows}&w={columns}")).await;
            }
            if changes.recv().await.is_none() {
                return;
            }
        }
    })
}

/// Forwards the signals that reach this process to a container (`--sig-proxy`).
pub fn forward_signals(client: &Client, id: &str) -> tokio::task::JoinHandle<()> {
    let client = client.clone();
    let id = id.to_owned();
    tokio::spawn(async move {
        let kinds = [
            (SignalKind::interrupt(), "INT"),
            (SignalKind::terminate(), "TERM"),
            (SignalKind::hangup(), "HUP"),
            (SignalKind::quit(), "QUIT"),
            (SignalKind::user_defined1(), "USR1"),
            (SignalKind::user_defined2(), "USR2"),
        ];
        let mut tasks = tokio::task::JoinSet::new();
        for (kind, name) in kinds {
            let Ok(mut received) = signal(kind) else { continue };
            let path = format!("/containers/{id}/kill?signal={name}");
            let client = client.clone();
            tasks.spawn(async move {
                while received.recv().await.is_some() {
                    let _ = client.post(&path).await;
                }
            });
        }
        while tasks.join_next().await.is_some() {}
    })
}

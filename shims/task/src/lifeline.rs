//! The daemon that started us, as a pipe: it ends when the daemon does.

use std::{
    fs::File,
    io::Write,
    os::{fd::OwnedFd, unix::net::UnixListener},
};

use anyhow::Context;

use crate::io::Io;

/// Standard input as knarrd gave it; none where it is no pipe.
#[derive(Debug)]
pub(crate) struct Lifeline(Option<Io>);

/// Says `ready` to the daemon, and takes both pipes off the standard streams, so
/// that no container's process can ever inherit them.
pub(crate) fn take() -> anyhow::Result<Lifeline> {
    let lifeline: OwnedFd =
        rustix::io::fcntl_dupfd_cloexec(std::io::stdin(), 3).context("take the lifeline")?;
    let mut stdout = std::io::stdout();
    // Where nobody listens there is nobody to tell.
    let _ = stdout.write_all(b"ready\n").and_then(|()| stdout.flush());
    let null =
        File::options().read(true).write(true).open("/dev/null").context("open /dev/null")?;
    nix::unistd::dup2_stdin(&null).context("close standard input")?;
    nix::unistd::dup2_stdout(&null).context("close standard output")?;
    // Files and `/dev/null` cannot be polled: then there is no lifeline.
    Ok(Lifeline(Io::new(lifeline).ok()))
}

/// Takes the socket that `start` has bound off standard input.
pub(crate) fn take_listener() -> anyhow::Result<UnixListener> {
    let listener: OwnedFd =
        rustix::io::fcntl_dupfd_cloexec(std::io::stdin(), 3).context("take the socket")?;
    anyhow::ensure!(
        rustix::net::sockopt::socket_acceptconn(&listener).is_ok_and(|listens| listens),
        "standard input is no listening socket: this call is for `start` only"
    );
    let null = File::open("/dev/null").context("open /dev/null")?;
    nix::unistd::dup2_stdin(&null).context("close standard input")?;
    let listener = UnixListener::from(listener);
    listener.set_nonblocking(true).context("the socket")?;
    Ok(listener)
}

impl Lifeline {
    /// Returns when the daemon is gone; never where there is no lifeline.
    pub(crate) async fn ended(self) {
        let Some(pipe) = self.0 else { return std::future::pending().await };
        while let Ok(chunk) = pipe.read_chunk(64).await {
            if chunk.is_empty() {
                break;
            }
        }
    }
}

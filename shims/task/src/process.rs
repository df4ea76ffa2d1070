//! One process of a task: the first one, or an exec.
//!
//! ```text
//!  created ──started()──▶ running ──supervise()──▶ stopped
//!     └───────────────fail()─────────────────────────▲
//! ```
//!
//! `supervise` is the only place where a process becomes stopped by itself: it
//! waits on the pidfd, so that the number is ours until we reap it. The exit is
//! published (to `Wait`, to `State`) only after all output was delivered.

use std::{
    os::fd::OwnedFd,
    sync::{Arc, Mutex},
};

use jiff::Timestamp;
use knarr_model::Signal;
use knarr_sandbox::{Child, Stdio};
use oci_spec::runtime as oci;
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::{io::Interest, sync::watch};

use crate::{
    error::{Error, Result},
    io::{Io, register},
    stdio::{Addresses, Input, Owner},
    streams::{Streams, lock},
};

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exit {
    /// 0 to 255, or 128 and the signal's number.
    pub(crate) code: u32,
    pub(crate) at: Timestamp,
}

/// One process of a task.
#[derive(Debug)]
pub(crate) struct Process {
    /// Empty for the first process.
    pub(crate) exec: String,
    pub(crate) addresses: Addresses,
    pub(crate) streams: Arc<Streams>,
    state: Mutex<State>,
    exit: watch::Sender<Option<Exit>>,
}

#[derive(Debug, Default)]
struct State {
    /// What an exec is to run, until it was started.
    spec: Option<Box<oci::Process>>,
    child: Option<Child>,
    console: Option<Arc<Io>>,
    /// Height and width, for a terminal that is still to come.
    size: (u16, u16),
    /// The code of a start that failed, instead of knarr-init's own.
    failure: Option<u32>,
    input: Option<Input>,
}

impl Process {
    /// A process that is still to be made; its output is opened now.
    pub(crate) fn new(
        exec: &str,
        addresses: Addresses,
        spec: Option<oci::Process>,
        size: (u16, u16),
        owner: Option<Owner<'_>>,
    ) -> Result<Arc<Self>> {
        let (input, outputs) = addresses.open(owner)?;
        let streams = Streams::new(addresses.terminal, outputs);
        let state =
            State { spec: spec.map(Box::new), size, input: Some(input), ..State::default() };
        Ok(Arc::new(Self {
            exec: exec.to_owned(),
            addresses,
            streams,
            state: Mutex::new(state),
            exit: watch::Sender::new(None),
        }))
    }

    /// What an exec is to run; once.
    pub(crate) fn take_spec(&self) -> Option<Box<oci::Process>> {
        lock(&self.state).spec.take()
    }

    /// The streams that the process gets. Our ends of its pipes are pumped from
    /// now on; a terminal's follow with [`started`](Self::started).
    pub(crate) fn stdio(&self) -> Result<Stdio> {
        let mut state = lock(&self.state);
        let input = state.input.take();
        if self.addresses.terminal {
            if let Some(Input::Fifo(fifo)) = input {
                self.streams.feed(fifo);
            }
            let (rows, cols) = state.size;
            return Ok(Stdio::Terminal { rows, cols });
        }
        let failed = |error: std::io::Error| Error::internal("make pipes", error);
        let pipe = || -> Result<(OwnedFd, OwnedFd)> {
            pipe_with(PipeFlags::CLOEXEC).map_err(|errno| failed(errno.into()))
        };
        let (stdin, our_stdin) = match &input {
            None | Some(Input::Null) => (null()?, None),
            Some(_) => pipe().map(|(theirs, ours)| (theirs, Some(ours)))?,
        };
        let (our_stdout, stdout) = pipe()?;
        let (our_stderr, stderr) = pipe()?;
        self.streams.connect_pipes(our_stdin, our_stdout, our_stderr).map_err(failed)?;
        if let Some(Input::Fifo(fifo)) = input {
            self.streams.feed(fifo);
        }
        self.streams.close_stdin_if_asked();
        Ok(Stdio::Fds { stdin, stdout, stderr })
    }

    /// The process is there (the first one: it waits to become the program).
    pub(crate) fn started(&self, child: Child, console: Option<OwnedFd>) -> Result<()> {
        let mut state = lock(&self.state);
        state.child = Some(child);
        if let Some(master) = console {
            let io = self
                .streams
                .connect_terminal(master)
                .map_err(|error| Error::internal("open terminal", error))?;
            // The size may have changed while there was none.
            if state.size != (0, 0) {
                set_size(&io, state.size)?;
            }
            state.console = Some(io);
        }
        Ok(())
    }

    /// The exit code of a first process whose start has failed: what
    /// [`ended`](Self::ended) says then is knarr-init's end.
    pub(crate) fn start_failed(&self, code: u32) {
        lock(&self.state).failure = Some(code);
    }

    /// The exit code that [`start_failed`](Self::start_failed) was told.
    pub(crate) fn failure(&self) -> Option<u32> {
        lock(&self.state).failure
    }

    /// The process, while there is one.
    pub(crate) fn child(&self) -> Option<Child> {
        lock(&self.state).child.clone()
    }

    /// Its number, or 0.
    pub(crate) fn pid(&self) -> u32 {
        self.child().map_or(0, |child| child.pid())
    }

    /// Waits until the process has ended and reaps it. Nobody but the caller
    /// knows yet.
    pub(crate) async fn ended(&self, child: &Child) -> u32 {
        let code = match end_of(child).await {
            Ok(code) => code,
            Err(error) => {
                tracing::error!("wait for process {}: {error}", child.pid());
                255
            }
        };
        lock(&self.state).failure.unwrap_or(code)
    }

    /// Tells everybody.
    pub(crate) fn publish(&self, exit: Exit) {
        let mut state = lock(&self.state);
        state.console = None;
        drop(state);
        self.exit.send_replace(Some(exit));
    }

    /// How it ended, once that is public.
    pub(crate) fn exit(&self) -> Option<Exit> {
        *self.exit.borrow()
    }

    /// Waits for its end to be public.
    pub(crate) async fn wait(&self) -> Result<Exit> {
        let mut exit = self.exit.subscribe();
        let known = exit.wait_for(Option::is_some).await;
        known.ok().and_then(|exit| *exit).ok_or_else(|| Error::not_found("process is gone"))
    }

    /// Sends a signal.
    pub(crate) fn kill(&self, signal: Signal) -> Result<()> {
        // A process that has ended but whose output is still on its way is
        // finished for those who want to signal it.
        let gone = || Error::not_found("process already finished: not found");
        if self.exit().is_some() {
            return Err(gone());
        }
        let Some(child) = self.child() else {
            return Err(Error::precondition("process is not started"));
        };
        if child.try_wait()?.is_some() {
            return Err(gone());
        }
        Ok(child.kill(signal)?)
    }

    /// Sets the terminal's size, now or when it comes.
    pub(crate) fn resize(&self, rows: u16, cols: u16) -> Result<()> {
        if !self.addresses.terminal {
            return Err(Error::precondition("process has no terminal"));
        }
        let mut state = lock(&self.state);
        state.size = (rows, cols);
        match &state.console {
            Some(console) => set_size(console, state.size),
            None => Ok(()),
        }
    }
}

fn set_size(console: &Io, (rows, cols): (u16, u16)) -> Result<()> {
    let size = rustix::termios::Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(console, size)
        .map_err(|errno| Error::internal("resize terminal", std::io::Error::from(errno)))
}

fn null() -> Result<OwnedFd> {
    std::fs::File::open("/dev/null")
        .map(OwnedFd::from)
        .map_err(|error| Error::internal("open /dev/null", error))
}

async fn end_of(
    child: &Child,
) -> std::result::Result<u32, Box<dyn std::error::Error + Send + Sync>> {
    let pidfd = register(child.pidfd().try_clone_to_owned()?, Interest::READABLE)?;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status.code);
        }
        pidfd.readable().await?.clear_ready();
    }
}

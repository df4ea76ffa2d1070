//! Streams, terminals and descriptors that pass through a call.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use knarr_sandbox::{Child, ExitStatus, Stdio};
use nix::sys::{
    signal::{SigSet, SigmaskHow, Signal, sigprocmask},
    signalfd::{SfdFlags, SignalFd},
};
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::IoSlice,
    net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg},
    process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open},
    termios::{
        OptionalActions, OutputModes, Termios, Winsize, tcgetattr, tcgetwinsize, tcsetattr,
        tcsetwinsize,
    },
};

use crate::args::{Flags, Verb};

/// Our own streams.
pub(crate) fn own() -> Result<Stdio> {
    let copy = |fd: BorrowedFd<'_>| fd.try_clone_to_owned().context("copy a standard stream");
    Ok(Stdio::Fds {
        stdin: copy(io::stdin().as_fd())?,
        stdout: copy(io::stdout().as_fd())?,
        stderr: copy(io::stderr().as_fd())?,
    })
}

/// Where a terminal goes.
pub(crate) enum Console<'a> {
    /// There is none.
    None,
    /// Its master is sent there.
    Socket(&'a Path),
    /// It is joined with ours.
    Ours,
}

/// What the flags and the process make of it (runc `setupIO`).
pub(crate) fn console<'a>(
    terminal: bool,
    socket: Option<&'a str>,
    detached: bool,
) -> Result<Console<'a>> {
    match (terminal, socket.filter(|path| !path.is_empty()), detached) {
        (true, Some(path), true) => Ok(Console::Socket(Path::new(path))),
        (true, None, true) => {
            bail!("cannot allocate tty if runc will detach without setting console socket")
        }
        (true, None, false) => Ok(Console::Ours),
        (false, None, _) => Ok(Console::None),
        (false, Some(_), _) | (true, Some(_), false) => {
            bail!("cannot use console socket if runc will not detach or allocate tty")
        }
    }
}

/// The streams of the process that is to be made.
pub(crate) fn stdio(console: &Console<'_>, size: Option<(u16, u16)>) -> Result<Stdio> {
    match console {
        Console::None => own(),
        Console::Socket(_) => {
            let (rows, cols) = size.unwrap_or((0, 0));
            Ok(Stdio::Terminal { rows, cols })
        }
        Console::Ours => {
            let ours = tcgetwinsize(io::stdin()).ok().map(|size| (size.ws_row, size.ws_col));
            let (rows, cols) = ours.or(size).unwrap_or((0, 0));
            Ok(Stdio::Terminal { rows, cols })
        }
    }
}

/// Sends the master of a terminal to a console socket, with its name.
pub(crate) fn send_console(socket: &Path, master: &OwnedFd) -> Result<()> {
    send(socket, b"/dev/ptmx", master.as_fd())
        .with_context(|| format!("console socket {}", socket.display()))
}

/// Sends a process's pidfd, where the flags say so, with runc's name for it.
pub(crate) fn send_pidfd(flags: &Flags, pidfd: BorrowedFd<'_>) -> Result<()> {
    let Some(socket) = flags.get("pidfd-socket").filter(|path| !path.is_empty()) else {
        return Ok(());
    };
    send(Path::new(socket), b"pidfd", pidfd).with_context(|| format!("pidfd socket {socket}"))
}

fn send(socket: &Path, name: &[u8], fd: BorrowedFd<'_>) -> Result<()> {
    let stream = UnixStream::connect(socket)?;
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [fd];
    control.push(SendAncillaryMessage::ScmRights(&fds));
    sendmsg(&stream, &[IoSlice::new(name)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Copies of the descriptors behind our streams: those of a service manager
/// (`LISTEN_FDS`) and as many more as `--preserve-fds` says. The second value is
/// how many of them are the manager's. Asked before anything else is opened.
pub(crate) fn inherited(verb: &Verb) -> Result<(Vec<OwnedFd>, u32)> {
    let own_pid = getpid().as_raw_nonzero().to_string();
    let for_us = std::env::var("LISTEN_PID").is_ok_and(|pid| pid == own_pid);
    let listening = std::env::var("LISTEN_FDS").ok().filter(|_| for_us);
    let listening: u32 = listening.and_then(|text| text.parse().ok()).unwrap_or(0);
    let count = listening + verb.flags.number::<u32>("preserve-fds")?.unwrap_or(0);
    if count == 0 {
        return Ok((Vec::new(), 0));
    }
    // The lowest number that is free: one of them, if one of them is missing.
    let own = pidfd_open(getpid(), PidfdFlags::empty()).context("open ourselves")?;
    let free = own.as_raw_fd() as u32;
    // runc's words.
    ensure!(
        free >= 3 + count,
        "please check that preserved-fd {} (of {count}) is present",
        free - 2
    );
    let copy = |fd: u32| {
        pidfd_getfd(&own, fd as i32, PidfdGetfdFlags::empty())
            .with_context(|| format!("copy descriptor {fd}"))
    };
    Ok(((3..3 + count).map(copy).collect::<Result<_>>()?, listening))
}

/// Signals that are passed on, held back until somebody reads them.
pub(crate) struct Signals {
    fd: SignalFd,
}

impl Signals {
    /// Holds all signals back; before anything is started that they are for.
    pub(crate) fn hold() -> Result<Self> {
        let mut set = SigSet::all();
        for fault in [Signal::SIGSEGV, Signal::SIGBUS, Signal::SIGFPE, Signal::SIGILL] {
            set.remove(fault);
        }
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&set), None).context("hold signals back")?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        Ok(Self { fd: SignalFd::with_flags(&set, flags).context("open a signal descriptor")? })
    }

    /// Waits for a child, passes signals on to it, and reaps what is left to us.
    pub(crate) fn wait(&self, child: &Child, terminal: Option<Joined>) -> Result<ExitStatus> {
        let mut terminal = terminal;
        loop {
            let mut fds = vec![
                PollFd::from_borrowed_fd(child.pidfd(), PollFlags::IN),
                PollFd::from_borrowed_fd(self.fd.as_fd(), PollFlags::IN),
            ];
            if let Some(terminal) = &terminal {
                fds.push(PollFd::new(&terminal.master, PollFlags::IN));
                if terminal.reads {
                    fds.push(PollFd::new(&terminal.stdin, PollFlags::IN));
                }
            }
            match poll(&mut fds, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno).context("wait"),
            }
            let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
            drop(fds);
            if ready[1] {
                self.pass_on(child, terminal.as_ref());
            }
            if let Some(joined) = &mut terminal {
                if ready[2] && !joined.output()? {
                    terminal = None;
                } else if ready.get(3) == Some(&true) {
                    joined.input()?;
                }
            }
            if ready[0] {
                if let Some(joined) = &mut terminal {
                    joined.drain()?;
                }
                return Ok(child.wait_blocking()?);
            }
        }
    }

    fn pass_on(&self, child: &Child, terminal: Option<&Joined>) {
        while let Ok(Some(info)) = self.fd.read_signal() {
            match Signal::try_from(info.ssi_signo as i32) {
                // What others left behind; the child itself is waited for by name.
                Ok(Signal::SIGCHLD) => reap(child),
                Ok(Signal::SIGWINCH) => terminal.into_iter().for_each(Joined::resize),
                // Of the runtime's own, never the program's (as runc).
                Ok(Signal::SIGURG) => {}
                _ => {
                    let number = u8::try_from(info.ssi_signo).ok();
                    let signal =
                        number.and_then(|number| knarr_model::Signal::try_from(number).ok());
                    if let Some(signal) = signal {
                        let _ = child.kill(signal);
                    }
                }
            }
        }
    }
}

/// As a subreaper we are given orphans of the container's.
fn reap(child: &Child) {
    use nix::sys::wait::{Id, WaitPidFlag, waitid, waitpid};
    loop {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        match waitid(Id::All, flags) {
            Ok(status) => match status.pid() {
                Some(pid) if pid.as_raw() as u32 != child.pid() => {
                    let _ = waitpid(pid, Some(WaitPidFlag::WNOHANG));
                }
                _ => return,
            },
            Err(_) => return,
        }
    }
}

/// A container's terminal joined with ours.
pub(crate) struct Joined {
    master: OwnedFd,
    stdin: OwnedFd,
    stdout: File,
    before: Option<Termios>,
    reads: bool,
}

impl Joined {
    /// Ours becomes raw until this ends.
    pub(crate) fn new(master: OwnedFd) -> Result<Self> {
        let stdin = io::stdin().as_fd().try_clone_to_owned()?;
        let stdout = io::stdout().as_fd().try_clone_to_owned()?;
        let before = tcgetattr(&stdin).ok();
        // A line's end is translated once, by ours (as runc).
        if let Ok(mut theirs) = tcgetattr(&master) {
            theirs.output_modes.remove(OutputModes::ONLCR);
            let _ = tcsetattr(&master, OptionalActions::Now, &theirs);
        }
        if let Some(before) = &before {
            let mut raw = before.clone();
            raw.make_raw();
            raw.output_modes.insert(OutputModes::OPOST);
            tcsetattr(&stdin, OptionalActions::Now, &raw).context("make the terminal raw")?;
        }
        Ok(Self { master, stdin, stdout: File::from(stdout), before, reads: true })
    }

    fn resize(&self) {
        if let Ok(size) = tcgetwinsize(&self.stdin) {
            let size = Winsize { ws_xpixel: 0, ws_ypixel: 0, ..size };
            let _ = tcsetwinsize(&self.master, size);
        }
    }

    /// Whether there may be more.
    fn output(&mut self) -> Result<bool> {
        use std::io::Write;
        let mut buffer = [0; 16 * 1024];
        match rustix::io::read(&self.master, &mut buffer) {
            // A terminal that nobody has open any more answers EIO.
            Ok(0) | Err(rustix::io::Errno::IO) => Ok(false),
            Ok(count) => {
                self.stdout.write_all(&buffer[..count]).context("write to the terminal")?;
                Ok(true)
            }
            Err(rustix::io::Errno::INTR) => Ok(true),
            Err(errno) => Err(errno).context("read from the container's terminal"),
        }
    }

    fn input(&mut self) -> Result<()> {
        let mut buffer = [0; 4096];
        let count = match rustix::io::read(&self.stdin, &mut buffer) {
            Ok(0) | Err(rustix::io::Errno::IO) => {
                self.reads = false;
                // What a terminal says at its end.
                return Ok(rustix::io::write(&self.master, &[4]).map(drop)?);
            }
            Ok(count) => count,
            Err(rustix::io::Errno::INTR) => 0,
            Err(errno) => return Err(errno).context("read from the terminal"),
        };
        let mut rest = &buffer[..count];
        while !rest.is_empty() {
            let written =
                rustix::io::write(&self.master, rest).context("write to the container")?;
            rest = &rest[written..];
        }
        Ok(())
    }

    /// The program's last words.
    fn drain(&mut self) -> Result<()> {
        loop {
            let mut fds = [PollFd::new(&self.master, PollFlags::IN)];
            let time = Duration::from_millis(0).try_into().ok();
            match poll(&mut fds, time.as_ref()) {
                Ok(1..) => {}
                _ => return Ok(()),
            }
            if !self.output()? {
                return Ok(());
            }
        }
    }
}

impl Drop for Joined {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            let _ = tcsetattr(&self.stdin, OptionalActions::Now, before);
        }
    }
}

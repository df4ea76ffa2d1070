//! A process that we started and that only we reap.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use knarr_sys::{HeldProcess, ProcessStat};
use rustix::{
    io::Errno,
    process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid},
};

use crate::Error;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExitStatus {
    /// The signal that ended it, if one did.
    pub signal: Option<u8>,
    /// 0 to 255, or 128 and the signal's number.
    pub code: u32,
}

/// A process that we started, known by its pidfd: its number is never trusted
/// after it was reaped. Clones speak of the same process.
#[derive(Debug, Clone)]
pub struct Child(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    pid: u32,
    pidfd: OwnedFd,
    start_time: OnceLock<u64>,
    status: OnceLock<ExitStatus>,
}

impl Child {
    pub(crate) fn new(pid: u32, pidfd: OwnedFd) -> Self {
        Self(Arc::new(Inner { pid, pidfd, start_time: OnceLock::new(), status: OnceLock::new() }))
    }

    /// A process that somebody else started, or we in another life: none where
    /// that number is another process's by now. It can be watched and killed,
    /// not waited for.
    pub(crate) fn of(pid: u32, start_time: u64) -> Result<Option<Self>, Error> {
        let held = HeldProcess::of(pid, start_time)
            .map_err(|errno| Error::system(format_args!("open process {pid}"), errno))?;
        Ok(held.map(|held| {
            let child = Self::new(pid, held.into_pidfd());
            let _ = child.0.start_time.set(start_time);
            child
        }))
    }

    /// Whether it has ended, waited for or not.
    pub fn has_ended(&self) -> bool {
        self.ends_within(Duration::ZERO)
    }

    /// Waits until it has ended, waited for or not; whether it has.
    pub fn ends_within(&self, time: Duration) -> bool {
        knarr_sys::ends_within(self.pidfd(), time)
    }

    /// Waits until nothing of its program runs any more. The first process of a pid namespace
    /// has not ended before everybody in there was waited for, by whoever started them.
    pub(crate) fn dies_within(&self, time: Duration) -> bool {
        const STEP: Duration = Duration::from_millis(20);
        let begun = Instant::now();
        loop {
            if self.ends_within(STEP) {
                return true;
            }
            // Held by its pidfd, and not waited for: the number is its own.
            if ProcessStat::of(self.pid()).is_ok_and(|stat| stat.is_exiting()) {
                return true;
            }
            if begun.elapsed() > time {
                return false;
            }
        }
    }

    /// Its number in our own pid namespace.
    pub fn pid(&self) -> u32 {
        self.0.pid
    }

    /// Readable when it has ended.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.0.pidfd.as_fd()
    }

    /// The same, to be given away.
    pub(crate) fn pidfd_copy(&self) -> Result<OwnedFd, Error> {
        let copy = self.pidfd().try_clone_to_owned();
        copy.map_err(|error| Error::system("copy a descriptor", error))
    }

    /// Field 22 of `/proc/PID/stat`: start time in clock ticks since boot. To
    /// be asked before it is reaped; zero after.
    pub fn start_time(&self) -> u64 {
        *self
            .0
            .start_time
            .get_or_init(|| ProcessStat::of(self.pid()).map_or(0, |stat| stat.start_time()))
    }

    /// Sends a signal; success where it has ended already.
    pub fn kill(&self, signal: knarr_model::Signal) -> Result<(), Error> {
        let number = i32::from(signal.number());
        // Real-time signals have no name in rustix; the kernel checks the range.
        let result = match Signal::from_named_raw(number) {
            Some(signal) => pidfd_send_signal(self.pidfd(), signal),
            None => knarr_sys::pidfd_send_signal(self.pidfd(), number),
        };
        match result {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(errno) => Err(Error::system(format_args!("send {signal}"), errno)),
        }
    }

    /// Waits until it has ended.
    pub fn wait_blocking(&self) -> Result<ExitStatus, Error> {
        loop {
            if let Some(status) = self.wait(WaitIdOptions::EXITED)? {
                return Ok(status);
            }
        }
    }

    /// Kills it, and says how it ended, maybe before.
    pub(crate) fn end(&self) -> Result<ExitStatus, Error> {
        let _ = self.kill(knarr_model::Signal::KILL);
        self.wait_blocking()
    }

    /// How it ended, if it has; reaps it then.
    pub fn try_wait(&self) -> Result<Option<ExitStatus>, Error> {
        self.wait(WaitIdOptions::EXITED | WaitIdOptions::NOHANG)
    }

    fn wait(&self, options: WaitIdOptions) -> Result<Option<ExitStatus>, Error> {
        if let Some(status) = self.0.status.get() {
            return Ok(Some(*status));
        }
        match waitid(WaitId::PidFd(self.pidfd()), options) {
            Ok(None) | Err(Errno::INTR) => Ok(None),
            Ok(Some(info)) => {
                let signal = info.terminating_signal().map(|n| n as u8);
                let code = match signal {
                    Some(signal) => 128 + u32::from(signal),
                    None => info.exit_status().unwrap_or(0) as u32 & 0xff,
                };
                Ok(Some(*self.0.status.get_or_init(|| ExitStatus { signal, code })))
            }
            // Another clone of this child was quicker.
            Err(Errno::CHILD) if self.0.status.get().is_some() => Ok(self.0.status.get().copied()),
            Err(errno) => {
                Err(Error::system(format_args!("wait for process {}", self.pid()), errno))
            }
        }
    }
}

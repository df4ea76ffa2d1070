//! Processes that somebody else started, held so that a number is never trusted twice.

use std::{
    collections::BTreeSet,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{Pid, PidfdFlags, pidfd_open},
};

use crate::{ProcessStat, pidfd_send_signal};

/// SIGKILL.
const KILL: i32 = 9;

/// A process by its pidfd: whoever gets its number after its end is not meant.
#[derive(Debug)]
pub struct HeldProcess {
    pidfd: OwnedFd,
}

impl HeldProcess {
    /// The process of this number and start time (field 22 of `/proc/PID/stat`); none
    /// where it has ended, or where the number is another process's by now.
    ///
    /// # Errors
    /// When the kernel refuses a descriptor.
    pub fn of(pid: u32, start_time: u64) -> Result<Option<Self>, Errno> {
        let Some(pidfd) = open(pid)? else { return Ok(None) };
        let held = Self { pidfd };
        // Asked after it was opened, so the number cannot have gone to another since. Zero
        // is nobody's: what could not be asked is not the same.
        let now = ProcessStat::of(pid).map_or(0, |stat| stat.start_time());
        Ok((start_time != 0 && now == start_time && !held.has_ended()).then_some(held))
    }

    /// Sends a signal; success where it has ended already.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn signal(&self, signal: i32) -> Result<(), Errno> {
        match pidfd_send_signal(self.pidfd.as_fd(), signal) {
            Err(Errno::SRCH) => Ok(()),
            other => other,
        }
    }

    /// Kills it; success where it has ended already.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn kill(&self) -> Result<(), Errno> {
        self.signal(KILL)
    }

    /// Whether it has ended, waited for or not.
    pub fn has_ended(&self) -> bool {
        ends_within(self.pidfd.as_fd(), Duration::ZERO)
    }

    /// Its descriptor, readable when it has ended.
    pub fn into_pidfd(self) -> OwnedFd {
        self.pidfd
    }
}

/// Waits until the process behind a pidfd has ended, waited for or not; whether it has.
pub fn ends_within(pidfd: BorrowedFd<'_>, time: Duration) -> bool {
    // What is longer than the clock goes is for ever.
    let deadline = Instant::now().checked_add(time);
    loop {
        let left = deadline.map_or(Duration::from_secs(3600), |deadline| {
            deadline.saturating_duration_since(Instant::now())
        });
        let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        let mut fds = [PollFd::from_borrowed_fd(pidfd, PollFlags::IN)];
        match poll(&mut fds, Some(&left)) {
            Ok(0) if deadline.is_none() => {}
            Err(Errno::INTR) => {}
            Ok(found) => return found > 0,
            Err(_) => return false,
        }
    }
}

/// A pidfd; none where nobody has the number.
fn open(pid: u32) -> Result<Option<OwnedFd>, Errno> {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Ok(None) };
    match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => Ok(Some(pidfd)),
        // It is nobody's, or a thread's.
        Err(Errno::SRCH | Errno::INVAL) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// So many are held at the same time.
const AT_ONCE: usize = 128;

/// Sends a signal to the processes of a group, as `members` lists them. Each is held
/// first and then looked for in the list again: who is in it then is meant, whoever
/// had the number before. Goes on after an error, and answers the first.
///
/// # Errors
/// When the list cannot be read, or the kernel refuses a signal or a descriptor.
pub fn signal_members(members: impl Fn() -> io::Result<Vec<u32>>, signal: i32) -> io::Result<()> {
    let mut result = Ok(());
    for some in members()?.chunks(AT_ONCE) {
        let mut held = Vec::new();
        for pid in some {
            match open(*pid) {
                Ok(pidfd) => held.extend(pidfd.map(|pidfd| (*pid, pidfd))),
                Err(errno) => result = result.and(Err(errno.into())),
            }
        }
        let now: BTreeSet<u32> = members()?.into_iter().collect();
        for (pid, pidfd) in held.iter().filter(|(pid, _)| now.contains(pid)) {
            match pidfd_send_signal(pidfd.as_fd(), signal) {
                Ok(()) | Err(Errno::SRCH) => {}
                Err(errno) => {
                    let text = format!("send signal {signal} to {pid}: {errno}");
                    let kind = io::Error::from(errno).kind();
                    result = result.and(Err(io::Error::new(kind, text)));
                }
            }
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, process::Command};

    use super::*;

    struct Sleeper(std::process::Child);

    impl Sleeper {
        fn new() -> Self {
            Self(Command::new("sleep").arg("1000").spawn().expect("sleep"))
        }

        fn start_time(&self) -> u64 {
            ProcessStat::of(self.0.id()).expect("stat").start_time()
        }

        fn is_alive(&mut self) -> bool {
            self.0.try_wait().expect("wait").is_none()
        }
    }

    impl Drop for Sleeper {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn k10_a_number_counts_with_its_start_time_only() {
        let mut sleeper = Sleeper::new();
        let (pid, start) = (sleeper.0.id(), sleeper.start_time());
        for wrong in [0, start - 1, start + 1, u64::MAX] {
            assert!(HeldProcess::of(pid, wrong).expect("asked").is_none(), "{wrong}");
        }
        assert!(HeldProcess::of(0, start).expect("asked").is_none());
        assert!(HeldProcess::of(u32::MAX, start).expect("asked").is_none());
        assert!(sleeper.is_alive());
        let held = HeldProcess::of(pid, start).expect("asked").expect("held");
        assert!(!held.has_ended());
        held.kill().expect("killed");
        assert!(ends_within(held.pidfd.as_fd(), Duration::from_secs(60)));
        sleeper.0.wait().expect("reaped");
        held.kill().expect("a second time");
        assert!(HeldProcess::of(pid, start).expect("asked").is_none());
    }

    #[test]
    fn k10_who_left_the_list_meanwhile_is_spared() {
        let (mut member, mut stranger) = (Sleeper::new(), Sleeper::new());
        let (one, other) = (member.0.id(), stranger.0.id());
        let asked = Cell::new(0);
        // As if the number had gone to somebody else between the list and the signal.
        let members = || {
            asked.set(asked.get() + 1);
            Ok(if asked.get() == 1 { vec![other, one, u32::MAX] } else { vec![one] })
        };
        signal_members(members, KILL).expect("sent");
        assert!(!member.0.wait().expect("wait").success());
        assert!(stranger.is_alive());
    }
}

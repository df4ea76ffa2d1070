//! Going on in another process.
//!
//! `--init`: process 1 stays ours, forwards signals to the program, reaps
//! everything, and ends as the program ended. A pod's first process has no program.

use crate::{
    kernel::*,
    signal::{SIGINT, SIGTERM},
    socket,
    wire::Frame,
};

const SIGCHLD: i32 = 17;
const TIOCSPGRP: usize = 0x5410;
/// No child has this number.
const NOBODY: i32 = -1;

/// Comes back in a sibling, which the parent has taken for its own.
pub fn reborn(op: u32, kinds: u32) -> Answer<()> {
    const CLONE_PARENT: u32 = 0x8000;
    let sibling = sys!(CLONE, kinds | CLONE_PARENT, 0, 0, 0, 0)? as i32;
    if sibling != 0 {
        let _ = socket::say(Frame { kind: Frame::BORN, op, errno: sibling });
        exit(0)
    }
    socket::await_go()
}

/// Comes back in the child; process 1 never does.
pub fn fork() -> Answer<()> {
    let all = u64::MAX;
    // Blocked signals wait for process 1, which would otherwise ignore them.
    sys!(RT_SIGPROCMASK, 2 /* SIG_SETMASK */, &raw const all, 0, 8)?;
    let child = sys!(CLONE, SIGCHLD, 0, 0, 0, 0)? as i32;
    if child != 0 {
        serve(child)
    }
    // A process group of its own, in the foreground where there is a terminal;
    // SIGTTOU is still blocked, so that this cannot stop us.
    let _ = sys!(SETPGID, 0, 0);
    let group = sys!(GETPID)? as i32;
    let _ = sys!(IOCTL, 0, TIOCSPGRP, &raw const group);
    let none = 0u64;
    sys!(RT_SIGPROCMASK, 2, &raw const none, 0, 8)?;
    Ok(())
}

/// Stays in place of a program; signals are held back, as we were born.
pub fn hold() -> ! {
    let_go();
    let all = u64::MAX;
    loop {
        match sys!(RT_SIGTIMEDWAIT, &raw const all, 0, 0, 8) {
            Ok(SIGTERM | SIGINT) => exit(0),
            _ => reap(NOBODY),
        }
    }
}

/// The parent learns of exec by the closing of the socket, and readers of the program's
/// output learn of its end: who stays holds none of them.
fn let_go() {
    let _ = sys!(CLOSE_RANGE, 0, u32::MAX, 0);
}

fn serve(child: i32) -> ! {
    let_go();
    let all = u64::MAX;
    loop {
        match sys!(RT_SIGTIMEDWAIT, &raw const all, 0, 0, 8) {
            Ok(signal) if signal as i32 == SIGCHLD => reap(child),
            Ok(signal) => drop(sys!(KILL, child, signal)),
            Err(_) => reap(child),
        }
    }
}

fn reap(child: i32) {
    loop {
        let mut status = 0i32;
        match sys!(WAIT4, -1isize, &raw mut status, 1 /* WNOHANG */, 0) {
            Ok(0) | Err(_) => return,
            Ok(pid) if pid as i32 == child => {
                let signal = status & 0x7f;
                // What is left is killed by the kernel with the namespace.
                exit(if signal == 0 { status >> 8 & 0xff } else { 128 + signal });
            }
            Ok(_) => {}
        }
    }
}

//! Signals, taken by a thread of their own.
//!
//! WASI has no signals, so what a signal asks for is done to the guest. The
//! first process of a pid namespace is sent none that it does not handle; here
//! each that would end any other process is blocked in all threads, and waited
//! for in one: a guest in a tight loop, or blocked in a host call, cannot delay
//! it.

use std::{io, thread};

use nix::sys::signal::{SigSet, Signal};

/// Signals whose default is the end of the process, apart from those that
/// report a fault.
const ENDING: [Signal; 9] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
    Signal::SIGTERM,
    Signal::SIGVTALRM,
    Signal::SIGPWR,
];

/// Small: the thread only waits.
const STACK: usize = 64 << 10;

/// Calls `act` with each signal that asks for the end, also those that came before:
/// we are started with all of them blocked. The others are let through. Must come
/// before any other thread, which would inherit another mask, and before any guest,
/// whose faults are signals.
pub(crate) fn on_ending(mut act: impl FnMut(Signal) + Send + 'static) -> io::Result<()> {
    let set = ENDING.into_iter().collect::<SigSet>();
    set.thread_set_mask()?;
    thread::Builder::new().name("signals".to_owned()).stack_size(STACK).spawn(move || {
        while let Ok(signal) = set.wait() {
            act(signal);
        }
    })?;
    Ok(())
}

/// Ends the process as a signal ends it: 128 and its number.
#[allow(clippy::exit, reason = "the guest has the main thread and does not give it back")]
pub(crate) fn exit(signal: Signal) -> ! {
    std::process::exit(128 + signal as i32)
}

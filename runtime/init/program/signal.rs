//! What signals do.

use crate::kernel::*;

pub const SIGHUP: usize = 1;
pub const SIGINT: usize = 2;
pub const SIGTERM: usize = 15;

/// `struct sigaction`, the kernel's.
#[repr(C)]
struct Action {
    handler: usize,
    flags: u64,
    restorer: usize,
    mask: u64,
}

const DEFAULT: Action = Action { handler: 0, flags: 0, restorer: 0, mask: 0 };

fn set(signal: usize, action: &Action) -> Answer<()> {
    sys!(RT_SIGACTION, signal, core::ptr::from_ref(action), 0, 8).map(drop)
}

/// Gives all of them their default action and lets them through.
pub fn reset() -> Answer<()> {
    for signal in (1..=64).filter(|signal| !matches!(signal, 9 | 19)) {
        set(signal, &DEFAULT)?;
    }
    let none = 0u64;
    sys!(RT_SIGPROCMASK, 2 /* SIG_SETMASK */, &raw const none, 0, 8)?;
    Ok(())
}

/// Ends us at a signal, with the code that a shell gives it; we were born with all of
/// them held back.
pub fn exit_at(signal: usize) -> Answer<()> {
    extern "C" fn end(signal: i32) {
        exit(128 + signal)
    }
    let end = end as extern "C" fn(i32) as usize;
    // It never returns, but the kernel wants to know where to.
    let action = Action { handler: end, flags: 0x0400_0000 /* SA_RESTORER */, restorer: end, mask: 0 };
    set(signal, &action)?;
    let one = 1u64 << (signal - 1);
    sys!(RT_SIGPROCMASK, 1 /* SIG_UNBLOCK */, &raw const one, 0, 8).map(drop)
}

//! Work that must not be noticed.

use std::io;

/// Gives this thread, and those that it makes, the place behind everybody else: scheduled
/// as a batch job, and the last of those who ask for the disk (sched(7), ioprio_set(2)).
/// Its niceness is another matter: `rustix::process::nice`.
///
/// # Errors
/// What the kernel says.
pub fn work_in_background() -> io::Result<()> {
    let parameters = libc::sched_param { sched_priority: 0 };
    // JUSTIFICATION: sched_setscheduler(2) has no safe form.
    // SAFETY: the kernel reads a structure that lives as long as the call.
    if unsafe { libc::sched_setscheduler(0, libc::SCHED_BATCH, &raw const parameters) } != 0 {
        return Err(io::Error::last_os_error());
    }
    /// "Who" is a process or thread; 0 is this one.
    const PROCESS: libc::c_long = 1;
    /// Class "best effort" (2) in the upper bits, the least urgent of its levels (7) below.
    const LAST: libc::c_long = (2 << 13) | 7;
    // JUSTIFICATION: ioprio_set(2) is not in the C library.
    // SAFETY: three numbers; nothing of ours is touched.
    if unsafe { libc::syscall(libc::SYS_ioprio_set, PROCESS, 0 as libc::c_long, LAST) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_batch_job_is_one() {
        // On a thread of its own, which takes it with it.
        std::thread::spawn(|| {
            super::work_in_background().unwrap();
            // SAFETY: a number in, a number out.
            let policy = unsafe { libc::sched_getscheduler(0) };
            assert_eq!(policy, libc::SCHED_BATCH);
        })
        .join()
        .unwrap();
    }
}

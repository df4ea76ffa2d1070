//! Processes: clone3, pidfds, namespaces of threads.

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

/// Sends any signal, also a real-time one, to the process behind a pidfd.
pub fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> Result<(), Errno> {
    // JUSTIFICATION: rustix's wrapper takes named signals only.
    // SAFETY: no memory is passed; the kernel checks both numbers.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0u32,
        )
    };
    check(result).map(drop)
}

/// The kernel's answer to a raw system call made through libc.
pub(crate) fn check(result: libc::c_long) -> Result<libc::c_long, Errno> {
    if result == -1 {
        let errno = std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
        return Err(Errno::from_raw_os_error(errno));
    }
    Ok(result)
}

//! Doing something inside a container's network namespace.
//!
//! A namespace belongs to a thread. The work is done on a thread of its own
//! that ends there: no thread of the caller's ever has to find its way back.

use std::{io, os::fd::AsFd, thread};

use nix::sched::{CloneFlags, setns};

/// Runs `work` on a thread inside the namespace. Sockets opened there stay
/// there, whoever uses them later.
pub fn within<T: Send>(
    netns: impl AsFd,
    work: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    let netns = netns.as_fd();
    thread::scope(|scope| {
        thread::Builder::new()
            .name("knarr-netns".into())
            .stack_size(128 << 10)
            .spawn_scoped(scope, || {
                setns(netns, CloneFlags::CLONE_NEWNET)?;
                work()
            })?
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("panic inside a network namespace")))
    })
}

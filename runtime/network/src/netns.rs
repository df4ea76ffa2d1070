//! Doing something inside a container's network namespace.
//!
//! A namespace belongs to a thread. The work is done on a thread of its own
//! that ends there: no thread of the engine ever has to find its way back.

use std::{fs::File, io, thread};

use nix::sched::{CloneFlags, setns};

/// Runs `work` on a thread inside the namespace. Sockets opened there stay
/// there, whoever uses them later.
pub(crate) fn within<T: Send>(
    netns: &File,
    work: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
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

/// Writes a file below `/proc/sys/net` of this thread's namespace. A file that
/// is not there (IPv6 off) needs no writing; answers whether it was.
pub(crate) fn sysctl(path: &str, value: &str) -> io::Result<bool> {
    match std::fs::OpenOptions::new().write(true).open(format!("/proc/sys/net/{path}")) {
        Ok(mut file) => io::Write::write_all(&mut file, value.as_bytes()).map(|()| true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

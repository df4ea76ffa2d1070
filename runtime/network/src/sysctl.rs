//! Settings of the network namespace that a thread is in.

use std::io;

/// Writes a file below `/proc/sys/net`. A file that
/// is not there (IPv6 off) needs no writing; answers whether it was.
pub(crate) fn write(path: &str, value: &str) -> io::Result<bool> {
    match std::fs::OpenOptions::new().write(true).open(format!("/proc/sys/net/{path}")) {
        Ok(mut file) => io::Write::write_all(&mut file, value.as_bytes()).map(|()| true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

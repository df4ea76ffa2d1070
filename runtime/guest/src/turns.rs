//! Who compiles when: locks in one file, shared by every program that uses the cache.
//!
//! ```text
//!   wasm/lock   byte 0 .. SLOTS         a compiler that runs; byte 0 is for small programs
//!               byte 2^32 + n           the program whose digest begins with n
//! ```
//!
//! knarrd and containerd's shims are many processes with one cache. A program is compiled
//! by one of them, and so many programs at once: where a large one takes minutes, a small
//! one has a place that no large one takes. The kernel gives a lock back when its holder
//! dies. Waiting is looking again, not blocking: no thread is held by somebody else's
//! compiler.
//!
//! **How it fails.** Whoever waits longer than it was told to gets nothing.

use std::{
    fs::File,
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    time::{Duration, Instant},
};

use knarr_model::Digest;
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, fcntl},
    libc,
};

/// Programs of at most so many bytes are small.
const SMALL: u64 = 4 << 20;
/// How often a lock that somebody has is asked for again.
const PAUSE: Duration = Duration::from_millis(20);
/// Locks of programs begin here.
const PROGRAMS: i64 = 1 << 32;

/// A lock, until it is dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    _held: File,
}

/// The turn of a program: nobody else compiles it. None where that took too long.
pub(crate) async fn of_program(
    cache: &Path,
    module: &Digest,
    until: Instant,
) -> std::io::Result<Option<Turn>> {
    let digest = module.as_bytes();
    let first = i64::from(u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]));
    take(cache, &[PROGRAMS + first], until).await
}

/// The turn to run a compiler on so many bytes. None where that took too long.
pub(crate) async fn to_compile(
    cache: &Path,
    bytes: u64,
    until: Instant,
) -> std::io::Result<Option<Turn>> {
    let all: Vec<i64> = (0..slots()).collect();
    // The small ones leave the others alone as long as they can.
    take(cache, if bytes <= SMALL { &all } else { &all[1..] }, until).await
}

/// Compilers at once: each uses every processor that is free.
fn slots() -> i64 {
    let processors = std::thread::available_parallelism().map_or(1, |count| count.get());
    i64::try_from(processors.clamp(2, 4)).unwrap_or(2)
}

/// Takes the first of these bytes that is free.
async fn take(cache: &Path, bytes: &[i64], until: Instant) -> std::io::Result<Option<Turn>> {
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(cache.join("lock"))?;
    loop {
        for byte in bytes {
            let wanted = libc::flock {
                l_type: libc::F_WRLCK as libc::c_short,
                l_whence: libc::SEEK_SET as libc::c_short,
                l_start: *byte,
                l_len: 1,
                l_pid: 0,
            };
            match fcntl(&file, FcntlArg::F_OFD_SETLK(&wanted)) {
                Ok(_) => return Ok(Some(Turn { _held: file })),
                Err(Errno::EAGAIN | Errno::EACCES) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        if Instant::now() >= until {
            return Ok(None);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn w05_a_small_program_does_not_wait_for_large_ones() {
        let cache = tempfile::TempDir::new().unwrap();
        let now = Instant::now();
        let mut large = Vec::new();
        while let Some(turn) = to_compile(cache.path(), SMALL + 1, now).await.unwrap() {
            large.push(turn);
        }
        assert_eq!(large.len() as i64, slots() - 1, "a bounded number");
        let small = to_compile(cache.path(), SMALL, now).await.unwrap().expect("its own place");
        assert!(to_compile(cache.path(), SMALL, now).await.unwrap().is_none());
        large.pop();
        assert!(to_compile(cache.path(), SMALL, now).await.unwrap().is_some());
        drop(small);
    }

    #[tokio::test]
    async fn a_program_has_one_compiler() {
        let cache = tempfile::TempDir::new().unwrap();
        let now = Instant::now();
        let [one, other] = [[1; 32], [2; 32]].map(Digest::from_bytes);
        let held = of_program(cache.path(), &one, now).await.unwrap().unwrap();
        assert!(of_program(cache.path(), &one, now).await.unwrap().is_none());
        assert!(of_program(cache.path(), &other, now).await.unwrap().is_some());
        // No program's turn is a compiler's.
        assert!(to_compile(cache.path(), 1, now).await.unwrap().is_some());
        drop(held);
        assert!(of_program(cache.path(), &one, now).await.unwrap().is_some());
    }
}

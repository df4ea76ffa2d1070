//! Non-blocking file descriptors: pipes, FIFOs and terminals alike.
//!
//! Nothing here holds a buffer while it waits: an idle stream costs its file
//! descriptor and a few words.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{Mode, OFlags},
    io::Errno,
};
use tokio::io::{Interest, unix::AsyncFd};

/// Puts a file descriptor under the event loop's watch.
#[expect(deprecated, reason = "the successors are unsafe; an OwnedFd cannot be closed behind us")]
pub(crate) fn register(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(fd, interest)
}

/// A file descriptor that this process alone reads or writes.
#[derive(Debug)]
pub(crate) struct Io(AsyncFd<OwnedFd>);

impl Io {
    /// Makes it non-blocking. The other end of a pipe or terminal has an open
    /// file of its own and does not notice.
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        let flags = rustix::fs::fcntl_getfl(&fd)?;
        rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?;
        // What is open to be read only has no use for the other interest.
        let interest = match flags & OFlags::RWMODE {
            OFlags::RDONLY => Interest::READABLE,
            _ => Interest::READABLE | Interest::WRITABLE,
        };
        Ok(Self(register(fd, interest)?))
    }

    /// Reads what is there: `None` is nothing now, `Some(0)` the end.
    fn try_read(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            match rustix::io::read(self.0.get_ref(), &mut *buffer) {
                Ok(n) => return Ok(Some(n)),
                // The last one to hold the other side of a terminal has closed it.
                Err(Errno::IO) => return Ok(Some(0)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(None),
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Writes all of it.
    pub(crate) async fn write_all(&self, mut data: &[u8]) -> io::Result<()> {
        while !data.is_empty() {
            match rustix::io::write(self.0.get_ref(), data) {
                Ok(n) => data = &data[n..],
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    let mut guard = self.0.writable().await?;
                    // Readiness may be old news: only the kernel knows.
                    match rustix::io::write(self.0.get_ref(), data) {
                        Ok(n) => data = &data[n..],
                        Err(Errno::INTR) => {}
                        Err(Errno::AGAIN) => guard.clear_ready(),
                        Err(errno) => return Err(errno.into()),
                    }
                }
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// Of a FIFO that is open for both directions, one more end that only writes: it shows
    /// whether anybody else reads. None of other files.
    pub(crate) fn writing_end(&self) -> Option<WritingEnd> {
        let flags = rustix::fs::fcntl_getfl(self).ok()?;
        if flags & OFlags::RWMODE != OFlags::RDWR {
            return None;
        }
        let name = format!("/proc/self/fd/{}", self.as_fd().as_raw_fd());
        let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
        rustix::fs::open(name, flags, Mode::empty()).ok().map(WritingEnd)
    }

    /// Reads into a buffer that only lives while there is something to read.
    pub(crate) async fn read_chunk(&self, size: usize) -> io::Result<Vec<u8>> {
        loop {
            let mut guard = self.0.readable().await?;
            match self.read_now(size)? {
                Some(chunk) => return Ok(chunk),
                None => guard.clear_ready(),
            }
        }
    }

    /// Reads what the kernel has, whether or not the event loop has heard of it
    /// yet: `None` is nothing now, an empty chunk the end.
    pub(crate) fn read_now(&self, size: usize) -> io::Result<Option<Vec<u8>>> {
        let mut buffer = vec![0; size];
        Ok(self.try_read(&mut buffer)?.map(|n| {
            buffer.truncate(n);
            buffer
        }))
    }
}

/// See [`Io::writing_end`].
#[derive(Debug)]
pub(crate) struct WritingEnd(OwnedFd);

impl WritingEnd {
    /// Whether anybody has it open to read: the kernel shows an error where nobody has
    /// (poll(2), `POLLERR`).
    pub(crate) fn is_read(&self) -> bool {
        let mut fds = [PollFd::new(&self.0, PollFlags::empty())];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        !matches!(poll(&mut fds, Some(&now)), Ok(1..))
    }
}

impl AsFd for Io {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }
}

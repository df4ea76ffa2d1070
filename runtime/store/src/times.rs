//! Directories' times, which are set last: what is made inside changes them.
//!
//! ```text
//!   record = length of the path (u16), path, seconds (i64), nanoseconds (u32)
//! ```
//!
//! An archive may name one directory as often, and as long-windedly, as it
//! likes. So what is remembered goes to a nameless file beside the layer when
//! it is more than [`IN_MEMORY`], and the last word on a directory wins.

use std::{
    fs::File,
    io::{self, BufReader, BufWriter, Read, Seek, Write},
    os::fd::{BorrowedFd, OwnedFd},
};

use rustix::fs::{AtFlags, Mode, OFlags, Timespec, Timestamps, openat, unlinkat};

/// Bytes that are kept in memory.
const IN_MEMORY: usize = 256 * 1024;
/// The file's name for the moment between its making and its unlinking, where
/// the file system makes no nameless ones.
const NAME: &str = "times";

/// What is remembered, in the order of the archive.
#[derive(Debug, Default)]
pub(crate) struct Times {
    memory: Vec<u8>,
    file: Option<BufWriter<File>>,
}

impl Times {
    /// Remembers a directory's modification time; its path is a valid one, and
    /// the access time is the same. `root` is the layer's directory.
    pub(crate) fn push(
        &mut self,
        root: BorrowedFd<'_>,
        path: &[u8],
        times: &Timestamps,
    ) -> io::Result<()> {
        let length = u16::try_from(path.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let time = times.last_modification;
        let nanoseconds = time.tv_nsec as u32;
        let record = [
            length.to_le_bytes().as_slice(),
            path,
            &time.tv_sec.to_le_bytes(),
            &nanoseconds.to_le_bytes(),
        ]
        .concat();
        if self.file.is_none() && self.memory.len() + record.len() > IN_MEMORY {
            let mut file = BufWriter::new(File::from(nameless(root)?));
            file.write_all(&std::mem::take(&mut self.memory))?;
            self.file = Some(file);
        }
        match &mut self.file {
            Some(file) => file.write_all(&record),
            None => {
                self.memory.extend_from_slice(&record);
                Ok(())
            }
        }
    }

    /// Calls `set` for each record in order.
    pub(crate) fn each(
        self,
        set: impl FnMut(&[u8], &Timestamps) -> io::Result<()>,
    ) -> io::Result<()> {
        match self.file {
            None => read(self.memory.as_slice(), set),
            Some(file) => {
                let mut file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
                file.rewind()?;
                read(BufReader::new(file), set)
            }
        }
    }
}

fn read(
    mut records: impl Read,
    mut set: impl FnMut(&[u8], &Timestamps) -> io::Result<()>,
) -> io::Result<()> {
    let mut path = Vec::new();
    loop {
        let mut length = [0; 2];
        if records.read(&mut length[..1])? == 0 {
            return Ok(());
        }
        records.read_exact(&mut length[1..])?;
        path.resize(u16::from_le_bytes(length).into(), 0);
        records.read_exact(&mut path)?;
        let (mut seconds, mut nanoseconds) = ([0; 8], [0; 4]);
        records.read_exact(&mut seconds)?;
        records.read_exact(&mut nanoseconds)?;
        let time = Timespec {
            tv_sec: i64::from_le_bytes(seconds),
            tv_nsec: u32::from_le_bytes(nanoseconds).into(),
        };
        set(&path, &Timestamps { last_access: time, last_modification: time })?;
    }
}

/// A file beside the layer's directory that is gone when it is closed.
fn nameless(root: BorrowedFd<'_>) -> rustix::io::Result<OwnedFd> {
    let beside =
        openat(root, c"..", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::WUSR;
    match openat(&beside, c".", flags | OFlags::TMPFILE, mode) {
        Ok(file) => return Ok(file),
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::ISDIR) => {}
        Err(errno) => return Err(errno),
    }
    let file =
        openat(&beside, NAME, flags | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW, mode)?;
    unlinkat(&beside, NAME, AtFlags::empty())?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn what_does_not_fit_into_memory_comes_back_in_order() {
        let scratch = tempfile::tempdir().unwrap();
        let root = scratch.path().join("fs");
        std::fs::create_dir(&root).unwrap();
        let root = crate::open_directory(&root).unwrap();
        let of = |seconds: i64| {
            let time = Timespec { tv_sec: seconds, tv_nsec: 999_999_999 };
            Timestamps { last_access: time, last_modification: time }
        };
        let mut times = Times::default();
        for number in 0..5_000i64 {
            let path = format!("{number}/{}", "x".repeat(100));
            times.push(root.as_fd(), path.as_bytes(), &of(-number)).unwrap();
        }
        assert!(times.file.is_some() && times.memory.is_empty());
        let mut next = 0i64;
        times
            .each(|path, times| {
                assert!(path.starts_with(format!("{next}/").as_bytes()));
                assert_eq!(times.last_modification.tv_sec, -next);
                assert_eq!(times.last_modification.tv_nsec, 999_999_999);
                next += 1;
                Ok(())
            })
            .unwrap();
        assert_eq!(next, 5_000);
        assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 1);
    }
}

//! Reading and writing the small files of cgroupfs.

use std::{
    collections::BTreeMap,
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use knarr_sys::read;
use rustix::fs::{Mode, OFlags};

use crate::Error;

/// Writes a value in one write, as cgroupfs wants it.
pub(super) fn write(file: &Path, value: &str) -> Result<(), Error> {
    raw_write(file, value).map_err(|error| {
        Error::system(format_args!("write {value:?} to {}", file.display()), error)
    })
}

fn raw_write(file: &Path, value: &str) -> io::Result<()> {
    rustix::io::write(open(file)?, value.as_bytes())?;
    Ok(())
}

fn open(file: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?)
}

/// A file that takes several values, each in a write of its own.
pub(super) struct Writer {
    file: PathBuf,
    fd: OwnedFd,
}

impl Writer {
    pub(super) fn open(file: PathBuf) -> Result<Self, Error> {
        let fd = open(&file)
            .map_err(|error| Error::system(format_args!("open {}", file.display()), error))?;
        Ok(Self { file, fd })
    }

    pub(super) fn write(&mut self, value: &str) -> Result<(), Error> {
        rustix::io::write(&self.fd, value.as_bytes()).map(drop).map_err(|errno| {
            Error::system(format_args!("write {value:?} to {}", self.file.display()), errno)
        })
    }
}

/// A file's content; nothing where it does not exist.
pub(super) fn read(file: &Path) -> Result<String, Error> {
    match read::text(file, read::LIST) {
        Ok(text) => Ok(text),
        Err(error) if gone(&error) => Ok(String::new()),
        Err(error) => Err(Error::system(format_args!("read {}", file.display()), error)),
    }
}

/// A group that is being removed answers ENODEV.
fn gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(19)
}

/// One number; zero where there is none, the most where it says `max`.
pub(super) fn number(file: &Path) -> u64 {
    let text = read(file).unwrap_or_default();
    match text.trim() {
        "max" => u64::MAX,
        text => text.parse().unwrap_or(0),
    }
}

/// `name value` lines.
pub(super) fn table(file: &Path) -> BTreeMap<String, u64> {
    let text = read(file).unwrap_or_default();
    let pair = |line: &str| {
        let (name, value) = line.split_once(' ')?;
        Some((name.to_owned(), value.trim().parse().ok()?))
    };
    text.lines().filter_map(pair).collect()
}

/// The processes of a group and of those below it.
pub(super) fn pids(dir: &Path) -> Result<Vec<u32>, Error> {
    knarr_sys::members(dir)
        .map_err(|error| Error::system(format_args!("list processes of {}", dir.display()), error))
}

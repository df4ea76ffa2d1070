//! Reading and writing the small files of cgroupfs.

use std::{collections::BTreeMap, fs, io, path::Path};

use crate::Error;

/// Writes a value in one write, as cgroupfs wants it.
pub(super) fn write(file: &Path, value: &str) -> Result<(), Error> {
    raw_write(file, value).map_err(|error| {
        Error::system(format_args!("write {value:?} to {}", file.display()), error)
    })
}

/// The same with the bare error.
pub(super) fn raw_write(file: &Path, value: &str) -> io::Result<()> {
    let fd = rustix::fs::open(
        file,
        rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )?;
    rustix::io::write(fd, value.as_bytes())?;
    Ok(())
}

/// A file's content; nothing where it does not exist.
pub(super) fn read(file: &Path) -> Result<String, Error> {
    match fs::read_to_string(file) {
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
    let mut pids: Vec<u32> =
        read(&dir.join("cgroup.procs"))?.lines().filter_map(|line| line.parse().ok()).collect();
    let Ok(entries) = fs::read_dir(dir) else { return Ok(pids) };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            pids.extend(self::pids(&entry.path())?);
        }
    }
    // Zero is a process of a pid namespace that we cannot see.
    pids.retain(|pid| *pid != 0);
    Ok(pids)
}

//! Small files whose bytes are somebody else's: the kernel's, and those that a
//! container can write.
//!
//! A process chooses its name in `/proc/PID/stat`, a mount's path is in
//! `/proc/self/mountinfo`, and a container's `/etc/hosts` may have grown to any
//! size. So nothing here expects UTF-8, every read has a limit, and only regular
//! files are opened: a FIFO would wait for its writer, and a device may act when
//! it is opened. (All files of procfs, sysfs and cgroupfs are regular ones.)

use std::{
    fs::File,
    io::{self, Read},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
};

use rustix::fs::{FileType, Mode, OFlags};

/// Enough for any file of procfs and cgroupfs that says little, in bytes.
pub const SMALL: usize = 64 << 10;
/// Enough for lists of processes, mounts and sockets, in bytes.
pub const LIST: usize = 64 << 20;

/// A file's content.
///
/// # Errors
/// [`io::ErrorKind::FileTooLarge`] where it is larger than `limit` bytes,
/// [`io::ErrorKind::InvalidInput`] where it is not a regular file, and what the kernel says.
pub fn bytes(path: impl AsRef<Path>, limit: usize) -> io::Result<Vec<u8>> {
    whole(open(path.as_ref())?, limit)
}

/// The same as text: what is not UTF-8 becomes U+FFFD.
///
/// # Errors
/// As [`bytes`].
pub fn text(path: impl AsRef<Path>, limit: usize) -> io::Result<String> {
    Ok(lossy(bytes(path, limit)?))
}

/// A file's first bytes, `limit` of them at most.
///
/// # Errors
/// As [`bytes`], but no file is too large.
pub fn head(path: impl AsRef<Path>, limit: usize) -> io::Result<Vec<u8>> {
    upto(&open(path.as_ref())?, limit)
}

/// The rest of an open file.
///
/// # Errors
/// [`io::ErrorKind::FileTooLarge`] where that is more than `limit` bytes, and what the
/// kernel says.
pub fn whole(file: File, limit: usize) -> io::Result<Vec<u8>> {
    let bytes = upto(&file, limit.saturating_add(1))?;
    if bytes.len() > limit {
        let text = format!("larger than {limit} bytes");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
    }
    Ok(bytes)
}

/// Bytes as text, without a copy where they are UTF-8; what is not becomes U+FFFD.
pub fn lossy(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

fn upto(file: &File, limit: usize) -> io::Result<Vec<u8>> {
    // The kernel makes most files of procfs anew for each read: few and large ones.
    let mut bytes = Vec::with_capacity(limit.min(16 << 10));
    file.take(limit as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// A regular file, opened to be read; links are followed.
fn open(path: &Path) -> io::Result<File> {
    let handle = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    reopen(handle)
}

/// The regular file behind a handle (`O_PATH`), opened to be read.
///
/// # Errors
/// [`io::ErrorKind::InvalidInput`] where it is not a regular file, and what the kernel says.
pub fn reopen(handle: OwnedFd) -> io::Result<File> {
    let stat = rustix::fs::fstat(handle.as_fd())?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    // The very file that was looked at, whatever the path leads to by now.
    let name = format!("/proc/self/fd/{}", handle.as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    Ok(File::from(rustix::fs::open(name, flags, Mode::empty())?))
}

/// What `/proc/PID/stat` says of a process (proc_pid_stat(5)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessStat {
    name: Vec<u8>,
    fields: Vec<String>,
}

impl ProcessStat {
    /// Of a process in our own pid namespace.
    ///
    /// # Errors
    /// When there is none.
    pub fn of(pid: u32) -> io::Result<Self> {
        let line = bytes(format!("/proc/{pid}/stat"), SMALL)?;
        Self::parse(&line).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// The name may hold anything, also what looks like fields and parentheses:
    /// behind the last of these there is nothing of the process's own making.
    fn parse(line: &[u8]) -> Option<Self> {
        let begin = line.iter().position(|byte| *byte == b'(')? + 1;
        let end = line.iter().rposition(|byte| *byte == b')')?;
        let rest = String::from_utf8_lossy(line.get(end + 1..)?);
        let fields: Vec<String> = rest.split_ascii_whitespace().map(str::to_owned).collect();
        // Field 22 is the last that we count on.
        let name = line.get(begin..end)?.to_vec();
        (fields.len() >= 20).then_some(Self { name, fields })
    }

    /// Its name (`comm`), as the process has chosen it: any bytes but NUL, control
    /// characters among them.
    pub fn name(&self) -> &[u8] {
        &self.name
    }

    /// A field by its number in the manual, from 3 (the state) on.
    pub fn field(&self, number: usize) -> Option<&str> {
        self.fields.get(number.checked_sub(3)?).map(String::as_str)
    }

    /// The same as a number; none where it is none, or less than nothing.
    pub fn number(&self, number: usize) -> Option<u64> {
        self.field(number)?.parse().ok()
    }

    /// Whether it is on its way out for good (PF_EXITING): nothing of its program runs any
    /// more, though it may wait, as the first of a pid namespace does until all others there
    /// were waited for.
    pub fn is_exiting(&self) -> bool {
        const PF_EXITING: u64 = 4;
        self.number(9).is_some_and(|flags| flags & PF_EXITING != 0)
    }

    /// Its start, in clock ticks since boot: with the number it names a process
    /// for as long as the host is up.
    pub fn start_time(&self) -> u64 {
        self.number(22).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, io::ErrorKind, os::unix::fs::symlink};

    use super::*;

    #[test]
    fn a_limit_is_one_of_bytes_and_the_last_one_counts() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("file");
        fs::write(&path, b"\xff\xfe12").expect("write");
        assert_eq!(bytes(&path, 4).expect("fits"), b"\xff\xfe12");
        assert_eq!(bytes(&path, 3).expect_err("one too many").kind(), ErrorKind::FileTooLarge);
        assert_eq!(head(&path, 3).expect("head"), b"\xff\xfe1");
        assert_eq!(text(&path, 4).expect("text"), "\u{fffd}\u{fffd}12");
        assert_eq!(
            bytes(dir.path().join("none"), 1).expect_err("none").kind(),
            ErrorKind::NotFound
        );
    }

    #[test]
    fn a_file_that_never_ends_is_too_large() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("sparse");
        File::create(&path).expect("create").set_len(1 << 40).expect("a hole");
        assert_eq!(bytes(&path, SMALL).expect_err("1 TiB").kind(), ErrorKind::FileTooLarge);
        assert_eq!(head(&path, 8).expect("head"), [0; 8]);
    }

    #[test]
    fn only_regular_files_are_opened() {
        let dir = tempfile::tempdir().expect("directory");
        let fifo = dir.path().join("fifo");
        let kind = FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, kind, 0o600.into(), 0).expect("mkfifo");
        let link = dir.path().join("link");
        symlink("/dev/zero", &link).expect("link");
        for path in [fifo.as_path(), &link, Path::new("/dev/zero"), dir.path()] {
            let refused = bytes(path, SMALL).expect_err("not regular").kind();
            assert_eq!(refused, ErrorKind::InvalidInput, "{}", path.display());
        }
        assert!(!bytes("/proc/self/stat", SMALL).expect("procfs").is_empty());
    }

    /// A process as the kernel shows it whose name is to deceive.
    fn line(name: &[u8]) -> Vec<u8> {
        let mut line = b"42 (".to_vec();
        line.extend(name);
        line.extend(b") S 1 42 42 0 -1 4194560 102 0 0 0 7 8 0 0 20 0 1 0 987654 3 4 5\n");
        line
    }

    #[test]
    fn k10_a_process_s_name_deceives_nobody() {
        for name in [
            &b"sh"[..],
            b"",
            b"\xff\xfe",
            b") R 1 (",
            b"a) Z 9 9",
            b"\n) R 2",
            b"((",
            b"))",
            b"\xf0",
        ] {
            let stat = ProcessStat::parse(&line(name)).expect("parsed");
            assert_eq!(stat.name(), name);
            assert_eq!(stat.field(3), Some("S"), "{name:?}");
            assert_eq!(stat.number(4), Some(1), "{name:?}");
            assert_eq!(stat.start_time(), 987_654, "{name:?}");
        }
        for bad in [&b""[..], b"42", b"42 (sh", b"42 (sh) S 1"] {
            assert_eq!(ProcessStat::parse(bad), None, "{bad:?}");
        }
        let own = ProcessStat::of(std::process::id()).expect("own");
        assert!(own.start_time() > 0);
        assert_eq!(ProcessStat::of(u32::MAX).expect_err("none").kind(), ErrorKind::NotFound);
    }
}

//! Opening files beneath a root that belongs to somebody else.
//!
//! Whoever writes a tree (an image, a container, another process of the host) may put a link,
//! a pipe or a device wherever a file is expected, and may rename while we look. So nothing in
//! such a tree is opened by its path, but beneath a descriptor of its root, by openat2.
//!
//! ```text
//! open_in_root   links are followed, the root is their "/"      what an image says it has
//! open_beneath   no link at all                                 what we have written ourselves
//! open_file      as open_in_root, and only a regular file       what is to be read
//! ```
//!
//! **How it fails.** A rename anywhere on the host while the kernel goes up by `..` makes openat2
//! answer EAGAIN: it cannot tell any more whether it is still beneath the root (`path_lookup`,
//! `handle_dots` of fs/namei.c). It is asked again, up to [`TRIES`] times, and only then is that
//! the error. Every other answer is the caller's.

use std::{
    fs::File,
    os::fd::{AsFd, AsRawFd, OwnedFd},
};

use rustix::{
    fs::{FileType, Mode, OFlags, ResolveFlags, fstat, openat2},
    io::Errno,
    path::Arg,
};

/// How often a name is looked up before EAGAIN is believed: some ten milliseconds of the kernel's
/// time, in which a process that does nothing but rename leaves many gaps.
pub const TRIES: u32 = 10_000;

/// openat2 with these flags and close-on-exec, asked again while the answer is EAGAIN or EINTR.
///
/// An empty path is the root itself, and an absolute one begins there with
/// [`ResolveFlags::IN_ROOT`].
///
/// # Errors
/// What the kernel answers; EAGAIN after [`TRIES`] of them.
pub fn open_with(
    root: impl AsFd,
    path: impl Arg,
    flags: OFlags,
    resolve: ResolveFlags,
) -> Result<OwnedFd, Errno> {
    path.into_with_c_str(|path| {
        let path = if path.is_empty() { c"." } else { path };
        again(|| openat2(root.as_fd(), path, flags | OFlags::CLOEXEC, Mode::empty(), resolve))
    })
}

/// Opens what lies at a path of a foreign tree. Links are followed with `root` as their `/`; the
/// links of procfs that lead anywhere are not.
///
/// # Errors
/// What the kernel answers.
pub fn open_in_root(root: impl AsFd, path: impl Arg, flags: OFlags) -> Result<OwnedFd, Errno> {
    open_with(root, path, flags, ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)
}

/// Opens what lies at a relative path that has no link in it and does not leave the root.
///
/// # Errors
/// ELOOP for a link, EXDEV for a path that leads up and out or is absolute, and what else the
/// kernel answers.
pub fn open_beneath(root: impl AsFd, path: impl Arg, flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    open_with(root, path, flags, resolve)
}

/// What [`open_file`] has found.
#[derive(Debug)]
pub enum Found {
    /// A regular file, opened to be read.
    Regular(File),
    /// Something else, which was not opened.
    Other(FileType),
}

/// Opens a regular file of a foreign tree to be read. A pipe would block and a device may act
/// when it is opened: what is no regular file is only told. What was looked at is what is opened,
/// by procfs, even where the name has another file by then.
///
/// # Errors
/// What the kernel answers.
pub fn open_file(root: impl AsFd, path: impl Arg) -> Result<Found, Errno> {
    let place = open_in_root(root, path, OFlags::PATH)?;
    match FileType::from_raw_mode(fstat(&place)?.st_mode) {
        FileType::RegularFile => {}
        other => return Ok(Found::Other(other)),
    }
    let handle = format!("/proc/self/fd/{}", place.as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::NOCTTY | OFlags::CLOEXEC;
    Ok(Found::Regular(File::from(rustix::fs::open(handle, flags, Mode::empty())?)))
}

/// Asks until the answer is neither EAGAIN nor EINTR, or often enough.
fn again<T>(mut ask: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    for _ in 1..TRIES {
        match ask() {
            Err(Errno::AGAIN | Errno::INTR) => {}
            answer => return answer,
        }
    }
    ask()
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        io::Read as _,
        os::unix::fs::symlink,
        path::Path,
        sync::atomic::{AtomicBool, Ordering},
        thread,
    };

    use rustix::fs::CWD;

    use super::*;

    fn root(dir: &Path) -> OwnedFd {
        rustix::fs::open(dir, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).expect("root")
    }

    #[test]
    fn v01_a_host_that_renames_all_the_time_fails_no_opening() {
        let dir = tempfile::tempdir().expect("tempdir");
        let tree = dir.path().join("tree");
        let deep = (0..24).fold(tree.clone(), |path, level| path.join(format!("d{level}")));
        fs::create_dir_all(&deep).expect("tree");
        fs::write(tree.join("file"), "the file").expect("file");
        // Up and down again: each `..` is a chance for the kernel to see the rename.
        symlink(format!("{}/file", ["..", ""].join("/").repeat(24)), deep.join("up"))
            .expect("link");
        let root = root(&tree);
        let path = deep.strip_prefix(&tree).expect("beneath").join("up");
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let done = AtomicBool::new(false);
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        fs::write(&a, "").expect("a");
        let seen = thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    fs::rename(&a, &b).expect("there");
                    fs::rename(&b, &a).expect("and back");
                }
            });
            // Until the kernel itself has given up often enough that one look would not do.
            let mut seen = 0;
            for _ in 0..200_000 {
                let once = openat2(&root, &path, OFlags::PATH, Mode::empty(), resolve);
                seen += u32::from(once.err() == Some(Errno::AGAIN));
                if let Err(errno) = open_in_root(&root, &path, OFlags::PATH) {
                    done.store(true, Ordering::Relaxed);
                    panic!("opening beneath a root: {errno}");
                }
                if seen >= 50 {
                    break;
                }
            }
            done.store(true, Ordering::Relaxed);
            seen
        });
        assert!(seen > 0, "no rename was seen by the kernel: the test shows nothing");
    }

    #[test]
    fn v01_the_lookup_ends_where_the_kernel_never_has_an_answer() {
        let mut asked = 0;
        let answer: Result<(), Errno> = again(|| {
            asked += 1;
            Err(Errno::AGAIN)
        });
        assert_eq!((answer, asked), (Err(Errno::AGAIN), TRIES));
        let mut answers = [Err(Errno::INTR), Err(Errno::AGAIN), Ok(7)].into_iter();
        assert_eq!(again(|| answers.next().expect("no fourth question")), Ok(7));
    }

    #[test]
    fn v01_links_end_at_the_root_or_are_refused() {
        let dir = tempfile::tempdir().expect("tempdir");
        let tree = dir.path().join("tree");
        fs::create_dir_all(tree.join("etc")).expect("tree");
        fs::write(dir.path().join("secret"), "secret").expect("secret");
        fs::write(tree.join("etc/file"), "mine").expect("file");
        for (name, target) in
            [("absolute", "/etc/file"), ("up", "../../../etc/file"), ("out", "../secret")]
        {
            symlink(target, tree.join(name)).expect("link");
        }
        let root = root(&tree);
        let read = |path: &str| match open_file(&root, path) {
            Ok(Found::Regular(mut file)) => {
                let mut text = String::new();
                file.read_to_string(&mut text).expect("text");
                Ok(text)
            }
            Ok(Found::Other(kind)) => panic!("{path} is {kind:?}"),
            Err(errno) => Err(errno),
        };
        for path in ["etc/file", "/etc/file", "absolute", "up"] {
            assert_eq!(read(path).as_deref(), Ok("mine"), "{path}");
        }
        assert_eq!(read("out"), Err(Errno::NOENT));
        let beneath = |path: &str| open_beneath(&root, path, OFlags::PATH).map(drop);
        assert_eq!(beneath("etc/file"), Ok(()));
        assert_eq!(beneath(""), Ok(()));
        assert_eq!(beneath("absolute"), Err(Errno::LOOP));
        assert_eq!(beneath("../secret"), Err(Errno::XDEV));
        assert_eq!(beneath("/etc/file"), Err(Errno::XDEV));
    }

    #[test]
    fn r16_what_is_no_regular_file_is_not_opened() {
        let dir = tempfile::tempdir().expect("tempdir");
        let root = root(dir.path());
        // Opening a pipe that nobody writes would wait.
        rustix::fs::mknodat(CWD, dir.path().join("pipe"), FileType::Fifo, 0o600.into(), 0)
            .expect("pipe");
        let found = open_file(&root, "pipe").expect("pipe");
        assert!(matches!(found, Found::Other(FileType::Fifo)), "{found:?}");
        let found = open_file(&root, ".").expect("directory");
        assert!(matches!(found, Found::Other(FileType::Directory)), "{found:?}");
        assert!(matches!(open_file(&root, "nothing"), Err(Errno::NOENT)));
    }
}

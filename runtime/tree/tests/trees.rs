//! Trees that nobody would make but an attacker.

use std::{
    ffi::CString,
    fs,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink},
    },
    path::{Path, PathBuf},
    process::Command,
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
};

use knarr_tree::{copy, copy_into, remove, usage};
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, XattrFlags, fsetxattr, mkdirat, mknodat, openat, statat,
    symlinkat,
};

/// A scratch directory, in memory where there is some: a disk takes its time
/// over 12,000 directories.
fn scratch() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let place = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    tempfile::tempdir_in(place).unwrap()
}

fn open(at: impl AsFd, name: impl rustix::path::Arg) -> OwnedFd {
    openat(at, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

/// So many directories inside one another, with a file in each hundredth and
/// links out of the tree.
fn grow(root: &Path, levels: usize) {
    fs::create_dir(root).unwrap();
    let outside = root.with_file_name("outside");
    fs::create_dir_all(&outside).unwrap();
    fs::write(outside.join("file"), "kept").unwrap();
    let mut at = open(CWD, root);
    for level in 0..levels {
        mkdirat(&at, c"d", Mode::RWXU).unwrap();
        if level % 100 == 0 {
            symlinkat(outside.as_path(), &at, c"link").unwrap();
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC;
            let file = openat(&at, c"file", flags, Mode::RUSR).unwrap();
            rustix::io::write(&file, b"0123456789").unwrap();
        }
        at = open(&at, c"d");
    }
}

fn is_kept(root: &Path) {
    assert_eq!(fs::read_to_string(root.with_file_name("outside").join("file")).unwrap(), "kept");
}

/// Runs something with the stack of the daemon's threads for blocking work, and
/// with many descriptors: what recurses does not end for want of those.
fn on_a_small_stack(work: impl FnOnce() + Send) {
    let mut limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.current = limit.maximum;
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).unwrap();
    thread::scope(|scope| {
        let thread = thread::Builder::new().stack_size(256 << 10).spawn_scoped(scope, work);
        thread.unwrap().join().unwrap();
    });
}

#[test]
fn x10_twelve_thousand_levels_are_counted_copied_and_removed() {
    let scratch = scratch();
    let (tree, twin) = (scratch.path().join("tree"), scratch.path().join("twin"));
    grow(&tree, 12_000);
    on_a_small_stack(|| {
        let before = usage(&tree).unwrap();
        assert_eq!(before.inodes, 12_000 + 2 * 120);
        copy(open(CWD, &tree).as_fd(), &twin).unwrap();
        let after = usage(&twin).unwrap();
        assert_eq!((after.inodes, after.length), (before.inodes, before.length));
        remove(&twin).unwrap();
        remove(&tree).unwrap();
    });
    assert!(!tree.exists() && !twin.exists());
    is_kept(&tree);
    remove(&tree).unwrap();
}

/// Runs a test of this file again in a process with few descriptors.
fn with_few_descriptors(test: &str) -> bool {
    if std::env::var_os("KNARR_TEST_FEW_DESCRIPTORS").is_some() {
        let few = rustix::process::Rlimit { current: Some(20), maximum: Some(20) };
        rustix::process::setrlimit(rustix::process::Resource::Nofile, few).unwrap();
        return true;
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env("KNARR_TEST_FEW_DESCRIPTORS", "1")
        .output()
        .unwrap();
    let words = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && words.contains("1 passed"), "{words}");
    false
}

#[test]
fn k07_few_descriptors_are_enough() {
    if !with_few_descriptors("k07_few_descriptors_are_enough") {
        return;
    }
    let scratch = scratch();
    let (tree, twin) = (scratch.path().join("tree"), scratch.path().join("twin"));
    grow(&tree, 500);
    // All but a handful of them are others'.
    let others: Vec<fs::File> = std::iter::from_fn(|| fs::File::open("/dev/null").ok()).collect();
    assert!(others.len() < 20);
    let mut others = others.into_iter();
    others.by_ref().take(8).for_each(drop);
    copy(open(CWD, &tree).as_fd(), &twin).unwrap();
    assert_eq!(usage(&twin).unwrap().length, usage(&tree).unwrap().length);
    remove(&tree).unwrap();
    remove(&twin).unwrap();
    assert!(!tree.exists() && !twin.exists());
}

/// How often a thread went to sleep, by its open status file (proc_pid_status(5)).
fn sleeps(status: &fs::File) -> u64 {
    let mut text = [0; 4096];
    let read = status.read_at(&mut text, 0).unwrap();
    let text = String::from_utf8_lossy(&text[..read]).into_owned();
    let count = text.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    count.unwrap_or_else(|| panic!("no count in {text}")).trim().parse().unwrap()
}

#[test]
fn k07_a_removal_waits_for_descriptors_that_others_have() {
    if !with_few_descriptors("k07_a_removal_waits_for_descriptors_that_others_have") {
        return;
    }
    let scratch = scratch();
    let tree = scratch.path().join("tree");
    grow(&tree, 100);
    let (say, heard) = mpsc::channel();
    let (go, begin) = mpsc::channel();
    let removal = thread::spawn({
        let tree = tree.clone();
        move || {
            say.send(fs::File::open("/proc/thread-self/status").unwrap()).unwrap();
            begin.recv().unwrap();
            remove(&tree)
        }
    });
    let status = heard.recv().unwrap();
    let others: Vec<fs::File> = std::iter::from_fn(|| fs::File::open("/dev/null").ok()).collect();
    let before = sleeps(&status);
    go.send(()).unwrap();
    // It may have gone to sleep once to hear that word. What is more, it waits.
    while sleeps(&status) < before + 4 {
        assert!(!removal.is_finished(), "it did not wait");
        thread::yield_now();
    }
    assert!(tree.join("d").is_dir());
    drop(others);
    removal.join().unwrap().unwrap();
    assert!(!tree.exists());
}

#[test]
fn directories_with_many_entries_are_walked_in_pieces() {
    let scratch = scratch();
    let (tree, twin) = (scratch.path().join("tree"), scratch.path().join("twin"));
    fs::create_dir(&tree).unwrap();
    for number in 0..3_000 {
        let directory = tree.join(format!("directory-with-a-long-name-{number}"));
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join("file"), [0; 10]).unwrap();
        fs::write(tree.join(format!("file-{number}")), [0; 10]).unwrap();
    }
    copy(open(CWD, &tree).as_fd(), &twin).unwrap();
    for each in [&tree, &twin] {
        let usage = usage(each).unwrap();
        assert_eq!((usage.inodes, usage.length), (9_000, 60_000));
        remove(each).unwrap();
        assert!(!each.exists());
    }
}

#[test]
fn what_is_left_of_a_tree_is_what_cannot_be_removed() {
    // Needs root and a file system with flags; both are there wherever the engine runs.
    let scratch = tempfile::tempdir().unwrap();
    let tree = scratch.path().join("tree");
    fs::create_dir_all(tree.join("a/b/c")).unwrap();
    let stubborn = tree.join("a/b/stubborn");
    for file in [&stubborn, &tree.join("a/b/c/x"), &tree.join("z")] {
        fs::write(file, "x").unwrap();
    }
    let flags = |flags| {
        let file = fs::File::open(&stubborn).unwrap();
        rustix::fs::ioctl_setflags(&file, flags).unwrap();
    };
    flags(rustix::fs::IFlags::IMMUTABLE);
    let outcome = remove(&tree);
    flags(rustix::fs::IFlags::empty());
    assert_eq!(outcome.unwrap_err().kind(), std::io::ErrorKind::PermissionDenied);
    assert_eq!(usage(&tree).unwrap().inodes, 3, "a, b and the file");
    remove(&tree).unwrap();
    assert!(!tree.exists());
}

#[test]
fn a_link_in_the_place_of_a_tree_is_removed_itself() {
    let scratch = tempfile::tempdir().unwrap();
    let target = scratch.path().join("target");
    fs::create_dir(&target).unwrap();
    fs::write(target.join("file"), "x").unwrap();
    let link = scratch.path().join("link");
    symlink(&target, &link).unwrap();
    assert_eq!(usage(&link).unwrap(), knarr_tree::Usage::default());
    remove(&link).unwrap();
    assert!(target.join("file").exists() && !link.is_symlink());
}

#[test]
fn usage_counts_names_of_one_file_once_and_lengths_without_overflow() {
    let scratch = tempfile::tempdir().unwrap();
    let tree = scratch.path().join("tree");
    fs::create_dir_all(tree.join("sub")).unwrap();
    fs::write(tree.join("file"), vec![1; 100_000]).unwrap();
    fs::hard_link(tree.join("file"), tree.join("sub/twin")).unwrap();
    let with_one = usage(&tree).unwrap();
    assert_eq!((with_one.inodes, with_one.length), (2, 100_000));
    let blocks = fs::metadata(tree.join("file")).unwrap().blocks()
        + fs::metadata(tree.join("sub")).unwrap().blocks();
    assert_eq!(with_one.disk, blocks * 512);
    fs::File::create(tree.join("holes")).unwrap().set_len(1 << 40).unwrap();
    let with_holes = usage(&tree).unwrap();
    assert_eq!(with_holes.length, 100_000 + (1 << 40));
    assert_eq!(with_holes.disk, with_one.disk);
}

#[test]
fn a_directory_that_becomes_a_link_leads_no_walk_out() {
    let scratch = scratch();
    let tree = scratch.path().join("tree");
    fs::create_dir_all(tree.join("swapped")).unwrap();
    let outside = scratch.path().join("outside");
    fs::create_dir_all(outside.join("deeper")).unwrap();
    fs::write(outside.join("large"), vec![1; 1 << 20]).unwrap();
    symlink(&outside, tree.join("link")).unwrap();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let at = open(CWD, &tree);
            while !done.load(Ordering::Relaxed) {
                let exchange = rustix::fs::RenameFlags::EXCHANGE;
                rustix::fs::renameat_with(&at, c"swapped", &at, c"link", exchange).unwrap();
            }
        });
        let mut worst = 0;
        for _ in 0..5_000 {
            worst = worst.max(usage(&tree).unwrap().length);
        }
        done.store(true, Ordering::Relaxed);
        assert!(worst < 1 << 20, "{worst} bytes were counted outside the tree");
    });
    remove(&tree).unwrap();
    assert!(outside.join("large").exists() && outside.join("deeper").exists());
}

/// A tree with a thing of every kind.
fn kinds(dir: &Path) -> PathBuf {
    let tree = dir.join("kinds");
    fs::create_dir_all(tree.join("sub/deeper")).unwrap();
    fs::write(tree.join("file"), vec![7; 300_000]).unwrap();
    for name in ["sub/twin", "sub/deeper/triplet"] {
        fs::hard_link(tree.join("file"), tree.join(name)).unwrap();
    }
    fs::write(tree.join("setuid"), "s").unwrap();
    std::os::unix::fs::chown(tree.join("setuid"), Some(1234), Some(4321)).unwrap();
    fs::set_permissions(tree.join("setuid"), fs::Permissions::from_mode(0o6755)).unwrap();
    let file = fs::File::open(tree.join("setuid")).unwrap();
    fsetxattr(&file, "trusted.kept", b"value", XattrFlags::empty()).unwrap();
    fsetxattr(&file, "trusted.overlay.origin", b"not", XattrFlags::empty()).unwrap();
    symlink("/etc/passwd", tree.join("link")).unwrap();
    for (name, kind, device) in [
        ("fifo", FileType::Fifo, 0),
        ("device", FileType::CharacterDevice, rustix::fs::makedev(1, 3)),
    ] {
        mknodat(CWD, tree.join(name), kind, Mode::from_raw_mode(0o622), device).unwrap();
    }
    let holes = fs::File::create(tree.join("holes")).unwrap();
    holes.set_len(1 << 36).unwrap();
    holes.write_all_at(b"middle", 1 << 35).unwrap();
    fs::set_permissions(tree.join("sub"), fs::Permissions::from_mode(0o1775)).unwrap();
    tree
}

#[test]
fn v07_a_copy_has_everything_of_the_source() {
    let scratch = tempfile::tempdir().unwrap();
    let tree = kinds(scratch.path());
    let twin = scratch.path().join("twin");
    // What an interrupted copy left beside it is in nobody's way.
    fs::create_dir(scratch.path().join("twin.links")).unwrap();
    copy(open(CWD, &tree).as_fd(), &twin).unwrap();
    assert!(!scratch.path().join("twin.links").exists());
    for name in ["", "file", "setuid", "sub", "sub/deeper", "link", "fifo", "device", "holes"] {
        let of = |root: &Path| {
            let path = root.join(name);
            let name = CString::new(path.to_str().unwrap()).unwrap();
            let stat = statat(CWD, &name, AtFlags::SYMLINK_NOFOLLOW).unwrap();
            let is = (stat.st_mode, stat.st_uid, stat.st_gid, stat.st_rdev, stat.st_nlink);
            let times = (stat.st_mtime, stat.st_mtime_nsec);
            let size = FileType::from_raw_mode(stat.st_mode).is_file().then_some(stat.st_size);
            (is, times, size)
        };
        assert_eq!(of(&twin), of(&tree), "{name}");
    }
    assert_eq!(fs::read(twin.join("file")).unwrap(), vec![7; 300_000]);
    assert_eq!(fs::read_link(twin.join("link")).unwrap(), Path::new("/etc/passwd"));
    let inode = |name: &str| fs::metadata(twin.join(name)).unwrap().ino();
    assert!(inode("file") == inode("sub/twin") && inode("file") == inode("sub/deeper/triplet"));
    let mut value = [0; 16];
    let file = fs::File::open(twin.join("setuid")).unwrap();
    assert_eq!(rustix::fs::fgetxattr(&file, "trusted.kept", &mut value[..]).unwrap(), 5);
    assert!(rustix::fs::fgetxattr(&file, "trusted.overlay.origin", &mut value[..]).is_err());
    let holes = fs::File::open(twin.join("holes")).unwrap();
    let mut middle = [0; 6];
    holes.read_exact_at(&mut middle, 1 << 35).unwrap();
    assert_eq!(&middle, b"middle");
    assert!(holes.metadata().unwrap().blocks() < 1000, "64 GiB of holes are holes in the copy");
}

#[test]
fn v07_a_copy_into_what_is_there_has_owners_modes_and_links() {
    let scratch = tempfile::tempdir().unwrap();
    let tree = kinds(scratch.path());
    let twin = scratch.path().join("twin");
    fs::create_dir(&twin).unwrap();
    copy_into(open(CWD, &tree).as_fd(), open(CWD, &twin).as_fd()).unwrap();
    assert_eq!(usage(&twin).unwrap().inodes, usage(&tree).unwrap().inodes);
    let is = |root: &Path, name: &str| {
        let metadata = fs::symlink_metadata(root.join(name)).unwrap();
        (metadata.mode(), metadata.uid(), metadata.gid(), metadata.rdev(), metadata.nlink())
    };
    for name in ["", "file", "setuid", "sub", "link", "fifo", "device", "holes"] {
        assert_eq!(is(&twin, name), is(&tree, name), "{name}");
    }
    let file = fs::File::open(twin.join("setuid")).unwrap();
    assert!(rustix::fs::fgetxattr(&file, "trusted.kept", &mut [0; 16][..]).is_err());
}

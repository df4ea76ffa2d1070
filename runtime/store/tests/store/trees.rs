//! What GNU tar writes and reads is the judge of what comes out: I25.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Command,
};

use knarr_model::Digest;
use proptest::prelude::*;
use sha2::{Digest as _, Sha256};

use crate::{Fixture, digest};

/// Everything about a tree that an image must keep.
pub fn tree(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut inodes = BTreeMap::<u64, PathBuf>::new();
    let mut pending = vec![root.to_owned()];
    while let Some(path) = pending.pop() {
        let metadata = fs::symlink_metadata(&path).unwrap();
        let kind = metadata.file_type();
        let name = path.strip_prefix(root).unwrap().to_owned();
        let mut text = format!(
            "{:o} {}:{} {}.{}",
            metadata.mode(),
            metadata.uid(),
            metadata.gid(),
            metadata.mtime(),
            metadata.mtime_nsec()
        );
        if kind.is_dir() {
            pending.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if kind.is_symlink() {
            text += &format!(" -> {:?}", fs::read_link(&path).unwrap());
        } else if kind.is_file() {
            let content = fs::read(&path).unwrap();
            text += &format!(" {} {}", content.len(), digest(&content).hex());
        } else {
            text += &format!(" device {:x}", metadata.rdev());
        }
        if !kind.is_dir() && metadata.nlink() > 1 {
            let first = inodes.entry(metadata.ino()).or_insert_with(|| name.clone()).clone();
            text += &format!(" links {}", metadata.nlink());
            // The first of a group in the order of names, not of the walk.
            let first = first.min(name.clone());
            inodes.insert(metadata.ino(), first);
        }
        found.insert(name, text);
    }
    found
}

#[test]
fn i25_files_with_holes_keep_them() {
    let fixture = Fixture::new();
    let source = fixture.scratch.path().join("source");
    fs::create_dir(&source).unwrap();
    let holes = fs::File::create(source.join("holes")).unwrap();
    // More pieces than the header of the old format holds, and a hole at the end.
    for piece in 0..40u64 {
        let text = format!("piece {piece}");
        std::os::unix::fs::FileExt::write_all_at(&holes, text.as_bytes(), piece << 20).unwrap();
    }
    holes.set_len(1 << 30).unwrap();
    drop(holes);
    fs::write(source.join("next"), "unharmed").unwrap();
    let want = tree_of(&source, &["holes", "next"]);
    for format in [
        &["--format=gnu"][..],
        &["--format=pax", "--sparse-version=0.0"],
        &["--format=pax", "--sparse-version=0.1"],
        &["--format=pax", "--sparse-version=1.0"],
    ] {
        let tar = Command::new("tar")
            .args(["--sparse", "-C"])
            .arg(&source)
            .args(format)
            .args(["-cf", "-", "holes", "next"])
            .output()
            .unwrap();
        assert!(tar.stdout.len() < 4 << 20, "tar found the holes");
        let layer = fixture.layer(&tar.stdout);
        assert_eq!(tree_of(&layer, &["holes", "next"]), want, "{format:?}");
        let disk = fs::metadata(layer.join("holes")).unwrap().blocks() * 512;
        assert!(disk < 4 << 20, "{format:?}: {disk} bytes on disk");
        #[expect(clippy::disallowed_methods, reason = "a tree of the test itself")]
        fs::remove_dir_all(layer.parent().unwrap()).unwrap();
    }
}

/// Lengths and digests of some files.
fn tree_of(root: &Path, names: &[&str]) -> Vec<(u64, Digest)> {
    let of = |name: &&str| {
        let mut file = fs::File::open(root.join(name)).unwrap();
        let (mut hash, mut buffer, mut length) = (Sha256::new(), vec![0; 1 << 20], 0);
        loop {
            let read = file.read(&mut buffer).unwrap();
            if read == 0 {
                return (length, Digest::from_bytes(hash.finalize().into()));
            }
            hash.update(&buffer[..read]);
            length += read as u64;
        }
    };
    names.iter().map(of).collect()
}

#[derive(Debug, Clone)]
enum Node {
    File { content: Vec<u8>, mode: u32, owner: u32 },
    Link(String),
    Hard(usize),
    Pipe,
    Directory { mode: u32 },
}

fn node() -> impl Strategy<Value = Node> {
    prop_oneof![
        4 => (prop::collection::vec(any::<u8>(), 0..2000), 0u32..0o10000, 0u32..100_000)
            .prop_map(|(content, mode, owner)| Node::File { content, mode, owner }),
        1 => "[a-z./]{1,120}".prop_map(Node::Link),
        1 => any::<usize>().prop_map(Node::Hard),
        1 => Just(Node::Pipe),
        2 => (0u32..0o10000).prop_map(|mode| Node::Directory { mode: mode | 0o700 }),
    ]
}

/// Makes a tree: names may be long, odd, nested in earlier directories.
fn grow(root: &Path, nodes: &[(String, usize, Node)]) {
    let mut directories = vec![root.to_owned()];
    let mut files: Vec<PathBuf> = Vec::new();
    for (name, place, node) in nodes {
        let path = directories[place % directories.len()].join(name);
        if path.symlink_metadata().is_ok() {
            continue;
        }
        match node {
            Node::File { content, mode, owner } => {
                fs::write(&path, content).unwrap();
                std::os::unix::fs::chown(&path, Some(*owner), Some(owner / 2)).unwrap();
                fs::set_permissions(&path, fs::Permissions::from_mode(*mode)).unwrap();
                files.push(path.clone());
            }
            Node::Link(target) => std::os::unix::fs::symlink(target, &path).unwrap(),
            Node::Hard(which) if !files.is_empty() => {
                fs::hard_link(&files[which % files.len()], &path).unwrap();
            }
            Node::Pipe | Node::Hard(_) => {
                let kind = rustix::fs::FileType::Fifo;
                let mode = rustix::fs::Mode::from_raw_mode(0o600);
                rustix::fs::mknodat(rustix::fs::CWD, &path, kind, mode, 0).unwrap();
            }
            Node::Directory { mode } => {
                fs::create_dir(&path).unwrap();
                fs::set_permissions(&path, fs::Permissions::from_mode(*mode)).unwrap();
                directories.push(path.clone());
            }
        }
        let odd =
            rustix::fs::Timespec { tv_sec: 1_234_567_890 + *place as i64 % 1000, tv_nsec: 123 };
        let times = rustix::fs::Timestamps { last_access: odd, last_modification: odd };
        let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::utimensat(rustix::fs::CWD, &path, &times, flags).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..Default::default() })]

    #[test]
    fn i25_valid_trees_come_out_as_gnu_tar_unpacks_them(
        nodes in prop::collection::vec(
            ("[^/\0.]{1,60}", any::<usize>(), node()),
            1..25,
        )
    ) {
        let fixture = Fixture::new();
        let source = fixture.scratch.path().join("source");
        fs::create_dir(&source).unwrap();
        grow(&source, &nodes);
        for format in ["gnu", "pax"] {
            let archive = Command::new("tar")
                .args(["--numeric-owner", "--format", format, "-C"])
                .arg(&source)
                .args(["-c", "."])
                .output()
                .unwrap();
            prop_assert!(archive.status.success());
            let judge = fixture.scratch.path().join(format!("judge-{format}"));
            fs::create_dir(&judge).unwrap();
            let mut tar = Command::new("tar")
                .args(["--numeric-owner", "--same-owner", "-p", "-C"])
                .arg(&judge)
                .arg("-x")
                .stdin(std::process::Stdio::piped())
                .spawn()
                .unwrap();
            tar.stdin.take().unwrap().write_all(&archive.stdout).unwrap();
            prop_assert!(tar.wait().unwrap().success());
            let ours = fixture.layer(&archive.stdout);
            prop_assert_eq!(tree(&ours), tree(&judge));
        }
    }
}

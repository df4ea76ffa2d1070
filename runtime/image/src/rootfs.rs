//! Finding a file in stacked layers, without mounting them.
//!
//! The way overlayfs does it: topmost layer first; a whiteout or a file ends
//! the search, an opaque directory hides what lies below, directories merge.
//! Symbolic links are followed inside the stack: an absolute target begins at
//! its root, `..` stops there. Everything goes by descriptors of directories,
//! one component at a time, never following a link of the host; only those of the
//! directory where the search stands are open.
//!
//! **How it fails.** What is not there, or is no regular file, is `None`; more
//! than 40 links, or more steps than [`LOOKUPS_MAX`], are an error of the host's
//! kind `ELOOP`.

use std::{
    fs::File,
    io,
    os::{
        fd::OwnedFd,
        unix::ffi::{OsStrExt, OsStringExt},
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, openat, readlinkat, statat},
    io::Errno,
};

/// As the kernel's own limit.
const LINKS_MAX: usize = 40;
/// Components looked up in one layer each; a path of 20 in 500 layers takes 10,000.
const LOOKUPS_MAX: usize = 200_000;

/// A regular file that was found.
#[derive(Debug)]
pub(crate) struct Found {
    /// Its path without links.
    pub(crate) path: PathBuf,
    pub(crate) file: File,
    /// Any of its execute bits.
    pub(crate) executable: bool,
}

/// Directories of all layers that merge into one, the topmost first.
type Merged = Vec<OwnedFd>;

enum Child {
    Missing,
    Directory(Merged),
    Link(Vec<u8>),
    Other { at: OwnedFd, regular: bool, executable: bool },
}

/// Finds a regular file; `layers` are lower directories, the topmost first.
pub(crate) fn find(layers: &[PathBuf], path: &Path) -> io::Result<Option<Found>> {
    let mut names: Vec<Vec<u8>> = Vec::new();
    let mut here = open_roots(layers)?;
    let mut left = LOOKUPS_MAX;
    let mut pending: Vec<Vec<u8>> = split(path.as_os_str().as_bytes());
    let mut links = 0;
    while let Some(part) = pending.pop() {
        if part == b".." {
            if names.pop().is_some() {
                match walk(layers, &names, &mut left)? {
                    Some(above) => here = above,
                    None => return Ok(None),
                }
            }
            continue;
        }
        match child(&here, &part, &mut left)? {
            Child::Missing => return Ok(None),
            Child::Directory(merged) => {
                names.push(part);
                here = merged;
            }
            Child::Link(target) => {
                links += 1;
                if links > LINKS_MAX {
                    return Err(Errno::LOOP.into());
                }
                if target.starts_with(b"/") {
                    names.clear();
                    here = open_roots(layers)?;
                }
                pending.extend(split(&target));
            }
            Child::Other { at, regular, executable } => {
                if !regular || !pending.is_empty() {
                    return Ok(None);
                }
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let file = openat(&at, part.as_slice(), flags, Mode::empty())?;
                let mut whole = vec![b'/'];
                for name in &names {
                    whole.extend_from_slice(name);
                    whole.push(b'/');
                }
                whole.extend_from_slice(&part);
                let path = PathBuf::from(std::ffi::OsString::from_vec(whole));
                return Ok(Some(Found { path, file: file.into(), executable }));
            }
        }
    }
    Ok(None)
}

/// Components in reverse, so that the next one is popped.
fn split(path: &[u8]) -> Vec<Vec<u8>> {
    let parts = path.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b"."));
    parts.rev().map(<[u8]>::to_vec).collect()
}

fn open_directory(at: impl rustix::fd::AsFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(at, name, flags, Mode::empty())
}

fn is_opaque(directory: &OwnedFd) -> bool {
    let mut value = [0u8; 8];
    let read = rustix::fs::fgetxattr(directory, "trusted.overlay.opaque", &mut value[..]);
    matches!(read, Ok(1)) && value[0] == b'y'
}

fn open_roots(layers: &[PathBuf]) -> io::Result<Merged> {
    let mut roots = Vec::new();
    for layer in layers {
        let root = open_directory(rustix::fs::CWD, layer.as_os_str().as_bytes())?;
        let opaque = is_opaque(&root);
        roots.push(root);
        if opaque {
            break;
        }
    }
    Ok(roots)
}

/// The directory of these names, which were found without links just now.
fn walk(layers: &[PathBuf], names: &[Vec<u8>], left: &mut usize) -> io::Result<Option<Merged>> {
    let mut here = open_roots(layers)?;
    for name in names {
        match child(&here, name, left)? {
            Child::Directory(merged) => here = merged,
            _ => return Ok(None),
        }
    }
    Ok(Some(here))
}

fn child(directory: &Merged, name: &[u8], left: &mut usize) -> io::Result<Child> {
    *left = left.checked_sub(directory.len()).ok_or(Errno::LOOP)?;
    let mut merged = Merged::new();
    for layer in directory {
        let stat = match statat(layer, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT | Errno::NAMETOOLONG) => continue,
            other => other?,
        };
        let kind = FileType::from_raw_mode(stat.st_mode);
        let whiteout = kind == FileType::CharacterDevice && stat.st_rdev == 0;
        match kind {
            FileType::Directory => {
                let opened = open_directory(layer, name)?;
                let opaque = is_opaque(&opened);
                merged.push(opened);
                if opaque {
                    break;
                }
            }
            // A directory above hides what is no directory below.
            _ if whiteout || !merged.is_empty() => break,
            FileType::Symlink => {
                return Ok(Child::Link(readlinkat(layer, name, Vec::new())?.into_bytes()));
            }
            _ => {
                return Ok(Child::Other {
                    at: rustix::io::fcntl_dupfd_cloexec(layer, 0)?,
                    regular: kind == FileType::RegularFile,
                    executable: stat.st_mode & 0o111 != 0,
                });
            }
        }
    }
    Ok(if merged.is_empty() { Child::Missing } else { Child::Directory(merged) })
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Read, os::unix::fs::symlink};

    use super::*;

    fn text(layers: &[PathBuf], path: &str) -> Option<String> {
        find(layers, Path::new(path)).unwrap().map(|mut found| {
            let mut text = String::new();
            found.file.read_to_string(&mut text).unwrap();
            format!("{}={text}", found.path.display())
        })
    }

    #[test]
    fn files_are_found_as_overlayfs_shows_them() {
        let scratch = tempfile::tempdir().unwrap();
        let [low, high] = ["low", "high"].map(|name| scratch.path().join(name));
        fs::create_dir_all(low.join("usr/bin")).unwrap();
        fs::create_dir_all(low.join("gone")).unwrap();
        fs::create_dir_all(low.join("opaque")).unwrap();
        fs::create_dir_all(low.join("was-dir")).unwrap();
        for file in ["usr/bin/sh", "usr/bin/both", "gone/x", "opaque/x", "removed", "was-dir/x"] {
            fs::write(low.join(file), "low").unwrap();
        }
        symlink("usr/bin", low.join("bin")).unwrap();
        symlink("/../../usr/bin/sh", low.join("abs")).unwrap();
        symlink("loop", low.join("loop")).unwrap();
        fs::create_dir_all(high.join("usr/bin")).unwrap();
        fs::create_dir_all(high.join("opaque")).unwrap();
        fs::write(high.join("usr/bin/both"), "high").unwrap();
        fs::write(high.join("was-dir"), "high").unwrap();
        symlink("/etc/passwd", high.join("host")).unwrap();
        symlink("../../../../../../etc/passwd", high.join("usr/up")).unwrap();
        for gone in ["gone", "removed"] {
            rustix::fs::mknodat(
                rustix::fs::CWD,
                high.join(gone),
                FileType::CharacterDevice,
                Mode::empty(),
                0,
            )
            .unwrap();
        }
        let opaque = fs::File::open(high.join("opaque")).unwrap();
        rustix::fs::fsetxattr(
            &opaque,
            "trusted.overlay.opaque",
            b"y",
            rustix::fs::XattrFlags::empty(),
        )
        .unwrap();
        let layers = vec![high, low];
        for (path, want) in [
            ("/usr/bin/sh", Some("/usr/bin/sh=low")),
            ("bin/both", Some("/usr/bin/both=high")),
            ("/bin/../bin/./sh", Some("/usr/bin/../usr/bin/sh=low")),
            ("/abs", Some("/usr/bin/sh=low")),
            ("/was-dir", Some("/was-dir=high")),
            ("/was-dir/x", None),
            ("/gone/x", None),
            ("/removed", None),
            ("/opaque/x", None),
            ("/host", None),
            ("/usr/up", None),
            ("/usr/bin", None),
            ("/nope", None),
        ] {
            let want = want.map(|w| w.replace("/usr/bin/../usr", "/usr"));
            assert_eq!(text(&layers, path), want, "{path}");
        }
        assert!(find(&layers, Path::new("/loop")).is_err());
    }

    #[test]
    fn k07_a_deep_path_holds_no_descriptor_for_each_level() {
        const TEST: &str = "rootfs::tests::k07_a_deep_path_holds_no_descriptor_for_each_level";
        // In a process of its own, which has few.
        if std::env::var_os("KNARR_TEST_FEW_DESCRIPTORS").is_none() {
            let output = std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--exact", TEST, "--nocapture", "--test-threads=1"])
                .env("KNARR_TEST_FEW_DESCRIPTORS", "1")
                .output()
                .unwrap();
            let words = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(output.status.success() && words.contains("1 passed"), "{words}");
            return;
        }
        let few = rustix::process::Rlimit { current: Some(64), maximum: Some(64) };
        rustix::process::setrlimit(rustix::process::Resource::Nofile, few).unwrap();
        let scratch = tempfile::tempdir().unwrap();
        let deep = "d/".repeat(1500);
        fs::create_dir_all(scratch.path().join(&deep)).unwrap();
        fs::write(scratch.path().join(&deep).join("f"), "bottom").unwrap();
        let layers = vec![scratch.path().to_owned()];
        let path = format!("/{deep}f");
        assert!(text(&layers, &path).unwrap().ends_with("=bottom"));
        // Up and down again and again costs more than anybody's path is worth.
        let path = format!("/{}f", format!("{}{}", "d/".repeat(600), "../".repeat(600)).repeat(3));
        assert!(find(&layers, Path::new(&path)).is_err());
    }
}

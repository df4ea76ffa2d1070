//! Overlays of layers, as detached mounts.
//!
//! Each layer is a parameter of its own, so neither their number nor the sum of
//! their lengths is limited. Kernels before 6.7 know one parameter of at most a
//! page only: they are served by [`knarr_sys::Overlay`].

use std::{
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
    sync::OnceLock,
};

use knarr_sys::MountAttr;
use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_fd,
        fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen,
    },
};

use crate::{
    Error,
    error::describe,
    wishes::{bind, empty, plain},
};

/// Longest string that fsconfig takes, with its zero byte.
const FSCONFIG_STRING: usize = 256;

/// An overlay in containerd's words: `lowerdir=A:B`, `upperdir=`, `workdir=`, …
pub(crate) fn mount(options: &[String]) -> Result<OwnedFd, Error> {
    let mut attributes = MountAttrFlags::empty();
    let mut upper = false;
    let mut layers: &str = "";
    // What is overlayfs's own business.
    let mut rest = Vec::new();
    for option in options {
        match option.split_once('=') {
            Some(("lowerdir", dirs)) => layers = dirs,
            None if option == "ro" => attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY,
            None if option == "nosuid" => attributes |= MountAttrFlags::MOUNT_ATTR_NOSUID,
            None if option == "nodev" => attributes |= MountAttrFlags::MOUNT_ATTR_NODEV,
            None if option == "rw" => {}
            pair => {
                upper |= pair.is_some_and(|(name, _)| name == "upperdir");
                rest.push(option.as_str());
            }
        }
    }
    if !takes_parameters() {
        return mount_elsewhere(layers, &rest, attributes);
    }
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)
        .map_err(|errno| Error::system("overlay", errno))?;
    let context = context.as_fd();
    for option in &rest {
        let result = match option.split_once('=') {
            Some((name @ ("upperdir" | "workdir"), dir)) => layer(context, name, Path::new(dir)),
            Some((name, value)) => {
                fsconfig_set_string(context, name, value).map_err(io::Error::from)
            }
            None => fsconfig_set_flag(context, *option).map_err(io::Error::from),
        };
        result.map_err(|error| overlay_error(context, option, error))?;
    }
    // Without a writable layer there would be no place for mount points that
    // the image does not have: a scratch image has no /proc. What is made there
    // is in memory and dies with the mount.
    let scratch = if upper { None } else { scratch(context) };
    // Overlayfs wants two layers or a writable one.
    if !upper && scratch.is_none() && !layers.contains(':') {
        let mut wish = plain(PathBuf::from(layers), false);
        wish.attributes.0 = MountAttr::RDONLY;
        return bind(&wish);
    }
    for dir in layers.split(':') {
        match layer(context, "lowerdir+", Path::new(dir)) {
            Ok(()) => {}
            // Before Linux 6.7 there was no such parameter.
            Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
                return mount_elsewhere(layers, &rest, attributes);
            }
            Err(error) => return Err(overlay_error(context, dir, error)),
        }
    }
    fsconfig_create(context).map_err(|errno| overlay_error(context, "create", errno.into()))?;
    fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
        .map_err(|errno| Error::system("mount overlay", errno))
}

/// Whether overlayfs takes its options one by one, as it does since Linux 6.5.
/// Before, it took any word and thought about it at the end.
fn takes_parameters() -> bool {
    static TAKES: OnceLock<bool> = OnceLock::new();
    *TAKES.get_or_init(|| {
        let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC);
        context.is_ok_and(|context| {
            fsconfig_set_flag(context.as_fd(), "knarr_probe") == Err(Errno::INVAL)
        })
    })
}

/// The way of older kernels.
fn mount_elsewhere(
    layers: &str,
    rest: &[&str],
    attributes: MountAttrFlags,
) -> Result<OwnedFd, Error> {
    let of = |name: &str| {
        rest.iter().find_map(|option| option.strip_prefix(name)?.strip_prefix('=')).map(Path::new)
    };
    let overlay = knarr_sys::Overlay {
        layers: layers.split(':').map(Path::new).collect(),
        upper: of("upperdir").zip(of("workdir")),
        scratch: true,
        options: rest
            .iter()
            .copied()
            .filter(|option| !option.starts_with("upperdir=") && !option.starts_with("workdir="))
            .collect(),
        attributes: attributes.bits().into(),
    };
    overlay.mount().map_err(|error| match error.layer {
        Some(layer) => {
            let what = format!("mount overlay: open {}", layer.display());
            Error::system(what, error.errno)
        }
        None => Error::system("mount overlay", error.errno),
    })
}

/// A writable layer in memory; none before Linux 6.13, which takes no
/// descriptors for layers.
fn scratch(context: BorrowedFd<'_>) -> Option<OwnedFd> {
    let tmpfs = empty(0o755).ok()?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    for (name, dir) in [("upperdir", "upper"), ("workdir", "work")] {
        rustix::fs::mkdirat(&tmpfs, dir, 0o755.into()).ok()?;
        let dir = rustix::fs::openat(&tmpfs, dir, flags, Mode::empty()).ok()?;
        fsconfig_set_fd(context, name, dir.as_fd()).ok()?;
    }
    Some(tmpfs)
}

fn layer(context: BorrowedFd<'_>, name: &str, dir: &Path) -> io::Result<()> {
    if dir.as_os_str().len() < FSCONFIG_STRING {
        return Ok(fsconfig_set_string(context, name, dir.as_os_str().as_bytes())?);
    }
    // Since Linux 6.13 overlayfs takes layers as descriptors, however long their path.
    let fd =
        rustix::fs::open(dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    Ok(fsconfig_set_fd(context, name, fd.as_fd())?)
}

/// The error with what the kernel wrote about it to the context's log.
fn overlay_error(context: BorrowedFd<'_>, what: &str, error: io::Error) -> Error {
    let mut buffer = [0u8; 1024];
    let mut said = String::new();
    while let Ok(count) = rustix::io::read(context, &mut buffer) {
        let line = String::from_utf8_lossy(&buffer[..count]);
        let line = line.trim().trim_start_matches(['e', 'w', 'i', ' ']);
        said.push_str(if said.is_empty() { "" } else { "; " });
        said.push_str(line);
    }
    let what: String = what.chars().take(100).collect();
    let text = if said.is_empty() { describe(&error) } else { said };
    Error::system(format_args!("mount overlay ({what}: {text})"), error)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hundreds of layers with long names, so that all of them would not fit in
    /// a page by far.
    fn layers(dir: &Path) -> (String, [String; 2]) {
        let name = "l".repeat(180);
        let mut dirs = Vec::new();
        for number in 0..500 {
            let layer = dir.join(format!("{name}{number}"));
            std::fs::create_dir(&layer).expect("layer");
            std::fs::write(layer.join(format!("f{number}")), "").expect("file");
            dirs.push(layer.display().to_string());
        }
        for one in ["upper", "work"] {
            std::fs::create_dir(dir.join(one)).expect("dir");
        }
        let writable = ["upper", "work"].map(|one| format!("{one}dir={}", dir.join(one).display()));
        (dirs.join(":"), writable)
    }

    #[track_caller]
    fn all_are_there(mount: &OwnedFd) {
        for number in [0, 250, 499] {
            rustix::fs::statat(mount, format!("f{number}"), rustix::fs::AtFlags::empty())
                .expect("a file of each layer");
        }
    }

    #[test]
    fn i18_five_hundred_layers_are_mounted() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (lower, writable) = layers(dir.path());
        let mut options = vec![format!("lowerdir={lower}")];
        options.extend(writable);
        all_are_there(&mount(&options).expect("overlay"));
    }

    #[test]
    fn i18_older_kernels_mount_the_same() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (lower, writable) = layers(dir.path());
        let rest: Vec<&str> = writable.iter().map(String::as_str).collect();
        let nodev = MountAttrFlags::MOUNT_ATTR_NODEV;
        all_are_there(&mount_elsewhere(&lower, &rest, nodev).expect("overlay"));
        let error = mount_elsewhere("/nonexistent-a", &[], nodev).expect_err("no layer");
        assert!(error.to_string().contains("nonexistent"), "{error}");
    }

    #[test]
    fn a_layer_with_a_very_long_path_is_mounted() {
        let dir = tempfile::tempdir().expect("tempdir");
        let deep = dir.path().join("d".repeat(200)).join("e".repeat(200));
        let other = dir.path().join("other");
        std::fs::create_dir_all(&deep).expect("deep");
        std::fs::create_dir_all(&other).expect("other");
        std::fs::write(deep.join("file"), "").expect("file");
        let options = [format!("lowerdir={}:{}", deep.display(), other.display())];
        let mount = mount(&options).expect("overlay");
        rustix::fs::statat(&mount, "file", rustix::fs::AtFlags::empty()).expect("file");
    }

    #[test]
    fn a_missing_layer_is_named() {
        let error = mount(&["lowerdir=/nonexistent-a:/nonexistent-b".to_owned()]);
        let text = error.expect_err("no such layer").to_string();
        assert!(text.contains("nonexistent"), "{text}");
    }
}

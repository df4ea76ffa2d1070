//! Overlays on kernels whose fsconfig(2) takes layers in one short string only
//! (before Linux 6.7).
//!
//! A thread mounts the overlay in a mount namespace of its own with mount(2),
//! which takes a page of options, and takes a detached copy along. Layers are
//! opened in there, because overlayfs takes none of another mount namespace,
//! and named by their descriptors' numbers, so that hundreds of them fit.

use std::{
    fmt, io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
    mount::{OpenTreeFlags, open_tree},
};

use crate::{MountAttr, mount_setattr};

/// What is mounted.
#[derive(Debug, Default)]
pub struct Overlay<'a> {
    /// Directories, the topmost first.
    pub layers: Vec<&'a Path>,
    /// The writable layer and overlayfs's own directory beside it.
    pub upper: Option<(&'a Path, &'a Path)>,
    /// Without a writable layer, one in memory that dies with the mount.
    pub scratch: bool,
    /// Further options of overlayfs, as it spells them.
    pub options: Vec<&'a str>,
    /// MOUNT_ATTR_* bits.
    pub attributes: u64,
}

/// Why it could not be mounted.
#[derive(Debug)]
pub struct OverlayError {
    /// The directory that could not be opened, if it was that.
    pub layer: Option<PathBuf>,
    /// The kernel's reason.
    pub errno: Errno,
}

impl fmt::Display for OverlayError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.layer {
            Some(layer) => write!(f, "open {}: {}", layer.display(), self.errno),
            None => self.errno.fmt(f),
        }
    }
}

impl std::error::Error for OverlayError {}

impl From<Errno> for OverlayError {
    fn from(errno: Errno) -> Self {
        Self { layer: None, errno }
    }
}

impl From<nix::Error> for OverlayError {
    fn from(errno: nix::Error) -> Self {
        Errno::from_raw_os_error(errno as i32).into()
    }
}

impl From<OverlayError> for io::Error {
    fn from(error: OverlayError) -> Self {
        match error.layer {
            Some(_) => Self::new(io::Error::from(error.errno).kind(), error),
            None => error.errno.into(),
        }
    }
}

impl Overlay<'_> {
    /// Mounts it, attached nowhere. Blocks for the kernel's time.
    ///
    /// # Errors
    /// A layer that cannot be opened, or what the kernel has against them.
    pub fn mount(&self) -> Result<OwnedFd, OverlayError> {
        let thread = std::thread::Builder::new().name("knarr-overlay".to_owned());
        std::thread::scope(|scope| {
            let work = thread
                .spawn_scoped(scope, || self.mount_here())
                .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::AGAIN))?;
            work.join().unwrap_or_else(|_| Err(Errno::IO.into()))
        })
    }

    fn mount_here(&self) -> Result<OwnedFd, OverlayError> {
        let nothing = None::<&str>;
        // The thread's own view of the filesystem; it ends with the thread.
        unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS)?;
        mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing)?;
        let mut open = Vec::new();
        let mut data = self.options(&mut open)?;
        // What is made here is seen by nobody else.
        mount(Some("tmpfs"), "/dev", Some("tmpfs"), MsFlags::empty(), nothing)?;
        for dir in ["/dev/upper", "/dev/work", "/dev/merged"] {
            rustix::fs::mkdir(dir, 0o755.into())?;
        }
        if self.scratch && self.upper.is_none() {
            data.push_str(",upperdir=/dev/upper,workdir=/dev/work");
        }
        rustix::process::chdir("/proc/thread-self/fd")?;
        let kind = Some("overlay");
        mount(kind, "/dev/merged", kind, MsFlags::empty(), Some(data.as_str()))?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let merged = open_tree(rustix::fs::CWD, "/dev/merged", flags)?;
        let private = 1 << 18; // MS_PRIVATE
        mount_setattr(merged.as_fd(), false, &MountAttr::new(self.attributes, 0, private))?;
        Ok(merged)
    }

    /// The options with directories as numbers; `open` holds them.
    fn options(&self, open: &mut Vec<OwnedFd>) -> Result<String, OverlayError> {
        let mut number = |dir: &Path| -> Result<String, OverlayError> {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let fd = rustix::fs::open(dir, flags, Mode::empty())
                .map_err(|errno| OverlayError { layer: Some(dir.to_owned()), errno })?;
            let number = fd.as_raw_fd().to_string();
            open.push(fd);
            Ok(number)
        };
        let layers =
            self.layers.iter().map(|dir| number(dir)).collect::<Result<Vec<_>, _>>()?.join(":");
        let mut data = format!("lowerdir={layers}");
        if let Some((upper, work)) = self.upper {
            data.push_str(&format!(",upperdir={},workdir={}", number(upper)?, number(work)?));
        }
        for option in &self.options {
            data.push(',');
            data.push_str(option);
        }
        Ok(data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn i18_five_hundred_layers_are_mounted() {
        let dir = tempfile::tempdir().expect("tempdir");
        // Long names, so that all of them would not fit in a page by far.
        let name = "l".repeat(180);
        let layers: Vec<PathBuf> = (0..500)
            .map(|number| {
                let layer = dir.path().join(format!("{name}{number}"));
                std::fs::create_dir(&layer).expect("layer");
                std::fs::write(layer.join(format!("f{number}")), "").expect("file");
                layer
            })
            .collect();
        let (upper, work) = (dir.path().join("upper"), dir.path().join("work"));
        for one in [&upper, &work] {
            std::fs::create_dir(one).expect("dir");
        }
        let layers: Vec<&Path> = layers.iter().map(PathBuf::as_path).collect();
        let writable = Overlay {
            layers: layers.clone(),
            upper: Some((&upper, &work)),
            attributes: MountAttr::NODEV,
            ..Overlay::default()
        };
        let read_only =
            Overlay { layers: layers.clone(), attributes: MountAttr::RDONLY, ..Overlay::default() };
        for overlay in [writable, read_only] {
            let mount = overlay.mount().expect("overlay");
            for number in [0, 250, 499] {
                rustix::fs::statat(&mount, format!("f{number}"), rustix::fs::AtFlags::empty())
                    .expect("a file of each layer");
            }
        }
    }

    #[test]
    fn mount_points_can_be_made_in_memory_and_a_missing_layer_is_named() {
        let dir = tempfile::tempdir().expect("tempdir");
        let overlay = Overlay { layers: vec![dir.path()], scratch: true, ..Overlay::default() };
        let mount = overlay.mount().expect("overlay");
        rustix::fs::mkdirat(&mount, "proc", 0o755.into()).expect("a mount point");
        assert!(!dir.path().join("proc").exists());
        let missing = Path::new("/nonexistent");
        let error = Overlay { layers: vec![missing], ..Overlay::default() }.mount();
        let error = error.expect_err("no such layer");
        assert_eq!((error.layer.as_deref(), error.errno), (Some(missing), Errno::NOENT));
    }
}

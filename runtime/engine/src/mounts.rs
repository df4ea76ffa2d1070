//! What a container's mounts become: kept with its row, shown by inspect,
//! resolved to paths at each start.

use std::path::{Path, PathBuf};

use knarr_model::{MountKind, MountSpec, Propagation};
use serde::{Deserialize, Serialize};

use crate::{Error, Result, oci, view::MountView};

/// A mount with everything that was decided at `create`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoredMount {
    pub(crate) target: PathBuf,
    pub(crate) read_only: bool,
    pub(crate) kind: StoredKind,
}

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub(crate) enum StoredKind {
    /// A path of the host.
    Bind {
        source: PathBuf,
        create_source: bool,
        propagation: Propagation,
        recursive: bool,
        /// Containers of before it was asked have it from the default, which is Docker's.
        #[serde(default)]
        read_only_shallow: bool,
    },
    /// A volume that exists.
    Volume { name: String, subpath: Option<PathBuf>, copy_up: bool, anonymous: bool },
    /// Memory.
    Tmpfs { options: Vec<String> },
}

impl StoredMount {
    /// As `inspect` shows it; `data` finds a volume's directory.
    pub(crate) fn view(&self, data: impl Fn(&str) -> PathBuf) -> MountView {
        let mut view = MountView {
            kind: String::new(),
            name: None,
            source: PathBuf::new(),
            target: self.target.clone(),
            driver: String::new(),
            read_only: self.read_only,
            propagation: String::new(),
            anonymous: false,
        };
        match &self.kind {
            StoredKind::Bind { source, propagation, .. } => {
                view.kind = "bind".into();
                view.source.clone_from(source);
                view.propagation = oci::propagation_word(*propagation).into();
            }
            StoredKind::Volume { name, anonymous, .. } => {
                view.kind = "volume".into();
                view.name = Some(name.clone());
                view.source = data(name);
                view.driver = "local".into();
                view.anonymous = *anonymous;
            }
            StoredKind::Tmpfs { .. } => view.kind = "tmpfs".into(),
        }
        view
    }

    /// The same for another container (`--volumes-from`), which sees of it what this one does;
    /// none where it is this one's own memory.
    pub(crate) fn shared(&self) -> Option<MountSpec> {
        let kind = match &self.kind {
            StoredKind::Bind { source, propagation, recursive, read_only_shallow, .. } => {
                MountKind::Bind {
                    source: source.clone(),
                    create_source: false,
                    propagation: *propagation,
                    recursive: *recursive,
                    read_only_shallow: *read_only_shallow,
                }
            }
            StoredKind::Volume { name, subpath, .. } => MountKind::Volume {
                name: Some(name.clone()),
                copy_up: false,
                subpath: subpath.clone(),
                labels: Default::default(),
                options: Default::default(),
            },
            StoredKind::Tmpfs { .. } => return None,
        };
        Some(MountSpec { target: self.target.clone(), read_only: self.read_only, kind })
    }
}

/// The mount options of a tmpfs request.
pub(crate) fn tmpfs_options(
    size: Option<u64>,
    mode: Option<u32>,
    further: &[String],
) -> Vec<String> {
    let mut options = further.to_vec();
    if let Some(size) = size {
        options.push(format!("size={size}"));
    }
    if let Some(mode) = mode {
        options.push(format!("mode={mode:o}"));
    } else if !further.iter().any(|option| option.starts_with("mode=")) {
        options.push("mode=1777".into());
    }
    options
}

/// Checks what a request and its image say about mounts: absolute targets without `..`, none
/// twice, none over what the kernel shows (CATALOGUE R05), but where it is the user who binds
/// the host's own there. Where links of the image lead a target to is knarr-init's to see.
pub(crate) fn check(mounts: &[MountSpec], wasm: bool) -> Result<()> {
    let mut seen = std::collections::BTreeSet::new();
    for mount in mounts {
        let target = &mount.target;
        let shown = target.display();
        if !target.is_absolute() {
            return Err(Error::invalid(format!(
                "invalid mount config for type \"{}\": invalid mount path: '{shown}' mount path must be absolute",
                word(&mount.kind)
            )));
        }
        if target.components().any(|part| part.as_os_str() == "..") {
            return Err(Error::invalid(format!(
                "invalid mount path: '{shown}' must not contain '..'"
            )));
        }
        if target == Path::new("/") {
            return Err(Error::invalid(format!(
                "invalid specification: destination can't be '{shown}'"
            )));
        }
        let of_kernel = ["/proc", "/sys", "/dev"].iter().any(|dir| target.starts_with(dir));
        let bind = matches!(mount.kind, MountKind::Bind { .. });
        let whole = target.starts_with("/proc") || target.components().count() == 2;
        // A Wasm container has none of them, and so no place to put anything.
        if of_kernel && (wasm || whole && !bind) {
            return Err(Error::invalid(format!(
                "invalid mount path: '{shown}' cannot be mounted because it is the kernel's own"
            )));
        }
        if !seen.insert(target.as_path()) {
            return Err(Error::invalid(format!("Duplicate mount point: {shown}")));
        }
        if let MountKind::Bind { source, .. } = &mount.kind
            && !source.is_absolute()
        {
            return Err(Error::invalid(format!(
                "invalid mount config for type \"bind\": invalid mount path: '{}' mount path must be absolute",
                source.display()
            )));
        }
    }
    Ok(())
}

/// Whether the device files that a bind shows are the host's own: its source is `/dev`, lies in
/// it or has it beneath, or is a device. They stay devices in the container, to be opened as far as
/// its cgroup lets it; everywhere else a device file is what somebody has put there.
pub(crate) fn shows_devices(source: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt as _;
    let Ok(path) = source.canonicalize() else { return false };
    let device = |kind: std::fs::FileType| kind.is_char_device() || kind.is_block_device();
    path == Path::new("/")
        || path.starts_with("/dev")
        || path.metadata().is_ok_and(|metadata| device(metadata.file_type()))
}

fn word(kind: &MountKind) -> &'static str {
    match kind {
        MountKind::Bind { .. } => "bind",
        MountKind::Volume { .. } => "volume",
        MountKind::Tmpfs { .. } => "tmpfs",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tmpfs(target: &str) -> MountSpec {
        MountSpec {
            target: target.into(),
            read_only: false,
            kind: MountKind::Tmpfs { size: None, mode: None, options: Vec::new() },
        }
    }

    #[test]
    fn r05_mounts_over_the_kernels_own_are_refused() {
        for bad in ["/proc", "/proc/sys", "/sys", "/dev", "/", "relative", "/a/../proc"] {
            assert!(check(&[tmpfs(bad)], false).is_err(), "{bad}");
        }
        assert!(check(&[tmpfs("/data"), tmpfs("/data")], false).is_err());
        assert!(check(&[tmpfs("/data"), tmpfs("/dev/shm"), tmpfs("/tmp")], false).is_ok());
        assert!(check(&[tmpfs("/dev/shm")], true).is_err());
        // Docker lets the user bind the host's own; an image's volume is no bind.
        for own in ["/proc", "/sys", "/dev", "/proc/meminfo", "/sys/fs/cgroup", "/dev/fuse"] {
            let bind = MountSpec {
                kind: MountKind::Bind {
                    source: own.into(),
                    create_source: false,
                    propagation: Propagation::Rprivate,
                    recursive: true,
                    read_only_shallow: false,
                },
                ..tmpfs(own)
            };
            assert!(check(std::slice::from_ref(&bind), false).is_ok(), "{own}");
            assert!(check(&[bind], true).is_err(), "{own}");
        }
    }

    #[test]
    fn volumes_from_another_are_as_they_are_there() {
        let bind = StoredMount {
            target: "/bound".into(),
            read_only: true,
            kind: StoredKind::Bind {
                source: "/srv".into(),
                create_source: true,
                propagation: Propagation::Rslave,
                recursive: false,
                read_only_shallow: true,
            },
        };
        let shared = bind.shared().expect("a bind");
        assert_eq!((shared.target.as_path(), shared.read_only), (Path::new("/bound"), true));
        let MountKind::Bind { source, create_source, propagation, recursive, read_only_shallow } =
            shared.kind
        else {
            panic!("a bind")
        };
        assert_eq!((source.as_path(), create_source), (Path::new("/srv"), false));
        assert_eq!((propagation, recursive), (Propagation::Rslave, false));
        assert!(read_only_shallow);
        let part = StoredMount {
            target: "/part".into(),
            read_only: false,
            kind: StoredKind::Volume {
                name: "v".into(),
                subpath: Some("a/b".into()),
                copy_up: true,
                anonymous: false,
            },
        };
        let MountKind::Volume { name, subpath, copy_up, .. } = part.shared().expect("it").kind
        else {
            panic!("a volume")
        };
        assert_eq!((name.as_deref(), copy_up), (Some("v"), false));
        assert_eq!(subpath.as_deref(), Some(Path::new("a/b")), "no more of it than there");
        let memory = StoredMount { kind: StoredKind::Tmpfs { options: Vec::new() }, ..part };
        assert_eq!(memory.shared(), None);
    }

    #[test]
    fn tmpfs_gets_dockers_mode() {
        assert_eq!(tmpfs_options(Some(4096), None, &[]), ["size=4096", "mode=1777"]);
        assert_eq!(tmpfs_options(None, Some(0o700), &["exec".into()]), ["exec", "mode=700"]);
    }
}

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
    Bind { source: PathBuf, create_source: bool, propagation: Propagation, recursive: bool },
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

/// Checks what a request says about its mounts: absolute targets without `..`,
/// none twice, none over what the kernel shows (RELIABILITY R05).
pub(crate) fn check(mounts: &[MountSpec]) -> Result<()> {
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
        let below_proc = target.starts_with("/proc");
        if below_proc || target == Path::new("/sys") || target == Path::new("/dev") {
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
            assert!(check(&[tmpfs(bad)]).is_err(), "{bad}");
        }
        assert!(check(&[tmpfs("/data"), tmpfs("/data")]).is_err());
        assert!(check(&[tmpfs("/data"), tmpfs("/dev/shm"), tmpfs("/tmp")]).is_ok());
    }

    #[test]
    fn tmpfs_gets_dockers_mode() {
        assert_eq!(tmpfs_options(Some(4096), None, &[]), ["size=4096", "mode=1777"]);
        assert_eq!(tmpfs_options(None, Some(0o700), &["exec".into()]), ["exec", "mode=700"]);
    }
}

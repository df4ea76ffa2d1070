//! Binds, mounts, tmpfs, anonymous volumes.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use knarr_docker::{ContainerConfig, HostConfig, Mount};
use knarr_model::{ContainerSpec, MountKind, MountSpec, Name, Propagation};

use super::parse_size;
use crate::error::{ApiError, Result};

pub(super) fn apply(
    config: &ContainerConfig,
    host: &HostConfig,
    spec: &mut ContainerSpec,
) -> Result<()> {
    if !matches!(host.volume_driver.as_str(), "" | "local") {
        return Err(no_driver(&host.volume_driver));
    }
    for bind in host.binds.iter().flatten() {
        spec.mounts.push(parse_bind(bind)?);
    }
    for mount in host.mounts.iter().flatten() {
        spec.mounts.push(parse_mount(mount)?);
    }
    for (target, options) in host.tmpfs.iter().flatten() {
        spec.mounts.push(parse_tmpfs(target, options)?);
    }
    let mut targets = BTreeSet::new();
    for mount in &spec.mounts {
        if !targets.insert(&mount.target) {
            return Err(ApiError::invalid(format!(
                "Duplicate mount point: {}",
                mount.target.display()
            )));
        }
    }
    for (path, _) in config.volumes.iter().flatten() {
        // Old clients write binds here, too.
        match path.contains(':') {
            true => spec.mounts.push(parse_bind(path)?),
            false => {
                spec.anonymous_volumes.insert(target(path, path)?);
            }
        }
    }
    let taken: BTreeSet<PathBuf> = spec.mounts.iter().map(|mount| mount.target.clone()).collect();
    spec.anonymous_volumes.retain(|path| !taken.contains(path));
    spec.read_only_rootfs = host.readonly_rootfs;
    Ok(())
}

fn no_driver(name: &str) -> ApiError {
    ApiError::not_found(format!(
        "error looking up volume plugin {name}: plugin \"{name}\" not found"
    ))
}

/// The path without `.`, `..` and doubled slashes, by its letters alone.
pub(crate) fn clean(path: &str) -> PathBuf {
    let mut cleaned = PathBuf::from("/");
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                cleaned.pop();
            }
            part => cleaned.push(part),
        }
    }
    cleaned
}

/// A mount's place in the container: absolute and not the root.
fn target(path: &str, whole: &str) -> Result<PathBuf> {
    if !path.starts_with('/') {
        return Err(ApiError::invalid(format!(
            "invalid volume specification: '{whole}': invalid mount path: '{path}' mount path must be absolute"
        )));
    }
    let cleaned = clean(path);
    if cleaned == Path::new("/") {
        return Err(ApiError::invalid(format!(
            "invalid volume specification: '{whole}': invalid specification: destination can't be '/'"
        )));
    }
    Ok(cleaned)
}

/// `source:target[:mode]` or `target`.
pub(crate) fn parse_bind(text: &str) -> Result<MountSpec> {
    let bad = || ApiError::invalid(format!("invalid volume specification: '{text}'"));
    let parts: Vec<&str> = text.split(':').collect();
    let (source, path, mode) = match parts[..] {
        [path] => (None, path, ""),
        [source, path] => (Some(source), path, ""),
        [source, path, mode] => (Some(source), path, mode),
        _ => return Err(bad()),
    };
    if source.is_some_and(str::is_empty) || path.is_empty() {
        return Err(bad());
    }
    let target = target(path, text)?;
    let options =
        Mode::parse(mode).ok_or_else(|| ApiError::invalid(format!("invalid mode: {mode}")))?;
    let kind = match source {
        Some(source) if source.starts_with('/') => {
            if options.no_copy {
                return Err(ApiError::invalid(format!("invalid mode: {mode}")));
            }
            MountKind::Bind {
                source: clean(source),
                create_source: true,
                propagation: options.propagation.unwrap_or_default(),
                recursive: true,
                read_only_shallow: false,
            }
        }
        source => {
            if options.propagation.is_some() {
                return Err(ApiError::invalid(format!("invalid mode: {mode}")));
            }
            MountKind::Volume {
                name: source.map(volume_name).transpose()?,
                copy_up: !options.no_copy,
                subpath: None,
                labels: Default::default(),
                options: Default::default(),
            }
        }
    };
    Ok(MountSpec { target, read_only: options.read_only, kind })
}

/// A volume's name, with Docker's hint for those who meant a path.
pub(crate) fn volume_name(text: &str) -> Result<String> {
    match text.parse::<Name>() {
        Ok(name) if text.len() > 1 => Ok(name.to_string()),
        Ok(_) => Err(ApiError::invalid(
            "volume name is too short, names should be at least two alphanumeric characters",
        )),
        Err(_) => {
            let shown: String = text.chars().take(80).collect();
            Err(ApiError::invalid(format!(
                "create {shown}: \"{shown}\" includes invalid characters for a local volume name, only \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. If you intended to pass a host directory, use absolute path"
            )))
        }
    }
}

/// What stands behind the second colon.
#[derive(Default)]
struct Mode {
    read_only: bool,
    no_copy: bool,
    propagation: Option<Propagation>,
}

impl Mode {
    fn parse(text: &str) -> Option<Self> {
        let mut mode = Self::default();
        let mut access = false;
        for word in text.split(',').filter(|_| !text.is_empty()) {
            match word {
                "ro" | "rw" if !access => {
                    access = true;
                    mode.read_only = word == "ro";
                }
                "nocopy" => mode.no_copy = true,
                // SELinux relabelling, where there is no SELinux; macOS caching.
                "z" | "Z" | "cached" | "delegated" | "consistent" | "default" => {}
                word if mode.propagation.is_none() => mode.propagation = Some(propagation(word)?),
                _ => return None,
            }
        }
        Some(mode)
    }
}

fn propagation(word: &str) -> Option<Propagation> {
    Some(match word {
        "private" => Propagation::Private,
        "rprivate" => Propagation::Rprivate,
        "shared" => Propagation::Shared,
        "rshared" => Propagation::Rshared,
        "slave" => Propagation::Slave,
        "rslave" => Propagation::Rslave,
        _ => return None,
    })
}

/// `--mount`.
fn parse_mount(mount: &Mount) -> Result<MountSpec> {
    let bad = |why: &str| {
        ApiError::invalid(format!("invalid mount config for type \"{}\": {why}", mount.kind))
    };
    let extra = |name: &str| bad(&format!("field {name} must not be specified"));
    if mount.target.is_empty() {
        return Err(bad("field Target must not be empty"));
    }
    if !mount.target.starts_with('/') {
        return Err(bad(&format!(
            "invalid mount path: '{}' mount path must be absolute",
            mount.target
        )));
    }
    let target = clean(&mount.target);
    if target == Path::new("/") {
        return Err(bad("invalid specification: destination can't be '/'"));
    }
    let kind = match mount.kind.as_str() {
        "bind" => {
            if mount.source.is_empty() {
                return Err(bad("field Source must not be empty"));
            }
            if !mount.source.starts_with('/') {
                return Err(bad(&format!(
                    "invalid mount path: '{}' mount path must be absolute",
                    mount.source
                )));
            }
            if mount.volume_options.is_some() {
                return Err(extra("VolumeOptions"));
            }
            let options = mount.bind_options.clone().unwrap_or_default();
            let propagation = match options.propagation.as_str() {
                "" => Propagation::default(),
                word => propagation(word)
                    .ok_or_else(|| bad(&format!("invalid propagation mode: {word}")))?,
            };
            if options.read_only_non_recursive && options.read_only_force_recursive {
                // moby's words (`daemon/oci_linux.go`).
                return Err(bad(
                    "mount options conflict: ReadOnlyNonRecursive && ReadOnlyForceRecursive",
                ));
            }
            MountKind::Bind {
                source: clean(&mount.source),
                create_source: options.create_mountpoint,
                propagation,
                recursive: !options.non_recursive,
                // The kernels that we run on can always be forced.
                read_only_shallow: options.read_only_non_recursive,
            }
        }
        "volume" => {
            if mount.bind_options.is_some() {
                return Err(extra("BindOptions"));
            }
            let options = mount.volume_options.clone().unwrap_or_default();
            let driver = options.driver_config.unwrap_or_default();
            if !matches!(driver.name.as_str(), "" | "local") {
                return Err(no_driver(&driver.name));
            }
            let subpath =
                Some(PathBuf::from(&options.subpath)).filter(|p| !p.as_os_str().is_empty());
            if let Some(path) = &subpath {
                let inside =
                    path.components().all(|part| matches!(part, std::path::Component::Normal(_)));
                if !inside {
                    return Err(bad("subpath must be a relative path within the volume"));
                }
                if mount.source.is_empty() {
                    return Err(bad("must not set Subpath when using anonymous volumes"));
                }
            }
            let name = Some(mount.source.as_str()).filter(|name| !name.is_empty());
            MountKind::Volume {
                name: name.map(volume_name).transpose()?,
                copy_up: !options.no_copy && subpath.is_none(),
                subpath,
                labels: options.labels.unwrap_or_default(),
                options: driver.options.unwrap_or_default(),
            }
        }
        "tmpfs" => {
            if !mount.source.is_empty() {
                return Err(extra("Source"));
            }
            let options = mount.tmpfs_options.clone().unwrap_or_default();
            let size =
                u64::try_from(options.size_bytes).map_err(|_| bad("size must not be negative"))?;
            MountKind::Tmpfs {
                size: Some(size).filter(|size| *size > 0),
                mode: Some(options.mode & 0o7777).filter(|mode| *mode > 0),
                options: options
                    .options
                    .unwrap_or_default()
                    .iter()
                    .map(|words| tmpfs_option(&words.join("=")))
                    .collect::<Result<_>>()?,
            }
        }
        "image" => return Err(ApiError::not_supported("mounting an image")),
        "" => return Err(ApiError::invalid("mount type must not be empty")),
        other => return Err(ApiError::invalid(format!("mount type unknown: {other:?}"))),
    };
    Ok(MountSpec { target, read_only: mount.read_only, kind })
}

/// `--tmpfs path:options`.
fn parse_tmpfs(path: &str, words: &str) -> Result<MountSpec> {
    let target = target(path, path)?;
    let (mut size, mut mode, mut options, mut read_only) = (None, None, Vec::new(), false);
    for word in words.split(',').filter(|word| !word.is_empty()) {
        let bad = || ApiError::invalid(format!("invalid tmpfs option {word:?}"));
        match word.split_once('=') {
            Some(("size", value)) if value.ends_with('%') => options.push(tmpfs_option(word)?),
            Some(("size", value)) => size = Some(parse_size(value).ok_or_else(bad)?),
            Some(("mode", value)) => {
                let bits = u32::from_str_radix(value, 8).ok().filter(|bits| *bits <= 0o7777);
                mode = Some(bits.ok_or_else(bad)?);
            }
            _ if word == "ro" => read_only = true,
            _ => options.push(tmpfs_option(word)?),
        }
    }
    Ok(MountSpec { target, read_only, kind: MountKind::Tmpfs { size, mode, options } })
}

/// Options that moby lets through (`pkg/mount` `ValidateTmpfsMountOptions`).
fn tmpfs_option(word: &str) -> Result<String> {
    const FLAGS: [&str; 34] = [
        "defaults",
        "ro",
        "rw",
        "suid",
        "nosuid",
        "dev",
        "nodev",
        "exec",
        "noexec",
        "sync",
        "async",
        "dirsync",
        "remount",
        "mand",
        "nomand",
        "atime",
        "noatime",
        "diratime",
        "nodiratime",
        "bind",
        "rbind",
        "unbindable",
        "runbindable",
        "private",
        "rprivate",
        "shared",
        "rshared",
        "slave",
        "rslave",
        "relatime",
        "norelatime",
        "strictatime",
        "nostrictatime",
        "default",
    ];
    const VALUES: [&str; 6] = ["mode", "uid", "gid", "size", "nr_inodes", "nr_blocks"];
    let known = match word.split_once('=') {
        Some((key, value)) => {
            VALUES.contains(&key) && value.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'%')
        }
        None => FLAGS.contains(&word),
    };
    match known {
        true => Ok(word.to_owned()),
        false => Err(ApiError::invalid(format!("invalid tmpfs option [{word:?}]"))),
    }
}

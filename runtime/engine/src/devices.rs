//! Devices of the host that a container gets.

use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use knarr_model::ContainerSpec;

use crate::{Error, Result, oci::Device};

/// The devices of a request; all of the host's for a privileged container.
pub(crate) fn resolve(spec: &ContainerSpec) -> Result<Vec<Device>> {
    let mut all = Vec::new();
    if spec.security.privileged {
        collect(Path::new("/dev"), &mut all);
    }
    for request in &spec.devices {
        if request.access.is_empty() || !request.access.bytes().all(|c| b"rwm".contains(&c)) {
            return Err(Error::invalid(format!("invalid device mode: {}", request.access)));
        }
        let metadata = fs::metadata(&request.host).map_err(|error| {
            Error::invalid(format!(
                "error gathering device information while adding custom device \"{}\": {}",
                request.host.display(),
                if error.kind() == std::io::ErrorKind::NotFound {
                    "no such file or directory".into()
                } else {
                    error.to_string()
                }
            ))
        })?;
        if metadata.is_dir() {
            let mut below = Vec::new();
            collect(&request.host, &mut below);
            for mut device in below {
                let rest = device
                    .path
                    .strip_prefix(&request.host)
                    .map(Path::to_path_buf)
                    .unwrap_or_default();
                device.path = request.container.join(rest);
                device.access.clone_from(&request.access);
                all.push(device);
            }
            continue;
        }
        let device = describe(&metadata, request.container.clone(), &request.access).ok_or_else(|| {
            Error::invalid(format!(
                "error gathering device information while adding custom device \"{}\": not a device node",
                request.host.display()
            ))
        })?;
        all.push(device);
    }
    Ok(all)
}

fn describe(metadata: &fs::Metadata, path: PathBuf, access: &str) -> Option<Device> {
    let kind = if metadata.file_type().is_char_device() {
        'c'
    } else if metadata.file_type().is_block_device() {
        'b'
    } else {
        return None;
    };
    Some(Device {
        path,
        kind,
        major: rustix::fs::major(metadata.rdev()),
        minor: rustix::fs::minor(metadata.rdev()),
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        access: access.to_owned(),
    })
}

/// The nodes below a directory, less what a container has of its own
/// (moby and runc leave out the same directories).
fn collect(root: &Path, all: &mut Vec<Device>) {
    let mut pending = vec![root.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            let path = entry.path();
            let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
            let name = entry.file_name();
            if metadata.is_dir() {
                let own = ["pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev"];
                if !own.iter().any(|own| name == *own) {
                    pending.push(path);
                }
            } else if name != "console" && name != "ptmx" {
                all.extend(describe(&metadata, path, "rwm"));
            }
        }
    }
}

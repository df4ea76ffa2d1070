//! A container's cgroup without its shim: ended and removed by path.
//!
//! The shim does this while it lives. The engine must be able to when it does
//! not: `path` is below the mount point of every hierarchy (cgroups(7)).

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

const MOUNT: &str = "/sys/fs/cgroup";
/// S2: detected and killed within two seconds.
const PATIENCE: Duration = Duration::from_millis(1500);

/// The directories of a cgroup in all hierarchies that have it.
fn directories(path: &str) -> Vec<PathBuf> {
    let relative = path.trim_start_matches('/');
    // Never a hierarchy's own root, whatever a row says.
    if relative.is_empty() || relative.split('/').any(|part| part == ".." || part.is_empty()) {
        return Vec::new();
    }
    let root = Path::new(MOUNT);
    let mut all = Vec::new();
    if root.join("cgroup.controllers").exists() {
        all.push(root.join(relative));
    } else {
        let mut seen = BTreeSet::new();
        for entry in fs::read_dir(root).into_iter().flatten().flatten() {
            // `cpu` and `cpuacct` are links to one hierarchy.
            let Ok(hierarchy) = entry.path().canonicalize() else { continue };
            if seen.insert(hierarchy.clone()) {
                all.push(hierarchy.join(relative));
            }
        }
    }
    all.retain(|directory| directory.is_dir());
    all
}

fn processes(directory: &Path) -> Vec<i32> {
    let mut all: Vec<i32> = fs::read_to_string(directory.join("cgroup.procs"))
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.parse().ok())
        .collect();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            all.extend(processes(&entry.path()));
        }
    }
    all
}

/// Ends everything in it, and answers whether it is empty now. Blocks.
pub(crate) fn kill(path: &str) -> bool {
    let directories = directories(path);
    let begun = Instant::now();
    loop {
        let mut left = BTreeSet::new();
        for directory in &directories {
            // v2 does it at once, and nothing can fork away.
            let _ = fs::write(directory.join("cgroup.kill"), "1");
            let _ = fs::write(directory.join("cgroup.freeze"), "0");
            left.extend(processes(directory));
        }
        for pid in &left {
            if let Some(pid) = rustix::process::Pid::from_raw(*pid) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        for directory in &directories {
            // v1: frozen processes die only when they thaw.
            let _ = fs::write(directory.join("freezer.state"), "THAWED");
        }
        if left.is_empty() {
            return true;
        }
        if begun.elapsed() > PATIENCE {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Removes it from all hierarchies; success where it is not there.
pub(crate) fn remove(path: &str) -> io::Result<()> {
    let mut failure = None;
    for directory in directories(path) {
        if let Err(error) = remove_tree(&directory) {
            failure = Some(error);
        }
    }
    failure.map_or(Ok(()), Err)
}

/// Removes it from all hierarchies where nothing is below it. The kernel
/// refuses otherwise, so this can go wrong at no time.
pub(crate) fn remove_empty(path: &str) {
    for directory in directories(path) {
        let _ = fs::remove_dir(directory);
    }
}

fn remove_tree(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)?.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    match fs::remove_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hierarchys_root_is_never_touched() {
        for bad in ["", "/", "/knarr/../..", "knarr//x", "/.."] {
            assert!(directories(bad).is_empty(), "{bad}");
        }
    }
}

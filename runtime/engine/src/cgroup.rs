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

use knarr_model::task::InitRecord;
use knarr_sys::HeldProcess;

const MOUNT: &str = "/sys/fs/cgroup";
/// SIGKILL.
const KILL: i32 = 9;
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

/// Ends everything in it, and the container's first process wherever that has moved
/// itself; answers whether all of them are dead. Blocks.
pub(crate) fn kill(path: &str, first: Option<&InitRecord>) -> bool {
    let directories = directories(path);
    let begun = Instant::now();
    // An empty group says nothing of a process that left it.
    let held = first.map(|first| HeldProcess::of(first.pid, first.start_time));
    let (held, unknown) = match held {
        Some(Ok(held)) => (held, false),
        Some(Err(_)) => (None, true),
        None => (None, false),
    };
    let members = || -> io::Result<Vec<u32>> {
        let mut all = Vec::new();
        for directory in &directories {
            all.extend(knarr_sys::members(directory)?);
        }
        Ok(all)
    };
    loop {
        if let Some(held) = &held {
            let _ = held.kill();
        }
        for directory in &directories {
            // v2 does it at once, and nothing can fork away.
            let _ = fs::write(directory.join("cgroup.kill"), "1");
            let _ = fs::write(directory.join("cgroup.freeze"), "0");
        }
        let _ = knarr_sys::signal_members(members, KILL);
        for directory in &directories {
            // v1: frozen processes die only when they thaw.
            let _ = fs::write(directory.join("freezer.state"), "THAWED");
        }
        if members().is_ok_and(|all| all.is_empty())
            && held.as_ref().is_none_or(HeldProcess::has_ended)
        {
            return !unknown;
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
    let mut outcome = Ok(());
    // Those below go first; the last word is the group's own.
    for group in knarr_sys::groups(directory).iter().rev() {
        outcome = match fs::remove_dir(group) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        };
    }
    outcome
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

//! What the host holds, for before-and-after comparison.

use std::{collections::BTreeSet, fs, path::Path, process::Command};

/// Everything that a container could leave behind on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inventory {
    /// Mount points of this mount namespace.
    pub mounts: BTreeSet<String>,
    /// Network interfaces of this network namespace.
    pub links: BTreeSet<String>,
    /// Cgroups below any `knarr` directory whose name is one of `ids`.
    pub cgroups: BTreeSet<String>,
    /// Elements of the packet filter's sets and maps, one line each.
    pub rules: BTreeSet<String>,
    /// Files below the exec root, without the daemon's own.
    pub run_files: BTreeSet<String>,
}

impl Inventory {
    /// Takes stock once the kernel has removed the interfaces of namespaces that
    /// are gone, which it does in its own time; gives up waiting after a while.
    pub fn settled(exec_root: &Path, ids: &[String]) -> Self {
        let began = std::time::Instant::now();
        loop {
            let found = Self::take(exec_root, ids);
            let pending = found.links.iter().any(|link| link.starts_with("kv"));
            if !pending || began.elapsed().as_secs() > 10 {
                return found;
            }
        }
    }

    /// Takes stock; `ids` are the containers whose cgroups count.
    pub fn take(exec_root: &Path, ids: &[String]) -> Self {
        Self {
            mounts: mounts(),
            links: links(),
            cgroups: cgroups(ids),
            rules: rules(),
            run_files: run_files(exec_root),
        }
    }
}

fn mounts() -> BTreeSet<String> {
    let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap_or_default();
    table.lines().filter_map(|line| Some(line.split(' ').nth(4)?.to_owned())).collect()
}

fn output(program: &str, args: &[&str]) -> String {
    Command::new(program)
        .args(args)
        .output()
        .map(|out| String::from_utf8_lossy(&out.stdout).into_owned())
        .unwrap_or_default()
}

fn links() -> BTreeSet<String> {
    output("ip", &["-o", "link"])
        .lines()
        .filter_map(|line| Some(line.split(": ").nth(1)?.split('@').next()?.to_owned()))
        .collect()
}

fn rules() -> BTreeSet<String> {
    output("nft", &["list", "ruleset"]).lines().map(|line| line.trim().to_owned()).collect()
}

fn cgroups(ids: &[String]) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let Ok(hierarchies) = fs::read_dir("/sys/fs/cgroup") else { return found };
    for hierarchy in hierarchies.flatten() {
        for parent in [hierarchy.path(), hierarchy.path().join("knarr")] {
            for id in ids {
                let path = parent.join(id);
                if path.is_dir() {
                    found.insert(path.display().to_string());
                }
            }
        }
    }
    found
}

fn run_files(exec_root: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let containers = exec_root.join("containers");
    for entry in fs::read_dir(containers).into_iter().flatten().flatten() {
        found.insert(entry.file_name().to_string_lossy().into_owned());
    }
    found
}

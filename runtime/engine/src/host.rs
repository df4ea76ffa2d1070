//! What the engine reads of the host, once, when it opens.

use std::{fs, path::Path, sync::OnceLock};

use knarr_sys::read;

use crate::{oci::Host, seccomp, view::Info};

/// What the specification's generator must know.
pub(crate) fn probe() -> Host {
    let thermal = fs::read_dir("/sys/devices/system/cpu")
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| {
            entry.file_name().to_str().is_some_and(|name| {
                name.strip_prefix("cpu").is_some_and(|n| n.bytes().all(|c| c.is_ascii_digit()))
            })
        })
        .map(|entry| entry.path().join("thermal_throttle"))
        .filter(|path| path.exists())
        .map(|path| path.display().to_string())
        .collect();
    let last_capability = read::text("/proc/sys/kernel/cap_last_cap", read::SMALL)
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or_default();
    Host {
        kernel: seccomp::version(&kernel()).unwrap_or_default(),
        thermal,
        swap_limit: swap_limit(),
        last_capability,
        lacking: lacking(),
        apparmor: apparmor(),
    }
}

/// Whether the kernel confines by AppArmor profiles.
pub(crate) fn apparmor() -> bool {
    read::bytes("/sys/module/apparmor/parameters/enabled", read::SMALL)
        .is_ok_and(|text| text.starts_with(b"Y"))
}

/// Complement of this process's bounding set (proc_pid_status(5)).
fn lacking() -> u64 {
    read::text("/proc/self/status", read::SMALL)
        .ok()
        .and_then(|text| {
            let line = text.lines().find_map(|line| line.strip_prefix("CapBnd:"))?;
            u64::from_str_radix(line.trim(), 16).ok()
        })
        .map_or(0, |bounding| !bounding)
}

pub(crate) fn kernel() -> String {
    first_line("/proc/sys/kernel/osrelease")
}

fn first_line(path: &str) -> String {
    read::text(path, read::SMALL).map(|text| text.trim().to_owned()).unwrap_or_default()
}

/// 2 where the unified hierarchy is all there is.
pub(crate) fn cgroup_version() -> u8 {
    if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() { 2 } else { 1 }
}

fn swap_limit() -> bool {
    match cgroup_version() {
        // Part of the memory controller unless the kernel was built without swap.
        2 => Path::new("/proc/swaps").exists(),
        _ => Path::new("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes").exists(),
    }
}

/// Changes with every boot: pids of another boot mean nothing (CATALOGUE K10, K11).
pub(crate) fn boot_id() -> String {
    // Each record of a container asks; no process outlives its boot.
    static BOOT: OnceLock<String> = OnceLock::new();
    BOOT.get_or_init(|| first_line("/proc/sys/kernel/random/boot_id")).clone()
}

/// Memory of the host in bytes.
pub(crate) fn memory() -> u64 {
    read::text("/proc/meminfo", read::SMALL)
        .ok()
        .and_then(|text| {
            let line = text.lines().find(|line| line.starts_with("MemTotal:"))?;
            line.split_whitespace().nth(1)?.parse::<u64>().ok()
        })
        .map_or(0, |kib| kib * 1024)
}

/// CPUs of the host.
pub(crate) fn cpus() -> u32 {
    // What this process may use is what its containers may use.
    std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX))
}

/// CPU time of the host since boot in nanoseconds, idle time included: the sum
/// of the first line of /proc/stat (moby `daemon/stats/collector_unix.go`).
pub(crate) fn cpu_time() -> u64 {
    let Ok(text) = read::text("/proc/stat", read::LIST) else { return 0 };
    let ticks: u64 = text
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(1)
        .take(7)
        .filter_map(|word| word.parse::<u64>().ok())
        .sum();
    ticks * (1_000_000_000 / clock_ticks())
}

/// Ticks a second in /proc: `USER_HZ`, which is 100 on every architecture that
/// Linux has kept since 2.6 but alpha and ia64 (time(7)).
pub(crate) fn clock_ticks() -> u64 {
    100
}

/// The host's part of [`Info`].
pub(crate) fn info() -> Info {
    let os_release = read::text("/etc/os-release", read::SMALL).unwrap_or_default();
    let operating_system = os_release
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="))
        .unwrap_or("Linux")
        .trim_matches('"')
        .to_owned();
    let swap_limit = swap_limit();
    let mut warnings = Vec::new();
    if !swap_limit {
        warnings.push("WARNING: No swap limit support".to_owned());
    }
    Info {
        cgroup_version: cgroup_version(),
        kernel: kernel(),
        hostname: first_line("/proc/sys/kernel/hostname"),
        operating_system,
        cpus: cpus(),
        memory: memory(),
        swap_limit,
        apparmor: apparmor(),
        warnings,
        ..Info::default()
    }
}

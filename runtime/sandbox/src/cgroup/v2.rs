//! cgroup v2: one hierarchy.

use std::{
    fs::File,
    os::fd::AsFd,
    path::Path,
    time::{Duration, Instant},
};

use knarr_model::task::TaskStats;
use oci_spec::runtime::LinuxResources;

use super::{devices, files};
use crate::{Error, Failure};

fn max_or(value: i64) -> String {
    if value < 0 { "max".to_owned() } else { value.to_string() }
}

pub(super) fn limit(dir: &Path, resources: &LinuxResources, devices: bool) -> Result<(), Error> {
    let set = |file: &str, value: &str| files::write(&dir.join(file), value);
    if devices {
        let rules = devices::rules(resources.devices().as_deref().unwrap_or_default());
        let program = knarr_sys::load_device_filter(&devices::compile(&rules))
            .map_err(|errno| Error::system("load device filter", errno))?;
        let group = File::open(dir)
            .map_err(|error| Error::system(format_args!("open {}", dir.display()), error))?;
        knarr_sys::attach_device_filter(group.as_fd(), program.as_fd(), None)
            .map_err(|errno| Error::system("attach device filter", errno))?;
    }
    if let Some(memory) = resources.memory() {
        if let Some(limit) = memory.limit().filter(|bytes| *bytes != 0) {
            set("memory.max", &max_or(limit))?;
        }
        if let Some(swap) = memory.swap().filter(|bytes| *bytes != 0) {
            // OCI counts memory and swap together, v2 swap alone.
            let alone = swap_alone(swap, memory.limit());
            // Without swap in the kernel there is no such file, and nothing to limit.
            if dir.join("memory.swap.max").exists() {
                set("memory.swap.max", &max_or(alone))?;
            }
        }
        if let Some(low) = memory.reservation().filter(|bytes| *bytes != 0) {
            set("memory.low", &max_or(low))?;
        }
    }
    if let Some(cpu) = resources.cpu() {
        if let Some(idle) = cpu.idle() {
            set("cpu.idle", &idle.to_string())?;
        }
        // An idle group has no weight.
        let shares = cpu.shares().filter(|shares| *shares != 0);
        if let Some(shares) = shares.filter(|_| cpu.idle().unwrap_or(0) == 0) {
            set("cpu.weight", &weight(shares).to_string())?;
        }
        if cpu.quota().is_some() || cpu.period().is_some() {
            let quota = match cpu.quota() {
                Some(quota) if quota > 0 => quota.to_string(),
                _ => "max".to_owned(),
            };
            let period = cpu.period().filter(|period| *period != 0).unwrap_or(100_000);
            set("cpu.max", &format!("{quota} {period}"))?;
        }
        if let Some(burst) = cpu.burst() {
            set("cpu.max.burst", &burst.to_string())?;
        }
        for (file, list) in [("cpuset.cpus", cpu.cpus()), ("cpuset.mems", cpu.mems())] {
            if let Some(list) = list.as_deref().filter(|list| !list.is_empty()) {
                set(file, list)?;
            }
        }
    }
    if let Some(pids) = resources.pids() {
        let limit = super::pids_limit(pids.limit());
        set("pids.max", &limit)?;
    }
    if let Some(io) = resources.block_io() {
        if let Some(weight) = io.weight().filter(|weight| *weight != 0) {
            // Its name and range depend on the scheduler of the kernel's build.
            if dir.join("io.bfq.weight").exists() {
                set("io.bfq.weight", &weight.to_string())?;
            } else {
                // runc's conversion of 10…1000 to 1…10000.
                let weight = 1 + (u64::from(weight).max(10) - 10) * 9999 / 990;
                set("io.weight", &format!("default {weight}"))?;
            }
        }
        for device in io.weight_device().iter().flatten() {
            let Some(weight) = device.weight() else { continue };
            let value = format!("{}:{} {weight}", device.major(), device.minor());
            set("io.bfq.weight", &value)?;
        }
        for (key, devices) in [
            ("rbps", io.throttle_read_bps_device()),
            ("wbps", io.throttle_write_bps_device()),
            ("riops", io.throttle_read_iops_device()),
            ("wiops", io.throttle_write_iops_device()),
        ] {
            for device in devices.iter().flatten() {
                let value =
                    format!("{}:{} {key}={}", device.major(), device.minor(), device.rate());
                set("io.max", &value)?;
            }
        }
    }
    for huge in resources.hugepage_limits().iter().flatten() {
        let file = |kind: &str| format!("hugetlb.{}.{kind}max", huge.page_size());
        set(&file(""), &huge.limit().to_string())?;
        // What is reserved counts apart, since Linux 5.7.
        if dir.join(file("rsvd.")).exists() {
            set(&file("rsvd."), &huge.limit().to_string())?;
        }
    }
    for (device, limits) in resources.rdma().iter().flatten() {
        set("rdma.max", &super::rdma(device, limits))?;
    }
    for (file, value) in resources.unified().iter().flatten() {
        if file.contains('/') || file.starts_with("cgroup.") {
            let text = format!("{file:?} is no limit of cgroup v2");
            return Err(Error::new(Failure::InvalidSpec, text));
        }
        set(file, value)?;
    }
    Ok(())
}

/// OCI's limit of memory and swap together as one of swap.
pub(crate) fn swap_alone(both: i64, memory: Option<i64>) -> i64 {
    if both < 0 { both } else { (both - memory.unwrap_or(0)).max(0) }
}

/// Shares of 2…262144 as a weight of 1…10000 (runc's conversion).
pub(crate) fn weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

pub(super) fn freeze(dir: &Path, frozen: bool, deadline: Instant) -> Result<(), Error> {
    files::write(&dir.join("cgroup.freeze"), if frozen { "1" } else { "0" })?;
    let mut pause = Duration::from_micros(50);
    loop {
        match files::table(&dir.join("cgroup.events")).get("frozen") {
            Some(state) if *state == u64::from(frozen) => return Ok(()),
            Some(_) => {}
            // Its last process has ended, and somebody (systemd) has removed it.
            None => {
                let text = format!("cgroup {} is gone", dir.display());
                return Err(Error::new(Failure::System, text));
            }
        }
        if Instant::now() > deadline {
            let text = format!("cgroup {} does not freeze or thaw", dir.display());
            return Err(Error::new(Failure::System, text));
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
    }
}

pub(super) fn is_frozen(dir: &Path) -> bool {
    files::number(&dir.join("cgroup.freeze")) != 0
}

pub(super) fn oom_kills(dir: &Path) -> u64 {
    files::table(&dir.join("memory.events")).get("oom_kill").copied().unwrap_or(0)
}

pub(super) fn stats(dir: &Path) -> Result<TaskStats, Error> {
    let cpu = files::table(&dir.join("cpu.stat"));
    let of_cpu = |name: &str| cpu.get(name).copied().unwrap_or(0);
    let pids_limit = files::number(&dir.join("pids.max"));
    let events = files::table(&dir.join("memory.events"));
    Ok(TaskStats {
        cpu_ns: of_cpu("usage_usec") * 1000,
        cpu_user_ns: of_cpu("user_usec") * 1000,
        cpu_system_ns: of_cpu("system_usec") * 1000,
        cpu_throttling: (
            of_cpu("nr_periods"),
            of_cpu("nr_throttled"),
            of_cpu("throttled_usec") * 1000,
        ),
        memory_usage: files::number(&dir.join("memory.current")),
        memory_max_usage: files::number(&dir.join("memory.peak")),
        memory_limit: files::number(&dir.join("memory.max")),
        memory_stat: files::table(&dir.join("memory.stat")),
        memory_failcnt: events.get("max").copied().unwrap_or(0),
        pids: files::number(&dir.join("pids.current")),
        pids_limit: if pids_limit == u64::MAX { 0 } else { pids_limit },
        io_bytes: io_bytes(&files::read(&dir.join("io.stat"))?),
        networks: Default::default(),
        cgroup_version: 2,
    })
}

/// `8:0 rbytes=4096 wbytes=0 rios=1 …` lines, in v1's words.
fn io_bytes(text: &str) -> Vec<(u64, u64, String, u64)> {
    let mut entries = Vec::new();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let device = words.next().and_then(|word| word.split_once(':'));
        let Some((Ok(major), Ok(minor))) = device.map(|(a, b)| (a.parse(), b.parse())) else {
            continue;
        };
        for word in words {
            let (name, bytes) = match word.split_once('=') {
                Some(("rbytes", bytes)) => ("Read", bytes),
                Some(("wbytes", bytes)) => ("Write", bytes),
                _ => continue,
            };
            if let Ok(bytes) = bytes.parse() {
                entries.push((major, minor, name.to_owned(), bytes));
            }
        }
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_become_weights() {
        assert_eq!((weight(2), weight(1024), weight(262_144), weight(0)), (1, 39, 10_000, 1));
    }

    #[test]
    fn a_group_that_goes_meanwhile_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("cgroup.freeze"), "").unwrap();
        let late = Instant::now() + Duration::from_secs(3600);
        for frozen in [true, false] {
            let error = freeze(dir.path(), frozen, late).unwrap_err().to_string();
            assert!(error.ends_with("is gone"), "{error}");
        }
    }

    #[test]
    fn io_counters_are_read() {
        let text = "8:0 rbytes=4096 wbytes=1 rios=1\nfoo\n";
        assert_eq!(io_bytes(text), [(8, 0, "Read".into(), 4096), (8, 0, "Write".into(), 1)]);
    }
}

//! cgroup v1: one hierarchy for each controller.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use knarr_model::task::TaskStats;
use oci_spec::runtime::LinuxResources;

use super::{Layout, devices, files};
use crate::{Error, Failure};

/// A group by its path.
pub(super) struct Group<'a> {
    pub(super) layout: &'a Layout,
    pub(super) path: &'a Path,
}

impl Group<'_> {
    fn file(&self, controller: &str, file: &str) -> Option<PathBuf> {
        Some(self.layout.with(controller)?.dir(self.path).join(file))
    }

    /// Writes where the host has the controller; a limit that the host cannot
    /// enforce is an error.
    fn set(&self, controller: &str, file: &str, value: &str) -> Result<(), Error> {
        match self.file(controller, file) {
            Some(file) => files::write(&file, value),
            None => {
                let text = format!("this host has no {controller} controller (cgroup v1)");
                Err(Error::new(Failure::NotSupported, text))
            }
        }
    }

    fn number(&self, controller: &str, file: &str) -> u64 {
        self.file(controller, file).map_or(0, |file| files::number(&file))
    }
}

pub(super) fn limit(
    group: &Group<'_>,
    resources: &LinuxResources,
    first: bool,
) -> Result<(), Error> {
    if first && let Some(devices) = group.layout.with("devices") {
        let dir = devices.dir(group.path);
        let (mut allow, mut deny) = (
            files::Writer::open(dir.join("devices.allow"))?,
            files::Writer::open(dir.join("devices.deny"))?,
        );
        for rule in devices::rules(resources.devices().as_deref().unwrap_or_default()) {
            let file = if rule.allow { &mut allow } else { &mut deny };
            file.write(&rule.to_string())?;
        }
    }
    if let Some(memory) = resources.memory() {
        memory_limits(group, memory.limit(), memory.swap())?;
        if let Some(soft) = memory.reservation() {
            group.set("memory", "memory.soft_limit_in_bytes", &soft.to_string())?;
        }
        if let Some(swappiness) = memory.swappiness() {
            group.set("memory", "memory.swappiness", &swappiness.to_string())?;
        }
        if memory.disable_oom_killer() == Some(true) {
            group.set("memory", "memory.oom_control", "1")?;
        }
    }
    if let Some(cpu) = resources.cpu() {
        let pairs: [(&str, &str, Option<String>); 8] = [
            ("cpu", "cpu.shares", cpu.shares().filter(|n| *n != 0).map(|n| n.to_string())),
            ("cpu", "cpu.cfs_period_us", cpu.period().filter(|n| *n != 0).map(|n| n.to_string())),
            ("cpu", "cpu.cfs_quota_us", cpu.quota().filter(|n| *n != 0).map(|n| n.to_string())),
            ("cpu", "cpu.cfs_burst_us", cpu.burst().map(|n| n.to_string())),
            ("cpu", "cpu.rt_period_us", cpu.realtime_period().map(|n| n.to_string())),
            ("cpu", "cpu.rt_runtime_us", cpu.realtime_runtime().map(|n| n.to_string())),
            ("cpuset", "cpuset.cpus", cpu.cpus().clone().filter(|list| !list.is_empty())),
            ("cpuset", "cpuset.mems", cpu.mems().clone().filter(|list| !list.is_empty())),
        ];
        for (controller, file, value) in pairs {
            if let Some(value) = value {
                group.set(controller, file, &value)?;
            }
        }
    }
    if let Some(pids) = resources.pids() {
        let limit = if pids.limit() > 0 { pids.limit().to_string() } else { "max".to_owned() };
        group.set("pids", "pids.max", &limit)?;
    }
    if let Some(io) = resources.block_io() {
        if let Some(weight) = io.weight().filter(|weight| *weight != 0) {
            // Its name depends on the scheduler of the kernel's build.
            let bfq = group.file("blkio", "blkio.bfq.weight").is_some_and(|file| file.exists());
            let file = if bfq { "blkio.bfq.weight" } else { "blkio.weight" };
            group.set("blkio", file, &weight.to_string())?;
        }
        for (file, devices) in [
            ("blkio.throttle.read_bps_device", io.throttle_read_bps_device()),
            ("blkio.throttle.write_bps_device", io.throttle_write_bps_device()),
            ("blkio.throttle.read_iops_device", io.throttle_read_iops_device()),
            ("blkio.throttle.write_iops_device", io.throttle_write_iops_device()),
        ] {
            for device in devices.iter().flatten() {
                let value = format!("{}:{} {}", device.major(), device.minor(), device.rate());
                group.set("blkio", file, &value)?;
            }
        }
    }
    Ok(())
}

/// The kernel wants `limit` ≤ `swap` at every moment, so the order of the two
/// writes depends on where they are now.
fn memory_limits(group: &Group<'_>, limit: Option<i64>, swap: Option<i64>) -> Result<(), Error> {
    const LIMIT: &str = "memory.limit_in_bytes";
    const SWAP: &str = "memory.memsw.limit_in_bytes";
    let limit = limit.filter(|bytes| *bytes != 0);
    let swap = swap
        .filter(|bytes| *bytes != 0)
        // Without swap accounting there is no such file, and nothing to limit.
        .filter(|_| group.file("memory", SWAP).is_some_and(|file| file.exists()));
    let now = group.number("memory", LIMIT);
    let raises = |bytes: i64| bytes < 0 || bytes as u64 > now;
    let mut writes = [(LIMIT, limit), (SWAP, swap)];
    if limit.is_some_and(raises) && swap.is_some() {
        writes.reverse();
    }
    for (file, value) in writes {
        if let Some(value) = value {
            group.set("memory", file, &value.to_string())?;
        }
    }
    Ok(())
}

pub(super) fn freeze(group: &Group<'_>, frozen: bool, deadline: Instant) -> Result<(), Error> {
    let Some(file) = group.file("freezer", "freezer.state") else {
        return Err(Error::new(Failure::NotSupported, "this host has no freezer controller"));
    };
    let wanted = if frozen { "FROZEN" } else { "THAWED" };
    let mut pause = Duration::from_micros(50);
    loop {
        // Written again each time: a process that forks meanwhile may escape the first.
        files::write(&file, wanted)?;
        if files::read(&file)?.trim() == wanted {
            return Ok(());
        }
        if Instant::now() > deadline {
            let text = format!("cgroup {} does not become {wanted}", group.path.display());
            return Err(Error::new(Failure::System, text));
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
    }
}

pub(super) fn is_frozen(group: &Group<'_>) -> bool {
    let state = group.file("freezer", "freezer.state").map(|file| files::read(&file));
    state.is_some_and(|state| state.is_ok_and(|state| state.trim() != "THAWED"))
}

pub(super) fn oom_kills(group: &Group<'_>) -> u64 {
    let Some(file) = group.file("memory", "memory.oom_control") else { return 0 };
    files::table(&file).get("oom_kill").copied().unwrap_or(0)
}

pub(super) fn stats(group: &Group<'_>) -> Result<TaskStats, Error> {
    let cpu = group.file("cpu", "cpu.stat").map(|file| files::table(&file)).unwrap_or_default();
    let of_cpu = |name: &str| cpu.get(name).copied().unwrap_or(0);
    let usage = group.number("cpuacct", "cpuacct.usage");
    if group.layout.with("cpuacct").is_none() {
        return Err(Error::new(Failure::NotSupported, "this host has no cpuacct controller"));
    }
    let (limit, pids_limit) =
        (group.number("memory", "memory.limit_in_bytes"), group.number("pids", "pids.max"));
    Ok(TaskStats {
        cpu_ns: usage,
        cpu_user_ns: group.number("cpuacct", "cpuacct.usage_user"),
        cpu_system_ns: group.number("cpuacct", "cpuacct.usage_sys"),
        cpu_throttling: (of_cpu("nr_periods"), of_cpu("nr_throttled"), of_cpu("throttled_time")),
        memory_usage: group.number("memory", "memory.usage_in_bytes"),
        memory_max_usage: group.number("memory", "memory.max_usage_in_bytes"),
        memory_limit: limit,
        memory_stat: group
            .file("memory", "memory.stat")
            .map(|file| files::table(&file))
            .unwrap_or_default(),
        memory_failcnt: group.number("memory", "memory.failcnt"),
        pids: group.number("pids", "pids.current"),
        pids_limit: if pids_limit == u64::MAX { 0 } else { pids_limit },
        io_bytes: group
            .file("blkio", "blkio.throttle.io_service_bytes")
            .map(|file| io_bytes(&files::read(&file).unwrap_or_default()))
            .unwrap_or_default(),
        networks: Default::default(),
        cgroup_version: 1,
    })
}

/// `8:0 Read 4096` lines.
fn io_bytes(text: &str) -> Vec<(u64, u64, String, u64)> {
    let entry = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let (major, minor) = words.next()?.split_once(':')?;
        let operation = words.next()?.to_owned();
        let bytes = words.next()?.parse().ok()?;
        Some((major.parse().ok()?, minor.parse().ok()?, operation, bytes))
    };
    text.lines().filter_map(entry).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn io_counters_are_read() {
        let text = "8:0 Read 4096\n8:0 Write 0\nTotal 4096\n";
        assert_eq!(super::io_bytes(text), [(8, 0, "Read".into(), 4096), (8, 0, "Write".into(), 0)]);
    }
}

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
                let text =
                    format!("there is no {controller} controller (cgroup v1) to write {file}");
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
    devices: bool,
) -> Result<(), Error> {
    if devices && let Some(devices) = group.layout.with("devices") {
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
    if resources.unified().as_ref().is_some_and(|all| !all.is_empty()) {
        let text = "invalid configuration: unified resources need cgroup v2";
        return Err(Error::new(Failure::InvalidSpec, text));
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
        if let Some(bytes) = memory.kernel_tcp() {
            group.set("memory", "memory.kmem.tcp.limit_in_bytes", &bytes.to_string())?;
        }
    }
    if let Some(cpu) = resources.cpu() {
        quota(group, cpu.period(), cpu.quota(), cpu.burst())?;
        let text = |number: Option<u64>| number.filter(|n| *n != 0).map(|n| n.to_string());
        fitting(
            group,
            [
                ("cpu.rt_period_us", text(cpu.realtime_period())),
                (
                    "cpu.rt_runtime_us",
                    cpu.realtime_runtime().filter(|n| *n != 0).map(|n| n.to_string()),
                ),
            ],
        )?;
        let pairs: [(&str, &str, Option<String>); 4] = [
            ("cpu", "cpu.shares", text(cpu.shares())),
            ("cpu", "cpu.idle", cpu.idle().map(|n| n.to_string())),
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
        let limit = super::pids_limit(pids.limit());
        group.set("pids", "pids.max", &limit)?;
    }
    if let Some(io) = resources.block_io() {
        if let Some(weight) = io.weight().filter(|weight| *weight != 0) {
            // Its name depends on the scheduler of the kernel's build.
            let bfq = group.file("blkio", "blkio.bfq.weight").is_some_and(|file| file.exists());
            let file = if bfq { "blkio.bfq.weight" } else { "blkio.weight" };
            group.set("blkio", file, &weight.to_string())?;
        }
        for device in io.weight_device().iter().flatten() {
            let Some(weight) = device.weight() else { continue };
            let value = format!("{}:{} {weight}", device.major(), device.minor());
            let bfq = "blkio.bfq.weight_device";
            let has_bfq = group.file("blkio", bfq).is_some_and(|file| file.exists());
            group.set("blkio", if has_bfq { bfq } else { "blkio.weight_device" }, &value)?;
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
    for huge in resources.hugepage_limits().iter().flatten() {
        let file = |kind: &str| format!("hugetlb.{}.{kind}limit_in_bytes", huge.page_size());
        group.set("hugetlb", &file(""), &huge.limit().to_string())?;
        // What is reserved counts apart, since Linux 5.7.
        if group.file("hugetlb", &file("rsvd.")).is_some_and(|file| file.exists()) {
            group.set("hugetlb", &file("rsvd."), &huge.limit().to_string())?;
        }
    }
    if let Some(network) = resources.network() {
        if let Some(class) = network.class_id().filter(|class| *class != 0) {
            group.set("net_cls", "net_cls.classid", &class.to_string())?;
        }
        for one in network.priorities().iter().flatten() {
            let value = format!("{} {}", one.name(), one.priority());
            group.set("net_prio", "net_prio.ifpriomap", &value)?;
        }
    }
    for (device, limits) in resources.rdma().iter().flatten() {
        group.set("rdma", "rdma.max", &super::rdma(device, limits))?;
    }
    Ok(())
}

/// The kernel wants the quota of a period to fit in its parent's, and the burst in
/// the quota, after each write: what it refuses first it may take last.
fn quota(
    group: &Group<'_>,
    period: Option<u64>,
    quota: Option<i64>,
    burst: Option<u64>,
) -> Result<(), Error> {
    let period = period.filter(|n| *n != 0).map(|n| n.to_string());
    let quota = quota.filter(|n| *n != 0).map(|n| n.to_string());
    let burst = burst.map(|n| n.to_string());
    fitting(
        group,
        [("cpu.cfs_burst_us", burst), ("cpu.cfs_period_us", period), ("cpu.cfs_quota_us", quota)],
    )
}

/// Values of the cpu controller each of which must fit the others: what is refused first
/// is written once more when those behind it are there.
fn fitting<const N: usize>(
    group: &Group<'_>,
    values: [(&str, Option<String>); N],
) -> Result<(), Error> {
    let mut again = Vec::new();
    let given = values.into_iter().filter_map(|(file, value)| Some((file, value?)));
    for (file, value) in given {
        if group.set("cpu", file, &value).is_err() {
            again.push((file, value));
        }
    }
    again.into_iter().rev().try_for_each(|(file, value)| group.set("cpu", file, &value))
}

/// The kernel wants `limit` ≤ `swap` at every moment, so the order of the two
/// writes depends on where they are now.
fn memory_limits(group: &Group<'_>, limit: Option<i64>, swap: Option<i64>) -> Result<(), Error> {
    const LIMIT: &str = "memory.limit_in_bytes";
    const SWAP: &str = "memory.memsw.limit_in_bytes";
    let limit = limit.filter(|bytes| *bytes != 0);
    // No limit of memory fits into a limit of memory and swap (as runc).
    let swap = if limit == Some(-1) { swap.filter(|bytes| *bytes != 0).or(Some(-1)) } else { swap };
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
        return Err(Error::new(
            Failure::NotSupported,
            "there is no group of the freezer controller (cgroup v1) to pause",
        ));
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

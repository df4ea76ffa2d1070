//! Samples of use, as `docker stats` computes its columns from them.

use knarr_docker::{
    BlkioEntry, BlkioStats, CpuStats, CpuUsage, MemoryStats, NetworkStats, PidsStats, Stats,
    ThrottlingData, ZERO_TIME,
};
use knarr_engine::StatsSample;
use knarr_model::task::TaskStats;

/// A sample beside the one before it: rates are the client's to compute.
pub(crate) fn stats(sample: &StatsSample, previous: Option<&StatsSample>) -> Stats {
    let task = sample.task.as_ref();
    Stats {
        name: format!("/{}", sample.name),
        id: sample.id.to_string(),
        read: match task {
            Some(_) => time(sample),
            None => ZERO_TIME.into(),
        },
        preread: previous.map_or_else(|| ZERO_TIME.into(), time),
        pids_stats: task.map(pids).unwrap_or_default(),
        blkio_stats: task.map(blkio).unwrap_or_default(),
        cpu_stats: cpu(sample),
        precpu_stats: previous.map(cpu).unwrap_or_default(),
        memory_stats: task.map(|task| memory(task, sample.host_memory)).unwrap_or_default(),
        networks: task.filter(|task| !task.networks.is_empty()).map(networks),
        ..Stats::default()
    }
}

fn time(sample: &StatsSample) -> String {
    format!("{:.9}", sample.read)
}

fn cpu(sample: &StatsSample) -> CpuStats {
    let Some(task) = &sample.task else { return CpuStats::default() };
    let (periods, throttled_periods, throttled_time) = task.cpu_throttling;
    CpuStats {
        cpu_usage: CpuUsage {
            total_usage: task.cpu_ns,
            percpu_usage: None,
            usage_in_kernelmode: task.cpu_system_ns,
            usage_in_usermode: task.cpu_user_ns,
        },
        system_cpu_usage: sample.system_cpu_ns,
        online_cpus: sample.online_cpus,
        throttling_data: ThrottlingData { periods, throttled_periods, throttled_time },
    }
}

fn pids(task: &TaskStats) -> PidsStats {
    // Docker's "no limit" is the largest number.
    let limit = if task.pids_limit == 0 { u64::MAX } else { task.pids_limit };
    PidsStats { current: task.pids, limit }
}

fn memory(task: &TaskStats, host: u64) -> MemoryStats {
    let limit = match task.memory_limit {
        0 => host,
        limit => limit.min(host),
    };
    MemoryStats {
        usage: task.memory_usage,
        max_usage: task.memory_max_usage,
        stats: Some(task.memory_stat.clone()),
        failcnt: task.memory_failcnt,
        limit,
    }
}

fn blkio(task: &TaskStats) -> BlkioStats {
    let entries = task.io_bytes.iter().map(|(major, minor, op, value)| BlkioEntry {
        major: *major,
        minor: *minor,
        op: op.to_ascii_lowercase(),
        value: *value,
    });
    BlkioStats { io_service_bytes_recursive: Some(entries.collect()), ..BlkioStats::default() }
}

fn networks(task: &TaskStats) -> std::collections::BTreeMap<String, NetworkStats> {
    let one = |name: &String, counters: &knarr_model::task::InterfaceStats| {
        let stats = NetworkStats {
            rx_bytes: counters.rx_bytes,
            rx_packets: counters.rx_packets,
            rx_errors: counters.rx_errors,
            rx_dropped: counters.rx_dropped,
            tx_bytes: counters.tx_bytes,
            tx_packets: counters.tx_packets,
            tx_errors: counters.tx_errors,
            tx_dropped: counters.tx_dropped,
        };
        (name.clone(), stats)
    };
    task.networks.iter().map(|(name, counters)| one(name, counters)).collect()
}

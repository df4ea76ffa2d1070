//! What containerd, kubelet and cAdvisor read: `io.containerd.cgroups.v1.Metrics`
//! and `io.containerd.cgroups.v2.Metrics`, by the hierarchy that the container is in.

use containerd_shim_protos::{
    cgroups::metrics as v1,
    cgroups_v2::metrics as v2,
    protobuf::{Message, MessageField, well_known_types::any::Any},
};
use knarr_model::task::TaskStats;

const V1: &str = "io.containerd.cgroups.v1.Metrics";
const V2: &str = "io.containerd.cgroups.v2.Metrics";

/// The statistics in containerd's words.
pub(crate) fn encode(stats: &TaskStats) -> Any {
    let (type_url, value) = match stats.cgroup_version {
        2 => (V2, unified(stats).write_to_bytes()),
        _ => (V1, legacy(stats).write_to_bytes()),
    };
    // A message of numbers always has an encoding.
    Any { type_url: type_url.to_owned(), value: value.unwrap_or_default(), ..Default::default() }
}

fn legacy(stats: &TaskStats) -> v1::Metrics {
    let named = |name: &str| stats.memory_stat.get(name).copied().unwrap_or_default();
    let (periods, throttled_periods, throttled_time) = stats.cpu_throttling;
    let blkio = |(major, minor, op, bytes): &(u64, u64, String, u64)| v1::BlkIOEntry {
        op: op.clone(),
        major: *major,
        minor: *minor,
        value: *bytes,
        ..Default::default()
    };
    let network = |(name, n): (&String, &knarr_model::task::InterfaceStats)| v1::NetworkStat {
        name: name.clone(),
        rx_bytes: n.rx_bytes,
        rx_packets: n.rx_packets,
        rx_errors: n.rx_errors,
        rx_dropped: n.rx_dropped,
        tx_bytes: n.tx_bytes,
        tx_packets: n.tx_packets,
        tx_errors: n.tx_errors,
        tx_dropped: n.tx_dropped,
        ..Default::default()
    };
    v1::Metrics {
        pids: MessageField::some(v1::PidsStat {
            current: stats.pids,
            limit: stats.pids_limit,
            ..Default::default()
        }),
        cpu: MessageField::some(v1::CPUStat {
            usage: MessageField::some(v1::CPUUsage {
                total: stats.cpu_ns,
                kernel: stats.cpu_system_ns,
                user: stats.cpu_user_ns,
                ..Default::default()
            }),
            throttling: MessageField::some(v1::Throttle {
                periods,
                throttled_periods,
                throttled_time,
                ..Default::default()
            }),
            ..Default::default()
        }),
        memory: MessageField::some(v1::MemoryStat {
            cache: named("cache"),
            rss: named("rss"),
            rss_huge: named("rss_huge"),
            mapped_file: named("mapped_file"),
            dirty: named("dirty"),
            writeback: named("writeback"),
            pg_pg_in: named("pgpgin"),
            pg_pg_out: named("pgpgout"),
            pg_fault: named("pgfault"),
            pg_maj_fault: named("pgmajfault"),
            inactive_anon: named("inactive_anon"),
            active_anon: named("active_anon"),
            inactive_file: named("inactive_file"),
            active_file: named("active_file"),
            unevictable: named("unevictable"),
            hierarchical_memory_limit: named("hierarchical_memory_limit"),
            hierarchical_swap_limit: named("hierarchical_memsw_limit"),
            total_cache: named("total_cache"),
            total_rss: named("total_rss"),
            total_rss_huge: named("total_rss_huge"),
            total_mapped_file: named("total_mapped_file"),
            total_dirty: named("total_dirty"),
            total_writeback: named("total_writeback"),
            total_pg_pg_in: named("total_pgpgin"),
            total_pg_pg_out: named("total_pgpgout"),
            total_pg_fault: named("total_pgfault"),
            total_pg_maj_fault: named("total_pgmajfault"),
            total_inactive_anon: named("total_inactive_anon"),
            total_active_anon: named("total_active_anon"),
            total_inactive_file: named("total_inactive_file"),
            total_active_file: named("total_active_file"),
            total_unevictable: named("total_unevictable"),
            usage: MessageField::some(v1::MemoryEntry {
                limit: stats.memory_limit,
                usage: stats.memory_usage,
                max: stats.memory_max_usage,
                failcnt: stats.memory_failcnt,
                ..Default::default()
            }),
            ..Default::default()
        }),
        blkio: MessageField::some(v1::BlkIOStat {
            io_service_bytes_recursive: stats.io_bytes.iter().map(blkio).collect(),
            ..Default::default()
        }),
        network: stats.networks.iter().map(network).collect(),
        ..Default::default()
    }
}

fn unified(stats: &TaskStats) -> v2::Metrics {
    let named = |name: &str| stats.memory_stat.get(name).copied().unwrap_or_default();
    let (periods, throttled, throttled_ns) = stats.cpu_throttling;
    let mut io: Vec<v2::IOEntry> = Vec::new();
    for (major, minor, operation, bytes) in &stats.io_bytes {
        let at = match io.iter().position(|e| (e.major, e.minor) == (*major, *minor)) {
            Some(at) => at,
            None => {
                io.push(v2::IOEntry { major: *major, minor: *minor, ..Default::default() });
                io.len() - 1
            }
        };
        match operation.to_ascii_lowercase().as_str() {
            "read" => io[at].rbytes = *bytes,
            "write" => io[at].wbytes = *bytes,
            _ => {}
        }
    }
    v2::Metrics {
        pids: MessageField::some(v2::PidsStat {
            current: stats.pids,
            limit: stats.pids_limit,
            ..Default::default()
        }),
        cpu: MessageField::some(v2::CPUStat {
            usage_usec: stats.cpu_ns / 1000,
            user_usec: stats.cpu_user_ns / 1000,
            system_usec: stats.cpu_system_ns / 1000,
            nr_periods: periods,
            nr_throttled: throttled,
            throttled_usec: throttled_ns / 1000,
            ..Default::default()
        }),
        memory: MessageField::some(v2::MemoryStat {
            anon: named("anon"),
            file: named("file"),
            kernel_stack: named("kernel_stack"),
            slab: named("slab"),
            sock: named("sock"),
            shmem: named("shmem"),
            file_mapped: named("file_mapped"),
            file_dirty: named("file_dirty"),
            file_writeback: named("file_writeback"),
            anon_thp: named("anon_thp"),
            inactive_anon: named("inactive_anon"),
            active_anon: named("active_anon"),
            inactive_file: named("inactive_file"),
            active_file: named("active_file"),
            unevictable: named("unevictable"),
            slab_reclaimable: named("slab_reclaimable"),
            slab_unreclaimable: named("slab_unreclaimable"),
            pgfault: named("pgfault"),
            pgmajfault: named("pgmajfault"),
            usage: stats.memory_usage,
            usage_limit: stats.memory_limit,
            ..Default::default()
        }),
        io: MessageField::some(v2::IOStat { usage: io, ..Default::default() }),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_arrive_under_containerds_names() {
        let mut stats = TaskStats {
            cpu_ns: 5_000,
            memory_usage: 42,
            pids: 3,
            io_bytes: vec![(8, 0, "Read".into(), 7), (8, 0, "Write".into(), 9)],
            cgroup_version: 1,
            ..Default::default()
        };
        stats.memory_stat.insert("total_inactive_file".into(), 11);
        let any = encode(&stats);
        assert_eq!(any.type_url, V1);
        let metrics = v1::Metrics::parse_from_bytes(&any.value).unwrap();
        assert_eq!(metrics.cpu.usage.total, 5_000);
        assert_eq!((metrics.memory.usage.usage, metrics.memory.total_inactive_file), (42, 11));
        assert_eq!(metrics.blkio.io_service_bytes_recursive.len(), 2);
        stats.cgroup_version = 2;
        let any = encode(&stats);
        assert_eq!(any.type_url, V2);
        let metrics = v2::Metrics::parse_from_bytes(&any.value).unwrap();
        assert_eq!((metrics.cpu.usage_usec, metrics.pids.current), (5, 3));
        assert_eq!((metrics.io.usage[0].rbytes, metrics.io.usage[0].wbytes), (7, 9));
    }
}

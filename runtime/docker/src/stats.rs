//! `GET /containers/{id}/stats`, as `docker stats` computes its columns from it.

use std::collections::BTreeMap;

wire! {
    /// One sample.
    pub struct Stats {
        /// With a leading `/`.
        pub name: String,
        /// Container.
        pub id: String,
        /// When it was taken; RFC 3339.
        pub read: String,
        /// When the previous one was taken; Go's zero time for the first.
        pub preread: String,
        /// Processes.
        pub pids_stats: PidsStats,
        /// Disks.
        pub blkio_stats: BlkioStats,
        /// Windows only.
        pub num_procs: u32,
        /// Windows only.
        pub storage_stats: crate::Empty,
        /// Processors now.
        pub cpu_stats: CpuStats,
        /// Processors at the previous sample.
        pub precpu_stats: CpuStats,
        /// Memory.
        pub memory_stats: MemoryStats,
        /// By interface.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub networks: Option<BTreeMap<String, NetworkStats>>,
    }

    /// Processes and threads.
    pub struct PidsStats {
        /// Now.
        #[serde(skip_serializing_if = "crate::is_zero")]
        pub current: u64,
        /// At most.
        #[serde(skip_serializing_if = "crate::is_zero")]
        pub limit: u64,
    }

    /// Disks.
    pub struct BlkioStats {
        /// Bytes by device and operation.
        pub io_service_bytes_recursive: Option<Vec<BlkioEntry>>,
        /// Operations.
        pub io_serviced_recursive: Option<Vec<BlkioEntry>>,
        /// Cgroup v1 only.
        pub io_queue_recursive: Option<Vec<BlkioEntry>>,
        /// Cgroup v1 only.
        pub io_service_time_recursive: Option<Vec<BlkioEntry>>,
        /// Cgroup v1 only.
        pub io_wait_time_recursive: Option<Vec<BlkioEntry>>,
        /// Cgroup v1 only.
        pub io_merged_recursive: Option<Vec<BlkioEntry>>,
        /// Cgroup v1 only.
        pub io_time_recursive: Option<Vec<BlkioEntry>>,
        /// Cgroup v1 only.
        pub sectors_recursive: Option<Vec<BlkioEntry>>,
    }

    /// A counter of a disk.
    pub struct BlkioEntry {
        /// Device.
        pub major: u64,
        /// Device.
        pub minor: u64,
        /// `read`, `write`.
        pub op: String,
        /// Counter.
        pub value: u64,
    }

    /// Processors.
    pub struct CpuStats {
        /// Of the container.
        pub cpu_usage: CpuUsage,
        /// Of the whole host, nanoseconds.
        #[serde(skip_serializing_if = "crate::is_zero")]
        pub system_cpu_usage: u64,
        /// Processors of the host.
        #[serde(skip_serializing_if = "crate::is_zero")]
        pub online_cpus: u32,
        /// What the quota took.
        pub throttling_data: ThrottlingData,
    }

    /// Processor time in nanoseconds.
    pub struct CpuUsage {
        /// All.
        pub total_usage: u64,
        /// By processor, cgroup v1 only.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub percpu_usage: Option<Vec<u64>>,
        /// In the kernel.
        pub usage_in_kernelmode: u64,
        /// Outside it.
        pub usage_in_usermode: u64,
    }

    /// What the quota took.
    pub struct ThrottlingData {
        /// Periods.
        pub periods: u64,
        /// Of them with throttling.
        pub throttled_periods: u64,
        /// Nanoseconds.
        pub throttled_time: u64,
    }

    /// Memory in bytes.
    pub struct MemoryStats {
        /// Now, page cache included.
        #[serde(skip_serializing_if = "crate::is_zero")]
        pub usage: u64,
        /// The most ever, cgroup v1 only.
        #[serde(skip_serializing_if = "crate::is_zero")]
        pub max_usage: u64,
        /// `memory.stat`.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub stats: Option<BTreeMap<String, u64>>,
        /// How often the limit was hit, cgroup v1 only.
        #[serde(skip_serializing_if = "crate::is_zero")]
        pub failcnt: u64,
        /// At most; the host's memory where there is no limit.
        #[serde(skip_serializing_if = "crate::is_zero")]
        pub limit: u64,
    }

    /// An interface.
    pub struct NetworkStats {
        /// Bytes received.
        pub rx_bytes: u64,
        /// Packets received.
        pub rx_packets: u64,
        /// Errors while receiving.
        pub rx_errors: u64,
        /// Dropped while receiving.
        pub rx_dropped: u64,
        /// Bytes sent.
        pub tx_bytes: u64,
        /// Packets sent.
        pub tx_packets: u64,
        /// Errors while sending.
        pub tx_errors: u64,
        /// Dropped while sending.
        pub tx_dropped: u64,
    }
}

//! Counters of a container's network interfaces.

use std::{collections::BTreeMap, fs, os::unix::fs::MetadataExt};

use knarr_model::task::InterfaceStats;
use knarr_sys::read;

/// The interfaces in the network namespace of a process, without the loopback.
/// Empty where that namespace is our own: the host's traffic is not the
/// container's.
pub(crate) fn counters(pid: u32) -> BTreeMap<String, InterfaceStats> {
    let inode = |who: &str| fs::metadata(format!("/proc/{who}/ns/net")).map(|m| m.ino()).ok();
    let theirs = inode(&pid.to_string());
    if theirs.is_none() || theirs == inode("self") {
        return BTreeMap::new();
    }
    // Names of interfaces are the container's to choose: any bytes.
    parse(&read::text(format!("/proc/{pid}/net/dev"), read::LIST).unwrap_or_default())
}

/// Two lines of headings, then `name: 8 numbers received, 8 numbers sent`.
fn parse(text: &str) -> BTreeMap<String, InterfaceStats> {
    let line = |line: &str| {
        let (name, numbers) = line.split_once(':')?;
        let n: Vec<u64> = numbers.split_ascii_whitespace().flat_map(str::parse).collect();
        let [
            rx_bytes,
            rx_packets,
            rx_errors,
            rx_dropped,
            _,
            _,
            _,
            _,
            tx_bytes,
            tx_packets,
            tx_errors,
            tx_dropped,
            ..,
        ] = n[..]
        else {
            return None;
        };
        let stats = InterfaceStats {
            rx_bytes,
            rx_packets,
            rx_errors,
            rx_dropped,
            tx_bytes,
            tx_packets,
            tx_errors,
            tx_dropped,
        };
        Some((name.trim().to_owned(), stats))
    };
    text.lines().filter_map(line).filter(|(name, _)| name != "lo").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read() {
        let text = "Inter-|   Receive                                                |  Transmit\n \
            face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n    \
            lo:       9       1    0    0    0     0          0         0        9       1    0    0    0     0       0          0\n  \
            eth0:    1296      16    1    2    0     0          0         0      126       3    4    5    0     0       0          0\n";
        let got = parse(text);
        assert_eq!(got.len(), 1);
        let want = InterfaceStats {
            rx_bytes: 1296,
            rx_packets: 16,
            rx_errors: 1,
            rx_dropped: 2,
            tx_bytes: 126,
            tx_packets: 3,
            tx_errors: 4,
            tx_dropped: 5,
        };
        assert_eq!(got["eth0"], want);
    }
}

//! What the specification says of limits, in systemd's words
//! (org.freedesktop.systemd1(5), systemd.resource-control(5)), and properties
//! that annotations ask for.

use oci_spec::runtime::{LinuxResources, Spec};

use super::bus::Value;
use crate::{
    Error, Failure,
    cgroup::{device_names, swap_alone, weight},
    ranges,
};

/// The annotations' prefix.
const PREFIX: &str = "org.systemd.property.";
const MICROSECONDS: u64 = 1_000_000;

fn or_most(value: i64) -> Value {
    Value::U64(u64::try_from(value).unwrap_or(u64::MAX))
}

/// Limits that systemd knows too. What it does not know is in the files alone.
pub(super) fn limits(resources: &LinuxResources, v2: bool) -> Vec<(String, Value)> {
    let mut all = Vec::new();
    let mut set = |name: &str, value: Value| all.push((name.to_owned(), value));
    if let Some(memory) = resources.memory() {
        if let Some(limit) = memory.limit().filter(|bytes| *bytes != 0) {
            set(if v2 { "MemoryMax" } else { "MemoryLimit" }, or_most(limit));
        }
        if let Some(low) = memory.reservation().filter(|bytes| *bytes != 0 && v2) {
            set("MemoryLow", or_most(low));
        }
        if let Some(swap) = memory.swap().filter(|bytes| *bytes != 0 && v2) {
            set("MemorySwapMax", or_most(swap_alone(swap, memory.limit())));
        }
    }
    if let Some(cpu) = resources.cpu() {
        if let Some(shares) = cpu.shares().filter(|shares| *shares != 0) {
            if v2 {
                set("CPUWeight", Value::U64(weight(shares)));
            } else {
                set("CPUShares", Value::U64(shares));
            }
        }
        if cpu.quota().is_some() || cpu.period().is_some() {
            let period = cpu.period().filter(|period| *period != 0).unwrap_or(100_000);
            set("CPUQuotaPeriodUSec", Value::U64(period));
            let each_second = match cpu.quota() {
                // systemd counts hundredths of a processor, and takes no less.
                Some(quota) if quota > 0 => (quota.cast_unsigned().saturating_mul(MICROSECONDS)
                    / period)
                    .next_multiple_of(10_000),
                _ => u64::MAX,
            };
            set("CPUQuotaPerSecUSec", Value::U64(each_second));
        }
        for (name, list) in [("AllowedCPUs", cpu.cpus()), ("AllowedMemoryNodes", cpu.mems())] {
            let list = list.as_deref().filter(|list| !list.is_empty() && v2);
            if let Some(bits) = list.and_then(bits) {
                set(name, Value::Bytes(bits));
            }
        }
    }
    if let Some(pids) = resources.pids().as_ref().filter(|pids| pids.limit() != 0) {
        set("TasksMax", or_most(pids.limit()));
    }
    if let Some(weight) = resources
        .block_io()
        .as_ref()
        .and_then(|io| io.weight())
        .filter(|weight| *weight != 0 && !v2)
    {
        set("BlockIOWeight", Value::U64(weight.into()));
    }
    let unified = resources.unified().iter().flatten();
    for (file, value) in unified.filter(|_| v2) {
        let name = match file.as_str() {
            "memory.min" => "MemoryMin",
            "memory.low" => "MemoryLow",
            "memory.high" => "MemoryHigh",
            "memory.max" => "MemoryMax",
            "memory.swap.max" => "MemorySwapMax",
            "pids.max" => "TasksMax",
            "cpu.weight" => "CPUWeight",
            _ => continue,
        };
        let value = match value.trim() {
            "max" => Some(u64::MAX),
            number => number.parse().ok(),
        };
        // What is no number is refused by the file that it is written to.
        if let Some(value) = value {
            set(name, Value::U64(value));
        }
    }
    all
}

/// Numbers of CPUs and memory nodes are below this.
const CPUS: usize = (1 << 16) + 1;

/// `0-2,5` as a bit set, the lowest first.
fn bits(list: &str) -> Option<Vec<u8>> {
    let mut bits = Vec::new();
    for bit in ranges::parse(list, CPUS)?.into_iter().flatten() {
        if bits.len() <= bit / 8 {
            bits.resize(bit / 8 + 1, 0);
        }
        bits[bit / 8] |= 1 << (bit % 8);
    }
    Some(bits)
}

/// Which devices may be used: systemd writes that again whenever it is reloaded.
pub(super) fn devices(resources: Option<&LinuxResources>) -> Vec<(String, Value)> {
    let asked = resources.and_then(|resources| resources.devices().as_deref());
    let (policy, allowed) = match device_names(asked.unwrap_or_default()) {
        None => ("auto", Vec::new()),
        Some(names) => ("strict", names),
    };
    vec![
        ("DevicePolicy".to_owned(), Value::Text(policy.to_owned())),
        ("DeviceAllow".to_owned(), Value::Pairs(allowed)),
    ]
}

/// Properties that annotations ask for, by name.
pub(super) fn asked(spec: &Spec) -> Result<Vec<(String, Value)>, Error> {
    let mut all = Vec::new();
    for (key, text) in spec.annotations().iter().flatten() {
        let Some(name) = key.strip_prefix(PREFIX) else { continue };
        let bad = |why: &str| {
            let text = format!("annotation {key}={text}: {why}");
            Error::new(Failure::InvalidSpec, text)
        };
        if name.len() < 3 || !name.bytes().all(|byte| byte.is_ascii_alphabetic()) {
            return Err(bad("is no name of a property"));
        }
        let value = value(text).ok_or_else(|| bad("is no value that can be read"))?;
        all.push(match (name.strip_suffix("Sec"), value) {
            // As runc: what is in seconds has a property in microseconds.
            (Some(stem), value) if !name.ends_with("USec") => {
                let seconds = match value {
                    Value::I32(n) => u64::try_from(n).ok(),
                    Value::U32(n) => Some(n.into()),
                    Value::I64(n) => u64::try_from(n).ok(),
                    Value::U64(n) => Some(n),
                    _ => None,
                };
                let micros = seconds.and_then(|seconds| seconds.checked_mul(MICROSECONDS));
                let micros = micros.ok_or_else(|| bad("is no number of seconds"))?;
                (format!("{stem}USec"), Value::U64(micros))
            }
            (_, value) => (name.to_owned(), value),
        });
    }
    all.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(all)
}

/// The text form of GVariant, as far as properties of scopes need it.
fn value(text: &str) -> Option<Value> {
    let text = text.trim();
    if let Some(inner) = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')) {
        return inner.split(',').map(quoted).collect::<Option<Vec<_>>>().map(Value::Texts);
    }
    if let Some(text) = quoted(text) {
        return Some(Value::Text(text));
    }
    let mut words = text.split_ascii_whitespace();
    Some(match (words.next()?, words.next(), words.next()) {
        ("true", None, _) => Value::Bool(true),
        ("false", None, _) => Value::Bool(false),
        (number, None, _) => Value::I32(number.parse().ok()?),
        ("int32", Some(number), None) => Value::I32(number.parse().ok()?),
        ("uint32", Some(number), None) => Value::U32(number.parse().ok()?),
        ("int64", Some(number), None) => Value::I64(number.parse().ok()?),
        ("uint64", Some(number), None) => Value::U64(number.parse().ok()?),
        ("boolean", Some(word), None) => Value::Bool(word.parse().ok()?),
        _ => return None,
    })
}

fn quoted(text: &str) -> Option<String> {
    let text = text.trim();
    let mark = text.chars().next().filter(|mark| matches!(mark, '\'' | '"'))?;
    let inner = text.get(1..)?.strip_suffix(mark)?;
    (!inner.contains([mark, '\\'])).then(|| inner.to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn limits_in_the_manager_s_words() {
        let resources = json!({
            "memory": { "limit": 100, "swap": 150, "reservation": 50 },
            "cpu": { "shares": 1024, "quota": 5000, "period": 10000, "cpus": "0-1,9" },
            "pids": { "limit": -1 },
            "unified": { "memory.high": "max", "cpu.idle": "1" },
        });
        let resources: LinuxResources = serde_json::from_value(resources).expect("resources");
        let wanted = [
            ("MemoryMax", Value::U64(100)),
            ("MemoryLow", Value::U64(50)),
            ("MemorySwapMax", Value::U64(50)),
            ("CPUWeight", Value::U64(39)),
            ("CPUQuotaPeriodUSec", Value::U64(10_000)),
            ("CPUQuotaPerSecUSec", Value::U64(500_000)),
            ("AllowedCPUs", Value::Bytes(vec![3, 2])),
            ("TasksMax", Value::U64(u64::MAX)),
            ("MemoryHigh", Value::U64(u64::MAX)),
        ]
        .map(|(name, value)| (name.to_owned(), value));
        assert_eq!(limits(&resources, true), wanted);
        assert_eq!(bits("x"), None);
        assert_eq!(bits("3-1"), None);
    }

    #[test]
    fn annotations_become_properties() {
        let asked = |key: &str, text: &str| {
            let spec =
                json!({ "ociVersion": "1.0.2", "annotations": { format!("{PREFIX}{key}"): text } });
            super::asked(&serde_json::from_value(spec).expect("specification"))
        };
        for (key, text, name, value) in [
            ("TimeoutStopUSec", "uint64 123", "TimeoutStopUSec", Value::U64(123)),
            ("TimeoutStopSec", "7", "TimeoutStopUSec", Value::U64(7_000_000)),
            ("CollectMode", "'inactive'", "CollectMode", Value::Text("inactive".into())),
            ("SendSIGHUP", "true", "SendSIGHUP", Value::Bool(true)),
            (
                "After",
                "['a.service', 'b']",
                "After",
                Value::Texts(vec!["a.service".into(), "b".into()]),
            ),
        ] {
            assert_eq!(asked(key, text).expect(text), [(name.to_owned(), value)]);
        }
        for (key, text) in [("X1y", "1"), ("Name", "{}"), ("Name", "1 2 3"), ("StopSec", "'x'")] {
            assert!(asked(key, text).is_err(), "{key} {text}");
        }
    }
}

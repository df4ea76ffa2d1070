//! Limits, ulimits, devices, sysctls (CATALOGUE A06).

use std::path::PathBuf;

use knarr_docker::HostConfig;
use knarr_model::{ContainerSpec, DeviceRequest, Resources, Ulimit};

use crate::error::{ApiError, Result, short};

/// Less than this and a process cannot even start (moby `linuxMinMemory`).
const MIN_MEMORY: i64 = 6 << 20;

/// `RLIMIT_` names, lower case (getrlimit(2)).
const ULIMITS: [&str; 16] = [
    "as",
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

pub(super) fn apply(
    host: &HostConfig,
    spec: &mut ContainerSpec,
    warnings: &mut Vec<String>,
) -> Result<()> {
    let mut resources = Resources::default();
    memory(host, &mut resources, warnings)?;
    cpu(host, &mut resources)?;
    resources.pids = host.pids_limit.and_then(|limit| u64::try_from(limit).ok()).filter(|l| *l > 0);
    spec.resources = resources;
    spec.shm_size = match host.shm_size {
        0 => None,
        size => Some(
            u64::try_from(size)
                .map_err(|_| ApiError::invalid("SHM size can not be less than 0"))?,
        ),
    };
    spec.ulimits = host.ulimits.iter().flatten().map(ulimit).collect::<Result<_>>()?;
    for device in host.devices.iter().flatten() {
        spec.devices.push(self::device(device)?);
    }
    for (name, value) in host.sysctls.iter().flatten() {
        let plain = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'_' | b'-' | b'/');
        if name.is_empty() || !name.bytes().all(plain) || name.contains("..") || value.len() > 4096
        {
            return Err(ApiError::invalid(format!("invalid sysctl {:?}", short(name))));
        }
        spec.sysctls.insert(name.clone(), value.clone());
    }
    spec.cgroup_parent = match host.cgroup_parent.as_str() {
        "" => None,
        parent if parent.split('/').any(|part| part == "..") => {
            return Err(ApiError::invalid(format!("invalid cgroup parent {parent:?}")));
        }
        parent => Some(parent.to_owned()),
    };
    Ok(())
}

fn memory(host: &HostConfig, resources: &mut Resources, warnings: &mut Vec<String>) -> Result<()> {
    let positive = |value: i64, what: &str| match value {
        0 => Ok(None),
        _ => u64::try_from(value)
            .map(Some)
            .map_err(|_| ApiError::invalid(format!("invalid {what} limit: {value}"))),
    };
    if host.memory != 0 && host.memory < MIN_MEMORY {
        return Err(ApiError::invalid("Minimum memory limit allowed is 6MB"));
    }
    resources.memory = positive(host.memory, "memory")?;
    resources.memory_swap = match host.memory_swap {
        0 => None,
        -1 => Some(-1),
        swap if swap < -1 => {
            return Err(ApiError::invalid(format!("invalid memory swap limit: {swap}")));
        }
        _ if host.memory == 0 => {
            return Err(ApiError::invalid(
                "You should always set the Memory limit when using Memoryswap limit, see usage",
            ));
        }
        swap if swap < host.memory => {
            return Err(ApiError::invalid(
                "Minimum memoryswap limit should be larger than memory limit, see usage",
            ));
        }
        swap => Some(swap),
    };
    if host.memory_reservation != 0 && host.memory_reservation < MIN_MEMORY {
        return Err(ApiError::invalid("Minimum memory reservation allowed is 6MB"));
    }
    if host.memory > 0 && host.memory_reservation > 0 && host.memory < host.memory_reservation {
        return Err(ApiError::invalid(
            "Minimum memory limit can not be less than memory reservation limit, see usage",
        ));
    }
    resources.memory_reservation = positive(host.memory_reservation, "memory reservation")?;
    resources.oom_kill_disable = host.oom_kill_disable.unwrap_or(false);
    if resources.oom_kill_disable && resources.memory.is_none() {
        warnings.push(
            "OOM killer is disabled for the container, but no memory limit is set, this can result in the system running out of resources."
                .into(),
        );
    }
    match host.memory_swappiness {
        None | Some(-1) => Ok(()),
        Some(value @ 0..=100) => {
            warnings.push(format!("memory swappiness {value} is ignored by this version of Knarr"));
            Ok(())
        }
        Some(value) => Err(ApiError::invalid(format!(
            "invalid value: {value}, valid memory swappiness range is 0-100"
        ))),
    }
}

/// Processors of this machine. Read from the control groups: to be asked only for a request
/// that names some.
fn cpus() -> i64 {
    std::thread::available_parallelism().map_or(1, |n| n.get() as i64)
}

fn cpu(host: &HostConfig, resources: &mut Resources) -> Result<()> {
    if host.nano_cpus != 0 {
        let cpus = cpus();
        for (set, what) in [(host.cpu_period != 0, "Period"), (host.cpu_quota != 0, "Quota")] {
            if set {
                return Err(ApiError::invalid(format!(
                    "Conflicting options: Nano CPUs and CPU {what} cannot both be set"
                )));
            }
        }
        if host.nano_cpus < 0 || host.nano_cpus > cpus * 1_000_000_000 {
            return Err(ApiError::invalid(format!(
                "range of CPUs is from 0.01 to {cpus}.00, as there are only {cpus} CPUs available"
            )));
        }
        resources.nano_cpus = u64::try_from(host.nano_cpus).ok();
    }
    if host.cpu_period != 0 {
        if !(1000..=1_000_000).contains(&host.cpu_period) {
            return Err(ApiError::invalid(
                "CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)",
            ));
        }
        resources.cpu_period = u64::try_from(host.cpu_period).ok();
    }
    if host.cpu_quota != 0 {
        if host.cpu_quota > 0 && host.cpu_quota < 1000 {
            return Err(ApiError::invalid("CPU cfs quota can not be less than 1ms (i.e. 1000)"));
        }
        resources.cpu_quota = Some(host.cpu_quota);
    }
    resources.cpu_shares = match host.cpu_shares {
        0 => None,
        shares if shares < 0 => {
            return Err(ApiError::invalid(format!(
                "invalid CPU shares {shares}: must not be negative"
            )));
        }
        shares => u64::try_from(shares.clamp(2, 262_144)).ok(),
    };
    resources.cpuset_cpus =
        cpuset(&host.cpuset_cpus, "cpus", (!host.cpuset_cpus.is_empty()).then(cpus))?;
    resources.cpuset_mems = cpuset(&host.cpuset_mems, "mems", None)?;
    Ok(())
}

/// `0-2,4`, each number on this machine.
fn cpuset(text: &str, what: &str, available: Option<i64>) -> Result<Option<String>> {
    if text.is_empty() {
        return Ok(None);
    }
    let bad = || ApiError::invalid(format!("Invalid value {} for cpuset {what}", short(text)));
    let number = |part: &str| part.trim().parse::<u32>().map_err(|_| bad());
    for range in text.split(',') {
        let (first, last) = match range.split_once('-') {
            Some((first, last)) => (number(first)?, number(last)?),
            None => (number(range)?, number(range)?),
        };
        if first > last {
            return Err(bad());
        }
        if let Some(available) = available.filter(|available| i64::from(last) >= *available) {
            return Err(ApiError::invalid(format!(
                "Requested CPUs are not available - requested {text}, available: 0-{}",
                available - 1
            )));
        }
    }
    Ok(Some(text.to_owned()))
}

fn ulimit(asked: &knarr_docker::HostUlimit) -> Result<Ulimit> {
    let name = asked.name.to_ascii_lowercase();
    if !ULIMITS.contains(&name.as_str()) {
        return Err(ApiError::invalid(format!("invalid ulimit type: {}", short(&asked.name))));
    }
    if asked.soft < -1 || asked.hard < -1 {
        return Err(ApiError::invalid(format!("invalid ulimit {name}: must not be negative")));
    }
    if asked.hard >= 0 && (asked.soft > asked.hard || asked.soft == -1) {
        return Err(ApiError::invalid(format!(
            "ulimit soft limit must be less than or equal to hard limit: {} > {}",
            asked.soft, asked.hard
        )));
    }
    Ok(Ulimit { name, soft: asked.soft, hard: asked.hard })
}

fn device(asked: &knarr_docker::DeviceMapping) -> Result<DeviceRequest> {
    let container = match asked.path_in_container.as_str() {
        "" => &asked.path_on_host,
        path => path,
    };
    for path in [asked.path_on_host.as_str(), container] {
        if !path.starts_with('/') || path.split('/').any(|part| part == "..") {
            return Err(ApiError::invalid(format!("invalid device path {:?}", short(path))));
        }
    }
    let access = match asked.cgroup_permissions.as_str() {
        "" => "rwm",
        text => text,
    };
    let once = |letter: char| access.matches(letter).count() <= 1;
    if !access.chars().all(|c| "rwm".contains(c) && once(c)) {
        return Err(ApiError::invalid(format!("invalid device mode: {}", short(access))));
    }
    Ok(DeviceRequest {
        host: PathBuf::from(&asked.path_on_host),
        container: PathBuf::from(container),
        access: access.to_owned(),
    })
}

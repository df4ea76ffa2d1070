//! `GET /containers/{id}/json`.

use std::collections::BTreeMap;

use knarr_docker::{
    ContainerConfig, ContainerInspect, ContainerState, Empty, EndpointIpamConfig, EndpointSettings,
    GraphDriver, HostConfig, HostPortBinding, KnarrWorkload, NetworkSettings, Words, ZERO_TIME,
};
use knarr_engine::{ContainerView, EndpointView, Status};
use knarr_model::{ContainerSpec, NetworkMode, RestartPolicy, Workload};

use super::{list::abi, mount_point};

/// Docker's masked paths.
const MASKED: [&str; 11] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
];
/// Docker's read-only paths.
const READ_ONLY: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Everything about one container.
pub(crate) fn container(view: &ContainerView) -> ContainerInspect {
    let state = &view.state;
    let etc = |name: &str| view.etc.join(name).display().to_string();
    ContainerInspect {
        id: view.id.to_string(),
        created: view.created.clone(),
        path: view.path.clone(),
        args: view.args.clone(),
        state: ContainerState {
            status: state.status.as_str().into(),
            running: state.status.is_running(),
            paused: state.status == Status::Paused,
            restarting: state.status == Status::Restarting,
            oom_killed: state.oom_killed,
            dead: state.status == Status::Dead,
            pid: state.pid.into(),
            exit_code: state.exit_code.into(),
            error: state.error.clone(),
            started_at: state.started_at.clone().unwrap_or_else(|| ZERO_TIME.into()),
            finished_at: state.finished_at.clone().unwrap_or_else(|| ZERO_TIME.into()),
            health: None,
        },
        image: view.image_id.to_string(),
        resolv_conf_path: etc("resolv.conf"),
        hostname_path: etc("hostname"),
        hosts_path: etc("hosts"),
        log_path: view.log_path.as_ref().map(|path| path.display().to_string()).unwrap_or_default(),
        name: format!("/{}", view.name),
        restart_count: view.restart_count.into(),
        driver: "overlay2".into(),
        platform: "linux".into(),
        app_armor_profile: view.spec.security.apparmor.clone().unwrap_or_default(),
        exec_ids: Some(view.execs.iter().map(ToString::to_string).collect::<Vec<_>>())
            .filter(|ids| !ids.is_empty()),
        host_config: host_config(view),
        graph_driver: graph_driver(view),
        mounts: view.mounts.iter().map(mount_point).collect(),
        config: config(view),
        network_settings: network_settings(view),
        knarr: Some(workload(&view.workload, "")),
        ..ContainerInspect::default()
    }
}

/// What an image or a container is, and why.
pub(crate) fn workload(workload: &Workload, reason: &str) -> KnarrWorkload {
    let words = abi(workload);
    let (module, module_path) = match workload {
        Workload::Native { .. } => (String::new(), String::new()),
        Workload::Wasm { module, path, .. } => {
            (module.to_string(), path.clone().unwrap_or_default())
        }
    };
    KnarrWorkload {
        workload: words.workload,
        reason: reason.into(),
        abi: words.abi,
        module,
        module_path,
        ..KnarrWorkload::default()
    }
}

/// A part of what the client asked, as it asked it.
fn asked<T: Default + serde::de::DeserializeOwned>(spec: &ContainerSpec, part: &str) -> T {
    spec.request
        .get(part)
        .and_then(|value| serde_json::from_value(value.clone()).ok())
        .unwrap_or_default()
}

/// What the client asked, with what the image says merged in.
fn config(view: &ContainerView) -> ContainerConfig {
    let spec = &view.spec;
    let mut config: ContainerConfig = asked(spec, "Config");
    if config.hostname.is_empty() {
        config.hostname = match &spec.network_mode {
            NetworkMode::Container(_) => String::new(),
            _ => spec.hostname.clone().unwrap_or_else(|| view.id.short().into()),
        };
    }
    config.image.clone_from(&spec.image);
    config.user = spec.user.clone().unwrap_or_default();
    config.env = Some(spec.env.clone());
    config.cmd = spec.cmd.clone().map(Words);
    config.entrypoint = spec.entrypoint.clone().map(Words);
    config.working_dir =
        spec.working_dir.as_ref().map(|dir| dir.display().to_string()).unwrap_or_default();
    config.labels = Some(spec.labels.clone());
    let exposed: BTreeMap<_, _> =
        spec.exposed_ports.iter().map(|port| (port.to_string(), Empty {})).collect();
    config.exposed_ports = Some(exposed).filter(|ports| !ports.is_empty());
    let volumes: BTreeMap<_, _> =
        spec.anonymous_volumes.iter().map(|path| (path.display().to_string(), Empty {})).collect();
    config.volumes = Some(volumes).filter(|volumes| !volumes.is_empty());
    if let Some(signal) = spec.stop_signal {
        config.stop_signal = signal.to_string();
    }
    config
}

/// What the client asked, with Docker's defaults in the places it left empty.
fn host_config(view: &ContainerView) -> HostConfig {
    let spec = &view.spec;
    let mut host: HostConfig = asked(spec, "HostConfig");
    if host.log_config.kind.is_empty() {
        host.log_config.kind.clone_from(&spec.log.driver);
    }
    host.log_config.config.get_or_insert_default();
    host.network_mode = network_mode(spec);
    host.port_bindings.get_or_insert_default();
    updated(&mut host, spec);
    let known = &mut host.known;
    for (text, default) in [
        (&mut known.ipc_mode, "private"),
        (&mut known.cgroupns_mode, "private"),
        (&mut known.runtime, "knarr"),
    ] {
        if text.is_empty() {
            *text = default.into();
        }
    }
    if host.shm_size == 0 {
        host.shm_size = 64 << 20;
    }
    host.pids_limit = host.pids_limit.filter(|limit| *limit > 0);
    host.memory_swappiness = host.memory_swappiness.filter(|value| *value >= 0);
    // Docker's daemon answers twice the memory where swap was not mentioned.
    if host.memory > 0 && host.memory_swap == 0 {
        host.memory_swap = host.memory.saturating_mul(2);
    }
    if !spec.security.privileged && !spec.security.unconfined_paths {
        let list = |paths: &[&str]| Some(paths.iter().map(|path| (*path).to_owned()).collect());
        host.masked_paths = list(&MASKED);
        host.readonly_paths = list(&READ_ONLY);
    }
    host
}

/// What `update` may have changed since.
fn updated(host: &mut HostConfig, spec: &ContainerSpec) {
    let (name, retries) = match spec.restart {
        RestartPolicy::No => ("no", 0),
        RestartPolicy::Always => ("always", 0),
        RestartPolicy::UnlessStopped => ("unless-stopped", 0),
        RestartPolicy::OnFailure { max_retries } => ("on-failure", max_retries.into()),
    };
    host.restart_policy.name = name.into();
    host.restart_policy.maximum_retry_count = retries;
    let of = &spec.resources;
    let number = |field: &mut i64, value: Option<u64>| {
        if let Some(value) = value.and_then(|value| i64::try_from(value).ok()) {
            *field = value;
        }
    };
    number(&mut host.memory, of.memory);
    number(&mut host.memory_reservation, of.memory_reservation);
    number(&mut host.nano_cpus, of.nano_cpus);
    number(&mut host.cpu_shares, of.cpu_shares);
    number(&mut host.cpu_period, of.cpu_period);
    host.memory_swap = of.memory_swap.unwrap_or(host.memory_swap);
    host.cpu_quota = of.cpu_quota.unwrap_or(host.cpu_quota);
    if let Some(limit) = of.pids.and_then(|limit| i64::try_from(limit).ok()) {
        host.pids_limit = Some(limit);
    }
    if let Some(set) = &of.cpuset_cpus {
        host.cpuset_cpus.clone_from(set);
    }
    if let Some(set) = &of.cpuset_mems {
        host.cpuset_mems.clone_from(set);
    }
}

/// `bridge`, `host`, `none`, `container:…` or a network's name.
pub(crate) fn network_mode(spec: &ContainerSpec) -> String {
    match &spec.network_mode {
        NetworkMode::Default => "bridge".into(),
        NetworkMode::None => "none".into(),
        NetworkMode::Host => "host".into(),
        NetworkMode::Container(other) => format!("container:{other}"),
        NetworkMode::Network(name) => name.clone(),
    }
}

fn graph_driver(view: &ContainerView) -> GraphDriver {
    let lower: Vec<String> = view.lower.iter().map(|dir| dir.display().to_string()).collect();
    let mut data = BTreeMap::from([
        ("ID".to_owned(), view.id.to_string()),
        ("LowerDir".to_owned(), lower.join(":")),
    ]);
    if let Some(upper) = &view.upper {
        data.insert("UpperDir".into(), upper.display().to_string());
        data.insert("WorkDir".into(), upper.with_file_name("work").display().to_string());
    }
    GraphDriver { data: Some(data), name: "overlay2".into() }
}

/// Places in networks, by name.
pub(crate) fn endpoints(view: &ContainerView) -> BTreeMap<String, EndpointSettings> {
    view.endpoints.iter().map(|(name, end)| (name.clone(), endpoint(end))).collect()
}

fn endpoint(end: &EndpointView) -> EndpointSettings {
    let text = |ip: Option<std::net::IpAddr>| ip.map(|ip| ip.to_string()).unwrap_or_default();
    let fixed = |ip: Option<String>| ip.unwrap_or_default();
    let asked = &end.asked;
    let ipam = (asked.ipv4.is_some() || asked.ipv6.is_some()).then(|| EndpointIpamConfig {
        ipv4_address: fixed(asked.ipv4.map(|ip| ip.to_string())),
        ipv6_address: fixed(asked.ipv6.map(|ip| ip.to_string())),
        link_local_ips: None,
    });
    EndpointSettings {
        ipam_config: ipam,
        aliases: Some(asked.aliases.clone()).filter(|aliases| !aliases.is_empty()),
        mac_address: end.mac.clone(),
        network_id: end.network_id.clone(),
        endpoint_id: end.endpoint_id.clone(),
        gateway: text(end.gateway),
        ip_address: text(end.ipv4.map(|(ip, _)| ip)),
        ip_prefix_len: end.ipv4.map_or(0, |(_, bits)| bits.into()),
        ipv6_gateway: text(end.gateway6),
        global_ipv6_address: text(end.ipv6.map(|(ip, _)| ip)),
        global_ipv6_prefix_len: end.ipv6.map_or(0, |(_, bits)| bits.into()),
        dns_names: Some(end.dns_names.clone()).filter(|names| !names.is_empty()),
        ..EndpointSettings::default()
    }
}

fn network_settings(view: &ContainerView) -> NetworkSettings {
    let networks = endpoints(view);
    let bridge = networks.get("bridge").cloned().unwrap_or_default();
    let running = view.state.status.is_running();
    let mut ports = BTreeMap::new();
    if running {
        for port in &view.spec.exposed_ports {
            ports.insert(port.to_string(), None);
        }
        for published in &view.ports {
            let entry = ports.entry(published.container.to_string()).or_insert(None);
            entry.get_or_insert_with(Vec::new).push(HostPortBinding {
                host_ip: published.host_ip.to_string(),
                host_port: published.host_port.to_string(),
            });
        }
    }
    NetworkSettings {
        sandbox_id: if running { view.id.to_string() } else { String::new() },
        sandbox_key: match view.state.pid {
            0 => String::new(),
            pid => format!("/proc/{pid}/ns/net"),
        },
        ports: Some(ports),
        endpoint_id: bridge.endpoint_id,
        gateway: bridge.gateway,
        global_ipv6_address: bridge.global_ipv6_address,
        global_ipv6_prefix_len: bridge.global_ipv6_prefix_len,
        ip_address: bridge.ip_address,
        ip_prefix_len: bridge.ip_prefix_len,
        ipv6_gateway: bridge.ipv6_gateway,
        mac_address: bridge.mac_address,
        networks,
        ..NetworkSettings::default()
    }
}

//! `POST /containers/create`: Docker's JSON to a [`ContainerSpec`].
//!
//! A pure function of the request. Every value is checked here, before
//! anything is made, in Docker's words where it has them (moby
//! `daemon/container.go`, `runconfig/hostconfig_unix.go`); what is accepted but
//! has no effect becomes a warning.

mod counts;
mod limits;
mod mounts;
mod network;
mod security;

pub(crate) use counts::few;
pub(crate) use network::endpoint;

use std::path::PathBuf;

use knarr_docker::{ContainerConfig, ContainerCreateRequest, HostConfig, NetworkingConfig};
use knarr_model::{ContainerSpec, LogConfig, NamespaceMode, RestartPolicy};

use crate::error::{ApiError, Result, short};

/// What is asked, and what the client should know about it.
#[derive(Debug)]
pub(crate) struct Parsed {
    pub(crate) spec: ContainerSpec,
    pub(crate) warnings: Vec<String>,
    /// `--volumes-from`, resolved by the caller who knows the containers.
    pub(crate) volumes_from: Vec<String>,
}

/// The most bytes of one label, variable or argument list item.
const MAX_TEXT: usize = 1 << 20;

/// Checks a request and turns it into the engine's own words.
pub(crate) fn parse(request: ContainerCreateRequest, platform: Option<&str>) -> Result<Parsed> {
    let config = request.config;
    let host = request.host_config.unwrap_or_default();
    let networking = request.networking_config.unwrap_or_default();
    counts::check(&config, &host, &networking)?;
    let words = serde_json::json!({
        "Config": config, "HostConfig": host, "NetworkingConfig": networking,
    });
    let mut spec = ContainerSpec { request: words, ..ContainerSpec::default() };
    let mut warnings = Vec::new();

    if config.image.is_empty() {
        return Err(ApiError::invalid("no image specified"));
    }
    spec.image = config.image.clone();
    spec.platform = platform
        .map(str::parse)
        .transpose()
        .map_err(|error: knarr_model::PlatformError| ApiError::invalid(error.to_string()))?;
    process(&config, &mut spec)?;
    life(&config, &host, &mut spec)?;
    namespaces(&config, &host, &mut spec)?;
    spec.log = log(&host)?;
    limits::apply(&host, &mut spec, &mut warnings)?;
    mounts::apply(&config, &host, &mut spec)?;
    network::apply(&config, &host, &networking, &mut spec, &mut warnings)?;
    security::apply(&host, &mut spec, &mut warnings)?;
    without_effect(&config, &host, &networking, &mut warnings)?;
    let volumes_from = host.volumes_from.clone().unwrap_or_default();
    Ok(Parsed { spec, warnings, volumes_from })
}

/// What is executed, as whom, where, with what.
fn process(config: &ContainerConfig, spec: &mut ContainerSpec) -> Result<()> {
    let texts = |words: &Option<knarr_docker::Words>| words.as_ref().map(|words| words.0.clone());
    // Docker: an empty command is as good as none; an empty entrypoint removes the image's.
    spec.cmd = texts(&config.cmd).filter(|words| !words.is_empty());
    spec.entrypoint = texts(&config.entrypoint).map(|words| match words.as_slice() {
        [only] if only.is_empty() => Vec::new(),
        _ => words,
    });
    spec.env = environment(config.env.as_deref().unwrap_or_default())?;
    spec.working_dir = working_dir(&config.working_dir)?;
    spec.user = Some(config.user.clone()).filter(|user| !user.is_empty());
    spec.tty = config.tty;
    spec.open_stdin = config.open_stdin;
    spec.stdin_once = config.stdin_once;
    spec.labels = config.labels.clone().unwrap_or_default();
    if let Some((key, _)) =
        spec.labels.iter().find(|(key, value)| key.len() + value.len() > MAX_TEXT)
    {
        return Err(ApiError::invalid(format!("label {:?} is too long", short(key))));
    }
    let words = spec.cmd.iter().chain(&spec.entrypoint).flatten();
    if words.map(String::len).sum::<usize>() > 2 * MAX_TEXT {
        return Err(ApiError::invalid("argument list too long"));
    }
    Ok(())
}

/// `NAME=value` or `NAME`, which must not be empty.
pub(crate) fn environment(asked: &[String]) -> Result<Vec<String>> {
    for variable in asked {
        if variable.is_empty() || variable.starts_with('=') {
            return Err(ApiError::invalid(format!("invalid environment variable: {variable}")));
        }
        if variable.len() > MAX_TEXT {
            return Err(ApiError::invalid("environment variable is too long"));
        }
    }
    Ok(asked.to_vec())
}

/// Absolute, or nothing.
pub(crate) fn working_dir(text: &str) -> Result<Option<PathBuf>> {
    match text {
        "" => Ok(None),
        _ if text.starts_with('/') => Ok(Some(mounts::clean(text))),
        _ => Err(ApiError::invalid(format!(
            "the working directory '{text}' is invalid, it needs to be an absolute path"
        ))),
    }
}

/// How it ends and what happens then.
fn life(config: &ContainerConfig, host: &HostConfig, spec: &mut ContainerSpec) -> Result<()> {
    if !config.stop_signal.is_empty() {
        let signal = config.stop_signal.parse();
        spec.stop_signal = Some(
            signal
                .map_err(|error: knarr_model::SignalError| ApiError::invalid(error.to_string()))?,
        );
    }
    spec.stop_timeout = match config.stop_timeout {
        None => None,
        // Docker's -1 waits without end; a century is as good.
        Some(seconds) if seconds < 0 => Some(u32::MAX),
        Some(seconds) => Some(u32::try_from(seconds).unwrap_or(u32::MAX)),
    };
    spec.init = host.init.unwrap_or(false);
    spec.auto_remove = host.auto_remove;
    spec.restart = restart(&host.restart_policy)?;
    if spec.auto_remove && spec.restart != RestartPolicy::No {
        return Err(ApiError::invalid("can't create 'AutoRemove' container with restart policy"));
    }
    Ok(())
}

/// Docker's words for a restart policy.
pub(crate) fn restart(asked: &knarr_docker::HostRestartPolicy) -> Result<RestartPolicy> {
    let retries = asked.maximum_retry_count;
    if asked.name != "on-failure" && retries != 0 {
        let only = "invalid restart policy: maximum retry count can only be used with 'on-failure'";
        let both = if retries < 0 { format!("{only} and cannot be negative") } else { only.into() };
        return Err(ApiError::invalid(both));
    }
    match asked.name.as_str() {
        "" | "no" => Ok(RestartPolicy::No),
        "always" => Ok(RestartPolicy::Always),
        "unless-stopped" => Ok(RestartPolicy::UnlessStopped),
        "on-failure" => Ok(RestartPolicy::OnFailure {
            max_retries: u32::try_from(retries).map_err(|_| {
                ApiError::invalid("invalid restart policy: maximum retry count cannot be negative")
            })?,
        }),
        other => Err(ApiError::invalid(format!(
            "invalid restart policy: unknown policy '{other}'; use one of 'no', 'always', 'on-failure', or 'unless-stopped'"
        ))),
    }
}

/// Host name and shared namespaces.
fn namespaces(config: &ContainerConfig, host: &HostConfig, spec: &mut ContainerSpec) -> Result<()> {
    let name = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    spec.hostname = name(&config.hostname);
    spec.domainname = name(&config.domainname);
    for (what, text) in [("hostname", &spec.hostname), ("domainname", &spec.domainname)] {
        // sethostname(2) takes 64 bytes; anything else would break /etc/hosts.
        let fits = |text: &String| {
            text.len() <= 64
                && text
                    .bytes()
                    .all(|c| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'-' | b'_'))
        };
        if let Some(text) = text.as_ref().filter(|text| !fits(text)) {
            let shown: String = text.chars().take(80).collect();
            return Err(ApiError::invalid(format!("invalid {what} format: {shown:?}")));
        }
    }
    spec.pid_mode = mode("PID", &host.pid_mode, &["private"], &[])?;
    spec.ipc_mode = mode("IPC", &host.ipc_mode, &["private", "none"], &["shareable"])?;
    spec.uts_mode = match mode("UTS", &host.uts_mode, &["private"], &[])? {
        NamespaceMode::Container(_) => {
            return Err(ApiError::invalid(format!("invalid UTS mode: {}", host.uts_mode)));
        }
        mode => mode,
    };
    if spec.uts_mode == NamespaceMode::Host && spec.hostname.is_some() {
        return Err(ApiError::invalid("conflicting options: hostname and the UTS mode"));
    }
    match host.userns_mode.as_str() {
        "" | "host" => {}
        other => return Err(ApiError::invalid(format!("invalid user namespace mode: {other}"))),
    }
    match host.cgroupns_mode.as_str() {
        "" | "private" | "host" => {}
        other => return Err(ApiError::invalid(format!("invalid cgroup namespace mode: {other}"))),
    }
    spec.group_add = host.group_add.clone().unwrap_or_default();
    spec.oom_score_adj = match host.oom_score_adj {
        0 => None,
        score @ -1000..=1000 => i32::try_from(score).ok(),
        score => {
            return Err(ApiError::invalid(format!(
                "Invalid value {score}, range for oom score adj is [-1000, 1000]"
            )));
        }
    };
    Ok(())
}

fn mode(kind: &str, text: &str, private: &[&str], shareable: &[&str]) -> Result<NamespaceMode> {
    match text {
        "" => Ok(NamespaceMode::Private),
        "host" => Ok(NamespaceMode::Host),
        _ if private.contains(&text) => Ok(NamespaceMode::Private),
        _ if shareable.contains(&text) => Ok(NamespaceMode::Shareable),
        _ => match text.strip_prefix("container:") {
            Some(other) if !other.is_empty() => Ok(NamespaceMode::Container(other.to_owned())),
            _ => Err(ApiError::invalid(format!("invalid {kind} mode: {text}"))),
        },
    }
}

/// Log driver and its options.
fn log(host: &HostConfig) -> Result<LogConfig> {
    let mut log = LogConfig::default();
    match host.log_config.kind.as_str() {
        "" | "json-file" => {}
        kind @ ("local" | "none") => log.driver = kind.to_owned(),
        other => {
            return Err(ApiError::invalid(format!(
                "logger: no log driver named '{other}' is registered"
            )));
        }
    }
    for (key, value) in host.log_config.config.iter().flatten() {
        match key.as_str() {
            "max-size" if value == "-1" => log.max_size = u64::MAX,
            "max-size" => {
                log.max_size = parse_size(value).filter(|size| *size > 0).ok_or_else(|| {
                    ApiError::invalid(format!("invalid value for max-size: {value}"))
                })?;
            }
            "max-file" => {
                log.max_files = value.parse().ok().filter(|files| *files > 0).ok_or_else(|| {
                    ApiError::invalid(format!("invalid value for max-file: {value}"))
                })?;
            }
            // What changes only what is written beside the line, or how it is buffered.
            "compress" | "mode" | "max-buffer-size" | "tag" | "labels" | "labels-regex" | "env"
            | "env-regex" => {}
            other => {
                return Err(ApiError::invalid(format!(
                    "unknown log opt '{other}' for {} log driver",
                    log.driver
                )));
            }
        }
    }
    Ok(log)
}

/// `10m`, `64kb`, `1.5g`, `100`: powers of 1024, as Docker's `units.RAMInBytes`.
pub(crate) fn parse_size(text: &str) -> Option<u64> {
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic()).trim_end();
    let unit = lower[digits.len()..].trim();
    let shift = match unit.trim_end_matches("ib").trim_end_matches('b') {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        "p" => 50,
        _ => return None,
    };
    if !digits.bytes().all(|c| c.is_ascii_digit() || c == b'.') {
        return None;
    }
    if let Ok(whole) = digits.parse::<u64>() {
        return whole.checked_mul(1 << shift);
    }
    let bytes = digits.parse::<f64>().ok()? * (1_u64 << shift) as f64;
    (bytes < 9e18).then_some(bytes as u64)
}

/// `POST /containers/{id}/update`: limits and restart policy.
pub(crate) fn parse_update(host: &HostConfig) -> Result<(knarr_engine::Update, Vec<String>)> {
    let (mut spec, mut warnings) = (ContainerSpec::default(), Vec::new());
    limits::apply(host, &mut spec, &mut warnings)?;
    let restart = match host.restart_policy.name.is_empty() {
        true => None,
        false => Some(restart(&host.restart_policy)?),
    };
    Ok((knarr_engine::Update { resources: spec.resources, restart }, warnings))
}

/// What is kept for `inspect` and does nothing else: said, not hidden.
fn without_effect(
    config: &ContainerConfig,
    host: &HostConfig,
    networking: &NetworkingConfig,
    warnings: &mut Vec<String>,
) -> Result<()> {
    match host.runtime.as_str() {
        "" | "knarr" | "runc" | "io.containerd.runc.v2" | "io.containerd.knarr.v1" => {}
        other => {
            return Err(ApiError::invalid(format!("unknown or invalid runtime name: {other}")));
        }
    }
    match host.isolation.as_str() {
        "" | "default" => {}
        other => {
            return Err(ApiError::invalid(format!(
                "invalid isolation {other:?}: linux does not support it"
            )));
        }
    }
    let probes = config.healthcheck.as_ref().and_then(|health| health.test.as_ref());
    let has_probe = probes.is_some_and(|test| !test.is_empty() && test[0] != "NONE");
    let links = networking.endpoints_config.iter().flatten().filter_map(|(_, e)| e.as_ref());
    let has_links = links.filter_map(|endpoint| endpoint.links.as_ref()).any(|l| !l.is_empty())
        || host.links.as_ref().is_some_and(|links| !links.is_empty());
    for (asked, what) in [
        (has_probe, "health checks are not run"),
        (has_links, "links are ignored: use a user-defined network"),
        (host.storage_opt.as_ref().is_some_and(|o| !o.is_empty()), "storage options are ignored"),
        (host.blkio_weight != 0, "block I/O weight is ignored"),
        (
            host.cpu_realtime_period != 0 || host.cpu_realtime_runtime != 0,
            "realtime CPU limits are ignored",
        ),
        (
            host.device_cgroup_rules.as_ref().is_some_and(|rules| !rules.is_empty()),
            "device cgroup rules are ignored",
        ),
        (host.cgroupns_mode == "host", "the cgroup namespace stays private"),
    ] {
        if asked {
            warnings.push(format!("{what} by this version of Knarr"));
        }
    }
    if host.device_requests.as_ref().is_some_and(|requests| !requests.is_empty()) {
        return Err(ApiError::invalid("could not select device driver \"\" with capabilities"));
    }
    for name in [
        "BlkioWeightDevice",
        "BlkioDeviceReadBps",
        "BlkioDeviceWriteBps",
        "BlkioDeviceReadIOps",
        "BlkioDeviceWriteIOps",
    ] {
        let set = |value: &serde_json::Value| value.as_array().is_some_and(|list| !list.is_empty());
        if host.other.get(name).is_some_and(set) {
            warnings.push(format!("{name} is ignored by this version of Knarr"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;

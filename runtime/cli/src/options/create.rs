//! The flags of `run` and `create`, and the request they make.

use std::{collections::BTreeMap, fs};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{ArgAction, Args};
use knarr_docker::{
    ContainerConfig, ContainerCreateRequest, DeviceMapping, EndpointIpamConfig, EndpointSettings,
    HealthConfig, HostConfig, HostRestartPolicy, HostUlimit, KnownHostConfig, NetworkingConfig,
    Words,
};

use super::{
    mounts::{self, Volumes, csv},
    ports::Ports,
    units,
};

/// What `run` and `create` share.
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// Add a custom host-to-IP mapping (host:ip)
    #[arg(long, value_name = "list")]
    add_host: Vec<String>,
    /// Attach to STDIN, STDOUT or STDERR
    #[arg(short = 'a', long, value_name = "list")]
    pub attach: Vec<String>,
    /// Add an annotation to the container
    #[arg(long, value_name = "map")]
    annotation: Vec<String>,
    /// Add Linux capabilities
    #[arg(long, value_name = "list")]
    cap_add: Vec<String>,
    /// Drop Linux capabilities
    #[arg(long, value_name = "list")]
    cap_drop: Vec<String>,
    /// Optional parent cgroup for the container
    #[arg(long, value_name = "string")]
    cgroup_parent: Option<String>,
    /// Cgroup namespace to use (host|private)
    #[arg(long, value_name = "string")]
    cgroupns: Option<String>,
    /// Write the container ID to the file
    #[arg(long, value_name = "string")]
    pub cidfile: Option<String>,
    /// Limit CPU CFS period
    #[arg(long, value_name = "int")]
    cpu_period: Option<i64>,
    /// Limit CPU CFS quota
    #[arg(long, value_name = "int", allow_negative_numbers = true)]
    cpu_quota: Option<i64>,
    /// CPU shares (relative weight)
    #[arg(short = 'c', long, value_name = "int")]
    cpu_shares: Option<i64>,
    /// Number of CPUs
    #[arg(long, value_name = "decimal")]
    cpus: Option<String>,
    /// CPUs in which to allow execution (0-3, 0,1)
    #[arg(long, value_name = "string")]
    cpuset_cpus: Option<String>,
    /// MEMs in which to allow execution (0-3, 0,1)
    #[arg(long, value_name = "string")]
    cpuset_mems: Option<String>,
    /// Add a host device to the container
    #[arg(long, value_name = "list")]
    device: Vec<String>,
    /// Set custom DNS servers
    #[arg(long, value_name = "list")]
    dns: Vec<String>,
    /// Set DNS options
    #[arg(long, alias = "dns-opt", value_name = "list")]
    dns_option: Vec<String>,
    /// Set custom DNS search domains
    #[arg(long, value_name = "list")]
    dns_search: Vec<String>,
    /// Container NIS domain name
    #[arg(long, value_name = "string")]
    domainname: Option<String>,
    /// Overwrite the default ENTRYPOINT of the image
    #[arg(long, value_name = "string")]
    entrypoint: Option<String>,
    /// Set environment variables
    #[arg(short = 'e', long, value_name = "list")]
    env: Vec<String>,
    /// Read in a file of environment variables
    #[arg(long, value_name = "list")]
    env_file: Vec<String>,
    /// Expose a port or a range of ports
    #[arg(long, value_name = "list")]
    expose: Vec<String>,
    /// Add additional groups to join
    #[arg(long, value_name = "list")]
    group_add: Vec<String>,
    /// Command to run to check health
    #[arg(long, value_name = "string")]
    health_cmd: Option<String>,
    /// Time between running the check (ms|s|m|h)
    #[arg(long, value_name = "duration")]
    health_interval: Option<String>,
    /// Consecutive failures needed to report unhealthy
    #[arg(long, value_name = "int")]
    health_retries: Option<i64>,
    /// Time between running the check during the start period (ms|s|m|h)
    #[arg(long, value_name = "duration")]
    health_start_interval: Option<String>,
    /// Start period for the container to initialize (ms|s|m|h)
    #[arg(long, value_name = "duration")]
    health_start_period: Option<String>,
    /// Maximum time to allow one check to run (ms|s|m|h)
    #[arg(long, value_name = "duration")]
    health_timeout: Option<String>,
    /// Disable any container-specified HEALTHCHECK
    #[arg(long)]
    no_healthcheck: bool,
    /// Container host name
    #[arg(short = 'h', long, value_name = "string")]
    hostname: Option<String>,
    /// Run an init inside the container that forwards signals and reaps processes
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "bool")]
    init: Option<bool>,
    /// Keep STDIN open even if not attached
    #[arg(short = 'i', long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false, value_name = "bool", action = ArgAction::Set)]
    pub interactive: bool,
    /// IPv4 address (e.g., 172.30.100.104)
    #[arg(long, value_name = "string")]
    ip: Option<String>,
    /// IPv6 address (e.g., 2001:db8::33)
    #[arg(long, value_name = "string")]
    ip6: Option<String>,
    /// IPC mode to use
    #[arg(long, value_name = "string")]
    ipc: Option<String>,
    /// Set meta data on a container
    #[arg(short = 'l', long, value_name = "list")]
    label: Vec<String>,
    /// Read in a line delimited file of labels
    #[arg(long, value_name = "list")]
    label_file: Vec<String>,
    /// Logging driver for the container
    #[arg(long, value_name = "string")]
    log_driver: Option<String>,
    /// Log driver options
    #[arg(long, value_name = "list")]
    log_opt: Vec<String>,
    /// Container MAC address (e.g., 92:d0:c6:0a:29:33)
    #[arg(long, value_name = "string")]
    mac_address: Option<String>,
    /// Memory limit
    #[arg(short = 'm', long, value_name = "bytes")]
    memory: Option<String>,
    /// Memory soft limit
    #[arg(long, value_name = "bytes")]
    memory_reservation: Option<String>,
    /// Swap limit equal to memory plus swap: '-1' to enable unlimited swap
    #[arg(long, value_name = "bytes", allow_hyphen_values = true)]
    memory_swap: Option<String>,
    /// Tune container memory swappiness (0 to 100)
    #[arg(long, value_name = "int", allow_negative_numbers = true)]
    memory_swappiness: Option<i64>,
    /// Attach a filesystem mount to the container
    #[arg(long, value_name = "mount")]
    mount: Vec<String>,
    /// Assign a name to the container
    #[arg(long, value_name = "string")]
    pub name: Option<String>,
    /// Connect a container to a network
    #[arg(long, alias = "net", value_name = "network")]
    network: Vec<String>,
    /// Add network-scoped alias for the container
    #[arg(long, alias = "net-alias", value_name = "list")]
    network_alias: Vec<String>,
    /// Disable OOM Killer
    #[arg(long)]
    oom_kill_disable: bool,
    /// Tune host's OOM preferences (-1000 to 1000)
    #[arg(long, value_name = "int", allow_negative_numbers = true)]
    oom_score_adj: Option<i64>,
    /// PID namespace to use
    #[arg(long, value_name = "string")]
    pid: Option<String>,
    /// Tune container pids limit (set -1 for unlimited)
    #[arg(long, value_name = "int", allow_negative_numbers = true)]
    pids_limit: Option<i64>,
    /// Set platform if server is multi-platform capable
    #[arg(long, value_name = "string", env = "DOCKER_DEFAULT_PLATFORM")]
    pub platform: Option<String>,
    /// Give extended privileges to this container
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false, value_name = "bool", action = ArgAction::Set)]
    privileged: bool,
    /// Publish a container's port(s) to the host
    #[arg(short = 'p', long, value_name = "list")]
    publish: Vec<String>,
    /// Publish all exposed ports to random ports
    #[arg(short = 'P', long)]
    publish_all: bool,
    /// Pull image before running ("always", "missing", "never")
    #[arg(long, value_name = "string", default_value = "missing")]
    pub pull: String,
    /// Suppress the pull output
    #[arg(short = 'q', long)]
    pub quiet: bool,
    /// Mount the container's root filesystem as read only
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false, value_name = "bool", action = ArgAction::Set)]
    read_only: bool,
    /// Restart policy to apply when a container exits
    #[arg(long, value_name = "string")]
    restart: Option<String>,
    /// Automatically remove the container when it exits
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false, value_name = "bool", action = ArgAction::Set)]
    pub rm: bool,
    /// Runtime to use for this container
    #[arg(long, value_name = "string")]
    runtime: Option<String>,
    /// Security Options
    #[arg(long, value_name = "list")]
    security_opt: Vec<String>,
    /// Size of /dev/shm
    #[arg(long, value_name = "bytes")]
    shm_size: Option<String>,
    /// Signal to stop the container
    #[arg(long, value_name = "string")]
    stop_signal: Option<String>,
    /// Timeout (in seconds) to stop a container
    #[arg(long, value_name = "int", allow_negative_numbers = true)]
    stop_timeout: Option<i64>,
    /// Storage driver options for the container
    #[arg(long, value_name = "list")]
    storage_opt: Vec<String>,
    /// Sysctl options
    #[arg(long, value_name = "map")]
    sysctl: Vec<String>,
    /// Mount a tmpfs directory
    #[arg(long, value_name = "list")]
    tmpfs: Vec<String>,
    /// Allocate a pseudo-TTY
    #[arg(short = 't', long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false, value_name = "bool", action = ArgAction::Set)]
    pub tty: bool,
    /// Ulimit options
    #[arg(long, value_name = "ulimit")]
    ulimit: Vec<String>,
    /// Username or UID (format: <name|uid>[:<group|gid>])
    #[arg(short = 'u', long, value_name = "string")]
    user: Option<String>,
    /// User namespace to use
    #[arg(long, value_name = "string")]
    userns: Option<String>,
    /// UTS namespace to use
    #[arg(long, value_name = "string")]
    uts: Option<String>,
    /// Bind mount a volume
    #[arg(short = 'v', long, value_name = "list")]
    volume: Vec<String>,
    /// Optional volume driver for the container
    #[arg(long, value_name = "string")]
    volume_driver: Option<String>,
    /// Mount volumes from the specified container(s)
    #[arg(long, value_name = "list")]
    volumes_from: Vec<String>,
    /// Working directory inside the container
    #[arg(short = 'w', long, value_name = "string")]
    workdir: Option<String>,
    /// IMAGE [COMMAND] [ARG...]
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        required = true,
        value_name = "IMAGE [COMMAND] [ARG...]"
    )]
    image_and_command: Vec<String>,
}

impl CreateArgs {
    /// The image, as written.
    ///
    /// # Errors
    /// When an unknown flag stands in its place.
    pub fn image(&self) -> Result<&str> {
        let image = self.image_and_command[0].as_str();
        match image.strip_prefix('-') {
            Some(_) => bail!("unknown flag: {}", image.split('=').next().unwrap_or(image)),
            None => Ok(image),
        }
    }

    /// The request for `POST /containers/create`.
    ///
    /// # Errors
    /// Where a flag does not parse.
    pub fn request(&self, detach: bool) -> Result<ContainerCreateRequest> {
        let image = self.image()?;
        let ports = Ports::parse(&self.publish, &self.expose)?;
        let volumes = Volumes::parse(&self.volume)?;
        let attach = self.attached(detach);
        let command = &self.image_and_command[1..];
        let config = ContainerConfig {
            hostname: self.hostname.clone().unwrap_or_default(),
            domainname: self.domainname.clone().unwrap_or_default(),
            user: self.user.clone().unwrap_or_default(),
            attach_stdin: attach.stdin,
            attach_stdout: attach.stdout,
            attach_stderr: attach.stderr,
            exposed_ports: (!ports.exposed.is_empty()).then_some(ports.exposed),
            tty: self.tty,
            open_stdin: self.interactive,
            stdin_once: self.interactive && attach.stdin,
            env: Some(units::environment(&self.env_file, &self.env)?),
            cmd: (!command.is_empty()).then(|| Words(command.to_vec())),
            healthcheck: self.health()?,
            image: image.to_owned(),
            volumes: (!volumes.anonymous.is_empty()).then_some(volumes.anonymous),
            working_dir: self.workdir.clone().unwrap_or_default(),
            entrypoint: self.entrypoint.clone().map(|word| Words(vec![word])),
            labels: Some(units::labels(&self.label_file, &self.label)?),
            stop_signal: self.stop_signal.clone().unwrap_or_default(),
            stop_timeout: self.stop_timeout,
            ..ContainerConfig::default()
        };
        let (network_mode, networking_config) = self.networks()?;
        let size = |text: &Option<String>| text.as_deref().map_or(Ok(0), units::bytes);
        let known = KnownHostConfig {
            binds: Some(volumes.binds),
            container_id_file: self.cidfile.clone().unwrap_or_default(),
            log_config: knarr_docker::HostLogConfig {
                kind: self.log_driver.clone().unwrap_or_default(),
                config: Some(units::pairs(&self.log_opt)),
            },
            network_mode,
            port_bindings: Some(ports.bindings),
            restart_policy: restart(self.restart.as_deref().unwrap_or("no"))?,
            auto_remove: self.rm,
            volume_driver: self.volume_driver.clone().unwrap_or_default(),
            volumes_from: Some(self.volumes_from.clone()),
            annotations: (!self.annotation.is_empty()).then(|| units::pairs(&self.annotation)),
            cap_add: Some(Words(self.cap_add.clone())),
            cap_drop: Some(Words(self.cap_drop.clone())),
            cgroupns_mode: self.cgroupns.clone().unwrap_or_default(),
            dns: Some(self.dns.clone()),
            dns_options: Some(self.dns_option.clone()),
            dns_search: Some(self.dns_search.clone()),
            extra_hosts: Some(
                self.add_host.iter().map(|word| word.replacen('=', ":", 1)).collect(),
            ),
            group_add: Some(self.group_add.clone()),
            ipc_mode: self.ipc.clone().unwrap_or_default(),
            oom_score_adj: self.oom_score_adj.unwrap_or(0),
            pid_mode: self.pid.clone().unwrap_or_default(),
            privileged: self.privileged,
            publish_all_ports: self.publish_all,
            readonly_rootfs: self.read_only,
            security_opt: Some(security_options(&self.security_opt)?),
            storage_opt: (!self.storage_opt.is_empty()).then(|| units::pairs(&self.storage_opt)),
            tmpfs: (!self.tmpfs.is_empty()).then(|| mounts::tmpfs_words(&self.tmpfs)),
            uts_mode: self.uts.clone().unwrap_or_default(),
            userns_mode: self.userns.clone().unwrap_or_default(),
            shm_size: size(&self.shm_size)?,
            sysctls: (!self.sysctl.is_empty()).then(|| units::pairs(&self.sysctl)),
            runtime: self.runtime.clone().unwrap_or_default(),
            cpu_shares: self.cpu_shares.unwrap_or(0),
            memory: size(&self.memory)?,
            nano_cpus: self.cpus.as_deref().map_or(Ok(0), units::cpus)?,
            cgroup_parent: self.cgroup_parent.clone().unwrap_or_default(),
            cpu_period: self.cpu_period.unwrap_or(0),
            cpu_quota: self.cpu_quota.unwrap_or(0),
            cpuset_cpus: self.cpuset_cpus.clone().unwrap_or_default(),
            cpuset_mems: self.cpuset_mems.clone().unwrap_or_default(),
            devices: Some(self.device.iter().map(|word| device(word)).collect::<Result<_>>()?),
            memory_reservation: size(&self.memory_reservation)?,
            memory_swap: match self.memory_swap.as_deref() {
                Some("-1") => -1,
                Some(text) => units::bytes(text)?,
                None => 0,
            },
            memory_swappiness: self.memory_swappiness,
            oom_kill_disable: self.oom_kill_disable.then_some(true),
            pids_limit: self.pids_limit,
            ulimits: Some(self.ulimit.iter().map(|word| ulimit(word)).collect::<Result<_>>()?),
            mounts: (!self.mount.is_empty())
                .then(|| self.mount.iter().map(|text| mounts::mount(text)).collect::<Result<_>>())
                .transpose()
                .map_err(|error| error.context("invalid argument for \"--mount\" flag"))?,
            init: self.init,
            ..KnownHostConfig::default()
        };
        Ok(ContainerCreateRequest {
            config,
            host_config: Some(HostConfig { known, other: BTreeMap::new() }),
            networking_config,
        })
    }

    /// Which streams `run` attaches.
    pub fn attached(&self, detach: bool) -> Attached {
        if detach {
            return Attached::default();
        }
        if self.attach.is_empty() {
            return Attached { stdin: self.interactive, stdout: true, stderr: true };
        }
        let wants = |name: &str| self.attach.iter().any(|word| word.eq_ignore_ascii_case(name));
        Attached { stdin: wants("stdin"), stdout: wants("stdout"), stderr: wants("stderr") }
    }

    /// The one network mode, and what is asked of each network.
    fn networks(&self) -> Result<(String, Option<NetworkingConfig>)> {
        let mut endpoints = BTreeMap::new();
        let mut mode = None;
        for (at, word) in self.network.iter().enumerate() {
            let (name, mut endpoint) = network(word)?;
            if at == 0 {
                self.first_endpoint(&mut endpoint);
            }
            mode.get_or_insert_with(|| name.clone());
            endpoints.insert(name, Some(endpoint));
        }
        let mode = mode.unwrap_or_else(|| "default".into());
        if endpoints.is_empty()
            && (self.ip.is_some() || self.mac_address.is_some() || !self.network_alias.is_empty())
        {
            let mut endpoint = EndpointSettings::default();
            self.first_endpoint(&mut endpoint);
            endpoints.insert(mode.clone(), Some(endpoint));
        }
        let config = (!endpoints.is_empty())
            .then_some(NetworkingConfig { endpoints_config: Some(endpoints) });
        Ok((mode, config))
    }

    fn first_endpoint(&self, endpoint: &mut EndpointSettings) {
        if !self.network_alias.is_empty() {
            endpoint.aliases.get_or_insert_default().extend(self.network_alias.iter().cloned());
        }
        if self.ip.is_some() || self.ip6.is_some() {
            endpoint.ipam_config = Some(EndpointIpamConfig {
                ipv4_address: self.ip.clone().unwrap_or_default(),
                ipv6_address: self.ip6.clone().unwrap_or_default(),
                link_local_ips: None,
            });
        }
        if let Some(address) = &self.mac_address {
            address.clone_into(&mut endpoint.mac_address);
        }
    }

    fn health(&self) -> Result<Option<HealthConfig>> {
        if self.no_healthcheck {
            ensure!(
                self.health_cmd.is_none(),
                "--no-healthcheck conflicts with --health-* options"
            );
            return Ok(Some(HealthConfig {
                test: Some(vec!["NONE".into()]),
                ..HealthConfig::default()
            }));
        }
        let time = |text: &Option<String>| text.as_deref().map_or(Ok(0), units::duration);
        let config = HealthConfig {
            test: self.health_cmd.clone().map(|command| vec!["CMD-SHELL".into(), command]),
            interval: time(&self.health_interval)?,
            timeout: time(&self.health_timeout)?,
            start_period: time(&self.health_start_period)?,
            start_interval: time(&self.health_start_interval)?,
            retries: self.health_retries.unwrap_or(0),
        };
        Ok((config != HealthConfig::default()).then_some(config))
    }
}

/// Which streams are attached.
#[derive(Debug, Clone, Copy, Default)]
pub struct Attached {
    /// Standard input.
    pub stdin: bool,
    /// Standard output.
    pub stdout: bool,
    /// Standard error.
    pub stderr: bool,
}

impl Attached {
    /// Any of them.
    pub fn any(self) -> bool {
        self.stdin || self.stdout || self.stderr
    }
}

/// `NETWORK` or `name=NETWORK,alias=…,ip=…` (docker/cli `opts/network.go`).
fn network(word: &str) -> Result<(String, EndpointSettings)> {
    if !word.contains('=') {
        return Ok((word.to_owned(), EndpointSettings::default()));
    }
    let mut name = None;
    let mut endpoint = EndpointSettings::default();
    for field in csv(word) {
        let (key, value) =
            field.split_once('=').with_context(|| format!("invalid field {field}"))?;
        match key {
            "name" => name = Some(value.to_owned()),
            "alias" => endpoint.aliases.get_or_insert_default().push(value.to_owned()),
            "ip" => {
                value.clone_into(&mut endpoint.ipam_config.get_or_insert_default().ipv4_address)
            }
            "ip6" => {
                value.clone_into(&mut endpoint.ipam_config.get_or_insert_default().ipv6_address)
            }
            "mac-address" => value.clone_into(&mut endpoint.mac_address),
            "driver-opt" => endpoint
                .driver_opts
                .get_or_insert_default()
                .extend(units::pairs(&[value.to_owned()])),
            "gw-priority" => endpoint.gw_priority = value.parse().context("invalid gw-priority")?,
            _ => bail!("invalid field key {key}"),
        }
    }
    Ok((name.with_context(|| format!("network name is required in {word:?}"))?, endpoint))
}

/// `no`, `always`, `unless-stopped`, `on-failure[:N]`.
pub fn restart(word: &str) -> Result<HostRestartPolicy> {
    let (name, count) = word.split_once(':').unwrap_or((word, ""));
    ensure!(
        matches!(name, "" | "no" | "always" | "unless-stopped" | "on-failure"),
        "invalid restart policy: unknown policy '{name}'; use one of 'no', 'always', 'on-failure', or 'unless-stopped'"
    );
    let maximum_retry_count = match count {
        "" => 0,
        count => count
            .parse()
            .ok()
            .filter(|_| name == "on-failure")
            .context("invalid restart policy format: maximum retry count must be an integer")?,
    };
    Ok(HostRestartPolicy { name: name.to_owned(), maximum_retry_count })
}

/// `nofile=1024[:2048]`.
fn ulimit(word: &str) -> Result<HostUlimit> {
    let bad = || format!("invalid ulimit argument: {word}");
    let (name, limits) = word.split_once('=').with_context(bad)?;
    let number = |text: &str| match text {
        "unlimited" => Ok(-1),
        text => text.parse::<i64>().ok().with_context(bad),
    };
    let (soft, hard) = match limits.split_once(':') {
        Some((soft, hard)) => (number(soft)?, number(hard)?),
        None => (number(limits)?, number(limits)?),
    };
    ensure!(
        hard < 0 || (soft >= 0 && soft <= hard),
        "ulimit soft limit must be less than or equal to hard limit: {soft} > {hard}"
    );
    Ok(HostUlimit { name: name.to_owned(), hard, soft })
}

/// `host[:container][:rwm]`.
fn device(word: &str) -> Result<DeviceMapping> {
    let is_mode = |text: &str| !text.is_empty() && text.chars().all(|c| "rwm".contains(c));
    let (host, container, mode) = match word.split(':').collect::<Vec<_>>()[..] {
        [host] => (host, host, "rwm"),
        [host, mode] if is_mode(mode) => (host, host, mode),
        [host, container] => (host, container, "rwm"),
        [host, container, mode] if is_mode(mode) => (host, container, mode),
        _ => bail!("invalid device specification: {word}"),
    };
    Ok(DeviceMapping {
        path_on_host: host.to_owned(),
        path_in_container: container.to_owned(),
        cgroup_permissions: mode.to_owned(),
    })
}

/// The file of `seccomp=FILE` is read here: the engine gets its content.
fn security_options(words: &[String]) -> Result<Vec<String>> {
    words
        .iter()
        .map(|word| {
            let Some((name, value)) = word.split_once(['=', ':']) else { return Ok(word.clone()) };
            if name != "seccomp" || matches!(value, "unconfined" | "builtin") {
                return Ok(word.clone());
            }
            let text = fs::read_to_string(value)
                .with_context(|| format!("opening seccomp profile ({value}) failed"))?;
            let profile: serde_json::Value = serde_json::from_str(&text)
                .with_context(|| format!("compacting json for seccomp profile ({value}) failed"))?;
            Ok(format!("seccomp={profile}"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    #[command(disable_help_flag = true)]
    struct Alone {
        #[command(flatten)]
        create: CreateArgs,
    }

    fn request(words: &[&str]) -> Result<ContainerCreateRequest> {
        Alone::try_parse_from([&["x"], words].concat())?.create.request(false)
    }

    #[test]
    fn what_stands_behind_the_image_is_the_command() {
        let made = request(&["-it", "--rm", "-e", "A=1", "img", "ls", "-l", "--rm"]).unwrap();
        assert_eq!(made.config.cmd.unwrap().0, ["ls", "-l", "--rm"]);
        assert!(made.config.tty && made.config.open_stdin && made.config.stdin_once);
        let made = request(&["img", "--flag"]).unwrap();
        assert_eq!(made.config.cmd.unwrap().0, ["--flag"]);
        assert!(
            request(&["--no-such-flag", "img"]).unwrap_err().to_string().contains("unknown flag")
        );
    }

    #[test]
    fn flags_may_be_denied() {
        assert!(!request(&["--rm=false", "img"]).unwrap().host_config.unwrap().auto_remove);
        assert!(request(&["--rm=true", "img"]).unwrap().host_config.unwrap().auto_remove);
    }

    #[test]
    fn networks_have_two_forms() {
        let made = request(&[
            "--network",
            "name=a,alias=x,ip=10.0.0.2",
            "--network",
            "b",
            "--network-alias",
            "y",
            "img",
        ])
        .unwrap();
        assert_eq!(made.host_config.unwrap().network_mode, "a");
        let endpoints = made.networking_config.unwrap().endpoints_config.unwrap();
        let a = endpoints["a"].clone().unwrap();
        assert_eq!(a.aliases.unwrap(), ["x", "y"]);
        assert_eq!(a.ipam_config.unwrap().ipv4_address, "10.0.0.2");
        assert!(endpoints.contains_key("b"));
    }

    #[test]
    fn small_grammars() {
        assert_eq!(restart("on-failure:3").unwrap().maximum_retry_count, 3);
        assert!(restart("sometimes").is_err() && restart("always:3").is_err());
        assert_eq!((ulimit("nofile=1:2").unwrap().soft, ulimit("core=-1").unwrap().hard), (1, -1));
        assert!(ulimit("nofile").is_err() && ulimit("nofile=3:2").is_err());
        assert_eq!(device("/dev/a:/dev/b:r").unwrap().cgroup_permissions, "r");
        assert!(device("/dev/a:/dev/b:z").is_err());
    }
}

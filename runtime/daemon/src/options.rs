//! What the daemon is told: dockerd's flags and `daemon.json` keys, as far as
//! they mean something here.
//!
//! A flag and a key that say the same thing twice, or a key that nobody knows,
//! keep the daemon from starting (CATALOGUE A11): a typo in a limit is worse
//! than a daemon that is down.

use std::{collections::BTreeMap, path::PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{ArgAction, Parser};
use serde::Deserialize;
use serde_json::Value;

/// The configuration file that is read if it is there.
pub(crate) const CONFIG_FILE: &str = "/etc/knarr/daemon.json";
/// Where clients look first.
pub(crate) const DEFAULT_HOST: &str = "unix:///run/knarr.sock";

/// A container engine for native and WebAssembly programs.
#[derive(Debug, Clone, Default, Parser)]
#[command(name = "knarrd", version, disable_version_flag = true)]
pub(crate) struct Flags {
    /// Configuration file [default: /etc/knarr/daemon.json]
    #[arg(long, value_name = "FILE")]
    pub(crate) config_file: Option<PathBuf>,
    /// Check the configuration and exit
    #[arg(long)]
    pub(crate) validate: bool,
    /// Print version information and exit
    #[arg(short = 'v', long, action = ArgAction::Version)]
    version: Option<bool>,
    /// Write a byte to this descriptor when the sockets listen
    #[arg(long, value_name = "FD")]
    pub(crate) ready_fd: Option<i32>,
    /// Directory of containerd-shim-knarr-v1 and knarr-wasm [default: knarrd's own]
    #[arg(long, value_name = "DIR", env = "KNARR_LIBEXEC")]
    pub(crate) libexec: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) settings: Settings,
}

/// What both a flag and a key of the file may say.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, clap::Args)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) struct Settings {
    /// What survives a reboot [default: /var/lib/knarr]
    #[arg(long, value_name = "DIR")]
    pub(crate) data_root: Option<PathBuf>,
    /// What does not [default: /run/knarr]
    #[arg(long, value_name = "DIR")]
    pub(crate) exec_root: Option<PathBuf>,
    /// Where to listen: unix://PATH, tcp://127.0.0.1:PORT, fd:// [default: unix:///run/knarr.sock]
    #[arg(short = 'H', long = "host", value_name = "HOST")]
    #[serde(default)]
    pub(crate) hosts: Vec<String>,
    /// Group that may open the unix sockets [default: knarr or docker, where there is one]
    #[arg(short = 'G', long, value_name = "GROUP")]
    pub(crate) group: Option<String>,
    /// File for the daemon's process id
    #[arg(short = 'p', long, value_name = "FILE")]
    pub(crate) pidfile: Option<PathBuf>,
    /// Log debug messages
    #[arg(short = 'D', long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub(crate) debug: Option<bool>,
    /// debug, info, warn or error [default: info]
    #[arg(short = 'l', long, value_name = "LEVEL")]
    pub(crate) log_level: Option<String>,
    /// Mirror that is asked before Docker Hub
    #[arg(long = "registry-mirror", value_name = "URL")]
    #[serde(default)]
    pub(crate) registry_mirrors: Vec<String>,
    /// Registry that may be spoken to over plain HTTP
    #[arg(long = "insecure-registry", value_name = "REGISTRY")]
    #[serde(default)]
    pub(crate) insecure_registries: Vec<String>,
    /// Interface name of the default bridge
    #[arg(short = 'b', long, value_name = "NAME")]
    pub(crate) bridge: Option<String>,
    /// Address of the default bridge: 172.17.0.1/16
    #[arg(long, value_name = "CIDR")]
    pub(crate) bip: Option<String>,
    /// Pool for new networks: base=172.30.0.0/16,size=24
    #[arg(long = "default-address-pool", value_name = "POOL")]
    #[serde(default)]
    pub(crate) default_address_pools: Vec<AddressPool>,
    /// What containers reach of the host's own services: accept (all, as dockerd), guard (all but knarrd's), drop (nothing) [default: guard]
    #[arg(long, value_name = "POLICY")]
    pub(crate) bridge_input: Option<String>,
    /// Largest packet on the bridges
    #[arg(long, value_name = "BYTES")]
    pub(crate) mtu: Option<u32>,
    /// Name server for containers
    #[arg(long, value_name = "ADDRESS")]
    #[serde(default)]
    pub(crate) dns: Vec<std::net::IpAddr>,
    /// What host-gateway means in --add-host
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) host_gateway_ip: Option<std::net::IpAddr>,
    /// Parent of all containers' cgroups
    #[arg(long, value_name = "PATH")]
    pub(crate) cgroup_parent: Option<String>,
    /// Label of the engine
    #[arg(long = "label", value_name = "KEY=VALUE")]
    #[serde(default)]
    pub(crate) labels: Vec<String>,
    /// Containers outlive the daemon: always true
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub(crate) live_restore: Option<bool>,
    /// Log driver of containers: json-file
    #[arg(long, value_name = "DRIVER")]
    pub(crate) log_driver: Option<String>,
    /// Log options of containers: they rotate at 10 MB, 3 files
    #[arg(skip)]
    pub(crate) log_opts: Option<BTreeMap<String, String>>,
    /// Size of /dev/shm of containers: 64m
    #[arg(long, value_name = "BYTES")]
    pub(crate) default_shm_size: Option<String>,
    /// Storage driver: overlay2
    #[arg(short = 's', long, value_name = "DRIVER")]
    pub(crate) storage_driver: Option<String>,
}

/// A pool that networks are cut from.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AddressPool {
    pub(crate) base: String,
    pub(crate) size: u8,
}

impl std::str::FromStr for AddressPool {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("invalid address pool {text:?}: want base=172.30.0.0/16,size=24");
        let (mut base, mut size) = (None, None);
        for part in text.split(',') {
            match part.split_once('=') {
                Some(("base", value)) => base = Some(value.to_owned()),
                Some(("size", value)) => size = value.parse().ok(),
                _ => return Err(bad()),
            }
        }
        Ok(Self { base: base.ok_or_else(bad)?, size: size.ok_or_else(bad)? })
    }
}

/// Flags and file together.
pub(crate) fn load(flags: &Flags) -> Result<Settings> {
    let (path, must) = match &flags.config_file {
        Some(path) => (path.clone(), true),
        None => (PathBuf::from(CONFIG_FILE), false),
    };
    let doing = || format!("unable to configure the daemon with file {}", path.display());
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !must => String::new(),
        Err(error) => return Err(error).with_context(doing),
    };
    let settings = merge(&flags.settings, &text).with_context(doing)?;
    check(&settings)?;
    Ok(settings)
}

/// The file's text and the flags, which may not say the same thing twice.
fn merge(flags: &Settings, text: &str) -> Result<Settings> {
    if text.trim().is_empty() {
        return Ok(flags.clone());
    }
    let file: Settings = serde_json::from_str(text).map_err(|error| match known(text) {
        Some(unknown) if !unknown.is_empty() => anyhow::anyhow!(
            "the following directives don't match any configuration option: {}",
            unknown.join(", ")
        ),
        _ => anyhow::anyhow!("{error}"),
    })?;
    let mut twice = Vec::new();
    macro_rules! one {
        ($($field:ident),*) => { Settings { $($field: {
            let (flag, file) = (&flags.$field, &file.$field);
            let none = Settings::default().$field;
            if *flag != none && *file != none {
                let name = stringify!($field).replace('_', "-");
                twice.push(format!("{name}: (from flag: {flag:?}, from file: {file:?})"));
            }
            if *flag == none { file.clone() } else { flag.clone() }
        }),* } };
    }
    let merged = one!(
        data_root,
        exec_root,
        hosts,
        group,
        pidfile,
        debug,
        log_level,
        registry_mirrors,
        insecure_registries,
        bridge,
        bip,
        default_address_pools,
        bridge_input,
        mtu,
        dns,
        host_gateway_ip,
        cgroup_parent,
        labels,
        live_restore,
        log_driver,
        log_opts,
        default_shm_size,
        storage_driver
    );
    ensure!(
        twice.is_empty(),
        "the following directives are specified both as a flag and in the configuration file: {}",
        twice.join(", ")
    );
    Ok(merged)
}

/// Keys of the file that no setting has; none where it is no object at all.
fn known(text: &str) -> Option<Vec<String>> {
    let Value::Object(keys) = serde_json::from_str(text).ok()? else { return None };
    let unknown = |key: &&String| {
        let alone = serde_json::json!({ key.as_str(): null });
        let error = serde_json::from_value::<Settings>(alone).err();
        error.is_some_and(|error| error.to_string().starts_with("unknown field"))
    };
    Some(keys.keys().filter(unknown).cloned().collect())
}

/// Values that make no sense, or that this engine does not do.
fn check(settings: &Settings) -> Result<()> {
    level(settings)?;
    for host in &settings.hosts {
        host.parse::<Host>()?;
    }
    for (name, value, supported) in [
        ("log-driver", &settings.log_driver, "json-file"),
        ("storage-driver", &settings.storage_driver, "overlay2"),
    ] {
        if let Some(value) = value.as_ref().filter(|value| *value != supported) {
            bail!("{name} {value:?} is not supported: knarrd has {supported}");
        }
    }
    ensure!(
        settings.live_restore != Some(false),
        "live-restore false is not supported: containers always outlive knarrd"
    );
    let size = settings.default_shm_size.as_deref();
    ensure!(
        size.is_none_or(|size| matches!(size, "64m" | "64M" | "64MiB" | "67108864")),
        "default-shm-size is not supported: use --shm-size of run"
    );
    for (key, value) in settings.log_opts.iter().flatten() {
        let default =
            matches!((key.as_str(), value.as_str()), ("max-size", "10m") | ("max-file", "3"));
        ensure!(
            default,
            "log-opts {key}={value} is not supported: containers' logs rotate at 10 MB, 3 files; use --log-opt of run"
        );
    }
    if let Some(policy) = &settings.bridge_input {
        policy.parse::<knarr_network::BridgeInput>()?;
    }
    for label in &settings.labels {
        ensure!(label.contains('='), "bad attribute format: {label}");
    }
    for mirror in &settings.registry_mirrors {
        ensure!(
            mirror.starts_with("http://") || mirror.starts_with("https://"),
            "invalid mirror: {mirror:?} is not a URL with http or https"
        );
    }
    Ok(())
}

/// How much is logged.
pub(crate) fn level(settings: &Settings) -> Result<tracing::Level> {
    if settings.debug == Some(true) {
        return Ok(tracing::Level::DEBUG);
    }
    Ok(match settings.log_level.as_deref().unwrap_or("info") {
        "trace" => tracing::Level::TRACE,
        "debug" => tracing::Level::DEBUG,
        "info" => tracing::Level::INFO,
        "warn" | "warning" => tracing::Level::WARN,
        "error" | "fatal" | "panic" => tracing::Level::ERROR,
        other => bail!("invalid logging level: {other}"),
    })
}

/// Where to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Host {
    /// A socket in the file system.
    Unix(PathBuf),
    /// A loopback address.
    Tcp(std::net::SocketAddr),
    /// What the service manager opened.
    Activated,
}

impl std::str::FromStr for Host {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = || format!("unable to parse the host {text:?}");
        let (scheme, rest) = text.split_once("://").with_context(bad)?;
        match scheme {
            "unix" => {
                ensure!(rest.starts_with('/'), "{}: want unix:///absolute/path", bad());
                Ok(Self::Unix(rest.into()))
            }
            "fd" => Ok(Self::Activated),
            "tcp" => {
                let rest = rest.trim_end_matches('/').replace("localhost", "127.0.0.1");
                let whole = if rest.contains(':') { rest } else { format!("{rest}:2375") };
                let address: std::net::SocketAddr = whole.parse().with_context(bad)?;
                ensure!(
                    address.ip().is_loopback(),
                    "refusing to listen on {address}: whoever reaches it is root on this machine\n\nhint: listen on a unix socket and forward it over ssh"
                );
                Ok(Self::Tcp(address))
            }
            _ => bail!("{}: want unix://, tcp:// or fd://", bad()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(arguments: &[&str]) -> Settings {
        Flags::try_parse_from([&["knarrd"], arguments].concat()).unwrap().settings
    }

    #[test]
    fn dockerds_flags_are_understood() {
        let settings = flags(&[
            "--data-root",
            "/d",
            "--exec-root=/e",
            "-H",
            "unix:///a.sock",
            "--host",
            "tcp://127.0.0.1:2375",
            "--registry-mirror",
            "http://m",
            "--insecure-registry",
            "r:5000",
            "--pidfile",
            "/p",
            "-D",
            "-l",
            "warn",
            "--bip",
            "10.1.0.1/24",
            "--default-address-pool",
            "base=10.2.0.0/16,size=24",
            "--live-restore",
            "--bridge-input",
            "drop",
        ]);
        assert_eq!(settings.hosts.len(), 2);
        assert_eq!(settings.debug, Some(true));
        assert_eq!(settings.default_address_pools[0].size, 24);
        assert_eq!(level(&settings).unwrap(), tracing::Level::DEBUG);
        check(&settings).unwrap();
    }

    #[test]
    fn the_files_keys_are_daemon_jsons() {
        let text = r#"{"data-root": "/d", "hosts": ["fd://"], "debug": true, "dns": ["1.1.1.1"],
            "default-address-pools": [{"base": "10.2.0.0/16", "size": 24}], "live-restore": true,
            "log-opts": {"max-size": "10m"}, "registry-mirrors": ["https://m"]}"#;
        let settings = merge(&Settings::default(), text).unwrap();
        assert_eq!(settings.data_root, Some("/d".into()));
        check(&settings).unwrap();
    }

    #[test]
    fn a11_bad_configuration_is_refused_with_a_reason() {
        let none = Settings::default();
        for (text, want) in [
            ("{\n \"debug\": tru\n}", "expected ident at line"),
            (r#"{"nope": 1, "debug": true, "neither": 2}"#, "neither, nope"),
            (r#"{"debug": "yes"}"#, "invalid type"),
            ("[]", "invalid"),
        ] {
            let error = format!("{:#}", merge(&none, text).unwrap_err());
            assert!(error.contains(want), "{text}: {error}");
        }
        let twice =
            merge(&flags(&["--debug", "-H", "fd://"]), r#"{"debug": false, "hosts": ["fd://"]}"#);
        let error = format!("{:#}", twice.unwrap_err());
        assert!(
            error.contains("debug: (from flag: Some(true), from file: Some(false))"),
            "{error}"
        );
        assert!(error.contains("hosts:"), "{error}");
    }

    #[test]
    fn a01_only_loopback_without_tls() {
        for (host, fine) in [
            ("unix:///run/x.sock", true),
            ("unix://x.sock", false),
            ("tcp://127.0.0.1:2375", true),
            ("tcp://localhost", true),
            ("tcp://[::1]:1", true),
            ("tcp://0.0.0.0:2375", false),
            ("tcp://192.0.2.1:2375", false),
            ("fd://", true),
            ("npipe://x", false),
            ("nonsense", false),
        ] {
            assert_eq!(host.parse::<Host>().is_ok(), fine, "{host}");
        }
    }

    #[test]
    fn values_that_make_no_sense_are_refused() {
        for arguments in [
            &["-l", "loud"][..],
            &["--storage-driver", "zfs"],
            &["--log-driver", "syslog"],
            &["--live-restore=false"],
            &["--label", "nope"],
            &["--registry-mirror", "m:5000"],
            &["--bridge-input", "reject"],
            &["--bridge-input", ""],
        ] {
            assert!(check(&flags(arguments)).is_err(), "{arguments:?}");
        }
    }
}

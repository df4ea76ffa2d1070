//! Capabilities, seccomp, `--security-opt`.

use knarr_docker::HostConfig;
use knarr_model::{ContainerSpec, SeccompChoice};

use crate::error::{ApiError, Result};

/// Linux's capabilities, without `CAP_` (capabilities(7)).
const CAPABILITIES: [&str; 41] = [
    "AUDIT_CONTROL",
    "AUDIT_READ",
    "AUDIT_WRITE",
    "BLOCK_SUSPEND",
    "BPF",
    "CHECKPOINT_RESTORE",
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "IPC_LOCK",
    "IPC_OWNER",
    "KILL",
    "LEASE",
    "LINUX_IMMUTABLE",
    "MAC_ADMIN",
    "MAC_OVERRIDE",
    "MKNOD",
    "NET_ADMIN",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_RAW",
    "PERFMON",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYSLOG",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_CHROOT",
    "SYS_MODULE",
    "SYS_NICE",
    "SYS_PACCT",
    "SYS_PTRACE",
    "SYS_RAWIO",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "WAKE_ALARM",
];

pub(super) fn apply(
    host: &HostConfig,
    spec: &mut ContainerSpec,
    warnings: &mut Vec<String>,
) -> Result<()> {
    let security = &mut spec.security;
    security.privileged = host.privileged;
    for (from, to, what) in [
        (&host.cap_add, &mut security.cap_add, "CapAdd"),
        (&host.cap_drop, &mut security.cap_drop, "CapDrop"),
    ] {
        for name in from.iter().flat_map(|words| &words.0) {
            to.push(capability(name, what)?);
        }
    }
    for option in host.security_opt.iter().flatten() {
        // Docker accepts `name=value` and, from before 1.11, `name:value`.
        let (name, value) = match option.split_once('=').or_else(|| option.split_once(':')) {
            Some((name, value)) => (name, Some(value)),
            None => (option.as_str(), None),
        };
        let bad = || {
            let shown: String = option.chars().take(80).collect();
            ApiError::invalid(format!("invalid --security-opt: {shown:?}"))
        };
        match (name, value) {
            ("no-new-privileges", None | Some("true")) => security.no_new_privileges = true,
            ("no-new-privileges", Some("false")) => security.no_new_privileges = false,
            ("seccomp", Some("unconfined")) => security.seccomp = SeccompChoice::Unconfined,
            ("seccomp", Some("builtin")) => security.seccomp = SeccompChoice::Builtin,
            ("seccomp", Some(profile)) => {
                let parsed: serde_json::Value = serde_json::from_str(profile).map_err(|error| {
                    ApiError::invalid(format!("decoding seccomp profile failed: {error}"))
                })?;
                if !parsed.is_object() {
                    return Err(ApiError::invalid(
                        "decoding seccomp profile failed: not an object",
                    ));
                }
                security.seccomp = SeccompChoice::Profile(profile.to_owned());
            }
            ("systempaths", Some("unconfined")) => security.unconfined_paths = true,
            ("apparmor", Some(profile)) => {
                security.apparmor = Some(profile.to_owned()).filter(|name| !name.is_empty());
            }
            ("label", Some("disable")) => {}
            ("label", Some(_)) => {
                warnings.push(format!("{option} has no effect: Knarr applies no SELinux policy"))
            }
            ("writable-cgroups", Some("false")) => {}
            ("writable-cgroups", Some(_)) => {
                warnings.push("writable-cgroups is ignored by this version of Knarr".into());
            }
            _ => return Err(bad()),
        }
    }
    // The docker client turns `systempaths=unconfined` into two empty lists.
    let emptied = |list: &Option<Vec<String>>| list.as_ref().is_some_and(Vec::is_empty);
    if emptied(&host.masked_paths) && emptied(&host.readonly_paths) {
        security.unconfined_paths = true;
    }
    Ok(())
}

/// `NET_ADMIN`, `cap_net_admin` or `ALL`, without `CAP_` and upper case.
fn capability(name: &str, what: &str) -> Result<String> {
    let upper = name.to_ascii_uppercase();
    let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
    if bare != "ALL" && !CAPABILITIES.contains(&bare) {
        let shown: String = name.chars().take(40).collect();
        return Err(ApiError::invalid(format!("invalid {what}: unknown capability: {shown:?}")));
    }
    Ok(bare.to_owned())
}

//! A custom seccomp profile: Docker's JSON into the runtime specification's.
//!
//! Docker's format adds conditions to the rules (capabilities, architectures,
//! kernel); they are decided here, so that the sandbox sees plain rules. The
//! default profile does not come this way: the sandbox has it.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::{Error, Result};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    default_action: String,
    default_errno_ret: Option<u32>,
    #[serde(default)]
    arch_map: Vec<ArchMap>,
    #[serde(default)]
    architectures: Vec<String>,
    #[serde(default)]
    flags: Vec<String>,
    #[serde(default)]
    listener_path: String,
    #[serde(default)]
    syscalls: Vec<Rule>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ArchMap {
    architecture: String,
    #[serde(default)]
    sub_architectures: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    #[serde(default)]
    name: String,
    #[serde(default)]
    names: Vec<String>,
    action: String,
    errno_ret: Option<u32>,
    #[serde(default)]
    args: Option<Vec<Arg>>,
    #[serde(default)]
    includes: Option<Condition>,
    #[serde(default)]
    excludes: Option<Condition>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Arg {
    index: u32,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Condition {
    caps: Vec<String>,
    arches: Vec<String>,
    min_kernel: Option<String>,
}

/// Docker's name of the architecture and seccomp's.
const fn host_architecture() -> (&'static str, &'static str) {
    if cfg!(target_arch = "aarch64") {
        ("arm64", "SCMP_ARCH_AARCH64")
    } else {
        ("amd64", "SCMP_ARCH_X86_64")
    }
}

/// Turns a profile in Docker's JSON into `linux.seccomp` of the specification.
///
/// `capabilities` are those of the process, with their `CAP_`; `kernel` is
/// major and minor version of the running one.
pub(crate) fn parse(
    text: &str,
    capabilities: &BTreeSet<String>,
    kernel: (u32, u32),
) -> Result<Value> {
    let profile: Profile = serde_json::from_str(text)
        .map_err(|error| Error::invalid(format!("Decoding seccomp profile failed: {error}")))?;
    if !profile.listener_path.is_empty() {
        return Err(Error::not_supported("seccomp listenerPath is not supported"));
    }
    if !profile.architectures.is_empty() && !profile.arch_map.is_empty() {
        return Err(Error::invalid(
            "both 'architectures' and 'archMap' are specified in the seccomp profile, use either 'architectures' or 'archMap'",
        ));
    }
    let (docker_arch, seccomp_arch) = host_architecture();
    let architectures = if profile.arch_map.is_empty() {
        profile.architectures
    } else {
        profile
            .arch_map
            .into_iter()
            .find(|map| map.architecture == seccomp_arch)
            .map(|map| {
                let mut all = vec![map.architecture];
                all.extend(map.sub_architectures.unwrap_or_default());
                all
            })
            .unwrap_or_default()
    };
    let holds = |condition: &Condition, all: bool| {
        let caps = |cap: &String| capabilities.contains(cap);
        let kernel_at_least = |least: &String| version(least).is_some_and(|least| kernel >= least);
        let arch = condition.arches.iter().any(|arch| arch == docker_arch);
        if all {
            // includes: everything that is named must be so.
            (condition.arches.is_empty() || arch)
                && condition.caps.iter().all(caps)
                && condition.min_kernel.as_ref().is_none_or(kernel_at_least)
        } else {
            // excludes: anything that is named and is so.
            arch || condition.caps.iter().any(caps)
                || condition.min_kernel.as_ref().is_some_and(kernel_at_least)
        }
    };
    let mut syscalls = Vec::new();
    for rule in profile.syscalls {
        if rule.includes.as_ref().is_some_and(|condition| !holds(condition, true))
            || rule.excludes.as_ref().is_some_and(|condition| holds(condition, false))
        {
            continue;
        }
        let names = match (rule.name.is_empty(), rule.names.is_empty()) {
            (false, true) => vec![rule.name],
            (true, false) => rule.names,
            (false, false) => {
                return Err(Error::invalid(
                    "both 'name' and 'names' are specified in the seccomp profile, use either 'name' or 'names'",
                ));
            }
            (true, true) => continue,
        };
        let args: Vec<Value> = rule
            .args
            .unwrap_or_default()
            .iter()
            .map(|arg| json!({"index": arg.index, "value": arg.value, "valueTwo": arg.value_two, "op": arg.op}))
            .collect();
        let mut entry = json!({"names": names, "action": rule.action});
        if !args.is_empty() {
            entry["args"] = args.into();
        }
        if let Some(errno) = rule.errno_ret {
            entry["errnoRet"] = errno.into();
        }
        syscalls.push(entry);
    }
    let mut seccomp = json!({"defaultAction": profile.default_action, "syscalls": syscalls});
    if let Some(errno) = profile.default_errno_ret {
        seccomp["defaultErrnoRet"] = errno.into();
    }
    if !architectures.is_empty() {
        seccomp["architectures"] = architectures.into();
    }
    if !profile.flags.is_empty() {
        seccomp["flags"] = profile.flags.into();
    }
    // The specification's own types have the last word on actions and operators.
    serde_json::from_value::<oci_spec::runtime::LinuxSeccomp>(seccomp.clone())
        .map_err(|error| Error::invalid(format!("Decoding seccomp profile failed: {error}")))?;
    Ok(seccomp)
}

/// `4.8` as two numbers; what follows is of no interest.
pub(crate) fn version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(seccomp: &Value) -> Vec<String> {
        seccomp["syscalls"]
            .as_array()
            .unwrap()
            .iter()
            .flat_map(|rule| rule["names"].as_array().unwrap().clone())
            .map(|name| name.as_str().unwrap().to_owned())
            .collect()
    }

    const PROFILE: &str = r#"{
        "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1,
        "archMap": [
            {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]},
            {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]}
        ],
        "syscalls": [
            {"names": ["read", "write"], "action": "SCMP_ACT_ALLOW"},
            {"names": ["ptrace"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4.8"}},
            {"names": ["future"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "99.0"}},
            {"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
            {"names": ["clone"], "action": "SCMP_ACT_ALLOW", "excludes": {"caps": ["CAP_SYS_ADMIN"]},
             "args": [{"index": 0, "value": 2114060288, "op": "SCMP_CMP_MASKED_EQ"}]},
            {"names": ["s390"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["s390x"]}}
        ]}"#;

    #[test]
    fn conditions_are_decided() {
        let plain = parse(PROFILE, &BTreeSet::new(), (6, 1)).unwrap();
        assert_eq!(names(&plain), ["read", "write", "ptrace", "clone"]);
        assert_eq!(plain["architectures"].as_array().unwrap().len(), 2);
        let admin = BTreeSet::from(["CAP_SYS_ADMIN".to_owned()]);
        assert_eq!(names(&parse(PROFILE, &admin, (4, 4)).unwrap()), ["read", "write", "mount"]);
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in [
            "",
            "{}",
            r#"{"defaultAction": "SCMP_ACT_DANCE"}"#,
            r#"{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"name": "a", "names": ["b"], "action": "SCMP_ACT_ALLOW"}]}"#,
        ] {
            assert!(parse(bad, &BTreeSet::new(), (6, 1)).is_err(), "{bad}");
        }
    }
}

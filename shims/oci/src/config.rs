//! The bundle's config.json, read and made whole.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use oci_spec::runtime::{Capability, MemoryPolicyFlagType, MemoryPolicyModeType, Process, Spec};
use serde_json::{Value, json};

use crate::{Global, args::Flags};

/// A bundle.
pub(crate) struct Bundle {
    /// Absolute.
    pub(crate) dir: PathBuf,
    /// What its config.json says, word for word.
    pub(crate) text: Vec<u8>,
    pub(crate) spec: Spec,
    /// Who makes a container of it.
    pub(crate) owner: u32,
    /// Its user namespace is ours by now.
    pub(crate) rootless: bool,
}

/// Flags of all verbs that this host cannot follow.
pub(crate) fn check_global(flags: &Flags) -> Result<()> {
    if flags.has("systemd-cgroup") && !Path::new("/run/systemd/system").is_dir() {
        // runc's words.
        bail!(
            "systemd cgroup flag passed, but systemd support for managing cgroups is not available"
        );
    }
    rootless(flags).map(drop)
}

/// Whether control groups that may not be made are passed over: by default where we
/// are not the host's root (runc `shouldUseRootlessCgroupManager`).
pub(crate) fn rootless(flags: &Flags) -> Result<bool> {
    match flags.get("rootless") {
        None | Some("auto") => Ok(knarr_sandbox::rootless::contained()),
        Some("true") => Ok(true),
        Some("false") => Ok(false),
        Some(other) => bail!("invalid value {other:?} for flag -rootless"),
    }
}

/// The bundle of `--bundle`, or the current directory.
pub(crate) fn bundle(global: &Global, flags: &Flags) -> Result<Bundle> {
    let dir = flags.get("bundle").filter(|dir| !dir.is_empty()).unwrap_or(".");
    let dir = fs::canonicalize(dir).with_context(|| format!("bundle {dir}"))?;
    let path = dir.join("config.json");
    let text = match fs::read(&path) {
        Ok(text) => text,
        // runc's words.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            bail!("JSON specification file config.json not found")
        }
        Err(error) => return Err(error).with_context(|| path.display().to_string()),
    };
    let mut spec = parse_telling(&text, &mut |text| global.log.warning(&text))?;
    check(&spec)?;
    if let Some(text) = spec.process().as_ref().and_then(unraised) {
        global.log.warning(&text);
    }
    let label = spec.linux().as_ref().and_then(|linux| linux.mount_label().as_deref());
    if label.is_some_and(|label| !label.is_empty()) && !knarr_sandbox::selinux() {
        global.log.warning("mountLabel is ignored: this host has no SELinux");
    }
    absolute_sources(&mut spec, &dir);
    let owner = rustix::process::getuid().as_raw();
    Ok(Bundle { dir, text, spec, owner, rootless: false })
}

/// A specification's text.
pub(crate) fn parse(text: &[u8]) -> Result<Spec> {
    parse_telling(text, &mut |_| {})
}

/// The same, saying what of it is left out.
pub(crate) fn parse_telling(text: &[u8], tell: &mut dyn FnMut(String)) -> Result<Spec> {
    if let Ok(spec) = serde_json::from_slice(text) {
        return Ok(spec);
    }
    let mut all: Value = serde_json::from_slice(text).context("config.json")?;
    mend(&mut all["process"], tell);
    memory_policy(&all["linux"]["memoryPolicy"])?;
    serde_json::from_value(all).context("config.json")
}

/// A process's text.
pub(crate) fn parse_process(text: &[u8], tell: &mut dyn FnMut(String)) -> Result<Process> {
    let mut process: Value = serde_json::from_slice(text)?;
    mend(&mut process, tell);
    Ok(serde_json::from_value(process)?)
}

/// What runc takes though the specification has it otherwise: no user is root, no
/// priority the highest, and a capability that nobody knows is none.
fn mend(process: &mut Value, tell: &mut dyn FnMut(String)) {
    let Some(process) = process.as_object_mut() else { return };
    process.entry("user").or_insert_with(|| json!({ "uid": 0, "gid": 0 }));
    if let Some(priority) = process.get_mut("ioPriority").and_then(Value::as_object_mut) {
        priority.entry("priority").or_insert_with(|| json!(0));
    }
    // The specification's names, which the types that we have write otherwise.
    let flags = process.get_mut("scheduler").and_then(|scheduler| scheduler.get_mut("flags"));
    for flag in flags.and_then(Value::as_array_mut).into_iter().flatten() {
        match flag.as_str() {
            Some("SCHED_FLAG_RESET_ON_FORK") => *flag = json!("SCHED_RESET_ON_FORK"),
            Some("SCHED_FLAG_DL_OVERRUN") => *flag = json!("SCHED_FLAG_D_L_OVERRUN"),
            _ => {}
        }
    }
    let mut unknown = std::collections::BTreeSet::new();
    let sets = process.get_mut("capabilities").and_then(Value::as_object_mut);
    for set in sets.into_iter().flat_map(|sets| sets.values_mut()) {
        let Some(names) = set.as_array_mut() else { continue };
        names.retain(|name| {
            let known = serde_json::from_value::<Capability>(name.clone()).is_ok();
            if !known {
                unknown.insert(name.as_str().unwrap_or_default().to_owned());
            }
            known
        });
    }
    if !unknown.is_empty() {
        let names: Vec<String> = unknown.into_iter().collect();
        tell(format!("ignoring unknown or unavailable capabilities: [{}]", names.join(" ")));
    }
}

/// Ambient capabilities that the kernel will not give, as they are not inheritable.
pub(crate) fn unraised(process: &Process) -> Option<String> {
    let sets = process.capabilities().as_ref()?;
    let ambient = sets.ambient().as_ref()?;
    let within = |set: &Option<std::collections::HashSet<Capability>>, one: &Capability| {
        set.as_ref().is_some_and(|set| set.contains(one))
    };
    let mut lost: Vec<String> = ambient
        .iter()
        .filter(|one| !within(sets.inheritable(), one) || !within(sets.permitted(), one))
        .map(|one| format!("CAP_{one}"))
        .collect();
    lost.sort();
    // runc's words.
    let told = |name: &String| format!("can't raise ambient capability {name}: not inheritable");
    (!lost.is_empty()).then(|| lost.iter().map(told).collect::<Vec<_>>().join("; "))
}

/// What is wrong with a memory policy that cannot be read, in runc's words.
fn memory_policy(policy: &Value) -> Result<()> {
    if policy.is_null() {
        return Ok(());
    }
    let mode = &policy["mode"];
    ensure!(
        serde_json::from_value::<MemoryPolicyModeType>(mode.clone()).is_ok(),
        "invalid memory policy mode {mode}"
    );
    for flag in policy["flags"].as_array().into_iter().flatten() {
        ensure!(
            serde_json::from_value::<MemoryPolicyFlagType>(flag.clone()).is_ok(),
            "invalid memory policy flag {flag}"
        );
    }
    Ok(())
}

fn check(spec: &Spec) -> Result<()> {
    let major = spec.version().split('.').next().unwrap_or_default();
    ensure!(major == "1", "unsupported OCI version {:?}", spec.version());
    let Some(process) = spec.process() else { bail!("process property must not be empty") };
    ensure!(process.args().as_ref().is_some_and(|args| !args.is_empty()), "args must not be empty");
    ensure!(process.cwd().is_absolute(), "cwd must be an absolute path");
    ensure!(!process.cwd().as_os_str().is_empty(), "cwd property must not be empty");
    ensure!(spec.root().is_some(), "root must be specified");
    let linux = spec.linux().as_ref();
    // runc's words.
    ensure!(
        linux.is_none_or(|linux| linux.intel_rdt().is_none()),
        "intelRdt is specified in config, but Intel RDT is not supported or enabled"
    );
    Ok(())
}

/// Sources of binds are relative to the bundle, destinations to the root, with its path
/// before them or not (as runc).
fn absolute_sources(spec: &mut Spec, bundle: &Path) {
    let Some(mut mounts) = spec.mounts().clone() else { return };
    let root = spec.root().as_ref().map(|root| bundle.join(root.path())).unwrap_or_default();
    let mut changed = false;
    for mount in &mut mounts {
        let inside = mount.destination().strip_prefix(&root).unwrap_or(mount.destination());
        let inside = Path::new("/").join(inside);
        if *mount.destination() != inside {
            mount.set_destination(inside);
            changed = true;
        }
        let bind = mount.typ().as_deref() == Some("bind")
            || mount
                .options()
                .iter()
                .flatten()
                .any(|option| matches!(option.as_str(), "bind" | "rbind"));
        let source = mount.source().clone().filter(|source| bind && source.is_relative());
        if let Some(source) = source {
            mount.set_source(Some(bundle.join(source)));
            changed = true;
        }
    }
    if changed {
        spec.set_mounts(Some(mounts));
    }
}

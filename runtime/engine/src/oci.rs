//! The OCI runtime specification of a container: a pure function.
//!
//! Everything that Docker does by default is here, once, and golden-tested:
//! capabilities, masked and read-only paths, mounts, devices, sysctls
//! (moby `daemon/pkg/oci/defaults.go`). What the host looks
//! like comes in as [`Host`]; nothing is read from it here.
//!
//! For a Wasm program the specification names the same namespaces and limits,
//! no capabilities, and only the mounts that are granted: the jail around the
//! host program is the sandbox's.

use std::{
    collections::{BTreeSet, HashMap},
    path::{Path, PathBuf},
};

use knarr_model::{
    ContainerSpec, NamespaceMode, Propagation, Resources, SeccompChoice, SecurityOptions,
    task::{GROUPS_ANNOTATION, WASM_ANNOTATION, WasmLaunch},
};
use serde_json::{Map, Value, json};

use crate::{Error, Result, capabilities, seccomp};

/// Annotation understood by the sandbox: the filter is its own default.
const SECCOMP_ANNOTATION: &str = "dev.knarr.seccomp";
/// Annotation understood by the sandbox: its init stays as PID 1.
const INIT_ANNOTATION: &str = "dev.knarr.init";

/// Processes and threads, unless asked otherwise: a fork bomb stays inside (CATALOGUE X01).
pub(crate) const DEFAULT_PIDS: u64 = 4096;

const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

const READ_ONLY: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

const DEFAULT_SHM: u64 = 64 << 20;

/// A device node: type, numbers, and where it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Device {
    pub(crate) path: PathBuf,
    /// `c` or `b`.
    pub(crate) kind: char,
    pub(crate) major: u32,
    pub(crate) minor: u32,
    /// Permission bits.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Some of `rwm`.
    pub(crate) access: String,
}

/// A mount whose source is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ResolvedMount {
    pub(crate) target: PathBuf,
    pub(crate) read_only: bool,
    pub(crate) source: Source,
}

/// Where a mount comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    /// A path of the host.
    Path {
        path: PathBuf,
        propagation: Propagation,
        recursive: bool,
        /// Read-only is the mount alone, not those beneath it.
        read_only_shallow: bool,
        /// Its device files stay devices.
        devices: bool,
    },
    /// Memory, with mount options.
    Tmpfs { options: Vec<String> },
}

/// A namespace of a container.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) enum Place {
    /// Its own.
    #[default]
    New,
    /// The host's.
    Host,
    /// Another process's.
    Of(PathBuf),
}

/// The namespaces that can be shared.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Places {
    pub(crate) network: Place,
    pub(crate) pid: Place,
    pub(crate) ipc: Place,
    pub(crate) uts: Place,
}

/// What the generator must know of the host.
#[derive(Debug, Clone, Default)]
pub(crate) struct Host {
    /// Major and minor version of the kernel.
    pub(crate) kernel: (u32, u32),
    /// `/sys/devices/system/cpu/cpuN/thermal_throttle`, those that exist.
    pub(crate) thermal: Vec<String>,
    /// Swap is accounted, so that memory and swap can be limited together.
    pub(crate) swap_limit: bool,
    /// Highest capability that the kernel knows (`cap_last_cap`).
    pub(crate) last_capability: usize,
    /// Bits of capabilities that the engine itself may not have, and so cannot give.
    pub(crate) lacking: u64,
    /// The kernel confines by AppArmor profiles.
    pub(crate) apparmor: bool,
}

/// Everything that the specification is made of.
#[derive(Debug)]
pub(crate) struct Input<'a> {
    pub(crate) id: &'a str,
    pub(crate) spec: &'a ContainerSpec,
    /// Entrypoint and command.
    pub(crate) argv: &'a [String],
    /// Merged with the image's.
    pub(crate) env: &'a [String],
    /// Users' mounts, sorted so that parents come first.
    pub(crate) mounts: &'a [ResolvedMount],
    /// Directory of `hosts`, `hostname`, `resolv.conf`.
    pub(crate) etc: &'a Path,
    pub(crate) places: &'a Places,
    pub(crate) cgroup: &'a str,
    /// Of the request, or all of the host's where privileged.
    pub(crate) devices: &'a [Device],
    pub(crate) wasm: Option<&'a WasmLaunch>,
    pub(crate) host: &'a Host,
}

/// The host name that a container sees.
pub(crate) fn hostname(id: &str, spec: &ContainerSpec) -> String {
    spec.hostname.clone().unwrap_or_else(|| id[..12].to_owned())
}

/// Makes the specification.
///
/// # Errors
/// `InvalidArgument` for what cannot be said in it: unknown capabilities and
/// limits, sysctls that are the host's.
pub(crate) fn generate(input: &Input<'_>) -> Result<Value> {
    let spec = input.spec;
    let privileged = spec.security.privileged;
    let capabilities = match input.wasm {
        Some(_) => Vec::new(),
        None => capabilities::of(spec, input.host)?,
    };
    let open_paths = privileged || spec.security.unconfined_paths;
    let mut annotations = Map::new();
    let mut linux = json!({
        "cgroupsPath": input.cgroup,
        "namespaces": namespaces(input.places),
        "resources": resources(&spec.resources, input.host, Some(device_rules(input))),
    });
    if let Some(launch) = input.wasm {
        let launch = serde_json::to_string(launch)
            .map_err(|error| Error::internal(format!("Wasm launch: {error}")))?;
        annotations.insert(WASM_ANNOTATION.into(), launch.into());
    } else {
        match &spec.security.seccomp {
            _ if privileged => {}
            SeccompChoice::Unconfined => {}
            SeccompChoice::Builtin => {
                annotations.insert(SECCOMP_ANNOTATION.into(), "default".into());
            }
            SeccompChoice::Profile(text) => {
                let held: BTreeSet<String> = capabilities.iter().cloned().collect();
                linux["seccomp"] = seccomp::parse(text, &held, input.host.kernel)?;
            }
        }
        let named: Vec<&str> = spec
            .group_add
            .iter()
            .map(String::as_str)
            .filter(|group| group.parse::<u32>().is_err())
            .collect();
        if !named.is_empty() {
            annotations.insert(GROUPS_ANNOTATION.into(), named.join(",").into());
        }
        if spec.init {
            annotations.insert(INIT_ANNOTATION.into(), "true".into());
        }
        if !open_paths {
            let thermal = input.host.thermal.iter().map(String::as_str);
            linux["maskedPaths"] = MASKED.into_iter().chain(thermal).collect();
            linux["readonlyPaths"] = READ_ONLY.into_iter().collect();
        }
        if !input.devices.is_empty() {
            linux["devices"] = input.devices.iter().map(device_node).collect();
        }
    }
    if let Some(propagation) = rootfs_propagation(input.mounts) {
        linux["rootfsPropagation"] = propagation.into();
    }
    let sysctls = sysctls(input)?;
    if !sysctls.is_empty() {
        linux["sysctl"] = sysctls.into();
    }
    let mut document = json!({
        "ociVersion": "1.2.0",
        "process": process(input, &capabilities)?,
        "root": {"path": "rootfs", "readonly": spec.read_only_rootfs || input.wasm.is_some()},
        "mounts": mounts(input),
        "annotations": annotations,
        "linux": linux,
    });
    if input.places.uts == Place::New {
        document["hostname"] = hostname(input.id, spec).into();
        if let Some(domain) = spec.domainname.as_ref().filter(|domain| !domain.is_empty()) {
            document["domainname"] = domain.as_str().into();
        }
    }
    Ok(document)
}

/// The AppArmor profile of a container's processes: as Docker, none where the
/// host has no AppArmor, whatever was asked.
pub(crate) fn apparmor<'a>(security: &'a SecurityOptions, host: &Host) -> Option<&'a str> {
    security.apparmor.as_deref().filter(|_| host.apparmor)
}

fn process(input: &Input<'_>, capabilities: &[String]) -> Result<Value> {
    let spec = input.spec;
    let user = user(spec.user.as_deref(), &spec.group_add);
    let cwd = spec.working_dir.as_deref().unwrap_or(Path::new("/"));
    let mut process = json!({
        "terminal": spec.tty,
        "user": user,
        "args": input.argv,
        "env": environment(input),
        "cwd": cwd,
        "capabilities": capabilities::sets(capabilities, spec),
        "noNewPrivileges": spec.security.no_new_privileges || input.wasm.is_some(),
    });
    if let Some(profile) = apparmor(&spec.security, input.host) {
        process["apparmorProfile"] = profile.into();
    }
    let mut rlimits = Vec::new();
    for limit in &spec.ulimits {
        rlimits.push(json!({
            "type": rlimit(&limit.name)?,
            "soft": limit.soft.cast_unsigned(),
            "hard": limit.hard.cast_unsigned(),
        }));
    }
    if !rlimits.is_empty() {
        process["rlimits"] = rlimits.into();
    }
    if let Some(score) = spec.oom_score_adj {
        process["oomScoreAdj"] = score.into();
    }
    Ok(process)
}

/// The user as the sandbox resolves it in the container's own files; numbers of
/// supplementary groups beside it. Their names are an annotation's.
pub(crate) fn user(user: Option<&str>, groups: &[String]) -> Value {
    let numbers: Vec<u32> = groups.iter().filter_map(|group| group.parse().ok()).collect();
    let mut value = json!({"uid": 0, "gid": 0});
    if let Some(user) = user.filter(|user| !user.is_empty()) {
        value["username"] = user.into();
    }
    if !numbers.is_empty() {
        value["additionalGids"] = numbers.into();
    }
    value
}

fn environment(input: &Input<'_>) -> Vec<String> {
    if input.wasm.is_some() {
        // Nothing that the user or the image did not say.
        return input.env.to_vec();
    }
    let mut own = vec![
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned(),
        format!("HOSTNAME={}", hostname(input.id, input.spec)),
    ];
    if input.spec.tty {
        own.push("TERM=xterm".to_owned());
    }
    overlay_env(own, input.env)
}

/// Environment entries with later ones in the place of earlier ones of the same
/// name, within `base` too; a name alone in `over` removes it.
pub(crate) fn overlay_env(base: Vec<String>, over: &[String]) -> Vec<String> {
    let mut all = Environment::default();
    for entry in base {
        all.set(entry);
    }
    for entry in over {
        match entry.contains('=') {
            true => all.set(entry.clone()),
            false => all.unset(entry),
        }
    }
    all.entries.into_iter().flatten().collect()
}

/// Entries by name: images and requests bring as many as they like.
#[derive(Default)]
struct Environment {
    /// In their order; what was removed leaves a gap.
    entries: Vec<Option<String>>,
    places: HashMap<String, usize>,
}

impl Environment {
    fn set(&mut self, entry: String) {
        let name = entry.split('=').next().unwrap_or_default();
        match self.places.get(name) {
            Some(&at) => self.entries[at] = Some(entry),
            None => {
                self.places.insert(name.to_owned(), self.entries.len());
                self.entries.push(Some(entry));
            }
        }
    }

    fn unset(&mut self, name: &str) {
        if let Some(at) = self.places.remove(name) {
            self.entries[at] = None;
        }
    }
}

/// `nofile` to `RLIMIT_NOFILE`.
pub(crate) fn rlimit(name: &str) -> Result<&'static str> {
    Ok(match name {
        "as" => "RLIMIT_AS",
        "core" => "RLIMIT_CORE",
        "cpu" => "RLIMIT_CPU",
        "data" => "RLIMIT_DATA",
        "fsize" => "RLIMIT_FSIZE",
        "locks" => "RLIMIT_LOCKS",
        "memlock" => "RLIMIT_MEMLOCK",
        "msgqueue" => "RLIMIT_MSGQUEUE",
        "nice" => "RLIMIT_NICE",
        "nofile" => "RLIMIT_NOFILE",
        "nproc" => "RLIMIT_NPROC",
        "rss" => "RLIMIT_RSS",
        "rtprio" => "RLIMIT_RTPRIO",
        "rttime" => "RLIMIT_RTTIME",
        "sigpending" => "RLIMIT_SIGPENDING",
        "stack" => "RLIMIT_STACK",
        _ => return Err(Error::invalid(format!("invalid ulimit type: {name}"))),
    })
}

fn namespaces(places: &Places) -> Value {
    let mut list = vec![json!({"type": "mount"}), json!({"type": "cgroup"})];
    for (kind, place) in [
        ("network", &places.network),
        ("uts", &places.uts),
        ("pid", &places.pid),
        ("ipc", &places.ipc),
    ] {
        match place {
            Place::New => list.push(json!({"type": kind})),
            Place::Of(path) => list.push(json!({"type": kind, "path": path})),
            Place::Host => {}
        }
    }
    list.into()
}

/// Limits as the specification has them; also what `update` sends.
pub(crate) fn resources(limits: &Resources, host: &Host, devices: Option<Value>) -> Value {
    let mut memory = Map::new();
    if let Some(bytes) = limits.memory {
        memory.insert("limit".into(), bytes.into());
        if host.swap_limit {
            // Docker: as much swap again as memory.
            let doubled = i64::try_from(bytes.saturating_mul(2)).unwrap_or(i64::MAX);
            memory.insert("swap".into(), limits.memory_swap.unwrap_or(doubled).into());
        }
    }
    if let Some(bytes) = limits.memory_reservation {
        memory.insert("reservation".into(), bytes.into());
    }
    if limits.oom_kill_disable {
        memory.insert("disableOOMKiller".into(), true.into());
    }
    let mut cpu = Map::new();
    if let Some(shares) = limits.cpu_shares {
        cpu.insert("shares".into(), shares.into());
    }
    if let Some(nano) = limits.nano_cpus {
        const PERIOD: u64 = 100_000;
        let quota = u128::from(nano) * u128::from(PERIOD) / 1_000_000_000;
        cpu.insert("period".into(), PERIOD.into());
        cpu.insert("quota".into(), i64::try_from(quota).unwrap_or(i64::MAX).into());
    }
    if let Some(quota) = limits.cpu_quota {
        cpu.insert("quota".into(), quota.into());
    }
    if let Some(period) = limits.cpu_period {
        cpu.insert("period".into(), period.into());
    }
    if let Some(cpus) = &limits.cpuset_cpus {
        cpu.insert("cpus".into(), cpus.as_str().into());
    }
    if let Some(mems) = &limits.cpuset_mems {
        cpu.insert("mems".into(), mems.as_str().into());
    }
    let mut all = Map::new();
    let creating = devices.is_some();
    if let Some(devices) = devices {
        all.insert("devices".into(), devices);
    }
    if !memory.is_empty() {
        all.insert("memory".into(), memory.into());
    }
    if !cpu.is_empty() {
        all.insert("cpu".into(), cpu.into());
    }
    match limits.pids {
        // 0 is Docker's and the request's word for no limit.
        Some(0) if creating => {}
        Some(0) => {
            all.insert("pids".into(), json!({"limit": -1}));
        }
        Some(pids) => {
            all.insert("pids".into(), json!({"limit": i64::try_from(pids).unwrap_or(i64::MAX)}));
        }
        None if creating => {
            all.insert("pids".into(), json!({"limit": DEFAULT_PIDS}));
        }
        None => {}
    }
    all.into()
}

fn device_rules(input: &Input<'_>) -> Value {
    if input.wasm.is_some() {
        return json!([{"allow": false, "access": "rwm"}]);
    }
    if input.spec.security.privileged {
        return json!([{"allow": true, "access": "rwm"}]);
    }
    let mut rules = vec![
        json!({"allow": false, "access": "rwm"}),
        // Nodes may be made; opening them is another matter.
        json!({"allow": true, "type": "c", "access": "m"}),
        json!({"allow": true, "type": "b", "access": "m"}),
    ];
    // null, zero, full, random, urandom, tty, console, ptmx
    for (major, minor) in [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2)] {
        rules.push(
            json!({"allow": true, "type": "c", "major": major, "minor": minor, "access": "rwm"}),
        );
    }
    rules.push(json!({"allow": true, "type": "c", "major": 136, "access": "rwm"}));
    // fuse
    rules.push(json!({"allow": false, "type": "c", "major": 10, "minor": 229, "access": "rwm"}));
    for device in input.devices {
        rules.push(json!({
            "allow": true,
            "type": device.kind,
            "major": device.major,
            "minor": device.minor,
            "access": device.access,
        }));
    }
    rules.into()
}

fn device_node(device: &Device) -> Value {
    json!({
        "path": device.path,
        "type": device.kind,
        "major": device.major,
        "minor": device.minor,
        "fileMode": device.mode,
        "uid": device.uid,
        "gid": device.gid,
    })
}

fn mounts(input: &Input<'_>) -> Value {
    let spec = input.spec;
    let users: BTreeSet<&Path> = input.mounts.iter().map(|mount| mount.target.as_path()).collect();
    let mut list = Vec::new();
    if input.wasm.is_none() {
        let writable = spec.security.privileged;
        let access = if writable { "rw" } else { "ro" };
        let shm_size = spec.shm_size.filter(|size| *size > 0).unwrap_or(DEFAULT_SHM);
        let mut own = vec![
            json!({"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]}),
            json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]}),
            json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]}),
            json!({"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", access]}),
            json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": [access, "nosuid", "noexec", "nodev"]}),
            json!({"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]}),
        ];
        match &input.places.ipc {
            Place::Host => own.push(json!({"destination": "/dev/shm", "type": "bind", "source": "/dev/shm", "options": ["rbind", "rprivate"]})),
            // POSIX shared memory crosses with the namespace: the other's own mount.
            Place::Of(namespace) if let Some(source) = shm_of(namespace) => own.push(json!({"destination": "/dev/shm", "type": "bind", "source": source, "options": ["bind", "rprivate", "nosuid", "noexec", "nodev"]})),
            Place::Of(_) | Place::New => {
                let size = format!("size={shm_size}");
                own.push(json!({"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "noexec", "nodev", "mode=1777", size]}));
            }
        }
        if input.places.ipc == Place::Host {
            // The host's own queues, as far as its namespace has them mounted.
            own.retain(|mount| mount["destination"] != "/dev/mqueue");
        }
        // Who brings a /dev brings all that is in it (as moby).
        let brings_dev = users.contains(Path::new("/dev"));
        own.retain(|mount| {
            let path = Path::new(mount["destination"].as_str().unwrap_or_default());
            !(users.contains(path) || brings_dev && path.starts_with("/dev"))
        });
        list.append(&mut own);
    }
    for name in ["resolv.conf", "hostname", "hosts"] {
        let target = Path::new("/etc").join(name);
        if users.contains(target.as_path()) {
            continue;
        }
        let mut options = vec!["rbind", "rprivate"];
        if spec.read_only_rootfs || input.wasm.is_some() {
            options.push("ro");
        }
        list.push(json!({"destination": target, "type": "bind", "source": input.etc.join(name), "options": options}));
    }
    let devices = spec.security.privileged && input.wasm.is_none();
    list.extend(input.mounts.iter().map(|mount| user_mount(mount, devices)));
    list.into()
}

/// `/proc/PID/root/dev/shm` for `/proc/PID/ns/ipc`.
fn shm_of(namespace: &Path) -> Option<PathBuf> {
    let process = namespace.parent()?.parent()?;
    Some(process.join("root/dev/shm"))
}

/// `all_devices`: a privileged container has those of its volumes, too.
fn user_mount(mount: &ResolvedMount, all_devices: bool) -> Value {
    match &mount.source {
        Source::Path { path, propagation, recursive, read_only_shallow, devices } => {
            let bind = if *recursive { "rbind" } else { "bind" };
            // As moby: read-only is what lies beneath, too, unless that is said otherwise.
            let access = match (mount.read_only, *read_only_shallow) {
                (false, _) => "rw",
                (true, false) => "rro",
                (true, true) => "ro",
            };
            let mut options = vec![bind, access, propagation_word(*propagation)];
            if !devices && !all_devices {
                options.push("rnodev");
            }
            json!({
                "destination": mount.target,
                "type": "bind",
                "source": path,
                "options": options,
            })
        }
        Source::Tmpfs { options } => {
            // `exec` takes back `noexec`, and so on.
            let own = ["noexec", "nosuid", "nodev"].into_iter().filter(|denied| {
                !options.iter().any(|option| denied.strip_prefix("no") == Some(option))
            });
            let mut all: Vec<String> =
                own.map(str::to_owned).chain(options.iter().cloned()).collect();
            if mount.read_only {
                all.push("ro".to_owned());
            }
            json!({"destination": mount.target, "type": "tmpfs", "source": "tmpfs", "options": all})
        }
    }
}

/// The mount option of a propagation.
pub(crate) fn propagation_word(propagation: Propagation) -> &'static str {
    match propagation {
        Propagation::Private => "private",
        Propagation::Rprivate => "rprivate",
        Propagation::Shared => "shared",
        Propagation::Rshared => "rshared",
        Propagation::Slave => "slave",
        Propagation::Rslave => "rslave",
    }
}

fn rootfs_propagation(mounts: &[ResolvedMount]) -> Option<&'static str> {
    let mut word = None;
    for mount in mounts {
        if let Source::Path { propagation, .. } = &mount.source {
            match propagation {
                Propagation::Shared | Propagation::Rshared => return Some("shared"),
                Propagation::Slave | Propagation::Rslave => word = Some("rslave"),
                Propagation::Private | Propagation::Rprivate => {}
            }
        }
    }
    word
}

/// Sysctls that belong to a namespace of the container, with Docker's defaults.
fn sysctls(input: &Input<'_>) -> Result<Map<String, Value>> {
    let mut all = Map::new();
    if input.wasm.is_none() && input.places.network == Place::New {
        all.insert("net.ipv4.ip_unprivileged_port_start".into(), "0".into());
        all.insert("net.ipv4.ping_group_range".into(), "0 2147483647".into());
    }
    for (name, value) in &input.spec.sysctls {
        check_sysctl(name, input.places)?;
        all.insert(name.clone(), value.as_str().into());
    }
    Ok(all)
}

fn check_sysctl(name: &str, places: &Places) -> Result<()> {
    let ipc = [
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
    ];
    let place = if name.starts_with("net.") {
        &places.network
    } else if name.starts_with("fs.mqueue.") || ipc.contains(&name) {
        &places.ipc
    } else {
        return Err(Error::invalid(format!("sysctl '{name}' is not allowed")));
    };
    if name.contains('/') || name.contains("..") {
        return Err(Error::invalid(format!("sysctl '{name}' is not allowed")));
    }
    match place {
        Place::New => Ok(()),
        _ => Err(Error::invalid(format!(
            "sysctl '{name}' not allowed in a namespace that is not the container's own"
        ))),
    }
}

/// Checks the sysctls of a request before there are any namespaces.
pub(crate) fn check_sysctls(spec: &ContainerSpec) -> Result<()> {
    let shared = |mode: &NamespaceMode| match mode {
        NamespaceMode::Private | NamespaceMode::Shareable => Place::New,
        _ => Place::Host,
    };
    let network = match spec.network_mode {
        knarr_model::NetworkMode::Host | knarr_model::NetworkMode::Container(_) => Place::Host,
        _ => Place::New,
    };
    let places = Places { network, ipc: shared(&spec.ipc_mode), ..Places::default() };
    spec.sysctls.keys().try_for_each(|name| check_sysctl(name, &places))
}

#[cfg(test)]
#[path = "oci_tests.rs"]
mod tests;

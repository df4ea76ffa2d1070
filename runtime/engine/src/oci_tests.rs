//! The specification against Docker's defaults, written out.

#![expect(
    clippy::field_reassign_with_default,
    reason = "a case reads as what differs from the default"
)]

use std::{collections::BTreeMap, path::Path};

use knarr_model::{
    NetworkMode, Ulimit, WasmAbi,
    capability::DEFAULT,
    task::{Preopen, WasmNetwork},
};

use super::*;

const ID: &str = "aaaaaaaaaaaabbbbbbbbbbbbccccccccccccddddddddddddeeeeeeeeeeeeffff";

struct Case {
    spec: ContainerSpec,
    mounts: Vec<ResolvedMount>,
    places: Places,
    devices: Vec<Device>,
    wasm: Option<WasmLaunch>,
    host: Host,
}

impl Default for Case {
    fn default() -> Self {
        Self {
            spec: ContainerSpec::default(),
            mounts: Vec::new(),
            places: Places::default(),
            devices: Vec::new(),
            wasm: None,
            host: Host {
                kernel: (6, 1),
                thermal: vec!["/sys/devices/system/cpu/cpu0/thermal_throttle".into()],
                swap_limit: true,
                last_capability: 40,
                lacking: 0,
                apparmor: true,
            },
        }
    }
}

impl Case {
    fn generate(&self) -> Result<Value> {
        let document = generate(&Input {
            id: ID,
            spec: &self.spec,
            argv: &["sh".into(), "-c".into(), "true".into()],
            env: &self.spec.env,
            mounts: &self.mounts,
            etc: Path::new("/var/lib/knarr/containers/x"),
            places: &self.places,
            cgroup: "/knarr/x",
            devices: &self.devices,
            wasm: self.wasm.as_ref(),
            host: &self.host,
        })?;
        // Whatever we say, the specification's own types must understand.
        serde_json::from_value::<oci_spec::runtime::Spec>(document.clone())
            .expect("a valid specification");
        Ok(document)
    }

    fn made(&self) -> Value {
        self.generate().expect("generated")
    }
}

fn words(value: &Value) -> Vec<&str> {
    value.as_array().expect("a list").iter().map(|word| word.as_str().expect("text")).collect()
}

fn mount<'a>(document: &'a Value, target: &str) -> Option<&'a Value> {
    document["mounts"]
        .as_array()
        .expect("mounts")
        .iter()
        .find(|mount| mount["destination"] == target)
}

fn namespaces_of(document: &Value) -> BTreeMap<String, Option<String>> {
    document["linux"]["namespaces"]
        .as_array()
        .expect("namespaces")
        .iter()
        .map(|one| {
            let path = one.get("path").and_then(Value::as_str).map(str::to_owned);
            (one["type"].as_str().expect("a type").to_owned(), path)
        })
        .collect()
}

#[test]
fn s11_nothing_asked_is_dockers_default() {
    let document = Case::default().made();
    let process = &document["process"];
    for set in ["bounding", "permitted", "effective"] {
        assert_eq!(words(&process["capabilities"][set]), DEFAULT, "{set}");
    }
    assert!(process["capabilities"].get("inheritable").is_none());
    assert!(process["capabilities"].get("ambient").is_none());
    assert_eq!(process["noNewPrivileges"], false);
    assert_eq!(process["cwd"], "/");
    assert_eq!(
        words(&process["env"]),
        [
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOSTNAME=aaaaaaaaaaaa"
        ]
    );
    let linux = &document["linux"];
    let mut masked: Vec<&str> = MASKED.to_vec();
    masked.push("/sys/devices/system/cpu/cpu0/thermal_throttle");
    assert_eq!(words(&linux["maskedPaths"]), masked);
    assert_eq!(words(&linux["readonlyPaths"]), READ_ONLY);
    assert_eq!(document["annotations"][SECCOMP_ANNOTATION], "default");
    assert_eq!(document["hostname"], "aaaaaaaaaaaa");
    assert_eq!(document["root"]["readonly"], false);
    assert_eq!(linux["sysctl"]["net.ipv4.ip_unprivileged_port_start"], "0");
    assert_eq!(linux["resources"]["pids"]["limit"], DEFAULT_PIDS);
    assert_eq!(linux["resources"]["devices"][0], json!({"allow": false, "access": "rwm"}));
    let own: Vec<String> = namespaces_of(&document).into_keys().collect();
    assert_eq!(own, ["cgroup", "ipc", "mount", "network", "pid", "uts"]);
    for (target, option) in [
        ("/proc", "noexec"),
        ("/sys", "ro"),
        ("/sys/fs/cgroup", "ro"),
        ("/dev/shm", "size=67108864"),
        ("/dev/pts", "newinstance"),
    ] {
        let mount = mount(&document, target).unwrap_or_else(|| panic!("{target} is not mounted"));
        assert!(words(&mount["options"]).contains(&option), "{target} {option}");
    }
    let resolv = mount(&document, "/etc/resolv.conf").expect("resolv.conf");
    assert_eq!(resolv["source"], "/var/lib/knarr/containers/x/resolv.conf");
}

#[test]
fn capabilities_are_added_and_dropped_as_docker_does() {
    let with = |add: &[&str], drop: &[&str]| {
        let mut case = Case::default();
        case.spec.security.cap_add = add.iter().map(|&name| name.to_owned()).collect();
        case.spec.security.cap_drop = drop.iter().map(|&name| name.to_owned()).collect();
        case.generate().map(|document| {
            words(&document["process"]["capabilities"]["bounding"])
                .into_iter()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        })
    };
    assert_eq!(with(&["NET_ADMIN"], &["ALL"]).unwrap(), ["CAP_NET_ADMIN"]);
    assert_eq!(with(&["cap_sys_time"], &[]).unwrap().len(), 15);
    assert_eq!(with(&["ALL"], &[]).unwrap().len(), 41);
    assert_eq!(with(&["ALL"], &["MKNOD"]).unwrap().len(), 40);
    assert!(!with(&[], &["NET_RAW"]).unwrap().contains(&"CAP_NET_RAW".to_owned()));
    assert!(with(&["DANCE"], &[]).is_err());
}

#[test]
fn a_privileged_container_has_everything() {
    let mut case = Case::default();
    case.spec.security.privileged = true;
    let document = case.made();
    assert_eq!(words(&document["process"]["capabilities"]["effective"]).len(), 41);
    assert!(document["linux"].get("maskedPaths").is_none());
    assert!(document["linux"].get("seccomp").is_none());
    assert!(document["annotations"].get(SECCOMP_ANNOTATION).is_none());
    assert_eq!(
        document["linux"]["resources"]["devices"],
        json!([{"allow": true, "access": "rwm"}])
    );
    let sys = mount(&document, "/sys").expect("sys");
    assert!(words(&sys["options"]).contains(&"rw"));
}

#[test]
fn r15_another_user_has_capabilities_in_the_bounding_set_only() {
    let mut case = Case::default();
    case.spec.user = Some("1000:1000".into());
    case.spec.group_add = vec!["20".into(), "audio".into()];
    let document = case.made();
    let process = &document["process"];
    assert_eq!(process["user"]["username"], "1000:1000");
    assert_eq!(process["user"]["additionalGids"], json!([20]));
    assert_eq!(document["annotations"]["dev.knarr.groups"], "audio");
    assert_eq!(words(&process["capabilities"]["bounding"]).len(), 14);
    assert!(words(&process["capabilities"]["effective"]).is_empty());
}

#[test]
fn limits_are_said_in_the_kernels_units() {
    let mut case = Case::default();
    case.spec.resources = Resources {
        memory: Some(64 << 20),
        nano_cpus: Some(1_500_000_000),
        pids: Some(10),
        ..Resources::default()
    };
    case.spec.ulimits = vec![Ulimit { name: "nofile".into(), soft: 1024, hard: -1 }];
    let document = case.made();
    let limits = &document["linux"]["resources"];
    assert_eq!(limits["memory"]["limit"], 64 << 20);
    assert_eq!(limits["memory"]["swap"], 128 << 20);
    assert_eq!(limits["cpu"], json!({"period": 100_000, "quota": 150_000}));
    assert_eq!(limits["pids"]["limit"], 10);
    assert_eq!(
        document["process"]["rlimits"],
        json!([{"type": "RLIMIT_NOFILE", "soft": 1024, "hard": u64::MAX}])
    );
    case.host.swap_limit = false;
    assert!(case.made()["linux"]["resources"]["memory"].get("swap").is_none());
    case.spec.resources.pids = Some(0);
    assert!(case.made()["linux"]["resources"].get("pids").is_none());
}

#[test]
fn shared_namespaces_are_named_and_the_hosts_left_out() {
    let mut case = Case::default();
    case.places = Places {
        network: Place::Host,
        pid: Place::Of("/proc/1/ns/pid".into()),
        ipc: Place::Host,
        uts: Place::Host,
    };
    case.spec.network_mode = NetworkMode::Host;
    let document = case.made();
    let all = namespaces_of(&document);
    assert!(!all.contains_key("network") && !all.contains_key("ipc") && !all.contains_key("uts"));
    assert_eq!(all["pid"].as_deref(), Some("/proc/1/ns/pid"));
    assert!(document.get("hostname").is_none());
    assert!(document["linux"].get("sysctl").is_none(), "the host's are the host's");
    assert_eq!(mount(&document, "/dev/shm").expect("shm")["source"], "/dev/shm");
}

#[test]
fn s02_sysctls_of_the_host_are_refused() {
    for (name, good) in [
        ("net.core.somaxconn", true),
        ("kernel.shmmax", true),
        ("fs.mqueue.msg_max", true),
        ("kernel.core_pattern", false),
        ("vm.swappiness", false),
        ("net.../../kernel/core_pattern", false),
    ] {
        let mut case = Case::default();
        case.spec.sysctls.insert(name.into(), "1".into());
        assert_eq!(case.generate().is_ok(), good, "{name}");
    }
    let mut host = Case::default();
    host.places.network = Place::Host;
    host.spec.sysctls.insert("net.core.somaxconn".into(), "1".into());
    assert!(host.generate().is_err());
}

#[test]
fn users_mounts_come_last_and_replace_our_own() {
    let mut case = Case::default();
    case.mounts = vec![
        ResolvedMount {
            target: "/data".into(),
            read_only: true,
            source: Source::Path {
                path: "/srv".into(),
                propagation: Propagation::Rshared,
                recursive: true,
                read_only_shallow: false,
                devices: false,
            },
        },
        ResolvedMount {
            target: "/dev/shm".into(),
            read_only: false,
            source: Source::Tmpfs { options: vec!["exec".into(), "size=1024".into()] },
        },
        ResolvedMount {
            target: "/etc/hosts".into(),
            read_only: false,
            source: Source::Path {
                path: "/srv/hosts".into(),
                propagation: Propagation::Rprivate,
                recursive: false,
                read_only_shallow: false,
                devices: true,
            },
        },
    ];
    let document = case.made();
    let all = document["mounts"].as_array().expect("mounts");
    let data = mount(&document, "/data").expect("data");
    assert_eq!(words(&data["options"]), ["rbind", "rro", "rshared", "rnodev"]);
    assert_eq!(document["linux"]["rootfsPropagation"], "shared");
    let shm: Vec<_> = all.iter().filter(|mount| mount["destination"] == "/dev/shm").collect();
    assert_eq!(shm.len(), 1);
    assert_eq!(words(&shm[0]["options"]), ["nosuid", "nodev", "exec", "size=1024"]);
    let hosts: Vec<_> = all.iter().filter(|mount| mount["destination"] == "/etc/hosts").collect();
    assert_eq!(hosts.len(), 1);
    assert_eq!(hosts[0]["source"], "/srv/hosts");
    assert_eq!(words(&hosts[0]["options"]), ["bind", "rw", "rprivate"]);
}

#[test]
fn a_custom_seccomp_profile_is_resolved_here() {
    let mut case = Case::default();
    case.spec.security.seccomp = SeccompChoice::Profile(
        r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO"}]}"#.into(),
    );
    let document = case.made();
    assert_eq!(document["linux"]["seccomp"]["defaultAction"], "SCMP_ACT_ALLOW");
    assert!(document["annotations"].get(SECCOMP_ANNOTATION).is_none());
    case.spec.security.seccomp = SeccompChoice::Unconfined;
    assert!(case.made()["linux"].get("seccomp").is_none());
}

#[test]
fn environment_entries_replace_and_remove() {
    let base = vec!["A=1".to_owned(), "B=2".to_owned()];
    let over = ["B=3".to_owned(), "A".to_owned(), "C=4=5".to_owned(), "D".to_owned()];
    assert_eq!(overlay_env(base, &over), ["B=3", "C=4=5"]);
    let twice = vec!["A=1".to_owned(), "B=2".to_owned(), "A=3".to_owned()];
    assert_eq!(overlay_env(twice, &[]), ["A=3", "B=2"]);
}

#[test]
fn w27_a_wasm_program_gets_what_is_granted_and_no_more() {
    let mut case = Case::default();
    case.spec.env = vec!["ONLY=this".into()];
    case.wasm = Some(WasmLaunch {
        host: "/usr/libexec/knarr/knarr-wasm".into(),
        code: "/var/lib/knarr/wasm/x.cwasm".into(),
        identity: None,
        abi: WasmAbi::ComponentCommand,
        preopens: vec![Preopen { path: "/".into(), read_only: true }],
        network: Some(WasmNetwork::default()),
        memory: None,
    });
    let document = case.made();
    let process = &document["process"];
    assert_eq!(words(&process["env"]), ["ONLY=this"]);
    assert!(words(&process["capabilities"]["bounding"]).is_empty());
    assert_eq!(process["noNewPrivileges"], true);
    assert_eq!(document["root"]["readonly"], true);
    assert!(mount(&document, "/proc").is_none());
    assert!(mount(&document, "/dev").is_none());
    assert!(document["annotations"][WASM_ANNOTATION].is_string());
    assert_eq!(
        document["linux"]["resources"]["devices"],
        json!([{"allow": false, "access": "rwm"}])
    );
}

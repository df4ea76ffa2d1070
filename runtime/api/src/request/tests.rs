use knarr_model::{MountKind, NetworkMode, SeccompChoice};
use serde_json::{Value, json};

use super::*;

fn request(host: Value, config: Value) -> Result<Parsed> {
    let mut body = json!({"Image": "busybox", "HostConfig": host});
    for (key, value) in config.as_object().into_iter().flatten() {
        body[key] = value.clone();
    }
    parse(serde_json::from_value(body).expect("wire type reads"), None)
}

fn spec(host: Value) -> ContainerSpec {
    request(host.clone(), json!({})).unwrap_or_else(|e| panic!("{host}: {}", e.message)).spec
}

#[track_caller]
fn refused(host: Value, config: Value, want: &str) {
    let error = request(host.clone(), config.clone())
        .err()
        .unwrap_or_else(|| panic!("accepted {host} {config}, wanted: {want}"));
    assert!(error.message.contains(want), "{host} {config}: {} lacks {want}", error.message);
    assert!(error.status.is_client_error() || error.status.as_u16() == 501, "{host}");
}

#[test]
fn the_docker_clients_own_request_is_accepted() {
    let text = include_str!("../../../docker/src/testdata/create.json");
    let parsed = parse(serde_json::from_str(text).unwrap(), Some("linux/amd64")).unwrap();
    let spec = parsed.spec;
    assert_eq!(spec.cmd, Some(vec!["true".to_owned()]));
    assert_eq!(spec.entrypoint, None);
    assert_eq!(spec.network_mode, NetworkMode::Default);
    assert!(spec.endpoints.contains_key("bridge"));
    assert_eq!(spec.platform.unwrap().to_string(), "linux/amd64");
    assert_eq!(spec.request["Config"]["Image"], "busybox");
    assert!(parsed.warnings.is_empty(), "{:?}", parsed.warnings);
}

#[test]
fn a06_numeric_abuse_is_refused_in_dockers_words() {
    for (host, want) in [
        (json!({"Memory": 1}), "Minimum memory limit allowed is 6MB"),
        (json!({"Memory": -1}), "Minimum memory limit allowed is 6MB"),
        (json!({"MemorySwap": 1 << 30}), "You should always set the Memory limit"),
        (json!({"Memory": 1 << 30, "MemorySwap": 1 << 20}), "Minimum memoryswap limit"),
        (json!({"MemoryReservation": 5}), "Minimum memory reservation allowed is 6MB"),
        (json!({"Memory": 7 << 20, "MemoryReservation": 8 << 20}), "memory reservation limit"),
        (json!({"NanoCpus": 1_000_000_000_000_i64}), "range of CPUs is from 0.01 to"),
        (json!({"NanoCpus": -1}), "range of CPUs is from 0.01 to"),
        (json!({"NanoCpus": 1, "CpuPeriod": 1000}), "Nano CPUs and CPU Period"),
        (json!({"NanoCpus": 1, "CpuQuota": 1000}), "Nano CPUs and CPU Quota"),
        (json!({"CpuPeriod": 10}), "CPU cfs period can not be less"),
        (json!({"CpuQuota": 10}), "CPU cfs quota can not be less"),
        (json!({"CpuShares": -1}), "CPU shares"),
        (json!({"CpusetCpus": "0-99999"}), "Requested CPUs are not available"),
        (json!({"CpusetCpus": "x"}), "Invalid value x for cpuset cpus"),
        (json!({"CpusetCpus": "1-0"}), "Invalid value 1-0 for cpuset cpus"),
        (json!({"CpusetMems": "0-"}), "Invalid value 0- for cpuset mems"),
        (json!({"MemorySwappiness": 101}), "valid memory swappiness range is 0-100"),
        (json!({"ShmSize": -1}), "SHM size can not be less than 0"),
        (json!({"OomScoreAdj": 1001}), "range for oom score adj"),
        (
            json!({"Ulimits": [{"Name": "nofile", "Soft": 2, "Hard": 1}]}),
            "ulimit soft limit must be",
        ),
        (
            json!({"Ulimits": [{"Name": "nofile", "Soft": -1, "Hard": 1}]}),
            "ulimit soft limit must be",
        ),
        (json!({"Ulimits": [{"Name": "nope", "Soft": 1, "Hard": 1}]}), "invalid ulimit type: nope"),
        (json!({"PortBindings": {"70000/tcp": [{}]}}), "invalid port specification"),
        (json!({"PortBindings": {"0/tcp": [{}]}}), "invalid port specification"),
        (
            json!({"PortBindings": {"80/tcp": [{"HostPort": "70000"}]}}),
            "invalid port specification",
        ),
        (json!({"PortBindings": {"80/tcp": [{"HostPort": "9-8"}]}}), "invalid port range"),
        (json!({"PortBindings": {"80/tcp": [{"HostIp": "nope"}]}}), "invalid host IP address"),
        (json!({"PortBindings": {"80/what": [{}]}}), "invalid proto"),
    ] {
        refused(host, json!({}), want);
    }
}

#[test]
fn a06_zero_and_negative_pids_mean_no_limit() {
    for limit in [0, -1, -5] {
        assert_eq!(spec(json!({"PidsLimit": limit})).resources.pids, None);
    }
    assert_eq!(spec(json!({"PidsLimit": 7})).resources.pids, Some(7));
}

#[test]
fn a05_names_and_words_that_would_break_out_are_refused() {
    for (host, config, want) in [
        (json!({}), json!({"Hostname": "a\nb"}), "invalid hostname"),
        (json!({}), json!({"Hostname": "a".repeat(65)}), "invalid hostname"),
        (json!({}), json!({"Env": ["=x"]}), "invalid environment variable"),
        (json!({}), json!({"WorkingDir": "rel"}), "needs to be an absolute path"),
        (json!({}), json!({"StopSignal": "NOPE"}), "invalid signal: NOPE"),
        (json!({}), json!({"Labels": {"a": "x".repeat(2 << 20)}}), "is too long"),
        (json!({"DnsSearch": ["a\nnameserver 6.6.6.6"]}), json!({}), "invalid DNS search"),
        (json!({"Dns": ["nope"]}), json!({}), "invalid DNS server"),
        (json!({"ExtraHosts": ["a b:1.2.3.4"]}), json!({}), "add-host"),
        (json!({"ExtraHosts": ["a:nope"]}), json!({}), "add-host"),
        (json!({"CgroupParent": "../../x"}), json!({}), "invalid cgroup parent"),
        (json!({"Sysctls": {"net/../../x": "1"}}), json!({}), "invalid sysctl"),
        (json!({"Devices": [{"PathOnHost": "/dev/../etc"}]}), json!({}), "invalid device path"),
        (
            json!({"Devices": [{"PathOnHost": "/dev/null", "CgroupPermissions": "rx"}]}),
            json!({}),
            "invalid device mode",
        ),
        (json!({}), json!({"Image": ""}), "no image specified"),
    ] {
        refused(host, config, want);
    }
}

#[test]
fn contradictions_are_refused() {
    for (host, config, want) in [
        (json!({"AutoRemove": true, "RestartPolicy": {"Name": "always"}}), json!({}), "AutoRemove"),
        (json!({"RestartPolicy": {"Name": "nope"}}), json!({}), "unknown policy 'nope'"),
        (
            json!({"RestartPolicy": {"Name": "always", "MaximumRetryCount": 3}}),
            json!({}),
            "only be used with 'on-failure'",
        ),
        (
            json!({"RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": -3}}),
            json!({}),
            "cannot be negative",
        ),
        (json!({"NetworkMode": "container:"}), json!({}), "container:<name|id>"),
        (
            json!({"NetworkMode": "container:x"}),
            json!({"Hostname": "h"}),
            "hostname and the network mode",
        ),
        (
            json!({"NetworkMode": "container:x", "PortBindings": {"80/tcp": [{}]}}),
            json!({}),
            "conflicting options: port",
        ),
        (json!({"UTSMode": "host"}), json!({"Hostname": "h"}), "hostname and the UTS mode"),
        (json!({"PidMode": "nope"}), json!({}), "invalid PID mode: nope"),
        (json!({"IpcMode": "container:"}), json!({}), "invalid IPC mode"),
        (json!({"Runtime": "nope"}), json!({}), "unknown or invalid runtime name: nope"),
        (json!({"LogConfig": {"Type": "syslog"}}), json!({}), "no log driver named 'syslog'"),
        (json!({"LogConfig": {"Config": {"max-size": "x"}}}), json!({}), "max-size"),
        (json!({"LogConfig": {"Config": {"nope": "x"}}}), json!({}), "unknown log opt 'nope'"),
        (json!({"CapAdd": ["NOPE"]}), json!({}), "unknown capability: \"NOPE\""),
        (json!({"SecurityOpt": ["nope=1"]}), json!({}), "invalid --security-opt"),
        (json!({"SecurityOpt": ["seccomp={"]}), json!({}), "decoding seccomp profile failed"),
    ] {
        refused(host, config, want);
    }
}

#[test]
fn binds_follow_dockers_grammar() {
    let one = |bind: &str| spec(json!({"Binds": [bind]})).mounts.remove(0);
    let bind = one("/a/../b:/c/./d:ro,rshared");
    assert!(bind.read_only);
    assert_eq!(bind.target.to_str(), Some("/c/d"));
    let MountKind::Bind { source, create_source, propagation, .. } = bind.kind else { panic!() };
    assert_eq!((source.to_str(), create_source), (Some("/b"), true));
    assert_eq!(propagation, knarr_model::Propagation::Rshared);
    let volume = one("data:/data:nocopy");
    let MountKind::Volume { name, copy_up, .. } = volume.kind else { panic!() };
    assert_eq!((name.as_deref(), copy_up), (Some("data"), false));
    for (bind, want) in [
        ("./a:/b", "use absolute path"),
        ("data:rel", "must be absolute"),
        ("/a:/", "destination can't be '/'"),
        ("/a:/b:nope", "invalid mode: nope"),
        ("data:/b:shared", "invalid mode: shared"),
        ("/a:/b:ro:rw", "invalid volume specification"),
        (":/b", "invalid volume specification"),
        ("a:/b", "too short"),
    ] {
        refused(json!({"Binds": [bind]}), json!({}), want);
    }
    refused(json!({"Binds": ["/a:/x", "/b:/x/."]}), json!({}), "Duplicate mount point: /x");
}

#[test]
fn mounts_follow_dockers_grammar() {
    let good = spec(json!({"Mounts": [
        {"Type": "bind", "Source": "/a", "Target": "/b", "ReadOnly": true},
        {"Type": "volume", "Source": "data", "Target": "/d", "VolumeOptions": {"Subpath": "x/y"}},
        {"Type": "tmpfs", "Target": "/t", "TmpfsOptions": {"SizeBytes": 4096, "Mode": 448}},
    ], "Tmpfs": {"/run": "rw,noexec,size=64k,mode=755"}}));
    assert_eq!(good.mounts.len(), 4);
    let MountKind::Bind { create_source, .. } = good.mounts[0].kind else { panic!() };
    assert!(!create_source);
    let MountKind::Tmpfs { size, mode, ref options } = good.mounts[3].kind else { panic!() };
    assert_eq!((size, mode), (Some(65536), Some(0o755)));
    assert_eq!(options, &["rw", "noexec"]);
    for (mount, want) in [
        (json!({"Type": "bind", "Target": "/b"}), "field Source must not be empty"),
        (json!({"Type": "bind", "Source": "a", "Target": "/b"}), "must be absolute"),
        (json!({"Type": "bind", "Source": "/a"}), "field Target must not be empty"),
        (
            json!({"Type": "bind", "Source": "/a", "Target": "/b", "BindOptions": {"Propagation": "x"}}),
            "invalid propagation mode: x",
        ),
        (
            json!({"Type": "volume", "Target": "/b", "BindOptions": {}}),
            "BindOptions must not be specified",
        ),
        (
            json!({"Type": "volume", "Source": "aa", "Target": "/b", "VolumeOptions": {"Subpath": "../x"}}),
            "subpath",
        ),
        (json!({"Type": "tmpfs", "Source": "x", "Target": "/b"}), "Source must not be specified"),
        (json!({"Type": "nope", "Target": "/b"}), "mount type unknown"),
        (json!({"Type": "image", "Target": "/b"}), "not supported"),
    ] {
        refused(json!({"Mounts": [mount]}), json!({}), want);
    }
    refused(json!({"Tmpfs": {"/t": "size=64k,evil=../x"}}), json!({}), "invalid tmpfs option");
}

#[test]
fn networks_and_ports_are_read() {
    let body = json!({
        "Image": "busybox",
        "ExposedPorts": {"90-92/udp": {}},
        "HostConfig": {"NetworkMode": "net", "PortBindings": {
            "80/tcp": [{"HostIp": "127.0.0.1", "HostPort": "8080"}, {"HostPort": ""}],
            "81/tcp": null,
        }, "ExtraHosts": ["h:host-gateway", "six:[::1]"]},
        "NetworkingConfig": {"EndpointsConfig": {
            "net": {"Aliases": ["db"], "IPAMConfig": {"IPv4Address": "10.9.0.4"}}, "other": null,
        }},
    });
    let spec = parse(serde_json::from_value(body).unwrap(), None).unwrap().spec;
    assert_eq!(spec.network_mode, NetworkMode::Network("net".into()));
    assert_eq!(spec.endpoints["net"].aliases, ["db"]);
    assert_eq!(spec.endpoints["net"].ipv4.unwrap().to_string(), "10.9.0.4");
    assert!(spec.endpoints.contains_key("other"));
    assert_eq!(spec.exposed_ports.len(), 5);
    assert_eq!(spec.published.len(), 2);
    assert_eq!(spec.published[0].host_port, Some(8080));
    assert_eq!(spec.published[1].host_port, None);
    assert_eq!(spec.extra_hosts[1], ("six".to_owned(), "::1".to_owned()));
}

#[test]
fn endpoints_without_a_mode_name_the_mode() {
    let body = json!({"Image": "x", "NetworkingConfig": {"EndpointsConfig": {"net": {}}}});
    let spec = parse(serde_json::from_value(body).unwrap(), None).unwrap().spec;
    assert_eq!(spec.network_mode, NetworkMode::Network("net".into()));
    assert!(!spec.endpoints.contains_key("bridge"));
    assert!(
        super::parse(
            serde_json::from_value(json!({"Image": "x", "HostConfig": {"NetworkMode": "host"},
            "NetworkingConfig": {"EndpointsConfig": {"net": {}}}}))
            .unwrap(),
            None
        )
        .is_err()
    );
}

#[test]
fn security_options_are_read() {
    let security = |options: Value| spec(json!({"SecurityOpt": options})).security;
    assert!(security(json!(["no-new-privileges"])).no_new_privileges);
    assert!(security(json!(["no-new-privileges:true"])).no_new_privileges);
    assert!(!security(json!(["no-new-privileges=false"])).no_new_privileges);
    assert_eq!(security(json!(["seccomp=unconfined"])).seccomp, SeccompChoice::Unconfined);
    let profile = security(json!(["seccomp={\"defaultAction\":\"SCMP_ACT_ALLOW\"}"])).seccomp;
    assert!(matches!(profile, SeccompChoice::Profile(_)));
    assert!(security(json!(["systempaths=unconfined"])).unconfined_paths);
    assert!(spec(json!({"MaskedPaths": [], "ReadonlyPaths": []})).security.unconfined_paths);
    let capabilities =
        spec(json!({"CapAdd": ["cap_net_admin", "ALL"], "CapDrop": "MKNOD"})).security;
    assert_eq!(capabilities.cap_add, ["NET_ADMIN", "ALL"]);
    assert_eq!(capabilities.cap_drop, ["MKNOD"]);
    let warned = request(json!({"SecurityOpt": ["apparmor=mine", "label=type:x"]}), json!({}));
    let warned = warned.unwrap();
    assert_eq!(warned.warnings.len(), 1);
    assert_eq!(warned.spec.security.apparmor.as_deref(), Some("mine"));
}

#[test]
fn sizes_read_as_docker_reads_them() {
    for (text, bytes) in
        [("10m", 10 << 20), ("64kb", 64 << 10), ("1.5g", 3 << 29), ("100", 100), ("2GiB", 2 << 30)]
    {
        assert_eq!(parse_size(text), Some(bytes), "{text}");
    }
    for bad in ["", "x", "-1", "10q", "1e9", "99999999999p"] {
        assert_eq!(parse_size(bad), None, "{bad}");
    }
}

#[test]
fn an_empty_entrypoint_removes_the_images() {
    let words =
        |value: Value| request(json!({}), json!({"Entrypoint": value})).unwrap().spec.entrypoint;
    assert_eq!(words(json!([])), Some(vec![]));
    assert_eq!(words(json!([""])), Some(vec![]));
    assert_eq!(words(json!(null)), None);
    assert_eq!(words(json!("sh")), Some(vec!["sh".to_owned()]));
}

#[test]
fn x09_counts_have_limits() {
    let many = |count: usize, each: &dyn Fn(usize) -> Value| -> Value {
        (0..count).map(each).collect::<Vec<_>>().into()
    };
    let map = |count: usize, key: &dyn Fn(usize) -> String, value: Value| -> Value {
        (0..count).map(|n| (key(n), value.clone())).collect::<serde_json::Map<_, _>>().into()
    };
    for (host, config, want) in [
        (json!({"Binds": many(100_000, &|n| json!(format!("/s:/t{n}")))}), json!({}), "mounts"),
        (json!({"Tmpfs": map(10_001, &|n| format!("/t{n}"), json!(""))}), json!({}), "mounts"),
        (json!({}), json!({"Volumes": map(10_001, &|n| format!("/v{n}"), json!({}))}), "mounts"),
        (json!({}), json!({"Labels": map(10_001, &|n| n.to_string(), json!(""))}), "labels"),
        (json!({"GroupAdd": many(10_001, &|n| json!(n.to_string()))}), json!({}), "groups"),
        (json!({"CapAdd": many(10_001, &|_| json!("CHOWN"))}), json!({}), "capabilities"),
        (json!({"Ulimits": many(10_001, &|_| json!({"Name": "core"}))}), json!({}), "ulimits"),
        (json!({"Devices": many(10_001, &|_| json!({"PathOnHost": "/d"}))}), json!({}), "devices"),
        (json!({"VolumesFrom": many(10_001, &|_| json!("x"))}), json!({}), "take volumes from"),
        (json!({"ExtraHosts": many(10_001, &|_| json!("a:1.1.1.1"))}), json!({}), "extra hosts"),
        (
            json!({}),
            // Each is a range of all ports, written otherwise.
            json!({"ExposedPorts": map(10_000, &|n| format!("{:0>6}-65535", n + 1), json!({}))}),
            "too many ports",
        ),
    ] {
        refused(host, config, want);
    }
    // What people do ask for.
    let ports = map(20_000, &|n| format!("{}/udp", n + 10_000), json!([{"HostPort": "1"}]));
    assert_eq!(spec(json!({"PortBindings": ports})).published.len(), 20_000);
}

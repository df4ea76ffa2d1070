//! Shapes that clients rely on, as dockerd 28 answers them (API 1.50).

use std::{collections::BTreeMap, sync::Arc};

use knarr_engine::{
    ContainerView, EndpointView, MountView, PublishedPort, State, StatsSample, Status,
};
use knarr_model::{
    ContainerSpec, Digest, NetworkMode, Platform, PortSpec, Transport, Workload,
    task::{InterfaceStats, TaskStats},
};
use serde_json::Value;

use super::*;

fn view() -> ContainerView {
    let port = PortSpec { port: 80, transport: Transport::Tcp };
    let quiet = PortSpec { port: 53, transport: Transport::Udp };
    let request = serde_json::json!({
        "Config": {"Image": "web:1", "AttachStdout": true, "StopTimeout": 3},
        "HostConfig": {"Memory": 1 << 30, "MemorySwap": 0, "NetworkMode": "net", "Invented": 7},
    });
    ContainerView {
        id: "ab".repeat(32).parse().unwrap(),
        name: "web".into(),
        created: "2026-01-02T03:04:05.000000006Z".into(),
        spec: Arc::new(ContainerSpec {
            image: "web:1".into(),
            env: vec!["PATH=/bin".into()],
            cmd: Some(vec!["-c".into(), "echo hi".into()]),
            network_mode: NetworkMode::Network("net".into()),
            exposed_ports: [port, quiet].into(),
            request,
            ..ContainerSpec::default()
        }),
        image_id: Digest::from_bytes([7; 32]),
        workload: Workload::Native { platform: Platform::host() },
        path: "sh".into(),
        args: vec!["-c".into(), "echo hi".into()],
        state: State {
            status: Status::Running,
            pid: 42,
            started_at: Some("2026-01-02T03:04:06Z".into()),
            ..State::default()
        },
        restart_count: 0,
        mounts: vec![MountView {
            kind: "volume".into(),
            name: Some("data".into()),
            source: "/v/data/_data".into(),
            target: "/data".into(),
            driver: "local".into(),
            read_only: true,
            propagation: String::new(),
            anonymous: false,
        }],
        endpoints: BTreeMap::from([(
            "net".to_owned(),
            EndpointView {
                network_id: "cd".repeat(32),
                ipv4: Some(("10.9.0.2".parse().unwrap(), 24)),
                gateway: Some("10.9.0.1".parse().unwrap()),
                mac: "02:42:0a:09:00:02".into(),
                ..EndpointView::default()
            },
        )]),
        ports: vec![PublishedPort {
            container: port,
            host_ip: "0.0.0.0".parse().unwrap(),
            host_port: 8080,
        }],
        upper: Some("/c/upper".into()),
        lower: vec!["/l/2".into(), "/l/1".into()],
        etc: "/c".into(),
        log_path: Some("/c/json.log".into()),
        execs: Vec::new(),
    }
}

#[track_caller]
fn has(value: &Value, keys: &str) {
    for key in keys.split_whitespace() {
        assert!(value.get(key).is_some(), "{key} is missing in {value}");
    }
}

#[test]
fn inspect_has_dockers_shape() {
    let value = serde_json::to_value(container(&view())).unwrap();
    has(
        &value,
        "Id Created Path Args State Image ResolvConfPath HostnamePath HostsPath LogPath Name \
         RestartCount Driver Platform MountLabel ProcessLabel AppArmorProfile ExecIDs HostConfig \
         GraphDriver Mounts Config NetworkSettings",
    );
    has(
        &value["State"],
        "Status Running Paused Restarting OOMKilled Dead Pid ExitCode Error StartedAt FinishedAt",
    );
    has(
        &value["HostConfig"],
        "Binds ContainerIDFile LogConfig NetworkMode PortBindings RestartPolicy AutoRemove \
         VolumeDriver VolumesFrom ConsoleSize CapAdd CapDrop CgroupnsMode Dns DnsOptions DnsSearch \
         ExtraHosts GroupAdd IpcMode Cgroup Links OomScoreAdj PidMode Privileged PublishAllPorts \
         ReadonlyRootfs SecurityOpt UTSMode UsernsMode ShmSize Runtime Isolation CpuShares Memory \
         NanoCpus CgroupParent BlkioWeight CpuPeriod CpuQuota CpuRealtimePeriod \
         CpuRealtimeRuntime CpusetCpus CpusetMems Devices DeviceCgroupRules DeviceRequests \
         MemoryReservation MemorySwap MemorySwappiness OomKillDisable PidsLimit Ulimits \
         MaskedPaths ReadonlyPaths",
    );
    has(
        &value["Config"],
        "Hostname Domainname User AttachStdin AttachStdout AttachStderr Tty OpenStdin StdinOnce \
         Env Cmd Image Volumes WorkingDir Entrypoint OnBuild Labels",
    );
    has(
        &value["NetworkSettings"],
        "Bridge SandboxID SandboxKey Ports EndpointID Gateway GlobalIPv6Address \
         GlobalIPv6PrefixLen IPAddress IPPrefixLen IPv6Gateway MacAddress Networks",
    );
    has(
        &value["NetworkSettings"]["Networks"]["net"],
        "IPAMConfig Links Aliases MacAddress DriverOpts NetworkID EndpointID Gateway IPAddress \
         IPPrefixLen IPv6Gateway GlobalIPv6Address GlobalIPv6PrefixLen DNSNames",
    );
    has(&value["Mounts"][0], "Type Name Source Destination Driver Mode RW Propagation");
}

#[test]
fn inspect_answers_what_was_asked_and_what_came_of_it() {
    let value = serde_json::to_value(container(&view())).unwrap();
    assert_eq!(value["Name"], "/web");
    assert_eq!(value["State"]["FinishedAt"], "0001-01-01T00:00:00Z");
    assert_eq!(value["Config"]["Hostname"], "abababababab");
    assert_eq!(value["Config"]["Env"][0], "PATH=/bin");
    assert_eq!(value["Config"]["StopTimeout"], 3);
    assert_eq!(value["HostConfig"]["Invented"], 7);
    assert_eq!(value["HostConfig"]["MemorySwap"], 2_u64 << 30);
    assert_eq!(value["HostConfig"]["RestartPolicy"]["Name"], "no");
    let ports = &value["NetworkSettings"]["Ports"];
    assert_eq!(ports["80/tcp"][0]["HostPort"], "8080");
    assert_eq!(ports["53/udp"], Value::Null);
    assert_eq!(value["Mounts"][0]["RW"], false);
    assert_eq!(value["GraphDriver"]["Data"]["LowerDir"], "/l/2:/l/1");
}

#[test]
fn a_row_of_the_list_has_dockers_shape() {
    let now = seconds_of("2026-01-02T03:05:06Z");
    let value = serde_json::to_value(summary(&view(), now)).unwrap();
    has(
        &value,
        "Id Names Image ImageID Command Created Ports Labels State Status HostConfig \
         NetworkSettings Mounts",
    );
    assert_eq!(value["Names"][0], "/web");
    assert_eq!(value["Command"], "sh -c 'echo hi'");
    assert_eq!(value["Status"], "Up About a minute");
    assert_eq!(value["State"], "running");
    let ports = value["Ports"].as_array().unwrap();
    assert_eq!(ports.len(), 2);
    assert_eq!(
        ports[1],
        serde_json::json!({"IP": "0.0.0.0", "PrivatePort": 80, "PublicPort": 8080, "Type": "tcp"})
    );
}

#[test]
fn states_read_as_docker_says_them() {
    let mut view = view();
    view.state.finished_at = Some("2026-01-02T03:04:08Z".into());
    view.state.exit_code = 137;
    let now = seconds_of("2026-01-02T03:04:10Z");
    for (status, words) in [
        (Status::Created, "Created"),
        (Status::Running, "Up 4 seconds"),
        (Status::Paused, "Up 4 seconds (Paused)"),
        (Status::Restarting, "Restarting (137) 2 seconds ago"),
        (Status::Exited, "Exited (137) 2 seconds ago"),
        (Status::Removing, "Removal In Progress"),
        (Status::Dead, "Dead"),
    ] {
        view.state.status = status;
        assert_eq!(summary(&view, now).status, words);
    }
    assert!(summary(&view, now).ports.is_empty(), "nothing is published by the dead");
}

#[test]
fn stats_have_what_the_client_computes_with() {
    let sample = |cpu: u64, system: u64| StatsSample {
        id: "ab".repeat(32).parse().unwrap(),
        name: "web".into(),
        read: "2026-01-02T03:04:05Z".parse().unwrap(),
        task: Some(TaskStats {
            cpu_ns: cpu,
            memory_usage: 100,
            memory_limit: u64::MAX,
            pids: 2,
            io_bytes: vec![(8, 0, "Read".into(), 9)],
            networks: BTreeMap::from([("eth0".to_owned(), InterfaceStats::default())]),
            ..TaskStats::default()
        }),
        system_cpu_ns: system,
        online_cpus: 2,
        host_memory: 1000,
    };
    let (one, two) = (sample(10, 100), sample(30, 200));
    let value = serde_json::to_value(stats(&two, Some(&one))).unwrap();
    has(
        &value,
        "name id read preread pids_stats blkio_stats num_procs storage_stats cpu_stats \
         precpu_stats memory_stats networks",
    );
    assert_eq!(value["cpu_stats"]["cpu_usage"]["total_usage"], 30);
    assert_eq!(value["precpu_stats"]["system_cpu_usage"], 100);
    assert_eq!(value["cpu_stats"]["online_cpus"], 2);
    assert_eq!(value["memory_stats"]["limit"], 1000);
    assert_eq!(value["blkio_stats"]["io_service_bytes_recursive"][0]["op"], "read");
    assert_eq!(value["read"], "2026-01-02T03:04:05.000000000Z");
    let first = serde_json::to_value(stats(&one, None)).unwrap();
    assert_eq!(first["preread"], "0001-01-01T00:00:00Z");
    let dead = StatsSample { task: None, ..one };
    assert_eq!(
        serde_json::to_value(stats(&dead, None)).unwrap()["pids_stats"],
        serde_json::json!({})
    );
}

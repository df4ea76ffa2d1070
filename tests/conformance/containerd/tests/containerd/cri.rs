//! Pods through containerd's CRI, as a kubelet drives it: containerd's own runtime
//! first, then ours.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
};

use crate::{
    pod::{Cri, GATEWAY, RUNC, handlers, of_container, of_pod},
    proto::cri::*,
    support::{BUSYBOX, Containerd, await_content, until, with_cri},
};

/// Asks a web server until it listens.
pub fn get(address: &str, path: &str) -> String {
    let mut stream = until(&format!("{address} listens"), || TcpStream::connect(address).ok());
    write!(stream, "GET {path} HTTP/1.1\r\nHost: pod\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// A number of a container's cgroup, by the hierarchy's and the file's name.
fn cgroup(containerd: &Containerd, id: &str, controller: &str, file: &str) -> String {
    let all = containerd.cgroups();
    let of = |parent: &std::path::PathBuf| {
        let legacy = parent.parent().is_some_and(|hierarchy| hierarchy.ends_with(controller));
        legacy.then(|| fs::read_to_string(parent.join(id).join(file)).ok()).flatten()
    };
    all.iter().find_map(of).unwrap_or_else(|| panic!("{file} of {id}")).trim().to_owned()
}

/// Memory that a process shares with no other one, in KiB.
fn own_memory(pid: i32) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let private = rollup.lines().filter(|line| line.starts_with("Private_"));
    private.map(|line| line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()).sum()
}

#[test]
fn cri_a_pod_lives_and_leaves_nothing() {
    with_cri(|containerd| {
        let cri = Cri::new(containerd);
        for handler in handlers().iter().copied() {
            eprintln!("--- {handler}");
            let pod = cri.run_pod(handler, |_| {});
            let status = pod.status();
            assert_eq!((status.state, status.runtime_handler.as_str()), (0, handler));
            assert!(status.network.ip.starts_with("10.88.7."), "{status:?}");
            assert_eq!(containerd.shims().len(), 1, "{:?}", containerd.shims());

            // Logs in the CRI's format.
            let talk = pod.container(BUSYBOX, &["sh", "-c", "echo out; echo err >&2; printf part"]);
            let id = pod.run(&talk);
            let ended = cri.await_end(&id);
            assert_eq!((ended.exit_code, ended.reason.as_str()), (0, "Completed"));
            assert!(ended.created_at < ended.finished_at, "{ended:?}");
            let log = await_content(&pod.log(&talk), "part");
            let lines: Vec<Vec<&str>> = log.lines().map(|l| l.splitn(4, ' ').collect()).collect();
            for want in [["stdout", "F", "out"], ["stderr", "F", "err"], ["stdout", "P", "part"]] {
                assert!(lines.iter().any(|line| line[1..] == want), "{want:?}: {log}");
            }
            assert!(lines[0][0].contains('T'), "a time first: {log}");
            cri.remove(&id);
            let fails = pod.run(&pod.container(BUSYBOX, &["sh", "-c", "exit 7"]));
            let ended = cri.await_end(&fails);
            assert_eq!((ended.exit_code, ended.reason.as_str()), (7, "Error"));
            let missing = pod.try_create(&pod.container(BUSYBOX, &["nonexistent"])).unwrap();
            let refused = cri.ask::<Empty>("StartContainer", &of_container(&missing)).unwrap_err();
            assert!(refused.message.contains("nonexistent"), "{refused:?}");

            // Commands inside.
            let id = pod.sleeper();
            assert_eq!(cri.exec(&id, &["hostname"]), pod.config.hostname);
            let script = "echo out; echo err >&2; exit 3";
            let said = cri.try_exec(&id, &["sh", "-c", script]).unwrap();
            let said = (said.exit_code, &*said.stdout, &*said.stderr);
            assert_eq!(said, (3, &b"out\n"[..], &b"err\n"[..]));
            let question = ExecSyncRequest {
                container_id: id.clone(),
                cmd: vec!["sleep".into(), "1000".into()],
                timeout: 1,
                ..Default::default()
            };
            let late = cri.ask::<ExecSyncResponse>("ExecSync", &question).unwrap_err();
            assert_eq!(late.code, 4, "{late:?}");
            let missing = cri.try_exec(&id, &["nonexistent"]).unwrap_err();
            assert!(missing.message.contains("nonexistent"), "{missing:?}");

            // It ends politely, or not, and comes again in the same pod.
            let ended = cri.stop(&id, 20);
            assert_eq!((ended.state, ended.exit_code), (2, 0), "{ended:?}");
            let deaf = pod.run(&pod.container(BUSYBOX, &["sh", "-c", "trap '' TERM; sleep 1000"]));
            assert_eq!(cri.stop(&deaf, 1).exit_code, 137);
            let mut again = pod.container(BUSYBOX, &["sleep", "1000"]);
            again.metadata.mut_or_insert_default().attempt = 1;
            let again = pod.run(&again);
            assert_eq!(cri.status(&again).state, 1);

            pod.stop();
            assert_eq!(pod.status().state, 1, "not ready");
            assert_eq!(cri.status(&again).exit_code, 137);
            pod.stop();
            pod.remove();
            pod.remove();
            cri.assert_clean();
        }
    });
}

#[test]
fn cri_figures_are_real_and_limits_change() {
    with_cri(|containerd| {
        let cri = Cri::new(containerd);
        for handler in handlers().iter().copied() {
            eprintln!("--- {handler}");
            let pod = cri.run_pod(handler, |_| {});
            let mut config = pod.container(BUSYBOX, &["sh", "-c", "while :; do :; done"]);
            let linux = config.linux.mut_or_insert_default();
            let limits = linux.resources.mut_or_insert_default();
            limits.memory_limit_in_bytes = 64 << 20;
            limits.cpu_shares = 512;
            limits.oom_score_adj = 500;
            let id = pod.run(&config);
            let stats = || -> ContainerStats {
                let answer: ContainerStatsResponse =
                    cri.ask("ContainerStats", &of_container(&id)).unwrap();
                answer.stats.unwrap()
            };
            let first = stats();
            assert_eq!(first.attributes.id, id);
            assert!(first.memory.working_set_bytes.value > 0, "{first:?}");
            assert!(first.memory.available_bytes.value < 64 << 20, "{first:?}");
            let spent = |stats: &ContainerStats| stats.cpu.usage_core_nano_seconds.value;
            until("more is spent", || (spent(&stats()) > spent(&first)).then_some(()));
            let all: ListContainerStatsResponse =
                cri.ask("ListContainerStats", &ListContainerStatsRequest::new()).unwrap();
            assert_eq!(all.stats.len(), 1, "{all:?}");
            let of_pod: PodSandboxStatsResponse =
                cri.ask("PodSandboxStats", &of_pod(&pod.id)).unwrap();
            let of_pod = of_pod.stats.unwrap().linux.unwrap();
            assert!(of_pod.cpu.usage_core_nano_seconds.value > 0, "{of_pod:?}");
            assert!(of_pod.memory.working_set_bytes.value > 0, "{of_pod:?}");
            assert!(of_pod.process.process_count.value > 0, "{of_pod:?}");
            assert_eq!(of_pod.network.default_interface.name, "eth0", "{of_pod:?}");
            assert_eq!(of_pod.containers.len(), 1, "{of_pod:?}");

            let read = |controller: &str, file: &str| cgroup(containerd, &id, controller, file);
            assert_eq!(read("memory", "memory.limit_in_bytes"), (64 << 20).to_string());
            assert_eq!(read("cpu", "cpu.shares"), "512");
            assert_eq!(cri.exec(&id, &["cat", "/proc/1/oom_score_adj"]), "500");
            let update = UpdateContainerResourcesRequest {
                container_id: id.clone(),
                linux: Some(LinuxContainerResources {
                    memory_limit_in_bytes: 96 << 20,
                    cpu_quota: 20_000,
                    cpu_period: 100_000,
                    cpu_shares: 256,
                    ..Default::default()
                })
                .into(),
                ..Default::default()
            };
            cri.ask::<Empty>("UpdateContainerResources", &update).unwrap();
            assert_eq!(read("memory", "memory.limit_in_bytes"), (96 << 20).to_string());
            assert_eq!(read("cpu", "cpu.shares"), "256");
            assert_eq!(read("cpu", "cpu.cfs_quota_us"), "20000");
            pod.stop();
            pod.remove();
            cri.assert_clean();
        }
    });
}

#[test]
fn cri_native_and_wasm_share_a_pod() {
    with_cri(|containerd| {
        let cri = Cri::new(containerd);
        let guests = ["web", "hello"].map(|guest| cri.import_guest(guest));
        for handler in handlers().iter().filter(|handler| **handler != RUNC) {
            eprintln!("--- {handler}");
            share_a_pod(&cri, handler, &guests);
        }
    });
}

fn share_a_pod(cri: &Cri<'_>, handler: &str, [web, hello]: &[String; 2]) {
    let containerd = cri.containerd;
    let pod = cri.run_pod(handler, |config| {
        config.port_mappings.push(PortMapping {
            container_port: 8080,
            host_port: 18080,
            ..Default::default()
        });
    });
    let hold = containerd.path(&format!("hold-{handler}"));
    fs::create_dir(&hold).unwrap();
    let volume = Mount {
        container_path: "/data".into(),
        host_path: hold.display().to_string(),
        ..Default::default()
    };
    let mut config = pod.container(BUSYBOX, &["sleep", "1000"]);
    config.mounts.push(volume.clone());
    let native = pod.run(&config);
    let mut config = pod.container(web, &[]);
    config.mounts.push(volume.clone());
    let served = pod.run(&config);
    assert_eq!(containerd.shims().len(), 1, "{:?}", containerd.shims());

    // From the host's side of the bridge, from a mapped port, and from next door.
    let address = format!("{}:8080", pod.status().network.ip);
    let answer = get(&address, "/");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let answer = get(&format!("{GATEWAY}:18080"), "/");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let next_door = cri.exec(&native, &["wget", "-q", "-O", "-", "http://127.0.0.1:8080/"]);
    assert!(!next_door.is_empty());

    // A volume of both.
    let mut config = pod.container(hello, &["/hello.wasm", "write", "/data/log", "grain"]);
    config.command = std::mem::take(&mut config.args);
    config.mounts.push(volume.clone());
    let writer = pod.run(&config);
    let ended = cri.await_end(&writer);
    assert_eq!(ended.exit_code, 0, "{ended:?}");
    assert_eq!(cri.exec(&native, &["cat", "/data/log"]), "grain");
    config.metadata.mut_or_insert_default().attempt = 1;
    config.mounts[0].readonly = true;
    assert_eq!(cri.await_end(&pod.run(&config)).exit_code, 1, "a volume to be read");

    // Environment, log, exit code.
    let mut config = pod.container(hello, &[]);
    config.envs.push(KeyValue { key: "NAME".into(), value: "boat".into(), ..Default::default() });
    let said = pod.run(&config);
    assert_eq!(cri.await_end(&said).exit_code, 0);
    let log = await_content(&pod.log(&config), "from a Wasm program");
    assert!(log.contains(" stdout F hello boat, from a Wasm program"), "{log}");

    // Figures, limits, what there is not.
    let stats: ContainerStatsResponse = cri.ask("ContainerStats", &of_container(&served)).unwrap();
    let stats = stats.stats.unwrap();
    assert!(stats.memory.working_set_bytes.value > 0, "{stats:?}");
    assert!(stats.cpu.usage_core_nano_seconds.value > 0, "{stats:?}");
    let update = UpdateContainerResourcesRequest {
        container_id: served.clone(),
        linux: Some(LinuxContainerResources {
            memory_limit_in_bytes: 128 << 20,
            ..Default::default()
        })
        .into(),
        ..Default::default()
    };
    cri.ask::<Empty>("UpdateContainerResources", &update).unwrap();
    let limit = cgroup(containerd, &served, "memory", "memory.limit_in_bytes");
    assert_eq!(limit, (128 << 20).to_string());
    let refused = cri.try_exec(&served, &["true"]).unwrap_err();
    assert!(refused.message.contains("there is one program in it"), "{refused:?}");

    // What the RuntimeClass says of overhead: the shim's own memory for all of
    // them. The program's pages are everybody's, where it is not the only one.
    let shim = containerd.shims()[0].0;
    let other = cri.run_pod(handler, |_| {});
    let own = own_memory(shim);
    eprintln!("the shim has {own} KiB of its own");
    assert!(own <= 3 * 1024, "{own} KiB");
    other.stop();
    other.remove();

    // It ends politely and is made anew where it was.
    let ended = cri.stop(&served, 20);
    assert_eq!((ended.state, ended.exit_code), (2, 0), "{ended:?}");
    cri.remove(&served);
    pod.run(&pod.container(web, &[]));
    assert!(get(&address, "/").starts_with("HTTP/1.1 200"));
    assert_eq!(containerd.shims().len(), 1, "{:?}", containerd.shims());
    pod.stop();
    pod.remove();
    cri.assert_clean();
}

#[test]
fn cri_pods_outlive_containerd() {
    with_cri(|containerd| {
        let web = Cri::new(containerd).import_guest("web");
        for handler in handlers().iter().copied() {
            eprintln!("--- {handler}");
            let cri = Cri::reconnect(containerd);
            let pod = cri.run_pod(handler, |_| {});
            let native = pod.sleeper();
            let wasm = (handler != RUNC).then(|| pod.run(&pod.container(&web, &[])));
            let address = format!("{}:8080", pod.status().network.ip);
            let (id, config) = (pod.id.clone(), pod.config.clone());
            containerd.kill_daemon();
            if wasm.is_some() {
                assert!(get(&address, "/").starts_with("HTTP/1.1 200"), "it runs on");
            }
            containerd.start_daemon();
            let cri = Cri::reconnect(containerd);
            let pod = cri.adopt(id, config);
            assert_eq!(pod.status().state, 0);
            assert_eq!(cri.exec(&native, &["echo", "still here"]), "still here");
            for id in std::iter::once(&native).chain(&wasm) {
                assert_eq!(cri.status(id).state, 1);
                assert_eq!(cri.stop(id, 20).exit_code, 0);
            }
            pod.stop();
            pod.remove();
            cri.assert_clean();
        }
    });
}

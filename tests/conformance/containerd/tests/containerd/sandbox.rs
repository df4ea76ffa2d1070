//! The Sandbox API of containerd 2.x, spoken to the shim by hand: pods without a pause
//! container. Under a containerd that leaves pods to shims (2.3), the tests of the CRI have
//! them as the handler `knarr-pods`.

use std::{
    fs,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use containerd_shim_protos::{
    api,
    protobuf::{Message, MessageField, well_known_types::any::Any},
    sandbox_api::*,
    sandbox_async::SandboxClient,
    shim_async::{Client, TaskClient},
};
use knarr_harness::prebuilt;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use ttrpc::{Code, context};

use crate::{
    bootstrap::{Heard, PATIENCE, call},
    proto::cri::{DNSConfig, PodSandboxConfig},
    support::{await_gone, enter, unique_name, until},
};

fn soon() -> context::Context {
    context::with_duration(PATIENCE)
}

/// A shim with a pod.
struct Pod {
    dir: tempfile::TempDir,
    address: String,
    sandboxes: SandboxClient,
    tasks: TaskClient,
    _events: Heard,
    _server: ttrpc::asynchronous::Server,
}

impl Pod {
    async fn new() -> Self {
        enter();
        let dir = tempfile::Builder::new().prefix("knarr-ctd-").tempdir().unwrap();
        let (events, server) = Heard::listen(dir.path()).await;
        let bundle = dir.path().join("pod");
        fs::DirBuilder::new().mode(0o711).create(&bundle).unwrap();
        let answer = call(dir.path(), &bundle, &["-id", "pod", "start"], b"", "3");
        let answer: Value = serde_json::from_slice(&answer).unwrap();
        assert_eq!(answer["version"], 3);
        let address = answer["address"].as_str().unwrap().to_owned();
        let client = Client::connect(&address).await.unwrap();
        let (sandboxes, tasks) = (SandboxClient::new(client.clone()), TaskClient::new(client));
        Self { dir, address, sandboxes, tasks, _events: events, _server: server }
    }

    fn bundle(&self) -> PathBuf {
        self.dir.path().join("pod")
    }

    fn request(&self) -> CreateSandboxRequest {
        let mut config = PodSandboxConfig {
            hostname: "boat".to_owned(),
            dns_config: MessageField::some(DNSConfig {
                servers: vec!["10.0.0.10".to_owned()],
                ..Default::default()
            }),
            ..Default::default()
        };
        config.linux.mut_or_insert_default().cgroup_parent = format!("/{}", unique_name());
        CreateSandboxRequest {
            sandbox_id: "pod".to_owned(),
            bundle_path: self.bundle().display().to_string(),
            options: MessageField::some(Any {
                type_url: "runtime.v1.PodSandboxConfig".to_owned(),
                value: config.write_to_bytes().unwrap(),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    async fn create(&self) {
        self.sandboxes.create_sandbox(soon(), &self.request()).await.unwrap();
    }

    async fn start(&self) -> u32 {
        let question = StartSandboxRequest { sandbox_id: "pod".into(), ..Default::default() };
        let started = self.sandboxes.start_sandbox(soon(), &question).await.unwrap();
        assert!(started.created_at.seconds > 0);
        let spec: Value = serde_json::from_slice(&started.spec.value).unwrap();
        assert_eq!(spec["linux"]["cgroupsPath"], format!("/{}/pod", unique_name()));
        started.pid
    }

    async fn status(&self) -> SandboxStatusResponse {
        let question =
            SandboxStatusRequest { sandbox_id: "pod".into(), verbose: true, ..Default::default() };
        self.sandboxes.sandbox_status(soon(), &question).await.unwrap()
    }

    async fn stop(&self) {
        let question = StopSandboxRequest { sandbox_id: "pod".into(), ..Default::default() };
        self.sandboxes.stop_sandbox(soon(), &question).await.unwrap();
    }

    /// A container in the namespaces of a process; what it says goes to a file of its name.
    async fn run(&self, id: &str, pid: u32, arguments: &[&str]) {
        let bundle = self.dir.path().join(id);
        let root = bundle.join("rootfs");
        fs::create_dir_all(root.join("bin")).unwrap();
        for name in ["sh", "cat", "hostname", "sleep", "grep"] {
            fs::copy("/bin/busybox", root.join("bin").join(name)).unwrap();
        }
        fs::write(root.join("hello.wasm"), prebuilt("hello").unwrap()).unwrap();
        for name in ["proc", "dev", "etc"] {
            fs::create_dir(root.join(name)).unwrap();
        }
        let mut namespaces = vec![json!({ "type": "mount" })];
        for (kind, file) in [("pid", "pid"), ("ipc", "ipc"), ("uts", "uts"), ("network", "net")] {
            namespaces.push(json!({ "type": kind, "path": format!("/proc/{pid}/ns/{file}") }));
        }
        let spec = json!({
            "ociVersion": "1.0.2",
            "root": { "path": "rootfs" },
            "process": {
                "user": { "uid": 0, "gid": 0 }, "cwd": "/", "env": ["PATH=/bin"],
                "args": arguments,
            },
            "mounts": [
                { "destination": "/proc", "type": "proc", "source": "proc" },
                { "destination": "/dev", "type": "tmpfs", "source": "tmpfs" },
                { "destination": "/dev/shm", "type": "tmpfs", "source": "shm" },
            ],
            "annotations": { "io.kubernetes.cri.sandbox-id": "pod" },
            "linux": {
                "cgroupsPath": format!("/{}/{id}", unique_name()),
                "namespaces": namespaces,
            },
        });
        fs::write(bundle.join("config.json"), spec.to_string()).unwrap();
        let request = api::CreateTaskRequest {
            id: id.to_owned(),
            bundle: bundle.display().to_string(),
            stdout: format!("file://{}", self.said(id).display()),
            ..Default::default()
        };
        self.tasks.create(soon(), &request).await.unwrap();
        let request = api::StartRequest { id: id.to_owned(), ..Default::default() };
        self.tasks.start(soon(), &request).await.unwrap();
    }

    fn said(&self, id: &str) -> PathBuf {
        self.dir.path().join(format!("{id}.out"))
    }

    async fn ended(&self, id: &str) -> (u32, String) {
        let request = api::WaitRequest { id: id.to_owned(), ..Default::default() };
        let code = self.tasks.wait(soon(), &request).await.unwrap().exit_status;
        (code, fs::read_to_string(self.said(id)).unwrap())
    }

    async fn delete(&self, id: &str) {
        let request = api::DeleteRequest { id: id.to_owned(), ..Default::default() };
        self.tasks.delete(soon(), &request).await.unwrap();
    }

    #[track_caller]
    fn assert_clean(&self) {
        let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        assert!(!mounts.contains(&*self.dir.path().to_string_lossy()), "{mounts}");
        for hierarchy in fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
            let parent = hierarchy.path().join(unique_name());
            assert!(!parent.join("pod").exists(), "{}", parent.display());
            let _ = fs::remove_dir(parent);
        }
    }
}

fn code(error: ttrpc::Error) -> Code {
    match error {
        ttrpc::Error::RpcStatus(status) => status.code(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn s07_a_pod_without_a_pause_container() {
    let pod = Pod::new().await;
    let question = PingRequest { sandbox_id: "pod".into(), ..Default::default() };
    let refused = pod.sandboxes.ping_sandbox(soon(), &question).await.unwrap_err();
    assert_eq!(code(refused), Code::NOT_FOUND);
    let mut bad = pod.request();
    bad.options.mut_or_insert_default().value = vec![0xff];
    let refused = pod.sandboxes.create_sandbox(soon(), &bad).await.unwrap_err();
    assert_eq!(code(refused), Code::INVALID_ARGUMENT);
    pod.create().await;
    let again = pod.sandboxes.create_sandbox(soon(), &pod.request()).await.unwrap_err();
    assert_eq!(code(again), Code::ALREADY_EXISTS);
    assert_eq!(pod.status().await.state, "SANDBOX_NOTREADY");
    let pid = pod.start().await;
    pod.sandboxes.ping_sandbox(soon(), &question).await.unwrap();
    let status = pod.status().await;
    assert_eq!((status.state.as_str(), status.pid), ("SANDBOX_READY", pid));
    assert!(status.info["info"].contains(&pid.to_string()), "{status:?}");
    let question = PlatformRequest { sandbox_id: "pod".into(), ..Default::default() };
    let platform = pod.sandboxes.platform(soon(), &question).await.unwrap().platform;
    assert_eq!((platform.os.as_str(), platform.architecture.is_empty()), ("linux", false));
    let question = SandboxMetricsRequest { sandbox_id: "pod".into(), ..Default::default() };
    let metrics = pod.sandboxes.sandbox_metrics(soon(), &question).await.unwrap().metrics;
    assert!(metrics.data.type_url.ends_with("Metrics") && !metrics.data.value.is_empty());

    // It holds namespaces and nothing else: no root to be seen, nothing open, no rights.
    let of = |what: &str| format!("/proc/{pid}/{what}");
    assert_eq!(fs::read_to_string(of("comm")).unwrap(), "knarr-init\n");
    assert_eq!(fs::read_dir(of("root/")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(of("fd")).unwrap().count(), 0);
    let rights = fs::read_to_string(of("status")).unwrap();
    for line in ["Uid:\t65535\t65535", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"]
    {
        assert!(rights.contains(line), "{line}: {rights}");
    }

    // Its containers have its names, its memory, its numbers.
    let script = "hostname; cat /etc/hostname /etc/resolv.conf; grep -c . /etc/hosts; \
        echo grain > /dev/shm/cargo; cat /proc/1/comm; echo done; exec sleep 1000";
    pod.run("one", pid, &["sh", "-c", script]).await;
    let hosts = fs::read_to_string("/etc/hosts").unwrap();
    let hosts = hosts.lines().filter(|line| !line.is_empty()).count();
    let want = format!("boat\nboat\nnameserver 10.0.0.10\n{hosts}\nknarr-init\ndone\n");
    let said = until("what the first one says", || {
        fs::read_to_string(pod.said("one")).ok().filter(|said| said.contains("done"))
    });
    assert_eq!(said, want);
    pod.run("two", pid, &["cat", "/dev/shm/cargo"]).await;
    assert_eq!(pod.ended("two").await, (0, "grain\n".to_owned()));
    pod.delete("two").await;
    // A Wasm program goes where the others are; its process numbers are its own.
    let (code, said) = {
        pod.run("wasm", pid, &["/hello.wasm", "cat", "/etc/hostname"]).await;
        pod.ended("wasm").await
    };
    assert_eq!((code, said.as_str()), (0, "boat\n"));
    pod.delete("wasm").await;

    // Its end is everybody's.
    pod.stop().await;
    assert_eq!(pod.ended("one").await.0, 137);
    let question = WaitSandboxRequest { sandbox_id: "pod".into(), ..Default::default() };
    assert_eq!(pod.sandboxes.wait_sandbox(soon(), &question).await.unwrap().exit_status, 137);
    let status = pod.status().await;
    assert_eq!(status.state, "SANDBOX_NOTREADY");
    assert!(status.exited_at.seconds > 0);
    pod.stop().await;
    let question = ShutdownSandboxRequest { sandbox_id: "pod".into(), ..Default::default() };
    pod.sandboxes.shutdown_sandbox(soon(), &question).await.unwrap();
    let socket = pod.address.strip_prefix("unix://").unwrap();
    until("the shim's end", || (!Path::new(socket).exists()).then_some(()));
    pod.assert_clean();
}

#[tokio::test]
async fn a_pod_dies_with_its_shim_and_delete_takes_the_rest_away() {
    let pod = Pod::new().await;
    pod.create().await;
    let holder = pod.start().await;
    let question = api::ConnectRequest { id: "pod".into(), ..Default::default() };
    let shim = pod.tasks.connect(soon(), &question).await.unwrap().shim_pid;
    kill(Pid::from_raw(shim as i32), Signal::SIGKILL).unwrap();
    await_gone(holder as i32);
    let bundle = pod.bundle().display().to_string();
    let words = ["-id", "pod", "-bundle", &bundle, "delete"];
    let answer = call(pod.dir.path(), &pod.bundle(), &words, b"", "3");
    assert_eq!(api::DeleteResponse::parse_from_bytes(&answer).unwrap().exit_status, 137);
    pod.assert_clean();
}

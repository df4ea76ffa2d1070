//! The protocol of containerd 2.x, spoken to the shim's program by hand: what
//! comes on standard input, what it answers, version 3 of the Task API.

use std::{
    collections::HashMap,
    fs,
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use containerd_shim_protos::{
    api,
    bootstrap_api::{BootstrapParams, BootstrapResult},
    protobuf::{Message, well_known_types::empty::Empty},
    shim_async::{self, Client, TaskClient},
    types::introspection::RuntimeInfo,
};
use knarr_harness::bin_dir;
use serde_json::json;
use ttrpc::{asynchronous::Server, context};

pub const PATIENCE: Duration = Duration::from_secs(30);

/// containerd's side of the events.
#[derive(Default, Clone)]
pub struct Heard(Arc<Mutex<Vec<(String, String)>>>);

impl Heard {
    /// Listens where [`call`] says that containerd is.
    pub async fn listen(directory: &Path) -> (Self, Server) {
        let heard = Self::default();
        let listener = std::os::unix::net::UnixListener::bind(directory.join("t.sock")).unwrap();
        let services = shim_async::create_events(Arc::new(heard.clone()));
        let mut server =
            Server::new().add_listener(listener.try_into().unwrap()).register_service(services);
        server.start().await.unwrap();
        (heard, server)
    }
}

#[async_trait::async_trait]
impl shim_async::Events for Heard {
    async fn forward(
        &self,
        _: &ttrpc::asynchronous::TtrpcContext,
        request: api::ForwardRequest,
    ) -> ttrpc::Result<Empty> {
        let envelope = request.envelope;
        self.0.lock().unwrap().push((envelope.namespace.clone(), envelope.topic.clone()));
        Ok(Empty::new())
    }
}

fn bundle(directory: &Path, id: &str) -> std::path::PathBuf {
    let bundle = directory.join(id);
    let root = bundle.join("rootfs");
    fs::create_dir_all(root.join("bin")).unwrap();
    fs::copy("/bin/busybox", root.join("bin/sh")).unwrap();
    for name in ["proc", "dev"] {
        fs::create_dir(root.join(name)).unwrap();
    }
    let spec = json!({
        "ociVersion": "1.0.2",
        "root": { "path": "rootfs" },
        "process": {
            "user": { "uid": 0, "gid": 0 }, "cwd": "/", "env": ["PATH=/bin"],
            "args": ["sh", "-c", "exit 9"],
        },
        "mounts": [{ "destination": "/proc", "type": "proc", "source": "proc" }],
        "annotations": { "io.kubernetes.cri.sandbox-id": "pod" },
        "linux": {
            "cgroupsPath": format!("/knarr-ctd-bootstrap-{}/{id}", std::process::id()),
            "namespaces": [
                { "type": "pid" }, { "type": "mount" }, { "type": "ipc" }, { "type": "uts" },
                { "type": "network" },
            ],
        },
    });
    fs::write(bundle.join("config.json"), spec.to_string()).unwrap();
    bundle
}

/// Calls the shim's program as containerd does, which understands protocols up to `newest`.
pub fn call(
    directory: &Path,
    bundle: &Path,
    words: &[&str],
    input: &[u8],
    newest: &str,
) -> Vec<u8> {
    let mut child = Command::new(bin_dir().join("containerd-shim-knarr-v1"))
        .args(["-namespace", "k8s.io", "-publish-binary", "/bin/false", "-address"])
        .arg(directory.join("c.sock"))
        .args(words)
        .current_dir(bundle)
        .env("MAX_SHIM_VERSION", newest)
        .env("TTRPC_ADDRESS", directory.join("t.sock"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{words:?}");
    output.stdout
}

#[tokio::test]
async fn parameters_on_standard_input_and_tasks_of_version_3() {
    let dir = tempfile::Builder::new().prefix("knarr-ctd-").tempdir().unwrap();
    let (heard, _server) = Heard::listen(dir.path()).await;
    let one = bundle(dir.path(), "one");
    let two = bundle(dir.path(), "two");
    let sockets = dir.path().join("sockets");
    let params = BootstrapParams {
        instance_id: "one".into(),
        namespace: "k8s.io".into(),
        containerd_version: "2.3.0".into(),
        containerd_ttrpc_address: format!("unix://{}/t.sock", dir.path().display()),
        containerd_grpc_address: dir.path().join("c.sock").display().to_string(),
        socket_dir: Some(sockets.display().to_string()),
        ..Default::default()
    };
    let input = params.write_to_bytes().unwrap();
    let answer = call(dir.path(), &one, &["-id", "one", "start"], &input, "2");
    let result = BootstrapResult::parse_from_bytes(&answer).unwrap();
    assert_eq!((result.version, result.protocol.as_str()), (3, "ttrpc"));
    let address = result.address;
    assert!(address.starts_with(&format!("unix://{}/", sockets.display())), "{address}");
    assert_eq!(fs::read_to_string(one.join("address")).unwrap(), address);

    // The pod's other container finds the same shim, asked in any generation's way.
    let params = BootstrapParams { instance_id: "two".into(), ..params };
    let input = params.write_to_bytes().unwrap();
    let answer = call(dir.path(), &two, &["-id", "two", "start"], &input, "2");
    assert_eq!(BootstrapResult::parse_from_bytes(&answer).unwrap().address, address);

    let client = Client::connect(&address).await.unwrap();
    let tasks = TaskClient::new(client);
    let soon = || context::with_duration(PATIENCE);
    for (id, bundle) in [("one", &one), ("two", &two)] {
        let mut request = api::CreateTaskRequest::new();
        request.id = id.into();
        request.bundle = bundle.display().to_string();
        tasks.create(soon(), &request).await.unwrap();
        let mut request = api::StartRequest::new();
        request.id = id.into();
        tasks.start(soon(), &request).await.unwrap();
        let mut request = api::WaitRequest::new();
        request.id = id.into();
        assert_eq!(tasks.wait(soon(), &request).await.unwrap().exit_status, 9);
        let mut request = api::DeleteRequest::new();
        request.id = id.into();
        assert_eq!(tasks.delete(soon(), &request).await.unwrap().exit_status, 9);
    }
    let mut request = api::ShutdownRequest::new();
    request.now = true;
    tasks.shutdown(soon(), &request).await.unwrap();
    let socket = address.strip_prefix("unix://").unwrap().to_owned();
    while Path::new(&socket).exists() {
        tokio::task::yield_now().await;
    }
    let lives = ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"];
    let want: Vec<_> = [lives, lives]
        .concat()
        .iter()
        .map(|topic| ("k8s.io".to_owned(), (*topic).to_owned()))
        .collect();
    loop {
        let have = heard.0.lock().unwrap().clone();
        if have.len() >= want.len() {
            assert_eq!(have, want);
            break;
        }
        tokio::task::yield_now().await;
    }
    for hierarchy in fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
        let _ = fs::remove_dir(
            hierarchy.path().join(format!("knarr-ctd-bootstrap-{}", std::process::id())),
        );
    }
}

#[test]
fn the_generations_before_are_answered_in_their_words() {
    let dir = tempfile::Builder::new().prefix("knarr-ctd-").tempdir().unwrap();
    let one = bundle(dir.path(), "one");
    let plain = call(dir.path(), &one, &["-id", "one", "start"], b"", "2");
    let plain = String::from_utf8(plain).unwrap();
    assert!(plain.starts_with(&format!("unix://{}/s/", dir.path().display())), "{plain}");
    let json = call(dir.path(), &one, &["-id", "one", "start"], b"", "3");
    let json: HashMap<String, serde_json::Value> = serde_json::from_slice(&json).unwrap();
    assert_eq!(json["version"], 3);
    assert_eq!(json["protocol"], "ttrpc");
    assert_eq!(json["address"], plain);

    // Nobody made a task: the shim cannot be reached any more, and `delete` cleans up.
    let gone = call(
        dir.path(),
        &one,
        &["-id", "one", "-bundle", &one.display().to_string(), "delete"],
        b"",
        "2",
    );
    assert_eq!(api::DeleteResponse::parse_from_bytes(&gone).unwrap().exit_status, 137);

    let info = call(dir.path(), &one, &["-info"], b"", "3");
    assert_eq!(RuntimeInfo::parse_from_bytes(&info).unwrap().name, "io.containerd.knarr.v1");

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let tasks = TaskClient::new(Client::connect(&plain).await.unwrap());
        let mut request = api::ShutdownRequest::new();
        request.now = true;
        tasks.shutdown(context::with_duration(PATIENCE), &request).await.unwrap();
    });
}

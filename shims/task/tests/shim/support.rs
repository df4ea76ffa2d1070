//! Drives the built shim as knarrd does: over its socket, with busybox inside.

use std::{
    fs,
    io::{ErrorKind, Read, Write},
    os::unix::{fs::symlink, net::UnixStream},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use containerd_shim_protos::{
    api,
    protobuf::{MessageField, well_known_types::any::Any},
    shim_async::{Client, TaskClient},
};
use knarr_model::task::{AttachRequest, ExitRecord, InitRecord, LogTarget};
use serde_json::{Value, json};
use tempfile::TempDir;
use ttrpc::context::Context;

/// Nothing here takes longer, not even on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

static COUNTER: AtomicU32 = AtomicU32::new(0);

/// A running shim and the directory that it works in.
pub struct Shim {
    pub process: Child,
    pub lifeline: Option<ChildStdin>,
    pub client: TaskClient,
    pub socket: PathBuf,
    pub dir: TempDir,
    cgroups: Vec<String>,
}

/// What a container is to be.
#[derive(Clone)]
pub struct Container {
    pub args: Vec<String>,
    pub terminal: bool,
    pub stdin: bool,
    pub log: LogTarget,
    /// FIFOs instead of the log, for output and errors.
    pub fifos: Option<[PathBuf; 2]>,
    /// Changes the OCI specification at the end.
    pub edit: fn(&mut Value),
}

/// `sh -c script` in a container.
pub fn sh(script: &str) -> Container {
    run(&["sh", "-c", script])
}

/// A program in a container.
pub fn run(args: &[&str]) -> Container {
    Container {
        args: args.iter().map(|s| (*s).to_owned()).collect(),
        terminal: false,
        stdin: false,
        log: LogTarget { path: Some("json.log".into()), max_size: 0, max_files: 1 },
        fifos: None,
        edit: |_| {},
    }
}

impl Container {
    pub fn with_stdin(mut self) -> Self {
        self.stdin = true;
        self
    }

    pub fn with_terminal(mut self) -> Self {
        self.terminal = true;
        self.stdin = true;
        self
    }

    pub fn with_fifos(mut self, fifos: [PathBuf; 2]) -> Self {
        self.fifos = Some(fifos);
        self
    }

    pub fn edited(mut self, edit: fn(&mut Value)) -> Self {
        self.edit = edit;
        self
    }
}

impl Shim {
    pub async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        make_rootfs(&dir.path().join("rootfs"));
        let socket = dir.path().join("shim.sock");
        let mut process = Command::new(env!("CARGO_BIN_EXE_containerd-shim-knarr-v1"))
            .args(["-namespace", "knarr", "-id", "test", "-address", "", "-knarr-socket"])
            .arg(&socket)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = [0; 6];
        process.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
        assert_eq!(&ready, b"ready\n");
        let client = connect(&socket).await;
        let lifeline = process.stdin.take();
        Self { process, lifeline, client, socket, dir, cgroups: Vec::new() }
    }

    /// `Create` of a new task.
    pub async fn create(&mut self, container: &Container) -> Task {
        self.try_create(container).await.unwrap()
    }

    pub async fn try_create(&mut self, container: &Container) -> ttrpc::Result<Task> {
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let id = format!("t{}-{number}", std::process::id());
        let bundle = self.dir.path().join(&id);
        fs::create_dir(&bundle).unwrap();
        let cgroup = format!("/knarr-shim-test/{id}");
        let mut spec = spec(container, &cgroup);
        (container.edit)(&mut spec);
        fs::write(bundle.join("config.json"), spec.to_string()).unwrap();
        self.cgroups.push(cgroup);
        let mut log = container.log.clone();
        log.path = log.path.map(|name| bundle.join(name));
        let log = format!("knarr-log:{}", serde_json::to_string(&log).unwrap());
        let [output, errors] = match &container.fifos {
            None => [log.clone(), log],
            Some(fifos) => fifos.each_ref().map(|path| path.display().to_string()),
        };
        let request = api::CreateTaskRequest {
            id: id.clone(),
            bundle: bundle.display().to_string(),
            rootfs: vec![api::Mount {
                type_: "bind".to_owned(),
                source: self.dir.path().join("rootfs").display().to_string(),
                options: vec!["rbind".to_owned(), "rw".to_owned()],
                ..Default::default()
            }],
            terminal: container.terminal,
            stdin: if container.stdin { "knarr-attach:".to_owned() } else { String::new() },
            stderr: if container.terminal { String::new() } else { errors },
            stdout: output,
            ..Default::default()
        };
        let answer = self.client.create(soon(), &request).await?;
        Ok(Task { id, bundle, pid: answer.pid, client: self.client.clone() })
    }

    /// Create and start.
    pub async fn run(&mut self, container: &Container) -> Task {
        let task = self.create(container).await;
        task.start().await.unwrap();
        task
    }

    /// Waits for the shim itself to end.
    pub async fn ended(&mut self) -> std::process::ExitStatus {
        until("the shim to end", || self.process.try_wait().unwrap()).await
    }
}

impl Drop for Shim {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        for dir in self.cgroups.iter().flat_map(|cgroup| cgroup_dirs(cgroup)) {
            remove_cgroup(&dir);
        }
    }
}

/// Kills who is left and removes the group, once the kernel is through with it.
fn remove_cgroup(dir: &Path) {
    let deadline = std::time::Instant::now() + PATIENCE;
    while fs::remove_dir(dir).is_err_and(|error| error.kind() != ErrorKind::NotFound) {
        let pids = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
        for pid in pids.lines().flat_map(str::parse) {
            let pid = nix::unistd::Pid::from_raw(pid);
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::SIGKILL);
        }
        if std::time::Instant::now() > deadline {
            eprintln!("{} cannot be removed", dir.display());
            return;
        }
        std::thread::yield_now();
    }
    // The last one takes the parent along.
    let _ = dir.parent().map(fs::remove_dir);
}

/// Where a cgroup path is mounted, on v1 and v2.
pub fn cgroup_dirs(path: &str) -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let mut dirs = vec![root.join(&path[1..])];
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        dirs.push(entry.path().join(&path[1..]));
    }
    dirs.retain(|dir| dir.is_dir());
    dirs
}

pub async fn connect(socket: &Path) -> TaskClient {
    let address = format!("unix://{}", socket.display());
    TaskClient::new(Client::connect(&address).await.unwrap())
}

pub fn soon() -> Context {
    ttrpc::context::with_duration(PATIENCE)
}

/// The gRPC code and the words of a refusal.
pub fn refused<T: std::fmt::Debug>(result: ttrpc::Result<T>) -> (ttrpc::Code, String) {
    match result {
        Err(ttrpc::Error::RpcStatus(status)) => {
            (status.code.enum_value_or_default(), status.message)
        }
        other => panic!("not refused: {other:?}"),
    }
}

/// Asks until there is an answer.
pub async fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let asking = async {
        loop {
            if let Some(answer) = ask() {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    match tokio::time::timeout(PATIENCE, asking).await {
        Ok(answer) => answer,
        Err(_) => panic!("timed out waiting for {what}"),
    }
}

/// Whether a process is alive: there, and no zombie.
pub fn alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// One task of a shim.
#[derive(Clone)]
pub struct Task {
    pub id: String,
    pub bundle: PathBuf,
    pub pid: u32,
    pub client: TaskClient,
}

impl Task {
    pub async fn start(&self) -> ttrpc::Result<u32> {
        self.start_exec("").await
    }

    pub async fn start_exec(&self, exec: &str) -> ttrpc::Result<u32> {
        let request = api::StartRequest {
            id: self.id.clone(),
            exec_id: exec.to_owned(),
            ..Default::default()
        };
        Ok(self.client.start(soon(), &request).await?.pid)
    }

    pub async fn wait(&self) -> u32 {
        self.wait_exec("").await
    }

    pub async fn wait_exec(&self, exec: &str) -> u32 {
        let request = api::WaitRequest {
            id: self.id.clone(),
            exec_id: exec.to_owned(),
            ..Default::default()
        };
        self.client.wait(soon(), &request).await.unwrap().exit_status
    }

    pub async fn kill(&self, signal: u32) -> ttrpc::Result<()> {
        self.kill_exec("", signal, false).await
    }

    pub async fn kill_exec(&self, exec: &str, signal: u32, all: bool) -> ttrpc::Result<()> {
        let request = api::KillRequest {
            id: self.id.clone(),
            exec_id: exec.to_owned(),
            signal,
            all,
            ..Default::default()
        };
        self.client.kill(soon(), &request).await.map(drop)
    }

    /// Registers an exec; `terminal` and `stdin` as for a container.
    pub async fn exec(&self, exec: &str, container: &Container) -> ttrpc::Result<()> {
        let attach = "knarr-attach:".to_owned();
        let process = process(container).to_string();
        let request = api::ExecProcessRequest {
            id: self.id.clone(),
            exec_id: exec.to_owned(),
            terminal: container.terminal,
            stdin: if container.stdin { attach.clone() } else { String::new() },
            stdout: attach.clone(),
            stderr: attach,
            spec: any(process),
            ..Default::default()
        };
        self.client.exec(soon(), &request).await.map(drop)
    }

    pub async fn pause(&self) -> ttrpc::Result<()> {
        let request = api::PauseRequest { id: self.id.clone(), ..Default::default() };
        self.client.pause(soon(), &request).await.map(drop)
    }

    pub async fn resume(&self) -> ttrpc::Result<()> {
        let request = api::ResumeRequest { id: self.id.clone(), ..Default::default() };
        self.client.resume(soon(), &request).await.map(drop)
    }

    pub async fn resize(&self, exec: &str, width: u32, height: u32) -> ttrpc::Result<()> {
        let request = api::ResizePtyRequest {
            id: self.id.clone(),
            exec_id: exec.to_owned(),
            width,
            height,
            ..Default::default()
        };
        self.client.resize_pty(soon(), &request).await.map(drop)
    }

    pub async fn delete(&self) -> ttrpc::Result<api::DeleteResponse> {
        self.delete_exec("").await
    }

    pub async fn delete_exec(&self, exec: &str) -> ttrpc::Result<api::DeleteResponse> {
        let request = api::DeleteRequest {
            id: self.id.clone(),
            exec_id: exec.to_owned(),
            ..Default::default()
        };
        self.client.delete(soon(), &request).await
    }

    pub async fn status(&self) -> api::Status {
        let request = api::StateRequest { id: self.id.clone(), ..Default::default() };
        self.client.state(soon(), &request).await.unwrap().status.enum_value_or_default()
    }

    pub fn exit_record(&self) -> ExitRecord {
        let bytes = fs::read(self.bundle.join("exit.json")).unwrap();
        serde_json::from_slice(&bytes).unwrap()
    }

    pub fn init_record(&self) -> InitRecord {
        serde_json::from_slice(&fs::read(self.bundle.join("init.json")).unwrap()).unwrap()
    }

    /// What the log says of one stream, and that every line of it is sound.
    pub fn log(&self, stream: &str) -> String {
        let text = fs::read_to_string(self.bundle.join("json.log")).unwrap();
        assert!(text.is_empty() || text.ends_with('\n'), "{text:?}");
        let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines
            .filter(|line| line["stream"] == stream)
            .map(|line| line["log"].as_str().unwrap().to_owned())
            .collect()
    }

    /// Attaches to everything.
    pub fn attach(&self, exec: &str) -> Attached {
        self.attach_as(AttachRequest {
            exec: exec.to_owned(),
            stdin: true,
            stdout: true,
            stderr: true,
            stdin_once: false,
        })
        .unwrap()
    }

    pub fn attach_as(&self, request: AttachRequest) -> Result<Attached, String> {
        let mut socket = UnixStream::connect(self.bundle.join("attach.sock")).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut line = serde_json::to_vec(&request).unwrap();
        line.push(b'\n');
        socket.write_all(&line).unwrap();
        let mut answer = Vec::new();
        while answer.last() != Some(&b'\n') {
            let mut byte = [0];
            assert_eq!(socket.read(&mut byte).unwrap(), 1, "no answer");
            answer.push(byte[0]);
        }
        match String::from_utf8(answer).unwrap().trim_end() {
            "ok" => Ok(Attached(socket)),
            error => Err(error.to_owned()),
        }
    }
}

/// An attached client. Its calls block; the shim is another process.
pub struct Attached(pub UnixStream);

impl Attached {
    pub fn send(&mut self, data: &[u8]) {
        self.0.write_all(data).unwrap();
    }

    pub fn half_close(&self) {
        self.0.shutdown(std::net::Shutdown::Write).unwrap();
    }

    /// Everything until the shim closes: standard output and standard error.
    pub fn read_frames(mut self) -> (Vec<u8>, Vec<u8>) {
        let mut bytes = Vec::new();
        self.0.read_to_end(&mut bytes).unwrap();
        let mut out = (Vec::new(), Vec::new());
        let mut rest = &bytes[..];
        while let [stream, 0, 0, 0, a, b, c, d, tail @ ..] = rest {
            let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
            let side = if *stream == 1 { &mut out.0 } else { &mut out.1 };
            side.extend_from_slice(&tail[..length]);
            rest = &tail[length..];
        }
        assert!(rest.is_empty(), "half a frame: {rest:?}");
        out
    }

    /// Everything until the shim closes, as a terminal shows it.
    pub fn read_raw(mut self) -> String {
        let mut bytes = Vec::new();
        self.0.read_to_end(&mut bytes).unwrap();
        String::from_utf8(bytes).unwrap()
    }

    /// Reads on until something was said.
    pub fn expect(&mut self, what: &str) -> String {
        let mut seen = Vec::new();
        let mut byte = [0];
        while !String::from_utf8_lossy(&seen).contains(what) {
            match self.0.read(&mut byte) {
                Ok(1) => seen.push(byte[0]),
                other => {
                    panic!(
                        "{other:?} while waiting for {what:?}: {:?}",
                        String::from_utf8_lossy(&seen)
                    )
                }
            }
        }
        String::from_utf8_lossy(&seen).into_owned()
    }
}

/// JSON in a protobuf envelope.
pub fn any(value: String) -> MessageField<Any> {
    MessageField::some(Any { value: value.into_bytes(), ..Default::default() })
}

fn make_rootfs(root: &Path) {
    for dir in ["bin", "dev", "etc", "proc", "sys", "tmp"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    fs::copy("/bin/busybox", root.join("bin/busybox"))
        .expect("busybox (Debian's busybox-static) is needed");
    for name in [
        "cat", "dd", "echo", "false", "head", "id", "kill", "printf", "ps", "seq", "sh", "sleep",
        "stty", "touch", "tr", "true", "wc", "yes",
    ] {
        symlink("busybox", root.join("bin").join(name)).unwrap();
    }
}

fn process(container: &Container) -> Value {
    json!({
        "terminal": container.terminal,
        "user": {"uid": 0, "gid": 0},
        "args": container.args,
        "env": ["PATH=/bin", "TERM=xterm"],
        "cwd": "/",
    })
}

fn spec(container: &Container, cgroup: &str) -> Value {
    let namespaces = ["pid", "mount", "ipc", "uts", "network"];
    json!({
        "ociVersion": "1.2.0",
        "process": process(container),
        "root": {"path": "rootfs", "readonly": false},
        "hostname": "test",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc",
             "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
        ],
        "linux": {
            "cgroupsPath": cgroup,
            "namespaces": namespaces.map(|name| json!({"type": name})),
        },
    })
}

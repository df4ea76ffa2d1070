//! Starts the host as the sandbox does, without the sandbox.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use serde_json::{Value, json};
use tempfile::TempDir;

/// The program under test.
pub(crate) const HOST: &str = env!("CARGO_BIN_EXE_knarr-wasm");

/// A container-to-be: a root directory and a launch.
pub(crate) struct Case {
    directory: TempDir,
    pub(crate) launch: Value,
    /// Of `ulimit -v`: kibibytes, or `unlimited`.
    space: String,
}

/// How a guest ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Case {
    /// Compiles a guest; nothing is granted to it yet but its own root, read-only.
    pub(crate) fn new(abi: &str, binary: &[u8]) -> Self {
        let directory = TempDir::new().unwrap();
        let root = directory.path().join("rootfs");
        fs::create_dir(&root).unwrap();
        let (code, said) = compile(binary);
        let code = code.unwrap_or_else(|| panic!("does not compile: {said}"));
        fs::write(directory.path().join("code.cwasm"), code).unwrap();
        let launch = json!({
            "launch": {
                "host": "/", "code": "/", "abi": abi, "network": null, "memory": null,
                "preopens": [{"path": "/", "read_only": true}],
            },
            "args": ["guest"], "env": [], "cwd": "/", "terminal": false, "root": root,
        });
        Self { directory, launch, space: "unlimited".to_owned() }
    }

    /// A preview 1 module in text form.
    pub(crate) fn wat(text: &str) -> Self {
        Self::new("preview1-command", &wat::parse_str(text).unwrap())
    }

    /// One of the guests in the tree.
    pub(crate) fn prebuilt(abi: &str, name: &str) -> Self {
        Self::new(abi, &prebuilt(name))
    }

    pub(crate) fn args(mut self, args: &[&str]) -> Self {
        self.launch["args"] = json!([&["guest"], args].concat());
        self
    }

    pub(crate) fn env(mut self, env: &[&str]) -> Self {
        self.launch["env"] = json!(env);
        self
    }

    pub(crate) fn memory(mut self, bytes: u64) -> Self {
        self.launch["launch"]["memory"] = json!(bytes);
        self
    }

    /// Limits the address space of the host, in bytes.
    pub(crate) fn address_space(mut self, bytes: u64) -> Self {
        self.space = (bytes >> 10).to_string();
        self
    }

    pub(crate) fn network(mut self, tcp: &[u16], dns: bool) -> Self {
        self.launch["launch"]["network"] = json!({"listen_tcp": tcp, "listen_udp": [], "dns": dns});
        self
    }

    /// Grants a directory of the container.
    pub(crate) fn preopen(mut self, path: &str, read_only: bool) -> Self {
        fs::create_dir_all(self.path(path)).unwrap();
        let all = self.launch["launch"]["preopens"].as_array_mut().unwrap();
        all.push(json!({"path": path, "read_only": read_only}));
        self
    }

    /// The host's name for a path of the container.
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.directory.path().join("rootfs").join(path.trim_start_matches('/'))
    }

    /// A directory beside the container's root, which no guest may see.
    pub(crate) fn outside(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn spawn(&self, verb: &str) -> Child {
        self.spawn_with(&self.launch, verb)
    }

    fn spawn_with(&self, launch: &Value, verb: &str) -> Child {
        let text = launch.to_string();
        let launch = self.directory.path().join("launch.json");
        fs::write(&launch, text).unwrap();
        // The shell's redirections put files on the descriptors that the sandbox
        // would; safe Rust cannot.
        Command::new("sh")
            .args(["-c", r#"ulimit -v "$4" && exec "$0" "$1" 3<"$2" 4<"$3""#, HOST, verb])
            .arg(&launch)
            .arg(self.directory.path().join("code.cwasm"))
            .arg(&self.space)
            .env_clear()
            .env("SECRET", "of the host")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    /// Runs a command to its end.
    pub(crate) fn run(&self, input: &str) -> Ended {
        self.run_with(&self.launch, input)
    }

    /// Runs the command again with other arguments.
    pub(crate) fn run_args(&self, args: &[&str]) -> Ended {
        let mut launch = self.launch.clone();
        launch["args"] = json!([&["guest"], args].concat());
        self.run_with(&launch, "")
    }

    fn run_with(&self, launch: &Value, input: &str) -> Ended {
        let mut child = self.spawn_with(launch, "run");
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_owned();
        let writer = std::thread::spawn(move || {
            // A guest need not read it.
            let _ = stdin.write_all(input.as_bytes());
        });
        let ended = end(child);
        writer.join().unwrap();
        ended
    }
}

/// Waits for a process and everything it says.
pub(crate) fn end(child: Child) -> Ended {
    use std::os::unix::process::ExitStatusExt as _;
    let output = child.wait_with_output().unwrap();
    let code = output.status.code().or(output.status.signal().map(|signal| 128 + signal));
    Ended {
        code: code.unwrap(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Runs the compiler; its output where it succeeded, and what it said.
pub(crate) fn compile(binary: &[u8]) -> (Option<Vec<u8>>, String) {
    let mut child = Command::new(HOST)
        .arg("compile")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let binary = binary.to_vec();
    let writer = std::thread::spawn(move || {
        // Refused early, it is not read to its end.
        let _ = stdin.write_all(&binary);
    });
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(matches!(output.status.code(), Some(0 | 1)), "{:?}: {said}", output.status);
    (output.status.success().then_some(output.stdout), said)
}

/// A guest in the tree.
pub(crate) fn prebuilt(name: &str) -> Vec<u8> {
    let tree = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../wasm-examples/prebuilt");
    fs::read(tree.join(format!("{name}.wasm"))).unwrap()
}

/// Reads lines until one contains `word`: the guest says what it has come to.
pub(crate) fn wait_for(stream: &mut impl std::io::Read, word: &str) -> String {
    let mut said = Vec::new();
    let mut byte = [0];
    while !String::from_utf8_lossy(&said).contains(word) {
        assert_eq!(stream.read(&mut byte).unwrap(), 1, "{}", String::from_utf8_lossy(&said));
        said.push(byte[0]);
    }
    String::from_utf8_lossy(&said).into_owned()
}

/// Sends a signal.
pub(crate) fn signal(child: &Child, name: &str) {
    let sent = Command::new("kill").args(["-s", name, &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
}

/// Whatever is left on a stream.
pub(crate) fn rest(stream: &mut impl std::io::Read) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

//! A bundle around a static busybox, and knarr-oci with a state directory of
//! its own. What is left at the end is deleted by force.

use std::{
    fs,
    os::unix::{fs::symlink, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

pub struct Bundle {
    pub dir: tempfile::TempDir,
    pub id: String,
    pub config: Value,
    /// Who runs a copy of the program that lies beside the bundle.
    pub user: Option<u32>,
}

/// What a call did.
#[derive(Debug)]
pub struct Done {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Done {
    /// It succeeded; its output.
    #[track_caller]
    pub fn fine(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.out
    }

    /// It failed with these words.
    #[track_caller]
    pub fn failed(&self, code: i32, words: &str) {
        assert!(self.code == code && self.err.contains(words), "{self:?}");
    }
}

impl From<Output> for Done {
    fn from(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Self {
            code: output.status.code().unwrap_or(-1),
            out: text(output.stdout),
            err: text(output.stderr),
        }
    }
}

impl Bundle {
    /// The configuration of `knarr-oci spec` without a terminal, for a script.
    pub fn script(script: &str) -> Self {
        Self::new(&["/bin/sh", "-c", script])
    }

    pub fn new(args: &[&str]) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let id = format!("knarr-oci-test-{}-{number}", std::process::id());
        let dir = tempfile::tempdir().expect("tempdir");
        let rootfs = dir.path().join("rootfs");
        for name in ["bin", "etc", "tmp", "proc", "sys", "dev", "root"] {
            fs::create_dir_all(rootfs.join(name)).expect("directory");
        }
        let busybox = ["/bin/busybox", "/usr/bin/busybox"]
            .into_iter()
            .find(|path| Path::new(path).exists())
            .expect("these tests need a static busybox (package busybox-static)");
        fs::copy(busybox, rootfs.join("bin/busybox")).expect("busybox");
        for name in [
            "sh", "true", "cat", "ls", "sleep", "id", "env", "echo", "mount", "readlink", "stty",
            "tty", "touch", "stat", "mkdir", "grep", "head", "pwd", "hostname", "find",
        ] {
            symlink("busybox", rootfs.join("bin").join(name)).expect("link");
        }
        let mut new = Self { dir, id, config: Value::Null, user: None };
        new.knarr(&["spec", "--bundle", &new.path("").display().to_string()]).fine();
        let text = fs::read(new.path("config.json")).expect("config.json");
        new.config = serde_json::from_slice(&text).expect("config.json");
        new.config["process"]["args"] = json!(args);
        new.config["process"]["terminal"] = json!(false);
        new.config["root"]["readonly"] = json!(false);
        new.config["linux"]["cgroupsPath"] = json!(format!("/{}", new.id));
        new
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn rootfs(&self, name: &str) -> PathBuf {
        self.dir.path().join("rootfs").join(name)
    }

    /// Writes the configuration as it is now.
    pub fn write(&self) {
        let text = serde_json::to_vec_pretty(&self.config).expect("json");
        fs::write(self.path("config.json"), text).expect("config.json");
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = match self.user {
            None => Command::new(env!("CARGO_BIN_EXE_knarr-oci")),
            Some(user) => {
                let mut command = Command::new(self.path("knarr-oci"));
                command.uid(user).gid(user);
                command
            }
        };
        command.arg("--root").arg(self.path("state")).args(args).current_dir(self.dir.path());
        command.stdin(Stdio::null());
        command
    }

    pub fn knarr(&self, args: &[&str]) -> Done {
        self.command(args).output().expect("knarr-oci").into()
    }

    /// A verb on this container: its name is put behind the verb's flags.
    pub fn verb(&self, args: &[&str]) -> Done {
        let mut all = args.to_vec();
        all.push(&self.id);
        self.knarr(&all)
    }

    /// `run` with the configuration as it is now.
    pub fn run(&self) -> Done {
        self.write();
        self.verb(&["run"])
    }

    /// `create` with nothing of ours as its streams, which the container keeps.
    pub fn create(&self) -> Done {
        self.write();
        self.quiet(&["create", &self.id])
    }

    /// A call that leaves processes behind: they must not keep our pipes.
    pub fn quiet(&self, args: &[&str]) -> Done {
        let errors = self.path("errors");
        let file = fs::File::create(&errors).expect("errors");
        let mut command = self.command(args);
        let status = command.stdout(Stdio::null()).stderr(file).status().expect("knarr-oci");
        let err = fs::read_to_string(errors).expect("errors");
        Done { code: status.code().unwrap_or(-1), out: String::new(), err }
    }

    pub fn state(&self) -> Value {
        let out = self.verb(&["state"]).fine();
        serde_json::from_str(&out).expect("state")
    }

    pub fn status(&self) -> String {
        self.state()["status"].as_str().expect("status").to_owned()
    }

    /// Waits until it is so.
    #[track_caller]
    pub fn until(&self, what: &str, so: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !so() {
            assert!(Instant::now() < deadline, "{what} does not come");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        self.verb(&["delete", "--force"]);
    }
}

//! Containers for tests: a root filesystem around a static busybox, a
//! specification like the engine's, and what comes out of running it.

#![allow(dead_code)] // each test file uses its part

use std::{
    fs::{self, File},
    io::Read,
    os::{fd::OwnedFd, unix::fs::symlink},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use knarr_sandbox::{
    Child, Container, CreateOptions, Created, Error, ExitStatus, RootfsMount, Stdio, create,
};
use oci_spec::runtime::{Process, Spec};
use serde_json::{Value, json};

/// A container to be.
pub struct Fixture {
    pub dir: tempfile::TempDir,
    pub id: String,
    pub spec: Value,
    /// Mounts of the root filesystem; an overlay over [`Fixture::lower`].
    pub rootfs: Vec<RootfsMount>,
}

/// What a container did.
#[derive(Debug)]
pub struct Outcome {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

fn busybox() -> PathBuf {
    ["/bin/busybox", "/usr/bin/busybox"]
        .into_iter()
        .map(PathBuf::from)
        .find(|path| path.exists())
        .expect("these tests need a static busybox (package busybox-static)")
}

impl Fixture {
    /// A container that runs a shell script.
    pub fn script(script: &str) -> Self {
        Self::new(&["/bin/sh", "-c", script])
    }

    pub fn new(args: &[&str]) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let id = format!("t{}-{number}", std::process::id());
        let dir = tempfile::tempdir().expect("tempdir");
        let lower = dir.path().join("lower");
        for name in ["bin", "etc", "tmp", "proc", "sys", "dev", "root", "home"] {
            fs::create_dir_all(lower.join(name)).expect("directory");
        }
        for name in ["upper", "work"] {
            fs::create_dir(dir.path().join(name)).expect("directory");
        }
        fs::copy(busybox(), lower.join("bin/busybox")).expect("busybox");
        for name in [
            "sh", "true", "cat", "ls", "sleep", "id", "mount", "umount", "mknod", "stat", "grep",
            "readlink", "head", "dd", "tail", "kill", "ps", "hostname", "mkdir", "echo", "wc",
            "tr", "env", "pwd", "tty", "stty", "touch", "yes", "ln", "rm", "chroot", "unshare",
            "ip", "find", "sort", "seq", "usleep",
        ] {
            symlink("busybox", lower.join("bin").join(name)).expect("link");
        }
        fs::write(
            lower.join("etc/passwd"),
            "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home:/bin/sh\n",
        )
        .expect("passwd");
        fs::write(lower.join("etc/group"), "root:x:0:\nuser:x:1000:\naudio:x:29:user\n")
            .expect("group");
        let path = |name: &str| dir.path().join(name).display().to_string();
        let rootfs = vec![RootfsMount {
            kind: "overlay".to_owned(),
            source: "overlay".into(),
            options: vec![
                format!("lowerdir={}", path("lower")),
                format!("upperdir={}", path("upper")),
                format!("workdir={}", path("work")),
            ],
        }];
        let spec = docker_spec(&id, args);
        Self { dir, id, spec, rootfs }
    }

    pub fn lower(&self) -> PathBuf {
        self.dir.path().join("lower")
    }

    /// Replaces a part of the specification: `/process/args`.
    pub fn set(mut self, pointer: &str, value: Value) -> Self {
        let (parent, name) = pointer.rsplit_once('/').expect("pointer");
        let parent = self.spec.pointer_mut(parent).expect("parent");
        parent.as_object_mut().expect("object").insert(name.to_owned(), value);
        self
    }

    /// Adds a mount.
    pub fn mount(mut self, mount: Value) -> Self {
        let mounts = self.spec.pointer_mut("/mounts").expect("mounts");
        mounts.as_array_mut().expect("array").push(mount);
        self
    }

    pub fn spec(&self) -> Spec {
        serde_json::from_value(self.spec.clone()).expect("a valid specification")
    }

    pub fn process(&self) -> Process {
        self.spec().process().clone().expect("process")
    }

    pub fn create(&self, stdio: Stdio) -> Result<Created, Error> {
        self.create_from(&self.spec(), stdio)
    }

    pub fn create_from(&self, spec: &Spec, stdio: Stdio) -> Result<Created, Error> {
        create(CreateOptions {
            id: &self.id,
            bundle: self.dir.path(),
            spec,
            rootfs: &self.rootfs,
            stdio,
        })
    }

    /// Starts it with pipes.
    pub fn start(&self) -> Result<(Container, Pipes), Error> {
        let (stdio, pipes) = pipes();
        let container = self.create(stdio)?.start()?;
        Ok((container, pipes))
    }

    /// Runs it to its end.
    pub fn run(&self) -> Outcome {
        self.try_run().unwrap_or_else(|error| panic!("{}: {error}", self.id))
    }

    pub fn try_run(&self) -> Result<Outcome, Error> {
        let (container, pipes) = self.start()?;
        let (stdout, stderr) = pipes.read();
        let status = container.init().wait_blocking()?;
        container.delete()?;
        Ok(Outcome { status, stdout, stderr })
    }

    pub fn exec(&self, container: &Container, script: &str) -> Result<Outcome, Error> {
        let mut process = self.process();
        process.set_args(Some(vec!["/bin/sh".into(), "-c".into(), script.into()]));
        self.exec_process(container, &process)
    }

    pub fn exec_process(&self, container: &Container, process: &Process) -> Result<Outcome, Error> {
        let (stdio, pipes) = pipes();
        let (child, _): (Child, _) = container.exec(process, stdio)?;
        let (stdout, stderr) = pipes.read();
        Ok(Outcome { status: child.wait_blocking()?, stdout, stderr })
    }
}

impl Drop for Fixture {
    /// The parent groups go with the last of their children.
    fn drop(&mut self) {
        for entry in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            let _ = fs::remove_dir(entry.path().join("knarr-test"));
        }
        let _ = fs::remove_dir("/sys/fs/cgroup/knarr-test");
    }
}

/// The readers' ends.
pub struct Pipes {
    pub stdout: File,
    pub stderr: File,
}

impl Pipes {
    /// Reads both to their ends.
    pub fn read(mut self) -> (String, String) {
        let errors = std::thread::spawn(move || text(&mut self.stderr));
        let stdout = text(&mut self.stdout);
        (stdout, errors.join().expect("reader"))
    }

    /// Reads one line of standard output.
    pub fn line(&mut self) -> String {
        let mut line = Vec::new();
        let mut byte = [0];
        while self.stdout.read(&mut byte).expect("read") == 1 && byte[0] != b'\n' {
            line.push(byte[0]);
        }
        String::from_utf8(line).expect("utf-8")
    }
}

fn text(file: &mut File) -> String {
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).expect("read");
    String::from_utf8_lossy(&bytes).into_owned()
}

pub fn pipes() -> (Stdio, Pipes) {
    let (out_reader, out_writer) = std::io::pipe().expect("pipe");
    let (err_reader, err_writer) = std::io::pipe().expect("pipe");
    let stdin = File::open("/dev/null").expect("null");
    let file = |fd: OwnedFd| File::from(fd);
    (
        Stdio::Fds { stdin: stdin.into(), stdout: out_writer.into(), stderr: err_writer.into() },
        Pipes { stdout: file(out_reader.into()), stderr: file(err_reader.into()) },
    )
}

pub use knarr_model::capability::DEFAULT as CAPABILITIES;

/// What Docker's defaults are as a specification.
pub fn docker_spec(id: &str, args: &[&str]) -> Value {
    json!({
        "ociVersion": "1.2.0",
        "process": {
            "user": { "uid": 0, "gid": 0 },
            "args": args,
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "cwd": "/",
            "capabilities": { "bounding": CAPABILITIES, "permitted": CAPABILITIES, "effective": CAPABILITIES },
        },
        "root": { "path": "rootfs" },
        "hostname": "test",
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"] },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"] },
            { "destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"] },
            { "destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"] },
            { "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro", "nosuid", "noexec", "nodev"] },
            { "destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"] },
            { "destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=67108864"] },
        ],
        "annotations": { "dev.knarr.seccomp": "default" },
        "linux": {
            "cgroupsPath": format!("/knarr-test/{id}"),
            "namespaces": [
                { "type": "mount" }, { "type": "pid" }, { "type": "network" }, { "type": "ipc" }, { "type": "uts" },
            ],
            "sysctl": { "net.ipv4.ip_unprivileged_port_start": "0", "net.ipv4.ping_group_range": "0 2147483647" },
            "resources": { "devices": [{ "allow": false, "access": "rwm" }] },
            "maskedPaths": [
                "/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys",
                "/proc/latency_stats", "/proc/sched_debug", "/proc/scsi", "/proc/timer_list",
                "/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware",
            ],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    })
}

/// Whether a group of the container is left anywhere.
pub fn cgroup_left(id: &str) -> Vec<PathBuf> {
    let mut left = Vec::new();
    for entry in fs::read_dir("/sys/fs/cgroup").expect("cgroups").flatten() {
        let dir = entry.path().join("knarr-test").join(id);
        if dir.exists() {
            left.push(dir);
        }
    }
    let v2 = Path::new("/sys/fs/cgroup/knarr-test").join(id);
    left.extend(v2.exists().then_some(v2));
    left
}

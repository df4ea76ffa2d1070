//! A containerd of one's own: private mounts, an empty `/run`, a private network,
//! its own roots and sockets, and a containerd namespace (so also a parent cgroup)
//! of its own name.
//!
//! `KNARR_TEST_CONTAINERD` names directories (as in `PATH`) whose `containerd`, `ctr`,
//! shims and `runc` are used instead of the machine's: other versions are tried so.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use knarr_harness::{ImageBuilder, bin_dir};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tempfile::TempDir;

/// containerd's own shim, the oracle.
pub const RUNC: &str = "io.containerd.runc.v2";
/// The shim under test.
pub const KNARR: &str = "io.containerd.knarr.v1";

/// The image that [`Containerd::start`] imports.
pub const BUSYBOX: &str = "docker.io/library/busybox:latest";

/// A directory list of programs that go before the machine's.
const PROGRAMS: &str = "KNARR_TEST_CONTAINERD";

/// A running containerd.
pub struct Containerd {
    pub dir: TempDir,
    pub namespace: String,
    pub runtime: &'static str,
    /// Where it listens; its shims have this on their command lines.
    pub socket: String,
    daemon: Option<Child>,
}

/// What a command did.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Ran {
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.out.trim_end().to_owned()
    }
}

/// Times that containerd's own shim may fail a scenario: on a busy machine it now
/// and then loses an exec's input, or its last output. Ours may not fail once.
const PATIENCE_RUNC: u32 = 3;

/// What does not come to be in this time never does: a scenario of containerd's own
/// shim is tried again, ours has failed.
const PATIENCE: Duration = Duration::from_secs(25);

/// Waits for something.
#[track_caller]
pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::yield_now();
    }
}

/// Runs a scenario on containerd's shim, then on ours.
pub fn both(scenario: impl Fn(&mut Containerd)) {
    enter();
    let on = |runtime| {
        eprintln!("--- {runtime}");
        scenario(&mut Containerd::start(runtime));
    };
    let mut left = PATIENCE_RUNC;
    while let Err(failure) = catch_unwind(AssertUnwindSafe(|| on(RUNC))) {
        left -= 1;
        if left == 0 {
            resume_unwind(failure);
        }
    }
    on(KNARR);
}

/// Runs a scenario on both that hangs on each event: containerd's own shim of 2.x
/// may end before its last one is told, and is left out there.
pub fn both_tell(scenario: impl Fn(&mut Containerd)) {
    if generation() == 1 { both(scenario) } else { ours(scenario) }
}

/// Runs a scenario on ours alone.
pub fn ours(scenario: impl Fn(&mut Containerd)) {
    enter();
    scenario(&mut Containerd::start(KNARR));
}

/// The same with Kubernetes' door open: both runtimes are handlers of it.
pub fn with_cri(scenario: impl Fn(&mut Containerd)) {
    enter();
    // Network plugins keep their books below.
    tmpfs("/var/lib");
    let mut containerd = Containerd::prepare(KNARR, "k8s.io");
    fs::write(containerd.path("config.toml"), crate::pod::configuration(&containerd)).unwrap();
    containerd.start_daemon();
    containerd.import_busybox();
    scenario(&mut containerd);
}

/// A program of the containerd to be tried.
pub fn program(name: &str) -> PathBuf {
    let list = std::env::var_os(PROGRAMS).unwrap_or_default();
    let found = std::env::split_paths(&list).map(|dir| dir.join(name)).find(|path| path.exists());
    found.unwrap_or_else(|| name.into())
}

/// Its first number: 1 or 2.
pub fn generation() -> u32 {
    version().0
}

/// Its first two numbers.
pub fn version() -> (u32, u32) {
    let said = run(Command::new(program("containerd")).arg("--version")).ok();
    // "containerd github.com/containerd/containerd 1.6.20…"
    let version = said.split_whitespace().nth(2).unwrap_or_default().trim_start_matches('v');
    let mut numbers = version.split('.').map(|number| number.parse().expect("a version"));
    (numbers.next().expect("a version"), numbers.next().expect("a version"))
}

fn tmpfs(place: &str) {
    let none: Option<&str> = None;
    mount(Some("tmpfs"), place, Some("tmpfs"), MsFlags::empty(), none).unwrap();
}

/// Mounts, an empty `/run` and a network of one's own, for this thread and what it starts.
pub fn enter() {
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).expect("these tests need root");
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    tmpfs("/run");
    assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
}

impl Containerd {
    fn start(runtime: &'static str) -> Self {
        let mut this = Self::prepare(runtime, &unique_name());
        let config = format!(
            "{}disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n{}",
            this.head(2),
            this.sockets()
        );
        fs::write(this.path("config.toml"), config).unwrap();
        this.start_daemon();
        this.import_busybox();
        this
    }

    fn prepare(runtime: &'static str, namespace: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("knarr-containerd-").tempdir().unwrap();
        let socket = format!("/run/{}.sock", unique_name());
        Self { dir, namespace: namespace.to_owned(), runtime, socket, daemon: None }
    }

    /// The configuration's first lines.
    pub fn head(&self, version: u32) -> String {
        let root = self.path("root");
        format!("version = {version}\nroot = \"{}\"\nstate = \"/run/ct\"\n", root.display())
    }

    /// The tables of the configuration that say where it listens and installs.
    pub fn sockets(&self) -> String {
        format!(
            "[grpc]\naddress = \"{0}\"\n[ttrpc]\naddress = \"{0}.ttrpc\"\n\
             [plugins.\"io.containerd.internal.v1.opt\"]\npath = \"{1}\"\n",
            self.socket,
            self.path("opt").display()
        )
    }

    fn import_busybox(&self) {
        self.import(ImageBuilder::busybox().unwrap());
    }

    /// Imports an image under its own name.
    pub fn import(&self, image: ImageBuilder) {
        let archive = self.path(&format!("{}.tar", unique()));
        fs::write(&archive, image.docker_archive()).unwrap();
        self.ctr(&["image", "import", archive.to_str().unwrap()]).ok();
    }

    /// Starts the daemon, again perhaps, and returns when it answers.
    pub fn start_daemon(&mut self) {
        let log = File::options().create(true).append(true).open(self.path("log")).unwrap();
        let [path, others] = ["PATH", PROGRAMS].map(|name| std::env::var(name).unwrap_or_default());
        let child = Command::new(program("containerd"))
            .arg("-c")
            .arg(self.path("config.toml"))
            // In debugging, the CRI writes each of its answers down.
            .args(["-l", if self.namespace == "k8s.io" { "info" } else { "debug" }])
            .env("PATH", format!("{}:{others}:{path}", bin_dir().display()))
            // Shims inherit it: the code of Wasm programs is kept there.
            .env("KNARR_DATA_ROOT", self.path("data"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("containerd is installed");
        self.daemon = Some(child);
        while self.ctr(&["version"]).code != 0 {
            let ended = self.daemon.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none(), "containerd ended:\n{}", self.log());
        }
    }

    /// `kill -9` of the daemon.
    pub fn kill_daemon(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// A `ctr` command, not started yet.
    pub fn ctr_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(program("ctr"));
        command
            .args(["-a", &self.socket, "-n", &self.namespace])
            .args(arguments)
            .stdin(Stdio::null());
        command
    }

    pub fn ctr(&self, arguments: &[&str]) -> Ran {
        run(&mut self.ctr_command(arguments))
    }

    /// `ctr run` of busybox with further flags, to its end.
    pub fn run(&self, flags: &[&str], id: &str, program: &[&str]) -> Ran {
        self.ctr(&self.run_line(flags, id, program))
    }

    /// The same as words of a command line.
    pub fn run_line<'a>(
        &self,
        flags: &[&'a str],
        id: &'a str,
        program: &[&'a str],
    ) -> Vec<&'a str> {
        let runtime = self.runtime;
        [&["run", "--runtime", runtime], flags, &[BUSYBOX, id], program].concat()
    }

    /// A container that stays until it is killed.
    #[track_caller]
    pub fn sleeper(&self, flags: &[&str], id: &str) {
        self.run(&[&["-d", "--null-io"], flags].concat(), id, &["sleep", "1000"]).ok();
    }

    #[track_caller]
    pub fn exec(&self, id: &str, program: &[&str]) -> Ran {
        let exec = unique();
        let mut ran = self.ctr(&[&["task", "exec", "--exec-id", &exec, id], program].concat());
        // From 2.2 on `ctr` itself first complains of a host with cgroup v1.
        if ran.err.starts_with("time=") && ran.err.contains("DEPRECATION: ") {
            let complaint = ran.err.find('\n').map_or(ran.err.len(), |end| end + 1);
            ran.err.drain(..complaint);
        }
        ran
    }

    /// Its state as `ctr task ls` shows it; empty where there is none.
    pub fn status(&self, id: &str) -> String {
        let all = self.ctr(&["task", "ls"]).ok();
        let of = |line: &str| {
            let words: Vec<&str> = line.split_whitespace().collect();
            (words.first() == Some(&id)).then(|| words[2].to_owned())
        };
        all.lines().find_map(of).unwrap_or_default()
    }

    pub fn pid(&self, id: &str) -> i32 {
        let all = self.ctr(&["task", "ls"]).ok();
        let of = |line: &str| {
            let words: Vec<&str> = line.split_whitespace().collect();
            (words.first() == Some(&id)).then(|| words[1].parse().unwrap())
        };
        all.lines().find_map(of).expect("a task")
    }

    /// Waits until it has this state.
    pub fn await_status(&self, id: &str, status: &str) {
        until(&format!("{id} is {status}"), || (self.status(id) == status).then_some(()));
    }

    /// Kills, waits, deletes; answers the exit code that `delete` tells.
    #[track_caller]
    pub fn kill_and_delete(&self, id: &str) -> i32 {
        let _ = self.ctr(&["task", "kill", "-s", "KILL", id]);
        self.await_status(id, "STOPPED");
        self.delete(id)
    }

    #[track_caller]
    pub fn delete(&self, id: &str) -> i32 {
        let deleted = self.ctr(&["task", "delete", id]);
        assert_eq!(deleted.code, 0, "{deleted:?}");
        self.ctr(&["container", "rm", id]).ok();
        let code = deleted.err.rsplit_once("non-zero exit code ");
        code.map_or(0, |(_, code)| code.trim_end_matches(['"', '\n']).parse().unwrap())
    }

    /// The shims of this containerd: process and command line.
    pub fn shims(&self) -> Vec<(i32, String)> {
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            if line.contains("containerd-shim-") && line.contains(&self.socket) {
                found.push((pid, line));
            }
        }
        found
    }

    /// Follows `ctr events` from now on.
    pub fn events(&self) -> Events {
        let path = self.path(&format!("events-{}", unique()));
        let child =
            self.ctr_command(&["events"]).stdout(File::create(&path).unwrap()).spawn().unwrap();
        // It follows when it sees what we do.
        while fs::metadata(&path).unwrap().len() == 0 {
            self.ctr(&["namespace", "label", &self.namespace, &format!("at={}", unique())]).ok();
        }
        Events { child, path }
    }

    /// The parent of all its containers' cgroups, in each hierarchy.
    pub fn cgroups(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for hierarchy in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            let path = hierarchy.path().join(unique_name());
            if path.is_dir() {
                found.push(path);
            }
        }
        found
    }

    /// Nothing is left of any container.
    #[track_caller]
    pub fn assert_clean(&self) {
        for cgroup in self.cgroups() {
            let left: Vec<_> = fs::read_dir(&cgroup)
                .unwrap()
                .flatten()
                .filter(|entry| entry.path().is_dir())
                .map(|entry| entry.file_name())
                .collect();
            assert!(left.is_empty(), "{}: {left:?}", cgroup.display());
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains("/rootfs "), "{mounts}");
        // A shim that was told to end may take a moment.
        until("all shims have ended", || self.shims().is_empty().then_some(()));
        // containerd's own shim leaves its socket behind when it is killed.
        let left: Vec<_> = fs::read_dir("/run/s")
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.file_name())
            .collect();
        assert!(left.is_empty(), "sockets: {left:?}");
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let tail: Vec<&str> = log.lines().rev().take(40).collect();
            eprintln!(
                "--- containerd's log\n{}",
                tail.into_iter().rev().collect::<Vec<_>>().join("\n")
            );
        }
        for (pid, _) in self.shims() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        for cgroup in self.cgroups() {
            for entry in fs::read_dir(&cgroup).into_iter().flatten().flatten() {
                let procs = fs::read_to_string(entry.path().join("cgroup.procs"));
                for pid in procs.unwrap_or_default().lines().filter_map(|pid| pid.parse().ok()) {
                    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                }
            }
        }
        self.kill_daemon();
        for cgroup in self.cgroups() {
            for entry in fs::read_dir(&cgroup).into_iter().flatten().flatten() {
                let _ = fs::remove_dir(entry.path());
            }
            let _ = fs::remove_dir(cgroup);
        }
        // The next one starts anew.
        for left in ["/run/ct", "/run/s", "/run/containerd"] {
            #[expect(clippy::disallowed_methods, reason = "a tree of the test itself")]
            let _ = fs::remove_dir_all(left);
        }
    }
}

/// `ctr events` as it grows.
pub struct Events {
    child: Child,
    path: PathBuf,
}

impl Events {
    /// Topic and content of every event of tasks so far.
    pub fn tasks(&self) -> Vec<(String, Value)> {
        let text = fs::read_to_string(&self.path).unwrap();
        // The last line may still be under way.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let of = |line: &str| {
            let (head, content) = line.split_once(" {")?;
            let topic = head.split_whitespace().last()?.strip_prefix("/tasks/")?.to_owned();
            Some((topic, serde_json::from_str(&format!("{{{content}")).unwrap()))
        };
        whole.lines().filter_map(of).collect()
    }

    /// The topics of one container so far; of exits, whose and how.
    pub fn of(&self, id: &str) -> Vec<String> {
        self.by_container().remove(id).unwrap_or_default()
    }

    /// The same of every container.
    pub fn by_container(&self) -> BTreeMap<String, Vec<String>> {
        let mut all: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (topic, event) in self.tasks() {
            let text = |key: &str| event[key].as_str().unwrap_or_default().to_owned();
            let word = match topic.as_str() {
                "exit" => {
                    format!("exit {} {}", text("id"), event["exit_status"].as_u64().unwrap_or(0))
                }
                "exec-added" | "exec-started" => format!("{topic} {}", text("exec_id")),
                _ => topic,
            };
            all.entry(text("container_id")).or_default().push(word);
        }
        all
    }

    /// Waits until a container has an event.
    pub fn await_event(&self, id: &str, event: &str) {
        let told = || self.of(id).iter().any(|have| have == event).then_some(());
        until(&format!("event {event} of {id}"), told);
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn run(command: &mut Command) -> Ran {
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ran {
        code: output.status.code().unwrap_or(-1),
        out: text(&output.stdout),
        err: text(&output.stderr),
    }
}

/// Nobody else's while this process lives.
pub fn unique_name() -> String {
    format!("knarr-ctd-{}", std::process::id())
}

pub fn unique() -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("x{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Waits for the end of a process that is somebody else's to reap.
pub fn await_gone(pid: i32) {
    let gone = || kill(Pid::from_raw(pid), None).is_err().then_some(());
    until(&format!("the end of process {pid}"), gone);
}

/// Waits until a file says something.
pub fn await_content(path: &Path, needle: &str) -> String {
    until(&format!("{needle:?} in {}", path.display()), || {
        fs::read_to_string(path).ok().filter(|text| text.contains(needle))
    })
}

//! A private engine for one test.
//!
//! [`World::new`] moves the calling thread into fresh network and mount
//! namespaces (children inherit them), then starts `knarrd` on roots of its own.
//! Dropping the world removes what its containers left and ends the daemon.
//! A guardian process does so where nothing is dropped: a test that hangs is
//! killed by its runner.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::disk::Disk;

/// The root of the source tree.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .canonicalize()
        .expect("the source tree is there")
}

/// Where the programs under test are: `KNARR_BIN`, else beside the test itself.
pub fn bin_dir() -> PathBuf {
    if let Some(dir) = std::env::var_os("KNARR_BIN") {
        return dir.into();
    }
    let exe = std::env::current_exe().expect("a program knows its path");
    let dir = exe.parent().expect("a program lies in a directory");
    if dir.ends_with("deps") { dir.parent().expect("deps has a parent").into() } else { dir.into() }
}

/// An engine of one's own.
#[derive(Debug)]
pub struct World {
    /// Where the data root, or only its volumes, are on a disk of their own; unmounted before
    /// its file goes.
    disk: Option<Disk>,
    dir: tempfile::TempDir,
    daemon: Option<Child>,
    arguments: Vec<String>,
    guardian: Child,
}

/// What a command did.
#[derive(Debug)]
pub struct Run {
    /// The command line, for messages.
    pub line: String,
    /// Exit code, or 128 and the signal's number.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Run {
    /// Its standard output without the last line end, if it succeeded.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "{}\nstdout: {}\nstderr: {}", self.line, self.stdout, self.stderr);
        self.stdout.trim_end_matches('\n').to_owned()
    }

    /// Its standard error, if it failed with this code.
    #[track_caller]
    pub fn fails(self, code: i32) -> String {
        assert_eq!(
            self.code, code,
            "{}\nstdout: {}\nstderr: {}",
            self.line, self.stdout, self.stderr
        );
        self.stderr
    }
}

impl World {
    /// Fresh namespaces and a running engine.
    ///
    /// # Errors
    /// Without root, or when the daemon does not come up.
    pub fn new() -> Result<Self> {
        Self::with_arguments(&[])
    }

    /// The same with further arguments for the daemon.
    ///
    /// # Errors
    /// As [`World::new`].
    pub fn with_arguments(arguments: &[&str]) -> Result<Self> {
        let mut world = Self::prepared(arguments)?;
        world.start_daemon()?;
        Ok(world)
    }

    /// The same on a disk of so many MiB, whose power [`World::cut_power`] cuts.
    ///
    /// # Errors
    /// As [`World::new`], and without ext4 or loop devices.
    pub fn on_a_disk(mebibytes: u64) -> Result<Self> {
        let world = Self::prepared(&[])?;
        let place = world.data_root();
        world.with_disk(place, mebibytes)
    }

    /// The same where only the volumes are on such a disk: flushing the database says nothing
    /// of them.
    ///
    /// # Errors
    /// As [`World::on_a_disk`].
    pub fn with_volumes_on_a_disk(mebibytes: u64) -> Result<Self> {
        let world = Self::prepared(&[])?;
        fs::create_dir(world.data_root())?;
        let place = world.data_root().join("volumes");
        world.with_disk(place, mebibytes)
    }

    /// Mounts a disk at the place, then starts the daemon.
    fn with_disk(mut self, place: PathBuf, mebibytes: u64) -> Result<Self> {
        self.disk = Some(Disk::new(self.path().join("disk.img"), place, mebibytes)?);
        self.start_daemon()?;
        Ok(self)
    }

    fn prepared(arguments: &[&str]) -> Result<Self> {
        enter_private_namespaces()?;
        let dir = tempfile::Builder::new().prefix("knarr-test-").tempdir()?;
        Ok(Self {
            guardian: guardian(dir.path())?,
            dir,
            disk: None,
            daemon: None,
            arguments: arguments.iter().map(|a| (*a).to_owned()).collect(),
        })
    }

    /// The disk takes nothing more, and answers with EIO from now on; who uses it lives on.
    ///
    /// # Errors
    /// Where the world has no disk of its own.
    pub fn break_disk(&self) -> Result<()> {
        self.disk.as_ref().context("a world on a disk of its own")?.cut()
    }

    /// Cuts the power: nothing more reaches the disk, and everything that ran is dead.
    ///
    /// # Errors
    /// Where the world has no disk of its own.
    pub fn cut_power(&mut self) -> Result<()> {
        self.disk.as_ref().context("a world on a disk of its own")?.cut()?;
        self.kill_daemon();
        let mut ended = undertaker(self.path());
        ensure!(ended.env("keep", "1").stdin(Stdio::null()).status()?.success(), "the undertaker");
        Ok(())
    }

    /// Power is back: the disk as the cut left it, and a new daemon.
    ///
    /// # Errors
    /// When the daemon does not come up.
    pub fn power_on(&mut self) -> Result<()> {
        self.disk.as_ref().context("a world on a disk of its own")?.power_on()?;
        self.start_daemon()
    }

    /// The directory that holds everything of this world.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// `unix://…`, for `DOCKER_HOST`.
    pub fn host(&self) -> String {
        format!("unix://{}", self.dir.path().join("knarr.sock").display())
    }

    /// The engine's data root.
    pub fn data_root(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// The engine's exec root.
    pub fn exec_root(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    /// The daemon's process id.
    pub fn daemon_pid(&self) -> Option<u32> {
        self.daemon.as_ref().map(Child::id)
    }

    /// Starts the daemon and returns when its socket answers.
    ///
    /// # Errors
    /// When it ends instead.
    pub fn start_daemon(&mut self) -> Result<()> {
        self.start_daemon_with_env(&[])
    }

    /// The same with environment variables (failpoints).
    ///
    /// # Errors
    /// When it ends instead.
    pub fn start_daemon_with_env(&mut self, env: &[(&str, &str)]) -> Result<()> {
        let log =
            File::options().create(true).append(true).open(self.dir.path().join("knarrd.log"))?;
        let mut child = Command::new(bin_dir().join("knarrd"))
            .args(["--data-root", &self.data_root().to_string_lossy()])
            .args(["--exec-root", &self.exec_root().to_string_lossy()])
            .args(["--host", &self.host()])
            .args(["--pidfile", &self.dir.path().join("knarrd.pid").to_string_lossy()])
            .args(["--ready-fd", "1"])
            .args(&self.arguments)
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .context("start knarrd (build the workspace first)")?;
        let mut ready = [0; 1];
        let stdout = child.stdout.as_mut().context("knarrd's readiness pipe")?;
        let came_up = matches!(stdout.read(&mut ready), Ok(1));
        self.daemon = Some(child);
        ensure!(came_up, "knarrd did not come up:\n{}", self.daemon_log());
        Ok(())
    }

    /// What the daemon has logged.
    pub fn daemon_log(&self) -> String {
        fs::read_to_string(self.dir.path().join("knarrd.log")).unwrap_or_default()
    }

    /// `kill -9` of the daemon, and its burial.
    pub fn kill_daemon(&mut self) {
        self.end_daemon(Signal::SIGKILL);
    }

    /// SIGTERM to the daemon, and its exit.
    pub fn stop_daemon(&mut self) {
        self.end_daemon(Signal::SIGTERM);
    }

    fn end_daemon(&mut self, signal: Signal) {
        if let Some(mut child) = self.daemon.take() {
            let _ = kill(Pid::from_raw(child.id() as i32), signal);
            let _ = child.wait();
        }
    }

    /// Waits until the daemon ends by itself (a failpoint killed it).
    pub fn await_daemon_end(&mut self) {
        if let Some(mut child) = self.daemon.take() {
            let _ = child.wait();
        }
    }

    /// A `knarr` command, not started yet.
    pub fn knarr_command<S: AsRef<OsStr>>(&self, args: &[S]) -> Command {
        let mut command = Command::new(bin_dir().join("knarr"));
        command.args(args).env("DOCKER_HOST", self.host()).env("HOME", self.dir.path());
        command
    }

    /// A command of the real `docker` client, not started yet.
    pub fn docker_command<S: AsRef<OsStr>>(&self, args: &[S]) -> Command {
        let mut command = Command::new("docker");
        command.args(args).env("DOCKER_HOST", self.host()).env("HOME", self.dir.path());
        command
    }

    /// Runs `knarr`.
    #[track_caller]
    pub fn knarr<S: AsRef<OsStr>>(&self, args: &[S]) -> Run {
        run(self.knarr_command(args), b"")
    }

    /// Runs `knarr` with this standard input.
    #[track_caller]
    pub fn knarr_with_input<S: AsRef<OsStr>>(&self, args: &[S], input: &[u8]) -> Run {
        run(self.knarr_command(args), input)
    }

    /// Runs the real `docker` client.
    #[track_caller]
    pub fn docker<S: AsRef<OsStr>>(&self, args: &[S]) -> Run {
        run(self.docker_command(args), b"")
    }

    /// Runs the real `docker` client with this standard input.
    #[track_caller]
    pub fn docker_with_input<S: AsRef<OsStr>>(&self, args: &[S], input: &[u8]) -> Run {
        run(self.docker_command(args), input)
    }

    /// Runs any program inside the world's namespaces.
    #[track_caller]
    pub fn host_run(&self, program: &str, args: &[&str]) -> Run {
        let mut command = Command::new(program);
        command.args(args);
        run(command, b"")
    }

    /// Loads an image archive.
    #[track_caller]
    pub fn load(&self, archive: &[u8]) -> String {
        self.knarr_with_input(&["load"], archive).ok()
    }

    /// Follows the output of a `knarr` command line by line until one holds
    /// `needle`; the command goes on. Panics when it ends before.
    #[track_caller]
    pub fn await_output(&self, child: &mut Child, needle: &str) {
        let stdout = child.stdout.take().expect("piped output");
        let mut seen = String::new();
        let mut lines = BufReader::new(stdout);
        loop {
            let at = seen.len();
            let read = lines.read_line(&mut seen).expect("readable output");
            assert_ne!(read, 0, "ended without {needle:?}; it said: {seen}");
            if seen[at..].contains(needle) {
                child.stdout = Some(lines.into_inner());
                return;
            }
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- knarrd's log\n{}", self.daemon_log());
        }
        if self.daemon.is_none() && self.exec_root().join("containers").is_dir() {
            let _ = self.start_daemon();
        }
        let ids = self.knarr(&["ps", "-a", "-q", "--no-trunc"]).stdout;
        let ids: Vec<&str> = ids.split_whitespace().collect();
        if !ids.is_empty() {
            let _ = self.knarr(&[&["rm", "-f", "-v"], &ids[..]].concat());
        }
        self.stop_daemon();
        self.disk = None;
        // What outlived that is the guardian's.
        drop(self.guardian.stdin.take());
        let _ = self.guardian.wait();
    }
}

/// Starts who ends this world when we are gone, in a session of its own, so
/// that what is done to our process group is not done to it.
fn guardian(world: &Path) -> Result<Child> {
    undertaker(world)
        .stdin(Stdio::piped())
        .spawn()
        .context("start the guardian (setsid of util-linux)")
}

/// The guardian's program, not started yet; with `keep` in its environment the world stays, but for its exec root.
fn undertaker(world: &Path) -> Command {
    let mut command = Command::new("setsid");
    command
        .args(["sh", "-c", include_str!("guardian.sh")])
        .env("world", world)
        .current_dir("/")
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

fn enter_private_namespaces() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET)
        .context("private namespaces (these tests need root)")?;
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .context("private mounts")?;
    // /sys of the old network namespace shows the old interfaces.
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status().context("run ip")?;
    ensure!(up.success(), "loopback does not come up");
    Ok(())
}

/// Runs a command to its end with this standard input.
#[track_caller]
fn run(mut command: Command, input: &[u8]) -> Run {
    let line = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("{line}: {e}"));
    let mut stdin = child.stdin.take().expect("piped input");
    let output = std::thread::scope(|scope| {
        scope.spawn(move || {
            // A program that does not read its input is no failure of the test.
            let _ = stdin.write_all(input);
        });
        child.wait_with_output().expect("a child can be waited for")
    });
    let status = output.status;
    Run {
        line,
        code: status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

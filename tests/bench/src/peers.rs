//! The peers, each started on roots of its own inside the bench's namespaces.

use std::{
    fs::{self, File},
    path::Path,
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};
use knarr_harness::World;

/// An engine to compare with.
pub struct Peer {
    /// What the table calls it.
    pub name: String,
    /// Row of the table and the arguments that do the same.
    pub commands: Vec<(&'static str, Vec<String>)>,
    program: String,
    prefix: Vec<String>,
    daemon: Option<Child>,
    /// What takes its containers away.
    end: &'static [&'static [&'static str]],
}

/// Docker's and Podman's.
const REMOVE: &[&[&str]] = &[&["rm", "-f", "bench", "again"]];

impl Peer {
    /// A command of this peer.
    pub fn command(&self, arguments: &[String]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.prefix).args(arguments);
        command
    }

    fn succeed(&self, arguments: &[&str]) -> Result<()> {
        let arguments: Vec<String> = arguments.iter().map(|a| (*a).to_owned()).collect();
        let output = self.command(&arguments).stdin(Stdio::null()).output()?;
        ensure!(
            output.status.success(),
            "{} {arguments:?}: {}",
            self.name,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        for command in self.end {
            let _ = self.succeed(command);
        }
        if let Some(daemon) = &mut self.daemon {
            let _ = Command::new("kill").arg(daemon.id().to_string()).status();
            let _ = daemon.wait();
        }
    }
}

fn words(text: &str) -> Vec<String> {
    text.split(' ').map(str::to_owned).collect()
}

fn docker_like() -> Vec<(&'static str, Vec<String>)> {
    vec![
        ("run --rm true", words("run --rm busybox:latest true")),
        ("exec true", words("exec bench true")),
        ("start -a", words("start -a again")),
        ("ps", words("ps")),
    ]
}

/// A program of the machine's packages.
pub fn installed(program: &str) -> Result<String> {
    for directory in ["/usr/bin", "/usr/sbin"] {
        let path = format!("{directory}/{program}");
        if Path::new(&path).exists() {
            return Ok(path);
        }
    }
    bail!("{program} is not installed")
}

fn archive(world: &World, content: &[u8]) -> Result<String> {
    let path = world.path().join("busybox.tar");
    fs::write(&path, content)?;
    Ok(path.to_string_lossy().into_owned())
}

/// Starts a daemon and waits until `probe` succeeds.
fn daemon(
    world: &World,
    name: &str,
    command: &mut Command,
    probe: impl Fn() -> bool,
) -> Result<Child> {
    let log = world.path().join(format!("{name}.log"));
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&log)?).spawn()?;
    while !probe() {
        if let Some(status) = child.try_wait()? {
            bail!("{name} {status}: {}", fs::read_to_string(&log).unwrap_or_default());
        }
    }
    Ok(child)
}

/// Debian's dockerd on the default bridge.
pub fn docker(world: &World, busybox: &[u8]) -> Result<Peer> {
    let dockerd = installed("dockerd")?;
    let root = world.path().join("docker");
    let host = format!("unix://{}/docker.sock", root.display());
    fs::create_dir_all(&root)?;
    let mut peer = Peer {
        name: "docker".into(),
        commands: docker_like(),
        program: "docker".into(),
        prefix: vec!["-H".into(), host.clone()],
        daemon: None,
        end: REMOVE,
    };
    let mut command = Command::new(dockerd);
    command.arg("--data-root").arg(root.join("data")).arg("--exec-root").arg(root.join("run"));
    command.arg("--pidfile").arg(root.join("pid")).args(["-H", &host, "--iptables=true"]);
    peer.daemon =
        Some(daemon(world, "dockerd", &mut command, || peer.succeed(&["version"]).is_ok())?);
    peer.succeed(&["load", "-i", &archive(world, busybox)?])?;
    peer.succeed(&["run", "-d", "--name", "bench", "busybox:latest", "sleep", "100000"])?;
    peer.succeed(&["create", "--name", "again", "busybox:latest", "true"])?;
    Ok(peer)
}

/// Podman, which has no daemon.
pub fn podman(world: &World, busybox: &[u8]) -> Result<Peer> {
    let program = installed("podman")?;
    let root = world.path().join("podman");
    let path = |name: &str| root.join(name).to_string_lossy().into_owned();
    let peer = Peer {
        name: "podman".into(),
        commands: vec![
            (
                "run --rm true",
                words(
                    "run --rm --ulimit nofile=1024:1024 --ulimit nproc=1024:1024 busybox:latest true",
                ),
            ),
            ("exec true", words("exec bench true")),
            ("start -a", words("start -a again")),
            ("ps", words("ps")),
        ],
        program,
        prefix: [
            "--root",
            &path("root"),
            "--runroot",
            &path("run"),
            "--tmpdir",
            &path("tmp"),
            "--runtime",
            "runc",
        ]
        .map(str::to_owned)
        .into(),
        daemon: None,
        end: REMOVE,
    };
    peer.succeed(&["load", "-i", &archive(world, busybox)?])?;
    // Its default raises limits, which not every machine allows.
    let limited = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024", "busybox:latest"];
    peer.succeed(
        &[&["run", "-d", "--name", "bench"], &limited[..], &["sleep", "100000"]].concat(),
    )?;
    peer.succeed(&[&["create", "--name", "again"], &limited[..], &["true"]].concat())?;
    Ok(peer)
}

/// containerd's own client, without a bridge.
pub fn containerd(world: &World, busybox: &[u8]) -> Result<Peer> {
    let program = installed("containerd")?;
    let root = world.path().join("containerd");
    fs::create_dir_all(&root)?;
    let socket = root.join("sock").to_string_lossy().into_owned();
    let config = root.join("config.toml");
    fs::write(
        &config,
        format!(
            "version = 2\nroot = \"{0}/root\"\nstate = \"{0}/state\"\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = \"{0}/sock\"\n",
            root.display()
        ),
    )?;
    let mut peer = Peer {
        name: "ctr (no bridge)".into(),
        commands: vec![
            ("run --rm true", words("run --rm docker.io/library/busybox:latest ID true")),
            ("exec true", words("task exec --exec-id ID bench true")),
        ],
        program: "ctr".into(),
        prefix: vec!["--address".into(), socket],
        daemon: None,
        end: &[&["task", "rm", "-f", "bench"], &["container", "rm", "bench"]],
    };
    for (_, command) in &mut peer.commands {
        // ctr wants a name for each; the same one may come again after the end.
        for word in command.iter_mut().filter(|word| *word == "ID") {
            "benchmark".clone_into(word);
        }
    }
    let mut command = Command::new(program);
    command.arg("--config").arg(&config);
    peer.daemon =
        Some(daemon(world, "containerd", &mut command, || peer.succeed(&["version"]).is_ok())?);
    peer.succeed(&["image", "import", &archive(world, busybox)?]).context("import")?;
    peer.succeed(&["run", "-d", "docker.io/library/busybox:latest", "bench", "sleep", "100000"])?;
    Ok(peer)
}

/// The physical floor: the same container by raw system calls.
pub fn floor(program: &str, world: &World) -> Result<()> {
    let root = world.path().join("floor-root");
    for directory in ["bin", "proc", "dev", "sys", "tmp"] {
        fs::create_dir_all(root.join(directory))?;
    }
    fs::copy("/bin/busybox", root.join("bin/true"))?;
    let bridge = r#"{{index .Options "com.docker.network.bridge.name"}}"#;
    let bridge = world.knarr(&["network", "inspect", "bridge", "--format", bridge]).ok();
    let output = Command::new(program)
        .current_dir(world.path())
        .args([
            "n=50",
            "ns=pid,mnt,ipc,uts,net",
            "mounts",
            "mask",
            "overlay",
            "caps",
            "cgmask=0xff",
            "label=floor",
        ])
        .arg(format!("bridge={}", bridge.trim()))
        .arg(format!("rootfs={}", root.display()))
        .arg(format!("lower={}", root.display()))
        .output()?;
    print!(
        "\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

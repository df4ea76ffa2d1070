//! The basics on a cgroup v2 system: Debian's cloud kernel in an emulator.
//!
//! ```text
//!   kernel package ─ unpacked, not installed ─┐
//!   busybox, Knarr's programs, images, script ─┴─ initramfs ─ qemu ─ serial line ─ verdict
//! ```
//!
//! It is booted twice: the second time systemd is process 1, from Debian's packages,
//! and makes the groups.
//!
//! No hardware virtualisation is needed: the processor is emulated, which takes
//! a good minute from the first to the last line. Its kernel is older than most,
//! so that what newer ones offer is seen to be done without.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::run::{products, root, run};

/// Modules beyond what is built in: overlay, bridges, veth, the packet filter.
const MODULE_DIRECTORIES: [&str; 10] = [
    "fs/overlayfs",
    "net/bridge",
    "net/802",
    "net/llc",
    "net/netfilter",
    "net/ipv4",
    "net/ipv6",
    "lib",
    "crypto",
    "arch/x86/crypto",
];
const MODULE_FILES: [&str; 1] = ["drivers/net/veth.ko"];

/// Far more than the slowest machine needs; the script has limits of its own.
const PATIENCE: Duration = Duration::from_secs(600);

/// Boots, runs `vm/test.sh`, and judges by what it printed.
pub fn test() -> Result<()> {
    let work = products()?.join("knarr-vm");
    fs::create_dir_all(&work)?;
    let (kernel, modules) = unpack_kernel(&work)?;
    let initramfs = work.join("initramfs");
    write_initramfs(&initramfs, &modules, &work)?;
    judge("on cgroup v2", &boot(&kernel, &initramfs)?)?;
    write_systemd(&initramfs, &work)?;
    judge("under systemd", &boot(&kernel, &initramfs)?)
}

fn judge(what: &str, output: &str) -> Result<()> {
    let failures: Vec<&str> = output.lines().filter(|line| line.contains("not ok ")).collect();
    ensure!(failures.is_empty(), "{what}:\n{}", failures.join("\n"));
    ensure!(output.contains("knarr-vm: all passed"), "the machine ended before its tests did");
    Ok(())
}

/// Fetches the kernel package once and unpacks it; answers the kernel and its module tree.
fn unpack_kernel(work: &Path) -> Result<(PathBuf, PathBuf)> {
    let tree = work.join("kernel");
    if !tree.join("boot").is_dir() {
        run(Path::new("apt-get"), &["-qq", "update"])?;
        let depends =
            Command::new("apt-cache").args(["depends", "linux-image-cloud-amd64"]).output()?;
        let depends = String::from_utf8_lossy(&depends.stdout).into_owned();
        let package = depends
            .split_whitespace()
            .find(|word| word.starts_with("linux-image-") && *word != "linux-image-cloud-amd64")
            .context("linux-image-cloud-amd64 depends on no kernel")?;
        let status = Command::new("apt-get")
            .args(["-qq", "download", package])
            .current_dir(work)
            .status()?;
        ensure!(status.success(), "apt-get download {package}: {status}");
        let deb = entry(work, |name| name.starts_with(package) && name.ends_with(".deb"))?;
        run(Path::new("dpkg"), &[Path::new("-x"), &deb, &tree])?;
    }
    let kernel = entry(&tree.join("boot"), |name| name.starts_with("vmlinuz"))?;
    let modules = entry(&tree.join("lib/modules"), |_| true)?;
    Ok((kernel, modules))
}

fn entry(directory: &Path, wanted: impl Fn(&str) -> bool) -> Result<PathBuf> {
    for entry in fs::read_dir(directory).with_context(|| directory.display().to_string())? {
        let entry = entry?;
        if wanted(&entry.file_name().to_string_lossy()) {
            return Ok(entry.path());
        }
    }
    bail!("{} holds nothing of the kind", directory.display())
}

fn write_initramfs(path: &Path, modules: &Path, work: &Path) -> Result<()> {
    let version = modules.file_name().context("a kernel version")?.to_string_lossy().into_owned();
    let slim = work.join("modules");
    let base = slim.join("lib/modules").join(&version);
    for directory in MODULE_DIRECTORIES {
        copy_modules(
            &modules.join("kernel").join(directory),
            &base.join("kernel").join(directory),
        )?;
    }
    for file in MODULE_FILES {
        let to = base.join("kernel").join(file);
        fs::create_dir_all(to.parent().context("a module lies in a directory")?)?;
        fs::copy(modules.join("kernel").join(file), to)?;
    }
    for list in ["modules.order", "modules.builtin", "modules.builtin.modinfo"] {
        fs::copy(modules.join(list), base.join(list))?;
    }
    run(Path::new("/sbin/depmod"), &[Path::new("-b"), &slim, Path::new(&version)])?;

    let mut archive = Cpio::with_basics(&["knarr-oci", "knarr-wasm"])?;
    archive.file("knarr/test.sh", include_bytes!("../vm/test.sh"), 0o755);
    archive.file("knarr/profile.bin", &profile(work)?, 0o644);
    archive.products(&["knarr", "knarrd", "containerd-shim-knarr-v1"])?;
    for image in ["busybox", "layers", "hello", "hello-component", "web"] {
        archive.image(image)?;
    }
    archive.tree(&slim.join("lib"), "lib")?;
    fs::File::create(path)?.write_all(&archive.finish())?;
    Ok(())
}

/// A bus on whatever socket its manager has made: the system's and a user's.
const DBUS: &str = "[Unit]\nDefaultDependencies=no\nRequires=dbus.socket\n[Service]\nType=notify\n\
    ExecStart=/knarr/dbus-daemon --config-file=/etc/dbus.conf --address=systemd: --nofork --nopidfile\n";

/// The files of a system that runs one script and, when that says so, a bus, and a manager
/// of a user's, with a bus of his.
const SYSTEM: [(&str, &str); 10] = [
    ("passwd", "root:x:0:0:root:/root:/bin/sh\nsailor:x:1000:1000:sailor:/tmp:/bin/sh\n"),
    ("systemd/system/default.target", "[Unit]\nRequires=knarr.service\n"),
    (
        "systemd/system/knarr.service",
        "[Unit]\nDefaultDependencies=no\n[Service]\nExecStart=/bin/sh /knarr/systemd.sh\n\
         StandardOutput=tty\nStandardError=inherit\nTTYPath=/dev/ttyS0\n",
    ),
    (
        "systemd/system/dbus.socket",
        "[Unit]\nDefaultDependencies=no\n[Socket]\nListenStream=/run/dbus/system_bus_socket\n",
    ),
    ("systemd/system/dbus.service", DBUS),
    (
        "systemd/system/knarr-user.service",
        "[Unit]\nDefaultDependencies=no\n[Service]\nType=notify\nUser=1000\nSlice=user-1000.slice\n\
         Delegate=yes\nEnvironment=XDG_RUNTIME_DIR=/run/user/1000\nExecStart=/knarr/systemd --user\n\
         KillSignal=SIGKILL\n",
    ),
    ("systemd/user/default.target", "[Unit]\nDefaultDependencies=no\n"),
    ("systemd/user/dbus.socket", "[Unit]\nDefaultDependencies=no\n[Socket]\nListenStream=%t/bus\n"),
    ("systemd/user/dbus.service", DBUS),
    (
        "dbus.conf",
        "<busconfig><type>system</type><listen>unix:path=/run/dbus/system_bus_socket</listen>\
         <auth>EXTERNAL</auth><policy context=\"default\"><allow user=\"*\"/><allow own=\"*\"/>\
         <allow send_destination=\"*\"/><allow receive_sender=\"*\"/></policy></busconfig>\n",
    ),
];

/// A machine whose process 1 is systemd, unpacked and not installed.
fn write_systemd(path: &Path, work: &Path) -> Result<()> {
    let tree = unpack_systemd(work)?;
    let mut archive = Cpio::with_basics(&["knarr-oci", "knarr-wasm"])?;
    archive.file("knarr/systemd.sh", include_bytes!("../vm/systemd.sh"), 0o755);
    for directory in [
        "lib",
        "lib/x86_64-linux-gnu",
        "lib64",
        "etc",
        "etc/systemd",
        "etc/systemd/system",
        "etc/systemd/user",
    ] {
        archive.directory(directory);
    }
    for (name, text) in SYSTEM {
        archive.file(&format!("etc/{name}"), text.as_bytes(), 0o644);
    }
    archive.products(&["containerd-shim-knarr-v1"])?;
    archive.image("busybox")?;
    let installed = Path::new("/");
    let programs = [
        (tree.as_path(), "lib/systemd/systemd", "systemd"),
        (&tree, "bin/systemctl", "systemctl"),
        (&tree, "usr/bin/dbus-daemon", "dbus-daemon"),
        (installed, "usr/bin/containerd", "containerd"),
        (installed, "usr/bin/ctr", "ctr"),
    ];
    let mut libraries = std::collections::BTreeSet::new();
    for (place, from, name) in programs {
        let program = place.join(from);
        archive.file(&format!("knarr/{name}"), &fs::read(&program)?, 0o755);
        libraries.extend(libraries_of(&program, &tree)?);
    }
    for library in libraries {
        let name = library.file_name().context("a library has a name")?.to_string_lossy();
        // Where the programs look for the loader is not where they look for the rest.
        let directory = if name.starts_with("ld-") { "lib64" } else { "lib/x86_64-linux-gnu" };
        archive.file(&format!("{directory}/{name}"), &fs::read(&library)?, 0o755);
    }
    fs::File::create(path)?.write_all(&archive.finish())?;
    Ok(())
}

/// Fetches systemd's packages, and those that they need, once.
fn unpack_systemd(work: &Path) -> Result<PathBuf> {
    let tree = work.join("systemd");
    if tree.join("usr/bin/dbus-daemon").is_file() {
        return Ok(tree);
    }
    let output = Command::new("apt-cache")
        .args(["depends", "--recurse", "--no-recommends", "--no-suggests", "--no-conflicts"])
        .args(["--no-breaks", "--no-replaces", "--no-enhances", "systemd", "dbus-daemon"])
        .output()?;
    ensure!(output.status.success(), "apt-cache depends systemd: {}", output.status);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // What begins a line is a package; libraries are all that is wanted beside the two.
    let wanted =
        |line: &&str| matches!(*line, "systemd" | "dbus-daemon") || line.starts_with("lib");
    let packages = text.lines().filter(wanted);
    let packages: std::collections::BTreeSet<&str> =
        packages.filter(|line| !line.contains(':')).collect();
    let place = work.join("packages");
    fs::create_dir_all(&place)?;
    let status = Command::new("apt-get")
        .args(["-qq", "download"])
        .args(&packages)
        .current_dir(&place)
        .status()?;
    ensure!(status.success(), "apt-get download of systemd's packages: {status}");
    for entry in fs::read_dir(&place)? {
        run(Path::new("dpkg"), &[Path::new("-x"), &entry?.path(), &tree])?;
    }
    Ok(tree)
}

/// What a program is linked with: from the tree where that has it.
fn libraries_of(program: &Path, tree: &Path) -> Result<Vec<PathBuf>> {
    let places =
        ["usr/lib/x86_64-linux-gnu/systemd", "usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"]
            .map(|place| tree.join(place).display().to_string());
    let output =
        Command::new("ldd").arg(program).env("LD_LIBRARY_PATH", places.join(":")).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(!text.contains("not found"), "{} lacks a library:\n{text}", program.display());
    let path =
        |line: &str| line.split_whitespace().find(|word| word.starts_with('/')).map(PathBuf::from);
    Ok(text.lines().filter_map(path).collect())
}

/// An AppArmor profile as the kernel takes it. Compiled here, and not loaded: this
/// machine may have no AppArmor.
fn profile(work: &Path) -> Result<Vec<u8>> {
    let (source, compiled) = (work.join("profile"), work.join("profile.bin"));
    fs::write(&source, include_bytes!("../vm/profile.apparmor"))?;
    let features = "/etc/apparmor.d/abi/3.0";
    run(
        Path::new("/sbin/apparmor_parser"),
        &[
            Path::new("--skip-kernel-load"),
            Path::new("--skip-cache"),
            Path::new("--policy-features"),
            Path::new(features),
            Path::new("--kernel-features"),
            Path::new(features),
            Path::new("--ofile"),
            &compiled,
            &source,
        ],
    )?;
    fs::read(&compiled).context("the compiled profile")
}

fn copy_modules(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| from.display().to_string())? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            copy_modules(&entry.path(), &to.join(entry.file_name()))?;
        } else {
            fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

/// Runs the machine to its end and shows what it says as it says it.
///
/// It ends with this process, however that ends, and in any case after a while.
fn boot(kernel: &Path, initramfs: &Path) -> Result<String> {
    let with_parent = ["setpriv", "--pdeathsig", "KILL"];
    let mut command = Command::new(with_parent[0]);
    command
        .args(&with_parent[1..])
        .args(["timeout", &PATIENCE.as_secs().to_string()])
        .args(with_parent)
        .args(["qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-m", "1536"])
        .args(["-smp", "2", "-nographic", "-no-reboot", "-nic", "none"])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(initramfs)
        .args(["-append", "console=ttyS0 panic=-1 quiet cgroup_no_v1=all"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    eprintln!("+ {command:?}");
    let begun = Instant::now();
    let mut machine = command.spawn().context("run the emulator")?;
    let serial = machine.stdout.take().context("the machine's serial line")?;
    let mut text = String::new();
    for line in BufReader::new(serial).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        println!("{}", line.trim_end());
        text.push_str(&line);
        text.push('\n');
    }
    let status = machine.wait()?;
    eprintln!("the machine ran for {} s", begun.elapsed().as_secs());
    ensure!(status.code() != Some(124), "the machine did not end within {PATIENCE:?}");
    ensure!(status.success(), "emulator: {status}");
    Ok(text)
}

/// The `newc` archive that the kernel unpacks at boot (kernel documentation,
/// driver-api/early-userspace/buffer-format).
#[derive(Default)]
struct Cpio {
    bytes: Vec<u8>,
    inode: u32,
}

impl Cpio {
    /// A userland, the way to the script, and what both scripts need.
    fn with_basics(programs: &[&str]) -> Result<Self> {
        let mut new = Self::default();
        for directory in ["bin", "proc", "sys", "dev", "run", "tmp", "knarr", "newroot"] {
            new.directory(directory);
        }
        new.file("bin/busybox", &fs::read("/bin/busybox").context("busybox-static")?, 0o755);
        new.file("init", include_bytes!("../vm/init.sh"), 0o755);
        new.file("knarr/checks.sh", include_bytes!("../vm/checks.sh"), 0o755);
        new.file("knarr/oci.sh", include_bytes!("../vm/oci.sh"), 0o755);
        for program in ["hello.wasm", "web.wasm"] {
            let path = root().join("wasm-examples/prebuilt").join(program);
            new.file(&format!("knarr/{program}"), &fs::read(&path)?, 0o644);
        }
        new.products(programs)?;
        Ok(new)
    }

    fn products(&mut self, programs: &[&str]) -> Result<()> {
        let bin = products()?;
        for program in programs {
            let content = fs::read(bin.join(program)).with_context(|| (*program).to_owned())?;
            self.file(&format!("knarr/{program}"), &content, 0o755);
        }
        Ok(())
    }

    /// One of the demo's images, as an archive.
    fn image(&mut self, image: &str) -> Result<()> {
        let output = Command::new(products()?.join("knarr-demo"))
            .args(["--archive", image])
            .current_dir(root())
            .stderr(Stdio::inherit())
            .output()?;
        ensure!(output.status.success(), "image {image}: {}", output.status);
        self.file(&format!("knarr/{image}.tar"), &output.stdout, 0o644);
        Ok(())
    }

    fn directory(&mut self, name: &str) {
        self.entry(name, 0o040_755, &[]);
    }

    fn file(&mut self, name: &str, content: &[u8], mode: u32) {
        self.entry(name, 0o100_000 | mode, content);
    }

    fn tree(&mut self, from: &Path, name: &str) -> Result<()> {
        self.directory(name);
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            let child = format!("{name}/{}", entry.file_name().to_string_lossy());
            if entry.file_type()?.is_dir() {
                self.tree(&entry.path(), &child)?;
            } else {
                self.file(&child, &fs::read(entry.path())?, 0o644);
            }
        }
        Ok(())
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.inode += 1;
        let fields = [
            self.inode,
            mode,
            0,
            0,
            1,
            0,
            content.len() as u32,
            0,
            0,
            0,
            0,
            name.len() as u32 + 1,
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }
}

//! Processes that hide, leave, hang or rise: the engine keeps hold of them.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, mpsc},
    thread::JoinHandle,
};

use knarr_harness::{ImageBuilder, World};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::world;

/// What the shim wrote down of a running container.
fn record(world: &World, name: &str) -> Value {
    let id = world.knarr(&["inspect", name, "--format", "{{.Id}}"]).ok();
    let path = world.exec_root().join("containers").join(id).join("init.json");
    serde_json::from_slice(&fs::read(path).expect("a running task")).expect("JSON")
}

fn number(record: &Value, key: &str) -> u32 {
    u32::try_from(record[key].as_u64().expect(key)).expect(key)
}

/// Whether a process has ended, buried or not.
fn is_dead(pid: u32) -> bool {
    let Ok(stat) = fs::read(format!("/proc/{pid}/stat")) else { return true };
    let end = stat.iter().rposition(|byte| *byte == b')').expect("a name");
    stat[end + 2] == b'Z'
}

/// Groups beside those of the engine's containers, for a process that moves away.
struct Elsewhere(Vec<PathBuf>);

impl Elsewhere {
    /// Moves the first process of a container there, as one does itself that has the
    /// host's groups at hand (systemd as PID 1).
    fn take(&mut self, record: &Value) {
        let group = Path::new(record["cgroup"].as_str().expect("a group"));
        let parent = group.parent().expect("the engine's").strip_prefix("/").expect("absolute");
        let root = Path::new("/sys/fs/cgroup");
        let mounts = fs::read_dir(root).expect("cgroups").flatten().map(|entry| entry.path());
        for mount in mounts.chain([root.to_owned()]) {
            if mount.join(group.strip_prefix("/").expect("absolute")).is_dir() {
                let elsewhere = mount.join(parent).join("elsewhere");
                if fs::create_dir(&elsewhere).is_ok() {
                    self.0.push(elsewhere.clone());
                }
                let procs = elsewhere.join("cgroup.procs");
                fs::write(procs, number(record, "pid").to_string()).expect("moved");
            }
        }
        assert!(!self.0.is_empty());
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        for group in &self.0 {
            // The kernel says EBUSY as long as the last process is on its way out.
            for _ in 0..100_000 {
                match fs::remove_dir(group) {
                    Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy => {
                        std::thread::yield_now();
                    }
                    _ => break,
                }
            }
        }
    }
}

#[test]
fn k10_a_process_s_name_hides_it_from_nobody() {
    let world = world();
    for (at, name) in [r"\377\376", r") R 1 (", r"x\ny) Z 9"].into_iter().enumerate() {
        let container = format!("named-{at}");
        let script =
            format!("printf '{name}' > /proc/self/comm; echo named; while :; do sleep 1000; done");
        world.knarr(&["run", "-d", "--name", &container, "busybox", "sh", "-c", &script]).ok();
        let mut logs = world
            .knarr_command(&["logs", "-f", &container])
            .stdout(Stdio::piped())
            .spawn()
            .expect("logs");
        world.await_output(&mut logs, "named");
        let pid = number(&record(&world, &container), "pid");
        let top = world.knarr(&["top", &container, "-o", "pid,stat,args"]).ok();
        assert!(
            top.lines().any(|line| line.split_whitespace().next() == Some(&pid.to_string())),
            "{name}: {top}"
        );
        assert_eq!(world.knarr(&["exec", &container, "echo", "in"]).ok(), "in");
        world.knarr(&["stop", "-t", "0", &container]).ok();
        logs.wait().expect("logs end");
        assert!(is_dead(pid));
        world.knarr(&["rm", &container]).ok();
    }
}

#[test]
fn s10_a_first_process_that_left_its_group_can_be_stopped_and_removed() {
    let world = world();
    let mut elsewhere = Elsewhere(Vec::new());
    let mut begun = |name: &str, image: &[&str]| {
        world.knarr(&[&["run", "-d", "--name", name], image].concat()).ok();
        let record = record(&world, name);
        elsewhere.take(&record);
        record
    };
    let sleeper = ["busybox", "sleep", "1000"];
    // Process 1 without a handler takes no TERM: the end of its patience decides.
    let pid = number(&begun("stopped", &sleeper), "pid");
    world.knarr(&["stop", "-t", "0", "stopped"]).ok();
    assert!(is_dead(pid));
    let code =
        world.knarr(&["inspect", "stopped", "--format", "{{.State.Status}} {{.State.ExitCode}}"]);
    assert_eq!(code.ok(), "exited 137");
    world.knarr(&["rm", "stopped"]).ok();

    let record = begun("paused", &sleeper);
    let refused = world.knarr(&["pause", "paused"]).fails(1);
    assert!(refused.contains("has moved itself to another control group"), "{refused}");
    world.knarr(&["rm", "-f", "paused"]).ok();
    assert!(is_dead(number(&record, "pid")));

    let pid = number(&begun("killed", &sleeper), "pid");
    world.knarr(&["kill", "killed"]).ok();
    assert!(is_dead(pid));
}

#[test]
fn k10_a_first_process_that_left_its_group_dies_with_its_shim() {
    let mut world = world();
    // A program that is setuid loses the kernel's promise to end it with its parent.
    let busybox = fs::read("/bin/busybox").expect("busybox");
    let image = ImageBuilder::new("setuid:1").file("/bin/sleep", busybox, 0o4755);
    world.load(&image.docker_archive());
    let arguments = ["run", "-d", "--user", "1000", "--name"];
    let sleeper = ["setuid:1", "/bin/sleep", "1000"];
    let mut elsewhere = Elsewhere(Vec::new());
    let mut begun = |world: &World, name: &str| {
        world.knarr(&[&arguments[..], &[name], &sleeper].concat()).ok();
        let record = record(world, name);
        elsewhere.take(&record);
        record
    };
    let end = |record: &Value| {
        kill(Pid::from_raw(number(record, "shim_pid") as i32), Signal::SIGKILL).expect("the shim");
    };
    // The engine sees its shim die.
    let lost = begun(&world, "lost");
    end(&lost);
    assert_eq!(world.knarr(&["wait", "lost"]).ok(), "137");
    assert!(is_dead(number(&lost, "pid")), "never orphaned");

    // It died while there was no engine.
    let found = begun(&world, "found");
    world.kill_daemon();
    end(&found);
    assert!(!is_dead(number(&found, "pid")), "nobody ends it yet");
    world.start_daemon().expect("a second start");
    assert!(is_dead(number(&found, "pid")), "recovery has");
    assert_eq!(world.knarr(&["inspect", "found", "--format", "{{.State.Status}}"]).ok(), "exited");
}

#[test]
fn k10_a_number_that_went_to_another_process_is_not_killed() {
    let mut world = world();
    world.knarr(&["run", "-d", "--name", "one", "busybox", "sleep", "1000"]).ok();
    let mut record = record(&world, "one");
    let id = world.knarr(&["inspect", "one", "--format", "{{.Id}}"]).ok();
    let path = world.exec_root().join("containers").join(&id).join("init.json");
    world.kill_daemon();
    // The shim is gone, and its container with it; the number is a stranger's.
    kill(Pid::from_raw(number(&record, "shim_pid") as i32), Signal::SIGKILL).expect("the shim");
    let mut stranger = std::process::Command::new("sleep").arg("1000").spawn().expect("sleep");
    record["pid"] = stranger.id().into();
    fs::write(&path, record.to_string()).expect("init.json");
    world.start_daemon().expect("a second start");
    assert_eq!(world.knarr(&["inspect", "one", "--format", "{{.State.Status}}"]).ok(), "exited");
    let alive = stranger.try_wait().expect("wait").is_none();
    stranger.kill().expect("kill");
    stranger.wait().expect("wait");
    assert!(alive, "the stranger was spared");
}

#[test]
fn k10_namespaces_are_joined_of_who_was_meant_only() {
    let world = world();
    world.knarr(&["run", "-d", "--name", "first", "busybox", "sleep", "1000"]).ok();
    let join = ["run", "--rm", "--network", "container:first", "busybox", "echo", "joined"];
    assert_eq!(world.knarr(&join).ok(), "joined");
    let id = world.knarr(&["inspect", "first", "--format", "{{.Id}}"]).ok();
    let path = world.exec_root().join("containers").join(&id).join("init.json");
    let whole = fs::read(&path).expect("init.json");
    let mut record: Value = serde_json::from_slice(&whole).expect("JSON");
    // As if the process had ended, and its number gone to another that began later.
    record["start_time"] = (record["start_time"].as_u64().expect("a time") + 1).into();
    fs::write(&path, record.to_string()).expect("init.json");
    let refused = world.knarr(&join).fails(125);
    assert!(refused.contains("cannot join net namespace of a non running container"), "{refused}");
    fs::write(&path, whole).expect("init.json");
    assert_eq!(world.knarr(&join).ok(), "joined");
}

/// The most memory that the daemon has had, in KiB.
fn peak(world: &World) -> u64 {
    let pid = world.daemon_pid().expect("a daemon");
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("VmHWM");
    line.split_whitespace().next().and_then(|word| word.parse().ok()).expect("KiB")
}

#[test]
fn x_a_hosts_file_of_any_size_costs_the_daemon_nothing() {
    let world = world();
    let run = ["run", "-d", "--name", "big", "--hostname", "bighost", "busybox", "sleep", "1000"];
    world.knarr(&run).ok();
    let beside = |script: &str| {
        world
            .knarr(&["run", "--rm", "--network", "container:big", "busybox", "sh", "-c", script])
            .ok()
    };
    // What it wrote there itself is taken over as it is, whatever bytes these are.
    world.knarr(&["exec", "big", "sh", "-c", r"printf '192.0.2.1 own\377\n' >> /etc/hosts"]).ok();
    assert_eq!(
        beside("grep -c bighost /etc/hosts; grep own /etc/hosts | od -An -c | tr -d ' '"),
        "1\n192.0.2.1own377\\n"
    );
    // A gibibyte is not: the names that the engine knows are enough.
    let before = peak(&world);
    for file in ["hosts", "resolv.conf"] {
        let grow = format!("dd if=/dev/null of=/etc/{file} bs=1048576 seek=1024 2>/dev/null");
        world.knarr(&["exec", "big", "sh", "-c", &grow]).ok();
        assert_eq!(
            beside(
                "grep -c bighost /etc/hosts; grep -c nameserver /etc/resolv.conf | grep -v ^0 | wc -l"
            ),
            "1\n1"
        );
        let small = beside("wc -c < /etc/hosts").parse::<u64>().expect("a size") < 4096;
        assert!(small);
        assert!(
            world.daemon_log().contains(&format!("cannot take over /etc/{file}")),
            "it is said"
        );
    }
    let grown = peak(&world) - before;
    assert!(grown < 64 << 10, "{grown} KiB for the file");
}

#[test]
fn r15_an_exec_keeps_what_its_container_gave_up() {
    let world = world();
    let run = [
        "run",
        "-d",
        "--name",
        "meek",
        "--security-opt",
        "no-new-privileges",
        "--ulimit",
        "nofile=100:200",
        "--oom-score-adj",
        "100",
        "--read-only",
        "--pids-limit",
        "77",
        "busybox",
        "sleep",
        "1000",
    ];
    world.knarr(&run).ok();
    let status = |flags: &[&str], name: &str| {
        let script = format!("grep ^{name}: /proc/self/status | cut -f2");
        world.knarr(&[&["exec"], flags, &["meek", "sh", "-c", &script]].concat()).ok()
    };
    for flags in
        [&[][..], &["--privileged"], &["--user", "1000"], &["--privileged", "--user", "1000"]]
    {
        assert_eq!(status(flags, "NoNewPrivs"), "1", "{flags:?}");
        assert_eq!(status(flags, "Seccomp"), "2", "{flags:?}");
        let sh = |script: &str| {
            world.knarr(&[&["exec"], flags, &["meek", "sh", "-c", script]].concat()).stdout
        };
        assert_eq!(sh("ulimit -n; ulimit -Hn; cat /proc/self/oom_score_adj"), "100\n200\n100\n");
        assert_eq!(sh("touch /x 2>/dev/null || echo no"), "no\n", "{flags:?}");
        assert_eq!(sh("echo 1 2>/dev/null > /proc/sys/net/ipv4/ip_forward || echo no"), "no\n");
        let groups = "cat /proc/self/cgroup | cut -d: -f2- | sort";
        let first = "cat /proc/1/cgroup | cut -d: -f2- | sort";
        assert_eq!(sh(groups), sh(first), "{flags:?}");
    }
    // It has the capabilities that it was given, and the filter is the container's still.
    assert_ne!(status(&["--privileged"], "CapEff"), status(&[], "CapEff"));
    let mount = ["exec", "--privileged", "meek", "mount", "-t", "tmpfs", "x", "/etc"];
    let refused = world.knarr(&mount);
    assert!(refused.code != 0 && refused.stderr.contains("permi"), "{refused:?}");
    // Where there is no filter, capabilities are what counts.
    let free = ["run", "-d", "--name", "free", "--security-opt", "seccomp=unconfined"];
    world.knarr(&[&free[..], &["busybox", "sleep", "1000"]].concat()).ok();
    let mount = |flags: &[&str]| {
        world
            .knarr(&[&["exec"], flags, &["free", "mount", "-t", "tmpfs", "x", "/etc"]].concat())
            .code
    };
    assert_ne!(mount(&[]), 0);
    assert_eq!(mount(&["--privileged"]), 0);
}

fn oom_score(pid: u32) -> i32 {
    let text = fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).expect("a process");
    text.trim().parse().expect("a number")
}

#[test]
fn k18_the_daemon_is_killed_after_its_containers() {
    let world = world();
    let status = fs::read_to_string("/proc/self/status").expect("status");
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:\t")).expect("CapEff");
    let may = u64::from_str_radix(line, 16).expect("hexadecimal") >> 24 & 1 == 1;
    let own = oom_score(std::process::id());
    let daemon = oom_score(world.daemon_pid().expect("a daemon"));
    if may {
        assert_eq!(daemon, own.min(-500));
    } else {
        // Without CAP_SYS_RESOURCE it cannot, and says so once.
        assert_eq!(daemon, own);
        assert_eq!(
            world.daemon_log().matches("oom_score_adj stays as it is").count(),
            usize::from(own > -500)
        );
    }
    for (name, flags, wanted) in
        [("usual", &[][..], own.max(0)), ("asked", &["--oom-score-adj", "300"], 300)]
    {
        world
            .knarr(&[&["run", "-d", "--name", name], flags, &["busybox", "sleep", "1000"]].concat())
            .ok();
        let record = record(&world, name);
        assert_eq!(oom_score(number(&record, "pid")), wanted, "{name}");
        assert_eq!(oom_score(number(&record, "shim_pid")), own.max(0), "the shim of {name}");
        let inside = world.knarr(&["exec", name, "cat", "/proc/self/oom_score_adj"]).ok();
        assert_eq!(inside, wanted.to_string(), "an exec in {name}");
    }
}

/// A file system whose server takes questions about names and never answers.
struct Hung {
    at: PathBuf,
    device: Option<Arc<File>>,
    server: Option<JoinHandle<()>>,
    asked: mpsc::Receiver<()>,
}

impl Hung {
    /// The protocol is that of linux/fuse.h, version 7.31.
    fn mount(at: PathBuf) -> Self {
        fs::create_dir(&at).expect("mount point");
        let device = File::options().read(true).write(true).open("/dev/fuse");
        let device = Arc::new(device.expect("this test needs FUSE (CONFIG_FUSE_FS)"));
        let options =
            format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other", device.as_raw_fd());
        mount(Some("hung"), &at, Some("fuse"), MsFlags::empty(), Some(options.as_str()))
            .expect("mount");
        let (tell, asked) = mpsc::channel();
        let serving = Arc::clone(&device);
        let server = std::thread::spawn(move || Self::serve(&serving, &tell));
        Self { at, device: Some(device), server: Some(server), asked }
    }

    fn serve(mut device: &File, tell: &mpsc::Sender<()>) {
        const LOOKUP: u32 = 1;
        const FORGET: u32 = 2;
        const GETATTR: u32 = 3;
        const INIT: u32 = 26;
        const INTERRUPT: u32 = 36;
        const BATCH_FORGET: u32 = 42;
        let mut request = vec![0; 1 << 20];
        // Ends when it is unmounted.
        while let Ok(length) = device.read(&mut request) {
            assert!(length >= 40, "a header");
            let opcode = u32::from_ne_bytes(request[4..8].try_into().expect("four bytes"));
            let unique: [u8; 8] = request[8..16].try_into().expect("eight bytes");
            let mut error = 0i32;
            let mut body = Vec::new();
            match opcode {
                LOOKUP => {
                    let _ = tell.send(());
                    continue;
                }
                FORGET | BATCH_FORGET | INTERRUPT => continue,
                INIT => {
                    for word in [7u32, 31, 0, 0, 0, 1 << 16, 1] {
                        body.extend(word.to_ne_bytes());
                    }
                    body.resize(64, 0);
                }
                GETATTR => {
                    // Valid for a day; then the inode: 1, a directory of everybody's.
                    body.extend(86_400u64.to_ne_bytes());
                    body.resize(16, 0);
                    body.extend(1u64.to_ne_bytes());
                    body.resize(16 + 60, 0);
                    for word in [0o40_777u32, 2] {
                        body.extend(word.to_ne_bytes());
                    }
                    body.resize(104, 0);
                }
                _ => error = -nix::libc::ENOSYS,
            }
            let mut reply = ((16 + body.len()) as u32).to_ne_bytes().to_vec();
            reply.extend(error.to_ne_bytes());
            reply.extend(unique);
            reply.extend(body);
            let _ = device.write_all(&reply);
        }
    }

    /// The connection is cut: whoever waits gets an error.
    fn release(&mut self) {
        let _ = umount2(&self.at, MntFlags::MNT_DETACH | MntFlags::MNT_FORCE);
        self.device = None;
    }
}

impl Drop for Hung {
    fn drop(&mut self) {
        self.release();
        if let Some(server) = self.server.take() {
            let _ = server.join();
        }
    }
}

#[test]
fn k15_a_process_that_hangs_in_the_kernel_holds_up_nobody_else() {
    let world = world();
    let mut hung = Hung::mount(world.path().join("hung"));
    let bind = format!("{}:/hung", hung.at.display());
    world.knarr(&["run", "-d", "--name", "stuck", "-v", &bind, "busybox", "cat", "/hung/x"]).ok();
    hung.asked.recv().expect("it asks for a name");
    let pid = number(&record(&world, "stuck"), "pid");
    let begin = |arguments: &[&str]| {
        world
            .knarr_command(arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("knarr")
    };
    let verbs = [&["stop", "-t", "0", "stuck"][..], &["kill", "stuck"], &["rm", "-f", "stuck"]];
    let mut ends = verbs.map(begin);
    // Meanwhile everybody else is served.
    assert_eq!(world.knarr(&["run", "--rm", "busybox", "echo", "served"]).ok(), "served");
    assert_eq!(world.knarr(&["ps", "--format", "{{.Names}}"]).ok(), "stuck");
    for end in &mut ends {
        assert!(end.try_wait().expect("wait").is_none(), "it is still being waited for");
    }
    // All give up, and say so; nothing is taken for done.
    let words = ["cannot stop container", "cannot kill container", "cannot remove container"];
    for (end, words) in ends.into_iter().zip(words) {
        let output = end.wait_with_output().expect("it ends");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(words), "{said}");
    }
    assert!(!is_dead(pid));
    assert_eq!(world.knarr(&["inspect", "stuck", "--format", "{{.State.Status}}"]).ok(), "running");
    // Once the kernel lets it go, its end is seen and everything goes.
    hung.release();
    assert_eq!(world.knarr(&["wait", "stuck"]).ok(), "137");
    world.knarr(&["rm", "stuck"]).ok();
    assert!(is_dead(pid));
}

//! Engines and tests end, and what they made outside their roots ends with them.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use knarr_harness::World;

use crate::{world, world_of_both};

/// The engine's own name on the host: of its bridge, its cgroups' parent and
/// its packet filter.
fn instance(world: &World) -> String {
    let format = "{{index .Options \"com.docker.network.bridge.name\"}}";
    world.knarr(&["network", "inspect", "bridge", "--format", format]).ok()
}

/// What of that name is on the host: interfaces, tables, cgroups.
fn left(world: &World, instance: &str) -> Vec<String> {
    let mut left = Vec::new();
    for (program, arguments) in [("ip", ["-o", "link"]), ("nft", ["list", "tables"])] {
        let listed = world.host_run(program, &arguments).ok();
        left.extend(listed.lines().filter(|line| line.contains(instance)).map(str::to_owned));
    }
    let root = Path::new("/sys/fs/cgroup");
    let hierarchies = fs::read_dir(root).expect("cgroups").flatten().map(|entry| entry.path());
    let groups = hierarchies.chain([root.to_owned()]).map(|dir| dir.join(instance));
    left.extend(groups.filter(|dir| dir.is_dir()).map(|dir| dir.display().to_string()));
    left
}

#[test]
fn s04_an_engine_that_ends_leaves_nothing_of_its_own() {
    let mut world = world_of_both();
    let instance = instance(&world);
    world.knarr(&["network", "create", "harbour"]).ok();
    for image in ["busybox", "hello"] {
        world.knarr(&["run", "--rm", "--network", "harbour", image, "echo"]).ok();
    }
    assert!(!left(&world, &instance).is_empty(), "{instance} is its name");
    world.stop_daemon();
    assert_eq!(left(&world, &instance), [""; 0]);

    // With a container that runs, all that it needs stays.
    world.start_daemon().unwrap();
    let www = "mkdir /www; echo here > /www/index.html; exec httpd -f -p 80 -h /www";
    world
        .knarr(&["run", "-d", "--name", "one", "--network", "harbour", "busybox", "sh", "-c", www])
        .ok();
    world.stop_daemon();
    assert!(!left(&world, &instance).is_empty(), "a container runs on");
    world.start_daemon().unwrap();
    let fetch = "until wget -q -O - http://one/; do :; done";
    let answer =
        world.knarr(&["run", "--rm", "--network", "harbour", "busybox", "sh", "-c", fetch]);
    assert_eq!(answer.ok(), "here");
    world.knarr(&["rm", "-f", "one"]).ok();
    world.stop_daemon();
    assert_eq!(left(&world, &instance), [""; 0]);
}

#[test]
fn k16_clients_that_follow_do_not_hold_the_daemon() {
    let mut world = world_of_both();
    let mut clients = Vec::new();
    for image in ["busybox", "web"] {
        let run: &[&str] = if image == "busybox" { &["sleep", "1000"] } else { &[] };
        world.knarr(&[&["run", "-d", "--name", image, image], run].concat()).ok();
        for follow in [&["logs", "-f", image][..], &["wait", image], &["attach", image]] {
            let mut command = world.knarr_command(follow);
            command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
            clients.push(command.spawn().unwrap());
        }
    }
    let mut events = world.knarr_command(&["events"]).stdout(Stdio::piped()).spawn().unwrap();
    world.knarr(&["pause", "busybox"]).ok();
    world.knarr(&["unpause", "busybox"]).ok();
    world.await_output(&mut events, "unpause");
    let begun = Instant::now();
    world.stop_daemon();
    // Far below what verbs in progress would be granted.
    assert!(begun.elapsed() < Duration::from_millis(1500), "{:?}", begun.elapsed());
    clients.push(events);
    for mut client in clients {
        client.wait().unwrap();
    }
    world.start_daemon().unwrap();
    for name in ["busybox", "web"] {
        let state = world.knarr(&["inspect", name, "--format", "{{.State.Status}}"]).ok();
        assert_eq!(state, "running");
    }
}

const VICTIM: &str = "KNARR_TEST_VICTIM";

/// Not a test of its own: what the next one kills.
#[test]
fn a_test_that_hangs() {
    if std::env::var_os(VICTIM).is_none() {
        return;
    }
    let world = world();
    world.knarr(&["run", "-d", "--restart", "always", "busybox", "sleep", "1000"]).ok();
    world.knarr(&["run", "-d", "--name", "paused", "busybox", "sleep", "1000"]).ok();
    world.knarr(&["pause", "paused"]).ok();
    let group = fs::read_to_string(format!(
        "/proc/{}/cgroup",
        world.knarr(&["inspect", "paused", "--format", "{{.State.Pid}}"]).ok()
    ));
    let group = group.expect("a process");
    let group = group.lines().find_map(|line| line.find("/knarr").map(|at| &line[at..]));
    let group = group.expect("a group below the engine's");
    println!("\nvictim {} {group}", world.path().display());
    std::io::stdout().flush().unwrap();
    std::thread::park();
}

#[test]
fn a_test_that_is_killed_leaves_nothing() {
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "ending::a_test_that_hangs", "--nocapture"])
        .env(VICTIM, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(victim.stdout.take().unwrap());
    let line = output.lines().map(Result::unwrap).find(|line| line.starts_with("victim "));
    let line = line.expect("the victim came up");
    let (world, group) = line["victim ".len()..].split_once(' ').unwrap();
    let groups = || -> Vec<PathBuf> {
        let hierarchies = fs::read_dir("/sys/fs/cgroup").unwrap().flatten();
        let dirs = hierarchies.map(|entry| entry.path().join(&group[1..]));
        dirs.filter(|dir| dir.is_dir()).collect()
    };
    assert!(!groups().is_empty() || Path::new("/sys/fs/cgroup/cgroup.procs").exists());
    victim.kill().unwrap();
    victim.wait().unwrap();
    let begun = Instant::now();
    while Path::new(world).exists() || !groups().is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(30), "left: {world} {:?}", groups());
        std::thread::yield_now();
    }
    let here = format!("{world}/");
    for process in fs::read_dir("/proc").unwrap().flatten() {
        let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        assert!(!line.contains(&here), "left: {line}");
    }
}

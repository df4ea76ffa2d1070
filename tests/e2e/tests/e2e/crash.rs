//! Nothing is lost, nothing is left behind.

use std::{fs, process::Stdio};

use knarr_harness::{Inventory, World};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{world, world_of_both};

fn ids(world: &World) -> Vec<String> {
    world.knarr(&["ps", "-a", "-q", "--no-trunc"]).ok().lines().map(str::to_owned).collect()
}

fn status(world: &World, name: &str) -> String {
    world.knarr(&["inspect", name, "--format", "{{.State.Status}} {{.State.ExitCode}}"]).ok()
}

/// The process id that the shim wrote down for a container.
fn shim_pid(world: &World, id: &str) -> i32 {
    let record = fs::read(world.exec_root().join("containers").join(id).join("init.json"))
        .expect("a running task");
    let record: serde_json::Value = serde_json::from_slice(&record).expect("JSON");
    i32::try_from(record["shim_pid"].as_i64().expect("a process id")).expect("a process id")
}

#[test]
fn k01_containers_run_on_without_the_daemon() {
    let mut world = world_of_both();
    let script = "i=0; while :; do echo tick-$i; i=$((i+1)); sleep 0.05; done";
    world
        .knarr(&["run", "-d", "--name", "clock", "-p", "8080:8000", "busybox", "sh", "-c", script])
        .ok();
    world.knarr(&["run", "-d", "--name", "web", "web"]).ok();
    world.kill_daemon();
    world.start_daemon().unwrap();
    assert_eq!(status(&world, "clock"), "running 0");
    assert_eq!(status(&world, "web"), "running 0");
    assert_eq!(world.knarr(&["exec", "clock", "echo", "again"]).ok(), "again");
    let mut follow = world
        .knarr_command(&["logs", "-f", "-n", "0", "clock"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    world.await_output(&mut follow, "tick-");
    world.knarr(&["stop", "-t", "0", "clock"]).ok();
    follow.wait().unwrap();
    let lines = world.knarr(&["logs", "clock"]).ok();
    for (at, line) in lines.lines().enumerate() {
        assert_eq!(line, format!("tick-{at}"), "no line was lost");
    }
    world.knarr(&["stop", "web"]).ok();
}

#[test]
fn k01_an_exit_while_the_daemon_was_away_is_known_after() {
    let mut world = world();
    let flag = world.path().join("go");
    fs::create_dir(&flag).unwrap();
    let bind = format!("{}:/flag", flag.display());
    world
        .knarr(&[
            "run",
            "-d",
            "--name",
            "one",
            "-v",
            &bind,
            "busybox",
            "sh",
            "-c",
            "until [ -e /flag/now ]; do :; done; echo last; exit 42",
        ])
        .ok();
    let id = ids(&world).remove(0);
    world.kill_daemon();
    fs::write(flag.join("now"), "").unwrap();
    let exit = world.exec_root().join("containers").join(&id).join("exit.json");
    while !exit.exists() {
        std::thread::yield_now();
    }
    world.start_daemon().unwrap();
    assert_eq!(status(&world, "one"), "exited 42");
    assert_eq!(world.knarr(&["logs", "one"]).ok(), "last");
}

#[test]
fn k02_a_killed_shim_is_noticed_cleaned_up_and_recorded() {
    let world = world();
    world.knarr(&["run", "-d", "--name", "spare", "busybox", "true"]).ok();
    world.knarr(&["wait", "spare"]).ok();
    world.knarr(&["rm", "spare"]).ok();
    let before = Inventory::settled(&world.exec_root(), &[]);
    world.knarr(&["run", "-d", "--name", "one", "-p", "8080:80", "busybox", "sleep", "1000"]).ok();
    let id = ids(&world).remove(0);
    kill(Pid::from_raw(shim_pid(&world, &id)), Signal::SIGKILL).unwrap();
    assert_eq!(world.knarr(&["wait", "one"]).ok(), "137");
    assert_eq!(status(&world, "one"), "exited 137");
    world.knarr(&["rm", "one"]).ok();
    let after = Inventory::settled(&world.exec_root(), std::slice::from_ref(&id));
    assert_eq!(after, before, "nothing is left behind");
}

#[test]
fn k03_both_killed_leaves_no_orphan() {
    let mut world = world();
    world.knarr(&["run", "-d", "--name", "one", "busybox", "sleep", "1000"]).ok();
    let id = ids(&world).remove(0);
    let pid = world.knarr(&["inspect", "one", "--format", "{{.State.Pid}}"]).ok();
    let shim = shim_pid(&world, &id);
    world.kill_daemon();
    kill(Pid::from_raw(shim), Signal::SIGKILL).unwrap();
    world.start_daemon().unwrap();
    assert_eq!(status(&world, "one"), "exited 137");
    while fs::metadata(format!("/proc/{pid}")).is_ok() {
        std::thread::yield_now();
    }
    world.knarr(&["start", "one"]).ok();
    assert_eq!(status(&world, "one"), "running 0");
}

#[test]
fn s04_runs_leave_nothing_behind() {
    let world = world_of_both();
    world.knarr(&["run", "--rm", "-p", "8080:80", "busybox", "true"]).ok();
    let before = Inventory::settled(&world.exec_root(), &[]);
    let mut seen = Vec::new();
    for image in ["busybox", "hello", "busybox"] {
        let id = world.knarr(&["create", "-p", "8080:80", "-v", "/data", image, "true"]).ok();
        world.knarr(&["start", "-a", &id]);
        world.knarr(&["rm", "-v", &id]).ok();
        seen.push(id);
    }
    assert_eq!(Inventory::settled(&world.exec_root(), &seen), before);
}

#[test]
fn k16_a_polite_end_leaves_containers_running() {
    let mut world = world();
    world.knarr(&["run", "-d", "--name", "one", "busybox", "sleep", "1000"]).ok();
    world.stop_daemon();
    world.start_daemon().unwrap();
    assert_eq!(status(&world, "one"), "running 0");
}

#[test]
fn a12_a_second_daemon_on_the_same_roots_is_refused() {
    let world = world();
    let second = world.host_run(
        &knarr_harness::bin_dir().join("knarrd").to_string_lossy(),
        &[
            "--data-root",
            &world.data_root().to_string_lossy(),
            "--exec-root",
            &world.path().join("other").to_string_lossy(),
            "--host",
            &format!("unix://{}/other.sock", world.path().display()),
        ],
    );
    assert_eq!(second.code, 1, "{}", second.stderr);
    assert!(second.stderr.contains(&world.daemon_pid().unwrap().to_string()), "{}", second.stderr);
}

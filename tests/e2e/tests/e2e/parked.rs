//! Work that takes as long as others decide holds nobody up: here it takes for ever,
//! parked at a failpoint, until everybody else was served.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    process::{Child, Stdio},
};

use knarr_harness::World;
use nix::{sys::stat::Mode, unistd::mkfifo};

use crate::world_of_both;

/// Where each piece of work is parked, and the command that comes there.
const WORK: &[(&str, &[&str])] = &[
    ("remove.delete", &["rm", "-f", "-v", "gone"]),
    ("volume-remove.delete", &["volume", "rm", "hold"]),
    ("image-remove.delete", &["rmi", "other:1"]),
    ("usage.images", &["system", "df"]),
    ("usage.container", &["ps", "-a", "-s"]),
    ("top.read", &["top", "one"]),
    ("logs.read", &["logs", "-n", "1", "one"]),
    ("ask.volumes", &["volume", "ls"]),
];

/// A command that must answer though others do not: where the engine itself is parked, it
/// would never.
#[track_caller]
fn answers(world: &World, words: &[&str]) -> String {
    let knarr = knarr_harness::bin_dir().join("knarr").display().to_string();
    let host = world.host();
    let line = [&["120", &knarr, "-H", &host], words].concat();
    world.host_run("timeout", &line).ok()
}

#[test]
fn x10_work_without_a_bound_holds_nobody_up() {
    let mut world = world_of_both();
    world
        .knarr(&["run", "-d", "--name", "one", "busybox", "sh", "-c", "echo up; exec sleep 1000"])
        .ok();
    world.knarr(&["create", "--name", "gone", "-v", "/v", "busybox"]).ok();
    world.knarr(&["volume", "create", "hold"]).ok();
    world.knarr(&["tag", "hello", "other:1"]).ok();
    world.stop_daemon();
    let fifo = |point: &str| world.path().join(point);
    let mut armed = Vec::new();
    for (point, _) in WORK {
        mkfifo(&fifo(point), Mode::S_IRWXU).unwrap();
        armed.push(format!("{point}=hold:{}", fifo(point).display()));
    }
    let paths: BTreeMap<&str, _> = WORK.iter().map(|(point, _)| (*point, fifo(point))).collect();
    world.start_daemon_with_env(&[("KNARR_FAILPOINTS", &armed.join(";"))]).unwrap();
    let mut parked: Vec<(&str, Child, File)> = Vec::new();
    for (point, words) in WORK {
        let child = world
            .knarr_command(words)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // Opened when somebody reads it: the work is there, and goes on when this is closed.
        let gate = File::options().write(true).open(&paths[point]).unwrap();
        // Whoever comes there later finds no gate.
        fs::remove_file(&paths[point]).unwrap();
        parked.push((point, child, gate));
    }

    answers(&world, &["version"]);
    assert_eq!(answers(&world, &["run", "--rm", "busybox", "echo", "native"]), "native");
    assert!(answers(&world, &["run", "--rm", "hello"]).contains("hello"));
    assert_eq!(answers(&world, &["exec", "one", "echo", "in"]), "in");
    assert!(answers(&world, &["ps"]).contains("one"));
    answers(&world, &["pause", "one"]);
    answers(&world, &["unpause", "one"]);
    answers(&world, &["inspect", "one"]);

    for (point, child, gate) in parked {
        drop(gate);
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{point}: {said}");
    }
}

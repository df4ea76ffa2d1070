//! The daemon dies at every step of everything it does in several steps, and
//! afterwards each operation is absent or done (CATALOGUE K01, S4).

use std::{collections::BTreeSet, fs};

use knarr_harness::World;

use crate::world;

/// Every failpoint that the engine lists.
fn failpoints() -> Vec<&'static str> {
    let source = include_str!("../../../../runtime/engine/src/failpoint.rs");
    let list = source.split("pub const NAMES").nth(1).expect("a list of failpoints");
    let list = list.split("];").next().expect("an end of the list");
    list.split('"').skip(1).step_by(2).collect()
}

/// Passes every failpoint once; answers whether the daemon died on the way.
fn dies_on_the_way(world: &mut World) -> bool {
    let script: &[&[&str]] = &[
        &["network", "create", "net1"],
        &["volume", "create", "vol1"],
        &[
            "run",
            "-d",
            "--name",
            "k1",
            "--network",
            "net1",
            "-v",
            "vol1:/v",
            "-v",
            "/data",
            "-p",
            "7070:70",
            "busybox",
            "sleep",
            "1000",
        ],
        &["exec", "k1", "true"],
        &["rename", "k1", "k2"],
        &["update", "-m", "64m", "--memory-swap", "-1", "k2"],
        &["stop", "-t", "0", "k2"],
        &["start", "k2"],
        &["rm", "-f", "-v", "k2"],
        &["network", "rm", "net1"],
        &["volume", "rm", "vol1"],
    ];
    for line in script {
        // The client of our own has no `update` yet.
        let run = if line[0] == "update" { world.docker(line) } else { world.knarr(line) };
        if run.code != 0 {
            let alive = world.knarr(&["version"]).code == 0;
            assert!(!alive, "{} failed, but the daemon lives: {}", run.line, run.stderr);
            world.await_daemon_end();
            return true;
        }
    }
    false
}

fn names_in(path: &std::path::Path) -> BTreeSet<String> {
    let entries = fs::read_dir(path).expect("a directory of the engine");
    entries
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect()
}

/// Kills the daemon at each failpoint of these operations and looks what is left.
fn survives(operations: &[&str]) {
    let mut world = world();
    for name in failpoints() {
        let operation = name.split('.').next().expect("an operation");
        if !operations.contains(&operation) {
            continue;
        }
        world.kill_daemon();
        let armed = format!("{name}=kill");
        world.start_daemon_with_env(&[("KNARR_FAILPOINTS", &armed)]).unwrap();
        assert!(dies_on_the_way(&mut world), "{name} is never passed");
        world.start_daemon().unwrap();

        // Whatever is said to run can be used, and everything can be removed.
        let running = world.knarr(&["ps", "-q"]).ok();
        for id in running.split_whitespace() {
            world.knarr(&["exec", id, "true"]).ok();
        }
        let all = world.knarr(&["ps", "-a", "-q", "--no-trunc"]).ok();
        for id in all.split_whitespace() {
            world.knarr(&["rm", "-f", "-v", id]).ok();
        }
        world.knarr(&["network", "rm", "net1"]);
        world.knarr(&["volume", "rm", "vol1"]);
        for directory in [
            world.exec_root().join("containers"),
            world.data_root().join("containers"),
            world.data_root().join("volumes"),
        ] {
            assert_eq!(
                names_in(&directory),
                BTreeSet::new(),
                "{name} left {}",
                directory.display()
            );
        }
        let networks = world.knarr(&["network", "ls", "-q"]).ok();
        assert_eq!(networks.lines().count(), 3, "{name} left a network");
    }
}

#[test]
fn k01_the_daemon_dies_at_each_step_of_networks_and_volumes() {
    survives(&["network-create", "network-remove", "volume-create", "volume-remove"]);
}

#[test]
fn k01_the_daemon_dies_at_each_step_of_a_create() {
    survives(&["create"]);
}

#[test]
fn k01_the_daemon_dies_at_each_step_of_a_start() {
    survives(&["start"]);
}

#[test]
fn k01_the_daemon_dies_at_each_step_of_an_exec_or_an_update() {
    survives(&["exec", "rename", "update"]);
}

#[test]
fn k01_the_daemon_dies_at_each_step_of_an_end() {
    survives(&["stop", "exit", "remove"]);
}

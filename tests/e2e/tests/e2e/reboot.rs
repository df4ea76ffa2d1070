//! A host that was started anew: nothing of the exec root is there, and the
//! boot's id is another one (CATALOGUE K11).

use std::{fs, path::Path};

use knarr_harness::World;
use nix::{
    mount::{MsFlags, mount},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::world_of_both;

/// Ends everything and starts the daemon in another boot, perhaps without what
/// it knew.
fn reboot(world: &mut World, boot: &str, forget: bool) {
    world.kill_daemon();
    for name in ["state.db", "state.db-wal"] {
        if forget {
            fs::remove_file(world.data_root().join(name)).unwrap();
        }
    }
    let containers = world.exec_root().join("containers");
    for entry in fs::read_dir(&containers).unwrap() {
        let record = fs::read(entry.unwrap().path().join("init.json")).unwrap();
        let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
        for key in ["shim_pid", "pid"] {
            let pid = Pid::from_raw(record[key].as_i64().unwrap() as i32);
            let _ = kill(pid, Signal::SIGKILL);
            while Path::new(&format!("/proc/{pid}")).exists() {
                std::thread::yield_now();
            }
        }
    }
    fs::rename(world.exec_root(), world.path().join(format!("run before {boot}"))).unwrap();
    let file = world.path().join("boot_id");
    fs::write(&file, format!("{boot}\n")).unwrap();
    let none: Option<&str> = None;
    // In the test's own mount namespace.
    mount(Some(&file), "/proc/sys/kernel/random/boot_id", none, MsFlags::MS_BIND, none).unwrap();
    world.start_daemon().unwrap();
}

fn state(world: &World, name: &str) -> String {
    let format = "{{.State.Status}} {{.State.ExitCode}} {{.RestartCount}}";
    world.knarr(&["inspect", name, "--format", format]).ok()
}

#[test]
fn k11_after_a_reboot_policies_are_applied_once() {
    let mut world = world_of_both();
    let run = |world: &World, name: &str, flags: &[&str], rest: &[&str]| {
        world.knarr(&[&["run", "-d", "--name", name], flags, rest].concat()).ok();
    };
    let sleep = ["busybox", "sleep", "1000"];
    run(&world, "no", &[], &sleep);
    run(&world, "z-first", &["--restart", "always"], &sleep);
    run(&world, "a-second", &["--restart", "always", "--network", "container:z-first"], &sleep);
    run(&world, "of-2099", &["--restart", "always"], &sleep);
    run(&world, "of-today", &["--restart", "always", "--pid", "container:of-2099"], &sleep);
    run(&world, "unless", &["--restart", "unless-stopped"], &sleep);
    run(&world, "stopped", &["--restart", "unless-stopped"], &sleep);
    run(&world, "once", &["--rm"], &sleep);
    run(&world, "wasm", &["--restart", "always", "-p", "8081:8080"], &["web"]);
    run(&world, "wasm-no", &[], &["web"]);
    world
        .knarr(&["create", "--name", "idle", "--restart", "always", "busybox", "sleep", "1000"])
        .ok();
    world.knarr(&["stop", "-t", "0", "stopped"]).ok();
    made_in_2099(&mut world, "of-2099");
    let pid =
        |world: &World| world.knarr(&["inspect", "z-first", "--format", "{{.State.Pid}}"]).ok();

    for (number, forget) in [(1, false), (2, true)] {
        let before = pid(&world);
        reboot(&mut world, &format!("00000000-0000-4000-8000-00000000000{number}"), forget);
        for name in ["z-first", "a-second", "of-2099", "of-today", "unless", "wasm"] {
            while !state(&world, name).starts_with("running") {
                let log = world.daemon_log();
                assert!(!log.contains("start by policy"), "{log}");
                std::thread::yield_now();
            }
            assert_eq!(state(&world, name), "running 0 0", "{name}");
        }
        assert_ne!(pid(&world), before);
        assert_eq!(state(&world, "no"), "exited 255 0");
        assert_eq!(state(&world, "wasm-no"), "exited 255 0");
        assert_eq!(state(&world, "stopped"), "exited 137 0");
        assert_eq!(state(&world, "idle"), "created 0 0");
        while world.knarr(&["inspect", "once"]).code == 0 {
            std::thread::yield_now();
        }
        assert_eq!(world.knarr(&["exec", "a-second", "echo", "here"]).ok(), "here");
        recorded(&world);
    }
}

/// One that was made while the clock was wrong, and seems younger than who joins it.
fn made_in_2099(world: &mut World, name: &str) {
    world.kill_daemon();
    {
        let database = rusqlite::Connection::open(world.data_root().join("state.db")).unwrap();
        let change =
            "UPDATE containers SET created = '2099-01-01T00:00:00.000000000Z' WHERE name = ?1";
        assert_eq!(database.execute(change, [name]).unwrap(), 1);
    }
    world.start_daemon().unwrap();
    let created = world.knarr(&["inspect", name, "--format", "{{.Created}}"]).ok();
    assert!(created.starts_with("2099-"), "{created}");
}

/// Returns when the records of what runs say so.
fn recorded(world: &World) {
    let listed = world.knarr(&["ps", "-q", "--no-trunc"]).ok();
    for id in listed.lines() {
        let record = world.data_root().join("containers").join(id).join("container.json");
        while !fs::read_to_string(&record).is_ok_and(|text| text.contains(r#""status":"running""#))
        {
            std::thread::yield_now();
        }
    }
}

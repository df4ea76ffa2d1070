//! The engine ends and starts again, at any moment, by any clock, in any version.

use std::{
    fs,
    os::unix::fs::FileExt as _,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
};

use knarr_harness::World;
use knarr_state::Db;

use crate::{world, world_of_both};

fn status(world: &World, name: &str) -> String {
    world.knarr(&["inspect", name, "--format", "{{.State.Status}}"]).ok()
}

/// The daemon dies at each step of a run with `--rm`; the next one removes what was to be
/// removed, with its anonymous volumes.
fn leaves_nothing(points: &[&str]) {
    let mut world = world_of_both();
    for point in points {
        for image in [&["busybox", "true"][..], &["hello"]] {
            world.kill_daemon();
            let armed = format!("{point}=kill");
            world.start_daemon_with_env(&[("KNARR_FAILPOINTS", &armed)]).unwrap();
            let line = [&["run", "--rm", "-v", "/v"], image].concat();
            // Its client may have gone before.
            world.knarr(&line);
            world.await_daemon_end();
            world.start_daemon().unwrap();
            // One that runs ends by itself.
            while !world.knarr(&["ps", "-a", "-q"]).ok().is_empty() {
                std::thread::yield_now();
            }
            assert_eq!(world.knarr(&["volume", "ls", "-q"]).ok(), "", "{point} left a volume");
            for directory in [
                world.data_root().join("containers"),
                world.data_root().join("volumes"),
                world.exec_root().join("containers"),
            ] {
                let left: Vec<_> = fs::read_dir(&directory).unwrap().flatten().collect();
                assert!(left.is_empty(), "{point} left {left:?}");
            }
        }
    }
}

#[test]
fn p10_a_crash_in_a_start_leaves_nothing_of_what_was_to_be_removed() {
    leaves_nothing(&[
        "create.done",
        "start.begin",
        "start.bundle",
        "start.shim",
        "start.task",
        "start.network",
        "start.attach",
        "start.running",
        "start.done",
    ]);
}

#[test]
fn p10_a_crash_in_an_end_leaves_nothing_of_what_was_to_be_removed() {
    leaves_nothing(&[
        "exit.begin",
        "exit.row",
        "exit.network",
        "exit.task",
        "exit.bundle",
        "remove.row",
        "remove.snapshot",
        "remove.delete",
        "remove.volumes",
        "remove.done",
    ]);
}

#[test]
fn k12_verbs_in_flight_when_the_engine_dies_are_done_or_not() {
    const CONTAINERS: usize = 4;
    let mut world = world_of_both();
    for number in 0..CONTAINERS {
        let name = format!("c{number}");
        let image = if number == 0 { &["web"][..] } else { &["busybox", "sleep", "1000"] };
        world.knarr(&[&["create", "--name", &name], image].concat()).ok();
    }
    let socket = crate::raw::socket(&world);
    let (done, over) = (AtomicUsize::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for number in 0..CONTAINERS {
            let (socket, done, over) = (&socket, &done, &over);
            scope.spawn(move || {
                let verbs =
                    ["start", "pause", "unpause", "stop?t=0", "start", "restart?t=0", "kill"];
                for verb in verbs.iter().cycle() {
                    if over.load(Ordering::Relaxed) {
                        return;
                    }
                    attempt(socket, &format!("/containers/c{number}/{verb}"));
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for round in 1..=5 {
            // Some verbs later, in the middle of others.
            let target = done.load(Ordering::Relaxed) + 10 + round;
            while done.load(Ordering::Relaxed) < target {
                std::thread::yield_now();
            }
            world.kill_daemon();
            world.start_daemon().expect("it starts again");
        }
        over.store(true, Ordering::Relaxed);
    });
    world.kill_daemon();
    world.start_daemon().unwrap();
    for number in 0..CONTAINERS {
        let name = format!("c{number}");
        if status(&world, &name) == "paused" {
            world.knarr(&["unpause", &name]).ok();
        }
        if status(&world, &name) == "running" {
            let pid = world.knarr(&["inspect", &name, "--format", "{{.State.Pid}}"]).ok();
            let top = world.knarr(&["top", &name, "-o", "pid"]).ok();
            assert_eq!(top.split_whitespace().collect::<Vec<_>>(), ["PID", &pid], "{name} once");
        }
        world.knarr(&["restart", "-t", "0", &name]).ok();
        assert_eq!(status(&world, &name), "running");
        world.knarr(&["rm", "-f", &name]).ok();
    }
}

/// A verb whose answer is of no matter, at an engine that may be away.
fn attempt(socket: &std::path::Path, path: &str) {
    use std::io::{Read as _, Write as _};
    let Ok(mut stream) = std::os::unix::net::UnixStream::connect(socket) else {
        std::thread::yield_now();
        return;
    };
    let _ = stream.write_all(&crate::raw::request("POST", path, "", ""));
    let _ = stream.read_to_end(&mut Vec::new());
}

#[test]
fn k14_a_program_that_always_fails_is_said_to_restart_and_can_be_stopped() {
    let world = world_of_both();
    world.knarr(&["run", "-d", "--name", "one", "--restart", "always", "busybox", "false"]).ok();
    let shown = || world.knarr(&["ps", "-a", "--format", "{{.Status}}"]).ok();
    while !shown().starts_with("Restarting (1) ") {
        std::thread::yield_now();
    }
    world.knarr(&["stop", "-t", "0", "one"]).ok();
    assert_eq!(status(&world, "one"), "exited");
    world.knarr(&["rm", "one"]).ok();
}

/// Times in the rows are for show: those of a clock that was a year ahead or behind decide
/// nothing. (Waits and back-off go by the monotonic clock: `Instant` and tokio's timers.)
#[test]
fn k13_times_of_another_clock_are_only_shown() {
    let mut world = world();
    for (name, policy) in [("ahead", "always"), ("behind", "on-failure")] {
        let run = ["run", "-d", "--name", name, "--restart", policy, "busybox"];
        world.knarr(&[&run[..], &["sh", "-c", "echo up; exec sleep 1000"]].concat()).ok();
        while world.knarr(&["logs", name]).ok() != "up" {}
    }
    world.kill_daemon();
    {
        let db = Db::open(&world.data_root().join("state.db")).expect("the database");
        let (rows, _) = db.containers().expect("rows");
        for row in rows {
            let mut state = row.state.clone();
            let time = match row.name.as_str() {
                "ahead" => "2099-01-01T00:00:00.000000000Z",
                _ => "1971-01-01T00:00:00.000000000Z",
            };
            state.started_at = Some(time.into());
            state.finished_at = Some(time.into());
            db.set_container_state(&row.id, &state).expect("its state");
        }
    }
    world.start_daemon().unwrap();
    for name in ["ahead", "behind"] {
        assert_eq!(status(&world, name), "running");
        assert_eq!(world.knarr(&["logs", "--since", "1971-01-01T00:00:00Z", name]).ok(), "up");
        // By the host: its policy applies.
        let pid = world.knarr(&["inspect", name, "--format", "{{.State.Pid}}"]).ok();
        world.host_run("kill", &["-9", &pid]).ok();
        let count = || world.knarr(&["inspect", name, "--format", "{{.RestartCount}}"]).ok();
        while count() != "1" || status(&world, name) != "running" {
            std::thread::yield_now();
        }
        world.knarr(&["stop", "-t", "0", name]).ok();
    }
    for client in [world.knarr(&["ps", "-a"]), world.docker(&["ps", "-a"])] {
        assert_eq!(client.ok().lines().count(), 3);
    }
    let until = ["container", "prune", "-f", "--filter", "until=1972-01-01T00:00:00Z"];
    world.knarr(&until).ok();
    assert_eq!(world.knarr(&["ps", "-a", "-q"]).ok().lines().count(), 2, "created now");
}

/// Where SQLite keeps the schema's number (its file format, section 1.3).
const USER_VERSION: u64 = 60;

#[test]
fn k17_an_older_engine_refuses_a_newer_ones_data_and_touches_nothing() {
    let mut world = world();
    world.knarr(&["run", "-d", "--name", "one", "-v", "hold:/v", "busybox", "sleep", "1000"]).ok();
    world.knarr(&["exec", "one", "sh", "-c", "echo grain > /v/cargo"]).ok();
    let pid = world.knarr(&["inspect", "one", "--format", "{{.State.Pid}}"]).ok();
    world.stop_daemon();
    let path = world.data_root().join("state.db");
    // Whoever closes it last leaves all of it in one file.
    drop(Db::open(&path).expect("the database"));
    let file = fs::File::options().read(true).write(true).open(&path).unwrap();
    let mut version = [0; 4];
    file.read_exact_at(&mut version, USER_VERSION).unwrap();
    file.write_all_at(&9999_u32.to_be_bytes(), USER_VERSION).unwrap();
    let refused = world.start_daemon().expect_err("it does not start").to_string();
    assert!(refused.contains("schema 9999"), "{refused}");
    assert!(refused.contains("written by a newer knarrd"), "{refused}");
    world.await_daemon_end();
    file.write_all_at(&version, USER_VERSION).unwrap();
    world.start_daemon().unwrap();
    // The upgrade: what ran runs on, and nothing of it was touched.
    assert_eq!(world.knarr(&["inspect", "one", "--format", "{{.State.Pid}}"]).ok(), pid);
    assert_eq!(world.knarr(&["exec", "one", "cat", "/v/cargo"]).ok(), "grain");
}

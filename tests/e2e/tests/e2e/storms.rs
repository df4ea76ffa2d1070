//! Many at once: of processes, of runs, of containers, of questions.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
};

use knarr_harness::World;
use knarr_model::ContainerId;
use knarr_state::Db;
use serde_json::{Value, json};

use crate::{raw, world, world_of_both};

/// A file of a container's pids cgroup, of either version.
fn pids_file(world: &World, name: &str, file: &str) -> PathBuf {
    let pid = world.knarr(&["inspect", name, "--format", "{{.State.Pid}}"]).ok();
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("its cgroups");
    let path = |line: &str, mount: &str| {
        let group = line.splitn(3, ':').nth(2).expect("a path").trim_start_matches('/');
        Path::new("/sys/fs/cgroup").join(mount).join(group).join(file)
    };
    let v1 = groups.lines().find(|line| line.split(':').nth(1) == Some("pids"));
    match v1 {
        Some(line) => path(line, "pids"),
        None => path(groups.lines().find(|line| line.starts_with("0::")).expect("v2"), ""),
    }
}

#[test]
fn x01_a_fork_bomb_stays_in_its_container() {
    let world = world();
    // The first process needs no other one to stay.
    let bomb = "f() { f | f & }; f & exec sleep 1000";
    world
        .knarr(&["run", "-d", "--name", "bomb", "--pids-limit", "50", "busybox", "sh", "-c", bomb])
        .ok();
    let events = pids_file(&world, "bomb", "pids.events");
    let refused = || {
        let text = fs::read_to_string(&events).expect("pids.events");
        text.lines().any(|line| line.strip_prefix("max ").is_some_and(|count| count != "0"))
    };
    while !refused() {
        std::thread::yield_now();
    }
    let current = fs::read_to_string(pids_file(&world, "bomb", "pids.current")).expect("a number");
    assert!(current.trim().parse::<u32>().expect("a number") <= 50, "{current}");
    assert_eq!(world.knarr(&["run", "--rm", "busybox", "echo", "beside"]).ok(), "beside");
    world.knarr(&["stop", "-t", "0", "bomb"]).ok();
    assert_eq!(
        world.knarr(&["inspect", "bomb", "--format", "{{.State.Status}} {{.State.ExitCode}}"]).ok(),
        "exited 137"
    );
    // Who asks for no limit has one.
    world.knarr(&["run", "-d", "--name", "other", "busybox", "sleep", "1000"]).ok();
    let limit = fs::read_to_string(pids_file(&world, "other", "pids.max")).expect("a limit");
    assert_eq!(limit.trim(), "4096");
}

#[test]
fn x03_a_hundred_runs_at_once_all_succeed() {
    let world = world_of_both();
    let run = |number: usize| {
        let word = format!("number-{number}");
        let (run, want) = match number % 3 {
            0 => (world.knarr(&["run", "--rm", "busybox", "echo", &word]), word),
            1 => {
                let line = ["run", "--rm", "--network", "none", "busybox", "echo", &word];
                (world.knarr(&line), word)
            }
            _ => (world.knarr(&["run", "--rm", "hello"]), "hello".into()),
        };
        assert_eq!(run.code, 0, "{}: {}", run.line, run.stderr);
        assert!(run.stdout.contains(&want), "{}: {}", run.line, run.stdout);
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..100).map(|number| scope.spawn(move || run(number))).collect();
        let failed = threads.into_iter().filter_map(|thread| thread.join().err()).count();
        assert_eq!(failed, 0, "of a hundred");
    });
    assert_eq!(world.knarr(&["ps", "-a", "-q"]).ok(), "");
}

#[test]
fn x06_ten_thousand_stopped_containers_are_listed_and_removed() {
    const MANY: usize = 10_000;
    let mut world = world();
    world.knarr(&["create", "--name", "first", "busybox", "true"]).ok();
    world.stop_daemon();
    {
        let db = Db::open(&world.data_root().join("state.db")).expect("the database");
        let (mut rows, bad) = db.containers().expect("rows");
        assert!(bad.is_empty());
        let mut row = rows.remove(0);
        row.state.status = "exited".into();
        row.state.finished_at = Some(row.created.clone());
        for number in 0..MANY {
            row.id = format!("{number:064x}").parse::<ContainerId>().expect("an id");
            row.name = format!("n{number}").parse().expect("a name");
            db.insert_container(&row).expect("a row");
            let directory = world.data_root().join("containers").join(row.id.as_str());
            fs::create_dir(directory).expect("its directory");
            db.set_container_state(&row.id, &row.state).expect("its state");
        }
    }
    world.start_daemon().unwrap();
    assert_eq!(world.knarr(&["ps", "-a", "-q"]).ok().lines().count(), MANY + 1);
    assert_eq!(world.knarr(&["ps", "-q"]).ok(), "");
    let named = world.knarr(&["ps", "-a", "--filter", "name=^n9999$", "--format", "{{.Names}}"]);
    assert_eq!(named.ok(), "n9999");
    assert_eq!(
        world.docker(&["ps", "-a", "-q", "--filter", "status=exited"]).ok().lines().count(),
        MANY
    );
    assert_eq!(world.knarr(&["run", "--rm", "busybox", "echo", "one more"]).ok(), "one more");
    world.knarr(&["rm", "n0", "n9999"]).ok();
    assert_eq!(world.knarr(&["ps", "-a", "-q"]).ok().lines().count(), MANY - 1);
    // All the others go as they came: one by one they would take their time.
    world.stop_daemon();
    for entry in fs::read_dir(world.data_root().join("containers")).unwrap() {
        #[expect(clippy::disallowed_methods, reason = "trees of the test itself")]
        fs::remove_dir_all(entry.unwrap().path()).unwrap();
    }
    world.start_daemon().unwrap();
    assert_eq!(world.knarr(&["ps", "-a", "-q"]).ok(), "");
}

#[test]
fn i22_images_come_and_go_while_containers_are_made_of_them() {
    const ROUNDS: usize = 15;
    let world = World::new().expect("an engine");
    let base = knarr_harness::ImageBuilder::busybox().unwrap().next_layer();
    // Two images on one layer, and one of Wasm beside them.
    let archives: Vec<(String, Vec<u8>)> = ["a", "b"]
        .map(|name| {
            let image = base.clone().named(&format!("{name}:1")).file("/own", name, 0o644);
            (format!("{name}:1"), image.docker_archive())
        })
        .into_iter()
        .chain([(
            "hello:1".to_owned(),
            knarr_harness::ImageBuilder::wasm("hello:1", "hello").unwrap().docker_archive(),
        )])
        .collect();
    let (world, archives) = (&world, &archives);
    std::thread::scope(|scope| {
        for (name, archive) in archives {
            scope.spawn(move || {
                for _ in 0..ROUNDS {
                    let loaded = world.knarr_with_input(&["load"], archive);
                    // Somebody may have removed it before it was named to us.
                    let gone = loaded.stderr.contains("No such image");
                    assert!(loaded.code == 0 || gone, "{}", loaded.stderr);
                }
            });
            scope.spawn(move || {
                for _ in 0..ROUNDS {
                    world.knarr(&["rmi", "-f", name]);
                }
            });
            scope.spawn(move || {
                for _ in 0..2 * ROUNDS {
                    let command = if name == "hello:1" { &[][..] } else { &["cat", "/own"] };
                    let create = [&["create", "--pull", "never", name.as_str()], command].concat();
                    let created = world.knarr(&create);
                    if created.code != 0 {
                        let said = &created.stderr;
                        assert!(said.contains("No such image"), "{said}");
                        continue;
                    }
                    // What was made can be run, and has all of its layers.
                    let id = created.ok();
                    let output = world.knarr(&["start", "-a", &id]).ok();
                    assert!(output.contains(&name[..1]), "{name}: {output}");
                    world.knarr(&["rm", &id]).ok();
                }
            });
        }
        scope.spawn(|| {
            for _ in 0..ROUNDS {
                world.knarr(&["image", "prune", "-a", "-f"]).ok();
            }
        });
    });
    world.knarr(&["image", "prune", "-a", "-f"]).ok();
    assert_eq!(world.knarr(&["images", "-q"]).ok(), "");
}

/// Threads of the daemon.
fn threads(world: &World) -> usize {
    let pid = world.daemon_pid().expect("a daemon");
    fs::read_dir(format!("/proc/{pid}/task")).expect("its threads").count()
}

/// More than the pools of threads together may ever have.
const THREADS: usize = 100;

#[test]
fn x07_a_storm_of_execs_is_answered() {
    let world = world();
    world.knarr(&["run", "-d", "--name", "one", "busybox", "sleep", "1000"]).ok();
    std::thread::scope(|scope| {
        for number in 0..60 {
            let world = &world;
            scope.spawn(move || {
                let script = format!("echo {number}; exit {number}");
                let run = world.knarr(&["exec", "one", "sh", "-c", &script]);
                assert_eq!(
                    (run.code, run.stdout.trim()),
                    (number, &*number.to_string()),
                    "{}",
                    run.stderr
                );
            });
        }
    });
    assert!(threads(&world) < THREADS, "{}", threads(&world));
}

#[test]
fn x07_two_hundred_clients_follow_the_statistics() {
    let world = world_of_both();
    world.knarr(&["run", "-d", "--name", "native", "busybox", "sleep", "1000"]).ok();
    world.knarr(&["run", "-d", "--name", "wasm", "web"]).ok();
    let socket = raw::socket(&world);
    let follow = |number: usize| {
        let name = if number.is_multiple_of(2) { "native" } else { "wasm" };
        let mut stream = UnixStream::connect(&socket).unwrap();
        let path = format!("/containers/{name}/stats?stream=1");
        stream.write_all(&raw::request("GET", &path, "", "")).unwrap();
        BufReader::new(stream)
    };
    let mut clients: Vec<_> = (0..200).map(follow).collect();
    for _ in 0..2 {
        for client in &mut clients {
            let mut line = String::new();
            while !line.starts_with('{') {
                line.clear();
                assert_ne!(client.read_line(&mut line).unwrap(), 0, "a stream ended");
            }
            let sample: Value = serde_json::from_str(&line).expect("a sample");
            assert!(sample["pids_stats"]["current"].as_u64() >= Some(1), "{sample}");
        }
    }
    assert!(threads(&world) < THREADS, "{}", threads(&world));
    let body = json!({"Image": "busybox", "Cmd": ["true"]});
    assert_eq!(raw::send(&socket, "POST", "/containers/create?name=n", &body).status, 201);
    assert_eq!(raw::send(&socket, "POST", "/containers/n/start", &Value::Null).status, 204);
}

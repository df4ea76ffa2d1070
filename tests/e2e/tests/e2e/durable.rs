//! Nothing of a user's is lost, whatever became of the database.

use std::{
    collections::BTreeSet,
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
};

use knarr_harness::World;
use serde_json::Value;

use crate::{world, world_of_both};

/// What `ps -a` lists.
fn ids(world: &World) -> Vec<String> {
    let listed = world.knarr(&["ps", "-a", "-q", "--no-trunc"]).ok();
    let mut ids: Vec<String> = listed.lines().map(str::to_owned).collect();
    ids.sort();
    ids
}

fn id(world: &World, name: &str) -> String {
    world.knarr(&["inspect", name, "--format", "{{.Id}}"]).ok()
}

/// Everything that a user sees of what there is, process ids and addresses included.
fn picture(world: &World) -> String {
    let mut lines = Vec::new();
    let format = "{{.Id}} {{.Name}} {{.Image}} {{.State.Status}} {{.State.Pid}} {{.State.ExitCode}} \
                  {{.Created}} {{json .Config}} {{json .HostConfig}} {{json .Mounts}} \
                  {{json .NetworkSettings}}";
    for id in ids(world) {
        lines.push(world.knarr(&["inspect", &id, "--format", format]).ok());
    }
    for kind in ["volume", "network", "image"] {
        let list: &[&str] = match kind {
            "volume" => &["volume", "ls", "-q"],
            "network" => &["network", "ls", "-q", "--no-trunc"],
            _ => &["images", "-a", "-q", "--no-trunc"],
        };
        let listed = world.knarr(list).ok();
        for key in listed.lines().collect::<BTreeSet<_>>() {
            lines.push(world.knarr(&[kind, "inspect", key, "--format", "{{json .}}"]).ok());
        }
    }
    lines.join("\n")
}

/// What a record says.
fn said(path: &Path) -> Option<Value> {
    serde_json::from_str(fs::read_to_string(path).ok()?.lines().nth(1)?).ok()
}

fn record(world: &World, id: &str) -> PathBuf {
    world.data_root().join("containers").join(id).join("container.json")
}

/// Returns when all records say what the rows say.
fn recorded(world: &World) {
    for id in ids(world) {
        let status = || world.knarr(&["inspect", &id, "--format", "{{.State.Status}}"]).ok();
        let bundle = world.exec_root().join("containers").join(&id);
        let recorded = || {
            let record = said(&record(world, &id))?;
            record["row"]["state"]["status"].as_str().map(str::to_owned)
        };
        let network = |status: &str| {
            !matches!(status, "running" | "paused") || bundle.join("network.json").exists()
        };
        loop {
            let status = status();
            if recorded().as_ref() == Some(&status) && network(&status) {
                break;
            }
        }
    }
}

fn get(address: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap_or_else(|e| panic!("{address}: {e}"));
    write!(stream, "GET / HTTP/1.0\r\nHost: {address}\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn warnings(world: &World) -> String {
    world.knarr(&["info", "--format", "{{json .Warnings}}"]).ok()
}

fn named(world: &World, begin: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(world.data_root()).unwrap().flatten().map(|entry| entry.path());
    let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
    let mut found: Vec<PathBuf> = entries
        .filter(|path| name(path).starts_with(begin) && !name(path).ends_with("-wal"))
        .collect();
    found.sort();
    found
}

/// One container in each state, of both kinds, with everything that they can have.
fn town() -> World {
    let world = world_of_both();
    world.knarr(&["network", "create", "--subnet", "10.77.0.0/24", "harbour"]).ok();
    world.knarr(&["volume", "create", "--label", "of=me", "hold"]).ok();
    world.knarr(&["tag", "busybox", "example.test/tool:2"]).ok();
    let serve = "mkdir /www; echo here > /www/index.html; echo grain > /hold/cargo; echo mine > /own; \
                 httpd -p 8000 -h /www; exec sleep 1000";
    world
        .knarr(&[
            "run",
            "-d",
            "--name",
            "native",
            "--network",
            "harbour",
            "--network-alias",
            "nat",
            "--ip",
            "10.77.0.9",
            "-p",
            "8080:8000",
            "-v",
            "hold:/hold",
            "-v",
            "/anonymous",
            "-e",
            "A=b",
            "-l",
            "k=v",
            "--restart",
            "unless-stopped",
            "busybox",
            "sh",
            "-c",
            serve,
        ])
        .ok();
    world
        .knarr(&["run", "-d", "--name", "wasm", "-p", "8081:8080", "-v", "hold:/hold", "web"])
        .ok();
    world.knarr(&["create", "--name", "idle", "-m", "64m", "busybox", "true"]).ok();
    world.knarr(&["run", "--name", "done", "busybox", "sh", "-c", "echo said; exit 3"]).fails(3);
    world.knarr(&["run", "-d", "--name", "still", "busybox", "sleep", "1000"]).ok();
    world.knarr(&["pause", "still"]).ok();
    // They answer before anything is done to them.
    let fetch = "until wget -q -O - http://127.0.0.1:8000/; do :; done";
    world.knarr(&["exec", "native", "sh", "-c", fetch]).ok();
    while TcpStream::connect("127.0.0.1:8081").is_err() {
        std::thread::yield_now();
    }
    recorded(&world);
    world
}

/// Everything of the town can be used.
fn lives(world: &World) {
    assert!(get("127.0.0.1:8080").contains("here"));
    assert!(get("127.0.0.1:8081").contains("hello"), "the Wasm service answers");
    assert_eq!(world.knarr(&["exec", "native", "cat", "/hold/cargo", "/own"]).ok(), "grain\nmine");
    assert_eq!(world.knarr(&["logs", "done"]).ok(), "said");
    let fetch = ["wget", "-q", "-O", "-", "http://nat:8000/"];
    let flags = ["run", "--rm", "--network", "harbour", "busybox"];
    assert_eq!(world.knarr(&[&flags[..], &fetch[..]].concat()).ok(), "here", "names are known");
}

/// Cuts a file to so many thousandths.
fn cut(path: &Path, share: u64) {
    let file = fs::File::options().write(true).open(path).unwrap();
    let length = file.metadata().unwrap().len();
    file.set_len(length * share / 1000).unwrap();
}

fn garbage(path: &Path) {
    let noise: Vec<u8> = (0..100_000).map(|at| (at * 7919 % 251) as u8).collect();
    fs::write(path, noise).unwrap();
}

fn remove_database(root: &Path) {
    for name in ["state.db", "state.db-wal", "state.db-shm"] {
        let _ = fs::remove_file(root.join(name));
    }
}

/// What is done to a data root, and whether a database is moved aside for it;
/// none where that depends on what the log has and on what is behind the cut.
type Damage = (&'static str, Option<bool>, fn(&Path));

const DAMAGES: &[Damage] = &[
    ("moved away", Some(false), remove_database),
    ("moved away without its log", Some(false), |root| {
        fs::remove_file(root.join("state.db")).unwrap()
    }),
    ("emptied", Some(true), |root| cut(&root.join("state.db"), 0)),
    ("cut to a hundredth", None, |root| cut(&root.join("state.db"), 10)),
    ("cut to a half", None, |root| cut(&root.join("state.db"), 500)),
    ("garbage", Some(true), |root| garbage(&root.join("state.db"))),
    ("garbage behind a good beginning", Some(true), |root| {
        let path = root.join("state.db");
        let mut bytes = fs::read(&path).unwrap();
        for byte in &mut bytes[100..] {
            *byte = byte.wrapping_mul(31).wrapping_add(17);
        }
        fs::write(&path, bytes).unwrap();
        fs::remove_file(root.join("state.db-wal")).unwrap();
    }),
    ("a log of garbage", Some(false), |root| garbage(&root.join("state.db-wal"))),
    ("a log that is gone", Some(false), |root| fs::remove_file(root.join("state.db-wal")).unwrap()),
];

#[test]
fn k08_a_lost_or_damaged_database_loses_nothing() {
    let mut world = town();
    let before = picture(&world);
    for (at, (what, aside, damage)) in DAMAGES.iter().enumerate() {
        let known = named(&world, "state.db.damaged-");
        if at % 2 == 0 {
            world.kill_daemon()
        } else {
            world.stop_daemon()
        }
        damage(&world.data_root());
        world.start_daemon().unwrap();
        assert_eq!(picture(&world), before, "{what}");
        lives(&world);
        let now = named(&world, "state.db.damaged-");
        if let Some(aside) = aside {
            assert_eq!(now.len(), known.len() + usize::from(*aside), "{what}: {now:?}");
        }
        for path in now {
            assert!(warnings(&world).contains(&*path.to_string_lossy()), "{what}");
        }
    }
    // And everything can go as ever.
    for name in ["native", "wasm", "idle", "done", "still"] {
        world.knarr(&["rm", "-f", "-v", name]).ok();
    }
    world.knarr(&["volume", "rm", "hold"]).ok();
    world.knarr(&["network", "rm", "harbour"]).ok();
    assert_eq!(world.knarr(&["volume", "ls", "-q"]).ok(), "");
    world.kill_daemon();
    remove_database(&world.data_root());
    world.start_daemon().unwrap();
    assert_eq!(ids(&world), [""; 0], "what was removed stays removed");
    assert_eq!(world.knarr(&["volume", "ls", "-q"]).ok(), "");
    assert!(!world.knarr(&["network", "ls"]).ok().contains("harbour"));
}

/// Copies the database of a daemon that has ended: the file alone has everything.
fn copy_database(world: &World, copy: &Path) {
    let log = fs::read(world.data_root().join("state.db-wal")).unwrap();
    assert_eq!(log[..32], [0; 32], "its log says nothing any more");
    fs::copy(world.data_root().join("state.db"), copy).unwrap();
}

#[test]
fn k08_an_older_database_is_brought_up_to_date() {
    let mut world = town();
    world.knarr(&["create", "--name", "gone", "-v", "old:/v", "busybox"]).ok();
    world.knarr(&["volume", "create", "unused"]).ok();
    world.knarr(&["tag", "busybox", "moving:1"]).ok();
    world.stop_daemon();
    let copy = world.path().join("copy");
    copy_database(&world, &copy);
    // It is an older one only if its rows are there, and would be believed.
    let rows: u32 = rusqlite::Connection::open(&copy)
        .unwrap()
        .query_row(
            "SELECT count(*) FROM containers WHERE name IN ('gone', 'idle', 'wasm')",
            [],
            |row| row.get(0),
        )
        .unwrap();
    assert_eq!(rows, 3);
    world.start_daemon().unwrap();

    world.knarr(&["rm", "gone"]).ok();
    world.knarr(&["volume", "rm", "old", "unused"]).ok();
    world.knarr(&["volume", "create", "new"]).ok();
    world.knarr(&["run", "--rm", "-v", "new:/v", "busybox", "touch", "/v/file"]).ok();
    world.knarr(&["network", "create", "quay"]).ok();
    world.knarr(&["rename", "idle", "busy"]).ok();
    world.knarr(&["create", "--name", "idle", "--network", "quay", "-v", "new:/v", "busybox"]).ok();
    world.knarr(&["stop", "-t", "0", "wasm"]).ok();
    world.knarr(&["tag", "hello", "moving:1"]).ok();
    world.knarr(&["network", "connect", "quay", "native"]).ok();
    recorded(&world);
    let before = picture(&world);

    for polite in [true, false] {
        if polite {
            world.stop_daemon()
        } else {
            world.kill_daemon()
        }
        remove_database(&world.data_root());
        fs::copy(&copy, world.data_root().join("state.db")).unwrap();
        world.start_daemon().unwrap();
        assert_eq!(picture(&world), before);
        assert!(world.data_root().join("volumes/new/_data/file").exists());
        assert_eq!(named(&world, "state.db.damaged-"), [""; 0].map(PathBuf::from));
        let image = |name: &str| world.knarr(&["inspect", name, "--format", "{{.Id}}"]).ok();
        assert_eq!(image("moving:1"), image("hello"), "the name's last word");
    }
}

#[test]
fn k08_a_data_root_that_is_not_there_ends_nothing() {
    let mut world = town();
    let before = picture(&world);
    let pid = world.knarr(&["inspect", "native", "--format", "{{.State.Pid}}"]).ok();
    let native = id(&world, "native");
    world.kill_daemon();
    let away = world.path().join("away");
    fs::rename(world.data_root(), &away).unwrap();
    world.start_daemon().unwrap();
    assert_eq!(ids(&world), [""; 0]);
    assert!(Path::new("/proc").join(&pid).exists(), "it runs on");
    assert!(warnings(&world).contains(&native), "{}", warnings(&world));
    world.kill_daemon();
    fs::rename(world.data_root(), world.path().join("empty")).unwrap();
    fs::rename(&away, world.data_root()).unwrap();
    world.start_daemon().unwrap();
    assert_eq!(picture(&world), before);
    assert_eq!(world.knarr(&["exec", "native", "cat", "/hold/cargo", "/own"]).ok(), "grain\nmine");
}

/// The records of everything that there is.
fn records(world: &World) -> Vec<PathBuf> {
    let root = world.data_root();
    let mut found = Vec::new();
    for directory in ["images", "networks"] {
        found.extend(fs::read_dir(root.join(directory)).unwrap().map(|e| e.unwrap().path()));
    }
    for (directory, name) in [("volumes", "volume.json"), ("containers", "container.json")] {
        for entry in fs::read_dir(root.join(directory)).unwrap() {
            found.push(entry.unwrap().path().join(name));
        }
    }
    found
}

#[test]
fn k05_damaged_records_are_mended_from_their_rows() {
    let mut world = town();
    let before = picture(&world);
    let content = |path: &PathBuf| said(path);
    let whole: Vec<_> = records(&world).iter().map(content).collect();
    assert!(whole.iter().all(Option::is_some), "{whole:?}");
    for damage in [
        |path: &Path| cut(path, 0),
        |path: &Path| cut(path, 500),
        garbage,
        |path: &Path| {
            fs::remove_file(path).unwrap();
        },
    ] {
        world.kill_daemon();
        for path in records(&world) {
            damage(&path);
        }
        world.start_daemon().unwrap();
        assert_eq!(picture(&world), before);
        assert_eq!(warnings(&world).matches("cannot").count(), 0, "{}", warnings(&world));
        recorded(&world);
        for (path, whole) in records(&world).iter().zip(&whole) {
            let mut now = content(path).unwrap();
            let mut then = whole.clone().unwrap();
            for record in [&mut now, &mut then] {
                // A container's goes on counting.
                record.as_object_mut().unwrap().remove("revision");
            }
            assert_eq!(now, then, "{}", path.display());
        }
    }
}

/// Makes a network that nobody is on: nothing but its id keeps its bridge.
fn quiet_network(world: &World) {
    world.knarr(&["network", "create", "--subnet", "10.78.0.0/24", "quiet"]).ok();
    assert_eq!(bridges(world), [true, true]);
}

/// Whether the harbour's bridge is there, and the quiet network's.
fn bridges(world: &World) -> [bool; 2] {
    let addresses = world.host_run("ip", &["-o", "addr"]).ok();
    ["10.77.0.1/", "10.78.0.1/"].map(|gateway| addresses.contains(gateway))
}

#[test]
fn k05_what_cannot_be_read_at_all_is_left_alone_and_told() {
    let mut world = town();
    quiet_network(&world);
    let native = id(&world, "native");
    let done = id(&world, "done");
    let pid = world.knarr(&["inspect", "native", "--format", "{{.State.Pid}}"]).ok();
    world.kill_daemon();
    remove_database(&world.data_root());
    for path in records(&world) {
        garbage(&path);
    }
    world.start_daemon().unwrap();
    // Volumes and images are known by their content, the rest by its number.
    let names = world.knarr(&["volume", "ls", "-q"]).ok();
    assert!(names.lines().any(|name| name == "hold"), "{names}");
    assert_eq!(world.knarr(&["images", "-a", "-q"]).ok().lines().count(), 3);
    assert_eq!(ids(&world), [""; 0]);
    let told = warnings(&world);
    assert!(told.contains(&native) && told.contains(&done) && told.contains("hold"), "{told}");
    assert!(Path::new("/proc").join(&pid).exists(), "it runs on");
    assert_eq!(bridges(&world), [true, true], "they stay, whoever is on them");
    let containers = world.data_root().join("containers");
    assert_eq!(fs::read_to_string(containers.join(&native).join("upper/own")).unwrap(), "mine\n");
    assert!(containers.join(&done).join("json.log").exists());
    let hold = world.data_root().join("volumes/hold/_data/cargo");
    assert_eq!(fs::read_to_string(hold).unwrap(), "grain\n");
    // The engine works beside it.
    world.load(&knarr_harness::ImageBuilder::busybox().unwrap().docker_archive());
    assert_eq!(world.knarr(&["run", "--rm", "busybox", "echo", "works"]).ok(), "works");
    let told = warnings(&world);
    world.kill_daemon();
    world.start_daemon().unwrap();
    assert!(warnings(&world).contains(&native), "it is told again: {told}");
}

/// Changes rows as no version of the daemon does.
fn change_rows(world: &World, statements: &str) {
    let database = rusqlite::Connection::open(world.data_root().join("state.db")).unwrap();
    database.execute_batch(statements).unwrap();
}

const BAD_ROWS: &str = "
    UPDATE containers SET spec = '{' WHERE name = 'native';
    UPDATE containers SET resolved = '{\"argv\": 7}' WHERE name = 'wasm';
    UPDATE containers SET status = 'dancing' WHERE name = 'done';
    UPDATE containers SET image = image, workload = '{}' WHERE name = 'still';
    UPDATE volumes SET labels = '[' WHERE name = 'hold';
    UPDATE networks SET data = '{}';
    UPDATE endpoints SET data = '{}';
    UPDATE images SET workload = '?';
";

#[test]
fn k05_bad_rows_are_mended_from_their_records() {
    let mut world = town();
    let before = picture(&world);
    for polite in [true, false] {
        if polite {
            world.stop_daemon()
        } else {
            world.kill_daemon()
        }
        change_rows(&world, BAD_ROWS);
        world.start_daemon().unwrap();
        assert_eq!(picture(&world), before);
        lives(&world);
    }
}

#[test]
fn k05_bad_rows_without_records_are_left_alone_and_told() {
    let mut world = town();
    quiet_network(&world);
    let (native, idle) = (id(&world, "native"), id(&world, "idle"));
    let pid = world.knarr(&["inspect", "native", "--format", "{{.State.Pid}}"]).ok();
    world.kill_daemon();
    for path in records(&world) {
        fs::remove_file(path).unwrap();
    }
    change_rows(&world, BAD_ROWS);
    world.start_daemon().unwrap();
    assert_eq!(ids(&world), [idle.as_str()], "the one whose row is good");
    assert!(Path::new("/proc").join(&pid).exists(), "it runs on");
    assert!(warnings(&world).contains(&native), "{}", warnings(&world));
    let own = world.data_root().join("containers").join(&native).join("upper/own");
    assert_eq!(fs::read_to_string(own).unwrap(), "mine\n");
    assert_eq!(bridges(&world), [true, true], "they stay, whoever is on them");
    world.knarr(&["volume", "inspect", "hold"]).ok();
    assert_eq!(world.knarr(&["run", "--rm", "busybox", "echo", "works"]).ok(), "works");
}

/// Sets or takes the attribute of immutable files (chattr(1), which every host has).
fn immutable(world: &World, on: bool, path: &Path) {
    world.host_run("chattr", &[if on { "+i" } else { "-i" }, &path.to_string_lossy()]).ok();
}

/// All files below a directory that have this name.
fn find(world: &World, name: &str) -> Vec<PathBuf> {
    let root = world.data_root();
    // It complains of what is being deleted while it looks.
    let found = world.host_run("find", &[&root.to_string_lossy(), "-name", name]);
    found.stdout.lines().map(PathBuf::from).collect()
}

#[test]
fn k09_what_cannot_be_deleted_keeps_nothing_from_going_on() {
    let mut world = world();
    world
        .knarr(&[
            "run",
            "--name",
            "one",
            "-v",
            "hold:/hold",
            "busybox",
            "sh",
            "-c",
            "touch /stuck-upper /hold/stuck-volume",
        ])
        .ok();
    world.knarr(&["create", "--name", "two", "busybox"]).ok();
    let two = world.data_root().join("containers").join(id(&world, "two"));
    for name in ["stuck-upper", "stuck-volume"] {
        immutable(&world, true, &find(&world, name)[0]);
    }
    // Not even its name can be changed.
    immutable(&world, true, &two);

    world.knarr(&["rm", "-f", "one"]).ok();
    world.knarr(&["rm", "-f", "two"]).ok();
    world.knarr(&["volume", "rm", "hold"]).ok();
    for restart in [false, true, true] {
        if restart {
            world.kill_daemon();
            world.start_daemon().unwrap();
            assert!(warnings(&world).contains("trash-"), "{}", warnings(&world));
            assert!(warnings(&world).contains(&*two.to_string_lossy()), "{}", warnings(&world));
        }
        assert!(warnings(&world).contains(".removed-"), "{}", warnings(&world));
        assert_eq!(ids(&world), [""; 0]);
        assert_eq!(world.knarr(&["volume", "ls", "-q"]).ok(), "");
    }
    // The name is free, and the volume of that name is another one.
    world
        .knarr(&[
            "run",
            "--rm",
            "-v",
            "hold:/hold",
            "busybox",
            "test",
            "!",
            "-e",
            "/hold/stuck-volume",
        ])
        .ok();

    immutable(&world, false, &two);
    for name in ["stuck-upper", "stuck-volume"] {
        immutable(&world, false, &find(&world, name)[0]);
    }
    world.kill_daemon();
    world.start_daemon().unwrap();
    assert_eq!(find(&world, "stuck-*"), [""; 0].map(PathBuf::from));
    assert!(!two.exists());
    assert!(!warnings(&world).contains("trash-"), "{}", warnings(&world));
    assert!(!warnings(&world).contains(".removed-"), "{}", warnings(&world));
}

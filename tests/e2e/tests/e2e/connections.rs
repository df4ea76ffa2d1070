//! Connections of clients: what they are owed at their end, and what they may cost.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::Path,
};

use knarr_harness::World;
use nix::sys::resource::{Resource, setrlimit};
use serde_json::{Value, json};

use crate::{raw, world, world_of_both};

/// More than all that lies between a client and a program can hold.
const MUCH: usize = 4 << 20;

#[test]
fn p12_input_left_unread_does_not_cost_an_exec_its_exit_code() {
    let world = world();
    world.knarr(&["run", "-d", "--name", "one", "busybox", "sleep", "1000"]).ok();
    let input = vec![b'z'; MUCH];
    for _ in 0..10 {
        let exec = ["exec", "-i", "one", "sh", "-c", "exit 7"];
        for run in [
            world.docker_with_input(&exec, &input),
            world.knarr_with_input(&exec, &input),
            // It read some of it.
            world.docker_with_input(
                &["exec", "-i", "one", "sh", "-c", "head -n 1; exit 7"],
                b"a\nb\n",
            ),
        ] {
            assert_eq!((run.code, run.stderr.as_str()), (7, ""), "{}", run.line);
        }
    }
}

#[test]
fn p12_input_left_unread_does_not_cost_a_run_its_exit_code() {
    let world = world_of_both();
    let input = vec![b'z'; MUCH];
    for image in [&["busybox", "sh", "-c", "echo out; exit 7"][..], &["hello"]] {
        let code = if image.len() > 1 { 7 } else { 0 };
        let line = [&["run", "--rm", "-i", "--network", "none"], image].concat();
        for _ in 0..5 {
            for run in
                [world.docker_with_input(&line, &input), world.knarr_with_input(&line, &input)]
            {
                assert_eq!((run.code, run.stderr.as_str()), (code, ""), "{}", run.line);
                assert!(!run.stdout.is_empty(), "{}", run.line);
            }
        }
    }
}

/// The engine answers what it must, says that nothing more comes, and only then is the
/// connection gone: by hand, over both kinds of sockets.
#[test]
fn p03_a_stream_ends_with_an_end_and_no_reset() {
    let world = World::with_arguments(&["--host", "tcp://127.0.0.1:2399"]).expect("an engine");
    world.load(&knarr_harness::ImageBuilder::busybox().unwrap().docker_archive());
    world.knarr(&["run", "-d", "--name", "one", "busybox", "sleep", "1000"]).ok();
    let socket = raw::socket(&world);
    for tcp in [false, true] {
        let asked = json!({
            "AttachStdin": true, "AttachStdout": true, "AttachStderr": true,
            "Cmd": ["sh", "-c", "echo last words; exit 7"],
        });
        let exec = raw::send(&socket, "POST", "/containers/one/exec", &asked).json();
        let id = exec["Id"].as_str().expect("an id").to_owned();
        let path = format!("/exec/{id}/start");
        let output = if tcp {
            let stream = std::net::TcpStream::connect("127.0.0.1:2399").unwrap();
            unread(stream, &path)
        } else {
            unread(UnixStream::connect(&socket).unwrap(), &path)
        };
        assert!(output.ends_with(b"\x01\0\0\0\0\0\0\x0blast words\n"), "{output:?}");
        let after = raw::send(&socket, "GET", &format!("/exec/{id}/json"), &Value::Null).json();
        assert_eq!(after["ExitCode"], 7);
    }
}

/// Starts an exec whose program reads nothing, and sends it much; answers all output.
fn unread(mut stream: impl std::io::Read + std::io::Write, path: &str) -> Vec<u8> {
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{{}}"
    );
    stream.write_all(head.as_bytes()).unwrap();
    // So much that the engine has some of it when the program ends, and none of it
    // keeps us from reading.
    stream.write_all(&[b'z'; 50_000]).unwrap();
    let mut output = Vec::new();
    stream.read_to_end(&mut output).expect("output and its end");
    output
}

#[test]
fn a02_who_is_refused_while_sending_hears_why() {
    let world = world();
    let socket = raw::socket(&world);
    let big = "x".repeat(8 << 20);
    let answer = raw::exchange(&socket, &raw::request("POST", "/containers/create", "", &big));
    assert_eq!(answer.status, 413, "{}", answer.head);
}

/// Descriptors of the daemon.
fn descriptors(world: &World) -> usize {
    let pid = world.daemon_pid().expect("a daemon");
    fs::read_dir(format!("/proc/{pid}/fd")).expect("its descriptors").count()
}

#[test]
fn a03_clients_that_vanish_leave_nothing_open() {
    let world = world();
    world.knarr(&["run", "-d", "-i", "--name", "one", "busybox", "sleep", "1000"]).ok();
    let socket = raw::socket(&world);
    let cycle = || {
        let asked = json!({"AttachStdin": true, "AttachStdout": true, "Cmd": ["cat"]});
        let exec = raw::send(&socket, "POST", "/containers/one/exec", &asked).json();
        let id = exec["Id"].as_str().expect("an id").to_owned();
        // Each goes without a word.
        drop(raw::hijack(&socket, &format!("/exec/{id}/start"), &json!({})));
        drop(raw::hijack(
            &socket,
            "/containers/one/attach?stream=1&stdin=1&stdout=1",
            &Value::Null,
        ));
        drop(UnixStream::connect(&socket).unwrap());
        for half in
            ["GET /_ping HT", "POST /containers/create HTTP/1.1\r\nContent-Length: 9\r\n\r\n{"]
        {
            UnixStream::connect(&socket).unwrap().write_all(half.as_bytes()).unwrap();
        }
        let resize = format!("/exec/{id}/resize?h=1&w=1");
        UnixStream::connect(&socket)
            .unwrap()
            .write_all(&raw::request("POST", &resize, "", ""))
            .unwrap();
        let events = b"GET /events HTTP/1.1\r\nHost: docker\r\n\r\n";
        UnixStream::connect(&socket).unwrap().write_all(events).unwrap();
    };
    // What is opened once and kept is no leak.
    cycle();
    let before = descriptors(&world);
    for _ in 0..40 {
        cycle();
    }
    // What ends by looking for its client ends soon, and all of it does.
    while descriptors(&world) > before + 5 {
        std::thread::yield_now();
    }
}

#[test]
fn a03_idle_clients_leave_descriptors_for_containers() {
    // For the engine, which is started from here.
    setrlimit(Resource::RLIMIT_NOFILE, 400, 400).expect("a small limit");
    let world = world();
    let socket = raw::socket(&world);
    let mut first = raw::Connection::open(&socket);
    assert_eq!(first.ask("GET", "/_ping", "").0, 200);
    let idle: Vec<UnixStream> = (0..380).filter_map(|_| queued(&socket)).collect();
    assert!(idle.len() > 200, "{}", idle.len());
    let body = json!({"Image": "busybox", "Cmd": ["sleep", "1000"]}).to_string();
    assert_eq!(first.ask("POST", "/containers/create?name=one", &body).0, 201);
    let (status, said) = first.ask("POST", "/containers/one/start", "");
    assert_eq!(status, 204, "{said}");
    drop(idle);
    assert_eq!(world.knarr(&["exec", "one", "echo", "fine"]).ok(), "fine");
}

/// A connection that does nothing; none where the kernel's queue is full.
fn queued(socket: &Path) -> Option<UnixStream> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket as open};
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let stream = open(AddressFamily::Unix, SockType::Stream, flags, None).ok()?;
    let address = UnixAddr::new(socket).ok()?;
    connect(std::os::fd::AsRawFd::as_raw_fd(&stream), &address).ok()?;
    Some(stream.into())
}

#[test]
fn a09_a_client_that_does_not_read_its_events_stalls_nobody() {
    let world = world();
    // Each event says it.
    let label = format!("big={}", "x".repeat(32 << 10));
    world.knarr(&["create", "--name", "n0", "--label", &label, "busybox"]).ok();
    let socket = raw::socket(&world);
    let follow = || {
        let mut stream = UnixStream::connect(&socket).unwrap();
        stream.write_all(&raw::request("GET", "/events", "", "")).unwrap();
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        while line != "\r\n" {
            line.clear();
            reader.read_line(&mut line).unwrap();
        }
        reader
    };
    let mut stuck = follow();
    let mut other = follow();
    let mut line = String::new();
    for number in 0..1000 {
        let path = format!("/containers/n{number}/rename?name=n{}", number + 1);
        assert_eq!(raw::send(&socket, "POST", &path, &Value::Null).status, 204);
        line.clear();
        other.read_line(&mut line).unwrap();
        let event: Value = serde_json::from_str(&line).expect("an event");
        assert_eq!(event["Actor"]["Attributes"]["name"], format!("n{}", number + 1));
    }
    // It was let go: there is an end, and no gap that nobody sees.
    let mut late = Vec::new();
    stuck.read_to_end(&mut late).expect("events and an end");
    let seen = late.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    for (number, event) in seen.enumerate() {
        let event: Value = serde_json::from_slice(event).expect("an event");
        assert_eq!(event["Actor"]["Attributes"]["name"], format!("n{}", number + 1));
    }
    assert!(world.daemon_log().contains("a listener of events does not read"));
}

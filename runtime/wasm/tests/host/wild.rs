//! What guests may try beside their work, and what is in their way.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    thread,
};

use knarr_harness::evil_wasm::http_service;
use knarr_sys::ProcessStat;
use rustix::fs::{CWD, FileType, Mode, mknodat};

use crate::{
    commands::command,
    http::Service,
    support::{Case, end, prebuilt, signal, wait_for},
};

#[test]
fn w06_a_flood_of_host_calls_holds_nobody_up() {
    // A command ends by signal, whatever it asks for.
    let flood = "(call $ready) (loop
        (drop (call $write (i32.const 1) (i32.const 0) (i32.const 0) (i32.const 8))) (br 0))";
    let case = command(flood);
    let mut child = case.spawn("run");
    wait_for(child.stdout.as_mut().unwrap(), "ready");
    signal(&child, "TERM");
    assert_eq!(end(child).code, 143);
    // More services than the host has threads: they take turns with who accepts.
    let flood = "(loop (drop (call $random (i64.const 0))) (br 0))";
    let flood = wat::parse_str(http_service(flood)).unwrap();
    let service = Service::start(&flood, |case| case);
    let asking: Vec<TcpStream> = (0..12)
        .map(|_| {
            let mut stream = service.connect();
            stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
            stream
        })
        .collect();
    for _ in 0..10 {
        let mut stream = service.connect();
        stream.write_all(b"NONSENSE\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    }
    drop(asking);
    assert_eq!(service.stop().code, 0);
}

#[test]
fn w10_files_that_block_hold_up_their_own_guest_only() {
    // A command that opens a pipe that nobody writes to ends by signal.
    let case = Case::prebuilt("preview1-command", "hello").preopen("/data", true);
    let pipe = case.path("/data/pipe");
    mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    fs::write(case.path("/data/ready"), "ready\n").unwrap();
    let case = case.args(&["cat", "/data/ready", "/data/pipe"]);
    let mut child = case.spawn("run");
    wait_for(child.stdout.as_mut().unwrap(), "ready");
    // The next file that it opens is the pipe, and there it waits: its main thread.
    let opening = [libc::SYS_openat, libc::SYS_openat2].map(|call| call.to_string());
    let calls = || fs::read_to_string(format!("/proc/{}/syscall", child.id())).unwrap();
    while !calls().split(' ').next().is_some_and(|call| opening.iter().any(|one| one == call)) {
        thread::yield_now();
    }
    signal(&child, "TERM");
    assert_eq!(end(child).code, 143);
    // A service whose file is a pipe: more requests than threads wait, the others go on.
    let service = Service::start(&prebuilt("web"), |case| {
        let case = case.preopen("/data", false);
        let visits = case.path("/data/visits");
        mknodat(CWD, &visits, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        case
    });
    let blocked: Vec<TcpStream> = (0..12)
        .map(|_| {
            let mut stream = service.connect();
            stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
            stream
        })
        .collect();
    for _ in 0..10 {
        assert_eq!(service.get("/env").0, 200);
    }
    drop(blocked);
    // The second signal waits for nobody.
    service.signal("TERM");
    service.signal("TERM");
    assert!(matches!(service.stop().code, 0 | 143));
}

#[test]
fn w11_streams_that_are_closed_or_renumbered_are_errors_of_the_guests() {
    // Each call and the error number that it is to answer; the code counts those that do not.
    let calls = [
        // Renumbering onto itself, from and onto what is not there.
        ("(call $renumber (i32.const 1) (i32.const 1))", 0),
        ("(call $renumber (i32.const 99) (i32.const 1))", 8),
        ("(call $renumber (i32.const 1) (i32.const 99))", 8),
        // The preopened directory over standard input, and the other way round.
        ("(call $renumber (i32.const 3) (i32.const 0))", 0),
        ("(call $close (i32.const 3))", 8),
        ("(call $close (i32.const 0))", 0),
        ("(call $close (i32.const 0))", 8),
        ("(call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8))", 8),
        ("(call $close (i32.const 1))", 0),
        ("(call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8))", 8),
        ("(call $renumber (i32.const 2) (i32.const 1))", 8),
        ("(call $close (i32.const 2))", 0),
        ("(call $close (i32.const -1))", 8),
    ];
    let checks: String = calls
        .iter()
        .map(|(call, errno)| {
            format!("(local.set 0 (i32.add (local.get 0) (i32.ne (i32.const {errno}) {call})))")
        })
        .collect();
    let text = format!(
        r#"(module
            (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
            (import "wasi_snapshot_preview1" "fd_close" (func $close (param i32) (result i32)))
            (import "wasi_snapshot_preview1" "fd_renumber"
                (func $renumber (param i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "fd_write"
                (func $write (param i32 i32 i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "fd_read"
                (func $read (param i32 i32 i32 i32) (result i32)))
            (memory (export "memory") 1)
            (func (export "_start") (local i32) {checks} (call $exit (local.get 0))))"#
    );
    let ended = Case::wat(&text).run("input");
    assert_eq!((ended.code, ended.stderr.as_str()), (0, ""));
}

#[test]
fn w12_a_reader_that_stops_stops_the_writer_and_its_end_is_an_error() {
    for (abi, guest) in [("preview1-command", "hello"), ("component-command", "hello-component")] {
        // The reader is gone: an error that the program hears of, not a signal that ends it.
        let case = Case::prebuilt(abi, guest).args(&["cat"]);
        let mut child = case.spawn("run");
        drop(child.stdout.take());
        let mut stdin = child.stdin.take().unwrap();
        let _ = stdin.write_all(&vec![b'x'; 1 << 20]);
        drop(stdin);
        let ended = end(child);
        // What Rust's library makes of an error in `main`, or of a failed write.
        assert!(matches!(ended.code, 1 | 134), "{guest}: {ended:?}");
        assert!(!ended.stderr.is_empty(), "{guest}: the program said nothing");

        // The reader stands still: so does the program, and nothing grows meanwhile.
        let mut child = case.spawn("run");
        let mut stdin = child.stdin.take().unwrap();
        let fed = thread::spawn(move || {
            let mut fed = 0u64;
            while fed < 64 << 20 && stdin.write_all(&[b'x'; 1 << 16]).is_ok() {
                fed += 1 << 16;
            }
            fed
        });
        // It has written what fits into the pipe.
        let pipe = child.stdout.as_ref().unwrap();
        while rustix::io::ioctl_fionread(pipe).unwrap() < 60 << 10 {
            thread::yield_now();
        }
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("RssAnon")).unwrap();
        let held: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        assert!(held < 20 << 10, "{guest}: {held} KiB");
        // A signal ends it where it waits.
        signal(&child, "TERM");
        assert_eq!(end(child).code, 143, "{guest}");
        assert!(fed.join().unwrap() < 4 << 20, "{guest}: it went on reading");
    }
}

#[test]
fn w19_requests_that_are_dropped_anywhere_leave_nothing() {
    let service = Service::start(&prebuilt("web"), |case| case.preopen("/data", false));
    assert_eq!(service.get("/").0, 200);
    let open = || fs::read_dir(format!("/proc/{}/fd", service.id())).unwrap().count();
    let before = open();
    let requests = [
        "GET / HTTP/1.1\r\nhost: x\r\n\r\n",
        "GET /env HTTP/1.1\r\nhost: x\r\n\r\n",
        "POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\nxxxxxxxxxxxxxxxxxxxxxxxxx",
    ];
    thread::scope(|scope| {
        for client in 0..4usize {
            let (service, requests) = (&service, &requests);
            scope.spawn(move || {
                // A generator of one's own: the same storm each time.
                let mut random = client as u64 + 1;
                let mut next = |below: usize| {
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    (random >> 33) as usize % below
                };
                for _ in 0..60 {
                    let request = requests[next(requests.len())];
                    let mut stream = service.connect();
                    let _ = stream.write_all(&request.as_bytes()[..=next(request.len())]);
                    // None, some or all of the answer.
                    if next(2) == 0 && request.len() < 60 {
                        let _ = stream.set_read_timeout(Some(std::time::Duration::from_millis(2)));
                        let _ = stream.read(&mut [0; 64]);
                    }
                }
            });
        }
    });
    // Whatever was going on has come to its end when all places are free again: each of the
    // service's connections has closed.
    while open() > before {
        thread::yield_now();
    }
    assert_eq!(service.get("/env").0, 200);
    let ended = service.stop();
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    // Guests may panic in their own ways; the threads of the host have names.
    assert!(!ended.stderr.contains("thread 'tokio"), "{}", ended.stderr);

    // Guests that would go on for ever: each runs when its request is dropped.
    let endless = wat::parse_str(http_service("(loop (br 0))")).unwrap();
    let service = Service::start(&endless, |case| case);
    for _ in 0..3 {
        // Field 14 of proc_pid_stat(5): processor time, in ticks of 10 ms.
        let worked = || ProcessStat::of(service.id()).unwrap().number(14).unwrap();
        let before = worked();
        let mut stream = service.connect();
        stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        while worked() < before + 20 {
            thread::yield_now();
        }
    }
    // All turns are free again: the service does not wait in vain for them.
    let ended = service.stop();
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert!(!ended.stderr.contains("still running"), "{}", ended.stderr);
}

#[test]
fn w23_arguments_and_environment_arrive_as_they_are_or_not_at_all() {
    let guest = || Case::prebuilt("preview1-command", "hello");
    // As many as a native program could have.
    let many: Vec<String> = (0..100_000).map(|number| format!("N{number}=ü{number}")).collect();
    let env: Vec<&str> = many.iter().map(String::as_str).collect();
    let ended = guest().env(&env).args(&["env"]).run("");
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert_eq!(ended.stdout.lines().count(), many.len());
    assert!(ended.stdout.contains("N99999=ü99999\n"));
    // A NUL would end a string earlier for the guest than for everybody else.
    for (args, env) in [(vec!["a\0b"], vec![]), (vec![], vec!["A=b\0c"]), (vec![], vec!["A\0=b"])] {
        for abi in ["preview1-command", "component-command"] {
            let name = if abi == "preview1-command" { "hello" } else { "hello-component" };
            let ended = Case::prebuilt(abi, name).args(&args).env(&env).run("");
            assert_eq!(ended.code, 125, "{args:?} {env:?}: {}", ended.stderr);
            assert!(ended.stderr.contains("NUL"), "{}", ended.stderr);
        }
    }
    // More than a launch holds is not cut.
    let huge = "x".repeat(17 << 20);
    let ended = guest().args(&[&huge]).run("");
    assert_eq!(ended.code, 125, "{}", ended.stderr);
}

#[test]
fn w26_a_small_address_space_has_smaller_reservations_or_clear_words() {
    // Too little for a pool of instances, enough for one at a time.
    let service = Service::start(&prebuilt("web"), |case| case.address_space(32 << 30));
    for _ in 0..5 {
        assert_eq!(service.get("/env").0, 200);
    }
    assert_eq!(service.stop().code, 0);
    // Too little for a memory, however small it is: said so, each time.
    let service = Service::start(&prebuilt("web"), |case| case.address_space(1 << 30));
    for _ in 0..2 {
        assert_eq!(service.get("/env").0, 500);
    }
    let ended = service.stop();
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert!(ended.stderr.contains("memory"), "{}", ended.stderr);
    let command = Case::prebuilt("preview1-command", "hello").address_space(1 << 30).run("");
    assert_eq!(command.code, 126, "{}", command.stderr);
    assert!(command.stderr.contains("memory"), "{}", command.stderr);
}

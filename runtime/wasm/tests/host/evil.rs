//! Services that misbehave, and clients that do.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream},
    thread,
    time::{Duration, Instant},
};

use knarr_harness::evil_wasm::http_service;

use crate::{
    http::Service,
    support::{prebuilt, rest},
};

fn evil(handle: &str) -> Vec<u8> {
    wat::parse_str(http_service(handle)).unwrap_or_else(|error| panic!("{error}"))
}

/// Answers with the text.
const ANSWER: &str = "(local.set 2 (call $begin (local.get 1)))
    (call $say (local.get 2) (i32.const 1024) (i32.const 16)) (call $end)";

/// Takes a mebibyte after the other, touching each page, until there is no more.
const TAKE_ALL: &str = "(loop $more
    (local.set 2 (memory.grow (i32.const 16)))
    (if (i32.ne (local.get 2) (i32.const -1)) (then
        (local.set 2 (i32.mul (local.get 2) (i32.const 65536)))
        (loop $touch
            (i32.store8 (local.get 2) (i32.const 1))
            (local.set 2 (i32.add (local.get 2) (i32.const 4096)))
            (br_if $touch (i32.lt_u (local.get 2) (i32.mul (memory.size) (i32.const 65536)))))
        (br $more))))";

/// The most memory that the service ever had of its own, in bytes.
fn most(service: &Service) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", service.id())).unwrap();
    let kilobytes = |name: &str| -> u64 {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    // The program's file is the machine's.
    (kilobytes("VmHWM") - kilobytes("RssFile")) << 10
}

#[test]
fn the_component_by_hand_answers() {
    let service = Service::start(&evil(ANSWER), |case| case);
    assert_eq!(service.get("/"), (200, "0123456789abcdef".into()));
    assert_eq!(service.stop().code, 0);
}

#[test]
fn w02_requests_that_take_all_they_can_leave_the_host_its_room() {
    const LIMIT: u64 = 64 << 20;
    let handle = format!("{TAKE_ALL} {ANSWER}");
    let service = Service::start(&evil(&handle), |case| case.memory(LIMIT));
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..4 {
                    // What it takes fails, or there is no room to begin.
                    let (status, _) = service.get("/");
                    assert!(matches!(status, 200 | 503), "{status}");
                }
            });
        }
    });
    assert_eq!(service.get("/").0, 200);
    let most = most(&service);
    assert!(most < LIMIT - (2 << 20), "{most} of {LIMIT}");
    assert!(most > LIMIT / 3, "{most} of {LIMIT}");
    assert_eq!(service.stop().code, 0);
}

#[test]
fn w07_what_a_guest_makes_its_host_hold_ends() {
    // Headers of 64 KiB each, for ever.
    let fill = "(call $fill (local.get 2))".repeat(8);
    let hoard = format!("(loop (local.set 2 (call $fields)) {fill} (br 0))");
    const LIMIT: u64 = 64 << 20;
    let service = Service::start(&evil(&hoard), |case| case.memory(LIMIT));
    for _ in 0..3 {
        assert_eq!(service.get("/").0, 500);
    }
    let most = most(&service);
    assert!(most < LIMIT, "{most} of {LIMIT}");
    let ended = service.stop();
    assert_eq!(ended.code, 0);
    assert!(ended.stderr.contains("limit"), "{}", ended.stderr);

    // Many small ones.
    let leak = "(loop (drop (call $fields)) (br 0))";
    let service = Service::start(&evil(leak), |case| case);
    for _ in 0..3 {
        assert_eq!(service.get("/").0, 500);
    }
    assert!(most_is_small(&service));
    let ended = service.stop();
    assert!(ended.stderr.contains("no free keys") || ended.stderr.contains("full"), "{ended:?}");
}

fn most_is_small(service: &Service) -> bool {
    most(service) < 200 << 20
}

#[test]
fn w08_giant_arguments_are_refused() {
    for (what, handle) in [
        ("2^64-1 random bytes", "(drop (call $random (i64.const -1)))"),
        ("more than a call may copy", "(drop (call $random (i64.const 67108864)))"),
    ] {
        let service = Service::start(&evil(handle), |case| case.memory(64 << 20));
        assert_eq!(service.get("/").0, 500, "{what}");
        assert!(most(&service) < 32 << 20, "{what}");
        let ended = service.stop();
        assert_eq!(ended.code, 0, "{what}");
        assert!(ended.stderr.contains("limit"), "{what}: {}", ended.stderr);
    }
    // What a call would copy out of the guest: all of its memory, a list of 17 pages.
    let handle = "(call $say (call $begin (local.get 1)) (i32.const 0) (i32.const 1114112))";
    let service = Service::start(&evil(handle), |case| case.memory(64 << 20));
    assert!(!service.raw("GET / HTTP/1.1\r\nhost: x\r\n\r\n").ends_with("0\r\n\r\n"));
    let ended = service.stop();
    assert_eq!(ended.code, 0);
    // Not what the stream says of one that is too long, once it has been copied.
    assert!(ended.stderr.contains("fuel allocated for hostcalls"), "{}", ended.stderr);
}

#[test]
fn w18_lies_to_the_canonical_abi_are_traps() {
    for (what, lie) in [
        ("a length beyond the memory", "(i32.const 1024) (i32.const 0x7fffffff)"),
        ("an address beyond it", "(i32.const -16) (i32.const 16)"),
        ("a sum that wraps", "(i32.const -16) (i32.const 0x7fffffff)"),
    ] {
        let handle = format!("(call $say (call $begin (local.get 1)) {lie})");
        let service = Service::start(&evil(&handle), |case| case);
        assert!(!service.raw("GET / HTTP/1.1\r\nhost: x\r\n\r\n").ends_with("0\r\n\r\n"), "{what}");
        let ended = service.stop();
        assert_eq!(ended.code, 0, "{what}");
        assert!(ended.stderr.contains("trapped"), "{what}: {}", ended.stderr);
    }
    // A stream that it never had.
    let handle = "(call $say (i32.const 77) (i32.const 1024) (i32.const 1))";
    let service = Service::start(&evil(handle), |case| case);
    assert_eq!(service.get("/").0, 500);
    assert_eq!(service.stop().code, 0);
}

#[test]
fn w14_a_trap_after_the_answer_began_looks_broken() {
    let handle = "(local.set 2 (call $begin (local.get 1)))
        (call $say (local.get 2) (i32.const 1024) (i32.const 1000)) unreachable";
    let service = Service::start(&evil(handle), |case| case);
    for _ in 0..10 {
        let answer = service.raw("GET / HTTP/1.1\r\nhost: x\r\n\r\n");
        assert!(!answer.ends_with("0\r\n\r\n"), "{answer}");
        // Where only the connection's end ends an answer, it ends with a reset.
        let mut stream = service.connect();
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
        let end = stream.read_to_end(&mut Vec::new()).unwrap_err();
        assert_eq!(end.kind(), ErrorKind::ConnectionReset);
    }
    let ended = service.stop();
    assert_eq!(ended.code, 0);
    assert!(ended.stderr.contains("after its answer had begun"), "{}", ended.stderr);
}

#[test]
fn w14_a_request_has_one_meaning() {
    let service = Service::start(&prebuilt("web"), |case| case);
    for request in [
        "GET /env HTTP/1.1\r\nhost: x\r\nhost: y\r\n\r\n",
        "GET /env HTTP/1.1\r\nhost: x\r\nhost: x\r\n\r\n",
        "GET /env HTTP/1.0\r\nhost: x\r\nhost: y\r\n\r\n",
        "POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip\r\n\r\n",
        "POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 1, 2\r\n\r\nab",
        "POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: +2\r\n\r\nab",
        "POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding : chunked\r\n\r\n0\r\n\r\n",
    ] {
        let answer = service.raw(&format!("{request}GET /env HTTP/1.1\r\nhost: x\r\n\r\n"));
        assert!(
            answer.starts_with("HTTP/1.1 400") || answer.starts_with("HTTP/1.0 400"),
            "{request}: {answer}"
        );
    }
    // Both lengths: the chunks count, and nothing that follows them on this connection does.
    for lengths in [
        "content-length: 5\r\ntransfer-encoding: chunked",
        "transfer-encoding: chunked\r\ncontent-length: 5",
    ] {
        let answer = service.raw(&format!(
            "POST /echo HTTP/1.1\r\nhost: x\r\n{lengths}\r\n\r\n0\r\n\r\n\
             GET /env HTTP/1.1\r\nhost: x\r\n\r\n"
        ));
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{lengths}: {answer}");
    }
    let ended = service.stop();
    assert!(!ended.stdout.contains("GET /env"), "{}", ended.stdout);
}

#[test]
fn w14_who_does_not_read_gives_up_its_place() {
    // So little memory that some twenty requests are all.
    let service = Service::start(&prebuilt("web"), |case| case.memory(64 << 20));
    let greedy: Vec<TcpStream> = (0..40).map(|_| service.connect_small()).collect();
    thread::scope(|scope| {
        for stream in &greedy {
            scope.spawn(move || {
                let mut stream = stream;
                let head = "POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 100000000\r\n\r\n";
                let _ = stream.write_all(head.as_bytes());
                // Until the service has had enough of it.
                while stream.write_all(&[b'x'; 1 << 16]).is_ok() {}
            });
        }
        // Somebody else waits for a turn behind all of them, and has it: after ten seconds in
        // vain the client asks again.
        assert!((0..3).any(|_| service.get("/env").0 == 200));
        for stream in &greedy {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    });
    assert_eq!(service.stop().code, 0);
}

#[test]
fn w14_half_a_head_holds_no_place_that_others_need() {
    // 512 connections, 384 of them for one source.
    let service = Service::start(&prebuilt("web"), |case| case.memory(64 << 20));
    let begin = |source: u8, count: usize| -> Vec<TcpStream> {
        (0..count)
            .map(|_| {
                let mut stream = service.connect_from(Ipv4Addr::new(127, 0, 0, source));
                // One that is refused may be closed already.
                let _ = stream.write_all(b"GET / HTTP/1.1\r\nhost:");
                stream
            })
            .collect()
    };
    let begun = Instant::now();
    let mut first = begin(2, 400);
    // The others find a place at once, although nobody of these gives up.
    assert_eq!(service.get_from(Ipv4Addr::new(127, 0, 0, 3), "/env"), 200);
    // What is more than its part was closed, long before a head has taken too long.
    let closed = |stream: &mut TcpStream| {
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        match stream.read(&mut [0; 64]) {
            Ok(count) => count == 0,
            Err(error) => !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
        }
    };
    assert!(first[384..].iter_mut().all(closed));
    // Hardly a place is free: all that wait are hurried, long before half a minute.
    let second = begin(4, 128);
    assert_eq!(service.get_from(Ipv4Addr::new(127, 0, 0, 5), "/env"), 200);
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    drop((first, second));
    assert_eq!(service.stop().code, 0);
}

impl Service {
    /// Everything that is answered to these bytes.
    fn raw(&self, request: &str) -> String {
        let mut stream = self.connect();
        // The host may have closed before all of it was sent.
        let _ = stream.write_all(request.as_bytes());
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// A connection from an address of the loopback's.
    fn connect_from(&self, source: Ipv4Addr) -> TcpStream {
        self.dial(source, None)
    }

    /// A connection that can hardly hold anything on its way.
    fn connect_small(&self) -> TcpStream {
        self.dial(Ipv4Addr::LOCALHOST, Some(4096))
    }

    fn dial(&self, source: Ipv4Addr, buffer: Option<usize>) -> TcpStream {
        use rustix::net::{AddressFamily, SocketType, bind, connect, socket, sockopt};
        let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        if let Some(bytes) = buffer {
            sockopt::set_socket_send_buffer_size(&socket, bytes).unwrap();
            sockopt::set_socket_recv_buffer_size(&socket, bytes).unwrap();
        }
        bind(&socket, &SocketAddrV4::new(source, 0)).unwrap();
        connect(&socket, &SocketAddr::from((Ipv4Addr::LOCALHOST, self.port()))).unwrap();
        TcpStream::from(socket)
    }

    fn get_from(&self, source: Ipv4Addr, path: &str) -> u16 {
        let mut stream = self.connect_from(source);
        write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
        let answer = rest(&mut stream);
        answer.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap()
    }
}

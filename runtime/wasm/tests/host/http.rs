//! Components behind the host's HTTP listener.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    process::Child,
    thread,
    time::Duration,
};

use crate::{
    guests::free_port,
    support::{Case, end, prebuilt, rest, signal, wait_for},
};

pub(crate) struct Service {
    child: Child,
    port: u16,
    case: Case,
}

impl Service {
    pub(crate) fn start(binary: &[u8], change: impl FnOnce(Case) -> Case) -> Self {
        let port = free_port();
        let case = change(Case::new("http-proxy", binary).network(&[port], true));
        let mut child = case.spawn("serve");
        wait_for(child.stderr.as_mut().unwrap(), "serving");
        Self { child, port, case }
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, name: &str) {
        signal(&self.child, name);
    }

    /// Where it listens.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// One request on a connection of its own: status and body.
    pub(crate) fn get(&self, path: &str) -> (u16, String) {
        let mut stream = self.connect();
        write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
        let answer = rest(&mut stream);
        let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok());
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        let status = status.unwrap_or_else(|| panic!("{path}: {answer:?}"));
        (status, unchunked(body))
    }

    /// Ends it with SIGTERM: exit code, output.
    pub(crate) fn stop(self) -> crate::support::Ended {
        signal(&self.child, "TERM");
        end(self.child)
    }
}

/// The text of a body that may be in chunks.
fn unchunked(body: &str) -> String {
    let mut text = String::new();
    let mut rest = body;
    while let Some((size, more)) = rest.split_once("\r\n") {
        let Ok(size) = usize::from_str_radix(size, 16) else { return body.to_owned() };
        text.push_str(&more[..size]);
        rest = more.get(size + 2..).unwrap_or("");
    }
    if text.is_empty() { body.to_owned() } else { text }
}

#[test]
fn a_service_answers_keeps_a_volume_and_says_what_it_does() {
    let service = Service::start(&prebuilt("web"), |case| {
        case.preopen("/data", false).env(&["BACKEND=x", "COLOUR=blue"])
    });
    assert_eq!(service.get("/"), (200, "hello from a Wasm program, visit 1\n".into()));
    assert_eq!(service.get("/"), (200, "hello from a Wasm program, visit 2\n".into()));
    assert_eq!(fs::read_to_string(service.case.path("/data/visits")).unwrap(), "2");
    assert_eq!(service.get("/env"), (200, "BACKEND=x\nCOLOUR=blue\n".into()));
    assert_eq!(service.get("/nothing").0, 404);
    let ended = service.stop();
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert!(ended.stdout.contains("web: GET /env\n"), "{}", ended.stdout);
}

#[test]
fn a_connection_serves_request_after_request() {
    let service = Service::start(&prebuilt("web"), |case| case);
    let mut reader = BufReader::new(service.connect());
    for number in 0..20 {
        let body = format!("body {number}");
        write!(
            reader.get_mut(),
            "POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert_ne!(reader.read_line(&mut head).unwrap(), 0, "closed: {head}");
        }
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        let mut answer = Vec::new();
        while !String::from_utf8_lossy(&answer).contains(&body) {
            let mut byte = [0];
            reader.read_exact(&mut byte).unwrap();
            answer.push(byte[0]);
        }
        if head.contains("transfer-encoding: chunked") {
            let mut end = Vec::new();
            while !end.ends_with(b"0\r\n\r\n") {
                let mut byte = [0];
                reader.read_exact(&mut byte).unwrap();
                end.push(byte[0]);
            }
        }
    }
    drop(reader);
    assert_eq!(service.stop().code, 0);
}

#[test]
fn w14_a_trap_is_500_and_the_listener_survives() {
    let service = Service::start(&prebuilt("web"), |case| case);
    for _ in 0..3 {
        assert_eq!(service.get("/trap").0, 500);
        assert_eq!(service.get("/env").0, 200);
    }
    let ended = service.stop();
    assert!(ended.stderr.contains("unreachable"), "{}", ended.stderr);
    assert!(ended.stderr.contains("GET /trap"), "{}", ended.stderr);
    assert_eq!(ended.code, 0);
}

#[test]
fn a_neighbour_is_reached_by_name() {
    let neighbour = TcpListener::bind("127.0.0.1:0").unwrap();
    let backend = format!("BACKEND=localhost:{}", neighbour.local_addr().unwrap().port());
    let native = thread::spawn(move || {
        let (mut stream, _) = neighbour.accept().unwrap();
        let asked = wait_for(&mut stream, "\r\n\r\n");
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nhi\n").unwrap();
        asked
    });
    let service = Service::start(&prebuilt("web"), |case| case.env(&[&backend]));
    assert_eq!(service.get("/native"), (200, "the native service says: hi\n".into()));
    let asked = native.join().unwrap();
    assert!(asked.starts_with("GET / HTTP/1.1\r\n"), "{asked}");
    assert!(asked.to_lowercase().contains("host: localhost"), "{asked}");
    // The neighbour is gone.
    let (status, said) = service.get("/native");
    assert_eq!(status, 502);
    assert!(said.contains("does not answer"), "{said}");
    assert_eq!(service.stop().code, 0);
}

#[test]
fn w14_malformed_requests_do_not_reach_the_guest() {
    let service = Service::start(&prebuilt("web"), |case| case);
    for (request, status) in [
        ("NONSENSE\r\n\r\n".to_owned(), "400"),
        ("GET / HTTP/1.1\r\nconnection: close\r\n\r\n".to_owned(), "400"),
        (format!("GET / HTTP/1.1\r\nhost: x\r\nlarge: {}\r\n\r\n", "x".repeat(300_000)), "431"),
        (
            "POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabc"
                .into(),
            "400",
        ),
    ] {
        let mut stream = service.connect();
        // The host may have closed before all of it was sent.
        let _ = stream.write_all(request.as_bytes());
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert!(
            answer.is_empty() || answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{}: {answer}",
            request.get(..40).unwrap_or(&request)
        );
    }
    assert_eq!(service.get("/env").0, 200);
    let ended = service.stop();
    assert!(!ended.stdout.contains("POST"), "{}", ended.stdout);
}

#[test]
fn many_clients_at_once() {
    let service = Service::start(&prebuilt("web"), |case| case);
    thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                for _ in 0..20 {
                    assert_eq!(service.get("/env").0, 200);
                }
            });
        }
    });
    assert_eq!(service.stop().code, 0);
}

#[test]
fn a_drain_finishes_what_runs() {
    let service = Service::start(&prebuilt("web"), |case| case);
    let mut stream = service.connect();
    // Half a request: its answer begins, and its body is still to come.
    write!(stream, "POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 8\r\n\r\nhalf").unwrap();
    wait_for(&mut stream, "half");
    signal(&service.child, "TERM");
    // It accepts no more: the port is closed while the answer goes on.
    while TcpStream::connect(("127.0.0.1", service.port)).is_ok() {
        thread::yield_now();
    }
    stream.write_all(b"half").unwrap();
    assert!(rest(&mut stream).contains("half"));
    assert_eq!(end(service.child).code, 0);
}

#[test]
fn a_second_signal_is_meant() {
    let service = Service::start(&prebuilt("web"), |case| case);
    let mut stream = service.connect();
    write!(stream, "POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 8\r\n\r\nhalf").unwrap();
    wait_for(&mut stream, "half");
    signal(&service.child, "TERM");
    while TcpStream::connect(("127.0.0.1", service.port)).is_ok() {
        thread::yield_now();
    }
    signal(&service.child, "TERM");
    assert_eq!(end(service.child).code, 143);
}

#[test]
fn without_a_network_there_is_nothing_to_serve() {
    let ended = end(Case::new("http-proxy", &prebuilt("web")).spawn("serve"));
    assert_eq!(ended.code, 125);
    assert!(ended.stderr.contains("network"), "{}", ended.stderr);
}

//! The guests in the tree: arguments, environment, streams, sockets.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
};

use crate::support::{Case, end, prebuilt, signal, wait_for};

const BOTH: [(&str, &str); 2] =
    [("preview1-command", "hello"), ("component-command", "hello-component")];

#[test]
fn arguments_and_environment_are_the_launchs_and_nothing_else() {
    for (abi, guest) in BOTH {
        let case = Case::prebuilt(abi, guest).args(&["a b", "ü"]).env(&["NAME=boat", "X=1=2"]);
        let ended = case.run("");
        assert_eq!(ended.stdout, "hello boat, from a Wasm program\narguments: a b ü\n");
        let ended = case.run_args(&["env"]);
        assert_eq!(ended.stdout, "NAME=boat\nX=1=2\n", "{guest}");
    }
}

#[test]
fn exit_codes_of_both_generations() {
    for (abi, guest) in BOTH {
        let case = Case::prebuilt(abi, guest);
        assert_eq!(case.run_args(&["exit", "0"]).code, 0, "{guest}");
        assert_eq!(case.run_args(&["exit", "1"]).code, 1, "{guest}");
        let trapped = case.run_args(&["trap"]);
        assert_eq!(trapped.code, 134, "{guest}");
        assert!(trapped.stderr.contains("asked to"), "{}", trapped.stderr);
        assert!(trapped.stderr.contains("unreachable"), "{}", trapped.stderr);
    }
    // wasi:cli/exit of 0.2 knows success and failure.
    let case = Case::prebuilt("preview1-command", "hello");
    assert_eq!(case.run_args(&["exit", "200"]).code, 200);
}

#[test]
fn p04_standard_input_ends_where_the_client_ends_it() {
    let large = "0123456789abcdef\n".repeat(20_000);
    for (abi, guest) in BOTH {
        let case = Case::prebuilt(abi, guest).args(&["cat"]);
        assert_eq!(case.run("").stdout, "", "{guest}");
        assert_eq!(case.run("one\ntwo").stdout, "one\ntwo", "{guest}");
        let ended = case.run(&large);
        assert!(ended.stdout == large, "{guest}: {} bytes", ended.stdout.len());
    }
}

#[test]
fn w13_sockets_need_a_grant() {
    let port = free_port();
    let peer = format!("127.0.0.1:{port}");
    let greeter = prebuilt("greeter");
    let listener = TcpListener::bind(&peer).unwrap();
    let denied = Case::new("component-command", &greeter).args(&[&peer, "boat"]).run("");
    assert_eq!(denied.code, 1, "{}", denied.stderr);
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_err(), "nothing came");
    drop(listener);

    let other = format!("PORT={port}");
    let elsewhere = Case::new("component-command", &greeter).network(&[1], false).env(&[&other]);
    let denied = elsewhere.run("");
    assert_eq!(denied.code, 1, "{}", denied.stderr);

    let nameless = Case::new("component-command", &greeter).network(&[], false);
    let denied = nameless.run_args(&["localhost:1", "boat"]);
    assert_eq!(denied.code, 1, "{}", denied.stderr);
    assert!(!denied.stderr.contains("refused"), "no name was asked for: {}", denied.stderr);
}

#[test]
fn a_tcp_service_and_its_client_meet_by_name() {
    let port = free_port();
    let greeter = prebuilt("greeter");
    let service = Case::new("component-command", &greeter)
        .network(&[port], false)
        .env(&[&format!("PORT={port}")]);
    let mut service = service.spawn("run");
    wait_for(service.stdout.as_mut().unwrap(), "listening");

    let mut native = TcpStream::connect(("127.0.0.1", port)).unwrap();
    native.write_all(b"native\n").unwrap();
    let mut said = String::new();
    native.read_to_string(&mut said).unwrap();
    assert_eq!(said, "hello native\n");

    let client = Case::new("component-command", &greeter).network(&[], true);
    let peer = format!("localhost:{port}");
    let ended = client.run_args(&[&peer, "wasm"]);
    assert_eq!((ended.code, ended.stdout.as_str()), (0, "hello wasm\n"), "{}", ended.stderr);

    signal(&service, "TERM");
    assert_eq!(end(service).code, 143);
}

#[test]
fn the_guests_in_the_tree_are_small() {
    for guest in ["hello", "hello-component", "web", "greeter"] {
        let size = prebuilt(guest).len();
        assert!(size <= 300 << 10, "{guest}: {size}");
    }
}

#[test]
fn guests_are_rebuilt_from_source_where_the_toolchain_is() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../wasm-examples");
    let rustc = std::env::var_os("GUEST_RUSTC").map_or("/usr/bin/rustc".into(), PathBuf::from);
    if !rustc.exists() {
        eprintln!("skipped: {} is not here (package rustc-web)", rustc.display());
        return;
    }
    let output = tempfile::TempDir::new().unwrap();
    let built = Command::new(examples.join("build.sh")).env("OUTPUT", output.path()).output();
    let built = built.unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    for (abi, guest) in BOTH {
        let binary = fs::read(output.path().join(format!("{guest}.wasm"))).unwrap();
        let ended = Case::new(abi, &binary).run("");
        assert_eq!(ended.stdout, "hello world, from a Wasm program\n");
    }
    for guest in ["web", "greeter"] {
        assert!(output.path().join(format!("{guest}.wasm")).exists());
    }
}

/// A port that nobody has right now, and that the kernel gives nobody for a connection: each
/// test is a process, and looks in another place.
pub(crate) fn free_port() -> u16 {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = 10_000 + (std::process::id().wrapping_mul(17) + next) % 20_000;
        let port = u16::try_from(port).unwrap();
        if TcpListener::bind(("0.0.0.0", port)).is_ok() {
            return port;
        }
    }
}

//! Names: by the container's own files, and by nobody's libraries.

use std::{
    fs,
    io::Write as _,
    net::TcpListener,
    os::unix::fs::symlink,
    process::{Command, Stdio},
    thread,
};

use crate::{
    guests::free_port,
    support::{Case, HOST, end, rest, signal, wait_for},
};

/// What a library for names does where the C library loads it: a directory shows that it
/// was there. Without a C library of its own, so that it loads wherever it is found.
const PLANTED: &str = r#"
static long call(long number, long a, long b) {
  long answer; __asm__ volatile("syscall" : "=a"(answer) : "a"(number), "D"(a), "S"(b) : "rcx", "r11", "memory");
  return answer;
}
__attribute__((constructor)) static void mark(void) { call(83, (long)"/marks/loaded", 0700); }
int _nss_planted_gethostbyname4_r(void) { call(83, (long)"/marks/called", 0700); return 0; }
"#;

#[test]
fn v02_no_library_is_loaded_to_look_a_name_up() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: this test changes its root directory, which takes root");
        return;
    }
    // A service whose root directory is one that an image made, as if the jail had leaked.
    let port = free_port();
    let case = Case::prebuilt("http-proxy", "web")
        .network(&[port], true)
        .env(&["BACKEND=planted.example:80"]);
    let root = case.outside().join("rootfs");
    for name in ["etc", "marks", "lib/x86_64-linux-gnu", "lib64", "rootfs"] {
        fs::create_dir_all(root.join(name)).unwrap();
    }
    symlink("lib", root.join("usr")).unwrap();
    fs::write(root.join("etc/nsswitch.conf"), "hosts: planted\npasswd: planted\n").unwrap();
    fs::write(root.join("etc/resolv.conf"), "nameserver 127.0.0.1\noptions timeout:1\n").unwrap();
    let source = case.outside().join("planted.c");
    fs::write(&source, PLANTED).unwrap();
    let library = root.join("lib/x86_64-linux-gnu/libnss_planted.so.2");
    let made = Command::new("cc")
        .args(["-shared", "-fPIC", "-nostdlib", "-o"])
        .args([&library, &source])
        .status()
        .expect("a C compiler (the linker's own)");
    assert!(made.success());
    fs::copy(&library, root.join("lib/libnss_planted.so.2")).unwrap();
    fs::copy(HOST, root.join("host")).unwrap();
    let mut launch = case.launch.clone();
    launch["root"] = "/rootfs".into();
    fs::write(root.join("launch.json"), launch.to_string()).unwrap();

    let mut child = Command::new("sh")
        .args(["-c", r#"exec chroot "$0" /host serve 3<"$0/launch.json" 4<"$1""#])
        .args([&root, &case.outside().join("code.cwasm")])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for(child.stderr.as_mut().unwrap(), "serving");
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.write_all(b"GET /native HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    let answer = rest(&mut stream);
    assert!(answer.starts_with("HTTP/1.1 502"), "{answer}");
    signal(&child, "TERM");
    assert_eq!(end(child).code, 0);
    let marks: Vec<_> = fs::read_dir(root.join("marks")).unwrap().collect();
    assert!(marks.is_empty(), "{marks:?}");
}

#[test]
fn names_are_those_of_the_containers_own_files() {
    let neighbour = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = neighbour.local_addr().unwrap().port();
    let native = thread::spawn(move || {
        let (mut stream, _) = neighbour.accept().unwrap();
        wait_for(&mut stream, "wasm\n");
        stream.write_all(b"hello neighbour\n").unwrap();
    });
    let case = Case::prebuilt("component-command", "greeter").network(&[], true);
    // Of the image's links the container's own root is the end.
    let root = case.outside().join("rootfs");
    fs::create_dir(root.join("real")).unwrap();
    symlink("../../../../real", root.join("etc")).unwrap();
    fs::write(root.join("real/hosts"), "127.0.0.1 the-neighbour\n").unwrap();
    let ended = case.run_args(&[&format!("the-neighbour:{port}"), "wasm"]);
    assert_eq!((ended.code, ended.stdout.as_str()), (0, "hello neighbour\n"), "{}", ended.stderr);
    native.join().unwrap();
    let ended = case.run_args(&["nobody.invalid:1", "wasm"]);
    assert_eq!(ended.code, 1, "{}", ended.stderr);
}

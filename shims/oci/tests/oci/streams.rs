//! Streams, terminals, descriptors and the log.

use std::{
    fs::{self, File},
    io::{Read, Write},
    mem::MaybeUninit,
    os::{fd::OwnedFd, unix::net::UnixListener},
    process::Stdio,
};

use rustix::{
    io::IoSliceMut,
    net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg},
};
use serde_json::{Value, json};

use crate::support::{Bundle, Done};

#[test]
fn run_passes_streams_through() {
    let bundle = Bundle::new(&["/bin/cat"]);
    bundle.write();
    let mut command = bundle.command(&["run", &bundle.id]);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("knarr-oci");
    child.stdin.take().expect("stdin").write_all(b"through\n").expect("write");
    let done: Done = child.wait_with_output().expect("end").into();
    assert_eq!((done.code, done.out.as_str()), (0, "through\n"));
}

#[test]
fn signals_are_passed_on() {
    let bundle =
        Bundle::script("trap 'echo caught; exit 9' TERM; echo ready; while :; do sleep 0.01; done");
    bundle.write();
    let mut child =
        bundle.command(&["run", &bundle.id]).stdout(Stdio::piped()).spawn().expect("knarr-oci");
    let mut out = child.stdout.take().expect("stdout");
    let mut line = [0; 6];
    out.read_exact(&mut line).expect("ready");
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("kill");
    assert_eq!(child.wait().expect("end").code(), Some(9));
    let mut rest = String::new();
    out.read_to_string(&mut rest).expect("rest");
    assert_eq!(rest, "caught\n");
}

#[test]
fn exec_runs_programs_as_whom_it_is_told() {
    let bundle = Bundle::script("sleep 1000");
    assert_eq!(bundle.create().code, 0);
    bundle.verb(&["start"]).fine();
    let id = bundle.id.as_str();
    let out = bundle
        .knarr(&[
            "exec",
            "--user",
            "1000:50",
            "-g",
            "7",
            "-e",
            "A=b",
            "--cwd",
            "/tmp",
            id,
            "sh",
            "-c",
            "id; echo $A; pwd",
        ])
        .fine();
    assert_eq!(out, "uid=1000 gid=50 groups=7\nb\n/tmp\n");
    assert_eq!(bundle.knarr(&["exec", id, "sh", "-c", "exit 42"]).code, 42);
    bundle.knarr(&["exec", id, "nope"]).failed(255, "executable file not found in $PATH");
    bundle.knarr(&["exec", id]).failed(255, "exec args cannot be empty");
    let process = json!({ "args": ["cat", "/proc/self/status"], "cwd": "/", "user": { "uid": 3, "gid": 4 },
        "env": ["PATH=/bin"], "noNewPrivileges": true });
    fs::write(bundle.path("process.json"), process.to_string()).expect("process.json");
    let status = bundle.knarr(&["exec", "--process", "process.json", id]).fine();
    assert!(status.contains("Uid:\t3\t3") && status.contains("NoNewPrivs:\t1"), "{status}");
}

/// The descriptor that comes over a console socket.
fn receive(listener: &UnixListener) -> OwnedFd {
    let (stream, _) = listener.accept().expect("accept");
    let mut bytes = [0; 64];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut slices = [IoSliceMut::new(&mut bytes)];
    recvmsg(&stream, &mut slices, &mut control, RecvFlags::CMSG_CLOEXEC).expect("recvmsg");
    let mut fds = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    fds.next().expect("a descriptor")
}

#[test]
fn terminals_go_to_the_console_socket() {
    let mut bundle = Bundle::script("tty; stty size");
    bundle.config["process"]["terminal"] = json!(true);
    bundle.config["process"]["consoleSize"] = json!({ "height": 31, "width": 117 });
    bundle.write();
    bundle.quiet(&["create", &bundle.id]).failed(1, "without setting console socket");
    let socket = bundle.path("console");
    let listener = UnixListener::bind(&socket).expect("bind");
    let socket = socket.display().to_string();
    assert_eq!(bundle.quiet(&["create", "--console-socket", &socket, &bundle.id]).code, 0);
    let mut master = File::from(receive(&listener));
    bundle.verb(&["start"]).fine();
    let mut said = Vec::new();
    let mut buffer = [0; 256];
    // The end of a terminal is EIO.
    while let Ok(count @ 1..) = master.read(&mut buffer) {
        said.extend_from_slice(&buffer[..count]);
    }
    assert_eq!(String::from_utf8_lossy(&said), "/dev/pts/0\r\n31 117\r\n");
    bundle.config["process"]["terminal"] = json!(false);
    bundle.write();
    bundle.verb(&["delete", "-f"]).fine();
    bundle
        .quiet(&["create", "--console-socket", &socket, &bundle.id])
        .failed(1, "cannot use console socket");
}

#[test]
fn descriptors_are_passed_on_when_asked() {
    let bundle = Bundle::script("ls -l /proc/self/fd | grep -c '/given$'; cat <&4");
    bundle.write();
    fs::write(bundle.path("given"), "given\n").expect("given");
    // The shell gives knarr-oci two descriptors more.
    let script = format!(
        "exec 3<{0}/given 4<{0}/given; exec {1} --root {0}/state run --preserve-fds 2 {2}",
        bundle.dir.path().display(),
        env!("CARGO_BIN_EXE_knarr-oci"),
        bundle.id
    );
    let output = std::process::Command::new("sh")
        .args(["-c", &script])
        .current_dir(bundle.dir.path())
        .output()
        .expect("sh");
    let done = Done::from(output);
    assert_eq!(done.out, "2\ngiven\n", "{done:?}");
    bundle.verb(&["run", "--preserve-fds", "40"]).failed(1, "please check that preserved-fd");
}

#[test]
fn the_log_has_the_reason_in_its_format() {
    let bundle = Bundle::new(&["/bin/nope"]);
    bundle.write();
    let log = bundle.path("log.json").display().to_string();
    let done = bundle.knarr(&["--log", &log, "--log-format", "json", "run", &bundle.id]);
    done.failed(1, "no such file");
    let text = fs::read_to_string(&log).expect("log");
    let entry: Value = serde_json::from_str(text.lines().last().expect("a line")).expect("json");
    assert_eq!(entry["level"], "error");
    assert!(entry["msg"].as_str().expect("msg").contains("/bin/nope"), "{entry}");
    assert!(entry["time"].as_str().expect("time").contains('T'), "{entry}");
    bundle.knarr(&["--log-format", "yaml", "list"]).failed(1, "invalid log-format");
}

#[test]
fn the_root_can_be_entered_without_pivot_root() {
    let bundle = Bundle::script("ls /; readlink /proc/self/root");
    bundle.write();
    let out = bundle.verb(&["run", "--no-pivot"]).fine();
    assert!(out.starts_with("bin\n") && out.ends_with("/\n"), "{out}");
}

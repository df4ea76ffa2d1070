//! A container's life, from outside.

mod common;

use std::{
    fs::File,
    io::{Read, Write},
    os::unix::fs::{PermissionsExt, symlink},
    path::PathBuf,
};

use common::{Fixture, cgroup_left, pipes};
use knarr_model::Signal;
use knarr_sandbox::{Failure, Stdio};
use serde_json::json;

#[test]
fn a_program_runs_and_its_output_and_code_come_back() {
    let fixture = Fixture::script("echo out; echo err >&2; exit 7");
    let outcome = fixture.run();
    assert_eq!((outcome.stdout.as_str(), outcome.stderr.as_str()), ("out\n", "err\n"));
    assert_eq!(outcome.status.code, 7);
    assert_eq!(cgroup_left(&fixture.id), Vec::<PathBuf>::new());
}

#[test]
fn p12_exit_codes_are_exact() {
    for code in [0, 1, 42, 126, 255] {
        assert_eq!(Fixture::script(&format!("exit {code}")).run().status.code, code);
    }
    let fixture = Fixture::new(&["/bin/sleep", "1000"]);
    let (container, _pipes) = fixture.start().expect("start");
    container.kill(Signal::KILL).expect("kill");
    let status = container.init().wait_blocking().expect("wait");
    assert_eq!((status.code, status.signal), (137, Some(9)));
    container.delete().expect("delete");
    container.delete().expect("delete is idempotent");
    container.kill(Signal::TERM).expect("so is kill");
}

#[test]
fn p11_programs_that_cannot_be_run_are_named_in_docker_s_words() {
    for (args, failure, code, message) in [
        (
            &["nope"][..],
            Failure::NotFound,
            127,
            r#"exec: "nope": executable file not found in $PATH"#,
        ),
        (
            &["/nope"],
            Failure::NotFound,
            127,
            r#"exec: "/nope": stat /nope: no such file or directory"#,
        ),
        (&["/etc"], Failure::NotExecutable, 126, r#"exec: "/etc": is a directory"#),
        (
            &["/etc/passwd"],
            Failure::NotExecutable,
            126,
            r#"exec: "/etc/passwd": permission denied"#,
        ),
        (&["/bin/text"], Failure::NotExecutable, 126, "exec /bin/text: exec format error"),
        (&["/bin/crlf"], Failure::NotFound, 127, "exec /bin/crlf: no such file or directory"),
        (&[""], Failure::InvalidSpec, 128, "no command specified"),
    ] {
        let fixture = Fixture::new(args);
        for (name, text) in [("text", "hello"), ("crlf", "#!/bin/sh\r\n")] {
            let path = fixture.lower().join("bin").join(name);
            std::fs::write(&path, text).expect("write");
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).expect("chmod");
        }
        let error = fixture.try_run().expect_err("must fail");
        assert_eq!(error.to_string(), message, "{args:?}");
        assert_eq!((error.failure(), error.exit_code()), (failure, code), "{args:?}");
        assert_eq!(cgroup_left(&fixture.id), Vec::<PathBuf>::new(), "{args:?}");
    }
}

#[test]
fn the_first_process_waits_until_it_is_started() {
    let fixture = Fixture::script("echo ran");
    let (stdio, pipes) = pipes();
    let created = fixture.create(stdio).expect("create");
    let comm = std::fs::read_to_string(format!("/proc/{}/comm", created.pid())).expect("comm");
    assert_eq!(comm, "knarr-init\n");
    assert_eq!(created.container().init().try_wait().expect("alive"), None);
    let container = created.start().expect("start");
    assert_eq!(pipes.read().0, "ran\n");
    container.init().wait_blocking().expect("wait");
    container.delete().expect("delete");
}

#[test]
fn a_container_that_is_never_started_leaves_nothing() {
    let fixture = Fixture::new(&["/bin/true"]);
    let (stdio, _pipes) = pipes();
    let created = fixture.create(stdio).expect("create");
    let child = created.container().init().clone();
    drop(created);
    assert_eq!(child.try_wait().expect("reaped").map(|status| status.code), Some(137));
    assert_eq!(cgroup_left(&fixture.id), Vec::<PathBuf>::new());
}

#[test]
fn environment_home_and_working_directory_are_set() {
    let fixture = Fixture::script("echo $HOME; pwd; env | grep ^A=")
        .set("/process/cwd", json!("/made/for/me"))
        .set("/process/env", json!(["PATH=/bin", "A=b=c"]));
    let outcome = fixture.run();
    assert_eq!(outcome.stdout, "/root\n/made/for/me\nA=b=c\n");
    let file = Fixture::new(&["/bin/true"]).set("/process/cwd", json!("/etc/passwd"));
    let error = file.try_run().expect_err("no directory");
    assert_eq!(
        error.to_string(),
        r#"chdir to cwd ("/etc/passwd") set in config.json failed: not a directory"#
    );
}

#[test]
fn r17_an_environment_that_is_none_is_refused() {
    for bad in ["NOVALUE", "=x", "A\0=b", "A=b\0"] {
        let fixture = Fixture::new(&["/bin/true"]).set("/process/env", json!([bad]));
        let error = fixture.try_run().expect_err(bad);
        assert_eq!(error.failure(), Failure::InvalidSpec, "{bad:?}");
    }
}

#[test]
fn users_are_resolved_where_the_image_is_known() {
    let run = |user| {
        let script = "id -u; id -g; id -G; echo $HOME";
        Fixture::script(script).set("/process/user", user).run().stdout
    };
    assert_eq!(
        run(json!({ "uid": 0, "gid": 0, "username": "user" })),
        "1000\n1000\n1000 29\n/home\n"
    );
    assert_eq!(run(json!({ "uid": 1000, "gid": 5 })), "1000\n5\n5\n/home\n");
    assert_eq!(run(json!({ "uid": 7, "gid": 8, "additionalGids": [9, 8] })), "7\n8\n8 9\n/\n");
    let nobody = Fixture::new(&["/bin/true"])
        .set("/process/user", json!({ "uid": 0, "gid": 0, "username": "who" }));
    assert_eq!(
        nobody.try_run().expect_err("unknown").to_string(),
        "unable to find user who: no matching entries in passwd file"
    );
}

#[test]
fn another_process_runs_in_it() {
    let fixture = Fixture::script("echo up; sleep 1000");
    let (container, mut pipes) = fixture.start().expect("start");
    assert_eq!(pipes.line(), "up");
    let outcome = fixture
        .exec(&container, "hostname; echo $$ > /tmp/pid; cat /proc/1/comm; id -u; exit 3")
        .expect("exec");
    assert_eq!((outcome.stdout.as_str(), outcome.status.code), ("test\nsleep\n0\n", 3));
    // It is in the container's cgroup and is killed with it.
    let (stdio, _more) = common::pipes();
    let mut process = fixture.process();
    process.set_args(Some(vec!["sleep".into(), "1000".into()]));
    let (child, _) = container.exec(&process, stdio).expect("exec");
    assert!(container.pids().expect("pids").contains(&child.pid()));
    container.kill_all().expect("kill");
    assert_eq!(child.wait_blocking().expect("wait").code, 137);
    container.init().wait_blocking().expect("wait");
    let gone = fixture.exec(&container, "true").expect_err("it has ended");
    assert_eq!(gone.failure(), Failure::Gone, "{gone}");
    container.delete().expect("delete");
}

#[test]
fn an_exec_has_the_errors_of_a_start() {
    let fixture = Fixture::script("echo up; sleep 1000");
    let (container, mut pipes) = fixture.start().expect("start");
    pipes.line();
    for (args, cwd, message, code) in [
        ("nope", "/", r#"exec: "nope": executable file not found in $PATH"#, 127),
        ("/etc/passwd", "/", r#"exec: "/etc/passwd": permission denied"#, 126),
        (
            "/bin/true",
            "/no",
            r#"chdir to cwd ("/no") set in config.json failed: no such file or directory"#,
            126,
        ),
    ] {
        let mut process = fixture.process();
        process.set_args(Some(vec![args.into()])).set_cwd(cwd.into());
        let error = fixture.exec_process(&container, &process).expect_err(args);
        assert_eq!((error.to_string().as_str(), error.exit_code()), (message, code));
    }
    assert_eq!(container.pids().expect("pids").len(), 1, "nothing is left of the attempts");
    container.delete().expect("delete");
}

#[test]
fn p08_a_terminal_is_the_container_s_own() {
    let fixture = Fixture::script("tty; stty size; ls -l /dev/console; echo ask; head -n1; exit 5")
        .set("/process/terminal", json!(true));
    let mut created = fixture.create(Stdio::Terminal { rows: 33, cols: 99 }).expect("create");
    let mut console = File::from(created.console().expect("console"));
    assert!(created.console().is_none(), "handed out once");
    let container = created.start().expect("start");
    console.write_all(b"answer\n").expect("write");
    let mut text = String::new();
    // The end of a terminal is EIO.
    let _ = console.read_to_string(&mut text);
    let status = container.init().wait_blocking().expect("wait");
    assert!(text.contains("/dev/pts/0") && text.contains("33 99"), "{text}");
    assert!(text.contains("/dev/console") && text.contains("answer"), "{text}");
    assert_eq!(status.code, 5);
    container.delete().expect("delete");
}

#[test]
fn an_exec_has_a_terminal_too() {
    let fixture = Fixture::script("echo up; sleep 1000");
    let (container, mut pipes) = fixture.start().expect("start");
    pipes.line();
    let mut process = fixture.process();
    process.set_args(Some(vec!["/bin/sh".into(), "-c".into(), "tty; stty size".into()]));
    let (child, console) =
        container.exec(&process, Stdio::Terminal { rows: 10, cols: 20 }).expect("exec");
    let mut text = String::new();
    let _ = File::from(console.expect("console")).read_to_string(&mut text);
    assert!(text.contains("/dev/pts/0") && text.contains("10 20"), "{text}");
    assert_eq!(child.wait_blocking().expect("wait").code, 0);
    container.delete().expect("delete");
}

#[test]
fn p01_with_init_orphans_are_reaped_and_signals_forwarded() {
    let script = "trap 'echo got; exit 9' TERM; for i in $(seq 50); do (sleep 0 &); done; \
        echo $$; cat /proc/1/comm; echo ready; while :; do sleep 0.05; done";
    let fixture = Fixture::script(script)
        .set("/annotations", json!({ "dev.knarr.seccomp": "default", "dev.knarr.init": "true" }));
    let (container, mut pipes) = fixture.start().expect("start");
    assert_ne!(pipes.line(), "1");
    assert_eq!(pipes.line(), "knarr-init");
    assert_eq!(pipes.line(), "ready");
    // Process 1 reaps when it gets to run; an orphan may be caught in the act.
    let zombies = || {
        let script = "grep -h State: /proc/[0-9]*/status | grep -c Z; true";
        fixture.exec(&container, script).expect("exec").stdout
    };
    let reaped = (0..500).any(|_| zombies() == "0\n");
    assert!(
        reaped,
        "{}",
        fixture
            .exec(&container, "grep -E 'Name|State|PPid' /proc/[0-9]*/status")
            .expect("exec")
            .stdout
    );
    container.kill(Signal::TERM).expect("term");
    assert_eq!(pipes.line(), "got");
    assert_eq!(container.init().wait_blocking().expect("wait").code, 9);
    container.delete().expect("delete");
    // A program that cannot be executed is an error with init too.
    let none =
        Fixture::new(&["/bin/text"]).set("/annotations", json!({ "dev.knarr.init": "true" }));
    let path = none.lower().join("bin/text");
    std::fs::write(&path, "x").expect("write");
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).expect("chmod");
    assert_eq!(none.try_run().expect_err("text").to_string(), "exec /bin/text: exec format error");
}

#[test]
fn binds_appear_as_they_were_asked_for() {
    let outside = tempfile::tempdir().expect("tempdir");
    let host = outside.path().canonicalize().expect("path");
    std::fs::write(host.join("file"), "data\n").expect("file");
    let source = |name: &str| host.join(name).display().to_string();
    let fixture = Fixture::script(
        "cat /data/file /etc/one; echo x > /data/new; touch /ro/no; touch /etc/one; cat /deep/er/file",
    )
    .mount(json!({ "destination": "/data", "type": "bind", "source": source(""), "options": ["rbind", "rw"] }))
    .mount(json!({ "destination": "/ro", "type": "bind", "source": source(""), "options": ["rbind", "rro"] }))
    .mount(json!({ "destination": "/etc/one", "type": "bind", "source": source("file"), "options": ["bind", "ro"] }))
    .mount(json!({ "destination": "/deep/er", "type": "bind", "source": source(""), "options": ["rbind"] }));
    let outcome = fixture.run();
    assert_eq!(outcome.stdout, "data\ndata\ndata\n");
    assert_eq!(outcome.stderr.matches("Read-only file system").count(), 2, "{}", outcome.stderr);
    assert!(host.join("new").exists());
    let mixed = Fixture::new(&["/bin/true"]).mount(
        json!({ "destination": "/etc/passwd", "type": "bind", "source": source(""), "options": ["rbind"] }),
    );
    let error = mixed.try_run().expect_err("a directory on a file").to_string();
    assert!(error.contains("mount a directory onto a file"), "{error}");
    let missing = Fixture::new(&["/bin/true"]).mount(
        json!({ "destination": "/x", "type": "bind", "source": "/nonexistent/y", "options": ["rbind"] }),
    );
    let error = missing.try_run().expect_err("no source").to_string();
    assert_eq!(error, "bind /nonexistent/y: no such file or directory");
}

#[test]
fn a_read_only_root_is_read_only() {
    let fixture = Fixture::script("touch /x; touch /tmp/x; echo ok > /dev/shm/x; cat /dev/shm/x")
        .set("/root", json!({ "path": "rootfs", "readonly": true }))
        .mount(json!({ "destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["size=1m"] }));
    let outcome = fixture.run();
    assert_eq!(outcome.stdout, "ok\n");
    assert_eq!(outcome.stderr.lines().count(), 1, "{}", outcome.stderr);
}

#[test]
fn limits_of_the_process_are_set_and_unreachable_ones_are_errors() {
    let fixture = Fixture::script("ulimit -n; ulimit -Hn; umask")
        .set("/process/rlimits", json!([{ "type": "RLIMIT_NOFILE", "soft": 100, "hard": 200 }]));
    assert_eq!(fixture.run().stdout, "100\n200\n0022\n");
    let wrong = Fixture::new(&["/bin/true"])
        .set("/process/rlimits", json!([{ "type": "RLIMIT_NOFILE", "soft": 300, "hard": 200 }]));
    let error = wrong.try_run().expect_err("soft above hard").to_string();
    assert_eq!(error, "set resource limit nofile to 300:200: invalid argument");
}

#[test]
fn namespaces_are_joined_by_path() {
    let first = Fixture::script("hostname first-host 2>/dev/null; echo up; sleep 1000");
    let (holder, mut pipes) = first.start().expect("start");
    pipes.line();
    let path = |kind: &str| format!("/proc/{}/ns/{kind}", holder.init().pid());
    let second = Fixture::script("ps | grep -c sleep; readlink /proc/self/ns/net; echo $$").set(
        "/linux/namespaces",
        json!([
            { "type": "mount" }, { "type": "uts" },
            { "type": "pid", "path": path("pid") },
            { "type": "network", "path": path("net") },
            { "type": "ipc", "path": path("ipc") },
        ]),
    );
    let outcome = second.run();
    let net = std::fs::read_link(path("net")).expect("net");
    assert!(outcome.stdout.contains(&*net.to_string_lossy()), "{}", outcome.stdout);
    assert!(!outcome.stdout.ends_with("\n1\n"), "it is not process 1: {}", outcome.stdout);
    holder.delete().expect("delete");
    let missing = Fixture::new(&["/bin/true"]).set(
        "/linux/namespaces",
        json!([{ "type": "mount" }, { "type": "uts" }, { "type": "pid" }, { "type": "network", "path": "/nonexistent" }]),
    );
    let error = missing.try_run().expect_err("no namespace");
    assert_eq!(error.to_string(), "open /nonexistent: no such file or directory");
}

#[test]
fn a_time_namespace_and_the_host_s_network_work() {
    let fixture = Fixture::script("readlink /proc/self/ns/net; readlink /proc/self/ns/time")
        .set(
            "/linux/namespaces",
            json!([{ "type": "mount" }, { "type": "pid" }, { "type": "ipc" }, { "type": "uts" }, { "type": "time" }]),
        )
        .set("/linux/sysctl", json!({}));
    let outcome = fixture.run();
    let own = |kind: &str| std::fs::read_link(format!("/proc/self/ns/{kind}")).expect("ns");
    let lines: Vec<_> = outcome.stdout.lines().collect();
    assert_eq!(lines[0], own("net").to_string_lossy());
    assert_ne!(lines[1], own("time").to_string_lossy());
}

#[test]
fn x09_arguments_too_large_are_an_error() {
    let huge = "x".repeat(3 << 20);
    let error = Fixture::new(&["/bin/echo", &huge]).try_run().expect_err("too long");
    assert_eq!(
        (error.to_string().as_str(), error.exit_code()),
        ("exec /bin/echo: argument list too long", 126)
    );
    let huge = "x".repeat(9 << 20);
    let error = Fixture::new(&["/bin/echo", &huge]).try_run().expect_err("too long");
    assert_eq!(error.exit_code(), 126, "{error}");
    let many = vec!["/bin/true"; 10_000];
    assert_eq!(Fixture::new(&many).run().status.code, 0);
}

#[test]
fn s02_hostile_specifications_are_refused() {
    let link = |fixture: &Fixture| symlink("/tmp", fixture.lower().join("link")).expect("link");
    for (pointer, value) in [
        ("/linux/cgroupsPath", json!("/../../x")),
        ("/process/cwd", json!("relative")),
        ("/process/cwd", json!("/a/../../b")),
        ("/linux/maskedPaths", json!(["proc/kcore"])),
        ("/linux/sysctl", json!({ "kernel.core_pattern": "|/evil" })),
        ("/linux/sysctl", json!({ "vm.overcommit_memory": "1" })),
        ("/linux/namespaces", json!([{ "type": "pid" }])),
        ("/linux/namespaces", json!([{ "type": "mount" }, { "type": "mount" }])),
        ("/hostname", json!("x".repeat(65))),
        ("/mounts", json!([{ "destination": "/proc", "type": "tmpfs" }])),
        ("/mounts", json!([{ "destination": "/", "type": "tmpfs" }])),
        ("/mounts", json!([{ "destination": "/a/../b", "type": "tmpfs" }])),
        ("/mounts", json!([{ "destination": "/x", "type": "ext4", "source": "/dev/vda" }])),
        ("/mounts", json!([{ "destination": "/x", "type": "bind", "source": "relative" }])),
    ] {
        let fixture = Fixture::new(&["/bin/true"]).set(pointer, value.clone());
        link(&fixture);
        let error = fixture.try_run().expect_err(&format!("{pointer} {value}"));
        let expected = [Failure::InvalidSpec, Failure::NotSupported];
        assert!(expected.contains(&error.failure()), "{pointer} {value}: {error}");
        assert_eq!(cgroup_left(&fixture.id), Vec::<PathBuf>::new());
    }
}

#[test]
fn s01_a_second_container_in_the_same_cgroup_is_refused() {
    let fixture = Fixture::script("echo up; sleep 1000");
    let (container, mut pipes) = fixture.start().expect("start");
    pipes.line();
    let error = fixture.try_run().expect_err("the same cgroup").to_string();
    assert!(error.contains("cgroup is not empty: 1 process(es)"), "{error}");
    container.kill(Signal::try_from(0x09).expect("signal")).expect("still there");
    container.delete().expect("delete");
}

#[test]
fn an_image_without_any_directory_runs_read_only() {
    let fixture = Fixture::new(&["/busybox", "ls", "/"]);
    let bare = fixture.dir.path().join("bare");
    std::fs::create_dir(&bare).expect("bare");
    std::fs::copy(fixture.lower().join("bin/busybox"), bare.join("busybox")).expect("busybox");
    for (kind, options) in
        [("overlay", vec![format!("lowerdir={}", bare.display())]), ("bind", vec!["ro".to_owned()])]
    {
        let mut fixture = Fixture::new(&["/busybox", "ls", "/"])
            .set("/root", json!({ "path": "rootfs", "readonly": true }))
            .set("/process/cwd", json!("/made"));
        fixture.rootfs[0].kind = kind.to_owned();
        fixture.rootfs[0].source = bare.clone();
        fixture.rootfs[0].options = options;
        assert_eq!(fixture.run().stdout, "busybox\ndev\nmade\nproc\nsys\n");
        assert_eq!(std::fs::read_dir(&bare).expect("bare").count(), 1);
    }
}

#[test]
fn p01_one_without_a_program_holds_namespaces_and_reaps() {
    let holder = Fixture::new(&[])
        .set("/annotations", json!({ "dev.knarr.seccomp": "default", "dev.knarr.hold": "true" }))
        .set("/process/user", json!({ "uid": 65535, "gid": 65535 }))
        .set("/process/capabilities", json!({}))
        .set("/hostname", json!("pod"));
    let (pod, pipes) = holder.start().expect("start");
    assert_eq!(pipes.read(), (String::new(), String::new()), "it keeps no streams");
    let pid = pod.init().pid();
    let namespaces: Vec<_> = ["pid", "network", "ipc", "uts"]
        .map(|kind| {
            let file = if kind == "network" { "net" } else { kind };
            json!({ "type": kind, "path": format!("/proc/{pid}/ns/{file}") })
        })
        .into_iter()
        .chain([json!({ "type": "mount" })])
        .collect();
    let script = "hostname; cat /proc/1/comm; \
        for i in $(seq 50); do (sleep 0 &); done; \
        until ! grep -hs State: /proc/[0-9]*/status | grep -q Z; do :; done; echo reaped; \
        kill -TERM 1; sleep 1000";
    let mut guest = Fixture::script(script).set("/linux/namespaces", json!(namespaces));
    guest.spec.as_object_mut().expect("object").remove("hostname");
    let (container, mut pipes) = guest.start().expect("start beside it");
    let said: Vec<String> = (0..3).map(|_| pipes.line()).collect();
    assert_eq!(said, ["pod", "knarr-init", "reaped"]);
    // It ends when it is told to, after all of its pid namespace.
    assert_eq!(container.init().wait_blocking().expect("wait").code, 137);
    assert_eq!(pod.init().wait_blocking().expect("wait").code, 0);
    for one in [pod, container] {
        one.delete().expect("delete");
    }
    assert_eq!(cgroup_left(&holder.id), Vec::<PathBuf>::new());
}

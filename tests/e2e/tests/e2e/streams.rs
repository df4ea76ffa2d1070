//! Input, output, terminals: nothing is lost, nothing hangs.

use std::{io::Write as _, process::Stdio};

use crate::world;

#[test]
fn p03_the_last_bytes_of_a_short_life_arrive() {
    let world = world();
    for _ in 0..100 {
        let run = world.knarr(&["run", "--rm", "busybox", "sh", "-c", "printf x; exit 7"]);
        assert_eq!((run.stdout.as_str(), run.code), ("x", 7), "{}", run.stderr);
    }
}

#[test]
fn p03_a_large_output_arrives_whole() {
    let world = world();
    let script = "dd if=/dev/zero bs=65536 count=256 2>/dev/null | tr '\\0' 'a'";
    let run = world.knarr(&["run", "--rm", "busybox", "sh", "-c", script]);
    assert_eq!(run.stdout.len(), 16 << 20, "{}", run.stderr);
}

#[test]
fn p04_the_end_of_input_reaches_the_process_and_its_output_comes_back() {
    let world = world();
    assert_eq!(
        world.knarr_with_input(&["run", "--rm", "-i", "busybox", "cat"], b"to and fro").ok(),
        "to and fro"
    );
    let big = vec![b'z'; 3 << 20];
    let counted = world.knarr_with_input(&["run", "--rm", "-i", "busybox", "wc", "-c"], &big).ok();
    assert_eq!(counted.trim(), "3145728");
}

#[test]
fn p05_the_container_outlives_its_client() {
    let world = world();
    let mut client = world
        .knarr_command(&["run", "--name", "one", "busybox", "sh", "-c", "echo up; sleep 1000"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    world.await_output(&mut client, "up");
    client.kill().unwrap();
    client.wait().unwrap();
    assert_eq!(world.knarr(&["inspect", "one", "--format", "{{.State.Running}}"]).ok(), "true");
    assert_eq!(world.knarr(&["logs", "one"]).ok(), "up");
}

#[test]
fn p06_a_grandchild_that_keeps_the_pipes_does_not_keep_the_container() {
    let world = world();
    assert_eq!(
        world.knarr(&["run", "--rm", "busybox", "sh", "-c", "sleep 1000 & echo gone"]).ok(),
        "gone"
    );
}

#[test]
fn p02_a_signal_is_forwarded_and_an_ignored_one_ends_in_a_kill() {
    let world = world();
    let script = "trap 'echo caught; exit 4' TERM; echo up; while :; do sleep 0.1; done";
    world.knarr(&["run", "-d", "--name", "polite", "busybox", "sh", "-c", script]).ok();
    while world.knarr(&["logs", "polite"]).ok() != "up" {}
    world.knarr(&["stop", "polite"]).ok();
    assert_eq!(world.knarr(&["inspect", "polite", "--format", "{{.State.ExitCode}}"]).ok(), "4");
    let stubborn = "trap '' TERM; echo up; while :; do sleep 0.1; done";
    world.knarr(&["run", "-d", "--name", "stubborn", "busybox", "sh", "-c", stubborn]).ok();
    while world.knarr(&["logs", "stubborn"]).ok() != "up" {}
    world.knarr(&["stop", "-t", "1", "stubborn"]).ok();
    assert_eq!(
        world.knarr(&["inspect", "stubborn", "--format", "{{.State.ExitCode}}"]).ok(),
        "137"
    );
}

#[test]
fn attach_sees_what_comes_after_it() {
    let world = world();
    world.knarr(&["run", "-d", "-i", "--name", "one", "busybox", "cat"]).ok();
    let mut client = world
        .knarr_command(&["attach", "one"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    client.stdin.as_mut().unwrap().write_all(b"echoed\n").unwrap();
    world.await_output(&mut client, "echoed");
    world.knarr(&["kill", "one"]).ok();
    assert_eq!(client.wait().unwrap().code(), Some(137));
}

#[test]
fn logs_follow_until_the_end() {
    let world = world();
    world
        .knarr(&["run", "-d", "--name", "one", "busybox", "sh", "-c", "echo a; sleep 1; echo b"])
        .ok();
    assert_eq!(world.knarr(&["logs", "-f", "one"]).ok(), "a\nb");
}

#[test]
fn logs_rotate_and_the_newest_stay() {
    let world = world();
    let script = "i=0; while [ $i -lt 3000 ]; do echo line-$i; i=$((i+1)); done";
    world
        .knarr(&[
            "run",
            "--name",
            "one",
            "--log-opt",
            "max-size=20k",
            "--log-opt",
            "max-file=2",
            "busybox",
            "sh",
            "-c",
            script,
        ])
        .ok();
    let logs = world.knarr(&["logs", "one"]).ok();
    assert!(logs.ends_with("line-2999"), "the newest line stays");
    assert!(!logs.contains("line-0\n"), "the oldest went");
    assert_eq!(world.knarr(&["logs", "-n", "2", "one"]).ok(), "line-2998\nline-2999");
}

#[test]
fn a_terminal_is_a_terminal() {
    let world = world();
    let tty = world.host_run(
        "script",
        &[
            "-qec",
            &format!(
                "env DOCKER_HOST={} {} run --rm -t busybox tty",
                world.host(),
                knarr_harness::bin_dir().join("knarr").display()
            ),
            "/dev/null",
        ],
    );
    assert!(tty.stdout.contains("/dev/pts/0"), "{} {}", tty.stdout, tty.stderr);
}

#[test]
fn p01_orphans_are_reaped_by_the_init() {
    let world = world();
    let script = "i=0; while [ $i -lt 200 ]; do (true &) ; i=$((i+1)); done; wait; sleep 0.2; ps -o stat | grep -c Z";
    let run = world.knarr(&["run", "--rm", "--init", "busybox", "sh", "-c", script]);
    assert_eq!(run.stdout.trim(), "0", "{}", run.stderr);
}

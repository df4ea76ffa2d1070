//! Limits, freezing, killing, counting.

mod common;

use std::path::{Path, PathBuf};

use common::{Fixture, cgroup_left};
use oci_spec::runtime::LinuxResources;
use serde_json::json;

fn v1(id: &str, controller: &str, file: &str) -> String {
    let path = Path::new("/sys/fs/cgroup").join(controller).join("knarr-test").join(id).join(file);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn is_v1() -> bool {
    Path::new("/sys/fs/cgroup/memory").exists()
}

#[test]
fn limits_arrive_at_the_kernel_and_can_be_changed() {
    let fixture = Fixture::script("echo up; sleep 1000").set(
        "/linux/resources",
        json!({
            "memory": { "limit": 67108864, "swap": 134217728, "reservation": 33554432 },
            "cpu": { "shares": 512, "quota": 50000, "period": 100000, "cpus": "0" },
            "pids": { "limit": 50 },
            "devices": [{ "allow": false, "access": "rwm" }],
        }),
    );
    let (container, mut pipes) = fixture.start().expect("start");
    pipes.line();
    let stats = container.stats().expect("stats");
    assert_eq!((stats.memory_limit, stats.pids_limit), (67_108_864, 50));
    assert!(stats.pids >= 1 && stats.memory_usage > 0 && stats.cpu_ns > 0, "{stats:?}");
    if is_v1() {
        assert_eq!(v1(&fixture.id, "cpu", "cpu.cfs_quota_us"), "50000\n");
        assert_eq!(v1(&fixture.id, "cpu", "cpu.shares"), "512\n");
        assert_eq!(v1(&fixture.id, "cpuset", "cpuset.cpus"), "0\n");
        assert_eq!(v1(&fixture.id, "memory", "memory.memsw.limit_in_bytes"), "134217728\n");
    }
    for (limit, swap) in [(268_435_456i64, 536_870_912i64), (67_108_864, 67_108_864), (-1, -1)] {
        let update: LinuxResources = serde_json::from_value(json!({
            "memory": { "limit": limit, "swap": swap }, "pids": { "limit": -1 },
        }))
        .expect("resources");
        container.update(&update).unwrap_or_else(|e| panic!("{limit}: {e}"));
        if limit > 0 {
            assert_eq!(container.stats().expect("stats").memory_limit, limit as u64);
        }
    }
    assert_eq!(container.stats().expect("stats").pids_limit, 0);
    container.delete().expect("delete");
    assert_eq!(cgroup_left(&fixture.id), Vec::<PathBuf>::new());
}

#[test]
fn p12_memory_beyond_the_limit_is_an_oom_kill() {
    let fixture = Fixture::script("tail /dev/zero")
        .set("/linux/resources", json!({ "memory": { "limit": 16777216, "swap": 16777216 } }));
    let (container, pipes) = fixture.start().expect("start");
    assert!(!container.oom_killed());
    pipes.read();
    let status = container.init().wait_blocking().expect("wait");
    assert!(container.oom_killed(), "{status:?}");
    assert_eq!(status.code, 137);
    container.delete().expect("delete");
}

#[test]
fn a_fork_bomb_meets_the_limit_and_is_killed() {
    let fixture = Fixture::script("echo up; f() { f | f & }; f; sleep 1000")
        .set("/linux/resources", json!({ "pids": { "limit": 64 } }));
    let (container, mut pipes) = fixture.start().expect("start");
    pipes.line();
    assert!(container.pids().expect("pids").len() <= 64);
    container.kill_all().expect("kill");
    assert_eq!(container.pids().expect("pids"), Vec::<u32>::new());
    assert_eq!(container.init().wait_blocking().expect("wait").code, 137);
    container.delete().expect("delete");
}

#[test]
fn p07_what_is_paused_stands_still_and_can_be_killed() {
    let fixture = Fixture::script("i=0; while :; do i=$((i+1)); echo $i; done");
    let (container, mut pipes) = fixture.start().expect("start");
    pipes.line();
    container.pause().expect("pause");
    container.pause().expect("again");
    let refused = fixture.exec(&container, "true").expect_err("paused").to_string();
    assert!(refused.contains("is paused, unpause the container before exec"), "{refused}");
    let before = container.stats().expect("stats").cpu_ns;
    assert_eq!(container.stats().expect("stats").cpu_ns, before);
    container.resume().expect("resume");
    for _ in 0..20_000 {
        pipes.line();
    }
    container.pause().expect("pause");
    container.kill_all().expect("a paused container dies");
    assert_eq!(container.init().wait_blocking().expect("wait").code, 137);
    container.delete().expect("delete");
}

#[test]
fn s02_what_a_dead_shim_left_is_cleaned_up() {
    let fixture = Fixture::script("echo up; sleep 1000");
    let (container, mut pipes) = fixture.start().expect("start");
    pipes.line();
    knarr_sandbox::clean_up(container.cgroup().path()).expect("clean up");
    knarr_sandbox::clean_up(container.cgroup().path()).expect("idempotent");
    assert_eq!(container.init().wait_blocking().expect("wait").code, 137);
    assert_eq!(cgroup_left(&fixture.id), Vec::<PathBuf>::new());
}

#[test]
fn r12_devices_that_were_not_granted_cannot_be_opened() {
    let script = "mknod /tmp/mem c 1 1 && head -c1 /tmp/mem; mknod /tmp/null c 1 3 && echo x > /tmp/null && echo null; \
        mknod /tmp/fuse c 10 229 && head -c1 /tmp/fuse; ls /dev | tr '\\n' ' '";
    let outcome = Fixture::script(script).run();
    assert!(outcome.stdout.starts_with("null\n"), "{outcome:?}");
    assert!(
        outcome.stdout.ends_with(
            "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero "
        ),
        "{outcome:?}"
    );
    assert_eq!(outcome.stderr.matches("Operation not permitted").count(), 2, "{outcome:?}");
    // Granted, it can; the node is made with its mode and owner.
    let granted = Fixture::script("head -c1 /dev/kmsg-like | wc -c; stat -c '%a %u %t:%T' /dev/kmsg-like")
        .set("/linux/devices", json!([{ "path": "/dev/kmsg-like", "type": "c", "major": 1, "minor": 5, "fileMode": 416, "uid": 7 }]))
        .set("/linux/resources/devices", json!([{ "allow": true, "type": "c", "major": 1, "minor": 5, "access": "rwm" }]));
    assert_eq!(granted.run().stdout, "1\n640 7 1:5\n");
}

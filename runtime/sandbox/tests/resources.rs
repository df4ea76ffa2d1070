//! Limits, freezing, killing, counting.

mod common;

use std::path::{Path, PathBuf};

use common::{Fixture, cgroup_left};
use knarr_model::Signal;
use knarr_sandbox::Left;
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

/// The groups of a container in the hierarchies that have it.
fn groups(id: &str) -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let mounts = std::fs::read_dir(root).expect("cgroups").flatten().map(|entry| entry.path());
    let groups = mounts.chain([root.to_owned()]).map(|mount| mount.join("knarr-test").join(id));
    let groups: Vec<PathBuf> = groups.filter(|group| group.is_dir()).collect();
    assert!(!groups.is_empty(), "{id} has groups");
    groups
}

/// Groups beside a container's own, for a process of its that moves away.
struct Elsewhere(Vec<PathBuf>);

impl Elsewhere {
    fn of(id: &str) -> Self {
        let beside = |group: PathBuf| group.with_file_name(format!("{id}-elsewhere"));
        let all: Vec<PathBuf> = groups(id).into_iter().map(beside).collect();
        for group in &all {
            std::fs::create_dir(group).expect("group");
        }
        Self(all)
    }

    /// As a process with the host's groups at hand does it itself (systemd as PID 1).
    fn take(&self, pid: u32) {
        for group in &self.0 {
            std::fs::write(group.join("cgroup.procs"), pid.to_string()).expect("moved");
        }
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        // The kernel says EBUSY as long as the last process is on its way out.
        for group in &self.0 {
            while std::fs::remove_dir(group)
                .is_err_and(|e| e.kind() == std::io::ErrorKind::ResourceBusy)
            {
                std::thread::yield_now();
            }
        }
    }
}

#[test]
fn s10_a_first_process_that_left_its_group_is_killed_all_the_same() {
    let begun = || {
        // One that lives on when its child, which stays in the group, is killed.
        let fixture = Fixture::script("echo up; while :; do sleep 1000; done");
        let (container, mut pipes) = fixture.start().expect("start");
        pipes.line();
        let elsewhere = Elsewhere::of(&fixture.id);
        elsewhere.take(container.init().pid());
        (fixture, container, elsewhere)
    };
    let (fixture, container, elsewhere) = begun();
    // It is the container's still, and cannot be paused any more.
    assert!(container.pids().expect("pids").contains(&container.init().pid()));
    let refused = container.pause().expect_err("not all of it would stand still").to_string();
    assert!(refused.contains("has moved itself to another control group"), "{refused}");
    assert!(!container.is_paused());
    container.kill_all().expect("killed");
    assert!(container.init().has_ended(), "success means that it is dead");
    assert_eq!(container.init().wait_blocking().expect("wait").code, 137);
    container.delete().expect("delete");
    assert_eq!(cgroup_left(&fixture.id), Vec::<PathBuf>::new());
    drop(elsewhere);

    // A signal for everybody is one for it too.
    let (_fixture, container, _elsewhere) = begun();
    container.signal_all(Signal::TERM).expect("sent");
    container.signal_all(Signal::KILL).expect("sent");
    assert_eq!(container.init().wait_blocking().expect("wait").code, 137);
    container.delete().expect("delete");

    // Removed at once.
    let (fixture, container, _elsewhere) = begun();
    container.delete().expect("delete");
    assert!(container.init().has_ended());
    assert_eq!(cgroup_left(&fixture.id), Vec::<PathBuf>::new());

    // Without its shim, by what that wrote: number and start time.
    let (fixture, container, _elsewhere) = begun();
    let init = container.init();
    let wrong = Left { pid: init.pid(), start_time: init.start_time() + 1, ..Left::default() };
    knarr_sandbox::clean_up(container.cgroup().path(), &wrong).expect("clean up");
    assert!(!init.has_ended(), "k10: another process of that number is spared");
    let left = Left { pid: init.pid(), start_time: init.start_time(), ..Left::default() };
    knarr_sandbox::clean_up(container.cgroup().path(), &left).expect("clean up");
    assert!(init.has_ended());
    assert_eq!(cgroup_left(&fixture.id), Vec::<PathBuf>::new());
}

/// With one hierarchy (cgroup v2) there is no leaving one of several.
#[test]
fn s10_who_left_one_hierarchy_alone_is_killed_too() {
    // Nobody dies with the first process of a namespace that is the host's.
    let fixture = Fixture::script("sleep 1000 & echo up; wait").set(
        "/linux/namespaces",
        json!([{ "type": "mount" }, { "type": "network" }, { "type": "ipc" }, { "type": "uts" }]),
    );
    let (container, mut pipes) = fixture.start().expect("start");
    pipes.line();
    let all = container.pids().expect("pids");
    let second = *all.iter().find(|pid| **pid != container.init().pid()).expect("a child");
    let elsewhere = Elsewhere::of(&fixture.id);
    if is_v1() {
        // That of v2 beside the others: who leaves it is not killed by its `cgroup.kill`.
        let v2 = elsewhere.0.iter().find(|group| group.join("cgroup.kill").exists());
        if let Some(group) = v2 {
            std::fs::write(group.join("cgroup.procs"), second.to_string()).expect("moved");
        }
    }
    container.kill_all().expect("killed");
    assert_eq!(container.pids().expect("pids"), Vec::<u32>::new());
    let dead = match knarr_sys::ProcessStat::of(second) {
        Ok(stat) => stat.field(3) == Some("Z"),
        Err(_) => true,
    };
    assert!(dead, "{second} is dead");
    container.init().wait_blocking().expect("wait");
    container.delete().expect("delete");
}

/// The groups that a process is in, by the kernel's own word.
fn memberships(pid: u32) -> Vec<(String, String)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("cgroup");
    text.lines()
        .map(|line| {
            let mut words = line.splitn(3, ':').skip(1).map(str::to_owned);
            (words.next().expect("controllers"), words.next().expect("path"))
        })
        .collect()
}

#[test]
fn s02_its_processes_are_in_every_hierarchy_that_was_made_for_it() {
    let fixture = Fixture::script("echo up; sleep 1000");
    let (container, mut pipes) = fixture.start().expect("start");
    pipes.line();
    let (stdio, mut second) = common::pipes();
    let mut process = fixture.process();
    let script = ["/bin/sh", "-c", "echo up; sleep 1000"];
    process.set_args(Some(script.map(str::to_owned).to_vec()));
    let (exec, _) = container.exec(&process, stdio).expect("exec");
    assert_eq!(second.line(), "up");
    let wanted = format!("/knarr-test/{}", fixture.id);
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    for pid in [container.init().pid(), exec.pid()] {
        let mut seen = 0;
        for (controllers, path) in memberships(pid) {
            // v2 has no name; v1's others are somebody's own (`name=openrc`).
            let ours = !controllers.contains("name=") || controllers == "name=systemd";
            let mounted = controllers.is_empty()
                || mounts
                    .lines()
                    .any(|line| line.contains(" - cgroup ") && line.ends_with(&controllers));
            if ours && mounted {
                assert_eq!(path, wanted, "{controllers:?} of {pid}");
                seen += 1;
            }
        }
        assert!(seen > 0);
    }
    for group in groups(&fixture.id) {
        let procs = std::fs::read_to_string(group.join("cgroup.procs")).expect("procs");
        for pid in [container.init().pid(), exec.pid()] {
            let found = procs.lines().any(|line| line == pid.to_string());
            assert!(found, "{pid} is not in {}: {procs}", group.display());
        }
    }
    container.delete().expect("delete");
    assert_eq!(cgroup_left(&fixture.id), Vec::<PathBuf>::new());
}

#[test]
fn s02_what_a_dead_shim_left_is_cleaned_up() {
    let fixture = Fixture::script("echo up; sleep 1000");
    let (container, mut pipes) = fixture.start().expect("start");
    pipes.line();
    let left = Left::default();
    knarr_sandbox::clean_up(container.cgroup().path(), &left).expect("clean up");
    knarr_sandbox::clean_up(container.cgroup().path(), &left).expect("idempotent");
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

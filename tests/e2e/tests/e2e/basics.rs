//! The everyday verbs on native containers.

use crate::{world, world_of_both};

#[test]
fn run_prints_what_the_program_prints() {
    let world = world();
    assert_eq!(world.knarr(&["run", "--rm", "busybox", "echo", "hello"]).ok(), "hello");
    assert_eq!(world.knarr(&["ps", "-a", "-q"]).ok(), "");
}

#[test]
fn exit_codes_are_dockers() {
    let world = world();
    for (arguments, code) in [
        (&["busybox", "sh", "-c", "exit 7"][..], 7),
        (&["--init", "busybox", "sh", "-c", "kill -9 $$"], 137),
        (&["busybox", "sh", "-c", "kill -15 $$; exit 3"], 3),
        (&["busybox", "nonexistent"], 127),
        (&["busybox", "/tmp"], 126),
        (&["busybox", "/etc/passwd"], 126),
        (&["nosuchimage:none"], 125),
        (&["--no-such-flag", "busybox"], 125),
        (&["-v", "relative:relative", "busybox", "true"], 125),
    ] {
        let run = world.knarr(&[&["run", "--rm", "--pull", "never"], arguments].concat());
        assert_eq!(run.code, code, "{} said {}", run.line, run.stderr);
    }
}

#[test]
fn create_start_stop_and_remove() {
    let world = world();
    let id = world.knarr(&["create", "--name", "one", "busybox", "sleep", "1000"]).ok();
    assert_eq!(id.len(), 64);
    assert_eq!(world.knarr(&["inspect", "one", "--format", "{{.State.Status}}"]).ok(), "created");
    assert_eq!(world.knarr(&["start", "one"]).ok(), "one");
    assert_eq!(world.knarr(&["inspect", "one", "--format", "{{.State.Running}}"]).ok(), "true");
    let refused = world.knarr(&["rm", "one"]).fails(1);
    assert!(refused.contains("container is running"), "{refused}");
    assert_eq!(world.knarr(&["stop", "-t", "0", "one"]).ok(), "one");
    assert_eq!(world.knarr(&["inspect", "one", "--format", "{{.State.ExitCode}}"]).ok(), "137");
    assert_eq!(world.knarr(&["start", &id[..12]]).ok(), &id[..12]);
    assert_eq!(world.knarr(&["rm", "-f", "one"]).ok(), "one");
    let gone = world.knarr(&["start", "one"]).fails(1);
    assert!(gone.contains("No such container: one"), "{gone}");
}

#[test]
fn a_name_is_given_once() {
    let world = world();
    world.knarr(&["create", "--name", "one", "busybox"]).ok();
    let taken = world.knarr(&["create", "--name", "one", "busybox"]).fails(1);
    assert!(taken.contains("already in use by container"), "{taken}");
}

#[test]
fn logs_hold_both_streams_in_order() {
    let world = world();
    world
        .knarr(&[
            "run",
            "--name",
            "one",
            "busybox",
            "sh",
            "-c",
            "echo out; echo err >&2; echo more",
        ])
        .ok();
    let logs = world.knarr(&["logs", "one"]);
    assert_eq!((logs.stdout.as_str(), logs.stderr.as_str()), ("out\nmore\n", "err\n"));
    world.knarr(&["run", "--name", "two", "busybox", "sh", "-c", "echo out; echo more"]).ok();
    assert_eq!(world.knarr(&["logs", "-n", "1", "two"]).ok(), "more");
    let stamped = world.knarr(&["logs", "-t", "-n", "1", "two"]).ok();
    assert!(stamped.ends_with("Z more"), "{stamped}");
}

#[test]
fn exec_runs_beside_the_first_process() {
    let world = world();
    world.knarr(&["run", "-d", "--name", "one", "-e", "A=1", "busybox", "sleep", "1000"]).ok();
    assert_eq!(world.knarr(&["exec", "one", "sh", "-c", "echo $A"]).ok(), "1");
    assert_eq!(
        world.knarr(&["exec", "-e", "B=2", "-w", "/tmp", "one", "sh", "-c", "echo $B; pwd"]).ok(),
        "2\n/tmp"
    );
    assert_eq!(world.knarr(&["exec", "-u", "app", "one", "id", "-u"]).ok(), "1000");
    assert_eq!(world.knarr(&["exec", "one", "sh", "-c", "exit 9"]).code, 9);
    assert_eq!(world.knarr(&["exec", "one", "nonexistent"]).code, 127);
    assert_eq!(world.knarr_with_input(&["exec", "-i", "one", "cat"], b"through").ok(), "through");
    world.knarr(&["exec", "-d", "one", "touch", "/tmp/mark"]).ok();
    world.knarr(&["exec", "one", "sh", "-c", "until [ -e /tmp/mark ]; do :; done"]).ok();
    let processes = world.knarr(&["top", "one"]).ok();
    assert!(processes.contains("sleep 1000"), "{processes}");
}

#[test]
fn flags_reach_the_process() {
    let world = world();
    let sh = |flags: &[&str], script: &str| {
        world.knarr(&[&["run", "--rm"], flags, &["busybox", "sh", "-c", script]].concat()).ok()
    };
    assert_eq!(sh(&["-h", "boat"], "hostname; cat /etc/hostname"), "boat\nboat");
    assert_eq!(sh(&["-w", "/tmp"], "pwd"), "/tmp");
    assert_eq!(sh(&["-w", "/made/for/it"], "pwd"), "/made/for/it");
    assert_eq!(sh(&["-u", "1000:2000"], "id -u; id -g"), "1000\n2000");
    assert_eq!(sh(&["-u", "app"], "id -G; echo $HOME"), "1000 2000\n/home/app");
    assert_eq!(sh(&["--entrypoint", "echo"], "x"), "-c x".replace("-c", "sh -c"));
    assert_eq!(
        sh(
            &["-m", "64m"],
            "cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max"
        ),
        "67108864"
    );
    assert_eq!(
        sh(
            &["--pids-limit", "50"],
            "cat /sys/fs/cgroup/pids/pids.max 2>/dev/null || cat /sys/fs/cgroup/pids.max"
        ),
        "50"
    );
    assert_eq!(sh(&["--ulimit", "nofile=100:200"], "ulimit -n; ulimit -Hn"), "100\n200");
    assert_eq!(
        sh(&["--sysctl", "net.ipv4.ip_default_ttl=33"], "cat /proc/sys/net/ipv4/ip_default_ttl"),
        "33"
    );
    assert_eq!(sh(&["--shm-size", "1m"], "df -k /dev/shm | tail -1 | awk '{print $2}'"), "1024");
    assert_eq!(
        sh(&["--tmpfs", "/scratch:size=2m"], "df -k /scratch | tail -1 | awk '{print $2}'"),
        "2048"
    );
    assert_eq!(sh(&["--add-host", "ship:10.1.2.3"], "grep ship /etc/hosts | cut -f1"), "10.1.2.3");
    assert_eq!(sh(&["--read-only"], "touch /x 2>&1 | grep -c 'Read-only'"), "1");
    assert_eq!(sh(&["--init"], "cat /proc/1/comm | grep -c sh; true"), "0");
    assert_eq!(
        sh(&["--cap-drop", "ALL"], "grep CapEff /proc/self/status | cut -f2"),
        "0000000000000000"
    );
    assert_eq!(
        sh(&["--security-opt", "no-new-privileges"], "grep NoNewPrivs /proc/self/status | cut -f2"),
        "1"
    );
    assert_eq!(sh(&["--privileged"], "grep Seccomp: /proc/self/status | cut -f2"), "0");
    assert_eq!(sh(&[], "grep Seccomp: /proc/self/status | cut -f2"), "2");
    assert_eq!(sh(&["--network", "none"], "ls /sys/class/net"), "lo");
}

#[test]
fn the_default_capabilities_are_dockers() {
    let world = world();
    let caps = world
        .knarr(&["run", "--rm", "busybox", "sh", "-c", "grep Cap /proc/self/status | cut -f2"])
        .ok();
    let want = [
        "0000000000000000",
        "00000000a80425fb",
        "00000000a80425fb",
        "00000000a80425fb",
        "0000000000000000",
    ];
    assert_eq!(caps.lines().collect::<Vec<_>>(), want);
}

#[test]
fn pause_holds_and_unpause_lets_go() {
    let world = world();
    world.knarr(&["run", "-d", "--name", "one", "busybox", "sleep", "1000"]).ok();
    world.knarr(&["pause", "one"]).ok();
    assert_eq!(world.knarr(&["inspect", "one", "--format", "{{.State.Status}}"]).ok(), "paused");
    let refused = world.knarr(&["exec", "one", "true"]).fails(1);
    assert!(refused.contains("is paused"), "{refused}");
    world.knarr(&["unpause", "one"]).ok();
    world.knarr(&["exec", "one", "true"]).ok();
    world.knarr(&["pause", "one"]).ok();
    world.knarr(&["rm", "-f", "one"]).ok();
}

#[test]
fn wait_answers_the_exit_code() {
    let world = world();
    world
        .knarr(&["run", "-d", "--name", "one", "busybox", "sh", "-c", "read x < /dev/zero; exit 5"])
        .ok();
    world.knarr(&["kill", "-s", "KILL", "one"]);
    assert_eq!(world.knarr(&["wait", "one"]).ok(), "137");
    world.knarr(&["run", "--name", "two", "busybox", "sh", "-c", "exit 5"]).fails(5);
    assert_eq!(world.knarr(&["wait", "two"]).ok(), "5");
}

#[test]
fn ps_filters_and_formats() {
    let world = world();
    world.knarr(&["run", "-d", "--name", "up", "-l", "kind=boat", "busybox", "sleep", "1000"]).ok();
    world.knarr(&["run", "--name", "down", "busybox", "true"]).ok();
    let names = |arguments: &[&str]| {
        world.knarr(&[&["ps", "--format", "{{.Names}}"], arguments].concat()).ok()
    };
    assert_eq!(names(&[]), "up");
    assert_eq!(names(&["-a"]), "down\nup");
    assert_eq!(names(&["-a", "--filter", "status=exited"]), "down");
    assert_eq!(names(&["-a", "--filter", "label=kind=boat"]), "up");
    assert_eq!(names(&["-a", "--filter", "name=dow"]), "down");
    let table = world.knarr(&["ps"]).ok();
    assert!(table.starts_with("CONTAINER ID   IMAGE"), "{table}");
    assert!(table.contains("\"sleep 1000\"") && table.contains("Up "), "{table}");
}

#[test]
fn stats_and_info_answer() {
    let world = world();
    world.knarr(&["run", "-d", "--name", "one", "-m", "32m", "busybox", "sleep", "1000"]).ok();
    let stats = world
        .knarr(&["stats", "--no-stream", "--format", "{{.Name}} {{.MemUsage}} {{.PIDs}}"])
        .ok();
    assert!(
        stats.starts_with("one ") && stats.contains("/ 32MiB") && stats.ends_with(" 1"),
        "{stats}"
    );
    let info = world.knarr(&["info"]).ok();
    assert!(info.contains("Running: 1"), "{info}");
    assert!(world.knarr(&["version"]).ok().contains("API version"), "a version");
}

#[test]
fn images_are_tagged_listed_and_removed() {
    let world = world();
    world.knarr(&["tag", "busybox", "ship/box:1"]).ok();
    let list = world.knarr(&["images", "--format", "{{.Repository}}:{{.Tag}}"]).ok();
    assert!(list.contains("busybox:latest") && list.contains("ship/box:1"), "{list}");
    assert!(world.knarr(&["rmi", "ship/box:1"]).ok().contains("Untagged: ship/box:1"), "untagged");
    world.knarr(&["create", "--name", "user", "busybox"]).ok();
    let refused = world.knarr(&["rmi", "busybox"]).fails(1);
    assert!(refused.contains("conflict"), "{refused}");
    world.knarr(&["rm", "user"]).ok();
    assert!(world.knarr(&["rmi", "busybox"]).ok().contains("Deleted: sha256:"), "deleted");
    assert_eq!(world.knarr(&["images", "-q"]).ok(), "");
}

#[test]
fn restart_policies_apply() {
    let world = world();
    world
        .knarr(&["run", "-d", "--name", "one", "--restart", "on-failure:2", "busybox", "false"])
        .ok();
    assert_eq!(world.knarr(&["wait", "one"]).code, 0);
    let mut count = String::new();
    while count != "2" {
        count = world.knarr(&["inspect", "one", "--format", "{{.RestartCount}}"]).ok();
    }
    world
        .knarr(&["run", "-d", "--name", "two", "--restart", "always", "busybox", "sleep", "1000"])
        .ok();
    // By the host: `kill` is a user's own stop, after which no policy applies.
    let pid = world.knarr(&["inspect", "two", "--format", "{{.State.Pid}}"]).ok();
    world.host_run("kill", &["-9", &pid]).ok();
    let mut count = String::new();
    while count != "1" {
        count = world.knarr(&["inspect", "two", "--format", "{{.RestartCount}}"]).ok();
    }
    world.knarr(&["stop", "-t", "0", "two"]).ok();
    assert_eq!(world.knarr(&["inspect", "two", "--format", "{{.State.Status}}"]).ok(), "exited");
}

#[test]
fn a_shared_ipc_namespace_comes_with_its_shared_memory() {
    let world = world();
    let run = |flags: &[&str], words: &[&str]| {
        world.knarr(&[&["run"], flags, &["busybox"], words].concat())
    };
    run(&["-d", "--name", "one", "--ipc", "shareable"], &["sleep", "1000"]).ok();
    world.knarr(&["exec", "one", "sh", "-c", "echo grain > /dev/shm/cargo"]).ok();
    let joined = ["--rm", "--ipc", "container:one"];
    assert_eq!(run(&joined, &["cat", "/dev/shm/cargo"]).ok(), "grain");
    run(&joined, &["sh", "-c", "echo back > /dev/shm/answer"]).ok();
    assert_eq!(world.knarr(&["exec", "one", "cat", "/dev/shm/answer"]).ok(), "back");
    assert_eq!(run(&["--rm"], &["ls", "/dev/shm"]).ok(), "", "others have their own");
}

#[test]
fn supplementary_groups_have_names_and_numbers() {
    let world = world_of_both();
    let groups = ["--group-add", "extra", "--group-add", "77"];
    let run = |image: &[&str]| world.knarr(&[&["run", "--rm"], &groups[..], image].concat());
    assert_eq!(run(&["busybox", "id", "-G"]).ok(), "0 77 2000");
    assert_eq!(run(&["-u", "1000", "busybox", "id", "-G"]).ok(), "1000 77 2000");
    world
        .knarr(
            &[&["run", "-d", "--name", "one"], &groups[..], &["busybox", "sleep", "99"]].concat(),
        )
        .ok();
    assert_eq!(world.knarr(&["exec", "one", "id", "-G"]).ok(), "0 77 2000");
    let missing =
        world.knarr(&["run", "--rm", "--group-add", "none", "busybox", "true"]).fails(125);
    assert!(missing.contains("unable to find group none"), "{missing}");
    let wasm = run(&["hello"]).fails(125);
    assert!(wasm.contains("--group-add"), "{wasm}");
}

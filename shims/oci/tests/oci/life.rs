//! From create to delete, in order and out of it.

use std::{fs, path::Path, process::Stdio};

use serde_json::{Value, json};

use crate::support::{Bundle, Done};

#[test]
fn s01_a_container_goes_from_created_over_running_to_stopped() {
    let bundle = Bundle::script("touch /started; sleep 1000");
    bundle.write();
    let pid_file = bundle.path("pid");
    let pid_path = pid_file.display().to_string();
    let id = bundle.id.clone();
    assert_eq!(bundle.quiet(&["create", "--pid-file", &pid_path, &id]).code, 0);
    let state = bundle.state();
    assert_eq!(state["status"], "created");
    assert_eq!(state["pid"].to_string(), fs::read_to_string(&pid_file).expect("pid file"));
    assert_eq!(state["bundle"], json!(bundle.dir.path()));
    assert!(!bundle.rootfs("started").exists());

    bundle.verb(&["start"]).fine();
    assert_eq!(bundle.status(), "running");
    bundle.until("the program", || bundle.rootfs("started").exists());
    bundle.verb(&["start"]).failed(1, "cannot start an already running container");
    bundle.verb(&["create"]).failed(1, "container with given ID already exists");
    bundle.verb(&["delete"]).failed(1, "that is not stopped: running");
    let list: Value =
        serde_json::from_str(&bundle.knarr(&["list", "-f", "json"]).fine()).expect("list");
    assert_eq!(list[0]["id"], json!(id));

    bundle.knarr(&["kill", &id, "KILL"]).fine();
    bundle.until("its end", || bundle.status() == "stopped");
    bundle.verb(&["start"]).failed(1, "cannot start a container that has stopped");
    bundle.verb(&["kill"]).failed(1, "container not running");
    bundle.verb(&["exec", "--cwd", "/"]).failed(255, "stopped");
    bundle.verb(&["delete"]).fine();
    bundle.verb(&["delete"]).failed(1, "container does not exist");
    bundle.verb(&["delete", "--force"]).fine();
    bundle.verb(&["state"]).failed(1, "container does not exist");
    assert!(!Path::new("/sys/fs/cgroup/pids").join(&id).exists());
}

#[test]
fn s01_a_created_container_can_be_deleted_and_its_death_is_seen() {
    let bundle = Bundle::new(&["/bin/true"]);
    assert_eq!(bundle.create().code, 0);
    bundle.verb(&["delete"]).fine();
    bundle.verb(&["state"]).failed(1, "does not exist");

    assert_eq!(bundle.create().code, 0);
    bundle.knarr(&["kill", &bundle.id, "9"]).fine();
    bundle.until("its end", || bundle.status() == "stopped");
    bundle.verb(&["start"]).failed(1, "has stopped");
}

#[test]
fn s01_a_created_container_ends_when_it_is_asked_to() {
    for signal in ["TERM", "INT", "HUP"] {
        let bundle = Bundle::new(&["/bin/true"]);
        assert_eq!(bundle.create().code, 0);
        bundle.knarr(&["kill", &bundle.id, signal]).fine();
        bundle.until("its end", || bundle.status() == "stopped");
        bundle.verb(&["start"]).failed(1, "has stopped");
    }
}

#[test]
fn s01_a_name_is_given_once() {
    let bundle = Bundle::new(&["/bin/true"]);
    bundle.write();
    let codes: Vec<i32> = std::thread::scope(|scope| {
        // Silent: the container would keep our pipes.
        let create = || {
            let mut command = bundle.command(&["create", &bundle.id]);
            command.stdout(Stdio::null()).stderr(Stdio::null()).status().expect("create")
        };
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(create)).collect();
        threads.into_iter().map(|one| one.join().expect("join").code().expect("code")).collect()
    });
    assert_eq!(codes.iter().filter(|code| **code == 0).count(), 1, "{codes:?}");
    assert_eq!(bundle.status(), "created");
}

#[test]
fn s01_a_limit_of_few_descriptors_is_the_programs() {
    // As many as the number that the socket of `start` has, fewer, and enough of them.
    for (soft, hard) in [(64, 64), (64, 4096), (100, 100), (101, 101)] {
        let mut bundle =
            Bundle::script("ulimit -n > /soft; ulimit -Hn > /hard; touch /done; sleep 1000");
        bundle.config["process"]["rlimits"] =
            json!([{ "type": "RLIMIT_NOFILE", "soft": soft, "hard": hard }]);
        let created = bundle.create();
        assert_eq!(created.code, 0, "{soft}:{hard}: {created:?}");
        bundle.verb(&["start"]).fine();
        bundle.until("the program", || bundle.rootfs("done").exists());
        let told = |name: &str| fs::read_to_string(bundle.rootfs(name)).expect("a limit");
        assert_eq!((told("soft"), told("hard")), (format!("{soft}\n"), format!("{hard}\n")));
    }
    let mut bundle = Bundle::new(&["/bin/true"]);
    bundle.config["process"]["rlimits"] =
        json!([{ "type": "RLIMIT_NOFILE", "soft": 64, "hard": 32 }]);
    bundle.create().failed(1, "set resource limit nofile to 64:32: invalid argument");
}

#[test]
fn s01_what_cannot_be_made_leaves_nothing() {
    let mut bundle = Bundle::new(&["/bin/nope"]);
    bundle.create().failed(1, "stat /bin/nope: no such file or directory");
    assert!(!bundle.path("state").join(&bundle.id).exists());
    let cgroup = Path::new("/sys/fs/cgroup/pids").join(&bundle.id);
    assert!(!cgroup.exists());
    bundle.config["ociVersion"] = json!("9.0.0");
    bundle.run().failed(1, "unsupported OCI version");
    bundle.config["ociVersion"] = json!("1.0.2");
    bundle.config["process"]["cwd"] = json!("relative");
    bundle.run().failed(1, "absolute");
    fs::write(bundle.path("config.json"), "{").expect("config.json");
    bundle.verb(&["run"]).failed(1, "config.json");
    fs::remove_file(bundle.path("config.json")).expect("config.json");
    bundle.verb(&["run"]).failed(1, "config.json not found");
    for bad in ["../x", "a/b", ".."] {
        bundle.knarr(&["create", bad]).failed(1, "invalid container ID format");
    }
}

#[test]
fn where_no_network_namespace_can_be_made_it_says_so_and_leaves_nothing() {
    let bundle = Bundle::script("true");
    bundle.write();
    // In a user namespace with a limit of its own; its root may not write devices' lists.
    let script = "umount -l /sys/fs/cgroup/devices; exec unshare -Urm sh -c \
                  'echo 0 > /proc/sys/user/max_net_namespaces && exec \"$@\"' sh \"$@\"";
    let output = std::process::Command::new("unshare")
        .args(["-m", "sh", "-c", script, "sh", env!("CARGO_BIN_EXE_knarr-oci"), "--root"])
        .arg(bundle.path("state"))
        .args(["run", &bundle.id])
        .current_dir(bundle.dir.path())
        .output()
        .expect("unshare");
    Done::from(output).failed(1, "make namespaces (too many of them)");
    assert_eq!(bundle.knarr(&["list", "-q"]).fine(), "");
    let group = Path::new("/sys/fs/cgroup/memory").join(&bundle.id);
    assert!(!group.exists(), "{} is left", group.display());
}

#[test]
fn run_gives_the_program_s_own_exit_code() {
    let bundle = Bundle::script("echo out; echo err >&2; exit 7");
    let done = bundle.run();
    assert_eq!((done.code, done.out.as_str(), done.err.as_str()), (7, "out\n", "err\n"));
    // Nothing of it is left.
    bundle.verb(&["state"]).failed(1, "does not exist");
    let killed = Bundle::script("kill -9 $$");
    // The first process of a pid namespace cannot kill itself so.
    assert_eq!(killed.run().code, 0);
    let kept = Bundle::new(&["/bin/true"]);
    kept.write();
    kept.verb(&["run", "--keep"]).fine();
    assert_eq!(kept.status(), "stopped");
}

#[test]
fn a_detached_run_goes_on_without_us() {
    let bundle = Bundle::script("sleep 1000");
    bundle.write();
    assert_eq!(bundle.quiet(&["run", "--detach", &bundle.id]).code, 0);
    assert_eq!(bundle.status(), "running");
    bundle.verb(&["delete", "-f"]).fine();
}

#[test]
fn it_is_frozen_thawed_limited_and_measured() {
    let bundle = Bundle::script("sleep 1000");
    assert_eq!(bundle.create().code, 0);
    bundle.verb(&["start"]).fine();
    bundle.verb(&["pause"]).fine();
    assert_eq!(bundle.status(), "paused");
    bundle.knarr(&["exec", &bundle.id, "true"]).failed(255, "paused");
    bundle.verb(&["resume"]).fine();
    bundle.verb(&["resume"]).failed(1, "container not paused");
    assert_eq!(bundle.status(), "running");
    bundle.verb(&["update", "--pids-limit", "37", "--memory", "64m"]).fine();
    let event: Value =
        serde_json::from_str(&bundle.verb(&["events", "--stats"]).fine()).expect("event");
    assert_eq!(event["type"], "stats");
    assert_eq!(event["data"]["pids"]["limit"], 37);
    assert_eq!(event["data"]["memory"]["usage"]["limit"], 64 << 20);
    let pids: Vec<u32> =
        serde_json::from_str(&bundle.verb(&["ps", "-f", "json"]).fine()).expect("pids");
    assert!(pids.contains(&(bundle.state()["pid"].as_u64().expect("pid") as u32)));
    bundle.knarr(&["kill", "--all", &bundle.id, "SIGKILL"]).fine();
    bundle.until("its end", || bundle.status() == "stopped");
}

#[test]
fn it_says_what_it_can_do() {
    let bundle = Bundle::new(&["/bin/true"]);
    let features: Value =
        serde_json::from_str(&bundle.knarr(&["features"]).fine()).expect("features");
    assert_eq!(features["linux"]["seccomp"]["enabled"], true);
    assert!(bundle.knarr(&["--version"]).fine().starts_with("knarr-oci version "));
    bundle.knarr(&["spec"]).failed(1, "exists. Remove it first");
    bundle.knarr(&["checkpoint", "x"]).failed(1, "not supported");
    bundle.knarr(&["--systemd-cgroup", "list"]).failed(1, "systemd");
}

/// Names that a process can give itself, as a shell's printf writes them.
pub(crate) const NAMES: [&str; 5] = [r"\377\376", r") R 1 (", r"a) Z 1 1 1", r"x\ny) R 9", r"(("];

#[test]
fn k10_a_process_s_name_hides_it_from_nobody() {
    for name in NAMES {
        // The name lasts until the next program.
        let script = format!(
            "printf '{name}' > /proc/self/comm; touch /named; while :; do sleep 1000; done"
        );
        let bundle = Bundle::script(&script);
        assert_eq!(bundle.create().code, 0);
        bundle.verb(&["start"]).fine();
        bundle.until("its name", || bundle.rootfs("named").exists());
        let state = bundle.state();
        assert_eq!(state["status"], "running", "{name}");
        let pid = state["pid"].as_u64().expect("pid");
        assert!(bundle.verb(&["ps", "--format", "json"]).fine().contains(&pid.to_string()));
        bundle.verb(&["delete"]).failed(1, "that is not stopped: running");
        assert_eq!(bundle.knarr(&["exec", &bundle.id, "echo", "in"]).fine(), "in\n");
        bundle.knarr(&["kill", &bundle.id, "KILL"]).fine();
        bundle.until("its end", || bundle.status() == "stopped");
        bundle.verb(&["delete"]).fine();
        bundle.until("its burial", || !Path::new("/proc").join(pid.to_string()).exists());
    }
}

#[test]
fn k10_a_number_that_went_to_another_process_is_not_killed() {
    let bundle = Bundle::script("sleep 1000");
    assert_eq!(bundle.create().code, 0);
    bundle.verb(&["start"]).fine();
    bundle.knarr(&["kill", &bundle.id, "KILL"]).fine();
    bundle.until("its end", || bundle.status() == "stopped");
    // As after so many processes that the kernel begins with their numbers anew.
    let mut stranger = std::process::Command::new("sleep").arg("1000").spawn().expect("sleep");
    let path = bundle.path("state").join(&bundle.id).join("state.json");
    let text = fs::read(&path).expect("state.json");
    let mut record: Value = serde_json::from_slice(&text).expect("state.json");
    record["pid"] = json!(stranger.id());
    for start in [record["startTime"].clone(), json!(0)] {
        record["startTime"] = start;
        fs::write(&path, record.to_string()).expect("state.json");
        assert_eq!(bundle.status(), "stopped");
        bundle.knarr(&["kill", &bundle.id, "KILL"]).failed(1, "container not running");
        bundle.verb(&["exec", "--cwd", "/"]).failed(255, "stopped");
    }
    bundle.verb(&["delete", "--force"]).fine();
    assert!(stranger.try_wait().expect("wait").is_none(), "the stranger lives");
    stranger.kill().expect("kill");
    stranger.wait().expect("wait");
}

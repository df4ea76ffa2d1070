//! What callers of runc have come to rely on beside the specification: words,
//! orders, and what happens to what is said twice or not at all. Each was found by
//! runc's own tests (CONFORMANCE.md).

use std::{
    fs,
    io::Write,
    os::unix::{
        fs::{PermissionsExt, symlink},
        net::UnixListener,
    },
    process::Stdio,
};

use rustix::{
    io::IoSliceMut,
    net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg},
};
use serde_json::json;

use crate::support::Bundle;

fn started(bundle: &Bundle) {
    assert_eq!(bundle.create().code, 0);
    bundle.verb(&["start"]).fine();
}

#[test]
fn s01_a_cgroup_that_is_in_use_or_frozen_is_refused() {
    let first = Bundle::script("sleep 1000");
    started(&first);
    let mut second = Bundle::new(&["/bin/true"]);
    second.config["linux"]["cgroupsPath"] = first.config["linux"]["cgroupsPath"].clone();
    second.run().failed(1, "container's cgroup is not empty: 1 process(es) found");
    assert_eq!(first.status(), "running");
    first.knarr(&["delete", "--force", &first.id]).fine();

    let frozen = Bundle::new(&["/bin/true"]);
    let v1 = format!("/sys/fs/cgroup/freezer/{}", frozen.id);
    let (dir, file, word) = match fs::create_dir(&v1) {
        Ok(()) => (v1, "freezer.state", "FROZEN"),
        Err(_) => (format!("/sys/fs/cgroup/{}", frozen.id), "cgroup.freeze", "1"),
    };
    fs::create_dir_all(&dir).expect("a group");
    fs::write(format!("{dir}/{file}"), word).expect("freeze");
    let done = frozen.run();
    fs::remove_dir(&dir).expect("the group is left as it was");
    done.failed(1, "container's cgroup unexpectedly frozen");
    let left = format!("/sys/fs/cgroup/memory/{}", frozen.id);
    assert!(!fs::exists(&left).expect("look"), "{left} was made beside it");
}

#[test]
fn the_environment_is_said_once() {
    let mut bundle = Bundle::new(&["/bin/env"]);
    bundle.config["process"]["env"] =
        json!(["PATH=/bin", "ONE=two", "HOME=/away", "ONE=three", "HOME="]);
    assert_eq!(bundle.run().fine(), "PATH=/bin\nONE=three\nHOME=/root\n");
}

#[test]
fn capabilities_are_those_that_are_written_down() {
    let script = "grep -E 'Cap(Inh|Prm|Amb)' /proc/self/status";
    let mut bundle = Bundle::script(script);
    let sets = &mut bundle.config["process"]["capabilities"];
    sets["permitted"] = json!(["CAP_KILL", "CAP_CHOWN", "CAP_NOBODY_KNOWS"]);
    sets["bounding"] = json!(["CAP_KILL", "CAP_CHOWN"]);
    sets["inheritable"] = json!(["CAP_KILL"]);
    sets["ambient"] = json!(["CAP_KILL", "CAP_CHOWN"]);
    let done = bundle.run();
    for words in [
        "ignoring unknown or unavailable capabilities: [CAP_NOBODY_KNOWS]",
        "can't raise ambient capability CAP_CHOWN: ",
    ] {
        assert!(done.err.contains(words), "{done:?}");
    }
    assert_eq!(
        done.fine(),
        "CapInh:\t0000000000000020\nCapPrm:\t0000000000000021\nCapAmb:\t0000000000000020\n"
    );
}

#[test]
fn an_exec_reads_a_process_that_says_little() {
    let bundle = Bundle::script("sleep 1000");
    started(&bundle);
    let process = bundle.path("process.json");
    fs::write(&process, r#"{ "args": ["/bin/env"], "cwd": "/" }"#).expect("process.json");
    let process = process.display().to_string();
    assert_eq!(bundle.knarr(&["exec", "-p", &process, &bundle.id]).fine(), "HOME=/root\n");
}

#[test]
fn an_exec_waits_in_a_paused_container_if_it_is_told_to() {
    let bundle = Bundle::script("sleep 1000");
    started(&bundle);
    bundle.verb(&["pause"]).fine();
    bundle.knarr(&["exec", &bundle.id, "echo", "up"]).failed(255, "paused container");
    let mut command = bundle.command(&["exec", "--ignore-paused", &bundle.id, "echo", "up"]);
    let child = command.stdout(Stdio::piped()).spawn().expect("exec");
    bundle.verb(&["resume"]).fine();
    let output = child.wait_with_output().expect("exec");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "up\n");
}

#[test]
fn s02_an_exec_can_be_in_a_group_below() {
    let bundle = Bundle::script("sleep 1000");
    started(&bundle);
    let exec = |group: &str| {
        bundle.knarr(&["exec", "--cgroup", group, &bundle.id, "cat", "/proc/self/cgroup"])
    };
    for bad in ["..", "a/../../b", "cpu:../x"] {
        let done = exec(bad);
        assert_eq!(done.code, 255, "{done:?}");
    }
    exec("..").failed(255, "bad sub cgroup path");
    exec("nowhere").failed(255, "error adding pid ");
    if !fs::exists("/sys/fs/cgroup/cpu").expect("cgroups") {
        return;
    }
    exec("nonsense:/").failed(255, "unknown controller nonsense");
    let below = format!("/sys/fs/cgroup/memory/{}/below", bundle.id);
    fs::create_dir(&below).expect("a group below");
    let text = exec("memory:below").fine();
    let of = |name: &str| {
        let line = text.lines().find(|line| line.contains(&format!(":{name}:")));
        line.and_then(|line| line.rsplit(':').next()).unwrap_or_default().to_owned()
    };
    assert!(of("memory").ends_with("/below"), "{text}");
    assert!(!of("pids").ends_with("/below"), "{text}");
}

#[test]
fn killing_ends_all_who_share_the_hosts_processes() {
    let mut bundle = Bundle::script("sleep 1001 & sleep 1002 & wait");
    let all = bundle.config["linux"]["namespaces"].as_array_mut().expect("namespaces");
    all.retain(|one| one["type"] != "pid");
    started(&bundle);
    bundle.until("its processes", || {
        let pids = bundle.knarr(&["ps", "--format", "json", &bundle.id]).fine();
        serde_json::from_str::<Vec<u32>>(&pids).is_ok_and(|pids| pids.len() == 3)
    });
    bundle.knarr(&["kill", &bundle.id, "0"]).fine();
    bundle.knarr(&["kill", &bundle.id, "KILL"]).fine();
    bundle.until("their end", || {
        bundle.knarr(&["ps", "--format", "json", &bundle.id]).fine() == "[]\n"
    });
    bundle.knarr(&["kill", &bundle.id, "0"]).failed(1, "container not running");
    bundle.knarr(&["kill", "--all", &bundle.id, "0"]).fine();
}

#[test]
fn a_bind_is_put_where_a_link_leads_to_nothing() {
    let mut bundle = Bundle::new(&["/bin/cat", "/run/deep/hosts", "/etc/motd"]);
    fs::write(bundle.path("hosts"), "hosts\n").expect("hosts");
    symlink("/run/deep/hosts", bundle.rootfs("etc/hosts")).expect("link");
    symlink("../not/yet", bundle.rootfs("etc/gone")).expect("link");
    symlink("gone/motd", bundle.rootfs("etc/motd")).expect("link");
    for target in ["etc/hosts", "/etc/motd"] {
        bundle.config["mounts"].as_array_mut().expect("mounts").push(json!({
            "destination": target, "source": "hosts", "options": ["bind"],
        }));
    }
    assert_eq!(bundle.run().fine(), "hosts\nhosts\n");
    assert!(bundle.rootfs("not/yet/motd").exists(), "beneath the root, not beside it");

    // Links that lead to each other end, and nothing is made outside.
    let mut circle = Bundle::new(&["/bin/true"]);
    symlink("/etc/b", circle.rootfs("etc/a")).expect("link");
    symlink("/etc/a", circle.rootfs("etc/b")).expect("link");
    circle.config["mounts"].as_array_mut().expect("mounts").push(json!({
        "destination": "/etc/a", "source": "/dev/null", "options": ["bind"],
    }));
    circle.run().failed(1, "too many levels of symbolic links");
}

#[test]
fn r05_proc_is_no_link() {
    for (target, make) in [("/elsewhere", true), ("/nowhere", false)] {
        let bundle = Bundle::new(&["/bin/true"]);
        fs::remove_dir(bundle.rootfs("proc")).expect("proc");
        symlink(target, bundle.rootfs("proc")).expect("link");
        if make {
            fs::create_dir(bundle.rootfs("elsewhere")).expect("directory");
        }
        bundle.run().failed(1, "must be mounted on ordinary directory");
    }
}

#[test]
fn a_tmpfs_is_as_open_as_what_it_covers() {
    let mut bundle = Bundle::new(&["/bin/stat", "-c", "%a", "/narrow", "/told", "/new"]);
    for (name, options) in
        [("narrow", json!(["nosuid"])), ("told", json!(["mode=1500"])), ("new", json!([]))]
    {
        if name != "new" {
            fs::create_dir(bundle.rootfs(name)).expect("directory");
            let mode = fs::Permissions::from_mode(0o2710);
            fs::set_permissions(bundle.rootfs(name), mode).expect("mode");
        }
        bundle.config["mounts"].as_array_mut().expect("mounts").push(json!({
            "destination": format!("/{name}"), "type": "tmpfs", "source": "tmpfs",
            "options": options,
        }));
    }
    assert_eq!(bundle.run().fine(), "2710\n1500\n1777\n");
}

#[test]
fn r05_without_pivot_the_hosts_procfs_is_not_left_beneath() {
    let mut bundle =
        Bundle::new(&["/bin/busybox", "unshare", "-mrpf", "mount", "-t", "proc", "none", "/proc"]);
    for set in ["bounding", "permitted"] {
        // To be root in a user namespace.
        let all = bundle.config["process"]["capabilities"][set].as_array_mut().expect("set");
        all.push(json!("CAP_SETFCAP"));
    }
    bundle.write();
    bundle.verb(&["run", "--no-pivot"]).failed(1, "mount: permission denied");
    // Where there is no user namespace to mount in, that would say nothing.
    let all = bundle.config["linux"].as_object_mut().expect("linux");
    all.remove("maskedPaths");
    all.remove("readonlyPaths");
    bundle.run().fine();
}

#[test]
fn limits_that_the_kernel_has_reach_it() {
    let mut bundle = Bundle::script("sleep 1000");
    bundle.config["linux"]["resources"]["pids"] = json!({ "limit": 0 });
    bundle.config["linux"]["resources"]["cpu"] = json!({ "idle": 1 });
    started(&bundle);
    let file = |controller: &str, file: &str| {
        let v1 = format!("/sys/fs/cgroup/{controller}/{}/{file}", bundle.id);
        let v2 = format!("/sys/fs/cgroup/{}/{file}", bundle.id);
        fs::read_to_string(v1).or_else(|_| fs::read_to_string(v2)).expect(file)
    };
    assert_eq!((&*file("pids", "pids.max"), &*file("cpu", "cpu.idle")), ("1\n", "1\n"));
    bundle.knarr(&["update", "--cpu-idle", "0", &bundle.id]).fine();
    assert_eq!(file("cpu", "cpu.idle"), "0\n");
    bundle.knarr(&["update", "--cpu-quota", "50000", "--cpu-period", "100000", &bundle.id]).fine();
    bundle.knarr(&["update", "--cpu-period", "30000", &bundle.id]).fine();
    bundle.knarr(&["update", "--memory", "50M", "--memory-swap", "60M", &bundle.id]).fine();
    bundle.knarr(&["update", "--memory", "-1", &bundle.id]).fine();

    if fs::exists("/sys/fs/cgroup/cpu").expect("cgroups") {
        let mut unified = Bundle::new(&["/bin/true"]);
        unified.config["linux"]["resources"]["unified"] = json!({ "memory.min": "131072" });
        unified.run().failed(1, "invalid configuration: unified resources");
    }
}

#[test]
fn every_cpu_of_the_cpuset_is_the_containers() {
    use rustix::thread::{CpuSet, sched_getaffinity};
    let ours = sched_getaffinity(None).expect("affinity");
    if ours.count() < 2 {
        return;
    }
    let mut bundle = Bundle::script("sleep 1000");
    bundle.config["process"]["execCPUAffinity"] = json!({ "initial": "1", "final": "0" });
    bundle.write();
    let program = env!("CARGO_BIN_EXE_knarr-oci");
    let (state, dir) = (bundle.path("state"), bundle.dir.path());
    let mut pinned = std::process::Command::new("taskset");
    pinned.args(["-c", "0", program, "--root"]).arg(&state).args(["create", &bundle.id]);
    pinned.current_dir(dir).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    assert!(pinned.status().expect("taskset").success());
    bundle.verb(&["start"]).fine();
    let pid = bundle.state()["pid"].as_i64().expect("pid");
    let theirs = sched_getaffinity(rustix::process::Pid::from_raw(pid as i32)).expect("affinity");
    let cpus = |set: &CpuSet| (0..64).filter(|cpu| set.is_set(*cpu)).collect::<Vec<_>>();
    assert_eq!(cpus(&theirs), cpus(&ours));
    let exec = ["exec", &bundle.id, "grep", "Cpus_allowed_list", "/proc/self/status"];
    assert_eq!(bundle.knarr(&exec).fine(), "Cpus_allowed_list:\t0\n");
}

#[test]
fn habits_are_those_of_an_exec_too() {
    let mut bundle = Bundle::script("sleep 1000");
    bundle.config["linux"]["personality"] = json!({ "domain": "LINUX32" });
    bundle.config["linux"]["memoryPolicy"] = json!({ "mode": "MPOL_BIND", "nodes": "0" });
    bundle.config["process"]["ioPriority"] = json!({ "class": "IOPRIO_CLASS_BE", "priority": 3 });
    started(&bundle);
    let exec = |words: &[&str]| bundle.knarr(&[&["exec", &bundle.id], words].concat()).fine();
    assert!(exec(&["/bin/busybox", "uname", "-m"]).starts_with("i686"));
    assert_eq!(exec(&["/bin/busybox", "ionice"]), "best-effort: prio 3\n");
    if fs::exists("/proc/self/numa_maps").expect("proc") {
        assert!(exec(&["head", "-n", "1", "/proc/self/numa_maps"]).contains(" bind:0"));
    }
    bundle.knarr(&["delete", "--force", &bundle.id]).fine();
    for (policy, words) in [
        (json!({ "nodes": "0" }), "invalid memory policy mode"),
        (json!({ "mode": "MPOL_BIND", "nodes": "0-9876543210" }), "invalid memory policy node"),
        (json!({ "mode": "MPOL_DEFAULT", "nodes": "0-7" }), "requires 0 nodes but got 8"),
    ] {
        bundle.config["linux"]["memoryPolicy"] = policy;
        bundle.run().failed(1, words);
    }
}

#[test]
fn a_pidfd_is_sent_where_the_caller_says() {
    let bundle = Bundle::script("sleep 1000");
    bundle.write();
    let socket = bundle.path("pidfd.sock");
    let listener = UnixListener::bind(&socket).expect("socket");
    let done =
        bundle.quiet(&["create", "--pidfd-socket", &socket.display().to_string(), &bundle.id]);
    assert_eq!(done.code, 0, "{done:?}");
    let (stream, _) = listener.accept().expect("accept");
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut name = [0; 16];
    let flags = RecvFlags::CMSG_CLOEXEC;
    recvmsg(&stream, &mut [IoSliceMut::new(&mut name)], &mut control, flags).expect("recvmsg");
    let fd = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    let fd = fd.expect("a descriptor");
    rustix::process::pidfd_send_signal(&fd, rustix::process::Signal::KILL).expect("a pidfd");
    bundle.until("its end", || bundle.status() == "stopped");
}

#[test]
fn who_waits_to_be_started_holds_nothing_of_the_hosts() {
    use std::os::unix::fs::MetadataExt;
    let bundle = Bundle::script("sleep 1000");
    assert_eq!(bundle.create().code, 0);
    let pid = bundle.state()["pid"].as_u64().expect("pid");
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).expect("descriptors") {
        let path = entry.expect("entry").path();
        let target = fs::read_link(&path).expect("link").display().to_string();
        assert!(!target.contains("/sys/") && target != "/proc/keys", "{path:?} is {target}");
        if fs::metadata(&path).is_ok_and(|meta| meta.is_dir()) {
            assert!(["/", "/proc"].contains(&&*target), "{path:?} is {target}");
            assert_ne!(fs::metadata(&path).expect("meta").dev(), 0);
        }
    }
}

#[test]
fn lists_and_events_are_in_the_order_that_scripts_cut() {
    let bundle = Bundle::script("sleep 1000");
    started(&bundle);
    let list = bundle.knarr(&["list", "--format", "json"]).fine();
    assert!(
        list.starts_with(&format!("[{{\"ociVersion\":\"1.2.0\",\"id\":\"{}\",\"pid\":", bundle.id)),
        "{list}"
    );
    let stats = bundle.knarr(&["events", "--stats", &bundle.id]).fine();
    let begin = format!("{{\"type\":\"stats\",\"id\":\"{}\",\"data\":{{", bundle.id);
    assert!(stats.starts_with(&begin), "{stats}");
    let mut nowhere = std::process::Command::new(env!("CARGO_BIN_EXE_knarr-oci"));
    nowhere.args(["--root", "/nowhere/at/all", "list"]).stdout(Stdio::null()).stderr(Stdio::null());
    assert!(!nowhere.status().expect("list").success());
    std::io::stdout().flush().expect("flush");
}

#[test]
fn r22_checkpoints_are_refused_and_nothing_is_touched() {
    let bundle = Bundle::script("sleep 1000");
    started(&bundle);
    let files = || {
        let mut all: Vec<_> = walk(bundle.dir.path());
        all.sort();
        all
    };
    let (before, state) = (files(), bundle.state());
    let image = bundle.path("image").display().to_string();
    for words in [
        &["checkpoint", &bundle.id][..],
        &["checkpoint", "--image-path", &image, "--leave-running", &bundle.id],
        &["restore", "--image-path", &image, "--bundle", ".", "another"],
        &["restore", &bundle.id],
    ] {
        bundle.knarr(words).failed(1, "checkpoints are not supported");
    }
    assert_eq!((files(), bundle.state()), (before, state));
    assert_eq!(bundle.status(), "running");
    for verb in ["checkpoint", "restore"] {
        assert!(bundle.knarr(&[verb, "--help"]).fine().contains(&format!("knarr-oci {verb}")));
    }
}

fn walk(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).expect("directory").flatten() {
        all.push(entry.path());
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            all.extend(walk(&entry.path()));
        }
    }
    all
}

#[test]
fn who_says_one_flag_of_a_bind_says_all() {
    // A mount of the host's with flags of its own, in a namespace of our own.
    let mut bundle = Bundle::script("grep -E ' /(kept|said) ' /proc/self/mounts | cut -d' ' -f2,4");
    let source = bundle.path("source");
    fs::create_dir(&source).expect("source");
    for (name, options) in [("kept", json!(["bind"])), ("said", json!(["bind", "nosuid"]))] {
        bundle.config["mounts"].as_array_mut().expect("mounts").push(json!({
            "destination": format!("/{name}"), "source": source, "options": options,
        }));
    }
    symlink("busybox", bundle.rootfs("bin/cut")).expect("link");
    bundle.write();
    let script = format!(
        "mount -t tmpfs -o size=1m tmpfs {0} && mount -o remount,bind,ro,nodev,noexec {0} && \
         exec \"$@\"",
        source.display()
    );
    let own = std::process::Command::new("unshare")
        .args(["-m", "sh", "-c", &script, "sh", env!("CARGO_BIN_EXE_knarr-oci"), "--root"])
        .arg(bundle.path("state"))
        .args(["run", &bundle.id])
        .current_dir(bundle.dir.path())
        .output()
        .expect("unshare");
    let text = String::from_utf8_lossy(&own.stdout).into_owned();
    let flags = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.rsplit(' ').next().unwrap_or_default().to_owned()
    };
    assert!(flags("/kept").starts_with("ro,nodev,noexec,"), "{own:?}");
    let said = flags("/said");
    assert!(said.starts_with("rw,nosuid,") && !said.contains("noexec"), "{own:?}");
}

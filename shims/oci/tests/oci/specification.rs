//! Parts of the runtime specification that the engine itself has no use for.

use std::{fs, os::unix::net::UnixListener};

use rustix::{
    io::IoSliceMut,
    net::{RecvAncillaryBuffer, RecvFlags, recvmsg},
};
use serde_json::{Value, json};

use crate::support::Bundle;

/// Ten thousand users from 100000 on.
pub fn with_users(bundle: &mut Bundle) {
    let map = json!([{ "containerID": 0, "hostID": 100_000, "size": 10_000 }]);
    bundle.config["linux"]["uidMappings"] = map.clone();
    bundle.config["linux"]["gidMappings"] = map;
    namespace(bundle, json!({ "type": "user" }));
}

/// Instead of the one of its kind.
pub fn namespace(bundle: &mut Bundle, new: Value) {
    let all = bundle.config["linux"]["namespaces"].as_array_mut().expect("namespaces");
    all.retain(|one| one["type"] != new["type"]);
    all.push(new);
}

fn mount(bundle: &mut Bundle, new: Value) {
    bundle.config["mounts"].as_array_mut().expect("mounts").push(new);
}

#[test]
fn r23_a_user_namespace_has_its_own_users() {
    let mut bundle = Bundle::script(
        "id; cat /proc/self/uid_map; echo x > /dev/null; stat -c %u /proc/1; sleep 1000",
    );
    with_users(&mut bundle);
    bundle.write();
    let out = bundle.path("out");
    let mut command = bundle.command(&["run", "--detach", &bundle.id]);
    let file = fs::File::create(&out).expect("out");
    let errors = file.try_clone().expect("out");
    assert!(
        command.stdout(file).stderr(errors).status().expect("run").success(),
        "{}",
        fs::read_to_string(&out).expect("out")
    );
    let expected = "uid=0 gid=0\n         0     100000      10000\n0\n";
    bundle.until("its output", || {
        fs::read_to_string(&out).is_ok_and(|text| text.ends_with("0\n0\n"))
    });
    assert_eq!(fs::read_to_string(&out).expect("out"), expected);
    let pid = bundle.state()["pid"].as_u64().expect("pid");
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    assert!(status.contains("Uid:\t100000\t100000"), "{status}");
    assert_eq!(bundle.knarr(&["exec", &bundle.id, "id", "-u"]).fine(), "0\n");
    assert_eq!(bundle.knarr(&["exec", "-u", "7:8", &bundle.id, "id"]).fine(), "uid=7 gid=8\n");

    let mut unmapped = Bundle::new(&["/bin/true"]);
    namespace(&mut unmapped, json!({ "type": "user" }));
    unmapped.run().failed(1, "no user mapping found");
}

/// One that sleeps in a user namespace of its own, and its first process.
fn with_neighbours() -> (Bundle, u64) {
    let mut first = Bundle::script("sleep 1000");
    with_users(&mut first);
    assert_eq!(first.create().code, 0);
    first.verb(&["start"]).fine();
    let pid = first.state()["pid"].as_u64().expect("pid");
    (first, pid)
}

fn link_of(pid: u64, file: &str) -> String {
    fs::read_link(format!("/proc/{pid}/ns/{file}")).expect("link").display().to_string()
}

#[test]
fn r23_a_user_namespace_can_be_that_of_another_container() {
    let (_first, pid) = with_neighbours();
    let user = json!({ "type": "user", "path": format!("/proc/{pid}/ns/user") });
    let mut second = Bundle::script(
        "readlink /proc/self/ns/user; id -u; echo $$; hostname; cat /proc/self/uid_map; sleep 1000",
    );
    namespace(&mut second, user.clone());
    second.config["hostname"] = json!("second");
    // Podman writes this down, for runc.
    let map = json!([{ "containerID": 0, "hostID": 0, "size": 1 }]);
    second.config["linux"]["uidMappings"] = map.clone();
    second.config["linux"]["gidMappings"] = map;
    second.write();
    let out = second.path("out");
    let file = fs::File::create(&out).expect("out");
    let errors = file.try_clone().expect("out");
    let mut command = second.command(&["run", "--detach", &second.id]);
    let status = command.stdout(file).stderr(errors).status().expect("run");
    assert!(status.success(), "{}", fs::read_to_string(&out).expect("out"));
    let expected =
        format!("{}\n0\n1\nsecond\n         0     100000      10000\n", link_of(pid, "user"));
    let done = || fs::read_to_string(&out).is_ok_and(|text| text.lines().count() == 5);
    second.until("its output", done);
    assert_eq!(fs::read_to_string(&out).expect("out"), expected);
    let own = second.state()["pid"].as_u64().expect("pid");
    let status = fs::read_to_string(format!("/proc/{own}/status")).expect("status");
    assert!(status.contains("Uid:\t100000\t100000"), "{status}");
    let net = second.knarr(&["exec", &second.id, "readlink", "/proc/self/ns/net"]).fine();
    assert_eq!(net, link_of(own, "net") + "\n");
    assert_ne!(net, link_of(pid, "net") + "\n");
    let done = second.knarr(&["exec", "-u", "7:8", &second.id, "id"]).fine();
    assert_eq!(done, "uid=7 gid=8\n");

    // A pod: some of its neighbour's, and a network that is the host's users'.
    let host = Bundle::script("sleep 1000");
    assert_eq!(host.create().code, 0);
    let other = host.state()["pid"].as_u64().expect("pid");
    for (kind, file, of) in [("pid", "pid", pid), ("ipc", "ipc", pid), ("network", "net", other)] {
        let mut third =
            Bundle::script("readlink /proc/self/ns/net; readlink /proc/self/ns/ipc; id -u");
        namespace(&mut third, user.clone());
        let path = format!("/proc/{of}/ns/{file}");
        namespace(&mut third, json!({ "type": kind, "path": path }));
        third.config["mounts"].as_array_mut().expect("mounts").retain(|one| {
            // Who does not own the network may not mount its sysfs, under runc neither.
            kind != "network"
                || !one["destination"].as_str().is_some_and(|path| path.starts_with("/sys"))
        });
        let done = third.run();
        assert!(done.out.ends_with("\n0\n"), "{kind}: {done:?}");
        if kind != "pid" {
            assert!(done.out.contains(&link_of(of, file)), "{kind}: {done:?}");
        }
    }
}

#[test]
fn profiles_and_labels_need_a_host_that_has_them() {
    if !std::path::Path::new("/sys/module/apparmor").exists() {
        let mut bundle = Bundle::new(&["/bin/true"]);
        bundle.config["process"]["apparmorProfile"] = json!("tight");
        bundle.run().failed(1, "but apparmor is disabled or not supported");
        // There, everything is.
        bundle.config["process"]["apparmorProfile"] = json!("unconfined");
        bundle.run().fine();
    }
    if !std::path::Path::new("/sys/fs/selinux/enforce").exists() {
        let words = "selinux label is specified in config, but selinux is disabled";
        let mut bundle = Bundle::new(&["/bin/true"]);
        bundle.config["process"]["selinuxLabel"] = json!("system_u:system_r:container_t:s0");
        bundle.run().failed(1, words);
        let mut bundle = Bundle::new(&["/bin/true"]);
        bundle.config["linux"]["mountLabel"] = json!("system_u:object_r:container_file_t:s0");
        let done = bundle.run();
        assert!(done.code == 0 && done.err.contains("mountLabel is ignored"), "{done:?}");
    }
}

#[test]
fn a_time_namespace_has_its_own_clocks() {
    let mut bundle = Bundle::script("cat /proc/uptime");
    namespace(&mut bundle, json!({ "type": "time" }));
    bundle.config["linux"]["timeOffsets"] = json!({ "boottime": { "secs": 10_000_000 } });
    let done = bundle.run();
    let uptime: f64 = done.out.split(' ').next().and_then(|n| n.parse().ok()).expect("uptime");
    assert!(uptime > 10_000_000.0, "{done:?}");
}

#[test]
fn namespaces_can_be_those_of_another_container() {
    let first = Bundle::script("sleep 1000");
    assert_eq!(first.create().code, 0);
    first.verb(&["start"]).fine();
    let pid = first.state()["pid"].as_u64().expect("pid");
    let mut second =
        Bundle::script("readlink /proc/self/ns/net; readlink /proc/self/ns/ipc; echo $$");
    let kinds = [("network", "net"), ("ipc", "ipc"), ("pid", "pid"), ("uts", "uts")];
    for (kind, file) in kinds {
        namespace(&mut second, json!({ "type": kind, "path": format!("/proc/{pid}/ns/{file}") }));
    }
    second.config.as_object_mut().expect("config").remove("hostname");
    let done = second.run();
    let link = |file: &str| {
        let link = fs::read_link(format!("/proc/{pid}/ns/{file}")).expect("link");
        link.display().to_string()
    };
    assert_eq!(done.out, format!("{}\n{}\n2\n", link("net"), link("ipc")), "{done:?}");
}

#[test]
fn scheduling_and_io_priority_are_the_specification_s() {
    // Fields 19 and 41 of stat: nice, policy.
    let mut bundle = Bundle::script("cat /proc/self/stat");
    bundle.config["process"]["scheduler"] = json!({ "policy": "SCHED_BATCH", "nice": 5 });
    bundle.config["process"]["ioPriority"] = json!({ "class": "IOPRIO_CLASS_IDLE", "priority": 4 });
    let done = bundle.run();
    let fields: Vec<&str> = done.out.split(' ').collect();
    assert_eq!((fields.get(18), fields.get(40)), (Some(&"5"), Some(&"3")), "{done:?}");
    bundle.config["process"]["ioPriority"]["priority"] = json!(8);
    bundle.run().failed(1, "I/O priority 8");
}

#[test]
fn mounts_are_filled_mapped_shared_and_read_only_all_the_way() {
    let mut bundle = Bundle::script(
        "cat /etc/inner/file; stat -c '%u %a' /etc/inner; stat -c '%u %g' /mapped/file; \
         touch /deep/below/x 2>&1 | grep -c 'Read-only'; grep -c ' /tmp .* shared:' /proc/self/mountinfo; \
         touch /etc/new && echo writable",
    );
    fs::create_dir(bundle.rootfs("etc/inner")).expect("inner");
    fs::write(bundle.rootfs("etc/inner/file"), "content\n").expect("file");
    std::os::unix::fs::chown(bundle.rootfs("etc/inner"), Some(12), None).expect("chown");
    fs::create_dir(bundle.path("mapped")).expect("mapped");
    fs::write(bundle.path("mapped/file"), "").expect("file");
    mount(
        &mut bundle,
        json!({ "destination": "/etc", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"] }),
    );
    let mapped = bundle.path("mapped");
    mount(
        &mut bundle,
        json!({
            "destination": "/mapped", "type": "bind", "source": mapped, "options": ["bind"],
            "uidMappings": [{ "containerID": 0, "hostID": 1234, "size": 1 }],
            "gidMappings": [{ "containerID": 0, "hostID": 77, "size": 1 }],
        }),
    );
    mount(
        &mut bundle,
        json!({ "destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["rshared"] }),
    );
    mount(&mut bundle, json!({ "destination": "/deep", "type": "tmpfs", "source": "tmpfs" }));
    fs::create_dir_all(bundle.path("tree/below")).expect("tree");
    // Relative sources are the bundle's.
    mount(
        &mut bundle,
        json!({ "destination": "/deep", "type": "bind", "source": "tree", "options": ["rbind", "rro"] }),
    );
    let done = bundle.run();
    assert_eq!(done.out, "content\n12 755\n1234 77\n1\n1\nwritable\n", "{done:?}");
    assert!(!bundle.rootfs("etc/new").exists());
}

/// Where mounts lie, in the order in which the kernel lists them.
const LISTED: &str = "while read _ _ _ _ place _; do echo $place; done < /proc/self/mountinfo";

#[test]
fn mounts_are_listed_in_the_specification_s_order() {
    let mut bundle = Bundle::script(LISTED);
    fs::create_dir(bundle.path("tree")).expect("tree");
    for (place, kind) in
        [("/one", "tmpfs"), ("/two", "bind"), ("/three", "tmpfs"), ("/four", "bind")]
    {
        let options: &[&str] = if kind == "bind" { &["bind"] } else { &[] };
        mount(
            &mut bundle,
            json!({ "destination": place, "type": kind, "source": "tree", "options": options }),
        );
    }
    let listed = bundle.run().fine();
    let places: Vec<&str> = listed.lines().filter(|place| place.len() < 7).collect();
    let expected = ["/", "/proc", "/dev", "/sys", "/one", "/two", "/three", "/four"];
    assert_eq!(places, expected, "{listed}");
}

#[test]
fn binds_from_beneath_the_root_are_what_earlier_mounts_have_put_there() {
    let mut bundle = Bundle::script(
        "cat /last/x/file; cat /mine/file; stat -c %u /mapped/x/file; echo 2>/dev/null >/last/new || echo read-only",
    );
    for name in ["a", "b"] {
        fs::create_dir(bundle.path(name)).expect("directory");
        fs::write(bundle.path(name).join("file"), format!("{name}\n")).expect("file");
    }
    fs::create_dir(bundle.path("a/x")).expect("x");
    fs::create_dir(bundle.rootfs("own")).expect("own");
    fs::write(bundle.rootfs("own/file"), "own\n").expect("file");
    let (a, b) = (bundle.path("a"), bundle.path("b"));
    let (root, inside) = (bundle.rootfs(""), |name| bundle.rootfs(name));
    let map = json!([{ "containerID": 0, "hostID": 1234, "size": 1 }]);
    // The destination may be named by its path on the host, too.
    let mounts = [
        (a, "/first".into(), "rbind", None),
        (b, "/first/x".into(), "rbind", None),
        (inside("first"), root.join("last"), "ro", None),
        (inside("own"), "/mine".into(), "rw", None),
        (inside("first"), "/mapped".into(), "ridmap", Some(map)),
    ];
    for (source, destination, option, map) in mounts {
        let mut new = json!({ "source": source, "destination": destination, "type": "bind", "options": ["rbind", option] });
        if let Some(map) = map {
            new["uidMappings"] = map.clone();
            new["gidMappings"] = map;
        }
        mount(&mut bundle, new);
    }
    assert_eq!(bundle.run().fine(), "b\nown\n1234\nread-only\n");
}

#[test]
fn seccomp_rules_can_ask_an_agent() {
    let mut bundle = Bundle::script("echo unasked; mkdir /tmp/asked");
    let socket = bundle.path("agent");
    bundle.config["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "listenerPath": socket,
        "listenerMetadata": "for the agent",
        "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_NOTIFY" }],
    });
    bundle.run().failed(1, "seccomp agent");
    let listener = UnixListener::bind(&socket).expect("bind");
    let id = bundle.id.clone();
    let agent = std::thread::spawn(move || {
        let (stream, _) = listener.accept().expect("accept");
        let mut bytes = [0; 4096];
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut slices = [IoSliceMut::new(&mut bytes)];
        let got = recvmsg(&stream, &mut slices, &mut control, RecvFlags::empty()).expect("recvmsg");
        let count = control.drain().count();
        let state: Value = serde_json::from_slice(&bytes[..got.bytes]).expect("state");
        // The listener is closed here: whoever asks is told ENOSYS.
        (state, count)
    });
    // It is told of the filter when the container is created, as the specification has it.
    assert_eq!(bundle.create().code, 0);
    let (state, count) = agent.join().expect("agent");
    bundle.verb(&["delete"]).fine();
    let listener = UnixListener::bind(bundle.path("again")).expect("bind");
    bundle.config["linux"]["seccomp"]["listenerPath"] = json!(bundle.path("again"));
    let agent = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("accept");
        std::io::Read::read(&mut stream, &mut [0; 4096]).expect("state")
    });
    let done = bundle.run();
    agent.join().expect("agent");
    assert_eq!(count, 1);
    assert_eq!(state["metadata"], "for the agent");
    assert_eq!(state["fds"], json!(["seccompFd"]));
    assert_eq!(state["state"]["id"], json!(id));
    assert_eq!(done.out, "unasked\n", "{done:?}");
    assert!(done.err.contains("Function not implemented"), "{done:?}");

    bundle.config["linux"]["seccomp"]["syscalls"][0]["names"] = json!(["write"]);
    bundle.run().failed(1, "cannot be used for the write syscall");
}

//! Hooks of all six kinds.

use std::fs;

use serde_json::{Value, json};

use crate::support::Bundle;

/// A hook that appends its name and what it can see to a file.
fn hook(name: &str, file: &str, more: &str) -> Value {
    let script = format!("cat > {file}.{name}.json; echo {name} >> {file}; {more}");
    json!({ "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"] })
}

#[test]
fn hooks_are_run_in_order_and_where_they_belong() {
    let mut bundle = Bundle::script("cat /hooks; echo program");
    let log = bundle.path("log").display().to_string();
    let rootfs = bundle.rootfs("").display().to_string();
    // Inside, the root filesystem's mounts are there, beneath its path on the host.
    let seen = format!("test -e {rootfs}/proc/self && echo mounted >> {log}");
    bundle.config["hooks"] = json!({
        "prestart": [hook("prestart", &log, "")],
        "createRuntime": [hook("createRuntime", &log, "")],
        "createContainer": [hook("createContainer", &log, &seen)],
        "startContainer": [hook("startContainer", "/hooks", "")],
        "poststart": [hook("poststart", &log, "")],
        "poststop": [hook("poststop", &log, "")],
    });
    bundle.config["annotations"] = json!({ "a.b": "c" });
    let done = bundle.run();
    assert_eq!(done.code, 0, "{done:?}");
    assert_eq!(done.out, "startContainer\nprogram\n");
    let order = fs::read_to_string(&log).expect("log");
    assert_eq!(order, "prestart\ncreateRuntime\ncreateContainer\nmounted\npoststart\npoststop\n");
    let state = |name: &str| -> Value {
        let text = fs::read(format!("{log}.{name}.json")).expect(name);
        serde_json::from_slice(&text).expect(name)
    };
    let created = state("createRuntime");
    assert_eq!(created["id"], json!(bundle.id));
    assert_eq!(created["status"], "creating");
    assert_eq!(created["annotations"]["a.b"], "c");
    assert!(created["pid"].as_u64().is_some_and(|pid| pid > 1));
    assert_eq!(state("poststop")["status"], "stopped");
}

#[test]
fn s02_a_hook_that_fails_ends_the_create() {
    for kind in ["prestart", "createRuntime", "createContainer", "startContainer"] {
        let mut bundle = Bundle::new(&["/bin/true"]);
        bundle.config["hooks"] = json!({ kind: [
            { "path": "/bin/sh", "args": ["sh", "-c", "echo because; exit 3"] },
        ] });
        let done = bundle.run();
        done.failed(1, &format!("error running {kind} hook #0: exit status 3"));
        done.failed(1, "because");
        bundle.verb(&["state"]).failed(1, "does not exist");
    }
    let mut bundle = Bundle::new(&["/bin/true"]);
    bundle.config["hooks"] = json!({ "prestart": [
        { "path": "/bin/sleep", "args": ["sleep", "1000"], "timeout": 1 },
    ] });
    bundle.run().failed(1, "hook ran past specified timeout of 1s");
    bundle.config["hooks"] = json!({ "prestart": [{ "path": "/no/such/hook" }] });
    bundle.run().failed(1, "/no/such/hook");
    bundle.config["hooks"] = json!({ "prestart": [{ "path": "relative" }] });
    bundle.run().failed(1, "not absolute");
}

#[test]
fn a_hook_of_the_container_s_own_files_may_do_what_its_program_may() {
    let mut bundle = Bundle::script("cat /tmp/seen");
    let script =
        "{ id; grep -E 'Cap(Eff|Bnd)' /proc/self/status; mkdir /tmp/made 2>&1; } > /tmp/seen";
    std::os::unix::fs::chown(bundle.rootfs("tmp"), Some(7), None).expect("chown");
    bundle.config["process"]["user"] = json!({ "uid": 7, "gid": 8 });
    bundle.config["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO" }],
    });
    let hook = |script: &str| json!({ "startContainer": [{ "path": "/bin/sh", "args": ["sh", "-c", script] }] });
    bundle.config["hooks"] = hook(script);
    let expected = "uid=7 gid=8\nCapEff:\t0000000000000000\nCapBnd:\t0000000020000420\n\
                    mkdir: can't create directory '/tmp/made': Operation not permitted\n";
    let done = bundle.run();
    done.failed(1, "error running startContainer hook #0: exit status 1");
    bundle.config["hooks"] = hook(&format!("{script}; true"));
    assert_eq!(bundle.run().fine(), expected);
    // One that cannot even begin does not keep the container from its end: the agent hears of
    // the program's filter, and is gone when it is to hear of the hook's.
    let agent = bundle.path("agent");
    let listener = std::os::unix::net::UnixListener::bind(&agent).expect("bind");
    bundle.config["linux"]["seccomp"]["syscalls"][0]["action"] = json!("SCMP_ACT_NOTIFY");
    bundle.config["linux"]["seccomp"]["listenerPath"] = json!(agent);
    let asked = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("accept");
        drop(listener);
        std::io::Read::read(&mut stream, &mut [0; 4096]).expect("state")
    });
    bundle.run().failed(1, "startContainer hook #0: failed to connect with seccomp agent");
    asked.join().expect("agent");
    bundle.config["linux"]["seccomp"]["syscalls"][0]["action"] = json!("SCMP_ACT_KILL_PROCESS");
    bundle.config["process"]["rlimits"] = json!([{ "type": "RLIMIT_CORE", "hard": 0, "soft": 0 }]);
    bundle.config["hooks"] = hook("exec mkdir /tmp/made");
    bundle.run().failed(1, "error running startContainer hook #0: signal: bad system call");
}

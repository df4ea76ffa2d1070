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

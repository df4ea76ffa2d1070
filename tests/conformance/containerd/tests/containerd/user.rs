//! A containerd of a user without privileges, in a user namespace in which he is root (as
//! nerdctl's is): his containers have no control groups.

use std::{fs, os::unix::fs::symlink, path::Path, process::Command};

use knarr_harness::{bin_dir, prebuilt};
use serde_json::{Value, json};

use crate::support::{KNARR, RUNC, Ran, program, run};

/// nobody, who has nothing but his number.
const USER: &str = "65534";

/// The beginning: a daemon, and `ctr` that speaks to it.
const SCRIPT: &str = r#"
mount -t tmpfs tmpfs /run
containerd -c config.toml >log 2>&1 &
daemon=$!
ctr() { command ctr -a /run/containerd.sock "$@"; }
until ctr version >/dev/null 2>&1; do kill -0 $daemon || { cat log; exit 99; }; done
"#;

fn specification(args: &[&str], root: &Path) -> Value {
    let text = run(Command::new(program("ctr")).args(["oci", "spec"])).ok();
    let mut spec: Value = serde_json::from_str(&text).expect("a specification");
    spec["process"]["args"] = json!(args);
    spec["process"]["env"] = json!(["PATH=/bin"]);
    spec["root"] = json!({ "path": root });
    spec["linux"].as_object_mut().expect("linux").remove("cgroupsPath");
    spec["linux"].as_object_mut().expect("linux").remove("resources");
    for mount in spec["mounts"].as_array_mut().expect("mounts") {
        // There is one group in his namespace.
        let options = mount["options"].as_array_mut().expect("options");
        options.retain(|option| option != "gid=5");
    }
    spec
}

fn script(runtime: &str, commands: &str) -> Ran {
    let dir = tempfile::Builder::new().prefix("knarr-containerd-").tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let root = path("rootfs");
    for name in ["bin", "dev", "proc", "sys", "run", "tmp"] {
        fs::create_dir_all(root.join(name)).unwrap();
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox-static");
    for name in ["sh", "id", "sleep"] {
        symlink("busybox", root.join("bin").join(name)).unwrap();
    }
    fs::write(root.join("hello.wasm"), prebuilt("hello").unwrap()).unwrap();
    for name in ["containerd-shim-knarr-v1", "knarr-wasm"] {
        fs::copy(bin_dir().join(name), path(name)).unwrap();
    }
    for (name, args) in [
        ("short", &["sh", "-c", "id -u; exit 4"][..]),
        ("long", &["sleep", "1000"]),
        ("wasm", &["/hello.wasm", "grain"]),
    ] {
        let text = specification(args, &root).to_string();
        fs::write(path(&format!("{name}.json")), text).unwrap();
    }
    let config = format!(
        "version = 2\nroot = \"{}\"\nstate = \"/run/containerd\"\n\
         disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
         [grpc]\naddress = \"/run/containerd.sock\"\n",
        path("root").display()
    );
    fs::write(path("config.toml"), config).unwrap();
    let owner = format!("{USER}:{USER}");
    run(Command::new("chown").args(["-R", &owner]).arg(dir.path())).ok();
    let end = "\nkill $daemon; wait $daemon 2>/dev/null; exit 0";
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "KILL", "--reuid", USER, "--regid", USER, "--clear-groups"])
        .args(["unshare", "--user", "--map-root-user", "--mount", "--net", "--pid", "--fork"])
        .args(["--mount-proc", "--kill-child", "sh", "-c", &format!("{SCRIPT}{commands}{end}")]);
    let programs = std::env::var("PATH").unwrap_or_default();
    let containerd = program("containerd");
    let other = containerd.parent().map(|dir| format!("{}:", dir.display())).unwrap_or_default();
    command.env("PATH", format!("{}:{other}{programs}", dir.path().display()));
    command.env("RUNTIME", runtime).env("KNARR_DATA_ROOT", path("data")).current_dir(dir.path());
    run(&mut command)
}

#[test]
fn a_users_containerd_runs_native_containers() {
    for runtime in [RUNC, KNARR] {
        let ran = script(
            runtime,
            "ctr run --rm --runtime $RUNTIME --config short.json short; echo code $?
            ctr run -d --null-io --runtime $RUNTIME --config long.json long || exit 98
            ctr task exec --exec-id one long sh -c 'id -u; exit 3'; echo code $?
            ctr task ls | grep -o RUNNING
            ctr task pause long || echo no pause
            ctr task kill -s KILL long
            while ctr task ls | grep RUNNING >/dev/null; do :; done
            ctr task rm long 2>/dev/null; ctr container rm long; ctr task ls -q",
        );
        assert_eq!(ran.out, "0\ncode 4\n0\ncode 3\nRUNNING\nno pause\n", "{runtime}: {ran:?}");
    }
}

#[test]
fn a_users_containerd_runs_wasm_containers() {
    let line = "ctr run --rm --runtime $RUNTIME --config wasm.json wasm; echo code $?";
    let ran = script(KNARR, line);
    assert!(ran.out.contains("arguments: grain\n"), "{ran:?}");
    assert!(ran.out.ends_with("code 0\n"), "{ran:?}");
}

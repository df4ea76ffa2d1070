//! A user without privileges, whose containers live like any.

use std::{fs, os::unix::process::CommandExt as _, path::Path, process::Command};

use serde_json::json;

use crate::{
    support::{Bundle, Done},
    wasm::prebuilt,
};

/// nobody, who has nothing on a Debian host but his number.
const USER: u32 = 65534;

/// A bundle of his, with the specification that `spec --rootless` gives him.
fn bundle(script: &str) -> Bundle {
    let mut new = Bundle::script(script);
    let program = new.path("knarr-oci");
    fs::copy(env!("CARGO_BIN_EXE_knarr-oci"), &program).expect("knarr-oci");
    fs::create_dir(new.path("state")).expect("state");
    let mut give = Command::new("chown");
    give.args(["-R", &format!("{USER}:{USER}")]).arg(new.dir.path());
    assert!(give.status().expect("chown").success());
    new.user = Some(USER);
    fs::remove_file(new.path("config.json")).expect("config.json");
    new.knarr(&["spec", "--rootless"]).fine();
    let text = fs::read(new.path("config.json")).expect("config.json");
    let args = new.config["process"]["args"].take();
    new.config = serde_json::from_slice(&text).expect("config.json");
    new.config["process"]["args"] = args;
    new.config["process"]["terminal"] = json!(false);
    new.config["root"]["readonly"] = json!(false);
    new
}

#[test]
fn a_user_s_container_lives_like_any() {
    let bundle = bundle(
        "id; cat /proc/self/uid_map; echo x > /dev/null; touch /tmp/made; stat -c %u /tmp/made; \
         stat -c %a /dev/shm",
    );
    let expected = format!("uid=0 gid=0\n         0      {USER}          1\n0\n1777\n");
    assert_eq!(bundle.run().fine(), expected);
    let made = fs::metadata(bundle.rootfs("tmp/made")).expect("made");
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&made), USER);
    bundle.verb(&["state"]).failed(1, "does not exist");

    let mut bundle = self::bundle("sleep 1000");
    assert_eq!(bundle.create().code, 0);
    assert_eq!(bundle.status(), "created");
    assert_eq!(bundle.state()["owner"], "nobody");
    bundle.verb(&["start"]).fine();
    assert_eq!(bundle.knarr(&["exec", &bundle.id, "id", "-u"]).fine(), "0\n");
    // It has no group, and its processes are found all the same.
    let pid = bundle.state()["pid"].to_string();
    assert_eq!(bundle.verb(&["ps", "--format", "json"]).fine(), format!("[{pid}]\n"));
    bundle.knarr(&["kill", &bundle.id, "KILL"]).fine();
    bundle.until("its end", || bundle.status() == "stopped");
    bundle.verb(&["delete"]).fine();

    // A group that he names is not passed over.
    bundle.config["linux"]["cgroupsPath"] = json!(format!("/{}", bundle.id));
    bundle.run().failed(1, "make cgroup");
    bundle.config["linux"]["cgroupsPath"].take();
    bundle.config["linux"]["resources"] = json!({ "pids": { "limit": 10 } });
    bundle.run().failed(1, "pids");
}

#[test]
fn a_user_s_wasm_program_is_compiled_and_run_in_his_name() {
    let mut bundle = bundle("");
    let host = Path::new(env!("CARGO_BIN_EXE_knarr-oci")).with_file_name("knarr-wasm");
    fs::copy(&host, bundle.path("knarr-wasm")).expect("knarr-wasm");
    fs::copy(prebuilt("hello.wasm"), bundle.rootfs("hello.wasm")).expect("program");
    bundle.config["process"]["args"] = json!(["/hello.wasm", "grain"]);
    bundle.write();
    let mut command = bundle.command(&["run", &bundle.id]);
    command.env("KNARR_DATA_ROOT", bundle.path("state/cache"));
    let done = Done::from(command.output().expect("knarr-oci"));
    assert!(done.code == 0 && done.out.contains("arguments: grain"), "{done:?}");
}

#[test]
fn r23_a_user_s_container_does_not_reach_his_control_groups() {
    // The host's are bound with all of /sys, and some may be his own.
    let script = "find /sys/fs/cgroup -name cgroup.procs; echo 1 > /sys/fs/cgroup/x || echo kept";
    let done = bundle(script).run();
    assert!(done.code == 0 && done.out == "kept\n", "{done:?}");
}

#[test]
fn a_user_s_container_needs_a_namespace_that_he_may_make() {
    let mut bundle = bundle("true");
    bundle.config["process"]["user"]["additionalGids"] = json!([7]);
    bundle.run().failed(1, "cannot set any additional groups in a rootless container");
    bundle.config["process"]["user"]["additionalGids"].take();
    bundle.config["linux"]["uidMappings"][0]["hostID"] = json!(0);
    let done = bundle.run();
    assert!(done.code == 1 && done.err.contains("uid"), "{done:?}");
    bundle.config["linux"]["uidMappings"].take();
    bundle.run().failed(1, "requires at least one UID mapping");
    let kinds = bundle.config["linux"]["namespaces"].as_array_mut().expect("namespaces");
    kinds.retain(|one| one["type"] != "user");
    bundle.run().failed(1, "rootless container requires user namespaces");
}

#[test]
fn a_user_has_those_that_the_host_gives_him() {
    let mut bundle = bundle("id");
    let maps = json!([
        { "containerID": 0, "hostID": USER, "size": 1 },
        { "containerID": 1, "hostID": 200_000, "size": 100 },
    ]);
    bundle.config["linux"]["uidMappings"] = maps.clone();
    bundle.config["linux"]["gidMappings"] = maps;
    bundle.config["process"]["user"] = json!({ "uid": 12, "gid": 13, "additionalGids": [14] });
    bundle.write();
    // What /etc/subuid says is the test's own, in a mount namespace that ends with it.
    let run = |line: &str| -> Done {
        let given = bundle.path("given");
        fs::write(&given, line).expect("given");
        let script = "mount --bind given /etc/subuid && mount --bind given /etc/subgid && \
                      exec setpriv --reuid $1 --regid $1 --clear-groups ./knarr-oci --root state run $2";
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-ec", script, "sh"]);
        command.args([&USER.to_string(), &bundle.id]).current_dir(bundle.dir.path());
        command.output().expect("unshare").into()
    };
    for file in ["/etc/subuid", "/etc/subgid"] {
        assert!(Path::new(file).exists(), "{file} (package passwd)");
    }
    assert_eq!(run("nobody:200000:100\n").fine(), "uid=12 gid=13 groups=14\n");
    run("nobody:300000:100\n").failed(1, "newuidmap");
}

/// The kernel's limits are those of a user namespace: lowered in one of the test's
/// own, nobody else meets them.
#[test]
fn x11_a_limit_of_namespaces_is_a_clear_error_and_leaves_nothing() {
    let mut bundle = bundle("echo alive");
    for maps in ["uidMappings", "gidMappings"] {
        bundle.config["linux"][maps][0]["hostID"] = json!(0);
    }
    bundle.write();
    let run = |kind: &str, limit: &str| -> Done {
        let script = "echo $2 > /proc/sys/user/max_$1_namespaces; \
                      exec ./knarr-oci --root state run $3";
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount", "sh", "-ec", script, "sh"]);
        command.args([kind, limit, &bundle.id]).current_dir(bundle.dir.path());
        command.uid(USER).gid(USER).output().expect("unshare").into()
    };
    for kind in ["user", "mnt", "pid", "ipc", "uts"] {
        run(kind, "0").failed(1, "make namespaces (too many of them)");
        assert_eq!(fs::read_dir(bundle.path("state")).expect("state").count(), 0, "{kind}");
        assert_eq!(run(kind, "100").fine(), "alive\n", "{kind}");
    }
}

#[test]
fn k10_a_user_s_container_dies_with_its_deletion_whatever_it_calls_itself() {
    for name in crate::life::NAMES {
        let bundle = self::bundle(&format!(
            "printf '{name}' > /proc/self/comm; touch /tmp/named; while :; do sleep 1000; done"
        ));
        assert_eq!(bundle.create().code, 0);
        bundle.verb(&["start"]).fine();
        bundle.until("its name", || bundle.rootfs("tmp/named").exists());
        let pid = bundle.state()["pid"].as_u64().expect("pid");
        bundle.verb(&["delete", "--force"]).fine();
        bundle.until("its end", || !Path::new("/proc").join(pid.to_string()).exists());
    }
}

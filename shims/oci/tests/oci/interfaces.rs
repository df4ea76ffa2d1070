//! `linux.netDevices`: interfaces that a container takes from a network namespace of the
//! test's own.

use std::{fs, process::Command};

use serde_json::json;

use crate::{
    specification::{namespace, with_users},
    support::{Bundle, Done},
    wasm::prebuilt,
};

/// Runs a script in a network namespace with a veth pair: knarr-a has addresses, both are up.
/// `$KNARR VERB` is knarr-oci.
fn beside_a_pair(bundle: &Bundle, script: &str) -> Done {
    bundle.write();
    let before = "ip link set lo up
        ip link add knarr-a address 02:00:00:00:00:07 mtu 1400 type veth peer name knarr-b
        ip address add 10.9.8.7/24 broadcast + dev knarr-a
        ip address add fd00::7/64 dev knarr-a nodad
        ip address add 169.254.1.1/16 scope link dev knarr-a
        ip link set knarr-a up; ip link set knarr-b up; ";
    let knarr =
        format!("{} --root {}", env!("CARGO_BIN_EXE_knarr-oci"), bundle.path("state").display());
    let mut command = Command::new("unshare");
    command.args(["--net", "--mount", "sh", "-euc", &format!("{before}{script}")]);
    command.env("KNARR", knarr).env("ID", &bundle.id).current_dir(bundle.dir.path());
    command.env("KNARR_DATA_ROOT", bundle.path("cache"));
    command.output().expect("unshare").into()
}

#[track_caller]
fn has_all(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "no {word}: {text}");
    }
}

#[test]
fn an_interface_goes_along_with_its_name_and_its_lasting_addresses() {
    let mut bundle = Bundle::script(
        "busybox ip address; cat /proc/sys/net/ipv4/conf/eth7/forwarding; busybox ip route",
    );
    bundle.config["linux"]["netDevices"] = json!({ "knarr-a": { "name": "eth7" } });
    // They are there before their settings are written, and before hooks.
    bundle.config["linux"]["sysctl"] = json!({ "net.ipv4.conf.eth7.forwarding": "1" });
    let told = bundle.path("told");
    bundle.config["hooks"] = json!({ "createContainer": [{
        "path": "/bin/sh",
        "args": ["sh", "-c", format!("grep -c eth7 /proc/net/dev >{}", told.display())],
    }] });
    let out = beside_a_pair(&bundle, "$KNARR run $ID; ip link show knarr-a || echo gone").fine();
    has_all(
        &out,
        &[
            "eth7",
            "UP",
            "mtu 1400",
            "link/ether 02:00:00:00:00:07",
            "inet 10.9.8.7/24 brd 10.9.8.255 scope global",
            "inet6 fd00::7/64 scope global",
            "\n1\n",
            "10.9.8.0/24 dev eth7",
            "gone\n",
        ],
    );
    assert!(!out.contains("169.254"), "{out}");
    assert_eq!(fs::read_to_string(told).expect("told"), "1\n");
}

#[test]
fn an_interface_stays_in_a_namespace_that_outlives_the_container() {
    let mut bundle = Bundle::script("busybox ip address show knarr-a");
    let path = bundle.path("network");
    fs::write(&path, "").expect("file");
    namespace(&mut bundle, json!({ "type": "network", "path": path }));
    bundle.config["linux"]["netDevices"] = json!({ "knarr-a": {} });
    let done = beside_a_pair(
        &bundle,
        "unshare --net=network true; $KNARR run $ID >/dev/null
        nsenter --net=network ip address show knarr-a; umount network",
    );
    has_all(&done.fine(), &["inet 10.9.8.7/24", "mtu 1400", "UP"]);
}

#[test]
fn an_interface_comes_to_a_network_that_another_container_s_users_own() {
    let mut first = Bundle::new(&["/bin/true"]);
    with_users(&mut first);
    assert_eq!(first.create().code, 0);
    let users = format!("/proc/{}/ns/user", first.state()["pid"]);
    let mut bundle = Bundle::script("busybox ip address");
    namespace(&mut bundle, json!({ "type": "user", "path": users }));
    bundle.config["linux"]["netDevices"] = json!({ "knarr-a": { "name": "eth0" } });
    let out = beside_a_pair(&bundle, "$KNARR run $ID").fine();
    has_all(&out, &["eth0", "inet 10.9.8.7/24", "UP"]);
}

#[test]
fn a_wasm_container_has_it_too() {
    let mut bundle = Bundle::new(&["/program.wasm"]);
    fs::copy(prebuilt("web.wasm"), bundle.rootfs("program.wasm")).expect("copy");
    bundle.config["linux"]["netDevices"] = json!({ "knarr-a": { "name": "eth0" } });
    let done = beside_a_pair(
        &bundle,
        "$KNARR run --detach --pid-file pid $ID </dev/null >/dev/null 2>&1
        nsenter --net=/proc/$(cat pid)/ns/net ip address show eth0; $KNARR delete --force $ID",
    );
    has_all(&done.fine(), &["inet 10.9.8.7/24", "UP"]);
}

#[test]
fn what_a_container_that_did_not_come_to_be_has_taken_is_given_back() {
    let look = "; ip address show knarr-a; ip address show knarr-b";
    let there = ["UP", "inet 10.9.8.7/24", "inet6 fd00::7/64"];
    let mut bundle = Bundle::new(&["/nope"]);
    bundle.config["linux"]["netDevices"] = json!({ "knarr-a": { "name": "eth0" } });
    let done = beside_a_pair(&bundle, &format!("$KNARR run $ID || true{look}"));
    has_all(&done.err, &["/nope: no such file or directory"]);
    has_all(&done.fine(), &there);

    // One of several is not there, or cannot be called so.
    for (other, device, words) in [
        ("nothing", json!({}), "link not found for interface nothing on runtime namespace"),
        ("knarr-b", json!({ "name": "eth0" }), "network device knarr-b: the container has a eth0"),
        ("knarr-b", json!({ "name": "lo" }), "network device knarr-b: the container has a lo"),
    ] {
        let mut bundle = Bundle::new(&["/bin/true"]);
        bundle.config["linux"]["netDevices"] = json!({ "knarr-a": { "name": "eth0" } });
        bundle.config["linux"]["netDevices"][other] = device;
        let done = beside_a_pair(&bundle, &format!("$KNARR run $ID || true{look}"));
        has_all(&done.err, &[words]);
        has_all(&done.fine(), &there);
    }
}

#[test]
fn interfaces_need_names_and_a_network_of_the_container_s() {
    let mut bundle = Bundle::new(&["/bin/true"]);
    for (device, to) in [("a/b", ""), ("knarr-a", "eth%d"), ("sixteen-letters!", "eth0")] {
        bundle.config["linux"]["netDevices"] = json!({ device: { "name": to } });
        bundle.run().failed(1, "invalid network device name");
    }
    bundle.config["linux"]["netDevices"] = json!({ "knarr-a": {} });
    let namespaces = bundle.config["linux"]["namespaces"].as_array_mut().expect("namespaces");
    namespaces.retain(|one| one["type"] != "network");
    bundle.run().failed(1, "unable to move network devices without a NET namespace");
}

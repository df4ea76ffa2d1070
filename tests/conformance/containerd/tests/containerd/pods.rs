//! Containers of one pod share a shim.

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::support::both;

const POD: [&str; 2] = ["--annotation", "io.kubernetes.cri.sandbox-id=pod"];

#[test]
fn s07_a_pods_containers_share_a_shim_and_nothing_else() {
    both(|containerd| {
        containerd.sleeper(&POD, "pause");
        let network = format!("network:/proc/{}/ns/net", containerd.pid("pause"));
        containerd.sleeper(&[&POD[..], &["--with-ns", &network]].concat(), "side");
        containerd.sleeper(&[], "alone");
        assert_eq!(containerd.shims().len(), 2, "{:?}", containerd.shims());
        let namespace = |id: &str, kind: &str| {
            std::fs::read_link(format!("/proc/{}/ns/{kind}", containerd.pid(id))).unwrap()
        };
        assert_eq!(namespace("pause", "net"), namespace("side", "net"));
        assert_ne!(namespace("pause", "pid"), namespace("side", "pid"));

        // One goes, the others stay, and the shim with them.
        assert_eq!(containerd.kill_and_delete("side"), 137);
        assert_eq!(containerd.exec("pause", &["echo", "still here"]).ok(), "still here");
        containerd.sleeper(&POD, "side");
        assert_eq!(containerd.shims().len(), 2);
        containerd.kill_and_delete("pause");
        assert_eq!(containerd.exec("side", &["echo", "here too"]).ok(), "here too");
        containerd.kill_and_delete("side");
        containerd.kill_and_delete("alone");
        containerd.assert_clean();
    });
}

#[test]
fn a_pod_whose_shim_was_killed_is_cleaned_up_whole() {
    both(|containerd| {
        let events = containerd.events();
        containerd.sleeper(&POD, "pause");
        containerd.sleeper(&POD, "side");
        for (shim, _) in containerd.shims() {
            kill(Pid::from_raw(shim), Signal::SIGKILL).unwrap();
        }
        for id in ["pause", "side"] {
            events.await_event(id, "delete");
            assert_eq!(events.of(id)[2..], [format!("exit {id} 137"), "delete".to_owned()]);
            containerd.ctr(&["container", "rm", id]).ok();
        }
        containerd.assert_clean();
    });
}

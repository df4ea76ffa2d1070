//! Restarts of containerd and the deaths of shims.

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::support::{await_gone, both, until};

#[test]
fn s03_a_killed_shim_is_cleaned_up_after() {
    both(|containerd| {
        let events = containerd.events();
        for round in 0..3 {
            containerd.sleeper(&[], "one");
            let program = containerd.pid("one");
            for (shim, _) in containerd.shims() {
                kill(Pid::from_raw(shim), Signal::SIGKILL).unwrap();
            }
            let deleted = || events.of("one").iter().filter(|event| *event == "delete").count();
            until("the shim is missed", || (deleted() > round).then_some(()));
            assert_eq!(containerd.status("one"), "", "the task is gone");
            await_gone(program);
            containerd.ctr(&["container", "rm", "one"]).ok();
        }
        let exits = events.of("one").into_iter().filter(|event| event == "exit one 137").count();
        assert_eq!(exits, 3, "one exit for each life: {:?}", events.of("one"));
        containerd.assert_clean();
    });
}

#[test]
fn containers_outlive_containerd() {
    both(|containerd| {
        containerd.sleeper(&[], "stays");
        containerd.sleeper(&[], "ends");
        let [stays, ends] = ["stays", "ends"].map(|id| containerd.pid(id));
        containerd.kill_daemon();
        kill(Pid::from_raw(ends), Signal::SIGKILL).unwrap();
        containerd.start_daemon();
        assert_eq!(containerd.status("stays"), "RUNNING");
        assert_eq!(containerd.pid("stays"), stays);
        // From 1.7 on, containerd itself clears away what has ended meanwhile.
        let kept =
            until("it is known to have ended", || match containerd.status("ends").as_str() {
                "STOPPED" => Some(true),
                "" => Some(false),
                _ => None,
            });
        assert_eq!(containerd.exec("stays", &["echo", "still here"]).ok(), "still here");
        let events = containerd.events();
        if kept {
            assert_eq!(containerd.delete("ends"), 137);
        } else {
            containerd.ctr(&["container", "rm", "ends"]).ok();
        }
        assert_eq!(containerd.kill_and_delete("stays"), 137);
        events.await_event("stays", "delete");
        // Those of the exec may come late: containerd was away a moment ago.
        let of = events.of("stays");
        assert_eq!(of[of.len() - 2..], ["exit stays 137", "delete"]);
        containerd.assert_clean();
    });
}

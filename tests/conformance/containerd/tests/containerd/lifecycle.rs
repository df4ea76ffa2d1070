//! The everyday verbs, and what containerd is told of them.

use crate::support::{KNARR, both, both_tell, ours};

#[test]
fn a_container_runs_and_its_exit_code_arrives() {
    both(|containerd| {
        let said = containerd.run(&["--rm"], "one", &["echo", "hello"]);
        assert_eq!((said.code, said.out.as_str()), (0, "hello\n"), "{said:?}");
        for code in ["0", "7", "255"] {
            let ran = containerd.run(&["--rm"], "one", &["sh", "-c", &format!("exit {code}")]);
            assert_eq!(ran.code.to_string(), code, "{ran:?}");
        }
        let missing = containerd.run(&["--rm"], "one", &["nonexistent"]);
        assert_ne!(missing.code, 0);
        assert!(missing.err.contains("nonexistent"), "{missing:?}");
        containerd.ctr(&["container", "rm", "one"]);
        containerd.assert_clean();
    });
}

#[test]
fn verbs_of_a_running_container() {
    both(|containerd| {
        containerd.sleeper(&["--env", "CARGO=grain"], "one");
        assert_eq!(containerd.status("one"), "RUNNING");
        let exec = loop {
            let exec = containerd.exec("one", &["sh", "-c", "echo $CARGO; echo talk >&2; exit 3"]);
            // containerd's own shim loses output of short commands now and then.
            if containerd.runtime == KNARR || exec.out.len() + exec.err.len() == 11 {
                break exec;
            }
        };
        assert_eq!((exec.code, exec.out.as_str(), exec.err.as_str()), (3, "grain\n", "talk\n"));

        containerd.ctr(&["task", "pause", "one"]).ok();
        assert_eq!(containerd.status("one"), "PAUSED");
        containerd.ctr(&["task", "resume", "one"]).ok();
        assert_eq!(containerd.status("one"), "RUNNING");

        let processes = containerd.ctr(&["task", "ps", "one"]).ok();
        assert!(processes.contains(&containerd.pid("one").to_string()), "{processes}");

        let deleted = containerd.ctr(&["task", "delete", "one"]);
        assert_ne!(deleted.code, 0, "a running task is not deleted");
        assert_eq!(containerd.kill_and_delete("one"), 137);
        containerd.assert_clean();
    });
}

#[test]
fn metrics_are_those_that_kubelet_reads() {
    both(|containerd| {
        containerd.sleeper(&["--memory-limit", "67108864"], "one");
        let metrics = containerd.ctr(&["task", "metrics", "--format", "json", "one"]).ok();
        let metrics: serde_json::Value = serde_json::from_str(&metrics).unwrap();
        let number = |path: &str| metrics.pointer(path).and_then(serde_json::Value::as_u64);
        assert_eq!(number("/memory/usage/limit"), Some(64 << 20), "{metrics}");
        assert!(number("/memory/usage/usage").is_some_and(|usage| usage > 0), "{metrics}");
        assert!(number("/cpu/usage/total").is_some_and(|total| total > 0), "{metrics}");
        assert_eq!(number("/pids/current"), Some(1), "{metrics}");
        containerd.kill_and_delete("one");
    });
}

#[test]
fn s04_events_come_in_order_and_each_exit_once() {
    both_tell(|containerd| {
        let events = containerd.events();
        containerd.sleeper(&[], "one");
        let exec = containerd.ctr(&["task", "exec", "--exec-id", "e", "one", "sh", "-c", "exit 5"]);
        assert_eq!(exec.code, 5);
        containerd.ctr(&["task", "pause", "one"]).ok();
        containerd.ctr(&["task", "resume", "one"]).ok();
        containerd.kill_and_delete("one");
        events.await_event("one", "delete");
        let want = [
            "create",
            "start",
            "exec-added e",
            "exec-started e",
            "exit e 5",
            "paused",
            "resumed",
            "exit one 137",
            "delete",
        ];
        assert_eq!(events.of("one"), want);
        // Lives too short for anybody to look in between.
        for at in 0..10 {
            let id = format!("short{at}");
            containerd.run(&["--rm", "--null-io"], &id, &["sh", "-c", "exit 4"]);
            events.await_event(&id, "delete");
            assert_eq!(events.of(&id), ["create", "start", &format!("exit {id} 4"), "delete"]);
        }
        containerd.assert_clean();
    });
}

#[test]
fn a_task_that_was_never_started_is_deleted() {
    both(|containerd| {
        let runtime = containerd.runtime;
        containerd
            .ctr(&[
                "container",
                "create",
                "--runtime",
                runtime,
                crate::support::BUSYBOX,
                "one",
                "true",
            ])
            .ok();
        containerd.ctr(&["container", "rm", "one"]).ok();
        containerd.assert_clean();
    });
}

#[test]
fn what_cannot_be_done_is_said() {
    ours(|containerd| {
        containerd.sleeper(&[], "one");
        let refused = containerd.ctr(&["task", "checkpoint", "one"]);
        assert_ne!(refused.code, 0);
        assert!(refused.err.contains("checkpoint and restore are not supported"), "{refused:?}");
        // Once only.
        let again = containerd.ctr(&["task", "start", "one"]);
        assert_ne!(again.code, 0);
        containerd.kill_and_delete("one");
        containerd.assert_clean();
    });
}

#[test]
fn many_lives_in_parallel_leave_nothing() {
    // All 1,000 take minutes: shims/task/CONFORMANCE.md has their figures.
    let full = std::env::var_os("KNARR_TEST_STRESS").is_some();
    let (lives, lanes) = if full { (1000, 16) } else { (64, 16) };
    both(|containerd| {
        let events = containerd.events();
        let next = std::sync::atomic::AtomicUsize::new(0);
        let containerd = &*containerd;
        let began = std::time::Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..lanes {
                scope.spawn(|| {
                    loop {
                        let at = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                        if at >= lives {
                            return;
                        }
                        let id = format!("many{at}");
                        let script = format!("exit {}", at % 5);
                        let ran =
                            containerd.run(&["--rm", "--null-io"], &id, &["sh", "-c", &script]);
                        assert_eq!(ran.code as usize, at % 5, "{ran:?}");
                    }
                });
            }
        });
        eprintln!("{lives} lives on {}: {:?}", containerd.runtime, began.elapsed());
        // containerd's own shim (of 2.1) may end before its last event is told.
        let last = if containerd.runtime == KNARR { "delete" } else { "exit" };
        let told = loop {
            let told = events.by_container();
            let ended = |told: &&Vec<String>| told.iter().any(|event| event.starts_with(last));
            if told.values().filter(ended).count() == lives {
                break told;
            }
            std::thread::yield_now();
        };
        for at in 0..lives {
            let id = format!("many{at}");
            let exit = format!("exit {id} {}", at % 5);
            let want = ["create", "start", &exit, "delete"];
            let whole =
                if told[&id].len() == 4 { 4 } else { want.len() - usize::from(last == "exit") };
            assert_eq!(told[&id], want[..whole]);
        }
        containerd.assert_clean();
    });
}

//! Creating, starting, signalling, freezing and deleting tasks.

use std::{fs, path::Path};

use containerd_shim_protos::api;
use serde_json::json;
use ttrpc::Code;

use crate::support::{PATIENCE, Shim, alive, any, cgroup_dirs, refused, run, sh, soon, until};

#[tokio::test]
async fn p12_exit_codes_are_exact() {
    let mut shim = Shim::start().await;
    // As PID 1 of its own namespace a shell is deaf to its own signals.
    let host_pid = |script| {
        sh(script).edited(|spec| {
            let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
            namespaces.retain(|namespace| namespace["type"] != "pid");
        })
    };
    for (container, code) in [
        (sh("exit 0"), 0),
        (sh("exit 1"), 1),
        (sh("exit 126"), 126),
        (sh("exit 255"), 255),
        (host_pid("kill -9 $$"), 137),
        (host_pid("kill -TERM $$"), 143),
        (host_pid("kill -SEGV $$"), 139),
    ] {
        let script = container.args[2].clone();
        let task = shim.run(&container).await;
        assert_eq!(task.wait().await, code, "{script}");
        let record = task.exit_record();
        assert_eq!((record.code, record.oom_killed), (code, false), "{script}");
        assert!(record.finished_at.ends_with('Z'), "{record:?}");
        let deleted = task.delete().await.unwrap();
        assert_eq!((deleted.exit_status, deleted.pid), (code, task.pid));
        assert!(deleted.exited_at.is_some());
    }
}

#[tokio::test]
async fn a_task_goes_from_created_to_gone() {
    let mut shim = Shim::start().await;
    let task = shim.create(&sh("cat").with_stdin()).await;
    assert_eq!(task.status().await, api::Status::CREATED);
    let record = task.init_record();
    assert_eq!(record.pid, task.pid);
    assert_eq!(record.shim_pid, shim.process.id());
    assert_eq!(record.socket, shim.socket);
    assert!(record.start_time > 0);
    assert!(!cgroup_dirs(record.cgroup.to_str().unwrap()).is_empty());

    assert_eq!(task.start().await.unwrap(), task.pid);
    assert_eq!(task.status().await, api::Status::RUNNING);
    assert_eq!(refused(task.start().await).0, Code::FAILED_PRECONDITION);
    assert_eq!(refused(task.delete().await).0, Code::FAILED_PRECONDITION);

    task.kill(9).await.unwrap();
    assert_eq!(task.wait().await, 137);
    assert_eq!(task.status().await, api::Status::STOPPED);
    let (code, words) = refused(task.kill(15).await);
    assert_eq!(code, Code::NOT_FOUND);
    assert!(words.contains("process already finished"), "{words}");

    task.delete().await.unwrap();
    assert_eq!(refused(task.delete().await).0, Code::NOT_FOUND);
    assert!(cgroup_dirs(record.cgroup.to_str().unwrap()).is_empty());
    assert!(!task.bundle.join("attach.sock").exists());

    shim.client.shutdown(soon(), &api::ShutdownRequest::default()).await.unwrap();
    assert!(shim.ended().await.success());
    assert!(!shim.socket.exists());
}

#[tokio::test]
async fn a_task_that_was_never_started_can_be_deleted() {
    let mut shim = Shim::start().await;
    let task = shim.create(&run(&["true"])).await;
    let cgroup = task.init_record().cgroup;
    task.delete().await.unwrap();
    until("the first process to die", || (!alive(task.pid)).then_some(())).await;
    assert!(cgroup_dirs(cgroup.to_str().unwrap()).is_empty());
}

#[tokio::test]
async fn an_end_before_the_start_has_its_own_words() {
    let mut shim = Shim::start().await;
    let task = shim.create(&run(&["true"])).await;
    // What ends by itself waits for the start; what is killed does not.
    task.kill(9).await.unwrap();
    assert_eq!(task.wait().await, 137);
    let (code, words) = refused(task.start().await);
    assert_eq!(code, Code::FAILED_PRECONDITION);
    assert!(words.contains("ended before it was started"), "{words}");
    task.delete().await.unwrap();

    let task = shim.run(&run(&["true"])).await;
    assert_eq!(task.wait().await, 0);
    let (code, words) = refused(task.start().await);
    assert_eq!(code, Code::FAILED_PRECONDITION);
    assert!(words.contains("started already"), "{words}");
    task.delete().await.unwrap();
}

#[tokio::test]
async fn a_task_that_was_killed_can_be_deleted_at_once() {
    let mut shim = Shim::start().await;
    for all in [false, true] {
        let task = shim.run(&run(&["sleep", "1000"])).await;
        task.kill_exec("", 9, all).await.unwrap();
        assert_eq!(task.delete().await.unwrap().exit_status, 137, "all: {all}");
    }
}

#[tokio::test]
async fn p11_what_cannot_be_executed_is_said_in_dockers_words() {
    let mut shim = Shim::start().await;
    for (args, words) in [
        (["nope"], "exec: \"nope\": executable file not found in $PATH"),
        (["/etc"], "is a directory"),
        (["/bin/plain"], "permission denied"),
    ] {
        let plain = shim.dir.path().join("rootfs/bin/plain");
        std::fs::write(&plain, "x").unwrap();
        let result = match shim.try_create(&run(&args)).await {
            Ok(task) => task.start().await.map(drop),
            Err(error) => Err(error),
        };
        let (code, message) = refused(result);
        assert_eq!(code, Code::INVALID_ARGUMENT, "{message}");
        assert!(message.contains(words), "{message}");
    }
    // The shim is as good as before.
    let task = shim.run(&run(&["true"])).await;
    assert_eq!(task.wait().await, 0);
}

#[tokio::test]
async fn requests_that_are_wrong_are_refused() {
    let mut shim = Shim::start().await;
    let task = shim.run(&run(&["sleep", "1000"])).await;
    let kill = task.kill(65).await;
    assert_eq!(refused(kill).0, Code::INVALID_ARGUMENT);
    assert_eq!(refused(task.start_exec("nobody").await).0, Code::NOT_FOUND);
    assert_eq!(refused(task.resize("", 10, 10).await).0, Code::FAILED_PRECONDITION);
    let checkpoint = api::CheckpointTaskRequest { id: task.id.clone(), ..Default::default() };
    let result = shim.client.checkpoint(soon(), &checkpoint).await;
    assert_eq!(refused(result).0, Code::UNIMPLEMENTED);
    let again = api::CreateTaskRequest { id: task.id.clone(), ..Default::default() };
    assert_eq!(refused(shim.client.create(soon(), &again).await).0, Code::ALREADY_EXISTS);
    let binary = api::CreateTaskRequest {
        id: "other".to_owned(),
        bundle: task.bundle.display().to_string(),
        stdout: "binary:///bin/logger".to_owned(),
        ..Default::default()
    };
    let (code, words) = refused(shim.client.create(soon(), &binary).await);
    assert_eq!(code, Code::UNIMPLEMENTED);
    assert!(words.contains("binary:///bin/logger"), "{words}");
    task.kill(9).await.unwrap();
    task.wait().await;
}

#[tokio::test]
async fn p01_orphans_are_reaped() {
    let mut shim = Shim::start().await;
    // With an init of its own, and in the host's pid namespace, where orphans
    // come to the shim.
    let script = "for i in $(seq 1000); do (true &) ; done; echo done; sleep 1000";
    let with_init = sh(script).edited(|spec| {
        spec["annotations"] = json!({"dev.knarr.init": "true"});
    });
    let host_pid = sh(script).edited(|spec| {
        let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|namespace| namespace["type"] != "pid");
    });
    for container in [with_init, host_pid] {
        let task = shim.run(&container).await;
        until("all orphans to be made", || task.log("stdout").contains("done").then_some(())).await;
        until("all zombies to be gone", || {
            (zombies_of(&[task.pid, shim.process.id()]) == 0).then_some(())
        })
        .await;
        task.kill(9).await.unwrap();
        assert_eq!(task.wait().await, 137);
        task.delete().await.unwrap();
    }
}

fn zombies_of(parents: &[u32]) -> usize {
    let stats = std::fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
        let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
        let mut fields = stat.rsplit_once(") ")?.1.split(' ');
        (fields.next()? == "Z").then_some(())?;
        fields.next()?.parse::<u32>().ok()
    });
    stats.filter(|parent| parents.contains(parent)).count()
}

#[tokio::test]
async fn p02_signals_are_forwarded_exactly() {
    let mut shim = Shim::start().await;
    // HUP INT QUIT USR1 USR2 TERM WINCH RTMIN+3
    let signals = [1, 2, 3, 10, 12, 15, 28, 37];
    let traps: String = signals.iter().map(|n| format!("trap 'echo got {n}' {n};")).collect();
    let script = format!("{traps} echo ready; while :; do sleep 0.01; done");
    let task = shim.run(&sh(&script)).await;
    until("traps", || task.log("stdout").contains("ready").then_some(())).await;
    for number in signals {
        task.kill(number).await.unwrap();
        let want = format!("got {number}\n");
        until(&want, || task.log("stdout").ends_with(&want).then_some(())).await;
    }
    // PID 1 without a handler ignores TERM; KILL ends it.
    let deaf = shim.run(&run(&["sleep", "1000"])).await;
    deaf.kill(15).await.unwrap();
    assert_eq!(deaf.status().await, api::Status::RUNNING);
    for task in [task, deaf] {
        task.kill(9).await.unwrap();
        assert_eq!(task.wait().await, 137);
    }
}

#[tokio::test]
async fn p07_pause_kill_stop_and_exec_interplay() {
    let mut shim = Shim::start().await;
    let task = shim.run(&sh("trap 'exit 3' TERM; echo up; while :; do sleep 0.01; done")).await;
    until("the trap", || task.log("stdout").contains("up").then_some(())).await;
    task.pause().await.unwrap();
    task.pause().await.unwrap();
    assert_eq!(task.status().await, api::Status::PAUSED);
    task.exec("e", &run(&["true"])).await.unwrap();
    let (code, words) = refused(task.start_exec("e").await);
    assert_eq!(code, Code::FAILED_PRECONDITION);
    assert!(words.contains("paused"), "{words}");
    // Stop as the engine does it: a signal, then thaw.
    task.kill(15).await.unwrap();
    assert_eq!(task.status().await, api::Status::PAUSED);
    task.resume().await.unwrap();
    assert_eq!(task.wait().await, 3);
    assert_eq!(refused(task.pause().await).0, Code::FAILED_PRECONDITION);
    task.delete().await.unwrap();

    // KILL needs no thaw.
    for all in [false, true] {
        let task = shim.run(&run(&["sleep", "1000"])).await;
        task.pause().await.unwrap();
        task.kill_exec("", 9, all).await.unwrap();
        assert_eq!(task.wait().await, 137, "all: {all}");
        task.delete().await.unwrap();
    }
}

#[tokio::test]
async fn processes_and_their_use_are_told() {
    let mut shim = Shim::start().await;
    let task = shim.run(&sh("sleep 1000 & sleep 1000; true")).await;
    let pids = until_pids(&shim, &task.id, 3).await;
    assert!(pids.contains(&task.pid), "{pids:?}");
    let request = api::StatsRequest { id: task.id.clone(), ..Default::default() };
    let any = shim.client.stats(soon(), &request).await.unwrap().stats.unwrap();
    assert_eq!(any.type_url, knarr_model::task::TaskStats::TYPE_URL);
    let stats: knarr_model::task::TaskStats = serde_json::from_slice(&any.value).unwrap();
    assert_eq!(stats.pids, 3, "{stats:?}");
    assert!(stats.memory_usage > 0, "{stats:?}");
    task.kill(9).await.unwrap();
    task.wait().await;
    assert_eq!(refused(shim.client.stats(soon(), &request).await).0, Code::FAILED_PRECONDITION);
}

#[tokio::test]
async fn p12_x02_the_oom_killers_victim_is_told() {
    let mut shim = Shim::start().await;
    let hog = run(&["dd", "if=/dev/zero", "of=/dev/null", "bs=256M", "count=1"]).edited(|spec| {
        let limit = 32 << 20;
        spec["linux"]["resources"] = json!({"memory": {"limit": limit, "swap": limit}});
    });
    let task = shim.run(&hog).await;
    assert_eq!(task.wait().await, 137);
    let record = task.exit_record();
    assert_eq!((record.code, record.oom_killed), (137, true));
}

#[tokio::test]
async fn limits_can_be_changed() {
    let mut shim = Shim::start().await;
    let task = shim.run(&run(&["sleep", "1000"])).await;
    let update = |resources: &str| api::UpdateTaskRequest {
        id: task.id.clone(),
        resources: any(resources.to_owned()),
        ..Default::default()
    };
    shim.client.update(soon(), &update(r#"{"pids":{"limit":77}}"#)).await.unwrap();
    let request = api::StatsRequest { id: task.id.clone(), ..Default::default() };
    let stats = shim.client.stats(soon(), &request).await.unwrap().stats.unwrap();
    let stats: knarr_model::task::TaskStats = serde_json::from_slice(&stats.value).unwrap();
    assert_eq!(stats.pids_limit, 77);
    let nonsense = shim.client.update(soon(), &update("nonsense")).await;
    assert_eq!(refused(nonsense).0, Code::INVALID_ARGUMENT);
    task.kill(9).await.unwrap();
    task.wait().await;
}

async fn until_pids(shim: &Shim, id: &str, count: usize) -> Vec<u32> {
    let asking = async {
        loop {
            let request = api::PidsRequest { id: id.to_owned(), ..Default::default() };
            let answer = shim.client.pids(soon(), &request).await.unwrap();
            if answer.processes.len() == count {
                return answer.processes.iter().map(|process| process.pid).collect();
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, asking).await.expect("processes")
}

#[tokio::test]
async fn execs_run_beside_the_first_process() {
    let mut shim = Shim::start().await;
    let task = shim.run(&run(&["sleep", "1000"])).await;
    for (name, script, code) in [("a", "exit 0", 0), ("b", "exit 42", 42), ("c", "kill -9 $$", 137)]
    {
        task.exec(name, &sh(script)).await.unwrap();
        assert_eq!(refused(task.exec(name, &sh(script)).await).0, Code::ALREADY_EXISTS);
        task.start_exec(name).await.unwrap();
        assert_eq!(task.wait_exec(name).await, code, "{script}");
        assert_eq!(task.delete_exec(name).await.unwrap().exit_status, code);
        assert_eq!(refused(task.delete_exec(name).await).0, Code::NOT_FOUND);
    }
    task.exec("missing", &run(&["nope"])).await.unwrap();
    let (code, words) = refused(task.start_exec("missing").await);
    assert_eq!(code, Code::INVALID_ARGUMENT, "{words}");
    assert!(words.contains("executable file not found in $PATH"), "{words}");
    assert_eq!(task.wait_exec("missing").await, 127);
    task.delete_exec("missing").await.unwrap();

    // An exec is signalled by itself, and dies with the container.
    task.exec("long", &run(&["sleep", "1000"])).await.unwrap();
    task.start_exec("long").await.unwrap();
    task.kill_exec("long", 15, false).await.unwrap();
    assert_eq!(task.wait_exec("long").await, 143);
    task.exec("left", &run(&["sleep", "1000"])).await.unwrap();
    task.start_exec("left").await.unwrap();
    task.kill(9).await.unwrap();
    assert_eq!(task.wait().await, 137);
    assert_eq!(task.wait_exec("left").await, 137);
}

/// Moves a process to the topmost groups, as one does itself that has the host's groups at
/// hand.
fn leave(cgroup: &Path, pid: u32) {
    let groups = cgroup_dirs(cgroup.to_str().unwrap());
    assert!(!groups.is_empty());
    for group in groups {
        // Above it is the tests' own.
        let top = group.ancestors().nth(2).unwrap();
        fs::write(top.join("cgroup.procs"), pid.to_string()).unwrap();
    }
}

#[tokio::test]
async fn an_exec_that_has_left_the_group_is_told_and_ends_with_the_container() {
    let mut shim = Shim::start().await;
    // In the host's pid namespace nobody ends with the first process.
    let container = sh("trap '' TERM; echo deaf; exec sleep 1000").edited(|spec| {
        let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|namespace| namespace["type"] != "pid");
    });
    let task = shim.run(&container).await;
    let cgroup = task.init_record().cgroup;
    until("the trap", || task.log("stdout").contains("deaf").then_some(())).await;
    for exec in ["told", "left"] {
        task.exec(exec, &run(&["sleep", "1000"])).await.unwrap();
        let pid = task.start_exec(exec).await.unwrap();
        leave(&cgroup, pid);
        if exec == "told" {
            // What is for all is for it, too; the first process does not listen.
            task.kill_exec("", 15, true).await.unwrap();
            assert_eq!(task.wait_exec(exec).await, 143);
            assert_eq!(task.status().await, api::Status::RUNNING);
        }
    }
    task.kill(9).await.unwrap();
    assert_eq!(task.wait().await, 137);
    assert_eq!(task.wait_exec("left").await, 137);
}

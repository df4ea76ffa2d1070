//! Output, input, logs, terminals.

use std::{fs, io::Read, time::Duration};

use containerd_shim_protos::api;
use knarr_model::task::AttachRequest;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use tokio::time::timeout;

use crate::support::{PATIENCE, Shim, alive, run, sh, soon, until};

#[tokio::test]
async fn output_reaches_the_log_and_attached_clients() {
    let mut shim = Shim::start().await;
    let task = shim.create(&sh("echo out; echo err >&2; printf 'no newline'")).await;
    let first = task.attach("");
    let only_err =
        task.attach_as(AttachRequest { stderr: true, ..AttachRequest::default() }).unwrap();
    task.start().await.unwrap();
    assert_eq!(task.wait().await, 0);
    assert_eq!(first.read_frames(), (b"out\nno newline".to_vec(), b"err\n".to_vec()));
    assert_eq!(only_err.read_frames(), (Vec::new(), b"err\n".to_vec()));
    assert_eq!(task.log("stdout"), "out\nno newline");
    assert_eq!(task.log("stderr"), "err\n");
    // Who comes too late is told that it is over.
    assert_eq!(task.attach("").read_frames(), (Vec::new(), Vec::new()));
    let unknown = AttachRequest { exec: "nobody".to_owned(), ..AttachRequest::default() };
    let error = task.attach_as(unknown).err().unwrap();
    assert_eq!(error, "error: no such exec: nobody");
}

#[tokio::test]
async fn p03_a_reader_who_comes_after_the_end_gets_all_of_it() {
    let mut shim = Shim::start().await;
    let fifos = ["out", "err"].map(|name| {
        let path = shim.dir.path().join(name);
        let (kind, mode) = (FileType::Fifo, Mode::from_raw_mode(0o600));
        mknodat(CWD, &path, kind, mode, 0).unwrap();
        path
    });
    let container = sh("printf late").with_fifos(fifos.clone());
    let task = shim.run(&container).await;
    assert_eq!(task.wait().await, 0);
    let read = |path: std::path::PathBuf| {
        tokio::task::spawn_blocking(move || fs::read_to_string(path).unwrap())
    };
    let [late, nothing] = fifos.map(read);
    assert_eq!(timeout(PATIENCE, late).await.unwrap().unwrap(), "late");
    assert_eq!(timeout(PATIENCE, nothing).await.unwrap().unwrap(), "");
}

/// 10,000 rounds with `KNARR_TEST_FULL=1`.
#[tokio::test]
async fn p03_the_last_bytes_are_never_lost() {
    let rounds = if std::env::var_os("KNARR_TEST_FULL").is_some() { 10_000 } else { 150 };
    let mut shim = Shim::start().await;
    for round in 0..rounds {
        let task = shim.create(&sh("printf x; exit 7")).await;
        let client = task.attach("");
        task.start().await.unwrap();
        assert_eq!(task.wait().await, 7, "round {round}");
        // All of it is there when `Wait` answers.
        assert_eq!(task.log("stdout"), "x", "round {round}");
        assert_eq!(task.exit_record().code, 7);
        assert_eq!(client.read_frames().0, b"x", "round {round}");
        task.delete().await.unwrap();
        #[expect(clippy::disallowed_methods, reason = "a tree of the test itself")]
        fs::remove_dir_all(&task.bundle).unwrap();
    }
}

#[tokio::test]
async fn p03_much_output_arrives_whole() {
    let mut shim = Shim::start().await;
    let task = shim.create(&sh("seq 1 200000; seq 1 1000 >&2")).await;
    let client = task.attach("");
    task.start().await.unwrap();
    let (out, err) = tokio::task::spawn_blocking(|| client.read_frames()).await.unwrap();
    assert_eq!(task.wait().await, 0);
    let want: String = (1..=200_000).map(|n| format!("{n}\n")).collect();
    assert!(out == want.as_bytes());
    assert_eq!(err.len(), 3893);
    assert!(task.log("stdout") == want);
}

#[tokio::test]
async fn p04_half_close_ends_input_and_output_still_arrives() {
    let mut shim = Shim::start().await;
    let task = shim.create(&sh("cat; echo end").with_stdin()).await;
    let mut client = task.attach("");
    // Before there is a process.
    client.send(b"a\n");
    task.start().await.unwrap();
    client.send(b"b");
    client.half_close();
    assert_eq!(client.read_frames().0, b"a\nbend\n");
    assert_eq!(task.wait().await, 0);
}

#[tokio::test]
async fn p04_no_input_is_an_empty_one() {
    let mut shim = Shim::start().await;
    let task = shim.run(&sh("cat; echo end")).await;
    assert_eq!(task.wait().await, 0);
    assert_eq!(task.log("stdout"), "end\n");
}

#[tokio::test]
async fn a_client_that_detaches_leaves_input_open_unless_it_is_once() {
    let mut shim = Shim::start().await;
    let task = shim.run(&run(&["cat"]).with_stdin()).await;
    let mut client = task.attach("");
    client.send(b"one\n");
    client.expect("one\n");
    drop(client);
    let request =
        AttachRequest { stdin: true, stdout: true, stdin_once: true, ..AttachRequest::default() };
    let mut client = task.attach_as(request).unwrap();
    client.send(b"two\n");
    client.expect("two\n");
    drop(client);
    assert_eq!(task.wait().await, 0);
    assert_eq!(task.log("stdout"), "one\ntwo\n");
}

#[tokio::test]
async fn p05_a_client_that_dies_is_only_detached() {
    let mut shim = Shim::start().await;
    let task = shim.create(&sh("read go; seq 1 100000; echo end").with_stdin()).await;
    let mut dying = task.attach("");
    let stuck = task.attach("");
    task.start().await.unwrap();
    dying.send(b"go\n");
    // One that does not read holds the output up, and is then gone with
    // everything unread: a reset.
    let mut byte = [0];
    (&stuck.0).read_exact(&mut byte).unwrap();
    drop((dying, stuck));
    assert_eq!(task.wait().await, 0);
    let want: String = (1..=100_000).map(|n| format!("{n}\n")).collect();
    assert!(task.log("stdout") == want + "end\n");
}

#[tokio::test]
async fn x05_a_client_that_does_not_read_delays_but_never_holds_the_exit() {
    let mut shim = Shim::start().await;
    let task = shim.create(&sh("seq 1 30000; sleep 1000")).await;
    let stuck = task.attach("");
    task.start().await.unwrap();
    until("output", || task.log("stdout").starts_with("1\n").then_some(())).await;
    task.kill(9).await.unwrap();
    assert_eq!(task.wait().await, 137);
    // Whatever was read or in the pipe is in the log; the client still gets
    // the same when it reads at last.
    let log = task.log("stdout");
    let (out, _) = stuck.read_frames();
    assert!(out == log.as_bytes(), "{} {}", out.len(), log.len());
}

#[tokio::test]
async fn p06_a_grandchild_that_holds_the_pipes_holds_nothing_up() {
    let mut shim = Shim::start().await;
    let host_pid = sh("sleep 1000 & echo $!; exit 5").edited(|spec| {
        let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|namespace| namespace["type"] != "pid");
    });
    for container in [sh("sleep 1000 & exit 5"), host_pid] {
        let task = shim.create(&container).await;
        let client = task.attach("");
        task.start().await.unwrap();
        assert_eq!(task.wait().await, 5);
        if let Ok(pid) = task.log("stdout").trim().parse() {
            assert!(!alive(pid), "the grandchild is still there");
        }
        client.read_frames();
        task.delete().await.unwrap();
    }
}

#[tokio::test]
async fn p06_an_execs_child_that_holds_the_pipes_holds_nothing_up() {
    let mut shim = Shim::start().await;
    let task = shim.run(&run(&["sleep", "1000"])).await;
    task.exec("e", &sh("sleep 1000 & echo said; exit 6")).await.unwrap();
    let client = task.attach("e");
    task.start_exec("e").await.unwrap();
    assert_eq!(task.wait_exec("e").await, 6);
    assert_eq!(client.read_frames().0, b"said\n");
    task.kill(9).await.unwrap();
    assert_eq!(task.wait().await, 137);
}

#[tokio::test]
async fn execs_have_streams_of_their_own() {
    let mut shim = Shim::start().await;
    let task = shim.run(&run(&["sleep", "1000"])).await;
    let script = "read a; echo out $a; echo err >&2; cat >/dev/null; exit 3";
    task.exec("e", &sh(script).with_stdin()).await.unwrap();
    let mut client = task.attach("e");
    client.send(b"hello\n");
    task.start_exec("e").await.unwrap();
    client.half_close();
    assert_eq!(client.read_frames(), (b"out hello\n".to_vec(), b"err\n".to_vec()));
    assert_eq!(task.wait_exec("e").await, 3);
    // The clients of one that cannot be started are let go.
    task.exec("bad", &run(&["nope"])).await.unwrap();
    let client = task.attach("bad");
    task.start_exec("bad").await.unwrap_err();
    assert_eq!(client.read_frames(), (Vec::new(), Vec::new()));
    task.kill(9).await.unwrap();
    task.wait().await;
    assert_eq!(task.log("stdout"), "", "an exec's output is not the container's");
}

#[tokio::test]
async fn p08_terminals_are_raw_and_have_a_size() {
    let mut shim = Shim::start().await;
    let task = shim.create(&run(&["sh"]).with_terminal()).await;
    task.resize("", 100, 40).await.unwrap();
    let mut client = task.attach("");
    task.start().await.unwrap();
    client.send(b"stty size; echo $((6*7))\n");
    let seen = client.expect("42\r\n");
    assert!(seen.contains("40 100\r\n"), "{seen:?}");
    task.resize("", 90, 30).await.unwrap();
    let mut second = task.attach("");
    second.send(b"stty size\n");
    second.expect("30 90\r\n");
    client.expect("30 90\r\n");
    client.send(b"exit 4\n");
    assert_eq!(task.wait().await, 4);
    client.read_raw();
    assert!(task.log("stdout").contains("42\r\n"));
    assert_eq!(task.log("stderr"), "");
}

#[tokio::test]
async fn p08_execs_have_terminals_too() {
    let mut shim = Shim::start().await;
    let task = shim.run(&run(&["sleep", "1000"])).await;
    task.exec("e", &sh("stty size; tty=$(stty size <&2); echo $tty").with_terminal())
        .await
        .unwrap();
    task.resize("e", 77, 22).await.unwrap();
    let client = task.attach("e");
    task.start_exec("e").await.unwrap();
    assert_eq!(client.read_raw(), "22 77\r\n22 77\r\n");
    assert_eq!(task.wait_exec("e").await, 0);
    task.kill(9).await.unwrap();
    task.wait().await;
}

#[tokio::test]
async fn x04_a_flood_is_rotated_and_the_shim_still_listens() {
    let mut shim = Shim::start().await;
    let mut container = run(&["yes", "0123456789"]);
    container.log.max_size = 100_000;
    container.log.max_files = 3;
    let task = shim.run(&container).await;
    let rotated = task.bundle.join("json.log.2");
    until("rotation", || rotated.exists().then_some(())).await;
    tokio::time::timeout(PATIENCE, task.kill(9)).await.unwrap().unwrap();
    assert_eq!(task.wait().await, 137);
    for name in ["json.log", "json.log.1", "json.log.2"] {
        assert!(fs::metadata(task.bundle.join(name)).unwrap().len() <= 100_000, "{name}");
    }
    assert!(!task.bundle.join("json.log.3").exists());
}

#[tokio::test]
async fn k06_a_full_disk_does_not_stop_the_container() {
    let mut shim = Shim::start().await;
    let mut container = sh("seq 1 1000; exit 9");
    container.log.path = Some("/dev/full".into());
    let task = shim.create(&container).await;
    let client = task.attach("");
    task.start().await.unwrap();
    assert_eq!(task.wait().await, 9);
    assert_eq!(client.read_frames().0.len(), 3893);
}

#[tokio::test]
async fn standard_streams_can_be_opened_by_name_by_any_user() {
    let mut shim = Shim::start().await;
    let container = sh("echo out >/proc/self/fd/1; echo err >/proc/self/fd/2").edited(|spec| {
        spec["process"]["user"] = serde_json::json!({"uid": 1000, "gid": 1000});
    });
    let task = shim.run(&container).await;
    assert_eq!(task.wait().await, 0);
    assert_eq!(task.log("stdout"), "out\n");
    assert_eq!(task.log("stderr"), "err\n");
}

#[tokio::test]
async fn nothing_of_the_shim_leaks_into_the_container() {
    let mut shim = Shim::start().await;
    let task = shim.run(&run(&["sh", "-c", "echo /proc/self/fd/*"])).await;
    assert_eq!(task.wait().await, 0);
    // The fourth is the directory that the shell reads.
    let fds = [0, 1, 2, 3].map(|fd| format!("/proc/self/fd/{fd}")).join(" ");
    assert_eq!(task.log("stdout").trim(), fds);
    let task = shim.run(&run(&["cat", "/proc/self/status"])).await;
    assert_eq!(task.wait().await, 0);
    let status = task.log("stdout");
    for want in ["SigIgn:\t0000000000000000\n", "SigBlk:\t0000000000000000\n"] {
        assert!(status.contains(want), "{want}: {status}");
    }
}

#[tokio::test]
async fn a_client_that_asks_nonsense_is_dropped() {
    let mut shim = Shim::start().await;
    let task = shim.run(&run(&["sleep", "1000"])).await;
    let path = task.bundle.join("attach.sock");
    for (request, answer) in [("nonsense\n", "error: bad request"), (&"x".repeat(5000), "")] {
        use std::io::Write;
        let mut socket = std::os::unix::net::UnixStream::connect(&path).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        socket.write_all(request.as_bytes()).unwrap();
        let mut text = Vec::new();
        let _ = socket.read_to_end(&mut text);
        assert!(String::from_utf8_lossy(&text).starts_with(answer));
    }
    task.kill(9).await.unwrap();
    task.wait().await;
}

#[tokio::test]
async fn p03_slow_clients_get_everything_even_after_delete_and_shutdown() {
    let mut shim = Shim::start().await;
    let task = shim.create(&sh("seq 1 40000")).await;
    let client = task.attach("");
    task.start().await.unwrap();
    let mut client = tokio::task::spawn_blocking(move || {
        // Enough for the rest to fit into pipe, queue and socket.
        let mut client = client;
        client.expect("\n12000\n");
        client
    })
    .await
    .unwrap();
    assert_eq!(task.wait().await, 0);
    task.delete().await.unwrap();
    shim.client.shutdown(soon(), &api::ShutdownRequest::default()).await.unwrap();
    until("the socket to be gone", || (!shim.socket.exists()).then_some(())).await;
    let mut rest = Vec::new();
    client.0.read_to_end(&mut rest).unwrap();
    assert!(rest.ends_with(b"40000\n"));
    assert!(shim.ended().await.success());
}

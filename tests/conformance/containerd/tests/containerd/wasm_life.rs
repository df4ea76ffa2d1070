//! What Wasm programs share with native ones because both are processes of the shim's:
//! streams, terminals, logs, events, and what survives whose death.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    process::{Command, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    support::{KNARR, await_content, await_gone, ours, run},
    wasm::{self, import},
};

#[test]
fn input_of_a_wasm_program_ends_and_its_output_arrives_whole() {
    ours(|containerd| {
        let hello = import(containerd, "hello");
        for size in [1, 4_000, 1_000_000] {
            let line = ["run", "--rm", "--runtime", KNARR, &hello, "cat", "/hello.wasm", "cat"];
            let mut child = containerd
                .ctr_command(&line)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let mut stdin = child.stdin.take().unwrap();
            let writer = std::thread::spawn(move || stdin.write_all(&vec![b'x'; size]));
            let output = child.wait_with_output().unwrap();
            writer.join().unwrap().unwrap();
            assert!(output.status.success());
            assert_eq!(output.stdout.len(), size);
        }
        containerd.assert_clean();
    });
}

#[test]
fn s05_a_wasm_program_has_a_terminal() {
    ours(|containerd| {
        let hello = import(containerd, "hello");
        let line = format!(
            "ctr -a {} -n {} run --rm -t --runtime {KNARR} {hello} tty /hello.wasm exit 4",
            containerd.socket, containerd.namespace
        );
        let script = |line: &str| {
            run(Command::new("script").args(["-qec", line, "/dev/null"]).stdin(Stdio::null()))
        };
        assert_eq!(script(&line).code, 4);
        // A terminal ends its lines as terminals do, and script's ends them once more.
        let ran = script(&line.replace("exit 4", "grain"));
        assert!(ran.code == 0 && ran.out.contains("arguments: grain\r\r\n"), "{ran:?}");
        containerd.assert_clean();
    });
}

#[test]
fn logs_of_a_wasm_program_go_to_a_file_or_to_a_program() {
    ours(|containerd| {
        let hello = import(containerd, "hello");
        let file = containerd.path("logs/one.log");
        let uri = format!("file://{}", file.display());
        wasm::run(containerd, &["-d", "--log-uri", &uri], &hello, "one", &["/hello.wasm", "trap"]);
        let text = await_content(&file, "asked to");
        assert!(text.contains("panicked"), "{text}");
        containerd.await_status("one", "STOPPED");
        assert_eq!(containerd.delete("one"), 134);

        let program = containerd.path("logger");
        let kept = containerd.path("kept");
        let text = format!(
            "#!/bin/sh\nexec 5>&-\ncat <&3 >{0} &\ncat <&4 >/dev/null\nwait\n",
            kept.display()
        );
        fs::write(&program, text).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let uri = format!("binary://{}", program.display());
        wasm::run(containerd, &["-d", "--log-uri", &uri], &hello, "two", &["/hello.wasm", "grain"]);
        assert!(await_content(&kept, "arguments").contains("arguments: grain\n"));
        containerd.await_status("two", "STOPPED");
        containerd.delete("two");
        containerd.assert_clean();
    });
}

#[test]
fn s04_events_of_wasm_programs_come_in_order_and_each_exit_once() {
    ours(|containerd| {
        let [hello, web] = ["hello", "web"].map(|guest| import(containerd, guest));
        let events = containerd.events();
        wasm::run(containerd, &["-d", "--null-io"], &web, "one", &[]).ok();
        containerd.ctr(&["task", "pause", "one"]).ok();
        containerd.ctr(&["task", "resume", "one"]).ok();
        containerd.kill_and_delete("one");
        events.await_event("one", "delete");
        let want = ["create", "start", "paused", "resumed", "exit one 137", "delete"];
        assert_eq!(events.of("one"), want);
        for at in 0..10 {
            let id = format!("short{at}");
            let words = ["/hello.wasm", "exit", "4"];
            wasm::run(containerd, &["--rm", "--null-io"], &hello, &id, &words);
            events.await_event(&id, "delete");
            assert_eq!(events.of(&id), ["create", "start", &format!("exit {id} 4"), "delete"]);
        }
        containerd.assert_clean();
    });
}

#[test]
fn wasm_programs_outlive_containerd_and_not_their_shim() {
    ours(|containerd| {
        let web = import(containerd, "web");
        wasm::run(containerd, &["-d", "--null-io"], &web, "stays", &[]).ok();
        let pid = containerd.pid("stays");
        containerd.kill_daemon();
        containerd.start_daemon();
        assert_eq!(
            (containerd.status("stays").as_str(), containerd.pid("stays")),
            ("RUNNING", pid)
        );
        let events = containerd.events();
        for (shim, _) in containerd.shims() {
            kill(Pid::from_raw(shim), Signal::SIGKILL).unwrap();
        }
        events.await_event("stays", "delete");
        assert_eq!(events.of("stays"), ["exit stays 137", "delete"]);
        await_gone(pid);
        containerd.ctr(&["container", "rm", "stays"]).ok();
        containerd.assert_clean();
    });
}

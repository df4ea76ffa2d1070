//! Input, output, terminals, and where logs go.

use std::{fs, io::Write as _, os::unix::fs::PermissionsExt as _, process::Stdio};

use crate::support::{await_content, both};

#[test]
fn input_ends_and_output_arrives_whole() {
    both(|containerd| {
        containerd.sleeper(&[], "one");
        for at in 0..5 {
            let exec = format!("in{at}");
            let text = "grain\n".repeat(at * 4000 + 1);
            let mut child = containerd
                .ctr_command(&["task", "exec", "--exec-id", &exec, "one", "cat"])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let mut stdin = child.stdin.take().unwrap();
            let written = text.clone();
            let writer = std::thread::spawn(move || stdin.write_all(written.as_bytes()));
            let output = child.wait_with_output().unwrap();
            writer.join().unwrap().unwrap();
            assert!(output.status.success());
            assert_eq!(output.stdout.len(), text.len());
        }
        containerd.kill_and_delete("one");
        let script = "yes grain | head -c 1000000";
        let said = containerd.run(&["--rm"], "two", &["sh", "-c", script]);
        assert_eq!(said.out.len(), 1_000_000);
        containerd.assert_clean();
    });
}

#[test]
fn terminals_are_the_containers_own() {
    both(|containerd| {
        let inside = |line: &str| {
            let line = format!("ctr -a {} -n {} {line}", containerd.socket, containerd.namespace);
            let mut script = std::process::Command::new("script");
            script.args(["-qec", &line, "/dev/null"]).stdin(Stdio::null());
            crate::support::run(&mut script)
        };
        let run = format!(
            "run --rm -t --runtime {} {} tty sh -c 'tty; exit 4'",
            containerd.runtime,
            crate::support::BUSYBOX
        );
        let ran = inside(&run);
        assert!(ran.out.contains("/dev/pts/0"), "{ran:?}");
        assert_eq!(ran.code, 4);
        containerd.sleeper(&[], "one");
        let ran = inside("task exec -t --exec-id e one sh -c 'tty; exit 6'");
        assert!(ran.out.contains("/dev/pts/0"), "{ran:?}");
        assert_eq!(ran.code, 6);
        containerd.kill_and_delete("one");
        containerd.assert_clean();
    });
}

#[test]
fn logs_go_to_a_file_or_to_a_program() {
    both(|containerd| {
        let script = ["sh", "-c", "echo out; echo err >&2"];
        let file = containerd.path("logs/one.log");
        let uri = format!("file://{}", file.display());
        containerd.run(&["-d", "--log-uri", &uri], "one", &script).ok();
        let text = await_content(&file, "err");
        assert!(text.contains("out\n"), "{text}");
        containerd.await_status("one", "STOPPED");
        containerd.delete("one");

        let program = containerd.path("logger");
        let kept = containerd.path("kept");
        let text = format!(
            "#!/bin/sh\necho \"$CONTAINER_ID $CONTAINER_NAMESPACE $*\" >{0}.env\nexec 5>&-\n\
             cat <&3 >{0}.out &\ncat <&4 >{0}.err &\nwait\n",
            kept.display()
        );
        fs::write(&program, text).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let uri = format!("binary://{}?size=10%20m", program.display());
        containerd.run(&["-d", "--log-uri", &uri], "two", &script).ok();
        assert_eq!(await_content(&containerd.path("kept.out"), "\n"), "out\n");
        assert_eq!(await_content(&containerd.path("kept.err"), "\n"), "err\n");
        let environment = fs::read_to_string(containerd.path("kept.env")).unwrap();
        assert_eq!(environment, format!("two {} size 10 m\n", containerd.namespace));
        containerd.await_status("two", "STOPPED");
        containerd.delete("two");
        containerd.assert_clean();
    });
}

//! Exit codes, arguments, streams, signals, limits of commands.

use crate::support::{Case, end, signal, wait_for};

/// A preview 1 command with this body; says `ready` first where `$ready` is called.
pub(crate) fn command(body: &str) -> Case {
    Case::wat(&format!(
        r#"(module
            (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
            (import "wasi_snapshot_preview1" "fd_write"
                (func $write (param i32 i32 i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "fd_read"
                (func $read (param i32 i32 i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "poll_oneoff"
                (func $poll (param i32 i32 i32 i32) (result i32)))
            (memory (export "memory") 1)
            (table $t 1 funcref)
            (data (i32.const 16) "ready\n")
            (func $ready
                (i32.store (i32.const 0) (i32.const 16))
                (i32.store (i32.const 4) (i32.const 6))
                (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8))))
            (func $deep (param i32) (result i32)
                (i32.add (local.get 0) (call $deep (i32.add (local.get 0) (i32.const 1)))))
            (func (export "_start") {body}))"#
    ))
}

#[test]
fn w25_exit_codes_are_exact() {
    for (asked, seen) in [(0, 0), (1, 1), (125, 125), (126, 126), (255, 255), (256, 0), (-1, 255)] {
        let ended = command(&format!("(call $exit (i32.const {asked}))")).run("");
        assert_eq!(ended.code, seen, "{asked}: {}", ended.stderr);
        assert_eq!(ended.stderr, "");
    }
    assert_eq!(command("").run("").code, 0);
}

#[test]
fn w16_a_trap_is_134_and_says_where() {
    for (body, reason) in [
        ("unreachable", "unreachable"),
        ("(drop (i32.div_u (i32.const 1) (i32.const 0)))", "divide by zero"),
        ("(drop (i32.load (i32.const -4)))", "out of bounds"),
        ("(call_indirect $t (i32.const 0))", "uninitialized element"),
    ] {
        let ended = command(body).run("");
        assert_eq!(ended.code, 134, "{body}: {}", ended.stderr);
        assert!(ended.stderr.contains(reason), "{body}: {}", ended.stderr);
        assert!(ended.stderr.contains("\n  0: "), "{}", ended.stderr);
    }
}

#[test]
fn w04_endless_recursion_is_a_trap() {
    let ended = command("(drop (call $deep (i32.const 0)))").run("");
    assert_eq!(ended.code, 134, "{}", ended.stderr);
    assert!(ended.stderr.contains("call stack exhausted"), "{}", ended.stderr);
    assert!(ended.stderr.len() < 10_000, "a backtrace has an end: {}", ended.stderr.len());
}

#[test]
fn w01_a_tight_loop_ends_by_signal() {
    for (name, code) in [("TERM", 143), ("INT", 130), ("HUP", 129), ("QUIT", 131), ("USR1", 138)] {
        let case = command("(call $ready) (loop br 0)");
        let mut child = case.spawn("run");
        wait_for(child.stdout.as_mut().unwrap(), "ready");
        signal(&child, name);
        assert_eq!(end(child).code, code, "{name}");
    }
}

#[test]
fn w01_a_loop_in_the_start_function_ends_by_signal() {
    let case = Case::wat(
        r#"(module (import "wasi_snapshot_preview1" "fd_write"
                (func $write (param i32 i32 i32 i32) (result i32)))
            (memory (export "memory") 1) (data (i32.const 16) "ready\n")
            (func $go
                (i32.store (i32.const 0) (i32.const 16))
                (i32.store (i32.const 4) (i32.const 6))
                (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
                (loop br 0))
            (start $go) (func (export "_start")))"#,
    );
    let mut child = case.spawn("run");
    // Output of a start function has no memory export to read from yet in some
    // hosts; either way the signal must end it.
    let out = child.stdout.as_mut().unwrap();
    let mut byte = [0];
    use std::io::Read as _;
    let _ = out.read(&mut byte).unwrap();
    signal(&child, "TERM");
    assert_eq!(end(child).code, 143);
}

#[test]
fn w24_a_blocked_host_call_ends_by_signal() {
    // fd_read of a standard input that says nothing.
    let body = "(call $ready)
        (i32.store (i32.const 0) (i32.const 64)) (i32.store (i32.const 4) (i32.const 8))
        (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))";
    let case = command(body);
    let mut child = case.spawn("run");
    let stdin = child.stdin.take();
    wait_for(child.stdout.as_mut().unwrap(), "ready");
    signal(&child, "TERM");
    assert_eq!(end(child).code, 143);
    drop(stdin);
    // A sleep of 584 years: clock 1 (monotonic), timeout u64::MAX.
    let body = "(call $ready)
        (i64.store (i32.const 64) (i64.const 1)) (i32.store8 (i32.const 72) (i32.const 0))
        (i32.store (i32.const 80) (i32.const 1)) (i64.store (i32.const 88) (i64.const -1))
        (drop (call $poll (i32.const 64) (i32.const 256) (i32.const 1) (i32.const 8)))
        (call $exit (i32.const 9))";
    let case = command(body);
    let mut child = case.spawn("run");
    wait_for(child.stdout.as_mut().unwrap(), "ready");
    signal(&child, "TERM");
    assert_eq!(end(child).code, 143);
}

#[test]
fn w02_memory_ends_at_its_limit() {
    // Grows by one page until it is refused, then exits with the pages it has.
    let grow = "(loop $more
            (br_if $more (i32.ne (memory.grow (i32.const 1)) (i32.const -1))))
        (call $exit (memory.size))";
    // What is left of 20 MiB when the host has had its part.
    let ended = command(grow).memory(20 << 20).run("");
    assert!((64..256).contains(&ended.code), "{}: {}", ended.code, ended.stderr);
    let all_at_once = "(call $exit (memory.grow (i32.const 65535)))";
    assert_eq!(command(all_at_once).memory(64 << 20).run("").code, 255);
    let too_small = command("").memory(1000).run("");
    assert_eq!(too_small.code, 126);
    assert!(too_small.stderr.contains("memory"), "{}", too_small.stderr);
}

#[test]
fn w03_a_table_ends_at_its_limit() {
    let ended = command("(call $exit (table.grow $t (ref.null func) (i32.const -2)))").run("");
    assert_eq!(ended.code, 255, "{}", ended.stderr);
}

#[test]
fn w03_tables_are_charged() {
    // Ninety tables of a million elements: 720 MB of the host's memory.
    let tables = "(table 0 funcref)".repeat(90);
    let grow: String = (1..=90)
        .map(|table| {
            format!(
                "(if (i32.ne (table.grow {table} (ref.null func) (i32.const 1000000)) (i32.const -1))
                    (then (local.set 0 (i32.add (local.get 0) (i32.const 1)))))"
            )
        })
        .collect();
    let text = format!(
        r#"(module
            (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
            (memory (export "memory") 1) (table 0 funcref) {tables}
            (func (export "_start") (local i32) {grow} (call $exit (local.get 0))))"#
    );
    let ended = Case::wat(&text).memory(64 << 20).run("");
    assert!((1..=7).contains(&ended.code), "{}: {}", ended.code, ended.stderr);
}

#[test]
fn an_import_that_nobody_grants_is_named() {
    let case = Case::wat(
        r#"(module (import "env" "system" (func)) (memory (export "memory") 1)
            (func (export "_start")))"#,
    );
    let ended = case.run("");
    assert_eq!(ended.code, 126);
    assert!(ended.stderr.contains("env") && ended.stderr.contains("system"), "{}", ended.stderr);
}

#[test]
fn a_host_without_its_files_says_so() {
    let output = std::process::Command::new("sh")
        .args(["-c", r#"exec "$0" run 3<&- 4<&-"#, crate::support::HOST])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(125));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("descriptor 3"), "{said}");
}

#[test]
fn w21_damaged_code_is_refused() {
    let case = command("");
    let path = case.outside().join("code.cwasm");
    let code = std::fs::read(&path).unwrap();
    std::fs::write(&path, &code[..code.len() / 2]).unwrap();
    let ended = case.run("");
    assert_eq!(ended.code, 125, "{}", ended.stderr);
    assert!(ended.stderr.contains("compiled code"), "{}", ended.stderr);
    std::fs::write(&path, b"").unwrap();
    assert_eq!(case.run("").code, 125);
}

#[test]
fn w21_code_that_was_changed_after_it_was_checked_is_not_loaded() {
    use std::os::{linux::fs::MetadataExt as _, unix::fs::FileExt as _};
    let mut case = command("(call $exit (i32.const 7))");
    let path = case.outside().join("code.cwasm");
    let is = std::fs::metadata(&path).unwrap();
    case.launch["launch"]["identity"] = serde_json::json!({
        "device": is.st_dev(), "inode": is.st_ino(), "size": is.st_size(),
        "changed": is.st_ctime(), "changed_nanoseconds": is.st_ctime_nsec(),
    });
    assert_eq!(case.run("").code, 7);
    // The same bytes once more: the file is another than was checked, whatever is in it.
    let code = std::fs::read(&path).unwrap();
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    while std::fs::metadata(&path).unwrap().st_ctime_nsec() == is.st_ctime_nsec() {
        file.write_all_at(&code, 0).unwrap();
    }
    let ended = case.run("");
    assert_eq!(ended.code, 125, "{}", ended.stderr);
    assert!(ended.stderr.contains("has changed"), "{}", ended.stderr);
}

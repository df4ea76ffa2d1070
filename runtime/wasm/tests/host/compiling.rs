//! What the compiler takes, and what it refuses in words and in time.

use std::{
    fmt::Write as _,
    fs,
    process::{Child, Command, Stdio},
    thread,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, pidfd_open},
};

use crate::support::{HOST, compile};

fn refused(binary: &[u8]) -> String {
    let (code, said) = compile(binary);
    assert!(code.is_none(), "compiled");
    assert!(!said.is_empty());
    said
}

fn wat(text: &str) -> Vec<u8> {
    wat::parse_str(text).unwrap()
}

#[test]
fn i20_code_compiled_elsewhere_is_refused() {
    let (code, _) = compile(&wat("(module)"));
    let code = code.unwrap();
    assert!(code.starts_with(b"\x7fELF"));
    assert!(refused(&code).contains("ELF"));
}

#[test]
fn w22_malformed_binaries_are_refused() {
    let whole = wat(r#"(module (func (export "_start") (drop (i32.const 1))))"#);
    for end in 0..whole.len() {
        // Cut between two sections it is a whole module again.
        let _ = compile_is_error_or_code(&whole[..end]);
    }
    for (bad, word) in [
        (&b"(module)"[..], "\\0asm"),
        (b"", "\\0asm"),
        (b"\0asm\x01\0\0\0\x01\xff\xff\xff\xff\x0f", "compiled"),
        (b"\0asm\x09\0\0\0", "version"),
    ] {
        let said = refused(bad);
        assert!(said.contains(word), "{said}");
    }
}

fn compile_is_error_or_code(binary: &[u8]) -> bool {
    compile(binary).0.is_some()
}

#[test]
fn w20_features_that_are_off_are_named() {
    for (text, word) in [
        ("(module (memory 1 1 shared))", "threads"),
        ("(module (memory i64 1))", "memory64"),
        ("(module (type (struct)))", "gc"),
        ("(module (tag))", "exceptions"),
    ] {
        let said = refused(&wat(text));
        assert!(said.contains(word), "{text}: {said}");
    }
}

#[test]
fn w05_compile_bombs_end() {
    // Nested blocks, many locals, many functions are code, a wide br_table is none: each
    // ends as it must, and the process in neither a crash nor a limit.
    let nested = format!("(module (func {} {}))", "block ".repeat(10_000), "end ".repeat(10_000));
    let table =
        |width| format!("(module (func (block (br_table {} (i32.const 0)))))", "0 ".repeat(width));
    let locals = |count| format!("(module (func (local {})))", "i64 ".repeat(count));
    let mut many = String::from("(module ");
    for number in 0..20_000 {
        write!(many, "(func (result i32) (i32.const {number}))").unwrap();
    }
    many.push(')');
    let bombs =
        [("nested", nested), ("table", table(60_000)), ("locals", locals(50_000)), ("many", many)];
    for (name, text) in bombs {
        let (code, said) = compile(&wat(&text));
        assert!(code.is_some_and(|code| !code.is_empty()), "{name}: {said}");
    }
    assert!(refused(&wat(&locals(50_001))).contains("locals"));
    assert!(refused(&wat(&table(100_000))).contains("br_table"));
}

/// A compiler that waits for its module.
fn waiting() -> Child {
    Command::new(HOST)
        .arg("compile")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
fn w05_the_compiler_works_within_limits() {
    // It has confined itself before it reads the first byte, so it can be looked at while
    // it waits for that.
    let mut compiler = waiting();
    let of = |path: String| fs::read_to_string(path).unwrap_or_default();
    let children = format!("/proc/{0}/task/{0}/children", compiler.id());
    let worker = loop {
        if let Some(worker) = of(children.clone()).split_whitespace().next() {
            break worker.to_owned();
        }
        thread::yield_now();
    };
    let limit = |name: &str| -> u64 {
        let limits = of(format!("/proc/{worker}/limits"));
        let line = limits.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        let words = line.get(name.len()..).unwrap_or_default().split_whitespace().next();
        words.and_then(|word| word.parse().ok()).unwrap_or(u64::MAX)
    };
    // The last of them.
    while limit("Max open files") > 64 {
        thread::yield_now();
    }
    assert!(limit("Max cpu time") <= 240);
    assert!(limit("Max data size") <= 4 << 30);
    assert!(limit("Max file size") <= 1 << 30);
    assert_eq!(limit("Max core file size"), 0);
    // Fields 19 and 41 of proc_pid_stat(5): niceness and policy (SCHED_BATCH is 3).
    let stat = of(format!("/proc/{worker}/stat"));
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    assert_eq!((fields[16], fields[38]), ("10", "3"), "{stat}");
    assert!(of(format!("/proc/{worker}/status")).contains("NoNewPrivs:\t1"));
    drop(compiler.stdin.take());
    assert_eq!(compiler.wait().unwrap().code(), Some(1));
}

#[test]
fn w05_who_exceeds_a_limit_is_told_so() {
    // Less than any compiler needs, so that the test is short; and its code is larger than
    // a file may be long before the compiler comes near its own limit of memory.
    let directory = tempfile::TempDir::new().unwrap();
    for (limit, word, functions) in [
        ("-t 1", "processor time", 200_000),
        ("-d 100000", "memory", 200_000),
        ("-f 8", "larger", 5_000),
    ] {
        let mut many = String::from("(module ");
        for number in 0..functions {
            write!(many, "(func (result i32) (i32.const {number}))").unwrap();
        }
        many.push(')');
        let module = directory.path().join("many.wasm");
        fs::write(&module, wat(&many)).unwrap();
        let script = format!(r#"ulimit {limit}; exec "$0" compile <"$1" >"$2""#);
        let output = Command::new("sh")
            .args(["-c", &script, HOST])
            .args([&module, &directory.path().join("code")])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{limit}: {said}");
        assert!(said.contains("compile limit") && said.contains(word), "{limit}: {said}");
    }
}

#[test]
fn w05_a_compiler_that_nobody_waits_for_ends() {
    let mut compiler = waiting();
    // Held to the end: without its input it would end anyway.
    let stdin = compiler.stdin.take();
    let process = pidfd_open(Pid::from_child(&compiler), PidfdFlags::empty()).unwrap();
    // Who asked for the code is gone, and with it the other end of this pipe.
    drop(compiler.stderr.take());
    let minute = Timespec { tv_sec: 60, tv_nsec: 0 };
    let ended = poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&minute)).unwrap();
    assert_eq!(ended, 1, "it waits for its input still");
    drop(stdin);
    compiler.wait().unwrap();
}

#[test]
fn w05_what_is_too_large_is_refused_before_it_is_compiled() {
    let mut large = b"\0asm\x01\0\0\0".to_vec();
    large.resize((256 << 20) + 1, 0);
    assert!(refused(&large).contains("256 MiB"));
}

#[test]
fn w27_the_compiler_has_given_up_everything_before_it_reads() {
    use std::{fs, io::Write as _, process::Stdio};
    let mut supervisor = std::process::Command::new(crate::support::HOST)
        .arg("compile")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // More than a pipe holds: when it is written, somebody has begun to read.
    let mut stdin = supervisor.stdin.take().unwrap();
    stdin.write_all(&vec![0; 1 << 20]).unwrap();
    let id = supervisor.id();
    let worker = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap();
    let of = |name: &str| fs::read_to_string(format!("/proc/{}/{name}", worker.trim())).unwrap();
    let status = of("status");
    let zeros = "0000000000000000";
    for line in [
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
        &format!("CapEff:\t{zeros}"),
        &format!("CapPrm:\t{zeros}"),
    ] {
        assert!(status.contains(line), "{line}\n{status}");
    }
    let limits = of("limits");
    for (name, most) in [
        ("Max core file size", 0),
        ("Max open files", 64),
        ("Max locked memory", 0),
        ("Max msgqueue size", 0),
    ] {
        let line = limits.lines().find(|line| line.starts_with(name)).unwrap();
        let hard: u64 = line[name.len()..].split_whitespace().nth(1).unwrap().parse().unwrap();
        assert!(hard <= most, "{line}");
    }
    let link = |pid: &str, name: &str| fs::read_link(format!("/proc/{pid}/{name}")).unwrap();
    if nix::unistd::geteuid().is_root() {
        assert!(status.contains("Uid:\t65534\t65534\t65534\t65534"), "{status}");
        assert_ne!(link(worker.trim(), "ns/net"), link("self", "ns/net"));
        let root = fs::read_dir(format!("/proc/{}/root", worker.trim())).unwrap();
        assert_eq!(root.count(), 0, "its root is empty");
    }
    drop(stdin);
    let ended = crate::support::end(supervisor);
    assert!(ended.stderr.contains("WebAssembly"), "{}", ended.stderr);
}

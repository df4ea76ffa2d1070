//! W09: what a guest reaches with a path, in both generations of WASI.

use std::{
    fs,
    os::unix::fs::symlink,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use crate::support::Case;

/// The same program twice: a preview 1 module, and a component of it.
const BOTH: [(&str, &str); 2] =
    [("preview1-command", "hello"), ("component-command", "hello-component")];

fn case(abi: &str, guest: &str) -> Case {
    let case = Case::prebuilt(abi, guest).preopen("/data", false).preopen("/ro", true);
    fs::write(case.outside().join("secret"), "outside\n").unwrap();
    fs::create_dir(case.path("/etc")).unwrap();
    fs::write(case.path("/etc/motd"), "of the image\n").unwrap();
    fs::write(case.path("/data/file"), "of the volume\n").unwrap();
    fs::write(case.path("/ro/file"), "read only\n").unwrap();
    let outside = case.outside().to_owned();
    symlink("/etc/passwd", case.path("/data/absolute")).unwrap();
    symlink("../../../../../../../etc/passwd", case.path("/data/relative")).unwrap();
    symlink("/", case.path("/data/root")).unwrap();
    symlink("..", case.path("/data/up")).unwrap();
    symlink(outside.join("secret"), case.path("/data/secret")).unwrap();
    symlink(&outside, case.path("/data/directory")).unwrap();
    symlink("chain2", case.path("/data/chain1")).unwrap();
    symlink("secret", case.path("/data/chain2")).unwrap();
    symlink("loop", case.path("/data/loop")).unwrap();
    symlink("file", case.path("/data/inside")).unwrap();
    case
}

#[test]
fn w09_what_is_granted_works() {
    for (abi, guest) in BOTH {
        let case = case(abi, guest);
        for (path, text) in [
            ("/data/file", "of the volume\n"),
            ("/data/inside", "of the volume\n"),
            ("/data/./file", "of the volume\n"),
            ("/ro/file", "read only\n"),
            ("/etc/motd", "of the image\n"),
            ("etc/motd", "of the image\n"),
        ] {
            let ended = case.run_args(&["cat", path]);
            assert_eq!((ended.code, ended.stdout.as_str()), (0, text), "{guest} {path}");
        }
        let ended = case.run_args(&["write", "/data/new", "x"]);
        assert_eq!(ended.code, 0, "{}", ended.stderr);
        assert_eq!(fs::read_to_string(case.path("/data/new")).unwrap(), "x\n");
    }
}

#[test]
fn w09_escapes_are_refused_for_reading() {
    for (abi, guest) in BOTH {
        let case = case(abi, guest);
        let secret = case.outside().join("secret");
        for path in [
            "/data/../../secret",
            "/data/../../../../../../../../etc/passwd",
            "../secret",
            "../../../../../../etc/passwd",
            "/../secret",
            "/data/absolute",
            "/data/relative",
            "/data/secret",
            "/data/secret/",
            "/data/chain1",
            "/data/directory/secret",
            "/data/root/etc/passwd",
            "/data/root/proc/self/environ",
            "/data/up/up/up/secret",
            "/data/up/../../secret",
            "/data/file/../../../secret",
            "/data/loop",
            "/proc/self/environ",
            "/proc/self/root/etc/passwd",
            "/dev/fd/3",
            "/dev/null",
            "/data/./.././../secret",
            "/data//..//..//secret",
            secret.to_str().unwrap(),
        ] {
            let ended = case.run_args(&["cat", path]);
            assert_eq!((ended.code, ended.stdout.as_str()), (1, ""), "{guest} {path}");
        }
        for path in ["/data/..", "/data/up/..", "/data/directory", "/data/root", ".."] {
            let ended = case.run_args(&["ls", path]);
            assert!(!ended.stdout.contains("secret"), "{guest} {path}: {}", ended.stdout);
            assert!(!ended.stdout.contains("proc"), "{guest} {path}: {}", ended.stdout);
        }
    }
}

#[test]
fn w09_escapes_are_refused_for_writing() {
    for (abi, guest) in BOTH {
        let case = case(abi, guest);
        symlink(case.outside().join("made"), case.path("/data/dangling")).unwrap();
        for path in [
            "/data/secret",
            "/data/chain1",
            "/data/dangling",
            "/data/dangling/",
            "/data/directory/made",
            "/data/../../made",
            "/data/up/../../made",
            "../made",
            "/made",
            "/etc/motd",
            "/ro/file",
            "/ro/made",
        ] {
            let ended = case.run_args(&["write", path, "x"]);
            assert_eq!(ended.code, 1, "{guest} {path}");
        }
        assert!(!case.outside().join("made").exists());
        assert_eq!(fs::read_to_string(case.outside().join("secret")).unwrap(), "outside\n");
        assert_eq!(fs::read_to_string(case.path("/etc/motd")).unwrap(), "of the image\n");
        assert_eq!(fs::read_to_string(case.path("/ro/file")).unwrap(), "read only\n");
    }
}

#[test]
fn w09_a_preopen_through_a_link_stays_in_the_root() {
    // The image says where /data leads; the host must not follow it out.
    let mut case = Case::prebuilt("preview1-command", "hello").args(&["ls", "/link"]);
    fs::create_dir(case.path("/real")).unwrap();
    fs::write(case.path("/real/inside"), "").unwrap();
    symlink("/real", case.path("/link")).unwrap();
    case.launch["launch"]["preopens"] = serde_json::json!([{"path": "/link", "read_only": true}]);
    let ended = case.run("");
    assert_eq!((ended.code, ended.stdout.as_str()), (0, "inside\n"), "{}", ended.stderr);
}

#[test]
fn w09_a_path_swapped_by_another_container_never_leads_out() {
    // Opens d/name 20,000 times and reads a byte: `i` is inside, `o` is outside.
    let case = Case::wat(
        r#"(module
            (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
            (import "wasi_snapshot_preview1" "path_open" (func $open
                (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "fd_read"
                (func $read (param i32 i32 i32 i32) (result i32)))
            (import "wasi_snapshot_preview1" "fd_close" (func $close (param i32) (result i32)))
            (memory (export "memory") 1) (data (i32.const 16) "d/secret")
            (func (export "_start") (local $n i32) (local $good i32)
                (loop $next
                    (local.set $n (i32.add (local.get $n) (i32.const 1)))
                    (if (i32.eqz (call $open (i32.const 3) (i32.const 1) (i32.const 16)
                            (i32.const 8) (i32.const 0) (i64.const 2) (i64.const 0) (i32.const 0)
                            (i32.const 32)))
                        (then
                            (i32.store (i32.const 0) (i32.const 64))
                            (i32.store (i32.const 4) (i32.const 1))
                            (i32.store8 (i32.const 64) (i32.const 0))
                            (drop (call $read (i32.load (i32.const 32)) (i32.const 0)
                                (i32.const 1) (i32.const 8)))
                            (if (i32.eq (i32.load8_u (i32.const 64)) (i32.const 111))
                                (then (call $exit (i32.const 66))))
                            (if (i32.eq (i32.load8_u (i32.const 64)) (i32.const 105))
                                (then (local.set $good (i32.const 1))))
                            (drop (call $close (i32.load (i32.const 32))))))
                    (br_if $next (i32.lt_u (local.get $n) (i32.const 20000))))
                (call $exit (i32.eqz (local.get $good)))))"#,
    );
    fs::write(case.outside().join("secret"), "outside").unwrap();
    fs::create_dir(case.path("/d")).unwrap();
    fs::write(case.path("/d/secret"), "inside").unwrap();
    symlink(case.outside(), case.path("/link")).unwrap();
    let (d, link) = (case.path("/d"), case.path("/link"));
    let done = AtomicBool::new(false);
    let ended = thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                rustix::fs::renameat_with(
                    rustix::fs::CWD,
                    &d,
                    rustix::fs::CWD,
                    &link,
                    rustix::fs::RenameFlags::EXCHANGE,
                )
                .unwrap();
            }
        });
        let ended = case.run("");
        done.store(true, Ordering::Relaxed);
        ended
    });
    assert_eq!(ended.code, 0, "66 is an escape: {}", ended.stderr);
}

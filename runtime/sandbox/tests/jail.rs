//! The Wasm jail, with a native probe in place of the Wasm host: what a guest
//! that has broken out of the host could do (CATALOGUE W27).

mod common;

use std::{fs, os::unix::fs::symlink, path::Path, process::Command};

use common::Fixture;
use knarr_sandbox::Failure;
use serde_json::{Value, json};

const PROBE: &str = r#"
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>
extern char **environ;
static void *thread(void *arg) { return arg; }
static void list(const char *path) {
  DIR *dir = opendir(path); struct dirent *e; char names[50][64]; int n = 0;
  if (!dir) { printf("list %s: %s\n", path, strerror(errno)); return; }
  while ((e = readdir(dir)) && n < 50) if (e->d_name[0] != '.') snprintf(names[n++], 64, "%s", e->d_name);
  qsort(names, n, 64, (int (*)(const void *, const void *))strcmp);
  printf("list %s:", path); for (int i = 0; i < n; i++) printf(" %s", names[i]); printf("\n");
  closedir(dir);
}
static void file(const char *path, int flags) {
  int fd = open(path, flags, 0600); printf("open %s %d: %s\n", path, flags & 3, fd < 0 ? strerror(errno) : "ok");
}
#define TRY(name, call) do { long r = (call); printf("%s: %s\n", name, r < 0 ? strerror(errno) : "ok"); fflush(stdout); } while (0)
int main(int argc, char **argv) {
  printf("args"); for (int i = 0; i < argc; i++) printf(" %s", argv[i]);
  int n = 0; while (environ[n]) n++; printf(" env %d\n", n);
  char launch[4096] = {0}, code[64] = {0};
  read(3, launch, sizeof launch - 1); read(4, code, sizeof code - 1);
  printf("launch %s\ncode %s\n", launch, code);
  printf("descriptors"); for (int fd = 0; fd < 300; fd++) if (fcntl(fd, F_GETFD) >= 0) printf(" %d", fd); printf("\n");
  printf("ids %d %d caps", getuid(), getgid());
  int held = 0; for (int c = 0; c < 41; c++) held += syscall(SYS_prctl, PR_CAPBSET_READ, c, 0, 0, 0) == 1;
  struct { unsigned v; int p; } h = {0x20080522, 0}; unsigned d[6] = {0}; syscall(SYS_capget, &h, d);
  printf(" %x %x %x\n", d[0], d[1], d[2]);
  list("/"); list("/rootfs"); list("/etc"); list("/proc"); list("/dev"); list("/lib"); list("/usr");
  list("/rootfs/etc"); list("/rootfs/lib"); list("/rootfs/usr"); list("/rootfs/dev"); list("/rootfs/real"); list("/rootfs/new/deep");
  file("/new", O_CREAT | O_WRONLY); file("/rootfs/new", O_CREAT | O_WRONLY); file("/rootfs/data/new", O_CREAT | O_WRONLY); file("/rootfs/data/sub/new", O_CREAT | O_WRONLY);
  file("/rootfs/etc/hosts", O_WRONLY); file("/rootfs/etc/hosts", O_RDONLY); file("/rootfs/../../proc/self/mem", O_RDWR);
  pthread_t t; printf("thread: %s\n", strerror(pthread_create(&t, 0, thread, 0))); pthread_join(t, 0);
  TRY("exec code", (long)mmap(0, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE, 4, 0));
  TRY("socket", socket(AF_INET, SOCK_STREAM, 0));
  TRY("unix", socket(AF_UNIX, SOCK_STREAM, 0));
  TRY("netlink", socket(AF_NETLINK, SOCK_RAW, 0));
  TRY("packet", socket(AF_PACKET, SOCK_RAW, 0));
  TRY("alg", socket(38, SOCK_SEQPACKET, 0));
  TRY("fork", syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0));
  TRY("vfork", syscall(SYS_vfork));
  TRY("execve", execve("/rootfs/bin/busybox", argv, environ));
  TRY("unshare", unshare(CLONE_NEWUSER));
  TRY("mount", mount("x", "/rootfs", "tmpfs", 0, 0));
  TRY("ptrace", syscall(SYS_ptrace, 0, 0, 0, 0));
  TRY("bpf", syscall(SYS_bpf, 0, 0, 0));
  TRY("io_uring", syscall(SYS_io_uring_setup, 1, 0));
  TRY("keyctl", syscall(SYS_keyctl, 0, -3, 0));
  TRY("kill", kill(1, 0));
  return 42;
}
"#;

/// A container whose "Wasm host" is the probe; none where no C compiler is.
fn jail(preopens: Value) -> Fixture {
    let fixture = Fixture::new(&["guest", "arg"]);
    let dir = fixture.dir.path();
    fs::write(dir.join("probe.c"), PROBE).expect("source");
    let made = Command::new("cc")
        .args(["-static", "-O1", "-w", "-pthread", "-o"])
        .args([dir.join("probe"), dir.join("probe.c")])
        .status()
        .expect("a C compiler (the linker's own)");
    assert!(made.success());
    let code = dir.join("code.cwasm");
    fs::write(&code, "AHEAD").expect("code");
    let launch = json!({
        "host": dir.join("probe"), "code": code, "abi": "component-command",
        "preopens": preopens, "network": null, "memory": null,
    });
    let hosts = dir.join("hosts");
    fs::write(&hosts, "127.0.0.1 localhost\n").expect("hosts");
    let data = dir.join("data");
    fs::create_dir(&data).expect("data");
    fixture
        .set("/annotations", json!({ "dev.knarr.wasm": launch.to_string() }))
        .set("/process/user", json!({ "uid": 0, "gid": 0, "username": "1000:1000" }))
        .mount(json!({ "destination": "/etc/hosts", "type": "bind", "source": hosts, "options": ["rbind"] }))
        .mount(json!({ "destination": "/data", "type": "bind", "source": data, "options": ["rbind"] }))
}

#[test]
fn w27_a_host_that_was_broken_out_of_stands_in_an_empty_room() {
    let fixture = jail(json!([{ "path": "/", "read_only": true }]));
    fs::set_permissions(
        fixture.dir.path().join("data"),
        std::os::unix::fs::PermissionsExt::from_mode(0o777),
    )
    .expect("chmod");
    let outcome = fixture.run();
    let has = |line: &str| {
        assert!(
            outcome.stdout.lines().any(|one| one == line),
            "{line}\n{}\n{}",
            outcome.stdout,
            outcome.stderr
        );
    };
    assert_eq!(outcome.status.code, 42, "{outcome:?}");
    has("args knarr-wasm run env 0");
    has("code AHEAD");
    assert!(outcome.stdout.contains(r#""args":["guest","arg"]"#), "{}", outcome.stdout);
    // 100 is the gate, which the real host closes before the guest begins.
    has("descriptors 0 1 2 3 4 100");
    has("ids 1000 1000 caps 0 0 0");
    has("list /: rootfs");
    has("list /etc: No such file or directory");
    has("list /rootfs: bin data dev etc home proc root sys tmp");
    has("list /proc: No such file or directory");
    has("list /dev: No such file or directory");
    has("open /new 1: Read-only file system");
    has("open /rootfs/new 1: Read-only file system");
    has("open /rootfs/data/new 1: ok");
    has("open /rootfs/etc/hosts 1: Permission denied");
    has("open /rootfs/etc/hosts 0: ok");
    has("thread: Success");
    has("exec code: ok");
    has("socket: ok");
    for denied in [
        "unix", "netlink", "packet", "alg", "fork", "vfork", "execve", "unshare", "mount",
        "ptrace", "bpf", "io_uring", "keyctl", "kill",
    ] {
        has(&format!("{denied}: Operation not permitted"));
    }
}

#[test]
fn w27_links_of_the_image_lead_no_mount_into_the_jail() {
    let planted = tempfile::tempdir().expect("planted");
    fs::write(planted.path().join("planted.so"), "evil").expect("planted");
    let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(planted.path(), everybody).expect("chmod");
    let volume = |destination: &str| json!({ "destination": destination, "type": "bind", "source": planted.path(), "options": ["rbind"] });
    let mut fixture = jail(json!([{ "path": "/", "read_only": true }]));
    let lower = fixture.lower();
    fs::create_dir(lower.join("real")).expect("directory");
    for (name, target) in [
        ("v1", "/etc"),
        ("v2", "/lib"),
        ("v3", "../../usr"),
        ("v4", "/dev"),
        ("v5", "real"),
        ("v6", "/new/deep"),
    ] {
        symlink(target, lower.join(name)).expect("link");
        fixture = fixture.mount(volume(&format!("/{name}")));
    }
    let outcome = fixture.run();
    assert_eq!(outcome.status.code, 42, "{outcome:?}");
    let has = |line: &str| {
        let all = &outcome.stdout;
        assert!(all.lines().any(|one| one == line), "{line}\n{all}\n{}", outcome.stderr);
    };
    // The jail is what it is without them.
    has("list /: rootfs");
    for name in ["etc", "lib", "usr", "dev", "proc"] {
        has(&format!("list /{name}: No such file or directory"));
    }
    // They are where the guest finds them.
    for place in ["etc", "lib", "usr", "dev", "real", "new/deep"] {
        has(&format!("list /rootfs/{place}: planted.so"));
    }
    // Nor is anything put over the image itself.
    for target in ["/", "..", "../rootfs/..", "."] {
        for mount in [
            volume("/x"),
            json!({ "destination": "/x", "type": "tmpfs", "source": "tmpfs", "options": [] }),
        ] {
            let fixture = jail(json!([{ "path": "/", "read_only": true }])).mount(mount);
            symlink(target, fixture.lower().join("x")).expect("link");
            let error = fixture.try_run().expect_err(target);
            assert_eq!(error.failure(), Failure::InvalidSpec, "{target}: {error}");
        }
    }
    let error = jail(json!([])).mount(volume("/")).try_run().expect_err("the root");
    assert_eq!(error.failure(), Failure::InvalidSpec, "{error}");
}

#[test]
fn v10_a_guests_read_only_bind_is_so_beneath_too() {
    use nix::{mount, sched};
    let work = || {
        sched::unshare(sched::CloneFlags::CLONE_NEWNS).expect("a mount namespace");
        let flags = mount::MsFlags::MS_REC | mount::MsFlags::MS_PRIVATE;
        mount::mount(None::<&str>, "/", None::<&str>, flags, None::<&str>).expect("private");
        let mut fixture = jail(json!([{ "path": "/", "read_only": true }]))
            .set("/process/user", json!({ "uid": 0, "gid": 0 }));
        let sub = fixture.dir.path().join("data/sub");
        fs::create_dir(&sub).expect("directory");
        let none = mount::MsFlags::empty();
        mount::mount(Some("test"), &sub, Some("tmpfs"), none, None::<&str>).expect("tmpfs");
        let run = |fixture: &Fixture| fixture.run().stdout;
        assert!(run(&fixture).contains("open /rootfs/data/sub/new 1: ok"));
        for mount in fixture.spec["mounts"].as_array_mut().expect("mounts") {
            if mount["destination"] == "/data" {
                mount["options"] = json!(["rbind", "rro"]);
            }
        }
        let outcome = run(&fixture);
        assert!(
            outcome.contains("open /rootfs/data/sub/new 1: Read-only file system"),
            "{outcome}"
        );
        assert!(outcome.contains("open /rootfs/data/new 1: Read-only file system"), "{outcome}");
    };
    std::thread::spawn(work).join().expect("in a namespace of its own");
}

#[test]
fn a_wasm_container_has_no_exec_and_may_write_where_it_was_granted() {
    let fixture = jail(json!([{ "path": "/", "read_only": false }]))
        .set("/process/user", json!({ "uid": 0, "gid": 0 }));
    let outcome = fixture.run();
    assert!(outcome.stdout.contains("open /rootfs/new 1: ok"), "{}", outcome.stdout);
    let (stdio, _pipes) = common::pipes();
    let created = fixture.create(stdio).expect("create");
    let refused = fixture.exec(created.container(), "true").expect_err("no exec");
    assert_eq!(refused.failure(), Failure::NotSupported);
    drop(created);
    let broken = fixture.set("/annotations", json!({ "dev.knarr.wasm": "{}" }));
    assert_eq!(broken.try_run().expect_err("no launch").failure(), Failure::InvalidSpec);
    assert!(Path::new("/sys/fs/cgroup").exists());
}

#[test]
fn s05_a_wasm_container_may_have_a_terminal() {
    let fixture = jail(json!([])).set("/process/terminal", json!(true));
    let mut created =
        fixture.create(knarr_sandbox::Stdio::Terminal { rows: 5, cols: 6 }).expect("create");
    let mut console = fs::File::from(created.console().expect("console"));
    let container = created.start().expect("start");
    let mut text = String::new();
    let _ = std::io::Read::read_to_string(&mut console, &mut text);
    assert!(text.contains("args knarr-wasm run env 0\r\n"), "{text}");
    assert!(text.contains(r#""terminal":true"#), "{text}");
    assert_eq!(container.init().wait_blocking().expect("wait").code, 42);
    container.delete().expect("delete");
}

//! Mounts and the places that they are put on, against images and neighbours that lead them
//! elsewhere (CATALOGUE R03, R04, R05, R12, R20, R21, V01, V10).

mod common;

use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use common::Fixture;
use knarr_sandbox::{Failure, Stdio};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::stat::{Mode, SFlag, makedev, mknod},
};
use serde_json::{Value, json};

/// Runs in a mount namespace of its own: what it mounts goes with it.
fn in_own_namespace(work: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace");
            change("/", MsFlags::MS_REC | MsFlags::MS_PRIVATE);
            work();
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// Changes the propagation of a mount.
fn change(path: impl AsRef<Path>, flags: MsFlags) {
    mount(None::<&str>, path.as_ref(), None::<&str>, flags, None::<&str>).expect("propagation");
}

fn tmpfs(path: &Path) {
    mount(Some("test"), path, Some("tmpfs"), MsFlags::empty(), None::<&str>).expect("tmpfs");
}

/// How many mounts lie beneath a path in the calling thread's namespace.
fn mounts_beneath(path: &Path) -> usize {
    let text = fs::read_to_string("/proc/thread-self/mountinfo").expect("mounts");
    let beneath = format!("{}/", path.display());
    text.lines()
        .filter(|line| line.split(' ').nth(4).is_some_and(|p| p.starts_with(&beneath)))
        .count()
}

/// Leaves mounts of the specification out.
fn without(mut fixture: Fixture, destinations: &[&str]) -> Fixture {
    let mounts = fixture.spec.pointer_mut("/mounts").and_then(Value::as_array_mut).expect("mounts");
    mounts.retain(|mount| !destinations.contains(&mount["destination"].as_str().expect("text")));
    fixture
}

const ALL_OF_DEV: [&str; 4] = ["/dev", "/dev/pts", "/dev/mqueue", "/dev/shm"];

fn bind(source: &Path, destination: &str, options: &[&str]) -> Value {
    json!({ "destination": destination, "type": "bind", "source": source, "options": options })
}

fn terminal() -> Stdio {
    Stdio::Terminal { rows: 0, cols: 0 }
}

/// Capabilities to mount with.
fn admin(fixture: Fixture) -> Fixture {
    let admin = json!(["CAP_SYS_ADMIN"]);
    fixture.set(
        "/process/capabilities",
        json!({ "bounding": admin, "permitted": admin, "effective": admin }),
    )
}

#[test]
fn r03_masks_are_the_hosts_null_and_not_what_the_container_calls_so() {
    // A /dev that somebody else has made, and that no device of ours is put into.
    let dev = tempfile::tempdir().expect("dev");
    symlink("/proc/sys/kernel/core_pattern", dev.path().join("null")).expect("link");
    let script = "for f in /proc/kcore /proc/keys /proc/timer_list; do \
        [ ! -e $f ] || stat -c '%F %t:%T' $f; done";
    let fixture = without(Fixture::script(script), &ALL_OF_DEV);
    let outcome = fixture.mount(bind(dev.path(), "/dev", &["rbind"])).run();
    assert!(!outcome.stdout.is_empty(), "{outcome:?}");
    for line in outcome.stdout.lines() {
        assert_eq!(line, "character special file 1:3", "{outcome:?}");
    }
    // In a /dev of ours whose null is a link there is no container.
    let fixture = without(Fixture::new(&["/bin/true"]), &ALL_OF_DEV);
    symlink("/proc/sys/kernel/core_pattern", fixture.lower().join("dev/null")).expect("link");
    let error = fixture.try_run().expect_err("a link in place of null").to_string();
    assert!(error.contains("make device \"/dev/null\""), "{error}");
}

#[test]
fn r03_a_host_without_its_null_masks_nothing_with_something_else() {
    in_own_namespace(|| {
        let other = tempfile::NamedTempFile::new().expect("file");
        let null = Path::new("/dev/null");
        mount(Some(other.path()), null, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .expect("bind");
        let fixture = Fixture::new(&["/bin/true"]);
        let error = fixture.try_run().expect_err("no null device").to_string();
        assert!(error.contains("opennull"), "{error}");
    });
}

#[test]
fn r04_the_console_is_put_on_no_link_of_the_image() {
    for target in ["/etc/canary", "/proc/sys/kernel/core_pattern", "pts/99", "nothing"] {
        // No tmpfs of ours hides what the image has in /dev.
        let fixture = Fixture::script("tty; cat /etc/canary").set("/process/terminal", json!(true));
        let fixture = without(fixture, &["/dev"]);
        fs::write(fixture.lower().join("etc/canary"), "alive\n").expect("canary");
        symlink(target, fixture.lower().join("dev/console")).expect("link");
        let error = fixture.create(terminal()).expect_err(target);
        assert!(error.to_string().contains("open a terminal"), "{target}: {error}");
    }
    // Where there is no link it is the terminal, whatever the image has hidden beneath.
    let fixture = Fixture::script("tty; stat -c %F /dev/console; cat /etc/canary")
        .set("/process/terminal", json!(true));
    fs::write(fixture.lower().join("etc/canary"), "alive\n").expect("canary");
    symlink("/etc/canary", fixture.lower().join("dev/console")).expect("link");
    let mut created = fixture.create(terminal()).expect("create");
    let mut console = fs::File::from(created.console().expect("console"));
    let container = created.start().expect("start");
    let mut text = String::new();
    let _ = std::io::Read::read_to_string(&mut console, &mut text);
    assert_eq!(text, "/dev/pts/0\r\ncharacter special file\r\nalive\r\n");
    container.init().wait_blocking().expect("wait");
    container.delete().expect("delete");
}

#[test]
fn r04_a_terminal_is_of_the_containers_own_devpts() {
    let devpts = |destination: &str| {
        json!({ "destination": destination, "type": "devpts", "source": "devpts",
            "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"] })
    };
    let refused = |fixture: Fixture, why: &str| {
        let fixture = without(fixture, &["/dev", "/dev/pts"]);
        let error = fixture.create(terminal()).expect_err(why);
        assert!(error.to_string().contains("open a terminal"), "{why}: {error}");
    };
    // The driver finds a devpts beside a node of its number: it answers, but the node is the image's.
    let fixture = Fixture::new(&["/bin/true"])
        .set("/process/terminal", json!(true))
        .mount(devpts("/dev/pts/pts"));
    fs::create_dir(fixture.lower().join("dev/pts")).expect("directory");
    let node = fixture.lower().join("dev/pts/ptmx");
    mknod(&node, SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(5, 2)).expect("node");
    refused(fixture, "a node of the image's");
    // As a link it leads to another devpts.
    let fixture =
        Fixture::new(&["/bin/true"]).set("/process/terminal", json!(true)).mount(devpts("/other"));
    fs::create_dir(fixture.lower().join("dev/pts")).expect("directory");
    symlink("/other/ptmx", fixture.lower().join("dev/pts/ptmx")).expect("link");
    refused(fixture, "a link of the image's");
}

#[test]
fn r05_sysctls_reach_the_kernel_and_nothing_else() {
    let fixture = Fixture::script(
        "cat /proc/sys/net/ipv4/ip_unprivileged_port_start; cat /proc/sys/kernel/shmmni; echo 1 > /proc/sys/net/ipv4/ip_forward",
    )
    .set("/linux/sysctl", json!({ "net.ipv4.ip_unprivileged_port_start": "7", "kernel.shmmni": "4242" }));
    let outcome = fixture.run();
    assert_eq!(outcome.stdout, "7\n4242\n");
    assert!(outcome.stderr.contains("Read-only file system"), "{outcome:?}");
    // Without a /proc in the container they are still the kernel's, and not the image's files.
    let fixture = without(Fixture::script("cat /proc/sys/kernel/shmmni"), &["/proc"])
        .set("/linux/sysctl", json!({ "kernel.shmmni": "4242" }))
        .set("/linux/maskedPaths", json!([]))
        .set("/linux/readonlyPaths", json!([]));
    fs::create_dir_all(fixture.lower().join("proc/sys/kernel")).expect("directory");
    fs::write(fixture.lower().join("proc/sys/kernel/shmmni"), "the image's\n").expect("file");
    assert_eq!(fixture.run().stdout, "the image's\n");
    // An image whose /proc is a link gets no container.
    let fixture = Fixture::new(&["/bin/true"]);
    fs::remove_dir(fixture.lower().join("proc")).expect("proc");
    symlink("/tmp", fixture.lower().join("proc")).expect("link");
    let error = fixture.try_run().expect_err("a link");
    assert!(error.to_string().contains("must be mounted on ordinary directory"), "{error}");
    let wrong = Fixture::new(&["/bin/true"]).set("/linux/sysctl", json!({ "net.ipv4.nope": "1" }));
    let error = wrong.try_run().expect_err("no such sysctl").to_string();
    assert_eq!(error, "set sysctl net.ipv4.nope=1: no such file or directory");
}

#[test]
fn r05_no_link_of_the_image_leads_a_mount_over_the_kernels_own() {
    let (dir, file) =
        (tempfile::tempdir().expect("directory"), tempfile::NamedTempFile::new().expect("file"));
    let volume = |destination: &str| bind(dir.path(), destination, &["rbind"]);
    let memory = |destination: &str| json!({ "destination": destination, "type": "tmpfs", "source": "tmpfs", "options": ["size=4k"] });
    let single = |destination: &str| bind(file.path(), destination, &["bind"]);
    let refused = |link: &str, target: &str, mount: Value| {
        let fixture = Fixture::new(&["/bin/true"]).mount(mount);
        symlink(target, fixture.lower().join(link)).expect("link");
        symlink("proc", fixture.lower().join("p")).expect("link");
        let error = fixture.try_run().expect_err(target);
        assert_eq!(error.failure(), Failure::InvalidSpec, "{target}: {error}");
        assert!(error.to_string().contains("it would cover"), "{target}: {error}");
    };
    for target in [
        "/proc",
        "proc",
        "../../../proc",
        "/p",
        "/proc/sys",
        "/proc/tty",
        "/sys",
        "/sys/kernel",
        "/sys/fs/cgroup",
        "/dev",
        "/dev/pts",
        "/dev/new",
        "/",
        ".",
        "../..",
    ] {
        refused("x", target, volume("/x"));
        refused("x", target, memory("/x"));
    }
    for target in ["/proc/version", "/proc/sys/kernel/core_pattern", "/dev/null"] {
        refused("x", target, single("/x"));
    }
    // The link may lie anywhere on the way.
    refused("x", "/", volume("/x/proc"));
    refused("x", "/", volume("/x/dev"));
    refused("x", "/proc", memory("/x/sys"));
    refused("x", "/dev", memory("/x/pts"));
    // /dev itself is ours, too: it goes nowhere where the kernel's own would be hidden.
    for target in ["/proc", "/sys", "/"] {
        let mut fixture = Fixture::new(&["/bin/true"]);
        fs::remove_dir(fixture.lower().join("dev")).expect("dev");
        symlink(target, fixture.lower().join("dev")).expect("link");
        // With /sys mounted before.
        let mounts = fixture.spec["mounts"].as_array_mut().expect("mounts");
        mounts.sort_by_key(|mount| mount["destination"] != "/sys");
        let error = fixture.try_run().expect_err(target).to_string();
        assert!(error.contains("mount on \"/dev\": it would cover"), "{target}: {error}");
    }
}

#[test]
fn r05_what_docker_lets_be_bound_is_bound() {
    let dir = tempfile::tempdir().expect("directory");
    let file = tempfile::NamedTempFile::new().expect("file");
    fs::write(file.path(), "mine\n").expect("file");
    fs::write(dir.path().join("mine"), "mine\n").expect("file");
    // lxcfs; devices and directories of /dev; cgroups; links that lead to nothing of the kernel's.
    for (link, target, mount, shown) in [
        ("", "", bind(file.path(), "/proc/meminfo", &["bind"]), "/proc/meminfo"),
        ("", "", bind(file.path(), "/dev/new", &["bind"]), "/dev/new"),
        ("", "", bind(dir.path(), "/dev/deep/new", &["rbind"]), "/dev/deep/new/mine"),
        ("", "", bind(dir.path(), "/sys/fs/cgroup", &["rbind"]), "/sys/fs/cgroup/mine"),
        ("", "", bind(dir.path(), "/sys/kernel", &["rbind"]), "/sys/kernel/mine"),
        ("x", "/home/new", bind(dir.path(), "/x", &["rbind"]), "/home/new/mine"),
        ("x", "/dev/shm", bind(dir.path(), "/x", &["rbind"]), "/dev/shm/mine"),
    ] {
        let fixture = Fixture::script(&format!("cat {shown}")).mount(mount);
        if !link.is_empty() {
            symlink(target, fixture.lower().join(link)).expect("link");
        }
        assert_eq!(fixture.run().stdout, "mine\n", "{shown}");
    }
    // The host's own at their own places.
    let sys = without(Fixture::script("stat -f -c %T /sys"), &["/sys", "/sys/fs/cgroup"]);
    let sys = sys.mount(bind(Path::new("/sys"), "/sys", &["rbind", "rro"]));
    assert_eq!(sys.run().stdout, "sysfs\n");
    let dev = without(Fixture::script("echo x > /dev/null && echo fine"), &ALL_OF_DEV);
    let dev = dev.mount(bind(Path::new("/dev"), "/dev", &["rbind"]));
    assert_eq!(dev.run().stdout, "fine\n");
    let proc = without(Fixture::script("cat /proc/self/comm"), &["/proc"])
        .mount(bind(Path::new("/proc"), "/proc", &["rbind"]))
        .set("/linux/namespaces", json!([{ "type": "mount" }, { "type": "network" }, { "type": "ipc" }, { "type": "uts" }]));
    assert_eq!(proc.run().stdout, "cat\n");
    // Only what is procfs goes there.
    let fake = without(Fixture::new(&["/bin/true"]), &["/proc"]);
    let error = fake.mount(bind(dir.path(), "/proc", &["rbind"])).try_run().expect_err("no procfs");
    assert_eq!(error.failure(), Failure::InvalidSpec, "{error}");
    // By name it may be the host's own: knarr-init looks at what it has been given.
    let real = tempfile::tempdir().expect("directory");
    in_own_namespace(|| {
        let (proc, none) = (Path::new("/proc"), None::<&str>);
        mount(Some(proc), real.path(), none, MsFlags::MS_BIND, none).expect("bind");
        tmpfs(proc);
        // What we ourselves look up there.
        for name in ["self", "thread-self"] {
            symlink(real.path().join(name), proc.join(name)).expect("link");
        }
        let fake = without(Fixture::new(&["/bin/true"]), &["/proc"]);
        let error = fake.mount(bind(proc, "/proc", &["rbind"])).try_run().expect_err("a tmpfs");
        assert_eq!(error.failure(), Failure::InvalidSpec, "{error}");
        assert!(error.to_string().contains("it would cover"), "{error}");
    });
}

#[test]
fn v01_a_target_that_is_swapped_meanwhile_covers_nothing_of_the_kernels() {
    let shared = tempfile::tempdir().expect("shared");
    let path = shared.path().canonicalize().expect("path");
    fs::create_dir(path.join("a")).expect("directory");
    symlink("/proc", path.join("swap")).expect("link");
    let stop = Arc::new(AtomicBool::new(false));
    let swapper = std::thread::spawn({
        let (stop, dir) = (stop.clone(), fs::File::open(&path).expect("dir"));
        move || {
            while !stop.load(Ordering::Relaxed) {
                let flags = rustix::fs::RenameFlags::EXCHANGE;
                rustix::fs::renameat_with(&dir, "a", &dir, "swap", flags).expect("exchange");
            }
        }
    });
    let fixture = Fixture::script("stat -f -c %T /proc; [ -e /proc/self/status ] && echo whole")
        .mount(bind(&path, "/s", &["rbind"]))
        .mount(json!({ "destination": "/s/a", "type": "tmpfs", "source": "tmpfs", "options": ["size=4k"] }));
    let mut refused = 0;
    for _ in 0..60 {
        match fixture.try_run() {
            Ok(outcome) => assert_eq!(outcome.stdout, "proc\nwhole\n", "{outcome:?}"),
            Err(_) => refused += 1,
        }
    }
    stop.store(true, Ordering::Relaxed);
    swapper.join().expect("swapper");
    assert!(refused > 0, "the link was never there");
}

#[test]
fn v10_read_only_is_what_lies_beneath_too() {
    in_own_namespace(|| {
        let source = tempfile::tempdir().expect("source");
        tmpfs(source.path());
        fs::create_dir(source.path().join("sub")).expect("directory");
        tmpfs(&source.path().join("sub"));
        let script = "echo x > /v/top; echo x > /v/sub/below; true";
        let with = |options: &[&str]| {
            let outcome = Fixture::script(script).mount(bind(source.path(), "/v", options)).run();
            let written = ["top", "sub/below"].map(|name| source.path().join(name).exists());
            for name in ["top", "sub/below"] {
                let _ = fs::remove_file(source.path().join(name));
            }
            (written, outcome.stderr.matches("Read-only file system").count())
        };
        // What the engine says for `:ro`, and what an OCI caller's `ro` is to runc.
        assert_eq!(with(&["rbind", "rro"]), ([false, false], 2));
        assert_eq!(with(&["rbind", "ro"]), ([false, true], 1));
        assert_eq!(with(&["rbind", "rw"]), ([true, true], 0));
    });
}

#[test]
fn r12_device_files_of_volumes_are_none() {
    in_own_namespace(|| {
        let source = tempfile::tempdir().expect("source");
        tmpfs(source.path());
        fs::create_dir(source.path().join("sub")).expect("directory");
        tmpfs(&source.path().join("sub"));
        for name in ["null", "sub/null"] {
            let node = source.path().join(name);
            mknod(&node, SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(1, 3))
                .expect("node");
        }
        // 1:3 is a device that the cgroup lets everybody open.
        let script = "for f in /v/null /v/sub/null; do echo x > $f && echo opened; done; true";
        let with = |options: &[&str]| {
            let outcome = Fixture::script(script).mount(bind(source.path(), "/v", options)).run();
            (outcome.stdout, outcome.stderr.matches("Permission denied").count())
        };
        assert_eq!(with(&["rbind", "rnodev"]), (String::new(), 2));
        assert_eq!(with(&["rbind"]), ("opened\nopened\n".to_owned(), 0));
    });
}

#[test]
fn r20_mounts_do_not_spread_to_the_host() {
    in_own_namespace(|| {
        let host = tempfile::tempdir().expect("tempdir");
        let path = host.path().canonicalize().expect("path");
        tmpfs(&path);
        change(&path, MsFlags::MS_SHARED);
        fs::create_dir(path.join("sub")).expect("directory");
        let script = "mount -t tmpfs x /v/sub && echo mounted";
        let with = |options: &[&str]| {
            let fixture = admin(Fixture::script(script)).mount(bind(&path, "/v", options));
            fixture.start()
        };
        // The source has peers, and the container's is none of them unless that was asked for.
        for options in [&["rbind"][..], &["rbind", "rprivate"], &["rbind", "rslave"]] {
            let (container, pipes) = with(options).expect("start");
            assert_eq!(pipes.read().0, "mounted\n", "{options:?}");
            container.init().wait_blocking().expect("wait");
            assert_eq!(mounts_beneath(&path), 0, "{options:?}");
            container.delete().expect("delete");
        }
        // Asked for, it is: the line above counts what it should.
        let (container, pipes) = with(&["rbind", "rshared"]).expect("start");
        assert_eq!(pipes.read().0, "mounted\n");
        container.init().wait_blocking().expect("wait");
        assert_eq!(mounts_beneath(&path), 1);
        container.delete().expect("delete");
    });
}

#[test]
fn r20_sharing_is_for_the_host_to_grant() {
    in_own_namespace(|| {
        let host = tempfile::tempdir().expect("tempdir");
        let path = host.path().canonicalize().expect("path");
        tmpfs(&path);
        change(&path, MsFlags::MS_PRIVATE);
        let fixture = Fixture::new(&["/bin/true"]).mount(bind(&path, "/v", &["rbind", "rshared"]));
        let error = fixture.try_run().expect_err("a private mount");
        assert_eq!(error.failure(), Failure::InvalidSpec, "{error}");
        assert!(error.to_string().contains("not a shared mount"), "{error}");
        change(&path, MsFlags::MS_SHARED);
        fixture.run();
    });
}

/// Makes, finds and removes a key of the session keyring and a segment of shared memory.
const HOLDER: &str = r#"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/shm.h>
#include <sys/syscall.h>
#include <unistd.h>
static void said(const char *what, long answer) { printf("%s %s\n", what, answer < 0 ? "none" : "there"); }
int main(int count, char **words) {
  const char *verb = words[1], *name = words[2]; key_t number = 0x6b6e0000 | atoi(words[3]);
  /* Who has no session keyring has that of its user, which only "host" puts something into. */
  int host = !strcmp(verb, "host"), makes = host || !strcmp(verb, "make");
  if (host) syscall(SYS_add_key, "user", name, "secret", 6, -5 /* USER_SESSION */);
  long key = makes ? syscall(SYS_add_key, "user", name, "secret", 6, -3 /* SESSION */)
                   : syscall(SYS_keyctl, 10 /* SEARCH */, -3, "user", name, 0);
  int segment = makes ? shmget(number, 4096, IPC_CREAT | 0666) : shmget(number, 0, 0);
  said("key", key); said("segment", segment); fflush(stdout);
  if (!strcmp(verb, "remove")) {
    syscall(SYS_keyctl, 9 /* UNLINK */, key, -3); syscall(SYS_keyctl, 9, key, -5);
    shmctl(segment, IPC_RMID, 0);
  }
  if (count > 4) for (;;) pause();
  return 0;
}
"#;

#[test]
fn r21_ipc_and_keyrings_are_private() {
    let name = format!("knarr-r21-{}", std::process::id());
    let number = (std::process::id() % 0xffff).to_string();
    let dir = tempfile::tempdir().expect("tempdir");
    let (source, holder) = (dir.path().join("holder.c"), dir.path().join("holder"));
    fs::write(&source, HOLDER).expect("source");
    let made = Command::new("cc")
        .args(["-static", "-O1", "-w", "-o"])
        .args([&holder, &source])
        .status()
        .expect("a C compiler (the linker's own)");
    assert!(made.success());
    // Without the filter: it is not what this test is of.
    let fixture = |script: &str| {
        let fixture = Fixture::script(script).set("/annotations", json!({}));
        fs::copy(&holder, fixture.lower().join("bin/holder")).expect("copy");
        fixture
    };
    let host = |verb: &str| {
        let output = Command::new(&holder).args([verb, &name, &number]).output().expect("holder");
        String::from_utf8(output.stdout).expect("text")
    };
    let make = format!("echo secret > /dev/shm/x; exec holder make {name} {number} stay");
    let look = format!("holder look {name} {number}; ls /dev/shm");
    // A container that is alive and has all three; its neighbour and the host have none of them.
    let first = fixture(&make);
    let (container, mut pipes) = first.start().expect("start");
    assert_eq!((pipes.line(), pipes.line()), ("key there".into(), "segment there".into()));
    assert_eq!(fixture(&look).run().stdout, "key none\nsegment none\n");
    assert_eq!(host("look"), "key none\nsegment none\n");
    assert!(!Path::new("/dev/shm/x").exists());
    let own = first.exec(&container, &look).expect("exec");
    assert!(own.stdout.ends_with("segment there\nx\n"), "{own:?}");
    container.delete().expect("delete");
    // What the session of whoever starts containers holds is not theirs either.
    assert_eq!(host("host"), "key there\nsegment there\n");
    assert_eq!(host("look"), "key there\nsegment there\n");
    let seen = fixture(&look).run().stdout;
    assert_eq!(host("remove"), "key there\nsegment there\n");
    assert_eq!(seen, "key none\nsegment none\n");
}

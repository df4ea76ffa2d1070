//! Attacks R of CATALOGUE, as far as the sandbox alone can answer them.

mod common;

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use common::{Fixture, cgroup_left};
use serde_json::json;

#[test]
fn r01_the_runtime_cannot_be_overwritten() {
    // What runs before the program is in sealed memory; the program itself sees
    // only itself behind /proc/self/exe.
    let fixture = Fixture::script("echo up; sleep 1000");
    let (stdio, _pipes) = common::pipes();
    let created = fixture.create(stdio).expect("create");
    let exe = fs::read_link(format!("/proc/{}/exe", created.pid())).expect("exe");
    assert!(exe.to_string_lossy().starts_with("/memfd:knarr-init"), "{exe:?}");
    let write = fs::OpenOptions::new().write(true).open(format!("/proc/{}/exe", created.pid()));
    let refused = match write {
        Err(_) => true,
        Ok(mut file) => std::io::Write::write(&mut file, b"x").is_err(),
    };
    assert!(refused);
    drop(created);
    let outcome = Fixture::script("readlink /proc/self/exe; readlink /proc/1/exe").run();
    assert_eq!(outcome.stdout, "/bin/busybox\n/bin/busybox\n");
    // With init, process 1 is the sealed copy.
    let script =
        "for i in $(seq 20); do echo x > /proc/1/exe && echo WRITTEN; done; readlink /proc/1/exe";
    let fixture = Fixture::script(script).set("/annotations", json!({ "dev.knarr.init": "true" }));
    let outcome = fixture.run();
    assert!(!outcome.stdout.contains("WRITTEN"), "{outcome:?}");
}

#[test]
fn r02_no_descriptor_leaks_and_no_working_directory_leads_out() {
    let outcome = Fixture::script("ls /proc/self/fd").run();
    assert_eq!(outcome.stdout, "0\n1\n2\n3\n", "3 is the directory that ls reads");
    for number in 3..120 {
        let fixture = Fixture::new(&["/bin/pwd"])
            .set("/process/cwd", json!(format!("/proc/self/fd/{number}")));
        let outcome = fixture.try_run();
        assert!(outcome.is_err(), "{number}: {outcome:?}");
    }
    let fixture = Fixture::script("echo up; sleep 1000");
    let (container, mut pipes) = fixture.start().expect("start");
    pipes.line();
    assert_eq!(fixture.exec(&container, "ls /proc/self/fd").expect("exec").stdout, "0\n1\n2\n3\n");
    for number in 3..120 {
        let mut process = fixture.process();
        process.set_cwd(format!("/proc/self/fd/{number}").into());
        assert!(fixture.exec_process(&container, &process).is_err(), "{number}");
    }
    container.delete().expect("delete");
}

#[test]
fn r06_directories_that_are_links_stay_beneath_the_root() {
    let evil = tempfile::tempdir().expect("tempdir");
    let up = format!("../../../../../../../..{}", evil.path().display());
    for name in ["dev", "etc", "tmp"] {
        let source = tempfile::NamedTempFile::new().expect("file");
        let fixture = Fixture::new(&["/bin/true"]).mount(json!({
            "destination": format!("/{name}/resolv.conf"), "type": "bind",
            "source": source.path(), "options": ["rbind"],
        }));
        #[expect(clippy::disallowed_methods, reason = "a tree of the test itself")]
        fs::remove_dir_all(fixture.lower().join(name)).expect("remove");
        symlink(&up, fixture.lower().join(name)).expect("link");
        // Beneath the root it may work or not; outside nothing happens.
        let _ = fixture.try_run();
        let found: Vec<_> = fs::read_dir(evil.path()).expect("evil").flatten().collect();
        assert!(found.is_empty(), "{name}: {found:?}");
        assert_eq!(cgroup_left(&fixture.id), Vec::<PathBuf>::new());
    }
}

#[test]
fn r07_a_swapped_mount_point_never_leads_out() {
    let shared = tempfile::tempdir().expect("shared");
    let outside = tempfile::tempdir().expect("outside");
    let shared_path = shared.path().canonicalize().expect("path");
    fs::create_dir_all(shared_path.join("a/b")).expect("dir");
    symlink(outside.path(), shared_path.join("swap")).expect("link");
    let stop = Arc::new(AtomicBool::new(false));
    let swapper = std::thread::spawn({
        let (stop, dir) = (stop.clone(), fs::File::open(&shared_path).expect("dir"));
        move || {
            while !stop.load(Ordering::Relaxed) {
                let flags = rustix::fs::RenameFlags::EXCHANGE;
                rustix::fs::renameat_with(&dir, "a", &dir, "swap", flags).expect("exchange");
            }
        }
    });
    let fixture = Fixture::new(&["/bin/true"])
        .mount(json!({ "destination": "/s", "type": "bind", "source": shared_path, "options": ["rbind"] }))
        .mount(json!({ "destination": "/s/a/b/c", "type": "tmpfs", "source": "tmpfs", "options": ["size=4k"] }));
    let (mut good, mut bad) = (0, 0);
    for _ in 0..100 {
        match fixture.try_run() {
            Ok(_) => good += 1,
            Err(_) => bad += 1,
        }
    }
    stop.store(true, Ordering::Relaxed);
    swapper.join().expect("swapper");
    assert_eq!(fs::read_dir(outside.path()).expect("outside").count(), 0, "{good} {bad}");
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    assert!(!mounts.contains(&*outside.path().to_string_lossy()));
}

#[test]
fn r08_release_agents_are_out_of_reach() {
    let script = "find /sys/fs/cgroup -name release_agent; ls /sys/fs/cgroup/memory >/dev/null && echo seen; \
        for d in /sys/fs/cgroup/*; do mkdir $d/x 2>/dev/null && echo MADE; done; \
        mount -o remount,rw /sys/fs/cgroup 2>/dev/null && echo REMOUNTED; \
        mount -t cgroup -o memory none /tmp 2>/dev/null && echo MOUNTED; \
        unshare -Urm true 2>/dev/null && echo UNSHARED; true";
    let outcome = Fixture::script(script).run();
    let wanted = if Path::new("/sys/fs/cgroup/memory").exists() { "seen\n" } else { "" };
    assert_eq!(outcome.stdout, wanted, "{outcome:?}");
}

#[test]
fn r09_the_kernel_s_knobs_are_masked_or_read_only() {
    let script = "for f in /proc/sysrq-trigger /proc/sys/kernel/core_pattern /proc/sys/vm/panic_on_oom \
        /sys/kernel/uevent_helper /sys/class/net/lo/mtu /proc/irq/default_smp_affinity /proc/kcore /proc/keys /proc/timer_list /proc/interrupts; \
        do if [ -e $f ]; then (echo 0 > $f) 2>/dev/null && [ $(wc -c < $f) != 0 ] && echo WRITTEN $f; fi; done; \
        for f in /proc/kcore /proc/keys /proc/timer_list /proc/interrupts; do [ -e $f ] && head -c 10 $f | wc -c; done; \
        ls /proc/acpi /sys/firmware /proc/scsi 2>/dev/null | grep -v : | grep . ; true";
    let outcome = Fixture::script(script).run();
    assert!(!outcome.stdout.contains("WRITTEN"), "{outcome:?}");
    assert!(outcome.stdout.lines().all(|line| line == "0"), "{outcome:?}");
}

#[test]
fn r14_what_comes_in_cannot_be_looked_at() {
    // The names of its descriptors may be listed, but nothing behind them seen.
    let hunter = "echo up; while :; do for p in /proc/[0-9]*; do \
        c=$(cat $p/comm 2>/dev/null); [ \"$c\" = knarr-init ] || continue; \
        case $(readlink $p/exe) in *memfd*) echo SEEN $p;; esac; \
        for f in 0 3 4 100; do case $(readlink $p/fd/$f) in *mnt*|*memfd*|*socket*|*pidfd*) echo STOLEN $p/$f;; esac; done; \
        done 2>/dev/null; done";
    let fixture = Fixture::script(hunter);
    let (container, mut pipes) = fixture.start().expect("start");
    assert_eq!(pipes.line(), "up");
    for _ in 0..100 {
        fixture.exec(&container, "true").expect("exec");
    }
    container.delete().expect("delete");
    let (stdout, _) = pipes.read();
    // Root with DAC_OVERRIDE but without SYS_PTRACE.
    assert_eq!(stdout, "");
}

#[test]
fn r15_capabilities_and_groups_are_exactly_those_asked_for() {
    let status =
        "grep -E '^(Cap|Groups|NoNewPrivs|Seccomp):|^Cap|^Groups' /proc/self/status | tr '\\t' ' '";
    let outcome = Fixture::script(status).run();
    for line in [
        "CapInh: 0000000000000000",
        "CapPrm: 00000000a80425fb",
        "CapEff: 00000000a80425fb",
        "CapBnd: 00000000a80425fb",
        "CapAmb: 0000000000000000",
        "Groups: 0",
        "NoNewPrivs: 0",
        "Seccomp: 2",
    ] {
        assert!(outcome.stdout.lines().any(|l| l.trim() == line), "{line}: {}", outcome.stdout);
    }
    let user = Fixture::script(status)
        .set("/process/user", json!({ "uid": 1000, "gid": 1000, "additionalGids": [4] }))
        .set("/process/noNewPrivileges", json!(true))
        .run();
    for line in [
        "CapInh: 0000000000000000",
        "CapPrm: 0000000000000000",
        "CapEff: 0000000000000000",
        "CapBnd: 00000000a80425fb",
        "CapAmb: 0000000000000000",
        "Groups: 4 1000",
        "NoNewPrivs: 1",
    ] {
        assert!(user.stdout.lines().any(|l| l.trim() == line), "{line}: {}", user.stdout);
    }
    let ambient = Fixture::script(status)
        .set("/process/user", json!({ "uid": 1000, "gid": 1000 }))
        .set(
            "/process/capabilities",
            json!({
                "bounding": ["CAP_NET_BIND_SERVICE"], "permitted": ["CAP_NET_BIND_SERVICE"],
                "effective": ["CAP_NET_BIND_SERVICE"], "ambient": ["CAP_NET_BIND_SERVICE"],
            }),
        )
        .run();
    assert!(ambient.stdout.contains("CapAmb: 0000000000000400"), "{}", ambient.stdout);
    let none = Fixture::script(status).set("/process/capabilities", json!({})).run();
    assert!(none.stdout.contains("CapBnd: 0000000000000000"), "{}", none.stdout);
}

#[test]
fn r17_the_image_s_environment_steers_nothing_of_ours() {
    let own = std::env::vars_os().count();
    assert!(own > 0, "the test itself has an environment, which could be inherited");
    let evil = ["PATH=/bin", "LD_PRELOAD=/evil.so", "GODEBUG=x", "MARK=evil"];
    let hook = tempfile::tempdir().expect("tempdir");
    let seen = hook.path().join("seen");
    let script = format!("env > {}", seen.display());
    let fixture = Fixture::script("env; echo up; sleep 1000")
        .set("/process/env", json!(evil))
        .set(
            "/hooks",
            json!({ "createRuntime": [{ "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["OWN=1"] }] }),
        );
    // Where hooks find the root filesystem.
    fs::create_dir(fixture.dir.path().join("rootfs")).expect("rootfs");
    let (stdio, mut pipes) = common::pipes();
    let created = fixture.create(stdio).expect("create");
    // What runs before the program has no environment at all: neither the image's nor ours.
    let environ = fs::read(format!("/proc/{}/environ", created.pid())).expect("environ");
    assert_eq!(environ, b"", "{:?}", String::from_utf8_lossy(&environ));
    // A hook has its own (and what a shell sets itself), not the image's.
    let seen = fs::read_to_string(&seen).expect("the hook ran");
    assert!(seen.contains("OWN=1"), "{seen}");
    for word in ["MARK", "LD_PRELOAD", "GODEBUG"] {
        assert!(!seen.contains(word), "{seen}");
    }
    // The program has what the image says, and nothing of ours.
    let container = created.start().expect("start");
    let mut lines = Vec::new();
    loop {
        match pipes.line() {
            line if line == "up" => break,
            line => lines.push(line),
        }
    }
    for entry in evil {
        assert!(lines.iter().any(|line| line == entry), "{entry}: {lines:?}");
    }
    for line in lines {
        let (name, _) = line.split_once('=').expect("an entry");
        let given = ["PATH", "LD_PRELOAD", "GODEBUG", "MARK", "HOME"];
        assert!(given.contains(&name) || ["SHLVL", "PWD", "OLDPWD"].contains(&name), "{line}");
    }
    container.delete().expect("delete");
}

#[test]
fn r17_a_home_of_the_image_is_one_entry_of_the_environment() {
    let fixture = Fixture::script("env | grep -v -E '^(PATH|PWD|SHLVL)='")
        .set("/process/user", json!({ "uid": 0, "gid": 0, "username": "odd" }));
    let passwd = "root:x:0:0:root:/root:/bin/sh\nodd:x:1000:1000::/a=b LD_PRELOAD=/x:/bin/sh\n";
    fs::write(fixture.lower().join("etc/passwd"), passwd).expect("passwd");
    assert_eq!(fixture.run().stdout, "HOME=/a=b LD_PRELOAD=/x\n");
    // What is asked for goes before what the image says.
    let fixture =
        Fixture::script("echo $HOME").set("/process/env", json!(["PATH=/bin", "HOME=/mine"]));
    fs::write(fixture.lower().join("etc/passwd"), "root:x:0:0::/evil:/bin/sh\n").expect("passwd");
    assert_eq!(fixture.run().stdout, "/mine\n");
}

#[test]
fn all_capabilities_are_those_that_the_host_has() {
    let own = fs::read_to_string("/proc/self/status").expect("status");
    let own = own.lines().find_map(|line| line.strip_prefix("CapPrm:\t")).expect("CapPrm");
    let all: Vec<String> = [
        "CHOWN",
        "DAC_OVERRIDE",
        "DAC_READ_SEARCH",
        "FOWNER",
        "FSETID",
        "KILL",
        "SETGID",
        "SETUID",
        "SETPCAP",
        "LINUX_IMMUTABLE",
        "NET_BIND_SERVICE",
        "NET_BROADCAST",
        "NET_ADMIN",
        "NET_RAW",
        "IPC_LOCK",
        "IPC_OWNER",
        "SYS_MODULE",
        "SYS_RAWIO",
        "SYS_CHROOT",
        "SYS_PTRACE",
        "SYS_PACCT",
        "SYS_ADMIN",
        "SYS_BOOT",
        "SYS_NICE",
        "SYS_RESOURCE",
        "SYS_TIME",
        "SYS_TTY_CONFIG",
        "MKNOD",
        "LEASE",
        "AUDIT_WRITE",
        "AUDIT_CONTROL",
        "SETFCAP",
        "MAC_OVERRIDE",
        "MAC_ADMIN",
        "SYSLOG",
        "WAKE_ALARM",
        "BLOCK_SUSPEND",
        "AUDIT_READ",
        "PERFMON",
        "BPF",
        "CHECKPOINT_RESTORE",
    ]
    .iter()
    .map(|name| format!("CAP_{name}"))
    .collect();
    let outcome = Fixture::script("grep CapEff /proc/self/status")
        .set(
            "/process/capabilities",
            json!({ "bounding": all, "permitted": all, "effective": all }),
        )
        .run();
    assert_eq!(outcome.stdout, format!("CapEff:\t{own}\n"));
}

//! What a container's processes may ask of the kernel: each guard is met alone, with the
//! others out of the way, so that it is that guard which is seen.

mod common;

use std::{collections::BTreeMap, fs};

use common::Fixture;
use oci_spec::runtime::Process;
use serde_json::json;

/// What a shell can try to make namespaces and mounts with; it says what it has made.
const MAKE: &str = "for n in -m -u -i -n -p -U -C -T; do unshare $n true 2>/dev/null && echo MADE $n; done; \
    mount -t tmpfs x /tmp 2>/dev/null && echo MOUNTED; true";

/// Everything that this host can give, for a process that is to meet one guard alone.
fn all_powerful(fixture: &Fixture, args: &[&str]) -> Process {
    let own = fs::read_to_string("/proc/self/status").expect("status");
    let own = own.lines().find_map(|line| line.strip_prefix("CapPrm:\t")).expect("CapPrm");
    let own = u64::from_str_radix(own, 16).expect("hexadecimal");
    let all: Vec<&str> = knarr_model::capability::ALL
        .iter()
        .enumerate()
        .filter(|(bit, _)| own >> bit & 1 == 1)
        .map(|(_, name)| *name)
        .collect();
    let sets = json!({ "bounding": all, "permitted": all, "effective": all });
    let mut spec = fixture.spec.clone();
    spec["process"]["capabilities"] = sets;
    spec["process"]["args"] = json!(args);
    serde_json::from_value(spec["process"].clone()).expect("process")
}

/// Runs a program with every capability, with or without the default filter.
fn powerful(fixture: Fixture, seccomp: &str, args: &[&str]) -> common::Outcome {
    let fixture = fixture.set("/annotations", json!({ "dev.knarr.seccomp": seccomp }));
    let (container, mut pipes) = fixture.start().expect("start");
    assert_eq!(pipes.line(), "up");
    // The filter is that of the container's own process, whatever this one may do.
    let process = all_powerful(&fixture, args);
    let outcome = fixture.exec_process(&container, &process).expect("exec");
    container.delete().expect("delete");
    outcome
}

#[test]
fn r11_namespaces_cannot_be_made_from_inside() {
    let waiting = || Fixture::script("echo up; sleep 1000");
    // With neither guard everything is made; each alone is enough.
    let free = powerful(waiting(), "unconfined", &["/bin/sh", "-c", MAKE]).stdout;
    for made in ["MADE -m", "MADE -u", "MADE -n", "MOUNTED"] {
        assert!(free.contains(made), "{made}: {free}");
    }
    let filtered = powerful(waiting(), "default", &["/bin/sh", "-c", MAKE]);
    assert_eq!(filtered.stdout, "", "{filtered:?}");
    let unfiltered =
        Fixture::script(MAKE).set("/annotations", json!({ "dev.knarr.seccomp": "unconfined" }));
    // User namespaces are everybody's, unless the host says otherwise.
    let unfiltered = unfiltered.run().stdout;
    assert!(["", "MADE -U\n"].contains(&unfiltered.as_str()), "{unfiltered}");
    assert_eq!(Fixture::script(MAKE).run().stdout, "");
}

/// A program of the C library's with a thread, for which it tries clone3 first.
const THREAD: &str = r#"
#include <pthread.h>
#include <stdio.h>
static void *say(void *what) { puts(what); return 0; }
int main(void) {
  pthread_t thread;
  if (pthread_create(&thread, 0, say, "threaded")) return 1;
  return pthread_join(thread, 0);
}
"#;

/// Compiles a C program into a container's `/bin`.
fn compiled(fixture: &Fixture, name: &str, text: &str) {
    let source = fixture.dir.path().join(format!("{name}.c"));
    fs::write(&source, text).expect("source");
    let made = std::process::Command::new("cc")
        .args(["-static", "-O1", "-w", "-pthread", "-o"])
        .args([fixture.lower().join("bin").join(name), source])
        .status()
        .expect("a C compiler (the linker's own)");
    assert!(made.success());
}

#[test]
fn r11_threads_are_made_without_clone3() {
    let fixture = Fixture::new(&["/bin/thread"]);
    compiled(&fixture, "thread", THREAD);
    let outcome = fixture.run();
    assert_eq!((outcome.status.code, outcome.stdout.as_str()), (0, "threaded\n"), "{outcome:?}");
}

/// Asks for system calls by number, on the native, the x32 and the i386 way. Each is one
/// that does no harm where it is allowed: it is refused for its arguments then.
const PROBE: &str = r#"
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
static long i386(long nr, long a, long b, long c, long d) {
  long r;
  __asm__ volatile("int $0x80" : "=a"(r) : "a"(nr), "b"(a), "c"(b), "d"(c), "S"(d)
                   : "memory", "r8", "r9", "r10", "r11");
  return r;
}
static long native(long nr, long a, long b, long c, long d) {
  register long r10 __asm__("r10") = d;
  long r;
  __asm__ volatile("syscall" : "=a"(r) : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10)
                   : "memory", "rcx", "r11");
  return r;
}
static long x32(long nr, long a, long b, long c, long d) {
  return native(0x40000000 | nr, a, b, c, d);
}
#define TRY(name, call) (printf("%s %ld\n", name, (long)(call)), fflush(stdout))
/* NEWUSER with FS, which do not go together. */
#define BAD_CLONE 0x10000200
int main(int argc, char **argv) {
  long host = atol(argv[1]);
  unsigned *low = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
  TRY("alg", native(SYS_socket, 38, 5, 0, 0));
  TRY("alg-high", native(SYS_socket, (1L << 32) | 38, 5, 0, 0));
  TRY("alg-pair", native(SYS_socketpair, 38, 5, 0, (long)low));
  TRY("vsock", native(SYS_socket, 40, 1, 0, 0));
  TRY("vsock-pair", native(SYS_socketpair, 40, 1, 0, (long)low));
  TRY("io_uring", native(SYS_io_uring_setup, 1, 0, 0, 0));
  TRY("keyctl", native(SYS_keyctl, 0, -3, 0, 0));
  TRY("add_key", native(SYS_add_key, 0, 0, 0, 0));
  TRY("userfaultfd", native(323, 0, 0, 0, 0));
  TRY("bpf", native(SYS_bpf, 0, 0, 0, 0));
  TRY("perf", native(SYS_perf_event_open, 0, 0, 0, 0));
  TRY("kexec", native(SYS_kexec_load, 0, 0, 0, 0xff00));
  TRY("handle", native(SYS_open_by_handle_at, -100, 0, 0, 0));
  TRY("mount", native(SYS_mount, 0, 0, 0, 0));
  TRY("setns", native(SYS_setns, -1, 0, 0, 0));
  TRY("unshare", native(SYS_unshare, 0x90000000, 0, 0, 0));
  TRY("clone", native(SYS_clone, BAD_CLONE, 0, 0, 0));
  TRY("clone3", native(435, 0, 0, 0, 0));
  TRY("x32-alg", x32(SYS_socket, 38, 5, 0, 0));
  TRY("x32-vsock", x32(SYS_socket, 40, 1, 0, 0));
  TRY("x32-keyctl", x32(SYS_keyctl, 0, -3, 0, 0));
  TRY("x32-io_uring", x32(SYS_io_uring_setup, 1, 0, 0, 0));
  TRY("x32-bpf", x32(SYS_bpf, 0, 0, 0, 0));
  TRY("x32-kexec", x32(528, 0, 0, 0, 0xff00));
  TRY("x32-unshare", x32(SYS_unshare, 0x90000000, 0, 0, 0));
  TRY("i386-alg", i386(359, 38, 5, 0, 0));
  TRY("i386-vsock", i386(359, 40, 1, 0, 0));
  TRY("i386-alg-pair", i386(360, 38, 5, 0, (long)low));
  low[0] = 40, low[1] = 1, low[2] = 0;
  TRY("i386-socketcall-vsock", i386(102, 1, (long)low, 0, 0));
  low[0] = 38, low[1] = 5, low[2] = 0;
  TRY("i386-socketcall-alg", i386(102, 1, (long)low, 0, 0));
  low[0] = 38, low[1] = 5, low[2] = 0, low[3] = (unsigned)(long)(low + 8);
  TRY("i386-socketcall-pair", i386(102, 8, (long)low, 0, 0));
  TRY("i386-keyctl", i386(288, 0, -3, 0, 0));
  TRY("i386-add_key", i386(286, 0, 0, 0, 0));
  TRY("i386-io_uring", i386(425, 1, 0, 0, 0));
  TRY("i386-userfaultfd", i386(374, 0, 0, 0, 0));
  TRY("i386-bpf", i386(357, 0, 0, 0, 0));
  TRY("i386-perf", i386(336, 0, 0, 0, 0));
  TRY("i386-kexec", i386(283, 0, 0, 0, 0xff00));
  TRY("i386-handle", i386(342, -100, 0, 0, 0));
  TRY("i386-mount", i386(21, 0, 0, 0, 0));
  TRY("i386-setns", i386(346, -1, 0, 0, 0));
  TRY("i386-unshare", i386(310, 0x90000000, 0, 0, 0));
  TRY("i386-clone", i386(120, BAD_CLONE, 0, 0, 0));
  TRY("i386-clone3", i386(435, 0, 0, 0, 0));
  /* What is allowed, so that there is something to compare with. */
  TRY("+inet", native(SYS_socket, 2, 1, 0, 0));
  TRY("+pair", native(SYS_socketpair, 1, 1, 0, (long)low));
  TRY("+i386-inet", i386(359, 2, 1, 0, 0));
  TRY("+i386-pair", i386(360, 1, 1, 0, (long)low));
  TRY("+i386-getpid", i386(20, 0, 0, 0, 0));
  /* Nobody of the host's has a number here. */
  TRY("ptrace-host", native(SYS_ptrace, 16, host, 0, 0));
  return 0;
}
"#;

/// What the probe was answered, by the names of its questions.
fn probed(seccomp: &str) -> BTreeMap<String, i64> {
    let fixture = Fixture::script("echo up; sleep 1000");
    compiled(&fixture, "probe", PROBE);
    let outcome = powerful(fixture, seccomp, &["/bin/probe", &std::process::id().to_string()]);
    let answer = |line: &str| {
        let (name, answer) = line.split_once(' ').expect("name and answer");
        (name.to_owned(), answer.parse().expect("a number"))
    };
    let answers: BTreeMap<_, _> = outcome.stdout.lines().map(answer).collect();
    assert_eq!((answers.len(), outcome.status.code), (50, 0), "{outcome:?}");
    answers
}

/// Every capability of the host is there, so that the filter alone denies.
#[test]
fn r10_dangerous_calls_are_denied_on_every_abi() {
    const ESRCH: i64 = -3;
    const EPERM: i64 = -1;
    const ENOSYS: i64 = -38;
    let (free, filtered) = (probed("unconfined"), probed("default"));
    let mut unproven = Vec::new();
    for (name, answer) in &filtered {
        let free = free[name];
        let wanted = match name.as_str() {
            "ptrace-host" => {
                assert_eq!((*answer, free), (ESRCH, ESRCH));
                continue;
            }
            // A kernel without that ABI answers ENOSYS, filter or not.
            name if name.starts_with('+') => {
                assert!(*answer >= 0 || free == ENOSYS, "{name}: {answer}, {free} without filter");
                continue;
            }
            "clone3" | "i386-clone3" => ENOSYS,
            name if name.starts_with("i386-socketcall") => ENOSYS,
            _ => EPERM,
        };
        assert_eq!(*answer, wanted, "{name}, which is {free} without the filter");
        if free == wanted {
            unproven.push(name.as_str());
        }
    }
    // Whatever is denied here is so by the filter, but what this kernel has not or forbids
    // to everybody: its own settings, and whole ABIs.
    let by_kernel = |name: &&str| {
        let without_i386 = free["+i386-getpid"] == ENOSYS;
        ["io_uring", "userfaultfd", "perf", "bpf", "kexec"].iter().any(|one| name.contains(one))
            || without_i386 && name.starts_with("i386")
    };
    unproven.retain(|name| !by_kernel(name));
    assert_eq!(unproven, [""; 0], "denied without the filter as well");
}

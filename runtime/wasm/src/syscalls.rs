//! The system calls of `run` and `serve`, for whoever writes the jail's filter.
//!
//! Found with strace(1) over the guests of the tree: commands of both
//! generations with files, standard input and traps; a TCP service and its
//! client; an HTTP service with a volume, a neighbour and a name that does not
//! exist. The filter itself is `runtime/sandbox/data/wasm.json`; the test below
//! holds it to this list.

/// What the guests of the tree make the host call, after its start.
const CALLS: &str = "
    accept4 arch_prctl bind brk chdir clock_nanosleep close connect
    epoll_create1 epoll_ctl epoll_wait eventfd2 exit exit_group fchdir fcntl
    futex getcwd getdents64 getrandom getsockname getsockopt gettid ioctl listen
    lseek madvise memfd_create mmap mprotect munmap newfstatat open openat
    openat2 poll prctl pread64 prlimit64 pwrite64 read readlink recvfrom rseq
    rt_sigaction rt_sigprocmask rt_sigreturn rt_sigtimedwait sched_getaffinity
    sendto set_robust_list set_tid_address setsockopt shutdown sigaltstack socket
    socketpair statx uname write writev";

/// What a guest may ask for that those of the tree do not: every call of
/// wasmtime's file, clock and socket functions, and of an abort.
const FURTHER: &str = "
    clock_getres clock_gettime clone fadvise64 fallocate fdatasync fsync
    ftruncate getpeername linkat mkdirat preadv pwritev readlinkat readv recvmsg
    renameat sendmmsg sendmsg symlinkat tgkill unlinkat utimensat";

#[test]
fn w27_the_filter_allows_what_the_host_needs() {
    let filter = concat!(env!("CARGO_MANIFEST_DIR"), "/../sandbox/data/wasm.json");
    let text = std::fs::read_to_string(filter).unwrap();
    let filter: serde_json::Value = serde_json::from_str(&text).unwrap();
    let allowed: Vec<&str> = filter["syscalls"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|rule| rule["action"] == "SCMP_ACT_ALLOW")
        .flat_map(|rule| rule["names"].as_array().unwrap())
        .filter_map(|name| name.as_str())
        .collect();
    for call in CALLS.split_whitespace().chain(FURTHER.split_whitespace()) {
        assert!(allowed.contains(&call), "{call} is not allowed");
    }
    for call in ["execve", "fork", "ptrace", "mount", "setns", "unshare", "bpf", "kill"] {
        assert!(!allowed.contains(&call), "{call} is allowed");
    }
}

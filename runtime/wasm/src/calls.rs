//! The system calls of this program once it has loaded what it runs.
//!
//! The jail's first filter (`runtime/sandbox/data/wasm.json`) lets the host start: it maps
//! code, opens directories, makes threads. When that is done, and before a guest's first
//! instruction, the host loads a second one over it, for all threads. The kernel
//! takes the stricter answer of the two:
//!
//! | call | answer |
//! |---|---|
//! | what guests make the host call | allowed, where its arguments are ours too |
//! | what a library may try, and do without | EPERM, or ENOSYS where it is a newer call |
//! | everything else | the process is killed (SIGSYS, exit code 159) |
//!
//! So no memory becomes executable, nothing is executed, no file is made out of
//! memory, and there is no socket but of TCP and UDP, where a network was granted.
//! Found with strace(1) over the guests of the tree, and by reading what wasmtime's
//! file, clock and socket functions call.

use knarr_sys::seccomp::{
    ALLOW, ENOENT, EPERM, Filter, Instruction, KILL_PROCESS, equals, load_seccomp_filter, masked,
};
use libc::c_long;
use wasmtime::{Result, error::Context as _};

/// What is done with a socket.
const SOCKETS: &[c_long] = &[
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_connect,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_listen,
    libc::SYS_recvfrom,
    libc::SYS_recvmmsg,
    libc::SYS_recvmsg,
    libc::SYS_sendmmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_shutdown,
];

/// Files beneath the granted directories; Landlock and the mounts say which.
const FILES: &[c_long] = &[
    libc::SYS_access,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fadvise64,
    libc::SYS_fallocate,
    libc::SYS_fdatasync,
    libc::SYS_fstat,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_getcwd,
    libc::SYS_getdents64,
    libc::SYS_linkat,
    libc::SYS_lseek,
    libc::SYS_lstat,
    libc::SYS_mkdirat,
    libc::SYS_newfstatat,
    libc::SYS_open,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_readlink,
    libc::SYS_readlinkat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_stat,
    libc::SYS_statx,
    libc::SYS_symlinkat,
    libc::SYS_unlinkat,
    libc::SYS_utimensat,
];

/// Waiting for files, sockets and time.
const WAITING: &[c_long] = &[
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_wait,
    libc::SYS_eventfd2,
    libc::SYS_rt_sigtimedwait,
];

/// What somebody may try and do without: the first filter allows it, and no guest of ours
/// needs it any more; or a library has another way, or asks out of habit.
const REFUSED: &[c_long] = &[
    libc::SYS_arch_prctl,
    libc::SYS_capget,
    libc::SYS_chdir,
    libc::SYS_chmod,
    libc::SYS_close_range,
    libc::SYS_copy_file_range,
    libc::SYS_creat,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_epoll_create,
    libc::SYS_eventfd,
    libc::SYS_fchdir,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_flock,
    libc::SYS_fstatfs,
    libc::SYS_futimesat,
    libc::SYS_getgroups,
    libc::SYS_getitimer,
    libc::SYS_getpgid,
    libc::SYS_getpgrp,
    libc::SYS_getppid,
    libc::SYS_getpriority,
    libc::SYS_getresgid,
    libc::SYS_getresuid,
    libc::SYS_getsid,
    libc::SYS_inotify_add_watch,
    libc::SYS_inotify_init1,
    libc::SYS_inotify_rm_watch,
    libc::SYS_landlock_add_rule,
    libc::SYS_landlock_create_ruleset,
    libc::SYS_landlock_restrict_self,
    libc::SYS_link,
    libc::SYS_mincore,
    libc::SYS_mkdir,
    libc::SYS_mlock,
    libc::SYS_mlock2,
    libc::SYS_msync,
    libc::SYS_munlock,
    libc::SYS_pause,
    libc::SYS_pipe,
    libc::SYS_pipe2,
    libc::SYS_pkey_alloc,
    libc::SYS_pkey_free,
    libc::SYS_pselect6,
    libc::SYS_readahead,
    libc::SYS_rename,
    libc::SYS_rmdir,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_sigsuspend,
    libc::SYS_sched_get_priority_max,
    libc::SYS_sched_get_priority_min,
    libc::SYS_sched_getparam,
    libc::SYS_sched_getscheduler,
    libc::SYS_sched_setaffinity,
    libc::SYS_seccomp,
    libc::SYS_select,
    libc::SYS_sendfile,
    libc::SYS_setitimer,
    libc::SYS_setrlimit,
    libc::SYS_signalfd4,
    libc::SYS_socketpair,
    libc::SYS_splice,
    libc::SYS_statfs,
    libc::SYS_symlink,
    libc::SYS_sync,
    libc::SYS_sync_file_range,
    libc::SYS_syncfs,
    libc::SYS_timer_create,
    libc::SYS_timer_delete,
    libc::SYS_timer_gettime,
    libc::SYS_timer_settime,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_gettime,
    libc::SYS_timerfd_settime,
    libc::SYS_truncate,
    libc::SYS_umask,
    libc::SYS_unlink,
    libc::SYS_utime,
    libc::SYS_utimes,
];

/// What a socket's type may be beside its kind: SOCK_NONBLOCK, SOCK_CLOEXEC.
const SOCKET_FLAGS: u64 = 0o2_004_000;

/// For `run` and `serve`; `network` is whether one was granted.
fn running(network: bool) -> Vec<Instruction> {
    let mut filter = Filter::default()
        .common()
        .threads()
        .answer(FILES, ALLOW)
        .answer(WAITING, ALLOW)
        .answer(REFUSED, EPERM)
        // Flags and duplicates of descriptors: nobody is to be sent signals.
        .only(
            libc::SYS_fcntl,
            [
                libc::F_DUPFD,
                libc::F_GETFD,
                libc::F_SETFD,
                libc::F_GETFL,
                libc::F_SETFL,
                libc::F_DUPFD_CLOEXEC,
            ]
            .map(|command| vec![equals(1, command as u64)])
            .to_vec(),
            EPERM,
        )
        .only(
            libc::SYS_ioctl,
            [libc::FIONREAD, libc::FIONBIO, libc::FIOCLEX, libc::TCGETS, libc::TIOCGWINSZ]
                .map(|request| vec![equals(1, request)])
                .to_vec(),
            EPERM,
        );
    if network {
        let mut kinds = Vec::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            for (kind, protocol) in
                [(libc::SOCK_STREAM, libc::IPPROTO_TCP), (libc::SOCK_DGRAM, libc::IPPROTO_UDP)]
            {
                for protocol in [0, protocol] {
                    let all = u64::from(u32::MAX) & !SOCKET_FLAGS;
                    kinds.push(vec![
                        equals(0, family as u64),
                        masked(1, all, kind as u64, true),
                        equals(2, protocol as u64),
                    ]);
                }
            }
        }
        let options = [
            (libc::SOL_SOCKET, libc::SO_REUSEADDR),
            (libc::SOL_SOCKET, libc::SO_KEEPALIVE),
            (libc::SOL_SOCKET, libc::SO_LINGER),
            (libc::SOL_SOCKET, libc::SO_RCVBUF),
            (libc::SOL_SOCKET, libc::SO_SNDBUF),
            (libc::IPPROTO_IP, libc::IP_TTL),
            (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS),
            (libc::IPPROTO_IPV6, libc::IPV6_V6ONLY),
            (libc::IPPROTO_TCP, libc::TCP_NODELAY),
            (libc::IPPROTO_TCP, libc::TCP_KEEPCNT),
            (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE),
            (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL),
        ];
        filter = filter.answer(SOCKETS, ALLOW).only(libc::SYS_socket, kinds, KILL_PROCESS).only(
            libc::SYS_setsockopt,
            options
                .map(|(level, name)| vec![equals(1, level as u64), equals(2, name as u64)])
                .to_vec(),
            EPERM,
        );
    }
    filter.program()
}

/// For the compiler, which reads its input, writes its output and computes.
fn compiling() -> Vec<Instruction> {
    // The C library and the standard library look for files that say how many
    // processors there are, and do without.
    let none = [
        libc::SYS_access,
        libc::SYS_newfstatat,
        libc::SYS_open,
        libc::SYS_openat,
        libc::SYS_readlink,
        libc::SYS_statx,
    ];
    Filter::default()
        .common()
        .threads()
        .answer(&none, ENOENT)
        .answer(&[libc::SYS_fstat, libc::SYS_lseek], ALLOW)
        .answer(&[libc::SYS_fcntl, libc::SYS_ioctl, libc::SYS_getcwd], EPERM)
        .program()
}

/// Confines all threads of `run` or `serve` to what a guest needs.
pub(crate) fn confine_guest(network: bool) -> Result<()> {
    load(&running(network))
}

/// Confines the compiler.
pub(crate) fn confine_compiler() -> Result<()> {
    load(&compiling())
}

fn load(program: &[Instruction]) -> Result<()> {
    rustix::thread::set_no_new_privs(true).context("cannot give up new privileges")?;
    load_seccomp_filter(program).context("cannot load the filter of system calls")
}

#[cfg(test)]
mod tests {
    use knarr_sys::seccomp::{ANY, ARCH_X86_64};

    use super::*;

    /// What the kernel makes of a program.
    fn answer(program: &[Instruction], number: c_long, args: &[u64]) -> u32 {
        let all = std::array::from_fn(|place| args.get(place).copied().unwrap_or(0));
        knarr_sys::seccomp::answer(program, ARCH_X86_64, number as u32, all)
    }

    #[test]
    fn w27_the_compiler_reads_writes_and_computes() {
        let program = compiling();
        for call in [libc::SYS_read, libc::SYS_write, libc::SYS_futex, libc::SYS_exit_group] {
            assert_eq!(answer(&program, call, &[]), ALLOW, "{call}");
        }
        assert_eq!(answer(&program, libc::SYS_mmap, &[0, 4096, 3]), ALLOW);
        assert_eq!(answer(&program, libc::SYS_clone, &[0x003d_0f00]), ALLOW, "a thread");
        assert_eq!(answer(&program, libc::SYS_openat, &[]), ENOENT);
        for (call, args) in [
            (libc::SYS_mmap, &[0, 4096, 5][..]),
            (libc::SYS_mprotect, &[0, 4096, 7]),
            (libc::SYS_clone, &[17]),
            (libc::SYS_execve, &[]),
            (libc::SYS_execveat, &[]),
            (libc::SYS_socket, &[2, 1, 0]),
            (libc::SYS_connect, &[]),
            (libc::SYS_memfd_create, &[]),
            (libc::SYS_openat2, &[]),
            (libc::SYS_unlinkat, &[]),
            (libc::SYS_kill, &[1, 0]),
            (libc::SYS_ptrace, &[]),
            (libc::SYS_unshare, &[]),
            (libc::SYS_bpf, &[]),
            (libc::SYS_io_uring_setup, &[]),
        ] {
            assert_eq!(answer(&program, call, args), KILL_PROCESS, "{call} {args:?}");
        }
    }

    #[test]
    fn w27_sockets_are_of_tcp_and_udp_and_need_a_network() {
        let (with, without) = (running(true), running(false));
        let flags = SOCKET_FLAGS;
        for args in [[2, 1, 0], [2, 1 | flags, 6], [10, 2, 17], [10, 2 | flags, 0]] {
            assert_eq!(answer(&with, libc::SYS_socket, &args), ALLOW, "{args:?}");
            assert_eq!(answer(&without, libc::SYS_socket, &args), KILL_PROCESS, "{args:?}");
        }
        for args in [
            [1, 1, 0],
            [16, 3, 0],
            [17, 3, 0],
            [38, 5, 0],
            [40, 1, 0],
            [2, 3, 1],
            [2, 2, 1],
            [2, 1, 262],
            [10, 5, 0],
            [2, 2, 6],
            [2, 1, 17],
            [1 << 32 | 38, 5, 0],
        ] {
            assert_eq!(answer(&with, libc::SYS_socket, &args), KILL_PROCESS, "{args:?}");
        }
        assert_eq!(answer(&with, libc::SYS_accept4, &[]), ALLOW);
        assert_eq!(answer(&without, libc::SYS_accept4, &[]), KILL_PROCESS);
    }

    #[test]
    fn w27_nothing_else_is_allowed_whatever_the_arguments_are() {
        let all = FILES.iter().chain(WAITING).chain(ANY).chain(SOCKETS);
        let names: Vec<u32> = all.map(|call| *call as u32).collect();
        for program in [running(true), compiling()] {
            for number in 0..1000 {
                let given = answer(&program, number, &[u64::MAX; 6]);
                assert!(given != ALLOW || names.contains(&(number as u32)), "{number}");
            }
        }
    }
}

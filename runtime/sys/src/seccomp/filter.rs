//! A filter as a list: each call that is named has an answer.
//!
//! | call | answer |
//! |---|---|
//! | named | what is said of it, or of its arguments |
//! | not named | the process is killed (SIGSYS) |
//! | newer than the list | ENOSYS |

use std::collections::BTreeMap;

use libc::c_long;

use super::{
    ALLOW, Condition, ERRNO, Instruction, Intervals, KILL_PROCESS, Operator, Outcome, assemble,
};

/// The call fails with EPERM.
pub const EPERM: u32 = ERRNO | 1;
/// The call fails with ENOENT.
pub const ENOENT: u32 = ERRNO | 2;
/// The call fails with ENOSYS, as where the kernel does not know it.
pub const ENOSYS: u32 = ERRNO | 38;

/// Memory, time, signals and open descriptors: what any Rust program needs.
pub const ANY: &[c_long] = &[
    libc::SYS_brk,
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_get_robust_list,
    libc::SYS_getcpu,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_getrlimit,
    libc::SYS_getrusage,
    libc::SYS_gettid,
    libc::SYS_gettimeofday,
    libc::SYS_getuid,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_sigaltstack,
    libc::SYS_sysinfo,
    libc::SYS_time,
    libc::SYS_times,
    libc::SYS_uname,
    libc::SYS_write,
    libc::SYS_writev,
];

/// Newer calls that libraries try before older ones. `clone3` is among them because its
/// flags lie in memory, where a filter cannot see them.
const UNKNOWN: &[c_long] = &[
    libc::SYS_clone3,
    libc::SYS_epoll_pwait2,
    454, // futex_wake
    455, // futex_wait
    libc::SYS_futex_waitv,
    libc::SYS_process_madvise,
];

/// The first number behind those that these lists were made from (Linux 6.11): ENOSYS, as a
/// kernel of that time answers.
const NEWER: u32 = 463;

/// Flags of a thread, and what a process or a namespace would have: CLONE_VM,
/// CLONE_SIGHAND and CLONE_THREAD, and none of CLONE_NEW*.
const THREAD: (u64, u64) = (0x7e02_0000 | 0x0001_0900, 0x0001_0900);
const PROT_EXEC: u64 = 4;

/// An argument of the kernel's type int has this value.
pub fn equals(index: u8, value: u64) -> Condition {
    Condition { index, operator: Operator::Equal, value, second: 0, narrow: true }
}

/// What the mask leaves of an argument is `left`; where `narrow`, only its low half counts.
pub fn masked(index: u8, mask: u64, left: u64, narrow: bool) -> Condition {
    Condition { index, operator: Operator::Masked, value: mask, second: left, narrow }
}

/// A filter under construction, for x86_64; nobody calls the kernel in another way.
#[derive(Debug, Default)]
pub struct Filter(BTreeMap<u32, Outcome>);

impl Filter {
    /// These calls have this answer, whatever their arguments are.
    #[must_use]
    pub fn answer(mut self, calls: &[c_long], action: u32) -> Self {
        self.0.extend(calls.iter().map(|call| (*call as u32, Outcome::Action(action))));
        self
    }

    /// Allowed where all conditions of one of the lists hold; else this is the answer.
    #[must_use]
    pub fn only(mut self, call: c_long, lists: Vec<Vec<Condition>>, otherwise: u32) -> Self {
        let mut rules: Vec<_> = lists.into_iter().map(|list| (list, ALLOW)).collect();
        rules.push((Vec::new(), otherwise));
        self.0.insert(call as u32, Outcome::Compare(rules));
        self
    }

    /// What every program needs, with arguments that are harmless: no memory becomes
    /// executable, and nobody but this process, which is to load it, is sent a signal.
    #[must_use]
    pub fn common(self) -> Self {
        let this_process = u64::from(std::process::id());
        let not_executable = || vec![vec![masked(2, PROT_EXEC, 0, false)]];
        self.answer(ANY, ALLOW)
            .answer(UNKNOWN, ENOSYS)
            .only(libc::SYS_mmap, not_executable(), KILL_PROCESS)
            .only(libc::SYS_mprotect, not_executable(), KILL_PROCESS)
            .only(libc::SYS_tgkill, vec![vec![equals(0, this_process)]], KILL_PROCESS)
            // Limits are read, of this process, and not set.
            .only(
                libc::SYS_prlimit64,
                vec![vec![equals(0, 0), masked(2, u64::MAX, 0, false)]],
                EPERM,
            )
            // Names of threads and of memory.
            .only(
                libc::SYS_prctl,
                [
                    15,          /* PR_SET_NAME */
                    16,          /* PR_GET_NAME */
                    0x5356_4d41, /* PR_SET_VMA */
                ]
                .map(|option| vec![equals(0, option)])
                .to_vec(),
                EPERM,
            )
    }

    /// Threads are made, and no processes.
    #[must_use]
    pub fn threads(self) -> Self {
        let thread = vec![vec![masked(0, THREAD.0, THREAD.1, false)]];
        self.only(libc::SYS_clone, thread, KILL_PROCESS)
    }

    /// What the kernel is given.
    pub fn program(self) -> Vec<Instruction> {
        let mut intervals: Intervals = Vec::new();
        let mut next = 0;
        for (number, outcome) in self.0 {
            if number > next {
                intervals.push((next, Outcome::Action(KILL_PROCESS)));
            }
            next = number + 1;
            match intervals.last() {
                Some((_, last)) if *last == outcome => {}
                _ => intervals.push((number, outcome)),
            }
        }
        intervals.push((next, Outcome::Action(KILL_PROCESS)));
        if next < NEWER {
            intervals.push((NEWER, Outcome::Action(ENOSYS)));
        }
        assemble(Some(&intervals), None, None, KILL_PROCESS)
    }
}

//! A policy as a program of classic BPF (`knarr_sys::seccomp` assembles it).
//!
//! Numbers above all that the profile knows get ENOSYS where the default is an
//! errno, as runc does: so that a C library which tries a newer call first falls
//! back to the older one.

use std::{collections::BTreeMap, str::FromStr};

use knarr_sys::seccomp::{ERRNO, Instruction, Intervals, Outcome, X32_BIT, assemble};

use super::policy::{Abi, ENOSYS, Policy, Rule};
use crate::{Error, Failure};

/// The kernel takes no longer programs (BPF_MAXINSNS).
const LONGEST: usize = 4096;

/// Compiles a policy; eight bytes an instruction.
pub(super) fn compile(policy: &Policy) -> Result<Vec<u8>, Error> {
    let program = program(policy);
    if program.len() > LONGEST {
        let text =
            format!("seccomp profile needs {} instructions, more than {LONGEST}", program.len());
        return Err(Error::new(Failure::InvalidSpec, text));
    }
    let mut bytes = Vec::with_capacity(program.len() * 8);
    for instruction in program {
        bytes.extend(instruction.code.to_ne_bytes());
        bytes.extend([instruction.yes, instruction.no]);
        bytes.extend(instruction.k.to_ne_bytes());
    }
    Ok(bytes)
}

fn program(policy: &Policy) -> Vec<Instruction> {
    let of = |abi| policy.abis.contains(&abi).then(|| outcomes(policy, abi));
    let (x86_64, x32, i386) = (of(Abi::X86_64), of(Abi::X32), of(Abi::I386));
    assemble(x86_64.as_ref(), x32.as_ref(), i386.as_ref(), policy.default)
}

/// Intervals in order: the first number of each, and its outcome.
fn outcomes(policy: &Policy, abi: Abi) -> Intervals {
    let mut by_number: BTreeMap<u32, Outcome> = BTreeMap::new();
    for rule in &policy.rules {
        let Some(number) = number(&rule.name, abi) else { continue };
        decide(by_number.entry(number).or_insert(Outcome::Compare(Vec::new())), rule);
    }
    let base = if abi == Abi::X32 { X32_BIT } else { 0 };
    let default = Outcome::Action(policy.default);
    let mut intervals = vec![(base, default.clone())];
    let mut next = base;
    let mut push = |start: u32, outcome: Outcome| match intervals.last_mut() {
        Some((_, last)) if *last == outcome => {}
        Some(last) if last.0 == start => last.1 = outcome,
        _ => intervals.push((start, outcome)),
    };
    for (number, outcome) in by_number {
        if number > next {
            push(next, default.clone());
        }
        push(number, outcome);
        next = number + 1;
    }
    let newer = match policy.default {
        action if action & 0xffff_0000 == ERRNO => Outcome::Action(ERRNO | ENOSYS),
        action => Outcome::Action(action),
    };
    push(next, newer);
    intervals
}

/// The first rule without conditions decides, whatever comes before or after.
fn decide(outcome: &mut Outcome, rule: &Rule) {
    match outcome {
        Outcome::Action(_) => {}
        Outcome::Compare(_) if rule.conditions.is_empty() => {
            *outcome = Outcome::Action(rule.action);
        }
        Outcome::Compare(rules) => rules.push((rule.conditions.clone(), rule.action)),
    }
}

/// The number of a system call by its name; none where the ABI has no such call.
fn number(name: &str, abi: Abi) -> Option<u32> {
    match abi {
        Abi::X86_64 => syscalls::x86_64::Sysno::from_str(name).ok().map(|call| call.id() as u32),
        Abi::I386 => syscalls::x86::Sysno::from_str(name).ok().map(|call| call.id() as u32),
        Abi::X32 => {
            let own = X32_OWN.iter().position(|own| *own == name);
            let number = match own {
                Some(at) => 512 + at as u32,
                None => number(name, Abi::X86_64)?,
            };
            Some(X32_BIT | number)
        }
    }
}

/// Calls of x32 with numbers of their own, from 512 on (arch/x86/entry/syscalls/syscall_64.tbl).
const X32_OWN: [&str; 36] = [
    "rt_sigaction",
    "rt_sigreturn",
    "ioctl",
    "readv",
    "writev",
    "recvfrom",
    "sendmsg",
    "recvmsg",
    "execve",
    "ptrace",
    "rt_sigpending",
    "rt_sigtimedwait",
    "rt_sigqueueinfo",
    "sigaltstack",
    "timer_create",
    "mq_notify",
    "kexec_load",
    "waitid",
    "set_robust_list",
    "get_robust_list",
    "vmsplice",
    "move_pages",
    "preadv",
    "pwritev",
    "rt_tgsigqueueinfo",
    "recvmmsg",
    "sendmmsg",
    "process_vm_readv",
    "process_vm_writev",
    "setsockopt",
    "getsockopt",
    "io_setup",
    "io_submit",
    "execveat",
    "preadv2",
    "pwritev2",
];

#[cfg(test)]
#[path = "tests.rs"]
mod tests;

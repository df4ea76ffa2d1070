//! A policy as a program of classic BPF.
//!
//! ```text
//!  arch? ─ x86_64 ─ number ≥ 0x4000_0000? ─ no ─ tree of x86_64
//!        │                                 └ yes ─ tree of x32 (or the default)
//!        ├ i386 ─ tree of i386 (or kill)
//!        └ else ─ kill
//! ```
//!
//! A tree's leaves are intervals of numbers with one outcome: an action, or a
//! block that compares arguments. Numbers above all that the profile knows get
//! ENOSYS where the default is an errno, as runc does: so that a C library which
//! tries a newer call first falls back to the older one.

use std::{collections::BTreeMap, str::FromStr};

use super::policy::{Abi, Condition, ERRNO, KILL_PROCESS, Operator, Policy, Rule};
use crate::{Error, Failure};

/// `struct sock_filter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Instruction {
    code: u16,
    yes: u8,
    no: u8,
    k: u32,
}

const LOAD: u16 = 0x20; // A = data[k]
const AND: u16 = 0x54; // A &= k
const JUMP: u16 = 0x05;
const EQUAL: u16 = 0x15;
const GREATER: u16 = 0x25;
const GREATER_OR_EQUAL: u16 = 0x35;
const RETURN: u16 = 0x06;

const ARCH_X86_64: u32 = 0xc000_003e;
const ARCH_I386: u32 = 0x4000_0003;
const X32_BIT: u32 = 0x4000_0000;
const ENOSYS: u32 = 38;
/// The kernel takes no longer programs (BPF_MAXINSNS).
const LONGEST: usize = 4096;

fn op(code: u16, k: u32) -> Instruction {
    Instruction { code, yes: 0, no: 0, k }
}

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
    let tree_of = |abi| {
        let tree = policy.abis.contains(&abi).then(|| tree(&outcomes(policy, abi), policy.default));
        tree.unwrap_or_else(|| vec![op(RETURN, KILL_PROCESS)])
    };
    let (x86_64, x32, i386) = (tree_of(Abi::X86_64), tree_of(Abi::X32), tree_of(Abi::I386));
    let mut native = vec![op(LOAD, 0)];
    branch(&mut native, GREATER_OR_EQUAL, X32_BIT, x86_64, x32);
    let mut other = Vec::new();
    let mut foreign = vec![op(LOAD, 0)];
    foreign.extend(i386);
    branch(&mut other, EQUAL, ARCH_I386, vec![op(RETURN, KILL_PROCESS)], foreign);
    let mut program = vec![op(LOAD, 4)];
    branch(&mut program, EQUAL, ARCH_X86_64, other, native);
    program
}

/// `if test { yes } else { no }`, wherever that leads; both end in returns.
fn branch(
    program: &mut Vec<Instruction>,
    code: u16,
    k: u32,
    no: Vec<Instruction>,
    yes: Vec<Instruction>,
) {
    match u8::try_from(no.len()) {
        Ok(distance) => program.push(Instruction { code, yes: distance, no: 0, k }),
        Err(_) => {
            program.push(Instruction { code, yes: 0, no: 1, k });
            program.push(op(JUMP, no.len() as u32));
        }
    }
    program.extend(no);
    program.extend(yes);
}

/// What happens to a number.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Outcome {
    Action(u32),
    Compare(Vec<(Vec<Condition>, u32)>),
}

/// Intervals in order: the first number of each, and its outcome.
fn outcomes(policy: &Policy, abi: Abi) -> Vec<(u32, Outcome)> {
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

/// A balanced search for the interval of the number in A.
fn tree(intervals: &[(u32, Outcome)], default: u32) -> Vec<Instruction> {
    if let [(_, outcome)] = intervals {
        return leaf(outcome, default);
    }
    let (left, right) = intervals.split_at(intervals.len() / 2);
    let mut program = Vec::new();
    branch(&mut program, GREATER_OR_EQUAL, right[0].0, tree(left, default), tree(right, default));
    program
}

fn leaf(outcome: &Outcome, default: u32) -> Vec<Instruction> {
    match outcome {
        Outcome::Action(action) => vec![op(RETURN, *action)],
        Outcome::Compare(rules) => {
            let mut program = Vec::new();
            for (conditions, action) in rules {
                program.extend(rule(conditions, *action));
            }
            program.push(op(RETURN, default));
            program
        }
    }
}

/// Returns if all conditions hold, falls through to its end if one does not.
fn rule(conditions: &[Condition], action: u32) -> Vec<Instruction> {
    let mut program = vec![op(RETURN, action)];
    for condition in conditions.iter().rev() {
        let block = compare(condition, program.len());
        program.splice(0..0, block);
    }
    program
}

/// One comparison of 64 bits in halves of 32; falls through if it holds, else
/// jumps over the `rest` instructions behind it.
fn compare(condition: &Condition, rest: usize) -> Vec<Instruction> {
    let at = 16 + 8 * u32::from(condition.index);
    let half = |value: u64| (value as u32, (value >> 32) as u32);
    let (low, high) = half(condition.value);
    let load_high = op(LOAD, at + 4);
    let load_low = op(LOAD, at);
    // Distances are counted from the instruction after the jump. A rule has at
    // most six comparisons of at most six instructions, so they fit in a byte.
    let rest = rest as u8;
    let jump = |code, k, yes: u8, no: u8| Instruction { code, yes, no, k };
    if condition.narrow {
        return match condition.operator {
            Operator::Equal => vec![load_low, jump(EQUAL, low, 0, rest)],
            Operator::NotEqual => vec![load_low, jump(EQUAL, low, rest, 0)],
            Operator::Greater => vec![load_low, jump(GREATER, low, 0, rest)],
            Operator::GreaterOrEqual => vec![load_low, jump(GREATER_OR_EQUAL, low, 0, rest)],
            Operator::Less => vec![load_low, jump(GREATER_OR_EQUAL, low, rest, 0)],
            Operator::LessOrEqual => vec![load_low, jump(GREATER, low, rest, 0)],
            Operator::Masked => {
                let wanted = condition.second as u32 & low;
                vec![load_low, op(AND, low), jump(EQUAL, wanted, 0, rest)]
            }
        };
    }
    match condition.operator {
        Operator::Equal => {
            vec![load_high, jump(EQUAL, high, 0, 2 + rest), load_low, jump(EQUAL, low, 0, rest)]
        }
        Operator::NotEqual => {
            vec![load_high, jump(EQUAL, high, 0, 2), load_low, jump(EQUAL, low, rest, 0)]
        }
        Operator::Masked => {
            let (wanted_low, wanted_high) = half(condition.second & condition.value);
            vec![
                load_high,
                op(AND, high),
                jump(EQUAL, wanted_high, 0, 3 + rest),
                load_low,
                op(AND, low),
                jump(EQUAL, wanted_low, 0, rest),
            ]
        }
        // high > h → holds; high != h → does not; low decides.
        Operator::Greater => vec![
            load_high,
            jump(GREATER, high, 3, 0),
            jump(EQUAL, high, 0, 2 + rest),
            load_low,
            jump(GREATER, low, 0, rest),
        ],
        Operator::GreaterOrEqual => vec![
            load_high,
            jump(GREATER, high, 3, 0),
            jump(EQUAL, high, 0, 2 + rest),
            load_low,
            jump(GREATER_OR_EQUAL, low, 0, rest),
        ],
        // high > h → does not; high != h → holds; low decides.
        Operator::Less => vec![
            load_high,
            jump(GREATER, high, 3 + rest, 0),
            jump(EQUAL, high, 0, 2),
            load_low,
            jump(GREATER_OR_EQUAL, low, rest, 0),
        ],
        Operator::LessOrEqual => vec![
            load_high,
            jump(GREATER, high, 3 + rest, 0),
            jump(EQUAL, high, 0, 2),
            load_low,
            jump(GREATER, low, rest, 0),
        ],
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

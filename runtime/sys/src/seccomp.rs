//! seccomp(2): filters as programs of classic BPF, and how one is loaded.
//!
//! ```text
//!  arch? ─ x86_64 ─ number ≥ 0x4000_0000? ─ no ─ tree of x86_64
//!        │                                 └ yes ─ tree of x32 (or kill)
//!        ├ i386 ─ tree of i386 (or kill)
//!        └ else ─ kill
//! ```
//!
//! A tree's leaves are intervals of numbers with one outcome: an action, or a
//! block that compares arguments. The kernel evaluates a new filter for every
//! number when it is loaded: a tree makes that, and each call, much quicker than
//! a list.

use rustix::io::Errno;

use crate::process::check;

/// `SECCOMP_RET_KILL_PROCESS`.
pub const KILL_PROCESS: u32 = 0x8000_0000;
/// `SECCOMP_RET_ERRNO`; the error's number lies in the low half.
pub const ERRNO: u32 = 0x0005_0000;
/// `SECCOMP_RET_ALLOW`.
pub const ALLOW: u32 = 0x7fff_0000;
/// Numbers of x32 have this bit.
pub const X32_BIT: u32 = 0x4000_0000;
/// `AUDIT_ARCH_X86_64`.
pub const ARCH_X86_64: u32 = 0xc000_003e;
/// `AUDIT_ARCH_I386`.
pub const ARCH_I386: u32 = 0x4000_0003;

/// `struct sock_filter`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    /// Class, operation and source.
    pub code: u16,
    /// How far to jump where a test holds.
    pub yes: u8,
    /// How far to jump where it does not.
    pub no: u8,
    /// The constant.
    pub k: u32,
}

/// A = data\[k].
pub const LOAD: u16 = 0x20;
/// A &= k.
pub const AND: u16 = 0x54;
/// Go on k instructions later.
pub const JUMP: u16 = 0x05;
/// A == k.
pub const EQUAL: u16 = 0x15;
/// A > k.
pub const GREATER: u16 = 0x25;
/// A >= k.
pub const GREATER_OR_EQUAL: u16 = 0x35;
/// The answer is k.
pub const RETURN: u16 = 0x06;

/// How an argument is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Condition {
    /// Which argument, from 0.
    pub index: u8,
    /// How.
    pub operator: Operator,
    /// With what.
    pub value: u64,
    /// For [`Operator::Masked`] `value` is the mask and this what is left.
    pub second: u64,
    /// Only the low half counts, as for the kernel where the argument is an int.
    pub narrow: bool,
}

/// The comparisons that there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operator {
    /// `==`
    Equal,
    /// `!=`
    NotEqual,
    /// `<`
    Less,
    /// `<=`
    LessOrEqual,
    /// `>`
    Greater,
    /// `>=`
    GreaterOrEqual,
    /// `& value == second & value`
    Masked,
}

/// What happens to a call of some number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// SECCOMP_RET_*, whatever the arguments are.
    Action(u32),
    /// The first action whose conditions all hold, else the default.
    Compare(Vec<(Vec<Condition>, u32)>),
}

/// What happens to every number of one way of calling the kernel: intervals in order,
/// each by its first number, the first of them at the lowest number that there is.
pub type Intervals = Vec<(u32, Outcome)>;

fn op(code: u16, k: u32) -> Instruction {
    Instruction { code, yes: 0, no: 0, k }
}

/// A program for these ways of calling the kernel; who calls in another one is killed.
pub fn assemble(
    x86_64: Option<&Intervals>,
    x32: Option<&Intervals>,
    i386: Option<&Intervals>,
    default: u32,
) -> Vec<Instruction> {
    let tree_of = |intervals: Option<&Intervals>| match intervals {
        Some(intervals) => tree(intervals, default),
        None => vec![op(RETURN, KILL_PROCESS)],
    };
    let (x86_64, x32, i386) = (tree_of(x86_64), tree_of(x32), tree_of(i386));
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

/// Puts a filter on all threads of this process, and whatever they start.
///
/// # Errors
/// Where the kernel has no filters, or `no_new_privs` is not set.
pub fn load_seccomp_filter(program: &[Instruction]) -> Result<(), Errno> {
    const SECCOMP_SET_MODE_FILTER: u32 = 1;
    const SECCOMP_FILTER_FLAG_TSYNC: u32 = 1;
    let length = u16::try_from(program.len()).map_err(|_| Errno::INVAL)?;
    let filter = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut().cast() };
    // JUSTIFICATION: neither nix nor rustix has seccomp(2).
    // SAFETY: `Instruction` has the layout of sock_filter, and `length` of them are there;
    // the kernel reads them and keeps a copy.
    let loaded = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            SECCOMP_SET_MODE_FILTER,
            SECCOMP_FILTER_FLAG_TSYNC,
            &raw const filter,
        )
    };
    match check(loaded)? {
        0 => Ok(()),
        // The id of a thread that has a filter of its own.
        _ => Err(Errno::SRCH),
    }
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

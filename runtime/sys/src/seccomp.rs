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
//! a list. It also translates every instruction when it is loaded, so leaves share
//! their returns, and comparisons what they have in common.
//!
//! A program of ours that is to make few calls lists them: [`Filter`].

mod filter;

pub use filter::{ANY, ENOENT, ENOSYS, EPERM, Filter, equals, masked};

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
    if let Some(program) = Shared::tree(intervals, default) {
        return program;
    }
    // Too long for jumps from its first instruction to its last.
    let (left, right) = intervals.split_at(intervals.len() / 2);
    let mut program = Vec::new();
    branch(&mut program, GREATER_OR_EQUAL, right[0].0, tree(left, default), tree(right, default));
    program
}

/// A tree whose leaves share the returns behind it.
struct Shared {
    program: Vec<Instruction>,
    default: u32,
    /// Jumps to a return: of which instruction, whether where its test holds, which action.
    returns: Vec<(usize, bool, u32)>,
}

impl Shared {
    /// None where a jump would be too far.
    fn tree(intervals: &[(u32, Outcome)], default: u32) -> Option<Vec<Instruction>> {
        if let [(_, outcome)] = intervals {
            return Some(leaf(outcome, default));
        }
        let mut shared = Self { program: Vec::new(), default, returns: Vec::new() };
        shared.split(intervals)?;
        let Self { mut program, returns, .. } = shared;
        let mut places: Vec<(u32, usize)> = Vec::new();
        for (jump, holds, action) in returns {
            let known = places.iter().find(|(known, _)| *known == action).map(|(_, at)| *at);
            let at = known.unwrap_or_else(|| {
                program.push(op(RETURN, action));
                places.push((action, program.len() - 1));
                program.len() - 1
            });
            let distance = u8::try_from(at - jump - 1).ok()?;
            match holds {
                true => program[jump].yes = distance,
                false => program[jump].no = distance,
            }
        }
        Some(program)
    }

    /// Two or more intervals.
    fn split(&mut self, intervals: &[(u32, Outcome)]) -> Option<()> {
        let (left, right) = intervals.split_at(intervals.len() / 2);
        let jump = self.program.len();
        self.program.push(op(GREATER_OR_EQUAL, right.first()?.0));
        self.side(jump, false, left)?;
        self.side(jump, true, right)
    }

    fn side(&mut self, jump: usize, holds: bool, intervals: &[(u32, Outcome)]) -> Option<()> {
        if let [(_, Outcome::Action(action))] = intervals {
            self.returns.push((jump, holds, *action));
            return Some(());
        }
        if holds {
            self.program[jump].yes = u8::try_from(self.program.len() - jump - 1).ok()?;
        }
        match intervals {
            [(_, outcome)] => self.program.extend(leaf(outcome, self.default)),
            _ => self.split(intervals)?,
        }
        Some(())
    }
}

fn leaf(outcome: &Outcome, default: u32) -> Vec<Instruction> {
    match outcome {
        Outcome::Action(action) => vec![op(RETURN, *action)],
        Outcome::Compare(all) => {
            let all: Vec<_> = all.iter().map(|(one, action)| (one.as_slice(), *action)).collect();
            let mut program = rules(&all);
            program.push(op(RETURN, default));
            program
        }
    }
}

/// Conditions that all have to hold, and what happens then.
type Rule<'a> = (&'a [Condition], u32);

/// The longest block that a comparison jumps over: its own distances are up to three more.
const LONGEST_JUMP: usize = 250;

/// Returns with the first rule that holds, falls through to its end if none does.
fn rules(all: &[Rule<'_>]) -> Vec<Instruction> {
    let mut program = Vec::new();
    let mut left = all;
    while let Some((first, _)) = left.split_first() {
        let (block, taken) =
            choice(left).or_else(|| common(left)).unwrap_or_else(|| (rule(first.0, first.1), 1));
        program.extend(block);
        left = &left[taken..];
    }
    program
}

/// Rules that do the same where one argument has one of several values, and how many: the
/// argument is loaded once.
fn choice(all: &[Rule<'_>]) -> Option<(Vec<Instruction>, usize)> {
    let value = |(conditions, action): &Rule<'_>| match conditions {
        [one] if one.operator == Operator::Equal => Some((*one, *action)),
        _ => None,
    };
    let (first, action) = value(all.first()?)?;
    let same = |one: &Condition| {
        let high = |condition: &Condition| condition.value >> 32;
        (one.index, one.narrow) == (first.index, first.narrow)
            && (one.narrow || high(one) == high(&first))
    };
    let values: Vec<u32> = all
        .iter()
        .map_while(value)
        .take_while(|(one, other)| *other == action && same(one))
        .map(|(one, _)| one.value as u32)
        .take(LONGEST_JUMP)
        .collect();
    if values.len() < 2 {
        return None;
    }
    let mut block = Vec::new();
    let count = values.len();
    if !first.narrow {
        // Over what follows: a load, the comparisons and the return.
        let over = u8::try_from(count + 2).ok()?;
        block.push(op(LOAD, argument(&first) + 4));
        block.push(Instruction { no: over, ..op(EQUAL, (first.value >> 32) as u32) });
    }
    block.push(op(LOAD, argument(&first)));
    for (at, value) in values.iter().enumerate() {
        // To the return behind the last; that one jumps over it where it does not hold.
        let yes = u8::try_from(count - at - 1).ok()?;
        block.push(Instruction { yes, no: u8::from(at + 1 == count), ..op(EQUAL, *value) });
    }
    block.push(op(RETURN, action));
    Some((block, count))
}

/// Rules whose first condition is the same, and how many: it is compared once.
fn common(all: &[Rule<'_>]) -> Option<(Vec<Instruction>, usize)> {
    let ([first, _, ..], _) = all.first()? else { return None };
    let rest: Vec<Rule<'_>> = all
        .iter()
        .map_while(|(conditions, action)| match conditions.split_first() {
            Some((one, rest)) if one == first && !rest.is_empty() => Some((rest, *action)),
            _ => None,
        })
        .collect();
    let inner = rules(&rest);
    if rest.len() < 2 || inner.len() > LONGEST_JUMP {
        return None;
    }
    let mut block = compare(first, inner.len());
    block.extend(inner);
    Some((block, rest.len()))
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

/// Where the low half of an argument is, in bytes; the high one lies behind it.
fn argument(condition: &Condition) -> u32 {
    16 + 8 * u32::from(condition.index)
}

/// One comparison of 64 bits in halves of 32; falls through if it holds, else
/// jumps over the `rest` instructions behind it.
fn compare(condition: &Condition, rest: usize) -> Vec<Instruction> {
    let at = argument(condition);
    let half = |value: u64| (value as u32, (value >> 32) as u32);
    let (low, high) = half(condition.value);
    let load_high = op(LOAD, at + 4);
    let load_low = op(LOAD, at);
    // Distances are counted from the instruction after the jump. A rule has at
    // most six comparisons of at most six instructions, and what else lies behind one is
    // no longer than `LONGEST_JUMP`: they fit in a byte.
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

/// What a program answers to a call of the kernel, as the kernel's own machine would: for
/// tests. An instruction that is not of this room is answered with [`KILL_PROCESS`].
pub fn answer(program: &[Instruction], arch: u32, number: u32, args: [u64; 6]) -> u32 {
    let mut words = vec![number, arch, 0, 0];
    for arg in args {
        words.extend([arg as u32, (arg >> 32) as u32]);
    }
    let (mut a, mut at) = (0u32, 0usize);
    while let Some(i) = program.get(at) {
        at += 1;
        let test = match i.code {
            LOAD => {
                a = words.get(i.k as usize / 4).copied().unwrap_or(0);
                continue;
            }
            AND => {
                a &= i.k;
                continue;
            }
            JUMP => {
                at += i.k as usize;
                continue;
            }
            RETURN => return i.k,
            EQUAL => a == i.k,
            GREATER => a > i.k,
            GREATER_OR_EQUAL => a >= i.k,
            _ => return KILL_PROCESS,
        };
        at += usize::from(if test { i.yes } else { i.no });
    }
    KILL_PROCESS
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO: u32 = ERRNO | 1;

    fn condition(index: u8, operator: Operator, value: u64, narrow: bool) -> Condition {
        Condition { index, operator, value, second: value & 0xff, narrow }
    }

    /// What a condition says, without a program.
    fn holds(condition: &Condition, args: &[u64; 6]) -> bool {
        let cut = |value: u64| if condition.narrow { value & 0xffff_ffff } else { value };
        let arg = cut(args[usize::from(condition.index)]);
        let (value, second) = (cut(condition.value), cut(condition.second));
        match condition.operator {
            Operator::Equal => arg == value,
            Operator::NotEqual => arg != value,
            Operator::Less => arg < value,
            Operator::LessOrEqual => arg <= value,
            Operator::Greater => arg > value,
            Operator::GreaterOrEqual => arg >= value,
            Operator::Masked => arg & value == second & value,
        }
    }

    fn wanted(intervals: &Intervals, number: u32, args: &[u64; 6]) -> u32 {
        let found = intervals.iter().rev().find(|(first, _)| *first <= number);
        match found.map(|(_, outcome)| outcome) {
            Some(Outcome::Action(action)) => *action,
            Some(Outcome::Compare(rules)) => rules
                .iter()
                .find(|(conditions, _)| conditions.iter().all(|one| holds(one, args)))
                .map_or(NO, |(_, action)| *action),
            None => NO,
        }
    }

    /// Numbers that look like nothing, the same each time (xorshift).
    struct Dice(u64);

    impl Dice {
        fn below(&mut self, end: u64) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0 % end
        }

        fn value(&mut self) -> u64 {
            self.below(4) << (32 * self.below(2)) | self.below(3)
        }

        fn outcome(&mut self) -> Outcome {
            const ACTIONS: [u32; 4] = [ALLOW, NO, ERRNO | 38, KILL_PROCESS];
            let action = |dice: &mut Self| ACTIONS[dice.below(4) as usize];
            if self.below(4) > 0 {
                return Outcome::Action(action(self));
            }
            let operators = [
                Operator::Equal,
                Operator::Equal,
                Operator::Equal,
                Operator::NotEqual,
                Operator::Less,
                Operator::LessOrEqual,
                Operator::Greater,
                Operator::GreaterOrEqual,
                Operator::Masked,
            ];
            // Many that look alike, so that there is something to share.
            let most = [3, 40, 260][self.below(3) as usize];
            let rules = (0..1 + self.below(most)).map(|_| {
                let conditions = (0..1 + self.below(3)).map(|_| {
                    let operator = operators[self.below(9) as usize];
                    condition(self.below(2) as u8, operator, self.value(), self.below(2) == 0)
                });
                (conditions.collect(), ACTIONS[self.below(2) as usize])
            });
            Outcome::Compare(rules.collect())
        }
    }

    #[test]
    fn a_program_says_what_the_intervals_say() {
        let mut dice = Dice(0x5eed);
        for _ in 0..60 {
            let count = 1 + dice.below(300) as u32;
            let intervals: Intervals = (0..count).map(|at| (at * 2, dice.outcome())).collect();
            let program = assemble(Some(&intervals), None, None, NO);
            for number in 0..count * 2 + 3 {
                for _ in 0..8 {
                    let args = [dice.value(), dice.value(), 0, 0, 0, 0];
                    let given = answer(&program, ARCH_X86_64, number, args);
                    assert_eq!(given, wanted(&intervals, number, &args), "{number} {args:?}");
                }
            }
            let foreign = answer(&program, ARCH_I386, 0, [0; 6]);
            assert_eq!(foreign, KILL_PROCESS);
            assert_eq!(answer(&program, ARCH_X86_64, X32_BIT, [0; 6]), KILL_PROCESS);
        }
    }

    #[test]
    fn what_leaves_and_comparisons_have_in_common_is_there_once() {
        let actions: Intervals = (0..200)
            .map(|at| (at, Outcome::Action(if at % 2 == 0 { ALLOW } else { NO })))
            .collect();
        // A jump between two neighbours, and two returns.
        assert_eq!(tree(&actions, NO).len(), 199 + 2);
        let one_of = |count| {
            let rule = |value| (vec![condition(1, Operator::Equal, value, false)], ALLOW);
            leaf(&Outcome::Compare((0..count).map(rule).collect()), NO).len()
        };
        assert_eq!(one_of(20) - one_of(10), 10, "one instruction a value");
    }
}

//! Rules by name: Docker's JSON and OCI's structure in one form.

use knarr_sys::seccomp::{ALLOW, Condition, ERRNO, KILL_PROCESS, Operator};
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompOperator, LinuxSyscall,
};
use serde::Deserialize;

use crate::{Error, Failure};

/// A way of calling the kernel that a filter speaks of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Abi {
    X86_64,
    X32,
    I386,
}

/// What happens to calls of a name, if all conditions hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) name: String,
    /// SECCOMP_RET_*.
    pub(super) action: u32,
    pub(super) conditions: Vec<Condition>,
}

/// A whole profile for this machine.
///
/// A rule without conditions decides over its name; else the first rule of the
/// name whose conditions hold; else the default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Policy {
    pub(super) default: u32,
    pub(super) abis: Vec<Abi>,
    pub(super) rules: Vec<Rule>,
}

pub(super) const NOTIFY: u32 = 0x7fc0_0000;
pub(super) const EPERM: u32 = 1;
pub(super) const ENOSYS: u32 = 38;

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<u32, Error> {
    let data = errno.unwrap_or(EPERM) & 0xffff;
    Ok(match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => 0,
        LinuxSeccompAction::ScmpActKillProcess => KILL_PROCESS,
        LinuxSeccompAction::ScmpActTrap => 0x0003_0000,
        LinuxSeccompAction::ScmpActErrno => ERRNO | data,
        LinuxSeccompAction::ScmpActTrace => 0x7ff0_0000 | data,
        LinuxSeccompAction::ScmpActLog => 0x7ffc_0000,
        LinuxSeccompAction::ScmpActAllow => ALLOW,
        LinuxSeccompAction::ScmpActNotify => NOTIFY,
    })
}

impl Policy {
    /// From the specification.
    pub(super) fn from_oci(given: &LinuxSeccomp) -> Result<Self, Error> {
        let default = action(given.default_action(), given.default_errno_ret())?;
        if default == NOTIFY {
            // runc's words.
            let text = "SCMP_ACT_NOTIFY cannot be used as default action";
            return Err(Error::new(Failure::InvalidSpec, text));
        }
        let mut abis = Vec::new();
        for arch in given.architectures().iter().flatten() {
            let abi = match arch {
                Arch::ScmpArchNative | Arch::ScmpArchX86_64 => Abi::X86_64,
                Arch::ScmpArchX32 => Abi::X32,
                Arch::ScmpArchX86 => Abi::I386,
                // Of another machine: nothing here can call so.
                _ => continue,
            };
            if !abis.contains(&abi) {
                abis.push(abi);
            }
        }
        // As libseccomp: the native one is always there.
        if !abis.contains(&Abi::X86_64) {
            abis.push(Abi::X86_64);
        }
        let mut rules = Vec::new();
        for syscall in given.syscalls().iter().flatten() {
            add(&mut rules, syscall)?;
        }
        // The descriptor could not be handed over (as runc).
        if rules.iter().any(|rule| rule.action == NOTIFY && rule.name == "write") {
            let text = "SCMP_ACT_NOTIFY cannot be used for the write syscall";
            return Err(Error::new(Failure::InvalidSpec, text));
        }
        Ok(Self { default, abis, rules })
    }
}

fn add(rules: &mut Vec<Rule>, syscall: &LinuxSyscall) -> Result<(), Error> {
    let action = action(syscall.action(), syscall.errno_ret())?;
    let mut conditions = Vec::new();
    for arg in syscall.args().iter().flatten() {
        let index = u8::try_from(arg.index()).ok().filter(|index| *index < 6).ok_or_else(|| {
            let text = format!("seccomp: a system call has no argument {}", arg.index());
            Error::new(Failure::InvalidSpec, text)
        })?;
        let operator = match arg.op() {
            LinuxSeccompOperator::ScmpCmpNe => Operator::NotEqual,
            LinuxSeccompOperator::ScmpCmpLt => Operator::Less,
            LinuxSeccompOperator::ScmpCmpLe => Operator::LessOrEqual,
            LinuxSeccompOperator::ScmpCmpEq => Operator::Equal,
            LinuxSeccompOperator::ScmpCmpGe => Operator::GreaterOrEqual,
            LinuxSeccompOperator::ScmpCmpGt => Operator::Greater,
            LinuxSeccompOperator::ScmpCmpMaskedEq => Operator::Masked,
        };
        let second = arg.value_two().unwrap_or(0);
        conditions.push(Condition { index, operator, value: arg.value(), second, narrow: false });
    }
    // As runc: several comparisons of one argument are alternatives.
    let mut seen = 0u8;
    let alternatives = conditions.iter().any(|condition| {
        let bit = 1 << condition.index;
        let again = seen & bit != 0;
        seen |= bit;
        again
    });
    for name in syscall.names() {
        let mut push = |conditions| rules.push(Rule { name: name.clone(), action, conditions });
        if alternatives {
            conditions.iter().for_each(|condition| push(vec![*condition]));
        } else {
            push(conditions.clone());
        }
    }
    Ok(())
}

/// Docker's form: rules that count under conditions of the process.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Profile {
    default_action: LinuxSeccompAction,
    #[serde(default)]
    default_errno_ret: Option<u32>,
    #[serde(default)]
    arch_map: Vec<ArchMap>,
    syscalls: Vec<ProfileRule>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ArchMap {
    architecture: String,
    #[serde(default)]
    sub_architectures: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
struct ProfileRule {
    #[serde(flatten)]
    rule: LinuxSyscall,
    #[serde(default)]
    includes: Option<Conditional>,
    #[serde(default)]
    excludes: Option<Conditional>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Conditional {
    caps: Vec<oci_spec::runtime::Capability>,
    arches: Vec<String>,
    min_kernel: Option<String>,
}

/// Docker's name of this machine.
const ARCH: &str = "amd64";

impl Profile {
    pub(super) fn parse(text: &str) -> Result<Self, Error> {
        serde_json::from_str(text)
            .map_err(|error| Error::new(Failure::InvalidSpec, format!("seccomp profile: {error}")))
    }

    /// For a process with these capabilities on this kernel.
    pub(super) fn resolve(&self, capabilities: u64, kernel: (u32, u32)) -> Policy {
        let mut abis = vec![Abi::X86_64];
        let here = self.arch_map.iter().find(|map| map.architecture == "SCMP_ARCH_X86_64");
        for sub in here.and_then(|map| map.sub_architectures.as_ref()).into_iter().flatten() {
            match sub.as_str() {
                "SCMP_ARCH_X86" => abis.push(Abi::I386),
                "SCMP_ARCH_X32" => abis.push(Abi::X32),
                _ => {}
            }
        }
        let has = |capability: &oci_spec::runtime::Capability| {
            capabilities & crate::plan::mask_of(&[*capability].into()) != 0
        };
        let mut rules = Vec::new();
        for entry in &self.syscalls {
            // moby `setupSeccomp`: all of what includes name, none of what excludes name.
            let included = entry.includes.as_ref().is_none_or(|wanted| {
                wanted.caps.iter().all(has)
                    && (wanted.arches.is_empty() || wanted.arches.iter().any(|arch| arch == ARCH))
                    && wanted
                        .min_kernel
                        .as_deref()
                        .is_none_or(|text| version(text).is_some_and(|least| least <= kernel))
            });
            let excluded = entry.excludes.as_ref().is_some_and(|unwanted| {
                unwanted.caps.iter().any(has) || unwanted.arches.iter().any(|arch| arch == ARCH)
            });
            if included && !excluded {
                // A rule that we cannot express is one fewer that allows something.
                let _ = add(&mut rules, &entry.rule);
            }
        }
        close_other_doors(&mut rules);
        // A family of 2³² + 38 is larger than 40 for a filter and AF_ALG for the
        // kernel, which takes an int: Docker's own filter can be passed so.
        for rule in rules.iter_mut().filter(|rule| rule.name.starts_with("socket")) {
            rule.conditions.iter_mut().for_each(|condition| condition.narrow = true);
        }
        let default = action(self.default_action, self.default_errno_ret).unwrap_or(KILL_PROCESS);
        Policy { default, abis, rules }
    }
}

/// What the profile narrows for `socket` must hold at the other doors to the same room.
///
/// `socketcall` of i386 takes the family behind a pointer, which no filter can follow, so
/// it is not there at all, as in a kernel without it: i386 has `socket` and the others as
/// calls of their own since Linux 4.3. musl asks for those first. The C library of GNU,
/// where it was built for older kernels (Debian's, and so Steam's), and Go know nothing
/// but `socketcall` on i386 and make no sockets then. moby did the same for
/// CVE-2026-31431, and lets AppArmor or SELinux refuse AF_ALG since; we cannot count on
/// either. `socketpair` makes two of any family before it finds that they are no pair.
fn close_other_doors(rules: &mut Vec<Rule>) {
    if !rules.iter().any(|rule| rule.name == "socketcall") {
        return;
    }
    let narrowed: Vec<Rule> = rules.iter().filter(|rule| rule.name == "socket").cloned().collect();
    if narrowed.is_empty() || narrowed.iter().any(|rule| rule.conditions.is_empty()) {
        return;
    }
    rules.retain(|rule| !matches!(rule.name.as_str(), "socketcall" | "socketpair"));
    rules.extend(narrowed.into_iter().map(|rule| Rule { name: "socketpair".to_owned(), ..rule }));
    let action = ERRNO | ENOSYS;
    rules.push(Rule { name: "socketcall".to_owned(), action, conditions: Vec::new() });
}

/// `6.18.4-x` as `(6, 18)`.
pub(super) fn version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

use knarr_sys::seccomp::{
    ALLOW, ARCH_I386, ARCH_X86_64, Condition, KILL_PROCESS, Operator, answer,
};
use oci_spec::runtime::LinuxSeccomp;
use proptest::prelude::*;

use super::*;
use crate::seccomp::{
    DOCKER, WASM,
    policy::{EPERM, Profile},
};

/// Docker's fourteen capabilities.
const CAPS: u64 = 0xa804_25fb;

/// `struct seccomp_data`.
#[derive(Debug, Clone, Copy)]
struct Call {
    arch: u32,
    number: u32,
    args: [u64; 6],
}

fn run(program: &[Instruction], call: &Call) -> u32 {
    answer(program, call.arch, call.number, call.args)
}

fn holds(condition: &Condition, args: &[u64; 6]) -> bool {
    let mut arg = args[usize::from(condition.index)];
    let mut condition = *condition;
    if condition.narrow {
        (arg, condition.value) = (arg & 0xffff_ffff, condition.value & 0xffff_ffff);
        condition.second &= 0xffff_ffff;
    }
    match condition.operator {
        Operator::Equal => arg == condition.value,
        Operator::NotEqual => arg != condition.value,
        Operator::Less => arg < condition.value,
        Operator::LessOrEqual => arg <= condition.value,
        Operator::Greater => arg > condition.value,
        Operator::GreaterOrEqual => arg >= condition.value,
        Operator::Masked => arg & condition.value == condition.second & condition.value,
    }
}

/// What the policy means, said as plainly as can be.
fn meaning(policy: &Policy, call: &Call) -> u32 {
    let abi = match call.arch {
        ARCH_X86_64 if call.number & X32_BIT == 0 && call.number < X32_BIT => Abi::X86_64,
        ARCH_X86_64 => Abi::X32,
        ARCH_I386 => Abi::I386,
        _ => return KILL_PROCESS,
    };
    if !policy.abis.contains(&abi) {
        return KILL_PROCESS;
    }
    let numbers = policy.rules.iter().map(|rule| (number(&rule.name, abi), rule));
    let mine: Vec<&Rule> = numbers
        .clone()
        .filter(|(number, _)| *number == Some(call.number))
        .map(|(_, rule)| rule)
        .collect();
    if let Some(rule) = mine.iter().find(|rule| rule.conditions.is_empty()) {
        return rule.action;
    }
    let all = |rule: &&&Rule| rule.conditions.iter().all(|one| holds(one, &call.args));
    if let Some(rule) = mine.iter().find(all) {
        return rule.action;
    }
    let newest = numbers.filter_map(|(number, _)| number).max();
    let newer = newest.is_none_or(|newest| call.number > newest);
    match policy.default {
        default if newer && default & 0xffff_0000 == ERRNO => ERRNO | ENOSYS,
        default => default,
    }
}

fn docker(capabilities: u64) -> Policy {
    Profile::parse(DOCKER).expect("vendored").resolve(capabilities, (6, 18))
}

fn call(name: &str, abi: Abi, args: &[u64]) -> Call {
    let mut all = [0; 6];
    all[..args.len()].copy_from_slice(args);
    let arch = if abi == Abi::I386 { ARCH_I386 } else { ARCH_X86_64 };
    Call { arch, number: number(name, abi).unwrap_or_else(|| panic!("{name}")), args: all }
}

#[test]
fn r10_docker_s_profile_denies_what_it_should_on_three_abis() {
    let policy = docker(CAPS);
    assert_eq!(policy.abis, [Abi::X86_64, Abi::I386, Abi::X32]);
    let program = program(&policy);
    assert!(program.len() < 2000, "{}", program.len());
    let (no, nosys) = (ERRNO | EPERM, ERRNO | ENOSYS);
    for abi in [Abi::X86_64, Abi::X32, Abi::I386] {
        for (name, args, wanted) in [
            ("read", &[][..], ALLOW),
            ("openat2", &[], ALLOW),
            ("socket", &[2], ALLOW),
            ("socket", &[38], no), // AF_ALG
            ("socket", &[39], ALLOW),
            ("socket", &[40], no),           // AF_VSOCK
            ("socket", &[1 << 32 | 38], no), // the same for the kernel: its family is an int
            ("socketpair", &[1], ALLOW),
            ("socketpair", &[38], no),
            ("socketpair", &[40], no),
            ("socketpair", &[1 << 32 | 38], no),
            ("io_uring_setup", &[], no),
            ("keyctl", &[], no),
            ("userfaultfd", &[], no),
            ("bpf", &[], no),
            ("perf_event_open", &[], no),
            ("open_by_handle_at", &[], no),
            ("mount", &[], no),
            ("unshare", &[], no),
            ("setns", &[], no),
            ("clone", &[17], ALLOW),
            ("clone", &[0x1000_0000], no), // NEWUSER
            ("clone", &[0x0002_0000], no), // NEWNS
            ("clone3", &[], nosys),
            ("personality", &[0xffff_ffff], ALLOW),
            ("personality", &[0x0040_0000], no),
            ("chroot", &[], ALLOW),
        ] {
            let got = run(&program, &call(name, abi, args));
            assert_eq!(got, wanted, "{name} {args:?} on {abi:?}");
        }
    }
    // The second door to `socket`, whose family is behind a pointer; other calls of that
    // number too, and whoever has every capability.
    for capabilities in [CAPS, u64::MAX >> 23] {
        let program = self::program(&docker(capabilities));
        for first in [0, 1, 2, 8, 20, 1 << 32 | 1] {
            let call = call("socketcall", Abi::I386, &[first, 0xffff_0000]);
            assert_eq!(run(&program, &call), nosys, "socketcall {first}");
        }
    }
    let foreign = Call { arch: 0x4000_0028, number: 1, args: [0; 6] };
    assert_eq!(run(&program, &foreign), KILL_PROCESS);
    let newer = Call { arch: ARCH_X86_64, number: 999, args: [0; 6] };
    assert_eq!(run(&program, &newer), nosys);
}

#[test]
fn r10_a_profile_of_the_user_s_is_followed_as_it_is_written() {
    let given = serde_json::json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
        "syscalls": [
            { "names": ["socketcall", "socketpair"], "action": "SCMP_ACT_ALLOW" },
            { "names": ["socket"], "action": "SCMP_ACT_ALLOW",
              "args": [{ "index": 0, "value": 40, "op": "SCMP_CMP_NE" }] },
        ],
    });
    let given: LinuxSeccomp = serde_json::from_value(given).expect("a profile");
    let program = program(&Policy::from_oci(&given).expect("a policy"));
    assert_eq!(run(&program, &call("socketcall", Abi::I386, &[1])), ALLOW);
    assert_eq!(run(&program, &call("socketpair", Abi::X86_64, &[40])), ALLOW);
    assert_eq!(run(&program, &call("socket", Abi::I386, &[40])), ERRNO | EPERM);
}

#[test]
fn r11_sys_admin_opens_what_docker_opens_for_it() {
    let program = program(&docker(CAPS | 1 << 21));
    for name in ["mount", "unshare", "clone3", "bpf", "setns"] {
        assert_eq!(run(&program, &call(name, Abi::X86_64, &[])), ALLOW, "{name}");
    }
    assert_eq!(run(&program, &call("clone", Abi::X86_64, &[0x1000_0000])), ALLOW);
}

#[test]
fn every_call_of_docker_s_profile_means_what_it_says() {
    for capabilities in [0, CAPS, u64::MAX >> 23] {
        let policy = docker(capabilities);
        let program = program(&policy);
        for arch in [ARCH_X86_64, ARCH_I386, 7] {
            for number in (0..600).chain(X32_BIT..X32_BIT + 600).chain([u32::MAX, 0x8000_0000]) {
                for first in [0, 2, 8, 38, 39, 40, 41, 0x1000_0000, 0x20008, u64::MAX] {
                    let call = Call { arch, number, args: [first, 0, 0, 0, 0, 0] };
                    assert_eq!(run(&program, &call), meaning(&policy, &call), "{call:x?}");
                }
            }
        }
    }
}

#[test]
fn the_wasm_profile_lets_the_host_start_and_nothing_else_be_started() {
    let policy = Profile::parse(WASM).expect("ours").resolve(0, (6, 18));
    let program = program(&policy);
    for name in ["read", "mmap", "futex", "epoll_wait", "openat2", "execveat", "exit_group"] {
        assert_eq!(run(&program, &call(name, Abi::X86_64, &[])), ALLOW, "{name}");
    }
    for name in [
        "execve",
        "ptrace",
        "mount",
        "unshare",
        "setns",
        "bpf",
        "io_uring_setup",
        "fork",
        "vfork",
        "kill",
    ] {
        assert_ne!(run(&program, &call(name, Abi::X86_64, &[])), ALLOW, "{name}");
    }
    // A new process is not a thread.
    assert_ne!(run(&program, &call("clone", Abi::X86_64, &[17])), ALLOW);
    assert_eq!(run(&program, &call("read", Abi::I386, &[])), KILL_PROCESS);
}

fn any_condition() -> impl Strategy<Value = Condition> {
    let value = prop_oneof![
        Just(0u64),
        Just(1),
        Just(u64::MAX),
        Just(1 << 32),
        Just(0xffff_ffff),
        any::<u64>(),
    ];
    let operator = prop_oneof![
        Just(Operator::Equal),
        Just(Operator::NotEqual),
        Just(Operator::Less),
        Just(Operator::LessOrEqual),
        Just(Operator::Greater),
        Just(Operator::GreaterOrEqual),
        Just(Operator::Masked),
    ];
    (0u8..6, operator, value.clone(), value, any::<bool>()).prop_map(
        |(index, operator, value, second, narrow)| Condition {
            index,
            operator,
            value,
            second,
            narrow,
        },
    )
}

fn any_rule() -> impl Strategy<Value = Rule> {
    let name = prop_oneof![
        Just("read"),
        Just("write"),
        Just("open"),
        Just("close"),
        Just("ioctl"),
        Just("clone"),
        Just("socketcall"),
        Just("execveat"),
        Just("nonsense"),
        Just("openat2"),
    ];
    let action = prop_oneof![Just(ALLOW), Just(ERRNO | 5), Just(0x0003_0000)];
    (name, action, prop::collection::vec(any_condition(), 0..4))
        .prop_map(|(name, action, conditions)| Rule { name: name.to_owned(), action, conditions })
}

fn any_policy() -> impl Strategy<Value = Policy> {
    let default = prop_oneof![Just(ALLOW), Just(ERRNO | EPERM), Just(KILL_PROCESS)];
    let abis = prop_oneof![
        Just(vec![Abi::X86_64]),
        Just(vec![Abi::X86_64, Abi::I386]),
        Just(vec![Abi::X86_64, Abi::X32, Abi::I386]),
    ];
    (default, abis, prop::collection::vec(any_rule(), 0..12))
        .prop_map(|(default, abis, rules)| Policy { default, abis, rules })
}

proptest! {
    #[test]
    fn any_policy_means_what_it_says(
        policy in any_policy(),
        near in any::<prop::sample::Index>(),
        arch in prop_oneof![Just(ARCH_X86_64), Just(ARCH_I386), any::<u32>()],
        high in any::<bool>(),
        random in any::<[u64; 6]>(),
    ) {
        let program = program(&policy);
        // Arguments next to what is compared are the interesting ones.
        let values: Vec<u64> = policy
            .rules
            .iter()
            .flat_map(|rule| &rule.conditions)
            .flat_map(|one| [one.value, one.second, one.value.wrapping_add(1), one.value.wrapping_sub(1)])
            .collect();
        let args = if values.is_empty() || high { random } else { [values[near.index(values.len())]; 6] };
        for number in [0, 1, 2, 3, 16, 54, 56, 102, 120, 322, 358, 437, 600] {
            for bit in [0, X32_BIT] {
                let call = Call { arch, number: number | bit, args };
                prop_assert_eq!(run(&program, &call), meaning(&policy, &call), "{:x?}", call);
            }
        }
    }
}

#[test]
fn a_profile_with_thousands_of_comparisons_jumps_far() {
    let one = |value| Rule {
        name: "ioctl".to_owned(),
        action: ALLOW,
        conditions: vec![Condition {
            index: 1,
            operator: Operator::Equal,
            value,
            second: 0,
            narrow: false,
        }],
    };
    let policy = Policy {
        default: ERRNO | EPERM,
        abis: vec![Abi::X86_64, Abi::X32],
        rules: (0..300).map(one).collect(),
    };
    let program = program(&policy);
    for (value, wanted) in [(0, ALLOW), (299, ALLOW), (300, ERRNO | EPERM)] {
        assert_eq!(run(&program, &call("ioctl", Abi::X86_64, &[0, value])), wanted);
        assert_eq!(run(&program, &call("ioctl", Abi::X32, &[0, value])), wanted);
    }
    assert!(compile(&Policy { rules: (0..3000).map(one).collect(), ..policy }).is_err());
}

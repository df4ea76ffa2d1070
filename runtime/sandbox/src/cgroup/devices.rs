//! Which devices a container may use: rules, in v1's words or as an eBPF program.

use std::fmt;

use knarr_sys::{BpfInstruction, read};
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

/// One rule; later ones overrule earlier ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) allow: bool,
    /// `a` for both, `b` or `c`.
    kind: char,
    /// None is any.
    major: Option<u32>,
    minor: Option<u32>,
    access: Access,
}

/// Bits as eBPF has them: 1 mknod, 2 read, 4 write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Access(u32);

const MKNOD: u32 = 1;
const READ: u32 = 2;
const WRITE: u32 = 4;

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.kind == 'a' {
            return write!(f, "a");
        }
        write!(f, "{} ", self.kind)?;
        for (number, end) in [(self.major, ":"), (self.minor, " ")] {
            match number {
                Some(number) => write!(f, "{number}{end}")?,
                None => write!(f, "*{end}")?,
            }
        }
        write!(f, "{}", self.access)
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (bit, letter) in [(READ, "r"), (WRITE, "w"), (MKNOD, "m")] {
            if self.0 & bit != 0 {
                f.write_str(letter)?;
            }
        }
        Ok(())
    }
}

/// What every container may have (runc's `AllowedDevices`): the making of any
/// node, which is inert, and the nodes that the sandbox itself makes.
const DEFAULTS: [(char, Option<u32>, Option<u32>, u32); 11] = [
    ('c', None, None, MKNOD),
    ('b', None, None, MKNOD),
    ('c', Some(1), Some(3), READ | WRITE | MKNOD), // null
    ('c', Some(1), Some(5), READ | WRITE | MKNOD), // zero
    ('c', Some(1), Some(7), READ | WRITE | MKNOD), // full
    ('c', Some(1), Some(8), READ | WRITE | MKNOD), // random
    ('c', Some(1), Some(9), READ | WRITE | MKNOD), // urandom
    ('c', Some(5), Some(0), READ | WRITE | MKNOD), // tty
    ('c', Some(5), Some(1), READ | WRITE | MKNOD), // console
    ('c', Some(5), Some(2), READ | WRITE | MKNOD), // ptmx
    ('c', Some(136), None, READ | WRITE | MKNOD),  // pts
];

/// The rules in force: nothing, what the specification says, the defaults.
pub(super) fn rules(asked: &[LinuxDeviceCgroup]) -> Vec<Rule> {
    let everything = Access(MKNOD | READ | WRITE);
    let mut rules =
        vec![Rule { allow: false, kind: 'a', major: None, minor: None, access: everything }];
    for rule in asked {
        let access = rule.access().as_deref().unwrap_or("rwm").chars().fold(0, |bits, letter| {
            bits | match letter {
                'r' => READ,
                'w' => WRITE,
                'm' => MKNOD,
                _ => 0,
            }
        });
        let number = |number: Option<i64>| number.and_then(|number| u32::try_from(number).ok());
        let (major, minor) = (number(rule.major()), number(rule.minor()));
        let kinds: &[char] = match rule.typ() {
            Some(LinuxDeviceType::B) => &['b'],
            Some(LinuxDeviceType::C | LinuxDeviceType::U) => &['c'],
            Some(LinuxDeviceType::P) => &[],
            // v1 takes `a` only for everything at once.
            _ if major.is_none() && minor.is_none() && access == everything.0 => &['a'],
            _ => &['b', 'c'],
        };
        for kind in kinds {
            let new =
                Rule { allow: rule.allow(), kind: *kind, major, minor, access: Access(access) };
            if new.kind == 'a' {
                rules.clear();
            }
            rules.push(new);
        }
    }
    let open = matches!(rules[..], [Rule { allow: true, kind: 'a', .. }]);
    if !open {
        rules.extend(DEFAULTS.map(|(kind, major, minor, access)| Rule {
            allow: true,
            kind,
            major,
            minor,
            access: Access(access),
        }));
    }
    rules
}

/// What is allowed, as systemd names devices, with the access; none where
/// everything is. What is denied again by a later rule cannot be said there.
pub(crate) fn names(asked: &[LinuxDeviceCgroup]) -> Option<Vec<(String, String)>> {
    let rules = rules(asked);
    if rules.iter().any(|rule| rule.allow && rule.kind == 'a') {
        return None;
    }
    let drivers = read::text("/proc/devices", read::SMALL).unwrap_or_default();
    let allowed = rules.iter().filter(|rule| rule.allow);
    Some(allowed.filter_map(|rule| Some((rule.name(&drivers)?, rule.access.to_string()))).collect())
}

impl Rule {
    /// By number, by driver, or all of the kind (systemd.resource-control(5)).
    fn name(&self, drivers: &str) -> Option<String> {
        let kind = if self.kind == 'b' { "block" } else { "char" };
        match (self.major, self.minor) {
            (Some(major), Some(minor)) => Some(format!("/dev/{kind}/{major}:{minor}")),
            (None, None) => Some(format!("{kind}-*")),
            (Some(major), None) => {
                driver(drivers, self.kind, major).map(|name| format!("{kind}-{name}"))
            }
            (None, Some(_)) => None,
        }
    }
}

/// The name of a driver in `/proc/devices`.
fn driver(drivers: &str, kind: char, major: u32) -> Option<&str> {
    let heading = if kind == 'b' { "Block devices:" } else { "Character devices:" };
    let section = drivers.split("\n\n").find_map(|section| section.strip_prefix(heading))?;
    section.lines().find_map(|line| {
        let (number, name) = line.trim().split_once(' ')?;
        (number.parse() == Ok(major)).then_some(name)
    })
}

/// An eBPF program that answers 1 to allow and 0 to deny: the rules from the
/// last to the first, the first that matches decides.
pub(super) fn compile(rules: &[Rule]) -> Vec<BpfInstruction> {
    const LOAD_WORD: u8 = 0x61; // r = *(u32 *)(r + offset)
    const AND_K: u8 = 0x54; // 32 bit
    const RIGHT_K: u8 = 0x74; // 32 bit
    const MOVE_K: u8 = 0xb7;
    const MOVE_X: u8 = 0xbc; // 32 bit
    const NOT_EQUAL_K: u8 = 0x55;
    const NOT_EQUAL_X: u8 = 0x5d;
    const EXIT: u8 = 0x95;
    let op = |code, to: u8, from: u8, offset, immediate| BpfInstruction {
        code,
        registers: to | from << 4,
        offset,
        immediate,
    };
    // struct bpf_cgroup_dev_ctx { u32 access_type (access << 16 | type); u32 major; u32 minor; }
    let mut program = vec![
        op(LOAD_WORD, 2, 1, 0, 0),
        op(AND_K, 2, 0, 0, 0xffff), // r2: 1 block, 2 character
        op(LOAD_WORD, 3, 1, 0, 0),
        op(RIGHT_K, 3, 0, 0, 16),  // r3: access
        op(LOAD_WORD, 4, 1, 4, 0), // r4: major
        op(LOAD_WORD, 5, 1, 8, 0), // r5: minor
    ];
    let answer = |allow: bool| [op(MOVE_K, 0, 0, 0, i32::from(allow)), op(EXIT, 0, 0, 0, 0)];
    for rule in rules.iter().rev() {
        let mut tests = Vec::new();
        match rule.kind {
            'b' => tests.push(op(NOT_EQUAL_K, 2, 0, 0, 1)),
            'c' => tests.push(op(NOT_EQUAL_K, 2, 0, 0, 2)),
            _ => {}
        }
        if let Some(major) = rule.major {
            tests.push(op(NOT_EQUAL_K, 4, 0, 0, major as i32));
        }
        if let Some(minor) = rule.minor {
            tests.push(op(NOT_EQUAL_K, 5, 0, 0, minor as i32));
        }
        let all = MKNOD | READ | WRITE;
        if rule.access.0 != all {
            tests.push(op(MOVE_X, 1, 3, 0, 0));
            tests.push(op(AND_K, 1, 0, 0, rule.access.0 as i32));
            // Allowed: everything that is asked must be in it. Denied: anything.
            tests.push(if rule.allow {
                op(NOT_EQUAL_X, 1, 3, 0, 0)
            } else {
                op(0x15 /* equal */, 1, 0, 0, 0)
            });
        }
        let length = tests.len() + 2;
        for (at, test) in tests.iter_mut().enumerate() {
            if test.code & 0x07 == 0x05 {
                test.offset = (length - at - 1) as i16;
            }
        }
        let decisive = tests.is_empty();
        program.extend(tests);
        program.extend(answer(rule.allow));
        if decisive {
            return program;
        }
    }
    program.extend(answer(false));
    program
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::LinuxDeviceCgroupBuilder;

    use super::*;

    /// A machine for the few instructions that we use.
    fn run(program: &[BpfInstruction], kind: u32, major: u32, minor: u32, access: u32) -> bool {
        let mut r = [0u32; 11];
        let mut at = 0;
        loop {
            let i = program[at];
            let (to, from) = (usize::from(i.registers & 15), usize::from(i.registers >> 4));
            let mut jump = false;
            match i.code {
                0x61 => r[to] = [access << 16 | kind, major, minor][i.offset as usize / 4],
                0x54 => r[to] &= i.immediate as u32,
                0x74 => r[to] >>= i.immediate,
                0xb7 => r[to] = i.immediate as u32,
                0xbc => r[to] = r[from],
                0x55 => jump = r[to] != i.immediate as u32,
                0x5d => jump = r[to] != r[from],
                0x15 => jump = r[to] == i.immediate as u32,
                0x95 => return r[0] == 1,
                code => panic!("unknown instruction {code:#x}"),
            }
            at += 1 + if jump { i.offset as usize } else { 0 };
        }
    }

    fn rule(
        allow: bool,
        typ: Option<LinuxDeviceType>,
        major: Option<i64>,
        access: &str,
    ) -> LinuxDeviceCgroup {
        let mut builder = LinuxDeviceCgroupBuilder::default().allow(allow).access(access);
        if let Some(typ) = typ {
            builder = builder.typ(typ);
        }
        if let Some(major) = major {
            builder = builder.major(major);
        }
        builder.build().expect("rule")
    }

    #[test]
    fn r12_the_defaults_deny_what_is_not_named() {
        let rules = rules(&[]);
        let words: Vec<String> = rules.iter().map(Rule::to_string).collect();
        assert_eq!(words[0], "a");
        assert!(
            words.contains(&"c 1:3 rwm".to_owned()) && words.contains(&"c 136:* rwm".to_owned())
        );
        let program = compile(&rules);
        for (kind, major, minor, access, allowed) in [
            (2, 1, 3, READ | WRITE, true),
            (2, 1, 1, READ, false), // /dev/mem
            (2, 1, 1, MKNOD, true), // an inert node
            (1, 8, 0, READ, false), // /dev/sda
            (1, 8, 0, READ | MKNOD, false),
            (2, 10, 229, READ, false), // fuse
            (2, 136, 7, READ | WRITE, true),
        ] {
            assert_eq!(
                run(&program, kind, major, minor, access),
                allowed,
                "{kind} {major}:{minor}"
            );
        }
    }

    #[test]
    fn devices_can_be_granted_and_everything_too() {
        let fuse = rules(&[
            rule(false, None, None, "rwm"),
            rule(true, Some(LinuxDeviceType::C), Some(10), "rw"),
        ]);
        let program = compile(&fuse);
        assert!(run(&program, 2, 10, 229, READ | WRITE));
        assert!(!run(&program, 1, 10, 229, READ));
        let all = rules(&[rule(true, None, None, "rwm")]);
        assert_eq!(all.len(), 1);
        assert!(run(&compile(&all), 1, 8, 0, READ | WRITE | MKNOD));
    }

    #[test]
    fn systemd_knows_devices_by_number_and_by_driver() {
        let drivers = "Character devices:\n  1 mem\n136 pts\n\nBlock devices:\n  7 loop\n";
        assert_eq!(driver(drivers, 'c', 136), Some("pts"));
        assert_eq!(driver(drivers, 'b', 7), Some("loop"));
        assert_eq!(driver(drivers, 'b', 1), None);
        let names = names(&[rule(true, Some(LinuxDeviceType::C), Some(10), "r")]).expect("names");
        let has = |name: &str, access: &str| names.contains(&(name.into(), access.into()));
        assert!(has("/dev/char/1:3", "rwm") && has("block-*", "m"), "{names:?}");
        assert_eq!(super::names(&[rule(true, None, None, "rwm")]), None);
    }

    #[test]
    fn the_kernel_accepts_the_program() {
        let program = compile(&rules(&[rule(true, Some(LinuxDeviceType::B), Some(7), "r")]));
        knarr_sys::load_device_filter(&program).expect("verified");
    }
}

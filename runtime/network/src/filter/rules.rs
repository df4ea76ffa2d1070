//! The rule set as data: what each chain does and why.
//!
//! The same values are written to the kernel (`encode`) and shown to people
//! ([`describe`], in the words of nft(8)); a test compares both with what the
//! kernel lists. Rules never change while an engine runs: what changes are the
//! elements of sets and maps.

use std::fmt::{self, Write};

/// A set or map of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Set {
    /// All bridges of ours.
    Bridges,
    /// Those of internal networks.
    Internal,
    /// Pairs of bridges between which packets may pass: each with itself.
    Paths,
    /// Subnets that leave the host under its own address.
    Subnets,
    /// Ports published at one address of the host.
    Published,
    /// Ports published at every address of the host.
    PublishedAny,
}

pub(crate) const SETS: [Set; 6] =
    [Set::Bridges, Set::Internal, Set::Paths, Set::Subnets, Set::Published, Set::PublishedAny];

impl Set {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Bridges => "bridges",
            Self::Internal => "internal",
            Self::Paths => "paths",
            Self::Subnets => "subnets",
            Self::Published => "published",
            Self::PublishedAny => "published_any",
        }
    }

    /// What its keys are.
    pub(crate) fn key(self) -> &'static [Type] {
        match self {
            Self::Bridges | Self::Internal => &[Type::Interface],
            Self::Paths => &[Type::Interface, Type::Interface],
            Self::Subnets => &[Type::Ipv4],
            Self::Published => &[Type::Ipv4, Type::Protocol, Type::Port],
            Self::PublishedAny => &[Type::Protocol, Type::Port],
        }
    }

    /// What a map's values are; empty for a set.
    pub(crate) fn value(self) -> &'static [Type] {
        match self {
            Self::Published | Self::PublishedAny => &[Type::Ipv4, Type::Port],
            _ => &[],
        }
    }

    /// Its elements are ranges.
    pub(crate) fn is_interval(self) -> bool {
        self == Self::Subnets
    }
}

/// A type of nft(8).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Type {
    Ipv4,
    Protocol,
    Port,
    Interface,
}

impl Type {
    fn name(self) -> &'static str {
        match self {
            Self::Ipv4 => "ipv4_addr",
            Self::Protocol => "inet_proto",
            Self::Port => "inet_service",
            Self::Interface => "ifname",
        }
    }
}

/// Where a chain hangs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Chain {
    pub(crate) name: &'static str,
    /// `filter` or `nat`.
    pub(crate) kind: &'static str,
    /// NF_INET_PRE_ROUTING and so on, by number.
    pub(crate) hook: u32,
    pub(crate) priority: i32,
    pub(crate) rules: &'static [Rule],
}

/// One condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Match {
    /// The packet came in (or not) through one of these.
    InputIn(Set, bool),
    /// The packet goes out (or not) through one of these.
    OutputIn(Set, bool),
    /// Where it came in and where it goes out are such a pair.
    Path,
    /// Part of a connection that was allowed, or an error about one.
    Established,
    /// Its destination was rewritten: it came for a published port.
    Forwarded,
    /// It is for an address of this host.
    ToHost,
    /// It is for 127.0.0.0/8.
    ToLoopback,
    /// It is from 127.0.0.0/8.
    FromLoopback,
    /// It is from one of these subnets.
    From(Set),
}

/// What happens to a packet that meets all conditions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    Accept,
    Drop,
    Return,
    /// Its source becomes the host's address.
    Masquerade,
    /// Its destination becomes what the map says for host address and port.
    Forward,
    /// The same by port alone.
    ForwardAny,
}

/// A rule with its reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) matches: &'static [Match],
    pub(crate) action: Action,
    pub(crate) why: &'static str,
}

const fn rule(matches: &'static [Match], action: Action, why: &'static str) -> Rule {
    Rule { matches, action, why }
}

/// All chains.
pub(crate) const CHAINS: [Chain; 6] = [
    Chain {
        name: "raw",
        kind: "filter",
        hook: 0,
        priority: -300,
        rules: &[rule(
            &[Match::InputIn(Set::Bridges, true), Match::ToLoopback],
            Action::Drop,
            "route_localnet is on here: keep the host's loopback out of reach",
        )],
    },
    Chain {
        name: "prerouting",
        kind: "nat",
        hook: 0,
        priority: -100,
        rules: &[
            rule(&[Match::ToLoopback], Action::Return, "only the host itself may say 127.0.0.1"),
            rule(
                &[Match::InputIn(Set::Internal, true)],
                Action::Return,
                "internal networks reach no published port",
            ),
            rule(&[], Action::Forward, "ports published at one address"),
            rule(&[Match::ToHost], Action::ForwardAny, "ports published at every address"),
        ],
    },
    Chain {
        name: "output",
        kind: "nat",
        hook: 3,
        priority: -100,
        rules: &[
            rule(&[], Action::Forward, "the host itself reaches published ports"),
            rule(&[Match::ToHost], Action::ForwardAny, "the same, every address"),
        ],
    },
    Chain {
        name: "postrouting",
        kind: "nat",
        hook: 4,
        priority: 100,
        rules: &[
            rule(
                &[Match::OutputIn(Set::Bridges, false), Match::From(Set::Subnets)],
                Action::Masquerade,
                "outside, containers have the host's address",
            ),
            rule(
                &[Match::OutputIn(Set::Bridges, true), Match::Forwarded, Match::From(Set::Subnets)],
                Action::Masquerade,
                "containers reach published ports of their neighbours: answers come back this way",
            ),
            rule(
                &[Match::OutputIn(Set::Bridges, true), Match::FromLoopback],
                Action::Masquerade,
                "127.0.0.1 means another host inside a container",
            ),
        ],
    },
    Chain {
        name: "forward",
        kind: "filter",
        hook: 2,
        priority: 0,
        rules: &[
            rule(
                &[Match::InputIn(Set::Bridges, false), Match::OutputIn(Set::Bridges, false)],
                Action::Return,
                "not ours",
            ),
            rule(&[Match::Established], Action::Accept, "answers"),
            rule(&[Match::Path], Action::Accept, "within one network"),
            rule(
                &[Match::InputIn(Set::Internal, true)],
                Action::Drop,
                "no way out of internal networks",
            ),
            rule(
                &[Match::OutputIn(Set::Internal, true)],
                Action::Drop,
                "no way into internal networks",
            ),
            rule(
                &[Match::OutputIn(Set::Bridges, true), Match::Forwarded],
                Action::Accept,
                "published ports",
            ),
            rule(
                &[Match::OutputIn(Set::Bridges, true)],
                Action::Drop,
                "nothing else gets in: not from other networks, not from outside",
            ),
            rule(&[], Action::Accept, "from a network of ours to the outside"),
        ],
    },
    Chain {
        name: "input",
        kind: "filter",
        hook: 1,
        priority: 0,
        rules: &[
            rule(&[Match::InputIn(Set::Bridges, false)], Action::Return, "not ours"),
            rule(&[Match::Established], Action::Accept, "answers"),
            rule(
                &[Match::InputIn(Set::Internal, true)],
                Action::Drop,
                "internal networks reach no service of the host",
            ),
        ],
    },
];

impl fmt::Display for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let not = |yes: bool| if yes { "" } else { "!= " };
        match self {
            Self::InputIn(set, yes) => write!(f, "iifname {}@{}", not(*yes), set.name()),
            Self::OutputIn(set, yes) => write!(f, "oifname {}@{}", not(*yes), set.name()),
            Self::Path => write!(f, "iifname . oifname @{}", Set::Paths.name()),
            Self::Established => f.write_str("ct state established,related"),
            Self::Forwarded => f.write_str("ct status dnat"),
            Self::ToHost => f.write_str("fib daddr type local"),
            Self::ToLoopback => f.write_str("ip daddr 127.0.0.0/8"),
            Self::FromLoopback => f.write_str("ip saddr 127.0.0.0/8"),
            Self::From(set) => write!(f, "ip saddr @{}", set.name()),
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accept => f.write_str("accept"),
            Self::Drop => f.write_str("drop"),
            Self::Return => f.write_str("return"),
            Self::Masquerade => f.write_str("masquerade"),
            Self::Forward => write!(
                f,
                "dnat ip to ip daddr . meta l4proto . th dport map @{}",
                Set::Published.name()
            ),
            Self::ForwardAny => {
                f.write_str("meta nfproto ipv4 dnat ip to meta l4proto . th dport map @")?;
                f.write_str(Set::PublishedAny.name())
            }
        }
    }
}

/// The rule set of an engine as nft(8) would show it, without elements.
pub fn describe(instance: &str) -> String {
    let mut text = format!("table inet knarr-{instance} {{\n");
    let types = |types: &[Type]| types.iter().map(|t| t.name()).collect::<Vec<_>>().join(" . ");
    for set in SETS {
        let word = if set.value().is_empty() { "set" } else { "map" };
        let _ = write!(text, "\t{word} {} {{\n\t\ttype {}", set.name(), types(set.key()));
        if !set.value().is_empty() {
            let _ = write!(text, " : {}", types(set.value()));
        }
        text.push_str(if set.is_interval() {
            "\n\t\tflags interval\n\t}\n\n"
        } else {
            "\n\t}\n\n"
        });
    }
    for (at, chain) in CHAINS.iter().enumerate() {
        let (hook, priority) = match (chain.hook, chain.priority) {
            (0, -300) => ("prerouting", "raw"),
            (0, _) => ("prerouting", "dstnat"),
            (1, _) => ("input", "filter"),
            (2, _) => ("forward", "filter"),
            (3, _) => ("output", "-100"),
            _ => ("postrouting", "srcnat"),
        };
        let _ = writeln!(
            text,
            "{}\tchain {} {{\n\t\ttype {} hook {hook} priority {priority}; policy accept;",
            if at == 0 { "" } else { "\n" },
            chain.name,
            chain.kind
        );
        for rule in chain.rules {
            text.push_str("\t\t");
            for condition in rule.matches {
                let _ = write!(text, "{condition} ");
            }
            let _ = writeln!(text, "{} comment \"{}\"", rule.action, rule.why);
        }
        text.push_str("\t}\n");
    }
    text.push_str("}\n");
    text
}

//! The rule set as data: what each chain does and why.
//!
//! The same values are written to the kernel (`encode`) and shown to people
//! ([`describe`], in the words of nft(8)); a test compares both with what the
//! kernel lists. Rules never change while an engine runs: what changes are the
//! elements of sets and maps.

use std::fmt::{self, Write};

/// One of our two tables, which have the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    /// What the host routes, answers or sends.
    Inet,
    /// What containers send, before a bridge looks at it.
    Bridge,
}

impl Family {
    fn name(self) -> &'static str {
        match self {
            Self::Inet => "inet",
            Self::Bridge => "bridge",
        }
    }
}

/// A set or map of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Set {
    /// All bridges of ours.
    Bridges,
    /// Those of internal networks.
    Internal,
    /// Those from which no service of the host is reached.
    Closed,
    /// Services of the host that no container reaches: the engine's own.
    Guarded,
    /// Pairs of bridges between which packets may pass: each with itself.
    Paths,
    /// Subnets that leave the host under its own address.
    Subnets,
    /// Ports published at one address of the host.
    Published,
    /// Ports published at every address of the host.
    PublishedAny,
    /// Interfaces whose packets have to have a source of their own.
    Ends,
    /// Interface, hardware address and address that belong together.
    Sources,
}

pub(crate) const SETS: [Set; 10] = [
    Set::Bridges,
    Set::Internal,
    Set::Closed,
    Set::Guarded,
    Set::Paths,
    Set::Subnets,
    Set::Published,
    Set::PublishedAny,
    Set::Ends,
    Set::Sources,
];

impl Set {
    pub(crate) fn family(self) -> Family {
        match self {
            Self::Ends | Self::Sources => Family::Bridge,
            _ => Family::Inet,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Bridges => "bridges",
            Self::Internal => "internal",
            Self::Closed => "closed",
            Self::Guarded => "guarded",
            Self::Paths => "paths",
            Self::Subnets => "subnets",
            Self::Published => "published",
            Self::PublishedAny => "published_any",
            Self::Ends => "ends",
            Self::Sources => "sources",
        }
    }

    /// What its keys are.
    pub(crate) fn key(self) -> &'static [Type] {
        match self {
            Self::Bridges | Self::Internal | Self::Closed | Self::Ends => &[Type::Interface],
            Self::Paths => &[Type::Interface, Type::Interface],
            Self::Subnets => &[Type::Ipv4],
            Self::Published => &[Type::Ipv4, Type::Protocol, Type::Port],
            Self::PublishedAny | Self::Guarded => &[Type::Protocol, Type::Port],
            Self::Sources => &[Type::Interface, Type::Ether, Type::Ipv4],
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
    Ether,
}

impl Type {
    fn name(self) -> &'static str {
        match self {
            Self::Ipv4 => "ipv4_addr",
            Self::Protocol => "inet_proto",
            Self::Port => "inet_service",
            Self::Interface => "ifname",
            Self::Ether => "ether_addr",
        }
    }
}

/// Where a chain hangs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Chain {
    pub(crate) family: Family,
    pub(crate) name: &'static str,
    /// `filter` or `nat`.
    pub(crate) kind: &'static str,
    /// NF_INET_PRE_ROUTING and so on, by number; bridges have the same.
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
    /// It is for one of these services.
    To(Set),
    /// An IPv4 packet from where it says.
    OwnPacket,
    /// A word of ARP that says of its sender what is so.
    OwnWord,
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
pub(crate) const CHAINS: [Chain; 7] = [
    Chain {
        family: Family::Inet,
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
        family: Family::Inet,
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
        family: Family::Inet,
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
        family: Family::Inet,
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
        family: Family::Inet,
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
        family: Family::Inet,
        name: "input",
        kind: "filter",
        hook: 1,
        priority: 0,
        rules: &[
            rule(&[Match::InputIn(Set::Bridges, false)], Action::Return, "not ours"),
            rule(&[Match::Established], Action::Accept, "answers"),
            rule(
                &[Match::InputIn(Set::Closed, true)],
                Action::Drop,
                "internal networks reach no service of the host, nor does any that is closed",
            ),
            rule(
                &[Match::To(Set::Guarded)],
                Action::Drop,
                "whoever reaches the engine's own service is root on the host",
            ),
        ],
    },
    Chain {
        family: Family::Bridge,
        name: "sources",
        kind: "filter",
        hook: 0,
        // Before bridges learn who is where, and before br_netfilter.
        priority: -250,
        rules: &[
            rule(&[Match::InputIn(Set::Ends, false)], Action::Return, "not ours"),
            rule(&[Match::OwnPacket], Action::Accept, "from where it says"),
            rule(&[Match::OwnWord], Action::Accept, "nobody speaks for a neighbour"),
            rule(&[], Action::Drop, "forged, or of a protocol that has no addresses here"),
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
            Self::To(set) => write!(f, "meta l4proto . th dport @{}", set.name()),
            Self::OwnPacket => {
                write!(f, "iifname . ether saddr . ip saddr @{}", Set::Sources.name())
            }
            Self::OwnWord => {
                let set = Set::Sources.name();
                write!(f, "iifname . ether saddr . arp saddr ip @{set} ")?;
                write!(f, "iifname . arp saddr ether . arp saddr ip @{set}")
            }
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

/// The rule set of an engine as nft(8) would show it, without elements: one table
/// for what is routed, one for what bridges pass.
pub fn describe(instance: &str) -> String {
    describe_table(instance, Family::Inet) + &describe_table(instance, Family::Bridge)
}

pub(super) fn describe_table(instance: &str, family: Family) -> String {
    let mut text = format!("table {} knarr-{instance} {{\n", family.name());
    let types = |types: &[Type]| types.iter().map(|t| t.name()).collect::<Vec<_>>().join(" . ");
    for set in SETS.into_iter().filter(|set| set.family() == family) {
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
    let chains = CHAINS.iter().filter(|chain| chain.family == family);
    for (at, chain) in chains.enumerate() {
        let _ = writeln!(
            text,
            "{}\tchain {} {{\n\t\ttype {} {}; policy accept;",
            if at == 0 { "" } else { "\n" },
            chain.name,
            chain.kind,
            place(chain)
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

/// Where a chain hangs, in the words of nft(8).
fn place(chain: &Chain) -> String {
    let (hook, priority) = match (chain.family, chain.hook, chain.priority) {
        (Family::Bridge, _, priority) => ("prerouting", priority.to_string()),
        (_, 0, -300) => ("prerouting", "raw".into()),
        (_, 0, _) => ("prerouting", "dstnat".into()),
        (_, 1, _) => ("input", "filter".into()),
        (_, 2, _) => ("forward", "filter".into()),
        (_, 3, _) => ("output", "-100".into()),
        _ => ("postrouting", "srcnat".into()),
    };
    format!("hook {hook} priority {priority}")
}

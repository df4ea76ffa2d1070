//! nf_tables over nfnetlink: tables, chains, sets, elements and rules as
//! messages (the kernel's `include/uapi/linux/netfilter/nf_tables.h`).
//!
//! Everything in a [`Transaction`] happens at once or not at all.

use std::net::Ipv4Addr;

use knarr_model::{Subnet4, Transport};

use knarr_netlink::{APPEND, CREATE, EXCL, Packet};

use super::rules::{Action, Chain, Family, Match, Rule, Set, Type};

pub(super) const SUBSYSTEM: u16 = 10;
const NFPROTO_INET: u8 = 1;
const NFPROTO_BRIDGE: u8 = 7;
const NFPROTO_IPV4: u8 = 2;

const NEWTABLE: u16 = 0;
const DELTABLE: u16 = 2;
const NEWCHAIN: u16 = 3;
const NEWRULE: u16 = 6;
const NEWSET: u16 = 9;
const NEWSETELEM: u16 = 12;
const DELSETELEM: u16 = 14;

/// The four 16-byte registers begin at 1; they are the sixteen of 4 bytes from 8.
pub(super) const REG_1: u32 = 1;
const REG_2: u32 = 2;
const REG32_00: u32 = 8;
const REG_VERDICT: u32 = 0;

const EXPR_NAME: u16 = 1;
const EXPR_DATA: u16 = 2;
const LIST_ELEM: u16 = 1;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;

/// An element of a set or map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Element<'a> {
    /// Of `bridges` or `internal`.
    Interface(&'a str),
    /// Of `paths`: from and to this one.
    Path(&'a str),
    /// Of `subnets`.
    Subnet(Subnet4),
    /// Of `guarded`, over TCP.
    Service(u16),
    /// Of `sources`.
    Source { end: &'a str, mac: [u8; 6], address: Ipv4Addr },
    /// Of `published` or `published_any`.
    Port { host: Option<Ipv4Addr>, transport: Transport, port: u16, to: (Ipv4Addr, u16) },
}

/// Writes the messages of one transaction on one table.
#[derive(Debug)]
pub(crate) struct Transaction<'a> {
    packet: Packet,
    table: &'a str,
}

impl<'a> Transaction<'a> {
    /// Begins it.
    pub(crate) fn new(table: &'a str) -> Self {
        let mut packet = Packet::new();
        packet.message(0x10, 0, &begin_header());
        Self { packet, table }
    }

    /// Ends it: what goes to the kernel.
    pub(crate) fn finish(mut self) -> Packet {
        // The kernel answers it after the commit, or the first failure instead.
        self.packet.acknowledge();
        self.packet.message(0x11, 0, &begin_header());
        self.packet
    }

    fn message(&mut self, family: Family, kind: u16, flags: u16) -> &mut Packet {
        let family = match family {
            Family::Inet => NFPROTO_INET,
            Family::Bridge => NFPROTO_BRIDGE,
        };
        self.packet.message(SUBSYSTEM << 8 | kind, flags, &[family, 0, 0, 0])
    }

    /// Makes the table; an error where there is one.
    pub(super) fn new_table(&mut self, family: Family) {
        let table = self.table;
        self.message(family, NEWTABLE, CREATE | EXCL).text(1, table);
    }

    /// Makes the table empty, whether or not it was there.
    pub(crate) fn reset_table(&mut self, family: Family) {
        let table = self.table;
        self.delete_table(family);
        self.message(family, NEWTABLE, CREATE).text(1, table);
    }

    /// Deletes the table; content when there is none.
    pub(crate) fn delete_table(&mut self, family: Family) {
        let table = self.table;
        self.message(family, NEWTABLE, CREATE).text(1, table);
        self.message(family, DELTABLE, 0).text(1, table);
    }

    /// Adds a base chain, policy accept: what is not ours is not our business.
    pub(crate) fn chain(&mut self, chain: &Chain) {
        let table = self.table;
        self.message(chain.family, NEWCHAIN, CREATE)
            .text(1, table)
            .text(3, chain.name)
            .nest(4, |packet| {
                packet.be32(1, chain.hook).be32(2, chain.priority as u32);
            })
            .be32(5, 1)
            .text(7, chain.kind);
    }

    /// Adds a set or map. `id` names it to rules of this transaction.
    pub(crate) fn set(&mut self, set: Set, id: u32) {
        let table = self.table;
        let (key, value) = (set.key(), set.value());
        let mut flags = if set.is_interval() { 4 } else { 0 };
        if !value.is_empty() {
            flags |= 8;
        }
        let packet = self
            .message(set.family(), NEWSET, CREATE)
            .text(1, table)
            .text(2, set.name())
            .be32(3, flags)
            .be32(4, type_number(key))
            .be32(5, type_length(key));
        if !value.is_empty() {
            packet.be32(6, type_number(value)).be32(7, type_length(value));
        }
        packet.be32(10, id);
    }

    /// Adds a rule at the end of a chain.
    pub(crate) fn rule(&mut self, chain: &Chain, rule: &Rule) {
        self.expressions(chain, rule.why, |packet| {
            for condition in rule.matches {
                put_match(packet, *condition);
            }
            put_action(packet, rule.action);
        });
    }

    /// Adds a rule of these expressions at the end of a chain.
    pub(super) fn expressions(&mut self, chain: &Chain, why: &str, fill: impl FnOnce(&mut Packet)) {
        let table = self.table;
        self.message(chain.family, NEWRULE, CREATE | APPEND)
            .text(1, table)
            .text(2, chain.name)
            .nest(4, fill)
            .put(7, &comment(why));
    }

    /// Adds or deletes elements of one set.
    pub(crate) fn elements(&mut self, set: Set, elements: &[Element<'_>], add: bool) {
        let table = self.table;
        // An attribute's length has 16 bits.
        for chunk in elements.chunks(400) {
            let (kind, flags) = if add { (NEWSETELEM, CREATE) } else { (DELSETELEM, 0) };
            let packet = self.message(set.family(), kind, flags).text(1, table).text(2, set.name());
            packet.nest(3, |packet| {
                for element in chunk {
                    put_element(packet, element);
                }
            });
        }
    }
}

/// nfgenmsg of a batch: the subsystem in the network's order.
pub(super) fn begin_header() -> [u8; 4] {
    let [high, low] = SUBSYSTEM.to_be_bytes();
    [0, 0, high, low]
}

/// User data that nft(8) shows as a comment: type 0, length, text with its NUL.
pub(super) fn comment(text: &str) -> Vec<u8> {
    let mut comment = vec![0, text.len() as u8 + 1];
    comment.extend_from_slice(text.as_bytes());
    comment.push(0);
    comment
}

/// nft(8)'s number for a type; six bits each for a concatenation.
fn type_number(types: &[Type]) -> u32 {
    types.iter().fold(0, |number, kind| {
        number << 6
            | match kind {
                Type::Ipv4 => 7,
                Type::Ether => 9,
                Type::Protocol => 12,
                Type::Port => 13,
                Type::Interface => 41,
            }
    })
}

/// Bytes of a key; each part of a concatenation is padded to four.
fn type_length(types: &[Type]) -> u32 {
    let length = |kind: &Type| match kind {
        Type::Ipv4 => 4,
        Type::Protocol => 1,
        Type::Port => 2,
        Type::Interface => 16,
        Type::Ether => 6,
    };
    match types {
        [one] => length(one),
        several => several.iter().map(|kind| length(kind).next_multiple_of(4)).sum(),
    }
}

fn interface(name: &str) -> [u8; 16] {
    let mut bytes = [0; 16];
    let name = &name.as_bytes()[..name.len().min(15)];
    bytes[..name.len()].copy_from_slice(name);
    bytes
}

pub(super) fn value(packet: &mut Packet, kind: u16, bytes: &[u8]) {
    packet.nest(kind, |packet| {
        packet.put(DATA_VALUE, bytes);
    });
}

fn put_element(packet: &mut Packet, element: &Element<'_>) {
    let mut one = |key: &[u8], data: Option<&[u8]>, end: bool| {
        packet.nest(LIST_ELEM, |packet| {
            if end {
                packet.be32(3, 1);
            }
            value(packet, 1, key);
            if let Some(data) = data {
                value(packet, 2, data);
            }
        });
    };
    match element {
        Element::Interface(name) => one(&interface(name), None, false),
        Element::Path(name) => {
            one(&[interface(name), interface(name)].concat(), None, false);
        }
        Element::Subnet(subnet) => {
            one(&subnet.network().octets(), None, false);
            if let Some(end) = subnet.broadcast().to_bits().checked_add(1) {
                one(&end.to_be_bytes(), None, true);
            }
        }
        Element::Service(port) => one(&service(libc::IPPROTO_TCP, *port), None, false),
        Element::Source { end, mac, address } => {
            let mut key = interface(end).to_vec();
            key.extend_from_slice(mac);
            key.extend_from_slice(&[0, 0]);
            key.extend_from_slice(&address.octets());
            one(&key, None, false);
        }
        Element::Port { host, transport, port, to } => {
            let mut key = Vec::with_capacity(12);
            if let Some(host) = host {
                key.extend_from_slice(&host.octets());
            }
            let protocol = match transport {
                Transport::Tcp => libc::IPPROTO_TCP,
                Transport::Udp => libc::IPPROTO_UDP,
            };
            key.extend_from_slice(&service(protocol, *port));
            let mut data = to.0.octets().to_vec();
            data.extend_from_slice(&to.1.to_be_bytes());
            data.extend_from_slice(&[0, 0]);
            one(&key, Some(&data), false);
        }
    }
}

/// Protocol and port, each padded to four bytes.
fn service(protocol: i32, port: u16) -> [u8; 8] {
    let [high, low] = port.to_be_bytes();
    [protocol as u8, 0, 0, 0, high, low, 0, 0]
}

pub(super) fn expression(packet: &mut Packet, name: &str, fill: impl FnOnce(&mut Packet)) {
    packet.nest(LIST_ELEM, |packet| {
        packet.text(EXPR_NAME, name).nest(EXPR_DATA, fill);
    });
}

/// Loads a fact about the packet: `iifname`, `l4proto`, …
pub(super) fn meta(packet: &mut Packet, key: u32, register: u32) {
    expression(packet, "meta", |packet| {
        packet.be32(1, register).be32(2, key);
    });
}

const META_PROTOCOL: u32 = 1;
const META_IIFNAME: u32 = 6;
const META_OIFNAME: u32 = 7;
const META_NFPROTO: u32 = 15;
pub(super) const META_L4PROTO: u32 = 16;

/// Loads bytes of the packet: base 0 is the link's header, 1 the network's, 2 the transport's.
pub(super) fn payload(packet: &mut Packet, base: u32, offset: u32, length: u32, register: u32) {
    expression(packet, "payload", |packet| {
        packet.be32(1, register).be32(2, base).be32(3, offset).be32(4, length);
    });
}

pub(super) fn compare(packet: &mut Packet, equal: bool, bytes: &[u8]) {
    expression(packet, "cmp", |packet| {
        packet.be32(1, REG_1).be32(2, u32::from(!equal));
        value(packet, 3, bytes);
    });
}

fn mask(packet: &mut Packet, bits: &[u8]) {
    expression(packet, "bitwise", |packet| {
        packet.be32(1, REG_1).be32(2, REG_1).be32(3, bits.len() as u32);
        value(packet, 4, bits);
        value(packet, 5, &vec![0; bits.len()]);
    });
}

/// In the set (or not); a map's value goes to register 1.
fn lookup(packet: &mut Packet, set: Set, yes: bool, register: u32) {
    expression(packet, "lookup", |packet| {
        packet.text(1, set.name()).be32(2, register);
        if !set.value().is_empty() {
            packet.be32(3, REG_1);
        }
        if !yes {
            packet.be32(5, 1);
        }
    });
}

pub(super) fn only_ipv4(packet: &mut Packet) {
    meta(packet, META_NFPROTO, REG_1);
    compare(packet, true, &[NFPROTO_IPV4]);
}

/// Some of these bits of a connection's state (0) or status (2) are set.
fn connection(packet: &mut Packet, key: u32, bits: u32) {
    expression(packet, "ct", |packet| {
        packet.be32(1, REG_1).be32(2, key);
    });
    mask(packet, &bits.to_ne_bytes());
    compare(packet, false, &[0; 4]);
}

fn loopback(packet: &mut Packet, offset: u32) {
    only_ipv4(packet);
    // The first byte is enough for a prefix of eight bits.
    payload(packet, 1, offset, 1, REG_1);
    compare(packet, true, &[127]);
}

pub(super) const SOURCE: u32 = 12;
pub(super) const DESTINATION: u32 = 16;

/// In the set are the interface, the hardware address and the address, which are
/// at these places (base and offset) of the packet.
fn source(packet: &mut Packet, mac: (u32, u32), address: u32) {
    // The key's sixteen bytes of a name, eight of the hardware address, four.
    meta(packet, META_IIFNAME, REG_1);
    payload(packet, mac.0, mac.1, 6, REG_2);
    payload(packet, 1, address, 4, REG32_00 + 6);
    lookup(packet, Set::Sources, true, REG_1);
}

/// A frame of this type (Ethernet's, in its order).
fn only_frame(packet: &mut Packet, kind: i32) {
    meta(packet, META_PROTOCOL, REG_1);
    compare(packet, true, &(kind as u16).to_be_bytes());
}

/// The sender's hardware address in Ethernet's header.
const ETHER_SOURCE: (u32, u32) = (0, 6);
/// The sender's addresses in a word of ARP.
const ARP_ETHER: (u32, u32) = (1, 8);
const ARP_IPV4: u32 = 14;

fn put_match(packet: &mut Packet, condition: Match) {
    match condition {
        Match::InputIn(set, yes) => {
            meta(packet, META_IIFNAME, REG_1);
            lookup(packet, set, yes, REG_1);
        }
        Match::OutputIn(set, yes) => {
            meta(packet, META_OIFNAME, REG_1);
            lookup(packet, set, yes, REG_1);
        }
        Match::Path => {
            meta(packet, META_IIFNAME, REG_1);
            meta(packet, META_OIFNAME, REG_2);
            lookup(packet, Set::Paths, true, REG_1);
        }
        Match::Established => connection(packet, 0, 1 << 1 | 1 << 2),
        Match::Forwarded => connection(packet, 2, 1 << 5),
        Match::ToHost => {
            expression(packet, "fib", |packet| {
                // By destination, the address's type.
                packet.be32(1, REG_1).be32(2, 3).be32(3, 2);
            });
            compare(packet, true, &u32::from(libc::RTN_LOCAL).to_ne_bytes());
        }
        Match::ToLoopback => loopback(packet, DESTINATION),
        Match::FromLoopback => loopback(packet, SOURCE),
        Match::From(set) => {
            only_ipv4(packet);
            payload(packet, 1, SOURCE, 4, REG_1);
            lookup(packet, set, true, REG_1);
        }
        Match::To(set) => {
            meta(packet, META_L4PROTO, REG32_00);
            payload(packet, 2, 2, 2, REG32_00 + 1);
            lookup(packet, set, true, REG_1);
        }
        Match::OwnPacket => {
            only_frame(packet, libc::ETH_P_IP);
            source(packet, ETHER_SOURCE, SOURCE);
        }
        Match::OwnWord => {
            only_frame(packet, libc::ETH_P_ARP);
            source(packet, ETHER_SOURCE, ARP_IPV4);
            source(packet, ARP_ETHER, ARP_IPV4);
        }
    }
}

fn put_action(packet: &mut Packet, action: Action) {
    match action {
        Action::Accept => verdict(packet, 1),
        Action::Drop => verdict(packet, 0),
        Action::Return => verdict(packet, -5),
        Action::Masquerade => expression(packet, "masq", |_| {}),
        Action::Forward => {
            only_ipv4(packet);
            payload(packet, 1, DESTINATION, 4, REG32_00);
            meta(packet, META_L4PROTO, REG32_00 + 1);
            payload(packet, 2, 2, 2, REG32_00 + 2);
            forward(packet, Set::Published);
        }
        Action::ForwardAny => {
            only_ipv4(packet);
            meta(packet, META_L4PROTO, REG32_00);
            payload(packet, 2, 2, 2, REG32_00 + 1);
            forward(packet, Set::PublishedAny);
        }
    }
}

fn forward(packet: &mut Packet, map: Set) {
    lookup(packet, map, true, REG_1);
    expression(packet, "nat", |packet| {
        packet.be32(1, 1).be32(2, u32::from(NFPROTO_IPV4));
        packet.be32(3, REG32_00).be32(5, REG32_00 + 1);
    });
}

pub(super) fn verdict(packet: &mut Packet, code: i32) {
    expression(packet, "immediate", |packet| {
        packet.be32(1, REG_VERDICT).nest(2, |packet| {
            packet.nest(DATA_VERDICT, |packet| {
                packet.be32(1, code as u32);
            });
        });
    });
}

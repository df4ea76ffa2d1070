//! Living beside another engine's packet filter.
//!
//! dockerd and others set the policy of iptables' `FORWARD` to drop, for the
//! whole host: nothing that our own table accepts would get through, and where
//! br_netfilter is on not even from one container to its neighbour. iptables of
//! today keeps that chain in nf_tables (`ip filter`), so we can add what the
//! manuals tell users to add by hand: `-i BRIDGE -j ACCEPT`, `-o BRIDGE -j ACCEPT`.
//! That opens nothing: an accept ends that chain alone, and our own table, with
//! isolation and all, has its say as before.
//!
//! The rules are written as iptables writes them, so that iptables goes on
//! reading its table; ours are known by their comment.
//! Where the policy accepts, or there is no such chain, nothing is touched.

use std::{collections::BTreeSet, io};

use knarr_netlink::{ACK, Attributes, CREATE, DUMP, Packet, Socket, text};

use super::encode::{SUBSYSTEM, begin_header, comment, expression, verdict};

const FAMILY: u8 = 2; // NFPROTO_IPV4
const TABLE: &str = "filter";
const CHAIN: &str = "FORWARD";

const GETCHAIN: u16 = 4;
const NEWRULE: u16 = 6;
const GETRULE: u16 = 7;
const DELRULE: u16 = 8;

/// A rule of ours there, known by its comment.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Guest {
    /// Packets that come from the bridge; else those that go to it.
    inward: bool,
    bridge: String,
}

impl Guest {
    fn comment(&self, table: &str) -> String {
        format!("{table} {} {}", if self.inward { "in" } else { "out" }, self.bridge)
    }
}

/// Whether a notification of the kernel is about that chain's table.
pub(super) fn concerns(payload: &[u8]) -> bool {
    payload.first() == Some(&FAMILY) && super::names_table(TABLE, payload)
}

/// Makes our rules there be those for these bridges.
pub(super) fn ensure<'a>(
    socket: &Socket,
    table: &str,
    bridges: impl Iterator<Item = &'a str>,
) -> io::Result<()> {
    let Some(drops) = drops(socket)? else { return Ok(()) };
    let mut wanted = BTreeSet::new();
    for bridge in bridges.filter(|_| drops) {
        wanted.insert(Guest { inward: true, bridge: bridge.into() });
        wanted.insert(Guest { inward: false, bridge: bridge.into() });
    }
    let found = guests(socket, table)?;
    let comments: BTreeSet<_> = wanted.iter().map(|guest| guest.comment(table)).collect();
    let same = found.len() == comments.len()
        && found.iter().all(|(_, comment)| comments.contains(comment));
    if same {
        return Ok(());
    }
    let mut packet = Packet::new();
    packet.message(0x10, 0, &begin_header());
    for (handle, _) in &found {
        let packet = message(&mut packet, DELRULE, 0);
        packet.text(1, TABLE).text(2, CHAIN).put(3, handle);
    }
    // Without NLM_F_APPEND each goes to the head of the chain.
    for guest in &wanted {
        put_rule(message(&mut packet, NEWRULE, CREATE), guest, table);
    }
    packet.acknowledge();
    packet.message(0x11, 0, &begin_header());
    socket.send(&packet)
}

fn message(packet: &mut Packet, kind: u16, flags: u16) -> &mut Packet {
    packet.message(SUBSYSTEM << 8 | kind, flags, &[FAMILY, 0, 0, 0])
}

/// Whether the chain's policy is to drop; none when there is no such chain.
fn drops(socket: &Socket) -> io::Result<Option<bool>> {
    let mut packet = Packet::new();
    message(&mut packet, GETCHAIN, ACK).text(1, TABLE).text(3, CHAIN);
    let mut policy = None;
    let asked = socket.dump(&packet, |_, payload| {
        let mut attributes = Attributes(payload.get(4..).unwrap_or_default());
        let found = attributes.find(|(kind, _)| *kind == 5);
        policy = Some(found.is_some_and(|(_, policy)| policy == [0; 4]));
    });
    match asked {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        outcome => outcome.map(|()| policy),
    }
}

/// Our rules: handle and comment.
fn guests(socket: &Socket, table: &str) -> io::Result<Vec<(Vec<u8>, String)>> {
    let mut packet = Packet::new();
    message(&mut packet, GETRULE, DUMP).text(1, TABLE).text(2, CHAIN);
    let mut found = Vec::new();
    socket.dump(&packet, |_, payload| {
        let (mut chain, mut handle, mut comment) = (String::new(), None, String::new());
        for (kind, value) in Attributes(payload.get(4..).unwrap_or_default()) {
            match kind {
                2 => chain = text(value),
                3 => handle = Some(value.to_vec()),
                7 => comment = text(value.get(2..).unwrap_or_default()),
                _ => {}
            }
        }
        let ours = comment.strip_prefix(table).is_some_and(|rest| rest.starts_with(' '));
        if let (Some(handle), true, CHAIN) = (handle, ours, chain.as_str()) {
            found.push((handle, comment));
        }
    })?;
    Ok(found)
}

/// As `iptables -I FORWARD -i BRIDGE -j ACCEPT` writes it, counter and all.
fn put_rule(packet: &mut Packet, guest: &Guest, table: &str) {
    let mut name = guest.bridge.as_bytes().to_vec();
    name.push(0);
    packet
        .text(1, TABLE)
        .text(2, CHAIN)
        .nest(4, |packet| {
            expression(packet, "meta", |packet| {
                packet.be32(1, 1).be32(2, if guest.inward { 6 } else { 7 });
            });
            expression(packet, "cmp", |packet| {
                packet.be32(1, 1).be32(2, 0).nest(3, |packet| {
                    packet.put(1, &name);
                });
            });
            expression(packet, "counter", |packet| {
                packet.put(1, &[0; 8]).put(2, &[0; 8]);
            });
            verdict(packet, 1);
        })
        .put(7, &comment(&guest.comment(table)));
}

//! The one table inside a container's namespace: port 53 at the name server's
//! address is really another.
//!
//! The ports are rewritten without connection tracking, there and back: the
//! container's traffic does not pay for it.

use std::{io, net::Ipv4Addr};

use knarr_netlink::{Packet, Socket};

use super::{
    encode::{
        DESTINATION, META_L4PROTO, REG_1, SOURCE, Transaction, compare, expression, meta,
        only_ipv4, payload, value,
    },
    rules::{Chain, Family},
};

const TABLE: &str = "knarr-names";
const CHAIN: Chain = Chain {
    family: Family::Inet,
    name: "output",
    kind: "filter",
    hook: 3,
    priority: -300,
    rules: &[],
};
const PORT: u16 = 53;

/// Turns port 53 at the address to the ports of the name server's sockets.
/// Called inside the namespace; may be repeated.
pub(crate) fn redirect(address: Ipv4Addr, udp: u16, tcp: u16) -> io::Result<()> {
    // Emptying a table waits for all CPUs: not for one that is not there yet.
    match load(false, address, udp, tcp) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => load(true, address, udp, tcp),
        outcome => outcome,
    }
}

fn load(reset: bool, address: Ipv4Addr, udp: u16, tcp: u16) -> io::Result<()> {
    let mut transaction = Transaction::new(TABLE);
    if reset {
        transaction.reset_table(CHAIN.family);
    } else {
        transaction.new_table(CHAIN.family);
    }
    transaction.chain(&CHAIN);
    // Offsets of the checksum in the transport's header.
    for (protocol, port, checksum) in [(libc::IPPROTO_UDP, udp, 6), (libc::IPPROTO_TCP, tcp, 16)] {
        let protocol = protocol as u8;
        transaction.expressions(&CHAIN, "questions to the name server", |packet| {
            ours(packet, address, DESTINATION, protocol);
            rewrite(packet, 2, PORT, port, checksum);
        });
        transaction.expressions(&CHAIN, "its answers", |packet| {
            ours(packet, address, SOURCE, protocol);
            rewrite(packet, 0, port, PORT, checksum);
        });
    }
    Socket::netfilter()?.send(&transaction.finish())
}

/// Has the address at that place of the header, and is of the protocol.
fn ours(packet: &mut Packet, address: Ipv4Addr, place: u32, protocol: u8) {
    only_ipv4(packet);
    payload(packet, 1, place, 4, REG_1);
    compare(packet, true, &address.octets());
    meta(packet, META_L4PROTO, REG_1);
    compare(packet, true, &[protocol]);
}

/// Where the port at that place is `from`, it becomes `to`.
fn rewrite(packet: &mut Packet, place: u32, from: u16, to: u16, checksum: u32) {
    payload(packet, 2, place, 2, REG_1);
    compare(packet, true, &from.to_be_bytes());
    expression(packet, "immediate", |packet| {
        packet.be32(1, REG_1);
        value(packet, 2, &to.to_be_bytes());
    });
    expression(packet, "payload", |packet| {
        packet.be32(5, REG_1).be32(2, 2).be32(3, place).be32(4, 2).be32(6, 1).be32(7, checksum);
    });
}

//! Forgetting UDP flows whose forwarding changed.
//!
//! The kernel decides about a flow once. A UDP client that never falls silent
//! would go on being forwarded to where the port led before (CATALOGUE N12),
//! so flows to a port that is published or withdrawn are forgotten.

use std::io;

use knarr_netlink::{ACK, Attributes, DUMP, Packet, Socket};

const SUBSYSTEM: u16 = 1;
const GET: u16 = 1;
const DELETE: u16 = 2;
const AF_INET: u8 = 2;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_DST_PORT: u16 = 3;

/// Forgets UDP flows to these ports of the host. Takes as long as the table of
/// connections is large: not on the way of a start.
pub(crate) fn forget_udp(ports: &[u16]) -> io::Result<()> {
    let socket = Socket::netfilter()?;
    let mut packet = Packet::new();
    packet.message(SUBSYSTEM << 8 | GET, DUMP, &[AF_INET, 0, 0, 0]);
    let mut flows = Vec::new();
    socket.dump(&packet, |_, payload| {
        let mut attributes = Attributes(payload.get(4..).unwrap_or_default());
        let tuple = attributes.find(|(kind, _)| *kind == CTA_TUPLE_ORIG);
        if let Some((_, tuple)) = tuple
            && udp_port(tuple).is_some_and(|port| ports.contains(&port))
        {
            flows.push(tuple.to_vec());
        }
    })?;
    for flow in flows {
        let mut packet = Packet::new();
        packet.message(SUBSYSTEM << 8 | DELETE, ACK, &[AF_INET, 0, 0, 0]);
        packet.nest(CTA_TUPLE_ORIG, |packet| {
            packet.raw(&flow);
        });
        match socket.send(&packet) {
            // It ended by itself.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            outcome => outcome?,
        }
    }
    Ok(())
}

/// The destination's port, where a flow's tuple is UDP.
fn udp_port(tuple: &[u8]) -> Option<u16> {
    let (_, protocol) = Attributes(tuple).find(|(kind, _)| *kind == CTA_TUPLE_PROTO)?;
    let find = |wanted| Attributes(protocol).find(|(kind, _)| *kind == wanted);
    let (_, number) = find(CTA_PROTO_NUM)?;
    let (_, port) = find(CTA_PROTO_DST_PORT)?;
    let udp = i32::from(*number.first()?) == libc::IPPROTO_UDP;
    udp.then(|| port.first_chunk().map(|port| u16::from_be_bytes(*port)))?
}

//! Links, addresses and routes: bridges on the host, veth pairs into containers.
//!
//! Thin verbs over rtnetlink(7). Those that make something say so when it was
//! there already (`AlreadyExists`); those that delete are content when it is gone.

use std::{io, net::Ipv4Addr, os::fd::AsRawFd};

use knarr_model::Subnet4;
use knarr_netlink::{
    ACK, Attributes, CREATE, DUMP, EXCL, Packet, REPLACE, Socket, number,
    route::{
        IFA_ADDRESS, IFA_BROADCAST, IFA_LOCAL, IFF_UP, IFLA_IFNAME, IFLA_NET_NS_FD, RTM_DELADDR,
        RTM_DELLINK, RTM_GETADDR, RTM_GETLINK, RTM_NEWADDR, RTM_NEWLINK, RTM_SETLINK, link_header,
    },
    text,
};
use rustix::net::{AddressFamily, SocketFlags, SocketType, netdevice::name_to_index, socket_with};

const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;

const IFLA_ADDRESS: u16 = 1;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_PROTINFO: u16 = 12;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const IN6_ADDR_GEN_MODE_NONE: u8 = 1;
const IFLA_EXT_MASK: u16 = 29;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFLA_BRPORT_STATE: u16 = 1;
const IFLA_BRPORT_MODE: u16 = 4;
const IFLA_BRPORT_FLUSH: u16 = 24;
const IFLA_BRPORT_ISOLATED: u16 = 33;

const AF_INET: u8 = 2;
const AF_INET6: u16 = 10;
const AF_BRIDGE: u8 = 7;
const RT_TABLE_MAIN: u8 = 254;

/// A hardware address.
pub(crate) type Mac = [u8; 6];

/// A link, as far as it matters here.
#[derive(Debug, Clone, Default)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    /// `bridge`, `veth`; empty for hardware.
    pub(crate) kind: String,
    pub(crate) alias: String,
    /// Index of the bridge it is a port of; 0 is none.
    pub(crate) master: u32,
}

/// ifaddrmsg.
fn address_header(index: u32, prefix: u8) -> [u8; 8] {
    let mut header = [AF_INET, prefix, 0, 0, 0, 0, 0, 0];
    header[4..].copy_from_slice(&index.to_ne_bytes());
    header
}

/// All links of this thread's namespace.
pub(crate) fn links(socket: &Socket) -> io::Result<Vec<Link>> {
    let mut packet = Packet::new();
    packet.message(RTM_GETLINK, DUMP, &link_header(0, 0));
    let mut links = Vec::new();
    socket.dump(&packet, |_, payload| {
        let Some((header, rest)) = payload.split_first_chunk::<16>() else { return };
        let mut link = Link { index: number(&header[4..]).unwrap_or_default(), ..Link::default() };
        for (kind, value) in Attributes(rest) {
            match kind {
                IFLA_IFNAME => link.name = text(value),
                IFLA_IFALIAS => link.alias = text(value),
                IFLA_MASTER => link.master = number(value).unwrap_or_default(),
                IFLA_LINKINFO => {
                    let info = Attributes(value).find(|(kind, _)| *kind == IFLA_INFO_KIND);
                    link.kind = info.map(|(_, name)| text(name)).unwrap_or_default();
                }
                _ => {}
            }
        }
        links.push(link);
    })?;
    Ok(links)
}

/// The index of an interface of this thread's namespace.
pub(crate) fn index(name: &str) -> io::Result<u32> {
    // Not by if_nametoindex(3): without a descriptor left it says that there is no such one.
    let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    Ok(name_to_index(&socket, name)?)
}

/// Subnets that this host has addresses in or routes to, without the default
/// route, each with the index of its interface.
pub(crate) fn routes(socket: &Socket) -> io::Result<Vec<(Subnet4, u32)>> {
    let mut found = Vec::new();
    let mut packet = Packet::new();
    packet.message(RTM_GETROUTE, DUMP, &[AF_INET, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    socket.dump(&packet, |_, payload| {
        let Some((header, rest)) = payload.split_first_chunk::<12>() else { return };
        let (prefix, table) = (header[1], header[4]);
        let mut destination = None;
        let mut interface = 0;
        for (kind, value) in Attributes(rest) {
            match kind {
                1 => destination = value.first_chunk::<4>().map(|bytes| Ipv4Addr::from(*bytes)),
                4 => interface = number(value).unwrap_or_default(),
                _ => {}
            }
        }
        if let (Some(destination), RT_TABLE_MAIN, 1..) = (destination, table, prefix) {
            found.extend(Subnet4::containing(destination, prefix).map(|net| (net, interface)));
        }
    })?;
    let mut packet = Packet::new();
    packet.message(RTM_GETADDR, DUMP, &address_header(0, 0));
    socket.dump(&packet, |_, payload| {
        let Some((header, rest)) = payload.split_first_chunk::<8>() else { return };
        let interface = number(&header[4..]).unwrap_or_default();
        let address = Attributes(rest).find(|(kind, _)| *kind == IFA_ADDRESS);
        let address = address.and_then(|(_, value)| value.first_chunk::<4>());
        if let (Some(address), AF_INET) = (address, header[0]) {
            let subnet = Subnet4::containing((*address).into(), header[1]);
            found.extend(subnet.map(|net| (net, interface)));
        }
    })?;
    Ok(found)
}

/// Makes a bridge.
pub(crate) fn create_bridge(socket: &Socket, name: &str, mac: Mac, mtu: u32) -> io::Result<()> {
    let mut packet = Packet::new();
    packet
        .message(RTM_NEWLINK, ACK | CREATE | EXCL, &link_header(0, 0))
        .text(IFLA_IFNAME, name)
        .put(IFLA_ADDRESS, &mac)
        .u32(IFLA_MTU, mtu)
        .nest(IFLA_LINKINFO, |packet| {
            packet.text(IFLA_INFO_KIND, "bridge");
        });
    socket.send(&packet)
}

/// Gives a bridge its alias and address, and sets it up. May be repeated.
pub(crate) fn configure_bridge(
    socket: &Socket,
    index: u32,
    alias: &str,
    address: Option<(Ipv4Addr, Subnet4)>,
) -> io::Result<()> {
    let mut packet = Packet::new();
    packet
        .message(RTM_SETLINK, ACK, &link_header(index, IFF_UP))
        .put(IFLA_IFALIAS, alias.as_bytes());
    if let Some((address, subnet)) = address {
        put_address(&mut packet, index, address, subnet);
    }
    socket.send(&packet)
}

fn put_address(packet: &mut Packet, index: u32, address: Ipv4Addr, subnet: Subnet4) {
    let flags = ACK | CREATE | REPLACE;
    packet
        .message(RTM_NEWADDR, flags, &address_header(index, subnet.prefix()))
        .put(IFA_LOCAL, &address.octets())
        .put(IFA_ADDRESS, &address.octets())
        .put(IFA_BROADCAST, &subnet.broadcast().octets());
}

/// The addresses of an interface.
pub(crate) fn addresses(socket: &Socket, index: u32) -> io::Result<Vec<(Ipv4Addr, u8)>> {
    let mut packet = Packet::new();
    packet.message(RTM_GETADDR, DUMP, &address_header(0, 0));
    let mut found = Vec::new();
    socket.dump(&packet, |_, payload| {
        let Some((header, rest)) = payload.split_first_chunk::<8>() else { return };
        let local = Attributes(rest).find(|(kind, _)| *kind == IFA_LOCAL);
        let local = local.and_then(|(_, value)| value.first_chunk::<4>());
        if let (Some(local), true) = (local, number(&header[4..]) == Some(index)) {
            found.push(((*local).into(), header[1]));
        }
    })?;
    Ok(found)
}

/// Takes an address from an interface.
pub(crate) fn remove_address(
    socket: &Socket,
    index: u32,
    (address, prefix): (Ipv4Addr, u8),
) -> io::Result<()> {
    let mut packet = Packet::new();
    packet
        .message(RTM_DELADDR, ACK, &address_header(index, prefix))
        .put(IFA_LOCAL, &address.octets());
    socket.send(&packet)
}

/// A veth pair: one end is a port of a bridge and up, the other is born inside
/// a container's namespace. One message, so there is no moment at which a half
/// of it is anywhere else.
#[derive(Debug)]
pub(crate) struct Veth<'a> {
    /// Name of the host's end.
    pub(crate) host: &'a str,
    /// Name of the container's end.
    pub(crate) container: &'a str,
    pub(crate) mac: Mac,
    /// Index of the bridge.
    pub(crate) bridge: u32,
    pub(crate) mtu: u32,
}

/// Makes the pair. `socket` is the host's, `netns` the container's.
pub(crate) fn create_veth(
    socket: &Socket,
    veth: &Veth<'_>,
    netns: &impl AsRawFd,
) -> io::Result<()> {
    let mut packet = Packet::new();
    packet
        .message(RTM_NEWLINK, ACK | CREATE | EXCL, &link_header(0, IFF_UP))
        .text(IFLA_IFNAME, veth.host)
        .u32(IFLA_MTU, veth.mtu)
        .u32(IFLA_MASTER, veth.bridge)
        .nest(IFLA_LINKINFO, |packet| {
            packet.text(IFLA_INFO_KIND, "veth").nest(IFLA_INFO_DATA, |packet| {
                packet.nest(VETH_INFO_PEER, |packet| {
                    packet
                        .raw(&link_header(0, 0))
                        .text(IFLA_IFNAME, veth.container)
                        .put(IFLA_ADDRESS, &veth.mac)
                        .u32(IFLA_MTU, veth.mtu)
                        .u32(IFLA_NET_NS_FD, netns.as_raw_fd() as u32);
                });
            });
        });
    socket.send(&packet)
}

/// Makes a link a port of a bridge and sets it up.
pub(crate) fn enslave(socket: &Socket, index: u32, bridge: u32) -> io::Result<()> {
    let mut packet = Packet::new();
    packet.message(RTM_SETLINK, ACK, &link_header(index, IFF_UP)).u32(IFLA_MASTER, bridge);
    socket.send(&packet)
}

/// What else a bridge's port may be told.
#[derive(Debug, Clone, Copy)]
pub(crate) enum PortFlag {
    /// It hears no other isolated port (`enable_icc=false`).
    Isolated,
    /// A frame may leave where it came in.
    Hairpin,
}

/// Tells a bridge's port.
pub(crate) fn set_port(socket: &Socket, name: &str, flag: PortFlag) -> io::Result<()> {
    let mut header = link_header(index(name)?, 0);
    header[0] = AF_BRIDGE;
    let flag = match flag {
        PortFlag::Isolated => IFLA_BRPORT_ISOLATED,
        PortFlag::Hairpin => IFLA_BRPORT_MODE,
    };
    let mut packet = Packet::new();
    packet.message(RTM_SETLINK, ACK, &header).nest(IFLA_PROTINFO, |packet| {
        packet.put(flag, &[1]);
    });
    socket.send(&packet)
}

/// Returns when a new port and its bridge pass packets.
///
/// The kernel activates a link whose other end came up from a work queue, and
/// loses what is sent until then; a question for the link makes it do so at
/// once (Linux 6.8, `rtnl_getlink`; earlier ones need a moment of luck).
pub(crate) fn settle(socket: &Socket, port: &str, bridge: u32) -> io::Result<()> {
    let mut packet = Packet::new();
    const SKIP_STATISTICS: u32 = 1 << 3;
    packet
        .message(RTM_GETLINK, ACK, &link_header(0, 0))
        .text(IFLA_IFNAME, port)
        .u32(IFLA_EXT_MASK, SKIP_STATISTICS);
    packet.message(RTM_GETLINK, ACK, &link_header(bridge, 0)).u32(IFLA_EXT_MASK, SKIP_STATISTICS);
    socket.send(&packet)
}

/// Nothing passes a bridge's port any more, and what it was known for is
/// forgotten. Takes microseconds, where deleting a link takes milliseconds;
/// content when the link is gone.
pub(crate) fn silence_port(socket: &Socket, name: &str) -> io::Result<()> {
    let Ok(index) = index(name) else { return Ok(()) };
    let mut header = link_header(index, 0);
    header[0] = AF_BRIDGE;
    let mut packet = Packet::new();
    packet.message(RTM_SETLINK, ACK, &header).nest(IFLA_PROTINFO, |packet| {
        packet.put(IFLA_BRPORT_STATE, &[0]).put(IFLA_BRPORT_FLUSH, &[]);
    });
    match socket.send(&packet) {
        Err(error) if gone(&error) => Ok(()),
        outcome => outcome,
    }
}

fn gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENETDOWN | libc::EINVAL))
}

/// What an interface inside a container gets.
#[derive(Debug)]
pub(crate) struct Inside<'a> {
    pub(crate) name: &'a str,
    /// The kernel has IPv6.
    pub(crate) ipv6: bool,
    pub(crate) address: Ipv4Addr,
    pub(crate) subnet: Subnet4,
    /// Where the default route goes.
    pub(crate) gateway: Option<Ipv4Addr>,
}

/// Sets loopback and the interface up with address and route, in one send.
/// Called inside the namespace.
pub(crate) fn configure_inside(socket: &Socket, inside: &Inside<'_>) -> io::Result<()> {
    let index = index(inside.name)?;
    let mut packet = Packet::new();
    // Loopback is always the first interface of a namespace.
    packet.message(RTM_SETLINK, ACK, &link_header(1, IFF_UP));
    if inside.ipv6 {
        // No link-local IPv6 address; told before the link is up.
        packet.message(RTM_SETLINK, ACK, &link_header(index, 0)).nest(IFLA_AF_SPEC, |packet| {
            packet.nest(AF_INET6, |packet| {
                packet.put(IFLA_INET6_ADDR_GEN_MODE, &[IN6_ADDR_GEN_MODE_NONE]);
            });
        });
    }
    put_address(&mut packet, index, inside.address, inside.subnet);
    packet.message(RTM_SETLINK, ACK, &link_header(index, IFF_UP));
    if let Some(gateway) = inside.gateway {
        put_default(&mut packet, index, gateway);
    }
    socket.send(&packet)
}

/// Adds a default route. Called inside the namespace.
pub(crate) fn default_route(socket: &Socket, name: &str, gateway: Ipv4Addr) -> io::Result<()> {
    let mut packet = Packet::new();
    put_default(&mut packet, index(name)?, gateway);
    socket.send(&packet)
}

fn put_default(packet: &mut Packet, index: u32, gateway: Ipv4Addr) {
    // rtmsg: protocol boot, scope universe, type unicast.
    let header = [AF_INET, 0, 0, 0, RT_TABLE_MAIN, 3, 0, 1, 0, 0, 0, 0];
    packet
        .message(RTM_NEWROUTE, ACK | CREATE | REPLACE, &header)
        .put(5, &gateway.octets()) // RTA_GATEWAY
        .u32(4, index); // RTA_OIF
}

/// Sets loopback up. Called inside the namespace.
pub(crate) fn loopback_up(socket: &Socket) -> io::Result<()> {
    let mut packet = Packet::new();
    packet.message(RTM_SETLINK, ACK, &link_header(1, IFF_UP));
    socket.send(&packet)
}

/// Deletes a link by name; content when there is none.
pub(crate) fn delete(socket: &Socket, name: &str) -> io::Result<()> {
    let mut packet = Packet::new();
    packet.message(RTM_DELLINK, ACK, &link_header(0, 0)).text(IFLA_IFNAME, name);
    match socket.send(&packet) {
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(()),
        outcome => outcome,
    }
}

/// `02:42:` and the address, as Docker does: who gets an address again gets its
/// hardware address again, so nobody's ARP cache is wrong.
pub(crate) fn mac_of(address: Ipv4Addr) -> Mac {
    let [a, b, c, d] = address.octets();
    [0x02, 0x42, a, b, c, d]
}

/// `02:42:ac:11:00:02`.
pub(crate) fn mac_text(mac: Mac) -> String {
    let [a, b, c, d, e, f] = mac;
    format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
}

/// Reads what [`mac_text`] writes, `-` allowed between; no group address.
pub(crate) fn parse_mac(text: &str) -> Option<Mac> {
    let mut parts = text.split([':', '-']);
    let mut mac = [0; 6];
    for byte in &mut mac {
        let part = parts.next().filter(|part| part.len() == 2)?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    (parts.next().is_none() && mac[0] & 1 == 0 && mac != [0; 6]).then_some(mac)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardware_addresses() {
        let mac = mac_of(Ipv4Addr::new(172, 17, 0, 2));
        assert_eq!(mac_text(mac), "02:42:ac:11:00:02");
        assert_eq!(parse_mac("02:42:ac:11:00:02"), Some(mac));
        for bad in [
            "",
            "02:42:ac:11:00",
            "02:42:ac:11:00:02:03",
            "01:00:5e:00:00:01",
            "+2:42:ac:11:00:02x",
        ] {
            assert_eq!(parse_mac(bad), None, "{bad}");
        }
    }
}

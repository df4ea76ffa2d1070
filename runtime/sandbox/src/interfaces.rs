//! Network interfaces of the host's that a container takes: `linux.netDevices`
//! (runtime specification, config-linux.md, "Network Devices").
//!
//! The kernel closes an interface that it moves to another namespace, and forgets its
//! addresses. Those that were given to it for good, and mean the same everywhere, it is
//! given again there, and it is up, as runc has it. If the container does not come to be,
//! the host gets its interfaces back as they were, but for their routes.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd},
    path::{Path, PathBuf},
};

use knarr_netlink::{
    ACK, Attributes, CREATE, DUMP, EXCL, Packet, Socket, number,
    route::{
        IFA_ADDRESS, IFA_BROADCAST, IFA_FLAGS, IFA_LOCAL, IFF_UP, IFLA_IFNAME, IFLA_NET_NS_FD,
        RTM_GETADDR, RTM_GETLINK, RTM_NEWADDR, RTM_SETLINK, link_header,
    },
    text, within,
};
use oci_spec::runtime::Spec;

use crate::{
    Error, Failure,
    plan::{NET, Namespaces},
    rootless,
};

/// What a specification wants moved: names on the host and in the container.
#[derive(Debug)]
pub(crate) struct Interfaces(Vec<(String, String)>);

impl Interfaces {
    /// # Errors
    /// Those of runc's `validate.netdevices`, in its words.
    pub(crate) fn of(spec: &Spec, namespaces: &Namespaces) -> Result<Self, Error> {
        let wanted = spec.linux().as_ref().and_then(|linux| linux.net_devices().as_ref());
        let Some(wanted) = wanted.filter(|wanted| !wanted.is_empty()) else {
            return Ok(Self(Vec::new()));
        };
        let bad = |text: String| Error::new(Failure::InvalidSpec, text);
        if !namespaces.has(NET) {
            return Err(bad("unable to move network devices without a NET namespace".to_owned()));
        }
        if rootless::contained() {
            let text = "network devices are not supported for rootless containers";
            return Err(bad(text.to_owned()));
        }
        let mut moves = Vec::new();
        for (from, device) in wanted {
            let to = device.name().as_ref().filter(|name| !name.is_empty()).unwrap_or(from);
            if let Some(name) = [from, to].into_iter().find(|name| !is_name(name)) {
                return Err(bad(format!("invalid network device name {name:?}")));
            }
            moves.push((from.clone(), to.clone()));
        }
        moves.sort();
        Ok(Self(moves))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Moves them to where the first process of a container is.
    pub(crate) fn take(&self, namespaces: &Namespaces, pid: u32) -> Result<Option<Taken>, Error> {
        if self.is_empty() {
            return Ok(None);
        }
        let joined = namespaces.joined.iter().find(|(kind, _)| *kind == NET);
        let path = match joined {
            Some((_, path)) => path.clone(),
            None => PathBuf::from(format!("/proc/{pid}/ns/net")),
        };
        let mut taken = Taken::none(&path)
            .map_err(|error| Error::system(format_args!("open {}", path.display()), error))?;
        for (from, to) in &self.0 {
            taken.take(from, to)?;
        }
        Ok(Some(taken))
    }
}

/// `dev_valid_name` of the kernel; a percent sign would make a pattern of it.
fn is_name(name: &str) -> bool {
    (1..16).contains(&name.len())
        && !matches!(name, "." | "..")
        && !name
            .contains(|letter: char| matches!(letter, '/' | ':' | '%') || letter.is_whitespace())
}

/// Interfaces that a container has got. Dropped, it gives them back.
#[derive(Debug)]
pub(crate) struct Taken {
    /// Sockets on the host and in the container, and the namespaces of both.
    host: (Socket, File),
    inside: (Socket, File),
    /// As they were on the host, and what they are called in the container.
    interfaces: Vec<(Interface, String)>,
}

impl Taken {
    fn none(path: &Path) -> io::Result<Self> {
        let namespace = File::open(path)?;
        let socket = within(&namespace, Socket::route)?;
        let host = (Socket::route()?, File::open("/proc/thread-self/ns/net")?);
        Ok(Self { host, inside: (socket, namespace), interfaces: Vec::new() })
    }

    fn take(&mut self, from: &str, to: &str) -> Result<(), Error> {
        let failed = |error| Error::system(format_args!("network device {from}"), error);
        let mut found = Interface::find(&self.host.0, from).map_err(failed)?.ok_or_else(|| {
            // runc's words.
            let text = format!("link not found for interface {from} on runtime namespace");
            Error::new(Failure::InvalidSpec, text)
        })?;
        if Interface::find(&self.inside.0, to).map_err(failed)?.is_some() {
            let text = format!("network device {from}: the container has a {to} already");
            return Err(Error::new(Failure::InvalidSpec, text));
        }
        found.addresses = Address::all(&self.host.0, found.index).map_err(failed)?;
        self.interfaces.push((found, to.to_owned()));
        let (interface, _) = &self.interfaces[self.interfaces.len() - 1];
        interface.carry(&self.host.0, &self.inside, to, true).map_err(failed)
    }

    /// They are the container's.
    pub(crate) fn keep(mut self) {
        self.interfaces.clear();
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        for (mut before, name) in std::mem::take(&mut self.interfaces).into_iter().rev() {
            if let Ok(Some(now)) = Interface::find(&self.inside.0, &name) {
                before.index = now.index;
                let _ = before.carry(&self.inside.0, &self.host, &before.name, before.up);
            }
        }
    }
}

/// One that there is.
#[derive(Debug, Default)]
struct Interface {
    name: String,
    index: u32,
    up: bool,
    addresses: Vec<Address>,
}

/// An address as rtnetlink has it.
#[derive(Debug)]
struct Address {
    family: u8,
    prefix: u8,
    /// IFA_ADDRESS, IFA_LOCAL, IFA_BROADCAST.
    attributes: Vec<(u16, Vec<u8>)>,
}

impl Interface {
    /// The one of this name where the socket is, without its addresses.
    fn find(socket: &Socket, name: &str) -> io::Result<Option<Self>> {
        let mut found = None;
        let mut packet = Packet::new();
        packet.message(RTM_GETLINK, DUMP, &link_header(0, 0));
        socket.dump(&packet, |_, payload| {
            let Some((header, rest)) = payload.split_first_chunk::<16>() else { return };
            let mut names = Attributes(rest).filter(|(kind, _)| *kind == IFLA_IFNAME);
            if names.any(|(_, value)| text(value) == name) {
                let index = number(&header[4..]).unwrap_or_default();
                let up = number(&header[8..]).unwrap_or_default() & IFF_UP != 0;
                found = Some(Self { name: name.to_owned(), index, up, addresses: Vec::new() });
            }
        })?;
        Ok(found)
    }

    /// Moves it, and gives it its addresses again.
    fn carry(
        &self,
        from: &Socket,
        (to, namespace): &(Socket, File),
        name: &str,
        up: bool,
    ) -> io::Result<()> {
        let mut packet = Packet::new();
        packet
            .message(RTM_SETLINK, ACK, &link_header(self.index, 0))
            .text(IFLA_IFNAME, name)
            .u32(IFLA_NET_NS_FD, namespace.as_fd().as_raw_fd() as u32);
        from.send(&packet)?;
        // Its number may be another there.
        let index = Self::find(to, name)?.ok_or(io::ErrorKind::NotFound)?.index;
        let mut packet = Packet::new();
        for address in &self.addresses {
            packet.message(RTM_NEWADDR, ACK | CREATE | EXCL, &address.header(index));
            for (kind, value) in &address.attributes {
                packet.put(*kind, value);
            }
        }
        let flags = if up { IFF_UP } else { 0 };
        packet.message(RTM_SETLINK, ACK, &link_header(index, flags));
        to.send(&packet)
    }
}

impl Address {
    /// Those of an interface that go along.
    fn all(socket: &Socket, index: u32) -> io::Result<Vec<Self>> {
        let mut found = Vec::new();
        let mut packet = Packet::new();
        packet.message(RTM_GETADDR, DUMP, &[0; 8]);
        socket.dump(&packet, |_, payload| {
            let Some((header, rest)) = payload.split_first_chunk::<8>() else { return };
            if number(&header[4..]) == Some(index) {
                found.extend(Self::of(header, rest));
            }
        })?;
        Ok(found)
    }

    /// None where it was found out rather than given, or means something on its link only.
    fn of(header: &[u8; 8], rest: &[u8]) -> Option<Self> {
        const PERMANENT: u32 = 0x80;
        const UNIVERSE: u8 = 0;
        let &[family, prefix, few, scope, ..] = header;
        let many = Attributes(rest).find(|(kind, _)| *kind == IFA_FLAGS);
        let flags = many.and_then(|(_, value)| number(value)).unwrap_or(few.into());
        if flags & PERMANENT == 0 || scope != UNIVERSE {
            return None;
        }
        let attributes = Attributes(rest)
            .filter(|(kind, _)| matches!(*kind, IFA_ADDRESS | IFA_LOCAL | IFA_BROADCAST))
            .map(|(kind, value)| (kind, value.to_owned()))
            .collect();
        Some(Self { family, prefix, attributes })
    }

    /// ifaddrmsg.
    fn header(&self, index: u32) -> [u8; 8] {
        let mut header = [self.family, self.prefix, 0, 0, 0, 0, 0, 0];
        header[4..].copy_from_slice(&index.to_ne_bytes());
        header
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_kernel_s() {
        for good in ["eth0", "a", "fifteen-letters", "ünïx"] {
            assert!(is_name(good), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "a:1", "eth%d", "a b", "a\tb", "sixteen-letters!"] {
            assert!(!is_name(bad), "{bad}");
        }
    }

    #[test]
    fn only_addresses_that_were_given_for_good_go_along() {
        let mut packet = Packet::new();
        packet.message(RTM_NEWADDR, 0, &[]).put(IFA_LOCAL, &[10, 0, 0, 1]).text(3, "eth0");
        let local = &packet.bytes()[16..];
        let address = Address::of(&[2, 24, 0x80, 0, 3, 0, 0, 0], local).expect("a lasting one");
        assert_eq!(address.header(7), [2, 24, 0, 0, 7, 0, 0, 0]);
        assert_eq!(address.attributes, [(IFA_LOCAL, vec![10, 0, 0, 1])]);
        assert!(Address::of(&[2, 24, 0, 0, 3, 0, 0, 0], local).is_none(), "a passing one");
        assert!(Address::of(&[2, 24, 0x80, 253, 3, 0, 0, 0], local).is_none(), "its link's");
    }
}

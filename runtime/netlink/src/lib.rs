//! Netlink: messages written and read by hand, over a blocking socket.
//!
//! One writer serves both families that are spoken here, rtnetlink(7) and
//! nfnetlink. A [`Packet`] holds one or more messages that go to the kernel in
//! one send; [`Socket::send`] waits for the answer to each that asked for one.
//! A socket belongs to the network namespace of the thread that opens it: [`within`]
//! opens it in another's.
//!
//! **How it fails.** With the kernel's errno of the first message that failed.
//! A kernel that does not answer within seconds is `TimedOut`, never a hang.

#![forbid(unsafe_code)]

mod netns;
pub mod route;

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

pub use netns::within;
use nix::sys::{
    socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, getsockname,
        recv, send, setsockopt, socket, sockopt,
    },
    time::{TimeVal, TimeValLike},
};

/// nlmsghdr: length, type, flags, sequence, port.
const HEADER: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

/// `NLM_F_REQUEST`, on every message.
const REQUEST: u16 = 0x1;
/// `NLM_F_ACK`: the kernel answers success too.
pub const ACK: u16 = 0x4;
/// `NLM_F_DUMP`.
pub const DUMP: u16 = 0x300;
/// `NLM_F_REPLACE`.
pub const REPLACE: u16 = 0x100;
/// `NLM_F_EXCL`.
pub const EXCL: u16 = 0x200;
/// `NLM_F_CREATE`.
pub const CREATE: u16 = 0x400;
/// `NLM_F_APPEND`.
pub const APPEND: u16 = 0x800;

/// `NLA_F_NESTED`.
const NESTED: u16 = 0x8000;

/// Messages to the kernel that go in one send.
#[derive(Debug, Default)]
pub struct Packet {
    bytes: Vec<u8>,
    /// Where the message being written starts.
    start: usize,
    sequence: u32,
    /// Sequence numbers of messages that the kernel will answer.
    acks: Vec<u32>,
}

impl Packet {
    /// One without messages.
    pub fn new() -> Self {
        Self { bytes: Vec::with_capacity(512), ..Self::default() }
    }

    /// Begins a message; what is put next belongs to it.
    pub fn message(&mut self, kind: u16, flags: u16, header: &[u8]) -> &mut Self {
        self.start = self.bytes.len();
        self.sequence += 1;
        if flags & ACK != 0 {
            self.acks.push(self.sequence);
        }
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&(flags | REQUEST).to_ne_bytes());
        self.bytes.extend_from_slice(&self.sequence.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        self.raw(header)
    }

    /// Bytes as they are, padded to four: the fixed header of a message or of a nest.
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(bytes);
        let padded = self.bytes.len().next_multiple_of(4);
        self.bytes.resize(padded, 0);
        let length = (self.bytes.len() - self.start) as u32;
        self.bytes[self.start..self.start + 4].copy_from_slice(&length.to_ne_bytes());
        self
    }

    /// An attribute.
    pub fn put(&mut self, kind: u16, payload: &[u8]) -> &mut Self {
        let length = (payload.len() + 4) as u16;
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.raw(payload)
    }

    /// A number as rtnetlink writes it, in the host's order.
    pub fn u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.put(kind, &value.to_ne_bytes())
    }

    /// A number as nfnetlink writes it, in the network's order.
    pub fn be32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.put(kind, &value.to_be_bytes())
    }

    /// Text with its NUL.
    pub fn text(&mut self, kind: u16, text: &str) -> &mut Self {
        let mut bytes = Vec::with_capacity(text.len() + 1);
        bytes.extend_from_slice(text.as_bytes());
        bytes.push(0);
        self.put(kind, &bytes)
    }

    /// An attribute that holds attributes.
    pub fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) -> &mut Self {
        let at = self.bytes.len();
        self.put(kind | NESTED, &[]);
        fill(self);
        let length = (self.bytes.len() - at) as u16;
        self.bytes[at..at + 2].copy_from_slice(&length.to_ne_bytes());
        self
    }

    /// Asks for an answer to the message written last.
    pub fn acknowledge(&mut self) {
        if self.start > 0 {
            self.bytes[self.start + 6] |= ACK as u8;
            self.acks.push(self.sequence);
        }
    }

    /// What goes over the wire.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// A netlink socket in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
}

impl Socket {
    /// rtnetlink: links, addresses, routes.
    pub fn route() -> io::Result<Self> {
        Self::open(SockProtocol::NetlinkRoute)
    }

    /// nfnetlink: the packet filter.
    pub fn netfilter() -> io::Result<Self> {
        Self::open(SockProtocol::NetlinkNetFilter)
    }

    fn open(protocol: SockProtocol) -> io::Result<Self> {
        let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::seconds(10))?;
        Ok(Self { fd })
    }

    /// Takes a larger packet than the default 208 KiB.
    pub fn enlarge(&self, bytes: usize) -> io::Result<()> {
        Ok(setsockopt(&self.fd, sockopt::SndBufForce, &bytes)?)
    }

    /// Hears what happens, by the groups' bit mask.
    pub fn subscribe(&self, groups: u32) -> io::Result<()> {
        Ok(bind(self.fd.as_raw_fd(), &NetlinkAddr::new(0, groups))?)
    }

    /// The kernel's number for this socket.
    pub fn port(&self) -> io::Result<u32> {
        Ok(getsockname::<NetlinkAddr>(self.fd.as_raw_fd())?.pid())
    }

    /// Sends all messages and waits for the answers they asked for.
    pub fn send(&self, packet: &Packet) -> io::Result<()> {
        let mut buffer = buffer();
        // What is left of an answer given up on is not about this packet.
        while self.try_receive(&mut buffer)?.is_some() {}
        send(self.fd.as_raw_fd(), &packet.bytes, MsgFlags::empty())?;
        let mut waiting = packet.acks.len();
        let mut first = None;
        while waiting > 0 {
            for message in Messages(self.receive(&mut buffer)?) {
                if message.kind != NLMSG_ERROR {
                    continue;
                }
                waiting = waiting.saturating_sub(1);
                if let Err(error) = verdict(message.payload) {
                    first.get_or_insert(error);
                    if !packet.acks.contains(&message.sequence) {
                        // The rest may have been given up with it.
                        waiting = 0;
                    }
                }
            }
        }
        first.map_or(Ok(()), Err)
    }

    /// Sends one dump request and hands each answer to `each`: its type and payload.
    pub fn dump(&self, packet: &Packet, mut each: impl FnMut(u16, &[u8])) -> io::Result<()> {
        let mut buffer = buffer();
        send(self.fd.as_raw_fd(), &packet.bytes, MsgFlags::empty())?;
        loop {
            for message in Messages(self.receive(&mut buffer)?) {
                match message.kind {
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => return verdict(message.payload),
                    kind => each(kind, message.payload),
                }
            }
        }
    }

    /// One datagram of the kernel.
    fn receive<'a>(&self, buffer: &'a mut [u8]) -> io::Result<&'a [u8]> {
        let length = loop {
            match recv(self.fd.as_raw_fd(), buffer, MsgFlags::empty()) {
                Err(nix::errno::Errno::EINTR) => {}
                Err(nix::errno::Errno::EAGAIN) => {
                    return Err(io::Error::new(
                        io::ErrorKind::TimedOut,
                        "no answer from the kernel over netlink",
                    ));
                }
                outcome => break outcome?,
            }
        };
        Ok(&buffer[..length])
    }

    /// Without blocking; none when nothing is there.
    pub fn try_receive<'a>(&self, buffer: &'a mut [u8]) -> io::Result<Option<&'a [u8]>> {
        match recv(self.fd.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(length) => Ok(Some(&buffer[..length])),
            Err(nix::errno::Errno::EAGAIN) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// As large as any datagram that the kernel makes of a dump.
pub fn buffer() -> Vec<u8> {
    vec![0; 32 << 10]
}

/// What an answer says: nlmsgerr begins with the errno, 0 is success.
fn verdict(payload: &[u8]) -> io::Result<()> {
    match payload.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code)) {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(-code)),
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> i32 {
        self.fd.as_raw_fd()
    }
}

/// A message of the kernel.
#[derive(Debug)]
pub struct Message<'a> {
    /// What it is: RTM_*, or a subsystem of nfnetlink and its message.
    pub kind: u16,
    /// The number of the request that it answers.
    pub sequence: u32,
    /// The socket that asked; of a notification, whose change it was.
    pub port: u32,
    /// Behind the netlink header.
    pub payload: &'a [u8],
}

/// The messages in a datagram.
#[derive(Debug)]
pub struct Messages<'a>(pub &'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let header = self.0.get(..HEADER)?;
        let length = u32::from_ne_bytes(*header.first_chunk()?) as usize;
        let message = Message {
            kind: u16::from_ne_bytes([header[4], header[5]]),
            sequence: u32::from_ne_bytes([header[8], header[9], header[10], header[11]]),
            port: u32::from_ne_bytes([header[12], header[13], header[14], header[15]]),
            payload: self.0.get(HEADER..length)?,
        };
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    }
}

/// The attributes behind a fixed header: type without flags, and payload.
#[derive(Debug)]
pub struct Attributes<'a>(pub &'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<(u16, &'a [u8])> {
        let length = usize::from(u16::from_ne_bytes(*self.0.first_chunk()?));
        let kind = u16::from_ne_bytes([*self.0.get(2)?, *self.0.get(3)?]) & 0x3fff;
        let payload = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, payload))
    }
}

/// A number in the host's order, where the payload is one.
pub fn number(payload: &[u8]) -> Option<u32> {
    payload.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

/// Text up to its NUL.
pub fn text(payload: &[u8]) -> String {
    let end = payload.iter().position(|byte| *byte == 0).unwrap_or(payload.len());
    String::from_utf8_lossy(&payload[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_can_be_read() {
        let mut packet = Packet::new();
        packet.message(16, ACK, &[1, 2, 3, 4]).text(3, "eth0").nest(18, |packet| {
            packet.u32(1, 7);
        });
        packet.message(17, 0, &[]);
        let messages: Vec<_> = Messages(packet.bytes()).collect();
        assert_eq!(messages.len(), 2);
        assert_eq!((messages[0].kind, messages[0].sequence), (16, 1));
        let attributes: Vec<_> = Attributes(&messages[0].payload[4..]).collect();
        assert_eq!(text(attributes[0].1), "eth0");
        let (kind, nested) = attributes[1];
        assert_eq!(kind, 18);
        assert_eq!(Attributes(nested).next().map(|(k, p)| (k, number(p))), Some((1, Some(7))));
    }

    #[test]
    fn torn_answers_end_quietly() {
        let mut packet = Packet::new();
        packet.message(16, 0, &[0; 16]).text(3, "some-interface");
        for cut in 0..packet.bytes().len() {
            for message in Messages(&packet.bytes()[..cut]) {
                for _ in Attributes(message.payload) {}
            }
        }
        let zero = [0u8; 64];
        assert_eq!(Messages(&zero).count(), 0);
        assert_eq!(Attributes(&zero).count(), 0);
    }
}

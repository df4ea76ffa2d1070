//! Words of rtnetlink(7) that several rooms use: `linux/rtnetlink.h`, `linux/if_link.h`.

/// Makes or changes a link.
pub const RTM_NEWLINK: u16 = 16;
/// Deletes a link.
pub const RTM_DELLINK: u16 = 17;
/// Asks for links.
pub const RTM_GETLINK: u16 = 18;
/// Changes a link.
pub const RTM_SETLINK: u16 = 19;
/// Adds an address.
pub const RTM_NEWADDR: u16 = 20;
/// Takes an address away.
pub const RTM_DELADDR: u16 = 21;
/// Asks for addresses.
pub const RTM_GETADDR: u16 = 22;

/// A link's name, with its NUL.
pub const IFLA_IFNAME: u16 = 3;
/// The namespace that a link is made in or moved to, by a descriptor of the sender's.
pub const IFLA_NET_NS_FD: u16 = 28;

/// The address itself; of a link between two, that of the other end.
pub const IFA_ADDRESS: u16 = 1;
/// The address of our own end.
pub const IFA_LOCAL: u16 = 2;
/// The address that all in the subnet hear.
pub const IFA_BROADCAST: u16 = 4;
/// More flags than fit in ifaddrmsg.
pub const IFA_FLAGS: u16 = 8;

/// A link that is in use.
pub const IFF_UP: u32 = 1;

/// ifinfomsg: these flags are set, the link's others stay.
pub fn link_header(index: u32, flags: u32) -> [u8; 16] {
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..16].copy_from_slice(&flags.to_ne_bytes());
    header
}

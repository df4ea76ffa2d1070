//! IPv4 subnets in CIDR notation.

use std::{fmt, net::Ipv4Addr, str::FromStr};

use serde::{Deserialize, Serialize};

/// An IPv4 subnet, `172.17.0.0/16`: the host bits are always zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Subnet4 {
    base: u32,
    prefix: u8,
}

/// Why a string is no subnet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid CIDR address: {0}")]
pub struct SubnetError(String);

impl Subnet4 {
    /// The subnet of so many bits that `address` lies in; none above 32 bits.
    pub fn containing(address: Ipv4Addr, prefix: u8) -> Option<Self> {
        (prefix <= 32).then(|| Self { base: address.to_bits() & mask(prefix), prefix })
    }

    /// The lowest address, which names the subnet.
    pub fn network(self) -> Ipv4Addr {
        self.base.into()
    }

    /// The highest address, which means everybody.
    pub fn broadcast(self) -> Ipv4Addr {
        (self.base | !mask(self.prefix)).into()
    }

    /// How many leading bits are fixed.
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// Whether the address lies in it.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        address.to_bits() & mask(self.prefix) == self.base
    }

    /// Whether all of the other lies in it.
    pub fn covers(self, other: Self) -> bool {
        self.prefix <= other.prefix && self.contains(other.network())
    }

    /// Whether any address lies in both.
    pub fn overlaps(self, other: Self) -> bool {
        self.covers(other) || other.covers(self)
    }

    /// The addresses that hosts may have: without the first and the last,
    /// except in the smallest subnets (RFC 3021).
    pub fn hosts(self) -> impl Iterator<Item = Ipv4Addr> + Clone {
        let (low, high) = (self.base, self.broadcast().to_bits());
        let edge = u32::from(self.prefix < 31);
        (low + edge..=high - edge).map(Ipv4Addr::from)
    }

    /// The subnets of `prefix` bits inside it, from the lowest.
    pub fn split(self, prefix: u8) -> impl Iterator<Item = Self> {
        let step = 1u64 << (32 - u32::from(prefix.clamp(self.prefix, 32)));
        let end = u64::from(self.broadcast().to_bits());
        let mut at = Some(u64::from(self.base)).filter(|_| (self.prefix..=32).contains(&prefix));
        std::iter::from_fn(move || {
            let base = at.filter(|base| *base <= end)?;
            at = Some(base + step);
            Some(Self { base: base as u32, prefix })
        })
    }
}

fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

impl FromStr for Subnet4 {
    type Err = SubnetError;

    fn from_str(text: &str) -> Result<Self, SubnetError> {
        let bad = || SubnetError(text.chars().take(80).collect());
        let (address, prefix) = text.split_once('/').ok_or_else(bad)?;
        let address = address.parse().map_err(|_| bad())?;
        let prefix = prefix.parse().map_err(|_| bad())?;
        Self::containing(address, prefix).ok_or_else(bad)
    }
}

impl fmt::Display for Subnet4 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network(), self.prefix)
    }
}

impl fmt::Debug for Subnet4 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl TryFrom<String> for Subnet4 {
    type Error = SubnetError;
    fn try_from(text: String) -> Result<Self, SubnetError> {
        text.parse()
    }
}

impl From<Subnet4> for String {
    fn from(subnet: Subnet4) -> Self {
        subnet.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subnets_mask_split_and_overlap() {
        let net: Subnet4 = "172.17.3.4/16".parse().unwrap();
        assert_eq!(net.to_string(), "172.17.0.0/16");
        assert_eq!(net.broadcast(), Ipv4Addr::new(172, 17, 255, 255));
        assert!(net.overlaps("172.17.9.0/24".parse().unwrap()));
        assert!(net.overlaps("0.0.0.0/0".parse().unwrap()));
        assert!(!net.overlaps("172.18.0.0/16".parse().unwrap()));
        assert_eq!(net.split(20).count(), 16);
        assert_eq!(net.split(8).count(), 0);
        let all: Subnet4 = "0.0.0.0/0".parse().unwrap();
        assert_eq!(all.split(1).last().unwrap().to_string(), "128.0.0.0/1");
        let tiny: Subnet4 = "10.0.0.0/30".parse().unwrap();
        assert_eq!(tiny.hosts().count(), 2);
        for bad in ["", "10.0.0.0", "10.0.0.0/33", "10.0.0/8", "x/8", "10.0.0.0/-1"] {
            assert!(bad.parse::<Subnet4>().is_err(), "{bad}");
        }
    }
}

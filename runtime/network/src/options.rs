//! How the networks of one engine are set up.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
};

use knarr_model::Subnet4;
use rustix::process::{Resource, getrlimit};

use crate::Error;

/// How the networks of one engine are set up.
#[derive(Debug, Clone)]
pub struct Options {
    /// Tells this engine's things on the host from another's: the packet
    /// filter's table is `knarr-<instance>`, bridges carry it as their alias.
    /// Lower-case letters, digits and `-`, at most 32; derive it from the data root.
    pub instance: String,
    /// Interface name of the default network's bridge; `knarr0` unless said.
    /// An engine beside another needs one of its own.
    pub bridge: String,
    /// The default bridge's own address and subnet (`--bip`); from the pools unless said.
    pub bridge_address: Option<(Ipv4Addr, Subnet4)>,
    /// Where subnets of networks come from that ask for none.
    pub pools: Vec<Pool>,
    /// What `host-gateway` means; the default bridge's address unless said.
    pub host_gateway: Option<IpAddr>,
    /// Name servers of all containers that ask for none (`--dns`); the host's unless said.
    pub dns: Vec<IpAddr>,
    /// The host's own resolver configuration.
    pub resolv_conf: PathBuf,
    /// What containers reach on the host itself.
    pub bridge_input: BridgeInput,
    /// Largest packet on the bridges; 1500 unless said.
    pub mtu: u32,
    /// Descriptors that the process may have; its limit as it is unless said.
    /// What strangers can make it open is a part of them.
    pub descriptors: u64,
}

/// What containers reach of the services of the host, at the addresses that the host
/// has on their bridges or elsewhere. Published ports are containers' and not meant;
/// nothing is ever reached from internal networks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum BridgeInput {
    /// Nothing.
    Drop,
    /// All but the engine's own services.
    #[default]
    Guard,
    /// All that listens at such an address, as under Docker.
    Accept,
}

impl std::str::FromStr for BridgeInput {
    type Err = Error;

    fn from_str(word: &str) -> Result<Self, Error> {
        match word {
            "drop" => Ok(Self::Drop),
            "guard" => Ok(Self::Guard),
            "accept" => Ok(Self::Accept),
            _ => Err(Error::Invalid(format!(
                "invalid bridge-input {word:?}: want drop, guard or accept"
            ))),
        }
    }
}

/// Addresses that networks are cut from: blocks of `size` bits out of `base`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pool {
    /// All of them.
    pub base: Subnet4,
    /// Prefix length of one network.
    pub size: u8,
}

impl Options {
    /// The instance of the engine with the default data root.
    pub const MAIN: &str = "main";

    /// Whether this is the host's main engine.
    pub fn is_main(&self) -> bool {
        self.instance == Self::MAIN
    }

    /// Docker's pools: 172.17 to 172.31 as /16, then 192.168 as /20.
    pub fn new(instance: impl Into<String>) -> Self {
        let pool = |address: [u8; 4], prefix, size| {
            Subnet4::containing(address.into(), prefix).map(|base| Pool { base, size })
        };
        let mut pools: Vec<Pool> = (17..=31).filter_map(|n| pool([172, n, 0, 0], 16, 16)).collect();
        pools.extend(pool([192, 168, 0, 0], 16, 20));
        Self {
            instance: instance.into(),
            bridge: "knarr0".into(),
            bridge_address: None,
            pools,
            host_gateway: None,
            dns: Vec::new(),
            resolv_conf: "/etc/resolv.conf".into(),
            bridge_input: BridgeInput::default(),
            mtu: 1500,
            descriptors: getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX),
        }
    }
}

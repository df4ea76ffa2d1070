//! Choosing subnets and addresses: pure decisions over what is taken.

use std::net::Ipv4Addr;

use knarr_model::Subnet4;
use knarr_state::networks::NetworkRow;

use crate::{Error, NetworkSpec, Pool};

/// The first subnet of the pools that overlaps with nothing taken.
pub(crate) fn free_subnet(pools: &[Pool], taken: &[Subnet4]) -> Option<Subnet4> {
    pools
        .iter()
        .flat_map(|pool| pool.base.split(pool.size))
        .find(|subnet| taken.iter().all(|other| !subnet.overlaps(*other)))
}

/// What a network's addresses are to be, checked against each other.
pub(crate) fn check(spec: &NetworkSpec, subnet: Subnet4) -> Result<Ipv4Addr, Error> {
    if !(8..=30).contains(&subnet.prefix()) {
        return Err(Error::Invalid(format!("invalid subnet {subnet}: want a prefix from 8 to 30")));
    }
    let network = subnet.network();
    if network.is_multicast() || network.is_loopback() || network.is_unspecified() {
        return Err(Error::Invalid(format!("invalid subnet {subnet}: not for hosts")));
    }
    if let Some(range) = spec.ip_range
        && !subnet.covers(range)
    {
        return Err(Error::Invalid(format!("invalid ip-range {range}: not in subnet {subnet}")));
    }
    let inside = |what: &str, address: Ipv4Addr| {
        let edge = address == network || address == subnet.broadcast();
        if subnet.contains(address) && !edge {
            Ok(address)
        } else {
            Err(Error::Invalid(format!(
                "invalid {what} {address}: no host address of subnet {subnet}"
            )))
        }
    };
    for address in spec.aux_addresses.values() {
        inside("auxiliary address", *address)?;
    }
    if let Some(gateway) = spec.gateway {
        if spec.aux_addresses.values().any(|aux| *aux == gateway) {
            return Err(Error::Invalid(format!("invalid gateway {gateway}: an auxiliary address")));
        }
        return inside("gateway", gateway);
    }
    let hosts = spec.ip_range.map(Subnet4::network).into_iter().chain(subnet.hosts());
    hosts
        .filter(|address| inside("gateway", *address).is_ok())
        .find(|address| spec.aux_addresses.values().all(|aux| aux != address))
        .ok_or_else(|| {
            Error::Invalid(format!("invalid subnet {subnet}: no address for the gateway"))
        })
}

/// The lowest address that nobody has. `taken` is sorted.
pub(crate) fn free_address(network: &NetworkRow, taken: &[Ipv4Addr]) -> Option<Ipv4Addr> {
    let subnet = network.subnet?;
    let range = network.ip_range.unwrap_or(subnet);
    // A range's first and last address are good unless they are the subnet's.
    let (low, high) = (range.network().to_bits(), range.broadcast().to_bits());
    let mut taken = taken.iter().map(|address| address.to_bits()).peekable();
    (low..=high).find_map(|bits| {
        while taken.next_if(|taken| *taken < bits).is_some() {}
        let address = Ipv4Addr::from(bits);
        let free = taken.peek() != Some(&bits)
            && address != subnet.network()
            && address != subnet.broadcast()
            && network.gateway != Some(address)
            && network.aux_addresses.values().all(|aux| *aux != address);
        free.then_some(address)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Options;

    fn net(text: &str) -> Subnet4 {
        text.parse().unwrap()
    }

    fn network(subnet: &str, range: Option<&str>) -> NetworkRow {
        NetworkRow {
            id: knarr_model::NetworkId::from_random([1; 32]),
            name: "n".into(),
            driver: "bridge".into(),
            created: String::new(),
            bridge: None,
            internal: false,
            attachable: false,
            subnet: Some(net(subnet)),
            gateway: net(subnet).hosts().next(),
            ip_range: range.map(net),
            aux_addresses: Default::default(),
            fixed_subnet: true,
            labels: Default::default(),
            options: Default::default(),
        }
    }

    #[test]
    fn n02_pools_skip_what_the_host_routes_and_end() {
        let pools = Options::new("t").pools;
        assert_eq!(free_subnet(&pools, &[]), Some(net("172.17.0.0/16")));
        let mut taken = vec![net("172.16.0.0/15"), net("172.18.5.0/24")];
        assert_eq!(free_subnet(&pools, &taken), Some(net("172.19.0.0/16")));
        while let Some(subnet) = free_subnet(&pools, &taken) {
            taken.push(subnet);
        }
        // 13 of 172.19 to 172.31, 16 of 192.168, and the two above.
        assert_eq!(taken.len(), 2 + 13 + 16);
    }

    #[test]
    fn n02_a_small_subnet_runs_out() {
        let network = network("10.0.0.0/29", None);
        let mut taken = Vec::new();
        while let Some(address) = free_address(&network, &taken) {
            taken.push(address);
        }
        assert_eq!(taken.len(), 5);
        assert_eq!(taken[0], Ipv4Addr::new(10, 0, 0, 2));
        taken.remove(2);
        assert_eq!(free_address(&network, &taken), Some(Ipv4Addr::new(10, 0, 0, 4)));
    }

    #[test]
    fn ranges_bound_the_choice() {
        let network = network("10.0.0.0/24", Some("10.0.0.128/31"));
        let first = free_address(&network, &[]).unwrap();
        assert_eq!(first, Ipv4Addr::new(10, 0, 0, 128));
        let second = free_address(&network, &[first]).unwrap();
        assert_eq!(free_address(&network, &[first, second]), None);
    }

    #[test]
    fn impossible_addresses_are_refused() {
        let spec = NetworkSpec::default();
        for bad in ["10.0.0.0/31", "127.0.0.0/16", "224.0.0.0/24", "0.0.0.0/8", "0.0.0.0/0"] {
            assert!(check(&spec, net(bad)).is_err(), "{bad}");
        }
        let gateway = NetworkSpec { gateway: Some([10, 1, 0, 1].into()), ..spec.clone() };
        assert!(check(&gateway, net("10.0.0.0/24")).is_err());
        assert_eq!(check(&spec, net("10.0.0.0/24")).unwrap(), Ipv4Addr::new(10, 0, 0, 1));
    }
}

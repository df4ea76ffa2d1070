//! Who is called what: the names that containers of user-defined networks have
//! for each other.
//!
//! Pure bookkeeping. A container sees the names of the networks that it is in
//! itself, and no others.

use std::{
    collections::{BTreeMap, HashMap},
    net::Ipv4Addr,
    sync::{
        PoisonError, RwLock,
        atomic::{AtomicUsize, Ordering},
    },
};

use knarr_model::{ContainerId, NetworkId};
use knarr_state::networks::{EndpointRow, NetworkRow};

/// All names of one engine.
#[derive(Debug, Default)]
pub(crate) struct Names {
    inner: RwLock<Inner>,
    /// Turns shared names round.
    turn: AtomicUsize,
}

#[derive(Debug, Default)]
struct Inner {
    networks: HashMap<NetworkId, Zone>,
    /// A container's networks, and whether each lets it out.
    containers: HashMap<ContainerId, BTreeMap<NetworkId, bool>>,
}

#[derive(Debug, Default)]
struct Zone {
    name: String,
    addresses: HashMap<String, Vec<(ContainerId, Ipv4Addr)>>,
    pointers: HashMap<Ipv4Addr, (ContainerId, String)>,
}

/// Whether a network has names of its own: all but the default ones.
pub(crate) fn has_names(network: &NetworkRow) -> bool {
    network.driver == "bridge" && !crate::types::is_predefined(&network.name)
}

/// What a container is called in a network, the best name first.
pub(crate) fn names_of(endpoint: &EndpointRow) -> Vec<String> {
    let own = [endpoint.name.clone(), endpoint.container.short().to_owned()];
    let mut names: Vec<String> = Vec::new();
    let all = own.into_iter().chain(endpoint.aliases.iter().cloned());
    for name in all.chain([endpoint.hostname.clone()]) {
        if !name.is_empty() && !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

impl Names {
    /// An endpoint answers to its names from now on.
    pub(crate) fn add(&self, network: &NetworkRow, endpoint: &EndpointRow) {
        self.remove(&network.id, &endpoint.container);
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        let out = !network.internal;
        let networks = inner.containers.entry(endpoint.container.clone()).or_default();
        networks.insert(network.id.clone(), out);
        let Some(address) = endpoint.ipv4.filter(|_| has_names(network)) else { return };
        let zone = inner.networks.entry(network.id.clone()).or_default();
        zone.name = network.name.to_ascii_lowercase();
        for name in names_of(endpoint) {
            let holders = zone.addresses.entry(name.to_ascii_lowercase()).or_default();
            holders.push((endpoint.container.clone(), address));
        }
        let pointer = format!("{}.{}", endpoint.name, network.name);
        zone.pointers.insert(address, (endpoint.container.clone(), pointer));
    }

    /// An endpoint is gone.
    pub(crate) fn remove(&self, network: &NetworkId, container: &ContainerId) {
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(networks) = inner.containers.get_mut(container) {
            networks.remove(network);
            if networks.is_empty() {
                inner.containers.remove(container);
            }
        }
        if let Some(zone) = inner.networks.get_mut(network) {
            zone.addresses.retain(|_, holders| {
                holders.retain(|(holder, _)| holder != container);
                !holders.is_empty()
            });
            zone.pointers.retain(|_, (holder, _)| holder != container);
            if zone.addresses.is_empty() {
                inner.networks.remove(network);
            }
        }
    }

    /// Addresses that a name means to a container; none when it is no name of ours.
    /// Lower case, without the dot at the end.
    pub(crate) fn addresses(&self, asker: &ContainerId, name: &str) -> Option<Vec<Ipv4Addr>> {
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        for network in inner.containers.get(asker)?.keys() {
            let Some(zone) = inner.networks.get(network) else { continue };
            let plain = name.strip_suffix(zone.name.as_str());
            let plain = plain.and_then(|name| name.strip_suffix('.'));
            let found = zone.addresses.get(name);
            let found = found.or_else(|| zone.addresses.get(plain?));
            if let Some(holders) = found {
                let mut addresses: Vec<_> = holders.iter().map(|(_, address)| *address).collect();
                let turn = self.turn.fetch_add(1, Ordering::Relaxed) % addresses.len();
                addresses.rotate_left(turn);
                return Some(addresses);
            }
        }
        None
    }

    /// The name of an address, to a container.
    pub(crate) fn pointer(&self, asker: &ContainerId, address: Ipv4Addr) -> Option<String> {
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        let networks = inner.containers.get(asker)?;
        let mut zones = networks.keys().filter_map(|network| inner.networks.get(network));
        zones.find_map(|zone| zone.pointers.get(&address)).map(|(_, name)| name.clone())
    }

    /// Whether a container may ask name servers outside: not from internal
    /// networks alone (CVE-2024-29018).
    pub(crate) fn may_ask_outside(&self, asker: &ContainerId) -> bool {
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        inner.containers.get(asker).is_some_and(|networks| networks.values().any(|out| *out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(n: u8, name: &str, internal: bool) -> NetworkRow {
        NetworkRow {
            id: NetworkId::from_random([n; 32]),
            name: name.into(),
            driver: "bridge".into(),
            created: String::new(),
            bridge: None,
            internal,
            attachable: false,
            subnet: None,
            gateway: None,
            ip_range: None,
            aux_addresses: Default::default(),
            fixed_subnet: false,
            labels: Default::default(),
            options: Default::default(),
        }
    }

    fn endpoint(network: &NetworkRow, n: u8, name: &str, alias: &str) -> EndpointRow {
        EndpointRow {
            id: String::new(),
            network: network.id.clone(),
            container: ContainerId::from_random([n; 32]),
            name: name.into(),
            hostname: String::new(),
            aliases: vec![alias.into()],
            ipv4: Some(Ipv4Addr::new(10, 0, network.id.as_str().as_bytes()[1] - b'0', n)),
            mac: String::new(),
            fixed_ipv4: false,
            index: 0,
            gateway: false,
            dns: Vec::new(),
            any_source: false,
        }
    }

    #[test]
    fn names_are_those_of_shared_networks() {
        let names = Names::default();
        let (one, two) = (network(1, "one", false), network(2, "two", true));
        let (a, b) = (endpoint(&one, 1, "A", "x"), endpoint(&one, 2, "b", "X"));
        let c = endpoint(&two, 3, "c", "x");
        names.add(&one, &a);
        names.add(&one, &b);
        names.add(&two, &c);
        let address = |n, m| Ipv4Addr::new(10, 0, n, m);
        assert_eq!(names.addresses(&b.container, "a"), Some(vec![address(1, 1)]));
        assert_eq!(names.addresses(&b.container, "a.one"), Some(vec![address(1, 1)]));
        assert_eq!(names.addresses(&b.container, a.container.short()), Some(vec![address(1, 1)]));
        assert_eq!(names.addresses(&b.container, "c"), None);
        assert_eq!(names.addresses(&c.container, "x"), Some(vec![address(2, 3)]));
        // A shared alias goes round.
        let first = names.addresses(&a.container, "x").unwrap();
        let second = names.addresses(&a.container, "x").unwrap();
        assert_eq!(first.len(), 2);
        assert_ne!(first[0], second[0]);
        assert_eq!(names.pointer(&a.container, address(1, 2)), Some("b.one".into()));
        assert_eq!(names.pointer(&c.container, address(1, 2)), None);
        assert!(names.may_ask_outside(&a.container));
        assert!(!names.may_ask_outside(&c.container));
        names.remove(&one.id, &b.container);
        assert_eq!(names.addresses(&a.container, "b"), None);
        assert_eq!(names.addresses(&a.container, "x"), Some(vec![address(1, 1)]));
    }
}

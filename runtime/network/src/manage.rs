//! Networks as such: create, remove, look at.

use std::{
    collections::BTreeSet,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener},
    },
    thread,
    time::{Duration, Instant},
};

use knarr_model::{Name, NetworkId, Subnet4};
use knarr_netlink::Socket;
use knarr_state::{
    Db,
    networks::{EndpointRow, Inserted, NetworkRow, PortRow},
};
use knarr_sys::read;

use crate::{
    BridgeInput, Endpoint, Error, Inner, Network, NetworkSpec, Networks, Result, adopt,
    attach::source,
    bridge::{self, OPTION_ICC, OPTION_MASQUERADE, OPTION_NAME, says_no},
    filter::{Bridge, Contents, Forward},
    link, lock,
    names::{has_names, names_of},
    pools, random,
    types::is_predefined,
};

impl Networks {
    /// Creates a network.
    ///
    /// # Errors
    /// `Conflict` for a name that exists; `Forbidden` for addresses that overlap.
    pub fn create(&self, spec: &NetworkSpec) -> Result<Network> {
        let name: Name = spec.name.parse().map_err(|error| Error::Invalid(format!("{error}")))?;
        if is_predefined(name.as_str()) {
            return Err(Error::PredefinedCreate(spec.name.clone()));
        }
        match spec.driver.as_deref() {
            None | Some("" | "bridge" | "default") => {}
            Some(one @ ("host" | "null")) => return Err(Error::Singleton(one.into())),
            Some(other) => return Err(Error::Driver(other.into())),
        }
        if spec.ipv6 || spec.subnet6.is_some() {
            return Err(Error::NotSupported("IPv6 networks are not supported".into()));
        }
        bridge::check_options(&spec.options)?;
        self.inner.db.check_space()?;
        let row = self.inner.create(spec)?;
        Ok(Network { row, endpoints: Vec::new() })
    }

    /// Removes a network and answers its id.
    ///
    /// # Errors
    /// `NotFound`; `Forbidden` for the default ones and while containers are attached.
    pub fn remove(&self, name_or_id: &str) -> Result<NetworkId> {
        let inner = &self.inner;
        let _changes = lock(&inner.changes);
        let row = inner.network(name_or_id)?;
        if is_predefined(&row.name) {
            return Err(Error::Predefined(row.name));
        }
        let users = || -> Result<Vec<String>> {
            let endpoints = inner.db.endpoints_in(&row.id)?;
            Ok(endpoints
                .iter()
                .map(|own| format!("name:{:?} id:{:?}", own.name, own.container.short()))
                .collect())
        };
        let now = users()?;
        if !now.is_empty() {
            return Err(Error::ActiveEndpoints { name: row.name, users: now });
        }
        // The bridge first, the row last: what is left behind by a crash is a
        // row, which makes the bridge again.
        if let Some(name) = &row.bridge {
            let socket = Socket::route().map_err(Error::kernel("netlink"))?;
            link::delete(&socket, name)
                .map_err(Error::kernel(format!("remove bridge {name} of network {}", row.name)))?;
        }
        if !inner.db.delete_network(&row.id)? {
            return Err(Error::ActiveEndpoints { users: users()?, name: row.name });
        }
        adopt::remove(&inner.db, &row.id);
        inner.refresh_filter()?;
        Ok(row.id)
    }

    /// Keeps containers from these TCP ports of the host: the engine's own services,
    /// whose caller is as good as root. Nothing where [`BridgeInput::Accept`] says so.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn guard(&self, ports: BTreeSet<u16>) -> Result<()> {
        if self.inner.options.bridge_input == BridgeInput::Accept {
            return Ok(());
        }
        lock(&self.inner.filter).guard(ports).map_err(Error::kernel("guard the engine's ports"))
    }

    /// All networks by name, with their endpoints.
    ///
    /// # Errors
    /// Of the database.
    pub fn list(&self) -> Result<Vec<Network>> {
        let mut endpoints = self.inner.db.endpoints()?;
        let networks = self.inner.db.networks()?.into_iter();
        Ok(networks
            .map(|row| {
                let own = endpoints.extract_if(.., |endpoint| endpoint.network == row.id);
                Network { endpoints: own.map(|own| endpoint(&row, own)).collect(), row }
            })
            .collect())
    }

    /// One network by name, id or the beginning of one.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn inspect(&self, name_or_id: &str) -> Result<Network> {
        let row = self.inner.network(name_or_id)?;
        let endpoints = self.inner.db.endpoints_in(&row.id)?.into_iter();
        Ok(Network { endpoints: endpoints.map(|own| endpoint(&row, own)).collect(), row })
    }
}

/// An endpoint's row with what its network adds.
pub(crate) fn endpoint(network: &NetworkRow, row: EndpointRow) -> Endpoint {
    Endpoint {
        network_name: network.name.clone(),
        driver: network.driver.clone(),
        subnet: network.subnet,
        gateway: network.gateway.filter(|_| !network.internal),
        dns_names: if has_names(network) { names_of(&row) } else { Vec::new() },
        row,
    }
}

impl Inner {
    pub(crate) fn network(&self, name_or_id: &str) -> Result<NetworkRow> {
        self.db.network(name_or_id)?.ok_or_else(|| Error::NotFound(name_or_id.into()))
    }

    /// Chooses addresses, writes the row, makes the bridge, tells the filter.
    pub(crate) fn create(&self, spec: &NetworkSpec) -> Result<NetworkRow> {
        let _changes = lock(&self.changes);
        if self.db.networks()?.iter().any(|network| network.name == spec.name) {
            return Err(Error::NameTaken(spec.name.clone()));
        }
        let id = NetworkId::from_random(random()?);
        let bridge = match spec.options.get(OPTION_NAME) {
            Some(name) => name.clone(),
            None => format!("kn-{}", id.short()),
        };
        // Engines side by side choose one after another, each seeing the
        // bridges that the others made.
        let _pools = pools_lock();
        let subnet = self.choose_subnet(spec)?;
        let row = NetworkRow {
            id,
            name: spec.name.clone(),
            driver: "bridge".into(),
            created: jiff::Timestamp::now().to_string(),
            bridge: Some(bridge),
            internal: spec.internal,
            attachable: spec.attachable,
            subnet: Some(subnet),
            gateway: Some(pools::check(spec, subnet)?),
            ip_range: spec.ip_range,
            aux_addresses: spec.aux_addresses.clone(),
            fixed_subnet: spec.subnet.is_some(),
            labels: spec.labels.clone(),
            options: spec.options.clone(),
        };
        if self.db.insert_network(&row)? == Inserted::Taken {
            return Err(Error::Conflict(format!(
                "bridge name {} is already in use by another network",
                row.bridge.unwrap_or_default()
            )));
        }
        let made = self.make(&row);
        match made {
            Ok(()) => adopt::write(&self.db, &row),
            // Not the bridge: where that is the trouble, it is not ours.
            Err(_) => {
                let _ = self.db.delete_network(&row.id);
            }
        }
        made.map(|()| row)
    }

    fn make(&self, row: &NetworkRow) -> Result<()> {
        let socket = Socket::route().map_err(Error::kernel("netlink"))?;
        let links = link::links(&socket).map_err(Error::kernel("list interfaces"))?;
        bridge::ensure(&socket, row, &self.options.instance, self.options.mtu, &links)?;
        self.refresh_filter().inspect_err(|_| {
            if let Some(name) = &row.bridge {
                let _ = link::delete(&socket, name);
            }
        })
    }

    fn choose_subnet(&self, spec: &NetworkSpec) -> Result<Subnet4> {
        let networks = self.db.networks()?;
        let mut taken: Vec<_> = networks.iter().filter_map(|network| network.subnet).collect();
        if let Some(subnet) = spec.subnet {
            pools::check(spec, subnet)?;
            // What the host routes elsewhere is the user's own decision.
            return match taken.iter().any(|other| other.overlaps(subnet)) {
                true => Err(Error::Overlap),
                false => Ok(subnet),
            };
        }
        let socket = Socket::route().map_err(Error::kernel("netlink"))?;
        let routes = link::routes(&socket).map_err(Error::kernel("list routes"))?;
        taken.extend(routes.into_iter().map(|(subnet, _)| subnet));
        let host = read::text(&self.options.resolv_conf, read::SMALL).unwrap_or_default();
        taken.extend(crate::dns::nameservers(&host).into_iter().filter_map(
            |server| match server {
                std::net::IpAddr::V4(server) => Subnet4::containing(server, 32),
                std::net::IpAddr::V6(_) => None,
            },
        ));
        pools::free_subnet(&self.options.pools, &taken).ok_or(Error::PoolsExhausted)
    }

    /// Makes the filter know the bridges that there are.
    pub(crate) fn refresh_filter(&self) -> Result<()> {
        // Ports and sources come and go by themselves, and rows of theirs are there
        // before and after them: read here, they would undo what others just did.
        let mut filter = lock(&self.filter);
        let bridges = bridges(&self.db.networks()?, self.options.bridge_input);
        filter.bridges(bridges).map_err(Error::kernel("update packet filter"))
    }
}

fn bridges(networks: &[NetworkRow], input: BridgeInput) -> BTreeSet<Bridge> {
    let bridges = networks.iter().filter_map(|network| {
        let out = !network.internal && !says_no(&network.options, OPTION_MASQUERADE);
        Some(Bridge {
            name: network.bridge.clone()?,
            internal: network.internal,
            together: !says_no(&network.options, OPTION_ICC),
            masquerade: network.subnet.filter(|_| out),
            closed: network.internal || input == BridgeInput::Drop,
        })
    });
    bridges.collect()
}

/// What the filter's sets have to hold for these rows.
pub(crate) fn contents(db: &Db, input: BridgeInput) -> Result<Contents> {
    Ok(Contents {
        bridges: bridges(&db.networks()?, input),
        forwards: db.ports()?.iter().filter_map(forward).collect(),
        sources: db.endpoints()?.iter().filter_map(source).collect(),
        guarded: BTreeSet::new(),
    })
}

/// What the kernel forwards; IPv6 goes through userland.
pub(crate) fn forward(port: &PortRow) -> Option<Forward> {
    let std::net::IpAddr::V4(host) = port.host_ip else { return None };
    Some(Forward {
        host: (!host.is_unspecified()).then_some(host),
        transport: port.port.transport,
        port: port.host_port,
        to: (port.container_ip, port.port.port),
    })
}

/// Held by one engine of this network namespace at a time: an abstract socket
/// exists once in a namespace and ends with its owner.
fn pools_lock() -> Option<UnixListener> {
    let address = SocketAddr::from_abstract_name("knarr-address-pools").ok()?;
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        match UnixListener::bind_addr(&address) {
            Ok(lock) => return Some(lock),
            // Better a subnet chosen without the lock than none at all.
            Err(_) if Instant::now() > deadline => return None,
            Err(_) => thread::sleep(Duration::from_millis(2)),
        }
    }
}

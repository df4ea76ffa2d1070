//! A container's places in networks: attach, disconnect, detach.
//!
//! ```text
//!   attach:  row (address) → veth pair, address, route, name server → names
//!   detach:  ports → name server → names → bridge port silenced → rows
//! ```
//!
//! A veth is named after its endpoint's id, so each attach has one of its own:
//! the last life's interface, dying in the kernel with its namespace, is in
//! nobody's way.

use std::{
    fs::File,
    io,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::Arc,
};

use knarr_model::{ContainerId, Name};
use knarr_netlink::{Socket, within};
use knarr_state::networks::{EndpointRow, Inserted, NetworkRow};

use crate::{
    Attach, Endpoint, Error, Inner, Networks, Result, Running,
    bridge::{self, OPTION_ICC, says_no},
    dns,
    filter::Source,
    link::{self, Inside, PortFlag, Veth},
    lock,
    manage::endpoint,
    names::has_names,
    pools, random, sysctl,
    types::is_predefined,
};

/// Name of the host's end of an endpoint's veth pair.
pub(crate) fn veth_name(endpoint: &EndpointRow) -> String {
    format!("kv{}", &endpoint.id[..12.min(endpoint.id.len())])
}

/// The source that an endpoint's packets have to have, unless any will do.
pub(crate) fn source(endpoint: &EndpointRow) -> Option<Source> {
    let address = endpoint.ipv4.filter(|_| !endpoint.any_source)?;
    Some(Source { end: veth_name(endpoint), mac: link::parse_mac(&endpoint.mac)?, address })
}

impl Networks {
    /// Puts a container into a network: its namespace gets an interface, an
    /// address, routes, and on user-defined networks a name server.
    ///
    /// For `none` (and `host`) only the row is written, and loopback comes up in `none`.
    ///
    /// # Errors
    /// `NotFound`, `Forbidden` (address in use, already attached), `InvalidArgument`.
    pub fn attach(&self, attach: &Attach<'_>) -> Result<Endpoint> {
        let inner = &self.inner;
        let _turn = inner.turn(attach.container);
        let (network, row) = inner.claim(attach)?;
        if let Err(error) = inner.wire(&network, &row, attach.netns) {
            inner.unwire(&row);
            let _ = inner.db.delete_endpoint(&network.id, attach.container);
            return Err(error);
        }
        inner.names.add(&network, &row);
        Ok(endpoint(&network, row))
    }

    /// Takes a running container out of one network.
    ///
    /// # Errors
    /// `NotFound` when it is not attached there.
    pub fn disconnect(&self, container: &ContainerId, network: &str) -> Result<()> {
        let inner = &self.inner;
        let _turn = inner.turn(container);
        let network = inner.network(network)?;
        let endpoints = inner.db.endpoints_of(container)?;
        let Some(row) = endpoints.iter().find(|row| row.network == network.id) else {
            return Err(Error::NotConnected {
                container: container.short().into(),
                network: network.name,
            });
        };
        inner.names.remove(&network.id, container);
        inner.unwire(row);
        inner.db.delete_endpoint(&network.id, container)?;
        if row.gateway {
            inner.move_gateway(container)?;
        }
        Ok(())
    }

    /// Everything of a container goes: ports, names, endpoints, addresses.
    ///
    /// Its interfaces die with its namespace; nothing waits for that. Goes on
    /// after an error; success when there is nothing to do.
    ///
    /// # Errors
    /// The first failure, after everything was tried.
    pub fn detach(&self, container: &ContainerId) -> Result<()> {
        let _turn = self.inner.turn(container);
        self.inner.forget(container)
    }

    /// The endpoints of a container, in the order of their interfaces.
    ///
    /// # Errors
    /// Of the database.
    pub fn endpoints(&self, container: &ContainerId) -> Result<Vec<Endpoint>> {
        let rows = self.inner.db.endpoints_of(container)?.into_iter();
        rows.map(|row| {
            let network = self.inner.network(row.network.as_str())?;
            Ok(endpoint(&network, row))
        })
        .collect()
    }

    /// A container has another name now: its networks answer to it.
    ///
    /// # Errors
    /// Of the database.
    pub fn rename(&self, container: &ContainerId, name: &Name) -> Result<()> {
        let _turn = self.inner.turn(container);
        for mut row in self.inner.db.endpoints_of(container)? {
            row.name = name.as_str().to_owned();
            self.inner.db.update_endpoint(&row)?;
            self.inner.names.add(&self.inner.network(row.network.as_str())?, &row);
        }
        Ok(())
    }
}

impl Inner {
    /// Chooses address and interface, and writes the row.
    fn claim(&self, attach: &Attach<'_>) -> Result<(NetworkRow, EndpointRow)> {
        if attach.spec.ipv6.is_some() {
            return Err(Error::NotSupported("IPv6 addresses are not supported".into()));
        }
        // Until the row is there nobody removes the network or takes the address.
        let _changes = lock(&self.changes);
        let network = self.network(attach.network)?;
        let own = self.db.endpoints_of(attach.container)?;
        let exclusive = |network: &NetworkRow| network.driver != "bridge";
        if own.iter().any(|row| row.network == network.id) {
            return Err(Error::AlreadyConnected {
                endpoint: attach.name.into(),
                network: network.name,
            });
        }
        for row in &own {
            let other = self.network(row.network.as_str())?;
            if exclusive(&other) || exclusive(&network) {
                return Err(Error::Invalid(format!(
                    "container cannot be connected to network {} while it is connected to network {}",
                    network.name, other.name
                )));
            }
        }
        let taken = self.db.addresses_in(&network.id)?;
        let ipv4 = match (attach.spec.ipv4, network.subnet) {
            (None, None) => None,
            (None, Some(_)) => Some(pools::free_address(&network, &taken).ok_or_else(|| {
                Error::AddressesExhausted { name: network.name.clone(), id: network.id.to_string() }
            })?),
            (Some(address), _) => Some(fixed_address(&network, address, &taken)?),
        };
        let mac = match attach.spec.mac.as_deref().filter(|mac| !mac.is_empty()) {
            Some(text) => link::parse_mac(text)
                .ok_or_else(|| Error::Invalid(format!("invalid MAC address: {text}")))?,
            None => link::mac_of(ipv4.unwrap_or(Ipv4Addr::UNSPECIFIED)),
        };
        let index = (0..).find(|index| own.iter().all(|row| row.index != *index));
        let row = EndpointRow {
            id: knarr_model::Digest::from_bytes(random()?).hex(),
            network: network.id.clone(),
            container: attach.container.clone(),
            name: attach.name.into(),
            hostname: attach.hostname.into(),
            aliases: attach.spec.aliases.clone(),
            ipv4,
            mac: if ipv4.is_some() { link::mac_text(mac) } else { String::new() },
            fixed_ipv4: attach.spec.ipv4.is_some(),
            index: index.unwrap_or_default(),
            gateway: ipv4.is_some() && !network.internal && own.iter().all(|row| !row.gateway),
            dns: attach.dns.to_vec(),
            any_source: attach.any_source,
        };
        match self.db.insert_endpoint(&row)? {
            Inserted::Yes => Ok((network, row)),
            Inserted::Taken => Err(Error::AddressInUse),
        }
    }

    /// Makes what the row says.
    fn wire(&self, network: &NetworkRow, row: &EndpointRow, netns: &Path) -> Result<()> {
        let what = format!("attach {} to network {}", row.name, network.name);
        match network.driver.as_str() {
            "bridge" => {}
            "host" => return Ok(()),
            _ => {
                let netns = File::open(netns).map_err(Error::kernel(what.clone()))?;
                return within(&netns, || link::loopback_up(&Socket::route()?))
                    .map_err(Error::kernel(what));
            }
        }
        let socket = Socket::route().map_err(Error::kernel("netlink"))?;
        let name = network.bridge.as_deref().unwrap_or_default();
        let bridge = match link::index(name) {
            Ok(index) => index,
            // Somebody deleted it.
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {
                let links = link::links(&socket).map_err(Error::kernel("list interfaces"))?;
                let options = &self.options;
                bridge::ensure(&socket, network, &options.instance, options.mtu, &links)?
            }
            Err(error) => return Err(Error::kernel(what)(error)),
        };
        // Before there is an interface: nothing passes unchecked.
        if let Some(source) = source(row) {
            lock(&self.filter).source(source).map_err(Error::kernel(what.clone()))?;
        }
        let needs_names = has_names(network) && self.dns_missing(&row.container);
        let sockets = self
            .connect(network, row, &socket, bridge, netns, needs_names)
            .map_err(Error::kernel(what))?;
        let mut running = lock(&self.running);
        let running = running.entry(row.container.clone()).or_default();
        running.netns = netns.to_owned();
        if let Some(sockets) = sockets {
            running.dns = Some(self.serve_names(row, sockets));
        }
        Ok(())
    }

    fn connect(
        &self,
        network: &NetworkRow,
        row: &EndpointRow,
        socket: &Socket,
        bridge: u32,
        netns: &Path,
        needs_names: bool,
    ) -> io::Result<Option<dns::Sockets>> {
        let (Some(address), Some(subnet)) = (row.ipv4, network.subnet) else {
            return Err(io::Error::other("a bridge's endpoint without an address"));
        };
        let (host, inside) = (veth_name(row), format!("eth{}", row.index));
        let netns = File::open(netns)?;
        let veth = Veth {
            host: &host,
            container: &inside,
            mac: link::parse_mac(&row.mac).unwrap_or_else(|| link::mac_of(address)),
            bridge,
            mtu: bridge::mtu(network, self.options.mtu),
        };
        let sockets = within(&netns, || {
            link::create_veth(socket, &veth, &netns)?;
            // Before the interface is up: no router's word is heard (CVE-2020-13401).
            let ipv6 = sysctl::write(&format!("ipv6/conf/{inside}/accept_ra"), "0")?;
            link::configure_inside(
                &Socket::route()?,
                &Inside {
                    name: &inside,
                    ipv6,
                    address,
                    subnet,
                    gateway: network.gateway.filter(|_| row.gateway),
                },
            )?;
            link::settle(socket, &host, bridge)?;
            needs_names.then(dns::Sockets::open).transpose()
        })?;
        if says_no(&network.options, OPTION_ICC) {
            link::set_port(socket, &host, PortFlag::Isolated)?;
        }
        Ok(sockets)
    }

    fn dns_missing(&self, container: &ContainerId) -> bool {
        lock(&self.running).get(container).is_none_or(|running| running.dns.is_none())
    }

    /// Answers a container's questions from these sockets.
    pub(crate) fn serve_names(
        &self,
        row: &EndpointRow,
        sockets: dns::Sockets,
    ) -> crate::tasks::Tasks {
        let service = dns::Service {
            names: self.names.clone(),
            container: row.container.clone(),
            dns: if row.dns.is_empty() { self.options.dns.clone() } else { row.dns.clone() },
            resolv_conf: self.options.resolv_conf.clone(),
            budget: Arc::clone(&self.budget),
        };
        let mut tasks = self.server.tasks();
        dns::serve(service, sockets, &mut tasks);
        tasks
    }

    /// Deletes an endpoint's interface from a namespace that lives on.
    fn unwire(self: &Arc<Self>, row: &EndpointRow) {
        let gone = Socket::route().and_then(|socket| link::delete(&socket, &veth_name(row)));
        if let Err(error) = gone {
            tracing::warn!(%error, interface = veth_name(row), "cannot delete interface");
        }
        self.forget_source(row);
    }

    /// An interface is gone, or silent: nobody waits until its source is forgotten.
    fn forget_source(self: &Arc<Self>, row: &EndpointRow) {
        let Some(source) = source(row) else { return };
        if !lock(&self.filter).forget_source(&source) {
            return;
        }
        let inner = Arc::clone(self);
        self.server.blocking(move || {
            if let Err(error) = lock(&inner.filter).settle() {
                tracing::warn!(%error, interface = source.end, "cannot forget its source");
            }
        });
    }

    /// Gives a container whose way out is gone another one.
    fn move_gateway(&self, container: &ContainerId) -> Result<()> {
        let mut next = None;
        for row in self.db.endpoints_of(container)? {
            let network = self.network(row.network.as_str())?;
            if network.driver == "bridge" && !network.internal {
                next = Some((network, row));
                break;
            }
        }
        let Some((network, mut row)) = next else { return self.withdraw(container) };
        row.gateway = true;
        self.db.update_endpoint(&row)?;
        let netns: PathBuf = lock(&self.running)
            .get(container)
            .map(|running| running.netns.clone())
            .unwrap_or_default();
        let what = format!("route of {} to network {}", row.name, network.name);
        let interface = format!("eth{}", row.index);
        if let Some(gateway) = network.gateway {
            File::open(netns)
                .and_then(|netns| {
                    within(&netns, || link::default_route(&Socket::route()?, &interface, gateway))
                })
                .map_err(Error::kernel(what))?;
        }
        self.redirect(&row)
    }

    /// Removes everything of a container, and goes on after an error.
    pub(crate) fn forget(self: &Arc<Self>, container: &ContainerId) -> Result<()> {
        let mut outcomes = vec![self.withdraw(container)];
        // Sockets close here; the rest of it is rows.
        let running: Option<Running> = lock(&self.running).remove(container);
        drop(running);
        match self.db.endpoints_of(container) {
            Err(error) => outcomes.push(Err(error.into())),
            Ok(rows) => {
                for row in rows {
                    self.names.remove(&row.network, container);
                    if row.ipv4.is_some() {
                        // Until the kernel has cleared the dead namespace away,
                        // nothing there may answer for who gets the address next.
                        let silenced = Socket::route()
                            .and_then(|socket| link::silence_port(&socket, &veth_name(&row)));
                        outcomes.push(silenced.map_err(Error::kernel("silence bridge port")));
                        self.forget_source(&row);
                    }
                    let deleted = self.db.delete_endpoint(&row.network, container);
                    outcomes.push(deleted.map_err(Error::from));
                }
            }
        }
        outcomes.into_iter().collect()
    }
}

fn fixed_address(network: &NetworkRow, address: Ipv4Addr, taken: &[Ipv4Addr]) -> Result<Ipv4Addr> {
    if is_predefined(&network.name) {
        return Err(Error::Invalid(
            "user specified IP address is supported on user defined networks only".into(),
        ));
    }
    if !network.fixed_subnet {
        return Err(Error::Invalid(
            "user specified IP address is supported only when connecting to networks with user configured subnets".into(),
        ));
    }
    let subnet = network.subnet.filter(|subnet| {
        subnet.contains(address) && address != subnet.network() && address != subnet.broadcast()
    });
    if subnet.is_none() {
        return Err(Error::Invalid(format!(
            "invalid address {address}: it does not belong to any of this network's subnets"
        )));
    }
    if taken.contains(&address) || network.gateway == Some(address) {
        return Err(Error::AddressInUse);
    }
    Ok(address)
}

//! Opening: the host is made to match the rows, whatever happened in between.
//!
//! A crash may have left rows without resources and resources without rows.
//! [`Networks::open`] mends bridges and the packet filter; it does not yet know
//! who lives. [`Networks::reconcile`] does, and mends the rest. A watcher
//! then puts the packet filter back whenever somebody else changes it.

use std::{
    collections::HashMap,
    fs::File,
    path::PathBuf,
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, Ordering},
    },
};

use knarr_model::{ContainerId, NetworkId};
use knarr_netlink::{Messages, Socket, buffer, within};
use knarr_state::{
    Db,
    networks::{EndpointRow, Inserted, NetworkRow},
};
use tokio::io::unix::AsyncFd;

use crate::{
    Error, Inner, NetworkSpec, Networks, Options, Result, adopt,
    attach::veth_name,
    bridge::{self, OPTION_HOST, OPTION_ICC, OPTION_MASQUERADE, OPTION_MTU, OPTION_NAME},
    budget::Budget,
    dns,
    filter::{self, Filter, Touched},
    link::{self, Link},
    lock,
    manage::contents,
    names::{Names, has_names},
    random,
    tasks::Server,
};

/// NFNLGRP_NFTABLES as a bit.
const NFTABLES_GROUP: u32 = 1 << 6;

impl Networks {
    /// Makes bridges and packet filter match the rows and starts to watch over them.
    ///
    /// The default networks `bridge`, `host` and `none` are created where they
    /// are missing. Call [`Networks::reconcile`] next, before any attach.
    ///
    /// # Errors
    /// When the kernel refuses (no CAP_NET_ADMIN, no nf_tables), or no pool is free.
    pub fn open(db: Arc<Db>, options: Options) -> Result<Self> {
        check(&options)?;
        let notices = adopt::adopt(&db)?;
        let kernel = |what: &str| Error::kernel(what.to_owned());
        let filter = Filter::load(&options.instance, contents(&db, options.bridge_input)?)
            .map_err(kernel("load packet filter"))?;
        let server = Server::start().map_err(kernel("start network thread"))?;
        let budget = Arc::new(Budget::of(options.descriptors));
        let inner = Arc::new(Inner {
            db,
            options,
            filter: Mutex::new(filter),
            names: Arc::new(Names::default()),
            budget,
            running: Mutex::default(),
            changes: Mutex::default(),
            turns: Default::default(),
            left: AtomicBool::new(false),
            notices: Mutex::new(notices),
            server,
        });
        inner.watch().map_err(kernel("watch packet filter"))?;
        inner.ensure_defaults()?;
        inner.ensure_bridges()?;
        allow_forwarding().map_err(kernel("enable IP forwarding"))?;
        Ok(Self { inner })
    }

    /// Removes what belongs to containers that are not in `live`; for those that
    /// are (with the pid of their first process), answers names and published
    /// ports again.
    pub fn reconcile(&self, live: &[(ContainerId, u32)]) -> Vec<Error> {
        let live: HashMap<_, _> = live.iter().map(|(container, pid)| (container, *pid)).collect();
        let mut errors = Vec::new();
        if let Err(error) = self.inner.reconcile(&live, &mut errors) {
            errors.push(error);
        }
        errors
    }

    /// Removes this engine's bridges and packet filter from the host: for its
    /// end, when no container runs. Opening makes them again from the rows.
    pub fn leave(&self) -> Vec<Error> {
        // Held, so that the watcher sees either the flag or nothing of this.
        let _filter = lock(&self.inner.filter);
        self.inner.left.store(true, Ordering::Relaxed);
        purge(&self.inner.options.instance)
    }
}

/// Removes everything that an engine of this instance has on the host.
pub(crate) fn purge(instance: &str) -> Vec<Error> {
    let mut errors = Vec::new();
    let unloaded = Filter::unload(instance).map_err(Error::kernel("remove packet filter"));
    errors.extend(unloaded.err());
    let listed = Socket::route().and_then(|socket| Ok((link::links(&socket)?, socket)));
    match listed.map_err(Error::kernel("list interfaces")) {
        Err(error) => errors.push(error),
        Ok((links, socket)) => {
            let prefix = bridge::prefix(instance);
            for link in links.iter().filter(|link| link.alias.starts_with(&prefix)) {
                let deleted = link::delete(&socket, &link.name)
                    .map_err(Error::kernel(format!("remove bridge {}", link.name)));
                errors.extend(deleted.err());
            }
        }
    }
    errors
}

fn check(options: &Options) -> Result<()> {
    bridge::check_name(&options.bridge)?;
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if !(1..=32).contains(&options.instance.len()) || !options.instance.chars().all(good) {
        return Err(Error::Invalid(format!(
            "invalid instance {:?}: want 1 to 32 of [a-z0-9-]",
            options.instance
        )));
    }
    Ok(())
}

fn allow_forwarding() -> std::io::Result<()> {
    const PATH: &str = "/proc/sys/net/ipv4/ip_forward";
    // Read first: writing it, even the same, resets settings of all interfaces.
    if std::fs::read(PATH)?.first() == Some(&b'1') { Ok(()) } else { std::fs::write(PATH, "1") }
}

impl Inner {
    /// The networks that are always there.
    fn ensure_defaults(&self) -> Result<()> {
        let networks = self.db.networks()?;
        let find = |name: &str| networks.iter().find(|network| network.name == name);
        for (name, driver) in [("host", "host"), ("none", "null")] {
            if find(name).is_none() {
                let row = NetworkRow {
                    id: NetworkId::from_random(random()?),
                    name: name.into(),
                    driver: driver.into(),
                    created: jiff::Timestamp::now().to_string(),
                    bridge: None,
                    internal: false,
                    attachable: false,
                    subnet: None,
                    gateway: None,
                    ip_range: None,
                    aux_addresses: Default::default(),
                    fixed_subnet: false,
                    labels: Default::default(),
                    options: Default::default(),
                };
                if self.db.insert_network(&row)? == Inserted::Yes {
                    adopt::write(&self.db, &row);
                }
            }
        }
        let wanted = self.options.bridge_address;
        if let Some(row) = find("bridge") {
            let same = row.bridge.as_ref() == Some(&self.options.bridge)
                && wanted.is_none_or(|(gateway, subnet)| {
                    (row.gateway, row.subnet) == (Some(gateway), Some(subnet))
                });
            if same {
                return Ok(());
            }
            if !self.db.endpoints_in(&row.id)?.is_empty() {
                tracing::warn!(
                    bridge = row.bridge,
                    "the default bridge stays as it was: containers are attached"
                );
                return Ok(());
            }
            // Made anew below; the old bridge goes because no row names it.
            self.db.delete_network(&row.id)?;
            adopt::remove(&self.db, &row.id);
        }
        let yes = || "true".to_owned();
        self.create(&NetworkSpec {
            name: "bridge".into(),
            subnet: wanted.map(|(_, subnet)| subnet),
            gateway: wanted.map(|(gateway, _)| gateway),
            options: [
                ("com.docker.network.bridge.default_bridge".into(), yes()),
                (OPTION_ICC.into(), yes()),
                (OPTION_MASQUERADE.into(), yes()),
                (OPTION_HOST.into(), "0.0.0.0".into()),
                (OPTION_NAME.into(), self.options.bridge.clone()),
                (OPTION_MTU.into(), self.options.mtu.to_string()),
            ]
            .into(),
            ..NetworkSpec::default()
        })?;
        Ok(())
    }

    /// Bridges of ours that no row names go; those that rows name are made.
    fn ensure_bridges(&self) -> Result<()> {
        let socket = Socket::route().map_err(Error::kernel("netlink"))?;
        let links = link::links(&socket).map_err(Error::kernel("list interfaces"))?;
        let networks = self.db.networks()?;
        let prefix = bridge::prefix(&self.options.instance);
        // Of a network that cannot be read nothing is known but its id.
        let mut unread = adopt::recorded(&self.db);
        unread.extend(self.db.network_ids()?);
        unread.retain(|id| networks.iter().all(|network| network.id.as_str() != id));
        for link in &links {
            let Some(id) = link.alias.strip_prefix(&prefix) else { continue };
            let known = networks.iter().any(|network| {
                network.bridge.as_ref() == Some(&link.name)
                    && link.alias == bridge::alias(&self.options.instance, network)
            });
            if known || unread.contains(id) {
                continue;
            }
            // Somebody lives on it, whatever became of its network.
            if links.iter().any(|port| port.kind == "veth" && port.master == link.index) {
                lock(&self.notices).push(format!(
                    "bridge {} is of no network that is known, and containers are on it",
                    link.name
                ));
                continue;
            }
            if let Err(error) = link::delete(&socket, &link.name) {
                tracing::warn!(%error, bridge = link.name, "remove stale bridge");
            }
        }
        let links = link::links(&socket).map_err(Error::kernel("list interfaces"))?;
        for network in networks.iter().filter(|network| network.bridge.is_some()) {
            let made =
                bridge::ensure(&socket, network, &self.options.instance, self.options.mtu, &links);
            match made {
                Ok(_) => {}
                // One network that cannot be mended does not stop the engine.
                Err(error) if network.name != "bridge" => {
                    tracing::error!(%error, network = network.name, "network is out of order");
                }
                Err(error) => return Err(error),
            }
        }
        self.refresh_filter()
    }

    fn reconcile(
        self: &Arc<Self>,
        live: &HashMap<&ContainerId, u32>,
        errors: &mut Vec<Error>,
    ) -> Result<()> {
        let endpoints = self.db.endpoints()?;
        let ports = self.db.ports()?;
        let all = endpoints.iter().map(|row| &row.container);
        let mut dead: Vec<_> = all.chain(ports.iter().map(|row| &row.container)).collect();
        dead.retain(|container| !live.contains_key(container));
        dead.sort();
        dead.dedup();
        for container in dead {
            errors.extend(self.forget(container).err());
        }
        let socket = Socket::route().map_err(Error::kernel("netlink"))?;
        let links = link::links(&socket).map_err(Error::kernel("list interfaces"))?;
        let networks = self.db.networks()?;
        let mut known = Vec::new();
        for row in &endpoints {
            let network = networks.iter().find(|network| network.id == row.network);
            let pid = live.get(&row.container);
            if let (Some(network), Some(pid)) = (network, pid) {
                known.push(veth_name(row));
                self.names.add(network, row);
                errors.extend(self.revive(&socket, network, row, *pid, &links).err());
            }
        }
        for container in live.keys() {
            errors.extend(self.hold_again(container));
        }
        errors.extend(self.sweep(&socket, &networks, &links, &known).err());
        self.refresh_filter()?;
        // Of containers, too, that had no rows when the filter was loaded.
        let found = contents(&self.db, self.options.bridge_input)?;
        lock(&self.filter)
            .containers(found.forwards, found.sources)
            .map_err(Error::kernel("update packet filter"))
    }

    /// Makes a live container's endpoint whole: its port on the bridge, its name server.
    fn revive(
        &self,
        socket: &Socket,
        network: &NetworkRow,
        row: &EndpointRow,
        pid: u32,
        links: &[Link],
    ) -> Result<()> {
        let netns = PathBuf::from(format!("/proc/{pid}/ns/net"));
        let what = format!("network {} of {}", network.name, row.name);
        let Some(bridge) = &network.bridge else { return Ok(()) };
        let bridge = link::index(bridge).map_err(Error::kernel(what.clone()))?;
        let veth = links.iter().find(|link| link.name == veth_name(row));
        if let Some(veth) = veth.filter(|veth| veth.master != bridge) {
            link::enslave(socket, veth.index, bridge).map_err(Error::kernel(what.clone()))?;
        }
        let needs_names = {
            let mut running = lock(&self.running);
            let running = running.entry(row.container.clone()).or_default();
            running.netns.clone_from(&netns);
            has_names(network) && running.dns.is_none()
        };
        if needs_names {
            let sockets = File::open(netns)
                .and_then(|netns| within(&netns, dns::Sockets::open))
                .map_err(Error::kernel(what))?;
            let tasks = self.serve_names(row, sockets);
            lock(&self.running).entry(row.container.clone()).or_default().dns = Some(tasks);
        }
        Ok(())
    }

    /// Deletes ports of our bridges that no endpoint is behind.
    fn sweep(
        &self,
        socket: &Socket,
        networks: &[NetworkRow],
        links: &[Link],
        known: &[String],
    ) -> Result<()> {
        let ours = |index: u32| {
            let bridge = links.iter().find(|link| link.index == index);
            let name = bridge.map(|bridge| &bridge.name);
            networks
                .iter()
                .any(|network| network.bridge.is_some() && network.bridge.as_ref() == name)
        };
        let stale = links.iter().filter(|link| {
            link.kind == "veth"
                && link.name.starts_with("kv")
                && ours(link.master)
                && !known.contains(&link.name)
        });
        let mut outcome = Ok(());
        for link in stale {
            let deleted = link::delete(socket, &link.name)
                .map_err(Error::kernel(format!("remove stale interface {}", link.name)));
            outcome = outcome.and(deleted);
        }
        outcome
    }

    /// Loads the packet filter again whenever somebody else touches it
    /// (`nft flush ruleset`, a firewall's reload: CATALOGUE N08).
    fn watch(self: &Arc<Self>) -> std::io::Result<()> {
        let socket = Socket::netfilter()?;
        socket.subscribe(NFTABLES_GROUP)?;
        let (table, own) = {
            let filter = lock(&self.filter);
            (filter.table().to_owned(), filter.port()?)
        };
        let inner = Arc::downgrade(self);
        let mut tasks = self.server.tasks();
        tasks.spawn(async move {
            #[expect(deprecated, reason = "its successor is unsafe; our descriptor never changes")]
            let socket = AsyncFd::new(socket);
            match socket {
                Ok(socket) => watch(&socket, &inner, &table, own).await,
                Err(error) => tracing::warn!(%error, "packet filter is not watched"),
            }
        });
        // It ends with the thread.
        tasks.detach();
        Ok(())
    }
}

async fn watch(socket: &AsyncFd<Socket>, inner: &Weak<Inner>, table: &str, own: u32) {
    let mut buffer = buffer();
    while let Ok(mut ready) = socket.readable().await {
        let (mut ours, mut beside) = (false, false);
        loop {
            match socket.get_ref().try_receive(&mut buffer) {
                Ok(Some(datagram)) => {
                    for message in Messages(datagram).filter(|message| message.port != own) {
                        match filter::concerns(table, message.payload) {
                            Some(Touched::Ours) => ours = true,
                            Some(Touched::Beside) => beside = true,
                            None => {}
                        }
                    }
                }
                Ok(None) => break,
                // Notifications were lost: who knows what they said.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    (ours, beside) = (true, true);
                }
                Err(error) => return tracing::warn!(%error, "packet filter is not watched"),
            }
        }
        ready.clear_ready();
        let Some(inner) = inner.upgrade() else { return };
        let mut filter = lock(&inner.filter);
        if inner.left.load(Ordering::Relaxed) {
            return;
        }
        if ours {
            tracing::warn!(table, "somebody changed the packet filter: loading it again");
            if let Err(error) = filter.reload() {
                tracing::error!(%error, "cannot load the packet filter");
            }
        }
        if beside {
            filter.ensure_beside();
        }
    }
}

//! The packet filter: two nf_tables tables of our own, `knarr-<instance>` in the
//! families `inet` (what the host routes, answers and sends) and `bridge` (what
//! containers send: only from their own addresses, CATALOGUE N07).
//!
//! Loaded whole, in one transaction, when the engine opens (or when somebody
//! flushed it); from then on only elements of its sets and maps come and go.
//! What should be in them is always known from the rows ([`Contents`]), so any
//! doubt (an element that is missing, a map entry that differs) ends in a
//! reload of everything instead of a guess.

mod beside;
mod conntrack;
mod encode;
mod inside;
mod rules;

use std::{collections::BTreeSet, io, net::Ipv4Addr};

pub(crate) use conntrack::forget_udp;
use encode::{Element, Transaction};
pub(crate) use inside::redirect;
use knarr_model::{Subnet4, Transport};
use knarr_netlink::{Attributes, Socket, text};
pub use rules::describe;
use rules::{CHAINS, Family, SETS, Set};

/// A bridge, as far as the filter knows it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Bridge {
    pub(crate) name: String,
    pub(crate) internal: bool,
    /// Its containers talk to each other.
    pub(crate) together: bool,
    /// It leaves the host under the host's address.
    pub(crate) masquerade: Option<Subnet4>,
    /// No service of the host is reached from it.
    pub(crate) closed: bool,
}

/// The source that a container's packets have to have.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Source {
    /// The host's end of its veth pair.
    pub(crate) end: String,
    pub(crate) mac: [u8; 6],
    pub(crate) address: Ipv4Addr,
}

/// A host port that is forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Forward {
    /// None is every address.
    pub(crate) host: Option<Ipv4Addr>,
    pub(crate) transport: Transport,
    pub(crate) port: u16,
    pub(crate) to: (Ipv4Addr, u16),
}

/// All that the sets and maps hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Contents {
    pub(crate) bridges: BTreeSet<Bridge>,
    pub(crate) forwards: BTreeSet<Forward>,
    pub(crate) sources: BTreeSet<Source>,
    /// TCP ports of the engine's own services.
    pub(crate) guarded: BTreeSet<u16>,
}

impl Contents {
    fn elements(&self, set: Set) -> Vec<Element<'_>> {
        let bridges = self.bridges.iter();
        match set {
            Set::Bridges => bridges.map(|bridge| Element::Interface(&bridge.name)).collect(),
            Set::Internal => bridges
                .filter(|bridge| bridge.internal)
                .map(|bridge| Element::Interface(&bridge.name))
                .collect(),
            Set::Closed => bridges
                .filter(|bridge| bridge.closed)
                .map(|bridge| Element::Interface(&bridge.name))
                .collect(),
            Set::Guarded => self.guarded.iter().map(|port| Element::Service(*port)).collect(),
            Set::Ends => {
                self.sources.iter().map(|source| Element::Interface(&source.end)).collect()
            }
            Set::Sources => self
                .sources
                .iter()
                .map(|Source { end, mac, address }| Element::Source {
                    end,
                    mac: *mac,
                    address: *address,
                })
                .collect(),
            Set::Paths => bridges
                .filter(|bridge| bridge.together)
                .map(|bridge| Element::Path(&bridge.name))
                .collect(),
            Set::Subnets => {
                bridges.filter_map(|bridge| bridge.masquerade).map(Element::Subnet).collect()
            }
            Set::Published => self.ports(|host| host.is_some()),
            Set::PublishedAny => self.ports(|host| host.is_none()),
        }
    }

    fn ports(&self, which: impl Fn(Option<Ipv4Addr>) -> bool) -> Vec<Element<'_>> {
        let forwards = self.forwards.iter().filter(|forward| which(forward.host));
        forwards
            .map(|&Forward { host, transport, port, to }| Element::Port {
                host,
                transport,
                port,
                to,
            })
            .collect()
    }
}

/// The tables of one engine.
#[derive(Debug)]
pub(crate) struct Filter {
    socket: Socket,
    table: String,
    contents: Contents,
    /// Sources that the kernel may still have: they name interfaces that are gone, and no
    /// other will have their names.
    forgotten: Vec<Source>,
    /// What the kernel has: bridges are an option of it.
    families: &'static [Family],
}

impl Filter {
    /// Loads the tables with these contents, replacing what was there.
    pub(crate) fn load(instance: &str, contents: Contents) -> io::Result<Self> {
        let (socket, table) = (Socket::netfilter()?, format!("knarr-{instance}"));
        let families = &[Family::Inet, Family::Bridge];
        let mut filter = Self { socket, table, contents, forgotten: Vec::new(), families };
        match filter.reload() {
            // The kernel has no chains for bridges (CONFIG_NF_TABLES_BRIDGE).
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EOPNOTSUPP)) => {
                filter.families = &[Family::Inet];
                filter.reload()?;
                tracing::warn!(
                    "this kernel's nf_tables cannot filter bridges: containers are not kept from forging sources"
                );
            }
            outcome => outcome?,
        }
        filter.ensure_beside();
        Ok(filter)
    }

    /// The table's name.
    pub(crate) fn table(&self) -> &str {
        &self.table
    }

    /// Loads everything again.
    pub(crate) fn reload(&mut self) -> io::Result<()> {
        self.forgotten.clear();
        let mut transaction = Transaction::new(&self.table);
        for family in self.families {
            transaction.reset_table(*family);
        }
        for (id, set) in self.sets().enumerate() {
            transaction.set(set, id as u32 + 1);
        }
        let chains = CHAINS.iter().filter(|chain| self.families.contains(&chain.family));
        for chain in chains.clone() {
            transaction.chain(chain);
        }
        for chain in chains {
            for rule in chain.rules {
                transaction.rule(chain, rule);
            }
        }
        for set in self.sets() {
            transaction.elements(set, &self.contents.elements(set), true);
        }
        self.commit(transaction)
    }

    /// Makes the sets hold these contents instead.
    fn update(&mut self, contents: Contents) -> io::Result<()> {
        let mut transaction = Transaction::new(&self.table);
        let mut changed = false;
        for set in self.sets() {
            let (old, new) = (self.contents.elements(set), contents.elements(set));
            // The usual case, and the sets of many containers are long.
            if old == new {
                continue;
            }
            let gone: Vec<_> = old.iter().filter(|e| !new.contains(e)).copied().collect();
            let come: Vec<_> = new.iter().filter(|e| !old.contains(e)).copied().collect();
            changed |= !gone.is_empty() || !come.is_empty();
            transaction.elements(set, &gone, false);
            transaction.elements(set, &come, true);
        }
        let outcome = if changed { self.commit(transaction) } else { Ok(()) };
        self.forgotten.retain(|source| !contents.sources.contains(source));
        self.contents = contents;
        if changed {
            self.ensure_beside();
        }
        // The kernel's sets are not what we thought: load what should be there.
        outcome.or_else(|_| self.reload())
    }

    /// Adds and takes away forwards.
    pub(crate) fn forward(&mut self, forwards: &[Forward], add: bool) -> io::Result<()> {
        if forwards.is_empty() {
            return Ok(());
        }
        let part = Contents { forwards: forwards.iter().copied().collect(), ..Contents::default() };
        for forward in forwards {
            if add {
                self.contents.forwards.insert(*forward);
            } else {
                self.contents.forwards.remove(forward);
            }
        }
        let mut transaction = Transaction::new(&self.table);
        for set in [Set::Published, Set::PublishedAny] {
            transaction.elements(set, &part.elements(set), add);
        }
        self.commit(transaction).or_else(|_| self.reload())
    }

    /// Adds the source of a container's packets, and takes away those that are forgotten.
    pub(crate) fn source(&mut self, source: Source) -> io::Result<()> {
        let new = self.contents.sources.insert(source.clone());
        self.sources(new.then_some(source))
    }

    /// A container's packets have no source any more. The kernel hears of it with the next
    /// change of sources: whether there is something to tell it.
    pub(crate) fn forget_source(&mut self, source: &Source) -> bool {
        let known = self.contents.sources.take(source);
        self.forgotten.extend(known);
        !self.forgotten.is_empty()
    }

    /// Takes away the sources that are forgotten.
    pub(crate) fn settle(&mut self) -> io::Result<()> {
        self.sources(None)
    }

    fn sources(&mut self, come: Option<Source>) -> io::Result<()> {
        let gone = std::mem::take(&mut self.forgotten);
        if (gone.is_empty() && come.is_none()) || !self.families.contains(&Family::Bridge) {
            return Ok(());
        }
        let of = |sources: BTreeSet<Source>| Contents { sources, ..Contents::default() };
        let (gone, come) = (of(gone.into_iter().collect()), of(come.into_iter().collect()));
        let mut transaction = Transaction::new(&self.table);
        for set in [Set::Ends, Set::Sources] {
            transaction.elements(set, &gone.elements(set), false);
            transaction.elements(set, &come.elements(set), true);
        }
        self.commit(transaction).or_else(|_| self.reload())
    }

    /// Makes these the bridges that it knows.
    pub(crate) fn bridges(&mut self, bridges: BTreeSet<Bridge>) -> io::Result<()> {
        self.update(Contents { bridges, ..self.contents.clone() })
    }

    /// Makes these the ports and sources of all containers: for the opening, when
    /// none comes or goes.
    pub(crate) fn containers(
        &mut self,
        forwards: BTreeSet<Forward>,
        sources: BTreeSet<Source>,
    ) -> io::Result<()> {
        self.update(Contents { forwards, sources, ..self.contents.clone() })
    }

    /// Makes these TCP ports of the host be out of containers' reach.
    pub(crate) fn guard(&mut self, ports: BTreeSet<u16>) -> io::Result<()> {
        self.update(Contents { guarded: ports, ..self.contents.clone() })
    }

    fn sets(&self) -> impl Iterator<Item = Set> + use<> {
        let families = self.families;
        SETS.into_iter().filter(move |set| families.contains(&set.family()))
    }

    /// Deletes the tables, and what is elsewhere for it.
    pub(crate) fn unload(instance: &str) -> io::Result<()> {
        let (socket, table) = (Socket::netfilter()?, format!("knarr-{instance}"));
        let beside = beside::ensure(&socket, &table, std::iter::empty());
        let mut transaction = Transaction::new(&table);
        for family in [Family::Inet, Family::Bridge] {
            transaction.delete_table(family);
        }
        socket.send(&transaction.finish()).and(beside)
    }

    /// Gets our bridges through another engine's filter.
    pub(crate) fn ensure_beside(&self) {
        let bridges = self.contents.bridges.iter().map(|bridge| bridge.name.as_str());
        if let Err(error) = beside::ensure(&self.socket, &self.table, bridges) {
            tracing::warn!(%error, "cannot add our bridges to iptables' FORWARD chain");
        }
    }

    /// What it holds.
    #[cfg(test)]
    pub(crate) fn contents(&self) -> &Contents {
        &self.contents
    }

    /// The socket's number: changes under another one are not ours.
    pub(crate) fn port(&self) -> io::Result<u32> {
        self.socket.port()
    }

    fn commit(&self, transaction: Transaction<'_>) -> io::Result<()> {
        let packet = transaction.finish();
        if packet.bytes().len() > 100_000 {
            self.socket.enlarge(packet.bytes().len() * 2)?;
        }
        self.socket.send(&packet)
    }
}

/// Whether a notification of the kernel is about this table, or about another
/// engine's that we live beside.
pub(crate) fn concerns(table: &str, payload: &[u8]) -> Option<Touched> {
    if names_table(table, payload) {
        return Some(Touched::Ours);
    }
    beside::concerns(payload).then_some(Touched::Beside)
}

/// What somebody else changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Touched {
    Ours,
    Beside,
}

/// nfgenmsg, then in all messages but those of generations the table's name.
fn names_table(table: &str, payload: &[u8]) -> bool {
    let name = payload.get(4..).and_then(|rest| Attributes(rest).find(|(kind, _)| *kind == 1));
    name.is_some_and(|(_, name)| text(name) == table)
}

#[cfg(test)]
mod tests;

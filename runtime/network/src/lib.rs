//! Networks: addresses, bridges, packet filter, names, published ports.
//!
//! ```text
//!   container A            container B             host
//!   ┌────────────┐         ┌────────────┐
//!   │ 127.0.0.11 │ names   │ 127.0.0.11 │ ← sockets of the engine inside each netns
//!   │ eth0 ──────┼─ veth ─┐│ eth0 ──────┼─ veth ─┐
//!   └────────────┘        ││            │        │
//!                      ┌──┴┴────────────┴────────┴──┐
//!                      │ bridge (a network)         │ gateway address
//!                      └─────────────┬──────────────┘
//!         table inet knarr-<instance>: isolation, DNAT of published ports, masquerade
//! ```
//!
//! Everything is told to the kernel over netlink; no tool is ever executed.
//! Functions block for the kernel's time, about a millisecond; names
//! and the userland path of published ports are served by tokio on a thread of ours.
//!
//! **Life cycle.** A row is written before its resource is made, and deleted
//! after the resource is gone. [`Networks::open`] makes bridges and packet
//! filter match the rows; [`Networks::reconcile`] then forgets what belongs to
//! containers that are dead, and listens again for those that live.
//!
//! **How it fails.** An attach or publish that fails leaves nothing behind.
//! Teardown goes on after an error and reports them all. The packet filter is
//! one table of our own, loaded in one transaction: either all of it is there
//! or what was there before; if somebody flushes it, a watcher loads it again.

#![forbid(unsafe_code)]

mod error;
mod options;
mod types;

use std::{net::IpAddr, sync::Arc};

use knarr_model::{ContainerId, Name, NetworkId, PortBinding};
use knarr_state::Db;

pub use error::Error;
pub use options::{Options, Pool};
pub use types::{Attach, Endpoint, HostsFile, Network, NetworkSpec, PublishedPort, ResolvConf};

/// What an operation answers.
pub type Result<T> = std::result::Result<T, Error>;

/// The networks of one engine. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Networks {
    _db: Arc<Db>,
}

#[allow(unused_variables, reason = "being filled in")]
impl Networks {
    /// Makes bridges and packet filter match the rows and starts to watch over them.
    ///
    /// The default networks `bridge`, `host` and `none` are created where they
    /// are missing. Call [`Networks::reconcile`] next, before any attach.
    ///
    /// # Errors
    /// When the kernel refuses (no CAP_NET_ADMIN, no nf_tables), or no pool is free.
    pub fn open(db: Arc<Db>, options: Options) -> Result<Self> {
        Err(Error::NotSupported("networks".into()))
    }

    /// Removes what belongs to containers that are not in `live`; for those that
    /// are (with the pid of their first process), answers names and published
    /// ports again.
    pub fn reconcile(&self, live: &[(ContainerId, u32)]) -> Vec<Error> {
        Vec::new()
    }

    /// Creates a network.
    ///
    /// # Errors
    /// `Conflict` for a name that exists; `Forbidden` for addresses that overlap.
    pub fn create(&self, spec: &NetworkSpec) -> Result<Network> {
        Err(Error::NotSupported("networks".into()))
    }

    /// Removes a network and answers its id.
    ///
    /// # Errors
    /// `NotFound`; `Forbidden` for the default ones and while containers are attached.
    pub fn remove(&self, name_or_id: &str) -> Result<NetworkId> {
        Err(Error::NotSupported("networks".into()))
    }

    /// All networks by name, with their endpoints.
    ///
    /// # Errors
    /// Of the database.
    pub fn list(&self) -> Result<Vec<Network>> {
        Ok(Vec::new())
    }

    /// One network by name, id or the beginning of one.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn inspect(&self, name_or_id: &str) -> Result<Network> {
        Err(Error::NotFound(name_or_id.into()))
    }

    /// Puts a container into a network: its namespace gets an interface, an
    /// address, routes, and on user-defined networks a name server.
    ///
    /// For `none` (and `host`) only the row is written, and loopback comes up in `none`.
    ///
    /// # Errors
    /// `NotFound`, `Conflict` (address in use, already attached), `InvalidArgument`.
    pub fn attach(&self, attach: &Attach<'_>) -> Result<Endpoint> {
        Err(Error::NotFound(attach.network.into()))
    }

    /// Takes a running container out of one network.
    ///
    /// # Errors
    /// `NotFound` when it is not attached there.
    pub fn disconnect(&self, container: &ContainerId, network: &str) -> Result<()> {
        Ok(())
    }

    /// Forwards host ports to a container that is attached already, all or none.
    ///
    /// `name` is the container's, for messages. Answers one entry a family:
    /// `0.0.0.0` and `::` for a binding without an address, as Docker shows it.
    ///
    /// # Errors
    /// `Conflict`, with Docker's wording, when a port is taken.
    pub fn publish(
        &self,
        container: &ContainerId,
        name: &str,
        bindings: &[PortBinding],
    ) -> Result<Vec<PublishedPort>> {
        Ok(Vec::new())
    }

    /// Everything of a container goes: ports, names, endpoints, addresses.
    ///
    /// Its interfaces die with its namespace; nothing waits for that. Goes on
    /// after an error; success when there is nothing to do.
    ///
    /// # Errors
    /// The first failure, after everything was tried.
    pub fn detach(&self, container: &ContainerId) -> Result<()> {
        Ok(())
    }

    /// The endpoints of a container, in the order of their interfaces.
    ///
    /// # Errors
    /// Of the database.
    pub fn endpoints(&self, container: &ContainerId) -> Result<Vec<Endpoint>> {
        Ok(Vec::new())
    }

    /// The published ports of a container.
    ///
    /// # Errors
    /// Of the database.
    pub fn ports(&self, container: &ContainerId) -> Result<Vec<PublishedPort>> {
        Ok(Vec::new())
    }

    /// A container has another name now: its networks answer to it.
    ///
    /// # Errors
    /// Of the database.
    pub fn rename(&self, container: &ContainerId, name: &Name) -> Result<()> {
        Ok(())
    }

    /// The text of `/etc/resolv.conf` for a container.
    pub fn resolv_conf(&self, file: &ResolvConf<'_>) -> String {
        String::new()
    }

    /// The text of `/etc/hosts` for a container.
    ///
    /// # Errors
    /// `InvalidArgument` for an extra host whose address is none.
    pub fn hosts(&self, file: &HostsFile<'_>) -> Result<String> {
        Ok(String::new())
    }

    /// What `host-gateway` means: the default bridge's address unless configured.
    pub fn host_gateway(&self) -> Option<IpAddr> {
        None
    }
}

mod filter;
mod link;
mod netlink;
mod netns;
#[cfg(test)]
mod testing;

pub use filter::describe;

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
//!         table bridge knarr-<instance>: what enters a bridge has its sender's own addresses
//! ```
//!
//! Everything is told to the kernel over netlink; no tool is ever executed.
//! Functions block for the kernel's time, about a millisecond; names
//! and the userland path of published ports are served by tokio on a thread of ours.
//!
//! **Life cycle.** A row is written before its resource is made, and deleted
//! after the resource is gone. [`Networks::open`] makes bridges and packet
//! filter match the rows, of networks that the database does not know, too, where
//! they have a record; [`Networks::reconcile`] then forgets what belongs to
//! containers that are dead, and listens again for those that live.
//!
//! **How it fails.** An attach or publish that fails leaves nothing behind.
//! Teardown goes on after an error and reports them all. The packet filter is
//! two tables of our own, loaded in one transaction: either all of it is there
//! or what was there before; if somebody flushes it, a watcher loads it again.

#![forbid(unsafe_code)]

mod adopt;
mod attach;
mod bridge;
mod budget;
mod dns;
mod error;
mod files;
mod filter;
mod link;
mod manage;
mod names;
mod options;
mod pools;
mod ports;
mod proxy;
mod publish;
mod recover;
mod sysctl;
mod tasks;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod types;

use std::{
    collections::HashMap,
    hash::{BuildHasher, BuildHasherDefault, DefaultHasher},
    net::IpAddr,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicBool},
};

use knarr_model::ContainerId;
use knarr_state::Db;
use knarr_sys::read;

pub use error::Error;
pub use filter::describe;
pub use options::{BridgeInput, Options, Pool};
pub use types::{Attach, Endpoint, HostsFile, Network, NetworkSpec, PublishedPort, ResolvConf};

/// What an operation answers.
pub type Result<T> = std::result::Result<T, Error>;

/// The networks of one engine. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Networks {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    db: Arc<Db>,
    options: Options,
    filter: Mutex<filter::Filter>,
    names: Arc<names::Names>,
    budget: Arc<budget::Budget>,
    running: Mutex<HashMap<ContainerId, Running>>,
    /// Held while networks or addresses are chosen and rows written.
    changes: Mutex<()>,
    /// Held, one of them, while a container's endpoints change.
    turns: [Mutex<()>; 32],
    /// Bridges and packet filter are gone for good: nobody puts them back.
    left: AtomicBool,
    /// What people should know since it was opened.
    notices: Mutex<Vec<String>>,
    /// Last: tasks end before their thread does.
    server: tasks::Server,
}

/// What is open for a running container.
#[derive(Debug, Default)]
struct Running {
    netns: PathBuf,
    /// The name server inside its namespace.
    dns: Option<tasks::Tasks>,
    /// What holds its published ports.
    ports: Option<tasks::Tasks>,
}

impl Networks {
    /// What people should know of since the networks were opened, in sentences.
    pub fn notices(&self) -> Vec<String> {
        lock(&self.inner.notices).clone()
    }

    /// The text of `/etc/resolv.conf` for a container.
    pub fn resolv_conf(&self, file: &ResolvConf<'_>) -> String {
        let options = &self.inner.options;
        let host = read::text(&options.resolv_conf, read::SMALL).unwrap_or_default();
        files::resolv_conf(file, &options.dns, &host)
    }

    /// The text of `/etc/hosts` for a container.
    ///
    /// # Errors
    /// `InvalidArgument` for an extra host whose address is none.
    pub fn hosts(&self, file: &HostsFile<'_>) -> Result<String> {
        files::hosts(file, self.host_gateway())
    }

    /// What `host-gateway` means: the default bridge's address unless configured.
    pub fn host_gateway(&self) -> Option<IpAddr> {
        let default = || self.inner.db.network("bridge").ok().flatten()?.gateway.map(IpAddr::V4);
        self.inner.options.host_gateway.or_else(default)
    }
}

impl Inner {
    /// One at a time for each container.
    fn turn(&self, container: &ContainerId) -> MutexGuard<'_, ()> {
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(container);
        lock(&self.turns[hash as usize % self.turns.len()])
    }
}

/// A panic while it was held left nothing half-done that a reload would not mend.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// 32 bytes that nobody guesses, for ids.
fn random() -> Result<[u8; 32]> {
    let mut bytes = [0; 32];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(|errno| Error::Kernel { what: "getrandom".into(), source: errno.into() })?;
    Ok(bytes)
}

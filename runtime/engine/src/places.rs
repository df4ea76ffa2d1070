//! Namespaces of other containers that a start joins.
//!
//! They are named by the number of the other's first process, which may end at any
//! moment, and its number go to a stranger (CATALOGUE K10). So that process is held
//! from before the names are made until they have been opened: if it lived all the
//! time, they were its own.

use std::path::PathBuf;

use knarr_model::{ContainerSpec, Name, NamespaceMode, NetworkMode};
use knarr_sys::HeldProcess;

use crate::{
    Error, Result,
    container::Container,
    engine::Engine,
    oci::{Place, Places},
};

/// Whose namespaces are joined, by name.
pub(crate) type Joined = Vec<(Name, HeldProcess)>;

impl Engine {
    /// The namespaces of this start: other containers are asked for their pid now. The
    /// first processes whose they are come with them: the paths are theirs as long as
    /// those live.
    pub(crate) fn places(&self, spec: &ContainerSpec) -> Result<(Places, Joined)> {
        let mut joined = Vec::new();
        let mut of = |key: &str, what: &str| -> Result<Place> {
            let other = self.find(key)?;
            let (name, status, pid) = {
                let facts = other.facts();
                (facts.name.clone(), facts.state.status, facts.state.pid)
            };
            let first = if status.is_running() { self.hold_first(&other, pid)? } else { None };
            let Some(first) = first else {
                return Err(Error::conflict(format!(
                    "cannot join {what} namespace of a non running container: container {name} is {}",
                    if status.is_running() { "ending" } else { status.as_str() }
                )));
            };
            joined.push((name, first));
            Ok(Place::Of(PathBuf::from(format!("/proc/{pid}/ns/{what}"))))
        };
        let network = match &spec.network_mode {
            NetworkMode::Host => Place::Host,
            NetworkMode::Container(key) => of(key, "net")?,
            _ => Place::New,
        };
        let mut place = |mode: &NamespaceMode, what: &str| match mode {
            NamespaceMode::Private | NamespaceMode::Shareable => Ok(Place::New),
            NamespaceMode::Host => Ok(Place::Host),
            NamespaceMode::Container(key) => of(key, what),
        };
        let places = Places {
            network,
            pid: place(&spec.pid_mode, "pid")?,
            ipc: place(&spec.ipc_mode, "ipc")?,
            uts: match (&spec.uts_mode, &spec.network_mode) {
                (NamespaceMode::Host, _) => Place::Host,
                // A shared network has the other's name (moby `daemon/container_operations_unix.go`).
                (_, NetworkMode::Container(_)) if spec.hostname.is_none() => Place::New,
                (mode, _) => place(mode, "uts")?,
            },
        };
        Ok((places, joined))
    }

    /// The first process of a running container, if that is who its shim said.
    fn hold_first(&self, container: &Container, pid: u32) -> Result<Option<HeldProcess>> {
        match self.first_process(container).filter(|record| record.pid == pid) {
            Some(record) => HeldProcess::of(pid, record.start_time).map_err(|errno| {
                Error::io(format!("open process {pid}"), std::io::Error::from(errno))
            }),
            None => Ok(None),
        }
    }
}

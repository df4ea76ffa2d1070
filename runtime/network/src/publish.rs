//! Host ports forwarded to containers: all of a container's, or none.
//!
//! ```text
//!   publish:  sockets bound → rows → filter elements → userland path
//!   withdraw: filter elements → sockets closed → rows
//! ```

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr},
};

use knarr_model::{ContainerId, PortBinding, Transport};
use knarr_netlink::Socket;
use knarr_state::networks::{EndpointRow, Inserted, NetworkRow, PortRow};

use crate::{
    Error, Inner, Networks, PublishedPort, Result,
    attach::veth_name,
    bridge::OPTION_HOST,
    filter::forget_udp,
    link::{self, PortFlag},
    lock,
    manage::forward,
    ports::{self, Held, PortError},
};

impl Networks {
    /// Forwards host ports to a container that is attached already, all or none.
    ///
    /// `name` is the container's, for messages. Answers one entry a family:
    /// `0.0.0.0` and `::` for a binding without an address, as Docker shows it.
    /// Nothing is published for a container on `host`, `none` or internal
    /// networks alone.
    ///
    /// # Errors
    /// `Internal`, with Docker's wording, when a port is taken.
    pub fn publish(
        &self,
        container: &ContainerId,
        name: &str,
        bindings: &[PortBinding],
    ) -> Result<Vec<PublishedPort>> {
        let inner = &self.inner;
        if bindings.is_empty() {
            return Ok(Vec::new());
        }
        let _turn = inner.turn(container);
        let Some((network, endpoint)) = inner.outward(container)? else { return Ok(Vec::new()) };
        let Some(address) = endpoint.ipv4 else { return Ok(Vec::new()) };
        let port_error = |PortError { reason, taken }| Error::Port {
            name: name.into(),
            endpoint: endpoint.id.clone(),
            reason,
            taken,
        };
        let default_host = network.options.get(OPTION_HOST).and_then(|host| host.parse().ok());
        let default_host = default_host.filter(|host: &Ipv4Addr| !host.is_unspecified());
        let mut held = Vec::new();
        for binding in bindings {
            let mut binding = binding.clone();
            binding.host_ip = binding.host_ip.or(default_host.map(IpAddr::V4));
            held.extend(ports::hold(&binding).map_err(port_error)?);
        }
        let rows: Vec<_> = held
            .iter()
            .map(|held| PortRow {
                container: container.clone(),
                host_ip: held.port.host_ip,
                host_port: held.port.host_port,
                container_ip: address,
                port: held.port.port,
            })
            .collect();
        let outcome = inner.program(&endpoint, &rows, held);
        if let Err(error) = outcome {
            let _ = inner.withdraw(container);
            return Err(match error {
                Error::Conflict(reason) => port_error(PortError { reason, taken: true }),
                other => other,
            });
        }
        Ok(rows.iter().map(published).collect())
    }

    /// The published ports of a container.
    ///
    /// # Errors
    /// Of the database.
    pub fn ports(&self, container: &ContainerId) -> Result<Vec<PublishedPort>> {
        Ok(self.inner.db.ports_of(container)?.iter().map(published).collect())
    }
}

fn published(row: &PortRow) -> PublishedPort {
    PublishedPort { host_ip: row.host_ip, host_port: row.host_port, port: row.port }
}

impl Inner {
    /// Where a container's way out leads, if it has one.
    fn outward(&self, container: &ContainerId) -> Result<Option<(NetworkRow, EndpointRow)>> {
        let endpoint = self.db.endpoints_of(container)?.into_iter().find(|row| row.gateway);
        endpoint.map(|row| Ok((self.network(row.network.as_str())?, row))).transpose()
    }

    fn program(&self, to: &EndpointRow, rows: &[PortRow], held: Vec<Held>) -> Result<()> {
        for row in rows {
            if self.db.insert_port(row)? == Inserted::Taken {
                return Err(Error::Conflict(format!(
                    "Bind for {}:{} failed: port is already allocated",
                    row.host_ip, row.host_port
                )));
            }
        }
        self.forward(to, rows)?;
        self.serve_ports(&to.container, rows, held);
        Ok(())
    }

    /// Holds ports and carries what the kernel does not forward.
    fn serve_ports(&self, container: &ContainerId, rows: &[PortRow], held: Vec<Held>) {
        let mut tasks = self.server.tasks();
        let to: HashMap<_, _> = rows.iter().map(|row| (published(row), row.container_ip)).collect();
        for held in held {
            if let Some(address) = to.get(&held.port) {
                held.serve(*address, self.budget.seats.clone(), &mut tasks);
            }
        }
        lock(&self.running).entry(container.clone()).or_default().ports = Some(tasks);
    }

    /// Holds again what the rows say is published.
    pub(crate) fn hold_again(&self, container: &ContainerId) -> Vec<Error> {
        let rows = match self.db.ports_of(container) {
            Ok(rows) => rows,
            Err(error) => return vec![error.into()],
        };
        let (mut held, mut errors) = (Vec::new(), Vec::new());
        for row in &rows {
            let binding = PortBinding {
                container: row.port,
                host_ip: Some(row.host_ip),
                host_port: Some(row.host_port),
                host_port_end: None,
            };
            match ports::hold(&binding) {
                Ok(again) => held.extend(again),
                // Somebody was quicker while no engine ran; the kernel forwards on.
                Err(error) => errors.push(Error::Port {
                    name: container.short().into(),
                    endpoint: String::new(),
                    reason: error.reason,
                    taken: error.taken,
                }),
            }
        }
        if !held.is_empty() {
            self.serve_ports(container, &rows, held);
        }
        errors
    }

    /// Takes a container's published ports back, and goes on after an error.
    pub(crate) fn withdraw(&self, container: &ContainerId) -> Result<()> {
        let rows = self.db.ports_of(container)?;
        let forwards: Vec<_> = rows.iter().filter_map(forward).collect();
        let filtered = lock(&self.filter)
            .forward(&forwards, false)
            .map_err(Error::kernel("remove published ports from the packet filter"));
        self.forget_flows(&rows);
        let tasks = lock(&self.running).get_mut(container).and_then(|running| running.ports.take());
        drop(tasks);
        let deleted = if rows.is_empty() { Ok(()) } else { self.db.delete_ports(container) };
        filtered.and(deleted.map_err(Error::from))
    }

    /// Forwards a container's published ports to another endpoint of it.
    pub(crate) fn redirect(&self, to: &EndpointRow) -> Result<()> {
        let rows = self.db.ports_of(&to.container)?;
        let Some(address) = to.ipv4.filter(|_| !rows.is_empty()) else { return Ok(()) };
        self.withdraw(&to.container)?;
        let rows: Vec<_> =
            rows.into_iter().map(|row| PortRow { container_ip: address, ..row }).collect();
        for row in &rows {
            self.db.insert_port(row)?;
        }
        self.forward(to, &rows)?;
        self.hold_again(&to.container).into_iter().try_for_each(Err)
    }

    /// UDP flows are decided about anew, beside whatever comes next.
    fn forget_flows(&self, rows: &[PortRow]) {
        let udp = rows.iter().filter(|row| row.port.transport == Transport::Udp);
        let ports: Vec<_> = udp.map(|row| row.host_port).collect();
        if !ports.is_empty() {
            self.server.blocking(move || {
                if let Err(error) = forget_udp(&ports) {
                    tracing::debug!(%error, "cannot forget UDP flows");
                }
            });
        }
    }

    /// Lets the kernel forward.
    fn forward(&self, to: &EndpointRow, rows: &[PortRow]) -> Result<()> {
        let forwards: Vec<_> = rows.iter().filter_map(forward).collect();
        lock(&self.filter)
            .forward(&forwards, true)
            .map_err(Error::kernel("add published ports to the packet filter"))?;
        self.forget_flows(rows);
        // Where br_netfilter rewrites what is bridged, a container that asks for
        // a published port of its own is answered through the port it came by.
        let rewrites = std::fs::read("/proc/sys/net/bridge/bridge-nf-call-iptables");
        if rewrites.is_ok_and(|value| value.first() == Some(&b'1')) {
            Socket::route()
                .and_then(|socket| link::set_port(&socket, &veth_name(to), PortFlag::Hairpin))
                .map_err(Error::kernel("set up bridge port"))?;
        }
        Ok(())
    }
}

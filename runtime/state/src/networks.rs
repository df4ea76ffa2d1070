//! Networks, the places of containers in them, and published ports.
//!
//! Rows come before resources and go after them, so that recovery finds what a
//! crash left. Uniqueness is the schema's business, not a check before a write:
//! two networks never share a name or a bridge, two endpoints of a network
//! never share an address, and a network with endpoints cannot be deleted.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
};

use knarr_model::{ContainerId, NetworkId, PortSpec, Subnet4, Transport};
use rusqlite::{Connection, ErrorCode, OptionalExtension, Row, params};
use serde::{Deserialize, Serialize};

use crate::{Db, Error, Result, Unreadable};

pub(crate) const SCHEMA: &str = "
CREATE TABLE networks (
    id     TEXT PRIMARY KEY,
    name   TEXT NOT NULL UNIQUE,
    bridge TEXT UNIQUE,                     -- name of the interface; NULL for host and none
    data   TEXT NOT NULL                    -- JSON, NetworkRow
) STRICT, WITHOUT ROWID;

CREATE TABLE endpoints (
    network   TEXT NOT NULL REFERENCES networks(id),
    container TEXT NOT NULL,
    ipv4      INTEGER,                      -- NULL on host and none
    ifindex   INTEGER NOT NULL,             -- N of ethN
    data      TEXT NOT NULL,                -- JSON, EndpointRow
    PRIMARY KEY (network, container),
    UNIQUE (network, ipv4),
    UNIQUE (container, ifindex)
) STRICT, WITHOUT ROWID;

CREATE TABLE ports (
    container      TEXT NOT NULL,
    transport      TEXT NOT NULL,           -- tcp, udp
    host_ip        TEXT NOT NULL,
    host_port      INTEGER NOT NULL,
    container_ip   INTEGER NOT NULL,
    container_port INTEGER NOT NULL,
    PRIMARY KEY (transport, host_ip, host_port)
) STRICT, WITHOUT ROWID;
CREATE INDEX ports_by_container ON ports (container);
";

/// A network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkRow {
    /// Its id.
    pub id: NetworkId,
    /// Its name, unique.
    pub name: String,
    /// `bridge`, `host` or `null`.
    pub driver: String,
    /// RFC 3339 with nanoseconds.
    pub created: String,
    /// The bridge's interface name.
    pub bridge: Option<String>,
    /// No way out of it.
    pub internal: bool,
    /// What Swarm asks; kept for inspect.
    pub attachable: bool,
    /// Its addresses.
    pub subnet: Option<Subnet4>,
    /// The host's address in it.
    pub gateway: Option<Ipv4Addr>,
    /// Addresses are chosen from here.
    pub ip_range: Option<Subnet4>,
    /// Addresses that are never chosen, by the user's name for them.
    pub aux_addresses: BTreeMap<String, Ipv4Addr>,
    /// The user asked for these addresses (else they came from the pools).
    pub fixed_subnet: bool,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Driver options.
    pub options: BTreeMap<String, String>,
}

/// A container's place in a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointRow {
    /// 64 hexadecimal digits.
    pub id: String,
    /// The network.
    pub network: NetworkId,
    /// The container.
    pub container: ContainerId,
    /// The container's name (changes with `rename`).
    pub name: String,
    /// The container's host name.
    pub hostname: String,
    /// Further names in this network.
    pub aliases: Vec<String>,
    /// Its address; none on host and none.
    pub ipv4: Option<Ipv4Addr>,
    /// Its hardware address.
    pub mac: String,
    /// The user asked for this address.
    pub fixed_ipv4: bool,
    /// N of ethN inside.
    pub index: u32,
    /// The container's default route goes here.
    pub gateway: bool,
    /// Name servers that the container asked for.
    #[serde(default)]
    pub dns: Vec<IpAddr>,
    /// Its packets may have any source: it may give itself addresses.
    #[serde(default)]
    pub any_source: bool,
}

/// A host port that is forwarded.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PortRow {
    /// Whose port it is.
    pub container: ContainerId,
    /// The host's address; the unspecified one is every address of its family.
    pub host_ip: IpAddr,
    /// The host's port.
    pub host_port: u16,
    /// The container's address.
    pub container_ip: Ipv4Addr,
    /// The container's port.
    pub port: PortSpec,
}

/// What became of a row that has to be unique.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inserted {
    /// It is there.
    Yes,
    /// Another row has its name, address or place.
    Taken,
}

impl Db {
    /// Adds a network; waits for the disk.
    ///
    /// # Errors
    /// Of the database; a taken name, id or bridge is no error but [`Inserted::Taken`].
    pub fn insert_network(&self, row: &NetworkRow) -> Result<Inserted> {
        let data = serde_json::to_string(row)?;
        unique(self.write_durable(|db| {
            Ok(db.execute(
                "INSERT INTO networks (id, name, bridge, data) VALUES (?, ?, ?, ?)",
                params![row.id.as_str(), row.name, row.bridge, data],
            )?)
        }))
    }

    /// Replaces what is known of a network.
    ///
    /// # Errors
    /// Of the database.
    pub fn update_network(&self, row: &NetworkRow) -> Result<()> {
        let data = serde_json::to_string(row)?;
        self.write(|db| {
            db.execute(
                "UPDATE networks SET name = ?, bridge = ?, data = ? WHERE id = ?",
                params![row.name, row.bridge, data, row.id.as_str()],
            )?;
            Ok(())
        })
    }

    /// Deletes a network. Answers false, and deletes nothing, while it has endpoints.
    ///
    /// # Errors
    /// Of the database.
    pub fn delete_network(&self, id: &NetworkId) -> Result<bool> {
        let outcome = unique(self.write_durable(|db| {
            Ok(db.execute("DELETE FROM networks WHERE id = ?", [id.as_str()])?)
        }))?;
        Ok(outcome == Inserted::Yes)
    }

    /// Writes a network's row as its record has it. Another network of that name
    /// or bridge is no error but [`Inserted::Taken`].
    ///
    /// # Errors
    /// Of the database.
    pub fn adopt_network(&self, row: &NetworkRow) -> Result<Inserted> {
        let data = serde_json::to_string(row)?;
        unique(self.write(|db| {
            Ok(db.execute(
                "INSERT INTO networks (id, name, bridge, data) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (id) DO UPDATE SET name = excluded.name, bridge = excluded.bridge,
                 data = excluded.data",
                params![row.id.as_str(), row.name, row.bridge, data],
            )?)
        }))
    }

    /// Deletes the network of this name if its row cannot be read: for those that
    /// are made anew.
    ///
    /// # Errors
    /// Of the database.
    pub fn delete_unreadable_network(&self, name: &str) -> Result<()> {
        self.write(|db| {
            let found: Option<(String, String)> = db
                .query_row("SELECT id, data FROM networks WHERE name = ?", [name], |row| {
                    Ok((row.get(0)?, row.get(1)?))
                })
                .optional()?;
            if let Some((id, data)) = found
                && serde_json::from_str::<NetworkRow>(&data).is_err()
            {
                db.execute("DELETE FROM endpoints WHERE network = ?", [&id])?;
                db.execute("DELETE FROM networks WHERE id = ?", [&id])?;
            }
            Ok(())
        })
    }

    /// The ids of all networks, unreadable ones included.
    ///
    /// # Errors
    /// Of the database.
    pub fn network_ids(&self) -> Result<Vec<String>> {
        self.read(|db| {
            let mut query = db.prepare_cached("SELECT id FROM networks ORDER BY id")?;
            let rows = query.query_map([], |row| row.get(0))?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
    }

    /// Replaces a running container's endpoints and ports by what its bundle
    /// says; those that others have meanwhile are left out.
    ///
    /// # Errors
    /// Of the database.
    pub fn adopt_endpoints(
        &self,
        container: &ContainerId,
        endpoints: &[EndpointRow],
        ports: &[PortRow],
    ) -> Result<()> {
        self.write(|db| {
            let id = container.as_str();
            db.execute("DELETE FROM endpoints WHERE container = ?1", [id])?;
            db.execute("DELETE FROM ports WHERE container = ?1", [id])?;
            for row in endpoints.iter().filter(|row| row.container == *container) {
                db.execute(
                    "INSERT OR IGNORE INTO endpoints (network, container, ipv4, ifindex, data)
                     SELECT id, ?2, ?3, ?4, ?5 FROM networks WHERE id = ?1",
                    params![
                        row.network.as_str(),
                        id,
                        row.ipv4.map(Ipv4Addr::to_bits),
                        row.index,
                        serde_json::to_string(row)?
                    ],
                )?;
            }
            for row in ports.iter().filter(|row| row.container == *container) {
                db.execute(
                    "INSERT OR IGNORE INTO ports (container, transport, host_ip, host_port,
                     container_ip, container_port) VALUES (?, ?, ?, ?, ?, ?)",
                    params![
                        id,
                        word(row.port.transport),
                        row.host_ip.to_string(),
                        row.host_port,
                        row.container_ip.to_bits(),
                        row.port.port
                    ],
                )?;
            }
            Ok(())
        })
    }

    /// Deletes endpoints and ports that cannot be read: they are facts of a run,
    /// and what still runs has them in its bundle.
    ///
    /// # Errors
    /// Of the database.
    pub fn forget_unreadable_endpoints(&self) -> Result<()> {
        self.write(|db| {
            let mut bad = Vec::new();
            {
                let mut query = db.prepare("SELECT network, container, data FROM endpoints")?;
                let mut rows = query.query([])?;
                while let Some(row) = rows.next()? {
                    let data: String = row.get(2)?;
                    if serde_json::from_str::<EndpointRow>(&data).is_err() {
                        bad.push((row.get::<_, String>(0)?, row.get::<_, String>(1)?));
                    }
                }
            }
            for (network, container) in bad {
                db.execute(
                    "DELETE FROM endpoints WHERE network = ? AND container = ?",
                    [network, container],
                )?;
            }
            let mut bad = Vec::new();
            {
                let mut query = db.prepare("SELECT * FROM ports")?;
                let mut rows = query.query([])?;
                while let Some(row) = rows.next()? {
                    if port_row(row).is_err() {
                        let key: (String, String, u16) =
                            (row.get("transport")?, row.get("host_ip")?, row.get("host_port")?);
                        bad.push(key);
                    }
                }
            }
            for (transport, ip, port) in bad {
                db.execute(
                    "DELETE FROM ports WHERE transport = ? AND host_ip = ? AND host_port = ?",
                    params![transport, ip, port],
                )?;
            }
            Ok(())
        })
    }

    /// All networks, by name.
    ///
    /// # Errors
    /// Of the database.
    pub fn networks(&self) -> Result<Vec<NetworkRow>> {
        self.read(|db| json_rows(db, "SELECT data FROM networks ORDER BY name", []))
    }

    /// The network of that id or name, or the only one whose id begins so.
    ///
    /// # Errors
    /// Of the database.
    pub fn network(&self, name_or_id: &str) -> Result<Option<NetworkRow>> {
        self.read(|db| {
            for query in [
                "SELECT data FROM networks WHERE id = ?1",
                "SELECT data FROM networks WHERE name = ?1",
                "SELECT data FROM networks WHERE substr(id, 1, length(?1)) = ?1 AND ?1 <> '' LIMIT 2",
            ] {
                let mut rows: Vec<NetworkRow> = json_rows(db, query, [name_or_id])?;
                if rows.len() == 1 {
                    return Ok(rows.pop());
                }
            }
            Ok(None)
        })
    }

    /// Adds an endpoint, its address with it.
    ///
    /// # Errors
    /// Of the database; a taken address, or a container that is there already,
    /// is no error but [`Inserted::Taken`].
    pub fn insert_endpoint(&self, row: &EndpointRow) -> Result<Inserted> {
        let data = serde_json::to_string(row)?;
        unique(self.write(|db| {
            Ok(db.execute(
                "INSERT INTO endpoints (network, container, ipv4, ifindex, data) VALUES (?, ?, ?, ?, ?)",
                params![
                    row.network.as_str(),
                    row.container.as_str(),
                    row.ipv4.map(Ipv4Addr::to_bits),
                    row.index,
                    data
                ],
            )?)
        }))
    }

    /// Replaces what is known of an endpoint (names; address and place stay).
    ///
    /// # Errors
    /// Of the database.
    pub fn update_endpoint(&self, row: &EndpointRow) -> Result<()> {
        let data = serde_json::to_string(row)?;
        self.write(|db| {
            db.execute(
                "UPDATE endpoints SET data = ? WHERE network = ? AND container = ?",
                params![data, row.network.as_str(), row.container.as_str()],
            )?;
            Ok(())
        })
    }

    /// Deletes an endpoint and frees its address.
    ///
    /// # Errors
    /// Of the database.
    pub fn delete_endpoint(&self, network: &NetworkId, container: &ContainerId) -> Result<()> {
        self.write(|db| {
            db.execute(
                "DELETE FROM endpoints WHERE network = ? AND container = ?",
                [network.as_str(), container.as_str()],
            )?;
            Ok(())
        })
    }

    /// All endpoints.
    ///
    /// # Errors
    /// Of the database.
    pub fn endpoints(&self) -> Result<Vec<EndpointRow>> {
        self.read(|db| json_rows(db, "SELECT data FROM endpoints ORDER BY container, ifindex", []))
    }

    /// The endpoints of a container, in the order of their interfaces.
    ///
    /// # Errors
    /// Of the database.
    pub fn endpoints_of(&self, container: &ContainerId) -> Result<Vec<EndpointRow>> {
        self.read(|db| {
            json_rows(
                db,
                "SELECT data FROM endpoints WHERE container = ? ORDER BY ifindex",
                [container.as_str()],
            )
        })
    }

    /// The endpoints in a network.
    ///
    /// # Errors
    /// Of the database.
    pub fn endpoints_in(&self, network: &NetworkId) -> Result<Vec<EndpointRow>> {
        self.read(|db| {
            json_rows(
                db,
                "SELECT data FROM endpoints WHERE network = ? ORDER BY ipv4",
                [network.as_str()],
            )
        })
    }

    /// The addresses in use in a network, in order.
    ///
    /// # Errors
    /// Of the database.
    pub fn addresses_in(&self, network: &NetworkId) -> Result<Vec<Ipv4Addr>> {
        self.read(|db| {
            let mut query = db.prepare_cached(
                "SELECT ipv4 FROM endpoints WHERE network = ? AND ipv4 IS NOT NULL ORDER BY ipv4",
            )?;
            let rows = query.query_map([network.as_str()], |row| row.get::<_, u32>(0))?;
            Ok(rows.map(|bits| bits.map(Ipv4Addr::from)).collect::<rusqlite::Result<_>>()?)
        })
    }

    /// Adds a published port.
    ///
    /// # Errors
    /// Of the database; a taken port is no error but [`Inserted::Taken`].
    pub fn insert_port(&self, row: &PortRow) -> Result<Inserted> {
        unique(self.write(|db| {
            Ok(db.execute(
                "INSERT INTO ports (container, transport, host_ip, host_port, container_ip, container_port)
                 VALUES (?, ?, ?, ?, ?, ?)",
                params![
                    row.container.as_str(),
                    word(row.port.transport),
                    row.host_ip.to_string(),
                    row.host_port,
                    row.container_ip.to_bits(),
                    row.port.port
                ],
            )?)
        }))
    }

    /// Deletes the published ports of a container.
    ///
    /// # Errors
    /// Of the database.
    pub fn delete_ports(&self, container: &ContainerId) -> Result<()> {
        self.write(|db| {
            db.execute("DELETE FROM ports WHERE container = ?", [container.as_str()])?;
            Ok(())
        })
    }

    /// All published ports.
    ///
    /// # Errors
    /// Of the database.
    pub fn ports(&self) -> Result<Vec<PortRow>> {
        self.read(|db| port_rows(db, "SELECT * FROM ports ORDER BY container", []))
    }

    /// The published ports of a container.
    ///
    /// # Errors
    /// Of the database.
    pub fn ports_of(&self, container: &ContainerId) -> Result<Vec<PortRow>> {
        self.read(|db| {
            port_rows(
                db,
                "SELECT * FROM ports WHERE container = ? ORDER BY container_port, transport, host_ip",
                [container.as_str()],
            )
        })
    }
}

fn unique(outcome: Result<usize>) -> Result<Inserted> {
    match outcome {
        Ok(_) => Ok(Inserted::Yes),
        Err(Error::Sqlite(rusqlite::Error::SqliteFailure(failure, _)))
            if failure.code == ErrorCode::ConstraintViolation =>
        {
            Ok(Inserted::Taken)
        }
        Err(error) => Err(error),
    }
}

fn json_rows<T: serde::de::DeserializeOwned>(
    db: &Connection,
    query: &str,
    params: impl rusqlite::Params,
) -> Result<Vec<T>> {
    let mut query = db.prepare_cached(query)?;
    let mut rows = query.query(params)?;
    let mut all = Vec::new();
    while let Some(row) = rows.next()? {
        // One that cannot be read is nobody's answer: see `unreadable`.
        all.extend(serde_json::from_str(&row.get::<_, String>(0)?).ok());
    }
    Ok(all)
}

pub(crate) fn unreadable(db: &Connection) -> Result<Vec<Unreadable>> {
    let mut query = db.prepare("SELECT id, data FROM networks ORDER BY id")?;
    let mut rows = query.query([])?;
    let mut bad = Vec::new();
    while let Some(row) = rows.next()? {
        if let Err(error) = serde_json::from_str::<NetworkRow>(&row.get::<_, String>(1)?) {
            bad.push(Unreadable { kind: "network", key: row.get(0)?, why: error.to_string() });
        }
    }
    Ok(bad)
}

fn word(transport: Transport) -> &'static str {
    match transport {
        Transport::Tcp => "tcp",
        Transport::Udp => "udp",
    }
}

fn port_rows(db: &Connection, query: &str, params: impl rusqlite::Params) -> Result<Vec<PortRow>> {
    let mut query = db.prepare_cached(query)?;
    let mut rows = query.query(params)?;
    let mut all = Vec::new();
    while let Some(row) = rows.next()? {
        all.extend(port_row(row).ok());
    }
    Ok(all)
}

fn port_row(row: &Row<'_>) -> rusqlite::Result<PortRow> {
    let text = |column: &str| row.get::<_, String>(column);
    let bad = |column: &str| {
        rusqlite::Error::InvalidColumnType(0, column.into(), rusqlite::types::Type::Text)
    };
    Ok(PortRow {
        container: text("container")?.parse().map_err(|_| bad("container"))?,
        host_ip: text("host_ip")?.parse().map_err(|_| bad("host_ip"))?,
        host_port: row.get("host_port")?,
        container_ip: row.get::<_, u32>("container_ip")?.into(),
        port: PortSpec {
            port: row.get("container_port")?,
            transport: match text("transport")?.as_str() {
                "udp" => Transport::Udp,
                _ => Transport::Tcp,
            },
        },
    })
}

//! A stub resolver: a host's name to its addresses, by hosts(5) and DNS.
//!
//! ```text
//!  name ─ an address? ─ hosts(5) ─ localhost? ─ resolv.conf(5): search list ─▶ A and AAAA
//!                                                 │ UDP, then TCP where an answer was cut
//!                                                 ▼
//!                                    the servers in turn, `attempts` times
//! ```
//!
//! The C library's own resolver reads `/etc/nsswitch.conf` and loads the
//! libraries that it names: also in a static program, and also those that
//! somebody else put there. No program of ours uses it; this is what they use
//! instead. Only the two files are read, as data, with a bound on their size.
//!
//! **How it fails.** [`Error::NotFound`] where everybody who was asked says that
//! the name has no address; [`Error::Unavailable`] where nobody answered;
//! [`Error::Invalid`] where the name cannot be one. What comes from the network
//! is bounded: 64 KiB an answer, [`MAX_ADDRESSES`] addresses a name.

#![forbid(unsafe_code)]

mod config;
mod hosts;
mod query;

use std::{
    fs::File,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    os::unix::fs::FileExt as _,
    path::PathBuf,
};

use hickory_proto::rr::{Name, RecordType};
use rustix::fs::{Mode, OFlags};
use tokio::net::TcpStream;

use config::Config;

/// The most addresses that a name has here.
pub const MAX_ADDRESSES: usize = 64;
/// What is read of a hosts file or a resolv.conf.
const MAX_FILE: usize = 1 << 20;

/// Why a name has no address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It is no host's name (RFC 1123, RFC 1035).
    #[error("not a host name")]
    Invalid,
    /// There is no such name, or it has no address.
    #[error("no such host")]
    NotFound,
    /// No name server gave an answer; another time one may.
    #[error("no answer from the name servers")]
    Unavailable,
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        let kind = match error {
            Error::Invalid => io::ErrorKind::InvalidInput,
            Error::NotFound => io::ErrorKind::NotFound,
            Error::Unavailable => io::ErrorKind::TimedOut,
        };
        Self::new(kind, error)
    }
}

/// Where names are looked up.
#[derive(Debug)]
pub struct Resolver {
    hosts: Source,
    resolv_conf: Source,
}

/// A file that is read anew for each name, so that its changes are seen.
#[derive(Debug)]
enum Source {
    Path(PathBuf),
    Open(Option<File>),
}

impl Source {
    /// Its beginning; nothing where it is not there, or no regular file.
    fn read(&self) -> Vec<u8> {
        let opened;
        let file = match self {
            Self::Open(None) => return Vec::new(),
            Self::Open(Some(file)) => file,
            Self::Path(path) => {
                // A FIFO at the place of a file must not hold us up.
                let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
                let Ok(fd) = rustix::fs::open(path, flags, Mode::empty()) else {
                    return Vec::new();
                };
                opened = File::from(fd);
                &opened
            }
        };
        if !file.metadata().is_ok_and(|metadata| metadata.is_file()) {
            return Vec::new();
        }
        let mut text = vec![0; MAX_FILE];
        let mut length = 0;
        while length < text.len() {
            match file.read_at(&mut text[length..], length as u64) {
                Ok(0) => break,
                Ok(read) => length += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        text.truncate(length);
        text
    }
}

impl Resolver {
    /// By `/etc/hosts` and `/etc/resolv.conf` of this process's root.
    pub fn system() -> Self {
        Self::at("/etc/hosts", "/etc/resolv.conf")
    }

    /// By two files that are opened for each name.
    pub fn at(hosts: impl Into<PathBuf>, resolv_conf: impl Into<PathBuf>) -> Self {
        Self { hosts: Source::Path(hosts.into()), resolv_conf: Source::Path(resolv_conf.into()) }
    }

    /// By two files that are open already; one that is missing is as good as empty.
    pub fn of(hosts: Option<File>, resolv_conf: Option<File>) -> Self {
        Self { hosts: Source::Open(hosts), resolv_conf: Source::Open(resolv_conf) }
    }

    /// The addresses of a host: those that can be reached first, IPv6 before IPv4.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn lookup(&self, name: &str) -> Result<Vec<IpAddr>, Error> {
        if let Ok(address) = name.parse() {
            return Ok(vec![address]);
        }
        let absolute = parse(name)?;
        let found = hosts::find(&self.hosts.read(), name.trim_end_matches('.'));
        if !found.is_empty() {
            return Ok(in_order(found));
        }
        if is_localhost(&absolute) {
            return Ok(in_order(vec![Ipv6Addr::LOCALHOST.into(), Ipv4Addr::LOCALHOST.into()]));
        }
        let config = Config::parse(&self.resolv_conf.read());
        let mut unavailable = false;
        for candidate in config.candidates(&absolute, name.ends_with('.')) {
            let (v6, v4) = tokio::join!(
                query::ask(&config, &candidate, RecordType::AAAA),
                query::ask(&config, &candidate, RecordType::A)
            );
            unavailable |= v6.is_err() || v4.is_err();
            let mut found = v6.unwrap_or_default();
            found.extend(v4.unwrap_or_default());
            if !found.is_empty() {
                return Ok(in_order(found));
            }
        }
        Err(if unavailable { Error::Unavailable } else { Error::NotFound })
    }

    /// Connects to the first address of a host that takes the connection.
    ///
    /// # Errors
    /// An [`Error`] inside where the name has no address, else what the last
    /// address said.
    pub async fn connect(&self, name: &str, port: u16) -> io::Result<TcpStream> {
        let mut last = io::Error::from(Error::NotFound);
        for address in self.lookup(name).await? {
            match TcpStream::connect(SocketAddr::new(address, port)).await {
                Ok(stream) => return Ok(stream),
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

/// `host:port` in its two parts, an IPv6 address without its brackets.
///
/// # Errors
/// [`Error::Invalid`] where there is no port.
pub fn host_and_port(address: &str) -> Result<(&str, u16), Error> {
    let (host, port) = address.rsplit_once(':').ok_or(Error::Invalid)?;
    let port = port.parse().map_err(|_| Error::Invalid)?;
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    Ok((bare.unwrap_or(host), port))
}

/// A host's name as DNS has it: labels of letters, digits, hyphens and underscores.
fn parse(name: &str) -> Result<Name, Error> {
    let plain = name.strip_suffix('.').unwrap_or(name);
    let fits = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    if plain.len() > 253 || !plain.split('.').all(fits) {
        return Err(Error::Invalid);
    }
    Name::from_labels(plain.split('.').map(str::as_bytes)).map_err(|_| Error::Invalid)
}

/// RFC 6761, 6.3: never asked of anybody.
fn is_localhost(name: &Name) -> bool {
    name.iter().next_back().is_some_and(|label| label.eq_ignore_ascii_case(b"localhost"))
}

/// The beginning of RFC 6724: addresses without a route come last.
fn in_order(mut addresses: Vec<IpAddr>) -> Vec<IpAddr> {
    addresses.truncate(MAX_ADDRESSES);
    if addresses.len() > 1 {
        addresses.sort_by_cached_key(|address| !has_route(*address));
    }
    addresses
}

/// A datagram socket that is connected sends nothing, but asks for the route.
fn has_route(address: IpAddr) -> bool {
    let any: IpAddr = match address {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    UdpSocket::bind((any, 0)).and_then(|socket| socket.connect((address, 53))).is_ok()
}

#[cfg(test)]
mod tests;

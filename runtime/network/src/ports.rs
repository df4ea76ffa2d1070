//! Host ports: choosing them, and holding them with real sockets.
//!
//! A published port is bound by the engine for as long as it is published: that
//! is how a conflict is found (with other engines and other programs alike),
//! and nobody can take the port while the kernel forwards it.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4},
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
};

use knarr_model::{PortBinding, PortSpec, Transport};
use knarr_sys::{ProcessStat, read};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt, socket,
    sockopt,
};

use crate::{PublishedPort, budget::Seats, proxy, tasks::Tasks};

/// Where the kernel takes ports from for whoever asks for none (its default range).
const EPHEMERAL: std::ops::RangeInclusive<u16> = 32768..=60999;

/// A host port that is bound.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) port: PublishedPort,
    socket: OwnedFd,
}

/// Why a port could not be had.
#[derive(Debug)]
pub(crate) struct PortError {
    /// Docker's words.
    pub(crate) reason: String,
    /// Another has it.
    pub(crate) taken: bool,
}

impl Held {
    /// Serves what the kernel does not forward, and holds the port, until the tasks are dropped.
    pub(crate) fn serve(self, to: Ipv4Addr, seats: Arc<Seats>, tasks: &mut Tasks) {
        let to = SocketAddrV4::new(to, self.port.port.port);
        match self.port.port.transport {
            Transport::Tcp => tasks.spawn(proxy::tcp(self.socket.into(), to, seats)),
            Transport::Udp => tasks.spawn(proxy::udp(self.socket.into(), to, seats)),
        }
    }
}

/// Binds what a binding asks for: one socket, or one of each family.
pub(crate) fn hold(binding: &PortBinding) -> Result<Vec<Held>, PortError> {
    let addresses: &[IpAddr] = match &binding.host_ip {
        Some(address) => std::slice::from_ref(address),
        None => &[IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)],
    };
    let Some(first) = binding.host_port.filter(|port| *port != 0) else {
        return any(addresses, binding.container);
    };
    let last = binding.host_port_end.unwrap_or(first).max(first);
    let mut failure = None;
    for port in first..=last {
        match hold_one(addresses, port, binding.container) {
            Ok(held) => return Ok(held),
            Err(error) => failure = Some(error),
        }
    }
    Err(failure.unwrap_or(PortError { reason: "no port in an empty range".into(), taken: false }))
}

/// The next free port; successive containers get successive ports.
fn any(addresses: &[IpAddr], port: PortSpec) -> Result<Vec<Held>, PortError> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let size = EPHEMERAL.end() - EPHEMERAL.start() + 1;
    for _ in 0..size {
        let candidate = EPHEMERAL.start() + NEXT.fetch_add(1, Ordering::Relaxed) % size;
        match hold_one(addresses, candidate, port) {
            Err(error) if error.taken => {}
            outcome => return outcome,
        }
    }
    Err(PortError { reason: "all ports are allocated".into(), taken: true })
}

fn hold_one(addresses: &[IpAddr], port: u16, to: PortSpec) -> Result<Vec<Held>, PortError> {
    let mut held = Vec::new();
    for address in addresses {
        let asked = SocketAddr::new(*address, port);
        match bound(asked, to.transport) {
            Ok(socket) => {
                let port = PublishedPort { host_ip: *address, host_port: port, port: to };
                held.push(Held { port, socket });
            }
            // A host without IPv6 has no port to hold there.
            Err(error) if !held.is_empty() && address.is_ipv6() && lacks_family(&error) => {}
            Err(error) => {
                let taken = error.kind() == io::ErrorKind::AddrInUse;
                let why = if taken { "port is already allocated".into() } else { describe(&error) };
                let mut reason = format!("Bind for {asked} failed: {why}");
                if let (true, Some(owner)) = (taken, owner(asked, to.transport)) {
                    reason.push_str(&format!("\n\nhint: {owner} has it"));
                }
                return Err(PortError { reason, taken });
            }
        }
    }
    Ok(held)
}

fn lacks_family(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

fn describe(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EADDRNOTAVAIL) => "cannot assign requested address".into(),
        Some(libc::EACCES) => "permission denied".into(),
        _ => error.to_string(),
    }
}

fn bound(address: SocketAddr, transport: Transport) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let kind = match transport {
        Transport::Tcp => SockType::Stream,
        Transport::Udp => SockType::Datagram,
    };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(family, kind, flags, None)?;
    if address.is_ipv6() {
        setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
    }
    if transport == Transport::Tcp {
        // Connections of the last holder may still be closing. (Over UDP this
        // would let two hold one port.)
        setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    }
    use std::os::fd::AsRawFd;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
    if transport == Transport::Tcp {
        listen(&socket, Backlog::new(128)?)?;
    }
    Ok(socket)
}

/// Who has a port, as far as /proc tells: `process 4242 (nginx)`.
fn owner(address: SocketAddr, transport: Transport) -> Option<String> {
    let table = match (transport, address.is_ipv4()) {
        (Transport::Tcp, true) => "tcp",
        (Transport::Tcp, false) => "tcp6",
        (Transport::Udp, true) => "udp",
        (Transport::Udp, false) => "udp6",
    };
    let text = read::text(format!("/proc/thread-self/net/{table}"), read::LIST).ok()?;
    let port = format!(":{:04X}", address.port());
    let inode = text.lines().skip(1).find_map(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        let bound = *words.get(3)? == if transport == Transport::Tcp { "0A" } else { "07" };
        (bound && words.get(1)?.ends_with(&port)).then(|| words.get(9).map(ToString::to_string))?
    })?;
    let socket = format!("socket:[{inode}]");
    let processes = std::fs::read_dir("/proc").ok()?.flatten();
    for process in
        processes.filter(|entry| entry.file_name().as_encoded_bytes()[0].is_ascii_digit())
    {
        let Ok(files) = std::fs::read_dir(process.path().join("fd")) else { continue };
        let mut files = files.flatten();
        if files.any(|file| {
            std::fs::read_link(file.path()).is_ok_and(|link| link.as_os_str() == socket.as_str())
        }) {
            let pid = process.file_name().into_string().ok()?;
            let stat = ProcessStat::of(pid.parse().ok()?).ok();
            let name = stat.map(|stat| stat.name().escape_ascii().to_string());
            return Some(format!("process {pid} ({})", name.unwrap_or_default()));
        }
    }
    None
}

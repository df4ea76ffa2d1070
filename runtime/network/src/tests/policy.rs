//! What containers may say on a bridge, and what they reach on the host.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd as _,
    process::Command,
    time::Duration,
};

use knarr_model::Transport;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, socket,
};

use crate::{
    BridgeInput, lock,
    testing::{Fake, Host, binding, get, in_netns, lan},
};

const FORGED: Ipv4Addr = Ipv4Addr::new(8, 8, 8, 8);

/// A UDP datagram whose IP header says that it comes from elsewhere.
fn forge(from: Ipv4Addr, to: Ipv4Addr, port: u16, text: &[u8]) {
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0];
    packet.extend_from_slice(&from.octets());
    packet.extend_from_slice(&to.octets());
    packet.extend_from_slice(&1000u16.to_be_bytes());
    packet.extend_from_slice(&port.to_be_bytes());
    packet.extend_from_slice(&(text.len() as u16 + 8).to_be_bytes());
    // No checksum.
    packet.extend_from_slice(&[0, 0]);
    packet.extend_from_slice(text);
    let raw = socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw)
        .unwrap();
    let [a, b, c, d] = to.octets();
    sendto(raw.as_raw_fd(), &packet, &SockaddrIn::new(a, b, c, d, port), MsgFlags::empty())
        .unwrap();
}

/// First a forged datagram, then an honest one: who is heard first, by a socket
/// that both are sent to?
fn first_heard(from: &Fake, listener: UdpSocket, to: Ipv4Addr) -> Ipv4Addr {
    let port = listener.local_addr().unwrap().port();
    from.run(move || {
        // The honest one also asks for the hardware address, before the forged one needs it.
        let honest = UdpSocket::bind("0.0.0.0:0").unwrap();
        honest.send_to(b"hello", (to, port)).unwrap();
    });
    listener.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut buffer = [0; 16];
    let (_, honest) = listener.recv_from(&mut buffer).unwrap();
    assert_ne!(honest.ip(), FORGED);
    from.run(move || {
        forge(FORGED, to, port, b"forged");
        let honest = UdpSocket::bind("0.0.0.0:0").unwrap();
        honest.send_to(b"again", (to, port)).unwrap();
    });
    match listener.recv_from(&mut buffer).unwrap().1 {
        SocketAddr::V4(address) => *address.ip(),
        SocketAddr::V6(address) => panic!("{address}"),
    }
}

fn ip(arguments: &[&str]) {
    let status = Command::new("ip").args(arguments).status().unwrap();
    assert!(status.success(), "ip {arguments:?}");
}

/// What the kernel knows of a neighbour, in this namespace.
fn neighbour(address: Ipv4Addr) -> String {
    let output =
        Command::new("ip").args(["neighbour", "show", &address.to_string()]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn n07_forged_sources_arrive_nowhere() {
    in_netns(|| {
        let host = Host::new();
        let stranger = lan();
        let (a, b) = (Fake::new("a"), Fake::new("b"));
        let at = host.attach(&a, "bridge");
        let victim = host.attach(&b, "bridge").row.ipv4.unwrap();
        let own = at.row.ipv4.unwrap();
        let gateway = at.gateway.unwrap();
        let everywhere = |host: &Host| {
            // A neighbour, the host, and somebody outside.
            let listener = b.run(|| UdpSocket::bind("0.0.0.0:0").unwrap());
            assert_eq!(first_heard(&a, listener, victim), own);
            let listener = UdpSocket::bind("0.0.0.0:0").unwrap();
            assert_eq!(first_heard(&a, listener, gateway), own);
            let listener = stranger.run(|| UdpSocket::bind("0.0.0.0:0").unwrap());
            let seen = first_heard(&a, listener, Ipv4Addr::new(192, 0, 2, 2));
            assert_eq!(seen, Ipv4Addr::new(192, 0, 2, 1), "the host's, by masquerade");
            assert_eq!(lock(&host.networks.inner.filter).contents().sources.len(), 2);
        };
        everywhere(&host);
        // Another engine in its place knows them, too.
        let host = host.reopen(&[&a, &b]);
        everywhere(&host);
        for fake in [&a, &b] {
            host.networks.detach(&fake.id).unwrap();
        }
        assert!(lock(&host.networks.inner.filter).contents().sources.is_empty());
    });
}

#[test]
fn n07_nobody_takes_an_address_that_was_not_given() {
    in_netns(|| {
        let host = Host::new();
        let (a, b, mut c) = (Fake::new("a"), Fake::new("b"), Fake::new("c"));
        c.any_source = true;
        let at = host.attach(&a, "bridge");
        let gateway = at.gateway.unwrap();
        host.attach(&b, "bridge");
        host.attach(&c, "bridge");
        for fake in [&a, &b, &c] {
            fake.serve(80);
        }
        let [x, y, ..] = gateway.octets();
        let another = |n| Ipv4Addr::new(x, y, 0, n);
        let take = |fake: &Fake, address: Ipv4Addr| {
            fake.run(move || ip(&["address", "add", &format!("{address}/16"), "dev", "eth0"]));
        };
        // Nobody hears from ARP where it is.
        take(&b, another(77));
        assert!(!a.knock(another(77), 80));
        // Packets from there are dropped as well: what is believed is in the list of neighbours.
        let known = |address: Ipv4Addr| a.run(move || neighbour(address));
        assert!(!known(another(77)).contains("lladdr"), "{}", known(another(77)));
        // Whoever may set addresses (CAP_NET_ADMIN) is believed.
        take(&c, another(78));
        assert_eq!(a.get(another(78), 80).as_deref(), Some("c"));
        assert!(known(another(78)).contains("lladdr"), "{}", known(another(78)));
        // A hardware address that was not given: no neighbour's frames are caught by it.
        assert_eq!(b.get(at.row.ipv4.unwrap(), 80).as_deref(), Some("a"));
        b.run(|| ip(&["link", "set", "eth0", "address", "02:42:00:00:00:01"]));
        assert!(!b.knock(at.row.ipv4.unwrap(), 80));
        c.run(|| ip(&["link", "set", "eth0", "address", "02:42:00:00:00:02"]));
        assert_eq!(c.get(at.row.ipv4.unwrap(), 80).as_deref(), Some("a"));
    });
}

#[test]
fn n05_what_containers_reach_on_the_host_is_the_operators_choice() {
    for (policy, service, own) in [
        (BridgeInput::Accept, true, true),
        (BridgeInput::Guard, true, false),
        (BridgeInput::Drop, false, false),
    ] {
        in_netns(move || {
            let host = Host::with(|options| options.bridge_input = policy);
            let (a, b) = (Fake::new("a"), Fake::new("b"));
            let gateway = host.attach(&a, "bridge").gateway.unwrap();
            host.attach(&b, "bridge");
            b.serve(80);
            crate::testing::serve(99, "service".into());
            crate::testing::serve(98, "own".into());
            host.networks.guard([98].into()).unwrap();
            // Networks that come later are no way around it.
            host.network("later", false);
            let c = Fake::new("c");
            let later = host.attach(&c, "later").gateway.unwrap();
            for (fake, gateway) in [(&a, gateway), (&c, later)] {
                assert_eq!(fake.knock(gateway, 99), service, "{policy:?}");
                assert_eq!(fake.knock(gateway, 98), own, "{policy:?}");
            }
            // Published ports are containers', and the host reaches everything.
            let published = [binding(None, Some(8080), 80, Transport::Tcp)];
            host.networks.publish(&b.id, "b", &published).unwrap();
            assert_eq!(a.get(gateway, 8080).as_deref(), Some("b"), "{policy:?}");
            assert_eq!(get((gateway, 98).into()).as_deref(), Some("own"));
        });
    }
}

#[test]
fn n11_idle_connections_to_one_port_leave_room_for_another() {
    in_netns(|| {
        let host = Host::with(|options| options.descriptors = 128);
        let a = Fake::new("a");
        host.attach(&a, "bridge");
        a.serve(81);
        // Accepts in the kernel, and never says a word.
        let silent = a.run(|| TcpListener::bind("0.0.0.0:80").unwrap());
        let published = [
            binding(Some("::"), Some(8080), 80, Transport::Tcp),
            binding(Some("::"), Some(8081), 81, Transport::Tcp),
        ];
        host.networks.publish(&a.id, "a", &published).unwrap();
        let at = |port| SocketAddr::from((Ipv6Addr::LOCALHOST, port));
        let idle: Vec<_> = (0..60).map(|_| TcpStream::connect(at(8080)).unwrap()).collect();
        let seats = &host.networks.inner.budget.seats;
        while seats.taken(1) < 8 {
            std::thread::yield_now();
        }
        for _ in 0..20 {
            assert_eq!(get(at(8081)).as_deref(), Some("a"));
            assert!(seats.taken(1) <= 8, "a port has its share and no more");
        }
        drop((idle, silent));
    });
}

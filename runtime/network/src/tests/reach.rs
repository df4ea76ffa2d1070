//! Who reaches whom: bridges, published ports, internal networks.

use std::net::{IpAddr, SocketAddr};

use knarr_model::{Kinded, Transport};

use crate::testing::{Fake, Host, binding, get, get_udp, in_netns, knock, lan};

fn v4(endpoint: &crate::Endpoint) -> IpAddr {
    endpoint.row.ipv4.unwrap().into()
}

#[test]
fn containers_of_one_network_reach_each_other() {
    in_netns(|| {
        let host = Host::new();
        let (a, b) = (Fake::new("a"), Fake::new("b"));
        host.attach(&a, "bridge");
        let at = host.attach(&b, "bridge");
        b.serve(80);
        assert_eq!(a.get(v4(&at), 80).as_deref(), Some("b"));
        // The host reaches it too, and it reaches the host.
        assert_eq!(get(SocketAddr::new(v4(&at), 80)).as_deref(), Some("b"));
        crate::testing::serve(99, "host".into());
        assert_eq!(a.get(at.gateway.unwrap(), 99).as_deref(), Some("host"));
        assert_eq!(at.row.mac, "02:42:ac:11:00:03");
        assert_eq!(at.interface(), "eth0");
        // N07: no IPv6 address by itself, and no router's word for one.
        let ra = b.run(|| std::fs::read_to_string("/proc/sys/net/ipv6/conf/eth0/accept_ra"));
        assert_eq!(ra.unwrap().trim(), "0");
        let six = b.run(|| std::fs::read_to_string("/proc/thread-self/net/if_inet6"));
        assert!(!six.unwrap().contains("eth0"));
    });
}

#[test]
fn none_has_loopback_only() {
    in_netns(|| {
        let host = Host::new();
        let a = Fake::new("a");
        let endpoint = host.attach(&a, "none");
        assert_eq!(endpoint.row.ipv4, None);
        a.serve(80);
        assert_eq!(a.get([127, 0, 0, 1], 80).as_deref(), Some("a"));
        assert!(host.links().iter().all(|name| !name.starts_with("kv")));
        host.network("net", false);
        let error = host.try_attach(&a, "net", &Default::default()).unwrap_err();
        assert_eq!(error.kind(), knarr_model::ErrorKind::InvalidArgument);
    });
}

#[test]
fn n05_networks_are_apart_and_strangers_stay_outside() {
    in_netns(|| {
        let host = Host::new();
        let stranger = lan();
        stranger.serve(80);
        host.network("one", false);
        host.network("two", false);
        let (a, b) = (Fake::new("a"), Fake::new("b"));
        host.attach(&a, "one");
        let at = host.attach(&b, "two");
        b.serve(80);
        b.serve(81);
        b.serve(82);
        let published = [
            binding(None, Some(8080), 80, Transport::Tcp),
            binding(Some("127.0.0.1"), Some(8081), 81, Transport::Tcp),
        ];
        host.networks.publish(&b.id, "b", &published).unwrap();
        // Outside can be reached, under the host's address.
        assert_eq!(a.get([192, 0, 2, 2], 80).as_deref(), Some("stranger"));
        // Another network's container cannot, not even at its published port ...
        for port in [80, 81, 82] {
            assert!(!a.knock(v4(&at), port), "{port} of another network");
            assert!(!stranger.knock(v4(&at), port), "{port} routed from outside");
        }
        // ... but at the host's address it can.
        assert_eq!(a.get([192, 0, 2, 1], 8080).as_deref(), Some("b"));
        assert_eq!(stranger.get([192, 0, 2, 1], 8080).as_deref(), Some("b"));
        // What is published on loopback is the host's alone.
        assert_eq!(get("127.0.0.1:8081".parse().unwrap()).as_deref(), Some("b"));
        assert!(!stranger.knock([192, 0, 2, 1], 8081));
        assert!(!a.knock([192, 0, 2, 1], 8081));
        assert!(!a.knock(at.gateway.unwrap(), 8081));
    });
}

#[test]
fn n05_a_container_cannot_send_to_the_hosts_loopback() {
    in_netns(|| {
        let host = Host::new();
        crate::testing::serve(9999, "secret".into());
        let (a, b) = (Fake::new("a"), Fake::new("b"));
        let endpoint = host.attach(&a, "bridge");
        host.attach(&b, "bridge");
        b.serve(80);
        let published = [binding(Some("127.0.0.1"), Some(8081), 80, Transport::Tcp)];
        host.networks.publish(&b.id, "b", &published).unwrap();
        let gateway = endpoint.gateway.unwrap();
        // The attacker has root in its namespace: 127.0.0.0/8 is not local there
        // any more but lies behind the gateway.
        let reached = a.run(move || {
            std::fs::write("/proc/sys/net/ipv4/conf/all/route_localnet", "1").unwrap();
            let ip = |arguments: &[&str]| {
                let status = std::process::Command::new("ip").args(arguments).status();
                status.is_ok_and(|status| status.success())
            };
            let gateway = gateway.to_string();
            let moved = ip(&["rule", "add", "pref", "100", "lookup", "local"])
                && ip(&["rule", "del", "pref", "0"])
                && ip(&["rule", "add", "pref", "10", "to", "127.0.0.1", "lookup", "77"])
                && ip(&[
                    "route",
                    "add",
                    "127.0.0.1",
                    "via",
                    &gateway,
                    "dev",
                    "eth0",
                    "table",
                    "77",
                ]);
            moved.then(|| {
                let bound = |port: u16| {
                    use std::io::Read;
                    let address = format!("127.0.0.1:{port}").parse().unwrap();
                    let wait = std::time::Duration::from_millis(700);
                    let mut stream = std::net::TcpStream::connect_timeout(&address, wait).ok()?;
                    let mut text = String::new();
                    stream.read_to_string(&mut text).ok()?;
                    Some(text)
                };
                (bound(9999), bound(8081))
            })
        });
        match reached {
            None => eprintln!("skipped: ip(8) is not installed"),
            Some(reached) => assert_eq!(reached, (None, None)),
        }
    });
}

#[test]
fn ports_are_published_everywhere_on_the_host() {
    in_netns(|| {
        let host = Host::new();
        let stranger = lan();
        let (a, b) = (Fake::new("a"), Fake::new("b"));
        host.attach(&a, "bridge");
        let neighbour = host.attach(&b, "bridge");
        a.serve(80);
        let published = host
            .networks
            .publish(
                &a.id,
                "a",
                &[
                    binding(None, Some(8080), 80, Transport::Tcp),
                    binding(None, Some(8080), 80, Transport::Udp),
                    binding(Some("192.0.2.1"), None, 80, Transport::Tcp),
                ],
            )
            .unwrap();
        assert_eq!(published.len(), 5);
        for address in ["127.0.0.1:8080", "[::1]:8080", "192.0.2.1:8080", "127.9.9.9:8080"] {
            let address = address.parse().unwrap();
            assert_eq!(get(address).as_deref(), Some("a"), "tcp {address}");
            assert_eq!(get_udp(address).as_deref(), Some("a"), "udp {address}");
        }
        let lan = SocketAddr::from(([192, 0, 2, 1], 8080));
        assert_eq!(stranger.run(move || get(lan)).as_deref(), Some("a"));
        assert_eq!(stranger.run(move || get_udp(lan)).as_deref(), Some("a"));
        // A neighbour, and the container itself, come back by the same way.
        assert_eq!(b.run(move || get(lan)).as_deref(), Some("a"));
        assert_eq!(b.run(move || get_udp(lan)).as_deref(), Some("a"));
        assert_eq!(a.run(move || get(lan)).as_deref(), Some("a"));
        let gateway = SocketAddr::new(neighbour.gateway.unwrap().into(), 8080);
        assert_eq!(a.run(move || get(gateway)).as_deref(), Some("a"));
        let chosen = published[4];
        assert!(chosen.host_port >= 32768, "{chosen:?}");
        let chosen = SocketAddr::new(chosen.host_ip, chosen.host_port);
        assert_eq!(stranger.run(move || get(chosen)).as_deref(), Some("a"));
        // Gone with the container, and free again.
        host.networks.detach(&a.id).unwrap();
        assert!(!knock(lan));
        assert_eq!(host.networks.ports(&a.id).unwrap(), []);
        let again = [binding(None, Some(8080), 80, Transport::Tcp)];
        host.networks.publish(&b.id, "b", &again).unwrap();
        b.serve(80);
        assert_eq!(get(lan).as_deref(), Some("b"));
    });
}

#[test]
fn n12_a_udp_client_that_never_falls_silent_finds_the_next_container() {
    in_netns(|| {
        let host = Host::new();
        let (a, b) = (Fake::new("a"), Fake::new("b"));
        host.attach(&a, "bridge");
        host.attach(&b, "bridge");
        a.serve(80);
        b.serve(80);
        let published = [binding(None, Some(8080), 80, Transport::Udp)];
        let client = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        client.connect("127.0.0.1:8080").unwrap();
        client.set_read_timeout(Some(std::time::Duration::from_millis(100))).unwrap();
        let ask = || {
            let mut buffer = [0; 16];
            let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
            loop {
                let _ = client.send(b"?");
                match client.recv(&mut buffer) {
                    Ok(length) => return String::from_utf8_lossy(&buffer[..length]).into_owned(),
                    Err(error) => assert!(std::time::Instant::now() < deadline, "{error}"),
                }
            }
        };
        host.networks.publish(&a.id, "a", &published).unwrap();
        assert_eq!(ask(), "a");
        host.networks.detach(&a.id).unwrap();
        host.networks.publish(&b.id, "b", &published).unwrap();
        // An answer of the first may still be on its way.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while ask() != "b" {
            assert!(std::time::Instant::now() < deadline);
        }
    });
}

#[test]
fn n01_a_taken_port_fails_the_start_and_leaves_nothing() {
    in_netns(|| {
        let host = Host::new();
        let (a, b) = (Fake::new("a"), Fake::new("b"));
        host.attach(&a, "bridge");
        host.attach(&b, "bridge");
        let taken = std::net::TcpListener::bind("0.0.0.0:8082").unwrap();
        let tcp = |port| binding(None, Some(port), 80, Transport::Tcp);
        let udp = |port| binding(None, Some(port), 80, Transport::Udp);
        let publish = |fake: &Fake, all: &[_]| host.networks.publish(&fake.id, &fake.name, all);
        // A process has it; the ports before it in the list are given back.
        let error = publish(&a, &[tcp(8080), udp(8080), tcp(8082)]).unwrap_err().to_string();
        assert!(
            error.starts_with("driver failed programming external connectivity on endpoint a ("),
            "{error}"
        );
        assert!(
            error.contains("): Bind for 0.0.0.0:8082 failed: port is already allocated"),
            "{error}"
        );
        assert!(error.contains(&format!("hint: process {} (", std::process::id())), "{error}");
        assert_eq!(host.networks.ports(&a.id).unwrap(), []);
        drop(taken);
        publish(&a, &[tcp(8080), udp(8080), tcp(8082)]).unwrap();
        // A container has it, over TCP, over UDP, at any address.
        for bad in [
            vec![tcp(8082)],
            vec![tcp(9000), udp(8080)],
            vec![binding(Some("127.0.0.1"), Some(8080), 80, Transport::Tcp)],
            vec![binding(Some("127.0.0.1"), Some(8080), 80, Transport::Udp)],
            vec![tcp(9001), tcp(9001)],
        ] {
            let error = publish(&b, &bad).unwrap_err().to_string();
            assert!(error.contains("port is already allocated"), "{error}");
            assert_eq!(host.networks.ports(&b.id).unwrap(), []);
        }
        let nowhere = binding(Some("203.0.113.1"), Some(8080), 80, Transport::Tcp);
        let error = publish(&b, &[nowhere]).unwrap_err().to_string();
        assert!(
            error.contains("203.0.113.1:8080 failed: cannot assign requested address"),
            "{error}"
        );
        // Of a range the first that is free.
        let mut range = tcp(8079);
        range.host_port_end = Some(8090);
        let range = std::slice::from_ref(&range);
        assert_eq!(publish(&b, range).unwrap()[0].host_port, 8079);
        let c = Fake::new("c");
        host.attach(&c, "bridge");
        assert_eq!(publish(&c, range).unwrap()[0].host_port, 8081);
    });
}

#[test]
fn n06_internal_networks_have_no_outside() {
    in_netns(|| {
        let host = Host::new();
        let stranger = lan();
        stranger.serve(80);
        crate::testing::serve(99, "host".into());
        let network = host.network("inner", true);
        let (a, b, c) = (Fake::new("a"), Fake::new("b"), Fake::new("c"));
        let endpoint = host.attach(&a, "inner");
        let at = host.attach(&b, "inner");
        assert_eq!(endpoint.gateway, None);
        b.serve(80);
        host.attach(&c, "bridge");
        c.serve(80);
        let published = [binding(None, Some(8080), 80, Transport::Tcp)];
        host.networks.publish(&c.id, "c", &published).unwrap();
        assert_eq!(a.get(v4(&at), 80).as_deref(), Some("b"));
        // No way out, even for one that makes itself a route.
        let gateway = network.row.gateway.unwrap();
        a.run(move || {
            let socket = knarr_netlink::Socket::route().unwrap();
            crate::link::default_route(&socket, "eth0", gateway).unwrap();
        });
        assert!(!a.knock([192, 0, 2, 2], 80));
        assert!(!a.knock([192, 0, 2, 1], 99));
        assert!(!a.knock(gateway, 99));
        assert!(!a.knock([192, 0, 2, 1], 8080));
        // And no way in.
        assert!(!stranger.knock(v4(&at), 80));
        assert!(!c.knock(v4(&at), 80));
        // Nothing is published there.
        let mine = [binding(None, Some(8081), 80, Transport::Tcp)];
        assert_eq!(host.networks.publish(&b.id, "b", &mine).unwrap(), []);
    });
}

#[test]
fn networks_are_joined_and_left_at_run_time() {
    in_netns(|| {
        let host = Host::new();
        let stranger = lan();
        stranger.serve(80);
        host.network("inner", true);
        host.network("outer", false);
        let (a, b) = (Fake::new("a"), Fake::new("b"));
        host.attach(&a, "inner");
        assert!(!a.knock([192, 0, 2, 2], 80));
        let second = host.attach(&a, "outer");
        assert_eq!((second.interface().as_str(), second.row.gateway), ("eth1", true));
        assert_eq!(a.get([192, 0, 2, 2], 80).as_deref(), Some("stranger"));
        a.serve(80);
        let published = [binding(None, Some(8080), 80, Transport::Tcp)];
        host.networks.publish(&a.id, "a", &published).unwrap();
        let at = host.attach(&b, "outer");
        b.serve(80);
        assert_eq!(a.get(v4(&at), 80).as_deref(), Some("b"));
        let error = host.try_attach(&a, "outer", &Default::default()).unwrap_err().to_string();
        assert_eq!(error, "endpoint with name a already exists in network outer");
        // The way out moves to the network that is left, and the port with it.
        host.attach(&a, "bridge");
        host.networks.disconnect(&a.id, "outer").unwrap();
        assert!(!a.knock(v4(&at), 80));
        assert_eq!(a.get([192, 0, 2, 2], 80).as_deref(), Some("stranger"));
        assert_eq!(get("127.0.0.1:8080".parse().unwrap()).as_deref(), Some("a"));
        let endpoints = host.networks.endpoints(&a.id).unwrap();
        let names: Vec<_> = endpoints.iter().map(|e| e.network_name.as_str()).collect();
        assert_eq!(names, ["inner", "bridge"]);
        let error = host.networks.disconnect(&a.id, "outer").unwrap_err();
        assert_eq!(error.kind(), knarr_model::ErrorKind::NotFound);
    });
}

//! Networks as such, and their limits.

use std::{sync::Barrier, thread};

use knarr_model::{EndpointSpec, ErrorKind, Kinded};

use crate::{
    Error, NetworkSpec, Networks,
    testing::{Fake, Host, in_netns, options},
};

fn spec(name: &str, subnet: Option<&str>) -> NetworkSpec {
    NetworkSpec {
        name: name.into(),
        subnet: subnet.map(|subnet| subnet.parse().unwrap()),
        ..NetworkSpec::default()
    }
}

#[test]
fn networks_are_created_found_and_removed() {
    in_netns(|| {
        let host = Host::new();
        let networks = &host.networks;
        let names: Vec<_> = networks.list().unwrap().into_iter().map(|n| n.row.name).collect();
        assert_eq!(names, ["bridge", "host", "none"]);
        assert_eq!(networks.inspect("bridge").unwrap().row.bridge.as_deref(), Some("knarr0"));
        let made = host.network("web", false);
        let bridge = format!("kn-{}", made.row.id.short());
        assert!(host.links().contains(&bridge));
        for name in ["web", made.row.id.as_str(), made.row.id.short()] {
            assert_eq!(networks.inspect(name).unwrap(), made);
        }
        assert_eq!(networks.inspect("nope").unwrap_err().kind(), ErrorKind::NotFound);
        let refuse = |spec: &NetworkSpec| networks.create(spec).unwrap_err();
        assert_eq!(refuse(&spec("web", None)).to_string(), "network with name web already exists");
        assert_eq!(refuse(&spec("web", None)).kind(), ErrorKind::Conflict);
        assert_eq!(refuse(&spec("host", None)).kind(), ErrorKind::Forbidden);
        assert_eq!(refuse(&spec("a/b", None)).kind(), ErrorKind::InvalidArgument);
        let six = NetworkSpec { ipv6: true, ..spec("six", None) };
        assert_eq!(refuse(&six).kind(), ErrorKind::NotSupported);
        let overlay = NetworkSpec { driver: Some("overlay".into()), ..spec("o", None) };
        assert_eq!(refuse(&overlay).kind(), ErrorKind::NotFound);
        assert_eq!(networks.remove("bridge").unwrap_err().kind(), ErrorKind::Forbidden);
        assert_eq!(networks.remove("web").unwrap(), made.row.id);
        assert_eq!(networks.remove("web").unwrap_err().kind(), ErrorKind::NotFound);
        assert!(!host.links().contains(&bridge));
    });
}

#[test]
fn n02_addresses_run_out_and_come_back() {
    in_netns(|| {
        let host = Host::new();
        host.networks.create(&spec("small", Some("10.9.0.0/29"))).unwrap();
        let overlap = host.networks.create(&spec("over", Some("10.9.0.0/16"))).unwrap_err();
        assert_eq!(overlap.to_string(), "Pool overlaps with other one on this address space");
        assert_eq!(overlap.kind(), ErrorKind::Forbidden);
        let fakes: Vec<_> = (0..6).map(|n| Fake::new(&format!("c{n}"))).collect();
        for fake in &fakes[..5] {
            host.attach(fake, "small");
        }
        let error = host.try_attach(&fakes[5], "small", &EndpointSpec::default()).unwrap_err();
        assert!(error.to_string().starts_with("no available IPv4 addresses"), "{error}");
        host.networks.detach(&fakes[2].id).unwrap();
        let endpoint = host.attach(&fakes[5], "small");
        assert_eq!(endpoint.row.ipv4.unwrap().to_string(), "10.9.0.4");
        // Fixed addresses: taken, foreign, and only where the user chose the subnet.
        host.networks.detach(&fakes[0].id).unwrap();
        let fresh = Fake::new("fresh");
        let fixed = |network: &str, address: &str| {
            let spec = EndpointSpec { ipv4: Some(address.parse().unwrap()), ..Default::default() };
            host.try_attach(&fresh, network, &spec)
        };
        assert!(matches!(fixed("small", "10.9.0.4").unwrap_err(), Error::AddressInUse));
        assert!(matches!(fixed("small", "10.9.0.1").unwrap_err(), Error::AddressInUse));
        assert!(matches!(fixed("small", "10.8.0.1").unwrap_err(), Error::Invalid(_)));
        assert!(matches!(fixed("bridge", "172.17.0.9").unwrap_err(), Error::Invalid(_)));
        assert_eq!(fixed("small", "10.9.0.2").unwrap().row.ipv4.unwrap().to_string(), "10.9.0.2");
    });
}

#[test]
fn n02_pools_run_out_clearly_and_a_removed_network_frees_its_own() {
    in_netns(|| {
        let host = Host::new();
        // 31 subnets in Docker's pools; one is the default bridge's.
        for n in 0..30 {
            host.network(&format!("n{n}"), false);
        }
        let error = host.networks.create(&spec("more", None)).unwrap_err();
        assert_eq!(error.to_string(), "all predefined address pools have been fully subnetted");
        let freed = host.networks.inspect("n7").unwrap().row.subnet;
        host.networks.remove("n7").unwrap();
        assert_eq!(host.network("more", false).row.subnet, freed);
        // With addresses of their own there may be hundreds.
        for n in 0..100 {
            host.networks.create(&spec(&format!("m{n}"), Some(&format!("10.{n}.0.0/16")))).unwrap();
        }
        assert_eq!(host.networks.list().unwrap().len(), 3 + 30 + 100);
    });
}

#[test]
fn n03_races_end_consistently() {
    in_netns(|| {
        let host = Host::new();
        let start = Barrier::new(8);
        // One name, many creators: one wins.
        let won = thread::scope(|scope| {
            let racers: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        start.wait();
                        host.networks.create(&spec("same", None)).is_ok()
                    })
                })
                .collect();
            racers.into_iter().filter_map(|racer| racer.join().ok()).filter(|won| *won).count()
        });
        assert_eq!(won, 1);
        assert_eq!(host.networks.list().unwrap().len(), 4);
        // Remove against attach: a network with an endpoint stays, one that is
        // gone has none. Disconnect against attach: whole or not at all.
        for round in 0..20 {
            let name = format!("r{round}");
            host.network(&name, false);
            let fake = Fake::new("c");
            let start = Barrier::new(3);
            thread::scope(|scope| {
                let attached = scope.spawn(|| {
                    start.wait();
                    host.try_attach(&fake, &name, &EndpointSpec::default()).is_ok()
                });
                let removed = scope.spawn(|| {
                    start.wait();
                    host.networks.remove(&name)
                });
                scope.spawn(|| {
                    start.wait();
                    let _ = host.networks.disconnect(&fake.id, &name);
                });
                let _ = attached.join().unwrap();
                match removed.join().unwrap() {
                    Ok(_) => assert!(host.networks.inspect(&name).is_err()),
                    Err(error) => assert_eq!(error.kind(), ErrorKind::Forbidden, "{error}"),
                }
            });
            let endpoints = host.networks.endpoints(&fake.id).unwrap();
            let veths = host.links().iter().filter(|link| link.starts_with("kv")).count();
            assert_eq!(veths, endpoints.len(), "interfaces are those of the rows");
            host.networks.disconnect(&fake.id, &name).ok();
            host.networks.remove(&name).ok();
        }
        let error = {
            let fake = Fake::new("c");
            host.attach(&fake, "same");
            host.networks.remove("same").unwrap_err()
        };
        let text = error.to_string();
        let start = "error while removing network: network same has active endpoints (name:\"c\" ";
        assert!(text.starts_with(start), "{text}");
    });
}

#[test]
fn engines_beside_each_other_choose_apart() {
    in_netns(|| {
        let host = Host::new();
        let directory = tempfile::tempdir().unwrap();
        let db = || {
            let path = directory.path().join("state.db");
            std::sync::Arc::new(knarr_state::Db::open(&path).unwrap())
        };
        let mut other = options(&directory);
        other.instance = "other".into();
        // The same bridge cannot be had twice.
        let error = Networks::open(db(), other.clone()).unwrap_err();
        assert!(error.to_string().contains("belongs to another engine"), "{error}");
        other.bridge = "knarr1".into();
        let networks = Networks::open(db(), other).unwrap();
        let subnet = |networks: &Networks| networks.inspect("bridge").unwrap().row.subnet.unwrap();
        assert!(!subnet(&networks).overlaps(subnet(&host.networks)));
        let links = host.links();
        assert!(links.contains(&"knarr0".into()) && links.contains(&"knarr1".into()));
    });
}

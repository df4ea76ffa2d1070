//! After a crash, and when others meddle.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use knarr_model::Transport;
use knarr_netlink::Socket;

use crate::{
    link,
    testing::{Fake, Host, binding, get, in_netns},
};

#[test]
fn n04_what_a_crash_left_is_mended_at_the_start() {
    in_netns(|| {
        let host = Host::new();
        host.network("net", false);
        let gone = host.network("gone", false).row;
        let (dead, live, other) = (Fake::new("dead"), Fake::new("live"), Fake::new("other"));
        let published = |port| [binding(None, Some(port), 80, Transport::Tcp)];
        host.attach(&dead, "net");
        host.networks.publish(&dead.id, "dead", &published(8080)).unwrap();
        let at = host.attach(&live, "net").row.ipv4.unwrap();
        host.attach(&other, "net");
        live.serve(80);
        host.networks.publish(&live.id, "live", &published(8081)).unwrap();
        // A row without its bridge, a bridge without its row, a port of a bridge
        // that no row knows; and dead's interface lives on.
        let socket = Socket::route().unwrap();
        link::delete(&socket, gone.bridge.as_deref().unwrap()).unwrap();
        link::create_bridge(&socket, "kn-stale", [2, 0, 0, 0, 0, 1], 1500).unwrap();
        let stale = link::index("kn-stale").unwrap();
        link::configure_bridge(&socket, stale, "knarr:test:nobody", None).unwrap();
        let stray = Fake::new("stray");
        let netns = std::fs::File::open(stray.netns()).unwrap();
        let veth = link::Veth {
            host: "kvstray",
            container: "eth0",
            mac: [2, 0, 0, 0, 0, 2],
            bridge: link::index("knarr0").unwrap(),
            mtu: 1500,
        };
        link::create_veth(&socket, &veth, &netns).unwrap();
        let links = host.links().len();
        let host = host.reopen(&[&live, &other]);
        let names = host.links();
        assert!(names.contains(gone.bridge.as_ref().unwrap()));
        assert!(!names.iter().any(|name| name == "kn-stale" || name == "kvstray"));
        // One bridge came; a bridge, a stray and dead's interface went.
        assert_eq!(names.len(), links + 1 - 3, "{names:?}");
        assert_eq!(host.networks.endpoints(&dead.id).unwrap(), []);
        assert_eq!(host.networks.ports(&dead.id).unwrap(), []);
        assert!(std::net::TcpListener::bind("0.0.0.0:8080").is_ok(), "dead's port is free");
        // The living go on: names, ports (both families), their neighbours.
        assert_eq!(other.lookup("live"), Ok(vec![at]));
        for address in ["127.0.0.1:8081", "[::1]:8081"] {
            assert_eq!(get(address.parse().unwrap()).as_deref(), Some("live"), "{address}");
        }
        assert!(std::net::TcpListener::bind("0.0.0.0:8081").is_err(), "live's port is held");
        // And once more, with nothing to do.
        let before = host.links();
        let host = host.reopen(&[&live, &other]);
        assert_eq!(host.links(), before);
        assert!(host.directory.path().exists() && host.db.networks().is_ok());
    });
}

const CRASH: &str = "KNARR_TEST_CRASH";

/// Not a test but the engine that [`n04_a_kill_at_any_moment_leaves_nothing`]
/// kills: does everything over and over, and says so.
#[test]
fn crash_child() {
    let Ok(directory) = std::env::var(CRASH) else { return };
    let directory = tempfile::Builder::new().disable_cleanup(true).tempdir_in(directory).unwrap();
    std::fs::write(directory.path().join("resolv.conf"), "").unwrap();
    println!("{}", directory.path().display());
    let host = Host::over(directory);
    for round in 0.. {
        let (a, name) = (Fake::new("a"), format!("net{round}"));
        let step = |what: &str| println!("{what} {round}");
        step("create");
        host.network(&name, false);
        step("attach");
        host.attach(&a, &name);
        step("attach");
        host.attach(&a, "bridge");
        step("publish");
        let ports = [
            binding(None, Some(8080), 80, Transport::Tcp),
            binding(Some("127.0.0.1"), Some(8081), 80, Transport::Udp),
        ];
        host.networks.publish(&a.id, "a", &ports).unwrap();
        step("disconnect");
        host.networks.disconnect(&a.id, &name).unwrap();
        step("detach");
        host.networks.detach(&a.id).unwrap();
        step("remove");
        host.networks.remove(&name).unwrap();
    }
}

#[test]
fn n04_a_kill_at_any_moment_leaves_nothing() {
    use std::io::BufRead;
    in_netns(|| {
        let root = tempfile::tempdir().unwrap();
        // After so many steps, and so many turns of a loop into the next one.
        for kill in 0..28usize {
            let mut child = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "tests::recovery::crash_child", "--nocapture"])
                .env(CRASH, root.path())
                .stdout(std::process::Stdio::piped())
                .spawn()
                .unwrap();
            let output = std::io::BufReader::new(child.stdout.take().unwrap());
            let mut lines = output.lines().map(Result::unwrap);
            let root = root.path().to_str().unwrap();
            let directory = lines.find_map(|line| line.find(root).map(|at| line[at..].to_owned()));
            let directory = std::path::PathBuf::from(directory.unwrap());
            lines.nth(kill % 14).unwrap();
            (0..kill * 3000).for_each(|turn| {
                std::hint::black_box(turn);
            });
            child.kill().unwrap();
            child.wait().unwrap();
            let kept = tempfile::tempdir().unwrap();
            for file in ["state.db", "state.db-wal", "resolv.conf"] {
                let _ = std::fs::copy(directory.join(file), kept.path().join(file));
            }
            let host = Host::over(kept);
            // Whatever was half-done is done or undone: bridges are those of
            // the rows, and nothing belongs to a container.
            let networks = host.networks.list().unwrap();
            assert!(networks.iter().all(|network| network.endpoints.is_empty()));
            assert_eq!(host.db.ports().unwrap(), []);
            let mut bridges: Vec<_> =
                networks.into_iter().filter_map(|network| network.row.bridge).collect();
            bridges.sort();
            // Namespaces of the dead are cleared away by the kernel at its leisure.
            let mut links = host.links();
            links.retain(|name| name.starts_with("kn"));
            assert_eq!(links, bridges, "killed at {kill}");
            for port in ["0.0.0.0:8080", "[::]:8080"] {
                assert!(std::net::TcpListener::bind(port).is_ok(), "{port} is held");
            }
            let fake = Fake::new("after");
            host.attach(&fake, "bridge");
            assert!(host.networks.leave().is_empty());
            drop(host);
        }
        let socket = Socket::route().unwrap();
        let left = link::links(&socket).unwrap();
        assert!(left.iter().all(|link| link.kind != "bridge"), "{left:?}");
        assert!(crate::recover::purge("test").is_empty(), "nothing to remove is no error");
    });
}

#[test]
fn n04_a_deleted_bridge_is_made_again_when_needed() {
    in_netns(|| {
        let host = Host::new();
        let (a, b) = (Fake::new("a"), Fake::new("b"));
        let bridge = host.network("net", false).row.bridge.unwrap();
        host.attach(&a, "net");
        link::delete(&Socket::route().unwrap(), &bridge).unwrap();
        let at = host.attach(&b, "net").row.ipv4.unwrap();
        b.serve(80);
        // What is attached already comes back with the next start.
        let host = host.reopen(&[&a, &b]);
        assert_eq!(a.get(at, 80).as_deref(), Some("b"));
        drop(host);
    });
}

#[test]
fn n08_a_flushed_packet_filter_is_back_within_two_seconds() {
    in_netns(|| {
        let host = Host::new();
        let list = || {
            let output = Command::new("nft").args(["list", "ruleset"]).output().ok()?;
            Some(String::from_utf8_lossy(&output.stdout).into_owned())
        };
        let Some(before) = list() else {
            eprintln!("skipped: nft is not installed");
            return;
        };
        assert!(before.contains("table inet knarr-test"));
        for meddling in [
            &["flush", "ruleset"][..],
            &["delete", "table", "inet", "knarr-test"],
            &["flush", "chain", "inet", "knarr-test", "forward"],
            &["insert", "rule", "inet", "knarr-test", "forward", "accept"],
        ] {
            assert!(Command::new("nft").args(meddling).status().unwrap().success());
            let deadline = Instant::now() + Duration::from_secs(2);
            while list().as_ref() != Some(&before) {
                assert!(Instant::now() < deadline, "{meddling:?}");
                std::thread::yield_now();
            }
        }
        // Our own changes are no meddling.
        host.network("net", false);
    });
}

#[test]
#[ignore = "a measurement: run it alone, with --no-capture"]
fn attach_latency() {
    in_netns(|| {
        let host = Host::new();
        host.network("net", false);
        for network in ["bridge", "net"] {
            let mut times: Vec<_> = (0..100)
                .map(|n| {
                    let fake = Fake::new(&format!("c{n}"));
                    let start = Instant::now();
                    host.attach(&fake, network);
                    let attached = start.elapsed();
                    let bindings = [binding(None, None, 80, Transport::Tcp)];
                    host.networks.publish(&fake.id, "c", &bindings).unwrap();
                    let published = start.elapsed() - attached;
                    let start = Instant::now();
                    host.networks.detach(&fake.id).unwrap();
                    (attached, published, start.elapsed())
                })
                .collect();
            let best = times.iter().map(|times| times.0).min().unwrap();
            let mut median = |key: fn(&(Duration, Duration, Duration)) -> Duration| {
                times.sort_by_key(key);
                key(&times[times.len() / 2])
            };
            println!(
                "{network}: attach {:?} (best {:?}), publish {:?}, detach {:?}",
                median(|t| t.0),
                best,
                median(|t| t.1),
                median(|t| t.2)
            );
        }
    });
}

#[test]
fn another_engine_that_drops_all_forwarding_is_lived_beside() {
    in_netns(|| {
        let iptables = |arguments: &[&str]| {
            let output = Command::new("iptables-nft").args(arguments).output().ok()?;
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            Some(String::from_utf8_lossy(&output.stdout).into_owned())
        };
        let host = Host::new();
        let stranger = crate::testing::lan();
        stranger.serve(80);
        let bridge = host.network("net", false).row.bridge.unwrap();
        let (a, b) = (Fake::new("a"), Fake::new("b"));
        host.attach(&a, "net");
        let at = host.attach(&b, "net").row.ipv4.unwrap();
        b.serve(80);
        // As dockerd does when it starts.
        let Some(_) = iptables(&["-P", "FORWARD", "DROP"]) else {
            eprintln!("skipped: iptables is not installed");
            return;
        };
        assert_eq!(a.get([192, 0, 2, 2], 80).as_deref(), Some("stranger"));
        assert_eq!(a.get(at, 80).as_deref(), Some("b"));
        // iptables still reads its table, and sees rules of its own kind.
        let rules = || iptables(&["-S", "FORWARD"]).unwrap();
        let rule = format!(
            "-A FORWARD -i {bridge} -m comment --comment \"knarr-test in {bridge}\" -j ACCEPT"
        );
        assert!(rules().contains(&rule), "{}", rules());
        // It opens nothing.
        host.network("other", false);
        let c = Fake::new("c");
        host.attach(&c, "other");
        assert!(!c.knock(at, 80));
        assert!(!stranger.knock(at, 80));
        // Flushed, it is there again; a network that goes takes its rules along.
        iptables(&["-F", "FORWARD"]);
        assert_eq!(a.get([192, 0, 2, 2], 80).as_deref(), Some("stranger"));
        host.networks.detach(&c.id).unwrap();
        host.networks.remove("other").unwrap();
        assert_eq!(rules().matches("-j ACCEPT").count(), 4, "{}", rules());
        let host = host.reopen(&[&a, &b]);
        assert_eq!(rules().matches("-j ACCEPT").count(), 4, "{}", rules());
        drop(host);
    });
}

//! One network model for both kinds.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
};

use crate::{world, world_of_both};
use knarr_harness::World;

/// A native container that answers HTTP on 8000 with its name.
fn serve(world: &World, name: &str, flags: &[&str]) {
    let script =
        format!("mkdir -p /www; echo i-am-{name} > /www/index.html; httpd -f -p 8000 -h /www");
    world
        .knarr(&[&["run", "-d", "--name", name], flags, &["busybox", "sh", "-c", &script]].concat())
        .ok();
    world
        .knarr(&[
            "exec",
            name,
            "sh",
            "-c",
            "until wget -q -O /dev/null http://127.0.0.1:8000/; do :; done",
        ])
        .ok();
}

fn get(address: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap_or_else(|e| panic!("{address}: {e}"));
    write!(stream, "GET / HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// Fetches a page from inside a container, and gives up after a while (the `-T`
/// of a static busybox's wget crashes it).
fn fetch(world: &World, from: &str, url: &str) -> knarr_harness::Run {
    world.knarr(&["exec", from, "timeout", "5", "wget", "-q", "-O", "-", url])
}

#[test]
fn names_and_aliases_resolve_on_a_network_of_ones_own() {
    let world = world();
    world.knarr(&["network", "create", "harbour"]).ok();
    serve(&world, "one", &["--network", "harbour", "--network-alias", "uno"]);
    serve(&world, "two", &["--network", "harbour"]);
    assert_eq!(fetch(&world, "two", "http://one:8000/").ok(), "i-am-one");
    assert_eq!(fetch(&world, "two", "http://uno:8000/").ok(), "i-am-one");
    assert_eq!(fetch(&world, "one", "http://two:8000/").ok(), "i-am-two");
    assert_ne!(fetch(&world, "one", "http://nobody:8000/").code, 0);
}

#[test]
fn n05_networks_are_isolated_from_each_other() {
    let world = world();
    for name in ["east", "west"] {
        world.knarr(&["network", "create", name]).ok();
        serve(&world, &format!("in-{name}"), &["--network", name]);
    }
    let address = world
        .knarr(&["inspect", "in-west", "--format", "{{.NetworkSettings.Networks.west.IPAddress}}"])
        .ok();
    assert_ne!(fetch(&world, "in-east", &format!("http://{address}:8000/")).code, 0);
    assert_ne!(fetch(&world, "in-east", "http://in-west:8000/").code, 0);
    world.knarr(&["network", "connect", "west", "in-east"]).ok();
    assert_eq!(fetch(&world, "in-east", "http://in-west:8000/").ok(), "i-am-in-west");
    world.knarr(&["network", "disconnect", "west", "in-east"]).ok();
    assert_ne!(fetch(&world, "in-east", &format!("http://{address}:8000/")).code, 0);
}

/// A service of the host: it answers every request with a word.
fn host_service(address: &str, word: &'static str) {
    let listener = TcpListener::bind(address).unwrap_or_else(|e| panic!("{address}: {e}"));
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut reader = BufReader::new(stream);
            let mut line = String::new();
            while reader.read_line(&mut line).is_ok_and(|read| read > 2) {
                line.clear();
            }
            let _ = write!(reader.get_mut(), "HTTP/1.0 200 OK\r\n\r\n{word}");
        }
    });
}

/// The engine itself listens on loopback addresses only. Whoever listens on the bridge's
/// address with its port is a way to it, such as a forwarder of the host's owner.
#[test]
fn n05_a01_the_engines_own_port_is_closed_to_containers() {
    let default: &[&str] = &[];
    for (policy, reached) in [(default, false), (&["--bridge-input", "accept"], true)] {
        let arguments = [&["--host", "tcp://127.0.0.1:2399"], policy].concat();
        let world = World::with_arguments(&arguments).expect("an engine");
        world.load(&knarr_harness::ImageBuilder::busybox().unwrap().docker_archive());
        world.knarr(&["run", "-d", "--name", "one", "busybox", "sleep", "1000"]).ok();
        let gateway = "{{.NetworkSettings.Networks.bridge.Gateway}}";
        let gateway = world.knarr(&["inspect", "one", "--format", gateway]).ok();
        for port in [2398, 2399] {
            host_service(&format!("{gateway}:{port}"), "reached");
        }
        let reach = |port: u16| fetch(&world, "one", &format!("http://{gateway}:{port}/"));
        assert_eq!(reach(2398).ok(), "reached", "another service of the host");
        let own = reach(2399);
        assert_eq!(own.code == 0, reached, "{policy:?}: {own:?}");
        assert_eq!(own.stdout.contains("reached"), reached, "{policy:?}: {own:?}");
        // The host reaches both, and the engine is where it was.
        assert!(get(&format!("{gateway}:2399")).contains("reached"));
        assert!(get("127.0.0.1:2399").starts_with("HTTP/1."));
    }
}

#[test]
fn published_ports_answer_on_the_loopback() {
    let world = world();
    serve(&world, "one", &["-p", "8080:8000", "-p", "127.0.0.1::8000/udp"]);
    assert!(get("127.0.0.1:8080").contains("i-am-one"));
    assert!(get("[::1]:8080").contains("i-am-one"));
    let ports = world.knarr(&["port", "one"]).ok();
    assert!(ports.contains("8000/tcp -> 0.0.0.0:8080"), "{ports}");
    assert!(ports.contains("8000/udp -> 127.0.0.1:"), "{ports}");
    world.knarr(&["stop", "-t", "0", "one"]).ok();
    assert!(TcpStream::connect("127.0.0.1:8080").is_err(), "nothing listens any more");
}

#[test]
fn n01_a_port_is_given_once() {
    let world = world();
    serve(&world, "one", &["-p", "8080:8000"]);
    let refused = world
        .knarr(&["run", "-d", "--name", "two", "-p", "8080:8000", "busybox", "sleep", "1000"])
        .fails(125);
    assert!(refused.contains("port is already allocated"), "{refused}");
    assert_eq!(world.knarr(&["inspect", "two", "--format", "{{.State.Status}}"]).ok(), "created");
    world.knarr(&["rm", "-f", "one"]).ok();
    world.knarr(&["start", "two"]).ok();
}

#[test]
fn none_host_and_shared_namespaces() {
    let world = world();
    serve(&world, "one", &["--network", "none"]);
    assert_eq!(
        world
            .knarr(&[
                "run",
                "--rm",
                "--network",
                "container:one",
                "busybox",
                "wget",
                "-q",
                "-O",
                "-",
                "http://127.0.0.1:8000/"
            ])
            .ok(),
        "i-am-one"
    );
    let host =
        world.knarr(&["run", "--rm", "--network", "host", "busybox", "ls", "/sys/class/net"]).ok();
    assert!(host.contains("knarr"), "{host}");
}

#[test]
fn n06_an_internal_network_has_no_way_out() {
    let world = world();
    world.knarr(&["network", "create", "--internal", "cabin"]).ok();
    serve(&world, "one", &["--network", "cabin"]);
    let routes = world.knarr(&["exec", "one", "ip", "route"]).ok();
    assert!(!routes.contains("default"), "{routes}");
    serve(&world, "two", &["--network", "cabin"]);
    assert_eq!(fetch(&world, "two", "http://one:8000/").ok(), "i-am-one");
}

#[test]
fn networks_are_listed_inspected_and_removed() {
    let world = world();
    world.knarr(&["network", "create", "--subnet", "10.55.0.0/24", "harbour"]).ok();
    assert_eq!(
        world
            .knarr(&[
                "network",
                "inspect",
                "harbour",
                "--format",
                "{{(index .IPAM.Config 0).Subnet}}"
            ])
            .ok(),
        "10.55.0.0/24"
    );
    world
        .knarr(&["run", "-d", "--name", "one", "--network", "harbour", "busybox", "sleep", "1000"])
        .ok();
    let refused = world.knarr(&["network", "rm", "harbour"]).fails(1);
    assert!(refused.contains("has active endpoints"), "{refused}");
    world.knarr(&["rm", "-f", "one"]).ok();
    world.knarr(&["network", "rm", "harbour"]).ok();
    let names = world.knarr(&["network", "ls", "--format", "{{.Name}}"]).ok();
    assert_eq!(names, "bridge\nhost\nnone");
    assert_eq!(world.knarr(&["network", "rm", "bridge"]).code, 1);
}

#[test]
fn both_kinds_reach_each_other_by_name() {
    let world = world_of_both();
    world.knarr(&["network", "create", "harbour"]).ok();
    serve(&world, "native", &["--network", "harbour"]);
    world
        .knarr(&[
            "run",
            "-d",
            "--name",
            "web",
            "--network",
            "harbour",
            "-v",
            "hold:/data",
            "-e",
            "BACKEND=native:8000",
            "-p",
            "8081:8080",
            "web",
        ])
        .ok();
    world
        .knarr(&[
            "exec",
            "native",
            "sh",
            "-c",
            "until wget -q -O /dev/null http://web:8080/; do :; done",
        ])
        .ok();
    assert!(fetch(&world, "native", "http://web:8080/").ok().contains("hello"));
    let there_and_back = fetch(&world, "native", "http://web:8080/native").ok();
    assert!(there_and_back.contains("i-am-native"), "{there_and_back}");
    assert!(get("127.0.0.1:8081").contains("hello"));
}

#[test]
fn what_holds_a_network_is_named_and_comings_and_goings_are_told() {
    let world = world_of_both();
    world.knarr(&["network", "create", "harbour"]).ok();
    world
        .knarr(&["run", "-d", "--name", "native", "--network", "harbour", "busybox", "sleep", "99"])
        .ok();
    world.knarr(&["run", "-d", "--name", "web", "--network", "harbour", "web"]).ok();
    let refused = world.knarr(&["network", "rm", "harbour"]).fails(1);
    assert!(refused.contains("has active endpoints"), "{refused}");
    assert!(refused.contains("\"native\"") && refused.contains("\"web\""), "{refused}");
    world.knarr(&["rm", "-f", "native", "web"]).ok();
    world.knarr(&["network", "rm", "harbour"]).ok();
    let mut events = world
        .knarr_command(&["events", "--since", "0", "--filter", "type=network"])
        .args(["--format", "{{.Action}} {{index .Actor.Attributes \"name\"}}"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(events.stdout.take().expect("piped")).lines();
    for action in ["create", "connect", "connect", "disconnect", "disconnect", "destroy"] {
        let wanted = format!("{action} harbour");
        assert!(lines.any(|line| line.expect("text") == wanted), "{wanted}");
    }
    events.kill().unwrap();
    events.wait().unwrap();
}

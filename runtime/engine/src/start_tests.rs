use knarr_model::{PortSpec, Transport, WasmAbi, task::Preopen};

use super::*;

fn port(port: u16, transport: Transport) -> PortSpec {
    PortSpec { port, transport }
}

#[test]
fn p11_messages_decide_the_exit_code_as_docker_does() {
    for (message, code) in [
        ("exec: \"nope\": executable file not found in $PATH", 127),
        ("exec: \"/nope\": stat /nope: no such file or directory", 127),
        ("exec: \"/etc/passwd\": permission denied", 126),
        ("exec: \"/bin\": is a directory", 126),
        ("exec /bin/app: exec format error", 126),
        ("mount: invalid argument", 128),
    ] {
        assert_eq!(exit_code_of(message), code, "{message}");
        let error = start_error(&TaskError::Refused { code: 2, message: message.into() });
        assert!(error.message().starts_with("failed to create task for container: "), "{error}");
        assert!(error.message().contains(message));
    }
}

#[test]
fn wasm_grants_follow_dockers_words() {
    let mut spec = ContainerSpec::default();
    spec.exposed_ports.insert(port(80, Transport::Tcp));
    spec.exposed_ports.insert(port(53, Transport::Udp));
    spec.published.push(PortBinding {
        container: port(443, Transport::Tcp),
        host_ip: None,
        host_port: Some(8443),
        host_port_end: None,
    });
    let mounts = [ResolvedMount {
        target: "/data".into(),
        read_only: true,
        source: Source::Tmpfs { options: Vec::new() },
    }];
    let launch = |abi, spec: &ContainerSpec| grants(abi, spec, &mounts, "/h".into(), "/c".into());
    let granted = launch(WasmAbi::ComponentCommand, &spec);
    assert_eq!(
        granted.preopens,
        [
            Preopen { path: "/".into(), read_only: true },
            Preopen { path: "/data".into(), read_only: true }
        ]
    );
    let network = granted.network.unwrap();
    assert_eq!((network.listen_tcp, network.listen_udp), (vec![80, 443], vec![53]));
    assert!(network.dns);

    spec.network_mode = NetworkMode::None;
    assert_eq!(launch(WasmAbi::HttpProxy, &spec).network, None);
    let bare = ContainerSpec::default();
    assert_eq!(launch(WasmAbi::HttpProxy, &bare).network.unwrap().listen_tcp, [8080]);
    assert!(launch(WasmAbi::Preview1Command, &bare).network.unwrap().listen_tcp.is_empty());
}

#[test]
fn networks_are_the_modes_first_and_then_the_others() {
    let mut spec = ContainerSpec {
        network_mode: NetworkMode::Network("b".into()),
        ..ContainerSpec::default()
    };
    for name in ["a", "b"] {
        let asked = EndpointSpec { aliases: vec![name.into()], ..EndpointSpec::default() };
        spec.endpoints.insert(name.into(), asked);
    }
    let names: Vec<String> = wanted_networks(&spec).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["b", "a"]);
    assert_eq!(wanted_networks(&spec)[0].1.aliases, ["b"]);
    spec.network_mode = NetworkMode::Container("x".into());
    assert!(wanted_networks(&spec).is_empty());
    spec.network_mode = NetworkMode::None;
    assert_eq!(wanted_networks(&spec).len(), 1);
    let plain = wanted_networks(&ContainerSpec::default());
    assert_eq!(plain[0].0, "bridge");
}

#[test]
fn publish_all_gives_every_exposed_port_a_binding() {
    let mut spec = ContainerSpec { publish_all: true, ..ContainerSpec::default() };
    spec.exposed_ports.extend([port(80, Transport::Tcp), port(81, Transport::Tcp)]);
    spec.published.push(PortBinding {
        container: port(80, Transport::Tcp),
        host_ip: None,
        host_port: Some(8080),
        host_port_end: None,
    });
    assert_eq!(bindings(&spec).len(), 2);
    spec.network_mode = NetworkMode::Host;
    assert!(bindings(&spec).is_empty());
}

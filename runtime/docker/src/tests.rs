use super::*;

#[test]
fn null_reads_as_the_zero_value() {
    let config: ContainerConfig =
        serde_json::from_str(r#"{"Hostname":null,"Tty":null,"Env":null,"Cmd":"one","Labels":{}}"#)
            .unwrap();
    assert_eq!(config.hostname, "");
    assert_eq!(config.cmd, Some(Words(vec!["one".into()])));
    assert_eq!(config.labels, Some(Default::default()));
}

#[test]
fn a_request_of_the_docker_client_reads() {
    let text = include_str!("testdata/create.json");
    let request: ContainerCreateRequest = serde_json::from_str(text).unwrap();
    assert_eq!(request.config.image, "busybox");
    assert_eq!(request.config.cmd, Some(Words(vec!["true".into()])));
    let host = request.host_config.unwrap();
    assert_eq!(host.network_mode, "bridge");
    assert_eq!(host.other["BlkioDeviceReadBps"], serde_json::json!([]));
    assert_eq!(host.restart_policy.name, "no");
}

#[test]
fn unknown_fields_of_the_host_configuration_come_back() {
    let before = serde_json::json!({"Memory": 7, "IOMaximumIOps": 3, "Invented": {"a": [1]}});
    let host: HostConfig = serde_json::from_value(before).unwrap();
    let after = serde_json::to_value(&host).unwrap();
    assert_eq!(after["Memory"], 7);
    assert_eq!(after["IOMaximumIOps"], 3);
    assert_eq!(after["Invented"]["a"][0], 1);
}

#[test]
fn frames_have_dockers_header() {
    assert_eq!(StreamKind::Stderr.header(258), [2, 0, 0, 0, 0, 0, 1, 2]);
    assert_eq!(StreamKind::parse([1, 0, 0, 0, 0, 0, 0, 9]), Some((StreamKind::Stdout, 9)));
    assert_eq!(StreamKind::parse(*b"HTTP/1.1"), None);
}

#[test]
fn null_endpoints_keep_their_name() {
    let config: NetworkingConfig =
        serde_json::from_str(r#"{"EndpointsConfig":{"net":null}}"#).unwrap();
    assert_eq!(config.endpoints_config.unwrap()["net"], None);
}

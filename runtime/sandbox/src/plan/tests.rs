//! Launches as text: what a change of the planner changes is seen here.

use std::path::PathBuf;

use oci_spec::runtime::Spec;
use serde_json::json;

use super::*;

fn spec(text: &str) -> Spec {
    serde_json::from_str(text).expect("a valid specification")
}

/// Docker's defaults, as the engine writes them.
fn docker() -> Spec {
    spec(include_str!("testdata/docker.json"))
}

fn plan(spec: &Spec, identity: &Identity, terminal: Option<(u16, u16)>) -> Result<Ops, Error> {
    let cgroups = ["cpu", "memory"]
        .map(|name| (name.to_owned(), PathBuf::from(format!("/sys/fs/cgroup/{name}/knarr/x"))));
    let tasks = cgroups.each_ref().map(|(_, dir)| dir.join("tasks"));
    let context = Context {
        id: "x",
        identity,
        filter: None,
        bound: true,
        available: u64::MAX,
        cgroups: Some(&cgroups),
        tasks: &tasks,
        terminal,
        init: false,
        maps: None,
        mount_label: None,
        style: Style::default(),
    };
    create(spec, &context)
}

fn user() -> Identity {
    Identity { uid: 1000, gid: 50, groups: Some(vec![50, 100]), home: Some("/home/u".to_owned()) }
}

#[test]
fn the_launch_of_a_docker_container() {
    let ops = plan(&docker(), &user(), Some((24, 80))).expect("plan");
    insta::assert_snapshot!(format!("{ops:?}"));
}

#[test]
fn the_launch_of_a_wasm_container() {
    let mut spec = docker();
    let launch = json!({
        "host": "/usr/libexec/knarr-wasm", "code": "/var/lib/knarr/wasm/x.cwasm",
        "abi": "http-proxy", "preopens": [{ "path": "/", "read_only": true }],
        "network": { "listen_tcp": [80], "listen_udp": [], "dns": true }, "memory": null,
    });
    let annotations = [(knarr_model::task::WASM_ANNOTATION.to_owned(), launch.to_string())];
    spec.set_annotations(Some(annotations.into()));
    let ops = plan(&spec, &user(), None).expect("plan");
    insta::assert_snapshot!(format!("{ops:?}"));
}

#[test]
fn the_launch_of_another_process() {
    let spec = docker();
    let process = spec.process().as_ref().expect("process");
    let context = Context {
        id: "x",
        identity: &user(),
        filter: None,
        bound: false,
        available: u64::MAX,
        cgroups: None,
        tasks: &["/sys/fs/cgroup/cpu/knarr/x/tasks".into()],
        terminal: None,
        init: false,
        maps: None,
        mount_label: None,
        style: Style::default(),
    };
    let ops = exec(process, &context, 0x6c02_0000, &Habits::default()).expect("plan");
    insta::assert_snapshot!(format!("{ops:?}"));
}

#[test]
fn the_launch_of_a_pod_s_holder() {
    let mut spec = docker();
    let annotations = [(crate::HOLD_ANNOTATION.to_owned(), "true".to_owned())];
    spec.set_annotations(Some(annotations.into()));
    let ops = plan(&spec, &user(), None).expect("plan");
    insta::assert_snapshot!(format!("{ops:?}"));
}

#[test]
fn the_same_specification_gives_the_same_launch() {
    assert_eq!(
        plan(&docker(), &user(), None).expect("plan"),
        plan(&docker(), &user(), None).expect("plan")
    );
}

#[test]
fn r05_sysctls_are_written_before_anything_lies_on_procfs() {
    let ops = plan(&docker(), &user(), None).expect("plan");
    let place = |wanted: fn(&Op<'_>) -> bool| ops.iter().position(|op| wanted(&op));
    let proc = place(|op| matches!(op, Op::Proc { .. })).expect("proc");
    let first = place(|op| matches!(op, Op::Sysctl { .. })).expect("sysctl");
    assert_eq!(first, proc + 1);
}

#[test]
fn r02_descriptors_are_closed_and_nothing_is_opened_after_it() {
    let ops = plan(&docker(), &user(), None).expect("plan");
    let after: Vec<Op<'_>> =
        ops.iter().skip_while(|op| !matches!(op, Op::CloseFrom { .. })).collect();
    assert_eq!(after[0], Op::CloseFrom { first: 3 });
    assert!(after.len() >= 3, "{after:?}");
    let harmless = |op: &Op<'_>| {
        matches!(
            op,
            Op::CloseFrom { .. } | Op::Capabilities { .. } | Op::Ready {} | Op::Exec { .. }
        )
    };
    assert!(after.iter().all(harmless), "{after:?}");
}

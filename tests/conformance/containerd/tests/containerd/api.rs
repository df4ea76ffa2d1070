//! What containerd's API has and `ctr` of 1.6 has no verb for: updates, metrics as
//! they are encoded, its own stream of events.

use std::fs;

use containerd_shim_protos::{cgroups::metrics::Metrics, events::task as events};
use protobuf::{Message, MessageField, well_known_types::any::Any};
use serde_json::{Value, json};

use crate::{
    grpc::{Answers, Grpc, Refusal},
    proto::containerd::{
        CheckpointTaskRequest, CreateContainerRequest, CreateContainerResponse, Empty, Envelope,
        MetricsRequest, MetricsResponse, NewContainer, Runtime, SubscribeRequest,
        UpdateTaskRequest,
    },
    support::{Containerd, KNARR, both, both_tell, unique},
};

pub const TASKS: &str = "containerd.services.tasks.v1.Tasks";

pub fn connect(containerd: &Containerd) -> Grpc {
    Grpc::connect(&containerd.socket, Some(&containerd.namespace))
}

/// Makes a container without a snapshot, which `ctr` has no words for.
pub fn make_container(containerd: &Containerd, id: &str, image: &str, spec: &Value) {
    let request = CreateContainerRequest {
        container: MessageField::some(NewContainer {
            id: id.to_owned(),
            image: image.to_owned(),
            runtime: MessageField::some(Runtime {
                name: containerd.runtime.to_owned(),
                ..Default::default()
            }),
            spec: MessageField::some(Any {
                type_url: "types.containerd.io/opencontainers/runtime-spec/1/Spec".to_owned(),
                value: spec.to_string().into_bytes(),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    };
    let method = "containerd.services.containers.v1.Containers/Create";
    let _: CreateContainerResponse = connect(containerd).call(method, &request).unwrap();
}

fn update(tasks: &Grpc, id: &str, resources: &Value) -> Result<Empty, Refusal> {
    let request = UpdateTaskRequest {
        container_id: id.to_owned(),
        resources: MessageField::some(Any {
            type_url: "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources".into(),
            value: serde_json::to_vec(resources).unwrap(),
            ..Default::default()
        }),
        ..Default::default()
    };
    tasks.call(&format!("{TASKS}/Update"), &request)
}

fn metrics(tasks: &Grpc, id: &str) -> Metrics {
    let request = MetricsRequest { filters: vec![format!("id=={id}")], ..Default::default() };
    let answer: MetricsResponse = tasks.call(&format!("{TASKS}/Metrics"), &request).unwrap();
    let [metric] = &answer.metrics[..] else { panic!("{answer:?}") };
    assert_eq!(metric.id, id);
    assert_eq!(metric.data.type_url, "io.containerd.cgroups.v1.Metrics");
    Metrics::parse_from_bytes(&metric.data.value).unwrap()
}

/// The content of a file of its cgroup.
fn cgroup(containerd: &Containerd, id: &str, controller: &str, file: &str) -> String {
    let parents = containerd.cgroups();
    let parent = parents
        .iter()
        .find(|parent| parent.parent().is_some_and(|hierarchy| hierarchy.ends_with(controller)))
        .unwrap_or_else(|| panic!("no {controller}"));
    fs::read_to_string(parent.join(id).join(file)).unwrap().trim().to_owned()
}

/// Does the same with a native container and, where the runtime has such, a Wasm one.
fn each_kind(containerd: &Containerd, act: impl FnMut(&str, bool)) {
    let mut act = act;
    let native = unique();
    containerd.sleeper(&[], &native);
    act(&native, true);
    if containerd.runtime == KNARR {
        let web = crate::wasm::import(containerd, "web");
        let id = unique();
        let line = ["run", "--runtime", KNARR, "-d", "--null-io", &web, &id];
        containerd.ctr(&line).ok();
        act(&id, false);
    }
}

#[test]
fn limits_change_while_a_container_runs() {
    both(|containerd| {
        let tasks = connect(containerd);
        each_kind(containerd, |id, _| {
            let read = |controller: &str, file: &str| cgroup(containerd, id, controller, file);
            let resources = json!({
                "memory": { "limit": 128 << 20 },
                "cpu": { "shares": 300, "quota": 30_000, "period": 100_000, "cpus": "0" },
                "pids": { "limit": 77 },
            });
            update(&tasks, id, &resources).unwrap();
            assert_eq!(read("memory", "memory.limit_in_bytes"), (128 << 20).to_string());
            assert_eq!(read("cpu", "cpu.shares"), "300");
            assert_eq!(read("cpu", "cpu.cfs_quota_us"), "30000");
            assert_eq!(read("cpu", "cpu.cfs_period_us"), "100000");
            assert_eq!(read("cpuset", "cpuset.cpus"), "0");
            assert_eq!(read("pids", "pids.max"), "77");
            // What is not named stays.
            update(&tasks, id, &json!({ "memory": { "limit": 160 << 20 } })).unwrap();
            assert_eq!(read("memory", "memory.limit_in_bytes"), (160 << 20).to_string());
            assert_eq!(read("cpu", "cpu.shares"), "300");
            assert_eq!(read("pids", "pids.max"), "77");
            let limits = metrics(&tasks, id);
            assert_eq!(limits.memory.usage.limit, 160 << 20);
            assert_eq!(limits.pids.limit, 77);
            // What cannot be, is said, and the container runs on.
            let refused = update(&tasks, id, &json!({ "cpu": { "cpus": "99" } })).unwrap_err();
            assert!(!refused.message.is_empty(), "{refused:?}");
            assert_eq!(containerd.status(id), "RUNNING");
            containerd.kill_and_delete(id);
            let gone = update(&tasks, id, &json!({})).unwrap_err();
            assert_eq!(gone.code, 5, "not found: {gone:?}");
        });
        containerd.assert_clean();
    });
}

#[test]
fn metrics_are_encoded_as_kubelet_decodes_them() {
    both(|containerd| {
        let tasks = connect(containerd);
        each_kind(containerd, |id, _| {
            let first = metrics(&tasks, id);
            assert!(first.cpu.usage.total > 0, "{first:?}");
            assert!(first.memory.usage.usage > 0, "{first:?}");
            assert!(first.pids.current > 0, "{first:?}");
            assert!(first.memory.total_inactive_file <= first.memory.usage.usage, "{first:?}");
            // Never less than before.
            assert!(metrics(&tasks, id).cpu.usage.total >= first.cpu.usage.total);
            let refused = tasks
                .call::<Empty>(
                    &format!("{TASKS}/Checkpoint"),
                    &CheckpointTaskRequest { container_id: id.to_owned(), ..Default::default() },
                )
                .unwrap_err();
            if containerd.runtime == KNARR {
                let words = "checkpoint and restore are not supported";
                assert!(refused.message.contains(words), "{refused:?}");
                assert_eq!(refused.code, 12, "unimplemented: {refused:?}");
            }
            containerd.kill_and_delete(id);
        });
        containerd.assert_clean();
    });
}

/// The next event of tasks: its topic, container, and process and code of an exit.
fn next(answers: &mut Answers<'_>) -> (String, String, String) {
    loop {
        let envelope: Envelope = answers.next();
        let Some(topic) = envelope.topic.strip_prefix("/tasks/") else { continue };
        let bytes = &envelope.event.value;
        let (container, rest) = match topic {
            "exit" => {
                let exit = events::TaskExit::parse_from_bytes(bytes).unwrap();
                assert!(exit.exited_at.seconds > 0 && exit.pid > 0, "{exit:?}");
                (exit.container_id, format!("{} {}", exit.id, exit.exit_status))
            }
            "create" => {
                let create = events::TaskCreate::parse_from_bytes(bytes).unwrap();
                assert!(create.pid > 0 && !create.bundle.is_empty(), "{create:?}");
                assert_eq!(create.rootfs.len(), 1, "{create:?}");
                (create.container_id, String::new())
            }
            "start" => {
                let start = events::TaskStart::parse_from_bytes(bytes).unwrap();
                assert!(start.pid > 0, "{start:?}");
                (start.container_id, String::new())
            }
            "delete" => {
                let delete = events::TaskDelete::parse_from_bytes(bytes).unwrap();
                assert!(delete.exited_at.seconds > 0, "{delete:?}");
                (delete.container_id, delete.exit_status.to_string())
            }
            "exec-added" => {
                let added = events::TaskExecAdded::parse_from_bytes(bytes).unwrap();
                (added.container_id, added.exec_id)
            }
            "exec-started" => {
                let started = events::TaskExecStarted::parse_from_bytes(bytes).unwrap();
                assert!(started.pid > 0, "{started:?}");
                (started.container_id, started.exec_id)
            }
            _ => (String::new(), String::new()),
        };
        return (topic.to_owned(), container, rest);
    }
}

#[test]
fn s04_the_events_service_tells_each_exit_once() {
    both_tell(|containerd| {
        let grpc = connect(containerd);
        let filter = format!("namespace=={}", containerd.namespace);
        let request = SubscribeRequest { filters: vec![filter], ..Default::default() };
        let nudge = || {
            let label = format!("at={}", unique());
            containerd.ctr(&["namespace", "label", &containerd.namespace, &label]).ok();
        };
        let service = "containerd.services.events.v1.Events/Subscribe";
        let mut answers = grpc.follow(service, &request, nudge).unwrap();
        let mut expect = |topic: &str, container: &str, rest: &str| {
            let got = next(&mut answers);
            assert_eq!((&*got.0, &*got.1, &*got.2), (topic, container, rest));
        };
        each_kind(containerd, |id, native| {
            expect("create", id, "");
            expect("start", id, "");
            if native {
                let exec = ["task", "exec", "--exec-id", "e", id, "sh", "-c", "exit 5"];
                assert_eq!(containerd.ctr(&exec).code, 5);
                expect("exec-added", id, "e");
                expect("exec-started", id, "e");
                expect("exit", id, "e 5");
            }
            containerd.ctr(&["task", "pause", id]).ok();
            expect("paused", "", "");
            containerd.ctr(&["task", "resume", id]).ok();
            expect("resumed", "", "");
            containerd.kill_and_delete(id);
            expect("exit", id, &format!("{id} 137"));
            expect("delete", id, "137");
        });
        for at in 0..10 {
            let id = format!("short{at}");
            containerd.run(&["--rm", "--null-io"], &id, &["sh", "-c", "exit 4"]);
            expect("create", &id, "");
            expect("start", &id, "");
            expect("exit", &id, &format!("{id} 4"));
            expect("delete", &id, "4");
        }
        containerd.assert_clean();
    });
}

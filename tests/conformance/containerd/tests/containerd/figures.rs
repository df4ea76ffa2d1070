//! What a task and a pod cost under containerd, both shims in one run; nothing is asserted
//! of it.

use std::{
    fs,
    time::{Duration, Instant},
};

use serde_json::json;

use crate::{
    api::{self, TASKS},
    pod::{Cri, handlers},
    proto::containerd::{
        CreateTaskRequest, CreateTaskResponse, DeleteContainerRequest, Empty, TaskRequest,
    },
    proto::cri::NamespaceMode,
    support::{both, unique, with_cri},
};

/// In milliseconds.
fn median(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64() * 1e3
}

const LIVES: usize = 40;

/// The calls of containerd's API that make, start and delete a task whose program ends
/// by itself; no client, no snapshot and no image between.
#[test]
#[ignore = "prints numbers"]
fn create_start_and_delete() {
    both(|containerd| {
        let root = containerd.path("figures");
        for name in ["bin", "proc", "dev", "sys"] {
            fs::create_dir_all(root.join(name)).unwrap();
        }
        fs::copy("/bin/busybox", root.join("bin/true")).unwrap();
        let calls = api::connect(containerd);
        let mut times: [Vec<Duration>; 3] = Default::default();
        for life in 0..LIVES + 2 {
            let id = unique();
            let spec = json!({
                "ociVersion": "1.0.2",
                "process": {
                    "user": { "uid": 0, "gid": 0 }, "args": ["/bin/true"], "cwd": "/",
                    "noNewPrivileges": true,
                },
                "root": { "path": root },
                "mounts": [
                    { "destination": "/proc", "type": "proc", "source": "proc" },
                    { "destination": "/dev", "type": "tmpfs", "source": "tmpfs" },
                    { "destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"] },
                ],
                "linux": {
                    "cgroupsPath": format!("/{}/{id}", containerd.namespace),
                    "namespaces": [
                        { "type": "pid" }, { "type": "ipc" }, { "type": "uts" },
                        { "type": "mount" }, { "type": "network" },
                    ],
                    "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list"],
                    "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys"],
                },
            });
            api::make_container(containerd, &id, "", &spec);
            let mut timed = |step: usize, call: &mut dyn FnMut()| {
                let before = Instant::now();
                call();
                if life >= 2 {
                    times[step].push(before.elapsed());
                }
            };
            let task = TaskRequest { container_id: id.clone(), ..Default::default() };
            timed(0, &mut || {
                let new = CreateTaskRequest { container_id: id.clone(), ..Default::default() };
                let _: CreateTaskResponse = calls.call(&format!("{TASKS}/Create"), &new).unwrap();
            });
            timed(1, &mut || {
                let _: Empty = calls.call(&format!("{TASKS}/Start"), &task).unwrap();
            });
            let _: Empty = calls.call(&format!("{TASKS}/Wait"), &task).unwrap();
            timed(2, &mut || {
                let _: Empty = calls.call(&format!("{TASKS}/Delete"), &task).unwrap();
            });
            let gone = DeleteContainerRequest { id, ..Default::default() };
            let method = "containerd.services.containers.v1.Containers/Delete";
            let _: Empty = calls.call(method, &gone).unwrap();
        }
        let [create, start, delete] = times.map(median);
        println!(
            "{}: create {create:.1} ms, start {start:.1}, delete {delete:.1}",
            containerd.runtime
        );
    });
}

/// Pods in the host's network: what is measured is not the network plugins.
#[test]
#[ignore = "prints numbers"]
fn run_and_stop_pods() {
    with_cri(|containerd| {
        let cri = Cri::new(containerd);
        for handler in handlers() {
            let mut times: [Vec<Duration>; 2] = Default::default();
            for _ in 0..LIVES {
                let before = Instant::now();
                let pod = cri.run_pod(handler, |config| {
                    let context = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
                    context.namespace_options.as_mut().unwrap().network =
                        NamespaceMode::NODE.into();
                    config.hostname.clear();
                });
                times[0].push(before.elapsed());
                let before = Instant::now();
                pod.stop();
                pod.remove();
                times[1].push(before.elapsed());
            }
            let [run, end] = times.map(median);
            println!("{handler}: run {run:.1} ms, stop and remove {end:.1}");
        }
    });
}

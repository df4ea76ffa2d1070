//! The shipped Kubernetes files: what they say is checked field by field, fits
//! together, and runs as a kubelet would run it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{Ipv4Addr, UdpSocket},
    os::unix::fs::PermissionsExt as _,
    sync::{Arc, Mutex},
};

use knarr_harness::{ImageBuilder, bin_dir, repository};
use protobuf::{EnumOrUnknown, MessageField};
use serde::Deserialize;

use crate::{
    cri::get,
    manifest::{Document, PodTemplate},
    pod::{Cri, GATEWAY, Pod},
    proto::cri::*,
    support::with_cri,
};

fn shipped(name: &str) -> String {
    fs::read_to_string(repository().join("shims/task/deploy").join(name)).unwrap()
}

fn documents() -> Vec<Document> {
    let mut all = Vec::new();
    for name in ["runtimeclass.yaml", "hybrid.yaml"] {
        for document in serde_yaml_ng::Deserializer::from_str(&shipped(name)) {
            all.push(Document::deserialize(document).unwrap_or_else(|e| panic!("{name}: {e}")));
        }
    }
    all
}

#[test]
fn the_kubernetes_files_fit_together() {
    let all = documents();
    let mut handlers = BTreeSet::new();
    let mut deployments = BTreeMap::new();
    for document in &all {
        match document {
            Document::RuntimeClass(class) => {
                assert!(class.overhead.pod_fixed.contains_key("memory"));
                assert!(!class.scheduling.node_selector.is_empty());
                handlers.insert((class.metadata.name.clone(), class.handler.clone()));
            }
            Document::Deployment(deployment) => {
                let name = deployment.metadata.name.clone();
                assert!(deployments.insert(name, &deployment.spec).is_none(), "two of a name");
            }
            _ => {}
        }
    }
    let [(class, handler)] = handlers.iter().collect::<Vec<_>>()[..] else { panic!() };
    for (file, plugin) in [
        ("containerd.toml", "plugins.\"io.containerd.grpc.v1.cri\""),
        ("containerd-2.toml", "plugins.'io.containerd.cri.v1.runtime'"),
    ] {
        let table = format!("[{plugin}.containerd.runtimes.{handler}]\n");
        let text = shipped(file);
        let (_, content) = text.split_once(&table).unwrap_or_else(|| panic!("{file}: {table}"));
        assert!(content.starts_with("runtime_type = \"io.containerd.knarr.v1\"\n"), "{file}");
    }
    let tables = ["containerd.toml", "containerd-2.toml"].map(|file| {
        let text = shipped(file);
        let content = text.split_once(".knarr]\n").unwrap().1;
        let said = content.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        said.map(str::to_owned).collect::<Vec<_>>()
    });
    assert_eq!(tables[0], tables[1], "both generations are told the same");

    assert_eq!(deployments.len(), 2, "a native and a Wasm one");
    for (name, deployment) in &deployments {
        let template = &deployment.template;
        assert_eq!(&template.spec.runtime_class_name, class, "{name}");
        assert_eq!(deployment.selector.match_labels, template.metadata.labels, "{name}");
        assert_eq!(deployment.strategy.kind, "RollingUpdate");
        assert_eq!(deployment.strategy.rolling_update.max_unavailable, 0, "{name}: a gap");
        assert!(deployment.strategy.rolling_update.max_surge > 0, "{name}: no way to go on");
        for container in &template.spec.containers {
            let port = &container.readiness_probe.http_get.port;
            assert!(container.ports.iter().any(|p| p.name == *port), "{name}: probe of {port}");
            for mount in &container.volume_mounts {
                assert!(template.spec.volumes.iter().any(|v| v.name == mount.name), "{name}");
            }
        }
    }
    for document in &all {
        match document {
            Document::Service(service) => {
                let behind = |d: &&&crate::manifest::DeploymentSpec| {
                    d.template.metadata.labels == service.spec.selector
                };
                let deployment = deployments.values().find(behind).expect("pods of a service");
                for port in &service.spec.ports {
                    let of = |c: &crate::manifest::Container| {
                        c.ports.iter().any(|p| p.name == port.target_port)
                    };
                    assert!(deployment.template.spec.containers.iter().any(of));
                }
            }
            Document::HorizontalPodAutoscaler(scaler) => {
                let target = &scaler.spec.scale_target_ref;
                assert_eq!(target.kind, "Deployment");
                let deployment = deployments[&target.name];
                // Both would set the number.
                assert_eq!(deployment.replicas, None, "{}", target.name);
                assert!(scaler.spec.min_replicas < scaler.spec.max_replicas);
                for metric in &scaler.spec.metrics {
                    assert_eq!(metric.resource.target.kind, "Utilization");
                    assert!((1..=100).contains(&metric.resource.target.average_utilization));
                    for container in &deployment.template.spec.containers {
                        let requests = &container.resources.requests;
                        assert!(requests.contains_key(&metric.resource.name), "{requests:?}");
                    }
                }
            }
            _ => {}
        }
    }
}

/// A cluster's name service: services' names to the pod that is ready.
#[derive(Clone, Default)]
struct Names(Arc<Mutex<BTreeMap<String, Ipv4Addr>>>);

impl Names {
    /// Answers on the gateway's address for as long as the test runs.
    fn serve(&self) {
        let socket = UdpSocket::bind((GATEWAY, 53)).unwrap();
        let names = self.0.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 512];
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                let answer = answer(&buffer[..length], &names.lock().unwrap());
                let _ = socket.send_to(&answer, from);
            }
        });
    }
}

/// One question's answer: an address, or that there is none.
fn answer(question: &[u8], names: &BTreeMap<String, Ipv4Addr>) -> Vec<u8> {
    let (mut at, mut name) = (12, String::new());
    while let Some(&length @ 1..) = question.get(at) {
        let label = &question[at + 1..at + 1 + usize::from(length)];
        name = format!("{name}{}.", String::from_utf8_lossy(label));
        at += 1 + usize::from(length);
    }
    let end = at + 5;
    let known = names.get(name.trim_end_matches(".default.svc.cluster.local."));
    let address = known.filter(|_| question[at + 1..at + 3] == [0, 1]);
    let code = if known.is_some() { 0 } else { 3 };
    let mut out = question[..2].to_vec();
    out.extend([0x85, 0x80 | code, 0, 1, 0, u8::from(address.is_some()), 0, 0, 0, 0]);
    out.extend(&question[12..end]);
    if let Some(address) = address {
        out.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
        out.extend(address.octets());
    }
    out
}

fn bytes(quantity: &str) -> i64 {
    quantity.strip_suffix("Mi").expect("so many MiB").parse::<i64>().unwrap() << 20
}

/// Starts a pod of a template, as a kubelet does.
fn run<'a>(cri: &'a Cri<'a>, template: &PodTemplate) -> (Pod<'a>, String) {
    let spec = &template.spec;
    let rights = &spec.security_context;
    let shared = spec.share_process_namespace.unwrap_or(false);
    let pid = if shared { NamespaceMode::POD } else { NamespaceMode::CONTAINER };
    let namespaces =
        MessageField::some(NamespaceOption { pid: EnumOrUnknown::new(pid), ..Default::default() });
    let number = |value| MessageField::some(Int64Value { value, ..Default::default() });
    // The class is named as its handler is.
    let pod = cri.run_pod(&spec.runtime_class_name, |config| {
        config.annotations.extend(template.metadata.annotations.clone());
        config.dns_config = MessageField::some(DNSConfig {
            servers: vec![GATEWAY.into()],
            searches: vec!["default.svc.cluster.local".into()],
            options: vec!["ndots:5".into()],
            ..Default::default()
        });
        let linux = config.linux.mut_or_insert_default();
        let context = linux.security_context.mut_or_insert_default();
        context.namespace_options = namespaces.clone();
        context.seccomp = MessageField::some(SecurityProfile::new());
    });
    let [container] = &spec.containers[..] else { panic!("one container") };
    let mut config = pod.container(&format!("docker.io/{}", container.image), &[]);
    for variable in &container.env {
        let (key, value) = (variable.name.clone(), variable.value.clone());
        config.envs.push(KeyValue { key, value, ..Default::default() });
    }
    for mount in &container.volume_mounts {
        let host = cri.containerd.path(&format!("{}-{}", mount.name, pod.id));
        fs::create_dir(&host).unwrap();
        std::os::unix::fs::chown(&host, None, Some(rights.fs_group as u32)).unwrap();
        fs::set_permissions(&host, fs::Permissions::from_mode(0o2775)).unwrap();
        config.mounts.push(Mount {
            container_path: mount.mount_path.clone(),
            host_path: host.display().to_string(),
            ..Default::default()
        });
    }
    assert!(rights.run_as_non_root && rights.run_as_user != 0);
    assert_eq!(rights.seccomp_profile.kind, "RuntimeDefault");
    let own = &container.security_context;
    let linux = config.linux.mut_or_insert_default();
    let limits = linux.resources.mut_or_insert_default();
    limits.memory_limit_in_bytes = bytes(&container.resources.limits["memory"]);
    let share = container.resources.requests["cpu"].strip_suffix('m').unwrap();
    limits.cpu_shares = share.parse::<i64>().unwrap() * 1024 / 1000;
    let context = linux.security_context.mut_or_insert_default();
    context.namespace_options = namespaces;
    context.run_as_user = number(rights.run_as_user);
    context.run_as_group = number(rights.run_as_group);
    context.supplemental_groups = vec![rights.fs_group];
    context.readonly_rootfs = own.read_only_root_filesystem;
    context.no_new_privs = !own.allow_privilege_escalation;
    context.seccomp = MessageField::some(SecurityProfile::new());
    context.capabilities.mut_or_insert_default().drop_capabilities = own.capabilities.drop.clone();
    context.readonly_paths = vec!["/proc/sys".into()];
    let id = pod.run(&config);
    // Its readiness probe, until it is ready.
    let probe = &container.readiness_probe.http_get;
    let port = container.ports.iter().find(|p| p.name == probe.port).unwrap();
    let answer = get(&format!("{}:{}", pod.status().network.ip, port.container_port), &probe.path);
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    (pod, id)
}

#[test]
fn cri_the_example_runs_and_is_updated_without_a_gap() {
    with_cri(|containerd| {
        let cri = Cri::new(containerd);
        let backend = bin_dir().join("knarr-example-backend");
        for image in [
            ImageBuilder::new("docker.io/example/native:1")
                .host_file("/backend", &backend, 0o755)
                .unwrap()
                .entrypoint(&["/backend"]),
            ImageBuilder::wasm("docker.io/example/web:1", "web")
                .unwrap()
                .platform("linux", "amd64"),
        ] {
            containerd.import(image);
        }
        let templates: BTreeMap<String, PodTemplate> = documents()
            .into_iter()
            .filter_map(|document| match document {
                Document::Deployment(it) => Some((it.metadata.name, it.spec.template)),
                _ => None,
            })
            .collect();
        for name in templates.keys() {
            cri.await_image(&format!("docker.io/example/{name}:1"));
        }
        let names = Names::default();
        let address = |pod: &Pod<'_>| -> Ipv4Addr { pod.status().network.ip.parse().unwrap() };
        let publish = |name: &str, pod: &Pod<'_>| {
            names.0.lock().unwrap().insert(name.to_owned(), address(pod));
        };
        // The first pod makes the bridge.
        let (native, native_id) = run(&cri, &templates["native"]);
        names.serve();
        publish("native", &native);
        let (web, web_id) = run(&cri, &templates["web"]);
        publish("web", &web);
        // Each reaches the other by the service's name, and both keep count.
        let of =
            |pod: &Pod<'_>, port: u16, path: &str| get(&format!("{}:{port}", address(pod)), path);
        let said = of(&web, 8080, "/native");
        assert!(said.contains("the native service says: hello from a native program"), "{said}");
        let said = of(&native, 8000, "/wasm");
        assert!(said.contains("hello from a Wasm program, visit"), "{said}");
        // A rolling update: the next one is ready before the last one is told to end.
        let (next, next_id) = run(&cri, &templates["web"]);
        publish("web", &next);
        assert_eq!(cri.stop(&web_id, 10).exit_code, 0, "politely");
        web.stop();
        web.remove();
        let said = of(&native, 8000, "/wasm");
        assert!(said.contains("hello from a Wasm program, visit"), "{said}");
        assert_eq!(cri.stop(&next_id, 10).exit_code, 0);
        // It hears SIGTERM: the pod's first process is another.
        assert_eq!(cri.stop(&native_id, 10).exit_code, 143);
        for pod in [&native, &next] {
            pod.stop();
            pod.remove();
        }
        cri.assert_clean();
    });
}

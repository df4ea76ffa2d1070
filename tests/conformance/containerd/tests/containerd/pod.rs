//! Pods as a kubelet makes them: containerd's CRI, a bridge of the standard network
//! plugins, a pause image of our own, and the handler from the file that we ship.

use std::{
    fs,
    path::{Path, PathBuf},
};

use knarr_harness::{ImageBuilder, repository};
use protobuf::{EnumOrUnknown, Message, MessageField};

use crate::{
    grpc::{Grpc, Refusal},
    proto::cri::*,
    support::{Containerd, generation, unique, unique_name, until, version},
};

/// Where Debian's containernetworking-plugins are.
const PLUGINS: &str = "/usr/lib/cni";
const PAUSE: &str = "docker.io/library/pause:latest";
/// The bridge's own address: the host's in the pods' network.
pub const GATEWAY: &str = "10.88.7.1";
/// containerd's own runtime as a handler.
pub const RUNC: &str = "runc";

/// That one, then ours, and ours without a pause container where containerd leaves pods
/// to shims (2.1 can, too, but ends itself at one in the host's network).
pub fn handlers() -> &'static [&'static str] {
    if version() < (2, 3) { &[RUNC, "knarr"] } else { &[RUNC, "knarr", "knarr-pods"] }
}

/// The daemon's configuration: our shipped file as it is, between what a node has anyway.
pub fn configuration(containerd: &Containerd) -> String {
    let cni = containerd.path("cni");
    fs::create_dir(&cni).unwrap();
    let network = format!(
        r#"{{"cniVersion":"0.4.0","name":"knarr-test","plugins":[
            {{"type":"bridge","bridge":"kcri0","isGateway":true,"ipam":{{"type":"host-local",
              "ranges":[[{{"subnet":"10.88.7.0/24","gateway":"{GATEWAY}"}}]],"routes":[{{"dst":"0.0.0.0/0"}}]}}}},
            {{"type":"portmap","capabilities":{{"portMappings":true}}}}]}}"#
    );
    fs::write(cni.join("10-test.conflist"), network).unwrap();
    let shipped =
        |name: &str| fs::read_to_string(repository().join("shims/task/deploy").join(name)).unwrap();
    let (shipped, own) = if generation() == 1 {
        let own = format!(
            "[plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"{PAUSE}\"\n\
             restrict_oom_score_adj = true\n\
             [plugins.\"io.containerd.grpc.v1.cri\".cni]\nbin_dir = \"{PLUGINS}\"\nconf_dir = \"{}\"\n\
             [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]\n\
             runtime_type = \"io.containerd.runc.v2\"\n",
            cni.display()
        );
        (shipped("containerd.toml"), own)
    } else {
        let own = format!(
            "[plugins.'io.containerd.cri.v1.images'.pinned_images]\nsandbox = \"{PAUSE}\"\n\
             [plugins.'io.containerd.cri.v1.runtime']\nrestrict_oom_score_adj = true\n\
             [plugins.'io.containerd.cri.v1.runtime'.cni]\nbin_dirs = [\"{PLUGINS}\"]\nconf_dir = \"{}\"\n\
             [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]\n\
             runtime_type = \"io.containerd.runc.v2\"\n\
             [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.knarr-pods]\n\
             runtime_type = \"io.containerd.knarr.v1\"\nsandboxer = \"shim\"\n\
             pod_annotations = [\"dev.knarr.listen\"]\ncontainer_annotations = [\"dev.knarr.listen\"]\n",
            cni.display()
        );
        (shipped("containerd-2.toml"), own)
    };
    // Its version is the shipped file's.
    let head = containerd.head(0);
    let head = head.split_once('\n').unwrap().1;
    format!("{head}{shipped}\n{own}{}", containerd.sockets())
}

/// A kubelet's connection.
pub struct Cri<'a> {
    pub containerd: &'a Containerd,
    grpc: Grpc,
}

/// A pod that runs.
pub struct Pod<'a> {
    cri: &'a Cri<'a>,
    pub id: String,
    pub config: PodSandboxConfig,
}

impl<'a> Cri<'a> {
    /// Connects, and waits until there is a network and a pause image.
    pub fn new(containerd: &'a Containerd) -> Self {
        containerd.import(
            ImageBuilder::busybox().unwrap().named(PAUSE).cmd(&["/bin/sleep", "2147483647"]),
        );
        let cri = Self::reconnect(containerd);
        cri.await_image(PAUSE);
        cri.await_image(crate::support::BUSYBOX);
        cri
    }

    /// The same after a restart.
    pub fn reconnect(containerd: &'a Containerd) -> Self {
        let cri = Self { containerd, grpc: Grpc::connect(&containerd.socket, None) };
        // Another condition of newer ones is that nothing of the host is old.
        let ready = ["RuntimeReady", "NetworkReady"];
        let is_so = |condition: &RuntimeCondition| {
            condition.status || !ready.contains(&condition.type_.as_str())
        };
        until("containerd is ready for pods", || {
            // Its services are registered when its server listens, and may be starting.
            let status = cri.ask::<StatusResponse>("Status", &StatusRequest::new());
            status.is_ok_and(|s| s.status.conditions.iter().all(is_so)).then_some(())
        });
        cri
    }

    /// An image is known here a moment after its import.
    pub fn await_image(&self, name: &str) {
        let mut question = ImageStatusRequest::new();
        question.image.mut_or_insert_default().image = name.to_owned();
        let known = || {
            let answer: ImageStatusResponse =
                self.grpc.call("runtime.v1.ImageService/ImageStatus", &question).unwrap();
            answer.image.is_some()
        };
        until(name, || known().then_some(()));
    }

    /// Imports a guest of the tree as an image of this machine's platform.
    pub fn import_guest(&self, guest: &str) -> String {
        let name = format!("docker.io/library/{guest}:latest");
        let image = ImageBuilder::wasm(&name, guest).unwrap().platform("linux", "amd64");
        self.containerd.import(image);
        self.await_image(&name);
        name
    }

    pub fn ask<A: Message>(&self, verb: &str, question: &impl Message) -> Result<A, Refusal> {
        self.grpc.call(&format!("runtime.v1.RuntimeService/{verb}"), question)
    }

    #[track_caller]
    pub fn run_pod(&'a self, handler: &str, change: impl FnOnce(&mut PodSandboxConfig)) -> Pod<'a> {
        self.try_pod(handler, change).unwrap()
    }

    pub fn try_pod(
        &'a self,
        handler: &str,
        change: impl FnOnce(&mut PodSandboxConfig),
    ) -> Result<Pod<'a>, Refusal> {
        let name = unique();
        let mut config = PodSandboxConfig {
            metadata: MessageField::some(PodSandboxMetadata {
                name: name.clone(),
                uid: format!("uid-{name}"),
                namespace: "default".into(),
                ..Default::default()
            }),
            hostname: format!("host-{name}"),
            log_directory: self.containerd.path(&format!("logs-{name}")).display().to_string(),
            ..Default::default()
        };
        let linux = config.linux.mut_or_insert_default();
        linux.cgroup_parent = format!("/{}", unique_name());
        linux.security_context.mut_or_insert_default().namespace_options = usual();
        change(&mut config);
        let question = RunPodSandboxRequest {
            config: MessageField::some(config.clone()),
            runtime_handler: handler.to_owned(),
            ..Default::default()
        };
        let answer: RunPodSandboxResponse = self.ask("RunPodSandbox", &question)?;
        Ok(Pod { cri: self, id: answer.pod_sandbox_id, config })
    }

    /// A pod of an earlier connection.
    pub fn adopt(&'a self, id: String, config: PodSandboxConfig) -> Pod<'a> {
        Pod { cri: self, id, config }
    }

    #[track_caller]
    pub fn status(&self, container: &str) -> ContainerStatus {
        let answer: ContainerStatusResponse =
            self.ask("ContainerStatus", &of_container(container)).unwrap();
        answer.status.unwrap()
    }

    /// Waits for the end of a container.
    pub fn await_end(&self, container: &str) -> ContainerStatus {
        until("the container's end", || {
            let status = self.status(container);
            (status.state == 2).then_some(status)
        })
    }

    #[track_caller]
    pub fn start(&self, container: &str) {
        self.ask::<Empty>("StartContainer", &of_container(container)).unwrap();
    }

    #[track_caller]
    pub fn stop(&self, container: &str, timeout: i64) -> ContainerStatus {
        let question = StopContainerRequest {
            container_id: container.to_owned(),
            timeout,
            ..Default::default()
        };
        self.ask::<Empty>("StopContainer", &question).unwrap();
        self.status(container)
    }

    #[track_caller]
    pub fn remove(&self, container: &str) {
        self.ask::<Empty>("RemoveContainer", &of_container(container)).unwrap();
    }

    pub fn try_exec(&self, container: &str, words: &[&str]) -> Result<ExecSyncResponse, Refusal> {
        let question = ExecSyncRequest {
            container_id: container.to_owned(),
            cmd: owned(words),
            timeout: 20,
            ..Default::default()
        };
        self.ask("ExecSync", &question)
    }

    /// What a command in a container says, if it succeeds.
    #[track_caller]
    pub fn exec(&self, container: &str, words: &[&str]) -> String {
        let said = self.try_exec(container, words).unwrap();
        let [out, err] = [said.stdout, said.stderr].map(|b| String::from_utf8(b).unwrap());
        assert_eq!(said.exit_code, 0, "{words:?}: {out}{err}");
        out.trim_end().to_owned()
    }

    #[track_caller]
    pub fn url(&self, verb: &str, question: &impl Message) -> String {
        self.ask::<UrlResponse>(verb, question).unwrap().url
    }

    /// Nothing of any pod is left: neither here nor on the host.
    #[track_caller]
    pub fn assert_clean(&self) {
        let pods: ListPodSandboxResponse = self.ask("ListPodSandbox", &Empty::new()).unwrap();
        assert!(pods.items.is_empty(), "{pods:?}");
        let all: ListContainersResponse = self.ask("ListContainers", &Empty::new()).unwrap();
        assert!(all.containers.is_empty(), "{all:?}");
        self.containerd.assert_clean();
        assert_eq!(entries("/run/netns"), [] as [&str; 0]);
        let addresses = entries("/var/lib/cni/networks/knarr-test");
        let left: Vec<_> = addresses.iter().filter(|name| name.starts_with("10.")).collect();
        assert!(left.is_empty(), "addresses: {left:?}");
        assert_eq!(entries("/var/lib/cni/results"), [] as [&str; 0]);
        let links = fs::read_to_string("/proc/self/net/dev").unwrap();
        assert!(!links.contains("veth"), "{links}");
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let left: Vec<_> = mounts.lines().filter(|line| line.contains(" /run/ct")).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

fn entries(directory: &str) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

impl Pod<'_> {
    /// A container's configuration, to be changed perhaps.
    pub fn container(&self, image: &str, words: &[&str]) -> ContainerConfig {
        let name = unique();
        ContainerConfig {
            metadata: MessageField::some(ContainerMetadata {
                name: name.clone(),
                ..Default::default()
            }),
            image: MessageField::some(ImageSpec { image: image.to_owned(), ..Default::default() }),
            args: owned(words),
            log_path: format!("{name}.log"),
            linux: MessageField::some(LinuxContainerConfig {
                security_context: MessageField::some(LinuxContainerSecurityContext {
                    namespace_options: usual(),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    pub fn try_create(&self, config: &ContainerConfig) -> Result<String, Refusal> {
        let question = CreateContainerRequest {
            pod_sandbox_id: self.id.clone(),
            config: MessageField::some(config.clone()),
            sandbox_config: MessageField::some(self.config.clone()),
            ..Default::default()
        };
        let answer: CreateContainerResponse = self.cri.ask("CreateContainer", &question)?;
        Ok(answer.container_id)
    }

    #[track_caller]
    pub fn run(&self, config: &ContainerConfig) -> String {
        let id = self.try_create(config).unwrap();
        self.cri.start(&id);
        id
    }

    /// Busybox that stays until it is told to end, politely too.
    #[track_caller]
    pub fn sleeper(&self) -> String {
        let script = "trap 'exit 0' TERM; echo ready; while :; do sleep 1000 & wait; done";
        let config = self.container(crate::support::BUSYBOX, &["sh", "-c", script]);
        let id = self.run(&config);
        crate::support::await_content(&self.log(&config), "ready");
        id
    }

    pub fn log(&self, config: &ContainerConfig) -> PathBuf {
        Path::new(&self.config.log_directory).join(&config.log_path)
    }

    #[track_caller]
    pub fn status(&self) -> PodSandboxStatus {
        let answer: PodSandboxStatusResponse =
            self.cri.ask("PodSandboxStatus", &of_pod(&self.id)).unwrap();
        answer.status.unwrap()
    }

    #[track_caller]
    pub fn stop(&self) {
        self.cri.ask::<Empty>("StopPodSandbox", &of_pod(&self.id)).unwrap();
    }

    #[track_caller]
    pub fn remove(&self) {
        self.cri.ask::<Empty>("RemovePodSandbox", &of_pod(&self.id)).unwrap();
    }
}

/// A kubelet's default: processes are each container's own.
fn usual() -> MessageField<NamespaceOption> {
    MessageField::some(NamespaceOption {
        pid: EnumOrUnknown::new(NamespaceMode::CONTAINER),
        ..Default::default()
    })
}

fn owned(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

pub fn of_pod(id: &str) -> PodRequest {
    PodRequest { pod_sandbox_id: id.to_owned(), ..Default::default() }
}

pub fn of_container(id: &str) -> ContainerRequest {
    ContainerRequest { container_id: id.to_owned(), ..Default::default() }
}

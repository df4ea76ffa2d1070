//! A pod's sandbox, where containerd leaves it to the shim: what a pause container is
//! elsewhere, without an image, a root filesystem or a program.
//!
//! ```text
//!  the sandbox's bundle: hostname, hosts, resolv.conf, shm (a tmpfs of the pod's)
//!        ▲ bound into each of its containers that names no other
//!  knarr-init ── net, uts, ipc, pid namespaces ◀── joined by its containers, by path
//!        └────── the pod's control group: <cgroup_parent>/<id>
//! ```
//!
//! **Hostile here:** nothing; the configuration is the kubelet's, the files are ours.
//!
//! **How it fails.** Like a create: nothing is left. If the shim is killed the kernel kills
//! knarr-init, and `delete` takes the tmpfs away.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use containerd_shim_protos::{
    protobuf::{EnumOrUnknown, Message as _},
    sandbox_api::CreateSandboxRequest,
};
use jiff::Timestamp;
use knarr_model::Signal;
use knarr_sandbox::{HOLD_ANNOTATION, SECCOMP_ANNOTATION};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use oci_spec::runtime as oci;
use serde_json::json;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use crate::{
    error::{Error, Result},
    options::Options,
    proto::cri::{DNSConfig, NamespaceMode, NamespaceOption, PodSandboxConfig},
    stdio::Addresses,
    task::{NewTask, Phase, Task},
};

/// What containerd hands to a sandbox as its options.
const CONFIG: &str = "runtime.v1.PodSandboxConfig";
/// Who holds a pod, where it does not say: nobody, as in Kubernetes' pause image.
const NOBODY: i64 = 65535;
/// Bytes of a pod's `/dev/shm`, as containerd has it.
const SHM_SIZE: u32 = 64 << 20;
/// The directory of the bundle that it is mounted on.
const SHM: &str = "shm";
/// Files of the bundle, and where a container has them.
const FILES: [(&str, &str); 3] =
    [("hostname", "/etc/hostname"), ("hosts", "/etc/hosts"), ("resolv.conf", "/etc/resolv.conf")];

/// Where a shim keeps pods.
pub(crate) struct Home<'a> {
    /// The shim's socket.
    pub(crate) socket: &'a Path,
    pub(crate) clients: &'a TaskTracker,
    /// containerd's namespace.
    pub(crate) namespace: &'a str,
    /// systemd makes the control groups.
    pub(crate) systemd: bool,
}

/// A pod's sandbox.
#[derive(Debug)]
pub(crate) struct Pod {
    pub(crate) id: String,
    pub(crate) created: Timestamp,
    pub(crate) task: Arc<Task>,
    /// What it is as a container, in JSON: for containerd's plugins.
    pub(crate) specification: Vec<u8>,
    bundle: PathBuf,
    /// Its containers share memory of the pod's, not of the host's.
    own_shm: bool,
}

impl Pod {
    /// Makes the files and the namespaces; knarr-init waits for [`Task::start`].
    pub(crate) fn create(request: &CreateSandboxRequest, home: &Home<'_>) -> Result<Self> {
        let config = config(request)?;
        let spec = specification(request, &config, home.systemd)?;
        let bundle = PathBuf::from(&request.bundle_path);
        let own_shm = mode(options(&config).ipc) != NamespaceMode::NODE;
        let failed = |error| {
            Error::internal(format_args!("make the files of {}", request.sandbox_id), error)
        };
        write_files(&bundle, &config, own_shm).map_err(failed)?;
        let task = Task::create(NewTask {
            id: &request.sandbox_id,
            bundle: &bundle,
            spec: &spec,
            rootfs: &[],
            addresses: Addresses::default(),
            socket: home.socket,
            clients: home.clients,
            namespace: Some(home.namespace),
            publisher: None,
            options: Options::default(),
        });
        let task = task.inspect_err(|_| remove_files(&bundle))?;
        let id = request.sandbox_id.clone();
        let specification = serde_json::to_vec(&spec).unwrap_or_default();
        Ok(Self { id, created: Timestamp::now(), task, specification, bundle, own_shm })
    }

    /// Whether it holds its namespaces.
    pub(crate) fn is_ready(&self) -> bool {
        self.task.phase(&self.task.init) == Phase::Running
    }

    /// Kills it and takes away what it has on the host; again and again, if asked to.
    pub(crate) async fn stop(&self, patience: Duration) -> Result<()> {
        if self.task.init.exit().is_none()
            && let Err(error) = self.task.kill("", Signal::KILL, false)
            && self.task.init.exit().is_none()
        {
            return Err(error);
        }
        let late = || Error::deadline(format!("sandbox {} does not end", self.id));
        timeout(patience, self.task.init.wait()).await.map_err(|_| late())??;
        self.task.delete().await?;
        remove_files(&self.bundle);
        Ok(())
    }

    /// Gives a container the pod's files, where it brings none.
    pub(crate) fn furnish(&self, spec: &mut oci::Spec) {
        let read_only = spec.root().as_ref().and_then(oci::Root::readonly).unwrap_or(false);
        let mut mounts = spec.mounts().clone().unwrap_or_default();
        let mut bind = |name: &str, destination: &str, mode: &str| {
            let mut mount = oci::Mount::default();
            mount
                .set_destination(destination.into())
                .set_typ(Some("bind".to_owned()))
                .set_source(Some(self.bundle.join(name)))
                .set_options(Some(["rbind", "rprivate", mode].map(str::to_owned).to_vec()));
            mounts.push(mount);
        };
        let has = |destination: &str, kind: Option<&str>| {
            spec.mounts().iter().flatten().any(|mount| {
                mount.destination() == Path::new(destination)
                    && kind.is_none_or(|kind| mount.typ().as_deref() == Some(kind))
            })
        };
        for (name, destination) in FILES.iter().filter(|(_, place)| !has(place, None)) {
            bind(name, destination, if read_only { "ro" } else { "rw" });
        }
        // A tmpfs there is its own; one that is bound is somebody's wish.
        if self.own_shm && !has("/dev/shm", Some("bind")) {
            bind(SHM, "/dev/shm", "rw");
        }
        spec.set_mounts(Some(mounts));
    }
}

/// The pod as Kubernetes describes it.
fn config(request: &CreateSandboxRequest) -> Result<PodSandboxConfig> {
    let Some(any) = request.options.as_ref() else {
        return Err(Error::invalid(format!("sandbox {} has no {CONFIG}", request.sandbox_id)));
    };
    if any.type_url.rsplit('/').next() != Some(CONFIG) {
        let text = format!("a sandbox is described by {CONFIG}, not by {}", any.type_url);
        return Err(Error::invalid(text));
    }
    let config = PodSandboxConfig::parse_from_bytes(&any.value)
        .map_err(|error| Error::invalid(format!("damaged {CONFIG}: {error}")))?;
    let options = options(&config);
    if options.userns_options.as_ref().is_some_and(|user| mode(user.mode) != NamespaceMode::NODE) {
        return Err(Error::unimplemented(
            "user namespaces of pods need containerd's own sandboxes (sandboxer = \"podsandbox\")",
        ));
    }
    let labelled = config.linux.security_context.selinux_options.is_some();
    if labelled && knarr_sandbox::selinux() {
        return Err(Error::unimplemented(
            "SELinux options of pods need containerd's own sandboxes (sandboxer = \"podsandbox\")",
        ));
    }
    for (kind, mode) in [("network", options.network), ("pid", options.pid), ("ipc", options.ipc)] {
        if self::mode(mode) == NamespaceMode::TARGET {
            return Err(Error::invalid(format!("a pod's {kind} namespace has no target")));
        }
    }
    Ok(config)
}

fn options(config: &PodSandboxConfig) -> NamespaceOption {
    config.linux.security_context.namespace_options.clone().unwrap_or_default()
}

fn mode(mode: EnumOrUnknown<NamespaceMode>) -> NamespaceMode {
    // What nobody knows yet is the default, as protobuf has it.
    mode.enum_value_or_default()
}

/// What holds the pod, as a container.
fn specification(
    request: &CreateSandboxRequest,
    config: &PodSandboxConfig,
    systemd: bool,
) -> Result<oci::Spec> {
    let options = options(config);
    let is_host = |mode: EnumOrUnknown<NamespaceMode>| self::mode(mode) == NamespaceMode::NODE;
    let mut namespaces = vec![json!({ "type": "mount" })];
    let mut sysctls = config.linux.sysctls.clone();
    let mut hostname = None;
    if !is_host(options.network) {
        let path = Some(&request.netns_path).filter(|path| !path.is_empty());
        namespaces.push(json!({ "type": "network", "path": path }));
        namespaces.push(json!({ "type": "uts" }));
        hostname = Some(&config.hostname).filter(|name| !name.is_empty());
        // What containerd grants by default: low ports and ICMP for everybody.
        let mut usual = vec![("net.ipv4.ip_unprivileged_port_start", "0")];
        if !knarr_sandbox::rootless::contained() {
            usual.push(("net.ipv4.ping_group_range", "0 2147483647"));
        }
        for (name, value) in usual {
            sysctls.entry(name.to_owned()).or_insert_with(|| value.to_owned());
        }
    }
    for (kind, mode) in [("ipc", options.ipc), ("pid", options.pid)] {
        if !is_host(mode) {
            namespaces.push(json!({ "type": kind }));
        }
    }
    let mut linux = json!({ "namespaces": namespaces, "sysctl": sysctls });
    let parent = config.linux.cgroup_parent.as_str();
    if !parent.is_empty() {
        linux["cgroupsPath"] = json!(group(parent, &request.sandbox_id, systemd));
        // Those of a pause container.
        linux["resources"] = json!({ "cpu": { "shares": 2 } });
    }
    let context = &config.linux.security_context;
    let number = |given: Option<i64>| {
        let number = given.unwrap_or(NOBODY);
        u32::try_from(number).map_err(|_| Error::invalid(format!("user {number} of a pod")))
    };
    let uid = number(context.run_as_user.as_ref().map(|user| user.value))?;
    let gid = number(context.run_as_group.as_ref().map(|group| group.value))?;
    let spec = json!({
        "ociVersion": "1.2.0",
        "hostname": hostname,
        "root": { "path": "rootfs", "readonly": true },
        "process": {
            "user": { "uid": uid, "gid": gid },
            "cwd": "/",
            "noNewPrivileges": true,
            "capabilities": {},
        },
        "annotations": { HOLD_ANNOTATION: "true", SECCOMP_ANNOTATION: "default" },
        "linux": linux,
    });
    let mut spec = serde_json::from_value(spec)
        .map_err(|error| Error::internal("describe a sandbox", error))?;
    if systemd {
        knarr_bundle::by_systemd(&mut spec)?;
    }
    Ok(spec)
}

/// Where containerd puts a pause container: below its parent, or a scope in that slice.
fn group(parent: &str, id: &str, systemd: bool) -> String {
    let name = parent.rsplit('/').next().unwrap_or_default();
    match systemd || name.ends_with(".slice") {
        true => format!("{name}:cri-containerd:{id}"),
        false => format!("{}/{id}", parent.trim_end_matches('/')),
    }
}

fn write_files(bundle: &Path, config: &PodSandboxConfig, own_shm: bool) -> io::Result<()> {
    fs::create_dir_all(bundle.join("rootfs"))?;
    let hostname = match config.hostname.as_str() {
        "" => nix::unistd::gethostname()?.to_string_lossy().into_owned(),
        name => name.to_owned(),
    };
    let dns = match config.dns_config.as_ref() {
        Some(dns) => resolver(dns).into_bytes(),
        None => of_host("/etc/resolv.conf")?,
    };
    for ((name, _), content) in
        FILES.iter().zip([format!("{hostname}\n").into_bytes(), of_host("/etc/hosts")?, dns])
    {
        fs::write(bundle.join(name), content)?;
    }
    if own_shm {
        let place = bundle.join(SHM);
        fs::create_dir_all(&place)?;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        let data = format!("mode=1777,size={SHM_SIZE}");
        mount(Some("shm"), &place, Some("tmpfs"), flags, Some(data.as_str()))?;
    }
    Ok(())
}

/// A file of the host's; a host may have none.
fn of_host(path: &str) -> io::Result<Vec<u8>> {
    match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        other => other,
    }
}

/// resolv.conf(5).
fn resolver(dns: &DNSConfig) -> String {
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text += &format!("search {}\n", dns.searches.join(" "));
    }
    for server in &dns.servers {
        text += &format!("nameserver {server}\n");
    }
    if !dns.options.is_empty() {
        text += &format!("options {}\n", dns.options.join(" "));
    }
    text
}

/// Takes away what of a sandbox's bundle is more than files; whoever has made the bundle
/// removes those. Of other bundles nothing.
pub(crate) fn remove_files(bundle: &Path) {
    // Not there, or not mounted: as it should be.
    let _ = umount2(&bundle.join(SHM), MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
}

/// What `crictl inspectp` shows.
pub(crate) fn info(pod: &Pod) -> HashMap<String, String> {
    let status = if pod.is_ready() { "running" } else { "stopped" };
    let info = json!({
        "pid": pod.task.init.pid(),
        "processStatus": status,
        "runtimeType": "io.containerd.knarr.v1",
    });
    HashMap::from([("info".to_owned(), info.to_string())])
}

#[cfg(test)]
mod tests {
    use containerd_shim_protos::protobuf::{MessageField, well_known_types::any::Any};
    use serde_json::Value;

    use super::*;

    fn request(change: impl FnOnce(&mut PodSandboxConfig)) -> CreateSandboxRequest {
        let mut config = PodSandboxConfig { hostname: "pod".to_owned(), ..Default::default() };
        config.linux.mut_or_insert_default().cgroup_parent = "/kubepods/x".to_owned();
        change(&mut config);
        let any = Any {
            type_url: CONFIG.to_owned(),
            value: config.write_to_bytes().unwrap(),
            ..Default::default()
        };
        CreateSandboxRequest {
            sandbox_id: "p".to_owned(),
            netns_path: "/run/netns/p".to_owned(),
            options: MessageField::some(any),
            ..Default::default()
        }
    }

    fn namespaces(config: &mut PodSandboxConfig) -> &mut NamespaceOption {
        let context = config.linux.mut_or_insert_default().security_context.mut_or_insert_default();
        context.namespace_options.mut_or_insert_default()
    }

    fn described(request: &CreateSandboxRequest) -> Result<Value> {
        let spec = specification(request, &config(request)?, false)?;
        Ok(serde_json::to_value(spec).unwrap())
    }

    #[test]
    fn a_pod_has_the_namespaces_that_it_does_not_share() {
        let spec = described(&request(|_| {})).unwrap();
        let kinds = |spec: &Value| -> Vec<String> {
            let all = spec["linux"]["namespaces"].as_array().unwrap();
            all.iter().map(|one| one["type"].as_str().unwrap().to_owned()).collect()
        };
        assert_eq!(kinds(&spec), ["mount", "network", "uts", "ipc", "pid"]);
        assert_eq!(spec["linux"]["namespaces"][1]["path"], "/run/netns/p");
        assert_eq!(
            (&spec["hostname"], &spec["process"]["user"]["uid"]),
            (&json!("pod"), &json!(65535))
        );
        assert_eq!(spec["linux"]["cgroupsPath"], "/kubepods/x/p");
        assert_eq!(spec["linux"]["sysctl"]["net.ipv4.ip_unprivileged_port_start"], "0");

        let host = request(|config| {
            let all = namespaces(config);
            for mode in [&mut all.network, &mut all.pid, &mut all.ipc] {
                *mode = NamespaceMode::NODE.into();
            }
        });
        let spec = described(&host).unwrap();
        assert_eq!(kinds(&spec), ["mount"]);
        assert_eq!(spec["hostname"], Value::Null);
        assert_eq!(spec["linux"]["sysctl"], json!({}));
    }

    #[test]
    fn what_a_pod_cannot_have_is_refused_by_name() {
        let users = request(|config| {
            namespaces(config).userns_options.mut_or_insert_default();
        });
        assert!(described(&users).unwrap_err().to_string().contains("user namespaces"));
        let hosts = request(|config| {
            namespaces(config).userns_options.mut_or_insert_default().mode =
                NamespaceMode::NODE.into();
        });
        described(&hosts).unwrap();
        let target = request(|config| namespaces(config).ipc = NamespaceMode::TARGET.into());
        assert!(described(&target).unwrap_err().to_string().contains("ipc namespace"));
        let root = request(|config| {
            let context =
                config.linux.mut_or_insert_default().security_context.mut_or_insert_default();
            context.run_as_user.mut_or_insert_default().value = -1;
        });
        assert!(described(&root).unwrap_err().to_string().contains("user -1"));
        let mut foreign = request(|_| {});
        foreign.options.mut_or_insert_default().type_url = "x/y.Z".to_owned();
        assert!(described(&foreign).unwrap_err().to_string().contains("not by x/y.Z"));
        foreign.options.mut_or_insert_default().type_url = CONFIG.to_owned();
        foreign.options.mut_or_insert_default().value = vec![0xff];
        assert!(described(&foreign).unwrap_err().to_string().contains("damaged"));
        foreign.options = MessageField::none();
        assert!(described(&foreign).unwrap_err().to_string().contains("has no"));
    }

    #[test]
    fn groups_are_containerd_s() {
        assert_eq!(group("/kubepods/burstable/", "p", false), "/kubepods/burstable/p");
        let slice = "/kubepods.slice/kubepods-besteffort.slice";
        assert_eq!(group(slice, "p", true), "kubepods-besteffort.slice:cri-containerd:p");
    }

    #[test]
    fn resolv_conf_is_the_pod_s() {
        let dns = DNSConfig {
            servers: vec!["10.0.0.10".to_owned(), "10.0.0.11".to_owned()],
            searches: vec!["a.svc".to_owned(), "svc".to_owned()],
            options: vec!["ndots:5".to_owned()],
            ..Default::default()
        };
        let want =
            "search a.svc svc\nnameserver 10.0.0.10\nnameserver 10.0.0.11\noptions ndots:5\n";
        assert_eq!(resolver(&dns), want);
        assert_eq!(resolver(&DNSConfig::new()), "");
    }
}

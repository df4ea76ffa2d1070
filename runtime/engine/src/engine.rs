//! The engine itself: what it holds, how it opens, how it finds a container.

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
};

use knarr_image::Images;
use knarr_model::{ContainerId, ExecId, MountSpec, Name};
use knarr_network::Networks;
use knarr_state::Db;
use knarr_store::Store;
use knarr_volume::Volumes;

use crate::{
    Error, Result,
    container::Container,
    events::Events,
    exec::Exec,
    facades::Pulls,
    mounts::StoredMount,
    notices::Notices,
    oci::Host,
    record::Scribe,
    shims::Shims,
    view::{BoxStream, ContainerView, EndpointView, Event, Info},
};

/// Where things are and how many of them.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// What survives a reboot; 0700. Default `/var/lib/knarr`.
    pub data_root: PathBuf,
    /// What does not (tmpfs); 0711. Default `/run/knarr`.
    pub exec_root: PathBuf,
    /// The shim program, `containerd-shim-knarr-v1`.
    pub shim: PathBuf,
    /// The Wasm host program, `knarr-wasm`; Wasm images are refused where it is missing.
    pub wasm_host: PathBuf,
    /// Who unpacks layers; none is the engine's own process.
    pub unpacker: Option<knarr_store::Worker>,
    /// Where shims write what they have to say; none is nowhere.
    pub shim_log: Option<PathBuf>,
    /// Shims kept ready.
    pub warm_shims: usize,
    /// Soft limit of open files that shims begin with, and so containers that ask
    /// for none; ours unless said.
    pub nofile: Option<u64>,
    /// Parent of all containers' cgroups.
    pub cgroup_parent: String,
    /// That parent is this engine's alone, and goes when it is empty.
    pub own_cgroup_parent: bool,
    /// How networks are set up; `instance` and `bridge` must differ between
    /// engines of one host.
    pub network: knarr_network::Options,
    /// How registries are spoken to.
    pub registry: knarr_registry::Config,
    /// What is taken from an index with native and Wasm variants.
    pub prefer: knarr_image::Prefer,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            data_root: "/var/lib/knarr".into(),
            exec_root: "/run/knarr".into(),
            shim: "/usr/libexec/knarr/containerd-shim-knarr-v1".into(),
            wasm_host: "/usr/libexec/knarr/knarr-wasm".into(),
            unpacker: None,
            shim_log: None,
            warm_shims: 2,
            nofile: None,
            cgroup_parent: "/knarr".into(),
            own_cgroup_parent: true,
            network: knarr_network::Options::new(knarr_network::Options::MAIN),
            registry: knarr_registry::Config::default(),
            prefer: knarr_image::Prefer::default(),
        }
    }
}

/// The engine. Clones are handles of one engine.
///
/// `key` is always what a user wrote: a name, an id or an unambiguous prefix of
/// an id; an exact name wins.
#[derive(Debug, Clone)]
pub struct Engine(pub(crate) Arc<Inner>);

/// What the engine holds.
#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) config: EngineConfig,
    pub(crate) id: String,
    pub(crate) db: Arc<Db>,
    pub(crate) store: Arc<Store>,
    pub(crate) images: Images,
    pub(crate) networks: Networks,
    pub(crate) volumes: Volumes,
    pub(crate) shims: Arc<Shims>,
    pub(crate) events: Events,
    pub(crate) notices: Notices,
    pub(crate) scribe: Arc<Scribe>,
    pub(crate) host: Host,
    pub(crate) pulls: Pulls,
    pub(crate) containers: RwLock<Containers>,
    pub(crate) execs: Mutex<HashMap<ExecId, Arc<Exec>>>,
    /// Held for as long as the engine lives: one engine for one root.
    pub(crate) _locks: Vec<File>,
}

/// All containers by id and by name.
#[derive(Debug, Default)]
pub(crate) struct Containers {
    pub(crate) by_id: BTreeMap<ContainerId, Arc<Container>>,
    pub(crate) by_name: HashMap<Name, ContainerId>,
}

impl Containers {
    pub(crate) fn insert(&mut self, container: &Arc<Container>) {
        self.by_name.insert(container.name(), container.id.clone());
        self.by_id.insert(container.id.clone(), Arc::clone(container));
    }

    /// `container` has the name under which it was inserted.
    pub(crate) fn forget(&mut self, container: &Container) {
        self.by_id.remove(&container.id);
        let name = container.name();
        if self.by_name.get(&name) == Some(&container.id) {
            self.by_name.remove(&name);
        }
    }

    fn find(&self, key: &str) -> Result<Arc<Container>> {
        let missing = || Error::not_found(format!("No such container: {key}"));
        let bare = key.strip_prefix('/').unwrap_or(key);
        if bare.is_empty() {
            return Err(Error::invalid("No container name or ID supplied"));
        }
        let exact =
            bare.parse::<ContainerId>().ok().and_then(|id| self.by_id.get(&id)).or_else(|| {
                let name: Name = bare.parse().ok()?;
                self.by_id.get(self.by_name.get(&name)?)
            });
        if let Some(container) = exact {
            return Ok(Arc::clone(container));
        }
        if bare.len() >= 64 || !bare.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(missing());
        }
        // Ids are sorted: those with the prefix follow the prefix filled with zeros.
        let first: ContainerId = format!("{bare:0<64}").parse().map_err(|_| missing())?;
        let mut candidates =
            self.by_id.range(first..).take_while(|(id, _)| id.as_str().starts_with(bare));
        match (candidates.next(), candidates.next()) {
            (Some((_, container)), None) => Ok(Arc::clone(container)),
            (Some(_), Some(_)) => {
                Err(Error::invalid(format!("Multiple IDs found with provided prefix: {bare}")))
            }
            _ => Err(missing()),
        }
    }
}

impl Engine {
    /// Finds a container by what a user wrote.
    pub(crate) fn find(&self, key: &str) -> Result<Arc<Container>> {
        self.0.containers.read().unwrap_or_else(PoisonError::into_inner).find(key)
    }

    /// All containers, in the order of their ids.
    pub(crate) fn all(&self) -> Vec<Arc<Container>> {
        let containers = self.0.containers.read().unwrap_or_else(PoisonError::into_inner);
        containers.by_id.values().map(Arc::clone).collect()
    }

    pub(crate) fn execs(&self) -> MutexGuard<'_, HashMap<ExecId, Arc<Exec>>> {
        self.0.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `<exec-root>/containers/<id>`: the task's bundle.
    pub(crate) fn bundle(&self, id: &ContainerId) -> PathBuf {
        self.0.config.exec_root.join("containers").join(id.as_str())
    }

    /// `<data-root>/containers/<id>`: writable layer, log, files of /etc.
    pub(crate) fn directory(&self, id: &ContainerId) -> PathBuf {
        self.0.store.container_path(id)
    }

    /// The container's log file; none where nothing is kept.
    pub(crate) fn log_path(&self, container: &Container) -> Option<PathBuf> {
        let none = container.spec().log.driver == "none";
        (!none).then(|| self.directory(&container.id).join("json.log"))
    }

    /// Its cgroup below each hierarchy's mount point.
    pub(crate) fn cgroup(&self, container: &Container) -> String {
        let spec = container.spec();
        let parent = spec.cgroup_parent.as_deref().unwrap_or(&self.0.config.cgroup_parent);
        format!("/{}/{}", parent.trim_matches('/'), container.id)
    }

    /// Tells that something happened to a container.
    pub(crate) fn tell(&self, container: &Container, action: &str, more: &[(&str, String)]) {
        let mut attributes = container.attributes();
        attributes.extend(more.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
        self.0.events.publish("container", action, container.id.as_str(), attributes);
    }

    /// Runs a verb to its end even if whoever asked for it goes away: a client
    /// that hangs up leaves no half-done container.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        verb: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        match tokio::spawn(verb).await {
            Ok(outcome) => outcome,
            Err(error) => Err(Error::internal(format!("operation failed: {error}"))),
        }
    }

    /// One container.
    ///
    /// # Errors
    /// `NotFound` with Docker's text, `InvalidArgument` for an ambiguous prefix.
    pub fn inspect(&self, key: &str) -> Result<ContainerView> {
        Ok(self.view(&*self.find(key)?))
    }

    /// The binds and volumes of a container, for another one (`--volumes-from`).
    ///
    /// # Errors
    /// As [`Engine::inspect`].
    pub fn shared_mounts(&self, key: &str) -> Result<Vec<MountSpec>> {
        let resolved = Arc::clone(&self.find(key)?.facts().resolved);
        Ok(resolved.mounts.iter().filter_map(StoredMount::shared).collect())
    }

    /// All containers, the newest first. Filters are the caller's.
    pub fn list(&self) -> Vec<ContainerView> {
        let mut views: Vec<ContainerView> =
            self.all().iter().map(|container| self.view(container)).collect();
        views.sort_by(|a, b| b.created.cmp(&a.created).then_with(|| a.id.cmp(&b.id)));
        views
    }

    fn view(&self, container: &Container) -> ContainerView {
        let directory = self.directory(&container.id);
        let facts = container.facts();
        let mut endpoints: BTreeMap<String, EndpointView> = facts
            .spec
            .endpoints
            .iter()
            .map(|(name, asked)| {
                (name.clone(), EndpointView { asked: asked.clone(), ..EndpointView::default() })
            })
            .collect();
        for endpoint in &facts.endpoints {
            let asked = endpoints.remove(&endpoint.network_name).unwrap_or_default().asked;
            endpoints.insert(endpoint.network_name.clone(), endpoint_view(endpoint, asked));
        }
        let mut argv = facts.resolved.argv.iter().cloned();
        let mut ports = facts.ports.clone();
        ports.sort_by_key(|port| (port.container, port.host_ip, port.host_port));
        let log = (facts.spec.log.driver != "none").then(|| directory.join("json.log"));
        ContainerView {
            id: container.id.clone(),
            name: facts.name.to_string(),
            created: container.created.clone(),
            spec: Arc::clone(&facts.spec),
            image_id: container.image,
            workload: container.workload.clone(),
            path: argv.next().unwrap_or_default(),
            args: argv.collect(),
            state: facts.state.clone(),
            restart_count: facts.restart_count,
            mounts: facts
                .resolved
                .mounts
                .iter()
                .map(|mount| mount.view(|volume| self.volume_data(volume)))
                .collect(),
            endpoints,
            ports,
            upper: Some(directory.join("upper")),
            lower: facts
                .resolved
                .layers
                .iter()
                .rev()
                .map(|layer| self.0.store.layer_path(layer))
                .collect(),
            etc: directory,
            log_path: log,
            execs: facts.execs.clone(),
        }
    }

    /// Where a volume's content is.
    pub(crate) fn volume_data(&self, name: &str) -> PathBuf {
        self.0.config.data_root.join("volumes").join(name).join("_data")
    }

    /// What happened since a time (as far as it is remembered), then what happens.
    pub fn events(&self, since: Option<jiff::Timestamp>) -> BoxStream<Event> {
        self.0.events.stream(since)
    }

    pub(crate) fn info_now(&self) -> Info {
        let mut info = crate::host::info();
        info.id.clone_from(&self.0.id);
        info.data_root.clone_from(&self.0.config.data_root);
        info.warnings.extend(self.0.notices.all());
        info.images = self.0.images.count().unwrap_or_default();
        for container in self.all() {
            info.containers += 1;
            match container.status() {
                crate::Status::Running => info.running += 1,
                crate::Status::Paused => info.paused += 1,
                _ => info.stopped += 1,
            }
        }
        info
    }
}

fn endpoint_view(
    endpoint: &knarr_network::Endpoint,
    asked: knarr_model::EndpointSpec,
) -> EndpointView {
    let prefix = endpoint.subnet.map_or(32, knarr_model::Subnet4::prefix);
    EndpointView {
        network_id: endpoint.row.network.to_string(),
        endpoint_id: endpoint.row.id.clone(),
        asked,
        ipv4: endpoint.row.ipv4.map(|address| (address.into(), prefix)),
        ipv6: None,
        gateway: endpoint.gateway.map(Into::into),
        gateway6: None,
        mac: endpoint.row.mac.clone(),
        dns_names: endpoint.dns_names.clone(),
    }
}

/// Makes a directory with its mode, whoever made it before.
pub(crate) fn make_directory(path: &Path, mode: u32) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::create_dir_all(path)
        .and_then(|()| std::fs::set_permissions(path, PermissionsExt::from_mode(mode)))
        .map_err(|error| Error::io(format!("make directory {}", path.display()), error))
}

/// The present, as Docker writes it.
pub(crate) fn now() -> String {
    rfc3339(jiff::Timestamp::now())
}

/// RFC 3339 with all nine digits, so that texts sort as times do.
pub(crate) fn rfc3339(at: jiff::Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S.%9fZ").to_string()
}

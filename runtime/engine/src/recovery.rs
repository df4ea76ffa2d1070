//! Opening is recovering: rows say what should be, shims say what is.
//!
//! ```text
//!   row running?  shim answers: running ─► ours again, waited for
//!                               stopped ─► its exit is recorded
//!                               created ─► the start never happened: undone
//!                 no answer            ─► cgroup killed, exit.json or 137 recorded
//!                 another boot         ─► nothing runs; exited
//!   row removing                       ─► removed
//!   no row                             ─► adopted, or left alone (adopt.rs)
//! ```
//!
//! Only what cannot do without ends the opening: the roots, their locks, the
//! packet filter, a database of a newer version. Everything else is told by
//! `info` and tried again (notices.rs).
//!
//! Nothing is ever signalled by a number that a file says: a pid may belong to
//! somebody else by now (CATALOGUE K10). What is ours is known by its cgroup,
//! whose path has the container's id in it, and the first process, which may have
//! left that, by its number together with its start time, within one boot.

use std::{
    ffi::OsString,
    fs::File,
    os::unix::ffi::OsStringExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use knarr_image::{Images, WasmCompiler};
use knarr_model::{
    ContainerId, NamespaceMode, NetworkMode, Platform, RestartPolicy,
    task::{ExitRecord, InitRecord},
};
use knarr_network::Networks;
use knarr_state::Db;
use knarr_store::Store;
use knarr_sys::read;
use knarr_volume::Volumes;

use crate::{
    Error, Result, adopt, cgroup,
    container::Container,
    create::CREATING,
    engine::{Containers, Engine, EngineConfig, Inner, make_directory, now},
    events::Events,
    facades::Pulls,
    host, names,
    notices::Notices,
    shims::{Shim, Shims},
    start::SHIM_NOTE,
    task::Phase,
    view::Status,
};

/// Containers that are asked at the same time.
const AT_ONCE: usize = 32;
/// A shim that does not even accept a connection is none.
const DIAL: std::time::Duration = std::time::Duration::from_secs(2);

impl Engine {
    /// Opens the engine and recovers what ran before.
    ///
    /// # Errors
    /// When a directory or the database cannot be used, or another engine has them.
    pub async fn open(config: EngineConfig) -> Result<Self> {
        make_directory(&config.data_root, 0o700)?;
        make_directory(&config.exec_root, 0o711)?;
        for name in ["containers", "shims"] {
            make_directory(&config.exec_root.join(name), 0o700)?;
        }
        let locks = vec![lock(&config.data_root)?, lock(&config.exec_root)?];
        let db = Arc::new(Db::open(&config.data_root.join("state.db"))?);
        let notices = Notices::default();
        notices.set("database", adopt::of_database(&db));
        let store = Store::open(&config.data_root).map_err(Error::from_room)?;
        let store = Arc::new(store.with_worker(config.unpacker.clone()));
        notices.set("store", store.sweep_temporary().iter().map(ToString::to_string).collect());
        let registry =
            knarr_registry::Client::new(config.registry.clone()).map_err(Error::from_room)?;
        let images = Images::open(
            Arc::clone(&store),
            Arc::clone(&db),
            Arc::new(registry),
            knarr_image::Options {
                platform: Platform::host(),
                prefer: config.prefer,
                compiler: WasmCompiler { program: config.wasm_host.clone() },
            },
        )
        .map_err(Error::from_room)?;
        notices.set("images", adopt::of_images(&images));
        let networks =
            Networks::open(Arc::clone(&db), config.network.clone()).map_err(Error::from_room)?;
        let volumes =
            Volumes::open(&config.data_root, Arc::clone(&db)).map_err(Error::from_room)?;
        notices.set("networks", networks.notices());
        let adopted = volumes.adopt();
        notices.set("volumes", adopted.unwrap_or_else(|error| vec![error.to_string()]));
        let id = match db.fact("id")? {
            Some(id) => id,
            None => {
                let id = ContainerId::from_random(names::random()).short().to_owned();
                if let Err(error) = db.set_fact("id", &id) {
                    tracing::warn!(%error, "record the id of this data root");
                }
                id
            }
        };
        let shims = Arc::new(Shims::new(
            config.shim.clone(),
            config.exec_root.join("shims"),
            config.shim_log.clone(),
            config.warm_shims,
            config.nofile,
        ));
        let engine = Self(Arc::new(Inner {
            config,
            id,
            db,
            store,
            images,
            networks,
            volumes,
            shims,
            events: Events::new(),
            notices,
            scribe: Arc::default(),
            host: host::probe(),
            pulls: Pulls::default(),
            containers: RwLock::default(),
            execs: Mutex::default(),
            _locks: locks,
        }));
        engine.start_scribe();
        engine.recover().await?;
        engine.tidy_cgroups();
        engine.0.shims.refill();
        engine.care();
        Ok(engine)
    }

    /// The engine's end. Containers run on, and what they need stays. Where none
    /// runs, what the engine made outside its roots goes: the parent of all
    /// cgroups, and the bridges and the packet filter of an engine with a data
    /// root of its own. The host's main engine leaves those be, as dockerd does:
    /// others may have made their rules for its bridge. The database is closed: whoever
    /// puts another in its place gets that one.
    pub async fn leave(&self) {
        self.leave_host().await;
        let engine = self.clone();
        let _ = crate::facades::blocking(move || engine.0.db.close()).await;
    }

    async fn leave_host(&self) {
        let engine = self.clone();
        if let Err(error) = crate::facades::blocking(move || engine.write_records()).await {
            tracing::warn!(%error, "write records");
        }
        if self.all().iter().any(|container| container.status().is_running()) {
            return;
        }
        self.tidy_cgroups();
        if self.0.config.network.is_main() {
            return;
        }
        let networks = self.0.networks.clone();
        match crate::facades::blocking(move || networks.leave()).await {
            Ok(errors) => {
                for error in errors {
                    tracing::warn!(%error, "networks");
                }
            }
            Err(error) => tracing::warn!(%error, "networks"),
        }
    }

    /// Removes the parent of all cgroups, if it is ours and nothing is in it.
    fn tidy_cgroups(&self) {
        if self.0.config.own_cgroup_parent {
            cgroup::remove_empty(&self.0.config.cgroup_parent);
        }
    }

    async fn recover(&self) -> Result<()> {
        let boot = host::boot_id();
        let adopted = self.adopt_containers()?;
        let same_boot = self.0.db.fact("boot")?.is_none_or(|last| last == boot);
        let revisions = self.0.db.container_revisions()?;
        let (rows, _) = self.0.db.containers()?;
        let (unfinished, rows): (Vec<_>, Vec<_>) = rows
            .into_iter()
            .filter(|row| !adopted.quarantined.contains(row.id.as_str()))
            .partition(|row| row.state.status == CREATING);
        for row in &unfinished {
            // Nobody was told of it, and it has no record: it never was.
            self.undo_create(&row.id).await;
            self.forget_volumes_since(&row.created);
        }
        {
            let mut known = Containers::default();
            for row in rows {
                let revision = revisions.get(row.id.as_str()).copied().unwrap_or_default();
                known.insert(&Arc::new(Container::new(row, revision)?));
            }
            *self.0.containers.write().unwrap_or_else(PoisonError::into_inner) = known;
        }
        match self.0.volumes.settle() {
            Ok(notices) => self.0.notices.set("settled volumes", notices),
            Err(error) => tracing::warn!(%error, "volumes"),
        }
        let containers = self.all();
        futures_util::stream::iter(&containers)
            .for_each_concurrent(AT_ONCE, |container| self.recover_one(container, same_boot))
            .await;
        if let Err(error) = self.0.db.set_fact("boot", &boot) {
            tracing::warn!(%error, "record the boot");
        }

        let mut live: Vec<(ContainerId, u32)> = containers
            .iter()
            .filter_map(|container| {
                let facts = container.facts();
                facts.state.status.is_running().then(|| (container.id.clone(), facts.state.pid))
            })
            .collect();
        let strangers = self.sweep_bundles(same_boot).await;
        live.extend(strangers.iter().cloned());
        for (id, _) in &live {
            self.adopt_network(id, adopted.mended.contains(id));
        }
        let networks = self.0.networks.clone();
        let alive = live.clone();
        let troubles = crate::facades::blocking(move || networks.reconcile(&alive)).await?;
        for error in troubles {
            tracing::warn!(%error, "networks");
        }
        for (id, _) in &live {
            let Ok(container) = self.find(id.as_str()) else { continue };
            let networks = &self.0.networks;
            let found = networks.endpoints(id).and_then(|all| Ok((all, networks.ports(id)?)));
            match found {
                Ok((endpoints, ports)) => {
                    let mut facts = container.facts();
                    facts.ports = ports.iter().map(crate::start::published).collect();
                    facts.endpoints = endpoints;
                }
                Err(error) => tracing::warn!(%error, container = id.short(), "networks"),
            }
        }
        self.sweep_sockets().await;
        self.finish_removals().await;
        self.resume_policies(containers);
        Ok(())
    }

    /// Removes anonymous volumes that an unfinished `create` made and did not
    /// come to use: empty, nobody's, and younger than its row.
    fn forget_volumes_since(&self, created: &str) {
        let since: Option<jiff::Timestamp> = created.parse().ok();
        for volume in self.0.volumes.list().unwrap_or_default() {
            let name = volume.name.as_str();
            let young = volume.created.parse().ok() >= since && since.is_some();
            let nobodys = self.0.volumes.users(name).is_ok_and(|users| users.is_empty());
            let empty = std::fs::read_dir(&volume.mountpoint)
                .is_ok_and(|mut entries| entries.next().is_none());
            if volume.anonymous
                && young
                && nobodys
                && empty
                && let Err(error) = self.0.volumes.remove(name, true)
            {
                tracing::warn!(%error, volume = name, "undo create");
            }
        }
    }

    /// Makes one container's row and the world agree.
    async fn recover_one(&self, container: &Arc<Container>, same_boot: bool) {
        let _op = container.op.lock().await;
        let bundle = self.bundle(&container.id);
        let status = container.status();
        if !bundle.exists() && !status.is_running() {
            return;
        }
        let record: Option<InitRecord> =
            if same_boot { read_json(&bundle.join("init.json")) } else { None };
        let shim = if same_boot { self.find_shim(&bundle, record.as_ref()).await } else { None };
        if let Some(shim) = shim {
            let shim = Arc::new(shim);
            match shim.task.state(container.id.as_str()).await {
                Ok(state) if matches!(state.phase, Phase::Running | Phase::Paused) => {
                    self.adopt(container, shim, state.pid, state.phase);
                    return;
                }
                Ok(state) if state.phase == Phase::Stopped => {
                    container.facts().shim = Some(Arc::clone(&shim));
                    let end = shim.task.wait(container.id.as_str(), "").await;
                    let exit = read_json(&bundle.join("exit.json"));
                    let exit = exit.unwrap_or_else(|| match end {
                        Ok(exit) => {
                            ExitRecord { code: exit.code, finished_at: exit.at, oom_killed: false }
                        }
                        Err(_) => ExitRecord { code: 137, finished_at: now(), oom_killed: false },
                    });
                    self.finish(container, &exit, false, Some(&shim)).await;
                    return;
                }
                _ => {
                    // Created and never started, or not even that.
                    let id = container.id.as_str();
                    let _ = shim.task.kill(id, "", 9, true).await;
                    let _ = shim.task.delete(id, "").await;
                    let _ = shim.task.shutdown().await;
                }
            }
        }
        self.kill_cgroup(container, record).await;
        if status.is_running() {
            let exit = read_json(&bundle.join("exit.json")).unwrap_or_else(|| ExitRecord {
                // Docker's code for what a reboot ended.
                code: if same_boot { 137 } else { 255 },
                finished_at: now(),
                oom_killed: false,
            });
            let lost = !bundle.join("exit.json").exists();
            self.finish(container, &exit, lost && same_boot, None).await;
        }
        self.remove_cgroup(container);
        self.remove_bundle(container).await;
    }

    fn adopt(&self, container: &Arc<Container>, shim: Arc<Shim>, pid: u32, phase: Phase) {
        {
            let mut facts = container.facts();
            facts.state.status =
                if phase == Phase::Paused { Status::Paused } else { Status::Running };
            facts.state.pid = pid;
            if facts.state.started_at.is_none() {
                // The engine died between the start and its record.
                facts.state.started_at = Some(now());
            }
            facts.since = Some(std::time::Instant::now());
            facts.shim = Some(Arc::clone(&shim));
        }
        if let Err(error) = self.save(container) {
            tracing::warn!(%error, container = container.id.short(), "record recovery");
        }
        container.tell_running();
        self.watch(container, shim);
    }

    /// The shim that a bundle names, if it answers.
    pub(crate) async fn find_shim(
        &self,
        bundle: &Path,
        record: Option<&InitRecord>,
    ) -> Option<Shim> {
        let socket = match record {
            Some(record) => record.socket.clone(),
            None => PathBuf::from(OsString::from_vec(
                read::bytes(bundle.join(SHIM_NOTE), read::SMALL).ok()?,
            )),
        };
        // Only sockets of this engine: a bundle's file is no authority on others.
        if socket.parent() != Some(&self.0.config.exec_root.join("shims")) {
            return None;
        }
        tokio::time::timeout(DIAL, Shim::find(&socket)).await.ok()?.ok()
    }

    /// What exited while nobody looked is removed or started again, as was
    /// asked; containers that others' namespaces depend on come first.
    fn resume_policies(&self, mut containers: Vec<Arc<Container>>) {
        let depends = |container: &Container| {
            let spec = container.spec();
            matches!(spec.network_mode, NetworkMode::Container(_))
                || [&spec.pid_mode, &spec.ipc_mode]
                    .iter()
                    .any(|mode| matches!(mode, NamespaceMode::Container(_)))
        };
        containers.sort_by_key(|container| (depends(container), container.created.clone()));
        let engine = self.clone();
        tokio::spawn(async move {
            for container in containers {
                let _op = container.op.lock().await;
                if container.status().is_running() || engine.find(container.id.as_str()).is_err() {
                    continue;
                }
                let (spec, started, stopped, code, count) = {
                    let facts = container.facts();
                    (
                        Arc::clone(&facts.spec),
                        facts.state.started_at.is_some(),
                        facts.manually_stopped,
                        facts.state.exit_code,
                        facts.restart_count,
                    )
                };
                // Also one that was never started: whoever was to start it is gone with
                // the engine that it spoke to (moby `daemon/daemon.go` `restore`).
                if spec.auto_remove {
                    if let Err(error) = engine.remove_locked(&container, true).await {
                        tracing::warn!(%error, container = container.id.short(), "auto-remove");
                    }
                    continue;
                }
                if !started {
                    continue;
                }
                let wanted = match spec.restart {
                    RestartPolicy::No => false,
                    RestartPolicy::Always => true,
                    RestartPolicy::UnlessStopped => !stopped,
                    RestartPolicy::OnFailure { max_retries } => {
                        !stopped && code != 0 && (max_retries == 0 || count < max_retries)
                    }
                };
                if !wanted {
                    if container.status() == Status::Restarting {
                        container.facts().state.status = Status::Exited;
                        let _ = engine.save(&container);
                    }
                    continue;
                }
                container.facts().manually_stopped = false;
                if let Err(error) = engine.launch(&container).await {
                    tracing::warn!(%error, container = container.id.short(), "start by policy");
                    engine.plan_restart(&container);
                }
            }
        });
    }
}

/// A child that an engine was starting when it was killed has the lock until it
/// executes its program.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);

/// One engine for one root.
fn lock(root: &Path) -> Result<File> {
    let path = root.join("lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|error| Error::io(format!("open {}", path.display()), error))?;
    let deadline = Instant::now() + LOCK_PATIENCE;
    let exclusive = rustix::fs::FlockOperation::NonBlockingLockExclusive;
    while rustix::fs::flock(&file, exclusive).is_err() {
        if Instant::now() >= deadline {
            let text = match read::text(&path, read::SMALL) {
                Ok(pid) if !pid.is_empty() => {
                    format!("another knarrd (process {}) uses {}", pid.trim(), root.display())
                }
                _ => format!("another knarrd uses {}", root.display()),
            };
            return Err(Error::new(knarr_model::ErrorKind::Unavailable, text));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    // For whoever comes second; the lock alone decides.
    let _ = file.set_len(0);
    let _ = rustix::io::write(&file, std::process::id().to_string().as_bytes());
    Ok(file)
}

/// What the shim wrote; none where that is not there or makes no sense.
pub(crate) fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&read::bytes(path, read::SMALL).ok()?).ok()
}

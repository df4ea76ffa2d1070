//! `start`: from a row to a running process.
//!
//! ```text
//!   files of /etc, specification ─► warm shim: Create ─► network by the pid's netns
//!      ─► hosts, resolv.conf ─► attached clients ─► Start ─► row says running
//! ```
//!
//! The process may end before the word to go: its program was started ahead, or could not
//! be. Then the network cannot be made; what went wrong is what the process said of it, and
//! `Start` tells that in every case, whichever step met it first.
//!
//! No tool is executed and nothing is flushed to disk on this way. If a step
//! fails, everything that was done is undone and the container is as before,
//! with the error and Docker's exit code in its state.

use std::{
    collections::BTreeSet,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use knarr_model::{
    ContainerSpec, EndpointSpec, NetworkMode, PortBinding, Workload,
    task::{LOG_SCHEME, LogTarget, WasmLaunch},
};

use crate::{
    Error, Result, capabilities,
    container::{Container, FIRST_BACKOFF},
    create::{private_directory, write_public},
    devices,
    engine::{Engine, now},
    facades::blocking,
    failpoint,
    grants::grants,
    mounts::{StoredKind, shows_devices},
    oci::{self, ResolvedMount, Source},
    shims::Shim,
    task::{RootMount, Streams, TaskError},
    view::{PublishedPort, Status, WaitOutcome},
};

/// File of the bundle that names the shim's socket before there is a task.
pub(crate) const SHIM_NOTE: &str = "shim";

/// What a launch has made so far, so that it can be undone.
#[derive(Default)]
struct Made {
    shim: Option<Arc<Shim>>,
    task: bool,
    network: bool,
}

impl Engine {
    /// Starts it; `NotModified` if it runs.
    ///
    /// # Errors
    /// Docker's texts, from which its client takes exit codes 125, 126 and 127.
    pub async fn start(&self, key: &str) -> Result<()> {
        let container = self.find(key)?;
        let engine = self.clone();
        self.run(async move {
            let _op = container.op.lock().await;
            engine.start_locked(&container).await
        })
        .await
    }

    /// A start on a user's wish; `op` is held.
    pub(crate) async fn start_locked(&self, container: &Arc<Container>) -> Result<()> {
        match container.status() {
            Status::Running => return Err(Error::not_modified()),
            Status::Paused => {
                return Err(Error::conflict(
                    "cannot start a paused container, try unpause instead",
                ));
            }
            Status::Removing | Status::Dead => {
                return Err(Error::conflict(
                    "container is marked for removal and cannot be started",
                ));
            }
            Status::Created | Status::Exited | Status::Restarting => {}
        }
        {
            let mut facts = container.facts();
            facts.plan += 1;
            facts.restart_count = 0;
            facts.backoff = FIRST_BACKOFF;
            facts.manually_stopped = false;
        }
        let outcome = self.launch(container).await;
        if outcome.is_err()
            && container.spec().auto_remove
            && let Err(error) = self.remove_locked(container, true).await
        {
            tracing::warn!(%error, container = container.id.short(), "auto-remove");
        }
        outcome
    }

    /// Launches it; `op` is held and it does not run. A failure is recorded.
    pub(crate) async fn launch(&self, container: &Arc<Container>) -> Result<()> {
        let mut made = Made::default();
        match self.launch_steps(container, &mut made).await {
            Ok(()) => Ok(()),
            Err(error) => {
                self.undo_launch(container, made).await;
                {
                    let mut facts = container.facts();
                    facts.state.error = error.message().to_owned();
                    facts.state.exit_code = exit_code_of(error.message());
                    facts.state.pid = 0;
                    if facts.state.status != Status::Created {
                        facts.state.status = Status::Exited;
                    }
                    // Clients that attached before the start hear the end.
                    facts.pending.clear();
                }
                if let Err(error) = self.save(container) {
                    tracing::warn!(%error, container = container.id.short(), "record failed start");
                }
                if container.is_running_now() {
                    // It came as far as running before the last step failed.
                    container.tell_exit(outcome(137, error.message()));
                }
                Err(error)
            }
        }
    }

    async fn launch_steps(&self, container: &Arc<Container>, made: &mut Made) -> Result<()> {
        failpoint::hit("start.begin")?;
        let began = Instant::now();
        let (spec, resolved) = {
            let facts = container.facts();
            (Arc::clone(&facts.spec), Arc::clone(&facts.resolved))
        };
        let id = container.id.as_str();
        let (mounts, _held) = self.resolve_mounts(container)?;
        let wasm = self.wasm_launch(container, &spec, &mounts).await?;
        let (places, joined) = self.places(&spec)?;
        let devices = devices::resolve(&spec)?;
        let etc = self.directory(&container.id);
        let document = oci::generate(&oci::Input {
            id,
            spec: &spec,
            argv: &resolved.argv,
            env: &spec.env,
            mounts: &mounts,
            etc: &etc,
            places: &places,
            cgroup: &self.cgroup(container),
            devices: &devices,
            wasm: wasm.as_ref(),
            host: &self.0.host,
        })?;
        let snapshot =
            self.0.store.prepare(&container.id, &resolved.layers).map_err(Error::from_room)?;
        let bundle = self.bundle(&container.id);
        private_directory(&bundle)?;
        let config = bundle.join("config.json");
        std::fs::write(&config, document.to_string())
            .map_err(|error| Error::io(format!("write {}", config.display()), error))?;
        // The container's own view of itself; hosts and resolv.conf follow with the network.
        write_public(&etc.join("hostname"), format!("{}\n", oci::hostname(id, &spec)))?;
        failpoint::hit("start.bundle")?;

        let rootfs = [RootMount {
            kind: "overlay".into(),
            source: "overlay".into(),
            options: snapshot.overlay_options(),
        }];
        let streams = self.streams(container, &spec)?;
        let prepared = began.elapsed();
        let pid = self.create_task(container, &bundle, &rootfs, &streams, made).await?;
        // Their namespaces are open by now. Whoever has not ended since he was looked up
        // was the one whom they were taken from (CATALOGUE K10).
        if let Some((name, _)) = joined.iter().find(|(_, first)| first.has_ended()) {
            return Err(Error::conflict(format!(
                "cannot join the namespaces of container {name}: it ended meanwhile"
            )));
        }
        let created = began.elapsed();
        failpoint::hit("start.task")?;

        made.network = true;
        if let Err(error) = self.connect(container, &spec, pid).await {
            // Nothing can be connected to a process that is gone, and that is not the reason.
            if !has_ended(pid).await {
                return Err(error);
            }
            tracing::debug!(%error, container = container.id.short(), "ended before its start");
        }
        let connected = began.elapsed();
        failpoint::hit("start.network")?;

        let shim = made.shim.as_ref().map(Arc::clone).ok_or_else(|| Error::internal("no shim"))?;
        self.join_pending(container, &bundle, &spec).await?;
        failpoint::hit("start.attach")?;
        shim.task.start(id, "").await.map_err(|error| start_error(&error))?;
        let started = began.elapsed();
        {
            let mut facts = container.facts();
            facts.state.status = Status::Running;
            facts.state.pid = pid;
            facts.state.exit_code = 0;
            facts.state.oom_killed = false;
            facts.state.error.clear();
            facts.state.started_at = Some(now());
            facts.since = Some(Instant::now());
            facts.shim = Some(Arc::clone(&shim));
        }
        failpoint::hit("start.running")?;
        self.save(container)?;
        container.tell_running();
        self.tell(container, "start", &[]);
        self.watch(container, shim);
        self.0.shims.refill();
        tracing::debug!(
            container = container.id.short(),
            prepare = ?prepared,
            create = ?created.saturating_sub(prepared),
            network = ?connected.saturating_sub(created),
            start = ?started.saturating_sub(connected),
            total = ?began.elapsed(),
            "started"
        );
        failpoint::hit("start.done")
    }

    /// Creates the task on a warm shim; a shim that died while it was idle is
    /// replaced once.
    async fn create_task(
        &self,
        container: &Container,
        bundle: &std::path::Path,
        rootfs: &[RootMount],
        streams: &Streams,
        made: &mut Made,
    ) -> Result<u32> {
        let mut second = false;
        loop {
            let shim = self.0.shims.take().await?;
            made.shim = Some(Arc::clone(&shim));
            // So that recovery finds the task even if this is as far as it comes.
            let note = bundle.join(SHIM_NOTE);
            std::fs::write(&note, shim.socket.as_os_str().as_encoded_bytes())
                .map_err(|error| Error::io(format!("write {}", note.display()), error))?;
            failpoint::hit("start.shim")?;
            match shim.task.create(container.id.as_str(), bundle, rootfs, streams).await {
                Ok(pid) => {
                    made.task = true;
                    return Ok(pid);
                }
                Err(TaskError::Lost(_)) if !second => second = true,
                Err(error) => {
                    // It may have come half way.
                    made.task = true;
                    return Err(start_error(&error));
                }
            }
        }
    }

    async fn undo_launch(&self, container: &Container, made: Made) {
        let id = container.id.as_str();
        if let Some(shim) = &made.shim {
            if made.task {
                let _ = shim.task.kill(id, "", 9, true).await;
                if let Err(error) = shim.task.delete(id, "").await
                    && !error.is_gone()
                {
                    tracing::debug!(%error, container = container.id.short(), "undo: delete task");
                }
            }
            let _ = shim.task.shutdown().await;
        }
        if made.network
            && let Err(error) = self.0.networks.detach(&container.id)
        {
            tracing::warn!(%error, container = container.id.short(), "undo: detach");
        }
        {
            let mut facts = container.facts();
            facts.endpoints.clear();
            facts.ports.clear();
            facts.shim = None;
        }
        self.remove_bundle(container).await;
        self.0.shims.refill();
    }

    /// The bundle's directory goes; it need not be there. What is usually in it goes by name:
    /// that takes no descriptor, which there may be none of.
    pub(crate) async fn remove_bundle(&self, container: &Container) {
        let bundle = self.bundle(&container.id);
        let gone = || match std::fs::remove_dir(&bundle) {
            Ok(()) => true,
            Err(error) => error.kind() == std::io::ErrorKind::NotFound,
        };
        // A removal after an end finds none.
        if gone() {
            return;
        }
        for name in ["config.json", SHIM_NOTE, "init.json", "exit.json", "network.json"] {
            let _ = std::fs::remove_file(bundle.join(name));
        }
        if gone() {
            return;
        }
        let whole = move || {
            knarr_tree::remove(&bundle)
                .map_err(|error| Error::internal(format!("remove {}: {error}", bundle.display())))
        };
        if let Err(error) = blocking(whole).await.flatten() {
            tracing::warn!(%error, container = container.id.short(), "remove bundle");
        }
    }

    fn streams(&self, container: &Container, spec: &ContainerSpec) -> Result<Streams> {
        let target = LogTarget {
            path: self.log_path(container),
            max_size: spec.log.max_size,
            max_files: spec.log.max_files,
        };
        let target = serde_json::to_string(&target)
            .map_err(|error| Error::internal(format!("log target: {error}")))?;
        let log = format!("{LOG_SCHEME}{target}");
        Ok(Streams {
            stdin: if spec.open_stdin {
                knarr_model::task::ATTACH_SCHEME.to_owned()
            } else {
                String::new()
            },
            stdout: log.clone(),
            stderr: log,
            terminal: spec.tty,
        })
    }

    /// Sources of the mounts, as paths that exist for as long as what is
    /// answered beside them is held.
    fn resolve_mounts(&self, container: &Container) -> Result<(Vec<ResolvedMount>, Vec<OwnedFd>)> {
        let resolved = Arc::clone(&container.facts().resolved);
        let mut held = Vec::new();
        let mut mounts = Vec::new();
        for mount in &resolved.mounts {
            let source = match &mount.kind {
                StoredKind::Bind {
                    source,
                    create_source,
                    propagation,
                    recursive,
                    read_only_shallow,
                } => {
                    bind_source(source, *create_source)?;
                    Source::Path {
                        path: source.clone(),
                        propagation: *propagation,
                        recursive: *recursive,
                        read_only_shallow: *read_only_shallow,
                        devices: shows_devices(source),
                    }
                }
                StoredKind::Volume { name, subpath, .. } => {
                    let (path, inside) = self.volume_source(name, subpath.as_deref())?;
                    held.extend(inside);
                    Source::Path {
                        path,
                        propagation: knarr_model::Propagation::Rprivate,
                        recursive: true,
                        read_only_shallow: false,
                        devices: false,
                    }
                }
                StoredKind::Tmpfs { options } => Source::Tmpfs { options: options.clone() },
            };
            mounts.push(ResolvedMount {
                target: mount.target.clone(),
                read_only: mount.read_only,
                source,
            });
        }
        Ok((mounts, held))
    }

    /// What a Wasm program is granted; none for a native one.
    async fn wasm_launch(
        &self,
        container: &Container,
        spec: &ContainerSpec,
        mounts: &[ResolvedMount],
    ) -> Result<Option<WasmLaunch>> {
        let Workload::Wasm { abi, module, .. } = &container.workload else { return Ok(None) };
        let code = self.0.images.compiled(module).await.map_err(Error::from_room)?;
        let mut launch = grants(*abi, spec, mounts, self.0.config.wasm_host.clone(), code.path);
        launch.identity = Some(code.identity);
        Ok(Some(launch))
    }

    /// Networks, then what /etc says of them.
    async fn connect(
        &self,
        container: &Arc<Container>,
        spec: &Arc<ContainerSpec>,
        pid: u32,
    ) -> Result<()> {
        let engine = self.clone();
        let container = Arc::clone(container);
        let spec = Arc::clone(spec);
        // Netlink blocks; a lock of the kernel's may be held by others for long.
        tokio::task::spawn_blocking(move || engine.connect_blocking(&container, &spec, pid))
            .await
            .map_err(|error| Error::internal(format!("network: {error}")))?
    }

    fn connect_blocking(
        &self,
        container: &Container,
        spec: &ContainerSpec,
        pid: u32,
    ) -> Result<()> {
        let name = container.name();
        let hostname = oci::hostname(container.id.as_str(), spec);
        let netns = PathBuf::from(format!("/proc/{pid}/ns/net"));
        let any_source = capabilities::may_set_addresses(spec, &self.0.host);
        let mut endpoints = Vec::new();
        for (network, asked) in wanted_networks(spec) {
            let endpoint = self
                .0
                .networks
                .attach(&knarr_network::Attach {
                    container: &container.id,
                    name: name.as_str(),
                    hostname: &hostname,
                    netns: &netns,
                    network: &network,
                    spec: &asked,
                    dns: &spec.dns,
                    any_source,
                })
                .map_err(Error::from_room)?;
            self.tell_endpoint(&endpoint, "connect", &container.id);
            endpoints.push(endpoint);
        }
        let bindings = bindings(spec);
        let ports = if bindings.is_empty() || endpoints.is_empty() {
            Vec::new()
        } else {
            self.0
                .networks
                .publish(&container.id, name.as_str(), &bindings)
                .map_err(Error::from_room)?
        };
        self.write_etc(container, spec, &endpoints)?;
        let mut facts = container.facts();
        facts.endpoints = endpoints;
        facts.ports = ports.iter().map(published).collect();
        Ok(())
    }

    /// Waits for the end of a task in the background.
    pub(crate) fn watch(&self, container: &Arc<Container>, shim: Arc<Shim>) {
        let engine = self.clone();
        let container = Arc::clone(container);
        tokio::spawn(async move {
            let end = shim.task.wait(container.id.as_str(), "").await;
            let _op = container.op.lock().await;
            engine.on_end(&container, &shim, end).await;
        });
    }
}

/// Whether a first process has ended that nobody has reaped yet, or is about to: its
/// namespaces go a moment before.
async fn has_ended(pid: u32) -> bool {
    use rustix::process::{Pid, PidfdFlags, pidfd_open};
    const MOMENT: Duration = Duration::from_millis(250);
    let look = move || {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw)?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        Some(knarr_sys::ends_within(pidfd.as_fd(), MOMENT))
    };
    tokio::task::spawn_blocking(look).await.ok().flatten().unwrap_or(false)
}

/// Makes sure that what is to be mounted is there (`-v` makes it, `--mount` does not).
pub(crate) fn bind_source(source: &std::path::Path, create: bool) -> Result<()> {
    if source.exists() {
        return Ok(());
    }
    if !create {
        return Err(Error::invalid(format!(
            "invalid mount config for type \"bind\": bind source path does not exist: {}",
            source.display()
        )));
    }
    std::fs::create_dir_all(source).map_err(|error| {
        Error::io(format!("error while creating mount source path '{}'", source.display()), error)
    })
}

/// The networks that a container is put into, the one of its mode first.
fn wanted_networks(spec: &ContainerSpec) -> Vec<(String, EndpointSpec)> {
    let first = match &spec.network_mode {
        NetworkMode::Container(_) => return Vec::new(),
        NetworkMode::Default => "bridge",
        NetworkMode::None => "none",
        NetworkMode::Host => "host",
        NetworkMode::Network(name) => name,
    };
    let mut all = vec![(first.to_owned(), EndpointSpec::default())];
    for (name, asked) in &spec.endpoints {
        let name = if matches!(name.as_str(), "default" | "") { "bridge" } else { name };
        if name == first {
            all[0].1 = asked.clone();
        } else if !matches!(spec.network_mode, NetworkMode::None | NetworkMode::Host) {
            all.push((name.to_owned(), asked.clone()));
        }
    }
    all
}

/// Published ports, and with `-P` every exposed one that has no binding.
fn bindings(spec: &ContainerSpec) -> Vec<PortBinding> {
    if matches!(
        spec.network_mode,
        NetworkMode::Host | NetworkMode::None | NetworkMode::Container(_)
    ) {
        return Vec::new();
    }
    let mut all = spec.published.clone();
    if spec.publish_all {
        let bound: BTreeSet<_> = all.iter().map(|binding| binding.container).collect();
        for port in &spec.exposed_ports {
            if !bound.contains(port) {
                all.push(PortBinding {
                    container: *port,
                    host_ip: None,
                    host_port: None,
                    host_port_end: None,
                });
            }
        }
    }
    all
}

pub(crate) fn published(port: &knarr_network::PublishedPort) -> PublishedPort {
    PublishedPort { container: port.port, host_ip: port.host_ip, host_port: port.host_port }
}

/// Docker's exit code for a start that failed (moby `daemon/errors.go` `setExitCodeFromError`).
pub(crate) fn exit_code_of(message: &str) -> u32 {
    let has = |words: &[&str]| words.iter().any(|word| message.contains(word));
    if has(&[
        "executable file not found",
        "no such file or directory",
        "system cannot find the file specified",
    ]) {
        127
    } else if has(&["permission denied", "not a directory", "is a directory", "exec format error"])
    {
        126
    } else {
        128
    }
}

/// Docker's sentence around a shim's refusal.
fn start_error(error: &TaskError) -> Error {
    let reason = error.to_string();
    let message = if reason.contains("failed to create task") {
        reason
    } else {
        format!(
            "failed to create task for container: failed to create shim task: OCI runtime create failed: {reason}: unknown"
        )
    };
    match exit_code_of(&message) {
        126 | 127 => Error::invalid(message),
        _ => Error::internal(message),
    }
}

/// What waiters are told.
pub(crate) fn outcome(code: u32, error: &str) -> WaitOutcome {
    WaitOutcome { code, error: (!error.is_empty()).then(|| error.to_owned()) }
}

#[cfg(test)]
#[path = "start_tests.rs"]
mod tests;

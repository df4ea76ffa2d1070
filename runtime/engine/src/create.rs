//! `create`: a request and an image become a container.
//!
//! ```text
//!   check ─► merge with the image ─► row ─► volumes ─► directories ─► record ─► known
//!   nothing made yet                 └──────── undone if a later step fails ───────┘
//! ```
//!
//! The record is the point from which it is: a crash before it undoes the
//! `create`, a crash after it does not.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Arc, PoisonError},
};

use knarr_image::{Image, ImageConfig};
use knarr_model::{
    ContainerId, ContainerSpec, MountKind, MountSpec, Name, NamespaceMode, NetworkMode, Platform,
    SeccompChoice, Workload,
};
use knarr_state::containers::{ContainerRow, ContainerState, NameClaim};

use crate::{
    Error, Result, capabilities,
    container::{Container, Resolved},
    engine::{Engine, make_directory, now},
    facades::blocking,
    failpoint,
    mounts::{self, StoredKind, StoredMount},
    names, oci,
    view::{Created, Status},
};

/// Status of a row whose container is not complete yet; never seen outside.
pub(crate) const CREATING: &str = "creating";

/// Bytes of command and environment (CATALOGUE X09); an image's have a limit of
/// their own (I21).
const MAX_ARGV: usize = 2 << 20;

impl Engine {
    /// Makes a container. The image must be in the store; the error is
    /// `NotFound` with Docker's `No such image: x` where it is not.
    ///
    /// # Errors
    /// `InvalidArgument`, `Conflict` (name), `NotFound` (image, network, container of a mode).
    pub async fn create(&self, name: Option<&str>, spec: ContainerSpec) -> Result<Created> {
        let engine = self.clone();
        let name = name.map(|name| name.strip_prefix('/').unwrap_or(name).to_owned());
        self.run(async move { engine.create_now(name, spec).await }).await
    }

    async fn create_now(&self, name: Option<String>, spec: ContainerSpec) -> Result<Created> {
        failpoint::hit("create.begin")?;
        let name: Option<Name> = name
            .map(|name| {
                name.parse().map_err(|_| {
                    Error::invalid(format!(
                        "Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"
                    ))
                })
            })
            .transpose()?;
        let wanted = spec.image.clone();
        let image = self.ask_images(move |images| images.resolve(&wanted)).await?;
        let image = image.map_err(Error::from_room)?;
        let mut warnings = Vec::new();
        if let Some(warning) = platform_warning(&spec, image.workload()) {
            warnings.push(warning);
        }
        let (mut spec, argv) = merge(spec, &image)?;
        self.check(&spec, image.workload(), &mut warnings)?;
        mounts::check(&wanted_mounts(&spec, &image.config), image.workload().is_wasm())?;
        self.name_others(&mut spec)?;

        let id = ContainerId::from_random(names::random());
        let mut row = ContainerRow {
            id: id.clone(),
            name: name.clone().unwrap_or_else(|| random_name(0)),
            created: now(),
            image: image.id(),
            workload: image.workload().clone(),
            spec,
            resolved: serde_json::Value::Null,
            state: ContainerState { status: CREATING.into(), ..ContainerState::default() },
        };
        let mut resolved = Resolved { argv, layers: image.layers().to_vec(), mounts: Vec::new() };
        row.resolved = to_json(&resolved)?;
        self.claim(&mut row, name.is_some())?;
        match self.furnish(&id, &row.spec, &image, &mut resolved).await {
            Ok(()) => {}
            Err(error) => {
                self.undo_create(&id).await;
                return Err(error);
            }
        }
        row.resolved = to_json(&resolved)?;
        row.state.status = Status::Created.as_str().into();
        let resolved = row.resolved.clone();
        // The record makes it whole: without one it never was.
        let container = Container::new(row, 1).map(Arc::new);
        let finished = container.and_then(|container| {
            self.write_record(&container)?;
            failpoint::hit("create.record")?;
            self.0.db.finish_container(&id, &resolved)?;
            failpoint::hit("create.done")?;
            Ok(container)
        });
        let finished = match finished {
            Ok(container) => self.persist(&container).await.map(|()| container),
            Err(error) => Err(error),
        };
        let container = match finished {
            Ok(container) => container,
            Err(error) => {
                self.undo_create(&id).await;
                return Err(error);
            }
        };
        self.0.containers.write().unwrap_or_else(PoisonError::into_inner).insert(&container);
        self.tell(&container, "create", &[]);
        Ok(Created { id, warnings })
    }

    /// Writes the row under its name, or under the next random one.
    fn claim(&self, row: &mut ContainerRow, named: bool) -> Result<()> {
        for attempt in 0.. {
            match self.0.db.insert_container(row)? {
                NameClaim::Ours => break,
                NameClaim::Taken(owner) if named => return Err(name_conflict(&row.name, &owner)),
                NameClaim::Taken(_) => row.name = random_name(attempt),
                // Between its being found and now; from the row on it stays.
                NameClaim::NoImage => {
                    return Err(Error::not_found(format!("No such image: {}", row.spec.image)));
                }
            }
        }
        Ok(())
    }

    /// Volumes, the writable layer, the files of /etc.
    async fn furnish(
        &self,
        id: &ContainerId,
        spec: &ContainerSpec,
        image: &Image,
        resolved: &mut Resolved,
    ) -> Result<()> {
        failpoint::hit("create.row")?;
        for mount in wanted_mounts(spec, &image.config) {
            resolved.mounts.push(self.store_mount(id, &mount).await?);
        }
        failpoint::hit("create.volumes")?;
        let snapshot = self.0.store.prepare(id, image.layers()).map_err(Error::from_room)?;
        // Filled at each start; they must exist to be mounted.
        for file in ["hosts", "hostname", "resolv.conf"] {
            let path = self.directory(id).join(file);
            write_public(&path, "")?;
        }
        failpoint::hit("create.snapshot")?;
        self.copy_up(&resolved.mounts, &snapshot.lower).await
    }

    pub(crate) async fn undo_create(&self, id: &ContainerId) {
        let (store, container) = (Arc::clone(&self.0.store), id.clone());
        let removed = blocking(move || store.remove_snapshot(&container).map_err(Error::from_room));
        if let Err(error) = removed.await.flatten() {
            tracing::warn!(%error, container = id.short(), "undo create");
        }
        self.release_volumes(id, true).await;
        if let Err(error) = self.0.db.delete_container(id) {
            tracing::warn!(%error, container = id.short(), "undo create");
        }
    }

    /// What is checked before anything is made.
    fn check(
        &self,
        spec: &ContainerSpec,
        workload: &Workload,
        warnings: &mut Vec<String>,
    ) -> Result<()> {
        capabilities::check(spec, &self.0.host)?;
        oci::check_sysctls(spec)?;
        for limit in &spec.ulimits {
            oci::rlimit(&limit.name)?;
            if limit.hard != -1 && (limit.soft == -1 || limit.soft > limit.hard) {
                return Err(Error::invalid(format!(
                    "ulimit soft limit must be less than or equal to hard limit: {} > {}",
                    limit.soft, limit.hard
                )));
            }
        }
        check_groups(spec)?;
        check_resources(&spec.resources, self.0.host.swap_limit, warnings)?;
        if let Some(parent) = &spec.cgroup_parent
            && parent.split('/').any(|part| part == ".." || part.bytes().any(|c| c < b' '))
        {
            return Err(Error::invalid(format!("invalid cgroup parent: {parent:?}")));
        }
        if spec.auto_remove && spec.restart != knarr_model::RestartPolicy::No {
            return Err(Error::invalid("can't create 'AutoRemove' container with restart policy"));
        }
        if !matches!(spec.log.driver.as_str(), "json-file" | "local" | "none" | "") {
            return Err(Error::invalid(format!(
                "error looking up logging plugin {0}: no log driver named '{0}' is registered",
                spec.log.driver
            )));
        }
        if let SeccompChoice::Profile(text) = &spec.security.seccomp {
            crate::seccomp::parse(text, &std::collections::BTreeSet::new(), self.0.host.kernel)?;
        }
        if let Some(profile) =
            spec.security.apparmor.as_deref().filter(|name| *name != "unconfined")
            && !self.0.host.apparmor
        {
            // dockerd ignores it without a word.
            warnings.push(format!("apparmor={profile} has no effect: this host has no AppArmor"));
        }
        if workload.is_wasm() {
            refuse_for_wasm(spec)?;
        }
        Ok(())
    }

    /// Other containers are named by id from now on: names change hands.
    fn name_others(&self, spec: &mut ContainerSpec) -> Result<()> {
        if let NetworkMode::Container(key) = &spec.network_mode {
            let other = self.find(key)?;
            spec.network_mode = NetworkMode::Container(other.id.to_string());
            if !spec.published.is_empty() || spec.publish_all {
                return Err(Error::conflict(
                    "conflicting options: port publishing and the container type network mode",
                ));
            }
        }
        for mode in [&mut spec.pid_mode, &mut spec.ipc_mode] {
            if let NamespaceMode::Container(key) = mode {
                *mode = NamespaceMode::Container(self.find(key)?.id.to_string());
            }
        }
        if let NetworkMode::Network(name) = &spec.network_mode {
            self.0.networks.inspect(name).map_err(Error::from_room)?;
        }
        for name in spec.endpoints.keys() {
            if !matches!(name.as_str(), "default" | "") {
                self.0.networks.inspect(name).map_err(Error::from_room)?;
            }
        }
        Ok(())
    }

    async fn store_mount(&self, id: &ContainerId, mount: &MountSpec) -> Result<StoredMount> {
        let kind = match &mount.kind {
            MountKind::Bind {
                source,
                create_source,
                propagation,
                recursive,
                read_only_shallow,
            } => {
                crate::start::bind_source(source, *create_source)?;
                StoredKind::Bind {
                    source: source.clone(),
                    create_source: *create_source,
                    propagation: *propagation,
                    recursive: *recursive,
                    read_only_shallow: *read_only_shallow,
                }
            }
            MountKind::Volume { name, copy_up, subpath, labels, options } => {
                let volume = self.claim_volume(id, name.as_deref(), labels, options).await?;
                StoredKind::Volume {
                    name: volume,
                    subpath: subpath.clone(),
                    copy_up: *copy_up,
                    anonymous: name.is_none(),
                }
            }
            MountKind::Tmpfs { size, mode, options } => {
                StoredKind::Tmpfs { options: mounts::tmpfs_options(*size, *mode, options) }
            }
        };
        Ok(StoredMount { target: mount.target.clone(), read_only: mount.read_only, kind })
    }
}

/// The request's mounts, then anonymous volumes of request and image where
/// nothing else is mounted; parents before children.
fn wanted_mounts(spec: &ContainerSpec, image: &ImageConfig) -> Vec<MountSpec> {
    let mut all = spec.mounts.clone();
    let mut taken: BTreeSet<_> = all.iter().map(|mount| mount.target.clone()).collect();
    for target in spec.anonymous_volumes.iter().chain(&image.volumes) {
        if !taken.insert(target.clone()) {
            continue;
        }
        all.push(MountSpec {
            target: target.clone(),
            read_only: false,
            kind: MountKind::Volume {
                name: None,
                copy_up: true,
                subpath: None,
                labels: BTreeMap::new(),
                options: BTreeMap::new(),
            },
        });
    }
    all.sort_by_key(|mount| mount.target.components().count());
    all
}

fn random_name(attempt: u32) -> Name {
    // Every pair of words is a valid name (tested), so the second half never runs.
    names::pick(attempt).parse().unwrap_or_else(|_| random_name(attempt + 1))
}

pub(crate) fn name_conflict(name: &Name, owner: &ContainerId) -> Error {
    Error::conflict(format!(
        "Conflict. The container name \"/{name}\" is already in use by container \"{owner}\". You have to remove (or rename) that container to be able to reuse that name."
    ))
}

pub(crate) fn to_json(value: &impl serde::Serialize) -> Result<serde_json::Value> {
    serde_json::to_value(value).map_err(|error| Error::internal(format!("encode: {error}")))
}

/// A small file of a container that every user of it may read.
pub(crate) fn write_public(path: &Path, content: impl AsRef<[u8]>) -> Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o644)
        .open(path)
        .and_then(|mut file| std::io::Write::write_all(&mut file, content.as_ref()))
        .map_err(|error| Error::io(format!("write {}", path.display()), error))
}

/// Makes the directory that holds all bundles or the like.
pub(crate) fn private_directory(path: &Path) -> Result<()> {
    make_directory(path, 0o700)
}

/// The request with the image's word where it says nothing, and what is run.
///
/// (moby `daemon/commit.go` `merge`, which `create` uses.)
fn merge(mut spec: ContainerSpec, image: &Image) -> Result<(ContainerSpec, Vec<String>)> {
    let config = &image.config;
    let own_entrypoint = spec.entrypoint.is_some();
    if !own_entrypoint {
        spec.entrypoint.clone_from(&config.entrypoint);
        if spec.cmd.as_ref().is_none_or(Vec::is_empty) {
            spec.cmd.clone_from(&config.cmd);
        }
    }
    // `--entrypoint ""` is a list of one empty word.
    spec.entrypoint = spec.entrypoint.filter(|words| words.iter().any(|word| !word.is_empty()));
    let mut argv = spec.entrypoint.clone().unwrap_or_default();
    if argv.is_empty()
        && let Workload::Wasm { path, .. } = image.workload()
    {
        // The program is the image; what a command line calls it is of no matter.
        let program =
            path.as_deref().and_then(|path| path.rsplit('/').next()).unwrap_or("main.wasm");
        let named = spec
            .cmd
            .as_ref()
            .and_then(|cmd| cmd.first())
            .is_some_and(|first| first.ends_with(".wasm"));
        if !named {
            argv.push(program.to_owned());
        }
    }
    argv.extend(spec.cmd.clone().unwrap_or_default());
    if argv.iter().all(String::is_empty) {
        return Err(Error::invalid("no command specified"));
    }
    check_length(argv.iter().chain(&spec.env))?;
    if argv.iter().chain(&spec.env).any(|word| word.contains('\0')) {
        return Err(Error::invalid("a NUL byte in the command or its environment"));
    }
    spec.env = oci::overlay_env(config.env.clone(), &spec.env);
    spec.working_dir = spec.working_dir.or_else(|| config.working_dir.clone());
    if let Some(directory) = &spec.working_dir {
        if !directory.is_absolute() {
            return Err(Error::invalid(format!(
                "the working directory '{}' is invalid, it needs to be an absolute path",
                directory.display()
            )));
        }
        spec.working_dir = Some(clean(directory));
    }
    spec.user = spec.user.filter(|user| !user.is_empty()).or_else(|| config.user.clone());
    spec.exposed_ports.extend(config.exposed_ports.iter().copied());
    for (key, value) in &config.labels {
        spec.labels.entry(key.clone()).or_insert_with(|| value.clone());
    }
    spec.stop_signal = spec.stop_signal.or(config.stop_signal);
    if let Some(host) = &spec.hostname
        && (host.len() > 63
            || host.is_empty()
            || !host.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'.' | b'_')))
    {
        return Err(Error::invalid(format!("invalid hostname format: {host}")));
    }
    Ok((spec, argv))
}

/// Refuses what execve(2) would (`E2BIG`), in its words.
pub(crate) fn check_length<'a>(words: impl Iterator<Item = &'a String>) -> Result<()> {
    if words.map(|word| word.len() + 1).sum::<usize>() > MAX_ARGV {
        return Err(Error::invalid("argument list too long"));
    }
    Ok(())
}

/// A path without `.` and `..`, as text alone.
fn clean(path: &Path) -> PathBuf {
    let mut clean = PathBuf::from("/");
    for part in path.components() {
        match part {
            std::path::Component::Normal(name) => clean.push(name),
            std::path::Component::ParentDir => {
                clean.pop();
            }
            _ => {}
        }
    }
    clean
}

fn platform_warning(spec: &ContainerSpec, workload: &Workload) -> Option<String> {
    let Workload::Native { platform } = workload else { return None };
    let host = Platform::host();
    if platform.os == host.os && platform.architecture == host.architecture {
        return None;
    }
    let asked = match &spec.platform {
        Some(asked) => format!("the requested platform ({asked})"),
        None => "no specific platform was requested".into(),
    };
    Some(match &spec.platform {
        Some(_) => format!(
            "The requested image's platform ({platform}) does not match the detected host platform ({host}) although {asked} was asked for"
        ),
        None => format!(
            "The requested image's platform ({platform}) does not match the detected host platform ({host}) and {asked}"
        ),
    })
}

/// Supplementary groups are numbers, or names of the image's group file, where
/// a name has no colon and no comma.
fn check_groups(spec: &ContainerSpec) -> Result<()> {
    for group in &spec.group_add {
        let digits = group.strip_prefix('-').unwrap_or(group);
        let number = !digits.is_empty() && digits.bytes().all(|c| c.is_ascii_digit());
        if number && group.parse::<u32>().is_ok_and(|gid| i32::try_from(gid).is_ok()) {
            continue;
        }
        if number {
            return Err(Error::invalid(format!(
                "unable to add group {group}: uids and gids must be in range 0-2147483647"
            )));
        }
        if group.is_empty() || group.contains([':', ',', '\n']) {
            return Err(Error::invalid(format!("unable to add group {group:?}: not a name")));
        }
    }
    Ok(())
}

/// Docker's limits (moby `daemon/daemon_unix.go` `verifyPlatformContainerResources`).
pub(crate) fn check_resources(
    resources: &knarr_model::Resources,
    swap_limit: bool,
    warnings: &mut Vec<String>,
) -> Result<()> {
    const LEAST: u64 = 6 << 20;
    if resources.memory.is_some_and(|bytes| bytes < LEAST) {
        return Err(Error::invalid("Minimum memory limit allowed is 6MB"));
    }
    match (resources.memory, resources.memory_swap) {
        (None, Some(swap)) if swap > 0 => {
            return Err(Error::invalid(
                "You should always set the Memory limit when using Memoryswap limit, see usage",
            ));
        }
        (Some(memory), Some(swap)) if swap > 0 && swap.unsigned_abs() < memory => {
            return Err(Error::invalid(
                "Minimum memoryswap limit should be larger than memory limit, see usage",
            ));
        }
        (Some(_), swap) if !swap_limit && swap != Some(-1) => warnings.push(
            "Your kernel does not support swap limit capabilities or the cgroup is not mounted. Memory limited without swap.".into(),
        ),
        _ => {}
    }
    if let (Some(memory), Some(reserved)) = (resources.memory, resources.memory_reservation)
        && reserved > memory
    {
        return Err(Error::invalid(
            "Minimum memory limit can not be less than memory reservation limit, see usage",
        ));
    }
    if resources.nano_cpus.is_some()
        && (resources.cpu_quota.is_some() || resources.cpu_period.is_some())
    {
        return Err(Error::invalid(
            "Conflicting options: Nano CPUs and CPU Period cannot both be set",
        ));
    }
    if let Some(nano) = resources.nano_cpus {
        // Read from the control groups, and only where it is asked for.
        let cpus = crate::host::cpus();
        if nano == 0 || nano > u64::from(cpus) * 1_000_000_000 {
            return Err(Error::invalid(format!(
                "Range of CPUs is from 0.01 to {cpus}.00, as there are only {cpus} CPUs available"
            )));
        }
    }
    if resources.cpu_period.is_some_and(|period| !(1000..=1_000_000).contains(&period)) {
        return Err(Error::invalid(
            "CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)",
        ));
    }
    if resources.cpu_quota.is_some_and(|quota| quota > 0 && quota < 1000) {
        return Err(Error::invalid("CPU cfs quota can not be less than 1ms (i.e. 1000)"));
    }
    Ok(())
}

/// What a Wasm container has no use for is refused, never silently ignored
/// (ARCHITECTURE §5).
fn refuse_for_wasm(spec: &ContainerSpec) -> Result<()> {
    let refuse = |what: &str, hint: &str| {
        Err(Error::invalid(format!("{what} has no meaning for a Wasm container\n\nhint: {hint}")))
    };
    let security = &spec.security;
    const GRANTS: &str = "a Wasm program has what it is granted: mounts (-v), ports (-p, EXPOSE), environment (-e), networks";
    if security.privileged {
        return refuse("--privileged", GRANTS);
    }
    if !security.cap_add.is_empty() {
        return refuse("--cap-add", GRANTS);
    }
    if !spec.devices.is_empty() {
        return refuse("--device", GRANTS);
    }
    if security.seccomp != SeccompChoice::Builtin {
        return refuse(
            "--security-opt seccomp",
            "its host program has a filter of its own, which is always on",
        );
    }
    if security.unconfined_paths {
        return refuse("--security-opt systempaths", "a Wasm container has no /proc and no /sys");
    }
    if !spec.sysctls.is_empty() {
        return refuse("--sysctl", "leave it out");
    }
    if !spec.group_add.is_empty() {
        return refuse(
            "--group-add",
            "give the files of the mounted volume to the container's user",
        );
    }
    let own =
        |mode: &NamespaceMode| matches!(mode, NamespaceMode::Private | NamespaceMode::Shareable);
    if !own(&spec.pid_mode) {
        return refuse("--pid", "a Wasm program sees no processes");
    }
    if !own(&spec.ipc_mode) {
        return refuse("--ipc", "a Wasm program has no System V IPC");
    }
    Ok(())
}

#[cfg(test)]
#[path = "create_tests.rs"]
mod tests;

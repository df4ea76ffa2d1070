//! Images, networks and volumes, where containers have a say in them.
//!
//! What only reads asks the room itself, on a thread that may wait
//! ([`Engine::ask_images`] and its like).

use std::{
    collections::{BTreeMap, HashMap},
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use knarr_image::{Image, ImageUser, Images, Loaded, Progress, ProgressSender};
use knarr_model::{ContainerId, Digest, EndpointSpec, NetworkMode, Platform, Reference};
use knarr_network::{Network, NetworkSpec, Networks};
use knarr_registry::Auth;
use knarr_volume::{CreateVolume, LayeredView, Volume};
use knarr_work::{CONTENT, COPIES, DELETIONS, Lane};
use tokio::{
    io::AsyncRead,
    sync::{broadcast, mpsc, watch},
};

use crate::{
    Error, Result, capabilities,
    engine::Engine,
    failpoint,
    mounts::{StoredKind, StoredMount},
    oci,
    view::{Pruned, Status},
};

/// Pulls under way, by what they fetch.
#[derive(Debug, Default)]
pub(crate) struct Pulls {
    under_way: Mutex<HashMap<String, Arc<Pull>>>,
}

/// One pull with all who wait for it.
#[derive(Debug)]
struct Pull {
    progress: broadcast::Sender<Progress>,
    done: watch::Receiver<Option<Result<Image, Arc<Error>>>>,
    /// The transfer breaks off when the last one who waits goes.
    abort: tokio::task::AbortHandle,
    waiting: std::sync::atomic::AtomicUsize,
}

/// One who waits.
struct Seat {
    pull: Arc<Pull>,
    key: String,
    engine: Engine,
}

impl Drop for Seat {
    fn drop(&mut self) {
        use std::sync::atomic::Ordering;
        // Under the lock, so that nobody joins a pull that is being broken off.
        let mut under_way =
            self.engine.0.pulls.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        if self.pull.waiting.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.pull.abort.abort();
            if under_way.get(&self.key).is_some_and(|pull| Arc::ptr_eq(pull, &self.pull)) {
                under_way.remove(&self.key);
            }
        }
    }
}

impl Engine {
    /// Pulls an image. Whoever pulls the same at the same time joins: one
    /// transfer, and everybody hears of its progress.
    ///
    /// # Errors
    /// The image room's, with its kind.
    pub async fn pull(
        &self,
        reference: &Reference,
        platform: Option<&Platform>,
        auth: &Auth,
        progress: Option<ProgressSender>,
    ) -> Result<Image> {
        failpoint::hit("pull.begin")?;
        let (seat, mut lines) = self.seat(reference, platform, auth);
        let mut done = seat.pull.done.clone();
        let tell = async |line: Progress| match &progress {
            // Whoever went away is found out by the caller's own connection.
            Some(progress) => progress.send(line).await.is_ok(),
            None => true,
        };
        let outcome = loop {
            tokio::select! {
                biased;
                line = lines.recv() => match line {
                    Ok(line) => {
                        tell(line).await;
                    }
                    // A follower that is too slow loses lines, never the transfer its pace.
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => break None,
                },
                // The value is copied out at once: its guard must not be held while waiting.
                outcome = async { done.wait_for(Option::is_some).await.ok().and_then(|value| value.clone()) } => {
                    while let Ok(line) = lines.try_recv() {
                        tell(line).await;
                    }
                    break outcome;
                }
            }
        };
        failpoint::hit("pull.done")?;
        match outcome {
            Some(Ok(image)) => {
                let name = reference.familiar();
                self.0.events.publish(
                    "image",
                    "pull",
                    &name,
                    BTreeMap::from([("name".to_owned(), reference.familiar_name())]),
                );
                Ok(image)
            }
            Some(Err(error)) => {
                Err(Error::new(knarr_model::Kinded::kind(&*error), error.message()))
            }
            None => Err(Error::new(knarr_model::ErrorKind::Cancelled, "pull was cancelled")),
        }
    }

    fn seat(
        &self,
        reference: &Reference,
        platform: Option<&Platform>,
        auth: &Auth,
    ) -> (Seat, broadcast::Receiver<Progress>) {
        let key = format!(
            "{} {} {}",
            reference,
            platform.map(ToString::to_string).unwrap_or_default(),
            credential_key(auth)
        );
        let mut under_way = self.0.pulls.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        let (pull, lines) = match under_way.get(&key) {
            Some(pull) => (Arc::clone(pull), pull.progress.subscribe()),
            None => {
                let (pull, lines) =
                    self.begin_pull(&key, reference.clone(), platform.cloned(), auth.clone());
                let pull = Arc::new(pull);
                under_way.insert(key.clone(), Arc::clone(&pull));
                (pull, lines)
            }
        };
        pull.waiting.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        (Seat { pull, key, engine: self.clone() }, lines)
    }

    fn begin_pull(
        &self,
        key: &str,
        reference: Reference,
        platform: Option<Platform>,
        auth: Auth,
    ) -> (Pull, broadcast::Receiver<Progress>) {
        let (lines, first) = broadcast::channel(256);
        let (settle, done) = watch::channel(None);
        let engine = self.clone();
        let key = key.to_owned();
        let all = lines.clone();
        let task = tokio::spawn(async move {
            let (sender, mut receiver) = mpsc::channel::<Progress>(64);
            let relay = async {
                while let Some(line) = receiver.recv().await {
                    let _ = all.send(line);
                }
            };
            let images = engine.0.images.clone();
            let transfer = images.pull(&reference, platform.as_ref(), &auth, Some(sender));
            let ((), outcome) = futures_util::future::join(relay, transfer).await;
            engine.0.pulls.under_way.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
            let _ = settle.send(Some(outcome.map_err(|error| Arc::new(Error::from_room(error)))));
        });
        let pull = Pull {
            progress: lines,
            done,
            abort: task.abort_handle(),
            waiting: std::sync::atomic::AtomicUsize::new(0),
        };
        (pull, first)
    }

    /// Stores the images of an archive.
    ///
    /// # Errors
    /// The image room's.
    pub async fn load_images(
        &self,
        archive: impl AsyncRead + Send + Unpin + 'static,
        platform: Option<&Platform>,
        progress: Option<ProgressSender>,
    ) -> Result<Vec<Loaded>> {
        let loaded =
            self.0.images.load(archive, platform, progress).await.map_err(Error::from_room)?;
        for image in &loaded {
            let id = image.id.to_string();
            let name = image.tags.first().map_or_else(|| id.clone(), Reference::familiar);
            self.0.events.publish(
                "image",
                "load",
                &id,
                BTreeMap::from([("name".to_owned(), name)]),
            );
        }
        Ok(loaded)
    }

    /// Gives an image another name.
    ///
    /// # Errors
    /// The image room's.
    pub async fn tag_image(&self, name: &str, target: &Reference) -> Result<()> {
        let (name, tag) = (name.to_owned(), target.clone());
        let id = self
            .ask_images(move |images| -> Result<String> {
                images.tag(&name, &tag).map_err(Error::from_room)?;
                Ok(images.resolve(&name).map_or(name, |image| image.id().to_string()))
            })
            .await??;
        self.0.events.publish(
            "image",
            "tag",
            &id,
            BTreeMap::from([("name".to_owned(), target.familiar())]),
        );
        Ok(())
    }

    /// Untags or deletes an image.
    ///
    /// # Errors
    /// `Conflict` in Docker's words where containers use it.
    pub async fn remove_image(
        &self,
        name: &str,
        options: knarr_image::RemoveOptions,
    ) -> Result<Vec<knarr_image::Removed>> {
        let engine = self.clone();
        let name = name.to_owned();
        self.run(async move {
            let (wanted, users) = (name.clone(), engine.clone());
            let (id, removed) = engine
                .delete_images(move |images| {
                    let id = images.resolve(&wanted).map(|image| image.id().to_string()).ok();
                    let removed = images.remove(&wanted, options, |image| users.image_users(image));
                    removed.map(|removed| (id, removed))
                })
                .await?;
            for line in &removed {
                let (action, actor) = match line {
                    knarr_image::Removed::Untagged(_) => ("untag", id.clone().unwrap_or_default()),
                    knarr_image::Removed::Deleted(digest) if Some(digest.to_string()) == id => {
                        ("delete", digest.to_string())
                    }
                    knarr_image::Removed::Deleted(_) => continue,
                };
                let attributes = BTreeMap::from([("name".to_owned(), name.clone())]);
                engine.0.events.publish("image", action, &actor, attributes);
            }
            Ok(removed)
        })
        .await
    }

    /// Deletes images that no container has.
    ///
    /// # Errors
    /// The image room's.
    pub async fn prune_images(
        &self,
        all: bool,
        wanted: impl Fn(&Image) -> bool + Send + 'static,
    ) -> Result<knarr_image::Pruned> {
        let users = self.clone();
        self.delete_images(move |images| {
            images.prune(all, wanted, |image| users.image_users(image))
        })
        .await
    }

    /// Deletes rows, for which the disk is waited for, and what they named.
    async fn delete_images<T: Send + 'static>(
        &self,
        deletion: impl FnOnce(&Images) -> Result<T, knarr_image::Error> + Send + 'static,
    ) -> Result<T> {
        let engine = self.clone();
        long(&CONTENT, move || {
            failpoint::hit("image-remove.delete")?;
            deletion(&engine.0.images).map_err(Error::from_room)
        })
        .await?
    }

    /// The containers of an image.
    pub fn image_users(&self, image: &Digest) -> Vec<ImageUser> {
        self.all()
            .iter()
            .filter(|container| container.image == *image)
            .map(|container| ImageUser {
                container: container.id.short().to_owned(),
                running: matches!(
                    container.status(),
                    Status::Running | Status::Paused | Status::Restarting
                ),
            })
            .collect()
    }

    /// Creates a network.
    ///
    /// # Errors
    /// The network room's.
    pub async fn create_network(&self, spec: NetworkSpec) -> Result<Network> {
        failpoint::hit("network-create.begin")?;
        let networks = self.0.networks.clone();
        let network = blocking(move || networks.create(&spec)).await?.map_err(Error::from_room)?;
        failpoint::hit("network-create.done")?;
        self.tell_network(&network, "create", None);
        Ok(network)
    }

    /// Removes a network that nobody is in, stopped containers included.
    ///
    /// # Errors
    /// `Forbidden` in Docker's words.
    pub async fn remove_network(&self, key: &str) -> Result<()> {
        failpoint::hit("network-remove.begin")?;
        let networks = self.0.networks.clone();
        let key = key.to_owned();
        let network = blocking(move || {
            let network = networks.inspect(&key)?;
            networks.remove(&key).map(|_| network)
        })
        .await?
        .map_err(Error::from_room)?;
        failpoint::hit("network-remove.done")?;
        self.tell_network(&network, "destroy", None);
        Ok(())
    }

    /// Removes networks that no container names and that `wanted` picks;
    /// answers their names.
    ///
    /// # Errors
    /// When the networks cannot be listed.
    pub async fn prune_networks(
        &self,
        wanted: impl Fn(&Network) -> bool + Send,
    ) -> Result<Vec<String>> {
        let mut removed = Vec::new();
        let all = self.ask_networks(Networks::list).await?.map_err(Error::from_room)?;
        for network in all.into_iter().filter(|network| !network.is_predefined() && wanted(network))
        {
            let name = network.row.name.clone();
            if !network.endpoints.is_empty() || self.names_network(&name, network.row.id.as_str()) {
                continue;
            }
            match self.remove_network(&name).await {
                Ok(()) => removed.push(name),
                Err(error) => tracing::debug!(%error, network = name, "prune"),
            }
        }
        Ok(removed)
    }

    /// Whether any container, running or not, is meant to be in a network.
    fn names_network(&self, name: &str, id: &str) -> bool {
        self.all().iter().any(|container| {
            let spec = container.spec();
            let is = |key: &str| key == name || key == id;
            spec.endpoints.keys().any(|key| is(key))
                || matches!(&spec.network_mode, NetworkMode::Network(key) if is(key))
        })
    }

    /// Puts a container into a further network, at once where it runs.
    ///
    /// # Errors
    /// `NotFound`, `Conflict`, `InvalidArgument` (container or host mode).
    pub async fn connect_network(
        &self,
        network: &str,
        key: &str,
        asked: EndpointSpec,
    ) -> Result<()> {
        let container = self.find(key)?;
        let engine = self.clone();
        let network = network.to_owned();
        self.run(async move {
            let _op = container.op.lock().await;
            let network = engine.0.networks.inspect(&network).map_err(Error::from_room)?;
            let name = network.row.name.clone();
            let mut spec = (*container.spec()).clone();
            if matches!(spec.network_mode, NetworkMode::Host | NetworkMode::Container(_)) || name == "host" {
                return Err(Error::invalid(
                    "container sharing network namespace with another container or host cannot be connected to any other network",
                ));
            }
            if spec.network_mode == NetworkMode::None && name != "none" {
                // The first network takes the place of none (moby `daemon/container_operations.go`).
                spec.network_mode = NetworkMode::Network(name.clone());
            }
            if spec.endpoints.is_empty() {
                // What the mode alone said so far.
                match &spec.network_mode {
                    NetworkMode::Default => {
                        spec.endpoints.insert("bridge".into(), EndpointSpec::default());
                    }
                    NetworkMode::Network(first) => {
                        spec.endpoints.insert(first.clone(), EndpointSpec::default());
                    }
                    _ => {}
                }
            }
            spec.endpoints.insert(name.clone(), asked.clone());
            if container.status().is_running() {
                let (pid, running_name) = {
                    let facts = container.facts();
                    (facts.state.pid, facts.name.to_string())
                };
                let networks = engine.0.networks.clone();
                let id = container.id.clone();
                let hostname = oci::hostname(id.as_str(), &spec);
                let dns = spec.dns.clone();
                let any_source = capabilities::may_set_addresses(&spec, &engine.0.host);
                blocking(move || {
                    networks.attach(&knarr_network::Attach {
                        container: &id,
                        name: &running_name,
                        hostname: &hostname,
                        netns: Path::new(&format!("/proc/{pid}/ns/net")),
                        network: &name,
                        spec: &asked,
                        dns: &dns,
                        any_source,
                    })
                })
                .await?
                .map_err(Error::from_room)?;
                engine.refresh_network(&container.id)?;
            }
            engine.save_spec(&container, spec)?;
            engine.persist(&container).await?;
            engine.tell_network(&network, "connect", Some(&container.id));
            Ok(())
        })
        .await
    }

    /// Takes a container out of a network.
    ///
    /// # Errors
    /// `NotFound` where it is not in it (not with `force`).
    pub async fn disconnect_network(&self, network: &str, key: &str, force: bool) -> Result<()> {
        let container = self.find(key)?;
        let engine = self.clone();
        let network = network.to_owned();
        self.run(async move {
            let _op = container.op.lock().await;
            let network = engine.0.networks.inspect(&network).map_err(Error::from_room)?;
            let name = network.row.name.clone();
            let mut spec = (*container.spec()).clone();
            let mut known = spec.endpoints.remove(&name).is_some();
            let by_mode = match &spec.network_mode {
                NetworkMode::Default => name == "bridge",
                NetworkMode::Network(key) => *key == name || *key == network.row.id.as_str(),
                _ => false,
            };
            if by_mode {
                known = true;
                spec.network_mode = match spec.endpoints.keys().next() {
                    Some(next) => NetworkMode::Network(next.clone()),
                    None => NetworkMode::None,
                };
            }
            if !known && !force {
                return Err(Error::not_found(format!(
                    "container {} is not connected to network {name}",
                    container.id
                )));
            }
            if container.status().is_running() {
                let networks = engine.0.networks.clone();
                let id = container.id.clone();
                let outcome = blocking(move || networks.disconnect(&id, &name)).await?;
                if !force {
                    outcome.map_err(Error::from_room)?;
                }
                engine.refresh_network(&container.id)?;
            }
            engine.save_spec(&container, spec)?;
            engine.persist(&container).await?;
            engine.tell_network(&network, "disconnect", Some(&container.id));
            Ok(())
        })
        .await
    }

    /// Reads a container's endpoints and ports again, and writes its /etc.
    fn refresh_network(&self, id: &ContainerId) -> Result<()> {
        let container = self.find(id.as_str())?;
        let endpoints = self.0.networks.endpoints(id).map_err(Error::from_room)?;
        let ports = self.0.networks.ports(id).map_err(Error::from_room)?;
        self.write_etc(&container, &container.spec(), &endpoints)?;
        let mut facts = container.facts();
        facts.ports = ports.iter().map(crate::start::published).collect();
        facts.endpoints = endpoints;
        self.changed(id);
        Ok(())
    }

    /// Tells that a container came into a network with its start, or left it.
    pub(crate) fn tell_endpoint(
        &self,
        endpoint: &knarr_network::Endpoint,
        action: &str,
        container: &ContainerId,
    ) {
        let of = (endpoint.network_name.as_str(), endpoint.driver.as_str());
        self.tell_of_network(endpoint.row.network.as_str(), of, action, Some(container));
    }

    fn tell_network(&self, network: &Network, action: &str, container: Option<&ContainerId>) {
        let of = (network.row.name.as_str(), network.row.driver.as_str());
        self.tell_of_network(network.row.id.as_str(), of, action, container);
    }

    fn tell_of_network(
        &self,
        id: &str,
        (name, driver): (&str, &str),
        action: &str,
        container: Option<&ContainerId>,
    ) {
        let mut attributes = BTreeMap::from([
            ("name".to_owned(), name.to_owned()),
            ("type".to_owned(), driver.to_owned()),
        ]);
        if let Some(container) = container {
            attributes.insert("container".to_owned(), container.to_string());
        }
        self.0.events.publish("network", action, id, attributes);
    }

    /// Creates a volume, or answers the one of that name.
    ///
    /// # Errors
    /// The volume room's.
    pub async fn create_volume(&self, request: CreateVolume) -> Result<Volume> {
        failpoint::hit("volume-create.begin")?;
        let engine = self.clone();
        let volume =
            blocking(move || engine.0.volumes.create(&request)).await?.map_err(Error::from_room)?;
        failpoint::hit("volume-create.done")?;
        self.tell_volume(volume.name.as_str(), "create");
        Ok(volume)
    }

    /// Removes a volume that no container uses.
    ///
    /// # Errors
    /// `Conflict` in Docker's words.
    pub async fn remove_volume(&self, name: &str, force: bool) -> Result<()> {
        failpoint::hit("volume-remove.begin")?;
        let engine = self.clone();
        let wanted = name.to_owned();
        long(&DELETIONS, move || {
            failpoint::hit("volume-remove.delete")?;
            engine.0.volumes.remove(&wanted, force).map_err(Error::from_room)?;
            // What cannot be deleted is known at once.
            engine.0.notices.set("removed volumes", engine.0.volumes.finish_removals());
            Ok::<(), Error>(())
        })
        .await??;
        failpoint::hit("volume-remove.done")?;
        self.tell_volume(name, "destroy");
        Ok(())
    }

    /// Removes unused volumes that `wanted` picks.
    ///
    /// # Errors
    /// The volume room's.
    pub async fn prune_volumes(
        &self,
        wanted: impl Fn(&Volume) -> bool + Send + 'static,
    ) -> Result<Pruned> {
        let engine = self.clone();
        let pruned = long(&DELETIONS, move || engine.0.volumes.prune(wanted))
            .await?
            .map_err(Error::from_room)?;
        for name in &pruned.names {
            self.tell_volume(name.as_str(), "destroy");
        }
        Ok(Pruned {
            removed: pruned.names.iter().map(ToString::to_string).collect(),
            reclaimed: pruned.bytes,
        })
    }

    fn tell_volume(&self, name: &str, action: &str) {
        self.0.events.publish(
            "volume",
            action,
            name,
            BTreeMap::from([("driver".to_owned(), "local".to_owned())]),
        );
    }

    /// A container's volume: made where there is none, and marked as used.
    pub(crate) async fn claim_volume(
        &self,
        id: &ContainerId,
        name: Option<&str>,
        labels: &BTreeMap<String, String>,
        options: &BTreeMap<String, String>,
    ) -> Result<String> {
        if let Some(name) = name
            && let Ok(volume) = self.0.volumes.inspect(name)
        {
            // The common case costs no thread and no flush.
            self.0.volumes.attach(volume.name.as_str(), id).map_err(Error::from_room)?;
            return Ok(volume.name.to_string());
        }
        failpoint::hit("volume-create.begin")?;
        let request = CreateVolume {
            name: name.map(str::to_owned),
            driver: String::new(),
            options: options.clone(),
            labels: labels.clone(),
        };
        let engine = self.clone();
        let volume =
            blocking(move || engine.0.volumes.create(&request)).await?.map_err(Error::from_room)?;
        let used = failpoint::hit("volume-create.done").and_then(|()| {
            self.0.volumes.attach(volume.name.as_str(), id).map_err(Error::from_room)
        });
        if let Err(error) = used {
            // It is empty: nothing was copied into it yet.
            if volume.anonymous
                && let Err(error) = self.0.volumes.remove(volume.name.as_str(), true)
            {
                tracing::warn!(%error, "undo volume");
            }
            return Err(error);
        }
        self.tell_volume(volume.name.as_str(), "create");
        Ok(volume.name.to_string())
    }

    /// Fills empty volumes with what the image has at their place.
    pub(crate) async fn copy_up(&self, mounts: &[StoredMount], lower: &[PathBuf]) -> Result<()> {
        let wanted: Vec<(String, PathBuf)> = mounts
            .iter()
            .filter_map(|mount| match &mount.kind {
                StoredKind::Volume { name, copy_up: true, subpath: None, .. } => {
                    Some((name.clone(), mount.target.clone()))
                }
                _ => None,
            })
            .collect();
        if wanted.is_empty() {
            return Ok(());
        }
        let engine = self.clone();
        let lower = lower.to_vec();
        long(&COPIES, move || {
            let view = LayeredView::open(&lower).map_err(Error::from_room)?;
            for (volume, target) in wanted {
                if let Some(source) = view.dir(&target).map_err(Error::from_room)? {
                    engine.0.volumes.copy_up(&volume, source.as_fd()).map_err(Error::from_room)?;
                }
            }
            Ok(())
        })
        .await?
    }

    /// The directory of a volume, or one below it that nothing inside can
    /// divert: held open for as long as the answer lives.
    pub(crate) fn volume_source(
        &self,
        name: &str,
        subpath: Option<&Path>,
    ) -> Result<(PathBuf, Option<OwnedFd>)> {
        let volume = self.0.volumes.inspect(name).map_err(Error::from_room)?;
        let Some(subpath) = subpath else { return Ok((volume.mountpoint, None)) };
        let root = std::fs::File::open(&volume.mountpoint)
            .map_err(|error| Error::io(format!("open volume {name}"), error))?;
        let inside = knarr_volume::open_beneath(root.as_fd(), subpath).map_err(Error::from_room)?;
        let number = std::os::fd::AsRawFd::as_raw_fd(&inside);
        let path = PathBuf::from(format!("/proc/{}/fd/{number}", std::process::id()));
        Ok((path, Some(inside)))
    }

    /// A container's volumes are free again; anonymous ones go where asked.
    pub(crate) async fn release_volumes(&self, id: &ContainerId, remove_anonymous: bool) {
        let (engine, container) = (self.clone(), id.clone());
        let release = move || {
            failpoint::hit("remove.delete")?;
            engine.0.volumes.release(&container, remove_anonymous).map_err(Error::from_room)
        };
        let deletes = match self.0.volumes.of(id) {
            Ok(of) if of.is_empty() => return,
            Ok(of) => remove_anonymous && of.iter().any(|volume| volume.anonymous),
            // The release says what is wrong.
            Err(_) => false,
        };
        let released =
            if deletes { long(&DELETIONS, release).await } else { blocking(release).await };
        if let Err(error) = released.flatten() {
            tracing::warn!(%error, container = id.short(), "release volumes");
        }
    }
}

/// Tells pulls apart whose credentials differ, without keeping a secret as text.
fn credential_key(auth: &Auth) -> u64 {
    use std::hash::{Hash, Hasher};
    let mut hasher = std::collections::hash_map::DefaultHasher::new();
    auth.hash(&mut hasher);
    hasher.finish()
}

/// Runs what blocks for a bounded time where blocking is allowed.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Error::internal(format!("operation failed: {error}")))
}

/// Runs what takes as long as a tree is large: never where starts wait for a thread.
pub(crate) async fn long<T: Send + 'static>(
    lane: &'static Lane,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T> {
    lane.run(work).await.map_err(|error| Error::internal(format!("operation failed: {error}")))
}

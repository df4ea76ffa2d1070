//! `remove`, `rename`, `prune`: how a container goes.
//!
//! The row says `removing` first and is deleted last, so that a crash between
//! is finished at the next start.

use std::sync::{Arc, PoisonError};

use knarr_model::{Name, Signal};
use knarr_state::containers::NameClaim;
use knarr_work::{DELETIONS, WALKS};

use crate::{
    Error, Result,
    container::Container,
    create::name_conflict,
    engine::Engine,
    facades::long,
    failpoint,
    view::{ContainerView, Pruned, RemoveOptions, Status},
};

impl Engine {
    /// Removes it.
    ///
    /// # Errors
    /// `Conflict` where it runs and `force` was not said.
    pub async fn remove(&self, key: &str, options: RemoveOptions) -> Result<()> {
        let container = self.find(key)?;
        let engine = self.clone();
        self.run(async move { engine.remove_now(&container, options).await }).await
    }

    async fn remove_now(&self, container: &Arc<Container>, options: RemoveOptions) -> Result<()> {
        failpoint::hit("remove.begin")?;
        let gone = || Error::not_found(format!("No such container: {}", container.id));
        for _ in 0..8 {
            let shim = {
                let _op = container.op.lock().await;
                if self.find(container.id.as_str()).is_err() {
                    // Auto-remove was faster: it is so.
                    return if options.force { Ok(()) } else { Err(gone()) };
                }
                let status = container.status();
                if !status.is_running() && status != Status::Restarting {
                    return self.remove_locked(container, options.volumes).await;
                }
                if !options.force {
                    let hint =
                        if status == Status::Restarting { "restarting" } else { status.as_str() };
                    return Err(Error::conflict(format!(
                        "cannot remove container \"{}\": container is {hint}: stop the container before removing or force remove",
                        container.name()
                    )));
                }
                if status == Status::Restarting {
                    return self.remove_locked(container, options.volumes).await;
                }
                container.facts().manually_stopped = true;
                container.running_shim()?
            };
            match shim.task.kill(container.id.as_str(), "", Signal::KILL.number(), true).await {
                Ok(()) => self.tell(container, "kill", &[("signal", "9".into())]),
                Err(error) => tracing::debug!(%error, container = container.id.short(), "kill"),
            }
            if container.status() == Status::Paused {
                let _ = shim.task.resume(container.id.as_str()).await;
            }
            if !container.ended(Some(std::time::Duration::from_secs(9))).await {
                return Err(Error::internal(format!(
                    "cannot remove container \"{}\": could not kill container: it did not end within 9 seconds",
                    container.name()
                )));
            }
        }
        Err(Error::internal(format!(
            "cannot remove container \"{}\": it is started again and again",
            container.name()
        )))
    }

    /// Removes it; `op` is held and nothing of it runs.
    pub(crate) async fn remove_locked(
        &self,
        container: &Arc<Container>,
        volumes: bool,
    ) -> Result<()> {
        let volumes = {
            let mut facts = container.facts();
            facts.plan += 1;
            facts.state.status = Status::Removing;
            facts.with_volumes |= volumes;
            facts.pending.clear();
            facts.with_volumes
        };
        self.save(container)?;
        failpoint::hit("remove.row")?;
        self.forget_execs(container, false);
        self.remove_bundle(container).await;
        let retired = match self.0.store.retire_snapshot(&container.id) {
            Ok(retired) => retired,
            Err(error) => {
                let error = Error::from_room(error);
                {
                    let mut facts = container.facts();
                    facts.state.status = Status::Dead;
                    facts.state.error = error.message().to_owned();
                }
                self.save(container)?;
                container.tell_removed(Some(error.message().to_owned()));
                return Err(
                    error.context(format!("cannot remove container \"{}\"", container.name()))
                );
            }
        };
        failpoint::hit("remove.snapshot")?;
        self.release_volumes(&container.id, volumes).await;
        failpoint::hit("remove.volumes")?;
        self.0.db.delete_container(&container.id)?;
        self.0.containers.write().unwrap_or_else(PoisonError::into_inner).forget(container);
        self.tell(container, "destroy", &[]);
        // It is removed; but nobody is told so whom a power cut would prove wrong.
        let lasting = self.persist(container).await.map_err(|error| {
            error.context(format!(
                "container \"{}\" is removed, and a power cut may bring it back",
                container.name()
            ))
        });
        container.tell_removed(lasting.as_ref().err().map(|error| error.message().to_owned()));
        if let Some(retired) = retired {
            // A million files take their time; their name is gone already, and
            // what a crash or a failure leaves is tried again.
            let engine = self.clone();
            tokio::spawn(async move {
                let again = engine.clone();
                let outcome = long(&DELETIONS, move || {
                    engine.0.store.delete_retired(&retired).map_err(Error::from_room)
                });
                if let Err(error) = outcome.await.and_then(|deleted| deleted) {
                    again.0.notices.add("store", error.to_string());
                }
            });
        }
        failpoint::hit("remove.done")?;
        lasting
    }

    /// Gives it another name.
    ///
    /// # Errors
    /// `Conflict` where the name is taken.
    pub async fn rename(&self, key: &str, name: &str) -> Result<()> {
        let container = self.find(key)?;
        let text = name.strip_prefix('/').unwrap_or(name).to_owned();
        let engine = self.clone();
        self.run(async move {
            failpoint::hit("rename.begin")?;
            if text.is_empty() {
                return Err(Error::invalid("Neither old nor new names may be empty"));
            }
            let name: Name = text.parse().map_err(|_| {
                Error::invalid(format!(
                    "Invalid container name ({text}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"
                ))
            })?;
            let _op = container.op.lock().await;
            let old = container.name();
            if old == name {
                return Err(Error::invalid(
                    "Renaming a container with the same name as its current name",
                ));
            }
            match engine.0.db.rename_container(&container.id, &name)? {
                NameClaim::Ours | NameClaim::NoImage => {}
                NameClaim::Taken(owner) => return Err(name_conflict(&name, &owner)),
            }
            failpoint::hit("rename.row")?;
            {
                let mut containers =
                    engine.0.containers.write().unwrap_or_else(PoisonError::into_inner);
                containers.forget(&container);
                {
                    let mut facts = container.facts();
                    facts.name = name.clone();
                    facts.revision += 1;
                }
                containers.insert(&container);
            }
            engine.changed(&container.id);
            engine.persist(&container).await?;
            if container.status().is_running()
                && let Err(error) = engine.0.networks.rename(&container.id, &name)
            {
                tracing::warn!(%error, container = container.id.short(), "rename in networks");
            }
            engine.tell(&container, "rename", &[("oldName", format!("/{old}"))]);
            Ok(())
        })
        .await
    }

    /// Bytes in its writable layer, and in all its layers.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn size(&self, key: &str) -> Result<(u64, u64)> {
        let container = self.find(key)?;
        let engine = self.clone();
        long(&WALKS, move || {
            failpoint::hit("usage.container")?;
            let image = engine.0.images.get(&container.image).map_or(0, |image| image.row.size);
            let usage = engine.0.store.usage(&container.id).map_err(Error::from_room)?;
            Ok((usage.bytes, usage.bytes + image))
        })
        .await?
    }

    /// Removes all that do not run and that `wanted` picks.
    ///
    /// # Errors
    /// When none could be removed.
    pub async fn prune_containers(
        &self,
        wanted: impl Fn(&ContainerView) -> bool + Send,
    ) -> Result<Pruned> {
        let mut pruned = Pruned::default();
        let mut failure = None;
        let candidates: Vec<ContainerView> = self
            .list()
            .into_iter()
            .filter(|view| {
                matches!(view.state.status, Status::Created | Status::Exited | Status::Dead)
                    && wanted(view)
            })
            .collect();
        for view in candidates {
            let bytes = self.size(view.id.as_str()).await.map_or(0, |(own, _)| own);
            match self.remove(view.id.as_str(), RemoveOptions::default()).await {
                Ok(()) => {
                    pruned.removed.push(view.id.to_string());
                    pruned.reclaimed += bytes;
                }
                Err(error) => {
                    tracing::warn!(%error, container = view.id.short(), "prune");
                    failure = Some(error);
                }
            }
        }
        match failure {
            Some(error) if pruned.removed.is_empty() => Err(error),
            _ => Ok(pruned),
        }
    }
}

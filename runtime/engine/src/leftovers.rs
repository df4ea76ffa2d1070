//! What earlier engines left in the exec root.
//!
//! Facts of runs are deleted when nothing runs that they are of; a container
//! that runs is left alone, known or not. What lies in the data root is not
//! swept at all: see `adopt.rs`.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use knarr_model::{ContainerId, task::InitRecord};

use crate::{cgroup, engine::Engine, recovery::read_json, task::Phase, view::Status};

/// A container that runs and that nothing is known of.
pub(crate) type Stranger = (ContainerId, u32);

impl Engine {
    /// Removes bundles of what does not run; answers who runs and is unknown.
    pub(crate) async fn sweep_bundles(&self, same_boot: bool) -> Vec<Stranger> {
        let known: BTreeSet<ContainerId> =
            self.all().into_iter().map(|container| container.id.clone()).collect();
        let (mut strangers, mut notices) = (Vec::new(), Vec::new());
        for id in list(&self.0.config.exec_root.join("containers")) {
            let Ok(id) = id.parse::<ContainerId>() else { continue };
            if known.contains(&id) {
                continue;
            }
            if let Some(pid) = self.sweep_bundle(&id, same_boot).await {
                notices.push(format!(
                    "container {id} runs (process {pid}) and nothing else is known of it"
                ));
                strangers.push((id, pid));
            }
        }
        self.0.notices.set("strangers", notices);
        strangers
    }

    /// Removes one bundle, unless its container runs: then answers its process.
    async fn sweep_bundle(&self, id: &ContainerId, same_boot: bool) -> Option<u32> {
        let bundle = self.bundle(id);
        let record: Option<InitRecord> = read_json(&bundle.join("init.json"));
        if let Some(shim) = self.find_shim(&bundle, record.as_ref()).await {
            if let Ok(state) = shim.task.state(id.as_str()).await
                && matches!(state.phase, Phase::Running | Phase::Paused)
            {
                return Some(state.pid);
            }
            let _ = shim.task.kill(id.as_str(), "", 9, true).await;
            let _ = shim.task.delete(id.as_str(), "").await;
            let _ = shim.task.shutdown().await;
        }
        let path = match &record {
            // Only a path with this very id at its end.
            Some(record) if record.cgroup.file_name().is_some_and(|name| name == id.as_str()) => {
                record.cgroup.display().to_string()
            }
            _ => format!("/{}/{id}", self.0.config.cgroup_parent.trim_matches('/')),
        };
        let swept = tokio::task::spawn_blocking(move || {
            cgroup::kill(&path, record.as_ref().filter(|_| same_boot));
            cgroup::remove(&path)
        })
        .await;
        if let Ok(Err(error)) = swept {
            tracing::warn!(%error, container = id.short(), "sweep cgroup");
        }
        if let Err(error) = knarr_tree::remove(&bundle) {
            tracing::warn!(%error, bundle = %bundle.display(), "sweep bundle");
        }
        None
    }

    /// Idle shims of an engine that is gone end by themselves; what remains are
    /// sockets that nobody listens on.
    pub(crate) async fn sweep_sockets(&self) {
        let used: BTreeSet<PathBuf> = self
            .all()
            .iter()
            .filter_map(|container| container.facts().shim.as_ref().map(|shim| shim.socket.clone()))
            .collect();
        let directory = self.0.config.exec_root.join("shims");
        for name in list(&directory) {
            let socket = directory.join(name);
            if !used.contains(&socket) && tokio::net::UnixStream::connect(&socket).await.is_err() {
                let _ = std::fs::remove_file(&socket);
            }
        }
    }

    /// Removals that an earlier engine began are finished.
    pub(crate) async fn finish_removals(&self) {
        for container in self.all() {
            if !matches!(container.status(), Status::Removing | Status::Dead) {
                continue;
            }
            let _op = container.op.lock().await;
            if let Err(error) = self.remove_locked(&container, container.spec().auto_remove).await {
                tracing::warn!(%error, container = container.id.short(), "finish removal");
            }
        }
    }
}

fn list(directory: &Path) -> Vec<String> {
    std::fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

//! How a run ends: by itself, on a user's wish, or because its shim died; and
//! what follows: cleaning up, restart policy, removal.
//!
//! ```text
//!   wait answers ─► row says exited ─► network gone ─► waiters, event "die"
//!        ─► task deleted, shim ends, bundle gone ─► restart later | remove | rest
//! ```

use std::{sync::Arc, time::Duration};

use knarr_model::{
    RestartPolicy, Signal,
    task::{ExitRecord, InitRecord},
};

use crate::{
    Error, Result, cgroup,
    container::Container,
    engine::{Engine, now},
    failpoint,
    recovery::read_json,
    shims::Shim,
    start::outcome,
    task::{Exit, TaskError},
    view::{Status, StopOptions},
};

/// Docker's default.
const STOP_TIMEOUT: i64 = 10;
/// SIGKILL works at once, unless a process hangs in the kernel.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

impl Engine {
    /// Stops it; `NotModified` if it does not run.
    ///
    /// # Errors
    /// When it cannot be ended.
    pub async fn stop(&self, key: &str, options: StopOptions) -> Result<()> {
        let container = self.find(key)?;
        let engine = self.clone();
        self.run(async move { engine.stop_now(&container, options).await }).await
    }

    async fn stop_now(&self, container: &Arc<Container>, options: StopOptions) -> Result<()> {
        failpoint::hit("stop.begin")?;
        let shim = {
            let _op = container.op.lock().await;
            match container.status() {
                Status::Running | Status::Paused => {}
                Status::Restarting => {
                    self.give_up_restart(container)?;
                    return Ok(());
                }
                _ => return Err(Error::not_modified()),
            }
            container.facts().manually_stopped = true;
            self.save(container)?;
            container.running_shim()?
        };
        let spec = container.spec();
        let signal = options.signal.or(spec.stop_signal).unwrap_or(Signal::TERM);
        let timeout =
            options.timeout.unwrap_or_else(|| spec.stop_timeout.map_or(STOP_TIMEOUT, i64::from));
        self.end(container, &shim, signal, timeout).await?;
        self.tell(container, "stop", &[]);
        self.stay_stopped(container).await
    }

    /// Waits until the disk has that a container was stopped, where a restart policy would
    /// start it again after a power cut.
    async fn stay_stopped(&self, container: &Container) -> Result<()> {
        match container.spec().restart {
            RestartPolicy::No => Ok(()),
            _ => self.persist(container).await,
        }
    }

    /// Signal, patience, SIGKILL; `op` is not held: the exit needs it.
    async fn end(
        &self,
        container: &Arc<Container>,
        shim: &Shim,
        signal: Signal,
        timeout: i64,
    ) -> Result<()> {
        let id = container.id.as_str();
        let failed =
            |error: TaskError| Error::internal(format!("cannot stop container: {id}: {error}"));
        match shim.task.kill(id, "", signal.number(), false).await {
            Err(error) if !error.is_gone() && !matches!(error, TaskError::Lost(_)) => {
                return Err(failed(error));
            }
            _ => {}
        }
        self.tell(container, "kill", &[("signal", signal.number().to_string())]);
        // Frozen processes take no signal before they thaw.
        if container.status() == Status::Paused {
            self.thaw(container, shim).await;
        }
        failpoint::hit("stop.signalled")?;
        let patience = u64::try_from(timeout).ok().map(Duration::from_secs);
        if container.ended(patience).await {
            return Ok(());
        }
        match shim.task.kill(id, "", Signal::KILL.number(), true).await {
            Err(error) if !error.is_gone() && !matches!(error, TaskError::Lost(_)) => {
                return Err(failed(error));
            }
            _ => {}
        }
        self.tell(container, "kill", &[("signal", Signal::KILL.number().to_string())]);
        failpoint::hit("stop.killed")?;
        if container.ended(Some(KILL_PATIENCE)).await {
            return Ok(());
        }
        Err(Error::internal(format!(
            "cannot stop container: {id}: tried to kill container, but did not receive an exit event"
        )))
    }

    async fn thaw(&self, container: &Container, shim: &Shim) {
        if let Err(error) = shim.task.resume(container.id.as_str()).await
            && !error.is_gone()
        {
            tracing::debug!(%error, container = container.id.short(), "resume");
        }
        let mut facts = container.facts();
        if facts.state.status == Status::Paused {
            facts.state.status = Status::Running;
        }
    }

    /// Stops it if it runs, and starts it.
    ///
    /// # Errors
    /// As `stop` and `start`.
    pub async fn restart(&self, key: &str, options: StopOptions) -> Result<()> {
        let container = self.find(key)?;
        let engine = self.clone();
        self.run(async move {
            // Removed on exit, it could not be started again (moby `daemon/restart.go`).
            let auto_remove = container.spec().auto_remove;
            if auto_remove {
                container.facts().plan += 1;
            }
            match engine.stop_for_restart(&container, options).await {
                Err(error)
                    if knarr_model::Kinded::kind(&error) == knarr_model::ErrorKind::NotModified => {
                }
                other => other?,
            }
            let _op = container.op.lock().await;
            match engine.start_locked(&container).await {
                Err(error)
                    if knarr_model::Kinded::kind(&error) == knarr_model::ErrorKind::NotModified => {
                }
                other => other?,
            }
            engine.tell(&container, "restart", &[]);
            Ok(())
        })
        .await
    }

    async fn stop_for_restart(
        &self,
        container: &Arc<Container>,
        options: StopOptions,
    ) -> Result<()> {
        container.facts().staying = true;
        let outcome = self.stop_now(container, options).await;
        // The exit's cleaning up must be over, else it would end the new run.
        drop(container.op.lock().await);
        container.facts().staying = false;
        outcome
    }

    /// Sends a signal (SIGKILL unless said) to its first process.
    ///
    /// # Errors
    /// `Conflict` where it does not run.
    pub async fn kill(&self, key: &str, signal: Option<Signal>) -> Result<()> {
        let container = self.find(key)?;
        let engine = self.clone();
        self.run(async move { engine.kill_now(&container, key_of(&container), signal).await }).await
    }

    async fn kill_now(
        &self,
        container: &Arc<Container>,
        key: String,
        signal: Option<Signal>,
    ) -> Result<()> {
        let signal = signal.unwrap_or(Signal::KILL);
        let shim = {
            let _op = container.op.lock().await;
            if container.status() == Status::Restarting {
                self.give_up_restart(container)?;
                return Ok(());
            }
            let shim = container.running_shim().map_err(|_| {
                Error::conflict(format!(
                    "cannot kill container: {key}: container {} is not running",
                    container.id
                ))
            })?;
            let ends = container
                .spec()
                .stop_signal
                .is_none_or(|stop| stop == signal || signal == Signal::KILL);
            if ends {
                container.facts().manually_stopped = true;
                self.save(container)?;
            }
            shim
        };
        match shim.task.kill(container.id.as_str(), "", signal.number(), false).await {
            Ok(()) | Err(TaskError::Lost(_)) => {}
            Err(error) if error.is_gone() => {}
            Err(error) => {
                return Err(Error::internal(format!("cannot kill container: {key}: {error}")));
            }
        }
        self.tell(container, "kill", &[("signal", signal.number().to_string())]);
        if signal == Signal::KILL {
            if container.status() == Status::Paused {
                self.thaw(container, &shim).await;
            }
            // Docker answers when it is dead, and says so when it is not.
            if !container.ended(Some(KILL_PATIENCE)).await {
                return Err(Error::internal(format!(
                    "cannot kill container: {key}: tried to kill container, but did not receive an exit event"
                )));
            }
        }
        self.stay_stopped(container).await
    }

    /// Freezes it.
    ///
    /// # Errors
    /// `Conflict` where it does not run or is paused.
    pub async fn pause(&self, key: &str) -> Result<()> {
        let container = self.find(key)?;
        let engine = self.clone();
        self.run(async move {
            let _op = container.op.lock().await;
            if container.status() == Status::Paused {
                return Err(Error::conflict(format!(
                    "container {} is already paused",
                    container.id
                )));
            }
            let shim = container.running_shim()?;
            shim.task.pause(container.id.as_str()).await.map_err(|error| {
                Error::internal(format!("cannot pause container {}: {error}", container.id))
            })?;
            container.facts().state.status = Status::Paused;
            engine.save(&container)?;
            engine.tell(&container, "pause", &[]);
            Ok(())
        })
        .await
    }

    /// Thaws it.
    ///
    /// # Errors
    /// `Conflict` where it is not paused.
    pub async fn unpause(&self, key: &str) -> Result<()> {
        let container = self.find(key)?;
        let engine = self.clone();
        self.run(async move {
            let _op = container.op.lock().await;
            if container.status() != Status::Paused {
                return Err(Error::conflict(format!("container {} is not paused", container.id)));
            }
            let shim = container.running_shim()?;
            shim.task.resume(container.id.as_str()).await.map_err(|error| {
                Error::internal(format!("cannot resume container {}: {error}", container.id))
            })?;
            container.facts().state.status = Status::Running;
            engine.save(&container)?;
            engine.tell(&container, "unpause", &[]);
            Ok(())
        })
        .await
    }

    /// A run is over; `op` is held.
    pub(crate) async fn on_end(
        &self,
        container: &Arc<Container>,
        shim: &Arc<Shim>,
        end: Result<Exit, TaskError>,
    ) {
        {
            let facts = container.facts();
            let ours = facts.shim.as_ref().is_some_and(|current| Arc::ptr_eq(current, shim));
            // A launch that failed was undone, or recovery has dealt with it.
            if !ours {
                return;
            }
        }
        let lost = end.is_err();
        let record = self.exit_record(container, end).await;
        self.finish(container, &record, lost, Some(shim)).await;
        self.after_exit(container).await;
    }

    /// Everything that an exit entails but what comes next; `op` is held.
    pub(crate) async fn finish(
        &self,
        container: &Arc<Container>,
        record: &ExitRecord,
        lost: bool,
        shim: Option<&Arc<Shim>>,
    ) {
        self.record_exit(container, record, lost);
        if let Err(error) = self.network_gone(container).await {
            tracing::warn!(%error, container = container.id.short(), "detach");
        }
        self.forget_execs(container, true);
        let (code, oom, error) = {
            let facts = container.facts();
            (facts.state.exit_code, facts.state.oom_killed, facts.state.error.clone())
        };
        if oom {
            self.tell(container, "oom", &[]);
        }
        container.tell_exit(outcome(code, &error));
        self.tell(container, "die", &[("exitCode", code.to_string())]);
        self.clean_task(container, shim, lost).await;
    }

    /// How it ended: the shim's file has the last word, for it knows of the OOM killer.
    async fn exit_record(&self, container: &Container, end: Result<Exit, TaskError>) -> ExitRecord {
        if let Err(error) = &end {
            tracing::warn!(%error, container = container.id.short(), "shim lost");
            // Never orphaned: without a shim nobody could stop it.
            self.kill_cgroup(container, self.first_process(container)).await;
        }
        let file = read_json(&self.bundle(&container.id).join("exit.json"));
        match (file, end) {
            (Some(record), _) => record,
            (None, Ok(exit)) => {
                ExitRecord { code: exit.code, finished_at: exit.at, oom_killed: false }
            }
            (None, Err(_)) => ExitRecord { code: 137, finished_at: now(), oom_killed: false },
        }
    }

    fn record_exit(&self, container: &Container, record: &ExitRecord, lost: bool) {
        let _ = failpoint::hit("exit.begin");
        {
            let mut facts = container.facts();
            facts.state.status = Status::Exited;
            facts.state.pid = 0;
            facts.state.exit_code = record.code;
            facts.state.oom_killed = record.oom_killed;
            facts.state.finished_at = Some(record.finished_at.clone());
            if lost {
                facts.state.error = "shim lost".into();
            }
            facts.shim = None;
            facts.pending.clear();
            facts.plan += 1;
            facts.run_ended();
        }
        if let Err(error) = self.save(container) {
            tracing::error!(%error, container = container.id.short(), "record exit");
        }
        let _ = failpoint::hit("exit.row");
    }

    /// Addresses, names and ports are free again.
    pub(crate) async fn network_gone(&self, container: &Container) -> Result<()> {
        let endpoints = {
            let mut facts = container.facts();
            facts.ports.clear();
            std::mem::take(&mut facts.endpoints)
        };
        let networks = self.0.networks.clone();
        let id = container.id.clone();
        let outcome = tokio::task::spawn_blocking(move || networks.detach(&id))
            .await
            .map_err(|error| Error::internal(format!("detach: {error}")))?;
        for endpoint in &endpoints {
            self.tell_endpoint(endpoint, "disconnect", &container.id);
        }
        let _ = failpoint::hit("exit.network");
        outcome.map_err(Error::from_room)
    }

    /// The task, its shim and its bundle go.
    async fn clean_task(&self, container: &Container, shim: Option<&Arc<Shim>>, lost: bool) {
        if let Some(shim) = shim.filter(|_| lost) {
            let _ = std::fs::remove_file(&shim.socket);
        }
        if lost {
            self.remove_cgroup(container);
        } else if let Some(shim) = shim {
            let deleted = shim.task.delete(container.id.as_str(), "").await;
            let _ = failpoint::hit("exit.task");
            match deleted {
                Ok(()) => self.0.shims.give_back(shim).await,
                Err(error) => {
                    if !error.is_gone() {
                        tracing::warn!(%error, container = container.id.short(), "delete task");
                        self.kill_cgroup(container, self.first_process(container)).await;
                        self.remove_cgroup(container);
                    }
                    let _ = shim.task.shutdown().await;
                }
            }
        }
        self.remove_bundle(container).await;
        let _ = failpoint::hit("exit.bundle");
    }

    /// Ends everything in a container's cgroup; within two seconds, or never.
    pub(crate) async fn kill_cgroup(&self, container: &Container, first: Option<InitRecord>) {
        let path = self.cgroup(container);
        let killed = tokio::task::spawn_blocking(move || cgroup::kill(&path, first.as_ref())).await;
        if !matches!(killed, Ok(true)) {
            tracing::warn!(container = container.id.short(), "processes of it do not die");
        }
    }

    /// What the shim wrote of its first process, in this boot.
    pub(crate) fn first_process(&self, container: &Container) -> Option<InitRecord> {
        read_json(&self.bundle(&container.id).join("init.json"))
    }

    pub(crate) fn remove_cgroup(&self, container: &Container) {
        if let Err(error) = cgroup::remove(&self.cgroup(container)) {
            tracing::warn!(%error, container = container.id.short(), "remove cgroup");
        }
    }

    /// Removal or restart, as was asked; `op` is held.
    pub(crate) async fn after_exit(&self, container: &Arc<Container>) {
        let (staying, auto_remove) = {
            let facts = container.facts();
            (facts.staying, facts.spec.auto_remove)
        };
        if staying {
            return;
        }
        if auto_remove {
            if let Err(error) = self.remove_locked(container, true).await {
                tracing::warn!(%error, container = container.id.short(), "auto-remove");
            }
            return;
        }
        self.plan_restart(container);
    }

    /// Starts it again later, if its policy says so.
    pub(crate) fn plan_restart(&self, container: &Arc<Container>) {
        let (delay, plan) = {
            let mut facts = container.facts();
            let wanted = !facts.manually_stopped
                && match facts.spec.restart {
                    RestartPolicy::No => false,
                    RestartPolicy::Always | RestartPolicy::UnlessStopped => true,
                    RestartPolicy::OnFailure { max_retries } => {
                        facts.state.exit_code != 0
                            && (max_retries == 0 || facts.restart_count < max_retries)
                    }
                };
            if !wanted {
                return;
            }
            let delay = facts.next_delay();
            facts.state.status = Status::Restarting;
            facts.plan += 1;
            (delay, facts.plan)
        };
        if let Err(error) = self.save(container) {
            tracing::error!(%error, container = container.id.short(), "record restart");
        }
        let engine = self.clone();
        let container = Arc::clone(container);
        tokio::spawn(async move {
            tokio::time::sleep(delay).await;
            let _op = container.op.lock().await;
            {
                let mut facts = container.facts();
                if facts.plan != plan || facts.state.status != Status::Restarting {
                    return;
                }
                facts.restart_count += 1;
            }
            if let Err(error) = engine.launch(&container).await {
                tracing::warn!(%error, container = container.id.short(), "restart");
                engine.plan_restart(&container);
            }
        });
    }

    /// A user does not want the planned restart; `op` is held.
    fn give_up_restart(&self, container: &Container) -> Result<()> {
        {
            let mut facts = container.facts();
            facts.plan += 1;
            facts.manually_stopped = true;
            facts.state.status = Status::Exited;
        }
        self.save(container)
    }
}

fn key_of(container: &Container) -> String {
    container.name().to_string()
}

//! One container: where it is in its life, and who waits for what.
//!
//! ```text
//!                create
//!                  │
//!                  ▼       start fails: stays, with the error and 126, 127 or 128
//!              ┌────────┐◄──────┐
//!              │created │───────┘
//!              └────────┘
//!                  │ start
//!                  ▼         pause
//!   ┌─────────►┌────────┐──────────►┌────────┐
//!   │          │running │◄──────────│ paused │
//!   │          └────────┘  unpause  └────────┘
//!   │               │ exit, kill, shim lost │
//!   │               ▼◄──────────────────────┘
//!   │ start    ┌────────┐  policy   ┌──────────┐
//!   └──────────│ exited │──────────►│restarting│──── back-off over: start
//!              └────────┘◄──────────└──────────┘
//!                  │ remove (from any state with force)   stop
//!                  ▼
//!              ┌────────┐  residue  ┌────────┐
//!              │removing│──────────►│  dead  │   remove again
//!              └────────┘           └────────┘
//! ```
//!
//! `op` is held by the verb that moves it: start, pause, exit and remove never
//! run beside each other for one container, so that each verb takes effect at
//! one instant. A verb that waits for an exit (stop, remove with force) lets go
//! of `op` while it waits, because the exit needs it. `facts` is held for
//! reading and writing memory only, never across an await.
//!
//! **Waiting.** Each exit increments a counter that waiters compare with what
//! they saw when they began: nothing between is missed.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use knarr_model::{ContainerId, ContainerSpec, Digest, ExecId, Name, Workload};
use knarr_network::Endpoint;
use knarr_state::containers::{ContainerRow, ContainerState};
use serde::{Deserialize, Serialize};
use tokio::{io::DuplexStream, sync::watch};

use crate::{
    Error, Result,
    create::CREATING,
    mounts::StoredMount,
    shims::Shim,
    view::{PublishedPort, State, Status, WaitCondition, WaitOutcome},
};

/// What the engine made of a request, kept beside it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Resolved {
    /// Entrypoint and command.
    pub(crate) argv: Vec<String>,
    /// Diff ids, lowest first.
    pub(crate) layers: Vec<Digest>,
    pub(crate) mounts: Vec<StoredMount>,
}

/// A client that attached before the start.
#[derive(Debug)]
pub(crate) struct PendingAttach {
    pub(crate) far: DuplexStream,
    pub(crate) stdin: bool,
    pub(crate) stdout: bool,
    pub(crate) stderr: bool,
}

/// What is known of a container right now.
#[derive(Debug)]
pub(crate) struct Facts {
    pub(crate) name: Name,
    pub(crate) spec: Arc<ContainerSpec>,
    pub(crate) resolved: Arc<Resolved>,
    pub(crate) state: State,
    pub(crate) restart_count: u32,
    /// A user stopped it: the policy rests.
    pub(crate) manually_stopped: bool,
    /// While there is a task.
    pub(crate) shim: Option<Arc<Shim>>,
    pub(crate) endpoints: Vec<Endpoint>,
    pub(crate) ports: Vec<PublishedPort>,
    pub(crate) execs: Vec<ExecId>,
    pub(crate) pending: Vec<PendingAttach>,
    /// The next restart's delay; doubles.
    pub(crate) backoff: Duration,
    /// Start of this run, by a clock that nobody sets.
    pub(crate) since: Option<Instant>,
    /// Incremented by whatever makes a planned restart void.
    pub(crate) plan: u64,
    /// The removal that began takes the anonymous volumes along, also if it is
    /// finished by the next engine.
    pub(crate) with_volumes: bool,
    /// A restart is under way: this exit is no reason to remove it or to start it again.
    pub(crate) staying: bool,
    /// How often the row has changed.
    pub(crate) revision: u64,
}

/// The row's word for a removal with `-v`.
const REMOVING_VOLUMES: &str = "removing-volumes";

/// First delay of a restart by policy.
pub(crate) const FIRST_BACKOFF: Duration = Duration::from_millis(100);
/// Longest delay between restarts.
const LAST_BACKOFF: Duration = Duration::from_secs(60);
/// A run of this length was a good one: the back-off begins anew.
const GOOD_RUN: Duration = Duration::from_secs(10);

impl Facts {
    /// How long the restart that is planned now waits; the next one waits longer.
    pub(crate) fn next_delay(&mut self) -> Duration {
        let delay = self.backoff;
        self.backoff = (delay * 2).min(LAST_BACKOFF);
        delay
    }

    /// A run is over: what its length says about the next restart.
    pub(crate) fn run_ended(&mut self) {
        if self.since.take().is_some_and(|since| since.elapsed() >= GOOD_RUN) {
            self.backoff = FIRST_BACKOFF;
        }
    }
}

/// What waiters watch.
#[derive(Debug, Clone, Default)]
struct Life {
    running: bool,
    exits: u64,
    /// The last few exits with their numbers.
    last: VecDeque<(u64, WaitOutcome)>,
    removed: Option<WaitOutcome>,
}

/// One container.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) id: ContainerId,
    pub(crate) created: String,
    pub(crate) image: Digest,
    pub(crate) workload: Workload,
    pub(crate) op: tokio::sync::Mutex<()>,
    facts: Mutex<Facts>,
    life: watch::Sender<Life>,
}

impl Container {
    /// Whether a row can be used as it is: nothing of it is ever guessed.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn check(row: &ContainerRow) -> Result<()> {
        Self::resolved(row)?;
        status(&row.state.status).map(|_| ())
    }

    /// What the engine made of the request, as the row has it.
    pub(crate) fn resolved(row: &ContainerRow) -> Result<Resolved> {
        Resolved::deserialize(&row.resolved).map_err(|error| {
            Error::internal(format!("container {}: what it resolved to: {error}", row.id))
        })
    }

    /// The container of a row, and of how often that has changed.
    ///
    /// # Errors
    /// As [`Container::check`].
    pub(crate) fn new(row: ContainerRow, revision: u64) -> Result<Self> {
        let resolved = Self::resolved(&row)?;
        let state = State {
            status: status(&row.state.status)?,
            pid: row.state.pid,
            exit_code: row.state.exit_code,
            oom_killed: row.state.oom_killed,
            error: row.state.error,
            started_at: row.state.started_at,
            finished_at: row.state.finished_at,
        };
        let mut life = Life { running: state.status.is_running(), ..Life::default() };
        if state.finished_at.is_some() {
            life.exits = 1;
            life.last.push_back((1, WaitOutcome { code: state.exit_code, error: None }));
        }
        Ok(Self {
            id: row.id,
            created: row.created,
            image: row.image,
            workload: row.workload,
            op: tokio::sync::Mutex::new(()),
            facts: Mutex::new(Facts {
                name: row.name,
                spec: Arc::new(row.spec),
                resolved: Arc::new(resolved),
                state,
                restart_count: row.state.restart_count,
                manually_stopped: row.state.manually_stopped,
                shim: None,
                endpoints: Vec::new(),
                ports: Vec::new(),
                execs: Vec::new(),
                pending: Vec::new(),
                backoff: FIRST_BACKOFF,
                since: None,
                plan: 0,
                with_volumes: row.state.status == REMOVING_VOLUMES,
                staying: false,
                revision,
            }),
            life: watch::Sender::new(life),
        })
    }

    /// What is known of it. Never held across an await.
    pub(crate) fn facts(&self) -> MutexGuard<'_, Facts> {
        // Facts are assigned whole: a panic elsewhere leaves nothing half done.
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn status(&self) -> Status {
        self.facts().state.status
    }

    pub(crate) fn name(&self) -> Name {
        self.facts().name.clone()
    }

    pub(crate) fn spec(&self) -> Arc<ContainerSpec> {
        Arc::clone(&self.facts().spec)
    }

    /// Its shim, where it runs; else what Docker says.
    pub(crate) fn running_shim(&self) -> Result<Arc<Shim>> {
        let facts = self.facts();
        match (&facts.shim, facts.state.status.is_running()) {
            (Some(shim), true) => Ok(Arc::clone(shim)),
            _ => Err(Error::conflict(format!("container {} is not running", self.id))),
        }
    }

    /// The row's part of what is known.
    pub(crate) fn row_state(&self) -> ContainerState {
        let facts = self.facts();
        let status = match facts.state.status {
            Status::Removing if facts.with_volumes => REMOVING_VOLUMES,
            other => other.as_str(),
        };
        ContainerState {
            status: status.to_owned(),
            pid: facts.state.pid,
            exit_code: facts.state.exit_code,
            oom_killed: facts.state.oom_killed,
            error: facts.state.error.clone(),
            started_at: facts.state.started_at.clone(),
            finished_at: facts.state.finished_at.clone(),
            restart_count: facts.restart_count,
            manually_stopped: facts.manually_stopped,
        }
    }

    /// The whole row.
    pub(crate) fn row(&self) -> Result<ContainerRow> {
        let state = self.row_state();
        let facts = self.facts();
        Ok(ContainerRow {
            id: self.id.clone(),
            name: facts.name.clone(),
            created: self.created.clone(),
            image: self.image,
            workload: self.workload.clone(),
            spec: (*facts.spec).clone(),
            resolved: crate::create::to_json(&*facts.resolved)?,
            state,
        })
    }

    /// Tells waiters that it runs.
    pub(crate) fn tell_running(&self) {
        self.life.send_modify(|life| life.running = true);
    }

    /// Tells waiters that a run ended.
    pub(crate) fn tell_exit(&self, outcome: WaitOutcome) {
        self.life.send_modify(|life| {
            life.running = false;
            life.exits += 1;
            if life.last.len() == 16 {
                life.last.pop_front();
            }
            life.last.push_back((life.exits, outcome));
        });
    }

    /// Tells waiters that it is gone (or that it could not be removed).
    pub(crate) fn tell_removed(&self, error: Option<String>) {
        let code = self.facts().state.exit_code;
        self.life.send_modify(|life| {
            life.running = false;
            life.removed = Some(WaitOutcome { code, error });
        });
    }

    /// Begins to wait.
    pub(crate) fn wait(&self, condition: WaitCondition) -> Wait {
        let receiver = self.life.subscribe();
        let (seen, running) = {
            let life = receiver.borrow();
            (life.exits, life.running)
        };
        Wait { condition, seen, running, receiver }
    }

    /// Ends when this run (or the one that is beginning) is over.
    pub(crate) async fn ended(&self, within: Option<Duration>) -> bool {
        let mut receiver = self.life.subscribe();
        let over = receiver.wait_for(|life| !life.running || life.removed.is_some());
        match within {
            Some(within) => tokio::time::timeout(within, over).await.is_ok(),
            None => over.await.is_ok(),
        }
    }

    /// A receiver that changes whenever a run begins or ends; the value is
    /// whether it runs.
    pub(crate) fn is_running_now(&self) -> bool {
        self.life.borrow().running
    }

    /// Ends when it does not run; for whoever follows its output.
    pub(crate) fn end_of_run(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut receiver = self.life.subscribe();
        async move {
            let _ = receiver.wait_for(|life| !life.running).await;
        }
    }

    /// Docker's attributes of its events.
    pub(crate) fn attributes(&self) -> BTreeMap<String, String> {
        let facts = self.facts();
        let mut all = facts.spec.labels.clone();
        all.insert("image".into(), facts.spec.image.clone());
        all.insert("name".into(), facts.name.to_string());
        all
    }
}

fn status(word: &str) -> Result<Status> {
    Ok(match word {
        CREATING | "created" => Status::Created,
        "running" => Status::Running,
        "paused" => Status::Paused,
        "restarting" => Status::Restarting,
        "removing" | REMOVING_VOLUMES => Status::Removing,
        "exited" => Status::Exited,
        "dead" => Status::Dead,
        other => return Err(Error::internal(format!("unknown status {other:?}"))),
    })
}

/// A wait that has begun: nothing that happens after it was made is missed.
#[derive(Debug)]
pub struct Wait {
    condition: WaitCondition,
    seen: u64,
    running: bool,
    receiver: watch::Receiver<Life>,
}

impl Wait {
    /// Waits.
    pub async fn outcome(mut self) -> WaitOutcome {
        let (condition, seen, running) = (self.condition, self.seen, self.running);
        let fulfilled = move |life: &Life| match condition {
            WaitCondition::Removed => life.removed.is_some(),
            _ if life.removed.is_some() => true,
            WaitCondition::NotRunning => !running || life.exits > seen,
            WaitCondition::NextExit => life.exits > seen,
        };
        let Ok(life) = self.receiver.wait_for(fulfilled).await else {
            // The engine is going away with the container's last handle.
            return WaitOutcome { code: 0, error: Some("engine closed".into()) };
        };
        match condition {
            WaitCondition::Removed => life.removed.clone(),
            WaitCondition::NotRunning if !running => {
                life.last.back().map(|(_, outcome)| outcome.clone())
            }
            _ => life
                .last
                .iter()
                .find(|(number, _)| *number > seen)
                .map(|(_, outcome)| outcome.clone())
                .or_else(|| life.removed.clone()),
        }
        .unwrap_or(WaitOutcome { code: 0, error: None })
    }
}

#[cfg(test)]
mod tests {
    use knarr_model::Platform;

    use super::*;

    fn row() -> ContainerRow {
        ContainerRow {
            id: "a".repeat(64).parse().unwrap(),
            name: "one".parse().unwrap(),
            created: "2026-01-01T00:00:00Z".into(),
            image: Digest::from_bytes([0; 32]),
            workload: Workload::Native { platform: Platform::host() },
            spec: ContainerSpec::default(),
            resolved: serde_json::json!({}),
            state: ContainerState { status: "created".into(), ..ContainerState::default() },
        }
    }

    fn container() -> Container {
        Container::new(row(), 1).unwrap()
    }

    #[test]
    fn k05_a_row_that_cannot_be_read_is_no_container() {
        for resolved in [serde_json::json!({"argv": 7}), serde_json::json!({"mounts": [{}]})] {
            assert!(Container::new(ContainerRow { resolved, ..row() }, 1).is_err());
        }
        let mut unknown = row();
        unknown.state.status = "dancing".into();
        assert!(Container::check(&unknown).is_err());
        assert_eq!(container().row().unwrap().id, row().id);
    }

    #[test]
    fn k14_who_fails_at_once_is_restarted_ever_more_slowly() {
        let container = container();
        let mut facts = container.facts();
        let mut delays = Vec::new();
        for _ in 0..12 {
            // It ends as soon as it was started.
            facts.since = Some(Instant::now());
            facts.run_ended();
            delays.push(facts.next_delay().as_millis());
        }
        let doubled = [100, 200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 51_200];
        assert_eq!(delays[..10], doubled);
        assert_eq!(delays[10..], [60_000, 60_000]);
        // A run that lasted, by the clock that nobody sets.
        facts.since = Instant::now().checked_sub(GOOD_RUN);
        assert!(facts.since.is_some(), "this machine is up for longer than that");
        facts.run_ended();
        assert_eq!(facts.next_delay(), FIRST_BACKOFF);
    }

    #[tokio::test]
    async fn p03_a_wait_that_began_before_the_exit_gets_that_exit() {
        let container = container();
        let next = container.wait(WaitCondition::NextExit);
        let removed = container.wait(WaitCondition::Removed);
        let now = container.wait(WaitCondition::NotRunning);
        container.tell_running();
        let running = container.wait(WaitCondition::NotRunning);
        container.tell_exit(WaitOutcome { code: 7, error: None });
        container.tell_running();
        container.tell_exit(WaitOutcome { code: 8, error: None });
        container.facts().state.exit_code = 8;
        container.tell_removed(None);
        assert_eq!(next.outcome().await.code, 7);
        assert_eq!(running.outcome().await.code, 7);
        assert_eq!(removed.outcome().await.code, 8);
        // It did not run when this wait began: nothing to wait for.
        assert_eq!(now.outcome().await.code, 8);
    }
}

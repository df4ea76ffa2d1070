//! containerd's Task API (`containerd.task.v3.Task`, and the same under its
//! older name v2): requests are parsed here, carried out by [`Task`], and never
//! held up by each other.
//!
//! A shim that containerd asks for it keeps a pod as well (`sandbox.rs`).
//!
//! A handler is dropped where its client goes away: whatever must be finished
//! is done without awaiting, or by a task of its own.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use containerd_shim_protos::{
    api,
    events::task as events,
    protobuf::{
        EnumOrUnknown, MessageField,
        well_known_types::{any::Any, empty::Empty, timestamp::Timestamp},
    },
    sandbox_api::CreateSandboxRequest,
    sandbox_async, shim_async,
};
use knarr_bundle::Entry;
use knarr_model::{Signal, task::TaskStats};
use knarr_sandbox::RootfsMount;
use oci_spec::runtime as oci;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;
use ttrpc::asynchronous::{Service, TtrpcContext};

use crate::{
    artifact::Artifacts,
    error::{Error, Result},
    metrics,
    options::Options,
    pod::{Home, Pod},
    process::Exit,
    publish::{Event, Publisher},
    sandbox,
    stdio::Addresses,
    streams::lock,
    task::{NewTask, Phase, Task},
};

/// All tasks of this shim.
#[derive(Debug)]
pub(crate) struct Tasks {
    tasks: Mutex<HashMap<String, Arc<Task>>>,
    /// Where we listen.
    socket: PathBuf,
    /// How many tasks there are; the shim's own end depends on it.
    count: watch::Sender<usize>,
    shutdown: watch::Sender<Shutdown>,
    clients: TaskTracker,
    /// Where this shim is containerd's: the namespace, and who is told events.
    containerd: Option<(String, Publisher)>,
    /// The sandbox of which these are the containers, where containerd leaves it to us.
    pod: Mutex<Option<Arc<Pod>>>,
    /// systemd makes that one's control group.
    systemd: bool,
    /// What runs containerd's Wasm programs, and where those that are artifacts are;
    /// knarrd brings its own.
    guests: Option<(knarr_bundle::Host, Artifacts)>,
}

/// Whether the shim is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shutdown {
    No,
    Now,
    /// When its callers have hung up.
    AfterCallers,
}

impl Tasks {
    /// No tasks yet.
    pub(crate) fn new(socket: PathBuf) -> Arc<Self> {
        Self::of(socket, None, None, false)
    }

    /// The same for containerd, which is told what happens.
    pub(crate) fn for_containerd(
        socket: PathBuf,
        namespace: &str,
        publisher: Publisher,
        artifacts: Artifacts,
        systemd: bool,
    ) -> Arc<Self> {
        let guests = (knarr_bundle::Host::new(), artifacts);
        Self::of(socket, Some((namespace.to_owned(), publisher)), Some(guests), systemd)
    }

    fn of(
        socket: PathBuf,
        containerd: Option<(String, Publisher)>,
        guests: Option<(knarr_bundle::Host, Artifacts)>,
        systemd: bool,
    ) -> Arc<Self> {
        Arc::new(Self {
            pod: Mutex::default(),
            systemd,
            tasks: Mutex::default(),
            socket,
            count: watch::Sender::new(0),
            shutdown: watch::Sender::new(Shutdown::No),
            clients: TaskTracker::new(),
            guests,
            containerd,
        })
    }

    fn publish(&self, event: impl FnOnce() -> Event) {
        if let Some((_, publisher)) = &self.containerd {
            publisher.publish(&event());
        }
    }

    /// The services to register: the Task API under both of its names, and for containerd
    /// that of sandboxes.
    pub(crate) fn services(self: &Arc<Self>) -> HashMap<String, Service> {
        let mut services = shim_async::create_task(Arc::new(Api(self.clone())));
        for (name, service) in shim_async::create_task(Arc::new(Api(self.clone()))) {
            services.insert(name.replace("task.v3", "task.v2"), service);
        }
        if self.containerd.is_some() {
            services.extend(sandbox_async::create_sandbox(Arc::new(sandbox::Api(self.clone()))));
        }
        services
    }

    /// Follows the number of tasks, with the pod's own.
    pub(crate) fn count(&self) -> watch::Receiver<usize> {
        self.count.subscribe()
    }

    /// Waits for an accepted `Shutdown`, or `ShutdownSandbox`: whether the callers hang up
    /// first.
    pub(crate) async fn shutdown(&self) -> bool {
        let mut asked = self.shutdown.subscribe();
        let asked = asked.wait_for(|asked| *asked != Shutdown::No).await;
        asked.is_ok_and(|asked| *asked == Shutdown::AfterCallers)
    }

    /// Waits until the clients of tasks that are gone have all their output, or
    /// are gone themselves.
    pub(crate) async fn clients_served(&self) {
        self.clients.close();
        self.clients.wait().await;
    }

    /// Whether a task reaps this child itself.
    pub(crate) fn owns(&self, pid: u32) -> bool {
        lock(&self.tasks).values().any(|task| task.owns(pid))
            || lock(&self.pod).as_ref().is_some_and(|pod| pod.task.owns(pid))
    }

    /// Makes the pod.
    pub(crate) fn add_pod(&self, request: &CreateSandboxRequest) -> Result<()> {
        let Some((namespace, _)) = &self.containerd else {
            return Err(Error::unimplemented("sandboxes are containerd's"));
        };
        let home =
            Home { socket: &self.socket, clients: &self.clients, namespace, systemd: self.systemd };
        {
            let mut place = lock(&self.pod);
            if let Some(pod) = &*place {
                return Err(Error::exists(format!("sandbox {} already exists", pod.id)));
            }
            *place = Some(Arc::new(Pod::create(request, &home)?));
        }
        self.recount(&lock(&self.tasks));
        Ok(())
    }

    /// The pod of this name.
    pub(crate) fn pod(&self, id: &str) -> Result<Arc<Pod>> {
        let missing = || Error::not_found(format!("no such sandbox: {id}"));
        lock(&self.pod).as_ref().filter(|pod| pod.id == id).cloned().ok_or_else(missing)
    }

    /// Ends the pod and all of its containers; they stay to be asked how.
    pub(crate) async fn stop_pod(&self, id: &str, patience: Duration) -> Result<()> {
        let pod = self.pod(id)?;
        self.kill_all();
        pod.stop(patience).await
    }

    fn kill_all(&self) {
        let all: Vec<_> = lock(&self.tasks).values().cloned().collect();
        for task in all.iter().filter(|task| task.init.exit().is_none()) {
            if let Err(error) = task.kill("", Signal::KILL, true) {
                tracing::warn!("kill {} with its pod: {error}", task.id);
            }
        }
    }

    /// Removes the pod with whatever is left in it, and ends the shim. Where the pod did not
    /// come to be, that is all.
    pub(crate) async fn end_pod(&self, id: &str, patience: Duration) -> Result<()> {
        if lock(&self.pod).is_some() {
            self.stop_pod(id, patience).await?;
            let left: Vec<String> = lock(&self.tasks).keys().cloned().collect();
            for task in left {
                self.delete(&task, "").await?;
            }
            *lock(&self.pod) = None;
            self.recount(&lock(&self.tasks));
        }
        // containerd takes a connection that ends behind the answer for a failure.
        self.end_if_unused(Shutdown::AfterCallers);
        Ok(())
    }

    fn recount(&self, tasks: &HashMap<String, Arc<Task>>) {
        self.count.send_replace(tasks.len() + usize::from(lock(&self.pod).is_some()));
    }

    /// Not the end while others have something here; containerd asks after each.
    fn end_if_unused(&self, how: Shutdown) {
        if lock(&self.tasks).is_empty() && lock(&self.pod).is_none() {
            self.shutdown.send_replace(how);
        }
    }

    fn get(&self, id: &str) -> Result<Arc<Task>> {
        let missing = || Error::not_found(format!("no such task: {id}"));
        lock(&self.tasks).get(id).cloned().ok_or_else(missing)
    }

    async fn create(&self, request: api::CreateTaskRequest) -> Result<u32> {
        if !request.checkpoint.is_empty() || !request.parent_checkpoint.is_empty() {
            return Err(no_checkpoint());
        }
        let options = match (request.options.as_ref(), &self.containerd) {
            (Some(options), Some(_)) => {
                Options::of(options).map_err(|error| Error::invalid(format!("{error:#}")))?
            }
            _ => Options::default(),
        };
        let exists = || Error::exists(format!("task {} already exists", request.id));
        if lock(&self.tasks).contains_key(&request.id) {
            return Err(exists());
        }
        let rootfs: Vec<_> = request
            .rootfs
            .iter()
            .map(|mount| RootfsMount {
                kind: mount.type_.clone(),
                source: mount.source.clone().into(),
                options: mount.options.clone(),
            })
            .collect();
        // May take a while, in which the pod's other containers are served.
        let spec = self.specification(&request, &rootfs, options.systemd_cgroup).await?;
        let mut tasks = lock(&self.tasks);
        if tasks.contains_key(&request.id) {
            return Err(exists());
        }
        let mut event = events::TaskCreate {
            container_id: request.id.clone(),
            bundle: request.bundle.clone(),
            io: MessageField::some(events::TaskIO {
                stdin: request.stdin.clone(),
                stdout: request.stdout.clone(),
                stderr: request.stderr.clone(),
                terminal: request.terminal,
                ..Default::default()
            }),
            ..Default::default()
        };
        if self.containerd.is_some() {
            event.rootfs.clone_from(&request.rootfs);
        }
        let task = Task::create(NewTask {
            id: &request.id,
            bundle: Path::new(&request.bundle),
            spec: &spec,
            rootfs: &rootfs,
            addresses: Addresses {
                stdin: request.stdin,
                stdout: request.stdout,
                stderr: request.stderr,
                terminal: request.terminal,
            },
            socket: &self.socket,
            clients: &self.clients,
            namespace: self.containerd.as_ref().map(|(namespace, _)| namespace.as_str()),
            publisher: self.containerd.as_ref().map(|(_, publisher)| publisher),
            options,
        })?;
        let pid = task.init.pid();
        tasks.insert(request.id, task);
        self.recount(&tasks);
        self.publish(|| {
            event.pid = pid;
            Event::Create(event)
        });
        Ok(pid)
    }

    /// What the bundle asks for. knarrd says itself what a Wasm program is launched with;
    /// containerd's are looked at here.
    async fn specification(
        &self,
        request: &api::CreateTaskRequest,
        rootfs: &[RootfsMount],
        systemd: bool,
    ) -> Result<oci::Spec> {
        let bundle = Path::new(&request.bundle);
        let config = bundle.join("config.json");
        let mut spec = oci::Spec::load(&config)
            .map_err(|error| Error::invalid(format!("load {}: {error}", config.display())))?;
        if let Some(pod) = &*lock(&self.pod) {
            pod.furnish(&mut spec);
        }
        if let Some((host, artifacts)) = &self.guests {
            let guest = match knarr_bundle::entry(&spec, bundle, rootfs)? {
                Entry::Native => None,
                Entry::Wasm(guest) => Some(guest),
                Entry::Missing => match artifacts.find(&request.id).await? {
                    None => None,
                    Some(artifact) => {
                        let file = host
                            .scratch()
                            .map_err(|error| Error::internal("make room for a program", error))?;
                        Some(artifact.fetch(file).await?)
                    }
                },
            };
            let launch = match guest {
                None => None,
                Some(guest) => Some(host.launch(&spec, guest).await?),
            };
            knarr_bundle::adopt(&mut spec, launch.as_ref())?;
            if systemd {
                knarr_bundle::by_systemd(&mut spec)?;
            }
        }
        Ok(spec)
    }

    async fn delete(&self, id: &str, exec: &str) -> Result<(u32, Option<Exit>)> {
        let task = self.get(id)?;
        if !exec.is_empty() {
            return task.delete_exec(exec);
        }
        let (pid, exit) = task.delete().await?;
        let mut tasks = lock(&self.tasks);
        if tasks.remove(id).is_none() {
            return Err(Error::not_found(format!("no such task: {id}")));
        }
        self.recount(&tasks);
        self.publish(|| {
            Event::Delete(events::TaskDelete {
                container_id: id.to_owned(),
                pid,
                exit_status: exit.code,
                exited_at: timestamp(Some(exit)),
                ..Default::default()
            })
        });
        Ok((pid, Some(exit)))
    }

    fn state(&self, id: &str, exec: &str) -> Result<api::StateResponse> {
        let task = self.get(id)?;
        let process = task.process(exec)?;
        let status = match task.phase(&process) {
            Phase::Created => api::Status::CREATED,
            Phase::Running => api::Status::RUNNING,
            Phase::Paused => api::Status::PAUSED,
            Phase::Stopped => api::Status::STOPPED,
        };
        let exit = process.exit();
        Ok(api::StateResponse {
            id: id.to_owned(),
            bundle: task.bundle.display().to_string(),
            pid: process.pid(),
            status: EnumOrUnknown::new(status),
            stdin: process.addresses.stdin.clone(),
            stdout: process.addresses.stdout.clone(),
            stderr: process.addresses.stderr.clone(),
            terminal: process.addresses.terminal,
            exit_status: exit.map_or(0, |exit| exit.code),
            exited_at: timestamp(exit),
            exec_id: exec.to_owned(),
            ..Default::default()
        })
    }

    fn pids(&self, id: &str) -> Result<Vec<api::ProcessInfo>> {
        let info = |pid| api::ProcessInfo { pid, ..Default::default() };
        Ok(self.get(id)?.pids()?.into_iter().map(info).collect())
    }
}

fn no_checkpoint() -> Error {
    Error::unimplemented("checkpoint and restore are not supported")
}

pub(crate) fn timestamp(exit: Option<Exit>) -> MessageField<Timestamp> {
    exit.map_or_else(MessageField::none, |exit| moment(exit.at))
}

pub(crate) fn moment(at: jiff::Timestamp) -> MessageField<Timestamp> {
    MessageField::some(Timestamp {
        seconds: at.as_second(),
        nanos: at.subsec_nanosecond(),
        ..Default::default()
    })
}

fn json<T: DeserializeOwned>(what: &str, any: &MessageField<Any>) -> Result<T> {
    let bytes = any.as_ref().map(|any| any.value.as_slice()).unwrap_or_default();
    serde_json::from_slice(bytes)
        .map_err(|error| Error::invalid(format!("invalid {what}: {error}")))
}

struct Api(Arc<Tasks>);

#[async_trait]
impl shim_async::Task for Api {
    async fn state(
        &self,
        _: &TtrpcContext,
        request: api::StateRequest,
    ) -> ttrpc::Result<api::StateResponse> {
        Ok(self.0.state(&request.id, &request.exec_id)?)
    }

    async fn create(
        &self,
        _: &TtrpcContext,
        request: api::CreateTaskRequest,
    ) -> ttrpc::Result<api::CreateTaskResponse> {
        let pid = self.0.create(request).await?;
        Ok(api::CreateTaskResponse { pid, ..Default::default() })
    }

    async fn start(
        &self,
        _: &TtrpcContext,
        request: api::StartRequest,
    ) -> ttrpc::Result<api::StartResponse> {
        let task = self.0.get(&request.id)?;
        let container_id = request.id;
        let pid = match request.exec_id.as_str() {
            "" => {
                let pid = task.start()?;
                let event = events::TaskStart { container_id, pid, ..Default::default() };
                self.0.publish(|| Event::Start(event));
                pid
            }
            exec => {
                let pid = task.start_exec(exec)?;
                let exec_id = exec.to_owned();
                let event =
                    events::TaskExecStarted { container_id, exec_id, pid, ..Default::default() };
                self.0.publish(|| Event::ExecStarted(event));
                pid
            }
        };
        Ok(api::StartResponse { pid, ..Default::default() })
    }

    async fn delete(
        &self,
        _: &TtrpcContext,
        request: api::DeleteRequest,
    ) -> ttrpc::Result<api::DeleteResponse> {
        let (pid, exit) = self.0.delete(&request.id, &request.exec_id).await?;
        Ok(api::DeleteResponse {
            pid,
            exit_status: exit.map_or(0, |exit| exit.code),
            exited_at: timestamp(exit),
            ..Default::default()
        })
    }

    async fn pids(
        &self,
        _: &TtrpcContext,
        request: api::PidsRequest,
    ) -> ttrpc::Result<api::PidsResponse> {
        Ok(api::PidsResponse { processes: self.0.pids(&request.id)?, ..Default::default() })
    }

    async fn pause(&self, _: &TtrpcContext, request: api::PauseRequest) -> ttrpc::Result<Empty> {
        self.0.get(&request.id)?.pause()?;
        let event = events::TaskPaused { container_id: request.id, ..Default::default() };
        self.0.publish(|| Event::Paused(event));
        Ok(Empty::new())
    }

    async fn resume(&self, _: &TtrpcContext, request: api::ResumeRequest) -> ttrpc::Result<Empty> {
        self.0.get(&request.id)?.resume()?;
        let event = events::TaskResumed { container_id: request.id, ..Default::default() };
        self.0.publish(|| Event::Resumed(event));
        Ok(Empty::new())
    }

    async fn checkpoint(
        &self,
        _: &TtrpcContext,
        _: api::CheckpointTaskRequest,
    ) -> ttrpc::Result<Empty> {
        Err(no_checkpoint().into())
    }

    async fn kill(&self, _: &TtrpcContext, request: api::KillRequest) -> ttrpc::Result<Empty> {
        let task = self.0.get(&request.id)?;
        let number = u8::try_from(request.signal).ok().and_then(|n| Signal::try_from(n).ok());
        let bad = || Error::invalid(format!("invalid signal: {}", request.signal));
        task.kill(&request.exec_id, number.ok_or_else(bad)?, request.all)?;
        Ok(Empty::new())
    }

    async fn exec(
        &self,
        _: &TtrpcContext,
        request: api::ExecProcessRequest,
    ) -> ttrpc::Result<Empty> {
        let task = self.0.get(&request.id)?;
        if request.exec_id.is_empty() {
            return Err(Error::invalid("exec needs an id").into());
        }
        let spec = json("process", &request.spec)?;
        let addresses = Addresses {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            terminal: request.terminal,
        };
        task.add_exec(&request.exec_id, addresses, spec)?;
        let event = events::TaskExecAdded {
            container_id: request.id,
            exec_id: request.exec_id,
            ..Default::default()
        };
        self.0.publish(|| Event::ExecAdded(event));
        Ok(Empty::new())
    }

    async fn resize_pty(
        &self,
        _: &TtrpcContext,
        request: api::ResizePtyRequest,
    ) -> ttrpc::Result<Empty> {
        let process = self.0.get(&request.id)?.process(&request.exec_id)?;
        let clamp = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
        process.resize(clamp(request.height), clamp(request.width))?;
        Ok(Empty::new())
    }

    async fn close_io(
        &self,
        _: &TtrpcContext,
        request: api::CloseIORequest,
    ) -> ttrpc::Result<Empty> {
        let process = self.0.get(&request.id)?.process(&request.exec_id)?;
        if request.stdin {
            process.streams.close_stdin();
        }
        Ok(Empty::new())
    }

    async fn update(
        &self,
        _: &TtrpcContext,
        request: api::UpdateTaskRequest,
    ) -> ttrpc::Result<Empty> {
        let task = self.0.get(&request.id)?;
        task.update(&json("resources", &request.resources)?)?;
        Ok(Empty::new())
    }

    async fn wait(
        &self,
        _: &TtrpcContext,
        request: api::WaitRequest,
    ) -> ttrpc::Result<api::WaitResponse> {
        let process = self.0.get(&request.id)?.process(&request.exec_id)?;
        let exit = process.wait().await?;
        Ok(api::WaitResponse {
            exit_status: exit.code,
            exited_at: timestamp(Some(exit)),
            ..Default::default()
        })
    }

    async fn stats(
        &self,
        _: &TtrpcContext,
        request: api::StatsRequest,
    ) -> ttrpc::Result<api::StatsResponse> {
        let stats = self.0.get(&request.id)?.stats()?;
        let any = if self.0.containerd.is_some() {
            metrics::encode(&stats)
        } else {
            let value = serde_json::to_vec(&stats)
                .map_err(|error| Error::internal("encode statistics", error))?;
            Any { type_url: TaskStats::TYPE_URL.to_owned(), value, ..Default::default() }
        };
        Ok(api::StatsResponse { stats: MessageField::some(any), ..Default::default() })
    }

    async fn connect(
        &self,
        _: &TtrpcContext,
        request: api::ConnectRequest,
    ) -> ttrpc::Result<api::ConnectResponse> {
        // containerd asks before there is a task, too.
        let task_pid = self.0.get(&request.id).map_or(0, |task| task.init.pid());
        Ok(api::ConnectResponse {
            shim_pid: std::process::id(),
            task_pid,
            version: "v3".to_owned(),
            ..Default::default()
        })
    }

    async fn shutdown(
        &self,
        _: &TtrpcContext,
        request: api::ShutdownRequest,
    ) -> ttrpc::Result<Empty> {
        if request.now {
            self.0.shutdown.send_replace(Shutdown::Now);
        } else {
            self.0.end_if_unused(Shutdown::Now);
        }
        Ok(Empty::new())
    }
}

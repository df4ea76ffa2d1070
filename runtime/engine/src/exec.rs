//! Further processes in a running container.
//!
//! ```text
//!   create ──► (created) ──start──► running ──exit──► ended, known until the container's exit
//! ```
//!
//! Execs live in memory: an engine that starts again forgets them (as Docker
//! does), the shim reaps them.

use std::{
    collections::BTreeMap,
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready as poll_ready},
};

use knarr_model::{
    ExecId, NetworkMode,
    task::{ATTACH_SCHEME, AttachRequest},
};
use serde_json::json;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::UnixStream,
    sync::watch,
};

use crate::{
    Error, Result, attach, capabilities,
    container::Container,
    create::check_length,
    detach::{self, Detachable},
    engine::Engine,
    failpoint, names, oci,
    shims::Shim,
    start::exit_code_of,
    task::{Streams, TaskError},
    view::{Attached, Duplex, ExecSpec, ExecStart, ExecView, Status},
};

/// Execs of one container that are known, unless more run at once.
const REMEMBERED: usize = 64;

/// One exec.
#[derive(Debug)]
pub(crate) struct Exec {
    id: ExecId,
    container: Arc<Container>,
    spec: ExecSpec,
    now: Mutex<Now>,
    /// True when its exit code is known.
    ended: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct Now {
    started: bool,
    running: bool,
    exit_code: Option<u32>,
    pid: u32,
}

impl Exec {
    fn now(&self) -> std::sync::MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The name by which the shim knows it: short, so that its sockets' and
    /// files' names are.
    fn task_id(&self) -> &str {
        self.id.as_str()
    }
}

/// The streams of an exec, whose end waits until the exit code is known: clients
/// ask for it as soon as the output ends.
struct Settled {
    stream: UnixStream,
    ended: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl Settled {
    fn new(stream: UnixStream, exec: &Exec) -> Self {
        let mut ended = exec.ended.subscribe();
        let known = async move {
            // An exec that was forgotten has nothing more to tell.
            let _ = ended.wait_for(|ended| *ended).await;
        };
        Self { stream, ended: Some(Box::pin(known)) }
    }
}

impl AsyncRead for Settled {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        poll_ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        let at_end = buffer.filled().len() == before && buffer.remaining() > 0;
        if at_end && let Some(ended) = &mut self.ended {
            poll_ready!(ended.as_mut().poll(cx));
            self.ended = None;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Settled {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl Engine {
    /// Prepares a further process.
    ///
    /// # Errors
    /// `Conflict` where the container does not run or is paused.
    pub async fn exec_create(&self, key: &str, spec: ExecSpec) -> Result<ExecId> {
        failpoint::hit("exec.create")?;
        let container = self.find(key)?;
        ready(&container)?;
        if spec.cmd.is_empty() || spec.cmd.iter().all(String::is_empty) {
            return Err(Error::invalid("No exec command specified"));
        }
        check_length(spec.cmd.iter().chain(&spec.env))?;
        if spec.cmd.iter().chain(&spec.env).any(|word| word.contains('\0')) {
            return Err(Error::invalid("a NUL byte in the command or its environment"));
        }
        detach::parse(spec.detach_keys.as_deref())?;
        if container.workload.is_wasm() {
            return Err(Error::not_supported(format!(
                "cannot exec in container {}: it runs a Wasm program, which has no shell and no other programs beside it\n\nhint: run the other program as a container of its own, with the same volumes and network",
                container.name()
            )));
        }
        let id = ExecId::from_random(names::random());
        let command = spec.cmd.join(" ");
        let exec = Arc::new(Exec {
            id: id.clone(),
            container: Arc::clone(&container),
            spec,
            now: Mutex::default(),
            ended: watch::Sender::new(false),
        });
        {
            let mut facts = container.facts();
            let mut execs = self.execs();
            if facts.execs.len() >= REMEMBERED {
                // A probe a second must not fill memory: the oldest that ended is forgotten.
                let over =
                    |id: &ExecId| execs.get(id).is_none_or(|exec| exec.now().exit_code.is_some());
                if let Some(at) = facts.execs.iter().position(over) {
                    let oldest = facts.execs.remove(at);
                    execs.remove(&oldest);
                }
            }
            facts.execs.push(id.clone());
            execs.insert(id.clone(), exec);
        }
        self.tell(&container, &format!("exec_create: {command}"), &[("execID", id.to_string())]);
        Ok(id)
    }

    fn exec_find(&self, key: &str) -> Result<Arc<Exec>> {
        let missing = || Error::not_found(format!("No such exec instance: {key}"));
        let execs = self.execs();
        if let Ok(id) = key.parse::<ExecId>() {
            return execs.get(&id).map(Arc::clone).ok_or_else(missing);
        }
        let mut found =
            execs.iter().filter(|(id, _)| !key.is_empty() && id.as_str().starts_with(key));
        match (found.next(), found.next()) {
            (Some((_, exec)), None) => Ok(Arc::clone(exec)),
            _ => Err(missing()),
        }
    }

    /// Starts it: with streams unless `detach`.
    ///
    /// # Errors
    /// Docker's texts, from which its client takes exit codes 126 and 127.
    pub async fn exec_start(&self, id: &str, options: ExecStart) -> Result<Option<Attached>> {
        let exec = self.exec_find(id)?;
        let engine = self.clone();
        self.run(async move { engine.exec_start_now(&exec, options).await }).await
    }

    async fn exec_start_now(
        &self,
        exec: &Arc<Exec>,
        options: ExecStart,
    ) -> Result<Option<Attached>> {
        let container = &exec.container;
        let shim = {
            // Not between a pause and its effect; many execs may start at once after that.
            let _op = container.op.lock().await;
            ready(container)?;
            let mut now = exec.now();
            if now.started {
                return Err(Error::conflict(format!("exec command {} has already run", exec.id)));
            }
            now.started = true;
            container.running_shim()?
        };
        let id = container.id.as_str();
        let failed = |error: TaskError| {
            let error = exec_error(&error);
            let mut now = exec.now();
            now.exit_code = Some(exit_code_of(error.message()));
            now.running = false;
            error
        };
        let streams = Streams {
            stdin: if exec.spec.stdin { ATTACH_SCHEME.into() } else { String::new() },
            stdout: ATTACH_SCHEME.into(),
            stderr: ATTACH_SCHEME.into(),
            terminal: exec.spec.tty,
        };
        let process = self.exec_process(exec, options)?;
        shim.task.exec(id, exec.task_id(), &streams, &process).await.map_err(failed)?;
        let (stream, pid) = match self.exec_run(exec, &shim, options).await {
            Ok(running) => running,
            Err(error) => {
                let _ = shim.task.kill(id, exec.task_id(), 9, false).await;
                let _ = shim.task.delete(id, exec.task_id()).await;
                let mut now = exec.now();
                now.exit_code = Some(exit_code_of(error.message()));
                return Err(error);
            }
        };
        {
            let mut now = exec.now();
            now.running = true;
            now.pid = pid;
        }
        let command = exec.spec.cmd.join(" ");
        self.tell(container, &format!("exec_start: {command}"), &[("execID", exec.id.to_string())]);
        let engine = self.clone();
        let watched = Arc::clone(exec);
        tokio::spawn(async move {
            let end = shim.task.wait(watched.container.id.as_str(), watched.task_id()).await;
            engine.exec_ended(&watched, end.map_or(137, |exit| exit.code));
            let _ = shim.task.delete(watched.container.id.as_str(), watched.task_id()).await;
        });
        let Some(stream) = stream else { return Ok(None) };
        let stream = Settled::new(stream, exec);
        let stream: Box<dyn Duplex> = if exec.spec.tty && exec.spec.stdin {
            let keys = detach::parse(exec.spec.detach_keys.as_deref())?;
            let engine = self.clone();
            let left = Arc::clone(exec);
            Box::new(Detachable::new(Box::new(stream), keys, move || {
                engine.tell(&left.container, "exec_detach", &[("execID", left.id.to_string())]);
            }))
        } else {
            Box::new(stream)
        };
        Ok(Some(Attached { stream, tty: exec.spec.tty }))
    }

    /// Connects its streams, then starts it; whoever calls undoes a failure.
    async fn exec_run(
        &self,
        exec: &Exec,
        shim: &Shim,
        options: ExecStart,
    ) -> Result<(Option<UnixStream>, u32)> {
        failpoint::hit("exec.added")?;
        let id = exec.container.id.as_str();
        let request = AttachRequest {
            exec: exec.task_id().to_owned(),
            stdin: exec.spec.stdin,
            stdout: exec.spec.stdout,
            stderr: exec.spec.stderr,
            stdin_once: true,
        };
        // Connected before it runs: not one byte is missed.
        let stream = if options.detach {
            None
        } else {
            Some(attach::dial(&self.bundle(&exec.container.id), &request).await?)
        };
        let pid = shim.task.start(id, exec.task_id()).await.map_err(|error| exec_error(&error))?;
        failpoint::hit("exec.started")?;
        Ok((stream, pid))
    }

    /// The process as the specification has it.
    fn exec_process(&self, exec: &Exec, options: ExecStart) -> Result<String> {
        let container = exec.container.spec();
        let spec = &exec.spec;
        let user =
            spec.user.as_deref().filter(|user| !user.is_empty()).or(container.user.as_deref());
        let mut own =
            vec!["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()];
        if !matches!(container.network_mode, NetworkMode::Container(_))
            || container.hostname.is_some()
        {
            own.push(format!("HOSTNAME={}", oci::hostname(exec.container.id.as_str(), &container)));
        }
        if spec.tty {
            own.push("TERM=xterm".to_owned());
        }
        let env = oci::overlay_env(oci::overlay_env(own, &container.env), &spec.env);
        let cwd = spec.working_dir.as_deref().filter(|path| !path.as_os_str().is_empty());
        let cwd = cwd.or(container.working_dir.as_deref()).unwrap_or(std::path::Path::new("/"));
        if !cwd.is_absolute() {
            return Err(Error::invalid(format!(
                "OCI runtime exec failed: exec failed: cwd must be an absolute path: {}",
                cwd.display()
            )));
        }
        let mut process = json!({
            "terminal": spec.tty,
            "user": oci::user(user, &container.group_add),
            "args": spec.cmd,
            "env": env,
            "cwd": cwd,
            "capabilities": capabilities::of_exec(&container, spec.privileged || container.security.privileged, user, &self.0.host)?,
            // What the container has given up for good, no exec has (as moby, which takes the
            // container's own process and changes its capabilities only).
            "noNewPrivileges": container.security.no_new_privileges,
        });
        if let Some(profile) = oci::apparmor(&container.security, &self.0.host) {
            process["apparmorProfile"] = profile.into();
        }
        if let (true, Some((rows, columns))) = (spec.tty, options.size) {
            process["consoleSize"] = json!({"height": rows, "width": columns});
        }
        if let Some(score) = container.oom_score_adj {
            process["oomScoreAdj"] = score.into();
        }
        let mut rlimits = Vec::new();
        for limit in &container.ulimits {
            rlimits.push(json!({
                "type": oci::rlimit(&limit.name)?,
                "soft": limit.soft.cast_unsigned(),
                "hard": limit.hard.cast_unsigned(),
            }));
        }
        if !rlimits.is_empty() {
            process["rlimits"] = rlimits.into();
        }
        Ok(process.to_string())
    }

    fn exec_ended(&self, exec: &Exec, code: u32) {
        {
            let mut now = exec.now();
            if !now.running {
                return;
            }
            now.running = false;
            now.exit_code = Some(code);
            now.pid = 0;
        }
        exec.ended.send_replace(true);
        self.tell(
            &exec.container,
            "exec_die",
            &[("execID", exec.id.to_string()), ("exitCode", code.to_string())],
        );
    }

    /// With the container's end its execs are over; with its removal they are forgotten.
    pub(crate) fn forget_execs(&self, container: &Container, ended: bool) {
        let ids = if ended {
            container.facts().execs.clone()
        } else {
            std::mem::take(&mut container.facts().execs)
        };
        let found: Vec<Arc<Exec>> = {
            let mut execs = self.execs();
            if ended {
                ids.iter().filter_map(|id| execs.get(id).map(Arc::clone)).collect()
            } else {
                ids.iter().filter_map(|id| execs.remove(id)).collect()
            }
        };
        for exec in found {
            self.exec_ended(&exec, 137);
        }
    }

    /// Sets the size of its terminal.
    ///
    /// # Errors
    /// `NotFound`, or when it does not run.
    pub async fn exec_resize(&self, id: &str, rows: u16, columns: u16) -> Result<()> {
        let exec = self.exec_find(id)?;
        let shim = exec.container.running_shim()?;
        if !exec.now().running {
            return Err(Error::conflict(format!("exec {} is not running", exec.id)));
        }
        shim.task
            .resize(exec.container.id.as_str(), exec.task_id(), rows, columns)
            .await
            .map_err(|error| Error::internal(format!("cannot resize: {error}")))
    }

    /// What it is and how it ended.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn exec_inspect(&self, id: &str) -> Result<ExecView> {
        let exec = self.exec_find(id)?;
        let now = exec.now();
        Ok(ExecView {
            id: exec.id.clone(),
            container: exec.container.id.clone(),
            spec: exec.spec.clone(),
            running: now.running,
            exit_code: now.exit_code,
            pid: now.pid,
        })
    }

    /// Sets the size of a container's terminal.
    ///
    /// # Errors
    /// `Conflict` where it does not run.
    pub async fn resize(&self, key: &str, rows: u16, columns: u16) -> Result<()> {
        let container = self.find(key)?;
        let shim = container.running_shim()?;
        shim.task
            .resize(container.id.as_str(), "", rows, columns)
            .await
            .map_err(|error| Error::internal(format!("cannot resize: {error}")))?;
        let size = BTreeMap::from([("height", rows.to_string()), ("width", columns.to_string())]);
        self.tell(&container, "resize", &size.into_iter().collect::<Vec<_>>());
        Ok(())
    }
}

fn ready(container: &Container) -> Result<()> {
    match container.status() {
        Status::Running => Ok(()),
        Status::Paused => Err(Error::conflict(format!(
            "container {} is paused, unpause the container before exec",
            container.id
        ))),
        Status::Restarting => Err(Error::conflict(format!(
            "container {} is restarting, wait until the container is running",
            container.id
        ))),
        _ => Err(Error::conflict(format!("container {} is not running", container.id))),
    }
}

/// Docker's sentence around a shim's refusal.
fn exec_error(error: &TaskError) -> Error {
    let message = format!(
        "OCI runtime exec failed: exec failed: unable to start container process: {error}: unknown"
    );
    match exit_code_of(&message) {
        126 | 127 => Error::invalid(message),
        _ => Error::internal(message),
    }
}

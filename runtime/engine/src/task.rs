//! The shim's side of the conversation: containerd's Task API, seen by its client.
//!
//! [`Task`] is what the engine needs of it; [`Ttrpc`] speaks it over the shim's
//! socket.

use std::{path::Path, sync::Arc, time::Duration};

use containerd_shim_protos::{
    api,
    protobuf::{EnumOrUnknown, MessageField, well_known_types::any::Any},
    shim_async::TaskClient,
};
use futures_util::future::BoxFuture;
use knarr_model::task::TaskStats;
use ttrpc::context::Context;

/// Why a call to a shim failed.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum TaskError {
    /// The connection is gone: the shim died.
    #[error("shim lost: {0}")]
    Lost(String),
    /// The shim's own answer.
    #[error("{message}")]
    Refused {
        /// gRPC's code.
        code: i32,
        /// The shim's words.
        message: String,
    },
    /// It did not answer in time.
    #[error("shim did not answer {0} in time")]
    Timeout(&'static str),
}

impl TaskError {
    /// The task or process does not exist (any more).
    pub(crate) fn is_gone(&self) -> bool {
        matches!(self, Self::Refused { code, message } if *code == 5 || message.contains("process already finished"))
    }
}

impl From<ttrpc::Error> for TaskError {
    fn from(error: ttrpc::Error) -> Self {
        match error {
            ttrpc::Error::RpcStatus(status) => match status.code.enum_value_or_default() {
                // What the client itself says when its deadline has passed.
                ttrpc::Code::DEADLINE_EXCEEDED => Self::Timeout("the request"),
                code => Self::Refused { code: code as i32, message: status.message },
            },
            other => Self::Lost(other.to_string()),
        }
    }
}

/// What a call answers.
pub(crate) type Call<'a, T> = BoxFuture<'a, Result<T, TaskError>>;

/// A mount of the root filesystem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RootMount {
    pub(crate) kind: String,
    pub(crate) source: String,
    pub(crate) options: Vec<String>,
}

/// Standard streams, as the shim understands them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Streams {
    pub(crate) stdin: String,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) terminal: bool,
}

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Exit {
    pub(crate) code: u32,
    /// RFC 3339.
    pub(crate) at: String,
}

/// What the engine asks of a shim. `exec` is empty for the first process.
pub(crate) trait Task: Send + Sync + std::fmt::Debug {
    fn create<'a>(
        &'a self,
        id: &'a str,
        bundle: &'a Path,
        rootfs: &'a [RootMount],
        streams: &'a Streams,
    ) -> Call<'a, u32>;
    fn start<'a>(&'a self, id: &'a str, exec: &'a str) -> Call<'a, u32>;
    fn wait<'a>(&'a self, id: &'a str, exec: &'a str) -> Call<'a, Exit>;
    fn kill<'a>(&'a self, id: &'a str, exec: &'a str, signal: u8, all: bool) -> Call<'a, ()>;
    fn exec<'a>(
        &'a self,
        id: &'a str,
        exec: &'a str,
        streams: &'a Streams,
        process: &'a str,
    ) -> Call<'a, ()>;
    fn delete<'a>(&'a self, id: &'a str, exec: &'a str) -> Call<'a, ()>;
    fn pause<'a>(&'a self, id: &'a str) -> Call<'a, ()>;
    fn resume<'a>(&'a self, id: &'a str) -> Call<'a, ()>;
    fn resize<'a>(&'a self, id: &'a str, exec: &'a str, rows: u16, columns: u16) -> Call<'a, ()>;
    fn stats<'a>(&'a self, id: &'a str) -> Call<'a, TaskStats>;
    fn pids<'a>(&'a self, id: &'a str) -> Call<'a, Vec<u32>>;
    fn update<'a>(&'a self, id: &'a str, resources: &'a str) -> Call<'a, ()>;
    fn shutdown(&self) -> Call<'_, ()>;
    /// Whether a task is alive, and its pid.
    fn state<'a>(&'a self, id: &'a str) -> Call<'a, TaskState>;
}

/// What a shim says about a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TaskState {
    pub(crate) pid: u32,
    pub(crate) phase: Phase,
}

/// Where a task is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Created,
    Running,
    Paused,
    Stopped,
}

/// A shim at the other end of a socket.
pub(crate) struct Ttrpc {
    client: TaskClient,
}

impl std::fmt::Debug for Ttrpc {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ttrpc")
    }
}

/// Long enough for a slow machine, short enough that a stuck shim is noticed.
const PATIENCE: Duration = Duration::from_secs(30);

impl Ttrpc {
    pub(crate) async fn connect(socket: &Path) -> Result<Arc<dyn Task>, TaskError> {
        let address = format!("unix://{}", socket.display());
        let client = ttrpc::asynchronous::Client::connect(&address)
            .await
            .map_err(|error| TaskError::Lost(error.to_string()))?;
        Ok(Arc::new(Self { client: TaskClient::new(client) }))
    }
}

fn soon() -> Context {
    ttrpc::context::with_duration(PATIENCE)
}

fn json(type_url: &str, value: &str) -> MessageField<Any> {
    MessageField::some(Any {
        type_url: type_url.to_owned(),
        value: value.as_bytes().to_vec(),
        ..Any::default()
    })
}

/// RFC 3339 of a protobuf timestamp; now, where it has none.
fn rfc3339(
    at: &MessageField<containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp>,
) -> String {
    at.as_ref()
        .and_then(|at| jiff::Timestamp::new(at.seconds, at.nanos).ok())
        .unwrap_or_else(jiff::Timestamp::now)
        .to_string()
}

impl Task for Ttrpc {
    fn create<'a>(
        &'a self,
        id: &'a str,
        bundle: &'a Path,
        rootfs: &'a [RootMount],
        streams: &'a Streams,
    ) -> Call<'a, u32> {
        Box::pin(async move {
            let request = api::CreateTaskRequest {
                id: id.to_owned(),
                bundle: bundle.display().to_string(),
                rootfs: rootfs
                    .iter()
                    .map(|mount| api::Mount {
                        type_: mount.kind.clone(),
                        source: mount.source.clone(),
                        options: mount.options.clone(),
                        ..api::Mount::default()
                    })
                    .collect(),
                terminal: streams.terminal,
                stdin: streams.stdin.clone(),
                stdout: streams.stdout.clone(),
                stderr: streams.stderr.clone(),
                ..api::CreateTaskRequest::default()
            };
            Ok(self.client.create(soon(), &request).await?.pid)
        })
    }

    fn start<'a>(&'a self, id: &'a str, exec: &'a str) -> Call<'a, u32> {
        Box::pin(async move {
            let request = api::StartRequest {
                id: id.to_owned(),
                exec_id: exec.to_owned(),
                ..api::StartRequest::default()
            };
            Ok(self.client.start(soon(), &request).await?.pid)
        })
    }

    fn wait<'a>(&'a self, id: &'a str, exec: &'a str) -> Call<'a, Exit> {
        Box::pin(async move {
            let request = api::WaitRequest {
                id: id.to_owned(),
                exec_id: exec.to_owned(),
                ..api::WaitRequest::default()
            };
            let answer = self.client.wait(Context::default(), &request).await?;
            Ok(Exit { code: answer.exit_status, at: rfc3339(&answer.exited_at) })
        })
    }

    fn kill<'a>(&'a self, id: &'a str, exec: &'a str, signal: u8, all: bool) -> Call<'a, ()> {
        Box::pin(async move {
            let request = api::KillRequest {
                id: id.to_owned(),
                exec_id: exec.to_owned(),
                signal: signal.into(),
                all,
                ..api::KillRequest::default()
            };
            self.client.kill(soon(), &request).await?;
            Ok(())
        })
    }

    fn exec<'a>(
        &'a self,
        id: &'a str,
        exec: &'a str,
        streams: &'a Streams,
        process: &'a str,
    ) -> Call<'a, ()> {
        Box::pin(async move {
            let request = api::ExecProcessRequest {
                id: id.to_owned(),
                exec_id: exec.to_owned(),
                terminal: streams.terminal,
                stdin: streams.stdin.clone(),
                stdout: streams.stdout.clone(),
                stderr: streams.stderr.clone(),
                // containerd's own name for a process in JSON.
                spec: json("types.containerd.io/opencontainers/runtime-spec/1/Process", process),
                ..api::ExecProcessRequest::default()
            };
            self.client.exec(soon(), &request).await?;
            Ok(())
        })
    }

    fn delete<'a>(&'a self, id: &'a str, exec: &'a str) -> Call<'a, ()> {
        Box::pin(async move {
            let request = api::DeleteRequest {
                id: id.to_owned(),
                exec_id: exec.to_owned(),
                ..api::DeleteRequest::default()
            };
            self.client.delete(soon(), &request).await?;
            Ok(())
        })
    }

    fn pause<'a>(&'a self, id: &'a str) -> Call<'a, ()> {
        Box::pin(async move {
            let request = api::PauseRequest { id: id.to_owned(), ..api::PauseRequest::default() };
            self.client.pause(soon(), &request).await?;
            Ok(())
        })
    }

    fn resume<'a>(&'a self, id: &'a str) -> Call<'a, ()> {
        Box::pin(async move {
            let request = api::ResumeRequest { id: id.to_owned(), ..api::ResumeRequest::default() };
            self.client.resume(soon(), &request).await?;
            Ok(())
        })
    }

    fn resize<'a>(&'a self, id: &'a str, exec: &'a str, rows: u16, columns: u16) -> Call<'a, ()> {
        Box::pin(async move {
            let request = api::ResizePtyRequest {
                id: id.to_owned(),
                exec_id: exec.to_owned(),
                width: columns.into(),
                height: rows.into(),
                ..api::ResizePtyRequest::default()
            };
            self.client.resize_pty(soon(), &request).await?;
            Ok(())
        })
    }

    fn stats<'a>(&'a self, id: &'a str) -> Call<'a, TaskStats> {
        Box::pin(async move {
            let request = api::StatsRequest { id: id.to_owned(), ..api::StatsRequest::default() };
            let answer = self.client.stats(soon(), &request).await?;
            let stats = answer.stats.into_option().unwrap_or_default();
            if stats.type_url != TaskStats::TYPE_URL {
                return Err(TaskError::Refused {
                    code: 12,
                    message: format!("unknown statistics {:?}", stats.type_url),
                });
            }
            serde_json::from_slice(&stats.value).map_err(|error| TaskError::Refused {
                code: 13,
                message: format!("statistics: {error}"),
            })
        })
    }

    fn pids<'a>(&'a self, id: &'a str) -> Call<'a, Vec<u32>> {
        Box::pin(async move {
            let request = api::PidsRequest { id: id.to_owned(), ..api::PidsRequest::default() };
            let answer = self.client.pids(soon(), &request).await?;
            Ok(answer.processes.iter().map(|process| process.pid).collect())
        })
    }

    fn update<'a>(&'a self, id: &'a str, resources: &'a str) -> Call<'a, ()> {
        Box::pin(async move {
            let request = api::UpdateTaskRequest {
                id: id.to_owned(),
                resources: json(
                    "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources",
                    resources,
                ),
                ..api::UpdateTaskRequest::default()
            };
            self.client.update(soon(), &request).await?;
            Ok(())
        })
    }

    fn shutdown(&self) -> Call<'_, ()> {
        Box::pin(async move {
            match self.client.shutdown(soon(), &api::ShutdownRequest::default()).await {
                // It may be gone before its answer is through.
                Ok(_)
                | Err(ttrpc::Error::RemoteClosed | ttrpc::Error::Socket(_) | ttrpc::Error::Eof) => {
                    Ok(())
                }
                Err(error) => Err(error.into()),
            }
        })
    }

    fn state<'a>(&'a self, id: &'a str) -> Call<'a, TaskState> {
        Box::pin(async move {
            let request = api::StateRequest { id: id.to_owned(), ..api::StateRequest::default() };
            let answer = self.client.state(soon(), &request).await?;
            let phase = match EnumOrUnknown::enum_value_or_default(&answer.status) {
                api::Status::CREATED => Phase::Created,
                api::Status::PAUSED | api::Status::PAUSING => Phase::Paused,
                api::Status::STOPPED => Phase::Stopped,
                _ => Phase::Running,
            };
            Ok(TaskState { pid: answer.pid, phase })
        })
    }
}

//! Events for containerd: one queue, sent in order, each until it is taken.
//!
//! ```text
//!  service ──▶ queue ──▶ Forward over ttrpc ──▶ containerd
//!                           └ containerd is away: connect again, send again
//! ```
//!
//! A restart of containerd delays events and neither loses nor reorders them.
//! Where it stays away for longer than [`QUEUE`] events, those that come after
//! are dropped and counted in the log: the tasks' own state is what counts then.

use std::time::Duration;

use containerd_shim_protos::{
    api::ForwardRequest,
    events::task,
    protobuf::{
        Message, MessageField,
        well_known_types::{any::Any, timestamp::Timestamp},
    },
    shim::event::Envelope,
    shim_async::{Client, EventsClient},
    topics,
};
use tokio::sync::{mpsc, watch};

/// Events that wait for containerd.
const QUEUE: usize = 4096;
/// One call.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between tries.
const PAUSE: Duration = Duration::from_millis(100);

/// Sends events; a clone sends to the same queue.
#[derive(Debug, Clone)]
pub(crate) struct Publisher {
    namespace: String,
    queue: mpsc::Sender<Envelope>,
    /// How many were not taken yet.
    waiting: watch::Sender<usize>,
}

/// What a shim tells about its tasks.
#[derive(Debug)]
pub(crate) enum Event {
    Create(task::TaskCreate),
    Start(task::TaskStart),
    ExecAdded(task::TaskExecAdded),
    ExecStarted(task::TaskExecStarted),
    Exit(task::TaskExit),
    Oom(task::TaskOOM),
    Paused(task::TaskPaused),
    Resumed(task::TaskResumed),
    Delete(task::TaskDelete),
}

impl Event {
    fn parts(&self) -> (&'static str, &'static str, Vec<u8>) {
        fn encoded(message: &impl Message) -> Vec<u8> {
            message.write_to_bytes().unwrap_or_default()
        }
        match self {
            Self::Create(e) => (topics::TASK_CREATE_EVENT_TOPIC, "TaskCreate", encoded(e)),
            Self::Start(e) => (topics::TASK_START_EVENT_TOPIC, "TaskStart", encoded(e)),
            Self::ExecAdded(e) => {
                (topics::TASK_EXEC_ADDED_EVENT_TOPIC, "TaskExecAdded", encoded(e))
            }
            Self::ExecStarted(e) => {
                (topics::TASK_EXEC_STARTED_EVENT_TOPIC, "TaskExecStarted", encoded(e))
            }
            Self::Exit(e) => (topics::TASK_EXIT_EVENT_TOPIC, "TaskExit", encoded(e)),
            Self::Oom(e) => (topics::TASK_OOM_EVENT_TOPIC, "TaskOOM", encoded(e)),
            Self::Paused(e) => (topics::TASK_PAUSED_EVENT_TOPIC, "TaskPaused", encoded(e)),
            Self::Resumed(e) => (topics::TASK_RESUMED_EVENT_TOPIC, "TaskResumed", encoded(e)),
            Self::Delete(e) => (topics::TASK_DELETE_EVENT_TOPIC, "TaskDelete", encoded(e)),
        }
    }
}

impl Publisher {
    /// Sends to containerd's ttrpc socket from now on.
    pub(crate) fn new(namespace: &str, address: &str) -> Self {
        let (queue, events) = mpsc::channel(QUEUE);
        let waiting = watch::Sender::new(0);
        tokio::spawn(forward(address.to_owned(), events, waiting.clone()));
        Self { namespace: namespace.to_owned(), queue, waiting }
    }

    /// Puts an event behind those before it.
    pub(crate) fn publish(&self, event: &Event) {
        let (topic, name, value) = event.parts();
        let now = jiff::Timestamp::now();
        let envelope = Envelope {
            timestamp: MessageField::some(Timestamp {
                seconds: now.as_second(),
                nanos: now.subsec_nanosecond(),
                ..Default::default()
            }),
            namespace: self.namespace.clone(),
            topic: topic.to_owned(),
            event: MessageField::some(Any {
                type_url: format!("containerd.events.{name}"),
                value,
                ..Default::default()
            }),
            ..Default::default()
        };
        self.waiting.send_modify(|waiting| *waiting += 1);
        if self.queue.try_send(envelope).is_err() {
            self.waiting.send_modify(|waiting| *waiting -= 1);
            tracing::error!("containerd takes no events: {topic} is lost");
        }
    }

    /// Waits until containerd has taken all of them.
    pub(crate) async fn delivered(&self) {
        let _ = self.waiting.subscribe().wait_for(|waiting| *waiting == 0).await;
    }
}

async fn forward(
    address: String,
    mut events: mpsc::Receiver<Envelope>,
    waiting: watch::Sender<usize>,
) {
    let address = match address.contains("://") {
        true => address,
        false => format!("unix://{address}"),
    };
    let mut connected: Option<EventsClient> = None;
    while let Some(envelope) = events.recv().await {
        let mut request = ForwardRequest::new();
        request.envelope = MessageField::some(envelope);
        loop {
            let client = match &connected {
                Some(client) => client,
                None => match Client::connect(&address).await {
                    Ok(client) => connected.insert(EventsClient::new(client)),
                    Err(error) => {
                        tracing::debug!("connect to {address}: {error}");
                        tokio::time::sleep(PAUSE).await;
                        continue;
                    }
                },
            };
            let context = ttrpc::context::with_duration(PATIENCE);
            match client.forward(context, &request).await {
                Ok(_) => break,
                // It was heard and is not wanted: again would be the same.
                Err(ttrpc::Error::RpcStatus(status))
                    if status.code() != ttrpc::Code::DEADLINE_EXCEEDED =>
                {
                    tracing::warn!("containerd refuses an event: {}", status.message());
                    break;
                }
                Err(error) => {
                    tracing::debug!("forward an event: {error}");
                    connected = None;
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
        waiting.send_modify(|waiting| *waiting -= 1);
    }
}

//! What happened: a ring of the recent past, and a queue for each listener.
//!
//! ```text
//!   publish ──► past (the newest, so many and so many bytes)
//!          └──► each listener's queue ──► stream
//!                 full: the listener is let go, its stream ends
//! ```
//!
//! Publishing never waits. A listener that does not listen does not get what it can
//! no longer have in order, and learns it by the end of its stream; how many events
//! it lost is in the log (CATALOGUE A09).

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures_util::StreamExt;
use tokio::sync::Notify;

use crate::view::{BoxStream, Event};

/// How many events are remembered (moby remembers 256), and wait for one listener.
const REMEMBERED: usize = 512;
/// How many bytes of them: each has the labels of its container, which may be a
/// megabyte.
const BYTES: usize = 8 << 20;

/// What happened, and who listens.
#[derive(Debug)]
pub(crate) struct Events(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    past: Queue,
    listeners: Vec<Arc<Listener>>,
}

/// Events in their order, no more than are allowed.
#[derive(Debug, Default)]
struct Queue {
    events: VecDeque<Arc<Event>>,
    bytes: usize,
}

impl Queue {
    fn is_full(&self) -> bool {
        self.events.len() >= REMEMBERED || self.bytes >= BYTES
    }

    fn push(&mut self, event: Arc<Event>) {
        self.bytes += size(&event);
        self.events.push_back(event);
    }

    fn pop(&mut self) -> Option<Arc<Event>> {
        let event = self.events.pop_front()?;
        self.bytes = self.bytes.saturating_sub(size(&event));
        Some(event)
    }
}

/// About what an event takes.
fn size(event: &Event) -> usize {
    let attributes = event.attributes.iter().map(|(key, value)| key.len() + value.len() + 64);
    256 + event.actor.len() + event.action.len() + attributes.sum::<usize>()
}

/// Whoever follows.
#[derive(Debug, Default)]
struct Listener {
    state: Mutex<Listening>,
    /// There is an event, or none will come.
    ready: Notify,
}

#[derive(Debug, Default)]
struct Listening {
    queue: Queue,
    /// It went, or it was let go.
    over: bool,
}

impl Listener {
    fn state(&self) -> MutexGuard<'_, Listening> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers whether it still listens.
    fn hear(&self, event: &Arc<Event>) -> bool {
        let mut state = self.state();
        if state.over {
            return false;
        }
        if state.queue.is_full() {
            let lost = state.queue.events.len() + 1;
            tracing::warn!(lost, "a listener of events does not read: it is let go");
            *state = Listening { over: true, ..Listening::default() };
        } else {
            state.queue.push(Arc::clone(event));
        }
        let listens = !state.over;
        drop(state);
        self.ready.notify_one();
        listens
    }

    async fn next(&self) -> Option<Arc<Event>> {
        loop {
            {
                let mut state = self.state();
                if let Some(event) = state.queue.pop() {
                    return Some(event);
                }
                if state.over {
                    return None;
                }
            }
            self.ready.notified().await;
        }
    }
}

/// The listener's own end: nothing is kept for it any more.
struct Ear(Arc<Listener>);

impl Drop for Ear {
    fn drop(&mut self) {
        *self.0.state() = Listening { over: true, ..Listening::default() };
    }
}

impl Events {
    pub(crate) fn new() -> Self {
        Self(Mutex::default())
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn publish(
        &self,
        kind: &str,
        action: &str,
        actor: &str,
        attributes: BTreeMap<String, String>,
    ) {
        let time_nano = i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX);
        let event = Arc::new(Event {
            kind: kind.to_owned(),
            action: action.to_owned(),
            actor: actor.to_owned(),
            attributes,
            time_nano,
        });
        // Under the lock, so that a listener gets each event once: from the past or live.
        let mut inner = self.inner();
        while inner.past.is_full() {
            inner.past.pop();
        }
        inner.past.push(Arc::clone(&event));
        inner.listeners.retain(|listener| listener.hear(&event));
    }

    pub(crate) fn stream(&self, since: Option<jiff::Timestamp>) -> BoxStream<Event> {
        let since = since.map(|since| i64::try_from(since.as_nanosecond()).unwrap_or(i64::MAX));
        let listener = Arc::new(Listener::default());
        let mut inner = self.inner();
        let replay: Vec<Arc<Event>> = inner
            .past
            .events
            .iter()
            .filter(|event| since.is_some_and(|since| event.time_nano >= since))
            .cloned()
            .collect();
        // Whoever went without an event since is forgotten here.
        inner.listeners.retain(|listener| !listener.state().over);
        inner.listeners.push(Arc::clone(&listener));
        drop(inner);
        let live = futures_util::stream::unfold(Ear(listener), |ear| async move {
            ear.0.next().await.map(|event| (event, ear))
        });
        Box::pin(futures_util::stream::iter(replay).chain(live).map(Arc::unwrap_or_clone))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn happens(events: &Events, action: &str) {
        events.publish("container", action, "x", BTreeMap::new());
    }

    #[tokio::test]
    async fn past_and_present_arrive_once_and_in_order() {
        let events = Events::new();
        happens(&events, "create");
        happens(&events, "start");
        let mut all = events.stream(Some(jiff::Timestamp::UNIX_EPOCH));
        let mut live = events.stream(None);
        happens(&events, "die");
        for action in ["create", "start", "die"] {
            assert_eq!(all.next().await.unwrap().action, action);
        }
        assert_eq!(live.next().await.unwrap().action, "die");
    }

    #[tokio::test]
    async fn a09_a_listener_that_does_not_listen_is_let_go_and_holds_nobody_up() {
        let events = Events::new();
        let mut stuck = events.stream(None);
        let mut other = events.stream(None);
        for number in 0..2 * REMEMBERED {
            happens(&events, &number.to_string());
            assert_eq!(other.next().await.unwrap().action, number.to_string());
        }
        assert!(stuck.next().await.is_none(), "not a gap that nobody sees");
        assert_eq!(events.inner().listeners.len(), 1);
        assert_eq!(events.inner().past.events.len(), REMEMBERED);
        drop(other);
        let _listened = events.stream(None);
        assert_eq!(events.inner().listeners.len(), 1, "who went is forgotten");
    }

    #[tokio::test]
    async fn a09_events_are_counted_by_their_bytes_too() {
        let events = Events::new();
        let mut stuck = events.stream(None);
        for _ in 0..64 {
            let labels = BTreeMap::from([("label".to_owned(), "x".repeat(1 << 20))]);
            events.publish("container", "start", "x", labels);
        }
        assert!(stuck.next().await.is_none());
        assert!(events.inner().past.bytes < 2 * BYTES);
    }
}

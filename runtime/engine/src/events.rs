//! What happened: a ring of the recent past, and a broadcast of what comes.
//!
//! Publishing never waits: a listener that is too slow loses the oldest events,
//! not the engine its pace.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Mutex, PoisonError},
};

use futures_util::StreamExt;
use tokio::sync::broadcast;

use crate::view::{BoxStream, Event};

/// How many events are remembered (moby remembers 256).
const REMEMBERED: usize = 512;

#[derive(Debug)]
pub(crate) struct Events {
    past: Mutex<VecDeque<Event>>,
    live: broadcast::Sender<Event>,
}

impl Events {
    pub(crate) fn new() -> Self {
        Self { past: Mutex::default(), live: broadcast::channel(REMEMBERED).0 }
    }

    pub(crate) fn publish(
        &self,
        kind: &str,
        action: &str,
        actor: &str,
        attributes: BTreeMap<String, String>,
    ) {
        let time_nano = i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX);
        let event = Event {
            kind: kind.to_owned(),
            action: action.to_owned(),
            actor: actor.to_owned(),
            attributes,
            time_nano,
        };
        // Under the lock, so that a subscriber sees each event once: in its past or live.
        let mut past = self.past.lock().unwrap_or_else(PoisonError::into_inner);
        if past.len() == REMEMBERED {
            past.pop_front();
        }
        past.push_back(event.clone());
        // Nobody listening is no failure.
        let _ = self.live.send(event);
    }

    pub(crate) fn stream(&self, since: Option<jiff::Timestamp>) -> BoxStream<Event> {
        let past = self.past.lock().unwrap_or_else(PoisonError::into_inner);
        let live = self.live.subscribe();
        let since = since.map(|since| i64::try_from(since.as_nanosecond()).unwrap_or(i64::MAX));
        let replay: Vec<Event> = past
            .iter()
            .filter(|event| since.is_some_and(|since| event.time_nano >= since))
            .cloned()
            .collect();
        drop(past);
        let live = futures_util::stream::unfold(live, |mut live| async move {
            loop {
                match live.recv().await {
                    Ok(event) => return Some((event, live)),
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => return None,
                }
            }
        });
        Box::pin(futures_util::stream::iter(replay).chain(live))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn past_and_present_arrive_once_and_in_order() {
        let events = Events::new();
        for action in ["create", "start"] {
            events.publish("container", action, "x", BTreeMap::new());
        }
        let mut all = events.stream(Some(jiff::Timestamp::UNIX_EPOCH));
        let mut live = events.stream(None);
        events.publish("container", "die", "x", BTreeMap::new());
        for action in ["create", "start", "die"] {
            assert_eq!(all.next().await.unwrap().action, action);
        }
        assert_eq!(live.next().await.unwrap().action, "die");
    }
}

//! What is not as it should be and keeps nothing from working.
//!
//! Housekeeping never ends the engine: what fails is logged, shown by `info`,
//! and tried again every [`AGAIN`].

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use crate::{engine::Engine, facades::blocking, view::Status};

/// When housekeeping that failed is tried again.
const AGAIN: Duration = Duration::from_secs(60);
/// How many sentences `info` shows.
const MOST: usize = 50;

/// Sentences for people, by what they are about.
#[derive(Debug, Default)]
pub(crate) struct Notices(Mutex<BTreeMap<&'static str, Vec<String>>>);

impl Notices {
    /// Replaces what is said about a topic; what is new is logged.
    pub(crate) fn set(&self, topic: &'static str, sentences: Vec<String>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = all.remove(topic).unwrap_or_default();
        for sentence in sentences.iter().filter(|sentence| !before.contains(sentence)) {
            tracing::warn!("{sentence}");
        }
        all.insert(topic, sentences);
    }

    /// Says one thing more about a topic.
    pub(crate) fn add(&self, topic: &'static str, sentence: String) {
        tracing::warn!("{sentence}");
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let said = all.entry(topic).or_default();
        if !said.contains(&sentence) && said.len() <= MOST {
            said.push(sentence);
        }
    }

    /// All sentences, as `info` shows them.
    pub(crate) fn all(&self) -> Vec<String> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = all.values().map(Vec::len).sum::<usize>();
        let mut shown: Vec<String> =
            all.values().flatten().take(MOST).map(|text| format!("WARNING: {text}")).collect();
        if count > MOST {
            shown.push(format!("WARNING: {} more of this kind are in the log", count - MOST));
        }
        shown
    }
}

impl Engine {
    /// Tries again, for as long as the engine lives, what could not be removed.
    pub(crate) fn care(&self) {
        let engine = Arc::downgrade(&self.0);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(AGAIN).await;
                let Some(engine) = engine.upgrade() else { return };
                Self(engine).tidy().await;
            }
        });
    }

    /// Deletes what was removed and is still there, and finishes removals.
    async fn tidy(&self) {
        let engine = self.clone();
        let done = blocking(move || {
            let left = engine.0.store.sweep_removed().iter().map(ToString::to_string).collect();
            engine.0.notices.set("store", left);
            engine.0.notices.set("removed volumes", engine.0.volumes.finish_removals());
        });
        if let Err(error) = done.await {
            tracing::warn!(%error, "housekeeping");
        }
        for container in self.all() {
            if !matches!(container.status(), Status::Removing | Status::Dead) {
                continue;
            }
            let _op = container.op.lock().await;
            if matches!(container.status(), Status::Removing | Status::Dead)
                && self.find(container.id.as_str()).is_ok()
                && let Err(error) = self.remove_locked(&container, false).await
            {
                tracing::warn!(%error, container = container.id.short(), "finish removal");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notices_are_replaced_by_topic_and_bounded() {
        let notices = Notices::default();
        notices.set("a", vec!["one".into(), "two".into()]);
        notices.set("b", vec!["three".into()]);
        assert_eq!(notices.all(), ["WARNING: one", "WARNING: two", "WARNING: three"]);
        notices.set("a", Vec::new());
        assert_eq!(notices.all(), ["WARNING: three"]);
        notices.set("a", vec!["x".into(); 1000]);
        assert_eq!(notices.all().len(), MOST + 1);
    }
}

//! Telling callers what happens, in Docker's words.

use std::time::{Duration, Instant};

use knarr_model::Digest;

use crate::{Progress, ProgressSender};

/// Bars move ten times a second at most.
const PACE: Duration = Duration::from_millis(100);

/// Where progress goes; nowhere, perhaps.
#[derive(Debug, Clone)]
pub(crate) struct Report(pub(crate) Option<ProgressSender>);

impl Report {
    /// A line that must arrive. A caller that went away does not matter.
    pub(crate) async fn say(&self, id: impl Into<String>, status: impl Into<String>) {
        if let Some(sender) = &self.0 {
            let line = Progress { id: id.into(), status: status.into(), detail: None };
            let _ = sender.send(line).await;
        }
    }

    /// A bar of one layer.
    pub(crate) fn bar(&self, layer: &Digest, total: u64) -> Bar {
        Bar { report: self.clone(), id: short(layer), total, last: None }
    }
}

/// The first twelve digits, as Docker shows layers.
pub(crate) fn short(digest: &Digest) -> String {
    digest.hex()[..12].to_owned()
}

/// One layer's bar.
#[derive(Debug)]
pub(crate) struct Bar {
    report: Report,
    id: String,
    total: u64,
    last: Option<Instant>,
}

impl Bar {
    /// `Downloading`; dropped where the channel is full or the last one was just now.
    pub(crate) fn downloading(&mut self, bytes: u64) {
        let now = Instant::now();
        if self.last.is_some_and(|last| now.duration_since(last) < PACE) {
            return;
        }
        self.last = Some(now);
        self.step("Downloading", bytes);
    }

    /// `Extracting`, once: unpacking goes along with downloading.
    pub(crate) fn extracting(&self) {
        self.step("Extracting", self.total);
    }

    fn step(&self, status: &str, bytes: u64) {
        if let Some(sender) = &self.report.0 {
            let detail = Some((bytes, self.total));
            let line = Progress { id: self.id.clone(), status: status.to_owned(), detail };
            let _ = sender.try_send(line);
        }
    }
}

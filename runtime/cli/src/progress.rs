//! What a pull or a load says while it works: a bar a layer on a terminal,
//! plain lines elsewhere.

use std::collections::HashMap;

use anyhow::{Result, bail};
use futures_util::{Stream, StreamExt as _};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use knarr_docker::JsonMessage;

use crate::say::cell_for_terminal;

/// Shows a stream of messages to its end.
///
/// # Errors
/// Where the stream breaks or says that the operation failed.
pub async fn show(
    mut messages: impl Stream<Item = knarr_client::Result<JsonMessage>> + Unpin,
    quiet: bool,
    to_stderr: bool,
) -> Result<()> {
    let terminal = if to_stderr {
        crate::terminal::stdin_is_terminal()
    } else {
        crate::terminal::stdout_is_terminal()
    };
    let mut bars = (terminal && !quiet).then(Bars::default);
    while let Some(message) = messages.next().await {
        let message = message?;
        if let Some(error) = message.error_detail {
            bail!("{}", error.message);
        }
        if !message.error.is_empty() {
            bail!("{}", message.error);
        }
        if quiet {
            continue;
        }
        let shown = bars.as_mut().is_some_and(|bars| bars.update(&message));
        if !shown {
            plain(&message, to_stderr);
        }
    }
    Ok(())
}

/// One line a change of state; the numbers in between are for terminals.
fn plain(message: &JsonMessage, to_stderr: bool) {
    let mut line = String::new();
    if !message.stream.is_empty() {
        line.push_str(&message.stream);
    } else if !message.status.is_empty() {
        let counting =
            message.progress_detail.as_ref().is_some_and(|detail| detail.current.is_some());
        if counting {
            return;
        }
        if !message.id.is_empty() {
            line = format!("{}: ", message.id);
        }
        line.push_str(&message.status);
        line.push('\n');
    }
    if to_stderr {
        err!("{line}");
    } else {
        out!("{line}");
    }
}

/// Bars at once: more layers than an image may have.
const BARS: usize = 256;

#[derive(Default)]
struct Bars {
    all: MultiProgress,
    by_id: HashMap<String, ProgressBar>,
}

impl Bars {
    /// Shows a message on the bar of its id; false where it has none, and can have none.
    fn update(&mut self, message: &JsonMessage) -> bool {
        let room = self.by_id.len() < BARS || self.by_id.contains_key(&message.id);
        if message.id.is_empty() || !room {
            return false;
        }
        let bar = self.by_id.entry(message.id.clone()).or_insert_with(|| {
            let bar = self.all.add(ProgressBar::new(0));
            bar.set_style(words());
            bar.set_prefix(cell_for_terminal(&message.id).into_owned());
            bar
        });
        bar.set_message(cell_for_terminal(&message.status).into_owned());
        match message.progress_detail.as_ref().and_then(|detail| detail.current.zip(detail.total)) {
            Some((current, total)) if total > 0 => {
                if bar.length() != Some(total as u64) {
                    bar.set_length(total as u64);
                    bar.set_style(numbers());
                }
                bar.set_position(current as u64);
            }
            _ => bar.set_style(words()),
        }
        if matches!(message.status.as_str(), "Pull complete" | "Already exists") {
            bar.finish();
        } else {
            bar.tick();
        }
        true
    }
}

fn words() -> ProgressStyle {
    ProgressStyle::with_template("{prefix}: {msg}").expect("a valid template")
}

fn numbers() -> ProgressStyle {
    ProgressStyle::with_template("{prefix}: {msg:<12} [{bar:50}] {bytes}/{total_bytes}")
        .expect("a valid template")
        .progress_chars("=> ")
}

#[cfg(test)]
mod tests {
    use indicatif::ProgressDrawTarget;

    use super::*;

    #[test]
    fn a13_there_are_so_many_bars_and_no_more() {
        let hidden = MultiProgress::with_draw_target(ProgressDrawTarget::hidden());
        let mut bars = Bars { all: hidden, by_id: HashMap::new() };
        let message = |id: &str| JsonMessage {
            status: "Waiting".into(),
            id: id.into(),
            ..JsonMessage::default()
        };
        for number in 0..10 * BARS {
            let shown = bars.update(&message(&number.to_string()));
            assert_eq!(shown, number < BARS, "{number}");
        }
        assert_eq!(bars.by_id.len(), BARS);
        assert!(bars.update(&message("0")), "it has one");
        assert!(!Bars::default().update(&message("")), "a message about nothing has none");
    }
}

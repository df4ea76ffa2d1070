//! Pulls and loads: JSON messages while they go.
//!
//! A failure before the first message is an HTTP error; afterwards the status
//! is out, and the failure is the stream's last message. When the client goes
//! away the work is broken off.

use std::{future::Future, pin::Pin};

use axum::response::Response;
use futures_util::StreamExt;
use knarr_docker::{ErrorDetail, JsonMessage, ProgressDetail};
use knarr_image::Progress;
use tokio::{sync::mpsc::Receiver, task::JoinHandle};

use crate::{
    error::{ApiError, Result},
    streams,
};

/// Runs `work` and tells what it says; with its result the last lines.
pub(crate) async fn respond(
    mut receiver: Receiver<Progress>,
    work: impl Future<Output = Result<Vec<String>>> + Send + 'static,
    quiet: bool,
) -> Result<Response> {
    let mut task = Task(tokio::spawn(work));
    let first = match receiver.recv().await {
        Some(first) => Some(message(first)),
        // Every sender is gone: the work is over.
        None => match task.outcome().await {
            Ok(lines) => return Ok(streams::json_lines(last(lines))),
            Err(error) => return Err(error),
        },
    };
    let going = futures_util::stream::unfold(Some((task, receiver)), |state| async move {
        let (mut task, mut receiver) = state?;
        if let Some(progress) = receiver.recv().await {
            return Some((vec![message(progress)], Some((task, receiver))));
        }
        let lines = match task.outcome().await {
            Ok(lines) => lines.into_iter().map(text).collect(),
            Err(error) => vec![failure(error)],
        };
        Some((lines, None))
    });
    let messages = futures_util::stream::iter(first)
        .chain(going.flat_map(futures_util::stream::iter))
        .filter(move |message| {
            let told =
                *message != JsonMessage::default() && (!quiet || message.progress_detail.is_none());
            std::future::ready(told)
        });
    Ok(streams::json_lines(messages))
}

/// Work that ends when nobody waits for it any more.
struct Task(JoinHandle<Result<Vec<String>>>);

impl Task {
    async fn outcome(&mut self) -> Result<Vec<String>> {
        match Pin::new(&mut self.0).await {
            Ok(outcome) => outcome,
            Err(error) => Err(ApiError::new(
                http::StatusCode::INTERNAL_SERVER_ERROR,
                format!("worker failed: {error}"),
            )),
        }
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn last(lines: Vec<String>) -> impl futures_util::Stream<Item = JsonMessage> + Send {
    futures_util::stream::iter(lines.into_iter().map(text))
}

fn text(line: String) -> JsonMessage {
    JsonMessage { stream: line, ..JsonMessage::default() }
}

fn failure(error: ApiError) -> JsonMessage {
    JsonMessage {
        error: error.message.clone(),
        error_detail: Some(ErrorDetail { code: 0, message: error.message }),
        ..JsonMessage::default()
    }
}

fn message(progress: Progress) -> JsonMessage {
    let detail = match progress.detail {
        Some((current, total)) => Some(ProgressDetail {
            current: i64::try_from(current).ok(),
            total: i64::try_from(total).ok().filter(|total| *total > 0),
            units: String::new(),
        }),
        None if progress.id.is_empty() => None,
        None => Some(ProgressDetail::default()),
    };
    JsonMessage {
        status: progress.status,
        id: progress.id,
        progress_detail: detail,
        ..JsonMessage::default()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use tokio::sync::mpsc;

    use super::*;

    async fn lines(response: Response) -> Vec<serde_json::Value> {
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let text = String::from_utf8(body.to_vec()).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[tokio::test]
    async fn an_early_failure_is_an_http_error() {
        let (sender, receiver) = mpsc::channel(1);
        let work = async move {
            drop(sender);
            Err(ApiError::not_found("nope"))
        };
        assert_eq!(respond(receiver, work, false).await.unwrap_err().status.as_u16(), 404);
    }

    #[tokio::test]
    async fn a_late_failure_is_the_last_message() {
        let (sender, receiver) = mpsc::channel(8);
        let work = async move {
            let status = "Downloading".to_owned();
            let progress = Progress { id: "abc".into(), status, detail: Some((3, 4)) };
            sender.send(progress).await.unwrap();
            drop(sender);
            Err(ApiError::invalid("broken"))
        };
        let told = lines(respond(receiver, work, false).await.unwrap()).await;
        assert_eq!(
            told[0],
            serde_json::json!({"status": "Downloading", "id": "abc", "progressDetail": {"current": 3, "total": 4}})
        );
        assert_eq!(
            told[1],
            serde_json::json!({"errorDetail": {"message": "broken"}, "error": "broken"})
        );
    }

    #[tokio::test]
    async fn p05_a_client_that_goes_breaks_the_work_off() {
        let (sender, receiver) = mpsc::channel(8);
        let (alive, mut gone) = mpsc::channel::<()>(1);
        let work = async move {
            let _alive = alive;
            sender.send(Progress::default()).await.unwrap();
            std::future::pending().await
        };
        drop(respond(receiver, work, false).await.unwrap());
        assert_eq!(gone.recv().await, None);
    }
}

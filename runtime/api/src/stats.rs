//! `GET /containers/{id}/stats`.

use std::time::Duration;

use axum::{
    extract::{Path, State},
    response::Response,
};
use knarr_engine::StatsSample;
use tokio::time::{Instant, sleep_until};

use crate::{Api, error::Result, gate::json, query::Query, render, streams};

/// Docker's own rhythm.
const EVERY: Duration = Duration::from_secs(1);

/// One sample, or one every second until the container or the client is gone.
pub(crate) async fn stats(
    State(api): State<Api>,
    Path(id): Path<String>,
    query: Query,
) -> Result<Response> {
    // What the user wrote may come to name another container while we look.
    let id = api.engine.inspect(&id)?.id.to_string();
    let first = api.engine.stats(&id).await?;
    let stream = query.flag_or("stream", true);
    if !stream && (query.flag("one-shot") || first.task.is_none()) {
        return Ok(json(&render::stats(&first, None)));
    }
    if !stream {
        // A rate needs two.
        tokio::time::sleep(EVERY).await;
        let second = api.engine.stats(&id).await?;
        return Ok(json(&render::stats(&second, Some(&first))));
    }
    let samples = futures_util::stream::unfold(Samples { api, id, next: Next::First(first) }, step);
    Ok(streams::json_lines(samples))
}

struct Samples {
    api: Api,
    id: String,
    next: Next,
}

enum Next {
    First(StatsSample),
    After(StatsSample, Instant),
}

async fn step(samples: Samples) -> Option<(knarr_docker::Stats, Samples)> {
    let Samples { api, id, next } = samples;
    let (sample, previous) = match next {
        Next::First(sample) => (sample, None),
        Next::After(previous, at) => {
            sleep_until(at).await;
            // Removed: the stream ends.
            (api.engine.stats(&id).await.ok()?, Some(previous))
        }
    };
    let line = render::stats(&sample, previous.as_ref());
    let next = Next::After(sample, Instant::now() + EVERY);
    Some((line, Samples { api, id, next }))
}

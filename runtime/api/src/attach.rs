//! `POST /containers/{id}/attach`.

use axum::{
    extract::{Path, Request, State},
    response::Response,
};
use hyper::upgrade::OnUpgrade;
use knarr_engine::AttachOptions;

use crate::{Api, error::Result, query::Query, streams};

/// Attaches to the container's first process.
pub(crate) async fn container(
    State(api): State<Api>,
    Path(id): Path<String>,
    query: Query,
    request: Request,
) -> Result<Response> {
    let options = AttachOptions {
        stdin: query.flag("stdin"),
        stdout: query.flag("stdout"),
        stderr: query.flag("stderr"),
        logs: query.flag("logs"),
        stream: query.flag("stream"),
        detach_keys: query.text("detachKeys").map(str::to_owned),
    };
    let (mut parts, body) = request.into_parts();
    let upgrade = parts.extensions.remove::<OnUpgrade>();
    let attached = api.engine.attach(&id, options).await?;
    // The client may start the container as soon as it has its answer: by then
    // the stream is there.
    let stream = std::future::ready(attached.stream);
    Ok(streams::hijack(&parts.headers, upgrade, body, stream, attached.tty).await)
}

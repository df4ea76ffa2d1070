//! Execs: a further process in a container.

use axum::{
    body::Body,
    extract::{Path, Request, State},
    response::{IntoResponse, Response},
};
use http::{HeaderMap, StatusCode};
use hyper::upgrade::OnUpgrade;
use knarr_docker::{
    ExecCreateRequest, ExecCreateResponse, ExecInspect, ExecProcessConfig, ExecStartRequest,
    StreamKind,
};
use knarr_engine::{Duplex, ExecSpec, ExecStart};
use tokio::io::AsyncWriteExt;

use crate::{
    Api,
    containers::terminal_size,
    error::{ApiError, Result},
    gate::{json, json_with},
    query::{self, Query},
    request, streams,
};

/// `POST /containers/{id}/exec`.
pub(crate) async fn create(
    State(api): State<Api>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response> {
    let asked: ExecCreateRequest = query::json(&headers, body).await?;
    let cmd = asked.cmd.map(|words| words.0).unwrap_or_default();
    if cmd.is_empty() {
        return Err(ApiError::invalid("no exec command specified"));
    }
    let spec = ExecSpec {
        cmd,
        env: request::environment(asked.env.as_deref().unwrap_or_default())?,
        user: Some(asked.user).filter(|user| !user.is_empty()),
        working_dir: request::working_dir(&asked.working_dir)?,
        tty: asked.tty,
        stdin: asked.attach_stdin,
        stdout: asked.attach_stdout,
        stderr: asked.attach_stderr,
        privileged: asked.privileged,
        detach_keys: Some(asked.detach_keys).filter(|keys| !keys.is_empty()),
    };
    let id = api.engine.exec_create(&id, spec).await?;
    Ok(json_with(StatusCode::CREATED, &ExecCreateResponse { id: id.to_string() }))
}

/// `POST /exec/{id}/start`.
///
/// It starts when the client is attached; a failure is told on the stream then,
/// as Docker does: its client reads the exit code (126, 127) from inspect.
pub(crate) async fn start(
    State(api): State<Api>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response> {
    let (mut parts, body) = request.into_parts();
    let upgrade = parts.extensions.remove::<OnUpgrade>();
    let asked: ExecStartRequest =
        query::optional_json(&parts.headers, body).await?.unwrap_or_default();
    let exec = api.engine.exec_inspect(&id)?;
    let size = asked.console_size.filter(|size| *size != [0, 0]);
    let options =
        ExecStart { detach: asked.detach, size: size.map(|[rows, columns]| (rows, columns)) };
    if asked.detach {
        api.engine.exec_start(&id, options).await?;
        return Ok(StatusCode::OK.into_response());
    }
    let tty = exec.spec.tty;
    let stream = async move {
        match api.engine.exec_start(&id, options).await {
            Ok(Some(attached)) => attached.stream,
            Ok(None) => told("", true).await,
            Err(error) => told(&format!("{error}\r\n"), tty).await,
        }
    };
    Ok(streams::hijack(&parts.headers, upgrade, Body::empty(), stream, tty).await)
}

/// A stream that says one thing and ends.
async fn told(message: &str, tty: bool) -> Box<dyn Duplex> {
    let (ours, mut theirs) = tokio::io::duplex(message.len() + 8);
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    if !tty {
        // The pipe is as long as what is written: it cannot block.
        let _ = theirs.write_all(&StreamKind::Stdout.header(length)).await;
    }
    let _ = theirs.write_all(message.as_bytes()).await;
    Box::new(ours)
}

/// `POST /exec/{id}/resize`.
pub(crate) async fn resize(
    State(api): State<Api>,
    Path(id): Path<String>,
    query: Query,
) -> Result<StatusCode> {
    let (rows, columns) = terminal_size(&query)?;
    api.engine.exec_resize(&id, rows, columns).await?;
    Ok(StatusCode::OK)
}

/// `GET /exec/{id}/json`.
pub(crate) async fn inspect(State(api): State<Api>, Path(id): Path<String>) -> Result<Response> {
    let view = api.engine.exec_inspect(&id)?;
    let mut words = view.spec.cmd.into_iter();
    Ok(json(&ExecInspect {
        id: view.id.to_string(),
        running: view.running,
        exit_code: view.exit_code.map(i64::from),
        process_config: ExecProcessConfig {
            tty: view.spec.tty,
            entrypoint: words.next().unwrap_or_default(),
            arguments: words.collect(),
            privileged: view.spec.privileged,
            user: view.spec.user.unwrap_or_default(),
        },
        open_stdin: view.spec.stdin,
        open_stderr: view.spec.stderr,
        open_stdout: view.spec.stdout,
        can_remove: view.exit_code.is_some(),
        container_id: view.container.to_string(),
        detach_keys: view.spec.detach_keys.unwrap_or_default(),
        pid: view.pid.into(),
    }))
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    #[tokio::test]
    async fn a_failure_is_told_on_the_stream() {
        let mut output = Vec::new();
        told("no such file\r\n", false).await.read_to_end(&mut output).await.unwrap();
        assert_eq!(output, b"\x01\0\0\0\0\0\0\x0eno such file\r\n");
        let mut raw = Vec::new();
        told("x", true).await.read_to_end(&mut raw).await.unwrap();
        assert_eq!(raw, b"x");
    }
}

//! The verbs of one container.

use std::collections::BTreeSet;

use axum::{
    body::Body,
    extract::{Path, State},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use knarr_docker::{
    ContainerCreateRequest, ContainerCreateResponse, ContainersPruned, TopResponse, WaitError,
    WaitResponse,
};
use knarr_engine::{RemoveOptions, StopOptions, WaitCondition};
use knarr_model::{MountSpec, Signal};

use crate::{
    Api,
    error::{ApiError, Result},
    filters::Filters,
    gate::{json, json_with},
    query::{self, Query},
    render, request,
};

/// `POST /containers/create`.
pub(crate) async fn create(
    State(api): State<Api>,
    query: Query,
    headers: HeaderMap,
    body: Body,
) -> Result<Response> {
    let asked: ContainerCreateRequest = query::json(&headers, body).await?;
    let mut parsed = request::parse(asked, query.text("platform"))?;
    let mounts = &mut parsed.spec.mounts;
    let mut taken: BTreeSet<_> = mounts.iter().map(|mount| mount.target.clone()).collect();
    for from in &parsed.volumes_from {
        let others = volumes_from(&api, from)?;
        mounts.extend(others.into_iter().filter(|mount| taken.insert(mount.target.clone())));
        request::few("mounts", mounts.len())?;
    }
    let image = parsed.spec.image.clone();
    let created = match api.engine.create(query.text("name"), parsed.spec).await {
        Ok(created) => created,
        Err(error) => {
            let mut error = ApiError::from(error);
            // A client takes 404 here for a missing image, and pulls it: what else is
            // missing (a network, a container of a mode) is a bad request.
            if error.status == StatusCode::NOT_FOUND
                && api.engine.ask_images(move |images| images.resolve(&image)).await?.is_ok()
            {
                error.status = StatusCode::BAD_REQUEST;
            }
            return Err(error);
        }
    };
    let mut warnings = parsed.warnings;
    warnings.extend(created.warnings);
    let answer = ContainerCreateResponse { id: created.id.to_string(), warnings };
    Ok(json_with(StatusCode::CREATED, &answer))
}

/// `name[:ro|rw]`: the volumes and binds of another container.
fn volumes_from(api: &Api, text: &str) -> Result<Vec<MountSpec>> {
    let (key, read_only) = match text.rsplit_once(':') {
        Some((key, "ro")) => (key, true),
        Some((key, "rw" | "z" | "Z")) => (key, false),
        Some((_, mode)) => {
            return Err(ApiError::invalid(format!("invalid mode for volumes-from: {mode}")));
        }
        None => (text, false),
    };
    let mut mounts = api.engine.shared_mounts(key)?;
    for mount in &mut mounts {
        mount.read_only |= read_only;
    }
    Ok(mounts)
}

/// `GET /containers/{id}/json`.
pub(crate) async fn inspect(
    State(api): State<Api>,
    Path(id): Path<String>,
    query: Query,
) -> Result<Response> {
    let view = api.engine.inspect(&id)?;
    let mut inspect = render::container(&view);
    // The image's row knows why it was taken for what it is; it may be gone.
    let image = view.image_id;
    if let (Some(knarr), Ok(image)) =
        (&mut inspect.knarr, api.engine.ask_images(move |images| images.get(&image)).await?)
    {
        knarr.reason = image.row.reason;
    }
    if query.flag("size") {
        let (writable, all) = api.engine.size(&id).await?;
        inspect.size_rw = Some(writable as i64);
        inspect.size_root_fs = Some(all as i64);
    }
    Ok(json(&inspect))
}

/// `POST /containers/{id}/start`.
pub(crate) async fn start(State(api): State<Api>, Path(id): Path<String>) -> Result<StatusCode> {
    api.engine.start(&id).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn stop_options(query: &Query) -> Result<StopOptions> {
    Ok(StopOptions { signal: signal(query)?, timeout: query.number("t")? })
}

fn signal(query: &Query) -> Result<Option<Signal>> {
    let parse = |text: &str| {
        text.parse().map_err(|_| {
            ApiError::invalid(format!("invalid signal: {}", crate::error::short(text)))
        })
    };
    query.text("signal").map(parse).transpose()
}

/// `POST /containers/{id}/stop`.
pub(crate) async fn stop(
    State(api): State<Api>,
    Path(id): Path<String>,
    query: Query,
) -> Result<StatusCode> {
    api.engine.stop(&id, stop_options(&query)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `POST /containers/{id}/restart`.
pub(crate) async fn restart(
    State(api): State<Api>,
    Path(id): Path<String>,
    query: Query,
) -> Result<StatusCode> {
    api.engine.restart(&id, stop_options(&query)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `POST /containers/{id}/kill`.
pub(crate) async fn kill(
    State(api): State<Api>,
    Path(id): Path<String>,
    query: Query,
) -> Result<StatusCode> {
    api.engine.kill(&id, signal(&query)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `POST /containers/{id}/pause`.
pub(crate) async fn pause(State(api): State<Api>, Path(id): Path<String>) -> Result<StatusCode> {
    api.engine.pause(&id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `POST /containers/{id}/unpause`.
pub(crate) async fn unpause(State(api): State<Api>, Path(id): Path<String>) -> Result<StatusCode> {
    api.engine.unpause(&id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `POST /containers/{id}/rename`.
pub(crate) async fn rename(
    State(api): State<Api>,
    Path(id): Path<String>,
    query: Query,
) -> Result<StatusCode> {
    let name = query
        .text("name")
        .ok_or_else(|| ApiError::invalid("Neither old nor new names may be empty"))?;
    api.engine.rename(&id, name.strip_prefix('/').unwrap_or(name)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Rows and columns of a terminal (`h`, `w`).
pub(crate) fn terminal_size(query: &Query) -> Result<(u16, u16)> {
    let side = |name: &str| {
        let number = query.number(name)?.unwrap_or_default();
        u16::try_from(number)
            .map_err(|_| ApiError::invalid(format!("invalid terminal size {name}={number}")))
    };
    Ok((side("h")?, side("w")?))
}

/// `POST /containers/{id}/resize`.
pub(crate) async fn resize(
    State(api): State<Api>,
    Path(id): Path<String>,
    query: Query,
) -> Result<StatusCode> {
    let (rows, columns) = terminal_size(&query)?;
    api.engine.resize(&id, rows, columns).await?;
    Ok(StatusCode::OK)
}

/// `POST /containers/{id}/update`.
pub(crate) async fn update(
    State(api): State<Api>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response> {
    let host = query::json(&headers, body).await?;
    let (update, mut warnings) = request::parse_update(&host)?;
    warnings.extend(api.engine.update(&id, update).await?);
    Ok(json(&serde_json::json!({ "Warnings": warnings })))
}

/// `GET /containers/{id}/top`.
pub(crate) async fn top(
    State(api): State<Api>,
    Path(id): Path<String>,
    query: Query,
) -> Result<Response> {
    let top = api.engine.top(&id, query.text("ps_args").unwrap_or("-ef")).await?;
    Ok(json(&TopResponse { titles: top.titles, processes: top.processes }))
}

/// `POST /containers/{id}/wait`: the headers go out when the wait has begun, so
/// that a client may start the container knowing that it misses nothing.
pub(crate) async fn wait(
    State(api): State<Api>,
    Path(id): Path<String>,
    query: Query,
) -> Result<Response> {
    let condition = match query.text("condition") {
        None | Some("not-running") => WaitCondition::NotRunning,
        Some("next-exit") => WaitCondition::NextExit,
        Some("removed") => WaitCondition::Removed,
        Some(other) => {
            return Err(ApiError::invalid(format!(
                "invalid condition: {:?}",
                crate::error::short(other)
            )));
        }
    };
    let wait = api.engine.wait(&id, condition)?;
    let answer = async move {
        let outcome = wait.outcome().await;
        let answer = WaitResponse {
            status_code: outcome.code.into(),
            error: outcome.error.map(|message| WaitError { message }),
        };
        let mut line = serde_json::to_vec(&answer).unwrap_or_default();
        line.push(b'\n');
        Ok::<_, std::convert::Infallible>(Bytes::from(line))
    };
    let body = Body::from_stream(futures_util::stream::once(answer));
    Ok(([(header::CONTENT_TYPE, "application/json")], body).into_response())
}

/// `DELETE /containers/{id}`.
pub(crate) async fn remove(
    State(api): State<Api>,
    Path(id): Path<String>,
    query: Query,
) -> Result<StatusCode> {
    if query.flag("link") {
        return Err(ApiError::not_supported("removing a link"));
    }
    let options = RemoveOptions { force: query.flag("force"), volumes: query.flag("v") };
    api.engine.remove(&id, options).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `POST /containers/prune`.
pub(crate) async fn prune(State(api): State<Api>, query: Query) -> Result<Response> {
    let filters = Filters::parse(query.text("filters"), &["until", "label", "label!"])?;
    let until = crate::events::until_filter(&filters)?;
    let wanted = move |view: &knarr_engine::ContainerView| {
        let old = until.is_none_or(|until| render::seconds_of(&view.created) < until.as_second());
        old && filters.labels(|key| view.spec.labels.get(key).map(String::as_str))
    };
    let pruned = api.engine.prune_containers(wanted).await?;
    Ok(json(&ContainersPruned {
        containers_deleted: Some(pruned.removed).filter(|ids| !ids.is_empty()),
        space_reclaimed: pruned.reclaimed,
    }))
}

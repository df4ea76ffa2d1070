//! Volumes.

use axum::{
    body::Body,
    extract::{Path, State},
    response::Response,
};
use http::{HeaderMap, StatusCode};
use knarr_docker::{VolumeCreateRequest, VolumeList, VolumesPruned};
use knarr_volume::{CreateVolume, Volume};

use crate::{
    Api,
    error::Result,
    filters::{Filters, name_matches},
    gate::{json, json_with},
    query::{self, Query},
};

/// `GET /volumes`.
pub(crate) async fn list(State(api): State<Api>, query: Query) -> Result<Response> {
    let known = ["dangling", "driver", "label", "label!", "name"];
    let filters = Filters::parse(query.text("filters"), &known)?;
    let dangling = filters.truth("dangling")?;
    let rows = api.engine.ask_volumes(move |volumes| -> Result<_> {
        let mut rows = Vec::new();
        for volume in volumes.list()? {
            let name = volume.name.as_str();
            let fits = filters.any("name", |pattern| name_matches(pattern, name))
                && filters.is("driver", knarr_volume::DRIVER)
                && filters.labels(|key| volume.labels.get(key).map(String::as_str));
            if !fits {
                continue;
            }
            if let Some(want) = dangling
                && want != volumes.users(name)?.is_empty()
            {
                continue;
            }
            rows.push(volume_row(&volume));
        }
        Ok(rows)
    });
    Ok(json(&VolumeList { volumes: rows.await??, warnings: None }))
}

pub(crate) fn volume_row(volume: &Volume) -> knarr_docker::Volume {
    knarr_docker::Volume {
        created_at: volume.created.clone(),
        driver: knarr_volume::DRIVER.into(),
        labels: Some(volume.labels.clone()).filter(|labels| !labels.is_empty()),
        mountpoint: volume.mountpoint.display().to_string(),
        name: volume.name.to_string(),
        options: Some(volume.options.clone()).filter(|options| !options.is_empty()),
        scope: "local".into(),
        ..knarr_docker::Volume::default()
    }
}

/// `GET /volumes/{name}`.
pub(crate) async fn inspect(State(api): State<Api>, Path(name): Path<String>) -> Result<Response> {
    let volume = api.engine.ask_volumes(move |volumes| volumes.inspect(&name)).await??;
    Ok(json(&volume_row(&volume)))
}

/// `POST /volumes/create`.
pub(crate) async fn create(
    State(api): State<Api>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response> {
    let asked: VolumeCreateRequest = query::json(&headers, body).await?;
    let request = CreateVolume {
        name: Some(asked.name).filter(|name| !name.is_empty()),
        driver: asked.driver,
        options: asked.driver_opts.unwrap_or_default(),
        labels: asked.labels.unwrap_or_default(),
    };
    let volume = api.engine.create_volume(request).await?;
    Ok(json_with(StatusCode::CREATED, &volume_row(&volume)))
}

/// `DELETE /volumes/{name}`.
pub(crate) async fn remove(
    State(api): State<Api>,
    Path(name): Path<String>,
    query: Query,
) -> Result<StatusCode> {
    api.engine.remove_volume(&name, query.flag("force")).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `POST /volumes/prune`: anonymous ones, or with `all=true` those with a name, too.
pub(crate) async fn prune(State(api): State<Api>, query: Query) -> Result<Response> {
    let filters = Filters::parse(query.text("filters"), &["all", "label", "label!"])?;
    let all = filters.truth("all")? == Some(true);
    let wanted = move |volume: &Volume| {
        (all || volume.anonymous)
            && filters.labels(|key| volume.labels.get(key).map(String::as_str))
    };
    let pruned = api.engine.prune_volumes(wanted).await?;
    Ok(json(&VolumesPruned {
        volumes_deleted: Some(pruned.removed).filter(|names| !names.is_empty()),
        space_reclaimed: pruned.reclaimed,
    }))
}

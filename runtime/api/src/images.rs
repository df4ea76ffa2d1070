//! Images.

use std::collections::{BTreeMap, BTreeSet};

use axum::{
    body::Body,
    extract::{Path, State},
    response::Response,
};
use futures_util::StreamExt;
use http::{HeaderMap, StatusCode};
use jiff::Timestamp;
use knarr_docker::{
    ContainerConfig, GraphDriver, ImageDelete, ImageHistory, ImageInspect, ImageMetadata,
    ImageSummary, ImagesPruned, RootFs, Words,
};
use knarr_image::{Image, Images, Progress, RemoveOptions, Removed};
use knarr_model::{Platform, Reference};
use knarr_registry::Auth;
use tokio::sync::mpsc;

use crate::{
    Api,
    error::{ApiError, Result},
    events::until_filter,
    filters::Filters,
    gate::json,
    progress,
    query::Query,
    render,
};

/// Progress messages that may wait for a slow client.
const PROGRESS: usize = 64;

/// `GET /images/json`.
pub(crate) async fn list(State(api): State<Api>, query: Query) -> Result<Response> {
    let known =
        ["before", "dangling", "label", "label!", "reference", "since", "until", "workload"];
    let filters = Filters::parse(query.text("filters"), &known)?;
    let rows = api.engine.ask_images(move |images| rows(images, &filters)).await??;
    Ok(json(&rows))
}

fn rows(images: &Images, filters: &Filters) -> Result<Vec<ImageSummary>> {
    let created = |name: &str| -> Result<Option<i64>> {
        let key = filters.get(name).first();
        Ok(key.map(|key| images.resolve(key)).transpose()?.map(|image| image.row.created))
    };
    let (before, since) = (created("before")?, created("since")?);
    let until = until_filter(filters)?.map(Timestamp::as_second);
    let dangling = filters.truth("dangling")?;
    let mut rows = Vec::new();
    for image in images.list()? {
        let row = &image.row;
        let fits = dangling.is_none_or(|want| want == row.tags.is_empty())
            && before.is_none_or(|time| row.created < time)
            && since.is_none_or(|time| row.created > time)
            && until.is_none_or(|time| row.created < time)
            && filters.labels(|key| image.config.labels.get(key).map(String::as_str))
            && filters.any("workload", |want| (want == "wasm") == row.workload.is_wasm());
        if !fits {
            continue;
        }
        let mut summary = summary(&image);
        if filters.has("reference") {
            // Only the names that were asked for are shown, as Docker does.
            summary.repo_tags = matching(filters, &row.tags);
            summary.repo_digests = matching(filters, &row.digests);
            if summary.repo_tags.is_empty() && summary.repo_digests.is_empty() {
                continue;
            }
        }
        rows.push(summary);
    }
    Ok(rows)
}

fn matching(filters: &Filters, names: &[Reference]) -> Vec<String> {
    let fits = |name: &&Reference| {
        filters.any("reference", |pattern| {
            glob(pattern, &name.familiar()) || glob(pattern, &name.familiar_name())
        })
    };
    names.iter().filter(fits).map(Reference::familiar).collect()
}

/// Go's `path.Match` without character classes: `*` and `?` stop at a slash.
fn glob(pattern: &str, text: &str) -> bool {
    fn fits(pattern: &[u8], text: &[u8]) -> bool {
        match (pattern.split_first(), text.split_first()) {
            (None, None) => true,
            (Some((b'*', rest)), _) => {
                let end = text.iter().position(|c| *c == b'/').unwrap_or(text.len());
                (0..=end).any(|at| fits(rest, &text[at..]))
            }
            (Some((b'?', rest)), Some((c, text))) if *c != b'/' => fits(rest, text),
            (Some((want, rest)), Some((c, text))) if want == c => fits(rest, text),
            _ => false,
        }
    }
    // Stars multiply the work: nobody needs many.
    pattern.matches('*').count() <= 8 && fits(pattern.as_bytes(), text.as_bytes())
}

pub(crate) fn summary(image: &Image) -> ImageSummary {
    let row = &image.row;
    let names = |names: &[Reference]| names.iter().map(Reference::familiar).collect::<Vec<_>>();
    ImageSummary {
        containers: -1,
        created: row.created,
        id: row.id.to_string(),
        labels: Some(image.config.labels.clone()),
        parent_id: String::new(),
        repo_digests: names(&row.digests),
        repo_tags: names(&row.tags),
        shared_size: -1,
        size: row.size as i64,
        knarr: Some(render::workload(&row.workload, &row.reason)),
    }
}

/// Ids of the images that one of `names` is, or that stand on its layers.
pub(crate) fn ancestors(images: &Images, names: &[String]) -> BTreeSet<String> {
    let wanted: Vec<Image> = names.iter().filter_map(|name| images.resolve(name).ok()).collect();
    if wanted.is_empty() {
        return BTreeSet::new();
    }
    let stands_on = |image: &Image| {
        wanted.iter().any(|base| {
            base.id() == image.id()
                || (!base.layers().is_empty() && image.layers().starts_with(base.layers()))
        })
    };
    let all = images.list().unwrap_or_default();
    all.iter().filter(|image| stands_on(image)).map(|image| image.id().to_string()).collect()
}

/// `GET /images/{name}/json` and `…/history`.
pub(crate) async fn get(State(api): State<Api>, Path(path): Path<String>) -> Result<Response> {
    match path.rsplit_once('/') {
        Some((name, "json")) => inspect(&api, name).await,
        Some((name, "history")) => history(&api, name).await,
        Some((_, "get")) => Err(ApiError::not_supported("saving images")),
        _ => Err(ApiError::not_found("page not found")),
    }
}

async fn inspect(api: &Api, name: &str) -> Result<Response> {
    let name = name.to_owned();
    let found = api.engine.ask_images(move |images| images.inspect(&name)).await??;
    let row = &found.image.row;
    let names = |names: &[Reference]| names.iter().map(Reference::familiar).collect::<Vec<_>>();
    let mut knarr = render::workload(&row.workload, &row.reason);
    knarr.imports = Some(found.wasm_imports).filter(|list| !list.is_empty());
    knarr.exports = Some(found.wasm_exports).filter(|list| !list.is_empty());
    let lower: Vec<String> = found.lower.iter().map(|dir| dir.display().to_string()).collect();
    Ok(json(&ImageInspect {
        id: row.id.to_string(),
        repo_tags: names(&row.tags),
        repo_digests: names(&row.digests),
        comment: found.comment.unwrap_or_default(),
        created: found.created.unwrap_or_default(),
        docker_version: found.docker_version.unwrap_or_default(),
        author: found.author.unwrap_or_default(),
        config: Some(config(&found.image)),
        architecture: row.platform.architecture.clone(),
        variant: row.platform.variant.clone().unwrap_or_default(),
        os: row.platform.os.clone(),
        size: found.size as i64,
        graph_driver: GraphDriver {
            data: Some(BTreeMap::from([("LowerDir".to_owned(), lower.join(":"))])),
            name: "overlay2".into(),
        },
        root_fs: RootFs {
            kind: "layers".into(),
            layers: Some(row.layers.iter().map(ToString::to_string).collect()),
        },
        metadata: ImageMetadata { last_tag_time: found.stored },
        knarr: Some(knarr),
        ..ImageInspect::default()
    }))
}

fn config(image: &Image) -> ContainerConfig {
    let config = &image.config;
    ContainerConfig {
        user: config.user.clone().unwrap_or_default(),
        exposed_ports: Some(
            config
                .exposed_ports
                .iter()
                .map(|port| (port.to_string(), Default::default()))
                .collect(),
        )
        .filter(|ports: &BTreeMap<_, _>| !ports.is_empty()),
        env: Some(config.env.clone()),
        cmd: config.cmd.clone().map(Words),
        entrypoint: config.entrypoint.clone().map(Words),
        volumes: Some(
            config
                .volumes
                .iter()
                .map(|path| (path.display().to_string(), Default::default()))
                .collect(),
        )
        .filter(|volumes: &BTreeMap<_, _>| !volumes.is_empty()),
        working_dir: config
            .working_dir
            .as_ref()
            .map(|dir| dir.display().to_string())
            .unwrap_or_default(),
        labels: Some(config.labels.clone()).filter(|labels| !labels.is_empty()),
        stop_signal: config.stop_signal.map(|signal| signal.to_string()).unwrap_or_default(),
        healthcheck: config
            .healthcheck
            .clone()
            .and_then(|health| serde_json::from_value(health).ok()),
        shell: config.shell.clone(),
        on_build: Some(config.on_build.clone()).filter(|steps| !steps.is_empty()),
        ..ContainerConfig::default()
    }
}

async fn history(api: &Api, name: &str) -> Result<Response> {
    let name = name.to_owned();
    let steps = api.engine.ask_images(move |images| images.history(&name)).await??;
    let row = |step: knarr_image::HistoryEntry| ImageHistory {
        id: step.id.map_or_else(|| "<missing>".into(), |id| id.to_string()),
        created: step.created,
        created_by: step.created_by,
        tags: Some(step.tags.iter().map(Reference::familiar).collect())
            .filter(|tags: &Vec<_>| !tags.is_empty()),
        size: step.size as i64,
        comment: step.comment,
    };
    Ok(json(&steps.into_iter().map(row).collect::<Vec<_>>()))
}

/// `POST /images/{name}/tag` and `…/push`.
pub(crate) async fn post(
    State(api): State<Api>,
    Path(path): Path<String>,
    query: Query,
) -> Result<StatusCode> {
    match path.rsplit_once('/') {
        Some((name, "tag")) => {
            let repository = query.text("repo").unwrap_or_default();
            let target = reference(repository, query.text("tag"))?;
            if target.digest().is_some() {
                return Err(ApiError::invalid("refusing to create a tag with a digest reference"));
            }
            api.engine.tag_image(name, &target).await?;
            Ok(StatusCode::CREATED)
        }
        Some((_, "push")) => Err(ApiError::not_supported("pushing images")),
        _ => Err(ApiError::not_found("page not found")),
    }
}

/// A reference whose tag (or digest) may stand beside it.
pub(crate) fn reference(name: &str, tag: Option<&str>) -> Result<Reference> {
    let whole = match tag {
        None => name.to_owned(),
        Some(digest) if digest.contains(':') => format!("{name}@{digest}"),
        Some(tag) => format!("{name}:{tag}"),
    };
    whole.parse().map_err(|error: knarr_model::ReferenceError| ApiError::invalid(error.to_string()))
}

/// `DELETE /images/{name}`.
pub(crate) async fn delete(
    State(api): State<Api>,
    Path(name): Path<String>,
    query: Query,
) -> Result<Response> {
    let options = RemoveOptions { force: query.flag("force") };
    let removed = api.engine.remove_image(&name, options).await?;
    Ok(json(&removed.into_iter().map(removed_row).collect::<Vec<_>>()))
}

fn removed_row(removed: Removed) -> ImageDelete {
    match removed {
        Removed::Untagged(name) => ImageDelete { untagged: name, ..ImageDelete::default() },
        Removed::Deleted(id) => ImageDelete { deleted: id.to_string(), ..ImageDelete::default() },
    }
}

/// `POST /images/prune`.
pub(crate) async fn prune(State(api): State<Api>, query: Query) -> Result<Response> {
    let filters = Filters::parse(query.text("filters"), &["dangling", "label", "label!", "until"])?;
    let until = until_filter(&filters)?.map(Timestamp::as_second);
    let all = filters.truth("dangling")? == Some(false);
    let wanted = move |image: &Image| {
        until.is_none_or(|until| image.row.created < until)
            && filters.labels(|key| image.config.labels.get(key).map(String::as_str))
    };
    let pruned = api.engine.prune_images(all, wanted).await?;
    let removed: Vec<_> = pruned.removed.into_iter().map(removed_row).collect();
    Ok(json(&ImagesPruned {
        images_deleted: Some(removed).filter(|removed| !removed.is_empty()),
        space_reclaimed: pruned.reclaimed,
    }))
}

fn platform(query: &Query) -> Result<Option<Platform>> {
    let parse = |text: &str| {
        text.parse()
            .map_err(|error: knarr_model::PlatformError| ApiError::invalid(error.to_string()))
    };
    // Docker's API 1.48 allows JSON here; its CLI sends `os/architecture`.
    query.text("platform").map(parse).transpose()
}

/// Credentials of the registry that a request speaks with.
pub(crate) fn auth(headers: &HeaderMap) -> Result<Auth> {
    let Some(value) = headers.get("x-registry-auth") else { return Ok(Auth::Anonymous) };
    let text = value.to_str().map_err(|_| ApiError::invalid("invalid X-Registry-Auth header"))?;
    // The error says what is wrong with it, never what is in it.
    Auth::from_header(text).map_err(|error| ApiError::invalid(error.to_string()))
}

/// `POST /images/create`: a pull, told as it goes.
pub(crate) async fn create(
    State(api): State<Api>,
    query: Query,
    headers: HeaderMap,
) -> Result<Response> {
    let Some(from) = query.text("fromImage") else {
        return Err(ApiError::not_supported("importing an image"));
    };
    let reference = reference(from, query.text("tag"))?;
    let platform = platform(&query)?;
    let auth = auth(&headers)?;
    let (sender, receiver) = mpsc::channel(PROGRESS);
    let pull = async move {
        api.engine.pull(&reference, platform.as_ref(), &auth, Some(sender)).await?;
        Ok(Vec::new())
    };
    progress::respond(receiver, pull, false).await
}

/// `POST /images/load`: an archive, told as it goes.
pub(crate) async fn load(State(api): State<Api>, query: Query, body: Body) -> Result<Response> {
    let platform = platform(&query)?;
    let quiet = query.flag("quiet");
    let (sender, receiver) = mpsc::channel::<Progress>(PROGRESS);
    let chunks = body.into_data_stream().map(|chunk| chunk.map_err(std::io::Error::other));
    let reader = tokio_util::io::StreamReader::new(chunks);
    let load = async move {
        let engine = &api.engine;
        let loaded = engine.load_images(Box::pin(reader), platform.as_ref(), Some(sender)).await?;
        let lines = loaded.into_iter().flat_map(|image| match image.tags.is_empty() {
            true => vec![format!("Loaded image ID: {}\n", image.id)],
            false => {
                image.tags.iter().map(|tag| format!("Loaded image: {}\n", tag.familiar())).collect()
            }
        });
        Ok(lines.collect())
    };
    progress::respond(receiver, load, quiet).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_join_their_tag() {
        let text = |name: &str, tag| reference(name, tag).unwrap().to_string();
        assert_eq!(text("busybox", None), "docker.io/library/busybox:latest");
        assert_eq!(text("busybox", Some("1.36")), "docker.io/library/busybox:1.36");
        let digest = format!("sha256:{}", "a".repeat(64));
        assert_eq!(text("x/y", Some(&digest)), format!("docker.io/x/y@{digest}"));
        assert_eq!(reference("../x", None).unwrap_err().status, StatusCode::BAD_REQUEST);
    }

    #[test]
    fn reference_filters_are_gos_patterns() {
        for (pattern, text, fits) in [
            ("busybox", "busybox", true),
            ("busy*", "busybox", true),
            ("*box:1.?", "busybox:1.3", true),
            ("*", "a/b", false),
            ("*/*", "a/b", true),
            ("busy", "busybox", false),
        ] {
            assert_eq!(glob(pattern, text), fits, "{pattern} {text}");
        }
    }
}

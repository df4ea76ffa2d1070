//! `GET /containers/json`.

use axum::{extract::State, response::Response};
use jiff::Timestamp;
use knarr_engine::{ContainerView, Engine, Status};
use knarr_image::Images;
use knarr_model::{PortSpec, Transport};

use crate::{
    Api,
    error::{ApiError, Result},
    filters::{Filters, name_matches},
    gate::json,
    query::Query,
    render,
};

const KNOWN: &[&str] = &[
    "ancestor",
    "before",
    "exited",
    "expose",
    "health",
    "id",
    "is-task",
    "isolation",
    "label",
    "label!",
    "name",
    "network",
    "publish",
    "since",
    "status",
    "volume",
    "workload",
];

const STATUSES: &[&str] =
    &["created", "running", "paused", "restarting", "removing", "exited", "dead"];

/// `GET /containers/json`.
pub(crate) async fn list(State(api): State<Api>, query: Query) -> Result<Response> {
    let filters = Filters::parse(query.text("filters"), KNOWN)?;
    let limit = query.number("limit")?.filter(|limit| *limit > 0);
    let all =
        query.flag("all") || limit.is_some() || filters.has("status") || filters.has("exited");
    let engine = api.engine.clone();
    // Ten thousand containers take their time, and images are read for their ancestors.
    let rows = api.engine.ask_images(move |images| -> Result<_> {
        let plan = Plan::make(&engine, images, filters)?;
        let mut views = engine.list();
        views.retain(|view| (all || view.state.status.is_running()) && plan.wants(view));
        if let Some(limit) = limit {
            views.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
        }
        let now = Timestamp::now().as_second();
        Ok(views.iter().map(|view| render::summary(view, now)).collect::<Vec<_>>())
    });
    let mut rows = rows.await??;
    if query.flag("size") {
        for row in &mut rows {
            // One that went meanwhile has no size.
            if let Ok((writable, all)) = api.engine.size(&row.id).await {
                row.size_rw = Some(writable as i64);
                row.size_root_fs = Some(all as i64);
            }
        }
    }
    Ok(json(&rows))
}

/// Filters with everything looked up that is the same for all rows.
struct Plan {
    filters: Filters,
    exited: Vec<u32>,
    before: Option<String>,
    since: Option<String>,
    ancestors: std::collections::BTreeSet<String>,
    publish: Vec<PortRange>,
    expose: Vec<PortRange>,
    task: Option<bool>,
}

impl Plan {
    fn make(engine: &Engine, images: &Images, filters: Filters) -> Result<Self> {
        let bad = |name: &str, value: &str| {
            ApiError::invalid(format!("invalid filter '{name}={}'", crate::error::short(value)))
        };
        for status in filters.get("status") {
            if !STATUSES.contains(&status.as_str()) {
                return Err(bad("status", status));
            }
        }
        for health in filters.get("health") {
            if !["none", "starting", "healthy", "unhealthy"].contains(&health.as_str()) {
                return Err(bad("health", health));
            }
        }
        let exited = filters.get("exited").iter();
        let exited = exited.map(|code| code.parse().map_err(|_| bad("exited", code)));
        let created = |name: &str| -> Result<Option<String>> {
            let key = filters.get(name).first();
            Ok(key.map(|key| engine.inspect(key)).transpose()?.map(|view| view.created))
        };
        let ports = |name: &str| -> Result<Vec<PortRange>> {
            filters.get(name).iter().map(|text| PortRange::parse(text)).collect()
        };
        Ok(Self {
            exited: exited.collect::<Result<_>>()?,
            before: created("before")?,
            since: created("since")?,
            ancestors: crate::images::ancestors(images, filters.get("ancestor")),
            publish: ports("publish")?,
            expose: ports("expose")?,
            task: filters.truth("is-task")?,
            filters,
        })
    }

    fn wants(&self, view: &ContainerView) -> bool {
        let filters = &self.filters;
        let labels = &view.spec.labels;
        let image = view.image_id.to_string();
        // Health is not probed: everything has none. There is no swarm: nothing is a task.
        filters.any("id", |prefix| view.id.as_str().starts_with(prefix.as_str()))
            && filters.any("name", |pattern| name_matches(pattern, &view.name))
            && filters.labels(|key| labels.get(key).map(String::as_str))
            && filters.is("status", view.state.status.as_str())
            && filters.is("health", "none")
            && self.task != Some(true)
            && (self.exited.is_empty() || self.has_exited(view))
            && self.before.as_ref().is_none_or(|time| view.created < *time)
            && self.since.as_ref().is_none_or(|time| view.created > *time)
            && (!filters.has("ancestor") || self.ancestors.contains(&image))
            && filters.any("volume", |wanted| has_volume(view, wanted))
            && filters.any("network", |wanted| has_network(view, wanted))
            && filters.any("workload", |wanted| (wanted == "wasm") == view.workload.is_wasm())
            && (self.publish.is_empty() || self.publishes(view))
            && (self.expose.is_empty() || self.exposes(view))
    }

    fn has_exited(&self, view: &ContainerView) -> bool {
        view.state.status == Status::Exited && self.exited.contains(&view.state.exit_code)
    }

    fn publishes(&self, view: &ContainerView) -> bool {
        let host = |port: &knarr_engine::PublishedPort| PortSpec {
            port: port.host_port,
            transport: port.container.transport,
        };
        view.ports.iter().any(|port| {
            self.publish.iter().any(|range| range.has(host(port)) || range.has(port.container))
        })
    }

    fn exposes(&self, view: &ContainerView) -> bool {
        view.spec.exposed_ports.iter().any(|port| self.expose.iter().any(|range| range.has(*port)))
    }
}

fn has_volume(view: &ContainerView, wanted: &str) -> bool {
    view.mounts.iter().any(|mount| {
        mount.name.as_deref() == Some(wanted)
            || mount.target.to_str() == Some(wanted)
            || mount.source.to_str() == Some(wanted)
    })
}

fn has_network(view: &ContainerView, wanted: &str) -> bool {
    let mode = render::network_mode(&view.spec);
    mode == wanted
        || view.endpoints.iter().any(|(name, endpoint)| {
            name == wanted || (wanted.len() >= 12 && endpoint.network_id.starts_with(wanted))
        })
}

/// `80`, `80/udp`, `8000-8010/tcp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct PortRange {
    first: u16,
    last: u16,
    transport: Transport,
}

impl PortRange {
    fn parse(text: &str) -> Result<Self> {
        let bad = || {
            ApiError::invalid(format!(
                "invalid port specification: {:?}",
                crate::error::short(text)
            ))
        };
        let (numbers, transport) = match text.split_once('/') {
            None | Some((_, "tcp")) => (text.trim_end_matches("/tcp"), Transport::Tcp),
            Some((numbers, "udp")) => (numbers, Transport::Udp),
            Some(_) => return Err(bad()),
        };
        let (first, last) = numbers.split_once('-').unwrap_or((numbers, numbers));
        let number = |part: &str| part.parse::<u16>().map_err(|_| bad());
        Ok(Self { first: number(first)?, last: number(last)?, transport })
    }

    fn has(self, port: PortSpec) -> bool {
        port.transport == self.transport && (self.first..=self.last).contains(&port.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_filters_read() {
        let range = PortRange::parse("8000-8010/udp").unwrap();
        assert!(range.has(PortSpec { port: 8005, transport: Transport::Udp }));
        assert!(!range.has(PortSpec { port: 8005, transport: Transport::Tcp }));
        assert!(
            PortRange::parse("80").unwrap().has(PortSpec { port: 80, transport: Transport::Tcp })
        );
        for bad in ["", "x", "80/sctp", "70000"] {
            assert!(PortRange::parse(bad).is_err(), "{bad}");
        }
    }
}

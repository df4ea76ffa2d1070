//! `GET /events`.

use std::time::Duration;

use axum::{extract::State, response::Response};
use futures_util::StreamExt;
use jiff::Timestamp;
use knarr_docker::EventActor;
use knarr_engine::{BoxStream, Event};
use tokio::time::{Instant, sleep_until};

use crate::{
    Api,
    error::{ApiError, Result},
    filters::Filters,
    logs::{parse_time, time},
    query::Query,
    streams,
};

const KNOWN: &[&str] = &[
    "config",
    "container",
    "daemon",
    "event",
    "image",
    "label",
    "network",
    "node",
    "plugin",
    "scope",
    "secret",
    "service",
    "type",
    "volume",
];

/// What happened since a time, then what happens, until a time.
pub(crate) async fn events(State(api): State<Api>, query: Query) -> Result<Response> {
    let filters = Filters::parse(query.text("filters"), KNOWN)?;
    // Here 0 is a time like any other: everything that is remembered.
    let since = match query.text("since") {
        Some("0") => Some(Timestamp::UNIX_EPOCH),
        _ => time(&query, "since")?,
    };
    let until = time(&query, "until")?;
    if let (Some(since), Some(until)) = (since, until)
        && since > until
    {
        return Err(ApiError::invalid("since time cannot be after until time"));
    }
    let deadline = until.map(|until| {
        let left = until.as_nanosecond() - Timestamp::now().as_nanosecond();
        Instant::now() + Duration::from_nanos(u64::try_from(left).unwrap_or_default())
    });
    let source = Source { events: api.engine.events(since), deadline, until, filters };
    let lines = futures_util::stream::unfold(source, |mut source| async move {
        source.next().await.map(|line| (line, source))
    });
    Ok(streams::json_lines(lines))
}

struct Source {
    events: BoxStream<Event>,
    deadline: Option<Instant>,
    until: Option<Timestamp>,
    filters: Filters,
}

impl Source {
    async fn next(&mut self) -> Option<knarr_docker::Event> {
        loop {
            let event = match self.deadline {
                None => self.events.next().await?,
                // What is remembered comes before the clock is asked.
                Some(deadline) => tokio::select! {
                    biased;
                    event = self.events.next() => event?,
                    () = sleep_until(deadline) => return None,
                },
            };
            let late = |until: Timestamp| i128::from(event.time_nano) > until.as_nanosecond();
            if self.until.is_some_and(late) {
                return None;
            }
            if wanted(&self.filters, &event) {
                return Some(render(event));
            }
        }
    }
}

fn wanted(filters: &Filters, event: &Event) -> bool {
    let attribute = |name: &str| event.attributes.get(name).map(String::as_str);
    let actor = |kind: &str| {
        filters.any(kind, |wanted| {
            event.kind == kind
                && (event.actor.starts_with(wanted.as_str()) || attribute("name") == Some(wanted))
        })
    };
    // An image's filter also picks the events of its containers, as Docker's does.
    let image = filters.any("image", |wanted| {
        let name = if event.kind == "image" { attribute("name") } else { attribute("image") };
        let untagged = |name: &str| name.rsplit_once(':').is_some_and(|(base, _)| base == wanted);
        name.is_some_and(|name| name == wanted || untagged(name))
            || (event.kind == "image" && event.actor.starts_with(wanted.as_str()))
    });
    filters.is("type", &event.kind)
        && filters.any("event", |wanted| {
            event.action == *wanted
                || event.action.split_once(':').is_some_and(|(action, _)| action == wanted)
        })
        && filters.is("scope", "local")
        && ["container", "network", "volume", "daemon"].into_iter().all(actor)
        && image
        && filters.labels(attribute)
}

fn render(event: Event) -> knarr_docker::Event {
    let legacy = event.kind == "container" || event.kind == "image";
    let pick = |text: &str| if legacy { text.to_owned() } else { String::new() };
    knarr_docker::Event {
        status: pick(&event.action),
        id: pick(&event.actor),
        from: match event.kind.as_str() {
            "container" => event.attributes.get("image").cloned().unwrap_or_default(),
            _ => String::new(),
        },
        kind: event.kind,
        action: event.action,
        actor: EventActor { id: event.actor, attributes: event.attributes },
        scope: "local".into(),
        time: event.time_nano / 1_000_000_000,
        time_nano: event.time_nano,
    }
}

/// `until=` of a prune: a time, or a Go duration before now.
pub(crate) fn until_filter(filters: &Filters) -> Result<Option<Timestamp>> {
    let Some(text) = filters.get("until").first() else { return Ok(None) };
    if let Some(time) = parse_time(text) {
        return Ok(Some(time));
    }
    let ago = go_duration(text).and_then(|ago| {
        let ago = jiff::SignedDuration::try_from(ago).ok()?;
        Timestamp::now().checked_sub(ago).ok()
    });
    ago.map(Some).ok_or_else(|| {
        ApiError::invalid(format!("invalid value for \"until\": {}", crate::error::short(text)))
    })
}

/// `1h30m`, `10s`, `1.5h`.
fn go_duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut whole = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let end = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let seconds = match &rest[..end] {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        whole = whole.checked_add(Duration::try_from_secs_f64(number * seconds).ok()?)?;
        rest = &rest[end..];
    }
    (!text.is_empty()).then_some(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: &str, action: &str) -> Event {
        Event {
            kind: kind.into(),
            action: action.into(),
            actor: "abc".into(),
            attributes: [("name", "web"), ("image", "busybox:1"), ("tier", "x")]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
            time_nano: 1_000_000_007,
        }
    }

    #[test]
    fn events_are_picked() {
        let start = event("container", "start");
        for (json, fits) in [
            (r#"{}"#, true),
            (r#"{"type":["container"]}"#, true),
            (r#"{"type":["network"]}"#, false),
            (r#"{"event":["start","die"]}"#, true),
            (r#"{"event":["die"]}"#, false),
            (r#"{"container":["web"]}"#, true),
            (r#"{"container":["ab"]}"#, true),
            (r#"{"container":["zz"]}"#, false),
            (r#"{"image":["busybox"]}"#, true),
            (r#"{"label":["tier=x"]}"#, true),
            (r#"{"label":["tier=y"]}"#, false),
        ] {
            let filters = Filters::parse(Some(json), KNOWN).unwrap();
            assert_eq!(wanted(&filters, &start), fits, "{json}");
        }
        let exec = event("container", "exec_start: sh");
        assert!(wanted(
            &Filters::parse(Some(r#"{"event":["exec_start"]}"#), KNOWN).unwrap(),
            &exec
        ));
    }

    #[test]
    fn events_have_dockers_shape() {
        let json = serde_json::to_value(render(event("container", "start"))).unwrap();
        assert_eq!(
            json,
            serde_json::json!({
                "status": "start", "id": "abc", "from": "busybox:1", "Type": "container",
                "Action": "start", "scope": "local", "time": 1, "timeNano": 1_000_000_007,
                "Actor": {"ID": "abc", "Attributes": {"name": "web", "image": "busybox:1", "tier": "x"}},
            })
        );
    }

    #[test]
    fn go_durations_read() {
        assert_eq!(go_duration("1h30m"), Some(Duration::from_secs(5400)));
        assert_eq!(go_duration("1.5s"), Some(Duration::from_millis(1500)));
        for bad in ["", "x", "5", "5y", "h"] {
            assert_eq!(go_duration(bad), None, "{bad}");
        }
    }
}

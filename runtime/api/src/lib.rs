//! The Docker REST API over the engine.
//!
//! ```text
//!   socket ─► serve (hyper) ─► gate ─► router ─► handler ─► Engine
//!                               │                  │
//!              version, Host and Origin        request: JSON ─► ContainerSpec
//!                                              render:  views ─► JSON
//! ```
//!
//! Handlers are thin: they read what the client says ([`query`], [`request`],
//! [`filters`]), call one verb of the engine, and write what it answers
//! ([`render`], [`streams`]). Errors carry a kind, which decides Docker's status
//! code ([`error`]).
//!
//! **How it fails.** A client that asks for nonsense is told so in Docker's
//! words, before anything is made. A client that goes away, at any moment,
//! takes nothing with it: an attached process runs on; a stream that nobody
//! reads stops being produced.

#![forbid(unsafe_code)]

mod attach;
mod containers;
mod distribution;
mod error;
mod events;
mod exec;
mod filters;
mod gate;
mod images;
mod linger;
mod list;
mod logs;
mod networks;
mod progress;
mod query;
mod render;
mod request;
mod serve;
mod stats;
mod streams;
mod system;
mod version;
mod volumes;

use std::{ops::Deref, sync::Arc};

use axum::{
    Router,
    routing::{any, delete, get, head, post},
};
use knarr_engine::Engine;

pub use serve::{Listener, Shutdown};

/// The API of one engine. Clones are handles of the same.
#[derive(Debug, Clone)]
pub struct Api(Arc<Inner>);

/// What the API knows beside the engine.
#[derive(Debug)]
pub struct Inner {
    engine: Engine,
    facts: Facts,
    router: std::sync::OnceLock<Router>,
}

/// What the daemon says of itself.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// Of the product.
    pub version: String,
    /// Of the source; empty where it is not known.
    pub commit: String,
    /// RFC 3339; empty where it is not known.
    pub build_time: String,
    /// Of the compiler.
    pub compiler: String,
    /// The daemon logs debug messages.
    pub debug: bool,
    /// Registries that are spoken to without TLS, or with any certificate.
    pub insecure_registries: Vec<String>,
    /// Asked before Docker Hub.
    pub registry_mirrors: Vec<String>,
    /// Labels of the engine (`--label`).
    pub labels: Vec<String>,
}

impl Deref for Api {
    type Target = Inner;
    fn deref(&self) -> &Inner {
        &self.0
    }
}

impl Api {
    /// The API of an engine.
    pub fn new(engine: Engine, facts: Facts) -> Self {
        let api = Self(Arc::new(Inner { engine, facts, router: std::sync::OnceLock::new() }));
        let routes = routes().with_state(api.clone());
        // The router holds the API, and the API the router: both live as long as the process.
        let _ = api.0.router.set(routes);
        api
    }
}

/// Every path of the API, without its version.
fn routes() -> Router<Api> {
    Router::new()
        .merge(system_routes())
        .merge(container_routes())
        .merge(image_routes())
        .merge(network_and_volume_routes())
        .merge(refused_routes())
        .fallback(gate::not_found)
        .method_not_allowed_fallback(gate::not_found)
}

fn system_routes() -> Router<Api> {
    Router::new()
        .route("/_ping", get(system::ping).head(system::ping))
        .route("/version", get(system::version))
        .route("/info", get(system::info))
        .route("/events", get(events::events))
        .route("/system/df", get(system::disk_usage))
        .route("/auth", post(system::auth))
        .route("/distribution/{*name}", get(distribution::inspect))
}

fn container_routes() -> Router<Api> {
    Router::new()
        .route("/containers/json", get(list::list))
        .route("/containers/create", post(containers::create))
        .route("/containers/prune", post(containers::prune))
        .route("/containers/{id}", delete(containers::remove))
        .route("/containers/{id}/json", get(containers::inspect))
        .route("/containers/{id}/top", get(containers::top))
        .route("/containers/{id}/logs", get(logs::logs))
        .route("/containers/{id}/stats", get(stats::stats))
        .route("/containers/{id}/start", post(containers::start))
        .route("/containers/{id}/stop", post(containers::stop))
        .route("/containers/{id}/restart", post(containers::restart))
        .route("/containers/{id}/kill", post(containers::kill))
        .route("/containers/{id}/pause", post(containers::pause))
        .route("/containers/{id}/unpause", post(containers::unpause))
        .route("/containers/{id}/rename", post(containers::rename))
        .route("/containers/{id}/resize", post(containers::resize))
        .route("/containers/{id}/update", post(containers::update))
        .route("/containers/{id}/wait", post(containers::wait))
        .route("/containers/{id}/attach", post(attach::container))
        .route("/containers/{id}/exec", post(exec::create))
        .route("/exec/{id}/start", post(exec::start))
        .route("/exec/{id}/resize", post(exec::resize))
        .route("/exec/{id}/json", get(exec::inspect))
}

fn image_routes() -> Router<Api> {
    Router::new()
        .route("/images/json", get(images::list))
        .route("/images/create", post(images::create))
        .route("/images/load", post(images::load))
        .route("/images/prune", post(images::prune))
        .route("/images/search", get(gate::no_search))
        .route("/images/get", get(gate::no_save))
        // Names hold slashes: the verb is the last word of the path.
        .route("/images/{*path}", get(images::get).post(images::post).delete(images::delete))
}

fn network_and_volume_routes() -> Router<Api> {
    Router::new()
        .route("/networks", get(networks::list))
        .route("/networks/create", post(networks::create))
        .route("/networks/prune", post(networks::prune))
        .route("/networks/{id}", get(networks::inspect).delete(networks::remove))
        .route("/networks/{id}/connect", post(networks::connect))
        .route("/networks/{id}/disconnect", post(networks::disconnect))
        .route("/volumes", get(volumes::list))
        .route("/volumes/create", post(volumes::create))
        .route("/volumes/prune", post(volumes::prune))
        .route("/volumes/{name}", get(volumes::inspect).delete(volumes::remove))
}

/// What Docker has and this version of Knarr has not: said by name.
fn refused_routes() -> Router<Api> {
    Router::new()
        .route("/build", post(gate::no_build))
        .route("/build/prune", post(system::prune_builds))
        .route("/commit", post(gate::no_commit))
        .route("/session", post(gate::no_build))
        .route("/containers/{id}/changes", get(gate::no_diff))
        .route("/containers/{id}/export", get(gate::no_export))
        .route("/containers/{id}/attach/ws", get(gate::no_websocket))
        .route(
            "/containers/{id}/archive",
            head(gate::no_copy).get(gate::no_copy).put(gate::no_copy),
        )
        .route("/swarm", any(gate::no_swarm))
        .route("/swarm/{*rest}", any(gate::no_swarm))
        .route("/nodes", any(gate::no_swarm))
        .route("/services", any(gate::no_swarm))
        .route("/services/{*rest}", any(gate::no_swarm))
        .route("/tasks", any(gate::no_swarm))
        .route("/secrets", any(gate::no_swarm))
        .route("/secrets/{*rest}", any(gate::no_swarm))
        .route("/configs", any(gate::no_swarm))
        .route("/configs/{*rest}", any(gate::no_swarm))
        .route("/plugins", get(gate::no_plugins))
        .route("/plugins/{*rest}", any(gate::no_plugin))
}

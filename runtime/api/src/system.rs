//! The engine itself.

use std::collections::BTreeMap;

use axum::{
    body::Body,
    extract::State,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, header};
use jiff::Timestamp;
use knarr_docker::{
    API_VERSION, AuthConfig, AuthResponse, Commit, DiskUsage, Info, MIN_API_VERSION, Plugins,
    Runtime, SwarmInfo, Version, VersionComponent, VersionPlatform, VolumeUsage,
};

use knarr_model::Reference;
use knarr_registry::Auth;

use crate::{
    Api,
    error::{ApiError, Result},
    gate::json,
    images,
    query::{self, Query},
    render, volumes,
};

/// `GET` and `HEAD /_ping`.
///
/// `Builder-Version: 1` makes the docker client send builds to `POST /build`.
pub(crate) async fn ping() -> Response {
    let headers = [
        (header::CONTENT_TYPE.as_str(), "text/plain; charset=utf-8"),
        (header::CACHE_CONTROL.as_str(), "no-cache, no-store, must-revalidate"),
        (header::PRAGMA.as_str(), "no-cache"),
        ("builder-version", "1"),
        ("swarm", "inactive"),
    ];
    (headers, "OK").into_response()
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// `GET /version`.
pub(crate) async fn version(State(api): State<Api>) -> Response {
    let facts = &api.facts;
    let kernel = api.engine.kernel();
    let details = BTreeMap::from(
        [
            ("ApiVersion", API_VERSION),
            ("MinAPIVersion", MIN_API_VERSION),
            ("Arch", architecture()),
            ("Os", "linux"),
            ("GitCommit", &facts.commit),
            ("GoVersion", &facts.compiler),
            ("BuildTime", &facts.build_time),
            ("KernelVersion", &kernel),
            ("Experimental", "false"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned())),
    );
    json(&Version {
        platform: VersionPlatform { name: "Knarr".into() },
        components: vec![VersionComponent {
            name: "Engine".into(),
            version: facts.version.clone(),
            details: Some(details),
        }],
        version: facts.version.clone(),
        api_version: API_VERSION.into(),
        min_api_version: MIN_API_VERSION.into(),
        git_commit: facts.commit.clone(),
        go_version: facts.compiler.clone(),
        os: "linux".into(),
        arch: architecture().into(),
        kernel_version: kernel,
        build_time: facts.build_time.clone(),
    })
}

/// `GET /info`.
pub(crate) async fn info(State(api): State<Api>) -> Result<Response> {
    let info = api.engine.info().await?;
    let facts = &api.facts;
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let environment = |name: &str| std::env::var(name).unwrap_or_default();
    let forwards = std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward");
    let v1 = info.cgroup_version == 1;
    let driver_status = vec![["Using metacopy".into(), "false".into()]];
    let mut security = words(&["name=seccomp,profile=builtin"]);
    if info.apparmor {
        security.insert(0, "name=apparmor".into());
    }
    if !v1 {
        security.push("name=cgroupns".into());
    }
    let runtime = Runtime { path: "containerd-shim-knarr-v1".into() };
    Ok(json(&Info {
        id: info.id,
        containers: info.containers as i64,
        containers_running: info.running as i64,
        containers_paused: info.paused as i64,
        containers_stopped: info.stopped as i64,
        images: info.images as i64,
        driver: "overlay2".into(),
        driver_status: Some(driver_status),
        plugins: Plugins {
            volume: words(&["local"]),
            network: words(&["bridge", "host", "null"]),
            authorization: None,
            log: words(&["json-file", "local", "none"]),
        },
        memory_limit: true,
        swap_limit: info.swap_limit,
        cpu_cfs_period: true,
        cpu_cfs_quota: true,
        cpu_shares: true,
        cpu_set: true,
        pids_limit: true,
        ipv4_forwarding: forwards.is_ok_and(|text| text.trim() == "1"),
        debug: facts.debug,
        n_fd: std::fs::read_dir("/proc/self/fd").map_or(0, |fds| fds.count() as i64),
        oom_kill_disable: v1,
        n_goroutines: tokio::runtime::Handle::current().metrics().num_alive_tasks() as i64,
        system_time: format!("{:.9}", Timestamp::now()),
        logging_driver: "json-file".into(),
        cgroup_driver: "cgroupfs".into(),
        cgroup_version: info.cgroup_version.to_string(),
        kernel_version: info.kernel,
        operating_system: info.operating_system,
        os_type: "linux".into(),
        architecture: std::env::consts::ARCH.into(),
        index_server_address: "https://index.docker.io/v1/".into(),
        registry_config: Some(registries(facts)),
        ncpu: info.cpus.into(),
        mem_total: info.memory as i64,
        docker_root_dir: info.data_root.display().to_string(),
        http_proxy: proxy(&environment("HTTP_PROXY")),
        https_proxy: proxy(&environment("HTTPS_PROXY")),
        no_proxy: environment("NO_PROXY"),
        name: info.hostname,
        labels: facts.labels.clone(),
        server_version: facts.version.clone(),
        runtimes: BTreeMap::from([("knarr".to_owned(), runtime)]),
        default_runtime: "knarr".into(),
        swarm: SwarmInfo { local_node_state: "inactive".into(), ..SwarmInfo::default() },
        live_restore_enabled: true,
        init_binary: "knarr-init".into(),
        containerd_commit: Commit { id: "N/A".into() },
        runc_commit: Commit { id: "N/A".into() },
        init_commit: Commit { id: facts.version.clone() },
        security_options: security,
        warnings: Some(info.warnings).filter(|warnings| !warnings.is_empty()),
        ..Info::default()
    }))
}

/// A proxy's address without its password.
fn proxy(url: &str) -> String {
    match (url.find("://"), url.rfind('@')) {
        (Some(scheme), Some(at)) if scheme + 3 <= at => {
            format!("{}xxxxx:xxxxx{}", &url[..scheme + 3], &url[at..])
        }
        _ => url.to_owned(),
    }
}

fn registries(facts: &crate::Facts) -> serde_json::Value {
    let index = |name: &str, secure: bool, mirrors: &[String]| {
        serde_json::json!({
            "Name": name, "Mirrors": mirrors, "Secure": secure, "Official": name == "docker.io",
        })
    };
    let mut indexes = serde_json::Map::new();
    indexes.insert("docker.io".into(), index("docker.io", true, &facts.registry_mirrors));
    let mut networks = vec!["::1/128".to_owned(), "127.0.0.0/8".to_owned()];
    for registry in &facts.insecure_registries {
        match registry.contains('/') {
            true => networks.push(registry.clone()),
            false => {
                indexes.insert(registry.clone(), index(registry, false, &[]));
            }
        }
    }
    serde_json::json!({
        "IndexConfigs": indexes,
        "InsecureRegistryCIDRs": networks,
        "Mirrors": facts.registry_mirrors,
    })
}

/// `GET /system/df`.
pub(crate) async fn disk_usage(State(api): State<Api>, query: Query) -> Result<Response> {
    let kinds = query.all("type");
    let wants = |kind: &str| kinds.is_empty() || kinds.iter().any(|wanted| wanted == kind);
    if let Some(kind) = kinds
        .iter()
        .find(|kind| !["container", "image", "volume", "build-cache"].contains(&kind.as_str()))
    {
        return Err(ApiError::invalid(format!(
            "unknown object type: {}",
            crate::error::short(kind)
        )));
    }
    let mut usage = DiskUsage::default();
    let views = api.engine.list();
    if wants("image") {
        let (images, disk) = api.engine.image_usage().await?;
        // Whatever images take, also what is under way or was broken off.
        usage.layers_size = (disk.layers + disk.blobs + disk.staged) as i64;
        let mut users = BTreeMap::<_, i64>::new();
        views.iter().for_each(|view| *users.entry(view.image_id).or_default() += 1);
        for image in images {
            let id = image.id();
            let mut row = images::summary(&image);
            row.containers = users.get(&id).copied().unwrap_or_default();
            row.size = disk.sizes.get(&id).map_or(row.size, |bytes| *bytes as i64);
            row.shared_size = disk.shared.get(&id).map_or(0, |bytes| *bytes as i64);
            usage.images.push(row);
        }
    }
    if wants("container") {
        let now = Timestamp::now().as_second();
        for view in &views {
            let mut row = render::summary(view, now);
            if let Ok((writable, all)) = api.engine.size(view.id.as_str()).await {
                row.size_rw = Some(writable as i64);
                row.size_root_fs = Some(all as i64);
            }
            usage.containers.push(row);
        }
    }
    if wants("volume") {
        for used in api.engine.volume_usage().await? {
            let mut row = volumes::volume_row(&used.volume);
            row.usage_data = Some(VolumeUsage {
                ref_count: used.users as i64,
                size: used.bytes.map_or(-1, |bytes| bytes as i64),
            });
            usage.volumes.push(row);
        }
    }
    Ok(json(&usage))
}

/// `POST /build/prune`: there is no build cache, so that nothing is left of it
/// (`docker system prune` asks).
pub(crate) async fn prune_builds() -> Response {
    json(&serde_json::json!({ "CachesDeleted": [], "SpaceReclaimed": 0 }))
}

/// `POST /auth`: whether a registry lets these credentials in.
pub(crate) async fn auth(
    State(api): State<Api>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response> {
    let config: AuthConfig = query::json(&headers, body).await?;
    let server = config.serveraddress.clone();
    let bare = server.trim_start_matches("https://").trim_start_matches("http://");
    let domain = match bare.split('/').next().unwrap_or_default() {
        "" | "index.docker.io" | "registry-1.docker.io" => "docker.io",
        host => host,
    };
    // What a reference cannot name is no registry.
    let parsed: Reference = format!("{domain}/x")
        .parse()
        .map_err(|_| ApiError::invalid(format!("invalid registry {server:?}")))?;
    let json_config =
        serde_json::to_vec(&config).map_err(|error| ApiError::invalid(error.to_string()))?;
    let auth =
        Auth::from_json(&json_config).map_err(|error| ApiError::invalid(error.to_string()))?;
    api.engine.check_credentials(parsed.domain(), &auth).await?;
    Ok(json(&AuthResponse { status: "Login Succeeded".into(), ..AuthResponse::default() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a10_passwords_of_proxies_are_not_shown() {
        assert_eq!(proxy("http://u:p@proxy:1"), "http://xxxxx:xxxxx@proxy:1");
        assert_eq!(proxy("http://proxy:1"), "http://proxy:1");
    }
}

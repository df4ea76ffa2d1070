//! The verbs on the engine itself.

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use futures_util::StreamExt as _;
use http::Method;
use knarr_client::{Error, NOTHING, path};
use knarr_docker::{
    ContainersPruned, DiskUsage, Event, ImagesPruned, Info, NetworksPruned, Version, VolumesPruned,
};
use serde_json::{Value, json};

use super::{Context, confirmed, container, filters, image};
use crate::{
    output::{self, Listing},
    say::shown,
    template::Template,
};

/// Verbs that stand alone.
#[derive(Debug, Subcommand)]
pub enum SystemVerb {
    /// Show the Knarr version information
    Version {
        /// Format output using a Go template or "json"
        #[arg(short = 'f', long, value_name = "string")]
        format: Option<String>,
    },
    /// Display system-wide information
    Info {
        /// Format output using a Go template or "json"
        #[arg(short = 'f', long, value_name = "string")]
        format: Option<String>,
    },
    /// Return low-level information on objects
    Inspect(container::InspectArgs),
    /// Get real time events from the server
    Events(EventsArgs),
}

/// Verbs behind `system`.
#[derive(Debug, Subcommand)]
pub enum SystemGroup {
    /// Show disk usage
    Df {
        /// Show detailed information on space usage
        #[arg(short = 'v', long)]
        verbose: bool,
    },
    /// Display system-wide information
    Info {
        /// Format output using a Go template or "json"
        #[arg(short = 'f', long, value_name = "string")]
        format: Option<String>,
    },
    /// Get real time events from the server
    Events(EventsArgs),
    /// Remove unused data
    Prune(PruneArgs),
}

/// `knarr events`.
#[derive(Debug, Args)]
pub struct EventsArgs {
    /// Filter output based on conditions provided
    #[arg(short = 'f', long, value_name = "filter")]
    filter: Vec<String>,
    /// Format output using a Go template or "json"
    #[arg(long, value_name = "string")]
    format: Option<String>,
    /// Show all events created since timestamp
    #[arg(long, value_name = "string")]
    since: Option<String>,
    /// Stream events until this timestamp
    #[arg(long, value_name = "string")]
    until: Option<String>,
}

/// `prune`, of any kind.
#[derive(Debug, Args)]
pub struct PruneArgs {
    /// Remove all unused images, not just dangling ones; all volumes, not just anonymous ones
    #[arg(short = 'a', long)]
    all: bool,
    /// Provide filter values
    #[arg(long, value_name = "filter")]
    filter: Vec<String>,
    /// Do not prompt for confirmation
    #[arg(short = 'f', long)]
    force: bool,
    /// Prune anonymous volumes too (system prune)
    #[arg(long)]
    volumes: bool,
}

/// Carries out a verb that stands alone.
pub async fn execute(verb: SystemVerb, context: &Context) -> Result<u8> {
    match verb {
        SystemVerb::Version { format } => version(format.as_deref(), context).await,
        SystemVerb::Info { format } => info(format.as_deref(), context).await,
        SystemVerb::Inspect(args) => container::inspect(args, None, context).await,
        SystemVerb::Events(args) => events(args, context).await,
    }
}

/// Carries out a verb behind `system`.
pub async fn execute_group(verb: SystemGroup, context: &Context) -> Result<u8> {
    match verb {
        SystemGroup::Df { verbose } => disk_usage(verbose, context).await,
        SystemGroup::Info { format } => info(format.as_deref(), context).await,
        SystemGroup::Events(args) => events(args, context).await,
        SystemGroup::Prune(args) => prune_all(args, context).await,
    }
}

fn formatted(format: Option<&str>, data: &Value) -> Result<bool> {
    match format {
        None => return Ok(false),
        Some("json") => outln!("{data}"),
        Some(text) => outln!("{}", Template::parse(text)?.render(data)?),
    }
    Ok(true)
}

/// This program's architecture as OCI and Go name it.
const fn arch() -> &'static str {
    if cfg!(target_arch = "x86_64") { "amd64" } else { std::env::consts::ARCH }
}

async fn version(format: Option<&str>, context: &Context) -> Result<u8> {
    let server: Result<Version, Error> = context.client.get("/version").await;
    let own = json!({
        "Version": env!("CARGO_PKG_VERSION"),
        "ApiVersion": knarr_docker::API_VERSION,
        "Os": std::env::consts::OS,
        "Arch": arch(),
        "Context": "default",
    });
    let mut data = json!({ "Client": own, "Server": server.as_ref().ok() });
    if format != Some("json") {
        // The names that templates know are Go's, not the API's.
        for side in ["Client", "Server"] {
            for (name, go) in [("ApiVersion", "APIVersion"), ("MinAPIVersion", "MinAPIVersion")] {
                let value = data[side][name].clone();
                if data[side].is_object() && !value.is_null() {
                    data[side][go] = value;
                }
            }
        }
    }
    if formatted(format, &data)? {
        return Ok(0);
    }
    outln!(
        "Client: Knarr\n Version:           {}\n API version:       {}\n OS/Arch:           {}/{}",
        env!("CARGO_PKG_VERSION"),
        knarr_docker::API_VERSION,
        std::env::consts::OS,
        arch()
    );
    match server {
        Ok(server) => {
            outln!("\nServer: {}", server.platform.name);
            outln!(" Engine:\n  Version:          {}", server.version);
            outln!(
                "  API version:      {} (minimum version {})",
                server.api_version,
                server.min_api_version
            );
            outln!(
                "  OS/Arch:          {}/{}\n  Kernel version:   {}",
                server.os,
                server.arch,
                server.kernel_version
            );
            for component in server.components.iter().filter(|component| component.name != "Engine")
            {
                outln!(" {}:\n  Version:          {}", component.name, component.version);
            }
            Ok(0)
        }
        Err(error) => {
            errln!("{error}");
            Ok(1)
        }
    }
}

async fn info(format: Option<&str>, context: &Context) -> Result<u8> {
    let data: Value = context.client.get("/info").await?;
    if formatted(format, &data)? {
        return Ok(0);
    }
    let info: Info = serde_json::from_value(data)?;
    outln!("Client: Knarr\n Version:    {}\n\nServer:", env!("CARGO_PKG_VERSION"));
    outln!(" Containers: {}", info.containers);
    outln!(
        "  Running: {}\n  Paused: {}\n  Stopped: {}",
        info.containers_running,
        info.containers_paused,
        info.containers_stopped
    );
    outln!(
        " Images: {}\n Server Version: {}\n Storage Driver: {}",
        info.images,
        info.server_version,
        info.driver
    );
    for [name, value] in info.driver_status.iter().flatten() {
        outln!("  {name}: {value}");
    }
    outln!(
        " Logging Driver: {}\n Cgroup Driver: {}\n Cgroup Version: {}",
        info.logging_driver,
        info.cgroup_driver,
        info.cgroup_version
    );
    outln!(
        " Plugins:\n  Volume: {}\n  Network: {}\n  Log: {}",
        info.plugins.volume.join(" "),
        info.plugins.network.join(" "),
        info.plugins.log.join(" ")
    );
    let runtimes: Vec<&str> = info.runtimes.keys().map(String::as_str).collect();
    outln!(" Runtimes: {}\n Default Runtime: {}", runtimes.join(" "), info.default_runtime);
    outln!(" Security Options:");
    for option in &info.security_options {
        outln!("  {}", option.trim_start_matches("name=").replace(',', "\n   ").replace('=', ": "));
    }
    outln!(
        " Kernel Version: {}\n Operating System: {}",
        info.kernel_version,
        info.operating_system
    );
    outln!(" OSType: {}\n Architecture: {}\n CPUs: {}", info.os_type, info.architecture, info.ncpu);
    outln!(
        " Total Memory: {}\n Name: {}\n ID: {}",
        output::binary_size(info.mem_total.max(0) as u64),
        info.name,
        info.id
    );
    outln!(" Docker Root Dir: {}\n Debug Mode: {}", info.docker_root_dir, info.debug);
    outln!(" Live Restore Enabled: {}", info.live_restore_enabled);
    for warning in info.warnings.iter().flatten() {
        errln!("{warning}");
    }
    Ok(0)
}

async fn events(args: EventsArgs, context: &Context) -> Result<u8> {
    let filters = filters(&args.filter)?;
    let since = args.since.as_deref().map(container::moment).transpose()?;
    let until = args.until.as_deref().map(container::moment).transpose()?;
    let mut query = Vec::new();
    query.extend((!args.filter.is_empty()).then_some(("filters", filters.as_str())));
    query.extend(since.as_deref().map(|since| ("since", since)));
    query.extend(until.as_deref().map(|until| ("until", until)));
    let mut events = context.client.lines::<Event>(Method::GET, &path("/events", &query)).await?;
    while let Some(event) = events.next().await {
        let event = event?;
        if formatted(args.format.as_deref(), &serde_json::to_value(&event)?)? {
            continue;
        }
        let facts: Vec<String> = event
            .actor
            .attributes
            .iter()
            .map(|(key, value)| format!("{}={}", shown(key), shown(value)))
            .collect();
        let time = jiff::Timestamp::from_nanosecond(event.time_nano.into()).unwrap_or_default();
        outln!(
            "{time:.9} {} {} {} ({})",
            shown(&event.kind),
            shown(&event.action),
            shown(&event.actor.id),
            facts.join(", ")
        );
    }
    Ok(0)
}

async fn disk_usage(verbose: bool, context: &Context) -> Result<u8> {
    if verbose {
        bail!("system df --verbose is not supported yet: use images, ps -s and volume ls");
    }
    let usage: DiskUsage = context.client.get("/system/df").await?;
    let row = |kind: &str, total: usize, active: usize, size: i64, free: i64| {
        let percent = if size > 0 {
            format!(" ({}%)", i128::from(free) * 100 / i128::from(size))
        } else {
            String::new()
        };
        json!({
            "Type": kind, "TotalCount": total, "Active": active,
            "Size": output::whole_size(size),
            "Reclaimable": format!("{}{percent}", output::whole_size(free)),
        })
    };
    let used_images = usage.images.iter().filter(|image| image.containers > 0);
    // As Docker counts: what no image in use has for itself.
    let used: i64 = usage
        .images
        .iter()
        .filter(|image| image.containers > 0)
        .map(|image| image.size - image.shared_size.max(0))
        .sum();
    let size_of = |running: bool| -> i64 {
        usage
            .containers
            .iter()
            .filter(|one| !running || one.state == "running")
            .filter_map(|one| one.size_rw)
            .sum()
    };
    let running = usage.containers.iter().filter(|one| one.state == "running").count();
    let volume_size = |idle: bool| -> i64 {
        let counted = usage.volumes.iter().filter_map(|volume| volume.usage_data.as_ref());
        counted.filter(|data| !idle || data.ref_count == 0).map(|data| data.size.max(0)).sum()
    };
    let active = usage
        .volumes
        .iter()
        .filter(|volume| volume.usage_data.as_ref().is_some_and(|data| data.ref_count > 0))
        .count();
    let listing = Listing {
        default: "{{.Type}}\t{{.TotalCount}}\t{{.Active}}\t{{.Size}}\t{{.Reclaimable}}",
        headings: &[("TotalCount", "TOTAL")],
        rows: vec![
            row(
                "Images",
                usage.images.len(),
                used_images.count(),
                usage.layers_size,
                (usage.layers_size - used).max(0),
            ),
            row(
                "Containers",
                usage.containers.len(),
                running,
                size_of(false),
                size_of(false) - size_of(true),
            ),
            row(
                "Local Volumes",
                usage.volumes.len(),
                active,
                volume_size(false),
                volume_size(true),
            ),
            row("Build Cache", 0, 0, 0, 0),
        ],
    };
    listing.print(None, None)?;
    Ok(0)
}

fn report(heading: &str, names: &[String]) {
    if !names.is_empty() {
        let names: Vec<_> = names.iter().map(|name| shown(name)).collect();
        outln!("{heading}\n{}\n", names.join("\n"));
    }
}

fn report_total(reclaimed: u64) {
    outln!("Total reclaimed space: {}", output::whole_size(reclaimed as i64));
}

async fn post<T: serde::de::DeserializeOwned>(
    endpoint: &str,
    words: &[String],
    context: &Context,
) -> Result<T> {
    let filters = filters(words)?;
    Ok(context
        .client
        .json(Method::POST, &path(endpoint, &[("filters", &filters)]), NOTHING)
        .await?)
}

/// `container prune`.
pub async fn prune_containers(args: PruneArgs, context: &Context) -> Result<u8> {
    if confirmed(args.force, "This will remove all stopped containers.")? {
        report_total(containers_away(&args, context).await?);
    }
    Ok(0)
}

/// `image prune`.
pub async fn prune_images(args: PruneArgs, context: &Context) -> Result<u8> {
    let warning = match args.all {
        true => "This will remove all images without at least one container associated to them.",
        false => "This will remove all dangling images.",
    };
    if confirmed(args.force, warning)? {
        report_total(images_away(&args, context).await?);
    }
    Ok(0)
}

/// `network prune`.
pub async fn prune_networks(args: PruneArgs, context: &Context) -> Result<u8> {
    if confirmed(
        args.force,
        "This will remove all custom networks not used by at least one container.",
    )? {
        networks_away(&args, context).await?;
    }
    Ok(0)
}

/// `volume prune`.
pub async fn prune_volumes(args: PruneArgs, context: &Context) -> Result<u8> {
    let warning = match args.all {
        true => "This will remove all local volumes not used by at least one container.",
        false => "This will remove anonymous local volumes not used by at least one container.",
    };
    if confirmed(args.force, warning)? {
        report_total(volumes_away(&args, args.all, context).await?);
    }
    Ok(0)
}

async fn prune_all(args: PruneArgs, context: &Context) -> Result<u8> {
    let warning = "This will remove all stopped containers, all networks not used by at least one container and unused images.";
    if confirmed(args.force, warning)? {
        let mut reclaimed = containers_away(&args, context).await?;
        networks_away(&args, context).await?;
        if args.volumes {
            reclaimed += volumes_away(&args, false, context).await?;
        }
        reclaimed += images_away(&args, context).await?;
        report_total(reclaimed);
    }
    Ok(0)
}

async fn containers_away(args: &PruneArgs, context: &Context) -> Result<u64> {
    let pruned: ContainersPruned = post("/containers/prune", &args.filter, context).await?;
    report("Deleted Containers:", &pruned.containers_deleted.unwrap_or_default());
    Ok(pruned.space_reclaimed)
}

async fn images_away(args: &PruneArgs, context: &Context) -> Result<u64> {
    let mut words = args.filter.clone();
    words.push(format!("dangling={}", !args.all));
    let pruned: ImagesPruned = post("/images/prune", &words, context).await?;
    let deleted = pruned.images_deleted.unwrap_or_default();
    if !deleted.is_empty() {
        outln!("Deleted Images:");
        image::print_deleted(&deleted);
        outln!();
    }
    Ok(pruned.space_reclaimed)
}

async fn networks_away(args: &PruneArgs, context: &Context) -> Result<()> {
    let pruned: NetworksPruned = post("/networks/prune", &args.filter, context).await?;
    report("Deleted Networks:", &pruned.networks_deleted.unwrap_or_default());
    Ok(())
}

async fn volumes_away(args: &PruneArgs, all: bool, context: &Context) -> Result<u64> {
    let mut words = args.filter.clone();
    words.extend(all.then(|| "all=true".to_owned()));
    let pruned: VolumesPruned = post("/volumes/prune", &words, context).await?;
    report("Deleted Volumes:", &pruned.volumes_deleted.unwrap_or_default());
    Ok(pruned.space_reclaimed)
}

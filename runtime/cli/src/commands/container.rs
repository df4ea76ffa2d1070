//! The verbs on containers that need no terminal.

use std::io::Write as _;

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};
use futures_util::{StreamExt as _, future::join_all};
use http::Method;
use knarr_client::{Frames, NOTHING, encode, path};
use knarr_docker::{
    ContainerInspect, ContainerSummary, Port, Stats, StreamKind, TopResponse, WaitResponse,
};
use serde_json::{Value, json};

use super::{Context, filters, for_each, for_each_silent};
use crate::{
    options::units,
    output::{self, Listing},
    template::Template,
};

/// Verbs that stand both alone and behind `container`.
#[derive(Debug, Subcommand)]
pub enum ContainerVerb {
    /// List containers
    Ps(PsArgs),
    /// Stop one or more running containers
    Stop(StopArgs),
    /// Restart one or more containers
    Restart(StopArgs),
    /// Kill one or more running containers
    Kill {
        /// Signal to send to the container
        #[arg(short = 's', long, value_name = "string")]
        signal: Option<String>,
        /// Containers
        #[arg(required = true)]
        containers: Vec<String>,
    },
    /// Remove one or more containers
    #[command(alias = "remove")]
    Rm {
        /// Force the removal of a running container (uses SIGKILL)
        #[arg(short = 'f', long)]
        force: bool,
        /// Remove anonymous volumes associated with the container
        #[arg(short = 'v', long)]
        volumes: bool,
        /// Remove the specified link
        #[arg(short = 'l', long)]
        link: bool,
        /// Containers
        #[arg(required = true)]
        containers: Vec<String>,
    },
    /// Pause all processes within one or more containers
    Pause {
        /// Containers
        #[arg(required = true)]
        containers: Vec<String>,
    },
    /// Unpause all processes within one or more containers
    Unpause {
        /// Containers
        #[arg(required = true)]
        containers: Vec<String>,
    },
    /// Block until one or more containers stop, then print their exit codes
    Wait {
        /// Containers
        #[arg(required = true)]
        containers: Vec<String>,
    },
    /// Rename a container
    Rename {
        /// Container
        container: String,
        /// Its new name
        name: String,
    },
    /// Fetch the logs of a container
    Logs(LogsArgs),
    /// Display the running processes of a container
    Top {
        /// Container
        container: String,
        /// Options of ps
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<String>,
    },
    /// List port mappings or a specific mapping for the container
    Port {
        /// Container
        container: String,
        /// PRIVATE_PORT[/PROTO]
        port: Option<String>,
    },
    /// Display a live stream of container(s) resource usage statistics
    Stats(StatsArgs),
}

/// `knarr ps`.
#[derive(Debug, Args)]
pub struct PsArgs {
    /// Show all containers (default shows just running)
    #[arg(short = 'a', long)]
    all: bool,
    /// Filter output based on conditions provided
    #[arg(short = 'f', long, value_name = "filter")]
    filter: Vec<String>,
    /// Format output using a Go template, "table TEMPLATE" or "json"
    #[arg(long, value_name = "string")]
    format: Option<String>,
    /// Show n last created containers (includes all states)
    #[arg(short = 'n', long, value_name = "int", allow_negative_numbers = true)]
    last: Option<i64>,
    /// Show the latest created container (includes all states)
    #[arg(short = 'l', long)]
    latest: bool,
    /// Don't truncate output
    #[arg(long)]
    no_trunc: bool,
    /// Only display container IDs
    #[arg(short = 'q', long)]
    quiet: bool,
    /// Display total file sizes
    #[arg(short = 's', long)]
    size: bool,
}

/// `knarr stop` and `knarr restart`.
#[derive(Debug, Args)]
pub struct StopArgs {
    /// Signal to send to the container
    #[arg(short = 's', long, value_name = "string")]
    signal: Option<String>,
    /// Seconds to wait before killing the container
    #[arg(short = 't', long, alias = "time", value_name = "int", allow_negative_numbers = true)]
    timeout: Option<i64>,
    /// Containers
    #[arg(required = true)]
    containers: Vec<String>,
}

/// `knarr logs`.
#[derive(Debug, Args)]
pub struct LogsArgs {
    /// Show extra details provided to logs
    #[arg(long)]
    details: bool,
    /// Follow log output
    #[arg(short = 'f', long)]
    follow: bool,
    /// Show logs since timestamp (e.g. "2013-01-02T13:23:37Z") or relative (e.g. "42m" for 42 minutes)
    #[arg(long, value_name = "string")]
    since: Option<String>,
    /// Number of lines to show from the end of the logs
    #[arg(short = 'n', long, value_name = "string", default_value = "all")]
    tail: String,
    /// Show timestamps
    #[arg(short = 't', long)]
    timestamps: bool,
    /// Show logs before a timestamp or relative
    #[arg(long, value_name = "string")]
    until: Option<String>,
    /// Container
    container: String,
}

/// `knarr stats`.
#[derive(Debug, Args)]
pub struct StatsArgs {
    /// Show all containers (default shows just running)
    #[arg(short = 'a', long)]
    all: bool,
    /// Format output using a Go template, "table TEMPLATE" or "json"
    #[arg(long, value_name = "string")]
    format: Option<String>,
    /// Disable streaming stats and only pull the first result
    #[arg(long)]
    no_stream: bool,
    /// Do not truncate output
    #[arg(long)]
    no_trunc: bool,
    /// Containers
    containers: Vec<String>,
}

/// `knarr inspect`, for any object.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// Format output using a Go template or "json"
    #[arg(short = 'f', long, value_name = "string")]
    pub format: Option<String>,
    /// Display total file sizes if the type is container
    #[arg(short = 's', long)]
    pub size: bool,
    /// Only inspect objects of the given type
    #[arg(long = "type", value_name = "string")]
    pub kind: Option<String>,
    /// Names or ids
    #[arg(required = true)]
    pub names: Vec<String>,
}

/// Carries out a verb.
pub async fn execute(verb: ContainerVerb, context: &Context) -> Result<u8> {
    let client = &context.client;
    let post = async |name: &str, rest: &str| -> Result<()> {
        client.post(&format!("/containers/{}/{rest}", encode(name))).await?;
        Ok(())
    };
    match verb {
        ContainerVerb::Ps(args) => list(args, context).await,
        ContainerVerb::Stop(args) => {
            let rest = stop_path("stop", &args);
            for_each(&args.containers, async |name| post(name, &rest).await).await
        }
        ContainerVerb::Restart(args) => {
            let rest = stop_path("restart", &args);
            for_each(&args.containers, async |name| post(name, &rest).await).await
        }
        ContainerVerb::Kill { signal, containers } => {
            let rest = path(
                "kill",
                &signal.as_deref().map(|signal| ("signal", signal)).into_iter().collect::<Vec<_>>(),
            );
            for_each(&containers, async |name| post(name, &rest).await).await
        }
        ContainerVerb::Rm { force, volumes, link, containers } => {
            let flag = |on: bool| if on { "1" } else { "0" };
            let query = [("force", flag(force)), ("v", flag(volumes)), ("link", flag(link))];
            for_each_silent(&containers, async |name| {
                let gone =
                    client.delete(&path(&format!("/containers/{}", encode(name)), &query)).await;
                match gone {
                    // What is not there need not be forced away.
                    Err(error) if force && error.status() == Some(404) => {
                        errln!("{error}");
                        Ok(())
                    }
                    gone => gone.map(|()| outln!("{name}")).map_err(Into::into),
                }
            })
            .await
        }
        ContainerVerb::Pause { containers } => {
            for_each(&containers, async |name| post(name, "pause").await).await
        }
        ContainerVerb::Unpause { containers } => {
            for_each(&containers, async |name| post(name, "unpause").await).await
        }
        ContainerVerb::Rename { container, name } => {
            post(&container, &path("rename", &[("name", &name)])).await?;
            Ok(0)
        }
        ContainerVerb::Wait { containers } => {
            let mut failed = false;
            for name in &containers {
                let path = format!("/containers/{}/wait", encode(name));
                match client.json::<WaitResponse>(Method::POST, &path, NOTHING).await {
                    Ok(answer) => outln!("{}", answer.status_code),
                    Err(error) => {
                        errln!("{error}");
                        failed = true;
                    }
                }
            }
            Ok(failed.into())
        }
        ContainerVerb::Logs(args) => logs(args, context).await,
        ContainerVerb::Top { container, options } => top(&container, &options, context).await,
        ContainerVerb::Port { container, port } => {
            ports(&container, port.as_deref(), context).await
        }
        ContainerVerb::Stats(args) => stats(args, context).await,
    }
}

fn stop_path(verb: &str, args: &StopArgs) -> String {
    let timeout = args.timeout.map(|seconds| seconds.to_string());
    let mut query = Vec::new();
    query.extend(timeout.as_deref().map(|seconds| ("t", seconds)));
    query.extend(args.signal.as_deref().map(|signal| ("signal", signal)));
    path(verb, &query)
}

/// `knarr ps`.
pub async fn list(args: PsArgs, context: &Context) -> Result<u8> {
    let filters = filters(&args.filter)?;
    let last = if args.latest { Some(1) } else { args.last.filter(|last| *last > 0) };
    let last = last.map(|last| last.to_string());
    let size = args.size
        || args.format.as_deref().is_some_and(|f| f.contains(".Size") || f.contains("json"));
    let mut query = vec![("all", if args.all || last.is_some() { "1" } else { "0" })];
    query.extend((!args.filter.is_empty()).then_some(("filters", filters.as_str())));
    query.extend(last.as_deref().map(|last| ("limit", last)));
    query.extend(size.then_some(("size", "1")));
    let containers: Vec<ContainerSummary> =
        context.client.get(&path("/containers/json", &query)).await?;
    let listing = Listing {
        default: if args.size {
            "{{.ID}}\t{{.Image}}\t{{.Command}}\t{{.RunningFor}}\t{{.Status}}\t{{.Ports}}\t{{.Names}}\t{{.Size}}"
        } else {
            "{{.ID}}\t{{.Image}}\t{{.Command}}\t{{.RunningFor}}\t{{.Status}}\t{{.Ports}}\t{{.Names}}"
        },
        headings: &[
            ("ID", "CONTAINER ID"),
            ("RunningFor", "CREATED"),
            ("CreatedAt", "CREATED AT"),
            ("LocalVolumes", "LOCAL VOLUMES"),
        ],
        rows: containers.iter().map(|container| row(container, args.no_trunc)).collect(),
    };
    listing.print(args.format.as_deref(), args.quiet.then_some("ID"))?;
    Ok(0)
}

fn row(container: &ContainerSummary, whole: bool) -> Value {
    let names: Vec<&str> =
        container.names.iter().map(|name| name.trim_start_matches('/')).collect();
    let image = match container.image.strip_prefix("sha256:") {
        Some(_) if !whole => output::short(&container.image).to_owned(),
        _ if container.image.is_empty() => "<no image>".to_owned(),
        _ => container.image.clone(),
    };
    let command =
        if whole { container.command.clone() } else { output::ellipsis(&container.command, 20) };
    let networks: Vec<&str> = container
        .network_settings
        .iter()
        .flat_map(|settings| settings.networks.keys().map(String::as_str))
        .collect();
    let mounts: Vec<String> = container
        .mounts
        .iter()
        .map(|mount| if mount.name.is_empty() { &mount.source } else { &mount.name })
        .map(|name| if whole { name.clone() } else { output::ellipsis(name, 15) })
        .collect();
    let labels: Vec<String> =
        container.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let size = container.size_rw.map(|size| match container.size_root_fs {
        Some(all) if all > 0 => format!("{} (virtual {})", output::size(size), output::size(all)),
        _ => output::size(size),
    });
    json!({
        "ID": if whole { &container.id } else { output::short(&container.id) },
        "Names": names.join(","),
        "Image": image,
        "Command": serde_json::to_string(&command).unwrap_or_default(),
        "CreatedAt": output::time(container.created),
        "RunningFor": output::ago(container.created),
        "Ports": display_ports(&container.ports),
        "State": container.state,
        "Status": container.status,
        "Size": size.unwrap_or_else(|| "0B".into()),
        "Labels": labels.join(","),
        "Mounts": mounts.join(","),
        "LocalVolumes": container.mounts.iter().filter(|mount| mount.kind == "volume").count().to_string(),
        "Networks": networks.join(","),
        "Platform": Value::Null,
        "Workload": container.knarr.as_ref().map_or("", |knarr| knarr.workload.as_str()),
    })
}

/// `0.0.0.0:8080->80/tcp, 443/tcp`. Neighbouring ports are one range where
/// inside and outside agree (docker/cli `DisplayablePorts`).
fn display_ports(ports: &[Port]) -> String {
    let mut sorted: Vec<&Port> = ports.iter().collect();
    sorted.sort_by_key(|port| {
        (port.private_port, port.ip.clone(), port.public_port, port.kind.clone())
    });
    // Address and protocol, first and last port, in the order of their first.
    let mut groups: Vec<((&str, &str), u16, u16)> = Vec::new();
    let mut shown = Vec::new();
    let mut single = Vec::new();
    let show = |((ip, kind), first, last): ((&str, &str), u16, u16)| {
        let range = if first == last { first.to_string() } else { format!("{first}-{last}") };
        match ip {
            "" => format!("{range}/{kind}"),
            ip => format!("{}:{range}->{range}/{kind}", bracketed(ip)),
        }
    };
    for port in sorted {
        if !port.ip.is_empty() && port.public_port != port.private_port {
            let outside = format!("{}:{}", bracketed(&port.ip), port.public_port);
            single.push(format!("{outside}->{}/{}", port.private_port, port.kind));
            continue;
        }
        let key = (port.ip.as_str(), port.kind.as_str());
        match groups.iter_mut().find(|(known, ..)| *known == key) {
            None => groups.push((key, port.private_port, port.private_port)),
            Some((.., last)) if last.checked_add(1) == Some(port.private_port) => {
                *last = port.private_port;
            }
            Some(group) => {
                shown.push(show(*group));
                *group = (key, port.private_port, port.private_port);
            }
        }
    }
    shown.extend(groups.into_iter().map(show));
    shown.extend(single);
    shown.join(", ")
}

fn bracketed(address: &str) -> String {
    if address.contains(':') { format!("[{address}]") } else { address.to_owned() }
}

async fn logs(args: LogsArgs, context: &Context) -> Result<u8> {
    let client = &context.client;
    let inspect: ContainerInspect =
        client.get(&format!("/containers/{}/json", encode(&args.container))).await?;
    let flag = |on: bool| if on { "1" } else { "0" };
    let since =
        args.since.as_deref().map(moment).transpose().context("invalid value for \"since\"")?;
    let until =
        args.until.as_deref().map(moment).transpose().context("invalid value for \"until\"")?;
    let mut query = vec![
        ("stdout", "1"),
        ("stderr", "1"),
        ("follow", flag(args.follow)),
        ("timestamps", flag(args.timestamps)),
        ("details", flag(args.details)),
        ("tail", args.tail.as_str()),
    ];
    query.extend(since.as_deref().map(|since| ("since", since)));
    query.extend(until.as_deref().map(|until| ("until", until)));
    let mut bytes =
        client.bytes(&path(&format!("/containers/{}/logs", inspect.id), &query)).await?;
    let mut frames = Frames::new(inspect.config.tty);
    let (mut stdout, mut stderr) = (std::io::stdout().lock(), std::io::stderr().lock());
    while let Some(chunk) = bytes.next().await {
        frames.feed(&chunk?);
        while let Some((kind, piece)) = frames.next_piece() {
            let written = match kind {
                StreamKind::Stderr | StreamKind::System => stderr.write_all(&piece),
                _ => stdout.write_all(&piece),
            };
            if written.is_err() {
                // Whoever read us has gone (head, less): nothing is owed.
                return Ok(0);
            }
        }
        stdout.flush().or_else(|error| {
            if error.kind() == std::io::ErrorKind::BrokenPipe { Ok(()) } else { Err(error) }
        })?;
    }
    Ok(0)
}

/// Seconds since 1970 from RFC 3339, a unix time or a duration into the past.
pub fn moment(text: &str) -> Result<String> {
    if text.parse::<f64>().is_ok() {
        return Ok(text.to_owned());
    }
    let now = jiff::Timestamp::now();
    let time = if let Ok(nanoseconds) = units::duration(text) {
        now - jiff::SignedDuration::from_nanos(nanoseconds)
    } else if let Ok(time) = text.parse::<jiff::Timestamp>() {
        time
    } else {
        let local: jiff::civil::DateTime = text
            .parse()
            .with_context(|| format!("failed to parse value as time or duration: {text:?}"))?;
        local.to_zoned(jiff::tz::TimeZone::system())?.timestamp()
    };
    Ok(format!("{}.{:09}", time.as_second(), time.subsec_nanosecond()))
}

async fn top(container: &str, options: &[String], context: &Context) -> Result<u8> {
    let words = options.join(" ");
    let query: Vec<(&str, &str)> =
        if options.is_empty() { Vec::new() } else { vec![("ps_args", &words)] };
    let answer: TopResponse = context
        .client
        .get(&path(&format!("/containers/{}/top", encode(container)), &query))
        .await?;
    let lines: Vec<String> = std::iter::once(&answer.titles)
        .chain(&answer.processes)
        .map(|cells| output::joined(cells))
        .collect();
    out!("{}", output::align_wide(&lines, 20));
    Ok(0)
}

async fn ports(container: &str, port: Option<&str>, context: &Context) -> Result<u8> {
    let inspect: ContainerInspect =
        context.client.get(&format!("/containers/{}/json", encode(container))).await?;
    let ports = inspect.network_settings.ports.unwrap_or_default();
    let show = |binding: &knarr_docker::HostPortBinding| {
        format!("{}:{}", bracketed(&binding.host_ip), binding.host_port)
    };
    if let Some(port) = port {
        let wanted = if port.contains('/') { port.to_owned() } else { format!("{port}/tcp") };
        let Some(Some(bindings)) = ports.get(&wanted) else {
            errln!("Error: No public port '{port}' published for {container}");
            return Ok(1);
        };
        bindings.iter().for_each(|binding| outln!("{}", show(binding)));
        return Ok(0);
    }
    for (port, bindings) in &ports {
        for binding in bindings.iter().flatten() {
            outln!("{port} -> {}", show(binding));
        }
    }
    Ok(0)
}

async fn stats(args: StatsArgs, context: &Context) -> Result<u8> {
    let client = &context.client;
    loop {
        let names = if args.containers.is_empty() {
            let query = [("all", if args.all { "1" } else { "0" })];
            let all: Vec<ContainerSummary> = client.get(&path("/containers/json", &query)).await?;
            all.into_iter().map(|container| container.id).collect()
        } else {
            args.containers.clone()
        };
        // Each answer takes a second, for there are two samples in it: all at once.
        let samples = join_all(names.iter().map(|name| {
            let path = format!("/containers/{}/stats?stream=false", encode(name));
            async move { client.get::<Stats>(&path).await }
        }))
        .await;
        let mut rows = Vec::new();
        for (name, sample) in names.iter().zip(samples) {
            match sample {
                Ok(sample) => rows.push(usage(&sample, args.no_trunc)),
                Err(error) if !args.containers.is_empty() => {
                    return Err(error).context(name.clone());
                }
                // It went between the list and its sample.
                Err(_) => {}
            }
        }
        let listing = Listing {
            default: "{{.ID}}\t{{.Name}}\t{{.CPUPerc}}\t{{.MemUsage}}\t{{.MemPerc}}\t{{.NetIO}}\t{{.BlockIO}}\t{{.PIDs}}",
            headings: &[
                ("ID", "CONTAINER ID"),
                ("CPUPerc", "CPU %"),
                ("MemUsage", "MEM USAGE / LIMIT"),
                ("MemPerc", "MEM %"),
                ("NetIO", "NET I/O"),
                ("BlockIO", "BLOCK I/O"),
            ],
            rows,
        };
        if !args.no_stream && args.format.is_none() {
            // The screen is cleared.
            std::io::stdout().write_all(b"\x1b[2J\x1b[H")?;
        }
        listing.print(args.format.as_deref(), None)?;
        if args.no_stream {
            return Ok(0);
        }
        std::io::stdout().flush()?;
    }
}

fn usage(stats: &Stats, whole: bool) -> Value {
    let cpu = {
        let used = stats.cpu_stats.cpu_usage.total_usage as f64
            - stats.precpu_stats.cpu_usage.total_usage as f64;
        let all =
            stats.cpu_stats.system_cpu_usage as f64 - stats.precpu_stats.system_cpu_usage as f64;
        let count = f64::from(stats.cpu_stats.online_cpus.max(1));
        if used > 0.0 && all > 0.0 { used / all * count * 100.0 } else { 0.0 }
    };
    // What could be dropped at once is not counted (docker/cli `calculateMemUsageUnixNoCache`).
    let memory = &stats.memory_stats;
    let cache = memory
        .stats
        .as_ref()
        .and_then(|map| map.get("total_inactive_file").or_else(|| map.get("inactive_file")))
        .copied()
        .unwrap_or(0);
    let used = if cache < memory.usage { memory.usage - cache } else { memory.usage };
    let percent = if memory.limit > 0 { used as f64 / memory.limit as f64 * 100.0 } else { 0.0 };
    let network = stats.networks.iter().flat_map(|map| map.values());
    let (received, sent) =
        network.fold((0, 0), |(rx, tx), one| (rx + one.rx_bytes, tx + one.tx_bytes));
    let disk = stats.blkio_stats.io_service_bytes_recursive.iter().flatten();
    let (read, written) = disk.fold((0, 0), |(read, written), one| match one.op.as_str() {
        "read" | "Read" => (read + one.value, written),
        "write" | "Write" => (read, written + one.value),
        _ => (read, written),
    });
    json!({
        "ID": if whole { &stats.id } else { output::short(&stats.id) },
        "Container": if whole { &stats.id } else { output::short(&stats.id) },
        "Name": stats.name.trim_start_matches('/'),
        "CPUPerc": format!("{cpu:.2}%"),
        "MemUsage": format!("{} / {}", output::binary_size(used), output::binary_size(memory.limit)),
        "MemPerc": format!("{percent:.2}%"),
        "NetIO": format!("{} / {}", output::size(received as i64), output::size(sent as i64)),
        "BlockIO": format!("{} / {}", output::size(read as i64), output::size(written as i64)),
        "PIDs": stats.pids_stats.current,
    })
}

/// `knarr inspect` and `knarr container|image|network|volume inspect`.
pub async fn inspect(args: InspectArgs, kind: Option<&str>, context: &Context) -> Result<u8> {
    let kind = kind.map(str::to_owned).or(args.kind);
    let kinds: Vec<&str> = match kind.as_deref() {
        None => vec!["container", "image", "network", "volume"],
        Some(kind @ ("container" | "image" | "network" | "volume")) => vec![kind],
        Some(other) => bail!("{other:?} is not a valid value for --type"),
    };
    let template = match args.format.as_deref() {
        None | Some("json") => None,
        Some(text) => Some(Template::parse(&text.replace("\\t", "\t").replace("\\n", "\n"))?),
    };
    let mut objects = Vec::new();
    let mut errors = Vec::new();
    for name in &args.names {
        match find(name, &kinds, args.size, context).await? {
            Ok(object) => objects.push(object),
            Err(Some(error)) if kinds.len() == 1 => errors.push(error.to_string()),
            Err(_) => errors.push(format!("Error: No such object: {name}")),
        }
    }
    if let Some(template) = template {
        for object in &objects {
            let data: Value = serde_json::from_str(object)?;
            outln!("{}", template.render(&data)?);
        }
    } else if args.format.is_some() {
        outln!("[{}]", objects.join(","));
    } else {
        outln!("{}", indent(&format!("[{}]", objects.join(","))));
    }
    errors.iter().for_each(|error| errln!("{error}"));
    Ok((!errors.is_empty()).into())
}

/// The first object of that name, as the engine wrote it.
async fn find(
    name: &str,
    kinds: &[&str],
    size: bool,
    context: &Context,
) -> Result<Result<String, Option<knarr_client::Error>>> {
    let mut missing = None;
    for kind in kinds {
        let name = encode(name);
        let path = match *kind {
            "container" if size => format!("/containers/{name}/json?size=1"),
            "container" => format!("/containers/{name}/json"),
            "image" => format!("/images/{name}/json"),
            "network" => format!("/networks/{name}"),
            _ => format!("/volumes/{name}"),
        };
        match context.client.send(Method::GET, &path, NOTHING).await {
            Ok(answer) => {
                let bytes = knarr_client::whole(answer).await?;
                return Ok(Ok(String::from_utf8(bytes.to_vec())?.trim().to_owned()));
            }
            // What is no name of one kind may be one of another.
            Err(error)
                if matches!(error.status(), Some(404))
                    || (kinds.len() > 1 && error.status() == Some(400)) =>
            {
                missing = Some(error);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Err(missing))
}

/// JSON laid out with four spaces, its fields in the order they came (Go `json.Indent`).
fn indent(text: &str) -> String {
    let mut out = String::with_capacity(text.len() * 2);
    let mut depth = 0_usize;
    let (mut quoted, mut escaped) = (false, false);
    let mut chars = text.chars().peekable();
    let line = |out: &mut String, depth: usize| {
        out.push('\n');
        out.extend(std::iter::repeat_n("    ", depth));
    };
    while let Some(c) = chars.next() {
        if quoted {
            out.push(c);
            match c {
                _ if escaped => escaped = false,
                '\\' => escaped = true,
                '"' => quoted = false,
                _ => {}
            }
            continue;
        }
        match c {
            '"' => {
                quoted = true;
                out.push(c);
            }
            '{' | '[' => {
                out.push(c);
                while chars.next_if(|c| c.is_whitespace()).is_some() {}
                if let Some(close) =
                    chars.next_if(|next| matches!((c, *next), ('{', '}') | ('[', ']')))
                {
                    out.push(close);
                } else {
                    depth += 1;
                    line(&mut out, depth);
                }
            }
            '}' | ']' => {
                depth = depth.saturating_sub(1);
                line(&mut out, depth);
                out.push(c);
            }
            ',' => {
                out.push(c);
                line(&mut out, depth);
            }
            ':' => out.push_str(": "),
            c if c.is_whitespace() => {}
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(ip: &str, public_port: u16, private_port: u16) -> Port {
        Port { ip: ip.into(), private_port, public_port, kind: "tcp".into() }
    }

    #[test]
    fn ports_are_shown_as_docker_shows_them() {
        assert_eq!(display_ports(&[port("", 0, 80)]), "80/tcp");
        assert_eq!(
            display_ports(&[port("0.0.0.0", 8080, 80), port("::", 8080, 80)]),
            "0.0.0.0:8080->80/tcp, [::]:8080->80/tcp"
        );
        assert_eq!(
            display_ports(&[port("0.0.0.0", 8001, 81), port("0.0.0.0", 8000, 80)]),
            "0.0.0.0:8000->80/tcp, 0.0.0.0:8001->81/tcp"
        );
        assert_eq!(
            display_ports(&[port("::", 81, 81), port("::", 80, 80), port("", 0, 90)]),
            "[::]:80-81->80-81/tcp, 90/tcp"
        );
    }

    #[test]
    fn json_is_laid_out_in_its_own_order() {
        assert_eq!(
            indent(r#"{"b":[1,{}],"a":"x,\"{"}"#),
            "{\n    \"b\": [\n        1,\n        {}\n    ],\n    \"a\": \"x,\\\"{\"\n}"
        );
    }
}

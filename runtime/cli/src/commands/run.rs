//! `run`, `create`, `start`, `attach`: a container and this terminal.
//!
//! ```text
//!   create (pull where missing) ─> attach ─> wait registered ─> start ─> streams to their end ─> exit code
//! ```
//!
//! Attaching and registering the wait before the start means that no output
//! and no exit can be missed, however short the container's life.

use std::{fs, sync::PoisonError};

use anyhow::{Result, bail, ensure};
use clap::Args;
use http::Method;
use knarr_client::{Client, Error, Hijacked, NOTHING, encode, path};
use knarr_docker::{ContainerCreateResponse, ContainerInspect, WaitResponse};

use super::{Context, auth, image};
use crate::{
    options::{
        create::{Attached, CreateArgs},
        mounts,
    },
    session::{self, Ended, Join},
    terminal,
};

/// `knarr run`.
#[derive(Debug, Args)]
#[command(disable_help_flag = true)]
pub struct RunArgs {
    /// Print usage
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
    /// Run container in background and print container ID
    #[arg(short = 'd', long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = false, value_name = "bool", action = clap::ArgAction::Set)]
    detach: bool,
    /// Override the key sequence for detaching a container
    #[arg(long, value_name = "string")]
    detach_keys: Option<String>,
    /// Proxy received signals to the process
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = true, value_name = "bool", action = clap::ArgAction::Set)]
    sig_proxy: bool,
    #[command(flatten)]
    create: CreateArgs,
}

/// `knarr create`.
#[derive(Debug, Args)]
#[command(disable_help_flag = true)]
pub struct CreateCommand {
    /// Print usage
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
    #[command(flatten)]
    create: CreateArgs,
}

/// `knarr start`.
#[derive(Debug, Args)]
pub struct StartArgs {
    /// Attach STDOUT/STDERR and forward signals
    #[arg(short = 'a', long)]
    attach: bool,
    /// Override the key sequence for detaching a container
    #[arg(long, value_name = "string")]
    detach_keys: Option<String>,
    /// Attach container's STDIN
    #[arg(short = 'i', long)]
    interactive: bool,
    /// Containers
    #[arg(required = true)]
    containers: Vec<String>,
}

/// `knarr attach`.
#[derive(Debug, Args)]
pub struct AttachArgs {
    /// Override the key sequence for detaching a container
    #[arg(long, value_name = "string")]
    detach_keys: Option<String>,
    /// Do not attach STDIN
    #[arg(long)]
    no_stdin: bool,
    /// Proxy all received signals to the process
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = true, value_name = "bool", action = clap::ArgAction::Set)]
    sig_proxy: bool,
    /// Container
    container: String,
}

/// Creates and runs a container.
pub async fn run(args: RunArgs, context: &Context) -> Result<u8> {
    let attached = args.create.attached(args.detach);
    if args.create.tty && attached.stdin && !terminal::stdin_is_terminal() {
        bail!("the input device is not a TTY");
    }
    let outcome = async {
        ensure!(
            !args.detach || args.create.attach.is_empty(),
            "conflicting options: cannot specify both --attach and --detach"
        );
        create_container(&args.create, args.detach, context).await
    };
    let created = match outcome.await {
        Ok(created) => created,
        Err(error) => return Ok(report_start(&error)),
    };
    let client = &context.client;
    if !attached.any() {
        let started = client.post(&format!("/containers/{}/start", created.id)).await;
        outln!("{}", created.id);
        return Ok(started.map_or_else(|error| report_start(&error.into()), |_| 0));
    }
    let session = Session {
        client,
        id: &created.id,
        attached,
        tty: args.create.tty,
        open_stdin: args.create.interactive,
        sig_proxy: args.sig_proxy && !args.create.tty,
        detach_keys: args.detach_keys.as_deref(),
        condition: if args.create.rm { "removed" } else { "next-exit" },
    };
    session.start().await
}

/// Creates a container and prints its id.
pub async fn create(args: CreateCommand, context: &Context) -> Result<u8> {
    let created = create_container(&args.create, false, context).await?;
    outln!("{}", created.id);
    Ok(0)
}

/// Starts containers that exist.
pub async fn start(args: StartArgs, context: &Context) -> Result<u8> {
    let client = &context.client;
    if !args.attach && !args.interactive {
        let failed = std::sync::Mutex::new(Vec::new());
        let code = super::for_each(&args.containers, async |name| {
            let started = client.post(&format!("/containers/{}/start", encode(name))).await;
            if started.is_err() {
                failed.lock().unwrap_or_else(PoisonError::into_inner).push(name.to_owned());
            }
            Ok(started.map(drop)?)
        })
        .await?;
        let failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
        if !failed.is_empty() {
            errln!("Error: failed to start containers: {}", failed.join(", "));
        }
        return Ok(code);
    }
    ensure!(args.containers.len() == 1, "you cannot start and attach multiple containers at once");
    let inspect: ContainerInspect =
        client.get(&format!("/containers/{}/json", encode(&args.containers[0]))).await?;
    let session = Session {
        client,
        id: &inspect.id,
        attached: Attached {
            stdin: args.interactive && inspect.config.open_stdin,
            stdout: true,
            stderr: true,
        },
        tty: inspect.config.tty,
        open_stdin: inspect.config.open_stdin,
        sig_proxy: !inspect.config.tty,
        detach_keys: args.detach_keys.as_deref(),
        condition: if inspect.host_config.auto_remove { "removed" } else { "next-exit" },
    };
    session.start().await
}

/// Attaches to a container that runs.
pub async fn attach(args: AttachArgs, context: &Context) -> Result<u8> {
    let client = &context.client;
    let inspect: ContainerInspect =
        client.get(&format!("/containers/{}/json", encode(&args.container))).await?;
    ensure!(inspect.state.running, "You cannot attach to a stopped container, start it first");
    ensure!(!inspect.state.paused, "You cannot attach to a paused container, unpause it first");
    let stdin = !args.no_stdin && inspect.config.open_stdin;
    ensure!(
        !(inspect.config.tty && stdin && !terminal::stdin_is_terminal()),
        "the input device is not a TTY"
    );
    let session = Session {
        client,
        id: &inspect.id,
        attached: Attached { stdin, stdout: true, stderr: true },
        tty: inspect.config.tty,
        open_stdin: inspect.config.open_stdin,
        sig_proxy: args.sig_proxy && !inspect.config.tty,
        detach_keys: args.detach_keys.as_deref(),
        condition: "not-running",
    };
    session.join_running().await
}

/// Creates a container, and pulls its image where that is missing and allowed.
async fn create_container(
    args: &CreateArgs,
    detach: bool,
    context: &Context,
) -> Result<ContainerCreateResponse> {
    ensure!(
        matches!(args.pull.as_str(), "always" | "missing" | "never"),
        "invalid pull option: '{}': must be one of \"always\", \"missing\" or \"never\"",
        args.pull
    );
    if let Some(file) = &args.cidfile {
        ensure!(
            !mounts::exists(file),
            "container ID file found, make sure the other container isn't running or delete {file}"
        );
    }
    let request = args.request(detach)?;
    let wanted = args.image()?;
    let mut query = Vec::new();
    query.extend(args.name.as_deref().map(|name| ("name", name)));
    query.extend(args.platform.as_deref().map(|platform| ("platform", platform)));
    let path = path("/containers/create", &query);
    let pull = async || {
        let header = auth::header(&context.config, wanted);
        image::pull(&context.client, wanted, args.platform.as_deref(), header, args.quiet, true)
            .await
    };
    if args.pull == "always" {
        pull().await?;
    }
    let mut answer = context.client.json(Method::POST, &path, Some(&request)).await;
    if let Err(Error::Api { status: 404, message }) = &answer
        && args.pull == "missing"
        && message.contains("o such image")
    {
        if !args.quiet {
            errln!("Unable to find image '{}' locally", image::familiar(wanted));
        }
        pull().await?;
        answer = context.client.json(Method::POST, &path, Some(&request)).await;
    }
    let created: ContainerCreateResponse = answer?;
    for warning in &created.warnings {
        errln!("WARNING: {warning}");
    }
    if let Some(file) = &args.cidfile {
        fs::write(file, &created.id)?;
    }
    Ok(created)
}

/// One container, this terminal, and what joins them.
struct Session<'a> {
    client: &'a Client,
    id: &'a str,
    attached: Attached,
    tty: bool,
    open_stdin: bool,
    sig_proxy: bool,
    detach_keys: Option<&'a str>,
    /// Until what the engine is asked to wait.
    condition: &'a str,
}

impl Session<'_> {
    async fn start(self) -> Result<u8> {
        let connection = self.attach().await?;
        let wait = self.register_wait().await?;
        let signals = self.sig_proxy.then(|| session::forward_signals(self.client, self.id));
        let started = self.client.post(&format!("/containers/{}/start", self.id)).await;
        let code = match started {
            Ok(_) => self.join(connection, wait).await,
            Err(error) => Ok(report_start(&error.into())),
        };
        if let Some(signals) = signals {
            signals.abort();
        }
        code
    }

    async fn join_running(self) -> Result<u8> {
        let connection = self.attach().await?;
        let wait = self.register_wait().await?;
        let signals = self.sig_proxy.then(|| session::forward_signals(self.client, self.id));
        let code = self.join(connection, wait).await;
        if let Some(signals) = signals {
            signals.abort();
        }
        code
    }

    async fn attach(&self) -> Result<Hijacked> {
        let flag = |on: bool| if on { "1" } else { "0" };
        let stdin = self.attached.stdin && self.open_stdin;
        let mut query = vec![
            ("stream", "1"),
            ("stdin", flag(stdin)),
            ("stdout", flag(self.attached.stdout)),
            ("stderr", flag(self.attached.stderr)),
        ];
        query.extend(self.detach_keys.map(|keys| ("detachKeys", keys)));
        Ok(self
            .client
            .hijack(&path(&format!("/containers/{}/attach", self.id), &query), NOTHING)
            .await?)
    }

    /// The engine answers with headers as soon as the wait is registered; the
    /// body comes with the exit.
    async fn register_wait(&self) -> Result<http::Response<hyper::body::Incoming>> {
        let path = format!("/containers/{}/wait?condition={}", self.id, self.condition);
        Ok(self.client.send(Method::POST, &path, NOTHING).await?)
    }

    async fn join(
        &self,
        connection: Hijacked,
        wait: http::Response<hyper::body::Incoming>,
    ) -> Result<u8> {
        let size = (self.tty && terminal::stdout_is_terminal())
            .then(|| session::follow_size(self.client, format!("/containers/{}/resize", self.id)));
        let join = Join {
            stdin: self.attached.stdin && self.open_stdin,
            tty: self.tty,
            detach_keys: self.detach_keys,
        };
        let streams = session::join(connection, join).await;
        if let Some(size) = size {
            size.abort();
        }
        if streams? == Ended::Detached {
            return Ok(0);
        }
        let body = knarr_client::whole(wait).await?;
        let answer: WaitResponse = serde_json::from_slice(&body)?;
        if let Some(error) = answer.error.filter(|error| !error.message.is_empty()) {
            bail!("{}", error.message);
        }
        Ok(answer.status_code as u8)
    }
}

/// Says why nothing runs, with Docker's exit code (docker/cli `toStatusError`).
fn report_start(error: &anyhow::Error) -> u8 {
    let text = crate::output::chain(error);
    errln!("knarr: {text}\n\nRun 'knarr run --help' for more information");
    let says = |words: &[&str]| words.iter().any(|word| text.contains(word));
    if says(&[
        "executable file not found",
        "no such file or directory",
        "system cannot find the file specified",
    ]) {
        127
    } else if says(&["permission denied", "is a directory", "exec format error"]) {
        126
    } else {
        125
    }
}

//! `exec`.

use anyhow::{Result, bail};
use clap::Args;
use http::Method;
use knarr_client::encode;
use knarr_docker::{ExecCreateRequest, ExecCreateResponse, ExecInspect, ExecStartRequest, Words};

use super::Context;
use crate::{
    options::units,
    session::{self, Ended, Join},
    terminal,
};

/// `knarr exec`.
#[derive(Debug, Args)]
pub struct ExecArgs {
    /// Detached mode: run command in the background
    #[arg(short = 'd', long)]
    detach: bool,
    /// Override the key sequence for detaching a container
    #[arg(long, value_name = "string")]
    detach_keys: Option<String>,
    /// Set environment variables
    #[arg(short = 'e', long, value_name = "list")]
    env: Vec<String>,
    /// Read in a file of environment variables
    #[arg(long, value_name = "list")]
    env_file: Vec<String>,
    /// Keep STDIN open even if not attached
    #[arg(short = 'i', long)]
    interactive: bool,
    /// Give extended privileges to the command
    #[arg(long)]
    privileged: bool,
    /// Allocate a pseudo-TTY
    #[arg(short = 't', long)]
    tty: bool,
    /// Username or UID (format: "<name|uid>[:<group|gid>]")
    #[arg(short = 'u', long, value_name = "string")]
    user: Option<String>,
    /// Working directory inside the container
    #[arg(short = 'w', long, value_name = "string")]
    workdir: Option<String>,
    /// Container
    container: String,
    /// COMMAND [ARG...]
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        required = true,
        value_name = "COMMAND [ARG...]"
    )]
    command: Vec<String>,
}

/// Runs a program beside a container's own.
pub async fn exec(args: ExecArgs, context: &Context) -> Result<u8> {
    let client = &context.client;
    let stdin = args.interactive && !args.detach;
    if args.tty && stdin && !terminal::stdin_is_terminal() {
        bail!("the input device is not a TTY");
    }
    let request = ExecCreateRequest {
        user: args.user.unwrap_or_default(),
        privileged: args.privileged,
        tty: args.tty,
        console_size: if args.tty {
            terminal::size().map(|(rows, columns)| [rows, columns])
        } else {
            None
        },
        attach_stdin: stdin,
        attach_stdout: !args.detach,
        attach_stderr: !args.detach,
        detach: args.detach,
        detach_keys: args.detach_keys.unwrap_or_default(),
        env: Some(units::environment(&args.env_file, &args.env)?),
        working_dir: args.workdir.unwrap_or_default(),
        cmd: Some(Words(args.command)),
    };
    let path = format!("/containers/{}/exec", encode(&args.container));
    let created: ExecCreateResponse = client.json(Method::POST, &path, Some(&request)).await?;
    let start =
        ExecStartRequest { detach: args.detach, tty: args.tty, console_size: request.console_size };
    let path = format!("/exec/{}/start", created.id);
    if args.detach {
        return match client.send(Method::POST, &path, Some(&start)).await {
            Ok(_) => Ok(0),
            Err(error) => Ok(report(&error)),
        };
    }
    let connection = match client.hijack(&path, Some(&start)).await {
        Ok(connection) => connection,
        Err(error) => return Ok(report(&error)),
    };
    let size = (args.tty && terminal::stdout_is_terminal())
        .then(|| session::follow_size(client, format!("/exec/{}/resize", created.id)));
    let keys = (!request.detach_keys.is_empty()).then_some(request.detach_keys.as_str());
    let join = Join { stdin, tty: args.tty, detach_keys: keys };
    let streams = session::join(connection, join).await;
    if let Some(size) = size {
        size.abort();
    }
    if streams? == Ended::Detached {
        return Ok(0);
    }
    let inspect: ExecInspect = client.get(&format!("/exec/{}/json", created.id)).await?;
    Ok(inspect.exit_code.unwrap_or(0) as u8)
}

/// Says why the program does not run, with Docker's exit code.
fn report(error: &knarr_client::Error) -> u8 {
    let text = error.to_string();
    errln!("{text}");
    if text.contains("executable file not found") || text.contains("no such file or directory") {
        127
    } else if text.contains("permission denied")
        || text.contains("is a directory")
        || text.contains("exec format")
    {
        126
    } else {
        1
    }
}

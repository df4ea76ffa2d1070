//! knarr: the command line, with Docker's verbs, flags and exit codes.
//!
//! ```text
//!   arguments ── clap ──> Command ── commands::* ──> one or more API requests ──> tables, streams, exit code
//! ```
//!
//! It knows nothing but the REST API: whatever it does, any other client can.
//!
//! **How it fails.** A line on standard error that starts with `knarr:`, and
//! Docker's exit code: 125 where `run` could not start anything, 126 and 127
//! where the program cannot be run, else 1; otherwise the container's own.

#![forbid(unsafe_code)]
#![deny(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "what an engine says must not command a terminal: `outln!`, `errln!`"
)]

#[macro_use]
mod say;

mod commands;
mod connect;
mod detach;
mod misuse;
mod options;
mod output;
mod progress;
mod session;
mod template;
mod terminal;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use commands::{container, context, exec, image, login, network, run, system, volume};

#[derive(Debug, Parser)]
#[command(
    name = "knarr",
    version,
    about = "A container engine with two kinds of cargo: native and Wasm",
    disable_help_subcommand = true
)]
struct Cli {
    #[command(flatten)]
    globals: Globals,
    #[command(subcommand)]
    command: Command,
}

/// What may stand before the verb.
#[derive(Debug, Args)]
struct Globals {
    /// Daemon socket to connect to (unix:///path, tcp://host:port)
    #[arg(short = 'H', long, global = false)]
    host: Option<String>,
    /// Name of the context to use to connect to the daemon
    #[arg(short = 'c', long)]
    context: Option<String>,
    /// Location of client config files
    #[arg(long)]
    config: Option<PathBuf>,
    /// Enable debug mode
    #[arg(short = 'D', long)]
    debug: bool,
    /// Set the logging level ("debug", "info", "warn", "error", "fatal")
    #[arg(short = 'l', long, default_value = "info", hide_default_value = true)]
    log_level: String,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Create and run a new container from an image
    Run(run::RunArgs),
    /// Create a new container
    Create(run::CreateCommand),
    /// Start one or more stopped containers
    Start(run::StartArgs),
    /// Attach local standard input, output, and error streams to a running container
    Attach(run::AttachArgs),
    /// Execute a command in a running container
    Exec(exec::ExecArgs),
    #[command(flatten)]
    Container(container::ContainerVerb),
    #[command(flatten)]
    Image(image::ImageVerb),
    #[command(flatten)]
    System(system::SystemVerb),
    #[command(flatten)]
    Login(login::LoginVerb),
    /// Manage containers
    #[command(subcommand, name = "container")]
    ContainerGroup(ContainerGroup),
    /// Manage images
    #[command(subcommand, name = "image")]
    ImageGroup(image::ImageGroup),
    /// Manage networks
    #[command(subcommand)]
    Network(network::NetworkVerb),
    /// Manage volumes
    #[command(subcommand)]
    Volume(volume::VolumeVerb),
    /// Manage Knarr
    #[command(subcommand, name = "system")]
    SystemGroup(system::SystemGroup),
    /// Manage contexts
    #[command(subcommand)]
    Context(context::ContextVerb),
}

/// `knarr container …`: the same verbs.
#[derive(Debug, Subcommand)]
enum ContainerGroup {
    /// Create and run a new container from an image
    Run(run::RunArgs),
    /// Create a new container
    Create(run::CreateCommand),
    /// Start one or more stopped containers
    Start(run::StartArgs),
    /// Attach local standard input, output, and error streams to a running container
    Attach(run::AttachArgs),
    /// Execute a command in a running container
    Exec(exec::ExecArgs),
    /// List containers
    #[command(alias = "list")]
    Ls(container::PsArgs),
    /// Display detailed information on one or more containers
    Inspect(container::InspectArgs),
    /// Remove all stopped containers
    Prune(system::PruneArgs),
    #[command(flatten)]
    Verb(container::ContainerVerb),
}

/// A reader that has seen enough (`knarr logs … | head`) is no failure of ours:
/// the process ends as a killed writer would, without a word.
fn end_quietly_on_broken_pipes() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let text = panic.payload().downcast_ref::<String>();
        if text.is_some_and(|text| text.contains("Broken pipe")) {
            #[expect(clippy::exit, reason = "the standard streams are gone")]
            std::process::exit(128 + 13);
        }
        before(panic);
    }));
}

/// The grammar of one verb that people wait for: that of all verbs takes longer
/// to build than `ps` takes to answer.
fn grammar_of(verb: &str) -> Option<clap::Command> {
    use clap::Command;
    let command = match verb {
        "run" => run::RunArgs::augment_args(Command::new("run")),
        "create" => run::CreateCommand::augment_args(Command::new("create")),
        "start" => run::StartArgs::augment_args(Command::new("start")),
        "exec" => exec::ExecArgs::augment_args(Command::new("exec")),
        "ps" => container::PsArgs::augment_args(Command::new("ps")),
        _ => return None,
    };
    Some(Globals::augment_args(Command::new("knarr")).subcommand(command))
}

fn parse(grammar: &mut clap::Command) -> Result<Cli, clap::Error> {
    let words = misuse::normalise(grammar, std::env::args_os());
    let parsed = grammar.try_get_matches_from_mut(words);
    parsed.and_then(|mut matches| Cli::from_arg_matches_mut(&mut matches))
}

/// By the small grammar where the first word is a verb that has one. Whatever
/// that does not understand is for the whole grammar, and its messages.
fn understand() -> Result<Cli, ExitCode> {
    let verb = std::env::args_os().nth(1);
    let small = verb.as_deref().and_then(std::ffi::OsStr::to_str).and_then(grammar_of);
    if let Some(cli) = small.and_then(|grammar| parse(&mut misuse::lenient(grammar)).ok()) {
        return Ok(cli);
    }
    let mut grammar = misuse::lenient(Cli::command());
    parse(&mut grammar).map_err(|error| {
        let words: Vec<String> = std::env::args().skip(1).collect();
        misuse::report(&mut grammar, &error, &words)
    })
}

fn main() -> ExitCode {
    knarr_sys::without_name_services();
    end_quietly_on_broken_pipes();
    let cli = match understand() {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            errln!("knarr: {error}");
            return ExitCode::FAILURE;
        }
    };
    let outcome = runtime.block_on(dispatch(cli));
    // A thread may still wait for standard input: nobody waits for it.
    runtime.shutdown_background();
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            // The engine's own words stand alone, as Docker's client shows them.
            match error.downcast_ref::<knarr_client::Error>() {
                Some(error) => errln!("{error}"),
                None => errln!("knarr: {}", output::chain(&error)),
            }
            ExitCode::from(error.downcast_ref::<commands::Exit>().map_or(1, |exit| exit.0))
        }
    }
}

async fn dispatch(cli: Cli) -> Result<u8> {
    let Globals { host, context, config, .. } = cli.globals;
    let choice = connect::Choice { host, context, config };
    match cli.command {
        Command::Context(verb) => context::execute(verb, &choice),
        command => {
            let client = match choice.connect().await {
                Ok(client) => client,
                Err(error) => return Err(error),
            };
            let context = commands::Context { client, config: choice.config_dir() };
            execute(command, &context).await
        }
    }
}

async fn execute(command: Command, context: &commands::Context) -> Result<u8> {
    use ContainerGroup as Group;
    match command {
        Command::Run(args) | Command::ContainerGroup(Group::Run(args)) => {
            run::run(args, context).await
        }
        Command::Create(args) | Command::ContainerGroup(Group::Create(args)) => {
            run::create(args, context).await
        }
        Command::Start(args) | Command::ContainerGroup(Group::Start(args)) => {
            run::start(args, context).await
        }
        Command::Attach(args) | Command::ContainerGroup(Group::Attach(args)) => {
            run::attach(args, context).await
        }
        Command::Exec(args) | Command::ContainerGroup(Group::Exec(args)) => {
            exec::exec(args, context).await
        }
        Command::Container(verb) | Command::ContainerGroup(Group::Verb(verb)) => {
            container::execute(verb, context).await
        }
        Command::ContainerGroup(Group::Ls(args)) => container::list(args, context).await,
        Command::ContainerGroup(Group::Inspect(args)) => {
            container::inspect(args, Some("container"), context).await
        }
        Command::ContainerGroup(Group::Prune(args)) => {
            system::prune_containers(args, context).await
        }
        Command::Image(verb) => image::execute(verb, context).await,
        Command::ImageGroup(verb) => image::execute_group(verb, context).await,
        Command::Network(verb) => network::execute(verb, context).await,
        Command::Volume(verb) => volume::execute(verb, context).await,
        Command::Login(verb) => login::execute(verb, context).await,
        Command::System(verb) => system::execute(verb, context).await,
        Command::SystemGroup(verb) => system::execute_group(verb, context).await,
        Command::Context(_) => Ok(0),
    }
}

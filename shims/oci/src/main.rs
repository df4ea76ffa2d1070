//! knarr-oci: the runc-compatible command line over the sandbox.
//!
//! Each call is a process of its own that ends when its verb is done; what the
//! next one needs lies in a directory of the container's beneath `--root`
//! (`state.rs`). A created container waits on a socket there that its first
//! process holds itself, so whoever comes later can start it:
//!
//! ```text
//!  create ─▶ creating ─▶ created ── start ─▶ running ⇄ paused (pause, resume)
//!                          │ kill               │ exits, kill
//!                          └──────▶ stopped ◀───┘── delete ─▶ gone
//! ```
//!
//! `run` is create, start, wait and delete in one process. Exit codes are runc's:
//! the program's own for `run` and `exec`, 255 for an exec that could not be
//! started, 1 for everything else that failed. What went wrong is written to
//! `--log` in its format and to standard error.

#![forbid(unsafe_code)]

mod args;
mod config;
mod control;
mod create;
mod exec;
mod features;
mod log;
mod observe;
mod spec;
mod state;
mod streams;
mod update;

use std::{cell::RefCell, io::Write, os::fd::OwnedFd, process::ExitCode};

use crate::{
    args::{Flags, Verb},
    log::Log,
};

/// What every verb is told beside its own flags.
pub(crate) struct Global {
    pub(crate) flags: Flags,
    pub(crate) log: Log,
    /// What the program is to inherit behind its streams, and how many of these
    /// are a service manager's.
    pub(crate) inherited: RefCell<(Vec<OwnedFd>, u32)>,
}

/// How a verb fails: what is said, and the exit code.
pub(crate) struct Failed {
    pub(crate) error: anyhow::Error,
    pub(crate) code: u8,
}

impl<E: Into<anyhow::Error>> From<E> for Failed {
    fn from(error: E) -> Self {
        Self { error: error.into(), code: 1 }
    }
}

/// The exit code of a verb.
pub(crate) type Outcome = Result<u8, Failed>;

fn main() -> ExitCode {
    knarr_sys::without_name_services();
    let words: Vec<String> =
        std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
    let (global, verb) = match args::split(&words) {
        Ok(args::Call::Verb { flags, verb }) => (flags, verb),
        Ok(args::Call::Say(text)) => {
            // A reader that has gone does not want to know.
            let _ = std::io::stdout().write_all(text.as_bytes());
            return ExitCode::SUCCESS;
        }
        Err(misuse) => {
            let _ = writeln!(std::io::stderr(), "{misuse:#}");
            return ExitCode::FAILURE;
        }
    };
    // Before the log is, or any other file.
    let inherited = match verb.name {
        "create" | "run" | "exec" => streams::inherited(&verb),
        _ => Ok(Default::default()),
    };
    let log = match Log::open(&global) {
        Ok(log) => log,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "{error:#}");
            return ExitCode::FAILURE;
        }
    };
    let inherited = match inherited {
        Ok(inherited) => RefCell::new(inherited),
        Err(error) => {
            log.error(&reason(&error));
            return ExitCode::FAILURE;
        }
    };
    let global = Global { flags: global, log, inherited };
    match carry_out(&global, &verb) {
        Ok(code) => ExitCode::from(code),
        Err(failed) => {
            global.log.error(&reason(&failed.error));
            ExitCode::from(failed.code)
        }
    }
}

/// The whole reason. What the sandbox says holds the kernel's words already.
fn reason(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&cause.to_string());
        if cause.is::<knarr_sandbox::Error>() {
            break;
        }
    }
    text
}

fn carry_out(global: &Global, verb: &Verb) -> Outcome {
    config::check_global(&global.flags)?;
    match verb.name {
        "create" => create::create(global, verb),
        "run" => create::run(global, verb),
        "start" => create::start(global, verb),
        "exec" => exec::exec(global, verb),
        "kill" => control::kill(global, verb),
        "delete" => control::delete(global, verb),
        "pause" => control::pause(global, verb, true),
        "resume" => control::pause(global, verb, false),
        "update" => update::update(global, verb),
        "state" => observe::state(global, verb),
        "list" => observe::list(global, verb),
        "ps" => observe::ps(global, verb),
        "events" => observe::events(global, verb),
        "features" => features::features(),
        "spec" => spec::spec(verb),
        other => Err(anyhow::anyhow!("no verb {other:?}").into()),
    }
}

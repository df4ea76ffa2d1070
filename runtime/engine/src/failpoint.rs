//! Places where a test may kill the engine or make a step fail.
//!
//! Off unless the environment variable `KNARR_FAILPOINTS` is set when the first
//! one is reached: `name=kill` or `name=error`, several separated by `;`.
//! `name=hold:FIFO` waits there until somebody has opened the FIFO for writing and
//! closed it: what else must go on meanwhile can be seen without a clock.
//! [`NAMES`] lists them all, so that a test can go through every one
//! (CATALOGUE K01).

use std::{collections::HashMap, path::PathBuf, sync::OnceLock};

use crate::{Error, Result};

/// Every failpoint, in the order in which a container's life passes them.
pub const NAMES: &[&str] = &[
    "pull.begin",
    "pull.done",
    "network-create.begin",
    "network-create.done",
    "network-remove.begin",
    "network-remove.done",
    "volume-create.begin",
    "volume-create.done",
    "volume-remove.begin",
    "volume-remove.delete",
    "volume-remove.done",
    "create.begin",
    "create.row",
    "create.volumes",
    "create.snapshot",
    "create.record",
    "create.done",
    "start.begin",
    "start.bundle",
    "start.shim",
    "start.task",
    "start.network",
    "start.attach",
    "start.running",
    "start.done",
    "exec.create",
    "exec.added",
    "exec.started",
    "stop.begin",
    "stop.signalled",
    "stop.killed",
    "exit.begin",
    "exit.row",
    "exit.network",
    "exit.task",
    "exit.bundle",
    "remove.begin",
    "remove.row",
    "remove.snapshot",
    "remove.delete",
    "remove.volumes",
    "remove.done",
    "persist",
    "rename.begin",
    "rename.row",
    "update.begin",
    "update.task",
    "update.row",
    "ask.images",
    "ask.volumes",
    "ask.networks",
    "image-remove.delete",
    "usage.container",
    "usage.images",
    "usage.volumes",
    "top.read",
    "logs.read",
];

#[derive(Debug, Clone, PartialEq, Eq)]
enum Action {
    Kill,
    Error,
    /// Only for places that run on a thread that may wait.
    Hold(PathBuf),
}

fn parse(text: &str) -> HashMap<String, Action> {
    text.split(';')
        .filter_map(|item| {
            let (name, action) = item.trim().split_once('=')?;
            let action = match action.trim() {
                "kill" => Action::Kill,
                "error" => Action::Error,
                action => Action::Hold(action.strip_prefix("hold:")?.into()),
            };
            NAMES.contains(&name.trim()).then(|| (name.trim().to_owned(), action))
        })
        .collect()
}

/// A failpoint: nothing, an error, or the end of the process.
pub(crate) fn hit(name: &'static str) -> Result<()> {
    static ARMED: OnceLock<HashMap<String, Action>> = OnceLock::new();
    debug_assert!(NAMES.contains(&name), "{name} is not listed");
    let armed = ARMED.get_or_init(|| parse(&std::env::var("KNARR_FAILPOINTS").unwrap_or_default()));
    match armed.get(name) {
        None => Ok(()),
        Some(Action::Hold(fifo)) => std::fs::read(fifo)
            .map(drop)
            .map_err(|error| Error::io(format!("failpoint {name}"), error)),
        Some(Action::Error) => Err(Error::internal(format!("failpoint {name}"))),
        Some(Action::Kill) => {
            let _ = rustix::process::kill_process(
                rustix::process::getpid(),
                rustix::process::Signal::KILL,
            );
            Err(Error::internal(format!("failpoint {name}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variable_is_a_list_and_strangers_are_ignored() {
        let armed = parse(
            "create.row=kill; exit.row = error;nonsense=kill;start.task=dance;top.read=hold:/f",
        );
        assert_eq!(armed.len(), 3);
        assert_eq!(armed["top.read"], Action::Hold("/f".into()));
        assert_eq!(armed["create.row"], Action::Kill);
        assert_eq!(armed["exit.row"], Action::Error);
    }

    #[test]
    fn names_are_unique() {
        let unique: std::collections::BTreeSet<_> = NAMES.iter().collect();
        assert_eq!(unique.len(), NAMES.len());
    }
}

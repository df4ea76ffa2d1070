//! `kill`, `delete`, `pause` and `resume`.

use anyhow::{Context, Result, anyhow};
use knarr_model::Signal;
use knarr_sandbox::clean_up_after;
use oci_spec::runtime::LinuxNamespaceType;

use crate::{
    Global, Outcome,
    args::Verb,
    state::{Home, Known, Missing, Status},
};

pub(crate) fn kill(global: &Global, verb: &Verb) -> Outcome {
    let known = Known::find_within(global, verb.container(2)?)?;
    let word = verb.words.get(1).map(String::as_str);
    let signal: Option<Signal> = match word {
        None => Some(Signal::TERM),
        // The kernel's way to ask whether somebody is there.
        Some("0") => None,
        Some(text) => Some(text.parse().map_err(|_| anyhow!("unknown signal {text:?}"))?),
    };
    // Who has no pid namespace to die with must each be killed, also when the
    // first process has gone (as runc).
    let shares = known.spec.linux().as_ref().is_none_or(|linux| {
        let kinds = linux.namespaces().iter().flatten();
        !kinds.into_iter().any(|one| {
            one.typ() == LinuxNamespaceType::Pid
                && one.path().as_ref().is_none_or(|path| path.as_os_str().is_empty())
        })
    });
    let all = verb.flags.has("all") || shares && signal == Some(Signal::KILL);
    match (&known.container, signal) {
        (Some(_), None) => {}
        // Whoever is meant has gone already (as runc).
        (None, None) if verb.flags.has("all") => {}
        (Some(container), Some(signal)) if all => container.signal_all(signal)?,
        (Some(container), Some(signal)) => container.kill(signal)?,
        (None, Some(signal)) if all => {
            let cgroup = knarr_sandbox::cgroup_of(&known.spec, &known.home.id)?;
            if cgroup.pids()?.is_empty() && !verb.flags.has("all") {
                return Err(anyhow!("container not running").into());
            }
            cgroup.signal(signal)?;
        }
        (None, _) => return Err(anyhow!("container not running").into()),
    }
    if let Some(container) = known.container.as_ref().filter(|_| signal == Some(Signal::KILL)) {
        // A frozen process dies when it thaws, and nobody waits for that.
        if container.is_paused() {
            container.resume()?;
        }
    }
    Ok(0)
}

pub(crate) fn delete(global: &Global, verb: &Verb) -> Outcome {
    let id = verb.container(1)?;
    let force = verb.flags.has("force");
    let known = match Known::find_within(global, id) {
        Ok(known) => known,
        Err(error) if force && error.is::<Missing>() => {
            // A create that did not end, or nothing at all.
            Home::of(global, id)?.remove()?;
            return Ok(0);
        }
        Err(error) => return Err(error.into()),
    };
    match known.status() {
        Status::Stopped => {}
        Status::Created => end(&known)?,
        _ if force => end(&known)?,
        status => {
            // runc's words.
            let text =
                format!("cannot delete container {id} that is not stopped: {}", status.word());
            return Err(anyhow!(text).into());
        }
    }
    let cleaned = clean_up_after(id, &known.record.bundle, &known.spec);
    known.home.remove()?;
    if let Err(error) = cleaned {
        // The container is gone; what a hook of it says is for the log.
        global.log.warning(&error.to_string());
    }
    Ok(0)
}

/// Kills it, and waits until it has ended.
fn end(known: &Known) -> Result<()> {
    match &known.container {
        // runc's words.
        Some(container) => container.kill_all().context("container init still running"),
        None => Ok(()),
    }
}

pub(crate) fn pause(global: &Global, verb: &Verb, frozen: bool) -> Outcome {
    let known = Known::find(global, verb.container(1)?)?;
    match (known.status(), frozen) {
        (Status::Running | Status::Created, true) => known.alive()?.pause().context("pause")?,
        (Status::Paused, false) => known.alive()?.resume().context("resume")?,
        // runc's words.
        (_, true) => return Err(anyhow!("container not running or created").into()),
        (_, false) => return Err(anyhow!("container not paused").into()),
    }
    Ok(0)
}

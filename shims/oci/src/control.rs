//! `kill`, `delete`, `pause` and `resume`.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use knarr_model::Signal;
use knarr_sandbox::clean_up_after;

use crate::{
    Global, Outcome,
    args::Verb,
    state::{Home, Known, Missing, Status},
};

/// How long a killed process may take to go.
const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) fn kill(global: &Global, verb: &Verb) -> Outcome {
    let known = Known::find(global, verb.container(2)?)?;
    let signal: Signal = match verb.words.get(1) {
        None => Signal::TERM,
        Some(text) => text.parse().map_err(|_| anyhow!("unknown signal {text:?}"))?,
    };
    let all = verb.flags.has("all");
    match &known.container {
        Some(container) if all => container.cgroup().signal(signal)?,
        Some(container) => {
            container.kill(signal)?;
            // A frozen process dies when it thaws, and nobody waits for that.
            if signal == Signal::KILL && container.is_paused() {
                container.resume()?;
            }
        }
        // Without a pid namespace others of it may live on.
        None if all => {
            let cgroup = knarr_sandbox::cgroup_of(&known.spec, &known.home.id)?;
            cgroup.signal(signal)?;
        }
        None => return Err(anyhow!("container not running").into()),
    }
    Ok(0)
}

pub(crate) fn delete(global: &Global, verb: &Verb) -> Outcome {
    let id = verb.container(1)?;
    let force = verb.flags.has("force");
    let known = match Known::find(global, id) {
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
    let Some(container) = &known.container else { return Ok(()) };
    container.kill(Signal::KILL)?;
    container.kill_all()?;
    let deadline = Instant::now() + PATIENCE;
    while !container.init().has_ended() {
        if Instant::now() > deadline {
            bail!("container init still running");
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
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

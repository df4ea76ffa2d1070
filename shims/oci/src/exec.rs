//! `exec`: another program in a running container.

use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use knarr_sandbox::{ExecManner, SubGroup};
use oci_spec::runtime::{Capability, Process, ProcessBuilder};

use crate::{
    Failed, Global, Outcome,
    args::{Flags, Verb},
    config,
    create::write_pid,
    state::{Known, Status},
    streams::{self, Console, Joined, Signals},
};

pub(crate) fn exec(global: &Global, verb: &Verb) -> Outcome {
    // runc answers 255 to whatever goes wrong before the program runs.
    run(global, verb).map_err(|error| Failed { error: error.context("exec failed"), code: 255 })
}

fn run(global: &Global, verb: &Verb) -> Result<u8> {
    let flags = &verb.flags;
    let id = verb.container(usize::MAX)?;
    let known = Known::find_within(global, id)?;
    let container = match known.status() {
        // runc's words.
        Status::Stopped => bail!("cannot exec in a stopped container"),
        Status::Paused if !flags.has("ignore-paused") => {
            bail!("cannot exec in a paused container (use --ignore-paused to override)")
        }
        _ => known.alive()?,
    };
    let process = process(global, &known, verb)?;
    if let Some(text) = config::unraised(&process) {
        global.log.warning(&text);
    }
    let detached = flags.has("detach");
    let terminal = process.terminal() == Some(true);
    let console = streams::console(terminal, flags.get("console-socket"), detached)?;
    let size = process.console_size().map(|size| (size.height() as u16, size.width() as u16));
    let (inherited, _) = global.inherited.take();
    let signals = if detached { None } else { Some(Signals::hold()?) };
    let manner = ExecManner {
        inherited,
        foreign: true,
        even_paused: flags.has("ignore-paused"),
        groups: flags.all("cgroup").map(sub_cgroup).collect(),
    };
    let (child, master) = container
        .exec_with(&process, streams::stdio(&console, size)?, manner)
        .context("unable to start container process")?;
    global.log.debug(&format!("process {} of container {id} runs", child.pid()));
    let cpus = process.exec_cpu_affinity().as_ref().and_then(|cpus| cpus.initial().as_deref());
    if let Some(mask) = cpus.and_then(knarr_sandbox::cpu_mask) {
        global.log.debug(&format!("process {}: affinity: 0x{mask}", child.pid()));
    }
    let mut ours = None;
    if let Some(master) = master {
        match console {
            Console::Socket(path) => streams::send_console(path, &master)?,
            _ => ours = Some(Joined::new(master)?),
        }
    }
    streams::send_pidfd(flags, child.pidfd())?;
    if let Some(path) = flags.get("pid-file") {
        write_pid(Path::new(path), child.pid())?;
    }
    match signals {
        Some(signals) => Ok(signals.wait(&child, ours)?.code as u8),
        None => Ok(0),
    }
}

/// `[controller[,controller…]:]path`
fn sub_cgroup(text: &str) -> SubGroup {
    match text.split_once(':') {
        Some((names, path)) => SubGroup {
            controllers: names.split(',').map(str::to_owned).collect(),
            path: path.into(),
        },
        None => SubGroup { controllers: Vec::new(), path: text.into() },
    }
}

/// The container's own process with what the flags change about it.
fn process(global: &Global, known: &Known, verb: &Verb) -> Result<Process> {
    let flags = &verb.flags;
    if let Some(path) = flags.get("process") {
        let text = std::fs::read(path).with_context(|| path.to_owned())?;
        let process = config::parse_process(&text, &mut |text| global.log.warning(&text))
            .with_context(|| path.to_owned())?;
        ensure!(process.cwd().is_absolute(), "cwd must be an absolute path");
        return Ok(process);
    }
    let args = verb.words[1..].to_vec();
    ensure!(!args.is_empty(), "exec args cannot be empty");
    let own = known.spec.process().clone().unwrap_or_default();
    let mut env = own.env().clone().unwrap_or_default();
    env.extend(flags.all("env").map(str::to_owned));
    let mut builder = ProcessBuilder::default()
        .args(args)
        .env(env)
        .terminal(flags.has("tty"))
        .user(user(&own, flags)?)
        .cwd(flags.get("cwd").map_or_else(|| own.cwd().clone(), Into::into))
        .no_new_privileges(flags.has("no-new-privs") || own.no_new_privileges() == Some(true));
    if let Some(mut capabilities) = own.capabilities().clone() {
        for name in flags.all("cap") {
            let capability = capability(name)?;
            let with = |set: &Option<std::collections::HashSet<Capability>>| {
                let mut set = set.clone().unwrap_or_default();
                set.insert(capability);
                Some(set)
            };
            let (bounding, effective) =
                (with(capabilities.bounding()), with(capabilities.effective()));
            let permitted = with(capabilities.permitted());
            // Without an inheritable set there is no ambient one.
            if capabilities.inheritable().is_some() {
                let ambient = with(capabilities.ambient());
                capabilities.set_ambient(ambient);
            }
            capabilities.set_bounding(bounding).set_effective(effective).set_permitted(permitted);
        }
        builder = builder.capabilities(capabilities);
    }
    let mut process = builder.build().map_err(|error| anyhow!("{error}"))?;
    process.set_rlimits(own.rlimits().clone()).set_oom_score_adj(own.oom_score_adj());
    process.set_scheduler(own.scheduler().clone()).set_io_priority(*own.io_priority());
    process.set_exec_cpu_affinity(own.exec_cpu_affinity().clone());
    process.set_apparmor_profile(
        flags.get("apparmor").map(str::to_owned).or_else(|| own.apparmor_profile().clone()),
    );
    process.set_selinux_label(
        flags.get("process-label").map(str::to_owned).or_else(|| own.selinux_label().clone()),
    );
    Ok(process)
}

fn user(own: &Process, flags: &Flags) -> Result<oci_spec::runtime::User> {
    let mut user = own.user().clone();
    if let Some(text) = flags.get("user") {
        let (uid, gid) = match text.split_once(':') {
            Some((uid, gid)) => (uid, Some(gid)),
            None => (text, None),
        };
        let number = |text: &str| -> Result<u32> {
            text.parse().with_context(|| format!("parsing {text:?} as a user or group id"))
        };
        let gid = gid.map(number).transpose()?.unwrap_or_else(|| user.gid());
        // The rest, its umask among it, is the container's as before.
        user.set_uid(number(uid)?).set_gid(gid).set_username(None);
    }
    let mut groups = user.additional_gids().clone().unwrap_or_default();
    for text in flags.all("additional-gids") {
        groups.push(text.parse().with_context(|| format!("additional gid {text:?}"))?);
    }
    user.set_additional_gids(Some(groups));
    Ok(user)
}

fn capability(name: &str) -> Result<Capability> {
    let value = serde_json::Value::String(name.to_owned());
    serde_json::from_value(value).map_err(|_| anyhow!("unknown capability {name:?}"))
}

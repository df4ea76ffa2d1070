//! The way from a prepared container to the program.

use knarr_init::wire::{Bytes, Fd, Op, SOCKET_FD};
use oci_spec::runtime::{
    IOPriorityClass, LinuxSchedulerFlag, LinuxSchedulerPolicy, PosixRlimit, PosixRlimitType,
    Process,
};

use super::{Context, Style, capabilities};
use crate::{
    Error, Failure,
    ops::{Ops, Strings, c_string, container_path},
};

/// First descriptor after the standard streams.
const FIRST: u32 = 3;
/// RLIMIT_NOFILE.
const NOFILE: u32 = 7;

/// Where an image does not say, what Docker does (moby `DefaultPathEnv`).
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Working directory and executable.
pub(super) fn place(
    ops: &mut Ops,
    process: &Process,
    context: &Context<'_>,
    create: bool,
) -> Result<(), Error> {
    let cwd = process.cwd();
    let cwd = if cwd.as_os_str().is_empty() { std::path::Path::new("/") } else { cwd };
    ops.push(Op::Chdir { path: &container_path(cwd)?, create });
    let argv = arguments(process)?;
    let environment = environment(process, context)?;
    let candidates = Strings::new("PATH", candidates(&argv[0], &environment))?;
    ops.push(Op::Lookup { candidates: candidates.list() });
    Ok(())
}

/// Where the executable may be, as `execvp` looks.
fn candidates(name: &str, environment: &[String]) -> Vec<String> {
    if name.contains('/') {
        return vec![name.to_owned()];
    }
    let path = environment.iter().rev().find_map(|entry| entry.strip_prefix("PATH="));
    path.unwrap_or(DEFAULT_PATH)
        .split(':')
        .map(|dir| match dir {
            "" => format!("./{name}"),
            dir => format!("{}/{name}", dir.trim_end_matches('/')),
        })
        .collect()
}

fn arguments(process: &Process) -> Result<&[String], Error> {
    match process.args().as_deref() {
        Some(args @ [first, ..]) if !first.is_empty() => Ok(args),
        // Docker's words.
        _ => Err(Error::new(Failure::InvalidSpec, "no command specified")),
    }
}

/// The environment with `HOME`, where it has none or an empty one. Of what is
/// said twice the last word counts.
fn environment(process: &Process, context: &Context<'_>) -> Result<Vec<String>, Error> {
    let mut all = process.env().clone().unwrap_or_default();
    if let Some(bad) = all.iter().find(|entry| entry.find('=').is_none_or(|at| at == 0)) {
        let text = format!("environment entry {bad:?} is not NAME=value");
        return Err(Error::new(Failure::InvalidSpec, text));
    }
    let mut seen = std::collections::HashSet::new();
    let mut last: Vec<String> = Vec::with_capacity(all.len() + 1);
    for entry in std::mem::take(&mut all).into_iter().rev() {
        let name = entry.split_once('=').map_or(&*entry, |(name, _)| name);
        if seen.insert(name.to_owned()) && entry != "HOME=" {
            last.push(entry);
        }
    }
    last.reverse();
    all = last;
    if !all.iter().any(|entry| entry.starts_with("HOME=")) {
        let home = context.identity.home.as_deref();
        let home = home.unwrap_or(if context.identity.uid == 0 { "/root" } else { "/" });
        all.push(format!("HOME={home}"));
    }
    Ok(all)
}

/// Whether a limit is set when nobody is waited for any more: the socket of who comes then
/// has a number that is beyond it.
fn is_late(limit: &PosixRlimit, style: &Style) -> bool {
    style.listens
        && limit.typ() == PosixRlimitType::RlimitNofile
        && limit.soft() <= SOCKET_FD as u64
        // Else it is an error, which comes early.
        && limit.soft() <= limit.hard()
}

/// Resource limits, but for those that come late.
pub(super) fn limits(ops: &mut Ops, process: &Process, style: &Style) -> Result<(), Error> {
    for limit in process.rlimits().iter().flatten() {
        let late = is_late(limit, style);
        if late && limit.hard() <= SOCKET_FD as u64 {
            continue;
        }
        // To raise the hard one may take privileges, to lower the soft one takes none.
        let soft = if late { limit.hard() } else { limit.soft() };
        let resource = match limit.typ() {
            PosixRlimitType::RlimitCpu => 0,
            PosixRlimitType::RlimitFsize => 1,
            PosixRlimitType::RlimitData => 2,
            PosixRlimitType::RlimitStack => 3,
            PosixRlimitType::RlimitCore => 4,
            PosixRlimitType::RlimitRss => 5,
            PosixRlimitType::RlimitNproc => 6,
            PosixRlimitType::RlimitNofile => NOFILE,
            PosixRlimitType::RlimitMemlock => 8,
            PosixRlimitType::RlimitAs => 9,
            PosixRlimitType::RlimitLocks => 10,
            PosixRlimitType::RlimitSigpending => 11,
            PosixRlimitType::RlimitMsgqueue => 12,
            PosixRlimitType::RlimitNice => 13,
            PosixRlimitType::RlimitRtprio => 14,
            PosixRlimitType::RlimitRttime => 15,
        };
        ops.push(Op::Rlimit { resource, soft, hard: limit.hard() });
    }
    Ok(())
}

/// Those that were left for when nobody is waited for any more.
pub(super) fn late_limits(ops: &mut Ops, process: &Process, style: &Style) {
    for limit in process.rlimits().iter().flatten().filter(|limit| is_late(limit, style)) {
        ops.push(Op::Rlimit { resource: NOFILE, soft: limit.soft(), hard: limit.hard() });
    }
}

/// Becomes a program found by name; where it `waits`, between giving up what it may give
/// up at once and the filter.
pub(super) fn become_program(
    ops: &mut Ops,
    process: &Process,
    context: &Context<'_>,
    waits: bool,
) -> Result<(), Error> {
    let argv = Strings::new("an argument", arguments(process)?)?;
    let env = Strings::new("the environment", environment(process, context)?)?;
    ops.push(Op::Signals {});
    drop_privileges(ops, process, context, None, context.style.inherited, waits)?;
    if context.init {
        ops.push(Op::Fork {});
    }
    ops.push(Op::Exec { argv: argv.list(), env: env.list() });
    Ok(())
}

/// Gives up everything that the program is not to have; `keep` descriptors stay. With the
/// host's procfs it is `alone` in a user namespace from then on. Where it
/// `waits` to be started, it does that as late as its filter allows: who waits may need
/// calls that the program does not.
pub(super) fn drop_privileges(
    ops: &mut Ops,
    process: &Process,
    context: &Context<'_>,
    alone: Option<Fd>,
    keep: u32,
    waits: bool,
) -> Result<(), Error> {
    let Context { identity, .. } = context;
    if !context.style.no_new_keyring {
        let name = c_string("the container's id", format!("_ses.{}", context.id))?;
        ops.push(Op::Keyring { name: &name });
    }
    // While everything that they need is still there.
    schedule(ops, process)?;
    ops.push(Op::Umask { mask: process.user().umask().unwrap_or(0o022) });
    let sets = capabilities::Sets::of(
        process.capabilities().as_ref(),
        context.available,
        context.style.foreign,
    );
    let bounding = Op::Bounding { keep: sets.bounding };
    if alone.is_none() {
        ops.push(bounding);
    }
    if identity.uid != 0 {
        ops.push(Op::OwnStreams { uid: identity.uid });
    }
    if let Some(groups) = &identity.groups {
        let groups: Vec<u8> = groups.iter().flat_map(|group| group.to_ne_bytes()).collect();
        ops.push(Op::Groups { groups: Bytes(&groups) });
    }
    if let Some(proc) = alone {
        ops.push(Op::OwnUsers { proc, uid: identity.uid, gid: identity.gid });
        ops.push(bounding);
    }
    ops.push(Op::Identity { uid: identity.uid, gid: identity.gid });
    if context.bound {
        ops.push(Op::DieWithParent {});
    }
    if keep > 0 {
        ops.push(Op::Keep { count: keep });
    }
    ops.push(Op::CloseFrom { first: FIRST + keep });

    let confined = process.no_new_privileges() == Some(true);
    if confined {
        ops.push(Op::NoNewPrivs {});
    }
    // The kernel wants SYS_ADMIN for a filter, or no new privileges.
    let lent = match context.filter {
        Some(_) if !confined => capabilities::SYS_ADMIN & !sets.permitted,
        _ => 0,
    };
    let capabilities = |extra: u64| Op::Capabilities {
        effective: sets.effective | extra,
        permitted: sets.permitted | extra,
        inheritable: sets.inheritable,
    };
    ops.push(capabilities(lent));
    let wait = |ops: &mut Ops| {
        if waits {
            context.style.ready(ops);
            late_limits(ops, process, &context.style);
        }
    };
    match context.filter {
        // Who is asked about the program's calls is told of them at `create`: the
        // specification has it there.
        Some(filter) if filter.notifies() => {
            let (flags, filter) = (filter.flags(), Bytes(filter.bytes()));
            ops.push(Op::SeccompListener { flags, filter });
            wait(ops);
        }
        Some(filter) => {
            wait(ops);
            ops.push(Op::Seccomp { flags: filter.flags(), filter: Bytes(filter.bytes()) });
        }
        None => wait(ops),
    }
    if lent != 0 {
        ops.push(capabilities(0));
    }
    if sets.ambient != 0 {
        ops.push(Op::Ambient { set: sets.ambient });
    }
    Ok(())
}

/// Scheduling policy and I/O priority.
fn schedule(ops: &mut Ops, process: &Process) -> Result<(), Error> {
    if let Some(scheduler) = process.scheduler() {
        let policy: u32 = match scheduler.policy() {
            LinuxSchedulerPolicy::SchedOther => 0,
            LinuxSchedulerPolicy::SchedFifo => 1,
            LinuxSchedulerPolicy::SchedRr => 2,
            LinuxSchedulerPolicy::SchedBatch => 3,
            LinuxSchedulerPolicy::SchedIso => 4,
            LinuxSchedulerPolicy::SchedIdle => 5,
            LinuxSchedulerPolicy::SchedDeadline => 6,
        };
        let flags = scheduler.flags().iter().flatten().fold(0u64, |bits, flag| {
            bits | match flag {
                LinuxSchedulerFlag::SchedResetOnFork => 1,
                LinuxSchedulerFlag::SchedFlagReclaim => 2,
                LinuxSchedulerFlag::SchedFlagDLOverrun => 4,
                LinuxSchedulerFlag::SchedFlagKeepPolicy => 8,
                LinuxSchedulerFlag::SchedFlagKeepParams => 16,
                LinuxSchedulerFlag::SchedFlagUtilClampMin => 32,
                LinuxSchedulerFlag::SchedFlagUtilClampMax => 64,
            }
        });
        // struct sched_attr (linux/sched/types.h), its first version.
        let mut bytes = Vec::with_capacity(48);
        bytes.extend(48u32.to_ne_bytes());
        bytes.extend(policy.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(scheduler.nice().unwrap_or(0).to_ne_bytes());
        bytes.extend(scheduler.priority().unwrap_or(0).to_ne_bytes());
        for time in [scheduler.runtime(), scheduler.deadline(), scheduler.period()] {
            bytes.extend(time.unwrap_or(0).to_ne_bytes());
        }
        ops.push(Op::Scheduler { attributes: Bytes(&bytes) });
    }
    if let Some(wanted) = process.io_priority() {
        let class = match wanted.class() {
            IOPriorityClass::IoprioClassRt => 1,
            IOPriorityClass::IoprioClassBe => 2,
            IOPriorityClass::IoprioClassIdle => 3,
        };
        let level = u32::try_from(wanted.priority()).ok().filter(|level| *level < 8);
        let level = level.ok_or_else(|| {
            let text = format!("I/O priority {} is not one of 0 to 7", wanted.priority());
            Error::new(Failure::InvalidSpec, text)
        })?;
        ops.push(Op::IoPriority { priority: class << 13 | level });
    }
    Ok(())
}

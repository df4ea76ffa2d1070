//! Processes that join a container: an exec, and hooks from its own files.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::PathBuf,
};

use oci_spec::runtime::Process;

use super::Container;
use crate::{
    Child, Error, ExecManner, Failure, Stdio,
    hooks::{Guest, Hooks, Inside, Moment},
    launch::{Birth, launch, oom_score},
    lsm,
    ops::Wish,
    plan::{self, Context, Identity, Style},
    rootless,
    seccomp::Filter,
    user,
};

/// Who a process is: by name where the specification has one. The primary group is among
/// the others, unless an operator has written them down.
pub(super) fn identity(
    root: Option<BorrowedFd<'_>>,
    process: &Process,
    groups: &[String],
    foreign: bool,
) -> Result<Identity, Error> {
    let user = process.user();
    let mut additional = user.additional_gids().clone().unwrap_or_default();
    if let Some(root) = root {
        additional.extend(user::groups(root, groups)?);
    }
    let additional = &additional[..];
    let found = match (user.username().as_deref().filter(|name| !name.is_empty()), root) {
        (Some(name), Some(root)) => user::resolve(root, name, additional)?,
        (Some(_), None) => {
            let text = "the container has no root filesystem any more";
            return Err(Error::new(Failure::Gone, text));
        }
        (None, root) => {
            let has_home = process
                .env()
                .as_ref()
                .is_some_and(|env| env.iter().any(|entry| entry.starts_with("HOME=")));
            let mut identity =
                user::numeric(root.filter(|_| !has_home), user.uid(), user.gid(), additional)?;
            if foreign {
                identity.groups = Some(additional.to_vec());
            }
            identity
        }
    };
    rootless::identity(found)
}

pub(super) fn terminal(stdio: &Stdio) -> Option<(u16, u16)> {
    match stdio {
        Stdio::Terminal { rows, cols } => Some((*rows, *cols)),
        Stdio::Fds { .. } => None,
    }
}

/// The capabilities that we have.
pub(super) fn available() -> Result<u64, Error> {
    rustix::thread::capabilities(None)
        .map(|sets| sets.permitted.bits())
        .map_err(|errno| Error::system("look up our own capabilities", errno))
}

impl Container {
    /// What the launch of a process that joins is made of.
    fn joining<'a>(
        &'a self,
        identity: &'a Identity,
        filter: Option<&'a Filter>,
        tasks: &'a [PathBuf],
    ) -> Result<Context<'a>, Error> {
        let available = available()?;
        Ok(Context {
            id: &self.id,
            identity,
            filter,
            bound: false,
            available,
            cgroups: None,
            tasks,
            terminal: None,
            init: false,
            maps: None,
            mount_label: None,
            style: Style {
                foreign: self.foreign,
                unprivileged: available & plan::SYS_ADMIN == 0,
                ..Style::default()
            },
        })
    }

    /// startContainer hooks are the container's own files: they have its program's rights.
    pub(super) fn run_start_hooks(&self, hooks: &Hooks, process: &Process) -> Result<(), Error> {
        let root = self.root()?;
        let identity = identity(Some(root.as_fd()), process, &self.groups, self.foreign)?;
        let filter = self.seccomp.filter_again(self.filter.as_ref())?;
        let tasks = self.cgroup.tasks();
        let mut context = self.joining(&identity, filter.as_deref(), &tasks)?;
        context.style.no_new_keyring = true;
        let cgroup = self.cgroup.born_in();
        let guest = Guest { process, context: &context, cgroup, teller: self.teller.as_ref() };
        let inside = Inside { init: &self.init, kinds: self.kinds, guest: Some(guest) };
        hooks.run(Moment::StartContainer, Some(self.init.pid()), Some(inside))
    }

    /// Runs another process in it. The second value is the master side of its
    /// terminal, where one was asked for.
    pub fn exec(&self, process: &Process, stdio: Stdio) -> Result<(Child, Option<OwnedFd>), Error> {
        self.exec_with(process, stdio, ExecManner::default())
    }

    /// The same in another manner than the shim's.
    pub fn exec_with(
        &self,
        process: &Process,
        stdio: Stdio,
        manner: ExecManner,
    ) -> Result<(Child, Option<OwnedFd>), Error> {
        if self.wasm {
            let text = "a wasm container has no other programs to run";
            return Err(Error::new(Failure::NotSupported, text));
        }
        let root = self.root()?;
        if !manner.even_paused && self.cgroup.is_paused() {
            // Docker's words.
            let text =
                format!("Container {} is paused, unpause the container before exec", self.id);
            return Err(Error::new(Failure::Gone, text));
        }
        lsm::check(process)?;
        let ExecManner { inherited, foreign, groups, .. } = manner;
        let below = match &groups[..] {
            [] => None,
            groups => Some(self.cgroup.below(groups)?),
        };
        let own = self.cgroup.tasks();
        let identity = identity(Some(root.as_fd()), process, &self.groups, foreign)?;
        let filter = self.seccomp.filter_again(self.filter.as_ref())?;
        let tasks = below.as_ref().map_or(&own, |below| &below.tasks);
        let mut context = self.joining(&identity, filter.as_deref(), tasks)?;
        context.terminal = terminal(&stdio);
        context.style.inherited = inherited.len() as u32;
        context.style.foreign = foreign;
        let ops = plan::exec(process, &context, self.kinds, &self.habits)?;
        // It is not born in a cgroup that can be frozen: there it would never
        // execute, and we would wait for that in the kernel.
        let cgroup = self.cgroup.born_in().filter(|_| !self.cgroup.freezes_its_newborn());
        let cgroup = cgroup.filter(|_| below.is_none());
        let birth = Birth {
            pid_namespace: Some(self.init.pidfd()),
            cgroup,
            teller: self.teller.clone(),
            ..Birth::default()
        };
        let mut launched = launch(&birth, &stdio)
            .map_err(|error| if self.has_ended() { self.gone() } else { error })?;
        drop(stdio);
        let mut inherited = inherited.into_iter();
        let mut begin = || {
            let take = |pid| match &below {
                Some(below) => below.take(pid),
                None if cgroup.is_none() => self.cgroup.place(pid),
                None => Ok(()),
            };
            let pid = launched.child.pid();
            match (take(pid), &self.unit) {
                // Who made it may have no right to where this one was born.
                (Err(_), Some(unit)) if unit.is_a_users() => {
                    unit.attach(pid)?;
                    take(pid)?;
                }
                (done, _) => done?,
            }
            if foreign {
                crate::affinity::set(&launched.child, process.exec_cpu_affinity().as_ref())?;
            }
            oom_score(&launched.child, process.oom_score_adj())?;
            launched.send(&ops, |wish| match wish {
                Wish::Inherited(_) => inherited.next().map(Ok),
                Wish::Container => Some(self.init.pidfd_copy()),
                _ => None,
            })?;
            launched.await_exec(&ops)
        };
        let begun = begin();
        launched.or_end(begun)?;
        Ok((launched.child.clone(), launched.console()))
    }
}

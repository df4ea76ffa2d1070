//! A container's life: created, running, gone.

use std::os::fd::OwnedFd;

use knarr_model::{Signal, task::TaskStats};
use oci_spec::runtime::{LinuxResources, Process};

use crate::{Child, CreateOptions, Error, Stdio};

/// A container whose first process waits for [`start`](Created::start): its
/// namespaces, mounts and cgroup are made, its program is known to exist.
/// Dropping it kills the process and removes what was made.
#[derive(Debug)]
pub struct Created {
    container: Container,
    console: Option<OwnedFd>,
}

/// A container whose program has been started.
#[derive(Debug)]
pub struct Container {
    init: Child,
}

/// Makes the container: namespaces, cgroup, root filesystem, mounts. Its first
/// process is `knarr-init`, which waits.
pub fn create(options: CreateOptions<'_>) -> Result<Created, Error> {
    let _ = options;
    Err(Error::new(crate::Failure::NotSupported, "not built yet"))
}

impl Created {
    /// The first process, in our own pid namespace.
    pub fn pid(&self) -> u32 {
        self.container.init.pid()
    }

    /// The container as it is, for its pidfd and cgroup.
    pub fn container(&self) -> &Container {
        &self.container
    }

    /// The master side of the terminal, where one was asked for; once.
    pub fn console(&mut self) -> Option<OwnedFd> {
        self.console.take()
    }

    /// Lets the first process become the program; returns when `execve` has
    /// succeeded. On failure everything is removed.
    pub fn start(self) -> Result<Container, Error> {
        Ok(self.container)
    }
}

impl Container {
    /// The first process.
    pub fn init(&self) -> &Child {
        &self.init
    }

    /// Path of the cgroup below each hierarchy's mount point.
    pub fn cgroup(&self) -> &std::path::Path {
        std::path::Path::new("")
    }

    /// Runs another process in it. The second value is the master side of its
    /// terminal, where one was asked for.
    pub fn exec(&self, process: &Process, stdio: Stdio) -> Result<(Child, Option<OwnedFd>), Error> {
        let _ = (process, stdio);
        Err(Error::new(crate::Failure::NotSupported, "not built yet"))
    }

    /// Sends a signal to the first process.
    pub fn kill(&self, signal: Signal) -> Result<(), Error> {
        self.init.kill(signal)
    }

    /// Kills every process of the container's cgroup, also when it is paused.
    pub fn kill_all(&self) -> Result<(), Error> {
        Ok(())
    }

    /// Freezes it; success means that it is frozen.
    pub fn pause(&self) -> Result<(), Error> {
        Ok(())
    }

    /// Thaws it.
    pub fn resume(&self) -> Result<(), Error> {
        Ok(())
    }

    /// What it uses.
    pub fn stats(&self) -> Result<TaskStats, Error> {
        Ok(TaskStats::default())
    }

    /// Its processes, in our own pid namespace.
    pub fn pids(&self) -> Result<Vec<u32>, Error> {
        Ok(Vec::new())
    }

    /// Whether the kernel's OOM killer has killed a process of it.
    pub fn oom_killed(&self) -> bool {
        false
    }

    /// Changes its limits.
    pub fn update(&self, resources: &LinuxResources) -> Result<(), Error> {
        let _ = resources;
        Ok(())
    }

    /// Kills what is left of it and removes its cgroup. Idempotent.
    pub fn delete(&self) -> Result<(), Error> {
        Ok(())
    }
}

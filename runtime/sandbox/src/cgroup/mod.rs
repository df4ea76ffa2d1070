//! Control groups: one group per container, in v1 hierarchies or in the one of v2.
//!
//! ```text
//!  create ──▶ limits ──▶ (process placed) ──▶ pause ⇄ resume ──▶ kill_all ──▶ delete
//! ```
//!
//! On a hybrid host (v1 controllers and an empty v2 hierarchy) the container
//! also gets a v2 group, for `cgroup.kill`: it kills a fork bomb in one write.
//! A verb that finds its work done has succeeded; `delete` goes on after an
//! error and reports the first.

mod devices;
mod files;
mod layout;
mod v1;
mod v2;

use std::{
    borrow::Cow,
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd},
    path::{Component, Path, PathBuf},
    time::{Duration, Instant},
};

use knarr_model::{Signal, task::TaskStats};
use oci_spec::runtime::LinuxResources;
use rustix::io::Errno;

pub(crate) use devices::names as device_names;
pub(crate) use layout::Layout;
pub(crate) use v2::{swap_alone, weight};

use crate::{Error, Failure};

/// A container's control group.
#[derive(Debug)]
pub struct Cgroup {
    /// Absolute, as `/knarr/<id>`; relative to each hierarchy's mount point.
    path: PathBuf,
    layout: Cow<'static, Layout>,
    /// The v2 group's directory, where there is one.
    unified: Option<File>,
}

/// A group below a container's own: for all controllers, or those that are named.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SubGroup {
    /// Controllers of cgroup v1; none for every hierarchy.
    pub controllers: Vec<String>,
    /// Relative to the container's group.
    pub path: PathBuf,
}

/// The files by which a process gets into groups below the container's own.
#[derive(Debug, Default)]
pub(crate) struct Below {
    /// Of v1: it moves itself.
    pub(crate) tasks: Vec<PathBuf>,
    /// Of v2.
    pub(crate) unified: Option<PathBuf>,
}

impl Below {
    /// Takes a process in, or says why that cannot be.
    pub(crate) fn take(&self, pid: u32) -> Result<(), Error> {
        // runc's words.
        let failed = |file: &Path, error| {
            let dir = file.parent().unwrap_or(file).display();
            Error::system(format_args!("error adding pid {pid} to cgroups: {dir}"), error)
        };
        for file in &self.tasks {
            std::fs::metadata(file).map_err(|error| failed(file, error))?;
        }
        match &self.unified {
            Some(file) => {
                std::fs::write(file, pid.to_string()).map_err(|error| failed(file, error))
            }
            None => Ok(()),
        }
    }
}

/// How long `kill_all` and `delete` wait for the kernel to be done.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

impl Cgroup {
    /// Makes the group in every hierarchy. It may exist, but not with processes.
    pub fn create(path: &Path) -> Result<Self, Error> {
        Self::create_in(path, false)
    }

    /// The same for whoever may not make groups everywhere: `passing_over` those
    /// hierarchies that do not let him.
    pub(crate) fn create_in(path: &Path, passing_over: bool) -> Result<Self, Error> {
        let (cgroup, fresh) = Self::make(path, passing_over)?;
        if fresh.len() < cgroup.layout.hierarchies().count()
            && let Err(error) = cgroup.unused()
        {
            // What was there before is somebody else's.
            for dir in fresh {
                let _ = std::fs::remove_dir(dir);
            }
            return Err(error);
        }
        Ok(cgroup)
    }

    /// Refuses a group that somebody else is in, or has frozen: who is born there
    /// never executes.
    fn unused(&self) -> Result<(), Error> {
        let path = self.path.display();
        // runc's words.
        let found = self.pids_anywhere()?.len();
        if found > 0 {
            let text =
                format!("container's cgroup is not empty: {found} process(es) found in {path}");
            return Err(Error::new(Failure::InvalidSpec, text));
        }
        if self.is_paused() {
            let text = format!("container's cgroup unexpectedly frozen: {path}");
            return Err(Error::new(Failure::InvalidSpec, text));
        }
        Ok(())
    }

    /// One that systemd has made around the first process, in the hierarchies
    /// that systemd cares for.
    pub(crate) fn adopt(path: &Path) -> Result<Self, Error> {
        Self::make(path, false).map(|(cgroup, _)| cgroup)
    }

    /// The group, and its directories that were not there before.
    fn make(path: &Path, passing_over: bool) -> Result<(Self, Vec<PathBuf>), Error> {
        let mut cgroup = Self::open(path)?;
        let mut fresh = Vec::new();
        let mut closed = Vec::new();
        for hierarchy in cgroup.layout.hierarchies() {
            let made = hierarchy.make(&cgroup.path).map(|new| {
                fresh.extend(new.then(|| hierarchy.dir(&cgroup.path)));
            });
            if let Err(error) = made {
                use io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem};
                if passing_over && matches!(error.kind(), PermissionDenied | ReadOnlyFilesystem) {
                    closed.push(hierarchy.mount.clone());
                    continue;
                }
                let failed = Error::system(
                    format_args!("make cgroup {} in {}", path.display(), hierarchy.mount.display()),
                    error,
                );
                let _ = cgroup.remove();
                return Err(failed);
            }
        }
        if !closed.is_empty() {
            cgroup.layout = Cow::Owned(cgroup.layout.without(&closed));
        }
        if let Some(unified) = cgroup.layout.unified() {
            let dir = unified.dir(&cgroup.path);
            cgroup.unified = Some(File::open(&dir).map_err(|error| {
                Error::system(format_args!("open cgroup {}", dir.display()), error)
            })?);
        }
        Ok((cgroup, fresh))
    }

    /// The group of that path, made or not: for cleaning up after a crash.
    pub fn open(path: &Path) -> Result<Self, Error> {
        Ok(Self { path: normalized(path)?, layout: Cow::Borrowed(Layout::get()?), unified: None })
    }

    /// The same where it may not have been made in every hierarchy.
    pub(crate) fn open_where_it_is(path: &Path) -> Result<Self, Error> {
        let mut cgroup = Self::open(path)?;
        let missing: Vec<PathBuf> = cgroup
            .layout
            .hierarchies()
            .filter(|hierarchy| !hierarchy.dir(&cgroup.path).is_dir())
            .map(|hierarchy| hierarchy.mount.clone())
            .collect();
        if !missing.is_empty() {
            cgroup.layout = Cow::Owned(cgroup.layout.without(&missing));
        }
        Ok(cgroup)
    }

    /// Path below each hierarchy's mount point, absolute.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory for CLONE_INTO_CGROUP.
    pub(crate) fn born_in(&self) -> Option<BorrowedFd<'_>> {
        self.unified.as_ref().map(AsFd::as_fd)
    }

    /// Whether the group of [`Self::born_in`] is the one that `pause` freezes.
    pub(crate) fn freezes_its_newborn(&self) -> bool {
        matches!(*self.layout, Layout::V2(_))
    }

    /// Directories to show the container as its `/sys/fs/cgroup/<name>`; none at all
    /// on a host of v2, where it mounts cgroup2 itself.
    pub(crate) fn visible(&self) -> Option<Vec<(String, PathBuf)>> {
        match &*self.layout {
            Layout::V2(_) => None,
            Layout::V1 { .. } if matches!(Layout::get(), Ok(Layout::V2(_))) => None,
            Layout::V1 { hierarchies, .. } => {
                let named = hierarchies.iter().filter_map(|hierarchy| {
                    let name = hierarchy.mount.file_name()?.to_str()?.to_owned();
                    Some((name, hierarchy.dir(&self.path)))
                });
                Some(named.collect())
            }
        }
    }

    /// The files by which a process moves itself into the groups of v1, where
    /// nobody is born.
    pub(crate) fn tasks(&self) -> Vec<PathBuf> {
        match &*self.layout {
            Layout::V2(_) => Vec::new(),
            Layout::V1 { hierarchies, .. } => hierarchies
                .iter()
                .map(|hierarchy| hierarchy.dir(&self.path).join("tasks"))
                .collect(),
        }
    }

    /// Moves a process that was not born in it into the group of v2.
    pub(crate) fn place(&self, pid: u32) -> Result<(), Error> {
        match self.layout.unified() {
            Some(unified) => {
                let file = unified.dir(&self.path).join("cgroup.procs");
                files::write(&file, &pid.to_string())
            }
            None => Ok(()),
        }
    }

    /// Whether it is frozen or about to be.
    pub(crate) fn is_paused(&self) -> bool {
        match &*self.layout {
            Layout::V1 { .. } => v1::is_frozen(&self.v1()),
            Layout::V2(mount) => v2::is_frozen(&mount.dir(&self.path)),
        }
    }

    /// Sets limits and, with `first`, what devices may be used: a user namespace makes
    /// none, and the kernel takes no rules about them from there.
    pub(crate) fn limit(&self, resources: &LinuxResources, first: bool) -> Result<(), Error> {
        let devices = first && !crate::rootless::contained();
        match &*self.layout {
            Layout::V1 { .. } => v1::limit(&self.v1(), resources, devices),
            Layout::V2(mount) => v2::limit(&mount.dir(&self.path), resources, devices),
        }
    }

    /// Freezes every process; success means that they are.
    pub fn pause(&self) -> Result<(), Error> {
        self.freeze(true)
    }

    /// Thaws every process; nobody is frozen in a group that has gone.
    pub fn resume(&self) -> Result<(), Error> {
        self.freeze(false)
    }

    fn freeze(&self, frozen: bool) -> Result<(), Error> {
        let done = match &*self.layout {
            Layout::V1 { .. } => v1::freeze(&self.v1(), frozen, Instant::now() + PATIENCE),
            Layout::V2(mount) => {
                v2::freeze(&mount.dir(&self.path), frozen, Instant::now() + PATIENCE)
            }
        };
        match done {
            Err(_) if frozen => drop(self.freeze(false)),
            Err(_) if self.is_gone() => return Ok(()),
            _ => {}
        }
        done
    }

    fn is_gone(&self) -> bool {
        self.layout.main().is_some_and(|main| !main.dir(&self.path).exists())
    }

    /// Whether there is any group at all: not for everybody's containers.
    pub(crate) fn is_anywhere(&self) -> bool {
        self.layout.main().is_some()
    }

    /// Every process, in our own pid namespace.
    pub fn pids(&self) -> Result<Vec<u32>, Error> {
        match self.layout.main() {
            Some(main) => files::pids(&main.dir(&self.path)),
            None => Ok(Vec::new()),
        }
    }

    /// Whoever is in the group in any hierarchy: a process that may write there can
    /// leave one of them and stay in the others.
    fn pids_anywhere(&self) -> Result<Vec<u32>, Error> {
        let mut all = Vec::new();
        for hierarchy in self.layout.hierarchies() {
            all.extend(files::pids(&hierarchy.dir(&self.path))?);
        }
        all.sort_unstable();
        all.dedup();
        Ok(all)
    }

    /// Sends every process a signal.
    pub fn signal(&self, signal: Signal) -> Result<(), Error> {
        knarr_sys::signal_members(
            || self.pids_anywhere().map_err(io::Error::other),
            i32::from(signal.number()),
        )
        .map_err(|error| Error::system(format_args!("send {signal} to all"), error))
    }

    /// Groups below the container's own, for a process of its own that is to be
    /// there; the last word about a hierarchy counts.
    pub(crate) fn below(&self, asked: &[SubGroup]) -> Result<Below, Error> {
        let mut below = Below::default();
        let mut unused: Vec<&str> =
            asked.iter().flat_map(|one| &one.controllers).map(String::as_str).collect();
        let dir = |hierarchy: &layout::Hierarchy, names: &[String]| -> Result<PathBuf, Error> {
            let own = hierarchy.dir(&self.path);
            let named = |one: &&SubGroup| one.controllers.iter().any(|name| names.contains(name));
            let one = asked.iter().rev().find(named);
            let one = one.or_else(|| asked.iter().rev().find(|one| one.controllers.is_empty()));
            let Some(one) = one else { return Ok(own) };
            let path = one.path.strip_prefix("/").unwrap_or(&one.path);
            if path.components().any(|part| !matches!(part, Component::Normal(_))) {
                // runc's words.
                let text = format!("bad sub cgroup path: {}", one.path.display());
                return Err(Error::new(Failure::InvalidSpec, text));
            }
            Ok(own.join(path))
        };
        if let Layout::V1 { hierarchies, .. } = &*self.layout {
            for hierarchy in hierarchies {
                unused.retain(|name| !hierarchy.controllers.iter().any(|other| other == name));
                below.tasks.push(dir(hierarchy, &hierarchy.controllers)?.join("tasks"));
            }
        }
        if let Some(name) = unused.first() {
            let text = format!("unknown controller {name} in the path of a sub cgroup");
            return Err(Error::new(Failure::InvalidSpec, text));
        }
        if let Some(unified) = self.layout.unified() {
            below.unified = Some(dir(unified, &[])?.join("cgroup.procs"));
        }
        Ok(below)
    }

    /// Kills every process, also paused ones, and waits until they are gone.
    pub fn kill_all(&self) -> Result<(), Error> {
        let deadline = Instant::now() + PATIENCE;
        let mut pause = Duration::from_micros(50);
        let at_once = self.layout.unified().map(|mount| mount.dir(&self.path).join("cgroup.kill"));
        loop {
            let left = self.pids_anywhere();
            if left.as_ref().is_ok_and(Vec::is_empty) {
                return Ok(());
            }
            if Instant::now() > deadline {
                left?;
                let text = format!("processes of cgroup {} do not die", self.path.display());
                return Err(Error::new(Failure::System, text));
            }
            // cgroup.kill (Linux 5.14) kills whoever is in the group of v2, and says
            // nothing of those who have left it.
            if let Some(file) = &at_once {
                let _ = files::write(file, "1");
            }
            let members = || self.pids_anywhere().map_err(io::Error::other);
            let _ = knarr_sys::signal_members(members, i32::from(Signal::KILL.number()));
            // A process frozen by v1 dies only when it thaws.
            let _ = self.resume();
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }

    /// Kills what is left and removes the group and those below it.
    pub fn delete(&self) -> Result<(), Error> {
        // Nobody is in a group that can be removed, which is the usual case.
        let gone = |dir: PathBuf| matches!(rustix::fs::rmdir(dir), Ok(()) | Err(Errno::NOENT));
        if self.layout.hierarchies().all(|hierarchy| gone(hierarchy.dir(&self.path))) {
            return Ok(());
        }
        let killed = self.kill_all();
        let removed = self.remove();
        killed.and(removed)
    }

    fn remove(&self) -> Result<(), Error> {
        let mut result = Ok(());
        let deadline = Instant::now() + PATIENCE;
        for hierarchy in self.layout.hierarchies() {
            let dir = hierarchy.dir(&self.path);
            if let Err(error) = remove_tree(&dir, deadline) {
                let failed = Error::system(format_args!("remove {}", dir.display()), error);
                result = result.and(Err(failed));
            }
        }
        result
    }

    /// What the group uses.
    pub fn stats(&self) -> Result<TaskStats, Error> {
        match &*self.layout {
            Layout::V1 { .. } => v1::stats(&self.v1()),
            Layout::V2(mount) => v2::stats(&mount.dir(&self.path)),
        }
    }

    /// How many processes the OOM killer has killed in it.
    pub fn oom_kills(&self) -> u64 {
        match &*self.layout {
            Layout::V1 { .. } => v1::oom_kills(&self.v1()),
            Layout::V2(mount) => v2::oom_kills(&mount.dir(&self.path)),
        }
    }

    fn v1(&self) -> v1::Group<'_> {
        v1::Group { layout: &self.layout, path: &self.path }
    }
}

/// A line of `rdma.max`, the same in v1 and v2.
fn rdma(device: &str, limits: &oci_spec::runtime::LinuxRdma) -> String {
    let mut line = device.to_owned();
    for (name, value) in
        [("hca_handle", limits.hca_handles()), ("hca_object", limits.hca_objects())]
    {
        if let Some(value) = value {
            line.push_str(&format!(" {name}={value}"));
        }
    }
    line
}

/// What `pids.max` is given. Less than nothing is no limit; nothing at all would
/// not let the first process in, and means one, as with runc.
fn pids_limit(limit: i64) -> String {
    match limit {
        ..0 => "max".to_owned(),
        limit => limit.max(1).to_string(),
    }
}

/// rmdir from the leaves up. The kernel says EBUSY while the last process is
/// still on its way out.
fn remove_tree(dir: &Path, deadline: Instant) -> io::Result<()> {
    let mut pause = Duration::from_micros(50);
    loop {
        match rustix::fs::rmdir(dir) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::BUSY | Errno::NOTEMPTY) if Instant::now() < deadline => {
                for below in knarr_sys::groups(dir).iter().skip(1).rev() {
                    let _ = rustix::fs::rmdir(below);
                }
                std::thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_millis(20));
            }
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// `/a/b`, `a/b` and systemd's `slice:prefix:name` as an absolute path; nothing
/// that leads up or is the root.
fn normalized(path: &Path) -> Result<PathBuf, Error> {
    let bad = || {
        let text = format!("cgroup path {:?} must name a group below the root", path.display());
        Error::new(Failure::InvalidSpec, text)
    };
    let text = path.to_str().ok_or_else(bad)?;
    let parts: Vec<&str> = text.split(':').collect();
    let plain = match parts[..] {
        [slice, prefix, name] if !name.is_empty() => {
            let slice = if slice.is_empty() { "system.slice" } else { slice };
            PathBuf::from(slice).join(format!("{prefix}-{name}.scope"))
        }
        _ => path.to_owned(),
    };
    let mut clean = PathBuf::from("/");
    for component in plain.components() {
        match component {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) => clean.push(name),
            _ => return Err(bad()),
        }
    }
    if clean.parent().is_none() || clean.as_os_str().len() > 3000 { Err(bad()) } else { Ok(clean) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s02_cgroup_paths_stay_below_the_root() {
        for (given, wanted) in [
            ("/knarr/x", "/knarr/x"),
            ("knarr/./x", "/knarr/x"),
            ("a.slice:knarr:1", "/a.slice/knarr-1.scope"),
        ] {
            assert_eq!(normalized(Path::new(given)).expect(given), Path::new(wanted));
        }
        for bad in ["", "/", "..", "/knarr/../../x", "../x", "./", "a/.."] {
            assert!(normalized(Path::new(bad)).is_err(), "{bad}");
        }
    }
}

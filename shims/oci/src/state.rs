//! What one call leaves for the next: a directory a container.
//!
//! ```text
//! <root>/<id>/            0711; made first, so that a name is given once
//!            config.json  the specification as it was at create
//!            start.sock   the first process waits here; gone once it was started
//!            plan         what it carries out, for the words of an error
//!            state.json   Record, written last and renamed into place
//! ```
//!
//! Nothing here says whether a container runs: that is asked of its first
//! process, whose number counts only together with its start time. A directory
//! without `state.json` is a create that did not end; `delete --force` removes it.

use std::{
    collections::HashMap,
    fs,
    io::{self, Write},
    os::{
        fd::OwnedFd,
        unix::{
            fs::{DirBuilderExt, OpenOptionsExt},
            net::UnixStream,
        },
    },
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use knarr_sandbox::{Container, Left, rootless};
use oci_spec::runtime::Spec;
use serde::{Deserialize, Serialize};

use crate::Global;

/// Who a container is.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Record {
    pub(crate) oci_version: String,
    pub(crate) id: String,
    /// The first process, in the caller's pid namespace.
    pub(crate) pid: u32,
    /// Field 22 of `/proc/PID/stat`.
    pub(crate) start_time: u64,
    pub(crate) bundle: PathBuf,
    pub(crate) rootfs: PathBuf,
    /// RFC 3339.
    pub(crate) created: String,
    #[serde(default)]
    pub(crate) annotations: HashMap<String, String>,
    /// The user who made it.
    pub(crate) owner: u32,
    /// He had no privileges but in its user namespace.
    #[serde(default)]
    pub(crate) rootless: bool,
}

/// Where a container is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    Created,
    Running,
    Paused,
    Stopped,
}

impl Status {
    /// The specification's word.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }
}

/// The directory of a container.
#[derive(Debug, Clone)]
pub(crate) struct Home {
    pub(crate) id: String,
    pub(crate) dir: PathBuf,
}

/// A container that was made some time.
#[derive(Debug)]
pub(crate) struct Known {
    pub(crate) home: Home,
    pub(crate) record: Record,
    pub(crate) spec: Spec,
    /// None once its first process has ended.
    pub(crate) container: Option<Container>,
}

/// Where containers are remembered.
pub(crate) fn root(global: &Global) -> PathBuf {
    match global.flags.get("root").filter(|root| !root.is_empty()) {
        Some(root) => PathBuf::from(root),
        None => match std::env::var_os("XDG_RUNTIME_DIR").filter(|_| rootless::is_a_users()) {
            Some(dir) => Path::new(&dir).join("knarr-oci"),
            None => PathBuf::from("/run/knarr-oci"),
        },
    }
}

/// A name that is one of a file and of a cgroup (runc `validateID`).
fn valid(id: &str) -> Result<()> {
    let letter = |byte: u8| byte.is_ascii_alphanumeric() || b"_+-.".contains(&byte);
    let good = !id.is_empty() && id.len() <= 1024 && id.bytes().all(letter);
    ensure!(good && id != "." && id != "..", "invalid container ID format");
    Ok(())
}

impl Home {
    pub(crate) fn of(global: &Global, id: &str) -> Result<Self> {
        valid(id)?;
        Ok(Self { id: id.to_owned(), dir: root(global).join(id) })
    }

    /// Takes the name.
    pub(crate) fn make(&self) -> Result<()> {
        let make = || fs::DirBuilder::new().mode(0o711).create(&self.dir);
        let made = match make() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let parent = self.dir.parent().unwrap_or(Path::new("/"));
                fs::DirBuilder::new()
                    .mode(0o711)
                    .recursive(true)
                    .create(parent)
                    .with_context(|| format!("make {}", parent.display()))?;
                make()
            }
            other => other,
        };
        match made {
            Ok(()) => Ok(()),
            // runc's words.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                bail!("container with given ID already exists")
            }
            Err(error) => Err(error).with_context(|| format!("make {}", self.dir.display())),
        }
    }

    /// Forgets it. Idempotent.
    pub(crate) fn remove(&self) -> Result<()> {
        knarr_tree::remove(&self.dir).with_context(|| format!("remove {}", self.dir.display()))
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Where its first process is to wait: for its owner alone.
    pub(crate) fn listen(&self) -> Result<OwnedFd> {
        let listener = knarr_sys::listen_privately(&self.file("start.sock"));
        Ok(listener.context("make the start socket")?.into())
    }

    /// A connection to its first process; none where it does not wait any more.
    pub(crate) fn connect(&self) -> Result<Option<OwnedFd>> {
        use std::os::fd::AsRawFd;
        // An address takes 107 bytes, a directory's descriptor any path.
        let dir = fs::File::open(&self.dir).context("open the state directory")?;
        let path = PathBuf::from(format!("/proc/self/fd/{}/start.sock", dir.as_raw_fd()));
        match UnixStream::connect(path) {
            Ok(stream) => Ok(Some(stream.into())),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(error).context("connect to the start socket"),
        }
    }

    /// It was started.
    pub(crate) fn started(&self) {
        let _ = fs::remove_file(self.file("start.sock"));
    }

    pub(crate) fn save_spec(&self, text: &[u8]) -> Result<()> {
        write(&self.file("config.json"), text)
    }

    /// Makes it known to later calls.
    pub(crate) fn save(&self, record: &Record, plan: Option<&[u8]>) -> Result<()> {
        if let Some(plan) = plan {
            write(&self.file("plan"), plan)?;
        }
        let new = self.file("state.new");
        write(&new, &serde_json::to_vec(record)?)?;
        fs::rename(&new, self.file("state.json")).context("write state.json")
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let open = fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(path);
    open.and_then(|mut file| file.write_all(bytes))
        .with_context(|| format!("write {}", path.display()))
}

impl Known {
    /// Finds a container.
    pub(crate) fn find(global: &Global, id: &str) -> Result<Self> {
        Self::read(Home::of(global, id)?)
    }

    fn read(home: Home) -> Result<Self> {
        let text = match fs::read(home.file("state.json")) {
            Ok(text) => text,
            // runc's words, which callers look for.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(anyhow!(Missing));
            }
            Err(error) => return Err(error).context("read state.json"),
        };
        let record: Record = serde_json::from_slice(&text).context("state.json")?;
        let spec = fs::read(home.file("config.json")).context("read config.json")?;
        let spec: Spec = crate::config::parse(&spec)?;
        let left = Left { pid: record.pid, start_time: record.start_time, ..Left::default() };
        let container = Container::find(&home.id, &record.bundle, &spec, &left)?;
        Ok(Self { home, record, spec, container })
    }

    /// Every container of this root, by name.
    pub(crate) fn all(global: &Global) -> Result<Vec<Self>> {
        let entries = match fs::read_dir(root(global)) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).context("read the state directory"),
        };
        let mut all = Vec::new();
        for entry in entries {
            let name = entry?.file_name().to_string_lossy().into_owned();
            let Ok(home) = Home::of(global, &name) else { continue };
            match Self::read(home) {
                Ok(known) => all.push(known),
                // Somebody makes or removes it right now.
                Err(error) if error.is::<Missing>() => {}
                Err(error) => global.log.warning(&format!("load container {name}: {error:#}")),
            }
        }
        all.sort_by(|a, b| a.home.id.cmp(&b.home.id));
        Ok(all)
    }

    /// The same for a verb that works within it: a user without privileges has them
    /// in its user namespace only, as long as that is there.
    pub(crate) fn find_within(global: &Global, id: &str) -> Result<Self> {
        let known = Self::find(global, id)?;
        match &known.container {
            Some(container) if known.record.rootless && !rustix::process::geteuid().is_root() => {
                rootless::rejoin(container.init())?;
                Self::read(known.home)
            }
            _ => Ok(known),
        }
    }

    /// Where it is in its life.
    pub(crate) fn status(&self) -> Status {
        match &self.container {
            None => Status::Stopped,
            Some(container) if container.is_paused() => Status::Paused,
            Some(_) if self.home.file("start.sock").exists() => Status::Created,
            Some(_) => Status::Running,
        }
    }

    /// The container, if its first process is there.
    pub(crate) fn alive(&self) -> Result<&Container> {
        // runc's words.
        self.container.as_ref().ok_or_else(|| anyhow!("container not running"))
    }

    /// What [`Container::start`] wants to know.
    pub(crate) fn left(&self) -> Result<Left> {
        let plan = fs::read(self.home.file("plan")).context("read plan")?;
        Ok(Left { pid: self.record.pid, start_time: self.record.start_time, plan })
    }
}

/// There is no such container.
#[derive(Debug)]
pub(crate) struct Missing;

impl std::fmt::Display for Missing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("container does not exist")
    }
}

impl std::error::Error for Missing {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s02_names_are_those_of_one_directory() {
        for good in ["a", "A_b-c.d+1", "..."] {
            assert!(valid(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "../x", "a b", "a\0", "é", &"x".repeat(2000)] {
            assert!(valid(bad).is_err(), "{bad:?}");
        }
    }
}

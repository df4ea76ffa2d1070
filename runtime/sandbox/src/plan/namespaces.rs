//! Which namespaces are new, which are joined, which stay the host's.

use std::path::PathBuf;

use oci_spec::runtime::{LinuxNamespaceType, Spec};

use super::{is_wasm, required};
use crate::{Error, Failure};

pub(crate) const MNT: u32 = 0x0002_0000;
pub(crate) const CGROUP: u32 = 0x0200_0000;
pub(crate) const UTS: u32 = 0x0400_0000;
pub(crate) const IPC: u32 = 0x0800_0000;
pub(crate) const USER: u32 = 0x1000_0000;
pub(crate) const PID: u32 = 0x2000_0000;
pub(crate) const NET: u32 = 0x4000_0000;
pub(crate) const TIME: u32 = 0x0000_0080;

/// Where the first process is born.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PidNamespace {
    /// In one of its own, as process 1.
    New,
    /// In that of others.
    Joined(PathBuf),
    /// In ours.
    Host,
}

/// What becomes of each kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Namespaces {
    /// CLONE_NEW* bits for clone3.
    pub(crate) created: u64,
    /// Bits for unshare, after the process is in its cgroup.
    pub(crate) unshared: u32,
    /// To be joined, in order.
    pub(crate) joined: Vec<(u32, PathBuf)>,
    /// The user namespace to be joined.
    pub(crate) user: Option<PathBuf>,
    /// CLONE_NEW* bits of what that one is to own: made after it was joined.
    pub(crate) inside: u32,
    /// The pid namespace.
    pub(crate) pid: PidNamespace,
    /// Its mounts are those of others: the host's, or of a namespace by path.
    pub(crate) shares_mounts: bool,
}

impl Namespaces {
    pub(crate) fn of(spec: &Spec) -> Result<Self, Error> {
        let linux = required(spec.linux().as_ref(), "linux section")?;
        let mut new = Self {
            created: 0,
            unshared: 0,
            joined: Vec::new(),
            user: None,
            inside: 0,
            pid: PidNamespace::Host,
            shares_mounts: false,
        };
        let mut seen = 0;
        for namespace in linux.namespaces().iter().flatten() {
            let path = namespace.path().clone().filter(|path| !path.as_os_str().is_empty());
            let kind = match namespace.typ() {
                LinuxNamespaceType::Mount => MNT,
                LinuxNamespaceType::Cgroup => CGROUP,
                LinuxNamespaceType::Uts => UTS,
                LinuxNamespaceType::Ipc => IPC,
                LinuxNamespaceType::Pid => PID,
                LinuxNamespaceType::Network => NET,
                LinuxNamespaceType::Time => TIME,
                LinuxNamespaceType::User => USER,
            };
            if seen & kind != 0 {
                let text = format!("namespace {} is named twice", namespace.typ());
                return Err(Error::new(Failure::InvalidSpec, text));
            }
            seen |= kind;
            match (kind, path) {
                (PID, None) => {
                    new.created |= u64::from(PID);
                    new.pid = PidNamespace::New;
                }
                (PID, Some(path)) => new.pid = PidNamespace::Joined(path),
                (MNT, Some(path)) => {
                    new.shares_mounts = true;
                    new.joined.push((MNT, path));
                }
                (USER, Some(path)) => new.user = Some(path),
                // Its root is the cgroup that the process is in when it is made.
                (CGROUP, None) => new.unshared |= CGROUP,
                // Entered with the exec of the program, after its clocks are set.
                (TIME, None) => new.unshared |= TIME,
                (kind, None) => new.created |= u64::from(kind),
                (kind, Some(path)) => new.joined.push((kind, path)),
            }
        }
        new.shares_mounts |= seen & MNT == 0;
        if new.user.is_some() {
            new.inside = std::mem::take(&mut new.created) as u32;
        }
        if is_wasm(spec) && seen & PID == 0 {
            let text = "a wasm container needs a pid namespace of its own";
            return Err(Error::new(Failure::InvalidSpec, text));
        }
        Ok(new)
    }

    /// Whether the container has one of this kind that is not the host's.
    pub(crate) fn has(&self, kind: u32) -> bool {
        self.all() & kind != 0
    }

    /// Whether the container has a new one of this kind.
    pub(crate) fn makes(&self, kind: u32) -> bool {
        (self.created as u32 | self.inside) & kind != 0
    }

    /// All that the container does not share with the host, but for a pid
    /// namespace that it has joined.
    pub(crate) fn all(&self) -> u32 {
        let joined = self.joined.iter().fold(0, |kinds, (kind, _)| kinds | kind);
        let user = if self.user.is_some() { USER } else { 0 };
        self.created as u32 | self.inside | self.unshared | joined | user
    }

    /// Whether the first process is not the one that is started: a pid
    /// namespace that another user namespace owns is made from within that.
    pub(crate) fn reborn(&self) -> bool {
        self.inside & PID != 0
    }
}

//! Where this host has its control groups.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use knarr_sys::read;
use rustix::{fs::mkdir, io::Errno};

use crate::{Error, Failure};

/// One mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hierarchy {
    /// Where it is mounted.
    pub(crate) mount: PathBuf,
    /// Its controllers; none for v2, which says so in a file.
    pub(crate) controllers: Vec<String>,
    /// Its controllers are v2's and must be enabled from the root down.
    unified: bool,
}

/// What the host offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Layout {
    /// Everything in one hierarchy.
    V2(Hierarchy),
    /// A hierarchy for each controller, and perhaps v2 beside them.
    V1 {
        /// The v1 hierarchies.
        hierarchies: Vec<Hierarchy>,
        /// The v2 hierarchy of a hybrid host.
        unified: Option<Hierarchy>,
    },
}

impl Layout {
    /// This host's; looked at once.
    pub(crate) fn get() -> Result<&'static Self, Error> {
        static LAYOUT: OnceLock<Option<Layout>> = OnceLock::new();
        let layout = LAYOUT.get_or_init(|| {
            let mounts = read::lossy(crate::wishes::mountinfo().ok()?);
            Layout::parse(&mounts)
        });
        layout.as_ref().ok_or_else(|| {
            Error::new(Failure::System, "no cgroup filesystem is mounted on this host")
        })
    }

    /// From `/proc/self/mountinfo`. Systemd's own hierarchy of v1 counts wherever it is
    /// mounted (as with runc): kubelet makes a pod's group there too, and takes the pod for
    /// gone when somebody removes that because nobody is in it.
    fn parse(mountinfo: &str) -> Option<Self> {
        let mut hierarchies: Vec<Hierarchy> = Vec::new();
        let mut unified: Option<Hierarchy> = None;
        for line in mountinfo.lines() {
            let Some((front, back)) = line.split_once(" - ") else { continue };
            let (mut front, mut back) = (front.split(' ').skip(3), back.split(' '));
            let (Some(root), Some(mount), Some(kind)) = (front.next(), front.next(), back.next())
            else {
                continue;
            };
            // A bind mount of some group is not a hierarchy.
            if root != "/" {
                continue;
            }
            let hierarchy = |controllers: Vec<String>| Hierarchy {
                mount: PathBuf::from(mount),
                unified: false,
                controllers,
            };
            match kind {
                "cgroup2" if unified.is_none() => unified = Some(hierarchy(Vec::new())),
                "cgroup" => {
                    let options = back.nth(1).unwrap_or_default().split(',');
                    let controllers: Vec<String> = options
                        .filter(|name| CONTROLLERS.contains(name) || *name == "name=systemd")
                        .map(str::to_owned)
                        .collect();
                    let known = hierarchies.iter().any(|other| other.controllers == controllers);
                    if !known && !controllers.is_empty() {
                        hierarchies.push(hierarchy(controllers));
                    }
                }
                _ => {}
            }
        }
        // Systemd's alone beside v2 leaves all controllers to that.
        let named =
            |hierarchy: &Hierarchy| hierarchy.controllers.iter().all(|one| one.contains('='));
        match (hierarchies.iter().all(named), unified) {
            (true, Some(unified)) => Some(Self::V2(Hierarchy { unified: true, ..unified })),
            (true, None) if hierarchies.is_empty() => None,
            (_, unified) => Some(Self::V1 { hierarchies, unified }),
        }
    }

    /// All hierarchies that a container has a group in.
    pub(crate) fn hierarchies(&self) -> impl Iterator<Item = &Hierarchy> {
        let (many, one) = match self {
            Self::V2(unified) => (&[][..], Some(unified)),
            Self::V1 { hierarchies, unified } => (&hierarchies[..], unified.as_ref()),
        };
        many.iter().chain(one)
    }

    /// The hierarchy of v2.
    pub(crate) fn unified(&self) -> Option<&Hierarchy> {
        match self {
            Self::V2(unified) => Some(unified),
            Self::V1 { unified, .. } => unified.as_ref(),
        }
    }

    /// The one that is asked for processes.
    pub(crate) fn main(&self) -> Option<&Hierarchy> {
        match self {
            Self::V2(unified) => Some(unified),
            Self::V1 { hierarchies, unified } => {
                let freezer = hierarchies.iter().find(|hierarchy| hierarchy.has("freezer"));
                freezer.or(hierarchies.first()).or(unified.as_ref())
            }
        }
    }

    /// What is left without the hierarchies that are mounted there.
    pub(crate) fn without(&self, mounts: &[PathBuf]) -> Self {
        let open = |hierarchy: &&Hierarchy| !mounts.contains(&hierarchy.mount);
        match self {
            Self::V2(one) if open(&one) => self.clone(),
            Self::V2(_) => Self::V1 { hierarchies: Vec::new(), unified: None },
            Self::V1 { hierarchies, unified } => Self::V1 {
                hierarchies: hierarchies.iter().filter(open).cloned().collect(),
                unified: unified.as_ref().filter(open).cloned(),
            },
        }
    }

    /// The v1 hierarchy with a controller.
    pub(crate) fn with(&self, controller: &str) -> Option<&Hierarchy> {
        match self {
            Self::V2(_) => None,
            Self::V1 { hierarchies, .. } => hierarchies.iter().find(|one| one.has(controller)),
        }
    }
}

const CONTROLLERS: [&str; 14] = [
    "cpu",
    "cpuacct",
    "cpuset",
    "memory",
    "devices",
    "freezer",
    "blkio",
    "pids",
    "net_cls",
    "net_prio",
    "perf_event",
    "hugetlb",
    "rdma",
    "misc",
];

impl Hierarchy {
    fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|name| name == controller)
    }

    /// The directory of a group.
    pub(crate) fn dir(&self, path: &Path) -> PathBuf {
        self.mount.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// Makes a group and those above it; whether it is new.
    pub(crate) fn make(&self, path: &Path) -> io::Result<bool> {
        let dir = self.dir(path);
        // Somebody may remove an empty parent between our two steps.
        for _ in 0..100 {
            match mkdir(&dir, 0o755.into()) {
                Ok(()) => return self.furnish(&dir).map(|()| true),
                Err(Errno::EXIST) => return Ok(false),
                Err(Errno::NOENT) => {
                    let parent = path.parent().filter(|parent| parent.parent().is_some());
                    let parent = parent.ok_or(io::ErrorKind::NotFound)?;
                    self.make(parent)?;
                }
                Err(errno) => return Err(errno.into()),
            }
        }
        Err(io::ErrorKind::NotFound.into())
    }

    /// A new group of cpuset has no CPUs and takes no process until it is given some; nor may
    /// it have what those above it have not been given.
    fn give_processors(&self, dir: &Path) -> io::Result<()> {
        let has = read::bytes(dir.join("cpuset.cpus"), read::SMALL)?;
        let Some(parent) = dir.parent().filter(|_| dir != self.mount) else { return Ok(()) };
        if !has.trim_ascii().is_empty() {
            return Ok(());
        }
        self.give_processors(parent)?;
        for file in ["cpuset.cpus", "cpuset.mems"] {
            fs::write(dir.join(file), read::bytes(parent.join(file), read::SMALL)?)?;
        }
        // What is made below gets its CPUs without being asked.
        let _ = fs::write(dir.join("cgroup.clone_children"), "1");
        Ok(())
    }

    /// What a new group needs before it takes a process.
    fn furnish(&self, dir: &Path) -> io::Result<()> {
        if self.has("cpuset") {
            self.give_processors(dir)?;
        }
        if self.unified
            && let Some(parent) = dir.parent()
        {
            let list = |file| read::text(parent.join(file), read::SMALL);
            let (available, enabled) =
                (list("cgroup.controllers")?, list("cgroup.subtree_control")?);
            let enabled: Vec<&str> = enabled.split_ascii_whitespace().collect();
            // Each on its own: one that cannot be had must not take the others with it.
            for name in available.split_ascii_whitespace().filter(|name| !enabled.contains(name)) {
                let _ = fs::write(parent.join("cgroup.subtree_control"), format!("+{name}"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
30 20 0:26 / /sys/fs/cgroup rw shared:9 - tmpfs tmpfs rw,mode=755
31 30 0:27 / /sys/fs/cgroup/unified rw shared:10 - cgroup2 cgroup2 rw
32 30 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
33 30 0:29 / /sys/fs/cgroup/cpu,cpuacct rw shared:1 master:2 - cgroup cgroup rw,cpu,cpuacct
34 30 0:30 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer
35 30 0:30 /knarr/x /mnt/copy rw - cgroup cgroup rw,freezer
36 30 0:31 / /sys/fs/cgroup/openrc rw - cgroup openrc rw,name=openrc
";

    #[test]
    fn a_hybrid_host_is_understood() {
        let layout = Layout::parse(HYBRID).expect("v1");
        assert_eq!(layout.main().expect("one of them").mount, Path::new("/sys/fs/cgroup/freezer"));
        assert_eq!(
            layout.with("cpuacct").map(|one| one.mount.as_path()),
            Some(Path::new("/sys/fs/cgroup/cpu,cpuacct"))
        );
        assert!(layout.unified().is_some());
        // systemd's own, the controllers', and v2; not another's, nor a copy.
        assert_eq!(layout.hierarchies().count(), 4);
        assert!(layout.with("name=systemd").is_some());
    }

    #[test]
    fn a_v2_host_is_understood() {
        let layout = Layout::parse("31 30 0:27 / /sys/fs/cgroup rw - cgroup2 none rw\n");
        assert!(matches!(layout, Some(Layout::V2(_))), "{layout:?}");
        let beside = "31 30 0:27 / /sys/fs/cgroup rw - cgroup2 none rw\n\
            32 30 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n";
        let layout = Layout::parse(beside);
        assert!(matches!(layout, Some(Layout::V2(_))), "{layout:?}");
        assert_eq!(Layout::parse(""), None);
    }
}

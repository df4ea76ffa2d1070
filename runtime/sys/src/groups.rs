//! Control groups below a group (cgroups(7)): a container may make them, as deep and as
//! many as it likes, so that nobody's stack or descriptors may grow with them.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use rustix::io::Errno;

use crate::read;

/// A group's directory and those below it, each before those below itself. Nothing where
/// there is none.
pub fn groups(dir: &Path) -> Vec<PathBuf> {
    let mut found = vec![dir.to_owned()];
    let mut at = 0;
    while let Some(group) = found.get(at) {
        at += 1;
        // Each is closed before the next is opened.
        let Ok(entries) = fs::read_dir(group) else { continue };
        let below = entries.flatten().filter(|one| one.file_type().is_ok_and(|kind| kind.is_dir()));
        let below: Vec<PathBuf> = below.map(|one| one.path()).collect();
        found.extend(below);
    }
    found
}

/// The processes of a group and of those below it, in our own pid namespace.
///
/// # Errors
/// What the kernel says, but not that a group has gone.
pub fn members(dir: &Path) -> io::Result<Vec<u32>> {
    let mut all = Vec::new();
    for group in groups(dir) {
        let list = match read::text(group.join("cgroup.procs"), read::LIST) {
            Ok(list) => list,
            Err(error) => match Errno::from_io_error(&error) {
                // One that is being removed answers ENODEV, a threaded one EOPNOTSUPP: its
                // processes are listed in the group that its threads come from.
                Some(Errno::NOENT | Errno::NODEV | Errno::OPNOTSUPP) => continue,
                _ => return Err(error),
            },
        };
        // Zero is a process of a pid namespace that we cannot see.
        let numbers = list.lines().filter_map(|line| line.parse::<u32>().ok());
        all.extend(numbers.filter(|pid| *pid != 0));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    use super::*;

    #[test]
    fn a_deep_tree_is_looked_through_with_one_descriptor_at_a_time() {
        let root = tempfile::tempdir().expect("directory");
        let mut dir = root.path().to_owned();
        for level in 0..1500 {
            fs::write(dir.join("cgroup.procs"), format!("0\n{}\n", level + 1)).expect("procs");
            dir.push("x");
            fs::create_dir(&dir).expect("a level");
        }
        // Fewer than there are levels.
        let usual = getrlimit(Resource::Nofile);
        let few = Rlimit { current: Some(64), maximum: usual.maximum };
        setrlimit(Resource::Nofile, few).expect("a limit of descriptors");
        let found = members(root.path()).expect("members");
        assert_eq!(found, (1..=1500).collect::<Vec<u32>>());
        let groups = groups(root.path());
        assert_eq!((groups.len(), groups.last()), (1501, Some(&dir)));
        setrlimit(Resource::Nofile, usual).expect("the limit as it was");
        assert_eq!(members(&root.path().join("none")).expect("none"), [0; 0]);
        // Deeper than the standard library can remove.
        for group in groups.iter().skip(1).rev() {
            let _ = fs::remove_file(group.join("cgroup.procs"));
            fs::remove_dir(group).expect("removed");
        }
    }
}

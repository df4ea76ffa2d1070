//! A full data root: nothing new, and everything can be removed (RELIABILITY K06).

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
};

use knarr_harness::{ImageBuilder, World};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// An engine whose data root is a file system of 30 MB in memory.
struct Small {
    world: World,
    root: PathBuf,
}

impl Small {
    fn new() -> Self {
        let mut world = World::new().expect("a private engine");
        world.stop_daemon();
        let root = world.data_root();
        let none: Option<&str> = None;
        mount(Some("tmpfs"), &root, Some("tmpfs"), MsFlags::empty(), Some("size=30m")).unwrap();
        world.start_daemon().unwrap();
        world.load(&ImageBuilder::busybox().expect("busybox").docker_archive());
        let _ = none;
        Self { world, root }
    }

    /// Takes every byte that is left, as another program of the host.
    fn fill(&self) {
        let mut file =
            fs::File::options().create(true).append(true).open(self.root.join("filler")).unwrap();
        for size in [1 << 20, 4096, 1] {
            let bytes = vec![7; size];
            while file.write_all(&bytes).is_ok() {}
        }
        assert_eq!(free(&self.root), 0);
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = fs::remove_file(self.root.join("filler"));
        let ids = self.world.knarr(&["ps", "-a", "-q"]).stdout;
        for id in ids.split_whitespace() {
            self.world.knarr(&["rm", "-f", id]);
        }
        self.world.stop_daemon();
        let _ = umount2(&self.root, MntFlags::MNT_DETACH);
    }
}

fn free(root: &Path) -> u64 {
    let space = nix::sys::statvfs::statvfs(root).unwrap();
    space.blocks_free() * space.fragment_size()
}

/// What there is to remove.
fn furnish(world: &World) {
    world.knarr(&["network", "create", "quay"]).ok();
    world.knarr(&["volume", "create", "hold"]).ok();
    world.knarr(&["volume", "create", "spare"]).ok();
    world.knarr(&["tag", "busybox", "tool:2"]).ok();
    world
        .knarr(&[
            "run",
            "-d",
            "--name",
            "runs",
            "--network",
            "quay",
            "-v",
            "hold:/hold",
            "-v",
            "/any",
            "busybox",
            "sleep",
            "1000",
        ])
        .ok();
    world.knarr(&["run", "-d", "--name", "stops", "busybox", "sleep", "1000"]).ok();
    world.knarr(&["create", "--name", "idle", "busybox"]).ok();
    world.knarr(&["run", "--name", "done", "busybox", "true"]).ok();
}

/// Removes one after another, with not a byte free before each.
fn remove_all(small: &Small) {
    let world = &small.world;
    for line in [
        &["rm", "idle"][..],
        &["stop", "-t", "0", "stops"],
        &["container", "prune", "-f"],
        &["rm", "-f", "-v", "runs"],
        &["volume", "rm", "hold"],
        &["volume", "prune", "-a", "-f"],
        &["network", "rm", "quay"],
        &["rmi", "tool:2"],
        &["rmi", "busybox"],
        &["system", "prune", "-a", "-f"],
    ] {
        small.fill();
        world.knarr(line).ok();
    }
    for list in [&["ps", "-a", "-q"][..], &["volume", "ls", "-q"], &["images", "-a", "-q"]] {
        assert_eq!(world.knarr(list).ok(), "", "{list:?}");
    }
    assert!(!world.knarr(&["network", "ls"]).ok().contains("quay"));
}

#[test]
fn k06_everything_can_be_removed_with_not_a_byte_free() {
    let small = Small::new();
    furnish(&small.world);
    // By a container this time: its own file system is the data root's.
    let fill = "cat /dev/zero > /fill; cat /dev/zero > /hold/fill";
    small.world.knarr(&["exec", "runs", "sh", "-c", fill]);
    small.fill();
    for line in
        [&["create", "busybox"][..], &["volume", "create", "more"], &["network", "create", "more"]]
    {
        let refused = small.world.knarr(line).fails(1);
        assert!(refused.to_lowercase().contains("no space left"), "{line:?}: {refused}");
    }
    assert_eq!(small.world.knarr(&["exec", "runs", "echo", "on"]).ok(), "on");
    remove_all(&small);
}

#[test]
fn k06_a_daemon_that_starts_on_a_full_data_root_can_remove_everything() {
    for polite in [false, true] {
        let mut small = Small::new();
        furnish(&small.world);
        small.fill();
        if polite {
            small.world.stop_daemon()
        } else {
            small.world.kill_daemon()
        }
        small.fill();
        small.world.start_daemon().unwrap();
        assert_eq!(small.world.knarr(&["exec", "runs", "echo", "on"]).ok(), "on");
        remove_all(&small);
        // There is room again, and it is used.
        fs::remove_file(small.root.join("filler")).unwrap();
        small.world.load(&ImageBuilder::busybox().expect("busybox").docker_archive());
        assert_eq!(small.world.knarr(&["run", "--rm", "busybox", "echo", "new"]).ok(), "new");
    }
}

//! A full data root: nothing new, and everything can be removed (CATALOGUE K06, K07).

use std::{
    fs,
    io::{ErrorKind, Write as _},
    path::PathBuf,
};

use knarr_harness::{ImageBuilder, World};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// What there is too little of.
#[derive(Clone, Copy)]
enum Scarce {
    Bytes,
    Inodes,
}

/// An engine whose data root is a small file system in memory.
struct Small {
    world: World,
    root: PathBuf,
    scarce: Scarce,
}

impl Small {
    fn new(scarce: Scarce) -> Self {
        let mut world = World::new().expect("a private engine");
        world.stop_daemon();
        let root = world.data_root();
        let size = match scarce {
            Scarce::Bytes => "size=30m",
            Scarce::Inodes => "size=100m,nr_inodes=2000",
        };
        mount(Some("tmpfs"), &root, Some("tmpfs"), MsFlags::empty(), Some(size)).unwrap();
        fs::create_dir(root.join("filler")).unwrap();
        world.start_daemon().unwrap();
        world.load(&ImageBuilder::busybox().expect("busybox").docker_archive());
        Self { world, root, scarce }
    }

    /// Takes all that is left, as another program of the host; again where the daemon, which
    /// deletes in the background, gives something back meanwhile.
    fn fill(&self) {
        while self.free() > 0 {
            self.fill_once();
        }
    }

    fn fill_once(&self) {
        let filler = self.root.join("filler");
        match self.scarce {
            Scarce::Bytes => {
                let file = fs::File::options().create(true).append(true).open(filler.join("file"));
                let mut file = file.unwrap();
                for size in [1 << 20, 4096, 1] {
                    let bytes = vec![7; size];
                    while file.write_all(&bytes).is_ok() {}
                }
            }
            Scarce::Inodes => {
                for number in 0.. {
                    match fs::File::create_new(filler.join(number.to_string())) {
                        Err(error) if error.kind() == ErrorKind::StorageFull => break,
                        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                        file => drop(file.unwrap()),
                    }
                }
            }
        }
    }

    /// How much there is of what is scarce.
    fn free(&self) -> u64 {
        let space = nix::sys::statvfs::statvfs(&self.root).unwrap();
        match self.scarce {
            Scarce::Bytes => space.blocks_free() * space.fragment_size(),
            Scarce::Inodes => space.files_free(),
        }
    }

    /// Nothing new: each is refused with the reason, and nothing of it stays.
    fn refuses_what_is_new(&self) {
        let before = lists(&self.world);
        let network = ["network", "create", "more"];
        let mut new = vec![&["create", "busybox"][..], &["volume", "create", "more"]];
        match self.scarce {
            Scarce::Bytes => new.push(&network),
            // A network is a row, and its record can wait for the next start.
            Scarce::Inodes => {
                self.world.knarr(&network).ok();
                self.world.knarr(&["network", "rm", "more"]).ok();
            }
        }
        for line in new {
            let refused = self.world.knarr(line).fails(1);
            assert!(refused.to_lowercase().contains("no space left"), "{line:?}: {refused}");
        }
        assert_eq!(lists(&self.world), before);
    }
}

/// What there is of everything.
fn lists(world: &World) -> [String; 4] {
    [
        &["ps", "-a", "-q"][..],
        &["volume", "ls", "-q"],
        &["images", "-a", "-q"],
        &["network", "ls", "-q"],
    ]
    .map(|list| world.knarr(list).ok())
}

impl Drop for Small {
    fn drop(&mut self) {
        #[expect(clippy::disallowed_methods, reason = "a tree of the test itself")]
        let _ = fs::remove_dir_all(self.root.join("filler"));
        let ids = self.world.knarr(&["ps", "-a", "-q"]).stdout;
        for id in ids.split_whitespace() {
            self.world.knarr(&["rm", "-f", id]);
        }
        self.world.stop_daemon();
        let _ = umount2(&self.root, MntFlags::MNT_DETACH);
    }
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

/// Removes one after another, with nothing free before each.
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
    assert_eq!(lists(world)[..3], ["", "", ""]);
    assert!(!world.knarr(&["network", "ls"]).ok().contains("quay"));
}

#[test]
fn k06_everything_can_be_removed_with_not_a_byte_free() {
    let small = Small::new(Scarce::Bytes);
    furnish(&small.world);
    // By a container this time: its own file system is the data root's.
    let fill = "cat /dev/zero > /fill; cat /dev/zero > /hold/fill";
    small.world.knarr(&["exec", "runs", "sh", "-c", fill]);
    small.fill();
    small.refuses_what_is_new();
    assert_eq!(small.world.knarr(&["exec", "runs", "echo", "on"]).ok(), "on");
    remove_all(&small);
}

#[test]
fn k07_everything_can_be_removed_without_a_free_inode() {
    let small = Small::new(Scarce::Inodes);
    furnish(&small.world);
    // By a container, as above.
    let fill = "n=0; while : > /hold/$n; do n=$((n + 1)); done";
    small.world.knarr(&["exec", "runs", "sh", "-c", fill]);
    small.fill();
    small.refuses_what_is_new();
    assert_eq!(small.world.knarr(&["exec", "runs", "echo", "on"]).ok(), "on");
    remove_all(&small);
    works_again(&small);
}

#[test]
fn k06_a_daemon_that_starts_on_a_full_data_root_can_remove_everything() {
    starts_and_removes_everything(Scarce::Bytes);
}

#[test]
fn k07_a_daemon_that_starts_without_a_free_inode_can_remove_everything() {
    starts_and_removes_everything(Scarce::Inodes);
}

fn starts_and_removes_everything(scarce: Scarce) {
    for polite in [false, true] {
        let mut small = Small::new(scarce);
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
        works_again(&small);
    }
}

/// There is room again, and it is used.
fn works_again(small: &Small) {
    #[expect(clippy::disallowed_methods, reason = "a tree of the test itself")]
    fs::remove_dir_all(small.root.join("filler")).unwrap();
    small.world.load(&ImageBuilder::busybox().expect("busybox").docker_archive());
    assert_eq!(small.world.knarr(&["run", "--rm", "busybox", "echo", "new"]).ok(), "new");
}

//! What volumes promise, by the numbers of the reliability catalogue.

use std::{
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{MetadataExt, PermissionsExt, chown, symlink},
    },
    thread,
};

use knarr_model::{ContainerSpec, Digest, Platform, Workload};
use knarr_state::{
    containers::{ContainerRow, ContainerState, NameClaim},
    images::ImageRow,
};
use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat, openat};

use super::*;

struct Fixture {
    volumes: Volumes,
    db: Arc<Db>,
    dir: tempfile::TempDir,
}

fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let db = Arc::new(Db::open(&dir.path().join("state.db")).unwrap());
    Fixture { volumes: Volumes::open(dir.path(), db.clone()).unwrap(), db, dir }
}

fn named(name: &str) -> CreateVolume {
    CreateVolume { name: Some(name.into()), ..CreateVolume::default() }
}

fn container(db: &Db, number: u8) -> ContainerId {
    let id = ContainerId::from_random([number; 32]);
    let digest = Digest::from_bytes([0; 32]);
    let image = ImageRow {
        id: digest,
        manifest: digest,
        config: digest,
        workload: Workload::Native { platform: Platform::host() },
        reason: String::new(),
        platform: Platform::host(),
        size: 0,
        created: 0,
        stored: 0,
        layers: Vec::new(),
        tags: Vec::new(),
        digests: Vec::new(),
    };
    db.image_put(&image, &[], "").unwrap();
    let row = ContainerRow {
        id: id.clone(),
        name: format!("c{number}").parse().unwrap(),
        created: "2026-01-01T00:00:00Z".into(),
        image: Digest::from_bytes([0; 32]),
        workload: Workload::Native { platform: Platform::host() },
        spec: ContainerSpec::default(),
        resolved: serde_json::Value::Null,
        state: ContainerState { status: "created".into(), ..ContainerState::default() },
    };
    assert_eq!(db.insert_container(&row).unwrap(), NameClaim::Ours);
    id
}

fn open(path: &Path) -> OwnedFd {
    openat(CWD, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

#[test]
fn v06_names_outside_the_grammar_never_become_paths() {
    let f = fixture();
    let long = "a".repeat(256);
    for bad in ["../../etc", "/", "a/b", ".", "..", "-x", "a", "a b", "é", "a\n", "a\0b", &long] {
        let error = f.volumes.create(&named(bad)).unwrap_err();
        assert_eq!(
            knarr_model::Kinded::kind(&error),
            knarr_model::ErrorKind::InvalidArgument,
            "{bad:?}: {error}"
        );
        assert!(matches!(f.volumes.inspect(bad), Err(Error::NotFound(_))), "{bad:?}");
        assert!(matches!(f.volumes.remove(bad, false), Err(Error::NotFound(_))), "{bad:?}");
    }
    assert_eq!(fs::read_dir(f.dir.path().join("volumes")).unwrap().count(), 0);
    for good in ["data", "a.b-c_d", "0x"] {
        assert!(f.volumes.create(&named(good)).is_ok(), "{good}");
    }
}

#[test]
fn v06_the_local_driver_mounts_nothing_by_option() {
    let f = fixture();
    let mut request = named("host");
    request.options = BTreeMap::from([
        ("type".into(), "none".into()),
        ("device".into(), "/".into()),
        ("o".into(), "bind".into()),
    ]);
    assert!(matches!(f.volumes.create(&request), Err(Error::Option(_))));
    let other = CreateVolume { driver: "nfs".into(), ..named("other") };
    assert!(matches!(f.volumes.create(&other), Err(Error::Driver(_))));
    assert!(f.volumes.list().unwrap().is_empty());
}

#[test]
fn creating_twice_answers_the_first_and_modes_do_not_depend_on_the_umask() {
    let f = fixture();
    let mut request = named("data");
    request.labels = BTreeMap::from([("a".into(), "b".into())]);
    let first = f.volumes.create(&request).unwrap();
    assert_eq!(f.volumes.create(&named("data")).unwrap(), first);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&first.mountpoint), 0o755);
    assert_eq!(mode(first.mountpoint.parent().unwrap()), 0o711);
    assert_eq!(mode(&f.dir.path().join("volumes")), 0o711);
    let anonymous = f.volumes.create(&CreateVolume::default()).unwrap();
    assert!(anonymous.anonymous && anonymous.name.as_str().len() == 64);
}

#[test]
fn v08_a_volume_in_use_is_neither_removed_nor_pruned() {
    let f = fixture();
    let id = container(&f.db, 1);
    f.volumes.create(&named("data")).unwrap();
    f.volumes.attach("data", &id).unwrap();
    f.volumes.attach("data", &id).unwrap();
    assert_eq!(f.volumes.users("data").unwrap(), std::slice::from_ref(&id));
    for force in [false, true] {
        let error = f.volumes.remove("data", force).unwrap_err();
        assert_eq!(error.to_string(), format!("remove data: volume is in use - [{id}]"));
    }
    assert_eq!(f.volumes.prune(|_| true).unwrap(), Pruned::default());
    f.volumes.release(&id, true).unwrap();
    assert!(f.volumes.inspect("data").is_ok(), "named volumes outlive their containers");
    fs::write(f.volumes.inspect("data").unwrap().mountpoint.join("f"), [0; 100]).unwrap();
    let pruned = f.volumes.prune(|_| true).unwrap();
    assert_eq!((pruned.names.len(), pruned.bytes), (1, 100));
    assert!(!f.dir.path().join("volumes/data").exists());
}

#[test]
fn v08_only_anonymous_volumes_go_with_their_container() {
    let f = fixture();
    let (one, two) = (container(&f.db, 1), container(&f.db, 2));
    let named = f.volumes.create(&named("data")).unwrap();
    let alone = f.volumes.create(&CreateVolume::default()).unwrap();
    let shared = f.volumes.create(&CreateVolume::default()).unwrap();
    for volume in [&named, &alone, &shared] {
        f.volumes.attach(volume.name.as_str(), &one).unwrap();
    }
    f.volumes.attach(shared.name.as_str(), &two).unwrap();
    f.volumes.release(&one, true).unwrap();
    let left: Vec<Name> = f.volumes.list().unwrap().into_iter().map(|v| v.name).collect();
    assert!(left.contains(&named.name) && left.contains(&shared.name) && left.len() == 2);
    assert!(f.volumes.attach("nope", &two).is_err(), "a use names a volume that is there");
}

/// The volumes again, over a database of that name.
fn reopened(f: Fixture, database: &str) -> (Fixture, Vec<String>) {
    let Fixture { volumes, db, dir } = f;
    drop((volumes, db));
    let db = Arc::new(Db::open(&dir.path().join(database)).unwrap());
    let volumes = Volumes::open(dir.path(), db.clone()).unwrap();
    let mut notices = volumes.adopt().unwrap();
    notices.extend(volumes.settle().unwrap());
    (Fixture { volumes, db, dir }, notices)
}

#[test]
fn k08_volumes_that_the_database_does_not_know_are_adopted() {
    let f = fixture();
    let mut labelled = named("data");
    labelled.labels.insert("of".into(), "me".into());
    let data = f.volumes.create(&labelled).unwrap();
    fs::write(data.mountpoint.join("file"), "kept").unwrap();
    let anonymous = f.volumes.create(&CreateVolume::default()).unwrap();
    for name in ["bare", "broken"] {
        let volume = f.volumes.create(&named(name)).unwrap();
        fs::write(volume.mountpoint.join("file"), "kept").unwrap();
    }
    let root = f.dir.path().join("volumes");
    fs::remove_file(root.join("bare/volume.json")).unwrap();
    fs::write(root.join("broken/volume.json"), "{").unwrap();
    // What a `create` had come to when it was killed, and what is no volume.
    fs::create_dir_all(root.join("begun/_data")).unwrap();
    fs::create_dir_all(root.join("-odd/_data")).unwrap();
    fs::write(root.join("a-file"), "").unwrap();

    let (f, notices) = reopened(f, "another.db");
    assert_eq!(f.volumes.inspect("data").unwrap(), data);
    assert_eq!(f.volumes.inspect(anonymous.name.as_str()).unwrap(), anonymous);
    for name in ["data", "bare", "broken"] {
        let volume = f.volumes.inspect(name).unwrap();
        assert_eq!(fs::read_to_string(volume.mountpoint.join("file")).unwrap(), "kept", "{name}");
        assert!(!volume.anonymous, "{name}");
    }
    assert_eq!(f.volumes.list().unwrap().len(), 4);
    let said = |name: &str| notices.iter().any(|notice| notice.contains(name));
    assert!(said("bare") && said("broken") && !said("data"), "{notices:?}");
    assert!(!root.join("begun").exists(), "nothing was in it");
    assert!(root.join("-odd/_data").exists() && root.join("a-file").exists());

    // The first database again: what it knew and is still there, and what came since.
    f.volumes.remove("bare", false).unwrap();
    f.volumes.create(&named("later")).unwrap();
    let (f, _) = reopened(f, "state.db");
    let names: Vec<String> = f.volumes.list().unwrap().iter().map(|v| v.name.to_string()).collect();
    assert_eq!(names.len(), 4, "{names:?}");
    assert!(names.contains(&"later".into()) && !names.contains(&"bare".into()), "{names:?}");
}

#[test]
fn k09_a_removed_volume_that_stays_is_no_volume() {
    let f = fixture();
    let volume = f.volumes.create(&named("data")).unwrap();
    fs::write(volume.mountpoint.join("old"), "").unwrap();
    // As if the daemon had been killed between the directory and the row.
    let retired = f.volumes.retire(&volume.name).unwrap();
    let (f, _) = reopened(f, "state.db");
    assert!(!retired.exists());
    assert!(f.volumes.inspect("data").is_err());
    assert_eq!(fs::read_dir(f.dir.path().join("volumes")).unwrap().count(), 0);
}

#[test]
fn k08_a_used_volume_without_a_directory_gets_an_empty_one() {
    let f = fixture();
    let one = container(&f.db, 1);
    let volume = f.volumes.create(&named("data")).unwrap();
    f.volumes.attach("data", &one).unwrap();
    knarr_tree::remove(&f.dir.path().join("volumes/data")).unwrap();
    let (f, notices) = reopened(f, "state.db");
    assert!(volume.mountpoint.is_dir());
    assert_eq!(notices.len(), 1, "{notices:?}");
    assert_eq!(f.volumes.users("data").unwrap(), [one]);
}

/// A tree with everything in it, and a canary outside it that links point to.
fn image(dir: &Path) -> PathBuf {
    let image = dir.join("image");
    fs::create_dir_all(image.join("sub/deeper")).unwrap();
    fs::write(dir.join("canary"), "host").unwrap();
    fs::create_dir(dir.join("canaries")).unwrap();
    fs::write(dir.join("canaries/one"), "host").unwrap();
    fs::write(image.join("file"), vec![7; 100_000]).unwrap();
    fs::hard_link(image.join("file"), image.join("sub/twin")).unwrap();
    fs::write(image.join("sub/setuid"), "s").unwrap();
    chown(image.join("sub/setuid"), Some(1234), Some(4321)).unwrap();
    fs::set_permissions(image.join("sub/setuid"), fs::Permissions::from_mode(0o6755)).unwrap();
    symlink(dir.join("canary"), image.join("link")).unwrap();
    symlink(dir.join("canaries"), image.join("dirlink")).unwrap();
    mknodat(CWD, image.join("fifo"), FileType::Fifo, Mode::from_raw_mode(0o622), 0).unwrap();
    chown(&image, Some(33), Some(44)).unwrap();
    fs::set_permissions(&image, fs::Permissions::from_mode(0o1775)).unwrap();
    image
}

#[test]
fn v07_copy_up_keeps_everything_and_follows_no_link() {
    let f = fixture();
    let image = image(f.dir.path());
    let data = f.volumes.create(&named("data")).unwrap().mountpoint;
    f.volumes.copy_up("data", open(&image).as_fd()).unwrap();

    let meta = |path: &str| fs::symlink_metadata(data.join(path)).unwrap();
    assert_eq!(fs::read(data.join("file")).unwrap(), vec![7; 100_000]);
    assert_eq!(meta("file").ino(), meta("sub/twin").ino());
    assert_eq!((meta("sub/setuid").uid(), meta("sub/setuid").gid()), (1234, 4321));
    assert_eq!(meta("sub/setuid").mode() & 0o7777, 0o6755);
    assert!(meta("link").is_symlink() && meta("dirlink").is_symlink());
    assert_eq!(fs::read_link(data.join("link")).unwrap(), f.dir.path().join("canary"));
    assert_eq!(FileType::from_raw_mode(meta("fifo").mode()), FileType::Fifo);
    assert_eq!((meta("").uid(), meta("").gid(), meta("").mode() & 0o7777), (33, 44, 0o1775));
    let there = fs::symlink_metadata(image.join("file")).unwrap();
    assert_eq!(
        (meta("file").mtime(), meta("file").mtime_nsec()),
        (there.mtime(), there.mtime_nsec())
    );

    // Not a second time, whatever became of it.
    fs::remove_file(data.join("file")).unwrap();
    f.volumes.copy_up("data", open(&image).as_fd()).unwrap();
    assert!(!data.join("file").exists());
}

#[test]
fn v07_a_link_in_the_place_of_the_volumes_directory_is_not_followed() {
    let f = fixture();
    let image = image(f.dir.path());
    f.volumes.create(&named("data")).unwrap();
    let dir = f.dir.path().join("volumes/data");
    symlink(f.dir.path().join("canaries"), dir.join(".fill")).unwrap();
    f.volumes.copy_up("data", open(&image).as_fd()).unwrap();
    assert_eq!(fs::read_dir(f.dir.path().join("canaries")).unwrap().count(), 1);
}

#[test]
fn v07_fifty_first_users_fill_a_volume_once() {
    let f = fixture();
    let image = image(f.dir.path());
    let data = f.volumes.create(&named("data")).unwrap().mountpoint;
    thread::scope(|scope| {
        for _ in 0..50 {
            scope.spawn(|| {
                f.volumes.copy_up("data", open(&image).as_fd()).unwrap();
                assert_eq!(fs::read(data.join("file")).unwrap().len(), 100_000);
                assert_eq!(fs::read_dir(&data).unwrap().count(), 5);
            });
        }
    });
    assert_eq!(fs::read_dir(data.parent().unwrap()).unwrap().count(), 2, "data and record");
}

#[test]
fn v07_a_copy_up_that_a_crash_cut_is_discarded_or_finished() {
    let f = fixture();
    let image = image(f.dir.path());
    let data = f.volumes.create(&named("data")).unwrap().mountpoint;
    let dir = data.parent().unwrap();
    fs::create_dir_all(dir.join(".fill/half")).unwrap();
    f.volumes.copy_up("data", open(&image).as_fd()).unwrap();
    assert!(data.join("file").exists() && !data.join("half").exists());

    fs::create_dir(dir.join(".filled")).unwrap();
    fs::write(dir.join(".filled/late"), "x").unwrap();
    f.volumes.copy_up("data", open(&image).as_fd()).unwrap();
    assert!(data.join("late").exists() && !dir.join(".filled").exists());
}

#[test]
fn v05_a_subpath_must_not_escape() {
    let f = fixture();
    let data = f.volumes.create(&named("data")).unwrap().mountpoint;
    fs::create_dir_all(data.join("a/b")).unwrap();
    fs::write(data.join("file"), "").unwrap();
    symlink("/", data.join("root")).unwrap();
    symlink("a", data.join("inside")).unwrap();
    let root = open(&data);
    assert!(open_beneath(root.as_fd(), Path::new("a/b")).is_ok());
    for bad in ["..", "a/../..", "/", "root", "root/etc", "inside/b", "file", "missing"] {
        let outcome = open_beneath(root.as_fd(), Path::new(bad));
        assert!(matches!(outcome, Err(Error::Subpath { .. })), "{bad}");
    }
}

#[test]
fn layers_are_seen_as_one_tree_without_a_mount_on_the_host() {
    let dir = tempfile::tempdir().unwrap();
    let layers: Vec<PathBuf> = (0..20).map(|n| dir.path().join(format!("{n}/fs"))).collect();
    for (n, layer) in layers.iter().enumerate() {
        fs::create_dir_all(layer.join("srv/data")).unwrap();
        fs::write(layer.join(format!("srv/data/from-{n}")), "").unwrap();
        fs::write(layer.join("srv/data/who"), n.to_string()).unwrap();
    }
    symlink("/srv/data", layers[3].join("www")).unwrap();
    let mounts = || fs::read_to_string("/proc/self/mountinfo").unwrap().lines().count();
    let before = mounts();
    let view = LayeredView::open(&layers).unwrap();
    assert_eq!(mounts(), before);
    assert!(view.dir(Path::new("/nope")).unwrap().is_none());
    assert!(view.dir(Path::new("/srv/data/who")).unwrap().is_none());

    let db = Arc::new(Db::open(&dir.path().join("state.db")).unwrap());
    let volumes = Volumes::open(dir.path(), db).unwrap();
    let data = volumes.create(&named("data")).unwrap().mountpoint;
    let source = view.dir(Path::new("/www")).unwrap().expect("links are followed inside the image");
    volumes.copy_up("data", source.as_fd()).unwrap();
    assert_eq!(fs::read_dir(&data).unwrap().count(), 21);
    assert_eq!(fs::read_to_string(data.join("who")).unwrap(), "0", "the topmost layer wins");
}

/// Runs something with the stack of the daemon's threads for blocking work and
/// more descriptors than levels: what recurses ends by its stack.
fn on_a_small_stack(work: impl FnOnce() + Send) {
    let mut limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.current = limit.maximum;
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).unwrap();
    thread::scope(|scope| {
        let thread = thread::Builder::new().stack_size(256 << 10).spawn_scoped(scope, work);
        thread.unwrap().join().unwrap();
    });
}

/// So many directories inside one another, a file at the bottom.
fn deep(root: &Path, levels: usize) {
    let mut at = open(root);
    for _ in 0..levels {
        rustix::fs::mkdirat(&at, c"d", Mode::RWXU).unwrap();
        at = openat(&at, c"d", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .unwrap();
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC;
    rustix::io::write(openat(&at, c"f", flags, Mode::RUSR).unwrap(), b"bottom").unwrap();
}

#[test]
fn x10_deep_trees_are_copied_counted_and_removed() {
    let f = fixture();
    let image = f.dir.path().join("image");
    fs::create_dir(&image).unwrap();
    deep(&image, 2_030);
    let data = f.volumes.create(&named("data")).unwrap().mountpoint;
    on_a_small_stack(|| {
        f.volumes.copy_up("data", open(&image).as_fd()).unwrap();
        assert_eq!(f.volumes.usage("data").unwrap(), 6);
        f.volumes.remove("data", false).unwrap();
    });
    assert!(!data.exists());
    knarr_tree::remove(&image).unwrap();
}

#[test]
fn v07_holes_of_an_image_take_no_space_in_a_volume() {
    let f = fixture();
    let image = f.dir.path().join("image");
    fs::create_dir(&image).unwrap();
    File::create(image.join("holes")).unwrap().set_len(1 << 40).unwrap();
    let data = f.volumes.create(&named("data")).unwrap().mountpoint;
    f.volumes.copy_up("data", open(&image).as_fd()).unwrap();
    let holes = fs::metadata(data.join("holes")).unwrap();
    assert_eq!((holes.len(), holes.blocks()), (1 << 40, 0));
}

#[test]
fn v07_what_an_interrupted_copy_up_left_is_counted_and_goes() {
    let f = fixture();
    let image = image(f.dir.path());
    let data = f.volumes.create(&named("data")).unwrap().mountpoint;
    let dir = data.parent().unwrap();
    for name in [".fill", ".fill.links"] {
        fs::create_dir(dir.join(name)).unwrap();
        fs::write(dir.join(name).join("half"), [0; 100]).unwrap();
    }
    fs::write(data.join("own"), [0; 10]).unwrap();
    assert_eq!(f.volumes.usage("data").unwrap(), 210);
    f.volumes.copy_up("data", open(&image).as_fd()).unwrap();
    assert_eq!(f.volumes.usage("data").unwrap(), 10);
    assert_eq!(fs::read_dir(dir).unwrap().count(), 2, "data and record");
}

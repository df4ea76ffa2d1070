//! The power fails, and what was acknowledged is there afterwards (CATALOGUE K04, S3).
//!
//! The data root, or only its volumes, are on a disk of their own. Each cut loses what ext4 had
//! not written out, ends every process and empties the exec root; then the daemon starts as after
//! a boot.
//!
//! `KNARR_POWER_CUTS=N` asks for N cuts at random moments (`cargo xtask cuts`).

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    process::Stdio,
    time::Duration,
};

use knarr_harness::{ImageBuilder, World};
use nix::{sys::stat::Mode, unistd::mkfifo};

/// What has been acknowledged.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Promised {
    images: BTreeSet<String>,
    volumes: BTreeSet<String>,
    networks: BTreeSet<String>,
    /// Name and restart policy.
    containers: BTreeMap<String, String>,
}

/// One thing that a user does, and what it changes.
type Step = (&'static [&'static str], fn(&mut Promised));

/// A step changes something.
fn changed(it_did: bool) {
    assert!(it_did);
}

const STEPS: &[Step] = &[
    (&["tag", "busybox:latest", "copy:1"], |p| changed(p.images.insert("copy:1".into()))),
    (&["volume", "create", "v1"], |p| changed(p.volumes.insert("v1".into()))),
    (&["network", "create", "n1"], |p| changed(p.networks.insert("n1".into()))),
    (
        &[
            "run",
            "--rm",
            "-v",
            "v1:/v",
            "busybox",
            "sh",
            "-c",
            "echo kept > /v/f.new; sync; mv /v/f.new /v/f; sync",
        ],
        |_| {},
    ),
    (
        &["create", "--name", "c1", "-v", "v1:/v", "--network", "n1", "busybox", "cat", "/v/f"],
        |p| {
            p.containers.insert("c1".into(), "no".into());
        },
    ),
    (&["rename", "c1", "c2"], |p| {
        let policy = p.containers.remove("c1").unwrap();
        p.containers.insert("c2".into(), policy);
    }),
    (&["docker", "update", "--restart", "unless-stopped", "c2"], |p| {
        p.containers.insert("c2".into(), "unless-stopped".into());
    }),
    (&["run", "-d", "--name", "c3", "busybox", "sleep", "1000"], |p| {
        p.containers.insert("c3".into(), "no".into());
    }),
    (&["rm", "-f", "c3"], |p| changed(p.containers.remove("c3").is_some())),
    (&["rm", "c2"], |p| changed(p.containers.remove("c2").is_some())),
    (&["network", "rm", "n1"], |p| changed(p.networks.remove("n1"))),
    (&["volume", "rm", "v1"], |p| changed(p.volumes.remove("v1"))),
    (&["rmi", "copy:1"], |p| changed(p.images.remove("copy:1"))),
];

fn perform(world: &World, words: &[&str]) -> bool {
    let run = match words.split_first() {
        Some((&"docker", rest)) => world.docker(rest),
        _ => world.knarr(words),
    };
    run.code == 0
}

fn lines(world: &World, words: &[&str]) -> BTreeSet<String> {
    world.knarr(words).ok().lines().map(str::to_owned).collect()
}

/// What the engine says that there is.
fn found(world: &World) -> Promised {
    let policy = "{{.HostConfig.RestartPolicy.Name}}";
    Promised {
        images: lines(world, &["images", "--format", "{{.Repository}}:{{.Tag}}"]),
        volumes: lines(world, &["volume", "ls", "-q"]),
        networks: lines(world, &["network", "ls", "--format", "{{.Name}}"])
            .into_iter()
            .filter(|name| !matches!(name.as_str(), "bridge" | "host" | "none"))
            .collect(),
        containers: lines(world, &["ps", "-a", "--format", "{{.Names}}"])
            .into_iter()
            .map(|name| {
                let policy = world.knarr(&["inspect", &name, "--format", policy]).ok();
                (name, policy)
            })
            .collect(),
    }
}

/// Every image can be run, every volume holds what was synchronised into it.
fn usable(world: &World, promised: &Promised, written: bool) {
    for image in &promised.images {
        let passwd = world.knarr(&["run", "--rm", image, "cat", "/etc/passwd"]).ok();
        assert!(passwd.starts_with("root:x:0:0:"), "{image}: {passwd}");
    }
    if written && promised.volumes.contains("v1") {
        let kept = world.knarr(&["run", "--rm", "-v", "v1:/v", "busybox", "cat", "/v/f"]).ok();
        assert_eq!(kept, "kept");
    }
}

fn fresh() -> (World, Promised) {
    let world = World::on_a_disk(256).expect("a private engine on a disk of its own");
    world.load(&ImageBuilder::busybox().expect("busybox").docker_archive());
    let images = ["busybox:latest".to_owned()].into();
    (world, Promised { images, ..Promised::default() })
}

#[test]
fn k04_what_was_acknowledged_survives_a_power_cut() {
    let (mut world, mut promised) = fresh();
    let mut written = false;
    for (words, change) in STEPS {
        assert!(perform(&world, words), "{words:?}");
        world.cut_power().unwrap();
        world.power_on().unwrap();
        change(&mut promised);
        written |= words.contains(&"--rm");
        assert_eq!(found(&world), promised, "after {words:?}");
        usable(&world, &promised, written);
    }
}

#[test]
fn k04_a_volume_on_a_disk_of_its_own_survives_a_power_cut() {
    // On one disk ext4 writes everything out when the database is flushed. Here nothing does but
    // who makes the volume.
    let mut world =
        World::with_volumes_on_a_disk(64).expect("a private engine, its volumes on a disk");
    world.knarr(&["volume", "create", "v1"]).ok();
    world.cut_power().unwrap();
    world.power_on().unwrap();
    assert_eq!(lines(&world, &["volume", "ls", "-q"]), BTreeSet::from(["v1".to_owned()]));
    assert!(world.data_root().join("volumes/v1/_data").is_dir());
}

/// Moments are drawn by a generator with a fixed seed, so that a failure can be had again.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        // Knuth's MMIX constants.
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

#[test]
fn k04_a_power_cut_at_any_moment_leaves_each_step_done_or_absent() {
    let cuts: u64 =
        std::env::var("KNARR_POWER_CUTS").ok().and_then(|text| text.parse().ok()).unwrap_or(8);
    let seed = std::env::var("KNARR_POWER_SEED").ok().and_then(|text| text.parse().ok());
    let mut random = Random(seed.unwrap_or(4));
    let mut done = 0;
    while done < cuts {
        let (mut world, mut promised) = fresh();
        let mut written = false;
        for (words, change) in STEPS {
            let mut after = promised.clone();
            change(&mut after);
            if random.below(3) > 0 {
                assert!(perform(&world, words), "{words:?}");
                promised = after;
                written |= words.contains(&"--rm");
                continue;
            }
            // Cut at a moment within what a step takes.
            let moment = Duration::from_micros(random.below(30_000));
            let mut step = match words.split_first() {
                Some((&"docker", rest)) => world.docker_command(rest),
                _ => world.knarr_command(words),
            }
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
            std::thread::sleep(moment);
            world.cut_power().unwrap();
            let acknowledged = step.wait().unwrap().success();
            world.power_on().unwrap();
            done += 1;
            let found = found(&world);
            let context = format!("cut {done} after {moment:?} of {words:?}");
            if acknowledged {
                assert_eq!(found, after, "{context}, which was acknowledged");
            } else {
                assert!(found == promised || found == after, "{context}: {found:?}");
            }
            usable(&world, &found, written);
            // What is absent is done again, and that works.
            if found == promised && found != after {
                assert!(perform(&world, words), "{context}, then again");
            }
            written |= words.contains(&"--rm") && acknowledged;
            promised = after;
            if words.contains(&"--rm") && !acknowledged {
                assert!(perform(&world, words), "{context}, then again");
                written = true;
            }
        }
    }
}

/// The disk breaks after the last write of a verb, and before it is asked whether it has all.
#[test]
fn k04_k07_what_the_disk_does_not_take_is_not_acknowledged() {
    for verb in [&["rm", "c"][..], &["rename", "c", "d"]] {
        let (mut world, _) = fresh();
        world.knarr(&["create", "--name", "c", "busybox", "true"]).ok();
        world.stop_daemon();
        let fifo = world.path().join("persist");
        mkfifo(&fifo, Mode::S_IRWXU).unwrap();
        let armed = format!("persist=hold:{}", fifo.display());
        world.start_daemon_with_env(&[("KNARR_FAILPOINTS", &armed)]).unwrap();
        let asked = world.knarr_command(verb).stderr(Stdio::piped()).spawn().unwrap();
        // Opened when somebody reads it: the verb has come that far.
        let gate = File::options().write(true).open(&fifo).unwrap();
        world.break_disk().unwrap();
        drop(gate);
        let answer = asked.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&answer.stderr);
        assert!(!answer.status.success() && said.contains("nput/output error"), "{verb:?}: {said}");
        world.cut_power().unwrap();
        world.power_on().unwrap();
        assert_eq!(lines(&world, &["ps", "-a", "--format", "{{.Names}}"]), ["c".to_owned()].into());
    }
}

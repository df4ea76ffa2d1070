//! One volume layer for both kinds.

use std::fs;

use knarr_harness::ImageBuilder;
use serde_json::json;

use crate::{world, world_of_both};

#[test]
fn a_named_volume_outlives_its_containers() {
    let world = world();
    world
        .knarr(&[
            "run",
            "--rm",
            "-v",
            "hold:/data",
            "busybox",
            "sh",
            "-c",
            "echo grain > /data/cargo",
        ])
        .ok();
    assert_eq!(
        world.knarr(&["run", "--rm", "-v", "hold:/data:ro", "busybox", "cat", "/data/cargo"]).ok(),
        "grain"
    );
    let refused =
        world.knarr(&["run", "--rm", "-v", "hold:/data:ro", "busybox", "touch", "/data/x"]);
    assert_eq!(refused.code, 1, "{}", refused.stderr);
    assert_eq!(world.knarr(&["volume", "ls", "-q"]).ok(), "hold");
    assert_eq!(world.knarr(&["volume", "rm", "hold"]).ok(), "hold");
}

#[test]
fn v08_a_volume_in_use_stays() {
    let world = world();
    world
        .knarr(&["create", "--name", "one", "-v", "hold:/data", "-v", "/anonymous", "busybox"])
        .ok();
    let refused = world.knarr(&["volume", "rm", "hold"]).fails(1);
    assert!(refused.contains("volume is in use"), "{refused}");
    assert_eq!(world.knarr(&["volume", "ls", "-q"]).ok().lines().count(), 2);
    world.knarr(&["rm", "-v", "one"]).ok();
    assert_eq!(world.knarr(&["volume", "ls", "-q"]).ok(), "hold");
}

#[test]
fn an_empty_volume_is_filled_from_the_image() {
    let world = world();
    let listing =
        world.knarr(&["run", "--rm", "-v", "etc:/etc", "busybox", "cat", "/etc/passwd"]).ok();
    assert!(listing.contains("app:x:1000"), "{listing}");
    let bare = world
        .knarr(&[
            "run",
            "--rm",
            "--mount",
            "type=volume,src=bare,dst=/etc,volume-nocopy",
            "busybox",
            "ls",
            "/etc",
        ])
        .ok();
    assert!(!bare.contains("passwd"), "{bare}");
}

#[test]
fn binds_and_tmpfs_mount_where_they_are_told() {
    let world = world();
    let shared = world.path().join("shared");
    fs::create_dir(&shared).unwrap();
    fs::write(shared.join("in"), "from the host").unwrap();
    let bind = format!("{}:/mnt/deep/er", shared.display());
    assert_eq!(
        world
            .knarr(&[
                "run",
                "--rm",
                "-v",
                &bind,
                "busybox",
                "sh",
                "-c",
                "cat /mnt/deep/er/in; echo back > /mnt/deep/er/out"
            ])
            .ok(),
        "from the host"
    );
    assert_eq!(fs::read_to_string(shared.join("out")).unwrap(), "back\n");
    let missing = format!("type=bind,src={}/none,dst=/mnt", world.path().display());
    let refused = world.knarr(&["run", "--rm", "--mount", &missing, "busybox", "true"]).fails(125);
    assert!(refused.contains("bind source path does not exist"), "{refused}");
    let kind = world
        .knarr(&[
            "run",
            "--rm",
            "--mount",
            "type=tmpfs,dst=/scratch",
            "busybox",
            "sh",
            "-c",
            "grep ' /scratch ' /proc/mounts | cut -d' ' -f1",
        ])
        .ok();
    assert_eq!(kind, "tmpfs");
}

#[test]
fn both_kinds_read_and_write_one_volume() {
    let world = world_of_both();
    world
        .knarr(&[
            "run",
            "--rm",
            "-v",
            "hold:/data",
            "busybox",
            "sh",
            "-c",
            "echo from-native > /data/native",
        ])
        .ok();
    assert_eq!(
        world.knarr(&["run", "--rm", "-v", "hold:/data", "hello", "cat", "/data/native"]).ok(),
        "from-native"
    );
    world
        .knarr(&["run", "--rm", "-v", "hold:/data", "hello", "write", "/data/wasm", "from-wasm"])
        .ok();
    assert_eq!(
        world.knarr(&["run", "--rm", "-v", "hold:/data", "busybox", "cat", "/data/wasm"]).ok(),
        "from-wasm"
    );
    let refused =
        world.knarr(&["run", "--rm", "-v", "hold:/data:ro", "hello", "write", "/data/x", "no"]);
    assert_ne!(refused.code, 0, "a read-only volume takes nothing from a Wasm program either");
}

#[test]
fn x10_deep_trees_of_images_and_containers_do_the_engine_no_harm() {
    let world = world();
    // An image of a few kilobytes: 2,030 directories inside one another in its volume.
    let deep = format!("/v/{}", "d/".repeat(2_030));
    let image = ImageBuilder::busybox()
        .unwrap()
        .named("deep:latest")
        .directory(deep.trim_end_matches('/'), 0o755)
        .config("Volumes", json!({"/v": {}}));
    world.load(&image.docker_archive());
    assert_eq!(world.knarr(&["run", "--rm", "deep", "ls", "/v"]).ok(), "d");

    // Twelve times as deep as any path, by a container: in a volume, and in its own layer.
    let dig = "i=0; while [ $i -lt 12 ]; do mkdir -p $D && cd -P $D; i=$((i+1)); done; \
               head -c 100000 /dev/zero > bottom";
    let thousand = format!("D={}", "d/".repeat(1_000));
    let dig_in = |options: &[&str], place: &str| {
        let script = format!("cd {place}; {dig}");
        let mut words = vec!["run", "-e", &thousand];
        words.extend(options);
        words.extend(["busybox", "sh", "-c", &script]);
        world.knarr(&words).ok();
    };
    dig_in(&["--rm", "-v", "mine:/data"], "/data");
    world.knarr(&["volume", "rm", "mine"]).ok();
    assert_eq!(world.knarr(&["volume", "ls", "-q"]).ok(), "");

    dig_in(&["--name", "miner"], "/tmp");
    let size = world.knarr(&["inspect", "-s", "-f", "{{.SizeRw}}", "miner"]).ok();
    let bytes: u64 = size.parse().unwrap();
    assert!(bytes >= 12_000 * 4096, "{bytes} bytes: each directory takes a block");
    let listed = world.knarr(&["ps", "-as", "--format", "{{.Size}}"]).ok();
    assert!(listed.contains("MB") && !listed.starts_with("0"), "{listed}");
    world.knarr(&["rm", "miner"]).ok();
    assert_eq!(world.knarr(&["run", "--rm", "busybox", "echo", "alive"]).ok(), "alive");
}

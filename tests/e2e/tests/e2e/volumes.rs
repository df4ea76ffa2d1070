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

#[test]
fn v10_a_read_only_bind_is_read_only_to_the_bottom() {
    let world = world_of_both();
    let source = world.path().join("source");
    let sub = source.join("sub");
    fs::create_dir_all(&sub).unwrap();
    world.host_run("mount", &["-t", "tmpfs", "test", sub.to_str().unwrap()]).ok();
    let write = |flags: &[&str], image: &[&str]| {
        let run = world.knarr(&[&["run", "--rm"], flags, image].concat());
        let _ = fs::remove_file(sub.join("new"));
        run.code
    };
    let native = ["busybox", "touch", "/d/sub/new"];
    let wasm = ["hello", "write", "/d/sub/new", "x"];
    let source = source.display();
    let short = |mode: &str| format!("{source}:/d:{mode}");
    let long = |words: &str| format!("type=bind,src={source},dst=/d,{words}");
    for image in [&native[..], &wasm] {
        for (flag, value, written) in [
            ("-v", short("ro"), false),
            ("-v", short("rw"), true),
            ("--mount", long("readonly"), false),
            ("--mount", long("readonly,bind-recursive=readonly,bind-propagation=rprivate"), false),
            // Docker's way to say that only the mount itself is meant.
            ("--mount", long("readonly,bind-recursive=writable"), true),
        ] {
            assert_eq!(write(&[flag, &value], image) == 0, written, "{value} {image:?}");
        }
    }
    for (words, why) in [
        ("bind-recursive=writable", "requires 'readonly'"),
        ("bind-recursive=readonly,readonly", "requires 'bind-propagation=rprivate'"),
    ] {
        let refused = world.knarr(&["run", "--rm", "--mount", &long(words), "busybox", "true"]);
        assert!(refused.code != 0 && refused.stderr.contains(why), "{words}: {}", refused.stderr);
    }
}

#[test]
fn r12_a_device_file_in_a_volume_is_none() {
    let world = world();
    let run = |flags: &[&str], script: &str| {
        world.knarr(&[&["run", "--rm"], flags, &["busybox", "sh", "-c", script]].concat())
    };
    let planted = world.path().join("planted");
    let bind = format!("{}:/v", planted.display());
    for volume in ["hold:/v", &bind] {
        run(&["--privileged", "-v", volume], "mknod /v/null c 1 3; mknod /v/mem c 1 1").ok();
        for node in ["null", "mem"] {
            let refused = run(&["-v", volume], &format!("echo x > /v/{node}"));
            assert!(refused.stderr.contains("Permission denied"), "{volume}: {}", refused.stderr);
        }
        // A privileged container has every device.
        run(&["--privileged", "-v", volume], "echo x > /v/null").ok();
    }
    // The host's own devices stay devices, as far as the container may open them.
    for (bind, node) in [
        ("/dev/null:/v/one", "/v/one"),
        ("/dev:/v/dev", "/v/dev/null"),
        ("/:/v/host:ro", "/v/host/dev/null"),
    ] {
        run(&["-v", bind], &format!("echo x > {node}")).ok();
    }
    let refused = run(&["-v", "/dev:/v/dev"], "mknod /tmp/mem c 1 1; cat /tmp/mem");
    assert!(refused.stderr.contains("Operation not permitted"), "{}", refused.stderr);
}

#[test]
fn a_guest_finds_its_volume_behind_a_link_of_the_image() {
    let world = world();
    let image = ImageBuilder::wasm("linked:latest", "hello").unwrap();
    let image = image.directory("/real", 0o755).symlink("/data", "/real").symlink("/far", "../new");
    world.load(&image.docker_archive());
    for (target, real) in [("/data", "/real"), ("/far", "/new")] {
        let volume = format!("hold:{target}");
        let file = format!("{target}/wasm");
        world.knarr(&["run", "--rm", "-v", &volume, "linked", "write", &file, "cargo"]).ok();
        let seen = world.knarr(&["run", "--rm", "-v", "hold:/v", "busybox", "cat", "/v/wasm"]).ok();
        assert_eq!(seen, "cargo", "{target}");
        let real = format!("{real}/wasm");
        for path in [&file, &real] {
            let read = world.knarr(&["run", "--rm", "-v", &volume, "linked", "cat", path]).ok();
            assert_eq!(read, "cargo", "{path}");
        }
        world.knarr(&["volume", "rm", "hold"]).ok();
    }
}

#[test]
fn r05_a_volume_of_an_image_covers_nothing_of_the_kernels() {
    let world = world();
    let load = |name: &str, target: &str, volume: &str| {
        let image = ImageBuilder::busybox().unwrap().named(&format!("{name}:latest"));
        let image = image.symlink("/x", target).config("Volumes", json!({ volume: {} }));
        world.load(&image.docker_archive());
        world.knarr(&["run", "--rm", name, "true"])
    };
    for (name, target) in [
        ("proc", "/proc"),
        ("below", "proc/sys"),
        ("sys", "/sys"),
        ("dev", "../dev"),
        ("pts", "/dev/pts"),
        ("root", "/"),
    ] {
        let refused = load(name, target, "/x").fails(125);
        assert!(refused.contains("it would cover"), "{target}: {refused}");
    }
    // An image that says it in plain words is none; a request that does is refused.
    let anonymous = |place: &str| world.knarr(&["run", "--rm", "-v", place, "busybox", "true"]);
    for place in ["/proc", "/sys", "/dev"] {
        let image = ImageBuilder::busybox().unwrap().named("plain:latest");
        let archive = image.config("Volumes", json!({ place: {} })).docker_archive();
        let refused = world.knarr_with_input(&["load"], &archive).fails(1);
        assert!(refused.contains("cannot be a volume"), "{place}: {refused}");
        assert!(anonymous(place).fails(125).contains("the kernel's own"), "{place}");
    }
    // What neither hides nor replaces anything stays possible.
    load("link", "/var/new", "/x").ok();
    anonymous("/sys/fs/cgroup").ok();
    // The user may bind the host's own, as Docker's users do.
    for bind in ["/sys:/sys:ro", "/dev:/dev", "/proc:/proc", "/proc/uptime:/proc/uptime:ro"] {
        let script = "echo x > /dev/null && cat /proc/self/comm && ls /sys/kernel > /dev/null";
        let run = world.knarr(&["run", "--rm", "-v", bind, "busybox", "sh", "-c", script]);
        assert_eq!(run.ok(), "cat", "{bind}");
    }
    let bind = format!("{}:/proc", world.path().display());
    let refused = world.knarr(&["run", "--rm", "-v", &bind, "busybox", "true"]).fails(125);
    assert!(refused.contains("/proc"), "{refused}");
}

//! The real `docker` client, pointed at Knarr, behaves as against dockerd.

use crate::{world, world_of_both};

#[test]
fn docker_runs_both_kinds() {
    let world = world_of_both();
    assert_eq!(world.docker(&["run", "--rm", "busybox", "echo", "hello"]).ok(), "hello");
    assert!(world.docker(&["run", "--rm", "hello"]).ok().contains("hello"));
    assert_eq!(world.docker(&["run", "--rm", "busybox", "sh", "-c", "exit 7"]).code, 7);
    assert_eq!(world.docker(&["run", "--rm", "busybox", "nonexistent"]).code, 127);
    assert_eq!(world.docker(&["run", "--rm", "busybox", "/tmp"]).code, 126);
    assert_eq!(world.docker(&["run", "--rm", "--pull", "never", "nosuch"]).code, 125);
    assert_eq!(world.docker(&["ps", "-a", "-q"]).ok(), "");
}

#[test]
fn dockers_verbs_work_one_after_the_other() {
    let world = world_of_both();
    for (image, command) in [("busybox", &["sleep", "1000"][..]), ("web", &[])] {
        world
            .docker(&[&["run", "-d", "--name", "one", "-p", "8080:8080", image], command].concat())
            .ok();
        assert!(world.docker(&["ps"]).ok().contains("0.0.0.0:8080->8080/tcp"));
        assert!(world.docker(&["port", "one"]).ok().contains("8080/tcp -> 0.0.0.0:8080"));
        assert_eq!(
            world.docker(&["inspect", "one", "--format", "{{.State.Running}}"]).ok(),
            "true"
        );
        world.docker(&["logs", "one"]).ok();
        assert!(world.docker(&["stats", "--no-stream"]).ok().contains("one"));
        assert!(world.docker(&["top", "one"]).ok().contains("PID"));
        world.docker(&["pause", "one"]).ok();
        world.docker(&["unpause", "one"]).ok();
        world.docker(&["restart", "-t", "0", "one"]).ok();
        world.docker(&["stop", "-t", "1", "one"]).ok();
        world.docker(&["start", "one"]).ok();
        world.docker(&["kill", "one"]).ok();
        world.docker(&["wait", "one"]).ok();
        assert_eq!(world.docker(&["rm", "one"]).ok(), "one");
    }
}

#[test]
fn docker_execs_and_attaches() {
    let world = world();
    world.docker(&["run", "-d", "--name", "one", "busybox", "sleep", "1000"]).ok();
    assert_eq!(world.docker(&["exec", "one", "echo", "in"]).ok(), "in");
    assert_eq!(world.docker(&["exec", "one", "sh", "-c", "exit 3"]).code, 3);
    assert_eq!(world.docker(&["exec", "one", "nonexistent"]).code, 127);
}

#[test]
fn docker_manages_networks_and_volumes() {
    let world = world();
    world.docker(&["network", "create", "harbour"]).ok();
    assert!(world.docker(&["network", "ls"]).ok().contains("harbour"));
    assert!(
        world.docker(&["network", "inspect", "harbour"]).ok().contains("\"Driver\": \"bridge\"")
    );
    world.docker(&["volume", "create", "hold"]).ok();
    assert!(world.docker(&["volume", "inspect", "hold"]).ok().contains("Mountpoint"));
    assert_eq!(world.docker(&["volume", "rm", "hold"]).ok(), "hold");
    world.docker(&["network", "rm", "harbour"]).ok();
}

#[test]
fn docker_manages_images() {
    let world = world();
    assert!(world.docker(&["images"]).ok().contains("busybox"));
    world.docker(&["tag", "busybox", "other:1"]).ok();
    assert!(world.docker(&["image", "inspect", "other:1"]).ok().contains("\"Architecture\""));
    assert!(world.docker(&["history", "busybox"]).ok().contains("CREATED BY"));
    assert!(world.docker(&["rmi", "other:1"]).ok().contains("Untagged"));
}

#[test]
fn docker_reads_info_and_version() {
    let world = world();
    let info = world.docker(&["info"]).ok();
    assert!(info.contains("Cgroup Version") && info.contains("Containers: 0"), "{info}");
    assert!(world.docker(&["version", "--format", "{{.Server.Version}}"]).ok().contains('.'));
    world.docker(&["system", "df"]).ok();
}

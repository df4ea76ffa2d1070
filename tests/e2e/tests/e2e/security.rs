//! What an image, a container or a local user gets beyond what the operator gave: nothing.

use std::{
    collections::HashSet,
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use knarr_harness::{ImageBuilder, World};
use serde_json::Value;

use crate::world;

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

/// Every regular file beneath a directory with this name.
fn named(directory: &Path, name: &str, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().unwrap().is_dir() {
            named(&entry.path(), name, found);
        } else if entry.file_name() == name {
            found.push(entry.path());
        }
    }
}

/// The C library's name services begin with these functions; every program that forks has
/// their files, but only who looks a name up has a way into them.
#[test]
fn v02_no_program_has_a_way_into_the_c_librarys_name_services() {
    for program in ["knarrd", "knarr", "knarr-oci", "knarr-wasm", "containerd-shim-knarr-v1"] {
        let bytes = fs::read(knarr_harness::bin_dir().join(program)).unwrap();
        let strings: HashSet<&[u8]> = bytes.split(|byte| *byte == 0).collect();
        let has = |name: &str| strings.contains(name.as_bytes());
        assert!(has("_start"), "{program} has no table of symbols");
        for name in [
            "__nss_lookup",
            "__nss_lookup_function",
            "__nss_next2",
            "__nss_hosts_lookup2",
            "__nss_passwd_lookup2",
            "__nss_group_lookup2",
            "gaih_inet_serv",
            "__getpwuid_r",
            "__getpwnam_r",
            "__getgrgid_r",
            "__getgrnam_r",
        ] {
            assert!(!has(name), "{program}: {name}");
        }
    }
}

#[test]
fn r13_setuid_programs_of_images_are_out_of_reach_of_the_hosts_users() {
    let world = world();
    let busybox = fs::read("/bin/busybox").unwrap();
    let image = ImageBuilder::busybox()
        .unwrap()
        .named("setuid:1")
        .file("/rise", busybox, 0o4755)
        .cmd(&["sh", "-c", "cp -p /rise /v/rise-volume; cp -p /rise /rise-upper; sleep 1000"]);
    world.load(&image.docker_archive());
    world.knarr(&["run", "-d", "--name", "one", "-v", "hold:/v", "setuid:1"]).ok();
    world.knarr(&["exec", "one", "sh", "-c", "until [ -e /rise-upper ]; do :; done"]).ok();
    // The world's own directory is the test's, private or not.
    fs::set_permissions(world.path(), fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(mode(&world.data_root()), 0o700);
    assert_eq!(mode(&world.exec_root()), 0o711);
    for entry in fs::read_dir(world.exec_root().join("containers")).unwrap() {
        assert_eq!(mode(&entry.unwrap().path()), 0o700);
    }
    // setpriv itself still has capabilities when it executes: the shell behind it has none.
    let as_nobody = |program: &str, arguments: &[&str]| {
        let drop =
            ["--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-c", "exec \"$0\" \"$@\""];
        world.host_run("setpriv", &[&drop[..], &[program], arguments].concat())
    };
    for name in ["rise", "rise-volume", "rise-upper"] {
        let mut found = Vec::new();
        named(&world.data_root(), name, &mut found);
        assert!(!found.is_empty(), "{name} lies in the data root");
        for path in found {
            assert_eq!(mode(&path) & 0o4000, 0o4000, "{} is setuid", path.display());
            let run = as_nobody(path.to_str().unwrap(), &["id", "-u"]);
            assert_ne!(run.code, 0, "{} ran: {}", path.display(), run.stdout);
            assert!(run.stderr.contains("Permission denied"), "{}", run.stderr);
        }
    }
    for root in [world.data_root(), world.exec_root().join("containers")] {
        let found = as_nobody("find", &[root.to_str().unwrap(), "-mindepth", "1"]);
        assert_eq!(found.stdout, "", "{} is closed", root.display());
        assert!(found.stderr.contains("Permission denied"), "{}", found.stderr);
    }
}

/// The specification of a running container, without what differs by name.
fn specification(world: &World, name: &str) -> String {
    let id = world.knarr(&["inspect", name, "--format", "{{.Id}}"]).ok();
    let path = world.exec_root().join("containers").join(&id).join("config.json");
    let text = fs::read_to_string(path).unwrap();
    let mut spec: Value = serde_json::from_str(&text).unwrap();
    // Its layers are of another image.
    spec["root"] = Value::Null;
    let mut text = spec.to_string().replace(&id, "ID").replace(&id[..12], "ID");
    for mount in fs::read_dir(world.data_root().join("layers")).into_iter().flatten().flatten() {
        text = text.replace(&*mount.file_name().to_string_lossy(), "LAYER");
    }
    text
}

#[test]
fn r18_labels_of_images_steer_nothing() {
    let world = world();
    let labels = [
        ("dev.knarr.wasm", "{\"host\":\"/bin/sh\"}"),
        ("dev.knarr.seccomp", "unconfined"),
        ("dev.knarr.init", "true"),
        ("dev.knarr.allow", "net,fs=/:rw"),
        ("knarr.privileged", "true"),
        ("io.containerd.cri.log-path", "binary:///bin/sh?-c=touch+/tmp/evil"),
        ("io.containerd.runc.v2.group", "other"),
        ("io.kubernetes.cri.sandbox-id", "other"),
        ("io.kubernetes.cri.container-type", "sandbox"),
        ("run.oci.seccomp_fail_unknown_syscall", "1"),
        ("run.oci.keep_original_groups", "1"),
        ("run.oci.hooks.stderr", "/tmp/evil"),
        ("org.opencontainers.runc.exec.isolated-cpu-affinity-transition", "x"),
        ("com.docker.compose.project", "other"),
        ("com.docker.engine.privileged", "true"),
        ("com.docker.network.internal", "false"),
        ("io.containers.autoupdate", "registry"),
        ("bundle", "/"),
    ];
    let all: Value = labels
        .iter()
        .map(|(key, value)| ((*key).to_owned(), Value::from(*value)))
        .collect::<serde_json::Map<_, _>>()
        .into();
    let image = ImageBuilder::busybox().unwrap();
    world.load(&image.clone().named("plain:1").docker_archive());
    world.load(&image.named("labelled:1").config("Labels", all).docker_archive());
    for name in ["plain", "labelled"] {
        let image = format!("{name}:1");
        world
            .knarr(&["run", "-d", "--name", name, "--hostname", "h", &image, "sleep", "1000"])
            .ok();
    }
    assert_eq!(specification(&world, "labelled"), specification(&world, "plain"));
    // They are kept as what they are.
    let kept = world.knarr(&["inspect", "labelled", "--format", "{{json .Config.Labels}}"]).ok();
    assert_eq!(
        serde_json::from_str::<Value>(&kept).unwrap().as_object().unwrap().len(),
        labels.len()
    );
    for format in ["{{json .HostConfig}}", "{{json .Config.Cmd}}", "{{.Driver}} {{.Platform}}"] {
        let [one, other] = ["plain", "labelled"]
            .map(|name| world.knarr(&["inspect", name, "--format", format]).ok());
        assert_eq!(one, other);
    }
    assert!(!Path::new("/tmp/evil").exists());
}

#[test]
fn r19_a_container_on_the_hosts_network_finds_no_socket_of_ours() {
    let world = world();
    world.knarr(&["run", "-d", "--name", "beside", "busybox", "sleep", "1000"]).ok();
    // The world's network namespace has no sockets but the engine's.
    let unix =
        world.knarr(&["run", "--rm", "--network", "host", "busybox", "cat", "/proc/net/unix"]).ok();
    let named: Vec<&str> =
        unix.lines().skip(1).filter_map(|line| line.split_whitespace().nth(7)).collect();
    assert!(named.iter().any(|name| name.contains("/shims/")), "{unix}");
    for name in named {
        assert!(!name.starts_with('@'), "abstract socket {name}");
        let path = Path::new(name);
        // A temporary name of a socket that was renamed into place says nothing.
        if path.exists() {
            let bits = mode(path);
            let guarded = path.ancestors().skip(1).any(|above| mode(above) & 0o005 == 0);
            assert!(bits & 0o007 == 0 || guarded, "{name} has mode {bits:o}");
        }
        let seen =
            world.knarr(&["run", "--rm", "--network", "host", "busybox", "test", "-e", name]);
        assert_eq!(seen.code, 1, "{name} is not in the container");
    }
}

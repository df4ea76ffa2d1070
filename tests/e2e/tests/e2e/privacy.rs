//! Secrets and sockets: what nobody but their owner may see or open.

use std::{
    fs,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use knarr_harness::{ImageBuilder, World};
use nix::sys::stat::{Mode, umask};
use serde_json::json;

use crate::raw;

/// In base64, too, as headers carry it.
const SECRETS: [&str; 2] = ["hunter2hunter2", "aHVudGVyMmh1bnRlcjI"];

#[track_caller]
fn holds_no_secret(what: &str, text: &str) {
    for secret in SECRETS {
        let at = text.find(secret);
        assert!(
            at.is_none(),
            "{what} holds {secret}: {}",
            &text[at.unwrap().saturating_sub(300)..]
        );
    }
}

/// What a client trusts the engine with is in no line of its log, however much it logs,
/// and in no message of a failure (CATALOGUE A10).
#[test]
fn a10_no_secret_is_logged_or_told() {
    let mut world = World::with_arguments(&["--debug", "--log-level", "debug"]).expect("an engine");
    world.load(&ImageBuilder::busybox().unwrap().docker_archive());
    world.stop_daemon();
    let proxy = "http://ann:hunter2hunter2@127.0.0.1:9";
    world.start_daemon_with_env(&[("HTTP_PROXY", proxy), ("HTTPS_PROXY", proxy)]).unwrap();
    let socket = raw::socket(&world);
    let mut said = Vec::new();
    let mut send = |method: &str, path: &str, headers: &str, body: &str| {
        let answer = raw::exchange(&socket, &raw::request(method, path, headers, body));
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        said.push((format!("the answer to {method} {path}"), answer.head, text));
        answer.status
    };
    // {"username":"ann","password":"hunter2hunter2"} and things that are like it.
    for auth in [
        "eyJ1c2VybmFtZSI6ImFubiIsInBhc3N3b3JkIjoiaHVudGVyMmh1bnRlcjIifQ==",
        "hunter2hunter2",
        "aHVudGVyMmh1bnRlcjI=",
        "%%aHVudGVyMmh1bnRlcjI",
    ] {
        let header = format!("X-Registry-Auth: {auth}\r\n");
        // Nobody listens there.
        assert_ne!(send("POST", "/images/create?fromImage=127.0.0.1:9/x&tag=1", &header, ""), 101);
        send("GET", "/distribution/127.0.0.1:9/x/json", &header, "");
    }
    let login = json!({
        "username": "ann", "password": SECRETS[0], "serveraddress": "127.0.0.1:9",
    });
    assert_ne!(send("POST", "/auth", "", &login.to_string()), 200);
    send("POST", "/auth", "", &format!("{{\"password\": {}", SECRETS[0]));
    send("POST", "/auth", "", &json!({"password": [SECRETS[0]]}).to_string());
    send(
        "GET",
        &format!("/containers/json?filters={}", SECRETS[0]),
        "Authorization: Basic hunter2hunter2\r\n",
        "",
    );
    let env = [format!("DB_PASSWORD={}", SECRETS[0]), format!("API_TOKEN={}", SECRETS[0])];
    for command in ["true", "/not/there"] {
        let body = json!({"Image": "busybox", "Cmd": [command], "Env": env});
        let path = format!("/containers/create?name=c{}", command.len());
        assert_eq!(send("POST", &path, "", &body.to_string()), 201);
        send("POST", &format!("/containers/c{}/start", command.len()), "", "");
    }
    let wrong = json!({"Image": "busybox", "Env": env, "HostConfig": {"Memory": 1}});
    assert_eq!(send("POST", "/containers/create", "", &wrong.to_string()), 400);
    let body = json!({"Image": "busybox", "Cmd": ["sleep", "1000"]}).to_string();
    assert_eq!(send("POST", "/containers/create?name=one", "", &body), 201);
    assert_eq!(send("POST", "/containers/one/start", "", ""), 204);
    for command in ["true", "/not/there"] {
        let body = json!({"Cmd": [command], "Env": env, "AttachStdout": true});
        assert_eq!(send("POST", "/containers/one/exec", "", &body.to_string()), 201);
    }
    let execs = world.knarr(&["inspect", "one", "--format", "{{join .ExecIDs \" \"}}"]).ok();
    for exec in execs.split(' ') {
        send("POST", &format!("/exec/{exec}/start"), "", "{}");
    }
    // The proxy's own password is the host's secret, and clients may ask about it.
    send("GET", "/info", "", "");
    send("POST", "/images/create?fromImage=registry.invalid/x&tag=1", "", "");

    for (what, head, text) in &said {
        holds_no_secret(what, head);
        holds_no_secret(what, text);
    }
    let proxied = said.iter().any(|(_, _, text)| text.contains("http://xxxxx:xxxxx@127.0.0.1:9"));
    assert!(proxied, "info shows the proxy");
    let log = world.daemon_log();
    // It did log each request.
    for path in ["/images/create", "/auth", "/containers/create", "/info"] {
        assert!(log.contains(&format!("path=\"{path}\"")), "{path} is not in the log:\n{log}");
    }
    holds_no_secret("the log", &log);
}

/// Everything below a directory that the engine made for itself: content of images,
/// containers and volumes is theirs.
fn own(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("a directory").flatten() {
        let path = entry.path();
        let name = entry.file_name();
        let foreign = ["fs", "upper", "work", "_data", "rootfs"].iter().any(|own| name == *own);
        found.push(path.clone());
        if entry.file_type().expect("a type").is_dir() && !foreign {
            own(&path, found);
        }
    }
}

#[test]
fn a01_whatever_the_umask_sockets_are_their_owners_and_nobody_else_writes() {
    // For the engine, which is started from here.
    umask(Mode::empty());
    let world = crate::world();
    let made = world.path().join("made/source");
    let bind = format!("{}:/source", made.display());
    world
        .knarr(&["run", "-d", "-i", "--name", "one", "-v", &bind, "-v", "/v", "busybox", "cat"])
        .ok();
    let mut found = vec![world.path().join("knarrd.pid"), made.clone(), world.path().join("made")];
    own(&world.data_root(), &mut found);
    own(&world.exec_root(), &mut found);
    let mut sockets = 0;
    for path in found {
        let Ok(meta) = fs::symlink_metadata(&path) else { continue };
        if meta.file_type().is_symlink() {
            continue;
        }
        let (mode, shown) = (meta.mode() & 0o7777, path.display());
        if meta.file_type().is_socket() {
            sockets += 1;
            assert_eq!(mode, 0o600, "{shown}");
        }
        assert_eq!(mode & 0o022, 0, "{shown} has mode {mode:o}");
    }
    assert!(sockets >= 2, "of a shim, and of a container's streams");
    let api = fs::symlink_metadata(raw::socket(&world)).unwrap();
    assert_eq!(api.mode() & 0o7777, 0o660);
}

#[test]
fn a_umask_that_hides_everything_hides_nothing_from_a_containers_users() {
    umask(Mode::from_bits_truncate(0o077));
    let world = crate::world();
    for file in ["/etc/hosts", "/etc/hostname", "/etc/resolv.conf"] {
        let read = ["run", "--rm", "--user", "1000", "busybox", "cat", file];
        assert!(!world.knarr(&read).ok().is_empty(), "{file}");
    }
}

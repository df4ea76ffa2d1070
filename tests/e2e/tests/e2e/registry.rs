//! Pulling from a real registry: Debian's docker-registry on the world's own loopback.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    process::{Child, Command, Stdio},
};

use knarr_harness::{
    ImageBuilder, World,
    lying_registry::{LyingRegistry, Reply, ReplyBody, serve_image},
};

use crate::world;

/// Debian's docker-registry.
pub(crate) struct Registry(Child);

impl Registry {
    /// A registry on 127.0.0.1:5000 of the world's network namespace.
    pub(crate) fn start(world: &World) -> Self {
        let root = world.path().join("registry");
        let config = world.path().join("registry.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage:\n  filesystem: {{rootdirectory: {}}}\nhttp: {{addr: 127.0.0.1:5000}}\n",
            root.display()
        );
        fs::write(&config, text).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry is installed");
        let mut registry = Self(child);
        while TcpStream::connect("127.0.0.1:5000").is_err() {
            assert!(registry.0.try_wait().unwrap().is_none(), "the registry ended");
            std::thread::yield_now();
        }
        registry
    }

    /// Pushes an archive with skopeo.
    pub(crate) fn push(&self, world: &World, archive: &[u8], name: &str) {
        let file = world.path().join("push.tar");
        fs::write(&file, archive).unwrap();
        let source = format!("docker-archive:{}", file.display());
        let target = format!("docker://127.0.0.1:5000/{name}");
        let flags = ["copy", "--quiet", "--insecure-policy", "--dest-tls-verify=false"];
        world.host_run("skopeo", &[&flags[..], &[&source, &target]].concat()).ok();
    }

    /// Puts an index over manifests that were pushed before: `(tag, os, architecture)`.
    pub(crate) fn index(&self, repository: &str, tag: &str, members: &[(&str, &str, &str)]) {
        let manifests: Vec<serde_json::Value> = members
            .iter()
            .map(|(member, os, architecture)| {
                let accept = "Accept: application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json\r\n";
                let (head, body) = http("GET", &format!("/v2/{repository}/manifests/{member}"), accept, "");
                let header = |name: &str| {
                    let line = head.lines().find(|line| line.to_ascii_lowercase().starts_with(name));
                    line.and_then(|line| line.split_once(": ")).expect("a header").1.to_owned()
                };
                serde_json::json!({
                    "mediaType": header("content-type"),
                    "digest": header("docker-content-digest"),
                    "size": body.len(),
                    "platform": { "os": os, "architecture": architecture },
                })
            })
            .collect();
        let media_type = "application/vnd.oci.image.index.v1+json";
        let index = serde_json::json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": manifests });
        let header = format!("Content-Type: {media_type}\r\n");
        let (head, body) =
            http("PUT", &format!("/v2/{repository}/manifests/{tag}"), &header, &index.to_string());
        assert!(head.starts_with("HTTP/1.1 201"), "{head} {body}");
    }
}

/// One request to the registry; answers head and body.
fn http(method: &str, path: &str, headers: &str, body: &str) -> (String, String) {
    let mut stream = TcpStream::connect("127.0.0.1:5000").unwrap();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:5000\r\n{headers}Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").expect("an HTTP answer");
    (head.to_owned(), body.to_owned())
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn both_kinds_are_pulled_and_run() {
    let world = world();
    let registry = Registry::start(&world);
    let native = ImageBuilder::busybox()
        .unwrap()
        .next_layer()
        .file("/greeting", "ahoy\n", 0o644)
        .cmd(&["cat", "/greeting"]);
    registry.push(&world, &native.docker_archive(), "ship/native:1");
    registry.push(
        &world,
        &ImageBuilder::wasm("x:1", "hello").unwrap().docker_archive(),
        "ship/wasm:1",
    );
    let pulled = world.knarr(&["pull", "127.0.0.1:5000/ship/native:1"]).ok();
    assert!(pulled.contains("Status: Downloaded newer image"), "{pulled}");
    let again = world.knarr(&["pull", "127.0.0.1:5000/ship/native:1"]).ok();
    assert!(again.contains("Image is up to date"), "{again}");
    assert_eq!(world.knarr(&["run", "--rm", "127.0.0.1:5000/ship/native:1"]).ok(), "ahoy");
    assert!(world.knarr(&["run", "--rm", "127.0.0.1:5000/ship/wasm:1"]).ok().contains("hello"));
    let digest = world
        .knarr(&[
            "image",
            "inspect",
            "127.0.0.1:5000/ship/native:1",
            "--format",
            "{{index .RepoDigests 0}}",
        ])
        .ok();
    assert!(digest.starts_with("127.0.0.1:5000/ship/native@sha256:"), "{digest}");
    world.knarr(&["rmi", "-f", "127.0.0.1:5000/ship/native:1"]).ok();
    assert_eq!(world.knarr(&["run", "--rm", &digest]).ok(), "ahoy");
}

#[test]
fn docker_pulls_too() {
    let world = world();
    let registry = Registry::start(&world);
    registry.push(&world, &ImageBuilder::busybox().unwrap().docker_archive(), "ship/box:1");
    let pulled = world.docker(&["pull", "127.0.0.1:5000/ship/box:1"]).ok();
    assert!(pulled.contains("Status: Downloaded newer image"), "{pulled}");
    let missing = world.docker(&["pull", "127.0.0.1:5000/ship/box:none"]);
    assert_ne!(missing.code, 0);
    assert!(
        missing.stderr.contains("not found") || missing.stderr.contains("manifest unknown"),
        "{}",
        missing.stderr
    );
}

/// Bytes that no compression makes smaller.
fn noise(length: usize) -> Vec<u8> {
    (0..length as u64).map(|n| (n.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8).collect()
}

fn size_beneath(dir: &std::path::Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    entries.flatten().map(|entry| entry.metadata().map_or(0, |meta| meta.len())).sum()
}

#[test]
fn i16_a_pull_goes_on_where_a_killed_daemon_left_it() {
    let mut world = world();
    let image = ImageBuilder::busybox()
        .unwrap()
        .next_layer()
        .file("/cargo", noise(8 << 20), 0o644)
        .cmd(&["true"])
        .for_registry();
    let size = image.largest().1.len() as u64;
    let served = image.clone();
    let server = LyingRegistry::in_background(move |request, before| {
        let (digest, blob) = served.largest();
        if request.path.ends_with(digest) && before == 0 {
            // Half of it, then silence.
            let half = blob[..blob.len() / 2].to_vec();
            return Reply::new(200, ReplyBody::Stall(half, blob.len() as u64))
                .with("etag", format!("\"{digest}\""));
        }
        serve_image(request, &served)
    })
    .unwrap();
    let name = format!("{}/ship/cargo:1", server.host());
    let mut pull = world.knarr_command(&["pull", &name]).stdout(Stdio::null()).spawn().unwrap();
    let ingest = world.data_root().join("ingest");
    while size_beneath(&ingest) < size / 2 {
        std::thread::yield_now();
    }
    world.kill_daemon();
    assert!(!pull.wait().unwrap().success());
    world.start_daemon().unwrap();
    world.knarr(&["pull", &name]).ok();
    world.knarr(&["run", "--rm", &name]).ok();
    let (digest, _) = image.largest();
    let asked: Vec<_> = server
        .requests()
        .into_iter()
        .filter(|request| request.path.ends_with(digest))
        .map(|request| request.range())
        .collect();
    assert_eq!(asked, [None, Some(size / 2)]);
}

#[test]
fn credentials_of_a_login_open_their_registry_only() {
    let world = world();
    let image = ImageBuilder::busybox().unwrap().cmd(&["echo", "let in"]).for_registry();
    let guarded = move |request: &knarr_harness::lying_registry::LoggedRequest, _: usize| {
        // ann:secret
        match request.header("authorization") {
            Some("Basic YW5uOnNlY3JldA==") if request.path == "/v2/" => Reply::ok(""),
            Some("Basic YW5uOnNlY3JldA==") => serve_image(request, &image),
            _ => Reply::error(401, "UNAUTHORIZED", "authentication required")
                .with("www-authenticate", "Basic realm=\"hold\""),
        }
    };
    let server = LyingRegistry::in_background(guarded.clone()).unwrap();
    let other = LyingRegistry::in_background(guarded).unwrap();
    let name = format!("{}/ship/box:1", server.host());
    let refused = world.knarr(&["pull", &name]).fails(1);
    assert!(refused.contains("pull access denied"), "{refused}");
    let login = ["login", "-u", "ann", "--password-stdin", &server.host()];
    let wrong = world.knarr_with_input(&login, b"guess\n").fails(1);
    assert!(wrong.contains("authentication required"), "{wrong}");
    assert_eq!(world.knarr_with_input(&login, b"secret\n").ok(), "Login Succeeded");
    assert_eq!(world.knarr(&["run", "--rm", &name]).ok(), "let in");
    world.knarr(&["pull", &format!("{}/ship/box:1", other.host())]).fails(1);
    assert!(other.requests().iter().all(|request| request.header("authorization").is_none()));
    world.knarr(&["logout", &server.host()]).ok();
    world.knarr(&["pull", &name]).fails(1);
}

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
    let (digest, _) = image.largest();
    // Others are on their way beside it.
    let partial = world.data_root().join("ingest").join(digest.trim_start_matches("sha256:"));
    while fs::metadata(&partial).map_or(0, |file| file.len()) < size / 2 {
        std::thread::yield_now();
    }
    world.kill_daemon();
    assert!(!pull.wait().unwrap().success());
    world.start_daemon().unwrap();
    world.knarr(&["pull", &name]).ok();
    world.knarr(&["run", "--rm", &name]).ok();
    let asked: Vec<_> = server
        .requests()
        .into_iter()
        .filter(|request| request.path.ends_with(digest))
        .map(|request| request.range())
        .collect();
    assert_eq!(asked, [None, Some(size / 2)]);
}

/// What the store holds, by name; the database's own files change as they are read.
fn stored(world: &World) -> Vec<String> {
    let mut names = Vec::new();
    for directory in ["blobs/sha256", "blobs", "layers", "ingest"] {
        let entries = fs::read_dir(world.data_root().join(directory));
        for entry in entries.into_iter().flatten().flatten() {
            names.push(format!("{directory}/{}", entry.file_name().to_string_lossy()));
        }
    }
    names.sort();
    names
}

#[test]
fn i09_a_forged_layer_is_refused_and_leaves_nothing() {
    let world = world();
    let before = stored(&world);
    assert!(before.iter().any(|name| name.starts_with("layers/")), "{before:?}");
    // A layer that no image here has (one that is here is not asked for), and
    // another for each forgery: what merely broke off goes on where it stopped.
    let image_of = |name: &str| {
        ImageBuilder::busybox()
            .unwrap()
            .next_layer()
            .file("/forged", [name.as_bytes(), &noise(8 << 20)].concat(), 0o644)
            .cmd(&["true"])
            .for_registry()
    };
    type Forge = fn(Vec<u8>) -> ReplyBody;
    let forgeries: [(&str, Forge); 6] = [
        ("flipped", |mut blob| {
            *blob.last_mut().unwrap() ^= 1;
            ReplyBody::Whole(blob)
        }),
        ("longer", |blob| ReplyBody::Whole([blob, vec![0; 512]].concat())),
        ("shorter", |blob| ReplyBody::Whole(blob[..blob.len() / 2].to_vec())),
        ("chunked and longer", |blob| ReplyBody::Chunked([blob, vec![0; 512]].concat())),
        ("endless", |blob| ReplyBody::Endless(blob)),
        ("another", |blob| ReplyBody::Whole(vec![b'x'; blob.len()])),
    ];
    for (name, forge) in forgeries {
        let served = image_of(name);
        let digest = served.largest().0.to_owned();
        assert!(served.largest().1.len() > 8 << 20, "the forged layer is the largest");
        let wrong = digest.clone();
        let server = LyingRegistry::in_background(move |request, _| {
            if request.path.ends_with(&wrong) {
                // No ranges: what broke off begins anew.
                return Reply::new(200, forge(served.largest().1.to_vec()));
            }
            serve_image(request, &served)
        })
        .unwrap();
        let image = format!("{}/ship/forged:1", server.host());
        let refused = world.knarr(&["pull", &image]);
        assert_eq!(refused.code, 1, "{name}: {refused:?}");
        let refused = refused.stderr;
        assert!(refused.contains(&digest[..19]) || refused.contains("digest"), "{name}: {refused}");
        assert!(server.requests().iter().any(|request| request.path.ends_with(&digest)), "{name}");
        assert!(!world.knarr(&["images"]).ok().contains("forged"), "{name}");
        world.knarr(&["run", "--rm", "--pull", "never", &image]).fails(125);
        // A transfer that was merely short may go on later; nothing else stays.
        world.knarr(&["image", "prune", "-f"]).ok();
        let left: Vec<String> = stored(&world)
            .into_iter()
            .filter(|now| !before.contains(now) && !now.starts_with("ingest/"))
            .filter(|now| now.contains(&digest["sha256:".len()..]) || now.starts_with("layers/"))
            .collect();
        assert_eq!(left, Vec::<String>::new(), "{name}");
    }
    // The name is not poisoned: from an honest server it comes as it should.
    let honest = image_of("flipped");
    let server =
        LyingRegistry::in_background(move |request, _| serve_image(request, &honest)).unwrap();
    world.knarr(&["run", "--rm", &format!("{}/ship/forged:1", server.host())]).ok();
}

#[test]
fn k01_the_daemon_dies_at_each_step_of_a_pull() {
    let mut world = world();
    for step in ["pull.begin", "pull.done"] {
        let image = ImageBuilder::busybox()
            .unwrap()
            .next_layer()
            .file("/step", step, 0o644)
            .cmd(&["cat", "/step"])
            .for_registry();
        let server =
            LyingRegistry::in_background(move |request, _| serve_image(request, &image)).unwrap();
        let name = format!("{}/ship/step:1", server.host());
        world.kill_daemon();
        let armed = format!("{step}=kill");
        world.start_daemon_with_env(&[("KNARR_FAILPOINTS", &armed)]).unwrap();
        world.knarr(&["pull", &name]).fails(1);
        world.await_daemon_end();
        world.start_daemon().unwrap();
        // Absent or whole: either way it runs now.
        assert_eq!(world.knarr(&["run", "--rm", &name]).ok(), step);
    }
}

/// Archives and layouts as the tools write them that others build images with.
#[test]
fn what_skopeo_and_umoci_write_is_loaded() {
    let world = world();
    let path = |name: &str| world.path().join(name).display().to_string();
    let image = ImageBuilder::busybox()
        .unwrap()
        .file("/etc/gone", "", 0o644)
        .file("/opaque/below", "", 0o644)
        .cmd(&["sh", "-c", "cat /etc/made; ls /etc/gone; ls /opaque"]);
    fs::write(path("box.tar"), image.docker_archive()).unwrap();
    let copy = |from: &str, to: &str| {
        world.host_run("skopeo", &["copy", "--quiet", "--insecure-policy", from, to]).ok();
    };
    copy(&format!("docker-archive:{}", path("box.tar")), &format!("oci:{}:base", path("layout")));
    // A layer of umoci's own: a new file, a whiteout, a directory made anew.
    let layout = format!("{}:base", path("layout"));
    world.host_run("umoci", &["unpack", "--image", &layout, &path("bundle")]).ok();
    let rootfs = world.path().join("bundle/rootfs");
    fs::write(rootfs.join("etc/made"), "by umoci\n").unwrap();
    fs::remove_file(rootfs.join("etc/gone")).unwrap();
    #[expect(clippy::disallowed_methods, reason = "a tree of the test itself")]
    fs::remove_dir_all(rootfs.join("opaque")).unwrap();
    fs::create_dir(rootfs.join("opaque")).unwrap();
    fs::write(rootfs.join("opaque/anew"), "").unwrap();
    let layered = format!("{}:made", path("layout"));
    world.host_run("umoci", &["repack", "--image", &layered, &path("bundle")]).ok();

    let oci = format!("oci:{}:made", path("layout"));
    copy(&oci, &format!("docker-archive:{}:made/docker:1", path("docker.tar")));
    copy(&oci, &format!("oci-archive:{}:made/oci:1", path("oci.tar")));
    copy(&oci, &format!("oci:{}:made/layout:1", path("one")));
    world.host_run("tar", &["-C", &path("one"), "-cf", &path("layout.tar"), "."]).ok();
    for (archive, name) in [
        ("docker.tar", "made/docker:1"),
        ("oci.tar", "made/oci:1"),
        ("layout.tar", "made/layout:1"),
    ] {
        let loaded = world.knarr(&["load", "-i", &path(archive)]).ok();
        assert!(loaded.contains(name), "{archive}: {loaded}");
        let run = world.knarr(&["run", "--rm", name]);
        assert_eq!(run.stdout, "by umoci\nanew\n", "{archive}: {}", run.stderr);
        assert!(run.stderr.contains("/etc/gone: No such file"), "{archive}: {}", run.stderr);
    }
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

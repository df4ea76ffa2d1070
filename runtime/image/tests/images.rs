//! Images from registries and archives that lie, break off, or say two things
//! at once (CATALOGUE, I).

mod budgets;
#[path = "../../../tests/harness/src/evil_tar.rs"]
#[allow(dead_code)]
mod evil_tar;
mod support;

use std::{fs, sync::atomic::Ordering};

use evil_tar::EvilTar;
use knarr_image::{Error, Prefer, RemoveOptions, Removed};
use knarr_model::{ErrorKind, Kinded as _, WasmAbi, Workload};
use serde_json::json;
use support::{
    Fixture, HTTP, Made, OCI_LAYER, RUN, component, config, digest, gzip, module, refused,
};

fn hello() -> Made {
    Made::new()
        .layer(EvilTar::new().directory("bin").program("bin/hello", b"\x7fELF....").finish())
        .layer(EvilTar::new().file("etc/motd", b"hi").symlink("bin/h", "hello").finish())
}

// --- without the database ------------------------------------------------------

/// Names and ids of all images, in order.
fn listed(fixture: &Fixture) -> Vec<(String, Vec<String>)> {
    let images = fixture.images.list().unwrap();
    let names = |names: &[knarr_model::Reference]| names.iter().map(ToString::to_string).collect();
    let mut all: Vec<(String, Vec<String>)> =
        images.iter().map(|image| (image.id().to_string(), names(&image.row.tags))).collect();
    all.sort();
    all
}

#[tokio::test]
async fn k08_images_are_found_again_without_the_database() {
    let mut fixture = Fixture::new();
    fixture.fake.image("web:1", hello());
    fixture.fake.image("web:2", hello().layer(EvilTar::new().file("x", b"x").finish()));
    let one = fixture.pull("web:1").await.unwrap();
    let two = fixture.pull("web:2").await.unwrap();
    fixture.images.tag("web:1", &"moving:1".parse().unwrap()).unwrap();
    fixture.images.tag("web:2", &"moving:1".parse().unwrap()).unwrap();
    fixture.fake.image("gone:1", Made::new().layer(EvilTar::new().file("y", b"y").finish()));
    fixture.pull("gone:1").await.unwrap();
    fixture.images.remove("gone:1", RemoveOptions::default(), |_| vec![]).unwrap();

    let before = listed(&fixture);
    assert_eq!(fixture.reopen_without_database(), [""; 0]);
    assert_eq!(listed(&fixture), before);
    let again = |name: &str| fixture.images.resolve(name).unwrap();
    assert_eq!(again("moving:1").id(), two.id());
    assert_eq!(again("web:1").row, one.row);
    // Nothing of them is swept.
    fixture.images.sweep().await.unwrap();
    assert_eq!(again("web:2").row.layers, two.row.layers);
    assert!(fixture.images.store().view(&two.row.layers).is_ok());

    // A record that is damaged: the manifest among the blobs says what it was.
    let record = fixture.data().join("images").join(format!("{}.json", one.id().hex()));
    fs::write(&record, "{").unwrap();
    let told = fixture.reopen_without_database();
    assert!(told.len() == 1 && told[0].contains(&one.id().hex()), "{told:?}");
    let found = fixture.images.get(&one.id()).unwrap();
    assert_eq!((&found.row.workload, &found.row.layers), (&one.row.workload, &one.row.layers));
    assert_eq!(fixture.reopen_without_database(), [""; 0], "its record is whole again");

    // Neither: then nothing that no image names is removed.
    fs::write(&record, "{").unwrap();
    fs::remove_file(fixture.images.store().blob_path(&one.row.manifest)).unwrap();
    let told = fixture.reopen_without_database();
    assert!(told.len() == 1 && told[0].contains(&one.id().hex()), "{told:?}");
    // The other image goes with all its names, and nothing names the layers that they share.
    let other = two.id().to_string();
    fixture.images.remove(&other, RemoveOptions { force: true }, |_| vec![]).unwrap();
    assert!(listed(&fixture).is_empty());
    fixture.images.sweep().await.unwrap();
    assert!(fixture.images.store().view(&one.row.layers).is_ok(), "its layers stay");
    // Until the record is deleted, and the images are opened again.
    fs::remove_file(&record).unwrap();
    fixture.reopen();
    assert_eq!(fixture.images.adopt().unwrap(), [""; 0]);
    fixture.images.sweep().await.unwrap();
    assert!(fixture.images.store().view(&one.row.layers).is_err(), "they go at last");
}

// --- pulling -------------------------------------------------------------------

#[tokio::test]
async fn a_pull_stores_shares_and_tells() {
    let fixture = Fixture::new();
    fixture.fake.image("web:1", hello().config(json!({"Cmd": ["/bin/h"], "Env": ["A=b"]})));
    let (image, lines) = fixture.pull_told("web:1").await.unwrap();
    assert_eq!(image.config.env, ["A=b"]);
    assert_eq!(
        image.row.reason,
        "os/arch of the configuration is linux/amd64 and /bin/hello is an ELF executable"
    );
    assert!(matches!(image.row.workload, Workload::Native { .. }));
    assert_eq!(image.row.tags, ["web:1".parse().unwrap()]);
    assert_eq!(image.row.digests.len(), 1);
    for (status, count) in [("Pulling fs layer", 2), ("Download complete", 2), ("Pull complete", 2)]
    {
        assert_eq!(lines.iter().filter(|l| l.status == status).count(), count, "{lines:?}");
    }
    assert_eq!(lines.first().unwrap().status, "Pulling from library/web");
    assert_eq!(lines.last().unwrap().status, "Status: Downloaded newer image for web:1");
    let motd = fixture.images.store().layer_path(&image.row.layers[1]).join("etc/motd");
    assert_eq!(fs::read_to_string(motd).unwrap(), "hi");

    let before = fixture.fake.bytes.load(Ordering::SeqCst);
    let (_, lines) = fixture.pull_told("web:1").await.unwrap();
    assert_eq!(lines.last().unwrap().status, "Status: Image is up to date for web:1");
    // Another image on the same base.
    let third = EvilTar::new().file("third", b"3").finish();
    fixture.fake.image("web:2", hello().layer(third));
    let (second, lines) = fixture.pull_told("web:2").await.unwrap();
    assert_eq!(lines.iter().filter(|l| l.status == "Already exists").count(), 2);
    assert_eq!(second.row.layers[..2], image.row.layers[..]);
    let moved = fixture.fake.bytes.load(Ordering::SeqCst) - before;
    assert!(moved < 4000, "{moved}");
}

#[tokio::test]
async fn i16_a_broken_transfer_goes_on_where_it_stopped() {
    let mut fixture = Fixture::new();
    let big: Vec<u8> =
        (0..2_000_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let made = Made::new().layer(EvilTar::new().file("big", &big).finish());
    let layer = made.layers[0].1.clone();
    fixture.fake.image("big:1", made);
    fixture.fake.cut(digest(&layer), layer.len() / 2);
    assert!(fixture.pull("big:1").await.is_err());
    assert!(fixture.images.resolve("big:1").is_err());
    // Another process: what is on the disk is all there is.
    fixture.reopen();
    let before = fixture.fake.bytes.load(Ordering::SeqCst);
    let image = fixture.pull("big:1").await.unwrap();
    let moved = fixture.fake.bytes.load(Ordering::SeqCst) - before;
    assert!(moved as usize <= layer.len() / 2 + 1000, "{moved} of {}", layer.len());
    let path = fixture.images.store().layer_path(&image.row.layers[0]).join("big");
    assert!(fs::read(path).unwrap() == big);

    // A partial file that rotted: the digest says so, and it begins anew.
    let made = Made::new().layer(EvilTar::new().file("other", &big).finish());
    let layer = made.layers[0].1.clone();
    fixture.fake.image("big:2", made);
    let partial = fixture.data().join("ingest").join(digest(&layer).hex());
    fs::write(&partial, vec![7; 1000]).unwrap();
    fixture.pull("big:2").await.unwrap();

    // Content that changed between two ranges begins anew too.
    let made = Made::new().layer(EvilTar::new().file("third", &big).finish());
    let layer = made.layers[0].1.clone();
    fixture.fake.image("big:3", made);
    fixture.fake.restart(digest(&layer));
    fixture.pull("big:3").await.unwrap();
}

#[tokio::test]
async fn i09_lying_registries_are_not_believed() {
    let fixture = Fixture::new();
    for (name, lie) in [
        ("flip:1", (|bytes: &mut Vec<u8>| bytes[20] ^= 1) as fn(&mut Vec<u8>)),
        ("long:1", |bytes| bytes.extend([0; 64])),
        ("short:1", |bytes| bytes.truncate(bytes.len() - 5)),
        ("empty:1", |bytes| bytes.clear()),
    ] {
        let made = hello();
        let layer = digest(&made.layers[0].1);
        fixture.fake.image(name, made);
        fixture.fake.lie(layer, lie);
        let error = fixture.pull(name).await.unwrap_err().to_string();
        assert!(fixture.images.resolve(name).is_err());
        assert!(!fixture.images.store().has_blob(&layer), "{name}: {error}");
        if name == "flip:1" {
            assert!(error.contains("digest is"), "{error}");
            assert!(!fixture.data().join("ingest").join(layer.hex()).exists());
        }
        fixture.fake.honest(layer);
        fixture.pull(name).await.unwrap();
        let options = RemoveOptions { force: true };
        fixture.images.remove(name, options, |_| vec![]).unwrap();
    }
}

#[tokio::test]
async fn i10_a_layer_must_be_what_the_configuration_says() {
    let fixture = Fixture::new();
    let mut made = hello();
    made.diff_ids = Some(vec![digest(b"something"), digest(b"else")]);
    fixture.fake.image("lie:1", made);
    let error = fixture.pull("lie:1").await.unwrap_err();
    assert!(matches!(error, Error::DiffId { .. }), "{error}");
    let mut made = hello();
    made.diff_ids = Some(vec![]);
    fixture.fake.image("none:1", made);
    refused(fixture.pull("none:1").await, "its manifest has 2 layers, its configuration 0");
    assert!(fixture.images.list().unwrap().is_empty());
    fixture.assert_empty();
}

#[tokio::test]
async fn i08_a_refused_layer_frees_its_space() {
    let fixture = Fixture::new();
    let evil = EvilTar::new().file("ok", &[1; 100_000]).file("../evil", b"x").finish();
    fixture.fake.image("evil:1", hello().layer(evil));
    refused(fixture.pull("evil:1").await, "\"../evil\"");
    fixture.assert_empty();
}

#[tokio::test]
async fn i11_indexes_inside_indexes_end() {
    let fixture = Fixture::new();
    let (mut digest, mut size) = fixture.fake.image("base:1", hello());
    let mut media_type = "application/vnd.oci.image.manifest.v1+json";
    for level in 0..8 {
        let index = json!({"schemaVersion": 2, "manifests": [{"mediaType": media_type,
            "digest": digest, "size": size, "platform": {"os": "linux", "architecture": "amd64"}}]});
        media_type = "application/vnd.oci.image.index.v1+json";
        (digest, size) = fixture.fake.document(&format!("level:{level}"), media_type, &index);
    }
    fixture.pull("level:3").await.unwrap();
    refused(fixture.pull("level:7").await, "indexes inside one another");
}

#[tokio::test]
async fn i13_foreign_layers_are_refused() {
    let fixture = Fixture::new();
    let mut made = hello();
    made.layers[0].0 = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip".into();
    fixture.fake.image("foreign:1", made);
    refused(fixture.pull("foreign:1").await, "foreign layer unsupported");
    // `urls` on an ordinary layer are not looked at: the registry is asked.
    let made = hello();
    let (blob, size) = (digest(&made.layers[0].1), made.layers[0].1.len());
    let (config, config_size) = fixture.fake.blob(&config(
        &[EvilTar::new().directory("bin").program("bin/hello", b"\x7fELF....").finish()],
        "linux",
        "amd64",
        json!({}),
    ));
    fixture.fake.blob(&made.layers[0].1);
    let manifest = json!({"schemaVersion": 2, "config": {"mediaType":
        "application/vnd.oci.image.config.v1+json", "digest": config, "size": config_size},
        "layers": [{"mediaType": OCI_LAYER, "digest": blob, "size": size,
        "urls": ["http://169.254.169.254/latest", "file:///etc/passwd"]}]});
    fixture.fake.document("urls:1", "application/vnd.oci.image.manifest.v1+json", &manifest);
    fixture.pull("urls:1").await.unwrap();
}

/// A file system's image, as far as its superblock: EROFS has its magic number at 1024.
fn erofs() -> Vec<u8> {
    let mut image = vec![0; 8192];
    image[1024..1028].copy_from_slice(&0xe0f5_e1e2_u32.to_le_bytes());
    image
}

#[tokio::test]
async fn i23_file_system_images_are_not_given_to_the_kernel() {
    let fixture = Fixture::new();
    let mounts = || fs::read_to_string("/proc/self/mountinfo").unwrap();
    let before = mounts();
    let squashfs = [b"hsqs".to_vec(), vec![0; 8188]].concat();
    for media_type in [
        "application/vnd.erofs",
        "application/vnd.erofs.layer.v1",
        "application/vnd.containerd.layer.erofs",
        "application/vnd.oci.image.layer.v1.erofs",
        "application/vnd.oci.image.layer.v1.erofs+zstd",
        "application/vnd.oci.image.layer.squashfs",
        "application/vnd.oci.image.layer.v1.squashfs",
        "application/vnd.sylabs.sif.layer.v1.squashfs",
    ] {
        for bytes in [erofs(), squashfs.clone()] {
            let made = hello().raw(media_type, &bytes);
            fixture.fake.image("disk:1", made.clone());
            for outcome in [
                fixture.pull("disk:1").await.map(|_| ()),
                fixture.load(&made.layout(Some("disk:1")).finish()).await.map(|_| ()),
            ] {
                let error = outcome.expect_err(media_type);
                assert_eq!(error.kind(), ErrorKind::NotSupported, "{media_type}: {error}");
                assert!(error.to_string().contains(media_type), "{error}");
            }
            fixture.assert_empty();
        }
    }
    // Called an archive it is read as one: refused, or an archive that ends at once.
    for (bytes, ends) in [(erofs(), true), (squashfs, false)] {
        let made = hello().raw("application/vnd.oci.image.layer.v1.tar", &bytes);
        fixture.fake.image("disk:2", made);
        match fixture.pull("disk:2").await {
            Ok(image) => {
                assert!(ends);
                let layer = fixture.images.store().layer_path(image.row.layers.last().unwrap());
                assert_eq!(fs::read_dir(layer).unwrap().count(), 0);
            }
            Err(error) => assert_ne!(error.kind(), ErrorKind::Internal, "{error}"),
        }
    }
    assert_eq!(mounts(), before);
}

#[tokio::test]
async fn i18_platforms_that_lie() {
    let fixture = Fixture::new();
    let arm = hello().platform("linux", "arm64");
    let (digest, size) = fixture.fake.image("arm:1", arm);
    let index = json!({"schemaVersion": 2, "manifests": [{
        "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": size,
        "platform": {"os": "linux", "architecture": "amd64"}}]});
    fixture.fake.document("lie:1", "application/vnd.oci.image.index.v1+json", &index);
    let error = refused(fixture.pull("lie:1").await, "linux/arm64");
    assert!(error.contains("linux/amd64"), "{error}");
    // One manifest alone of another platform than was asked for.
    let amd = "linux/amd64".parse().unwrap();
    let error = fixture.pull_for("arm:1", Some(&amd)).await.unwrap_err().to_string();
    assert!(error.contains("wanted linux/amd64, actual: linux/arm64"), "{error}");
    // No layers at all.
    fixture.fake.image("scratch:1", Made::new());
    let image = fixture.pull("scratch:1").await.unwrap();
    assert!(image.row.layers.is_empty());
    // A configuration that is not there.
    fixture.fake.image("missing:1", hello().config(json!({"Labels": {"x": "missing"}})));
    let made = hello().config(json!({"Labels": {"x": "missing"}}));
    fixture.fake.forget(support::digest(&made.config_bytes()));
    assert!(fixture.pull("missing:1").await.is_err());
    // 500 layers.
    let many = (0..500).fold(Made::new(), |made, n| {
        made.layer(EvilTar::new().file(&format!("f{n}"), b"x").finish())
    });
    fixture.fake.image("many:1", many);
    let image = fixture.pull("many:1").await.unwrap();
    assert_eq!(fixture.images.store().view(&image.row.layers).unwrap().lower.len(), 500);
}

// --- what is it? ---------------------------------------------------------------

#[tokio::test]
async fn the_layouts_of_wasm_images() {
    let fixture = Fixture::new();
    let app = |bytes: &[u8]| Made::new().layer(EvilTar::new().file("app.wasm", bytes).finish());
    let wasm_config = |os: &str| json!({"architecture": "wasm", "os": os, "layerDigests": []});
    let run = json!({"Entrypoint": ["/app.wasm"]});
    let cases = [
        // a: a root filesystem of platform wasi/wasm.
        (
            "a:1",
            app(&module()).platform("wasi", "wasm").config(run.clone()),
            WasmAbi::Preview1Command,
            "os/arch of the configuration is wasi/wasm and /app.wasm is a core module importing wasi_snapshot_preview1",
        ),
        (
            "a:2",
            app(&component(&[HTTP, RUN])).platform("wasi", "wasm").config(run.clone()),
            WasmAbi::HttpProxy,
            "os/arch of the configuration is wasi/wasm and /app.wasm is a component exporting wasi:http/incoming-handler@0.2.0",
        ),
        (
            "a:3",
            app(&module())
                .platform("wasip1", "wasm")
                .config(json!({"Cmd": ["app.wasm"], "WorkingDir": "/"})),
            WasmAbi::Preview1Command,
            "/app.wasm",
        ),
        // b: an artifact.
        (
            "b:1",
            Made::artifact(
                "application/vnd.wasm.config.v0+json",
                wasm_config("wasip1"),
                &[&module()],
            ),
            WasmAbi::Preview1Command,
            "is a Wasm artifact",
        ),
        (
            "b:2",
            Made::artifact(
                "application/vnd.wasm.config.v0+json",
                wasm_config("wasip2"),
                &[&component(&[RUN])],
            ),
            WasmAbi::ComponentCommand,
            "is a Wasm artifact",
        ),
        // c: an image with a raw layer.
        (
            "c:1",
            Made::new().platform("wasip1", "wasm").raw("application/wasm", &module()),
            WasmAbi::Preview1Command,
            "a layer has the type application/wasm",
        ),
        (
            "c:2",
            app(b"data").platform("wasi", "wasm").raw(
                "application/vnd.bytecodealliance.wasm.component.layer.v0+wasm",
                &component(&[HTTP]),
            ),
            WasmAbi::HttpProxy,
            "a component exporting wasi:http",
        ),
        // e2: what wasm-to-oci writes.
        (
            "e2:1",
            Made::artifact("application/vnd.wasm.config.v1+json", json!({}), &[&module()]),
            WasmAbi::Preview1Command,
            "application/wasm",
        ),
        // 5: no label at all, the bytes speak.
        (
            "bytes:1",
            app(&module()).config(run.clone()),
            WasmAbi::Preview1Command,
            "linux/amd64 and /app.wasm is a core module",
        ),
    ];
    for (name, made, abi, reason) in cases {
        fixture.fake.image(name, made);
        let image = fixture.pull(name).await.unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(image.row.reason.contains(reason), "{name}: {}", image.row.reason);
        let Workload::Wasm { abi: found, module, path } = &image.row.workload else {
            panic!("{name} is native: {}", image.row.reason)
        };
        assert_eq!(*found, abi, "{name}");
        assert_eq!(path.is_some(), name.starts_with('a') || name.starts_with("bytes"), "{name}");
        // Compiled already, by a child that got the module's bytes.
        let code = fixture.images.compiled(module).await.unwrap();
        assert!(fs::read(&code.path).unwrap().starts_with(b"compiled:\0asm"), "{name}");
        let inspect = fixture.images.inspect(name).unwrap();
        assert!(!inspect.wasm_exports.is_empty(), "{name}");
    }
}

#[tokio::test]
async fn i19_two_readings_are_an_error_that_names_both() {
    let fixture = Fixture::new();
    let entry = |bytes: &[u8]| {
        Made::new()
            .layer(EvilTar::new().program("entry", bytes).finish())
            .config(json!({"Entrypoint": ["/entry"]}))
    };
    let wasm_config = |os: &str| json!({"architecture": "wasm", "os": os});
    const B: &str = "application/vnd.wasm.config.v0+json";
    for (name, made, words) in [
        (
            "elf:1",
            entry(b"\x7fELF native").platform("wasi", "wasm"),
            ["wasi/wasm", "ELF executable"],
        ),
        (
            "script:1",
            entry(b"#!/bin/sh\n\0asm").platform("wasi", "wasm"),
            ["wasi/wasm", "a script"],
        ),
        (
            "text:1",
            entry(b"hello").platform("wasip2", "wasm"),
            ["wasip2/wasm", "neither Wasm nor ELF"],
        ),
        (
            "gone:1",
            entry(b"x").platform("wasi", "wasm").config(json!({"Entrypoint": ["/no.wasm"]})),
            ["wasi/wasm", "not in its layers"],
        ),
        (
            "none:1",
            entry(b"x").platform("wasi", "wasm").config(json!({})),
            ["wasi/wasm", "neither entrypoint nor command"],
        ),
        ("raw:1", Made::new().raw("application/wasm", &module()), ["linux/amd64", "a core module"]),
        (
            "raw:2",
            Made::new().platform("wasi", "wasm").raw("application/wasm", b"\x7fELF"),
            ["application/wasm", "an ELF executable"],
        ),
        (
            "swap:1",
            Made::artifact(B, wasm_config("wasip2"), &[&module()]),
            ["wasip2/wasm", "a core module"],
        ),
        (
            "swap:2",
            Made::artifact(B, wasm_config("wasip1"), &[&component(&[RUN])]),
            ["wasip1/wasm", "a component"],
        ),
        (
            "two:1",
            Made::artifact(B, wasm_config("wasip1"), &[&module(), &module()]),
            ["2 layers", "exactly one"],
        ),
        (
            "two:2",
            Made::new()
                .platform("wasi", "wasm")
                .raw("application/wasm", &module())
                .raw("application/wasm", &component(&[RUN])),
            ["2 of its layers", "want one"],
        ),
        (
            "arch:1",
            Made::artifact(B, json!({"architecture": "amd64", "os": "linux"}), &[&module()]),
            ["amd64", "wasm"],
        ),
        (
            "annotated:1",
            entry(b"\x7fELF").annotation("run.oci.handler", "wasm"),
            ["run.oci.handler", "ELF"],
        ),
        ("version:1", entry(b"\0asm\x07\0\0\0"), ["version", "does not know"]),
        (
            "reactor:1",
            entry(&wat::parse_str("(module (func (export \"_initialize\")))").unwrap()),
            ["_start", "_initialize"],
        ),
        (
            "glue:1",
            entry(
                &wat::parse_str(
                    "(module (import \"rb-js-abi-host\" \"x\" (func)) (func (export \"_start\")))",
                )
                .unwrap(),
            ),
            ["rb-js-abi-host.x", "wasi_snapshot_preview1"],
        ),
        (
            "func:1",
            entry(&module())
                .config(json!({"Entrypoint": ["/entry#other"]}))
                .platform("wasi", "wasm"),
            ["other", "only _start"],
        ),
        (
            "spin:1",
            Made::new()
                .platform("wasi", "wasm")
                .raw("application/vnd.fermyon.spin.application.v1+config", b"{}"),
            ["Spin", "triggers"],
        ),
        (
            "envoy:1",
            Made::artifact("application/vnd.module.wasm.config.v1+json", json!({}), &[&module()]),
            ["proxy-wasm", "Envoy"],
        ),
        (
            "policy:1",
            Made::artifact("application/vnd.wasm.config.v1+json", json!({}), &[&module()])
                .annotation("io.kubewarden.policy.title", "x"),
            ["Kubewarden", "policy"],
        ),
        (
            "odd:1",
            Made::artifact("application/vnd.example.config+json", json!({}), &[&module()]),
            ["vnd.example.config", "not supported"],
        ),
    ] {
        fixture.fake.image(name, made);
        let error = refused(fixture.pull(name).await, words[0]);
        assert!(error.contains(words[1]), "{name}: {error}");
    }
    // Smart handlers ask for Wasm only where it is; a native entry is native.
    fixture.fake.image("smart:1", entry(b"\x7fELF").annotation("run.oci.handler", "wasm-smart"));
    assert!(!fixture.pull("smart:1").await.unwrap().row.workload.is_wasm());
    fixture.fake.image("annotated:2", entry(&module()).annotation("run.oci.handler", "wasm"));
    assert!(fixture.pull("annotated:2").await.unwrap().row.workload.is_wasm());
}

#[tokio::test]
async fn i20_precompiled_code_is_refused() {
    let fixture = Fixture::new();
    // What wasmtime writes: ELF of its own OS ABI.
    let mut code = vec![0u8; 128];
    code[..8].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1, 200]);
    // The same, its ABI number hidden, told by a section's name.
    let mut hidden = vec![0u8; 64];
    hidden[..8].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1, 0]);
    hidden[40..48].copy_from_slice(&64u64.to_le_bytes());
    hidden[58..60].copy_from_slice(&64u16.to_le_bytes());
    let mut section = [0u8; 64];
    section[24..32].copy_from_slice(&128u64.to_le_bytes());
    section[32..40].copy_from_slice(&18u64.to_le_bytes());
    hidden.extend(section);
    hidden.extend(b"\0.wasmtime.engine\0");
    for (at, bytes) in [code, hidden].iter().enumerate() {
        for os in ["linux/amd64", "wasi/wasm"] {
            let (os, arch) = os.split_once('/').unwrap();
            let made = Made::new()
                .layer(EvilTar::new().program("app.cwasm", bytes).finish())
                .platform(os, arch)
                .config(json!({"Entrypoint": ["/app.cwasm"]}));
            let name = format!("entry{at}:{os}");
            fixture.fake.image(&name, made);
            refused(fixture.pull(&name).await, "precompiled code is never taken");
        }
        let made = Made::new().platform("wasi", "wasm").raw("application/wasm", bytes);
        fixture.fake.image(&format!("raw{at}:1"), made);
        refused(fixture.pull(&format!("raw{at}:1")).await, "precompiled code is never taken");
    }
    assert!(!fixture.data().join("wasm").exists());
}

#[tokio::test]
async fn w_compile_limits_and_failures_are_told() {
    let fixture = Fixture::new();
    let made = || {
        Made::new()
            .layer(EvilTar::new().file("app.wasm", &module()).finish())
            .platform("wasi", "wasm")
            .config(json!({"Entrypoint": ["/app.wasm"]}))
    };
    fixture.fake.image("app:1", made());
    fixture.compiler("kill -9 $$");
    refused(fixture.pull("app:1").await, "compile limit");
    fixture.compiler("echo 'offset 12: bad opcode' >&2; exit 1");
    refused(fixture.pull("app:1").await, "offset 12: bad opcode");
    assert!(fixture.images.resolve("app:1").is_err());
    fixture.compiler("printf compiled:; exec cat");
    let image = fixture.pull("app:1").await.unwrap();
    // Another host program: compiled again when it is asked for.
    let Workload::Wasm { module, .. } = image.row.workload else { panic!("native") };
    let first = fixture.images.compiled(&module).await.unwrap();
    fixture.compiler_as("beef", "printf other:; exec cat");
    let second = fixture.images.compiled(&module).await.unwrap();
    assert_ne!(first, second);
    assert!(fs::read(second.path).unwrap().starts_with(b"other:"));
}

#[tokio::test]
async fn an_index_of_both_kinds_follows_the_policy() {
    let mut fixture = Fixture::new();
    let native = hello().config(json!({"Cmd": ["/bin/hello"]}));
    let wasm = Made::artifact(
        "application/vnd.wasm.config.v0+json",
        json!({"architecture": "wasm", "os": "wasip1"}),
        &[&module()],
    );
    let (n, n_size) = fixture.fake.image("n:1", native);
    let (w, w_size) = fixture.fake.image("w:1", wasm);
    let manifest = "application/vnd.oci.image.manifest.v1+json";
    let entry = |digest, size, os: &str, architecture: &str| {
        json!({"mediaType": manifest, "digest": digest, "size": size,
            "platform": {"os": os, "architecture": architecture}})
    };
    let both = json!({"schemaVersion": 2, "manifests": [
        entry(n, n_size, "linux", "amd64"), entry(w, w_size, "wasip1", "wasm")]});
    let index = "application/vnd.oci.image.index.v1+json";
    fixture.fake.document("both:1", index, &both);
    let only = json!({"schemaVersion": 2, "manifests": [entry(w, w_size, "wasi", "wasm")]});
    fixture.fake.document("only:1", index, &only);
    assert!(!fixture.pull("both:1").await.unwrap().row.workload.is_wasm());
    let wasi = "wasi/wasm".parse().unwrap();
    assert!(fixture.pull_for("both:1", Some(&wasi)).await.unwrap().row.workload.is_wasm());
    assert!(fixture.pull("only:1").await.unwrap().row.workload.is_wasm());
    let linux = "linux/amd64".parse().unwrap();
    assert!(matches!(
        fixture.pull_for("only:1", Some(&linux)).await,
        Err(Error::NoPlatform { .. })
    ));
    fixture.prefer = Prefer::Wasm;
    fixture.reopen();
    assert!(fixture.pull("both:1").await.unwrap().row.workload.is_wasm());
}

// --- archives ------------------------------------------------------------------

#[tokio::test]
async fn docker_archives_and_layouts_load() {
    let fixture = Fixture::new();
    let [low, high] = [0, 1].map(|n| {
        EvilTar::new().program(&format!("bin/p{n}"), b"\x7fELF").file("both", &[n; 10]).finish()
    });
    let configuration =
        config(&[low.clone(), high.clone(), low.clone()], "linux", "amd64", json!({"Cmd": ["p0"]}));
    let name = digest(&configuration).hex();
    let manifest = json!([{"Config": format!("{name}.json"), "RepoTags": ["a/b:1", "c:2"],
        "Layers": ["1/layer.tar", "2/layer.tar", "3/layer.tar"]}]);
    let archive = EvilTar::new()
        .directory("1")
        .file("1/layer.tar", &low)
        .file("2/layer.tar", &gzip(&high))
        .symlink("3/layer.tar", "../1/layer.tar")
        .file(&format!("{name}.json"), &configuration)
        .file("manifest.json", manifest.to_string().as_bytes())
        .file("repositories", b"{}")
        .finish();
    let loaded = fixture.load(&gzip(&archive)).await.unwrap();
    assert_eq!(loaded.len(), 1);
    let image = fixture.images.resolve("c:2").unwrap();
    assert_eq!(image.row.id, digest(&configuration));
    assert_eq!(image.row.layers.len(), 3);
    assert_eq!(image.row.tags.len(), 2);
    assert!(image.row.reason.contains("/bin/p0 is an ELF executable"), "{}", image.row.reason);

    // An OCI layout: the documents come last or first, blobs by digest.
    let made = Made::new().layer(high.clone()).config(json!({"Cmd": ["/bin/p1"]}));
    let layout = made.layout(Some("docker.io/x/y:3"));
    let loaded = fixture.load(&layout.finish()).await.unwrap();
    assert_eq!(loaded[0].tags, ["x/y:3".parse().unwrap()]);
    assert_eq!(fixture.images.resolve("x/y:3").unwrap().row.layers, [digest(&high)]);
    // A bare tag names no repository.
    let loaded =
        fixture.load(&Made::new().layer(low).layout(Some("latest")).finish()).await.unwrap();
    assert!(loaded[0].tags.is_empty());
    let image = fixture.images.get(&loaded[0].id).unwrap();
    assert!(fixture.images.resolve(&image.row.id.hex()[..12]).is_ok());
    // A Wasm artifact travels the same way.
    let artifact = Made::artifact(
        "application/vnd.wasm.config.v0+json",
        json!({"architecture": "wasm", "os": "wasip1"}),
        &[&module()],
    );
    let loaded = fixture.load(&artifact.layout(Some("w:1")).finish()).await.unwrap();
    assert!(fixture.images.get(&loaded[0].id).unwrap().row.workload.is_wasm());
}

#[tokio::test]
async fn i17_hostile_archives_are_refused() {
    let fixture = Fixture::new();
    let layer = EvilTar::new().file("f", b"x").finish();
    let configuration = config(std::slice::from_ref(&layer), "linux", "amd64", json!({}));
    let with = |manifest: serde_json::Value| {
        EvilTar::new()
            .file("layer.tar", &layer)
            .file("config.json", &configuration)
            .file("manifest.json", manifest.to_string().as_bytes())
    };
    let names = |config: &str, layer: &str| json!([{"Config": config, "RepoTags": ["e:1"], "Layers": [layer]}]);
    let good = names("config.json", "layer.tar");
    for (archive, word) in [
        (with(names("config.json", "../../etc/shadow")), "not in the archive"),
        (with(names("config.json", "/etc/shadow")), "not in the archive"),
        (with(names("../../etc/passwd", "layer.tar")), "not in the archive"),
        (with(names("layer.tar", "layer.tar")), "invalid image configuration"),
        (with(good.clone()).symlink("evil", "/etc/shadow"), "link out of the archive"),
        (with(good.clone()).symlink("a/evil", "../../etc/shadow"), "link out of the archive"),
        (with(names("config.json", "s")).symlink("s", "etc/shadow"), "not in the archive"),
        (with(names("config.json", "s")).symlink("s", "t").symlink("t", "s"), "not in the archive"),
        (with(good.clone()).hard_link("h", "layer.tar"), "neither a file"),
        (with(good.clone()).node(b'3', "n", 1, 3), "neither a file"),
        (with(good.clone()).file("../x", b""), "leads out"),
        (with(good.clone()).file("./layer.tar", &layer), "twice"),
        (with(good.clone()).file("manifest.json", b"[]"), "twice"),
        (
            with(
                json!([{"Config": "config.json", "RepoTags": ["Bad:1"], "Layers": ["layer.tar"]}]),
            ),
            "lowercase",
        ),
        (with(json!({"Config": 1})), "manifest.json"),
        (with(json!([])), "neither a manifest.json nor"),
        (EvilTar::new().file("manifest.json", &vec![b' '; 9 << 20]), "larger than"),
        (EvilTar::new().file("index.json", b"{\"schemaVersion\":2,\"manifests\":[{}]}"), "invalid"),
        (EvilTar::new().file("blobs/sha256/00", b"lie"), "hash to its name"),
        (EvilTar::new(), "neither a manifest.json nor"),
    ] {
        let bytes = archive.finish();
        refused(fixture.load(&bytes).await, word);
    }
    refused(fixture.load(b"no archive at all").await, "");
    let whole = with(good).finish();
    refused(fixture.load(&whole[..whole.len() / 2]).await, "");
    assert!(fixture.images.list().unwrap().is_empty());
    fixture.assert_empty();
    fixture.load(&whole).await.unwrap();
}

// --- names and removal ---------------------------------------------------------

#[tokio::test]
async fn names_are_resolved_and_removed_as_docker_does() {
    let fixture = Fixture::new();
    fixture.fake.image("web:1", hello());
    let image = fixture.pull("web:1").await.unwrap();
    let images = &fixture.images;
    let id = image.row.id;
    for name in ["web:1", "docker.io/library/web:1", &id.to_string(), &id.hex(), &id.hex()[..7]] {
        assert_eq!(images.resolve(name).unwrap().row.id, id, "{name}");
    }
    let pinned = image.row.digests[0].familiar();
    assert_eq!(images.resolve(&pinned).unwrap().row.id, id);
    let error = images.resolve("nope").unwrap_err().to_string();
    assert_eq!(error, "No such image: nope:latest");
    for bad in ["", "Web", "sha256:zz", "a b"] {
        assert!(images.resolve(bad).is_err(), "{bad}");
    }
    images.tag("web:1", &"other/web:2".parse().unwrap()).unwrap();
    let user = |running| {
        move |_: &knarr_model::Digest| {
            vec![knarr_image::ImageUser { container: "c0ffee".into(), running }]
        }
    };
    let nobody = |_: &knarr_model::Digest| vec![];
    let plain = RemoveOptions::default();
    let force = RemoveOptions { force: true };

    let error = images.remove(&id.hex(), plain, nobody).unwrap_err().to_string();
    let short = &id.hex()[..12];
    assert_eq!(
        error,
        format!(
            "conflict: unable to delete {short} (must be forced) - image is referenced in multiple repositories"
        )
    );
    let removed = images.remove("other/web:2", plain, user(true)).unwrap();
    assert_eq!(removed, [Removed::Untagged("other/web:2".into())]);
    let error = images.remove("web:1", plain, user(false)).unwrap_err().to_string();
    assert_eq!(
        error,
        format!(
            "conflict: unable to remove repository reference \"web:1\" (must force) - container c0ffee is using its referenced image {short}"
        )
    );
    let error = images.remove(&id.hex(), force, user(true)).unwrap_err().to_string();
    assert_eq!(
        error,
        format!(
            "conflict: unable to delete {short} (cannot be forced) - image is being used by running container c0ffee"
        )
    );
    let error = images.remove(short, plain, user(false)).unwrap_err().to_string();
    assert!(
        error.contains("(must be forced) - image is being used by stopped container c0ffee"),
        "{error}"
    );

    let removed = images.remove("web:1", plain, nobody).unwrap();
    assert_eq!(removed[0], Removed::Untagged("web:1".into()));
    assert_eq!(removed[1], Removed::Untagged(pinned));
    assert_eq!(removed[2], Removed::Deleted(id));
    assert_eq!(removed.len(), 5, "{removed:?}");
    fixture.assert_empty();
    assert!(images.remove("web:1", plain, nobody).is_err());
}

#[tokio::test]
async fn history_usage_and_prune() {
    let fixture = Fixture::new();
    let history = json!([
        {"created": "2024-01-01T00:00:00Z", "created_by": "ADD rootfs", "comment": "base"},
        {"created_by": "ENV A=b", "empty_layer": true},
        {"created_by": "COPY motd"},
    ]);
    fixture.fake.image("web:1", hello().history(history));
    fixture.fake.image("web:2", hello().config(json!({"Labels": {"v": "2"}})));
    fixture.pull("web:1").await.unwrap();
    fixture.pull("web:2").await.unwrap();
    let lines = fixture.images.history("web:1").unwrap();
    let steps: Vec<(&str, u64)> = lines.iter().map(|l| (l.created_by.as_str(), l.size)).collect();
    assert_eq!(steps, [("COPY motd", 2), ("ENV A=b", 0), ("ADD rootfs", 8)]);
    assert!(lines[0].id.is_some() && lines[1].id.is_none());
    assert_eq!(lines[2].created, 1_704_067_200);
    let usage = fixture.images.disk_usage().unwrap();
    assert_eq!(usage.layers, 10);
    assert!(usage.blobs > 0 && usage.shared.values().all(|bytes| *bytes == 10));
    // Nothing dangles; then one does.
    let none = |_: &knarr_model::Digest| vec![];
    let pruned = fixture.images.prune(false, |_| true, none).unwrap();
    assert!(pruned.removed.is_empty());
    fixture.images.tag("web:2", &"web:1".parse().unwrap()).unwrap();
    let pruned = fixture.images.prune(false, |_| true, none).unwrap();
    assert!(pruned.removed.iter().any(|r| matches!(r, Removed::Deleted(_))), "{pruned:?}");
    assert_eq!(fixture.images.list().unwrap().len(), 1);
    fixture.images.prune(true, |_| true, none).unwrap();
    fixture.assert_empty();
}

// --- I22 -----------------------------------------------------------------------

#[tokio::test]
async fn i22_pull_remove_and_prune_beside_each_other() {
    let fixture = Fixture::new();
    let base = EvilTar::new().program("bin/hello", b"\x7fELF").finish();
    let own = |n: u8| EvilTar::new().file("own", &[n; 5000]).finish();
    for n in 0..4u8 {
        let made = Made::new().layer(base.clone()).layer(own(n)).layer(own(n % 2));
        fixture.fake.image(&format!("i{n}:1"), made.config(json!({"Cmd": ["/bin/hello"]})));
    }
    let check = |image: &knarr_image::Image| {
        let store = fixture.images.store();
        // What a container's creation needs: every layer, whole, and the configuration.
        let lower = store.view(&image.row.layers)?.lower;
        assert!(lower.iter().any(|layer| layer.join("own").is_file()));
        store.read_blob(&image.row.config, 1 << 20).map(|_| ())
    };
    let rounds = |seed: u64| {
        let fixture = &fixture;
        async move {
            let mut random = seed;
            for _ in 0..40 {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let name = format!("i{}:1", (random >> 33) % 4);
                let none = |_: &knarr_model::Digest| vec![];
                match (random >> 40) % 5 {
                    0 => {
                        let options = RemoveOptions { force: true };
                        match fixture.images.remove(&name, options, none) {
                            Ok(_) | Err(Error::NotFound(_)) => {}
                            Err(e) => panic!("remove: {e}"),
                        }
                    }
                    1 => {
                        fixture.images.prune(true, |_| true, none).unwrap();
                    }
                    _ => match fixture.pull(&name).await {
                        Ok(image) => {
                            // Whoever finds the row afterwards finds its content too,
                            // unless the row is gone by then.
                            if let Err(e) = check(&image) {
                                assert!(fixture.images.get(&image.row.id).is_err(), "{e}");
                            }
                        }
                        // Removed between its storing and our reading it.
                        Err(Error::NotFound(_)) => {}
                        Err(e) => panic!("pull: {e}"),
                    },
                }
            }
        }
    };
    futures_util::future::join_all((1..=8).map(rounds)).await;
    for image in fixture.images.list().unwrap() {
        check(&image).unwrap();
    }
    let none = |_: &knarr_model::Digest| vec![];
    fixture.images.prune(true, |_| true, none).unwrap();
    fixture.assert_empty();
}

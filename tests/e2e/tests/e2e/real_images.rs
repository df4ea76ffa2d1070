//! Real input: programs that nobody here wrote, and one reference with both forms.

use knarr_harness::{ImageBuilder, fixtures};

use crate::{registry::Registry, world};

#[test]
fn programs_that_nobody_here_wrote_run_as_wasm() {
    // Made before the world: inside it there is no way out to the package registries.
    let module = fixtures::python_module().expect("CPython for WASI");
    let component = fixtures::python_component().expect("a Python component");
    let world = world();
    let image = ImageBuilder::new("python-wasm:1")
        .platform("wasi", "wasm")
        .host_file("/python.wasm", &module, 0o755)
        .unwrap()
        .file("/lib/cargo.txt", "grain\n", 0o644)
        .entrypoint(&["/python.wasm"]);
    world.load(&image.docker_archive());
    let script =
        "import sys; print(sys.platform, sum(range(10)), open('/lib/cargo.txt').read().strip())";
    assert_eq!(world.knarr(&["run", "--rm", "python-wasm:1", "-c", script]).ok(), "wasi 45 grain");
    let refused =
        world.knarr(&["run", "--rm", "python-wasm:1", "-c", "open('/lib/cargo.txt', 'w')"]);
    assert_eq!(refused.code, 1, "the root filesystem is read-only: {}", refused.stderr);
    assert_eq!(
        world.knarr(&["run", "--rm", "python-wasm:1", "-c", "import sys; sys.exit(9)"]).code,
        9
    );

    let image = ImageBuilder::new("component:1")
        .platform("wasi", "wasm")
        .host_file("/app.wasm", &component, 0o755)
        .unwrap()
        .entrypoint(&["/app.wasm"]);
    world.load(&image.docker_archive());
    let said = world
        .knarr(&["run", "--rm", "-v", "hold:/data", "-e", "CARGO=grain", "component:1", "a", "b"])
        .ok();
    assert_eq!(said, "component 3 ['a', 'b'] grain");
    assert_eq!(
        world.knarr(&["run", "--rm", "-v", "hold:/data", "busybox", "cat", "/data/log"]).ok(),
        "was here"
    );
}

#[test]
fn one_reference_holds_both_forms() {
    let world = world();
    let registry = Registry::start(&world);
    let native =
        ImageBuilder::busybox().unwrap().entrypoint(&["echo", "hello from native"]).cmd(&[]);
    registry.push(&world, &native.docker_archive(), "ship/both:native");
    registry.push(
        &world,
        &ImageBuilder::wasm("x:1", "hello").unwrap().docker_archive(),
        "ship/both:wasm",
    );
    registry.index("ship/both", "1", &[("native", "linux", "amd64"), ("wasm", "wasi", "wasm")]);
    let run = |flags: &[&str]| {
        world
            .knarr(
                &[
                    &["run", "--rm", "--pull", "always", "-q"],
                    flags,
                    &["127.0.0.1:5000/ship/both:1"],
                ]
                .concat(),
            )
            .ok()
    };
    assert_eq!(run(&[]), "hello from native");
    let wasm = run(&["--platform", "wasi/wasm"]);
    assert!(wasm.contains("hello") && !wasm.contains("native"), "{wasm}");
}

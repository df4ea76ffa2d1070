//! The guests that the project ships are what their source makes.
//!
//! Built again from the source in the tree, they behave as the shipped ones do.
//! Bytes are not compared: they are the compiler's, which Debian may renew.

use std::{fs, net::TcpStream, path::Path, process::Command};

use knarr_harness::{ImageBuilder, World, repository};

use crate::{networks::get, world};

/// Builds all guests; needs the packages of `cargo xtask guests` and crates,
/// so it runs before the test's network is a private one.
fn build(output: &Path) {
    let built = Command::new(repository().join("wasm-examples/build.sh"))
        .env("OUTPUT", output)
        .output()
        .expect("build.sh");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
}

fn image(name: &str, directory: &Path, guest: &str) -> Vec<u8> {
    let code = fs::read(directory.join(format!("{guest}.wasm"))).expect("a guest");
    ImageBuilder::new(name)
        .platform("wasi", "wasm")
        .file("/guest.wasm", code, 0o755)
        .entrypoint(&["/guest.wasm"])
        .docker_archive()
}

/// What a guest's image says to some commands and how it ends.
fn commands(world: &World, name: &str) -> Vec<(i32, String)> {
    let said = |words: &[&str]| {
        let run = world.knarr(&[&["run", "--rm", "-e", "NAME=Astrid", name], words].concat());
        (run.code, run.stdout)
    };
    vec![said(&[]), said(&["ls", "/"]), said(&["exit", "7"]), said(&["trap"])]
}

#[test]
fn the_shipped_guests_are_what_their_source_makes() {
    let made = tempfile::tempdir().expect("a directory");
    build(made.path());
    let shipped = repository().join("wasm-examples/prebuilt");

    let world = world();
    for guest in ["hello", "hello-component"] {
        let answers =
            [("shipped", shipped.as_path()), ("made", made.path())].map(|(name, from)| {
                world.load(&image(&format!("{name}:{guest}"), from, guest));
                commands(&world, &format!("{name}:{guest}"))
            });
        assert_eq!(answers[0], answers[1], "{guest}");
        // A command of WASI 0.2 ends well or not: its host is not told the number.
        assert_ne!(answers[0][2].0, 0, "{guest}: {answers:?}");
    }
    for guest in ["web", "greeter"] {
        let answers =
            [("shipped", shipped.as_path()), ("made", made.path())].map(|(name, from)| {
                let image_name = format!("{name}:{guest}");
                world.load(&image(&image_name, from, guest));
                world.knarr(&["run", "-d", "--name", name, "-p", "8080:8080", &image_name]).ok();
                while TcpStream::connect("127.0.0.1:8080").is_err() {}
                let answer = get("127.0.0.1:8080");
                let body = answer.split_once("\r\n\r\n").expect("a head and a body").1.to_owned();
                world.knarr(&["rm", "-f", name]).ok();
                body
            });
        assert_eq!(answers[0], answers[1], "{guest}");
    }
}

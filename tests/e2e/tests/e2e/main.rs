//! End-to-end scenarios, one module a theme.

#![forbid(unsafe_code)]

mod basics;
mod connections;
mod crash;
mod docker_client;
mod durable;
mod ending;
mod failpoints;
mod full;
mod hostile;
mod names;
mod networks;
mod parked;
mod power;
mod privacy;
mod processes;
mod raw;
mod real_images;
mod reboot;
mod registry;
mod restarts;
mod security;
mod starvation;
mod storms;
mod streams;
mod volumes;
mod wasm;
mod wasm_host;

use knarr_harness::{ImageBuilder, World};

/// An engine of one's own that holds `busybox:latest`.
fn world() -> World {
    let world = World::new().expect("a private engine");
    world.load(&ImageBuilder::busybox().expect("busybox").docker_archive());
    world
}

/// The same with `hello:latest`, a preview 1 command, and `web:latest`, a `wasi:http` component.
fn world_of_both() -> World {
    let world = world();
    for guest in ["hello", "web"] {
        let image = ImageBuilder::wasm(&format!("{guest}:latest"), guest)
            .expect("a guest that the project ships");
        world.load(&image.docker_archive());
    }
    world
}

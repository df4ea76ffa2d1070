//! The hybrid example, shown: `cargo xtask demo`.
//!
//! A native and a Wasm service on one network with one volume, started by one
//! engine in namespaces of its own; nothing of the machine is touched.
//!
//! `knarr-demo --archive busybox|layers|hello|web` writes one of the test images to
//! standard output instead, for machines that have no harness.

#![forbid(unsafe_code)]

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use knarr_harness::{ImageBuilder, World, bin_dir};

/// More than fit in a page by their paths: 127 is what image builders make at most.
const LAYERS: usize = 127;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => show_all(),
        ["--archive", name] => Ok(std::io::stdout().write_all(&archive(name)?)?),
        _ => bail!("usage: knarr-demo [--archive busybox|layers|hello|web]"),
    }
}

fn archive(name: &str) -> Result<Vec<u8>> {
    let image = match name {
        "busybox" => ImageBuilder::busybox()?,
        "layers" => {
            (1..LAYERS).fold(ImageBuilder::busybox()?.named("layers:latest"), |image, at| {
                let number = at.to_string();
                image.next_layer().file("/last", number.clone(), 0o644).file(
                    "/deep/last",
                    number,
                    0o644,
                )
            })
        }
        guest => ImageBuilder::wasm(&format!("{guest}:latest"), guest)?,
    };
    Ok(image.docker_archive())
}

fn show_all() -> Result<()> {
    let world = World::new()?;
    say("Images: a native program, and a Wasm component that exports wasi:http");
    world.load(
        &ImageBuilder::new("example/native:1")
            .host_file("/backend", &bin_dir().join("knarr-example-backend"), 0o755)?
            .entrypoint(&["/backend"])
            .expose("8000/tcp")
            .docker_archive(),
    );
    world.load(&ImageBuilder::wasm("example/web:1", "web")?.expose("8080/tcp").docker_archive());
    show(&world, &["images"])?;
    show(&world, &["image", "inspect", "example/web:1", "--format", "{{.Knarr.Reason}}"])?;

    say("One network, one volume, two kinds of cargo");
    show(&world, &["network", "create", "harbour"])?;
    show(&world, &["volume", "create", "hold"])?;
    show(
        &world,
        &[
            "run",
            "-d",
            "--init",
            "--name",
            "native",
            "--network",
            "harbour",
            "-v",
            "hold:/data",
            "-p",
            "8000:8000",
            "example/native:1",
        ],
    )?;
    show(
        &world,
        &[
            "run",
            "-d",
            "--name",
            "web",
            "--network",
            "harbour",
            "-v",
            "hold:/data",
            "-e",
            "BACKEND=native:8000",
            "-p",
            "8080:8080",
            "example/web:1",
        ],
    )?;
    show(&world, &["ps"])?;

    say(
        "Each answers through its published port, counts in the shared volume, and reaches the other by name",
    );
    for (port, path) in [(8000, "/"), (8080, "/"), (8000, "/wasm"), (8080, "/native"), (8000, "/")]
    {
        println!("$ curl http://127.0.0.1:{port}{path}");
        print!("{}", fetch(port, path)?);
    }

    say("The same verbs for both");
    show(&world, &["logs", "native"])?;
    show(&world, &["logs", "web"])?;
    show(&world, &["stats", "--no-stream"])?;
    show(&world, &["top", "web"])?;

    say("A clean end");
    show(&world, &["stop", "native", "web"])?;
    show(&world, &["ps", "-a", "--format", "table {{.Names}}\t{{.Image}}\t{{.Status}}"])?;
    show(&world, &["rm", "native", "web"])?;
    show(&world, &["volume", "rm", "hold"])?;
    show(&world, &["network", "rm", "harbour"])?;
    println!("\nThat was Knarr.");
    Ok(())
}

fn say(words: &str) {
    println!("\n=== {words}");
}

fn show(world: &World, arguments: &[&str]) -> Result<()> {
    println!("$ knarr {}", arguments.join(" "));
    let run = world.knarr(arguments);
    print!("{}{}", run.stdout, run.stderr);
    std::io::stdout().flush()?;
    if run.code != 0 {
        bail!("knarr {} ended with {}", arguments.join(" "), run.code);
    }
    Ok(())
}

/// Fetches a page, waiting for the service to listen.
fn fetch(port: u16, path: &str) -> Result<String> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match get(port, path) {
            Ok(answer) => return Ok(answer),
            Err(error) if Instant::now() > deadline => {
                return Err(error).context(format!("http://127.0.0.1:{port}{path}"));
            }
            Err(_) => std::thread::yield_now(),
        }
    }
}

fn get(port: u16, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
    if !head.starts_with("HTTP/1.1 200") {
        bail!("{}", head.lines().next().unwrap_or_default());
    }
    Ok(body.to_owned())
}

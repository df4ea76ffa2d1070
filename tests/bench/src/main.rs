//! Speed and memory, side by side with what is installed, in one run.
//!
//! Every figure is the wall time of a whole command as a user types it, the
//! median of `--runs` (default 20) after two warm-up runs, and its ratio to
//! Knarr's own. Peers that are not installed are left out and named.
//!
//! ```text
//! knarr-bench [--runs N] [--floor PROGRAM]
//! ```
//!
//! `--floor` is a program that makes the same container with raw system calls
//! and prints `total med=… us`; `cargo xtask bench` builds it where its source
//! lies beside the project.

#![forbid(unsafe_code)]

mod memory;
mod peers;
mod runtimes;

use std::{
    collections::BTreeSet,
    fs,
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use knarr_harness::{ImageBuilder, World};
use peers::Peer;

fn main() -> Result<()> {
    let options = Options::parse(std::env::args().skip(1))?;
    let _groups = Groups::before();
    let world = World::new()?;
    let busybox = ImageBuilder::busybox()?.docker_archive();
    world.load(&busybox);
    world.load(&ImageBuilder::wasm("hello:latest", "hello")?.docker_archive());
    world.knarr(&["run", "-d", "--name", "bench", "busybox", "sleep", "100000"]).ok();
    world.knarr(&["create", "--name", "again", "busybox", "true"]).ok();

    let mut rows = Vec::new();
    for (name, arguments) in [
        ("run --rm true", &["run", "--rm", "busybox", "true"][..]),
        ("run --rm Wasm hello", &["run", "--rm", "hello"]),
        ("exec true", &["exec", "bench", "true"]),
        ("start -a", &["start", "-a", "again"]),
        ("ps", &["ps"]),
    ] {
        let time = median(options.runs, || world.knarr_command(arguments))
            .with_context(|| name.to_owned())?;
        rows.push(Row { name, who: "knarr".into(), time });
    }
    let (mut absent, mut profile) = (Vec::new(), None);
    for start in [peers::docker, peers::podman, peers::containerd] {
        match start(&world, &busybox) {
            Ok(peer) => {
                measure_peer(&peer, options.runs, &mut rows);
                profile = profile.or_else(|| runtimes::docker_profile(&world));
            }
            Err(error) => absent.push(format!("{error:#}")),
        }
    }
    memory::print(&world)?;
    if let Some(floor) = &options.floor {
        peers::floor(floor, &world)?;
    }
    runtimes::measure(&world, options.runs, profile.as_ref(), &mut rows, &mut absent)?;
    print_times(&rows);
    if profile.is_none() {
        println!("OCI runtimes without a seccomp profile: Docker was not there to tell its own");
    }
    for reason in absent {
        println!("left out: {reason}");
    }
    Ok(())
}

/// The control groups that were there before: peers leave the parents of theirs, which
/// are removed when this is dropped.
struct Groups(BTreeSet<PathBuf>);

impl Groups {
    fn before() -> Self {
        Self(Self::now())
    }

    fn now() -> BTreeSet<PathBuf> {
        let (mut found, mut left) = (BTreeSet::new(), vec![PathBuf::from("/sys/fs/cgroup")]);
        while let Some(dir) = left.pop() {
            let entries = fs::read_dir(&dir).into_iter().flatten().flatten();
            left.extend(
                entries
                    .map(|entry| entry.path())
                    .filter(|path| path.is_dir() && !path.is_symlink()),
            );
            found.insert(dir);
        }
        found
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        let now = Self::now();
        // The deeper ones first, and only where they are empty.
        for new in now.iter().rev().filter(|path| !self.0.contains(*path)) {
            let _ = fs::remove_dir(new);
        }
    }
}

struct Options {
    runs: usize,
    floor: Option<String>,
}

impl Options {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self> {
        let mut options = Self { runs: 20, floor: None };
        while let Some(flag) = arguments.next() {
            let value = arguments.next().with_context(|| format!("{flag} wants a value"))?;
            match flag.as_str() {
                "--runs" => options.runs = value.parse().context("--runs wants a number")?,
                "--floor" => options.floor = Some(value),
                _ => anyhow::bail!("usage: knarr-bench [--runs N] [--floor PROGRAM]"),
            }
        }
        Ok(options)
    }
}

struct Row {
    name: &'static str,
    who: String,
    time: Duration,
}

fn measure_peer(peer: &Peer, runs: usize, rows: &mut Vec<Row>) {
    for (name, arguments) in &peer.commands {
        match median(runs, || peer.command(arguments)) {
            Ok(time) => rows.push(Row { name, who: peer.name.clone(), time }),
            Err(error) => println!("left out: {} {name}: {error:#}", peer.name),
        }
    }
}

/// The median wall time of a command that must succeed.
fn median(runs: usize, command: impl Fn() -> Command) -> Result<Duration> {
    warm_median(runs, || {
        let mut command = command();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let before = Instant::now();
        let output = command.spawn()?.wait_with_output()?;
        let time = before.elapsed();
        ensure!(
            output.status.success(),
            "{command:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(time)
    })
}

/// The median of `runs` measurements after two that do not count.
fn warm_median(runs: usize, mut measure: impl FnMut() -> Result<Duration>) -> Result<Duration> {
    let mut times = (0..runs + 2).map(|_| measure()).collect::<Result<Vec<_>>>()?;
    let counting = &mut times[2..];
    counting.sort();
    Ok(counting[counting.len() / 2])
}

fn print_times(rows: &[Row]) {
    println!("| command | who | ms | times Knarr's |\n|---|---|---|---|");
    for row in rows {
        let own = rows.iter().find(|other| other.who == "knarr" && other.name == row.name);
        let ratio = own.map_or(1.0, |own| row.time.as_secs_f64() / own.time.as_secs_f64());
        println!(
            "| {} | {} | {:.1} | {ratio:.1} |",
            row.name,
            row.who,
            row.time.as_secs_f64() * 1e3
        );
    }
}

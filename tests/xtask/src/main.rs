//! The project's own chores: `cargo xtask <chore>`.
//!
//! | chore | what it does |
//! |---|---|
//! | `demo` | builds Knarr and shows a native and a Wasm container side by side |
//! | `test` | builds everything and runs every test, with what they need set up; with arguments those that they name |
//! | `ci` | formatting, lints, dependency directions, then `test` |
//! | `install` | puts the programs and a systemd unit in place |
//! | `bench` | measures side by side with the peers that are installed |
//! | `deps` | checks who imports whom (ARCHITECTURE.md) |
//! | `catalogue` | lists the tests of each attack and failure, and checks `tests/CATALOGUE.md` |
//! | `cuts` | cuts the power of a private engine's disk 1,000 times at random moments, or as often as said |
//! | `vm` | runs the basics on a cgroup v2 system in an emulator |
//! | `guests` | rebuilds the Wasm examples from their source |

#![forbid(unsafe_code)]

mod catalogue;
mod deps;
mod install;
mod prepare;
mod run;
mod vm;

use std::process::ExitCode;

use anyhow::{Result, bail};
use run::{cargo, products};

const USAGE: &str = "usage: cargo xtask demo | test [nextest arguments] | ci | install [prefix] | bench [arguments] | deps | catalogue | cuts [number] | vm | guests";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match chore(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn chore(arguments: &[String]) -> Result<()> {
    let (name, rest) = match arguments.split_first() {
        Some((name, rest)) => (name.as_str(), rest),
        None => bail!("{USAGE}"),
    };
    match name {
        "demo" => demo(),
        "test" => {
            test(rest)?;
            if rest.is_empty() { vm() } else { Ok(()) }
        }
        "ci" => ci(),
        "install" => {
            cargo(&["build", "--release", "--workspace"])?;
            install::install(rest.first().map_or("/usr/local", String::as_str))
        }
        "bench" => {
            prepare::packages(prepare::BENCH)?;
            cargo(&["build", "--release", "--workspace"])?;
            let mut arguments = rest.to_vec();
            arguments.extend(floor()?);
            run::run(&products()?.join("knarr-bench"), &arguments)
        }
        "deps" => deps::check(),
        "catalogue" => catalogue::check(true),
        "cuts" => cuts(rest.first().map_or("1000", String::as_str)),
        "vm" => {
            cargo(&["build", "--release", "--workspace"])?;
            vm()
        }
        "guests" => {
            prepare::packages(prepare::GUESTS)?;
            run::run(&run::root().join("wasm-examples/build.sh"), rest)
        }
        _ => bail!("no chore {name:?}\n{USAGE}"),
    }
}

fn demo() -> Result<()> {
    prepare::packages(prepare::DEMO)?;
    cargo(&["build", "--release", "--workspace"])?;
    run::run(&products()?.join("knarr-demo"), &[] as &[&str])
}

fn test(rest: &[String]) -> Result<()> {
    prepare::packages(prepare::TESTS)?;
    prepare::packages(prepare::GUESTS)?;
    prepare::nextest()?;
    // Tests of the whole run the programs themselves, not only the libraries.
    cargo(&["build", "--release", "--workspace"])?;
    let mut arguments = vec!["nextest", "run", "--release", "--workspace"];
    arguments.extend(rest.iter().map(String::as_str));
    cargo(&arguments)
}

/// Power cuts at random moments; `KNARR_POWER_SEED` chooses others.
fn cuts(number: &str) -> Result<()> {
    prepare::packages(prepare::TESTS)?;
    cargo(&["build", "--release", "--workspace"])?;
    let arguments = [
        &format!("KNARR_POWER_CUTS={number}"),
        "cargo",
        "test",
        "--release",
        // With the features of the whole workspace, which is built.
        "--workspace",
        "--test=e2e",
        "--",
        "k04_a_power_cut_at_any_moment",
    ];
    run::run(std::path::Path::new("env"), &arguments)
}

/// The basics once more, on the other kind of cgroups and an older kernel.
fn vm() -> Result<()> {
    prepare::packages(prepare::VM)?;
    vm::test()
}

/// Builds the physical floor, where its source lies beside the project.
fn floor() -> Result<Vec<String>> {
    let source = run::root().join("../shared/bench/floor.c");
    if !source.exists() {
        return Ok(Vec::new());
    }
    let program = products()?.join("floor").to_string_lossy().into_owned();
    run::run(
        std::path::Path::new("gcc"),
        &["-O2", "-w", "-static", "-o", &program, &source.to_string_lossy()],
    )?;
    Ok(vec!["--floor".into(), program])
}

fn ci() -> Result<()> {
    cargo(&["fmt", "--all", "--check"])?;
    deps::check()?;
    catalogue::check(false)?;
    cargo(&["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"])?;
    test(&["--profile".into(), "ci".into()])?;
    vm()
}

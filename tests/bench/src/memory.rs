//! What stands still costs: the daemon, and what an idle container needs beside
//! its own processes.

use std::fs;

use anyhow::{Context as _, Result};
use knarr_harness::World;

/// Prints resident and private memory in KiB.
pub fn print(world: &World) -> Result<()> {
    let daemon = world.daemon_pid().context("a running daemon")?;
    println!("\n| process | resident KiB | private KiB |\n|---|---|---|");
    row("knarrd, one container", daemon)?;
    let containers = world.exec_root().join("containers");
    for bundle in fs::read_dir(containers)?.flatten() {
        if let Ok(record) = fs::read(bundle.path().join("init.json")) {
            let record: serde_json::Value = serde_json::from_slice(&record)?;
            row(
                "shim of an idle container",
                u32::try_from(record["shim_pid"].as_u64().unwrap_or(0))?,
            )?;
        }
    }
    Ok(())
}

fn row(name: &str, pid: u32) -> Result<()> {
    let rollup =
        fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).with_context(|| name.to_owned())?;
    let field = |wanted: &str| -> u64 {
        rollup
            .lines()
            .filter(|line| line.starts_with(wanted))
            .filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok())
            .sum()
    };
    println!("| {name} | {} | {} |", field("Rss:"), field("Private_"));
    Ok(())
}

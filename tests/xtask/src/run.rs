//! Running programs, each shown before it runs.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

/// The root of the source tree.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("tests/xtask has a root").into()
}

/// Where `cargo build --release` puts the programs.
pub fn products() -> Result<PathBuf> {
    let output = Command::new("cargo")
        .args(["metadata", "--format-version=1", "--no-deps"])
        .current_dir(root())
        .output()
        .context("cargo metadata")?;
    let metadata: serde_json::Value =
        serde_json::from_slice(&output.stdout).context("cargo metadata")?;
    let target = metadata["target_directory"]
        .as_str()
        .context("cargo metadata names no target directory")?;
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    Ok(Path::new(target).join(triple).join("release"))
}

/// Runs cargo in the source tree.
pub fn cargo(arguments: &[&str]) -> Result<()> {
    run(Path::new("cargo"), arguments)
}

/// Runs a program in the source tree; a failure is an error.
pub fn run<S: AsRef<OsStr>>(program: &Path, arguments: &[S]) -> Result<()> {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(root());
    eprintln!("+ {command:?}");
    let status = command.status().with_context(|| format!("run {}", program.display()))?;
    ensure!(status.success(), "{} {status}", program.display());
    Ok(())
}

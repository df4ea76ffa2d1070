//! Compiles `program/` into a static executable without a libc.
//!
//! Cargo cannot: a program without the standard library must abort on panic,
//! and the panic strategy belongs to a whole workspace.

use std::{env, path::PathBuf, process::Command};

fn main() {
    println!("cargo:rerun-if-changed=program");
    println!("cargo:rerun-if-changed=src/wire.rs");
    println!("cargo:rerun-if-changed=build.rs");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("knarr-init");
    let rustc = env::var_os("RUSTC").expect("cargo sets RUSTC");
    let target = env::var("TARGET").expect("cargo sets TARGET");
    let mut command = Command::new(rustc);
    command
        .args(["--edition=2024", "--crate-name=knarr_init_program", "--crate-type=bin"])
        .arg(format!("--target={target}"))
        .args(["-Cpanic=abort", "-Copt-level=3", "-Ccodegen-units=1", "-Cdebuginfo=0"])
        .args(["-Crelocation-model=static", "-Cstrip=symbols", "-Ctarget-feature=+crt-static"])
        .args(["-Cforce-unwind-tables=no", "-Clto=fat"])
        .args(["-Clink-arg=-nostartfiles", "-Clink-arg=-nostdlib", "-Clink-arg=-static"])
        .args(["-Clink-arg=-Wl,--build-id=none", "-Clink-arg=-Wl,-z,norelro"])
        .args(["-Clink-arg=-Wl,-z,noexecstack", "-Clink-arg=-Wl,-z,noseparate-code"])
        .arg("-o")
        .arg(&out)
        .arg("program/main.rs");
    let status = command.status().expect("rustc starts");
    assert!(status.success(), "rustc could not build knarr-init: {status}");
}

//! Who may import whom: the plan of the house, checked.
//!
//! The table lists every room with the rooms it may lean on. What is not in it
//! is an error, so a new arrow is a decision that somebody makes here.

use std::{collections::BTreeMap, process::Command};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::run::root;

/// Room → the rooms of ours that it may import.
const ALLOWED: &[(&str, &[&str])] = &[
    ("knarr-model", &[]),
    ("knarr-sys", &[]),
    ("knarr-tree", &[]),
    ("knarr-init", &[]),
    ("knarr-resolver", &[]),
    ("knarr-docker", &[]),
    ("knarr-netlink", &[]),
    ("knarr-work", &[]),
    ("knarr-sandbox", &["knarr-init", "knarr-model", "knarr-netlink", "knarr-sys", "knarr-tree"]),
    ("knarr-wasm", &["knarr-model", "knarr-resolver", "knarr-sys"]),
    ("knarr-state", &["knarr-model"]),
    ("knarr-store", &["knarr-model", "knarr-sys", "knarr-tree"]),
    ("knarr-registry", &["knarr-model", "knarr-resolver"]),
    ("knarr-guest", &["knarr-model", "knarr-sys", "knarr-work"]),
    (
        "knarr-image",
        &[
            "knarr-guest",
            "knarr-model",
            "knarr-registry",
            "knarr-state",
            "knarr-store",
            "knarr-work",
        ],
    ),
    ("knarr-network", &["knarr-model", "knarr-netlink", "knarr-state", "knarr-sys"]),
    ("knarr-volume", &["knarr-model", "knarr-state", "knarr-sys", "knarr-tree"]),
    (
        "knarr-engine",
        &[
            "knarr-image",
            "knarr-model",
            "knarr-network",
            "knarr-registry",
            "knarr-state",
            "knarr-store",
            "knarr-sys",
            "knarr-tree",
            "knarr-volume",
            "knarr-work",
        ],
    ),
    // The views that it renders and the requests that it parses are the rooms' own.
    (
        "knarr-api",
        &[
            "knarr-docker",
            "knarr-engine",
            "knarr-image",
            "knarr-model",
            "knarr-network",
            "knarr-registry",
            "knarr-volume",
            "knarr-work",
        ],
    ),
    ("knarr-client", &["knarr-docker", "knarr-resolver"]),
    ("knarr-cli", &["knarr-client", "knarr-docker", "knarr-model", "knarr-sys"]),
    // Configuration of the rooms is made where the daemon's is read.
    (
        "knarr-daemon",
        &[
            "knarr-api",
            "knarr-engine",
            "knarr-model",
            "knarr-network",
            "knarr-registry",
            "knarr-store",
            "knarr-sys",
            "knarr-tree",
        ],
    ),
    // Bundles that other engines made, for both of the doors that those come in by.
    ("knarr-bundle", &["knarr-guest", "knarr-model", "knarr-sandbox"]),
    ("containerd-shim-knarr-v1", &["knarr-bundle", "knarr-model", "knarr-sandbox", "knarr-sys"]),
    ("knarr-oci", &["knarr-bundle", "knarr-model", "knarr-sandbox", "knarr-sys", "knarr-tree"]),
    ("knarr-example-backend", &[]),
    ("knarr-harness", &[]),
    ("knarr-e2e", &[]),
    ("knarr-containerd-conformance", &[]),
    ("knarr-bench", &["knarr-harness"]),
    ("xtask", &[]),
];

/// Outside crates that one room alone may import.
const ONLY: &[(&str, &str)] = &[
    ("wasmtime", "knarr-wasm"),
    ("wasmtime-wasi", "knarr-wasm"),
    ("wasmtime-wasi-http", "knarr-wasm"),
    ("rusqlite", "knarr-state"),
    ("axum", "knarr-api"),
    ("reqwest", "knarr-registry"),
];

/// Checks every arrow between the workspace's crates; development dependencies are free.
pub fn check() -> Result<()> {
    let output = Command::new("cargo")
        .args(["metadata", "--format-version=1", "--no-deps"])
        .current_dir(root())
        .output()
        .context("cargo metadata")?;
    let metadata: Value = serde_json::from_slice(&output.stdout).context("cargo metadata")?;
    let wrong = wrong_arrows(&metadata);
    ensure!(
        wrong.is_empty(),
        "dependency directions (tests/xtask/src/deps.rs):\n  {}",
        wrong.join("\n  ")
    );
    Ok(())
}

fn wrong_arrows(metadata: &Value) -> Vec<String> {
    let allowed: BTreeMap<&str, &[&str]> = ALLOWED.iter().copied().collect();
    let mut wrong = Vec::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let from = package["name"].as_str().unwrap_or_default();
        let Some(may) = allowed.get(from) else {
            wrong.push(format!("{from} is not in the table"));
            continue;
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            if dependency["kind"] == "dev" {
                continue;
            }
            let to = dependency["name"].as_str().unwrap_or_default();
            let ours = !dependency["path"].is_null();
            if ours && !may.contains(&to) {
                wrong.push(format!("{from} imports {to}"));
            }
            if ONLY.iter().any(|(krate, room)| *krate == to && *room != from) {
                wrong.push(format!("{from} imports {to}, which only one room may"));
            }
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_arrow_that_points_up_is_found() {
        let metadata = serde_json::json!({"packages": [
            {"name": "knarr-model", "dependencies": [{"name": "knarr-engine", "path": "x", "kind": null}]},
            {"name": "knarr-engine", "dependencies": [{"name": "wasmtime", "path": null, "kind": null}]},
            {"name": "knarr-cli", "dependencies": [{"name": "knarr-engine", "path": "x", "kind": "dev"}]},
        ]});
        let wrong = wrong_arrows(&metadata);
        assert_eq!(wrong.len(), 2, "{wrong:?}");
    }
}

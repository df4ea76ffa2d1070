//! What an image asks us to run.

use serde::{Deserialize, Serialize};

use crate::{Digest, Platform};

/// The one decision in which native and Wasm differ.
///
/// Made once, when the image is stored (see `knarr-image`), kept on the image's
/// row, shown by `image inspect`. `run` never guesses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Workload {
    /// A program for the kernel: runs in Linux namespaces.
    Native {
        /// What the image's configuration says it was built for.
        platform: Platform,
    },
    /// A WebAssembly program: runs in the Wasm host, inside the same namespaces.
    Wasm {
        /// How the host calls it.
        abi: WasmAbi,
        /// The digest of the module's or component's own bytes (not of a layer's
        /// tar): the first half of the compile cache's key.
        module: Digest,
        /// Where it lies in the image's root filesystem; none for a raw Wasm layer.
        path: Option<String>,
    },
}

/// How the host calls a Wasm program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WasmAbi {
    /// A core module that imports `wasi_snapshot_preview1` and exports `_start`.
    Preview1Command,
    /// A component that exports `wasi:cli/run@0.2.x`.
    ComponentCommand,
    /// A component that exports `wasi:http/incoming-handler@0.2.x`: the host
    /// listens on the container's port, one instance a request.
    HttpProxy,
}

impl Workload {
    /// Whether the Wasm host runs it.
    pub fn is_wasm(&self) -> bool {
        matches!(self, Self::Wasm { .. })
    }
}

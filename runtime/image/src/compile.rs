//! Compiling Wasm ahead of time, in a child process of its own.

use std::path::PathBuf;

/// The program that compiles: `knarr-wasm`.
#[derive(Debug, Clone)]
pub struct WasmCompiler {
    /// Its path. The children `compile` and `fingerprint` are run with an empty
    /// environment.
    pub program: PathBuf,
}

//! What a Wasm program is, and its code compiled ahead.
//!
//! ```text
//!   bytes ─▶ magic ─▶ interface ─▶ how it is called (WasmAbi)
//!     └──────▶ digest ─▶ <cache>/<host>/<digest>.cwasm, compiled where it is missing
//! ```
//!
//! Both the engine's images and containerd's containers come through here, so they
//! share the decision and the cache: whatever process compiled a program first, the
//! others find its code.
//!
//! **How it fails.** [`Error`] says whether the program or the host is to blame;
//! nothing half-compiled is ever seen under a program's name, and nothing is run that is
//! not what was compiled.

#![forbid(unsafe_code)]

mod compile;
mod entry;
mod program;
mod turns;

use knarr_model::Digest;

pub use compile::{Compiler, WasmCompiler};
pub use entry::Code;
pub use program::{Interface, Magic, PROGRAM_MAX, Program, inspect, interface, is_program, magic};

/// What this room answers.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a program cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its bytes break a rule.
    #[error("invalid {what}: {why}")]
    Invalid {
        /// Which program.
        what: String,
        /// Which rule.
        why: String,
    },
    /// Something that Knarr does not run, with the reason.
    #[error("{0}")]
    Unsupported(String),
    /// Ahead-of-time compilation failed.
    #[error("compile {module}: {why}")]
    Compile {
        /// The module's or component's digest.
        module: Digest,
        /// What the compiler said, or `compile limit`.
        why: String,
    },
    /// The host failed.
    #[error("internal: {0}")]
    Internal(String),
}

impl Error {
    pub(crate) fn invalid(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Invalid { what: what.into(), why: why.into() }
    }
}

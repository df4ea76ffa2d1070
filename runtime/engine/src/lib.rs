//! The engine: containers, exec, logs, events, recovery.
//!
//! ```text
//!   api ──► Engine ──┬── images, networks, volumes   rooms below, with use by containers checked
//!                    ├── container                   one state machine each, see its picture
//!                    ├── shims ── task (ttrpc)       warm processes that own the tasks
//!                    └── events                      what happened, for whoever listens
//! ```
//!
//! **Life.** [`Engine::open`] is start and recovery in one: it reads the rows,
//! adopts what has none, asks every shim, records what ended meanwhile, and
//! applies restart policies once. Dropping the last clone leaves containers
//! running; the next `open` finds them again.
//!
//! **How it fails.** Every verb is linearizable per container and idempotent;
//! whatever a failed `create` or `start` had made is undone before it answers.
//! A killed engine loses nothing: rows are written before resources are made
//! and deleted after they are gone, and a lost database is written again from
//! the records beside the objects.

#![forbid(unsafe_code)]

mod adopt;
mod ask;
mod attach;
mod capabilities;
mod cgroup;
mod container;
mod create;
mod detach;
mod devices;
mod engine;
mod error;
mod etc;
mod events;
mod exec;
mod facades;
pub mod failpoint;
mod grants;
mod host;
mod leftovers;
mod logs;
mod mounts;
mod names;
mod notices;
mod observe;
mod oci;
mod places;
mod record;
mod recovery;
mod remove;
mod seccomp;
mod shims;
mod start;
mod stop;
mod task;
mod view;

pub use ask::VolumeUsage;
pub use container::Wait;
pub use engine::{Engine, EngineConfig};
pub use error::{Error, Result};
pub use view::*;

impl Engine {
    /// Begins to wait. The client may be answered its headers when this returns.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn wait(&self, key: &str, condition: WaitCondition) -> Result<Wait> {
        Ok(self.find(key)?.wait(condition))
    }
}

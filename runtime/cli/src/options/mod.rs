//! The small grammars of flags.

pub mod create;
pub mod mounts;
pub mod ports;
pub mod units;

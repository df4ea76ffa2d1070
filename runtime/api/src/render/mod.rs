//! The engine's views in Docker's JSON: pure functions.

mod inspect;
mod list;
mod stats;
mod words;

pub(crate) use inspect::{container, endpoints, network_mode, workload};
pub(crate) use list::{mount_point, summary};
pub(crate) use stats::stats;
pub(crate) use words::{human_duration, seconds_of};

#[cfg(test)]
mod tests;

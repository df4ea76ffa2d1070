//! What the tests share.
//!
//! ```text
//!   World       a private engine: own namespaces, own roots, own socket
//!   ImageBuilder  images from literal files, as docker-archive or OCI layout
//!   fixtures    real programs from the package registries
//!   LyingRegistry  an HTTP server that does what servers must not
//!   Inventory   what the host holds: mounts, links, cgroups, processes
//! ```
//!
//! Everything happens inside network and mount namespaces that the test made,
//! so that the machine's own network and mounts are never touched.

#![forbid(unsafe_code)]

mod disk;
pub mod evil_tar;
pub mod evil_wasm;
pub mod fixtures;
mod image;
mod inventory;
pub mod lying_registry;
mod world;

pub use image::{ImageBuilder, RegistryImage, prebuilt};
pub use inventory::Inventory;
pub use world::{Run, World, bin_dir, repository};

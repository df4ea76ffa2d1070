//! The built shim, driven over its socket as knarrd drives it.
//!
//! Needs root and Debian's busybox-static. Names that begin with `pNN` or `kNN`
//! are cases of the reliability catalogue.

mod lifecycle;
mod rights;
mod streams;
mod support;
mod survival;

//! Scenarios: whole networks, with containers that are threads in namespaces
//! and a host that is the test's own namespace.

mod management;
mod names;
mod policy;
mod reach;
mod recovery;

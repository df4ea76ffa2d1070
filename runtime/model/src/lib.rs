//! What the rooms of the house say to each other.
//!
//! Pure data: ids, names, digests, references, platforms, workloads, container
//! specifications, and the few files and annotations that the engine and the
//! shim exchange. Nothing here does I/O. What a parser of this crate returns
//! cannot be wrong: the fields are private or have no invalid value.

#![forbid(unsafe_code)]

pub mod capability;
mod container;
mod digest;
mod error;
mod id;
mod platform;
mod reference;
mod signal;
mod subnet;
pub mod task;
mod workload;

pub use container::{
    ContainerSpec, DeviceRequest, EndpointSpec, LogConfig, MountKind, MountSpec, NamespaceMode,
    NetworkMode, PortBinding, PortSpec, Propagation, PullPolicy, Resources, RestartPolicy,
    SeccompChoice, SecurityOptions, Transport, Ulimit,
};
pub use digest::{Digest, DigestError};
pub use error::{ErrorKind, Kinded};
pub use id::{ContainerId, ExecId, IdError, Name, NetworkId};
pub use platform::{Platform, PlatformError};
pub use reference::{Reference, ReferenceError};
pub use signal::{Signal, SignalError};
pub use subnet::{Subnet4, SubnetError};
pub use workload::{WasmAbi, Workload};

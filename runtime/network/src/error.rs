//! Why a network operation failed, in Docker's words where it has them.

use knarr_model::{ErrorKind, Kinded};

/// Why a network operation failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No such network.
    #[error("network {0} not found")]
    NotFound(String),
    /// The container is not in that network.
    #[error("container {container} is not connected to network {network}")]
    NotConnected {
        /// The container's name or id.
        container: String,
        /// The network's name.
        network: String,
    },
    /// The container is in that network already.
    #[error("endpoint with name {endpoint} already exists in network {network}")]
    AlreadyConnected {
        /// The container's name.
        endpoint: String,
        /// The network's name.
        network: String,
    },
    /// The name is taken.
    #[error("network with name {0} already exists")]
    NameTaken(String),
    /// One of the three that are always there.
    #[error("{0} is a pre-defined network and cannot be removed")]
    Predefined(String),
    /// One of the three that are always there, created again.
    #[error("operation is not permitted on predefined {0} network ")]
    PredefinedCreate(String),
    /// There is one `host` and one `none`, and both are there.
    #[error("only one instance of \"{0}\" network is allowed")]
    Singleton(String),
    /// A driver that there is not.
    #[error("could not find plugin {0} in v1 plugin registry: plugin not found")]
    Driver(String),
    /// Containers are attached.
    #[error("error while removing network: network {name} has active endpoints ({})", .users.join(", "))]
    ActiveEndpoints {
        /// The network's name.
        name: String,
        /// The containers.
        users: Vec<String>,
    },
    /// The subnet is in use here or on the host.
    #[error("Pool overlaps with other one on this address space")]
    Overlap,
    /// No pool is left.
    #[error("all predefined address pools have been fully subnetted")]
    PoolsExhausted,
    /// No address is left.
    #[error("no available IPv4 addresses on this network's address pools: {name} ({id})")]
    AddressesExhausted {
        /// The network's name.
        name: String,
        /// Its id.
        id: String,
    },
    /// A fixed address that another endpoint has.
    #[error("Address already in use")]
    AddressInUse,
    /// A host port that cannot be had; Docker's wording.
    #[error(
        "driver failed programming external connectivity on endpoint {name} ({endpoint}): {reason}"
    )]
    Port {
        /// The container's name.
        name: String,
        /// The endpoint's id.
        endpoint: String,
        /// `Bind for 0.0.0.0:8080 failed: port is already allocated` and its like.
        reason: String,
        /// Another has it, rather than something else having failed.
        taken: bool,
    },
    /// The request makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// The request contradicts what is there.
    #[error("{0}")]
    Conflict(String),
    /// Not done, by design or not yet.
    #[error("{0}")]
    NotSupported(String),
    /// The kernel refused.
    #[error("{what}: {source}")]
    Kernel {
        /// What was tried.
        what: String,
        /// Its answer.
        source: std::io::Error,
    },
    /// The database failed.
    #[error(transparent)]
    State(#[from] knarr_state::Error),
}

impl Error {
    /// Turns the kernel's answer into an error that says what was tried.
    pub(crate) fn kernel(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Kernel { what, source }
    }
}

impl Kinded for Error {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::NotFound(_) | Self::Driver(_) | Self::NotConnected { .. } => ErrorKind::NotFound,
            Self::NameTaken(_) | Self::Conflict(_) => ErrorKind::Conflict,
            // Docker answers 403 to all of these (moby libnetwork/error.go, types.ForbiddenError).
            Self::AlreadyConnected { .. }
            | Self::Predefined(_)
            | Self::PredefinedCreate(_)
            | Self::Singleton(_)
            | Self::ActiveEndpoints { .. }
            | Self::Overlap
            | Self::AddressInUse => ErrorKind::Forbidden,
            Self::Invalid(_) => ErrorKind::InvalidArgument,
            Self::NotSupported(_) => ErrorKind::NotSupported,
            Self::PoolsExhausted
            | Self::AddressesExhausted { .. }
            | Self::Port { .. }
            | Self::Kernel { .. }
            | Self::State(_) => ErrorKind::Internal,
        }
    }
}

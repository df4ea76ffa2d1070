//! Where an engine listens.

use std::{fmt, path::PathBuf, str::FromStr};

/// Where an engine listens: `unix:///run/knarr.sock` or `tcp://127.0.0.1:2375`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// Path of a unix socket.
    Unix(PathBuf),
    /// `host:port`, without TLS.
    Tcp(String),
}

/// Why a string is no host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unable to parse docker host `{0}`")]
pub struct HostError(String);

impl FromStr for Host {
    type Err = HostError;
    fn from_str(text: &str) -> Result<Self, HostError> {
        match text.split_once("://") {
            Some(("unix", path)) if path.starts_with('/') => Ok(Self::Unix(path.into())),
            Some(("tcp" | "http", address)) if !address.is_empty() => {
                let address = address.trim_end_matches('/');
                let has_port =
                    address.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
                Ok(Self::Tcp(if has_port { address.to_owned() } else { format!("{address}:2375") }))
            }
            _ => Err(HostError(text.to_owned())),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp://{address}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_parse() {
        assert_eq!("unix:///run/x.sock".parse(), Ok(Host::Unix("/run/x.sock".into())));
        assert_eq!("tcp://127.0.0.1".parse(), Ok(Host::Tcp("127.0.0.1:2375".into())));
        assert_eq!("tcp://[::1]:1".parse(), Ok(Host::Tcp("[::1]:1".into())));
        for bad in ["", "unix://", "unix://x", "ssh://a", "/run/x.sock"] {
            assert!(bad.parse::<Host>().is_err(), "{bad}");
        }
    }
}

//! Platforms (OCI image index specification, `platform` property).

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// An operating system and an architecture, as `os/architecture[/variant]`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Platform {
    /// `linux`, `wasi`, `wasip1`, `wasip2`.
    pub os: String,
    /// `amd64`, `arm64`, `wasm`.
    pub architecture: String,
    /// `v7`, `v8`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// Why a string is no platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid platform {0:?}: want os/architecture[/variant]")]
pub struct PlatformError(String);

impl Platform {
    /// The platform of native programs on this machine.
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            other => other,
        };
        Self { os: "linux".into(), architecture: architecture.into(), variant: None }
    }

    /// Whether images of this platform are run by the Wasm host, by what they
    /// say of themselves (the bytes of the entrypoint have the last word).
    pub fn is_wasm(&self) -> bool {
        matches!(self.os.to_ascii_lowercase().as_str(), "wasi" | "wasip1" | "wasip2")
            || matches!(self.architecture.as_str(), "wasm" | "wasm32" | "wasm64")
    }
}

impl FromStr for Platform {
    type Err = PlatformError;
    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let word = |part: &str| {
            part.starts_with(|c: char| c.is_ascii_alphanumeric())
                && part.len() <= 32
                && part
                    .bytes()
                    .all(|c| c.is_ascii_alphanumeric() || matches!(c, b'_' | b'.' | b'-'))
        };
        let parts: Vec<&str> = text.split('/').collect();
        if !parts.iter().all(|part| word(part)) {
            return Err(PlatformError(text.chars().take(80).collect()));
        }
        let (os, architecture, variant) = match parts[..] {
            [os, architecture] => (os, architecture, None),
            [os, architecture, variant] => (os, architecture, Some(variant)),
            _ => return Err(PlatformError(text.chars().take(80).collect())),
        };
        let architecture = match architecture {
            "x86_64" | "x86-64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Ok(Self {
            os: os.to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.map(str::to_owned),
        })
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.iter().try_for_each(|variant| write!(f, "/{variant}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms_parse() {
        assert_eq!("linux/x86_64".parse::<Platform>().unwrap().to_string(), "linux/amd64");
        assert_eq!("linux/arm/v7".parse::<Platform>().unwrap().variant.as_deref(), Some("v7"));
        assert!("wasip2/wasm".parse::<Platform>().unwrap().is_wasm());
        for bad in ["", "linux", "a/b/c/d", "linux/../x", "linux//amd64"] {
            assert!(bad.parse::<Platform>().is_err(), "{bad}");
        }
    }
}

//! Ids and names of objects.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Why a string is no id or no name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Not 64 lower-case hexadecimal digits.
    #[error("invalid id {0:?}: want 64 lower-case hexadecimal digits")]
    Id(String),
    /// Outside the grammar of names; Docker's own wording.
    #[error("invalid name ({0}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed")]
    Name(String),
}

macro_rules! hex_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The id made of 32 random bytes.
            pub fn from_random(bytes: [u8; 32]) -> Self {
                Self(crate::Digest::from_bytes(bytes).hex())
            }

            /// All 64 digits.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// The first 12 digits, as tables show it.
            pub fn short(&self) -> &str {
                &self.0[..12]
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                let hex = |c: u8| matches!(c, b'0'..=b'9' | b'a'..=b'f');
                if text.len() == 64 && text.bytes().all(hex) {
                    Ok(Self(text.to_owned()))
                } else {
                    Err(IdError::Id(text.chars().take(80).collect()))
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.short())
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0
            }
        }
    };
}

hex_id! {
    /// The id of a container: 64 hexadecimal digits, chosen at random.
    ///
    /// Snapshot, cgroup, veth and shim socket are all named after it, so that
    /// recovery can find everything that belongs to one container.
    ContainerId
}
hex_id! {
    /// The id of a network.
    NetworkId
}
hex_id! {
    /// The id of one `exec` in a container.
    ExecId
}

/// A name that a user gave: `[a-zA-Z0-9][a-zA-Z0-9_.-]*`, at most 255 bytes.
///
/// Containers, networks and volumes share this grammar (moby
/// `daemon/names/names.go`). Such a name is safe as one path component.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

impl Name {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let mut bytes = text.bytes();
        let first = bytes.next().is_some_and(|c| c.is_ascii_alphanumeric());
        let rest = bytes.all(|c| c.is_ascii_alphanumeric() || matches!(c, b'_' | b'.' | b'-'));
        if first && rest && text.len() <= 255 {
            Ok(Self(text.to_owned()))
        } else {
            Err(IdError::Name(text.chars().take(80).collect()))
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl TryFrom<String> for Name {
    type Error = IdError;
    fn try_from(text: String) -> Result<Self, IdError> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_grammar() {
        for good in ["a", "web-1", "A.b_c", "0"] {
            assert!(good.parse::<Name>().is_ok(), "{good}");
        }
        for bad in ["", "-a", ".a", "a/b", "a b", "..", "é", "a\n"] {
            assert!(bad.parse::<Name>().is_err(), "{bad}");
        }
    }

    #[test]
    fn ids_are_64_lower_case_digits() {
        assert!("ab".repeat(32).parse::<ContainerId>().is_ok());
        assert!("AB".repeat(32).parse::<ContainerId>().is_err());
        assert!("../../etc".parse::<ContainerId>().is_err());
    }
}

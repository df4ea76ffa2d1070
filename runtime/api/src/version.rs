//! `/v1.NN` before a path: which API version the client speaks.

use knarr_docker::{API_VERSION, MIN_API_VERSION};

use crate::error::{ApiError, Result};

/// An API version, `1.47`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ApiVersion(pub(crate) u32, pub(crate) u32);

impl ApiVersion {
    /// What a path without a version gets.
    pub(crate) fn newest() -> Self {
        Self::parse(API_VERSION).unwrap_or(Self(1, 50))
    }

    fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.split_once('.')?;
        let number = |part: &str| {
            let plain = (1..=4).contains(&part.len()) && part.bytes().all(|c| c.is_ascii_digit());
            plain.then(|| part.parse().ok()).flatten()
        };
        Some(Self(number(major)?, number(minor)?))
    }
}

/// Splits a path into the client's version and the rest; refuses versions that
/// this engine does not speak.
pub(crate) fn negotiate(path: &str) -> Result<(ApiVersion, &str)> {
    let newest = ApiVersion::newest();
    let Some(rest) = path.strip_prefix("/v") else { return Ok((newest, path)) };
    let (first, rest) = match rest.find('/') {
        Some(at) => rest.split_at(at),
        None => (rest, "/"),
    };
    // `/volumes` begins with `/v`, too.
    let Some(asked) = ApiVersion::parse(first) else { return Ok((newest, path)) };
    if asked > newest {
        return Err(ApiError::invalid(format!(
            "client version {first} is too new. Maximum supported API version is {API_VERSION}"
        )));
    }
    if ApiVersion::parse(MIN_API_VERSION).is_some_and(|oldest| asked < oldest) {
        return Err(ApiError::invalid(format!(
            "client version {first} is too old. Minimum supported API version is {MIN_API_VERSION}, please upgrade your client to a newer version"
        )));
    }
    Ok((asked, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_negotiated() {
        assert_eq!(negotiate("/_ping").unwrap(), (ApiVersion(1, 50), "/_ping"));
        assert_eq!(negotiate("/v1.44/info").unwrap(), (ApiVersion(1, 44), "/info"));
        assert_eq!(negotiate("/v1.24/volumes").unwrap(), (ApiVersion(1, 24), "/volumes"));
        assert_eq!(negotiate("/volumes/x").unwrap(), (ApiVersion(1, 50), "/volumes/x"));
        assert_eq!(negotiate("/v1.50").unwrap(), (ApiVersion(1, 50), "/"));
    }

    #[test]
    fn what_is_too_new_or_too_old_is_refused() {
        let new = negotiate("/v1.99/info").unwrap_err();
        assert_eq!(new.status.as_u16(), 400);
        assert_eq!(
            new.message,
            "client version 1.99 is too new. Maximum supported API version is 1.50"
        );
        let old = negotiate("/v1.12/info").unwrap_err();
        assert!(old.message.starts_with("client version 1.12 is too old."), "{}", old.message);
    }
}

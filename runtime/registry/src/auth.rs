//! Credentials, as the API hands them over (`X-Registry-Auth`).

use base64::{Engine, alphabet, engine};
use serde::Deserialize;

/// Credentials for one registry.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub enum Auth {
    /// None.
    #[default]
    Anonymous,
    /// A name and a password (or personal access token).
    Basic {
        /// Without a colon.
        username: String,
        /// The secret.
        password: String,
    },
    /// An OAuth2 refresh token that `login` got instead of keeping a password.
    Identity(String),
    /// A bearer token, used as it is.
    Token(String),
}

/// Why `X-Registry-Auth` cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("invalid X-Registry-Auth header: {0}")]
pub struct AuthError(String);

impl Auth {
    /// Reads the value of an `X-Registry-Auth` header: base64 (either alphabet,
    /// padded or not) of Docker's `AuthConfig`. Empty is [`Auth::Anonymous`].
    ///
    /// # Errors
    /// When it is not base64 or not that JSON.
    pub fn from_header(value: &str) -> Result<Self, AuthError> {
        let value = value.trim();
        if value.is_empty() {
            return Ok(Self::Anonymous);
        }
        let lenient = engine::GeneralPurposeConfig::new()
            .with_decode_padding_mode(engine::DecodePaddingMode::Indifferent)
            .with_decode_allow_trailing_bits(true);
        let alphabet =
            if value.contains(['+', '/']) { &alphabet::STANDARD } else { &alphabet::URL_SAFE };
        let json = engine::GeneralPurpose::new(alphabet, lenient)
            .decode(value)
            .map_err(|error| AuthError(error.to_string()))?;
        Self::from_json(&json)
    }

    /// Reads Docker's `AuthConfig` JSON.
    ///
    /// # Errors
    /// When it is not that.
    pub fn from_json(json: &[u8]) -> Result<Self, AuthError> {
        let config: AuthConfig =
            serde_json::from_slice(json).map_err(|error| AuthError(error.to_string()))?;
        let basic = |username: String, password: String| Self::Basic { username, password };
        if !config.registrytoken.is_empty() {
            return Ok(Self::Token(config.registrytoken));
        }
        if !config.identitytoken.is_empty() {
            return Ok(Self::Identity(config.identitytoken));
        }
        if !config.username.is_empty() || !config.password.is_empty() {
            return Ok(basic(config.username, config.password));
        }
        if config.auth.is_empty() {
            return Ok(Self::Anonymous);
        }
        let joined = engine::general_purpose::STANDARD
            .decode(config.auth.trim())
            .ok()
            .and_then(|bytes| String::from_utf8(bytes).ok())
            .ok_or_else(|| AuthError("auth is not base64 of name:password".into()))?;
        let (username, password) = joined
            .split_once(':')
            .ok_or_else(|| AuthError("auth is not base64 of name:password".into()))?;
        Ok(basic(username.to_owned(), password.trim_end_matches('\0').to_owned()))
    }
}

/// Docker's `registry.AuthConfig`; what else it holds is of no use here.
#[derive(Deserialize, Default)]
#[serde(default)]
struct AuthConfig {
    username: String,
    password: String,
    auth: String,
    identitytoken: String,
    registrytoken: String,
}

/// Never shows a secret.
impl std::fmt::Debug for Auth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Anonymous => f.write_str("Anonymous"),
            Self::Basic { username, .. } => write!(f, "Basic({username:?})"),
            Self::Identity(_) => f.write_str("Identity"),
            Self::Token(_) => f.write_str("Token"),
        }
    }
}

#[cfg(test)]
mod tests {
    use base64::engine::general_purpose::{STANDARD, URL_SAFE, URL_SAFE_NO_PAD};

    use super::*;

    #[test]
    fn credentials_come_in_every_form_that_docker_sends() {
        let basic = Auth::Basic { username: "ann".into(), password: "s:cr>t?".into() };
        let json = br#"{"username":"ann","password":"s:cr>t?","serveraddress":"r.example"}"#;
        for header in [STANDARD.encode(json), URL_SAFE.encode(json), URL_SAFE_NO_PAD.encode(json)] {
            assert_eq!(Auth::from_header(&header).unwrap(), basic);
        }
        let auth = format!(r#"{{"auth":"{}"}}"#, STANDARD.encode("ann:s:cr>t?"));
        assert_eq!(Auth::from_json(auth.as_bytes()).unwrap(), basic);
        assert_eq!(Auth::from_header("").unwrap(), Auth::Anonymous);
        assert_eq!(Auth::from_header(&URL_SAFE.encode("{}")).unwrap(), Auth::Anonymous);
        assert_eq!(
            Auth::from_json(br#"{"identitytoken":"t"}"#).unwrap(),
            Auth::Identity("t".into())
        );
    }

    #[test]
    fn what_is_no_auth_is_refused_and_secrets_are_not_shown() {
        for bad in ["%%%", "bm9wZQ==", &STANDARD.encode(r#"{"auth":"!"}"#)] {
            assert!(Auth::from_header(bad).is_err(), "{bad}");
        }
        let secret = Auth::Basic { username: "ann".into(), password: "hush".into() };
        assert!(!format!("{secret:?} {:?}", Auth::Token("hush".into())).contains("hush"));
    }
}

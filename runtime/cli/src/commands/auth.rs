//! Credentials from the client's `config.json`, sent as `X-Registry-Auth`.

use std::{
    fs,
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
};

use base64::{
    Engine as _,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE},
};
use knarr_docker::AuthConfig;
use serde_json::Value;

/// What Docker calls its own registry in `config.json`.
const HUB: &str = "https://index.docker.io/v1/";

/// What a registry is called in `config.json`: Docker's own name for its hub,
/// the bare host for all others.
pub fn server(given: Option<&str>) -> String {
    let given = given.unwrap_or_default();
    let bare = given
        .trim_start_matches("https://")
        .trim_start_matches("http://")
        .split('/')
        .next()
        .unwrap_or_default();
    match bare {
        "" | "docker.io" | "index.docker.io" | "registry-1.docker.io" => HUB.to_owned(),
        other => other.to_owned(),
    }
}

/// Whether a word may stand behind `docker-credential-`.
pub fn is_helper_name(name: &str) -> bool {
    name.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.'))
}

/// The header's value for the registry of `image`; none where nothing is known.
pub fn header(config: &Path, image: &str) -> Option<String> {
    let registry = match image.parse::<knarr_model::Reference>() {
        Ok(reference) if reference.domain() == "docker.io" => HUB.to_owned(),
        Ok(reference) => reference.domain().to_owned(),
        Err(_) => return None,
    };
    let text = fs::read(config.join("config.json")).ok()?;
    let parsed: Value = serde_json::from_slice(&text).ok()?;
    let helper =
        parsed["credHelpers"][&registry].as_str().or_else(|| parsed["credsStore"].as_str());
    let credentials = match helper {
        Some(helper) => from_helper(helper, &registry).or_else(|| from_file(&parsed, &registry)),
        None => from_file(&parsed, &registry),
    }?;
    Some(BASE64_URL_SAFE.encode(serde_json::to_vec(&credentials).ok()?))
}

fn from_file(config: &Value, registry: &str) -> Option<AuthConfig> {
    let auths = config["auths"].as_object()?;
    let bare = |name: &str| {
        name.trim_start_matches("https://")
            .trim_start_matches("http://")
            .split('/')
            .next()
            .map(str::to_owned)
    };
    let entry = auths.get(registry).or_else(|| {
        auths
            .iter()
            .find(|(name, _)| bare(name).as_deref() == Some(registry))
            .map(|(_, entry)| entry)
    })?;
    let mut credentials: AuthConfig = serde_json::from_value(entry.clone()).ok()?;
    if !credentials.auth.is_empty() {
        let decoded = BASE64_STANDARD.decode(credentials.auth.trim()).ok()?;
        let decoded = String::from_utf8(decoded).ok()?;
        let (username, password) = decoded.split_once(':')?;
        username.clone_into(&mut credentials.username);
        password.trim_end_matches('\0').clone_into(&mut credentials.password);
        credentials.auth.clear();
    }
    registry.clone_into(&mut credentials.serveraddress);
    Some(credentials)
}

/// Asks `docker-credential-NAME get` (docker/docker-credential-helpers).
fn from_helper(name: &str, registry: &str) -> Option<AuthConfig> {
    if !is_helper_name(name) {
        return None;
    }
    let mut child = Command::new(format!("docker-credential-{name}"))
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    child.stdin.take()?.write_all(registry.as_bytes()).ok()?;
    let output = child.wait_with_output().ok().filter(|output| output.status.success())?;
    let answer: Value = serde_json::from_slice(&output.stdout).ok()?;
    let text = |key: &str| answer[key].as_str().unwrap_or_default().to_owned();
    let (username, secret) = (text("Username"), text("Secret"));
    let serveraddress = registry.to_owned();
    Some(match username.as_str() {
        "<token>" => AuthConfig { identitytoken: secret, serveraddress, ..AuthConfig::default() },
        _ => AuthConfig { username, password: secret, serveraddress, ..AuthConfig::default() },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_belong_to_their_registry() {
        let dir = tempfile::tempdir().unwrap();
        let auth = BASE64_STANDARD.encode("me:secret");
        let config = serde_json::json!({"auths": {"https://r.example/v1/": {"auth": auth}}});
        fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        let header = header(dir.path(), "r.example/a:1").unwrap();
        let sent: AuthConfig =
            serde_json::from_slice(&BASE64_URL_SAFE.decode(header).unwrap()).unwrap();
        assert_eq!((sent.username.as_str(), sent.password.as_str()), ("me", "secret"));
        assert_eq!(super::header(dir.path(), "other.example/a:1"), None);
        assert_eq!(super::header(dir.path(), "busybox"), None);
    }
}

//! Image configurations, checked (CATALOGUE I21).
//!
//! What an image says about itself is untrusted. Every value is parsed into a
//! type that cannot be wrong, or the image is refused with `invalid image
//! configuration: …`; nothing of it is believed later on.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Component, Path, PathBuf},
};

use knarr_model::{Digest, PortSpec, Transport};
use serde::Deserialize;
use serde_json::Value;

use crate::{
    Error, ImageConfig, Result,
    document::{DescribedPlatform, LAYERS_MAX, strict},
};

/// All of `Env` together, and each of `Cmd`, `Entrypoint`, `Labels`: what the
/// kernel takes for arguments and environment of one exec is of this order.
const WORDS_MAX: usize = 1 << 20;
/// Entries of any list or map.
const ITEMS_MAX: usize = 10_000;
/// Ports of all ranges together: each of both protocols, twice.
const PORTS_MAX: usize = 4 * 65_535;

/// A whole configuration document.
#[derive(Debug, Clone, Default)]
pub(crate) struct Config {
    pub(crate) platform: DescribedPlatform,
    pub(crate) created: Option<String>,
    pub(crate) author: Option<String>,
    pub(crate) docker_version: Option<String>,
    pub(crate) run: ImageConfig,
    pub(crate) raw: Value,
    pub(crate) diff_ids: Vec<Digest>,
    pub(crate) history: Vec<History>,
    /// `layerDigests` of a Wasm artifact.
    pub(crate) layer_digests: Vec<Digest>,
}

/// One step of a build.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct History {
    pub(crate) created: Option<String>,
    pub(crate) created_by: Option<String>,
    pub(crate) comment: Option<String>,
    pub(crate) empty_layer: bool,
}

#[derive(Deserialize)]
struct Body {
    #[serde(default)]
    os: Option<String>,
    #[serde(default)]
    architecture: Option<String>,
    #[serde(default)]
    variant: Option<String>,
    #[serde(default)]
    created: Option<String>,
    #[serde(default)]
    author: Option<String>,
    #[serde(default)]
    docker_version: Option<String>,
    #[serde(default)]
    config: Option<Value>,
    #[serde(default)]
    rootfs: Option<Rootfs>,
    #[serde(default)]
    history: Option<Vec<History>>,
    #[serde(default, rename = "layerDigests")]
    layer_digests: Option<Vec<Digest>>,
}

#[derive(Deserialize)]
struct Rootfs {
    #[serde(default)]
    diff_ids: Option<Vec<Digest>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct Run {
    user: Option<String>,
    exposed_ports: Option<BTreeMap<String, Value>>,
    env: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    volumes: Option<BTreeMap<String, Value>>,
    working_dir: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    stop_signal: Option<String>,
    healthcheck: Option<Value>,
    shell: Option<Vec<String>>,
    on_build: Option<Vec<String>>,
}

/// Reads a configuration.
pub(crate) fn parse(bytes: &[u8]) -> Result<Config> {
    let value = strict(bytes).map_err(|e| bad(e.to_string()))?;
    let body: Body = serde_json::from_value(value).map_err(|e| bad(e.to_string()))?;
    let raw = body.config.unwrap_or(Value::Null);
    let run: Option<Run> = serde_json::from_value(raw.clone()).map_err(|e| bad(e.to_string()))?;
    let diff_ids = body.rootfs.and_then(|rootfs| rootfs.diff_ids).unwrap_or_default();
    if diff_ids.len() > LAYERS_MAX {
        return Err(bad(format!("more than {LAYERS_MAX} diff_ids")));
    }
    let history = body.history.unwrap_or_default();
    if history.len() > ITEMS_MAX {
        return Err(bad("history is too long"));
    }
    Ok(Config {
        platform: DescribedPlatform {
            os: body.os.unwrap_or_default(),
            architecture: body.architecture.unwrap_or_default(),
            variant: body.variant.filter(|v| !v.is_empty()),
        },
        created: body.created,
        author: body.author.filter(|a| !a.is_empty()),
        docker_version: body.docker_version.filter(|v| !v.is_empty()),
        run: checked(run.unwrap_or_default())?,
        raw,
        diff_ids,
        history,
        layer_digests: body.layer_digests.unwrap_or_default(),
    })
}

fn bad(why: impl Into<String>) -> Error {
    Error::invalid("image configuration", why)
}

fn checked(run: Run) -> Result<ImageConfig> {
    let env = run.env.unwrap_or_default();
    words("Env", &env)?;
    for variable in &env {
        // A name alone means nothing in an image, and `=x` names nothing.
        if variable.find('=').is_none_or(|at| at == 0) {
            return Err(bad(format!("Env: {:?} is not NAME=value", shown(variable))));
        }
    }
    let list = |name: &'static str, list: Option<Vec<String>>| -> Result<Option<Vec<String>>> {
        // An empty list is how some builders write "none".
        let list = list.filter(|list| !list.is_empty());
        words(name, list.as_deref().unwrap_or_default())?;
        Ok(list)
    };
    let labels = run.labels.unwrap_or_default();
    let pairs: Vec<&str> = labels.iter().flat_map(|(k, v)| [k.as_str(), v.as_str()]).collect();
    words("Labels", &pairs)?;
    let user = run.user.filter(|user| !user.is_empty());
    words("User", user.as_slice())?;
    if user.as_ref().is_some_and(|u| u.len() > 256 || u.contains(char::is_control)) {
        return Err(bad("User is malformed"));
    }
    Ok(ImageConfig {
        user,
        exposed_ports: ports(&keys(run.exposed_ports)?)?,
        env,
        entrypoint: list("Entrypoint", run.entrypoint)?,
        cmd: list("Cmd", run.cmd)?,
        volumes: keys(run.volumes)?.iter().map(|path| volume(path)).collect::<Result<_>>()?,
        working_dir: run
            .working_dir
            .filter(|dir| !dir.is_empty())
            .map(|dir| directory(&dir))
            .transpose()?,
        labels,
        stop_signal: run
            .stop_signal
            .filter(|signal| !signal.is_empty())
            .map(|signal| signal.parse().map_err(|e| bad(format!("StopSignal: {e}"))))
            .transpose()?,
        healthcheck: run.healthcheck.map(healthcheck).transpose()?.flatten(),
        shell: list("Shell", run.shell)?,
        on_build: list("OnBuild", run.on_build)?.unwrap_or_default(),
    })
}

fn shown(text: &str) -> String {
    text.chars().take(80).collect()
}

fn keys(map: Option<BTreeMap<String, Value>>) -> Result<Vec<String>> {
    let keys: Vec<String> = map.unwrap_or_default().into_keys().collect();
    if keys.len() > ITEMS_MAX {
        return Err(bad("too many ExposedPorts or Volumes"));
    }
    Ok(keys)
}

/// No zero bytes, and no more than the kernel would take.
fn words(name: &str, words: &[impl AsRef<str>]) -> Result<()> {
    let total: usize = words.iter().map(|word| word.as_ref().len() + 1).sum();
    if total > WORDS_MAX || words.len() > ITEMS_MAX {
        return Err(bad(format!("{name} is too large")));
    }
    match words.iter().find(|word| word.as_ref().contains('\0')) {
        Some(word) => Err(bad(format!("{name}: {:?} holds a zero byte", shown(word.as_ref())))),
        None => Ok(()),
    }
}

/// The ports of all ranges. A few thousand ranges of all ports would be hundreds of
/// millions.
fn ports(texts: &[String]) -> Result<BTreeSet<PortSpec>> {
    let mut all = BTreeSet::new();
    let mut count = 0;
    for text in texts {
        let range = port(text)?;
        count += range.len();
        if count > PORTS_MAX {
            return Err(bad("too many ExposedPorts"));
        }
        all.extend(range);
    }
    Ok(all)
}

/// `80`, `80/tcp`, `8000-8010/udp`; SCTP is left out, which Knarr does not forward.
fn port(text: &str) -> Result<Vec<PortSpec>> {
    let malformed =
        || bad(format!("ExposedPorts: {:?} is not PORT[-PORT][/PROTOCOL]", shown(text)));
    let (range, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let transport = match protocol.to_ascii_lowercase().as_str() {
        "tcp" | "" => Transport::Tcp,
        "udp" => Transport::Udp,
        "sctp" => return Ok(vec![]),
        _ => return Err(malformed()),
    };
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    let number = |text: &str| text.parse::<u16>().ok().filter(|n| *n > 0).ok_or_else(malformed);
    let (first, last) = (number(first)?, number(last)?);
    if first > last {
        return Err(malformed());
    }
    Ok((first..=last).map(|port| PortSpec { port, transport }).collect())
}

/// A place for a volume: absolute, without `..`, and no place of the engine's own.
fn volume(text: &str) -> Result<PathBuf> {
    let path = normal(text).ok_or_else(|| bad(format!("Volumes: {:?}", shown(text))))?;
    let own = ["/proc", "/sys", "/dev"].iter().any(|place| path.starts_with(place));
    if path == Path::new("/") || own {
        return Err(bad(format!("Volumes: {:?} cannot be a volume", shown(text))));
    }
    Ok(path)
}

/// Docker takes a relative working directory to be beneath the root.
fn directory(text: &str) -> Result<PathBuf> {
    let absolute = format!("/{}", text.trim_start_matches('/'));
    normal(&absolute).ok_or_else(|| bad(format!("WorkingDir: {:?}", shown(text))))
}

fn normal(text: &str) -> Option<PathBuf> {
    if text.len() >= 4096 || text.contains('\0') || !text.starts_with('/') {
        return None;
    }
    Path::new(text)
        .components()
        .filter(|part| !matches!(part, Component::CurDir))
        .map(|part| matches!(part, Component::RootDir | Component::Normal(_)).then_some(part))
        .collect()
}

/// Times are not negative, the test is a list of words.
fn healthcheck(value: Value) -> Result<Option<Value>> {
    let Value::Object(fields) = &value else {
        return if value.is_null() { Ok(None) } else { Err(bad("Healthcheck is no object")) };
    };
    for name in ["Interval", "Timeout", "StartPeriod", "StartInterval", "Retries"] {
        match fields.get(name) {
            None | Some(Value::Null) => {}
            Some(number) if number.as_u64().is_some_and(|n| i64::try_from(n).is_ok()) => {}
            Some(_) => return Err(bad(format!("Healthcheck: {name} is not a time"))),
        }
    }
    match fields.get("Test") {
        None | Some(Value::Null) => {}
        Some(Value::Array(test)) => {
            let test: Option<Vec<&str>> = test.iter().map(Value::as_str).collect();
            words(
                "Healthcheck",
                &test.ok_or_else(|| bad("Healthcheck: Test is no list of words"))?,
            )?;
        }
        Some(_) => return Err(bad("Healthcheck: Test is no list of words")),
    }
    Ok(Some(value))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn with(run: Value) -> Result<Config> {
        parse(json!({"os": "linux", "architecture": "amd64", "config": run}).to_string().as_bytes())
    }

    #[test]
    fn an_ordinary_configuration() {
        let config = with(json!({
            "Env": ["PATH=/bin", "A=b=c"], "Cmd": ["sh"], "WorkingDir": "app/./x",
            "ExposedPorts": {"80": {}, "53/udp": {}, "8000-8002/tcp": {}}, "Volumes": {"/data/": {}},
            "StopSignal": "SIGQUIT", "Labels": {"a": "b"}, "User": "1000:0", "Entrypoint": [],
            "Healthcheck": {"Test": ["CMD", "x"], "Interval": 3_000_000_000_u64},
        }))
        .unwrap()
        .run;
        assert_eq!(config.working_dir.unwrap(), Path::new("/app/x"));
        let ports: Vec<String> = config.exposed_ports.iter().map(ToString::to_string).collect();
        for port in ["53/udp", "80/tcp", "8000/tcp", "8001/tcp", "8002/tcp"] {
            assert!(ports.iter().any(|p| p == port), "{port}");
        }
        assert_eq!(ports.len(), 5);
        assert_eq!(config.entrypoint, None);
        assert_eq!(config.volumes, BTreeSet::from([PathBuf::from("/data")]));
        assert!(with(Value::Null).is_ok());
    }

    #[test]
    fn i21_what_makes_no_sense_is_refused() {
        let many: BTreeMap<String, String> =
            (0..100_000).map(|n| (n.to_string(), String::new())).collect();
        let ranges: serde_json::Map<String, Value> =
            (1..=10_000).map(|n| (format!("{n}-65535"), json!({}))).collect();
        for bad in [
            json!({"Volumes": {"/": {}}}),
            json!({"Volumes": {"/proc": {}}}),
            json!({"Volumes": {"/proc/self": {}}}),
            json!({"Volumes": {"../..": {}}}),
            json!({"Volumes": {"/a/../../b": {}}}),
            json!({"Volumes": {"/dev/./shm": {}}}),
            json!({"Volumes": {"relative": {}}}),
            json!({"ExposedPorts": {"99999/x": {}}}),
            json!({"ExposedPorts": {"99999": {}}}),
            json!({"ExposedPorts": {"0": {}}}),
            json!({"ExposedPorts": {"9-8": {}}}),
            json!({"ExposedPorts": ranges}),
            json!({"StopSignal": "999"}),
            json!({"Env": [format!("A={}", "x".repeat(2 << 20))]}),
            json!({"Env": ["A=\0"]}),
            json!({"Env": ["=x"]}),
            json!({"Cmd": ["sh", "-c", "a\0b"]}),
            json!({"Cmd": "sh"}),
            json!({"Labels": many}),
            json!({"User": "a\nb"}),
            json!({"WorkingDir": "/a/../../etc"}),
            json!({"Healthcheck": {"Interval": -1}}),
            json!({"Healthcheck": {"Test": "x"}}),
        ] {
            let shown: String = bad.to_string().chars().take(80).collect();
            let error = with(bad).expect_err(&shown).to_string();
            assert!(error.starts_with("invalid image configuration: "), "{error}");
        }
    }
}

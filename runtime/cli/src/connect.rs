//! Which engine, and starting one where none runs.
//!
//! ```text
//!   -H  >  --context / DOCKER_CONTEXT  >  DOCKER_HOST  >  current context  >  unix:///run/knarr.sock
//! ```
//!
//! Only the default socket is ours to bring to life: there `knarrd` is started
//! from beside this program and says through a pipe when it listens. Of two
//! that are started at once, one gets the lock, and both clients find its socket.

use std::{
    fs,
    io::Read as _,
    os::unix::{fs::OpenOptionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use knarr_client::{Client, Host};

/// Where `knarrd` listens unless told otherwise.
pub const DEFAULT_HOST: &str = "unix:///run/knarr.sock";

/// What the user said about the engine.
#[derive(Debug, Default)]
pub struct Choice {
    /// `-H`.
    pub host: Option<String>,
    /// `--context`.
    pub context: Option<String>,
    /// `--config`: the client's own directory.
    pub config: Option<PathBuf>,
}

impl Choice {
    /// The client's directory: `~/.docker`.
    pub fn config_dir(&self) -> PathBuf {
        let from_environment = || std::env::var_os("DOCKER_CONFIG").map(PathBuf::from);
        let home = || Path::new(&std::env::var_os("HOME").unwrap_or_default()).join(".docker");
        self.config.clone().or_else(from_environment).unwrap_or_else(home)
    }

    /// The name of the context that counts, and the host it means.
    ///
    /// # Errors
    /// Where a context is named that does not exist.
    pub fn resolve(&self) -> Result<(String, String)> {
        let given = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        if let Some(host) = &self.host {
            return Ok(("default".into(), host.clone()));
        }
        let named = self.context.clone();
        if named.is_none()
            && let Some(host) = given("DOCKER_HOST")
        {
            return Ok(("default".into(), host));
        }
        let named = named
            .or_else(|| given("DOCKER_CONTEXT"))
            .or_else(|| current_context(&self.config_dir()));
        match named.as_deref() {
            None | Some("default") => Ok((
                "default".into(),
                given("DOCKER_HOST").unwrap_or_else(|| DEFAULT_HOST.to_owned()),
            )),
            Some(name) => Ok((name.to_owned(), context_host(&self.config_dir(), name)?)),
        }
    }

    /// A client of that engine, which runs when this returns if it is ours to start.
    ///
    /// # Errors
    /// Where the host does not parse or `knarrd` does not start.
    pub async fn connect(&self) -> Result<Client> {
        let (_, host) = self.resolve()?;
        let parsed: Host = host.parse()?;
        let client = Client::new(parsed);
        if host == DEFAULT_HOST && !client.reachable().await {
            start_daemon()?;
        }
        Ok(client)
    }
}

fn current_context(config: &Path) -> Option<String> {
    let text = fs::read(config.join("config.json")).ok()?;
    let parsed: serde_json::Value = serde_json::from_slice(&text).ok()?;
    parsed["currentContext"].as_str().filter(|name| !name.is_empty()).map(str::to_owned)
}

/// All contexts of the client's directory: name, description and host.
pub fn contexts(config: &Path) -> Vec<(String, String, String)> {
    let Ok(entries) = fs::read_dir(config.join("contexts/meta")) else { return Vec::new() };
    let mut found: Vec<_> = entries
        .filter_map(|entry| {
            let text = fs::read(entry.ok()?.path().join("meta.json")).ok()?;
            let meta: serde_json::Value = serde_json::from_slice(&text).ok()?;
            let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
            Some((
                text(&meta["Name"]),
                text(&meta["Metadata"]["Description"]),
                text(&meta["Endpoints"]["docker"]["Host"]),
            ))
        })
        .collect();
    found.sort();
    found
}

fn context_host(config: &Path, name: &str) -> Result<String> {
    contexts(config)
        .into_iter()
        .find(|(known, ..)| known == name)
        .map(|(.., host)| host)
        .with_context(|| format!("context \"{name}\": context not found"))
}

fn start_daemon() -> Result<()> {
    let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join("knarrd")));
    let program = beside.filter(|path| path.exists()).unwrap_or_else(|| "knarrd".into());
    let log = PathBuf::from("/run/knarrd.log");
    let stderr =
        fs::File::options().create(true).append(true).mode(0o600).open(&log).with_context(
            || {
                format!(
                    "no engine runs, and {} cannot be written\n\nhint: start knarrd as root",
                    log.display()
                )
            },
        )?;
    let mut child = Command::new(&program)
        .args(["--ready-fd", "1"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(stderr)
        // A group of its own: Ctrl-C at this terminal is not meant for it.
        .process_group(0)
        .spawn()
        .with_context(|| format!("no engine runs, and {} does not start", program.display()))?;
    let mut ready = [0; 1];
    let read = child.stdout.take().map(|mut pipe| pipe.read(&mut ready));
    if matches!(read, Some(Ok(1))) {
        return Ok(());
    }
    // Another client's engine may have been first: then its socket answers.
    let status = child.wait()?;
    if Path::new(DEFAULT_HOST.trim_start_matches("unix://")).exists() {
        return Ok(());
    }
    bail!("knarrd {status}\n\nhint: see {}", log.display())
}

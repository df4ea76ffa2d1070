//! `login` and `logout`: credentials in the client's `config.json` or with its
//! credential helper, where `pull` finds them (see [`super::auth`]).

use std::{
    fs,
    io::{Read as _, Write as _},
    os::fd::AsFd as _,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use clap::{Args, Subcommand};
use http::Method;
use knarr_docker::{AuthConfig, AuthResponse};
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
use serde_json::{Map, Value, json};

use super::{Context, auth};
use crate::terminal;

/// Verbs about credentials.
#[derive(Debug, Subcommand)]
pub enum LoginVerb {
    /// Authenticate to a registry
    Login(LoginArgs),
    /// Log out from a registry
    Logout {
        /// Registry; Docker Hub where none is named
        server: Option<String>,
    },
}

/// `knarr login`.
#[derive(Debug, Args)]
pub struct LoginArgs {
    /// Username
    #[arg(short = 'u', long, value_name = "string")]
    username: Option<String>,
    /// Password or Personal Access Token (PAT)
    #[arg(short = 'p', long, value_name = "string")]
    password: Option<String>,
    /// Take the password from stdin
    #[arg(long)]
    password_stdin: bool,
    /// Registry; Docker Hub where none is named
    server: Option<String>,
}

/// Carries out a verb.
pub async fn execute(verb: LoginVerb, context: &Context) -> Result<u8> {
    match verb {
        LoginVerb::Login(args) => login(args, context).await,
        LoginVerb::Logout { server } => {
            let server = auth::server(server.as_deref());
            outln!("Removing login credentials for {server}");
            let mut config = Config::read(&context.config)?;
            match config.helper(&server) {
                Some(helper) => run_helper(&helper, "erase", &server)?,
                None => {
                    config.auths()?.remove(&server);
                }
            }
            config.write()?;
            Ok(0)
        }
    }
}

async fn login(args: LoginArgs, context: &Context) -> Result<u8> {
    let server = auth::server(args.server.as_deref());
    ensure!(
        !(args.password.is_some() && args.password_stdin),
        "--password and --password-stdin are mutually exclusive"
    );
    ensure!(
        !(args.password_stdin && args.username.is_none()),
        "Must provide --username with --password-stdin"
    );
    if args.password.is_some() {
        errln!("WARNING! Using --password via the CLI is insecure. Use --password-stdin.");
    }
    let username = match args.username {
        Some(username) => username,
        None => prompt("Username: ", true)?,
    };
    let password = match args.password {
        Some(password) => password,
        None if args.password_stdin => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text)?;
            text.trim_end_matches(['\n', '\r']).to_owned()
        }
        None => prompt("Password: ", false)?,
    };
    ensure!(!username.is_empty() && !password.is_empty(), "username and password are required");
    let credentials =
        AuthConfig { username, password, serveraddress: server.clone(), ..AuthConfig::default() };
    let answer: AuthResponse =
        context.client.json(Method::POST, "/auth", Some(&credentials)).await?;
    let mut config = Config::read(&context.config)?;
    match config.helper(&server) {
        Some(helper) => {
            let secret = json!({
                "ServerURL": server,
                "Username": credentials.username,
                "Secret": credentials.password,
            });
            run_helper(&helper, "store", &secret.to_string())?;
            config.auths()?.insert(server, json!({}));
        }
        None => {
            let joined = format!("{}:{}", credentials.username, credentials.password);
            config.auths()?.insert(server, json!({ "auth": BASE64_STANDARD.encode(joined) }));
            errln!(
                "\nWARNING! Your credentials are stored unencrypted in '{}'.\nConfigure a credential helper to remove this warning.\n",
                config.path.display()
            );
        }
    }
    config.write()?;
    outln!("{}", answer.status);
    Ok(0)
}

/// Asks at the terminal; without echo for secrets.
fn prompt(question: &str, echo: bool) -> Result<String> {
    if !terminal::stdin_is_terminal() {
        bail!("cannot perform an interactive login from a non TTY device");
    }
    err!("{question}");
    std::io::stderr().flush()?;
    let stdin = std::io::stdin();
    let before = tcgetattr(stdin.as_fd())?;
    if !echo {
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO);
        tcsetattr(stdin.as_fd(), OptionalActions::Flush, &silent)?;
    }
    let mut line = String::new();
    let read = stdin.read_line(&mut line);
    if !echo {
        tcsetattr(stdin.as_fd(), OptionalActions::Now, &before)?;
        errln!();
    }
    read?;
    Ok(line.trim().to_owned())
}

fn run_helper(name: &str, verb: &str, input: &str) -> Result<()> {
    ensure!(auth::is_helper_name(name), "invalid credential helper {name:?}");
    let program = format!("docker-credential-{name}");
    let mut child = Command::new(&program)
        .arg(verb)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .with_context(|| format!("run {program}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes())?;
    }
    let status = child.wait()?;
    ensure!(status.success(), "{program} {verb}: {status}");
    Ok(())
}

/// `config.json`, with whatever else it holds.
struct Config {
    path: std::path::PathBuf,
    values: Map<String, Value>,
}

impl Config {
    fn read(dir: &Path) -> Result<Self> {
        let path = dir.join("config.json");
        let values = match fs::read(&path) {
            Ok(text) => {
                serde_json::from_slice(&text).with_context(|| path.display().to_string())?
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Map::new(),
            Err(error) => return Err(error).with_context(|| path.display().to_string()),
        };
        Ok(Self { path, values })
    }

    fn helper(&self, server: &str) -> Option<String> {
        let own = self.values.get("credHelpers").and_then(|all| all.get(server));
        let helper = own.or_else(|| self.values.get("credsStore"))?.as_str()?;
        (!helper.is_empty()).then(|| helper.to_owned())
    }

    fn auths(&mut self) -> Result<&mut Map<String, Value>> {
        let auths = self.values.entry("auths").or_insert_with(|| json!({}));
        auths
            .as_object_mut()
            .with_context(|| format!("{}: auths is no object", self.path.display()))
    }

    /// Replaces the file at once; only its owner can read it.
    fn write(&self) -> Result<()> {
        super::replace_config(&self.path, &self.values)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn what_else_the_file_holds_is_kept_and_secrets_are_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        fs::write(&path, r#"{"currentContext":"x","auths":{"a":{"auth":"eDp5"}}}"#).unwrap();
        let mut config = Config::read(dir.path()).unwrap();
        config.auths().unwrap().insert("b".into(), json!({"auth": "eDp5"}));
        config.write().unwrap();
        let kept: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert_eq!(kept["currentContext"], "x");
        assert_eq!(kept["auths"].as_object().unwrap().len(), 2);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(super::auth::header(dir.path(), "b/x").is_none(), "b is no registry's name");
    }
}

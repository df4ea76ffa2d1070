//! The verbs.

pub mod auth;
pub mod container;
pub mod context;
pub mod exec;
pub mod image;
pub mod login;
pub mod network;
pub mod run;
pub mod system;
pub mod volume;

use std::{
    fs,
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use futures_util::StreamExt as _;
use knarr_client::Client;

/// What every verb works with.
#[derive(Debug)]
pub struct Context {
    /// The engine.
    pub client: Client,
    /// The client's own directory, with credentials.
    pub config: PathBuf,
}

/// An exit code that is not 1, attached to an error.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("exit code {0}")]
pub struct Exit(pub u8);

/// `--filter` words as the API wants them: `{"name": ["value", …]}`.
pub fn filters(words: &[String]) -> Result<String> {
    let mut map = std::collections::BTreeMap::<&str, Vec<&str>>::new();
    for word in words {
        match word.split_once('=') {
            Some((name, value)) => map.entry(name.trim()).or_default().push(value.trim()),
            None => anyhow::bail!(
                "invalid argument \"{word}\" for \"-f, --filter\" flag: bad format of filter (expected name=value)"
            ),
        }
    }
    Ok(serde_json::to_string(&map)?)
}

/// Does one thing for each name, many at a time: prints each name, or why it
/// did not go well, in their order; the exit code says whether any failed.
pub async fn for_each<F>(names: &[String], action: F) -> Result<u8>
where
    F: AsyncFn(&str) -> Result<()>,
{
    each(names, action, true).await
}

/// The same, but the action prints what there is to say.
pub async fn for_each_silent<F>(names: &[String], action: F) -> Result<u8>
where
    F: AsyncFn(&str) -> Result<()>,
{
    each(names, action, false).await
}

async fn each<F>(names: &[String], action: F, print: bool) -> Result<u8>
where
    F: AsyncFn(&str) -> Result<()>,
{
    let mut failed = false;
    let outcomes = names.iter().map(async |name| (name, action(name).await));
    let mut outcomes = std::pin::pin!(futures_util::stream::iter(outcomes).buffered(50));
    while let Some((name, outcome)) = outcomes.next().await {
        match outcome {
            Ok(()) if print => outln!("{name}"),
            Ok(()) => {}
            Err(error) => {
                errln!("{}", crate::output::chain(&error));
                failed = true;
            }
        }
    }
    Ok(failed.into())
}

/// Replaces the client's configuration file at once. It holds credentials: only its
/// owner can read it, and only its owner's directory is made for it.
pub fn replace_config(path: &Path, values: &impl serde::Serialize) -> Result<()> {
    let replace = || -> std::io::Result<()> {
        if let Some(directory) = path.parent() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        }
        let new = path.with_extension("json.new");
        let _ = fs::remove_file(&new);
        let mut file = fs::File::options().write(true).create_new(true).mode(0o600).open(&new)?;
        file.write_all(&serde_json::to_vec_pretty(values)?)?;
        file.sync_all()?;
        fs::rename(&new, path)
    };
    replace().with_context(|| format!("write {}", path.display()))
}

/// Asks before something is deleted.
pub fn confirmed(force: bool, warning: &str) -> Result<bool> {
    if force {
        return Ok(true);
    }
    err!("WARNING! {warning}\nAre you sure you want to continue? [y/N] ");
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(answer.trim().eq_ignore_ascii_case("y") || answer.trim().eq_ignore_ascii_case("yes"))
}

//! The client's contexts: names for engines.

use anyhow::{Context as _, Result, ensure};
use clap::Subcommand;
use serde_json::{Value, json};

use crate::{
    connect::{self, Choice},
    output::Listing,
};

/// Verbs behind `context`.
#[derive(Debug, Subcommand)]
pub enum ContextVerb {
    /// List contexts
    #[command(alias = "list")]
    Ls {
        /// Format output using a Go template, "table TEMPLATE" or "json"
        #[arg(long, value_name = "string")]
        format: Option<String>,
        /// Only show context names
        #[arg(short = 'q', long)]
        quiet: bool,
    },
    /// Print the name of the current context
    Show,
    /// Set the current context
    Use {
        /// Context
        name: String,
    },
    /// Display detailed information on one or more contexts
    Inspect {
        /// Contexts; the current one where none is named
        names: Vec<String>,
    },
}

/// Carries out a verb; no engine is asked.
pub fn execute(verb: ContextVerb, choice: &Choice) -> Result<u8> {
    let config = choice.config_dir();
    let (current, _) = choice.resolve()?;
    let mut all = vec![(
        "default".to_owned(),
        "Current DOCKER_HOST based configuration".to_owned(),
        default_host(),
    )];
    all.extend(connect::contexts(&config));
    match verb {
        ContextVerb::Ls { format, quiet } => {
            let rows = all
                .iter()
                .map(|(name, description, host)| {
                    json!({
                        "Name": if *name == current && format.is_none() && !quiet { format!("{name} *") } else { name.clone() },
                        "Description": description,
                        "DockerEndpoint": host,
                        "Current": *name == current,
                        "Error": "",
                    })
                })
                .collect();
            let listing = Listing {
                default: "{{.Name}}\t{{.Description}}\t{{.DockerEndpoint}}\t{{.Error}}",
                headings: &[("DockerEndpoint", "DOCKER ENDPOINT")],
                rows,
            };
            listing.print(format.as_deref(), quiet.then_some("Name"))?;
        }
        ContextVerb::Show => outln!("{current}"),
        ContextVerb::Use { name } => {
            ensure!(
                all.iter().any(|(known, ..)| *known == name),
                "context \"{name}\": context not found"
            );
            let path = config.join("config.json");
            let mut parsed: Value = match std::fs::read(&path) {
                Ok(text) => {
                    serde_json::from_slice(&text).with_context(|| path.display().to_string())?
                }
                Err(_) => json!({}),
            };
            parsed["currentContext"] =
                if name == "default" { "".into() } else { name.clone().into() };
            super::replace_config(&path, &parsed)?;
            outln!("{name}\nCurrent context is now \"{name}\"");
        }
        ContextVerb::Inspect { names } => {
            let names = if names.is_empty() { vec![current] } else { names };
            let mut shown = Vec::new();
            for name in names {
                let (name, description, host) = all
                    .iter()
                    .find(|(known, ..)| *known == name)
                    .with_context(|| format!("context \"{name}\": context not found"))?;
                shown.push(json!({
                    "Name": name,
                    "Metadata": {"Description": description},
                    "Endpoints": {"docker": {"Host": host, "SkipTLSVerify": false}},
                }));
            }
            outln!("{}", serde_json::to_string_pretty(&shown)?);
        }
    }
    Ok(0)
}

fn default_host() -> String {
    std::env::var("DOCKER_HOST")
        .ok()
        .filter(|host| !host.is_empty())
        .unwrap_or_else(|| connect::DEFAULT_HOST.into())
}

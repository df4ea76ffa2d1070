//! The verbs on volumes.

use anyhow::Result;
use clap::{Args, Subcommand};
use http::Method;
use knarr_client::{encode, path};
use knarr_docker::{Volume, VolumeCreateRequest, VolumeList};
use serde_json::json;

use super::{Context, container, filters, for_each, system};
use crate::{options::units, output::Listing};

/// Verbs behind `volume`.
#[derive(Debug, Subcommand)]
pub enum VolumeVerb {
    /// Create a volume
    Create(CreateArgs),
    /// List volumes
    #[command(alias = "list")]
    Ls(ListArgs),
    /// Display detailed information on one or more volumes
    Inspect(container::InspectArgs),
    /// Remove one or more volumes
    #[command(alias = "remove")]
    Rm {
        /// Force the removal of one or more volumes
        #[arg(short = 'f', long)]
        force: bool,
        /// Volumes
        #[arg(required = true)]
        volumes: Vec<String>,
    },
    /// Remove unused local volumes
    Prune(system::PruneArgs),
}

/// `knarr volume create`.
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// Specify volume driver name
    #[arg(short = 'd', long, default_value = "local", value_name = "string")]
    driver: String,
    /// Set metadata for a volume
    #[arg(long, value_name = "list")]
    label: Vec<String>,
    /// Set driver specific options
    #[arg(short = 'o', long, value_name = "map")]
    opt: Vec<String>,
    /// Name; random where none is given
    name: Option<String>,
}

/// `knarr volume ls`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Provide filter values (e.g. "dangling=true")
    #[arg(short = 'f', long, value_name = "filter")]
    filter: Vec<String>,
    /// Format output using a Go template, "table TEMPLATE" or "json"
    #[arg(long, value_name = "string")]
    format: Option<String>,
    /// Only display volume names
    #[arg(short = 'q', long)]
    quiet: bool,
}

/// Carries out a verb.
pub async fn execute(verb: VolumeVerb, context: &Context) -> Result<u8> {
    let client = &context.client;
    match verb {
        VolumeVerb::Create(args) => {
            let request = VolumeCreateRequest {
                name: args.name.unwrap_or_default(),
                driver: args.driver,
                driver_opts: Some(units::pairs(&args.opt)),
                labels: Some(units::pairs(&args.label)),
            };
            let volume: Volume =
                client.json(Method::POST, "/volumes/create", Some(&request)).await?;
            outln!("{}", volume.name);
            Ok(0)
        }
        VolumeVerb::Ls(args) => list(args, context).await,
        VolumeVerb::Inspect(args) => container::inspect(args, Some("volume"), context).await,
        VolumeVerb::Rm { force, volumes } => {
            let query = [("force", if force { "1" } else { "0" })];
            for_each(&volumes, async |name| {
                Ok(client.delete(&path(&format!("/volumes/{}", encode(name)), &query)).await?)
            })
            .await
        }
        VolumeVerb::Prune(args) => system::prune_volumes(args, context).await,
    }
}

async fn list(args: ListArgs, context: &Context) -> Result<u8> {
    let filters = filters(&args.filter)?;
    let query: Vec<(&str, &str)> =
        if args.filter.is_empty() { Vec::new() } else { vec![("filters", &filters)] };
    let mut volumes = context.client.get::<VolumeList>(&path("/volumes", &query)).await?.volumes;
    volumes.sort_by(|a, b| a.name.cmp(&b.name));
    let rows = volumes
        .iter()
        .map(|volume| {
            let labels: Vec<String> = volume
                .labels
                .iter()
                .flatten()
                .map(|(key, value)| format!("{key}={value}"))
                .collect();
            json!({
                "Name": volume.name,
                "Driver": volume.driver,
                "Scope": volume.scope,
                "Mountpoint": volume.mountpoint,
                "Labels": labels.join(","),
                "Size": "N/A",
                "Status": "N/A",
                "Availability": "N/A",
                "Group": "N/A",
                "Links": "N/A",
            })
        })
        .collect();
    let listing =
        Listing { default: "{{.Driver}}\t{{.Name}}", headings: &[("Name", "VOLUME NAME")], rows };
    listing.print(args.format.as_deref(), args.quiet.then_some("Name"))?;
    Ok(0)
}

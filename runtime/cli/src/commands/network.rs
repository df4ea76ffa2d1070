//! The verbs on networks.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use http::Method;
use knarr_client::{encode, path};
use knarr_docker::{
    EndpointIpamConfig, EndpointSettings, Ipam, IpamConfig, Network, NetworkConnectRequest,
    NetworkCreateRequest, NetworkCreateResponse, NetworkDisconnectRequest,
};
use serde_json::json;

use super::{Context, container, filters, for_each, system};
use crate::{
    options::units,
    output::{self, Listing},
};

/// Verbs behind `network`.
#[derive(Debug, Subcommand)]
pub enum NetworkVerb {
    /// Create a network
    Create(CreateArgs),
    /// List networks
    #[command(alias = "list")]
    Ls(ListArgs),
    /// Display detailed information on one or more networks
    Inspect(container::InspectArgs),
    /// Remove one or more networks
    #[command(alias = "remove")]
    Rm {
        /// Do not error if the network does not exist
        #[arg(short = 'f', long)]
        force: bool,
        /// Networks
        #[arg(required = true)]
        networks: Vec<String>,
    },
    /// Connect a container to a network
    Connect(ConnectArgs),
    /// Disconnect a container from a network
    Disconnect {
        /// Force the container to disconnect from a network
        #[arg(short = 'f', long)]
        force: bool,
        /// Network
        network: String,
        /// Container
        container: String,
    },
    /// Remove all unused networks
    Prune(system::PruneArgs),
}

/// `knarr network create`.
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// Enable manual container attachment
    #[arg(long)]
    attachable: bool,
    /// Auxiliary IPv4 or IPv6 addresses used by Network driver
    #[arg(long, value_name = "map")]
    aux_address: Vec<String>,
    /// Driver to manage the Network
    #[arg(short = 'd', long, default_value = "bridge", value_name = "string")]
    driver: String,
    /// IPv4 or IPv6 Gateway for the master subnet
    #[arg(long, value_name = "strings")]
    gateway: Vec<String>,
    /// Restrict external access to the network
    #[arg(long)]
    internal: bool,
    /// Allocate container ip from a sub-range
    #[arg(long, value_name = "strings")]
    ip_range: Vec<String>,
    /// Enable or disable IPv6 address assignment
    #[arg(long)]
    ipv6: bool,
    /// Set metadata on a network
    #[arg(long, value_name = "list")]
    label: Vec<String>,
    /// Set driver specific options
    #[arg(short = 'o', long, value_name = "map")]
    opt: Vec<String>,
    /// Subnet in CIDR format that represents a network segment
    #[arg(long, value_name = "strings")]
    subnet: Vec<String>,
    /// Name
    name: String,
}

/// `knarr network ls`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Provide filter values (e.g. "driver=bridge")
    #[arg(short = 'f', long, value_name = "filter")]
    filter: Vec<String>,
    /// Format output using a Go template, "table TEMPLATE" or "json"
    #[arg(long, value_name = "string")]
    format: Option<String>,
    /// Do not truncate the output
    #[arg(long)]
    no_trunc: bool,
    /// Only display network IDs
    #[arg(short = 'q', long)]
    quiet: bool,
}

/// `knarr network connect`.
#[derive(Debug, Args)]
pub struct ConnectArgs {
    /// Add network-scoped alias for the container
    #[arg(long, value_name = "strings")]
    alias: Vec<String>,
    /// IPv4 address
    #[arg(long, value_name = "string")]
    ip: Option<String>,
    /// IPv6 address
    #[arg(long, value_name = "string")]
    ip6: Option<String>,
    /// Network
    network: String,
    /// Container
    container: String,
}

/// Carries out a verb.
pub async fn execute(verb: NetworkVerb, context: &Context) -> Result<u8> {
    let client = &context.client;
    match verb {
        NetworkVerb::Create(args) => create(args, context).await,
        NetworkVerb::Ls(args) => list(args, context).await,
        NetworkVerb::Inspect(args) => container::inspect(args, Some("network"), context).await,
        NetworkVerb::Rm { force, networks } => {
            for_each(&networks, async |name| {
                match client.delete(&format!("/networks/{}", encode(name))).await {
                    Err(error) if force && error.status() == Some(404) => Ok(()),
                    gone => Ok(gone?),
                }
            })
            .await
        }
        NetworkVerb::Connect(args) => {
            let ipam = (args.ip.is_some() || args.ip6.is_some()).then(|| EndpointIpamConfig {
                ipv4_address: args.ip.unwrap_or_default(),
                ipv6_address: args.ip6.unwrap_or_default(),
                link_local_ips: None,
            });
            let endpoint = EndpointSettings {
                ipam_config: ipam,
                aliases: Some(args.alias),
                ..EndpointSettings::default()
            };
            let request = NetworkConnectRequest {
                container: args.container,
                endpoint_config: Some(endpoint),
            };
            client
                .send(
                    Method::POST,
                    &format!("/networks/{}/connect", encode(&args.network)),
                    Some(&request),
                )
                .await?;
            Ok(0)
        }
        NetworkVerb::Disconnect { force, network, container } => {
            let request = NetworkDisconnectRequest { container, force };
            client
                .send(
                    Method::POST,
                    &format!("/networks/{}/disconnect", encode(&network)),
                    Some(&request),
                )
                .await?;
            Ok(0)
        }
        NetworkVerb::Prune(args) => system::prune_networks(args, context).await,
    }
}

async fn create(args: CreateArgs, context: &Context) -> Result<u8> {
    if args.subnet.is_empty()
        && !(args.gateway.is_empty() && args.ip_range.is_empty() && args.aux_address.is_empty())
    {
        bail!("every ip-range or gateway must have a corresponding subnet");
    }
    let config = args
        .subnet
        .iter()
        .enumerate()
        .map(|(at, subnet)| IpamConfig {
            subnet: subnet.clone(),
            ip_range: args.ip_range.get(at).cloned().unwrap_or_default(),
            gateway: args.gateway.get(at).cloned().unwrap_or_default(),
            aux_addresses: (at == 0 && !args.aux_address.is_empty())
                .then(|| units::pairs(&args.aux_address)),
        })
        .collect();
    let request = NetworkCreateRequest {
        name: args.name,
        driver: args.driver,
        enable_ipv6: args.ipv6.then_some(true),
        ipam: Some(Ipam { driver: "default".into(), options: None, config: Some(config) }),
        internal: args.internal,
        attachable: args.attachable,
        options: Some(units::pairs(&args.opt)),
        labels: Some(units::pairs(&args.label)),
        ..NetworkCreateRequest::default()
    };
    let created: NetworkCreateResponse =
        context.client.json(Method::POST, "/networks/create", Some(&request)).await?;
    if !created.warning.is_empty() {
        errln!("WARNING: {}", created.warning);
    }
    outln!("{}", created.id);
    Ok(0)
}

async fn list(args: ListArgs, context: &Context) -> Result<u8> {
    let filters = filters(&args.filter)?;
    let query: Vec<(&str, &str)> =
        if args.filter.is_empty() { Vec::new() } else { vec![("filters", &filters)] };
    let mut networks: Vec<Network> = context.client.get(&path("/networks", &query)).await?;
    networks.sort_by(|a, b| a.name.cmp(&b.name));
    let labels = |labels: &Option<BTreeMap<String, String>>| {
        labels
            .iter()
            .flatten()
            .map(|(key, value)| format!("{key}={value}"))
            .collect::<Vec<_>>()
            .join(",")
    };
    let rows = networks
        .iter()
        .map(|network| {
            json!({
                "ID": if args.no_trunc { &network.id } else { output::short(&network.id) },
                "Name": network.name,
                "Driver": network.driver,
                "Scope": network.scope,
                "IPv4": network.enable_ipv4.to_string(),
                "IPv6": network.enable_ipv6.to_string(),
                "Internal": network.internal.to_string(),
                "Labels": labels(&network.labels),
                "CreatedAt": output::go_time(&network.created),
            })
        })
        .collect();
    let listing = Listing {
        default: "{{.ID}}\t{{.Name}}\t{{.Driver}}\t{{.Scope}}",
        headings: &[("ID", "NETWORK ID"), ("CreatedAt", "CREATED AT")],
        rows,
    };
    listing.print(args.format.as_deref(), args.quiet.then_some("ID"))?;
    Ok(0)
}

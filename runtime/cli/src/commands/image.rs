//! The verbs on images.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};
use http::Method;
use knarr_client::{Client, encode, path, read_lines};
use knarr_docker::{ImageDelete, ImageHistory, ImageSummary};
use knarr_model::Reference;
use serde_json::{Value, json};
use tokio_util::io::ReaderStream;

use super::{Context, auth, container, filters};
use crate::{
    output::{self, Listing},
    progress,
    say::shown,
};

/// Verbs that stand alone.
#[derive(Debug, Subcommand)]
pub enum ImageVerb {
    /// Download an image from a registry
    Pull(PullArgs),
    /// Load an image from a tar archive or STDIN
    Load(LoadArgs),
    /// List images
    Images(ListArgs),
    /// Create a tag TARGET_IMAGE that refers to SOURCE_IMAGE
    Tag(TagArgs),
    /// Remove one or more images
    Rmi(RemoveArgs),
    /// Show the history of an image
    History(HistoryArgs),
}

/// Verbs behind `image`.
#[derive(Debug, Subcommand)]
pub enum ImageGroup {
    /// Download an image from a registry
    Pull(PullArgs),
    /// Load an image from a tar archive or STDIN
    Load(LoadArgs),
    /// List images
    #[command(alias = "list")]
    Ls(ListArgs),
    /// Create a tag TARGET_IMAGE that refers to SOURCE_IMAGE
    Tag(TagArgs),
    /// Remove one or more images
    #[command(alias = "remove")]
    Rm(RemoveArgs),
    /// Show the history of an image
    History(HistoryArgs),
    /// Display detailed information on one or more images
    Inspect(container::InspectArgs),
    /// Remove unused images
    Prune(super::system::PruneArgs),
}

/// `knarr pull`.
#[derive(Debug, Args)]
pub struct PullArgs {
    /// Download all tagged images in the repository
    #[arg(short = 'a', long)]
    all_tags: bool,
    /// Set platform if server is multi-platform capable
    #[arg(long, value_name = "string", env = "DOCKER_DEFAULT_PLATFORM")]
    platform: Option<String>,
    /// Suppress verbose output
    #[arg(short = 'q', long)]
    quiet: bool,
    /// NAME[:TAG|@DIGEST]
    image: String,
}

/// `knarr load`.
#[derive(Debug, Args)]
pub struct LoadArgs {
    /// Read from tar archive file, instead of STDIN
    #[arg(short = 'i', long, value_name = "string")]
    input: Option<PathBuf>,
    /// Load only the given platform variant
    #[arg(long, value_name = "string")]
    platform: Option<String>,
    /// Suppress the load output
    #[arg(short = 'q', long)]
    quiet: bool,
}

/// `knarr images`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Show all images (default hides intermediate images)
    #[arg(short = 'a', long)]
    all: bool,
    /// Show digests
    #[arg(long)]
    digests: bool,
    /// Filter output based on conditions provided
    #[arg(short = 'f', long, value_name = "filter")]
    filter: Vec<String>,
    /// Format output using a Go template, "table TEMPLATE" or "json"
    #[arg(long, value_name = "string")]
    format: Option<String>,
    /// Don't truncate output
    #[arg(long)]
    no_trunc: bool,
    /// Only show image IDs
    #[arg(short = 'q', long)]
    quiet: bool,
    /// [REPOSITORY[:TAG]]
    repository: Option<String>,
}

/// `knarr tag`.
#[derive(Debug, Args)]
pub struct TagArgs {
    /// SOURCE_IMAGE[:TAG]
    source: String,
    /// TARGET_IMAGE[:TAG]
    target: String,
}

/// `knarr rmi`.
#[derive(Debug, Args)]
pub struct RemoveArgs {
    /// Force removal of the image
    #[arg(short = 'f', long)]
    force: bool,
    /// Do not delete untagged parents
    #[arg(long)]
    no_prune: bool,
    /// Images
    #[arg(required = true)]
    images: Vec<String>,
}

/// `knarr history`.
#[derive(Debug, Args)]
pub struct HistoryArgs {
    /// Format output using a Go template, "table TEMPLATE" or "json"
    #[arg(long, value_name = "string")]
    format: Option<String>,
    /// Print sizes and dates in human readable format
    #[arg(short = 'H', long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = true, action = clap::ArgAction::Set)]
    human: bool,
    /// Don't truncate output
    #[arg(long)]
    no_trunc: bool,
    /// Only show image IDs
    #[arg(short = 'q', long)]
    quiet: bool,
    /// Image
    image: String,
}

/// Carries out a verb that stands alone.
pub async fn execute(verb: ImageVerb, context: &Context) -> Result<u8> {
    match verb {
        ImageVerb::Pull(args) => pull_verb(args, context).await,
        ImageVerb::Load(args) => load(args, context).await,
        ImageVerb::Images(args) => list(args, context).await,
        ImageVerb::Tag(args) => tag(args, context).await,
        ImageVerb::Rmi(args) => remove(args, context).await,
        ImageVerb::History(args) => history(args, context).await,
    }
}

/// Carries out a verb behind `image`.
pub async fn execute_group(verb: ImageGroup, context: &Context) -> Result<u8> {
    match verb {
        ImageGroup::Pull(args) => pull_verb(args, context).await,
        ImageGroup::Load(args) => load(args, context).await,
        ImageGroup::Ls(args) => list(args, context).await,
        ImageGroup::Tag(args) => tag(args, context).await,
        ImageGroup::Rm(args) => remove(args, context).await,
        ImageGroup::History(args) => history(args, context).await,
        ImageGroup::Inspect(args) => container::inspect(args, Some("image"), context).await,
        ImageGroup::Prune(args) => super::system::prune_images(args, context).await,
    }
}

/// A reference as Docker shows it, with its tag.
pub fn familiar(image: &str) -> String {
    image.parse::<Reference>().map_or_else(|_| image.to_owned(), |reference| reference.familiar())
}

async fn pull_verb(args: PullArgs, context: &Context) -> Result<u8> {
    if args.all_tags {
        bail!("--all-tags is not supported: name the tags");
    }
    if !args.quiet
        && !args.image.contains('@')
        && !args.image.rsplit('/').next().is_some_and(|last| last.contains(':'))
    {
        outln!("Using default tag: latest");
    }
    let header = auth::header(&context.config, &args.image);
    pull(&context.client, &args.image, args.platform.as_deref(), header, args.quiet, false).await?;
    outln!(
        "{}",
        args.image
            .parse::<Reference>()
            .map_or_else(|_| args.image.clone(), |reference| reference.to_string())
    );
    Ok(0)
}

/// Pulls one image and shows how it goes.
pub async fn pull(
    client: &Client,
    image: &str,
    platform: Option<&str>,
    auth: Option<String>,
    quiet: bool,
    to_stderr: bool,
) -> Result<()> {
    let reference: Reference = image.parse()?;
    let name = format!("{}/{}", reference.domain(), reference.path());
    let tag = reference.tag_or_digest();
    let mut query = vec![("fromImage", name.as_str()), ("tag", tag.as_str())];
    query.extend(platform.map(|platform| ("platform", platform)));
    let client = match auth {
        Some(auth) => client.clone().with_header("x-registry-auth", &auth)?,
        None => client.clone(),
    };
    let messages = client.lines(Method::POST, &path("/images/create", &query)).await?;
    progress::show(messages, quiet, to_stderr).await
}

async fn load(args: LoadArgs, context: &Context) -> Result<u8> {
    let mut query = vec![("quiet", if args.quiet { "1" } else { "0" })];
    query.extend(args.platform.as_deref().map(|platform| ("platform", platform)));
    let path = path("/images/load", &query);
    let answer = match &args.input {
        Some(file) => {
            let file = tokio::fs::File::open(file)
                .await
                .with_context(|| format!("open {}", file.display()))?;
            context
                .client
                .upload(&path, "application/x-tar", ReaderStream::with_capacity(file, 256 * 1024))
                .await?
        }
        None if crate::terminal::stdin_is_terminal() => {
            bail!("requested load from stdin, but stdin is empty")
        }
        None => {
            let stdin = ReaderStream::with_capacity(tokio::io::stdin(), 256 * 1024);
            context.client.upload(&path, "application/x-tar", stdin).await?
        }
    };
    progress::show(read_lines(answer), args.quiet, false).await?;
    Ok(0)
}

async fn list(args: ListArgs, context: &Context) -> Result<u8> {
    let mut words = args.filter.clone();
    words.extend(args.repository.as_ref().map(|repository| format!("reference={repository}")));
    let filters = filters(&words)?;
    let mut query = vec![("all", if args.all { "1" } else { "0" })];
    query.extend((!words.is_empty()).then_some(("filters", filters.as_str())));
    let images: Vec<ImageSummary> = context.client.get(&path("/images/json", &query)).await?;
    let rows: Vec<Value> = images.iter().flat_map(|image| rows(image, &args)).collect();
    let listing = Listing {
        default: if args.digests {
            "{{.Repository}}\t{{.Tag}}\t{{.Digest}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}"
        } else {
            "{{.Repository}}\t{{.Tag}}\t{{.ID}}\t{{.CreatedSince}}\t{{.Size}}"
        },
        headings: &[("ID", "IMAGE ID"), ("CreatedSince", "CREATED"), ("CreatedAt", "CREATED AT")],
        rows,
    };
    listing.print(args.format.as_deref(), args.quiet.then_some("ID"))?;
    Ok(0)
}

/// A row a tag; one without a tag where there is none.
fn rows(image: &ImageSummary, args: &ListArgs) -> Vec<Value> {
    let none = "<none>".to_owned();
    let digest_of = |repository: &str| {
        image
            .repo_digests
            .iter()
            .filter_map(|name| name.split_once('@'))
            .find(|(name, _)| *name == repository)
            .map_or_else(|| none.clone(), |(_, digest)| digest.to_owned())
    };
    let mut names: Vec<(String, String)> = image
        .repo_tags
        .iter()
        .filter_map(|name| name.rsplit_once(':'))
        .map(|(repository, tag)| (repository.to_owned(), tag.to_owned()))
        .collect();
    if names.is_empty() {
        let repository = image
            .repo_digests
            .first()
            .and_then(|name| name.split_once('@'))
            .map(|(name, _)| name.to_owned());
        names.push((repository.unwrap_or_else(|| none.clone()), none.clone()));
    }
    names
        .into_iter()
        .map(|(repository, tag)| {
            json!({
                "ID": if args.no_trunc { &image.id } else { output::short(&image.id) },
                "Digest": digest_of(&repository),
                "Repository": repository,
                "Tag": tag,
                "CreatedSince": output::ago(image.created),
                "CreatedAt": output::time(image.created),
                "Size": output::size(image.size),
                "Containers": "N/A",
                "SharedSize": "N/A",
                "UniqueSize": "N/A",
                "VirtualSize": output::whole_size(image.size),
                "Workload": image.knarr.as_ref().map_or("", |knarr| knarr.workload.as_str()),
            })
        })
        .collect()
}

async fn tag(args: TagArgs, context: &Context) -> Result<u8> {
    let target: Reference = args.target.parse().context(format!(
        "Error parsing reference: {:?} is not a valid repository/tag",
        args.target
    ))?;
    if target.digest().is_some() {
        bail!("refusing to create a tag with a digest reference");
    }
    let repository = target.familiar_name();
    let query = [("repo", repository.as_str()), ("tag", target.tag().unwrap_or("latest"))];
    context.client.post(&path(&format!("/images/{}/tag", encode(&args.source)), &query)).await?;
    Ok(0)
}

async fn remove(args: RemoveArgs, context: &Context) -> Result<u8> {
    let flag = |on: bool| if on { "1" } else { "0" };
    let query = [("force", flag(args.force)), ("noprune", flag(args.no_prune))];
    let mut failed = false;
    for image in &args.images {
        let path = path(&format!("/images/{}", encode(image)), &query);
        match context
            .client
            .json::<Vec<ImageDelete>>(Method::DELETE, &path, knarr_client::NOTHING)
            .await
        {
            Ok(deleted) => print_deleted(&deleted),
            Err(error) => {
                errln!("{error}");
                failed |= !(args.force && error.status() == Some(404));
            }
        }
    }
    Ok(failed.into())
}

/// `Untagged: …` and `Deleted: …` lines.
pub fn print_deleted(deleted: &[ImageDelete]) {
    for one in deleted {
        match one.deleted.is_empty() {
            true => outln!("Untagged: {}", shown(&one.untagged)),
            false => outln!("Deleted: {}", shown(&one.deleted)),
        }
    }
}

async fn history(args: HistoryArgs, context: &Context) -> Result<u8> {
    let steps: Vec<ImageHistory> =
        context.client.get(&format!("/images/{}/history", encode(&args.image))).await?;
    let rows = steps
        .iter()
        .map(|step| {
            let by = step.created_by.replace('\t', " ");
            json!({
                "ID": if args.no_trunc || step.id == "<missing>" { &step.id } else { output::short(&step.id) },
                "CreatedSince": match args.human {
                    true if step.created <= 0 => "N/A".into(),
                    true => output::ago(step.created),
                    false => output::time(step.created),
                },
                "CreatedAt": output::time(step.created),
                "CreatedBy": if args.no_trunc { by } else { output::ellipsis(&by, 45) },
                "Size": if args.human { output::size(step.size) } else { step.size.to_string() },
                "Comment": step.comment,
            })
        })
        .collect();
    let listing = Listing {
        default: "{{.ID}}\t{{.CreatedSince}}\t{{.CreatedBy}}\t{{.Size}}\t{{.Comment}}",
        headings: &[
            ("ID", "IMAGE"),
            ("CreatedSince", "CREATED"),
            ("CreatedBy", "CREATED BY"),
            ("CreatedAt", "CREATED AT"),
        ],
        rows,
    };
    listing.print(args.format.as_deref(), args.quiet.then_some("ID"))?;
    Ok(0)
}

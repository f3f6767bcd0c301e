//! `pull`: fetches images from a registry into the store.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use clap::Args;
use serde::Serialize;

use super::failures::{FailedItemJson, Failures};
use super::reference_list::{self, ListedReference};
use super::{Context, REFERENCE, output, progress, suggestions};
use crate::image::{LayerDigest, ManifestDigest, Reference};
use crate::pipeline::{ProgressSink, PullJob, StoredImage, pull, read_manifest};
use crate::registry::{Registry, RegistryOptions};
use crate::store::Store;

const EXAMPLES: &str = "\
Examples:
  Fetch an image from Docker Hub:
    rcx-imagefs pull python:3.12
  Fetch an image for another platform from another registry:
    rcx-imagefs pull --platform linux/arm64 registry.example:5000/lab/gcc:13
  Fetch the images of a list, and print only their names:
    rcx-imagefs pull --quiet --from /etc/rcx-imagefs/images.txt";

/// Fetch images from a registry, verify and index them
///
/// Prints NAME@DIGEST for each image. Blobs that are in the store are not fetched again, and an interrupted download is
/// resumed. To load an image from a file, use `load`.
///
/// With several references, the command goes on after a failure, reports each one, and exits with 2 at the end.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct PullArgs {
    /// The image.
    #[arg(help = REFERENCE, required_unless_present = "from", value_name = "REF")]
    references: Vec<String>,
    /// Also fetch the images that this file lists, one reference per line; `#` starts a comment, `-` is standard input
    #[arg(long, value_name = "FILE")]
    from: Vec<PathBuf>,
    /// Use plain HTTP (implied for registries on loopback)
    #[arg(long)]
    plain_http: bool,
    /// Platform to choose from a multi-platform image [default: this host's platform]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    platform: Option<String>,
    /// Accept an image that is for another platform only, with a warning
    #[arg(long)]
    any_platform: bool,
    /// Also decode the layers, so that the kernel reads them without the daemon; takes three to four times the disk space
    #[arg(long)]
    plain: bool,
    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// An image in the output of `pull --json` and `load --json`.
#[derive(Debug, Serialize)]
pub(super) struct PulledJson {
    name: String,
    digest: String,
    tags: Vec<String>,
    layers: usize,
    layers_fetched: usize,
    bytes_fetched: u64,
    /// Number of layers that have a plain layer.
    plain_layers: usize,
}

impl PulledJson {
    /// The image as the commands print it without `--json`.
    pub(super) fn line(&self) -> String {
        format!("{}@{}", self.name, self.digest)
    }

    pub(super) fn new(context: &Context, store: &Store, image: &StoredImage) -> Self {
        Self {
            name: image.name.familiar(context.default_registry()),
            digest: image.digest.to_string(),
            tags: image.tags.iter().map(ToString::to_string).collect(),
            layers: image.layers,
            layers_fetched: image.layers_fetched,
            bytes_fetched: image.bytes_fetched,
            plain_layers: plain_layers(store, &image.digest),
        }
    }
}

/// The number of layers of an image that have a plain layer.
fn plain_layers(store: &Store, image: &ManifestDigest) -> usize {
    let Ok(manifest) = read_manifest(store, image) else { return 0 };
    let layers = manifest.layers().iter().map(|layer| LayerDigest::new(layer.digest));
    layers.filter(|layer| store.has_plain(layer).unwrap_or(false)).count()
}

/// An item in the output of `pull --json` and `load --json`.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(super) enum PulledItem {
    Image(PulledJson),
    Failed(FailedItemJson),
}

/// Starts the async runtime for registry requests.
pub(super) fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("async runtime")
}

pub(super) fn run(context: &Context, args: &PullArgs) -> anyhow::Result<()> {
    let platform = context.config.platform(args.platform.as_deref())?;
    let mut references: Vec<ListedReference> =
        args.references.iter().map(|text| ListedReference::argument(text)).collect();
    for file in &args.from {
        let listed = reference_list::read(file)?;
        if listed.is_empty() {
            tracing::warn!("{} lists no image", file.display());
        }
        references.extend(listed);
    }
    context.check_store()?;
    let options = RegistryOptions { platform, ..context.registry_options(args.plain_http)? };
    // One client for all references: they share connections and tokens.
    let registry = Arc::new(Registry::new(options)?);
    let runtime = runtime()?;
    let mut failures = Failures::new(references.len());
    let mut items = Vec::new();
    for reference in &references {
        let pulled = runtime.block_on(pull_one(context, args, &registry, reference));
        items.push(match pulled.with_context(|| format!("pull {reference}")) {
            Ok(image) => PulledItem::Image(image),
            Err(error) => PulledItem::Failed(failures.add(reference.text(), error)),
        });
    }
    // Do not wait for a thread that waits for another process to finish a layer.
    runtime.shutdown_background();
    if args.json && !failures.is_single() {
        output::json(&items)?;
    }
    failures.finish("pulled")
}

/// Fetches one image, and prints its name unless the command prints JSON.
async fn pull_one(
    context: &Context,
    args: &PullArgs,
    registry: &Arc<Registry>,
    listed: &ListedReference,
) -> anyhow::Result<PulledJson> {
    let reference = Reference::parse(listed.text(), context.default_registry())?;
    let resolved = match registry.resolve(&reference).await {
        Ok(resolved) => resolved,
        Err(error) => return Err(suggestions::for_registry(registry, &reference, error).await),
    };
    // Create a store only when there is something to store: its path may be mistyped.
    let store = context.make_store()?;
    let progress = if args.quiet { ProgressSink::none() } else { progress::bars(listed.text()) };
    let job = PullJob {
        store: store.clone(),
        registry: Arc::clone(registry),
        any_platform: args.any_platform,
        plain: context.makes_plain(args.plain),
        damaged: Arc::default(),
        progress,
    };
    let image = pull(&job, &reference, resolved).await?;
    context.refresh(&store);
    context.make_tree_images(&store, [image.digest]);
    let image = PulledJson::new(context, &store, &image);
    if !args.json {
        output::line(image.line())?;
    }
    Ok(image)
}

//! `pull`: fetches images from a registry into the store.

use std::sync::Arc;

use anyhow::Context as _;
use clap::Args;
use serde::Serialize;

use super::error::ErrorJson;
use super::{Context, REFERENCE, output};
use crate::image::Reference;
use crate::pipeline::{PullJob, StoredImage, pull};
use crate::registry::{PlainHttp, Registry, RegistryOptions};
use crate::store::Store;

const EXAMPLES: &str = "\
Examples:
  Fetch an image from Docker Hub:
    rcx-imagefs pull python:3.12
  Fetch an image for another platform from another registry:
    rcx-imagefs pull --platform linux/arm64 registry.example:5000/lab/gcc:13";

/// Fetch images from a registry, verify and index them
///
/// Prints NAME@DIGEST for each image. Blobs that are in the store are not fetched again, and an interrupted download is
/// resumed. To load an image from a file, use `load`.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct PullArgs {
    /// The image.
    #[arg(help = REFERENCE, required = true, value_name = "REF")]
    references: Vec<String>,
    /// Use plain HTTP (implied for registries on loopback)
    #[arg(long)]
    plain_http: bool,
    /// Platform to choose from a multi-platform image [default: this host's platform]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    platform: Option<String>,
    /// Accept an image that is for another platform only, with a warning
    #[arg(long)]
    any_platform: bool,
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
}

impl PulledJson {
    pub(super) fn new(context: &Context, image: &StoredImage) -> Self {
        Self {
            name: image.name.familiar(context.default_registry()),
            digest: image.digest.to_string(),
            tags: image.tags.iter().map(ToString::to_string).collect(),
            layers: image.layers,
            layers_fetched: image.layers_fetched,
            bytes_fetched: image.bytes_fetched,
        }
    }
}

/// An item in the output of `pull --json`.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum PulledItem<'a> {
    Image(PulledJson),
    Failed(FailedPullJson<'a>),
}

/// The reference at which `pull` of several images stopped.
#[derive(Debug, Serialize)]
struct FailedPullJson<'a> {
    reference: &'a str,
    error: String,
    code: &'static str,
}

impl<'a> FailedPullJson<'a> {
    fn new(reference: &'a str, error: &anyhow::Error) -> Self {
        let error = ErrorJson::new(error);
        Self { reference, error: error.message, code: error.code }
    }
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
    let references: Vec<Reference> = args
        .references
        .iter()
        .map(|text| {
            Reference::parse(text, context.default_registry()).with_context(|| format!("pull {text}"))
        })
        .collect::<anyhow::Result<_>>()?;
    Store::exists(&context.store)?;
    let runtime = runtime()?;
    let mut pulled = Vec::new();
    let result = runtime.block_on(async {
        for (reference, text) in references.iter().zip(&args.references) {
            let plain_http = args.plain_http
                || reference
                    .name
                    .host()
                    .is_some_and(|host| context.config.plain_http.iter().any(|plain| plain == host));
            let plain_http = if plain_http { PlainHttp::Always } else { PlainHttp::Loopback };
            let options =
                RegistryOptions { plain_http, platform: platform.clone(), ..RegistryOptions::default() };
            let at = || format!("pull {text}");
            let registry = Arc::new(Registry::new(options).with_context(at)?);
            let resolved = registry.resolve(reference).await.with_context(at)?;
            // Create a store only when there is something to store: its path may be mistyped.
            let store = context.make_store()?;
            let job = PullJob {
                store: store.clone(),
                registry,
                any_platform: args.any_platform,
                progress: output::progress(),
            };
            let image = pull(&job, reference, resolved).await.with_context(at)?;
            context.refresh(&store);
            if !args.json {
                output::line(format!(
                    "{}@{}",
                    image.name.familiar(context.default_registry()),
                    image.digest
                ))?;
            }
            pulled.push(PulledItem::Image(PulledJson::new(context, &image)));
        }
        anyhow::Ok(())
    });
    // Do not wait for a thread that waits for another process to finish a layer.
    runtime.shutdown_background();
    if args.json && (result.is_ok() || !pulled.is_empty()) {
        // The images before the failure are in the store; the error is the last item.
        if let (Err(error), Some(reference)) = (&result, args.references.get(pulled.len())) {
            pulled.push(PulledItem::Failed(FailedPullJson::new(reference, error)));
        }
        output::json(&pulled)?;
    }
    result
}

//! `copy`: copies an image from one registry to another.

use anyhow::Context as _;
use clap::Args;

use super::push::{self, DESTINATION};
use super::{Context, REFERENCE, progress, pull, suggestions};
use crate::image::Reference;
use crate::pipeline::{self, ProgressSink, PushedImage};
use crate::registry::{Registry, RegistryOptions};

const EXAMPLES: &str = "\
Examples:
  Copy an image of Docker Hub, with all of its platforms, to a private registry:
    rcx-imagefs copy python:3.12 registry.example/mirror/python:3.12
  Copy it for one platform only:
    rcx-imagefs copy --platform linux/amd64 python:3.12 registry.example/mirror/python";

/// Copy an image from one registry to another
///
/// Prints NAME@DIGEST; the digest is that of the source. An index of images for several platforms is copied whole, with everything
/// that it lists. The store is not used: the blobs pass through memory, and their digests are checked. Blobs that the destination has
/// are not copied. To send an image of the store, use `push`.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct CopyArgs {
    /// The image.
    #[arg(help = REFERENCE, value_name = "SRC")]
    source: String,
    /// The name at the other registry.
    #[arg(help = format!("{DESTINATION} [default tag: that of SRC]"), value_name = "DEST")]
    destination: String,
    /// Use plain HTTP for both registries; `plain-http` in the configuration lists single ones (implied on loopback)
    #[arg(long)]
    plain_http: bool,
    /// Copy the image for one platform only
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    platform: Option<String>,
    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

pub(super) fn run(context: &Context, args: &CopyArgs) -> anyhow::Result<()> {
    let copied = copy_image(context, args).with_context(|| format!("copy {}", args.source))?;
    push::print(context, &copied, args.json)
}

fn copy_image(context: &Context, args: &CopyArgs) -> anyhow::Result<PushedImage> {
    let source = Reference::parse(&args.source, context.default_registry())?;
    // An image that is copied by its digest gets no tag.
    let tag = source.digest.is_none().then(|| source.tag_or_latest());
    let (name, tag) = context.destination(&args.destination, tag.or_else(|| source.tag.clone()))?;
    let mut options = context.registry_options(args.plain_http)?;
    if let Some(platform) = &args.platform {
        options = RegistryOptions { platform: context.config.platform(Some(platform))?, ..options };
    }
    let registry = Registry::new(options)?;
    let progress = if args.quiet { ProgressSink::none() } else { progress::bars(&args.source) };
    pull::runtime()?.block_on(async {
        let outgoing = match registry.collect(&source, &name, tag, args.platform.is_some()).await {
            Ok(outgoing) => outgoing,
            Err(error) => return Err(suggestions::for_registry(&registry, &source, error).await),
        };
        Ok(pipeline::push(&registry, outgoing, &progress).await?)
    })
}

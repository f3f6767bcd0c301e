//! `push`: sends an image of the store to a registry.

use anyhow::Context as _;
use clap::Args;
use serde::Serialize;

use super::find::FoundImage;
use super::{Context, STORED, candidates, error, output, progress, pull};
use crate::error::ErrorCode;
use crate::image::{Name, Reference, Tag};
use crate::pipeline::{ProgressSink, PushedImage, outgoing_image, push};
use crate::registry::{BlobDelivery, Registry};

const EXAMPLES: &str = "\
Examples:
  Push an image to the registry that its name has:
    rcx-imagefs push registry.example/lab/gcc:13
  Push it under another name:
    rcx-imagefs push gcc:13 registry.example/lab/gcc:exam";

/// Help of the destination of a push.
pub(super) const DESTINATION: &str = "Name at the registry: [HOST[:PORT]/]NAME[:TAG]";

/// Send an image of the store to a registry
///
/// Prints NAME@DIGEST; the digest is that of the image in the store. Blobs that the registry has are not sent, so an interrupted push
/// goes on where it stopped. The tag is set last. To copy an image from one registry to another, with all of its platforms, use `copy`.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct PushArgs {
    /// The image.
    #[arg(help = STORED, add = candidates::images(), value_name = "REF")]
    reference: String,
    /// The name at the registry [default: REF; without a tag, the tag of REF]
    #[arg(value_name = "DEST")]
    destination: Option<String>,
    /// Use plain HTTP (implied for registries on loopback)
    #[arg(long)]
    plain_http: bool,
    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// The output of `push --json` and `copy --json`.
#[derive(Debug, Serialize)]
pub(super) struct PushedJson {
    name: String,
    digest: String,
    /// The tag that was set; `null` for an image that is pushed by its digest only.
    tag: Option<String>,
    /// Number of manifests and indexes.
    manifests: usize,
    blobs: usize,
    blobs_sent: usize,
    /// Number of blobs that the registry took from another of its repositories.
    blobs_mounted: usize,
    bytes_sent: u64,
}

impl PushedJson {
    fn new(context: &Context, image: &PushedImage) -> Self {
        let (blobs_sent, bytes_sent) = image.delivered(BlobDelivery::Sent);
        Self {
            name: context.familiar(&image.name),
            digest: image.digest.to_string(),
            tag: image.tag.as_ref().map(Tag::to_string),
            manifests: image.manifests,
            blobs: image.blobs.len(),
            blobs_sent,
            blobs_mounted: image.delivered(BlobDelivery::Mounted).0,
            bytes_sent,
        }
    }
}

/// Prints an image that was pushed.
pub(super) fn print(context: &Context, image: &PushedImage, json: bool) -> anyhow::Result<()> {
    let pushed = PushedJson::new(context, image);
    match json {
        true => output::json(&pushed),
        false => output::line(format!("{}@{}", pushed.name, pushed.digest)),
    }
}

impl Context {
    /// Parses the destination of a push. Without a tag, it gets `tag`.
    pub(super) fn destination(&self, text: &str, tag: Option<Tag>) -> anyhow::Result<(Name, Option<Tag>)> {
        let destination = Reference::parse(text, self.default_registry())?;
        if destination.digest.is_some() {
            let message = format!("`{text}` has a digest; a destination consists of NAME and TAG");
            let hint = "the digest of an image does not change when it is pushed";
            return Err(error::fail_with_hint(ErrorCode::Reference, message, hint));
        }
        Ok((destination.name, destination.tag.or(tag)))
    }
}

pub(super) fn run(context: &Context, args: &PushArgs) -> anyhow::Result<()> {
    let pushed = push_image(context, args).with_context(|| format!("push {}", args.reference))?;
    print(context, &pushed, args.json)
}

fn push_image(context: &Context, args: &PushArgs) -> anyhow::Result<PushedImage> {
    let store = context.open_store()?;
    // The lease keeps `gc` from freeing the blobs while they are read.
    let _lease = store.lease(None)?;
    let FoundImage { image, tag } = context.find(&store, &args.reference)?;
    let (name, tag) = match &args.destination {
        Some(destination) => context.destination(destination, tag)?,
        None if image.name.host().is_none() => {
            let message = format!("{} is a name without a registry", context.familiar(&image.name));
            let hint = format!("name the destination: `rcx-imagefs push {} HOST/NAME:TAG`", args.reference);
            return Err(error::fail_with_hint(ErrorCode::Reference, message, hint));
        }
        None => (image.name.clone(), tag),
    };
    let outgoing = outgoing_image(&store, &image, &name, tag)?;
    if let Some(index) = image.index {
        tracing::warn!(
            "{} was chosen for its platform from the index {index}; only this image is pushed, under its own digest {} (`copy` \
             copies an index with all of its images)",
            args.reference,
            image.digest
        );
    }
    let registry = Registry::new(context.registry_options(args.plain_http)?)?;
    let progress = if args.quiet { ProgressSink::none() } else { progress::bars(&args.reference) };
    Ok(pull::runtime()?.block_on(push(&registry, outgoing, &progress))?)
}

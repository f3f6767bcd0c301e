//! `load`: loads images from a file or directory into the store.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;

use super::failures::Failures;
use super::pull::{PulledItem, PulledJson};
use super::{Context, output, progress};
use crate::image::Reference;
use crate::import::Archive;
use crate::pipeline::{LoadJob, LoadedImages, load};

const EXAMPLES: &str = "\
Examples:
  Load an image that docker has saved:
    docker save lab/gcc:13 -o gcc.tar && rcx-imagefs load gcc.tar
  Load an OCI layout under a name:
    rcx-imagefs load ./layout --name lab/gcc:13";

/// Load images from an OCI layout (directory or tar) or a `docker save` archive
///
/// Prints NAME@DIGEST for each image. The archive may be compressed with gzip, zstd, xz or bzip2. An image without a name is loaded as
/// `unnamed@DIGEST`. An image that fails does not affect the others; the command then exits with 2 at the end. A tag that another image of the store has moves only with --name or --replace. To fetch an image from a registry, use `pull`.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct LoadArgs {
    /// OCI layout directory, OCI archive, or `docker save` archive
    path: PathBuf,
    /// Name of the images, instead of the names in the archive; without TAG, the archive's tags are kept
    #[arg(long, value_name = "NAME[:TAG]")]
    name: Option<String>,
    /// Move tags that other images have to the images of the archive
    #[arg(long)]
    replace: bool,
    /// Platform to choose from a multi-platform image [default: this host's platform]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    platform: Option<String>,
    /// Accept an image that is for another platform only, with a warning
    #[arg(long)]
    any_platform: bool,
    /// Also decode the layers, so that the kernel reads them without the daemon; takes three to four times the disk space
    #[arg(long)]
    plain: bool,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

pub(super) fn run(context: &Context, args: &LoadArgs) -> anyhow::Result<()> {
    let platform = context.config.platform(args.platform.as_deref())?;
    let name = args.name.as_deref().map(Reference::from_archive).transpose()?;
    let at = || format!("load {}", args.path.display());
    context.check_store()?;
    let mut archive = Archive::open(&args.path, &platform).with_context(at)?;
    let refused = archive.take_refused();
    // Create a store only when there is something to store: its path may be mistyped.
    let store = context.make_store()?;
    let job = LoadJob {
        store: store.clone(),
        name,
        replace: args.replace,
        any_platform: args.any_platform,
        plain: context.makes_plain(args.plain),
        progress: progress::bars(&args.path.display().to_string()),
    };
    let LoadedImages { stored, failed } = load(&job, &archive).with_context(at)?;
    context.refresh(&store);
    context.make_tree_images(&store, stored.iter().map(|image| image.digest));
    let mut items = Vec::new();
    for image in &stored {
        let image = PulledJson::new(context, &store, image);
        if !args.json {
            output::line(image.line())?;
        }
        items.push(PulledItem::Image(image));
    }
    let mut failures = Failures::new(stored.len() + failed.len() + refused.len());
    let failed = failed.into_iter().map(|image| (image.label, anyhow::Error::from(image.error)));
    let refused = refused.into_iter().map(|image| (image.label, anyhow::Error::from(image.error)));
    for (label, error) in failed.chain(refused) {
        let place = if failures.is_of_one() { at() } else { format!("{}: {label}", at()) };
        items.push(PulledItem::Failed(failures.add(&label, error.context(place))));
    }
    if args.json && !failures.is_single() {
        output::json(&items)?;
    }
    failures.finish("loaded")
}

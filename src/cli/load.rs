//! `load`: from a file or directory into the store.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;

use super::pull::ArrivedJson;
use super::{Context, output};
use crate::image::Reference;
use crate::import::Archive;
use crate::pipeline::{Load, load};
use crate::store::Store;

/// Take images from an OCI layout (directory or tar) or a `docker save` archive
///
/// Prints NAME@DIGEST for each. `pull` takes an image from a registry instead.
#[derive(Debug, Args)]
pub(super) struct LoadArgs {
    /// OCI layout directory, OCI archive, or `docker save` archive
    path: PathBuf,
    /// Name for the images, in place of those in the archive; without a tag, the archive's tags stay
    #[arg(long, value_name = "NAME[:TAG]")]
    name: Option<String>,
    /// Platform to choose from a multi-platform image [default: this host's]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    platform: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(context: &Context, args: &LoadArgs) -> anyhow::Result<()> {
    let platform = context.config.platform(args.platform.as_deref())?;
    let name = args.name.as_deref().map(Reference::given).transpose()?;
    let at = || format!("load {}", args.path.display());
    Store::exists(&context.store)?;
    let archive = Archive::open(&args.path, &platform).with_context(at)?;
    // Not before there is something to store: the path of a new store may be mistyped.
    let store = context.make_store()?;
    let job = Load { store: store.clone(), name, progress: output::progress() };
    let arrived = load(&job, &archive).with_context(at)?;
    context.refresh(&store);
    if args.json {
        return output::json(&arrived.iter().map(|one| ArrivedJson::new(context, one)).collect::<Vec<_>>());
    }
    for one in &arrived {
        output::line(format!("{}@{}", one.name.familiar(context.default_registry()), one.digest))?;
    }
    Ok(())
}

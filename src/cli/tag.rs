//! `tag`: gives an image of the store another name.

use anyhow::Context as _;
use clap::Args;
use serde::Serialize;

use super::{Context, STORED, candidates, error, output};
use crate::error::ErrorCode;
use crate::image::{Descriptor, ManifestDigest, Reference};

const EXAMPLES: &str = "\
Examples:
  Give an image the name that exercises use:
    rcx-imagefs tag python:3.12 lab/python:exam
  Go back to an earlier image:
    rcx-imagefs tag sha256:4f90ab lab/python:exam";

/// Give an image of the store another name or tag
///
/// The new name refers to the same image; nothing is copied, and both names keep it. Without a tag, the new name gets the tag `latest`. A
/// tag that another image has moves, with a warning; that image stays in the store under its digest. Without a host, the name is as
/// with `load --name`: it belongs to no registry, and `pull` does not replace it.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct TagArgs {
    /// The image.
    #[arg(help = STORED, add = candidates::images(), value_name = "REF")]
    reference: String,
    /// The new name.
    #[arg(help = "New name: [HOST[:PORT]/]NAME[:TAG]", value_name = "NAME[:TAG]")]
    name: String,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Serialize)]
struct TaggedJson {
    name: String,
    tag: String,
    digest: String,
    /// The digest that had the tag before, if it was another one.
    moved_from: Option<String>,
}

pub(super) fn run(context: &Context, args: &TagArgs) -> anyhow::Result<()> {
    let new = Reference::from_archive(&args.name).with_context(|| format!("tag {}", args.name))?;
    if new.digest.is_some() {
        let message = format!("`{}` has a digest; a new name consists of NAME and TAG", args.name);
        return Err(error::fail(ErrorCode::Reference, message));
    }
    let store = context.change_store()?;
    // The lease keeps `gc` from freeing the image if another process removes its last name meanwhile.
    let _lease = store.lease(None)?;
    let image = context.find(&store, &args.reference)?.image;
    let tag = new.tag_or_latest();
    let before: Option<ManifestDigest> = store.refs()?.tagged(&new.name, &tag).map(|image| image.digest);
    let moved_from = before.filter(|before| *before != image.digest);
    let manifest = Descriptor {
        platform: image.platform,
        ..Descriptor::new(&image.media_type, image.digest.digest(), image.size)
    };
    store.tag(&new.name, Some(&tag), &manifest, image.index)?;
    let name = context.familiar(&new.name);
    if let Some(from) = moved_from {
        tracing::warn!("tag {name}:{tag} moves from {from} to {}", image.digest);
    }
    context.refresh(&store);
    if args.json {
        return output::json(&TaggedJson {
            name,
            tag: tag.to_string(),
            digest: image.digest.to_string(),
            moved_from: moved_from.map(|digest| digest.to_string()),
        });
    }
    output::line(format!("{name}:{tag}@{}", image.digest))
}

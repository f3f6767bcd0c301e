//! `rm`: takes a tag or an image out of the store's list.

use clap::Args;
use serde::Serialize;

use super::{Context, REFERENCE, output};
use crate::store::Store;

/// Remove a tag, or with a digest an image and all of its tags
///
/// What an image is made of stays on disk until `gc`. When a tag was an image's last, the image goes with it, unless
/// --keep is given.
#[derive(Debug, Args)]
pub(super) struct RmArgs {
    /// The image.
    #[arg(help = REFERENCE, required = true, value_name = "REF")]
    references: Vec<String>,
    /// Keep an image that has no tag left; it stays in the mount under its digest
    #[arg(long)]
    keep: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct RemovedJson {
    name: String,
    digest: String,
    untagged: Vec<String>,
    removed: bool,
}

pub(super) fn run(context: &Context, args: &RmArgs) -> anyhow::Result<()> {
    let store = context.open_store()?;
    // One that is not there keeps all.
    for text in &args.references {
        context.find(&store, text)?;
    }
    let done: anyhow::Result<Vec<RemovedJson>> =
        args.references.iter().map(|text| remove(context, &store, args, text)).collect();
    // What went before an error shows in the mount too.
    context.refresh(&store);
    let done = done?;
    if args.json { output::json(&done) } else { Ok(()) }
}

fn remove(context: &Context, store: &Store, args: &RmArgs, text: &str) -> anyhow::Result<RemovedJson> {
    let found = context.find(store, text)?;
    let name = &found.image.name;
    let (digest, untagged, removed) = match found.tag {
        // Another process may move the tag meanwhile: what it stands for when it goes is what is told.
        Some(tag) => match store.untag(name, &tag, args.keep)? {
            Some(gone) => (gone.digest, vec![tag], gone.removed),
            None => anyhow::bail!("image {name}:{tag} is not in the store any more"),
        },
        None => (found.image.digest, found.image.tags.clone(), store.remove_image(name, found.image.digest)?),
    };
    let untagged: Vec<String> = untagged.iter().map(ToString::to_string).collect();
    let name = context.familiar(name);
    if !args.json {
        for tag in &untagged {
            output::line(format!("untagged {name}:{tag}"))?;
        }
        if removed {
            output::line(format!("removed {name}@{digest}"))?;
        }
    }
    Ok(RemovedJson { name, digest: digest.to_string(), untagged, removed })
}

//! `rm`: removes a tag or an image from the store.

use clap::Args;
use serde::Serialize;

use super::failures::{FailedItemJson, Failures};
use super::{Context, STORED, candidates, error, output};
use crate::error::ErrorCode;
use crate::store::Store;

const EXAMPLES: &str = "\
Examples:
  Remove an image, and free its disk space:
    rcx-imagefs rm python:3.12 && rcx-imagefs gc
  Remove a tag, but keep the image under its digest:
    rcx-imagefs rm --keep python:3.12";

/// Remove a tag, or an image with all its tags
///
/// A reference with a tag removes the tag, and the image too if that was its last tag, unless --keep is given. A reference
/// with a digest removes the image and all its tags. The image's blobs stay on disk until `gc`.
///
/// With several references, the command goes on after a failure, reports each one, and exits with 2 at the end.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct RmArgs {
    /// The image.
    #[arg(help = STORED, add = candidates::images(), required = true, value_name = "REF")]
    references: Vec<String>,
    /// Keep an image that loses its last tag: it stays in the mount under its digest
    #[arg(long)]
    keep: bool,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Serialize)]
struct RemovedImageJson {
    name: String,
    digest: String,
    untagged: Vec<String>,
    removed: bool,
}

/// An item in the output of `rm --json`.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum RemovedItem {
    Removed(RemovedImageJson),
    Failed(FailedItemJson),
}

pub(super) fn run(context: &Context, args: &RmArgs) -> anyhow::Result<()> {
    let store = context.change_store()?;
    let mut failures = Failures::new(args.references.len());
    let items = args.references.iter().map(|text| match remove(context, &store, args, text) {
        Ok(removed) => RemovedItem::Removed(removed),
        Err(error) => RemovedItem::Failed(failures.add(text, error)),
    });
    let items: Vec<RemovedItem> = items.collect();
    // The mount must also show the removals beside a failure.
    context.refresh(&store);
    if args.json && !failures.is_single() {
        output::json(&items)?;
    }
    failures.finish("removed")
}

fn remove(context: &Context, store: &Store, args: &RmArgs, text: &str) -> anyhow::Result<RemovedImageJson> {
    let found = context.find_one_name(store, text)?;
    let name = &found.image.name;
    let (digest, untagged, removed) = match found.tag {
        // Another process may move the tag meanwhile, so take the reported digest from the removal itself.
        Some(tag) => match store.untag(name, &tag, args.keep)? {
            Some(removal) => (removal.digest, vec![tag], removal.removed),
            None => {
                let message = format!("another process has removed the tag {name}:{tag}");
                return Err(error::fail(ErrorCode::NoImage, message));
            }
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
    Ok(RemovedImageJson { name, digest: digest.to_string(), untagged, removed })
}

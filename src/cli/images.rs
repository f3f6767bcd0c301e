//! `images`: lists the images in the store.

use clap::Args;
use serde::Serialize;

use super::error::ErrorJson;
use super::{Context, output};
use crate::pipeline::read_manifest;

const EXAMPLES: &str = "\
Examples:
  List the images:
    rcx-imagefs images
  Print the references of all images that have a tag:
    rcx-imagefs images --json | jq -r '.[] | .name + \":\" + .tags[]'";

/// List the images in the store
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct ImagesArgs {
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Serialize)]
struct ImageJson {
    name: String,
    tags: Vec<String>,
    digest: String,
    /// Number of layers; `None` if the manifest cannot be read.
    layers: Option<usize>,
    /// Total size of the blobs in bytes. A shared layer counts for each image.
    size: Option<u64>,
    /// Why the manifest cannot be read.
    error: Option<String>,
    /// The code of `error`.
    code: Option<&'static str>,
}

pub(super) fn run(context: &Context, args: &ImagesArgs) -> anyhow::Result<()> {
    let store = context.open_store()?;
    let images: Vec<ImageJson> = store
        .refs()?
        .images
        .into_iter()
        .map(|image| {
            let manifest = read_manifest(&store, &image.digest);
            let size = manifest.as_ref().ok().map(|manifest| {
                manifest.layers().iter().map(|layer| layer.size).sum::<u64>() + manifest.config().size
            });
            let error = manifest.as_ref().err().map(|error| ErrorJson::of(error));
            ImageJson {
                name: context.familiar(&image.name),
                tags: image.tags.iter().map(ToString::to_string).collect(),
                digest: image.digest.to_string(),
                layers: manifest.as_ref().ok().map(|manifest| manifest.layers().len()),
                size,
                code: error.as_ref().map(|error| error.code),
                error: error.map(|error| error.message),
            }
        })
        .collect();
    if args.json {
        return output::json(&images);
    }
    let rows: Vec<Vec<String>> = images
        .iter()
        .map(|image| {
            vec![
                image.name.clone(),
                if image.tags.is_empty() { "-".to_owned() } else { image.tags.join(",") },
                image.digest.clone(),
                image.layers.map_or("damaged".to_owned(), |layers| layers.to_string()),
                image.size.map_or("-".to_owned(), output::size),
            ]
        })
        .collect();
    output::table(&["NAME", "TAGS", "DIGEST", "LAYERS", "SIZE"], &rows)
}

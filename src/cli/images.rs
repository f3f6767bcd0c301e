//! `images`: lists the images in the store.

use clap::Args;
use serde::Serialize;

use super::{Context, output};
use crate::pipeline::ImageSummary;

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
    code: Option<String>,
}

pub(super) fn run(context: &Context, args: &ImagesArgs) -> anyhow::Result<()> {
    let images: Vec<ImageJson> = context
        .catalog()?
        .images()?
        .into_iter()
        .map(|ImageSummary { record, layers, blob_bytes, failure }| {
            let (code, error) = failure.map(|failure| (failure.code, failure.message)).unzip();
            ImageJson {
                name: context.familiar(&record.name),
                tags: record.tags.iter().map(ToString::to_string).collect(),
                digest: record.digest.to_string(),
                layers,
                size: blob_bytes,
                error,
                code,
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

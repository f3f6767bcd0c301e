//! `images`: what is in the store.

use clap::Args;
use serde::Serialize;

use super::{Context, output};
use crate::pipeline::read_manifest;

/// List the images in the store
#[derive(Debug, Args)]
pub(super) struct ImagesArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct ImageJson {
    name: String,
    tags: Vec<String>,
    digest: String,
    /// Layers; none where the manifest cannot be read.
    layers: Option<usize>,
    /// Bytes of all blobs as served; layers that images share count for each.
    size: Option<u64>,
    error: Option<String>,
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
            ImageJson {
                name: context.familiar(&image.name),
                tags: image.tags.iter().map(ToString::to_string).collect(),
                digest: image.digest.to_string(),
                layers: manifest.as_ref().ok().map(|manifest| manifest.layers().len()),
                size,
                error: manifest.err().map(|error| format!("{:#}", anyhow::Error::from(error))),
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

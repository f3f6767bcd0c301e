//! `images`: lists the images in the store.

use std::io::IsTerminal as _;

use clap::Args;
use serde::Serialize;

use super::{Context, candidates, output, time};
use crate::image::Reference;
use crate::pipeline::ImageSummary;
use crate::store::ImageRecord;

const EXAMPLES: &str = "\
Examples:
  List the images:
    rcx-imagefs images
  List the images of one name:
    rcx-imagefs images lab/python
  Print the references of all images that have a tag:
    rcx-imagefs images --json | jq -r '.[] | .name + \":\" + .tags[]'";

/// List the images in the store
///
/// On a terminal, digests are cut off after 12 digits, which name an image in every command. CREATED is the age that the image's
/// configuration states; `-` stands for none, or one before 1980, as reproducible builds have it.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct ImagesArgs {
    /// List only images of this name, and with a tag only the one that has it
    #[arg(value_name = "NAME[:TAG]", add = candidates::images())]
    name: Option<String>,
    /// Print only NAME@DIGEST, which other commands take
    #[arg(short, long, conflicts_with = "json")]
    quiet: bool,
    /// Print whole digests also on a terminal
    #[arg(long)]
    no_trunc: bool,
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
    /// When the image was built, as its configuration states it.
    created: Option<String>,
    /// Why the manifest cannot be read.
    error: Option<String>,
    /// The code of `error`.
    code: Option<String>,
}

pub(super) fn run(context: &Context, args: &ImagesArgs) -> anyhow::Result<()> {
    let wanted = match &args.name {
        Some(name) => Reference::candidates(name, context.default_registry())?,
        None => Vec::new(),
    };
    let is_wanted = |image: &ImageRecord| {
        args.name.is_none()
            || wanted.iter().any(|wanted| {
                wanted.name == image.name
                    && wanted.tag.as_ref().is_none_or(|tag| image.tags.contains(tag))
                    && wanted.digest.is_none_or(|digest| image.digest == digest)
            })
    };
    let catalog = context.catalog()?;
    let images: Vec<ImageJson> = catalog
        .images()?
        .into_iter()
        .filter(|image| is_wanted(&image.record))
        .map(|ImageSummary { record, layers, blob_bytes, created, failure }| {
            let (code, error) = failure.map(|failure| (failure.code, failure.message)).unzip();
            ImageJson {
                name: context.familiar(&record.name),
                tags: record.tags.iter().map(ToString::to_string).collect(),
                digest: record.digest.to_string(),
                layers,
                size: blob_bytes,
                created,
                error,
                code,
            }
        })
        .collect();
    if args.json {
        return output::json(&images);
    }
    if args.quiet {
        return images.iter().try_for_each(|image| output::line(format!("{}@{}", image.name, image.digest)));
    }
    if let (Some(name), []) = (&args.name, images.as_slice()) {
        let near = context.near_images(&catalog.refs()?, name);
        if !near.is_empty() {
            eprintln!("hint: did you mean {}?", output::plain(&near.join(" or ")));
        }
    }
    let is_short = !args.no_trunc && std::io::stdout().is_terminal();
    let now = jiff::Timestamp::now();
    let rows: Vec<Vec<String>> = images
        .iter()
        .map(|image| {
            vec![
                image.name.clone(),
                if image.tags.is_empty() { "-".to_owned() } else { image.tags.join(",") },
                if is_short { output::short_digest(&image.digest).to_owned() } else { image.digest.clone() },
                image.layers.map_or("damaged".to_owned(), |layers| layers.to_string()),
                image.size.map_or("-".to_owned(), output::size),
                image
                    .created
                    .as_ref()
                    .and_then(|created| time::age(created, now))
                    .map_or("-".to_owned(), |age| format!("{age} ago")),
            ]
        })
        .collect();
    output::table(&["NAME", "TAGS", "DIGEST", "LAYERS", "SIZE", "CREATED"], &rows)
}

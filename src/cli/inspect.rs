//! `inspect`: shows the parts of an image.

use clap::Args;
use serde::Serialize;

use super::{Context, STORED, candidates, output};
use crate::image::ImageConfig;
use crate::pipeline::LayerDescription;

const EXAMPLES: &str = "\
Examples:
  Show an image:
    rcx-imagefs inspect python:3.12
  Print its environment variables:
    rcx-imagefs inspect --json python:3.12 | jq -r '.config.config.Env[]'";

/// Show an image's manifest, configuration, layers and indexes
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct InspectArgs {
    /// The image.
    #[arg(help = STORED, add = candidates::images(), value_name = "REF")]
    reference: String,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Serialize)]
struct InspectJson {
    name: String,
    tags: Vec<String>,
    digest: String,
    media_type: String,
    /// Digest of the multi-platform index that the image was chosen from.
    index: Option<String>,
    platform: String,
    created: Option<String>,
    layers: Vec<LayerJson>,
    /// The whole configuration document.
    config: serde_json::Value,
}

#[derive(Debug, Serialize)]
struct LayerJson {
    digest: String,
    diff_id: String,
    media_type: String,
    /// Size of the blob in bytes.
    size: u64,
    /// Size of the tar in bytes, according to the index.
    tar_size: Option<u64>,
    entries: Option<usize>,
    spans: Option<usize>,
    /// Size of the index file in bytes.
    index_size: Option<u64>,
    /// Size of the seekable form in bytes; 0 if the layer needs none.
    seekable_size: Option<u64>,
    /// Why the layer cannot be served.
    error: Option<String>,
    /// The code of `error`.
    code: Option<String>,
}

pub(super) fn run(context: &Context, args: &InspectArgs) -> anyhow::Result<()> {
    let catalog = context.catalog()?;
    let image = context.find_listed(&catalog, &args.reference)?.image;
    let description = catalog.describe(image.digest)?;
    // The daemon sends only the document.
    let config = &ImageConfig::parse(description.config.to_string().as_bytes())?;
    let layers = description.layers.into_iter().map(|layer| {
        let LayerDescription { digest, diff_id, media_type, size, index, failure } = layer;
        let (code, error) = failure.map(|failure| (failure.code, failure.message)).unzip();
        LayerJson {
            digest,
            diff_id,
            media_type,
            size,
            tar_size: index.map(|index| index.tar_size),
            entries: index.map(|index| index.entries),
            spans: index.map(|index| index.spans),
            index_size: index.map(|index| index.file_size),
            seekable_size: index.map(|index| index.seekable_size),
            error,
            code,
        }
    });
    let document = InspectJson {
        name: context.familiar(&image.name),
        tags: image.tags.iter().map(ToString::to_string).collect(),
        digest: image.digest.to_string(),
        media_type: description.media_type,
        index: image.index.map(|digest| digest.to_string()),
        platform: config.platform.to_string(),
        created: config.created.clone(),
        layers: layers.collect(),
        config: description.config,
    };
    if args.json { output::json(&document) } else { print(&document, config) }
}

fn print(document: &InspectJson, config: &ImageConfig) -> anyhow::Result<()> {
    let field = |name: &str, value: &str| match value {
        "" => Ok(()),
        value => output::line(format!("{name:<12}{value}")),
    };
    field("name", &document.name)?;
    field("tags", &document.tags.join(", "))?;
    field("digest", &document.digest)?;
    field("index", document.index.as_deref().unwrap_or_default())?;
    field("type", &document.media_type)?;
    field("platform", &document.platform)?;
    field("created", document.created.as_deref().unwrap_or_default())?;
    field("user", &config.user)?;
    field("directory", &config.working_dir)?;
    field("entrypoint", &config.entrypoint.join(" "))?;
    field("command", &config.cmd.join(" "))?;
    for variable in &config.env {
        field("environment", variable)?;
    }
    output::line("")?;
    let cell = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
    let rows: Vec<Vec<String>> = document
        .layers
        .iter()
        .map(|layer| {
            let share = layer.index_size.map(|index| percent(index, layer.size));
            vec![
                layer.digest.clone(),
                output::size(layer.size),
                cell(layer.tar_size.map(output::size)),
                cell(layer.entries.map(|count| count.to_string())),
                cell(layer.spans.map(|count| count.to_string())),
                cell(layer.index_size.map(output::size)),
                cell(share),
                cell(layer.seekable_size.filter(|&size| size > 0).map(output::size)),
            ]
        })
        .collect();
    let head = ["LAYER", "BLOB", "TAR", "ENTRIES", "SPANS", "INDEX", "OF BLOB", "SEEKABLE"];
    output::table(&head, &rows)?;
    for layer in &document.layers {
        if let Some(error) = &layer.error {
            output::line(format!("{}: {error}", layer.digest))?;
        }
    }
    Ok(())
}

/// Formats `part` as a percentage of `whole`, with two decimals.
fn percent(part: u64, whole: u64) -> String {
    let hundredths = u128::from(part) * 10_000 / u128::from(whole.max(1));
    format!("{}.{:02} %", hundredths / 100, hundredths % 100)
}

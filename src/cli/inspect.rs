//! `inspect`: shows the parts of an image.

use clap::Args;
use serde::Serialize;
use serde_json::{Value, json};

use super::{Context, STORED, candidates, output, template};
use crate::image::ImageConfig;
use crate::pipeline::LayerDescription;

const EXAMPLES: &str = "\
Examples:
  Show an image:
    rcx-imagefs inspect python:3.12
  Print its environment variables:
    rcx-imagefs inspect --json python:3.12 | jq -r '.config.config.Env[]'
  Print some fields, as with docker:
    rcx-imagefs inspect --format '{{.Config.User}} {{.Architecture}}' python:3.12";

/// Show an image's manifest, configuration, layers and indexes
///
/// --format replaces {{.Field}} in a text by a field, and {{json .Field}} by the field as JSON. The fields have the names that docker gives
/// them (Id, RepoTags, RepoDigests, Created, Architecture, Os, Size, Config, RootFS, History) or those of --json. Dots lead into
/// objects, and numbers into lists: {{.Config.Env.0}}. There are no loops and conditions; use --json and jq for those.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct InspectArgs {
    /// The image.
    #[arg(help = STORED, add = candidates::images(), value_name = "REF")]
    reference: String,
    /// Print this text with fields of the image, as with docker
    #[arg(short, long, value_name = "TEMPLATE", conflicts_with = "json")]
    format: Option<String>,
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
    config: Value,
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
    /// Whether the layer has a plain layer, which the kernel reads without the daemon.
    plain: bool,
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
        let LayerDescription { digest, diff_id, media_type, size, index, plain, failure } = layer;
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
            plain,
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
    if let Some(template) = &args.format {
        let docker = docker_view(&document, &description.config_digest);
        let own = serde_json::to_value(&document)?;
        return output::line(template::fill(template, &[docker, own])?);
    }
    if args.json { output::json(&document) } else { print(&document, config) }
}

/// The fields that `docker image inspect` has, under its names.
fn docker_view(document: &InspectJson, id: &str) -> Value {
    let config = &document.config;
    let size: u64 = document.layers.iter().map(|layer| layer.size).sum();
    let tags: Vec<String> = document.tags.iter().map(|tag| format!("{}:{tag}", document.name)).collect();
    json!({
        "Id": id,
        "RepoTags": tags,
        "RepoDigests": [format!("{}@{}", document.name, document.digest)],
        "Created": document.created,
        "Architecture": config["architecture"],
        "Variant": config["variant"],
        "Os": config["os"],
        "Author": config["author"],
        "Size": size,
        "Config": config["config"],
        "RootFS": { "Type": "layers", "Layers": config["rootfs"]["diff_ids"] },
        "History": config["history"],
    })
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
    let raw = &config.raw["config"];
    field("stop signal", raw["StopSignal"].as_str().unwrap_or_default())?;
    let keys = |name: &str| raw[name].as_object().into_iter().flat_map(|fields| fields.keys());
    for port in keys("ExposedPorts") {
        field("port", port)?;
    }
    for volume in keys("Volumes") {
        field("volume", volume)?;
    }
    for (name, value) in raw["Labels"].as_object().into_iter().flatten() {
        field("label", &format!("{name}={}", value.as_str().unwrap_or_default()))?;
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
                cell(layer.plain.then(|| "yes".to_owned())),
            ]
        })
        .collect();
    let head = ["LAYER", "BLOB", "TAR", "ENTRIES", "SPANS", "INDEX", "OF BLOB", "SEEKABLE", "PLAIN"];
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

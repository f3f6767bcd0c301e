//! `gc`: frees what nothing refers to.

use clap::Args;
use serde::Serialize;

use super::{Context, output, root};
use crate::roots::LayerDirectories;
use crate::store::Store;

/// Free the blobs and indexes that no image refers to, and what is left of dead roots
#[derive(Debug, Args)]
pub(super) struct GcArgs {
    /// Only tell what would be freed
    #[arg(long)]
    dry_run: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct GcJson {
    blobs: u64,
    /// Indexes and seekable forms of layers.
    derived: u64,
    /// Interrupted downloads.
    partials: u64,
    /// Leftovers of dead processes.
    temporary: u64,
    /// Roots that nobody has any more.
    roots: usize,
    /// Unpacked layers of which no image and no root is made.
    layers: u64,
    /// Of all these but the roots.
    bytes: u64,
    /// Manifests that images refer to and that are not there.
    missing: Vec<String>,
    dry_run: bool,
}

pub(super) fn run(context: &Context, args: &GcArgs) -> anyhow::Result<()> {
    let store = context.open_store()?;
    let report = store.gc(args.dry_run)?;
    for digest in &report.missing {
        tracing::warn!("manifest {digest} is not in the store: what it refers to is not kept");
    }
    let roots = root::sweep_beside(context, &store, args.dry_run);
    let (layers, layer_bytes) = unpacked_layers(context, &store, args.dry_run)?;
    let summary = GcJson {
        blobs: report.blobs,
        derived: report.derived,
        partials: report.partials,
        temporary: report.temporary,
        roots,
        layers,
        bytes: report.bytes + layer_bytes,
        missing: report.missing.iter().map(ToString::to_string).collect(),
        dry_run: args.dry_run,
    };
    if args.json {
        return output::json(&summary);
    }
    let verb = if args.dry_run { "would free" } else { "freed" };
    output::line(format!(
        "{verb} {}: {} blobs, {} derived files, {} interrupted downloads, {} temporary files, {} dead roots, \
         {} unpacked layers",
        output::size(summary.bytes),
        summary.blobs,
        summary.derived,
        summary.partials,
        summary.temporary,
        summary.roots,
        summary.layers
    ))
}

/// Frees unpacked layers; returns how many, and their bytes.
fn unpacked_layers(context: &Context, store: &Store, dry_run: bool) -> anyhow::Result<(u64, u64)> {
    let path = store.layers_path()?;
    if !path.exists() {
        return Ok((0, 0));
    }
    let images: Vec<_> = store.refs()?.images.iter().map(|image| image.digest).collect();
    let used = context.roots(store)?.list()?.into_iter().flat_map(|root| root.layers);
    Ok(LayerDirectories::open(&path)?.collect(store, &images, used, dry_run)?)
}

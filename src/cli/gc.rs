//! `gc`: frees disk space that no image and no root uses.

use std::collections::HashSet;

use clap::Args;
use serde::Serialize;

use super::{Context, output, root};
use crate::roots::LayerDirectories;
use crate::store::{GcOptions, Store};

const EXAMPLES: &str = "\
Examples:
  Show how much would be freed:
    rcx-imagefs gc --dry-run
  Free the space:
    rcx-imagefs gc";

/// Free disk space that no image and no root uses
///
/// Removes blobs and indexes that no image refers to, interrupted downloads, temporary files of dead processes, layers that
/// were unpacked for the overlay2 engine and are no longer used, and the remains of roots whose processes died. Files that
/// programs have open in the mount stay readable until the daemon ends.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct GcArgs {
    /// Only show what would be freed
    #[arg(long)]
    dry_run: bool,
    /// Also remove downloads that were interrupted less than a day ago, which the next pull would resume
    #[arg(long)]
    partial: bool,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Serialize)]
struct GcJson {
    blobs: u64,
    /// Number of indexes and seekable forms of layers.
    derived: u64,
    /// Number of interrupted downloads.
    partials: u64,
    /// Number of temporary files of dead processes.
    temporary: u64,
    /// Number of roots whose processes died.
    roots: usize,
    /// Number of unpacked layers that no image and no root uses.
    layers: u64,
    /// Number of interrupted downloads that were kept.
    kept_partials: u64,
    /// Bytes of the kept downloads.
    kept_bytes: u64,
    /// Total size of these files in bytes, without the roots.
    bytes: u64,
    /// Digests of manifests that images refer to, but that are missing.
    missing: Vec<String>,
    dry_run: bool,
}

pub(super) fn run(context: &Context, args: &GcArgs) -> anyhow::Result<()> {
    let store = context.open_store()?;
    let report = store.collect(GcOptions { dry_run: args.dry_run, all_partials: args.partial })?;
    for digest in &report.missing {
        tracing::warn!("manifest {digest} is not in the store: blobs that only it refers to are freed");
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
        kept_partials: report.kept_partials,
        kept_bytes: report.kept_bytes,
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
    ))?;
    match (summary.kept_partials, args.partial) {
        (0, _) => Ok(()),
        (count, false) => output::line(format!(
            "kept {count} interrupted downloads ({}) for a day, so that the next pull resumes them; `gc --partial` removes them",
            output::size(summary.kept_bytes)
        )),
        (count, true) => output::line(format!(
            "kept {count} downloads ({}) that a process is writing",
            output::size(summary.kept_bytes)
        )),
    }
}

/// Frees unused unpacked layers; returns their number and bytes. With `dry_run`, only counts them.
pub(super) fn unpacked_layers(context: &Context, store: &Store, dry_run: bool) -> anyhow::Result<(u64, u64)> {
    let path = store.layers_path()?;
    if !path.exists() {
        return Ok((0, 0));
    }
    let images: Vec<_> = store.refs()?.images.iter().map(|image| image.digest).collect();
    let roots = context.roots(store)?;
    let used = || {
        let mut used = HashSet::new();
        for root in roots.list()? {
            let Some(layers) = root.layers else {
                tracing::warn!(
                    "the record of root {0} is missing or cannot be read: all unpacked layers are kept, because the root \
                     may use them; `rcx-imagefs root remove {0}` removes it",
                    root.id
                );
                return Ok(None);
            };
            used.extend(layers);
        }
        Ok(Some(used))
    };
    Ok(LayerDirectories::open(&path)?.collect(store, &images, used, dry_run)?)
}

//! `gc`: frees disk space that no image and no root uses.

use std::collections::HashSet;

use clap::Args;
use serde::Serialize;

use super::{Context, output, root};
use crate::image::ManifestDigest;
use crate::roots::LayerDirectories;
use crate::store::{GcOptions, ImageRecord, Store};

const EXAMPLES: &str = "\
Examples:
  Show how much would be freed:
    rcx-imagefs gc --dry-run
  Free the space:
    rcx-imagefs gc
  Also remove images that were replaced by newer ones of the same tag:
    rcx-imagefs gc --untagged";

/// Free disk space that no image and no root uses
///
/// Removes blobs and indexes that no image refers to, interrupted downloads, temporary files of dead processes, plain layers that no image has, layers that
/// were unpacked for the overlay2 engine and are no longer used, and the remains of roots whose processes died. Files that
/// programs have open in the mount stay readable until the daemon ends.
///
/// --untagged first removes all images without a tag: those whose tag has moved to a newer image, those that `rm --keep` left, and those that
/// were pulled by digest, but no image that a root uses or that [isolate.images] of the configuration names. --layers also removes the
/// unpacked layers of images that stay in the store, if no root uses them; the next root of the overlay2 engine unpacks them again.
/// --plain does the same with plain layers; the daemon then serves these layers, and makes them plain again if the configuration says so.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct GcArgs {
    /// Only show what would be freed
    #[arg(long)]
    dry_run: bool,
    /// Also remove downloads that were interrupted less than a day ago, which the next pull would resume
    #[arg(long)]
    partial: bool,
    /// First remove images that have no tag
    #[arg(long)]
    untagged: bool,
    /// Also remove unpacked layers that no root uses, even if an image in the store has them
    #[arg(long)]
    layers: bool,
    /// Also remove plain layers that are not in use, even if an image in the store has them
    #[arg(long)]
    plain: bool,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Serialize)]
struct GcJson {
    /// `NAME@DIGEST` of the images that --untagged removed.
    images: Vec<String>,
    blobs: u64,
    /// Number of indexes and seekable forms of layers.
    derived: u64,
    /// Number of plain layers.
    plain: u64,
    /// Bytes of the plain layers.
    plain_bytes: u64,
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
    let store = context.change_store()?;
    let options = GcOptions { dry_run: args.dry_run, all_partials: args.partial, all_plain: args.plain };
    let kept = if args.untagged { images_in_use(context, &store)? } else { HashSet::new() };
    let forget =
        |image: &ImageRecord| args.untagged && image.tags.is_empty() && !kept.contains(&image.digest);
    let report = store.collect(options, forget)?;
    if !report.forgotten.is_empty() && !args.dry_run {
        context.refresh(&store);
    }
    for digest in &report.missing {
        tracing::warn!("manifest {digest} is not in the store: blobs that only it refers to are freed");
    }
    let roots = root::sweep_beside(context, &store, args.dry_run);
    // In a dry run, the images are still in the store.
    let needs_layers =
        |image: &ImageRecord| !args.layers && !report.forgotten.contains(&(image.name.clone(), image.digest));
    let (layers, layer_bytes) = unpacked_layers(context, &store, args.dry_run, needs_layers)?;
    let summary = GcJson {
        images: report
            .forgotten
            .iter()
            .map(|(name, digest)| format!("{}@{digest}", context.familiar(name)))
            .collect(),
        blobs: report.blobs,
        derived: report.derived,
        plain: report.plain,
        plain_bytes: report.plain_bytes,
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
    let removed = if args.dry_run { "would remove" } else { "removed" };
    for image in &summary.images {
        output::line(format!("{removed} {image}"))?;
    }
    let verb = if args.dry_run { "would free" } else { "freed" };
    output::line(format!(
        "{verb} {}: {} blobs, {} derived files, {} interrupted downloads, {} temporary files, {} dead roots, \
         {} unpacked layers, {} plain layers ({})",
        output::size(summary.bytes),
        summary.blobs,
        summary.derived,
        summary.partials,
        summary.temporary,
        summary.roots,
        summary.layers,
        summary.plain,
        output::size(summary.plain_bytes)
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

/// The images that roots use or that boxes run in.
fn images_in_use(context: &Context, store: &Store) -> anyhow::Result<HashSet<ManifestDigest>> {
    let mut used = HashSet::new();
    for image in context.config.isolate.images.values().filter(|image| !image.is_empty()) {
        // An image that is not in the store cannot be removed either.
        used.extend(context.find(store, image).ok().map(|found| found.image.digest));
    }
    // Do not create the directory of roots where no root was ever made.
    if context.homes(store)?.path().symlink_metadata().is_ok() {
        let images = context.roots(store)?.list()?.into_iter().filter_map(|root| root.image);
        used.extend(images.filter_map(|image| image.rsplit_once('@')?.1.parse::<ManifestDigest>().ok()));
    }
    Ok(used)
}

/// Frees unpacked layers that no root uses, except those of images for which `needed` returns true. Returns their number and
/// bytes. With `dry_run`, only counts them.
pub(super) fn unpacked_layers(
    context: &Context,
    store: &Store,
    dry_run: bool,
    needed: impl Fn(&ImageRecord) -> bool,
) -> anyhow::Result<(u64, u64)> {
    let Some(directories) = LayerDirectories::existing(store)? else { return Ok((0, 0)) };
    let images = store.refs()?.images;
    let images: Vec<_> = images.iter().filter(|image| needed(image)).map(|image| image.digest).collect();
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
    Ok(directories.collect(store, &images, used, dry_run)?)
}

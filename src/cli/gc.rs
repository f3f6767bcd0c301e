//! `gc`: frees what nothing refers to.

use clap::Args;
use serde::Serialize;

use super::{Context, output};

/// Free the blobs and indexes that no image refers to
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
    derived: u64,
    bytes: u64,
    dry_run: bool,
}

pub(super) fn run(context: &Context, args: &GcArgs) -> anyhow::Result<()> {
    let store = context.open_store()?;
    let report = store.gc(args.dry_run)?;
    let summary =
        GcJson { blobs: report.blobs, derived: report.derived, bytes: report.bytes, dry_run: args.dry_run };
    if args.json {
        return output::json(&summary);
    }
    let verb = if args.dry_run { "would free" } else { "freed" };
    output::line(format!(
        "{verb} {} in {} blobs and {} derived files",
        output::size(summary.bytes),
        summary.blobs,
        summary.derived
    ))
}

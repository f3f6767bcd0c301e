//! `diff`: compares two images.

use anyhow::Context as _;
use clap::Args;
use serde::Serialize;

use super::{Context, STORED, candidates, output};
use crate::layer::Printable;
use crate::unpack::{PathChange, differences};

const EXAMPLES: &str = "\
Examples:
  Show what an update of an image changed:
    rcx-imagefs diff python:3.11 python:3.12
  Print the files whose content differs:
    rcx-imagefs diff --json python:3.11 python:3.12 | jq -r '.[] | select(.parts[] == \"content\").path'";

/// Show the files that differ between two images
///
/// Prints a line for each path as `docker diff` does: `A` if only the second image has it, `D` if only the first one has it, and `C`
/// if it differs, or if it is a directory with a difference below it. Two files differ in type, mode, owner, content, link target,
/// device number or extended attributes. Modification times count only with --times, because two builds of one recipe differ in
/// the times of all files. What is below a deleted directory is not listed.
///
/// Exits with 0 whether or not the images differ.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct DiffArgs {
    /// The image.
    #[arg(help = STORED, add = candidates::images(), value_name = "REF")]
    old: String,
    /// The other image
    #[arg(value_name = "OTHER-REF", add = candidates::images())]
    new: String,
    /// Also compare modification times
    #[arg(long)]
    times: bool,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Serialize)]
struct DifferenceJson {
    path: String,
    change: &'static str,
    /// The parts of a changed file that differ.
    parts: Vec<&'static str>,
}

pub(super) fn run(context: &Context, args: &DiffArgs) -> anyhow::Result<()> {
    let store = context.open_store()?;
    let old = context.open_leased(&store, &args.old)?;
    let new = context.open_leased(&store, &args.new)?;
    let found = differences(&old.image, &new.image, args.times)
        .with_context(|| format!("diff {} {}", args.old, args.new))?;
    if args.json {
        let items = found.into_iter().map(|difference| DifferenceJson {
            path: Printable(&difference.path).to_string(),
            change: match difference.change {
                PathChange::Added => "added",
                PathChange::Changed => "changed",
                PathChange::Deleted => "deleted",
            },
            parts: difference.parts,
        });
        return output::json(&items.collect::<Vec<_>>());
    }
    for difference in &found {
        let letter = match difference.change {
            PathChange::Added => 'A',
            PathChange::Changed => 'C',
            PathChange::Deleted => 'D',
        };
        output::line(format!("{letter} {}", Printable(&difference.path)))?;
    }
    Ok(())
}

//! `diff`: compares two images, or a root with its image.

use anyhow::Context as _;
use clap::Args;
use serde::Serialize;

use super::{Context, candidates, error, output};
use crate::commit::{CommitOptions, root_changes};
use crate::error::ErrorCode;
use crate::image::{Image, ManifestDigest};
use crate::layer::Printable;
use crate::pipeline::{OpenImage, read_image};
use crate::roots::{NamedRoot, RootId, RootsError};
use crate::store::Store;
use crate::unpack::{PathChange, PathDifference, differences};

const EXAMPLES: &str = "\
Examples:
  Show what an update of an image changed:
    rcx-imagefs diff python:3.11 python:3.12
  Print the files whose content differs:
    rcx-imagefs diff --json python:3.11 python:3.12 | jq -r '.[] | select(.parts[] == \"content\").path'
  Show what was written to a root:
    rcx-imagefs diff judge-7";

const ROOT_EXAMPLES: &str = "\
Examples:
  Show what was written to a root:
    rcx-imagefs root diff judge-7";

/// Show the files that differ between two images, or between a root and its image
///
/// Prints a line for each path as `docker diff` does: `A` if only the second image has it, `D` if only the first one has it, and `C`
/// if it differs, or if it is a directory with a difference below it. Two files differ in type, mode, owner, content, link target,
/// device number or extended attributes. Modification times count only with --times, because two builds of one recipe differ in
/// the times of all files. What is below a deleted directory is not listed.
///
/// With one argument, which is the ID of a root, lists what `root commit` would write to a layer. Modification times and hard links then
/// count as well.
///
/// Exits with 0 whether or not there are differences.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct DiffArgs {
    /// The image, or the ID of a root
    #[arg(add = candidates::images(), value_name = "REF|ID")]
    old: String,
    /// The other image; without it, a root is compared with its image
    #[arg(value_name = "OTHER-REF", add = candidates::images())]
    new: Option<String>,
    /// Also compare modification times
    #[arg(long, requires = "new")]
    times: bool,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// Show what was written to a root, as `root commit` would write it to a layer
///
/// Prints what `diff` prints: a line for each path, with `A` for a new file, `C` for a changed one and `D` for a deleted one. A
/// program may use the root meanwhile; then the list may miss its last changes.
#[derive(Debug, Args)]
#[command(after_long_help = ROOT_EXAMPLES)]
pub(super) struct RootDiffArgs {
    /// ID of the root
    #[arg(add = candidates::roots(), value_name = "ID")]
    id: RootId,
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
    let Some(new) = &args.new else {
        return print(diff_root_named(context, &store, &args.old)?, args.json);
    };
    let before = context.open_leased(&store, &args.old)?;
    let after = context.open_leased(&store, new)?;
    let found = differences(&before.image, &after.image, args.times);
    print(found.with_context(|| format!("diff {} {new}", args.old))?, args.json)
}

/// Runs `root diff`.
pub(super) fn run_root(context: &Context, store: &Store, args: &RootDiffArgs) -> anyhow::Result<()> {
    print(diff_root(context, store, &args.id)?, args.json)
}

/// Compares the root that the only argument of `diff` names.
fn diff_root_named(context: &Context, store: &Store, text: &str) -> anyhow::Result<Vec<PathDifference>> {
    let hint = "to compare two images, name both; `rcx-imagefs root list` lists the roots";
    let Ok(id) = text.parse() else {
        let message = format!("`{text}` is not the ID of a root");
        return Err(error::fail_with_hint(ErrorCode::Usage, message, hint));
    };
    diff_root(context, store, &id).map_err(|error| match error.downcast_ref() {
        Some(RootsError::Missing(_)) => error::with_hint(error, hint),
        _ => error,
    })
}

fn diff_root(context: &Context, store: &Store, id: &RootId) -> anyhow::Result<Vec<PathDifference>> {
    let root = context.roots(store)?.named(id)?;
    let at = || format!("diff {id}");
    let _lease = store.lease(None)?;
    let image = image_of(store, &root).with_context(at)?;
    let image = OpenImage::open(store, &image, |_| None).with_context(at)?;
    Ok(root_changes(&root, &image, &CommitOptions::default()).with_context(at)?.list())
}

/// Returns the image of a root. It may have lost its name in the store, but must not have been freed.
pub(super) fn image_of(store: &Store, root: &NamedRoot) -> anyhow::Result<Image> {
    let name = root.image();
    let digest = name.rsplit_once('@').and_then(|(_, digest)| digest.parse().ok());
    let digest: ManifestDigest =
        digest.with_context(|| format!("the root's image `{name}` has no digest"))?;
    read_image(store, &digest).with_context(|| format!("image {name} of the root"))
}

fn print(found: Vec<PathDifference>, json: bool) -> anyhow::Result<()> {
    if json {
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

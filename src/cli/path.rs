//! `path`: where an image is in the mount.

use std::os::unix::ffi::OsStrExt as _;

use clap::Args;
use serde::Serialize;

use super::{Context, REFERENCE, output};

/// Print the path of an image in the mount
///
/// The directory is `MOUNT/NAME@DIGEST`. With --no-colon, an alias of it without `:`, for programs that split on it.
#[derive(Debug, Args)]
pub(super) struct PathArgs {
    /// The image.
    #[arg(help = REFERENCE, value_name = "REF")]
    reference: String,
    /// Print the alias without `:`
    #[arg(long)]
    no_colon: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct PathJson {
    path: String,
    alias: String,
    digest: String,
}

pub(super) fn run(context: &Context, args: &PathArgs) -> anyhow::Result<()> {
    let store = context.open_store()?;
    let found = context.find(&store, &args.reference)?;
    let daemon = context.daemon(&store)?;
    let canonical = format!("{}@{}", context.familiar(&found.image.name), found.image.digest);
    let alias = daemon.mountpoint.join(canonical.replace(':', "-"));
    let path = daemon.mountpoint.join(&canonical);
    if args.json {
        return output::json(&PathJson {
            path: path.to_string_lossy().into_owned(),
            alias: alias.to_string_lossy().into_owned(),
            digest: found.image.digest.to_string(),
        });
    }
    let shown = if args.no_colon { alias } else { path };
    output::bytes_line(shown.as_os_str().as_bytes())
}

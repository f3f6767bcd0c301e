//! `path`: prints the path of an image in the mount.

use std::os::unix::ffi::OsStrExt as _;

use clap::Args;
use serde::Serialize;

use super::{Context, STORED, candidates, output};

const EXAMPLES: &str = "\
Examples:
  Print the path of an image:
    rcx-imagefs path python:3.12
  Bind an image into a sandbox whose rules are separated by colons:
    isolate --dir=/image=$(rcx-imagefs path --no-colon python:3.12) --run -- /bin/ls /image";

/// Print the path of an image in the mount
///
/// The path is MOUNT/NAME@DIGEST. With --no-colon, the command prints an alias of this directory without `:`, for programs that
/// split paths at colons.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct PathArgs {
    /// The image.
    #[arg(help = STORED, add = candidates::images(), value_name = "REF")]
    reference: String,
    /// Print the alias without `:`
    #[arg(long)]
    no_colon: bool,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Serialize)]
struct PathJson {
    path: String,
    alias: String,
    digest: String,
}

pub(super) fn run(context: &Context, args: &PathArgs) -> anyhow::Result<()> {
    let catalog = context.catalog()?;
    let found = context.find_listed(&catalog, &args.reference)?;
    let mountpoint = catalog.mountpoint(context)?;
    let canonical = format!("{}@{}", context.familiar(&found.image.name), found.image.digest);
    let alias = mountpoint.join(canonical.replace(':', "-"));
    let path = mountpoint.join(&canonical);
    if args.json {
        return output::json(&PathJson {
            path: path.to_string_lossy().into_owned(),
            alias: alias.to_string_lossy().into_owned(),
            digest: found.image.digest.to_string(),
        });
    }
    let printed = if args.no_colon { alias } else { path };
    output::bytes_line(printed.as_os_str().as_bytes())
}

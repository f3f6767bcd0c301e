//! `unpack`: copies an image into a directory.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Context as _;
use clap::Args;
use serde::Serialize;

use super::{Context, STORED, candidates, output};
use crate::error::chain_text;
use crate::pipeline::open_image;
use crate::unpack::{Staging, UnpackOptions, UnpackPlan, write};

const EXAMPLES: &str = "\
Examples:
  Copy an image:
    rcx-imagefs unpack python:3.12 /srv/python-3.12";

/// Copy an image into a directory
///
/// The copy has the owners, modes, times, extended attributes, hard links, holes and devices of the image, so the command
/// must be run by root. Files lose their set-uid and set-gid bits and their capabilities unless --preserve-setuid is given,
/// because every local user could gain the rights of root through a program of the image. DIR must be missing or empty. It
/// appears only when the copy is complete, so an interrupted copy never has this name.
///
/// The copy is an independent directory that needs neither the store nor a daemon. To look into an image, use `mount`; for a
/// writable directory with the content of the image, use `root create`. Both are faster and take less disk space.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct UnpackArgs {
    /// The image.
    #[arg(help = STORED, add = candidates::images(), value_name = "REF")]
    reference: String,
    /// Directory of the copy
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// Number of threads that decode and write [default: number of processors]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: Option<u16>,
    /// Keep the set-uid and set-gid bits and the capabilities of files
    #[arg(long)]
    preserve_setuid: bool,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Serialize)]
struct UnpackJson {
    path: String,
    digest: String,
    /// Bytes of file content.
    bytes: u64,
    directories: u64,
    /// Number of files, symbolic links, devices and pipes; hard links count once.
    files: u64,
}

pub(super) fn run(context: &Context, args: &UnpackArgs) -> anyhow::Result<()> {
    let at = || format!("unpack {} to {}", args.reference, args.directory.display());
    let store = context.open_store()?;
    // The lease keeps `gc` from freeing the blobs while they are read.
    let _lease = store.lease(None)?;
    let found = context.find(&store, &args.reference)?;
    let image = open_image(&store, found.image.digest, |_| None).with_context(at)?;
    let layers: Vec<_> = image.layers.iter().map(AsRef::as_ref).collect();
    let staging = Staging::new(&args.directory).with_context(at)?;
    let plan = UnpackPlan::whole(&image.tree);
    let total = plan
        .nodes
        .iter()
        .map(|node| match node.source {
            crate::tree::NodeSource::Entry { layer, entry } => layers[layer.index()].stored_size(entry),
            crate::tree::NodeSource::Implied => 0,
        })
        .sum();
    let bar = output::bar(total);
    let done = AtomicU64::new(0);
    let progress = |bytes| {
        let before = done.fetch_add(bytes, Ordering::Relaxed);
        bar.set_position(before + bytes);
    };
    let mut options = UnpackOptions {
        progress: Some(&progress),
        without_setuid: !args.preserve_setuid,
        ..UnpackOptions::default()
    };
    if let Some(threads) = args.threads {
        options.threads = threads.into();
    }
    let written = match write(&plan, &layers, staging.root(), staging.path(), &options) {
        Ok(written) => written,
        Err(error) => {
            if let Err(error) = staging.abandon() {
                tracing::warn!("cannot remove the incomplete copy: {}", chain_text(&error));
            }
            return Err(error).with_context(at);
        }
    };
    let path = staging.path().to_owned();
    staging.finish().with_context(at)?;
    bar.finish_and_clear();
    if args.json {
        return output::json(&UnpackJson {
            path: path.to_string_lossy().into_owned(),
            digest: image.digest.to_string(),
            bytes: written.bytes,
            directories: written.directories,
            files: written.nodes,
        });
    }
    use std::os::unix::ffi::OsStrExt as _;
    output::bytes_line(path.as_os_str().as_bytes())
}

//! `cp`: copies files out of an image.

use std::ffi::OsStr;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use serde::Serialize;

use super::image_path::ImagePath;
use super::{Context, candidates, error, output};
use crate::error::{ErrorCode, chain, chain_text};
use crate::index::IndexedKind;
use crate::pipeline::{FoundNode, OpenImage};
use crate::tree::{NodeId, NodeSource};
use crate::unpack::{FileReader, Staging, UnpackOptions, UnpackPlan, UnpackStats, write, write_tar};

const EXAMPLES: &str = "\
Examples:
  Copy a file:
    rcx-imagefs cp python:3.12:/etc/os-release .
  Copy a directory with the owners of the image:
    rcx-imagefs cp --archive python:3.12:/usr/lib/python3.12 /srv/lib
  Print a file, or pass a directory on as a tar:
    rcx-imagefs cp python:3.12:/etc/passwd -
    rcx-imagefs cp python:3.12:/etc - | tar -tv";

/// Copy a file or a directory out of an image
///
/// If DEST is a directory, the copy is made in it under its own name; otherwise DEST is the path of the copy. A file replaces a file of
/// this name, even if that is a symbolic link. A directory is never merged into an existing one. With DEST `-`, a file is written to
/// standard output, and a directory as a tar.
///
/// The copy belongs to the user of the command, and has the modes and times of the image, without set-uid and set-gid bits. Symbolic
/// links are copied as they are, so a link in the copy may point anywhere. No link of the image leads the copy out of DEST.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct CpArgs {
    /// The image, and an absolute path in it
    #[arg(value_name = "REF:PATH", add = candidates::images())]
    source: String,
    /// Path of the copy or of a directory for it; `-` is standard output
    #[arg(value_name = "DEST")]
    destination: PathBuf,
    /// Keep the owners and extended attributes of the image (root only)
    #[arg(short, long)]
    archive: bool,
    /// Copy the target of PATH if PATH is a symbolic link
    #[arg(short = 'L', long)]
    follow_link: bool,
    /// Keep the set-uid and set-gid bits, and the capabilities, of files
    #[arg(long, requires = "archive")]
    preserve_setuid: bool,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Serialize)]
struct CopiedJson {
    /// The path of the copy.
    path: String,
    /// `NAME@DIGEST` of the image.
    image: String,
    bytes: u64,
    directories: u64,
    files: u64,
}

pub(super) fn run(context: &Context, args: &CpArgs) -> anyhow::Result<()> {
    let source = ImagePath::parse(&args.source);
    let path = source.required().map_err(|error| match destination_of_image(&args.destination) {
        true => error::with_hint(
            error,
            "`cp` only copies out of an image; `run --copy-in` copies a file into the box of a run",
        ),
        false => error,
    })?;
    let to_stdout = args.destination == Path::new("-");
    if to_stdout && args.json {
        return Err(error::fail(ErrorCode::Usage, "`--json` cannot be used with the destination `-`"));
    }
    let store = context.open_store()?;
    let opened = context.open_leased(&store, &source.reference)?;
    let image = &opened.image;
    let at = || format!("cp {}", args.source);
    // Standard output has no links.
    let found = image.find(path, args.follow_link || to_stdout).with_context(at)?;
    let options = UnpackOptions {
        without_setuid: !args.preserve_setuid,
        without_owners: !args.archive && !to_stdout,
        ..UnpackOptions::default()
    };
    if to_stdout {
        return stream(image, &found, &options).with_context(at);
    }
    let (to, written) = copy(image, &found, &args.destination, &options).with_context(at)?;
    if args.json {
        return output::json(&CopiedJson {
            path: to.to_string_lossy().into_owned(),
            image: opened.name,
            bytes: written.bytes,
            directories: written.directories,
            files: written.nodes,
        });
    }
    output::bytes_line(to.as_os_str().as_bytes())
}

/// Returns whether a destination looks like a path in an image.
fn destination_of_image(destination: &Path) -> bool {
    destination.to_str().is_some_and(|text| ImagePath::parse(text).path.is_some())
}

/// Writes a file, or a directory as a tar, to standard output. A closed pipe is not an error.
fn stream(image: &OpenImage, found: &FoundNode, options: &UnpackOptions<'_>) -> anyhow::Result<()> {
    let layers: Vec<_> = image.layers.iter().map(AsRef::as_ref).collect();
    let mut out = std::io::BufWriter::with_capacity(1 << 16, std::io::stdout().lock());
    let result: anyhow::Result<()> = if image.tree.is_directory(found.node) {
        let plan = UnpackPlan::below(&image.tree, found.node);
        let name = found.path.file_name().unwrap_or_default();
        write_tar(&plan, &layers, name.as_bytes(), &mut out, options).map_err(Into::into)
    } else {
        let (NodeSource::Entry { layer, entry }, Some(IndexedKind::Regular { .. })) =
            (image.tree.source(found.node), image.entry(found.node).map(|entry| entry.kind()))
        else {
            let message = format!("{} is neither a file nor a directory", found.path.display());
            return Err(error::fail(ErrorCode::Usage, message));
        };
        let mut reader = FileReader::default();
        std::io::copy(&mut reader.stream(layers[layer.index()], entry), &mut out)
            .and_then(|_| out.flush())
            .with_context(|| format!("cannot copy {} to standard output", found.path.display()))
    };
    match result {
        Err(error) if is_broken_pipe(&error) => Ok(()),
        result => result,
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let mut causes = chain(error.as_ref()).filter_map(|cause| cause.downcast_ref::<std::io::Error>());
    causes.any(|cause| cause.kind() == std::io::ErrorKind::BrokenPipe)
}

/// Copies a file or a directory. Returns the path of the copy.
fn copy(
    image: &OpenImage,
    found: &FoundNode,
    destination: &Path,
    options: &UnpackOptions<'_>,
) -> anyhow::Result<(PathBuf, UnpackStats)> {
    let to = target(found, destination)?;
    let layers: Vec<_> = image.layers.iter().map(AsRef::as_ref).collect();
    let is_directory = image.tree.is_directory(found.node);
    let name = to.file_name().unwrap_or_default().to_owned();
    let (plan, staging, root) = if is_directory {
        (UnpackPlan::below(&image.tree, found.node), Staging::new(&to)?, to.as_path())
    } else {
        let plan = UnpackPlan::single(&image.tree, found.node, name.as_bytes());
        (plan, Staging::for_file(&to)?, to.parent().unwrap_or(Path::new("")))
    };
    let mut written = match write(&plan, &layers, staging.root(), root, options) {
        Ok(written) => written,
        Err(error) => {
            if let Err(error) = staging.abandon() {
                tracing::warn!("cannot remove the incomplete copy: {}", chain_text(&error));
            }
            return Err(error.into());
        }
    };
    if is_directory {
        staging.finish()?;
    } else {
        staging.finish_file(&name)?;
        written.directories = 0;
    }
    Ok((to, written))
}

/// The path of the copy: in an existing directory, under the name that it has in the image.
fn target(found: &FoundNode, destination: &Path) -> anyhow::Result<PathBuf> {
    if destination.is_dir() {
        let name = found.path.file_name().unwrap_or(OsStr::new(""));
        return Ok(if found.node == NodeId::ROOT { destination.to_owned() } else { destination.join(name) });
    }
    if destination.as_os_str().as_bytes().ends_with(b"/") && destination.symlink_metadata().is_err() {
        let message = format!("the directory {} does not exist", destination.display());
        return Err(error::fail(ErrorCode::Usage, message));
    }
    Ok(destination.to_owned())
}

//! `warm`: reads an image before its next run does.

use std::collections::HashSet;
use std::ffi::OsString;
use std::os::unix::fs::FileExt as _;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;

use anyhow::Context as _;
use clap::Args;
use serde::Serialize;

use super::run::run_for_reads;
use super::{Context, STORED, candidates, error, output};
use crate::error::ErrorCode;
use crate::image::Image;
use crate::index::{IndexedKind, Layer, Piece};
use crate::os::ignore_poison;
use crate::pipeline::{LayerSpan, OpenImage, ReadTrace, read_image, read_trace, tree_key};
use crate::roots::HeldTree;
use crate::sandbox::RunStatus;
use crate::store::Store;
use crate::tree::{NodeId, NodeSource};

/// The most runs of the command. The first reads what is cold; one more shows that nothing is left.
const RUNS_MAX: usize = 3;
/// Bytes read at once.
const BUFFER: usize = 1 << 20;

const EXAMPLES: &str = "\
Examples:
  After a pull, read what runs of the image read:
    rcx-imagefs pull python:3.12 && rcx-imagefs warm python:3.12
  Before a contest, so that no run waits for the imports:
    rcx-imagefs warm python:3.12 -- python3 -c 'import numpy, scipy, pandas'";

/// Read an image ahead, so that its next run does not wait for it
///
/// With a command, runs it in the image until a run no longer reads from lazy layers. Otherwise reads the files that earlier runs of the
/// image have read, or all files if there is no record of any.
///
/// What was read is in the page cache of the host, like that of any file: a host that is short of memory drops it, and it goes a while
/// after the last root of the image (`idle` in the table `[erofs]` of the configuration). Only for the engine erofs.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct WarmArgs {
    /// The image.
    #[arg(help = STORED, add = candidates::images(), value_name = "REF")]
    reference: String,
    /// Command to run. Its output goes to standard error
    #[arg(trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<OsString>,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Default, Serialize)]
struct WarmJson {
    /// `NAME@DIGEST` of the image.
    image: String,
    /// Number of runs of the command.
    runs: usize,
    /// Number of files that were read, without those that the command has read.
    files: usize,
    /// Number of bytes of these files that were read.
    bytes: u64,
    /// Bytes that the runs have read from lazy layers.
    lazy_bytes: u64,
}

pub(super) fn run(context: &Context, args: &WarmArgs) -> anyhow::Result<ExitCode> {
    let store = context.open_store()?;
    let found = context.find(&store, &args.reference)?.image;
    let name = format!("{}@{}", context.familiar(&found.name), found.digest);
    let image = read_image(&store, &found.digest)?;
    let mut warmed = WarmJson { image: name, ..WarmJson::default() };
    let (text, code) = if args.command.is_empty() {
        // The connection keeps the superblock until everything is read.
        let tree = context.held_tree(&store, &image)?;
        read_files(&store, &image, &tree, &mut warmed).with_context(|| warmed.image.clone())?;
        let text = format!("{} files, {}", warmed.files, output::size(warmed.bytes));
        (text, ExitCode::SUCCESS)
    } else {
        run_command(context, args, &mut warmed)?
    };
    if args.json {
        output::json(&warmed)?;
    } else {
        output::line(format!("warmed {}: {text}", warmed.image))?;
    }
    Ok(code)
}

/// Runs the command until a run reads nothing from lazy layers.
fn run_command(
    context: &Context,
    args: &WarmArgs,
    warmed: &mut WarmJson,
) -> anyhow::Result<(String, ExitCode)> {
    loop {
        let finished = run_for_reads(context, &warmed.image, &args.command)?;
        warmed.runs += 1;
        // Without a daemon, all layers are plain.
        let read = finished.report.reads.map_or(0, |reads| reads.bytes);
        warmed.lazy_bytes += read;
        let status = finished.report.verdict.status;
        if let Some(failure) = finished.errors.into_iter().next() {
            return Err(failure.into());
        }
        if status == RunStatus::Ok && read > 0 && warmed.runs < RUNS_MAX {
            continue;
        }
        let text = format!(
            "{} of the command read {} from lazy layers",
            output::count(warmed.runs, "run", "runs"),
            output::size(warmed.lazy_bytes)
        );
        if status != RunStatus::Ok {
            let message = finished.report.verdict.message.unwrap_or_default();
            tracing::warn!("the command failed: {message}");
            return Ok((text, ExitCode::FAILURE));
        }
        if read > 0 {
            let message =
                format!("run {} of the command still read {read} bytes from lazy layers", warmed.runs);
            let hint = "the command may read other files each time, or the host is short of memory";
            return Err(error::fail_with_hint(ErrorCode::Host, message, hint));
        }
        return Ok((text, ExitCode::SUCCESS));
    }
}

/// A file to be read, and the ranges of it.
struct WantedFile {
    path: Vec<u8>,
    ranges: Vec<(u64, u64)>,
}

/// Reads what the trace of an image lists, or everything if there is none, through its mount.
fn read_files(store: &Store, image: &Image, tree: &HeldTree, warmed: &mut WarmJson) -> anyhow::Result<()> {
    let trace = read_trace(store, &tree_key(image))?;
    let files = wanted(&OpenImage::open(store, image, |_| None)?, &trace);
    let total = files.iter().flat_map(|file| &file.ranges).map(|(start, end)| end - start).sum();
    let bar = output::bar(total);
    let (next, bytes) = (AtomicUsize::new(0), AtomicU64::new(0));
    let failure = Mutex::new(None);
    let read = || {
        let mut buffer = vec![0; BUFFER];
        while let Some(file) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
            match read_file(tree, file, &mut buffer) {
                Ok(read) => {
                    bytes.fetch_add(read, Ordering::Relaxed);
                    bar.inc(read);
                }
                Err(error) => {
                    *ignore_poison(failure.lock()) = Some(error);
                    next.store(files.len(), Ordering::Relaxed);
                }
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(read);
        }
    });
    bar.finish_and_clear();
    (warmed.files, warmed.bytes) = (files.len(), bytes.into_inner());
    ignore_poison(failure.into_inner()).map_or(Ok(()), Err)
}

fn read_file(tree: &HeldTree, file: &WantedFile, buffer: &mut [u8]) -> anyhow::Result<u64> {
    let path = || String::from_utf8_lossy(&file.path).into_owned();
    let open = tree.open_file(&file.path).with_context(|| format!("cannot open {}", path()))?;
    let mut total = 0;
    for (start, end) in &file.ranges {
        let mut at = *start;
        while at < *end {
            let len = usize::try_from(end - at).map_or(buffer.len(), |rest| rest.min(buffer.len()));
            match open.read_at(&mut buffer[..len], at).with_context(|| format!("cannot read {}", path()))? {
                0 => break,
                read => at += read as u64,
            }
        }
        total += at - start;
    }
    Ok(total)
}

/// Returns the regular files of an image that have bytes in the spans of a trace; all files if the trace is empty.
fn wanted(image: &OpenImage, trace: &ReadTrace) -> Vec<WantedFile> {
    let spans: Option<HashSet<LayerSpan>> = (!trace.is_empty()).then(|| trace.spans().collect());
    let (mut files, mut seen) = (Vec::new(), HashSet::new());
    let mut pending = vec![(NodeId::ROOT, Vec::new())];
    while let Some((directory, above)) = pending.pop() {
        for (name, node) in image.tree.children(directory) {
            let path = [above.as_slice(), b"/", name].concat();
            if image.tree.is_directory(node) {
                pending.push((node, path));
                continue;
            }
            let NodeSource::Entry { layer, entry } = image.tree.source(node) else { continue };
            let Some(IndexedKind::Regular { size }) = image.entry(node).map(|entry| entry.kind()) else {
                continue;
            };
            // Hard links are one file.
            if size == 0 || !seen.insert(node) {
                continue;
            }
            let layer = &image.layers[layer.index()];
            let ranges = match &spans {
                Some(spans) => ranges_in(layer, layer.pieces_from(entry, 0, size), spans),
                None => vec![(0, size)],
            };
            if !ranges.is_empty() {
                files.push(WantedFile { path, ranges });
            }
        }
    }
    files
}

/// Returns the ranges of a file that lie in the spans. `pieces` are those of the whole file.
fn ranges_in(
    layer: &Layer,
    pieces: impl Iterator<Item = Piece>,
    spans: &HashSet<LayerSpan>,
) -> Vec<(u64, u64)> {
    let index = layer.index();
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for slice in index.span_slices(pieces) {
        let (from, to) = (slice.offset, slice.offset + slice.len);
        if spans.contains(&LayerSpan { layer: *index.layer(), span: slice.span }) {
            match ranges.last_mut() {
                Some(last) if last.1 == from => last.1 = to,
                _ => ranges.push((from, to)),
            }
        }
    }
    ranges
}

//! `df`: shows the disk space of the store, by kind and by image.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use clap::Args;
use serde::Serialize;

use super::{Context, gc, output};
use crate::image::{Digest, LayerDigest, TreeKey};
use crate::pipeline::read_manifest;
use crate::roots::LayerDirectories;
use crate::store::{ImageRecord, Store, StoreUsage};

const EXAMPLES: &str = "\
Examples:
  Show which kinds of files and which images take space:
    rcx-imagefs df
  Print the number of bytes that `gc` would free:
    rcx-imagefs df --json | jq '[.kinds[].reclaimable // 0] | add'";

/// Show the disk space of the store, by kind of file and by image
///
/// The first table has the kinds: blobs, indexes (with seekable forms), tree images, plain layers, layers unpacked for the overlay2 engine, interrupted downloads, and the
/// files of roots. RECLAIMABLE is what `gc` would free now. While a pull runs, the blobs that it has stored count as reclaimable, although `gc`
/// would wait for it.
///
/// The second table has the images. SIZE counts the blobs, indexes, tree image, plain and unpacked layers of an image; SHARED is the part that other
/// images use too, and UNIQUE the part that `rm` and `gc` would free. The first table counts shared files once, so its total is
/// smaller than the sum of the sizes.
#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct DfArgs {
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Serialize)]
struct DfJson {
    store: String,
    /// Bytes that can still be written to the store's filesystem.
    free: u64,
    kinds: Vec<KindJson>,
    images: Vec<ImageSpaceJson>,
}

#[derive(Debug, Serialize)]
struct KindJson {
    kind: &'static str,
    count: usize,
    bytes: u64,
    /// Bytes that `gc` would free; `None` if unknown.
    reclaimable: Option<u64>,
}

#[derive(Debug, Serialize)]
struct ImageSpaceJson {
    name: String,
    tags: Vec<String>,
    digest: String,
    bytes: u64,
    shared: u64,
    unique: u64,
}

pub(super) fn run(context: &Context, args: &DfArgs) -> anyhow::Result<()> {
    let store = context.open_store()?;
    let usage = store.usage()?;
    let records = store.refs()?.images;
    let unpacked = match LayerDirectories::existing(&store)? {
        Some(directories) => directories.sizes()?,
        None => BTreeMap::new(),
    };
    let (_, unpacked_unused) = gc::unpacked_layers(context, &store, true, |_| true)?;
    let roots = tree_size(&context.homes(&store)?.path());
    let shown = DfJson {
        store: store.path().display().to_string(),
        free: store.free_space()?,
        kinds: kinds(&usage, &unpacked, unpacked_unused, roots),
        images: images(context, &store, &records, &usage, &unpacked),
    };
    if args.json { output::json(&shown) } else { print(&shown) }
}

fn kinds(
    usage: &StoreUsage,
    unpacked: &BTreeMap<String, u64>,
    unpacked_unused: u64,
    (roots, root_bytes): (usize, u64),
) -> Vec<KindJson> {
    let of_layers = |kind, files: &BTreeMap<Digest, u64>| {
        let unused = files.iter().filter(|(digest, _)| !usage.referenced.contains(digest));
        let reclaimable = Some(unused.map(|(_, bytes)| bytes).sum());
        KindJson { kind, count: files.len(), bytes: files.values().sum(), reclaimable }
    };
    let unused_trees = usage.trees.iter().filter(|(key, _)| !usage.referenced_trees.contains(*key));
    let due = usage.downloads.iter().filter(|(_, is_due)| *is_due);
    vec![
        of_layers("blobs", &usage.blobs),
        of_layers("indexes", &usage.derived),
        KindJson {
            kind: "tree-images",
            count: usage.trees.len(),
            bytes: usage.trees.values().sum(),
            reclaimable: Some(unused_trees.map(|(_, bytes)| bytes).sum()),
        },
        of_layers("plain-layers", &usage.plain),
        KindJson {
            kind: "unpacked-layers",
            count: unpacked.len(),
            bytes: unpacked.values().sum(),
            reclaimable: Some(unpacked_unused),
        },
        KindJson {
            kind: "downloads",
            count: usage.downloads.len(),
            bytes: usage.downloads.iter().map(|(bytes, _)| bytes).sum(),
            reclaimable: Some(due.map(|(bytes, _)| bytes).sum()),
        },
        KindJson { kind: "roots", count: roots, bytes: root_bytes, reclaimable: None },
    ]
}

/// A file that images may share.
#[derive(Debug, PartialEq, Eq, Hash)]
enum Part {
    Blob(Digest),
    Derived(Digest),
    Tree(String),
    Plain(Digest),
    Unpacked(String),
}

fn images(
    context: &Context,
    store: &Store,
    records: &[ImageRecord],
    usage: &StoreUsage,
    unpacked: &BTreeMap<String, u64>,
) -> Vec<ImageSpaceJson> {
    let parts: Vec<HashSet<Part>> = records.iter().map(|record| parts_of(store, record)).collect();
    let mut users: HashMap<&Part, usize> = HashMap::new();
    for part in parts.iter().flatten() {
        *users.entry(part).or_default() += 1;
    }
    let size = |part: &Part| {
        let size = match part {
            Part::Blob(digest) => usage.blobs.get(digest),
            Part::Derived(digest) => usage.derived.get(digest),
            Part::Tree(key) => usage.trees.get(key),
            Part::Plain(digest) => usage.plain.get(digest),
            Part::Unpacked(name) => unpacked.get(name),
        };
        size.copied().unwrap_or(0)
    };
    let images = records.iter().zip(&parts).map(|(record, parts)| {
        let bytes: u64 = parts.iter().map(size).sum();
        let shared = parts.iter().filter(|part| users[part] > 1).map(size).sum();
        ImageSpaceJson {
            name: context.familiar(&record.name),
            tags: record.tags.iter().map(ToString::to_string).collect(),
            digest: record.digest.to_string(),
            bytes,
            shared,
            unique: bytes - shared,
        }
    });
    images.collect()
}

/// All files of an image. Those that its manifest names are left out if it cannot be read.
fn parts_of(store: &Store, record: &ImageRecord) -> HashSet<Part> {
    let mut parts = HashSet::from([Part::Blob(record.digest.digest())]);
    parts.extend(record.index.map(|index| Part::Blob(index.digest())));
    if let Ok(manifest) = read_manifest(store, &record.digest) {
        parts.insert(Part::Blob(manifest.config().digest));
        let layers = manifest.layers().iter().map(|layer| LayerDigest::new(layer.digest));
        parts.insert(Part::Tree(TreeKey::of(layers).hex()));
        for layer in manifest.layers() {
            let digest = layer.digest;
            parts.extend([Part::Blob(digest), Part::Derived(digest), Part::Plain(digest)]);
        }
    }
    parts.extend(LayerDirectories::names_for(store, record.digest).into_iter().map(Part::Unpacked));
    parts
}

/// The number of entries of a directory, and the disk space of everything below it. Files that cannot be read are left out: they may be
/// removed at any time, or belong to another user.
fn tree_size(directory: &Path) -> (usize, u64) {
    let entries = |directory: &Path| fs::read_dir(directory).into_iter().flatten().flatten();
    let count = entries(directory).filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).count();
    let mut bytes = 0;
    let mut hard_links = HashSet::new();
    let mut pending = vec![directory.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in entries(&directory) {
            // Does not follow links.
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.is_dir() {
                pending.push(entry.path());
            } else if metadata.nlink() > 1 && !hard_links.insert((metadata.dev(), metadata.ino())) {
                continue;
            }
            bytes += metadata.blocks() * 512;
        }
    }
    (count, bytes)
}

fn print(shown: &DfJson) -> anyhow::Result<()> {
    let size = |bytes: Option<u64>| bytes.map_or_else(|| "-".to_owned(), output::size);
    let mut rows: Vec<Vec<String>> = shown
        .kinds
        .iter()
        .map(|kind| {
            let count = kind.count.to_string();
            vec![kind.kind.to_owned(), count, output::size(kind.bytes), size(kind.reclaimable)]
        })
        .collect();
    let bytes = shown.kinds.iter().map(|kind| kind.bytes).sum();
    let reclaimable = shown.kinds.iter().filter_map(|kind| kind.reclaimable).sum();
    rows.push(vec!["total".to_owned(), String::new(), output::size(bytes), output::size(reclaimable)]);
    output::table(&["KIND", "COUNT", "SIZE", "RECLAIMABLE"], &rows)?;
    output::line(format!("{} free in {}", output::size(shown.free), shown.store))?;
    if shown.images.is_empty() {
        return Ok(());
    }
    output::line("")?;
    let rows: Vec<Vec<String>> = shown
        .images
        .iter()
        .map(|image| {
            let name = match image.tags.as_slice() {
                [] => format!("{}@{}", image.name, output::short_digest(&image.digest)),
                tags => format!("{}:{}", image.name, tags.join(",")),
            };
            vec![name, output::size(image.bytes), output::size(image.shared), output::size(image.unique)]
        })
        .collect();
    output::table(&["IMAGE", "SIZE", "SHARED", "UNIQUE"], &rows)
}

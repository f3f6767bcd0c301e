//! Opens what is in the store: a layer through its index, an image through its layers.

use std::io::BufReader;
use std::sync::Arc;
use std::time::Duration;

use memmap2::Mmap;

use super::layer::{Wanted, commit_derived, index};
use super::{Event, PipelineError, Progress};
use crate::image::{
    CONFIG_MAX, Digest, Document, DocumentKind, ImageConfig, LayerDigest, MANIFEST_MAX, Manifest,
    ManifestDigest, ManifestError,
};
use crate::index::{Index, IndexError, Layer, Source, open_file};
use crate::store::{BlobLock, Store};
use crate::tree::{Tree, merge};

/// Bytes read at once when an index is built from a blob in the store.
const READ: usize = 1 << 20;

/// How long opening a layer waits for another process that works on it: a daemon's lookup must come to an end.
const REBUILD_WAIT: Duration = Duration::from_secs(60);

/// An image that can be served.
#[derive(Debug)]
pub struct OpenImage {
    /// Its manifest's digest.
    pub digest: ManifestDigest,
    /// Its layers, the lowest first.
    pub layers: Vec<Arc<Layer>>,
    /// Their merged tree.
    pub tree: Tree,
}

/// The index of a layer; one that is missing, damaged, outdated or foreign is built anew from the blob.
///
/// Takes the blob's lock for that, unless the caller holds it: `lock`.
pub(super) fn open_index(
    store: &Store,
    digest: &LayerDigest,
    lock: Option<&BlobLock>,
    progress: &Progress,
) -> Result<Index<Mmap>, PipelineError> {
    let why = match usable_index(store, digest)? {
        Ok(index) => return Ok(index),
        Err(why) => why,
    };
    match why {
        Some(error) => tracing::warn!("layer {digest}: {error}; building its index from the blob"),
        None => tracing::warn!("layer {digest}: has no index; building it from the blob"),
    }
    progress.tell(Event::Rebuilding { digest: *digest });
    let blob = digest.digest();
    let _lock = match lock {
        Some(lock) => lock.clone(),
        None => store.lock_blob(&blob, Some(REBUILD_WAIT))?,
    };
    // Another process may have done it meanwhile.
    if let Ok(index) = usable_index(store, digest)? {
        return Ok(index);
    }
    rebuild(store, digest)?;
    usable_index(store, digest)?.map_err(|why| PipelineError::Layer {
        layer: *digest,
        source: match why {
            Some(error) => crate::index::BuildError::Unusable(error),
            None => crate::index::BuildError::Unusable(IndexError::Foreign),
        },
    })
}

/// The index if it can be used, or else what is wrong with it (`None`: there is none).
fn usable_index(
    store: &Store,
    digest: &LayerDigest,
) -> Result<Result<Index<Mmap>, Option<IndexError>>, PipelineError> {
    let Some(file) = store.index_file(digest)? else { return Ok(Err(None)) };
    let index = match open_file(&file, digest) {
        Ok(index) => index,
        Err(error) => return Ok(Err(Some(error))),
    };
    let seekable = store.seekable_file(digest)?;
    let seekable_size = match &seekable {
        Some(file) => file.metadata().map_err(IndexError::Io).map(|meta| meta.len()),
        None => Ok(0),
    };
    match seekable_size {
        Ok(size) if size >= index.seekable_size() => Ok(Ok(index)),
        // Without its seekable file the index is of no use, and both are made together.
        Ok(actual) => Ok(Err(Some(IndexError::Seekable { actual, declared: index.seekable_size() }))),
        Err(error) => Ok(Err(Some(error))),
    }
}

/// Builds the index of a blob in the store. The blob's own digest is checked on the way: what is derived from a damaged
/// blob would be damaged too.
fn rebuild(store: &Store, digest: &LayerDigest) -> Result<(), PipelineError> {
    let blob = digest.digest();
    if !store.has_blob(&blob, None)? {
        return Err(PipelineError::MissingBlob(blob));
    }
    store.verify_blob(&blob, |_| {})?;
    let wanted = Wanted {
        digest: *digest,
        size: store.blob_size(&blob)?,
        // What the tar is, is compared when the image is put together; here only the blob is known.
        diff_id: crate::image::DiffId::new(Digest::of(b"")),
        codec: None,
    };
    let (built, seekable) =
        index(store, &wanted, &mut BufReader::with_capacity(READ, store.open_blob(&blob)?))?;
    commit_derived(store, digest, built, seekable)
}

/// Opens a layer of the store for reading.
///
/// # Errors
/// Its blob is missing or has another length than was indexed, or its index cannot be built anew.
pub fn open_layer(store: &Store, layer: LayerDigest) -> Result<Arc<Layer>, PipelineError> {
    let blob = layer.digest();
    if !store.has_blob(&blob, None)? {
        return Err(PipelineError::MissingBlob(blob));
    }
    let index = open_index(store, &layer, None, &Progress::none())?;
    if !store.has_blob(&blob, Some(index.blob_size()))? {
        return Err(PipelineError::MissingBlob(blob));
    }
    let seekable = match index.seekable_size() {
        0 => None,
        _ => store.seekable_file(&layer)?.map(Source::File),
    };
    Ok(Arc::new(Layer::new(index, Source::File(store.open_blob(&blob)?), seekable)))
}

/// Reads the manifest of an image in the store.
///
/// # Errors
/// It is missing, damaged, or not one.
pub fn read_manifest(store: &Store, digest: &ManifestDigest) -> Result<Manifest, PipelineError> {
    let bytes = store.read_small(&digest.digest(), MANIFEST_MAX)?;
    // Another tool may have entered a multi-platform index into the layout; `pull` and `load` choose from it.
    let contradiction = ManifestError::Contradiction {
        kind: DocumentKind::Index,
        declared: "an image of the store".to_owned(),
    };
    let document = |source| PipelineError::Document { what: "manifest", digest: digest.digest(), source };
    match Document::parse(&bytes, None).map_err(document)? {
        Document::Manifest(manifest) => Ok(manifest),
        Document::Index(_) => Err(document(contradiction)),
    }
}

/// Reads the configuration of an image in the store.
///
/// # Errors
/// It is missing, damaged, or not one.
pub fn read_config(store: &Store, manifest: &Manifest) -> Result<ImageConfig, PipelineError> {
    let digest = manifest.config().digest;
    let bytes = store.read_small(&digest, CONFIG_MAX)?;
    ImageConfig::parse(&bytes).map_err(|source| PipelineError::Document {
        what: "configuration",
        digest,
        source,
    })
}

/// Opens an image of the store: its layers and their merged tree. `share` finds layers that are open already.
///
/// # Errors
/// Anything that keeps the image from being shown whole.
pub fn open_image(
    store: &Store,
    digest: ManifestDigest,
    share: impl Fn(&LayerDigest) -> Option<Arc<Layer>>,
) -> Result<OpenImage, PipelineError> {
    let manifest = read_manifest(store, &digest)?;
    let mut layers: Vec<Arc<Layer>> = Vec::new();
    for (layer, _, _) in manifest.typed_layers() {
        let shared = layers.iter().find(|open| *open.index().layer() == layer).cloned();
        layers.push(match shared.or_else(|| share(&layer)) {
            Some(open) => open,
            None => open_layer(store, layer)?,
        });
    }
    let indexes: Vec<&Index<Mmap>> = layers.iter().map(|layer| layer.index()).collect();
    let tree = merge(&indexes).map_err(|source| PipelineError::Merge { image: digest, source })?;
    Ok(OpenImage { digest, layers, tree })
}

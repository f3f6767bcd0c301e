//! Opens layers and images of the store.

use std::collections::HashSet;
use std::io::BufReader;
use std::sync::Arc;
use std::time::Duration;

use memmap2::Mmap;

use super::layer::{check_diff_id, check_index, commit_derived, index_blob};
use super::{PipelineError, ProgressEvent, ProgressSink};
use crate::error::chain_text;
use crate::image::{
    CONFIG_MAX, DiffId, Document, Image, ImageConfig, LayerDigest, MANIFEST_MAX, Manifest, ManifestDigest,
    ManifestError, Platform,
};
use crate::index::{Index, IndexError, Layer, LayerBytes, has_outdated_version, open_file, recorded_diff_id};
use crate::store::{BlobLock, Store};
use crate::tree::{Tree, merge};

/// Bytes read at once while an index is built from a blob in the store.
const READ: usize = 1 << 20;

/// How long opening a layer waits for another process that holds its lock. Bounded so that a lookup in the mount cannot hang.
const REBUILD_WAIT: Duration = Duration::from_secs(60);

/// An opened image.
#[derive(Debug)]
pub struct OpenImage {
    /// The digest of its manifest.
    pub digest: ManifestDigest,
    /// Its layers, lowest first.
    pub layers: Vec<Arc<Layer>>,
    /// The merged tree of the layers.
    pub tree: Tree,
}

/// Opens the index of a layer. An index that is missing, damaged or of an unknown version is rebuilt from the blob, while
/// holding the lock of the blob. An outdated index is used as it is.
///
/// `lock` is the blob's lock if the caller already holds it.
pub(super) fn open_index(
    store: &Store,
    digest: &LayerDigest,
    lock: Option<&BlobLock>,
    progress: &ProgressSink,
) -> Result<Index<Mmap>, PipelineError> {
    let reason = match usable_index(store, digest)? {
        Ok(index) => return Ok(index),
        Err(reason) => reason,
    };
    match reason {
        Some(error) => tracing::warn!("layer {digest}: {error}; building its index from the blob"),
        None => tracing::warn!("layer {digest}: index is missing; building its index from the blob"),
    }
    progress.send(ProgressEvent::Rebuilding { digest: *digest });
    let blob = digest.digest();
    let _lock = match lock {
        Some(lock) => lock.clone(),
        None => store.lock_blob(&blob, Some(REBUILD_WAIT))?,
    };
    // Another process may have built the index meanwhile.
    if let Ok(index) = usable_index(store, digest)? {
        return Ok(index);
    }
    rebuild(store, digest)?;
    usable_index(store, digest)?.map_err(|reason| PipelineError::Layer {
        layer: *digest,
        source: match reason {
            Some(error) => crate::index::BuildError::Unusable(error),
            None => crate::index::BuildError::Unusable(IndexError::Foreign),
        },
    })
}

/// Opens the index of a layer. An outdated index is rebuilt from the blob as well, which takes as long as indexing the layer anew.
pub(super) fn open_current_index(
    store: &Store,
    digest: &LayerDigest,
    lock: &BlobLock,
    progress: &ProgressSink,
) -> Result<Index<Mmap>, PipelineError> {
    let index = open_index(store, digest, Some(lock), progress)?;
    if !index.is_outdated() {
        return Ok(index);
    }
    progress.send(ProgressEvent::Rebuilding { digest: *digest });
    rebuild(store, digest)?;
    open_index(store, digest, Some(lock), progress)
}

/// Rebuilds the index of a layer if it is outdated, and returns whether it was. Programs that have the old index open keep it.
///
/// # Errors
/// Another process holds the lock of the layer for a minute, or the blob is missing or damaged. The old index is unchanged.
pub fn update_index(store: &Store, digest: &LayerDigest) -> Result<bool, PipelineError> {
    let is_outdated =
        || Ok::<_, PipelineError>(store.index_file(digest)?.is_some_and(|file| has_outdated_version(&file)));
    if !is_outdated()? {
        return Ok(false);
    }
    let _lock = store.lock_blob(&digest.digest(), Some(REBUILD_WAIT))?;
    // Another process may have rebuilt it meanwhile.
    if !is_outdated()? {
        return Ok(false);
    }
    rebuild(store, digest)?;
    Ok(true)
}

/// Rebuilds the outdated indexes of all layers in the store, one after the other, until `stopped` returns true. Failures are only
/// logged: the images can be used with the old indexes.
pub fn update_indexes(store: &Store, stopped: &dyn Fn() -> bool) {
    let images = match store.refs() {
        Ok(refs) => refs.images,
        Err(error) => return tracing::warn!("cannot look for outdated indexes: {}", chain_text(&error)),
    };
    let mut seen = HashSet::new();
    for image in images {
        // An image whose manifest cannot be read is reported when it is used.
        let Ok(manifest) = read_manifest(store, &image.digest) else { continue };
        for layer in manifest.layers().iter().map(|layer| LayerDigest::new(layer.digest)) {
            if stopped() {
                return;
            }
            if !seen.insert(layer) {
                continue;
            }
            match update_index(store, &layer) {
                Ok(true) => tracing::info!(%layer, "rebuilt the index, which was of an older version"),
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(%layer, "cannot rebuild the index, which is of an older version: {}", chain_text(&error));
                }
            }
        }
    }
}

/// Returns the index, or the reason why it cannot be used (`None` if it is missing).
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
        // Without its seekable file the index is useless; both are built together.
        Ok(actual) => Ok(Err(Some(IndexError::Seekable { actual, declared: index.seekable_size() }))),
        Err(error) => Ok(Err(Some(error))),
    }
}

/// Builds the index of a blob in the store. Checks the blob's digest first, since an index of a damaged blob would be wrong.
fn rebuild(store: &Store, digest: &LayerDigest) -> Result<(), PipelineError> {
    let blob = digest.digest();
    if !store.has_blob(&blob, None)? {
        return Err(PipelineError::MissingBlob(blob));
    }
    store.verify_blob(&blob, |_| {})?;
    let file = store.open_blob(&blob)?;
    let mut input = BufReader::with_capacity(READ, &file);
    // Size and diff ID are properties of an image: `OpenImage::open` compares them with the index.
    let (built, seekable) = index_blob(store, *digest, store.blob_size(&blob)?, &mut input, None)?;
    commit_derived(store, digest, built, seekable, &file)
}

/// Opens a layer of the store for reading.
///
/// # Errors
/// The blob is missing or has another length than the index declares, or the index cannot be built.
pub fn open_layer(store: &Store, layer: LayerDigest) -> Result<Arc<Layer>, PipelineError> {
    let blob = layer.digest();
    if !store.has_blob(&blob, None)? {
        return Err(PipelineError::MissingBlob(blob));
    }
    let index = open_index(store, &layer, None, &ProgressSink::none())?;
    if !store.has_blob(&blob, Some(index.blob_size()))? {
        return Err(PipelineError::MissingBlob(blob));
    }
    let seekable = match index.seekable_size() {
        0 => None,
        _ => store.seekable_file(&layer)?.map(LayerBytes::File),
    };
    Ok(Arc::new(Layer::new(index, LayerBytes::File(store.open_blob(&blob)?), seekable)))
}

/// Reads the manifest of an image in the store.
///
/// # Errors
/// The manifest is missing, damaged or invalid.
pub fn read_manifest(store: &Store, digest: &ManifestDigest) -> Result<Manifest, PipelineError> {
    let bytes = store.read_small(&digest.digest(), MANIFEST_MAX)?;
    let document = |source| PipelineError::Document { kind: "manifest", digest: digest.digest(), source };
    match Document::parse(&bytes, None).map_err(document)? {
        Document::Manifest(manifest) => Ok(manifest),
        // Another tool may have put a multi-platform index into the layout; `pull` and `load` would have chosen a manifest.
        Document::Index(_) => Err(document(ManifestError::UnexpectedIndex)),
    }
}

/// Reads the manifest and the configuration of an image in the store, and checks them against each other.
///
/// # Errors
/// One of the two is missing, damaged or invalid, or they contradict each other.
pub fn read_image(store: &Store, digest: &ManifestDigest) -> Result<Image, PipelineError> {
    let manifest = read_manifest(store, digest)?;
    let config = manifest.config().digest;
    let bytes = store.read_small(&config, CONFIG_MAX)?;
    validate(*digest, manifest, &bytes)
}

/// Checks a manifest and its configuration against each other.
pub(super) fn validate(
    digest: ManifestDigest,
    manifest: Manifest,
    config: &[u8],
) -> Result<Image, PipelineError> {
    let failed = document_error(&manifest);
    Image::new(digest, manifest, config).map_err(failed)
}

/// The same with a configuration that was parsed before. The caller has checked that the manifest names it.
pub(super) fn with_config(
    digest: ManifestDigest,
    manifest: Manifest,
    config: Arc<ImageConfig>,
) -> Result<Image, PipelineError> {
    let failed = document_error(&manifest);
    Image::with_config(digest, manifest, config).map_err(failed)
}

fn document_error(manifest: &Manifest) -> impl FnOnce(ManifestError) -> PipelineError + use<> {
    let digest = manifest.config().digest;
    move |source| PipelineError::Document { kind: "configuration", digest, source }
}

/// Checks that an image is for the requested platform. With `any_platform`, another platform is only logged.
///
/// A registry or an archive may offer a single image under a name, so nothing was chosen by platform before.
pub(super) fn check_platform(
    image: &Image,
    wanted: &Platform,
    any_platform: bool,
) -> Result<(), PipelineError> {
    if image.config().is_for(wanted) {
        return Ok(());
    }
    let (stated, wanted) = (image.config().platform.clone(), wanted.clone());
    let error = PipelineError::OtherPlatform { image: image.digest(), stated, wanted };
    if any_platform {
        tracing::warn!("{error}");
        return Ok(());
    }
    Err(error)
}

/// Returns the diff IDs of an image's layers, lowest first, after comparing each with the digest of the layer's tar.
///
/// Another tool may have written the image into the store's layout, with any diff IDs. Data that images
/// share by diff ID must be keyed by verified diff IDs. Otherwise, one image could replace the content of another.
///
/// Reads only the header of each index; an index that is missing or unusable is built from the blob.
///
/// # Errors
/// A layer decodes to another tar, or its blob is missing or damaged.
pub fn verified_diff_ids(store: &Store, image: &Image) -> Result<Vec<DiffId>, PipelineError> {
    let mut diff_ids = Vec::with_capacity(image.layers().len());
    for layer in image.layers() {
        let recorded = match store.index_file(&layer.digest())? {
            Some(file) => recorded_diff_id(&file, &layer.digest()),
            None => None,
        };
        if recorded != Some(layer.diff_id()) {
            let index = open_index(store, &layer.digest(), None, &ProgressSink::none())?;
            check_diff_id(layer, *index.diff_id())?;
        }
        diff_ids.push(layer.diff_id());
    }
    Ok(diff_ids)
}

/// Reads and opens an image of the store. `share` returns layers that are open already.
///
/// # Errors
/// The errors of [`read_image`] and [`OpenImage::open`].
pub fn open_image(
    store: &Store,
    digest: ManifestDigest,
    share: impl Fn(&LayerDigest) -> Option<Arc<Layer>>,
) -> Result<OpenImage, PipelineError> {
    OpenImage::open(store, &read_image(store, &digest)?, share)
}

impl OpenImage {
    /// Opens the layers of an image and merges them. `share` returns layers that are open already.
    ///
    /// # Errors
    /// A layer cannot be opened, contradicts the image's documents, or cannot be merged with the layers below it.
    pub fn open(
        store: &Store,
        image: &Image,
        share: impl Fn(&LayerDigest) -> Option<Arc<Layer>>,
    ) -> Result<Self, PipelineError> {
        let mut layers: Vec<Arc<Layer>> = Vec::with_capacity(image.layers().len());
        for layer in image.layers() {
            let digest = layer.digest();
            let shared = layers.iter().find(|open| *open.index().layer() == digest).cloned();
            let open = match shared.or_else(|| share(&digest)) {
                Some(open) => open,
                None => open_layer(store, digest)?,
            };
            check_index(layer, open.index())?;
            layers.push(open);
        }
        let indexes: Vec<&Index<Mmap>> = layers.iter().map(|layer| layer.index()).collect();
        let digest = image.digest();
        let tree = merge(&indexes).map_err(|source| PipelineError::Merge { image: digest, source })?;
        Ok(Self { digest, layers, tree })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{Descriptor, Digest, media};

    /// A store with the blobs of layers, and images of them that another tool could have written.
    struct ForeignLayout {
        _dir: tempfile::TempDir,
        store: Store,
    }

    impl ForeignLayout {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let store = Store::open_or_create(dir.path()).unwrap();
            Self { _dir: dir, store }
        }

        fn put(&self, bytes: &[u8]) -> Digest {
            let digest = Digest::of(bytes);
            self.store.put_small(&digest, bytes).unwrap();
            digest
        }

        /// Puts an image of uncompressed layers, lowest first, each the tar of one empty file of that name.
        fn image(&self, layers: &[&str], diff_ids: &[Digest]) -> ManifestDigest {
            let layers = layers.iter().map(|name| {
                let tar = tar_of(name);
                Descriptor::new(media::OCI_LAYER, self.put(&tar), tar.len() as u64)
            });
            let config = serde_json::json!({"rootfs": {"type": "layers", "diff_ids": diff_ids}}).to_string();
            let config = Descriptor::new(media::OCI_CONFIG, self.put(config.as_bytes()), config.len() as u64);
            let manifest = Manifest::new(config, layers.collect()).unwrap();
            ManifestDigest::new(self.put(&manifest.to_bytes()))
        }

        fn open(&self, image: ManifestDigest) -> Result<OpenImage, PipelineError> {
            open_image(&self.store, image, |_| None)
        }

        fn verified(&self, image: ManifestDigest) -> Result<Vec<DiffId>, PipelineError> {
            verified_diff_ids(&self.store, &read_image(&self.store, &image)?)
        }
    }

    fn tar_of(name: &str) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.set_size(0);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, &b""[..]).unwrap();
        tar.into_inner().unwrap()
    }

    fn diff_id(name: &str) -> Digest {
        Digest::of(&tar_of(name))
    }

    #[test]
    fn true_diff_ids_are_verified_with_and_without_an_index() {
        let layout = ForeignLayout::new();
        let image = layout.image(&["a", "b"], &[diff_id("a"), diff_id("b")]);
        for _ in 0..2 {
            let verified = layout.verified(image).unwrap();
            assert_eq!(verified, [DiffId::new(diff_id("a")), DiffId::new(diff_id("b"))]);
        }
        assert_eq!(layout.open(image).unwrap().layers.len(), 2);
    }

    #[test]
    fn another_number_of_diff_ids_than_layers_is_refused() {
        let layout = ForeignLayout::new();
        let ids = [diff_id("a"), diff_id("b"), diff_id("c")];
        for count in [0, 1, 3] {
            let image = layout.image(&["a", "b"], &ids[..count]);
            for error in [layout.open(image).err(), layout.verified(image).err()] {
                let source = match error {
                    Some(PipelineError::Document { source, .. }) => source,
                    other => panic!("{count} diff IDs: {other:?}"),
                };
                assert!(matches!(source, ManifestError::LayerCount { layers: 2, .. }), "{source}");
            }
        }
    }

    #[test]
    fn false_diff_id_is_refused_with_and_without_an_index() {
        let layout = ForeignLayout::new();
        let image = layout.image(&["a", "b"], &[diff_id("a"), diff_id("c")]);
        for _ in 0..2 {
            for error in [layout.open(image).err(), layout.verified(image).err()] {
                match error {
                    Some(PipelineError::WrongDiffId { layer, actual, declared }) => {
                        assert_eq!(layer.digest(), diff_id("b"));
                        assert_eq!((actual.digest(), declared.digest()), (diff_id("b"), diff_id("c")));
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
    }

    #[test]
    fn diff_ids_in_another_order_are_refused() {
        let layout = ForeignLayout::new();
        let image = layout.image(&["a", "b"], &[diff_id("b"), diff_id("a")]);
        assert!(matches!(layout.open(image), Err(PipelineError::WrongDiffId { .. })));
        assert!(matches!(layout.verified(image), Err(PipelineError::WrongDiffId { .. })));
    }
}

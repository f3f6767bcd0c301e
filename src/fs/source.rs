//! Reads references, images and layers from the store.

use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use super::{LoadError, Namespace, PublishedImage, PublishedReference};
use crate::error::chain_text;
use crate::image::{LayerDigest, ManifestDigest, TreeKey};
use crate::index::Layer;
use crate::layer::Timestamp;
use crate::os::AtPath as _;
use crate::pipeline::{OpenImage, ReadTrace, open_image, open_layer, read_trace, save_trace};
use crate::store::{Slot, Store, StoreError};
use crate::tree::Tree;

/// An image whose layers are open and merged.
pub(super) struct LoadedImage {
    pub(super) tree: Tree,
    /// Slots and layers, lowest first.
    pub(super) layers: Vec<(u32, Arc<Layer>)>,
}

/// The identity of the file that contains a layer's blob. It changes when a damaged blob is fetched again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BlobFileId {
    device: u64,
    inode: u64,
}

/// A store, and the registry that the names of its images omit.
#[derive(Debug)]
pub struct ImageSource {
    store: Store,
    default_registry: Option<String>,
}

impl ImageSource {
    /// Creates a source of the images in `store`. Names in `default_registry` omit the registry.
    #[must_use]
    pub fn new(store: Store, default_registry: Option<String>) -> Self {
        Self { store, default_registry }
    }

    /// Returns the names that a mount of the store shows. Assigns a slot to each image without one.
    ///
    /// # Errors
    /// The references of the store cannot be read.
    pub fn namespace(&self) -> Result<Namespace, LoadError> {
        let (published, changed) = self.published()?;
        Ok(Namespace::new(&published, changed, None))
    }

    /// Returns all references and the time of their last change. Assigns a slot to each image without one.
    pub(super) fn published(&self) -> Result<(Vec<PublishedReference>, Timestamp), LoadError> {
        // Read the time first. A change between the two reads then appears with a time that is too old, but the next refresh
        // still sees a newer time.
        let path = self.store.index_json_path();
        let metadata = std::fs::metadata(&path).at("stat", &path)?;
        let changed =
            Timestamp { sec: metadata.mtime(), nsec: u32::try_from(metadata.mtime_nsec()).unwrap_or(0) };
        let mut published = Vec::new();
        for record in self.store.refs()?.images {
            let name = record.name.familiar(self.default_registry.as_deref());
            let slot = self.store.image_slot(&record.digest)?.get();
            let image = PublishedImage { manifest: record.digest, slot };
            let tags = match record.tags.is_empty() {
                true => vec![None],
                false => record.tags.iter().map(|tag| Some(tag.to_string())).collect(),
            };
            published.extend(tags.into_iter().map(|tag| PublishedReference {
                name: name.clone(),
                tag,
                index: record.index,
                image,
            }));
        }
        Ok((published, changed))
    }

    /// Opens an image's layers and merges them. Layers that `opened` returns by their slot are not opened again.
    pub(super) fn open_image(
        &self,
        manifest: ManifestDigest,
        opened: impl Fn(u32) -> Option<Arc<Layer>>,
    ) -> Result<LoadedImage, LoadError> {
        let share = |layer: &LayerDigest| opened(self.store.layer_slot(layer).ok()?.get());
        let OpenImage { layers, tree, .. } = open_image(&self.store, manifest, share)?;
        let layers = layers.into_iter().map(|layer| {
            let slot = self.store.layer_slot(layer.index().layer())?.get();
            Ok((slot, layer))
        });
        Ok(LoadedImage { tree, layers: layers.collect::<Result<_, StoreError>>()? })
    }

    /// Returns the image with this slot, published or not.
    pub(super) fn image(&self, slot: u32) -> Option<PublishedImage> {
        let manifest = self.store.image_of(Slot::new(slot)?).ok()??;
        Some(PublishedImage { manifest, slot })
    }

    /// Opens the layer with this slot. Returns `None` if no layer has the slot.
    pub(super) fn open_layer(&self, slot: u32) -> Result<Option<Arc<Layer>>, LoadError> {
        let Some(slot) = Slot::new(slot) else { return Ok(None) };
        let Some(layer) = self.store.layer_of(slot)? else { return Ok(None) };
        Ok(Some(open_layer(&self.store, layer)?))
    }

    /// Opens a layer, and assigns a slot to it if it has none. Returns `None` if the store does not have its blob.
    pub(super) fn open_layer_by_digest(
        &self,
        layer: LayerDigest,
    ) -> Result<Option<(u32, Arc<Layer>)>, LoadError> {
        if !self.store.has_blob(&layer.digest(), None)? {
            return Ok(None);
        }
        let open = open_layer(&self.store, layer)?;
        Ok(Some((self.store.layer_slot(&layer)?.get(), open)))
    }

    /// Returns the trace of the images with these layers; an empty one if there is none that can be used.
    pub(super) fn trace(&self, key: &TreeKey) -> ReadTrace {
        read_trace(&self.store, key).unwrap_or_else(|error| {
            tracing::warn!("cannot read a trace: {}", chain_text(&error));
            ReadTrace::default()
        })
    }

    /// Stores a trace, unless all images with these layers have been removed.
    pub(super) fn save_trace(&self, key: &TreeKey, trace: &ReadTrace) -> Result<(), LoadError> {
        match self.store.tree_file(key)? {
            Some(_) => Ok(save_trace(&self.store, key, trace)?),
            None => Ok(()),
        }
    }

    /// Returns the identity of the file that now contains a layer's blob; `None` if the blob is missing.
    pub(super) fn blob_file(&self, layer: &LayerDigest) -> Option<BlobFileId> {
        let metadata = std::fs::metadata(self.store.blob_path(&layer.digest())).ok()?;
        Some(BlobFileId { device: metadata.dev(), inode: metadata.ino() })
    }
}

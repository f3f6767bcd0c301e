//! Where images come from.

use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use super::{PublishedImage, PublishedReference};
use crate::image::{LayerDigest, ManifestDigest};
use crate::index::Layer;
use crate::layer::Timestamp;
use crate::pipeline::{OpenImage, open_image, open_layer};
use crate::store::{Slot, Store};
use crate::tree::Tree;

/// Why references could not be read, or an image or a layer not be opened.
pub type LoadError = Box<dyn std::error::Error + Send + Sync>;

/// An image, opened.
pub(super) struct LoadedImage {
    pub(super) tree: Tree,
    /// Slots and layers, lowest first.
    pub(super) layers: Vec<(u32, Arc<Layer>)>,
}

/// Which file a layer's blob is: another one once a damaged blob has been fetched again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BlobFileId {
    device: u64,
    inode: u64,
}

/// A store, and how its names are shown.
#[derive(Debug)]
pub struct ImageSource {
    store: Store,
    default_registry: Option<String>,
}

impl ImageSource {
    /// Images come from `store`; names of `default_registry` are shown without it.
    #[must_use]
    pub fn new(store: Store, default_registry: Option<String>) -> Self {
        Self { store, default_registry }
    }

    /// All references, and when they last changed. An image that has no slot yet gets one.
    pub(super) fn published(&self) -> Result<(Vec<PublishedReference>, Timestamp), LoadError> {
        // First the time: what changes in between is shown with too old a time rather than never noticed.
        let metadata = std::fs::metadata(self.store.index_json_path())?;
        let changed =
            Timestamp { sec: metadata.mtime(), nsec: u32::try_from(metadata.mtime_nsec()).unwrap_or(0) };
        let mut published = Vec::new();
        for record in self.store.refs()?.images {
            let name = record.name.familiar(self.default_registry.as_deref());
            let image = PublishedImage {
                manifest: record.digest,
                slot: self.store.image_slot(&record.digest)?.get(),
            };
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

    /// Opens an image's layers, except those that `known` has, and merges them.
    pub(super) fn open_image(
        &self,
        manifest: ManifestDigest,
        known: impl Fn(u32) -> Option<Arc<Layer>>,
    ) -> Result<LoadedImage, LoadError> {
        let share = |layer: &LayerDigest| known(self.store.layer_slot(layer).ok()?.get());
        let OpenImage { layers, tree, .. } = open_image(&self.store, manifest, share)?;
        let slotted = layers.into_iter().map(|layer| {
            let slot = self.store.layer_slot(layer.index().layer())?.get();
            Ok((slot, layer))
        });
        Ok(LoadedImage { tree, layers: slotted.collect::<Result<_, LoadError>>()? })
    }

    /// The image that a slot was given to, published or not.
    pub(super) fn image(&self, slot: u32) -> Option<PublishedImage> {
        let manifest = self.store.image_of(Slot::new(slot)?).ok()??;
        Some(PublishedImage { manifest, slot })
    }

    /// Opens the layer that a slot was given to; `None` where it was given to none.
    pub(super) fn open_layer(&self, slot: u32) -> Result<Option<Arc<Layer>>, LoadError> {
        let Some(slot) = Slot::new(slot) else { return Ok(None) };
        let Some(layer) = self.store.layer_of(slot)? else { return Ok(None) };
        Ok(Some(open_layer(&self.store, layer)?))
    }

    /// The file in which a layer's blob is now; `None` where there is none.
    pub(super) fn blob_file(&self, layer: &LayerDigest) -> Option<BlobFileId> {
        let metadata = std::fs::metadata(self.store.blob_path(&layer.digest())).ok()?;
        Some(BlobFileId { device: metadata.dev(), inode: metadata.ino() })
    }
}

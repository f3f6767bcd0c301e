//! Open layers: one handle for each, shared by all images and layer files.
//!
//! A layer of an image stays open until the process ends, like the image. A layer that only a layer file uses is closed again.

use std::collections::HashMap;
use std::sync::{Arc, RwLock};

use tracing::info;

use super::source::BlobFileId;
use super::{ImageSource, LoadError, StatFs};
use crate::index::Layer;
use crate::os::ignore_poison;

/// A layer and its slot.
pub(super) type SlotLayer = (u32, Arc<Layer>);

/// All open layers, by slot.
#[derive(Debug)]
pub(super) struct LayerTable {
    source: Arc<ImageSource>,
    layers: RwLock<HashMap<u32, ServedLayer>>,
}

/// An open layer, and the file that contained its blob when it was opened.
#[derive(Debug)]
struct ServedLayer {
    layer: Arc<Layer>,
    blob: Option<BlobFileId>,
    /// Whether the layer stays open, because an image uses it.
    kept: bool,
}

impl LayerTable {
    pub(super) fn new(source: Arc<ImageSource>) -> Self {
        Self { source, layers: RwLock::default() }
    }

    /// Returns the layer if it is open.
    pub(super) fn opened(&self, slot: u32) -> Option<Arc<Layer>> {
        ignore_poison(self.layers.read()).get(&slot).map(|open| Arc::clone(&open.layer))
    }

    /// Returns the layer, and opens it if necessary: the kernel may know its inodes from an earlier process. `None` if the
    /// store does not know the slot.
    pub(super) fn get_or_open(&self, slot: u32) -> Result<Option<Arc<Layer>>, LoadError> {
        if let Some(kept) = ignore_poison(self.layers.read()).get(&slot).filter(|open| open.kept) {
            return Ok(Some(Arc::clone(&kept.layer)));
        }
        let layer = match self.opened(slot) {
            Some(layer) => Some(layer),
            None => self.source.open_layer(slot)?,
        };
        Ok(layer.map(|layer| self.insert(slot, layer)))
    }

    /// Keeps a layer open. Returns the existing handle if the layer is open already.
    pub(super) fn insert(&self, slot: u32, layer: Arc<Layer>) -> Arc<Layer> {
        self.add(slot, layer, true)
    }

    /// The same until [`LayerTable::close`].
    pub(super) fn insert_closable(&self, slot: u32, layer: Arc<Layer>) -> Arc<Layer> {
        self.add(slot, layer, false)
    }

    fn add(&self, slot: u32, layer: Arc<Layer>, kept: bool) -> Arc<Layer> {
        let blob = self.source.blob_file(layer.index().layer());
        let mut layers = ignore_poison(self.layers.write());
        let served = layers.entry(slot).or_insert(ServedLayer { layer, blob, kept });
        served.kept |= kept;
        Arc::clone(&served.layer)
    }

    /// Closes a layer unless an image uses it.
    pub(super) fn close(&self, slot: u32) {
        let mut layers = ignore_poison(self.layers.write());
        if layers.get(&slot).is_some_and(|served| !served.kept) {
            layers.remove(&slot);
        }
    }

    /// Returns another handle after a read through `failed` has failed: the handle that replaced it, or a new handle if the
    /// blob has been fetched again since. Returns `None` if there is no other handle.
    pub(super) fn replacement(&self, slot: u32, failed: &Arc<Layer>) -> Option<Arc<Layer>> {
        let current = self.source.blob_file(failed.index().layer())?;
        let open = self.opened(slot)?;
        if !Arc::ptr_eq(&open, failed) {
            return Some(open);
        }
        let previous = ignore_poison(self.layers.read()).get(&slot)?.blob;
        if previous == Some(current) {
            return None;
        }
        let layer = self.source.open_layer(slot).ok()??;
        info!(layer = %layer.index().layer(), "the blob was replaced; opened the layer again");
        let mut layers = ignore_poison(self.layers.write());
        let kept = layers.get(&slot).is_none_or(|served| served.kept);
        layers.insert(slot, ServedLayer { layer: Arc::clone(&layer), blob: Some(current), kept });
        Some(layer)
    }

    /// Returns the number of open layers.
    pub(super) fn len(&self) -> usize {
        ignore_poison(self.layers.read()).len()
    }

    /// Returns the totals of all open layers.
    pub(super) fn totals(&self) -> StatFs {
        let layers = ignore_poison(self.layers.read());
        layers.values().fold(StatFs::default(), |sum, ServedLayer { layer, .. }| StatFs {
            bytes: sum.bytes.saturating_add(layer.index().tar_size()),
            files: sum.files.saturating_add(layer.index().len() as u64),
        })
    }
}

//! Open layers: one handle for each, shared by all images and layer files.
//!
//! A layer that belongs to no open image, that the kernel knows no layer file of, and that nobody has used lately is closed, and opened
//! again at the next request.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use tracing::info;

use super::source::BlobFileId;
use super::{ImageSource, LoadError, StatFs};
use crate::index::Layer;
use crate::os::ignore_poison;

/// Time after its last use in which a layer of no open image stays open.
const USED: Duration = Duration::from_secs(60);
/// The most layers of no open image that stay open.
const UNUSED_MAX: usize = 64;

/// A layer and its slot.
pub(super) type SlotLayer = (u32, Arc<Layer>);

/// All open layers, by slot.
#[derive(Debug)]
pub(super) struct LayerTable {
    source: Arc<ImageSource>,
    layers: RwLock<HashMap<u32, ServedLayer>>,
    /// The times of layers count from here.
    started: Instant,
}

/// An open layer, and the file that contained its blob when it was opened.
#[derive(Debug)]
struct ServedLayer {
    layer: Arc<Layer>,
    blob: Option<BlobFileId>,
    /// Whether the layer stays open until [`LayerTable::close_unused`], because an image used it.
    kept: bool,
    /// Whether the layer stays open until [`LayerTable::close`], because the kernel knows its file.
    has_file: bool,
    /// When the layer was last asked for, in milliseconds.
    used: AtomicU64,
}

impl LayerTable {
    pub(super) fn new(source: Arc<ImageSource>) -> Self {
        Self { source, layers: RwLock::default(), started: Instant::now() }
    }

    /// Returns the layer if it is open.
    pub(super) fn opened(&self, slot: u32) -> Option<Arc<Layer>> {
        let layers = ignore_poison(self.layers.read());
        let open = layers.get(&slot)?;
        open.used.store(self.now(), Ordering::Relaxed);
        Some(Arc::clone(&open.layer))
    }

    /// Returns the layer, and opens it if necessary: the kernel may know its inodes from an earlier process. `None` if the
    /// store does not know the slot.
    pub(super) fn get_or_open(&self, slot: u32) -> Result<Option<Arc<Layer>>, LoadError> {
        if let Some(kept) = ignore_poison(self.layers.read()).get(&slot).filter(|open| open.kept) {
            kept.used.store(self.now(), Ordering::Relaxed);
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
        let used = AtomicU64::new(self.now());
        let served = layers.entry(slot).or_insert(ServedLayer { layer, blob, kept, has_file: !kept, used });
        served.kept |= kept;
        served.has_file |= !kept;
        served.used.store(self.now(), Ordering::Relaxed);
        Arc::clone(&served.layer)
    }

    /// Closes a layer whose file the kernel has forgotten, unless an image uses it.
    pub(super) fn close(&self, slot: u32) {
        let mut layers = ignore_poison(self.layers.write());
        let Some(served) = layers.get_mut(&slot) else { return };
        served.has_file = false;
        if !served.kept {
            layers.remove(&slot);
        }
    }

    /// Closes the layers that are not in `of_open_images` and that nobody uses.
    pub(super) fn close_unused(&self, of_open_images: &HashSet<u32>) {
        let now = self.now();
        let recent = u64::try_from(USED.as_millis()).unwrap_or(u64::MAX);
        let mut layers = ignore_poison(self.layers.write());
        // A handle that only the table holds is in use by no request: requests take it under the lock.
        let mut unused: Vec<(u64, u32)> = layers
            .iter()
            .filter(|(slot, open)| {
                open.kept && !of_open_images.contains(slot) && Arc::strong_count(&open.layer) == 1
            })
            .map(|(slot, open)| (open.used.load(Ordering::Relaxed), *slot))
            .collect();
        unused.sort_unstable_by(|one, other| other.cmp(one));
        for (position, (used, slot)) in unused.into_iter().enumerate() {
            if position < UNUSED_MAX && now.saturating_sub(used) < recent {
                continue;
            }
            match layers.get_mut(&slot) {
                Some(served) if served.has_file => served.kept = false,
                _ => drop(layers.remove(&slot)),
            }
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
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
        let (kept, has_file) =
            layers.get(&slot).map_or((true, false), |served| (served.kept, served.has_file));
        let used = AtomicU64::new(self.now());
        let served = ServedLayer { layer: Arc::clone(&layer), blob: Some(current), kept, has_file, used };
        layers.insert(slot, served);
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

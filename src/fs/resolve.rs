//! Resolves inode numbers to entries of layers and nodes of images, and opens both on demand.
//!
//! Lock order: the lock of closing, the image table, an image's state, the layer table, the namespace. The namespace's lock is held only to copy or replace its
//! `Arc`. No lock is held while an image or layer is opened or read.

use std::sync::{Arc, Mutex, RwLock, TryLockError};
use std::time::{Duration, Instant};

use tracing::{debug, info, warn};

use super::attr::InodeAttr;
use super::images::ImageTable;
use super::layers::{LayerTable, SlotLayer};
use super::{DecodedIno, FsError, ImageSource, Ino, Namespace, NamespaceNode, PublishedImage};
use crate::error::chain_text;
use crate::index::{EntryId, IndexedKind};
use crate::os::{ignore_poison, release_freed_memory};
use crate::tree::{LayerNo, NodeId, NodeSource, Tree};

/// Bytes of closed images from which on freed memory is returned to the kernel: merging a large image leaves more than its tree.
const RELEASE_FROM: usize = 4 << 20;

/// The current namespace, and all open images and layers.
#[derive(Debug)]
pub(super) struct Resolver {
    source: Arc<ImageSource>,
    namespace: RwLock<Arc<Namespace>>,
    pub(super) images: ImageTable<ServedImage>,
    pub(super) layers: Arc<LayerTable>,
    /// Held while images are closed, and while the namespace is replaced, which decides on the images that may be closed.
    closing: Mutex<()>,
}

/// An open image.
#[derive(Debug)]
pub(super) struct ServedImage {
    image: PublishedImage,
    pub(super) tree: Tree,
    /// Lowest first, as the tree numbers them.
    layers: Vec<SlotLayer>,
}

/// The source of an inode's attributes and content.
pub(super) enum InodeSource {
    /// An entry of a layer.
    Entry(EntryInode),
    /// A directory without an entry in any layer. It has only these attributes.
    Implied(InodeAttr),
}

/// An inode whose source is an entry of a layer.
pub(super) struct EntryInode {
    ino: Ino,
    pub(super) layer: SlotLayer,
    pub(super) entry: EntryId,
    nlink: u32,
}

impl Resolver {
    /// Creates a resolver with an empty namespace. See [`ImageTable::new`] for the two durations.
    pub(super) fn new(source: Arc<ImageSource>, image_deadline: Duration, retry_after: Duration) -> Self {
        Self {
            namespace: RwLock::default(),
            images: ImageTable::new(image_deadline, retry_after),
            layers: Arc::new(LayerTable::new(Arc::clone(&source))),
            closing: Mutex::default(),
            source,
        }
    }

    pub(super) fn namespace(&self) -> Arc<Namespace> {
        let namespace = ignore_poison(self.namespace.read());
        Arc::clone(&namespace)
    }

    pub(super) fn set_namespace(&self, namespace: Arc<Namespace>) {
        let _lock = ignore_poison(self.closing.lock());
        *ignore_poison(self.namespace.write()) = namespace;
    }

    /// Resolves a number that must be a regular file.
    pub(super) fn regular_file(&self, ino: Ino) -> Result<EntryInode, FsError> {
        if let DecodedIno::Namespace(_) = decode(ino)? {
            return match self.namespace().node(ino) {
                Some(NamespaceNode::Directory(_)) => Err(FsError::IsADirectory(ino)),
                Some(NamespaceNode::Symlink(_)) => Err(FsError::WrongKind(ino)),
                None => Err(FsError::Stale(ino)),
            };
        }
        match self.inode(ino)? {
            InodeSource::Implied(_) => Err(FsError::IsADirectory(ino)),
            InodeSource::Entry(inode) => match inode.kind() {
                IndexedKind::Regular { .. } => Ok(inode),
                IndexedKind::Directory => Err(FsError::IsADirectory(ino)),
                _ => Err(FsError::WrongKind(ino)),
            },
        }
    }

    /// Resolves a number outside the namespace.
    pub(super) fn inode(&self, ino: Ino) -> Result<InodeSource, FsError> {
        match decode(ino)? {
            DecodedIno::Namespace(_) => Err(FsError::Stale(ino)),
            DecodedIno::Image { slot, node } => {
                let open = self.image_by_slot(slot, ino)?;
                let node = NodeId::new(node);
                if !open.tree.contains(node) {
                    return Err(FsError::Stale(ino));
                }
                match open.inode(node)? {
                    // The node has the number of its layer's entry, so `ino` was never handed out.
                    InodeSource::Entry(inode) if inode.ino != ino => Err(FsError::Stale(ino)),
                    inode => Ok(inode),
                }
            }
            DecodedIno::Layer { slot, entry } => {
                let layer = self.layers.get_or_open(slot);
                let layer = layer.map_err(|source| FsError::Layer { slot, source })?;
                let layer = layer.ok_or(FsError::Stale(ino))?;
                let entry = EntryId::new(entry);
                if !layer.index().contains(entry) {
                    return Err(FsError::Stale(ino));
                }
                // These numbers were never handed out: a directory has a number of its image, and a hard link shares its
                // target's number.
                if matches!(
                    layer.index().entry(entry).kind(),
                    IndexedKind::Directory | IndexedKind::Hardlink { .. }
                ) {
                    return Err(FsError::Stale(ino));
                }
                let nlink = layer.index().own_nlink(entry);
                Ok(InodeSource::Entry(EntryInode { ino, layer: (slot, layer), entry, nlink }))
            }
        }
    }

    /// Returns an image, and opens it if necessary.
    pub(super) fn open_image(&self, image: PublishedImage) -> Result<Arc<ServedImage>, FsError> {
        let name = || self.namespace().path_of(image.slot).unwrap_or_else(|| image.manifest.to_string());
        let open = || {
            let started = Instant::now();
            let loaded = self.source.open_image(image.manifest, |slot| self.layers.opened(slot))?;
            info!(image = name(), nodes = loaded.tree.len(), took = ?started.elapsed(), "image opened");
            let layers = loaded.layers.into_iter();
            let layers = layers.map(|(slot, layer)| (slot, self.layers.insert(slot, layer))).collect();
            Ok(ServedImage { image, tree: loaded.tree, layers })
        };
        let is_new = self.images.opened(image.slot).is_none();
        let open = self.images.get_or_open(image.slot, name, open)?;
        if is_new {
            self.close_unused(Some(image.slot));
        }
        Ok(open)
    }

    /// Closes images and layers that nobody uses, beyond those that stay open in case they are needed soon.
    pub(super) fn close_unused(&self, opened: Option<u32>) {
        // Another thread that closes images will do.
        let _lock = match self.closing.try_lock() {
            Ok(lock) => lock,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        let namespace = self.namespace();
        let closed = self.images.close_unused(
            opened,
            |slot| namespace.image(slot).is_some(),
            |image| image.tree.memory(),
        );
        let open = self.images.all_open();
        self.layers.close_unused(
            &open.iter().flat_map(|image| image.layers.iter().map(|(slot, _)| *slot)).collect(),
        );
        if closed >= RELEASE_FROM {
            release_freed_memory();
        }
        if closed > 0 {
            debug!(closed, open = open.len(), layers = self.layers.len(), "closed images that nobody uses");
        }
    }

    /// Opens images that have lost their last name but are in use: nothing else keeps their blobs.
    pub(super) fn keep_unpublished(&self, old: &Namespace, new: &Namespace) {
        for image in old.images().filter(|image| new.image(image.slot).is_none()) {
            if self.images.is_referenced(image.slot)
                && let Err(error) = self.open_image(image)
            {
                warn!(manifest = %image.manifest, "cannot open an image that is in use and has lost its name: {}", chain_text(&error));
            }
        }
    }

    /// Returns the image with this slot, whether it is open, published, or only present in the store.
    pub(super) fn image_by_slot(&self, slot: u32, ino: Ino) -> Result<Arc<ServedImage>, FsError> {
        if let Some(open) = self.images.opened_for_use(slot) {
            return Ok(open);
        }
        let image = self.namespace().image(slot).or_else(|| self.source.image(slot));
        self.open_image(image.ok_or(FsError::Stale(ino))?)
    }
}

impl ServedImage {
    pub(super) fn attr(&self, node: NodeId) -> Result<InodeAttr, FsError> {
        self.inode(node)?.attr()
    }

    /// Checks that a node number from the kernel is a directory of this image.
    pub(super) fn directory(&self, node: u32, ino: Ino) -> Result<NodeId, FsError> {
        let node = NodeId::new(node);
        match self.tree.contains(node) {
            false => Err(FsError::Stale(ino)),
            true if self.tree.is_directory(node) => Ok(node),
            true => Err(FsError::NotADirectory(ino)),
        }
    }

    fn inode(&self, node: NodeId) -> Result<InodeSource, FsError> {
        let image_ino = image_ino(self.image.slot, node)?;
        let nlink = self.tree.nlink(node);
        let NodeSource::Entry { layer, entry } = self.tree.source(node) else {
            return Ok(InodeSource::Implied(InodeAttr::implied(image_ino, nlink)));
        };
        let (slot, layer) = self.layer(layer).ok_or(FsError::Inconsistent(image_ino))?;
        let shared = !self.tree.is_directory(node) && nlink == layer.index().own_nlink(entry);
        let ino = match shared {
            true => Ino::of_layer(*slot, entry.get()).ok_or(FsError::Inconsistent(image_ino))?,
            false => image_ino,
        };
        Ok(InodeSource::Entry(EntryInode { ino, layer: (*slot, Arc::clone(layer)), entry, nlink }))
    }

    fn layer(&self, layer: LayerNo) -> Option<&SlotLayer> {
        self.layers.get(layer.index())
    }
}

impl InodeSource {
    pub(super) fn attr(self) -> Result<InodeAttr, FsError> {
        match self {
            Self::Entry(inode) => inode.attr(),
            Self::Implied(attr) => Ok(attr),
        }
    }
}

impl EntryInode {
    pub(super) fn kind(&self) -> IndexedKind<'_> {
        let (_, layer) = &self.layer;
        layer.index().entry(self.entry).kind()
    }

    fn attr(&self) -> Result<InodeAttr, FsError> {
        let (_, layer) = &self.layer;
        let entry = layer.index().entry(self.entry);
        let stored = || layer.stored_size(self.entry);
        InodeAttr::of_entry(self.ino, self.nlink, &entry, stored).ok_or(FsError::Inconsistent(self.ino))
    }
}

/// Decodes a number from the kernel. Slot, entry and node still need to be looked up.
pub(super) fn decode(ino: Ino) -> Result<DecodedIno, FsError> {
    ino.decode().ok_or(FsError::Stale(ino))
}

/// Returns the number of a node that belongs to one image.
pub(super) fn image_ino(slot: u32, node: NodeId) -> Result<Ino, FsError> {
    Ino::of_image(slot, node.get()).ok_or(FsError::Inconsistent(Ino::ROOT))
}

//! What inode numbers stand for: entries of open layers and nodes of open images, which are opened here where they are
//! not yet.

use std::sync::{Arc, PoisonError};
use std::time::Instant;

use tracing::info;

use super::attr::InodeAttr;
use super::content::SlotLayer;
use super::image_fs::ImageFs;
use super::source::BlobFileId;
use super::{DecodedIno, FsError, Ino, NamespaceNode, PublishedImage};
use crate::index::{EntryId, Kind, Layer};
use crate::tree::{LayerNo, NodeId, Source as NodeSource, Tree};

/// An open layer, and the file that its blob was in when it was opened.
#[derive(Debug)]
pub(super) struct ServedLayer {
    pub(super) layer: Arc<Layer>,
    blob: Option<BlobFileId>,
}

/// An open image.
#[derive(Debug)]
pub(super) struct ServedImage {
    pub(super) image: PublishedImage,
    pub(super) tree: Tree,
    /// Lowest first, as the tree numbers them.
    pub(super) layers: Vec<SlotLayer>,
}

/// Where an inode's attributes and content stand.
pub(super) struct EntryInode {
    pub(super) ino: Ino,
    pub(super) layer: SlotLayer,
    pub(super) entry: EntryId,
    pub(super) nlink: u32,
}

/// What a node of a tree is made from.
pub(super) enum InodeSource {
    Entry(EntryInode),
    Implied(InodeAttr),
}

impl ImageFs {
    pub(super) fn regular(&self, ino: Ino) -> Result<EntryInode, FsError> {
        if let DecodedIno::Namespace(_) = self.place(ino)? {
            return match self.namespace().node(ino) {
                Some(NamespaceNode::Directory(_)) => Err(FsError::IsADirectory(ino)),
                Some(NamespaceNode::Symlink(_)) => Err(FsError::WrongKind(ino)),
                None => Err(FsError::Stale(ino)),
            };
        }
        match self.made(ino)? {
            InodeSource::Implied(_) => Err(FsError::IsADirectory(ino)),
            InodeSource::Entry(found) => match found.layer.1.index().entry(found.entry).kind() {
                Kind::Regular { .. } => Ok(found),
                Kind::Directory => Err(FsError::IsADirectory(ino)),
                _ => Err(FsError::WrongKind(ino)),
            },
        }
    }

    /// Resolves a number that is not of the namespace.
    pub(super) fn made(&self, ino: Ino) -> Result<InodeSource, FsError> {
        match self.place(ino)? {
            DecodedIno::Namespace(_) => Err(FsError::Stale(ino)),
            DecodedIno::Image { slot, node } => {
                let open = self.open_slot(slot, ino)?;
                let node = NodeId::new(node);
                if !open.tree.contains(node) {
                    return Err(FsError::Stale(ino));
                }
                match made(&open, node)? {
                    // The node has its layer's number, which was given out; this one was made up.
                    InodeSource::Entry(found) if found.ino != ino => Err(FsError::Stale(ino)),
                    made => Ok(made),
                }
            }
            DecodedIno::Layer { slot, entry } => {
                let layer = self.layer(slot, ino)?;
                let entry = EntryId::new(entry);
                if !layer.index().contains(entry) {
                    return Err(FsError::Stale(ino));
                }
                // Directories have a number of their image, and a hard link is a name and no node: nobody was given these.
                if matches!(layer.index().entry(entry).kind(), Kind::Directory | Kind::Hardlink { .. }) {
                    return Err(FsError::Stale(ino));
                }
                let nlink = layer.index().own_nlink(entry);
                Ok(InodeSource::Entry(EntryInode { ino, layer: (slot, layer), entry, nlink }))
            }
        }
    }

    pub(super) fn attr(&self, open: &ServedImage, node: NodeId) -> Result<InodeAttr, FsError> {
        match made(open, node)? {
            InodeSource::Entry(found) => found.attr(),
            InodeSource::Implied(attr) => Ok(attr),
        }
    }

    pub(super) fn open(&self, image: PublishedImage) -> Result<Arc<ServedImage>, FsError> {
        let name = || self.namespace().path_of(image.slot).unwrap_or_else(|| image.manifest.to_string());
        let open = || {
            let started = Instant::now();
            let opened = self.source.open_image(image.manifest, |slot| self.open_layer(slot))?;
            info!(image = name(), nodes = opened.tree.len(), took = ?started.elapsed(), "image opened");
            let shared = |(slot, layer)| (slot, self.keep(slot, layer));
            Ok(ServedImage {
                image,
                tree: opened.tree,
                layers: opened.layers.into_iter().map(shared).collect(),
            })
        };
        Ok(self.images.get_or_open(image.slot, name, open)?)
    }

    /// The image with this slot: open, published, or in the store still.
    pub(super) fn open_slot(&self, slot: u32, ino: Ino) -> Result<Arc<ServedImage>, FsError> {
        if let Some(open) = self.images.opened(slot) {
            return Ok(open);
        }
        let image = self.namespace().image(slot).or_else(|| self.source.image(slot));
        self.open(image.ok_or(FsError::Stale(ino))?)
    }

    pub(super) fn open_layer(&self, slot: u32) -> Option<Arc<Layer>> {
        let layers = self.layers.read().unwrap_or_else(PoisonError::into_inner);
        layers.get(&slot).map(|open| Arc::clone(&open.layer))
    }

    /// The layer with this slot: open, or in the store still (the kernel may know it from a process before this one).
    fn layer(&self, slot: u32, ino: Ino) -> Result<Arc<Layer>, FsError> {
        if let Some(layer) = self.open_layer(slot) {
            return Ok(layer);
        }
        let layer = self.source.open_layer(slot).map_err(|source| FsError::Layer { slot, source })?;
        Ok(self.keep(slot, layer.ok_or(FsError::Stale(ino))?))
    }

    /// Keeps a layer open, unless it is open already: there is one handle for each.
    fn keep(&self, slot: u32, layer: Arc<Layer>) -> Arc<Layer> {
        let blob = self.source.blob_file(layer.index().layer());
        let mut layers = self.layers.write().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&layers.entry(slot).or_insert(ServedLayer { layer, blob }).layer)
    }

    /// The layer whose content could not be read through `failed`, if its blob has been fetched again since.
    pub(super) fn mended(&self, slot: u32, failed: &Arc<Layer>) -> Option<Arc<Layer>> {
        let now = self.source.blob_file(failed.index().layer())?;
        let open = self.open_layer(slot)?;
        if !Arc::ptr_eq(&open, failed) {
            return Some(open);
        }
        let was = self.layers.read().unwrap_or_else(PoisonError::into_inner).get(&slot)?.blob;
        if was == Some(now) {
            return None;
        }
        let layer = self.source.open_layer(slot).ok()??;
        info!(layer = %layer.index().layer(), "blob has been replaced; layer opened again");
        let open = ServedLayer { layer: Arc::clone(&layer), blob: Some(now) };
        self.layers.write().unwrap_or_else(PoisonError::into_inner).insert(slot, open);
        Some(layer)
    }
}

impl EntryInode {
    pub(super) fn attr(&self) -> Result<InodeAttr, FsError> {
        let (_, layer) = &self.layer;
        let entry = layer.index().entry(self.entry);
        let stored = || layer.stored_size(self.entry);
        InodeAttr::of_entry(self.ino, self.nlink, &entry, stored).ok_or(FsError::Inconsistent(self.ino))
    }
}

/// What a node of an open image is made from, with the number that it has.
fn made(open: &ServedImage, node: NodeId) -> Result<InodeSource, FsError> {
    let own = image_ino(open.image.slot, node)?;
    let nlink = open.tree.nlink(node);
    let NodeSource::Entry { layer, entry } = open.tree.source(node) else {
        return Ok(InodeSource::Implied(InodeAttr::implied(own, nlink)));
    };
    let (slot, layer) = layer_of(open, layer).ok_or(FsError::Inconsistent(own))?;
    let is_directory = open.tree.is_directory(node);
    let ino = match !is_directory && nlink == layer.index().own_nlink(entry) {
        true => Ino::of_layer(*slot, entry.get()).ok_or(FsError::Inconsistent(own))?,
        false => own,
    };
    Ok(InodeSource::Entry(EntryInode { ino, layer: (*slot, Arc::clone(layer)), entry, nlink }))
}

fn layer_of(open: &ServedImage, layer: LayerNo) -> Option<&SlotLayer> {
    open.layers.get(layer.index())
}

pub(super) fn image_ino(slot: u32, node: NodeId) -> Result<Ino, FsError> {
    Ino::of_image(slot, node.get()).ok_or(FsError::Inconsistent(Ino::ROOT))
}

pub(super) fn image_root(image: PublishedImage) -> Result<Ino, FsError> {
    image_ino(image.slot, NodeId::ROOT)
}

/// A directory of an open image from a number that the kernel gave.
pub(super) fn directory_node(open: &ServedImage, node: u32, ino: Ino) -> Result<NodeId, FsError> {
    let node = NodeId::new(node);
    match open.tree.contains(node) {
        false => Err(FsError::Stale(ino)),
        true if open.tree.is_directory(node) => Ok(node),
        true => Err(FsError::NotADirectory(ino)),
    }
}

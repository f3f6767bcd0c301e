//! The layers as files: the device of a layer ([`LayerDevice`]) under the hex digits of the layer's digest. The kernel mounts tree images
//! over these files.
//!
//! The kernel opens the files of a tree image under names of their own, `LAYER.TREE` with the hex digits of the tree image's key. Such a
//! name means the same bytes, and tells which image is read, so that its trace can be recorded.
//!
//! A file has exactly the bytes that [`crate::erofs::write_plain`] writes. They come from the same open layers, the same cache of spans and
//! the same checks as those of [`ImageFs`](super::ImageFs).
//!
//! A layer stays open while the kernel knows its file, even after its blob has left the store. The kernel forgets a file when nobody has it
//! open and its name is not cached. So the caller must make it forget the names of idle files ([`LayerFiles::idle_names`]): otherwise, layers would
//! stay open until the kernel is short of memory.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use super::attr::{FileKind, InodeAttr, NO_TIME};
use super::content::{ContentReader, FileBytes};
use super::layers::LayerTable;
use super::traces::{NewRecord, TraceRecorder};
use super::{DecodedIno, FsError, ImageSource, Ino};
use crate::erofs::{DevicePart, LayerDevice};
use crate::image::{Digest, LayerDigest, TreeKey};
use crate::index::{Layer, Piece};
use crate::os::ignore_poison;

/// The mode of the directory: only root may search it, because the files hold what upper layers hide.
const DIRECTORY_MODE: u16 = 0o500;
const FILE_MODE: u16 = 0o400;
const BLOCK: u64 = 512;

/// All layers of a store as files in one directory. The directory is listed as empty.
///
/// Lock order: the files, the traces, the layers.
#[derive(Debug)]
pub struct LayerFiles {
    source: Arc<ImageSource>,
    layers: Arc<LayerTable>,
    content: Arc<ContentReader>,
    traces: TraceRecorder,
    known: Mutex<KnownLayerFiles>,
}

/// The files that the kernel knows.
#[derive(Debug, Default)]
struct KnownLayerFiles {
    files: HashMap<FileId, LayerFile>,
    /// The slot and the device of each layer that has such files.
    layers: HashMap<LayerDigest, (u32, Arc<LayerDevice>)>,
    /// The number of files of each slot.
    of_slot: HashMap<u32, usize>,
    /// The number of files of each tree image.
    of_tree: HashMap<u32, usize>,
}

/// What the inode number of a file consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct FileId {
    /// The slot of the layer.
    slot: u32,
    /// The number of the tree image ([`TraceRecorder::open`]); 0 without one.
    tree: u32,
}

#[derive(Debug)]
struct LayerFile {
    layer: LayerDigest,
    tree: Option<TreeKey>,
    device: Arc<LayerDevice>,
    /// The number of lookups that the kernel has not forgotten.
    lookups: u64,
    /// Whether the kernel may have cached the name.
    name_cached: bool,
    /// Whether the file was looked up or read since the last call of [`LayerFiles::idle_names`].
    used: bool,
}

impl LayerFiles {
    pub(super) fn new(
        source: Arc<ImageSource>,
        layers: Arc<LayerTable>,
        content: Arc<ContentReader>,
        prefetch: bool,
    ) -> Self {
        let traces =
            TraceRecorder::new(Arc::clone(&source), Arc::clone(&layers), Arc::clone(&content), prefetch);
        Self { source, layers, content, traces, known: Mutex::default() }
    }

    /// Looks up a layer by the hex digits of its digest, and optionally those of a tree image's key. Each successful call counts for
    /// [`LayerFiles::forget`].
    ///
    /// # Errors
    ///
    /// The store does not have the layer, the layer cannot be opened, or `parent` is not the directory.
    pub fn lookup(&self, parent: Ino, name: &[u8]) -> Result<InodeAttr, FsError> {
        if parent != Ino::ROOT {
            return Err(FsError::NotADirectory(parent));
        }
        let (layer, tree) = parse_name(name).ok_or(FsError::NotFound)?;
        let known = {
            let mut files = ignore_poison(self.known.lock());
            let known = files.layers.get(&layer).map(|(slot, device)| (*slot, Arc::clone(device)));
            known.map(|(slot, device)| self.add_lookup(&mut files, slot, layer, tree, device))
        };
        let (attr, record) = match known {
            // Such a layer may have left the store.
            Some(known) => known?,
            None => {
                let failed = |source| FsError::LayerFile { layer, source };
                let (slot, open) =
                    self.source.open_layer_by_digest(layer).map_err(failed)?.ok_or(FsError::NotFound)?;
                let device = Arc::new(LayerDevice::of(open.index()));
                let mut files = ignore_poison(self.known.lock());
                self.layers.insert_closable(slot, open);
                self.add_lookup(&mut files, slot, layer, tree, device)?
            }
        };
        if let Some(record) = record {
            self.traces.begin(record);
        }
        Ok(attr)
    }

    fn add_lookup(
        &self,
        files: &mut KnownLayerFiles,
        slot: u32,
        layer: LayerDigest,
        tree: Option<TreeKey>,
        device: Arc<LayerDevice>,
    ) -> Result<(InodeAttr, Option<NewRecord>), FsError> {
        let (number, record) = tree.map_or((0, None), |tree| self.traces.open(tree, slot));
        let id = FileId { slot, tree: number };
        let attr = attr(id, &device)?;
        files.add(id, layer, tree, device).look_up();
        Ok((attr, record))
    }

    /// Takes back `lookups` successful lookups of a file. Closes the layer if the kernel no longer knows any of its files.
    pub fn forget(&self, ino: Ino, lookups: u64) {
        let Ok(id) = id_of(ino) else { return };
        let mut files = ignore_poison(self.known.lock());
        let Some(file) = files.files.get_mut(&id) else { return };
        file.lookups = file.lookups.saturating_sub(lookups);
        if file.lookups > 0 {
            return;
        }
        let (last_of_slot, last_of_tree) = files.remove(id);
        if last_of_slot {
            self.layers.close(id.slot);
        }
        if id.tree != 0 && last_of_tree {
            self.traces.close(id.tree);
        }
    }

    /// Stores what was read first from the layers of each image, if nothing was read for a while, or with `all` in any case.
    pub fn store_traces(&self, all: bool) {
        self.traces.store(all);
    }

    /// Returns the attributes of the directory or of a file.
    ///
    /// # Errors
    ///
    /// There is no such inode, or its layer cannot be opened.
    pub fn getattr(&self, ino: Ino) -> Result<InodeAttr, FsError> {
        if ino == Ino::ROOT {
            return Ok(InodeAttr { mode: DIRECTORY_MODE, ..InodeAttr::directory(ino, 2, NO_TIME) });
        }
        let (id, device, _) = self.file(ino)?;
        attr(id, &device)
    }

    /// Reads up to `len` bytes of a file from `offset` on, fewer only at its end. Blocks while spans are decoded.
    ///
    /// # Errors
    ///
    /// The inode is not a file, or its content cannot be read or does not match its checksum. Never returns wrong bytes.
    pub fn read(&self, ino: Ino, offset: u64, len: u32) -> Result<FileBytes, FsError> {
        if ino == Ino::ROOT {
            return Err(FsError::IsADirectory(ino));
        }
        let (FileId { slot, tree }, device, layer) = self.file(ino)?;
        let pieces = pieces(&layer, &device, offset, len.into());
        if tree != 0 {
            self.traces.read(tree, slot, &layer, &pieces);
        }
        let result = match self.content.read_pieces(slot, &layer, &pieces) {
            Err(fault) => match self.layers.replacement(slot, &layer) {
                Some(layer) => self.content.read_pieces(slot, &layer, &pieces),
                None => Err(fault),
            },
            bytes => bytes,
        };
        let layer = *layer.index().layer();
        result.map_err(|fault| FsError::LayerContent { layer, offset, len, fault: Box::new(fault) })
    }

    /// Returns the names of the files that were neither looked up nor read since the last call, and whose names the kernel may have
    /// cached. The caller must make the kernel forget these names.
    #[must_use]
    pub fn idle_names(&self) -> Vec<String> {
        let mut names = Vec::new();
        for file in ignore_poison(self.known.lock()).files.values_mut() {
            if !std::mem::take(&mut file.used) && std::mem::take(&mut file.name_cached) {
                names.push(file.name());
            }
        }
        names
    }

    /// Returns the layers whose files the kernel knows: mounts use them, or have used them a short time ago.
    #[must_use]
    pub fn known_layers(&self) -> Vec<LayerDigest> {
        ignore_poison(self.known.lock()).layers.keys().copied().collect()
    }

    /// Returns the number of files that the kernel knows.
    #[must_use]
    pub fn known(&self) -> usize {
        ignore_poison(self.known.lock()).files.len()
    }

    /// Returns a file, and opens it if necessary: the kernel may know it from an earlier process.
    fn file(&self, ino: Ino) -> Result<(FileId, Arc<LayerDevice>, Arc<Layer>), FsError> {
        let id = id_of(ino)?;
        let known = ignore_poison(self.known.lock()).files.get_mut(&id).map(|file| {
            file.used = true;
            Arc::clone(&file.device)
        });
        if let (Some(device), Some(layer)) = (known, self.layers.opened(id.slot)) {
            return Ok((id, device, layer));
        }
        let failed = |source| FsError::Layer { slot: id.slot, source };
        let layer = self.source.open_layer(id.slot).map_err(failed)?.ok_or(FsError::Stale(ino))?;
        let device = Arc::new(LayerDevice::of(layer.index()));
        let mut files = ignore_poison(self.known.lock());
        let layer = self.layers.insert_closable(id.slot, layer);
        let digest = *layer.index().layer();
        let file = files.add(id, digest, None, device);
        file.used = true;
        Ok((id, Arc::clone(&file.device), layer))
    }
}

impl KnownLayerFiles {
    /// Returns a file, and adds it if it is not known.
    fn add(
        &mut self,
        id: FileId,
        layer: LayerDigest,
        tree: Option<TreeKey>,
        device: Arc<LayerDevice>,
    ) -> &mut LayerFile {
        self.files.entry(id).or_insert_with(|| {
            *self.of_slot.entry(id.slot).or_default() += 1;
            *self.of_tree.entry(id.tree).or_default() += 1;
            self.layers.entry(layer).or_insert_with(|| (id.slot, Arc::clone(&device)));
            LayerFile::new(layer, tree, device)
        })
    }

    /// Removes a file that is known. Returns whether it was the last one of its slot, and of its tree image.
    fn remove(&mut self, id: FileId) -> (bool, bool) {
        let Some(file) = self.files.remove(&id) else { return (false, false) };
        let last_of_slot = take_one(&mut self.of_slot, id.slot);
        if last_of_slot && self.layers.get(&file.layer).is_some_and(|(slot, _)| *slot == id.slot) {
            self.layers.remove(&file.layer);
        }
        (last_of_slot, take_one(&mut self.of_tree, id.tree))
    }
}

/// Counts one less under a number. Returns whether nothing is left.
fn take_one(counts: &mut HashMap<u32, usize>, number: u32) -> bool {
    let left = counts.get_mut(&number).map_or(0, |count| {
        *count = count.saturating_sub(1);
        *count
    });
    left == 0 && counts.remove(&number).is_some()
}

impl LayerFile {
    fn new(layer: LayerDigest, tree: Option<TreeKey>, device: Arc<LayerDevice>) -> Self {
        Self { layer, tree, device, lookups: 0, name_cached: false, used: false }
    }

    fn name(&self) -> String {
        layer_file_name(self.layer, self.tree.as_ref())
    }

    fn look_up(&mut self) {
        self.lookups += 1;
        self.name_cached = true;
        self.used = true;
    }
}

/// The name of a layer's file; with the key of a tree image, the name under which its mount uses the layer.
#[must_use]
pub fn layer_file_name(layer: LayerDigest, tree: Option<&TreeKey>) -> String {
    let layer = layer.digest().hex();
    match tree {
        Some(tree) => format!("{layer}.{}", tree.hex()),
        None => layer,
    }
}

fn parse_name(name: &[u8]) -> Option<(LayerDigest, Option<TreeKey>)> {
    let name = std::str::from_utf8(name).ok()?;
    let (layer, tree) = match name.split_once('.') {
        Some((layer, tree)) => (layer, Some(TreeKey::from_hex(tree)?)),
        None => (name, None),
    };
    Some((LayerDigest::new(Digest::from_hex(layer)?), tree))
}

fn id_of(ino: Ino) -> Result<FileId, FsError> {
    match ino.decode() {
        Some(DecodedIno::Layer { slot, entry }) => Ok(FileId { slot, tree: entry }),
        _ => Err(FsError::Stale(ino)),
    }
}

fn attr(id: FileId, device: &LayerDevice) -> Result<InodeAttr, FsError> {
    let ino = Ino::of_layer(id.slot, id.tree).ok_or(FsError::Inconsistent(Ino::ROOT))?;
    // The kernel accepts no larger file. Tree images cannot use a layer of this size.
    let size = device.size().min(i64::MAX.unsigned_abs());
    let (kind, mode, blocks) = (FileKind::Regular, FILE_MODE, size.div_ceil(BLOCK));
    Ok(InodeAttr { kind, mode, size, blocks, ..InodeAttr::directory(ino, 1, NO_TIME) })
}

/// Returns where the bytes of a range of the device are, in order.
fn pieces(layer: &Layer, device: &LayerDevice, offset: u64, len: u64) -> Vec<Piece> {
    let mut pieces = Vec::new();
    for part in device.parts(offset, len) {
        match part {
            DevicePart::Tar { from, len } => pieces.push(Piece::Data { tar: from, len }),
            DevicePart::File { entry, from, len } => pieces.extend(layer.pieces_from(entry, from, len)),
            DevicePart::Padding { len } => pieces.push(Piece::Hole { len }),
        }
    }
    pieces
}

//! The layers as files: the device of a layer ([`LayerDevice`]) under the hex digits of the layer's digest. The kernel mounts tree images
//! over these files.
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
use super::{DecodedIno, FsError, ImageSource, Ino};
use crate::erofs::{DevicePart, LayerDevice};
use crate::image::{Digest, LayerDigest};
use crate::index::{Layer, Piece};
use crate::os::ignore_poison;

/// The mode of the directory: only root may search it, because the files hold what upper layers hide.
const DIRECTORY_MODE: u16 = 0o500;
const FILE_MODE: u16 = 0o400;
const BLOCK: u64 = 512;

/// All layers of a store as files in one directory. The directory is listed as empty.
///
/// Lock order: the files, the layers.
#[derive(Debug)]
pub struct LayerFiles {
    source: Arc<ImageSource>,
    layers: Arc<LayerTable>,
    content: Arc<ContentReader>,
    /// The files that the kernel knows, by slot.
    files: Mutex<HashMap<u32, LayerFile>>,
}

#[derive(Debug)]
struct LayerFile {
    layer: LayerDigest,
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
    ) -> Self {
        Self { source, layers, content, files: Mutex::default() }
    }

    /// Looks up a layer by the hex digits of its digest. Each successful call counts for [`LayerFiles::forget`].
    ///
    /// # Errors
    ///
    /// The store does not have the layer, the layer cannot be opened, or `parent` is not the directory.
    pub fn lookup(&self, parent: Ino, name: &[u8]) -> Result<InodeAttr, FsError> {
        if parent != Ino::ROOT {
            return Err(FsError::NotADirectory(parent));
        }
        let digest: Digest = std::str::from_utf8(name)
            .ok()
            .and_then(|hex| format!("sha256:{hex}").parse().ok())
            .ok_or(FsError::NotFound)?;
        let layer = LayerDigest::new(digest);
        if let Some(attr) = self.look_up_open(layer)? {
            return Ok(attr);
        }
        let failed = |source| FsError::LayerFile { layer, source };
        let (slot, open) =
            self.source.open_layer_by_digest(layer).map_err(failed)?.ok_or(FsError::NotFound)?;
        let device = Arc::new(LayerDevice::of(open.index()));
        let attr = attr(slot, &device)?;
        let mut files = ignore_poison(self.files.lock());
        self.layers.insert_closable(slot, open);
        let file = files.entry(slot).or_insert_with(|| LayerFile::new(layer, device));
        file.look_up();
        Ok(attr)
    }

    /// Looks up a layer that the kernel knows. Such a layer may have left the store.
    fn look_up_open(&self, layer: LayerDigest) -> Result<Option<InodeAttr>, FsError> {
        let mut files = ignore_poison(self.files.lock());
        let Some((slot, file)) = files.iter_mut().find(|(_, file)| file.layer == layer) else {
            return Ok(None);
        };
        file.look_up();
        attr(*slot, &file.device).map(Some)
    }

    /// Takes back `lookups` successful lookups of a file. Closes the layer if the kernel no longer knows the file.
    pub fn forget(&self, ino: Ino, lookups: u64) {
        let Ok(slot) = slot_of(ino) else { return };
        let mut files = ignore_poison(self.files.lock());
        let Some(file) = files.get_mut(&slot) else { return };
        file.lookups = file.lookups.saturating_sub(lookups);
        if file.lookups == 0 {
            files.remove(&slot);
            self.layers.close(slot);
        }
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
        let (slot, device, _) = self.file(ino)?;
        attr(slot, &device)
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
        let (slot, device, layer) = self.file(ino)?;
        let pieces = pieces(&layer, &device, offset, len.into());
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
        for file in ignore_poison(self.files.lock()).values_mut() {
            if !std::mem::take(&mut file.used) && std::mem::take(&mut file.name_cached) {
                names.push(file.layer.digest().hex());
            }
        }
        names
    }

    /// Returns the layers whose files the kernel knows: mounts use them, or have used them a short time ago.
    #[must_use]
    pub fn known_layers(&self) -> Vec<LayerDigest> {
        ignore_poison(self.files.lock()).values().map(|file| file.layer).collect()
    }

    /// Returns the number of files that the kernel knows.
    #[must_use]
    pub fn known(&self) -> usize {
        ignore_poison(self.files.lock()).len()
    }

    /// Returns a file, and opens it if necessary: the kernel may know it from an earlier process.
    fn file(&self, ino: Ino) -> Result<(u32, Arc<LayerDevice>, Arc<Layer>), FsError> {
        let slot = slot_of(ino)?;
        let known = ignore_poison(self.files.lock()).get_mut(&slot).map(|file| {
            file.used = true;
            Arc::clone(&file.device)
        });
        if let (Some(device), Some(layer)) = (known, self.layers.opened(slot)) {
            return Ok((slot, device, layer));
        }
        let failed = |source| FsError::Layer { slot, source };
        let layer = self.source.open_layer(slot).map_err(failed)?.ok_or(FsError::Stale(ino))?;
        let device = Arc::new(LayerDevice::of(layer.index()));
        let mut files = ignore_poison(self.files.lock());
        let layer = self.layers.insert_closable(slot, layer);
        let digest = *layer.index().layer();
        let file = files.entry(slot).or_insert_with(|| LayerFile::new(digest, device));
        file.used = true;
        Ok((slot, Arc::clone(&file.device), layer))
    }
}

impl LayerFile {
    fn new(layer: LayerDigest, device: Arc<LayerDevice>) -> Self {
        Self { layer, device, lookups: 0, name_cached: false, used: false }
    }

    fn look_up(&mut self) {
        self.lookups += 1;
        self.name_cached = true;
        self.used = true;
    }
}

/// Returns the slot of a file's layer.
fn slot_of(ino: Ino) -> Result<u32, FsError> {
    match ino.decode() {
        Some(DecodedIno::Layer { slot, entry: 0 }) => Ok(slot),
        _ => Err(FsError::Stale(ino)),
    }
}

fn attr(slot: u32, device: &LayerDevice) -> Result<InodeAttr, FsError> {
    let ino = Ino::of_layer(slot, 0).ok_or(FsError::Inconsistent(Ino::ROOT))?;
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

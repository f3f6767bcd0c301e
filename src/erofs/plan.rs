//! Decides where each inode goes.

use std::collections::HashMap;
use std::ops::Range;

use super::device::LayerDevice;
use super::directory;
use super::error::Inexpressible;
use super::format::{
    BLOCK, BLOCK_BITS, CHUNK_BITS_MAX, DEVICE_LEN, DataLayout, FileTypeByte, HOLE, SLOT, SUPER_LEN,
    SUPER_OFFSET,
};
use super::inode::{MetaContent, NodeAttr, entry_of, inode_len};
use super::xattrs::XattrTable;
use crate::index::{EntryId, Index, StoredContent};
use crate::layer::Timestamp;
use crate::tree::{LayerNo, NodeId, NodeSource, Tree};

/// The most devices. The root's inode stands behind the device table and must have a number of 16 bits.
const DEVICES_MAX: usize = 16_000;
/// The first address of content, in blocks. The metadata is in front, and must be shorter.
const CONTENT_START: u32 = 1 << 24;
/// The length of a chunk in bytes. One chunk holds nearly every file.
const CHUNK: u64 = 1 << (CHUNK_BITS_MAX + BLOCK_BITS);
/// The most chunks of all sparse files of a layer, where [`FILE_CHUNKS`] allows it. Each takes 8 bytes.
const SPARSE_CHUNKS_MAX: usize = 1 << 16;
/// The least and the greatest number of chunks that a sparse file may have.
const FILE_CHUNKS: Range<u64> = 16..4096;
/// The most chunks of a file without content.
const HOLE_CHUNKS_MAX: u64 = 1024;

/// The EROFS image of a tree, with the place of each inode. [`TreeImage::write`] writes it.
#[derive(Debug)]
pub struct TreeImage<'a, D> {
    pub(super) tree: &'a Tree,
    pub(super) layers: &'a [&'a Index<D>],
    pub(super) devices: Vec<DeviceSlot>,
    /// For each layer, its position in `devices`.
    device_of: Vec<Option<usize>>,
    pub(super) xattrs: XattrTable<'a>,
    /// The most frequent time, which compact inodes have.
    pub(super) time: Timestamp,
    /// The number of each node's inode.
    numbers: Vec<u32>,
    /// The offset of the shared xattrs, a multiple of [`BLOCK`].
    pub(super) shared_start: u64,
    /// The offset of the blocks of directories and symlinks, a multiple of [`BLOCK`].
    pub(super) data_start: u64,
    /// The length of the image, a multiple of [`BLOCK`].
    size: u64,
}

/// A device of an image.
#[derive(Debug)]
pub(super) struct DeviceSlot {
    pub(super) layer: LayerNo,
    pub(super) device: LayerDevice,
    /// The number of blocks.
    pub(super) blocks: u32,
    /// The address of its first block among those of all devices; `None` if the addresses do not suffice. Files of such a device
    /// have chunks, whose records name the device.
    pub(super) start: Option<u32>,
}

/// The content of a node.
#[derive(Debug, Clone, Copy)]
pub(super) enum NodeContent {
    /// Devices, pipes and empty files.
    None,
    /// A directory or a symlink: its size.
    Meta(u64),
    /// A regular file in consecutive blocks: the address of the first.
    Blocks(u32),
    /// A regular file in chunks on one device, counted from 1: the first block on it.
    Chunks { device: u16, start: u32, count: u64 },
    /// A regular file of nothing but holes.
    Holes { count: u64 },
    /// A regular file with holes, on one device: some of its chunks are holes.
    Sparse(SparseChunks),
}

/// The chunks of a sparse file. A chunk with no byte of the file's segments is a hole.
#[derive(Debug, Clone, Copy)]
pub(super) struct SparseChunks {
    pub(super) layer: LayerNo,
    pub(super) entry: EntryId,
    pub(super) device: u16,
    /// The first block of the file on the device, where it stands with its holes.
    pub(super) start: u32,
    /// A chunk has 2 to this power blocks.
    pub(super) bits: u8,
    pub(super) count: u64,
}

/// A node as it will be written.
#[derive(Debug)]
pub(super) struct NodeShape<'a> {
    pub(super) attr: NodeAttr<'a>,
    pub(super) size: u64,
    pub(super) compact: bool,
    pub(super) xattrs: Vec<u8>,
    pub(super) content: NodeContent,
}

impl NodeShape<'_> {
    /// The length of the inode with its xattrs.
    pub(super) fn head(&self) -> u64 {
        inode_len(self.compact) + self.xattrs.len() as u64
    }

    /// Places the inode at or after `position`: its position, the end of what belongs to it, its layout, and its blocks in the
    /// data area.
    pub(super) fn place(&self, position: u64) -> (u64, u64, DataLayout, u64) {
        let end = position + self.head();
        match self.content {
            NodeContent::None | NodeContent::Blocks(_) => (position, end, DataLayout::Plain, 0),
            NodeContent::Chunks { count, .. } => {
                (position, end.next_multiple_of(8) + 8 * count, DataLayout::Chunks, 0)
            }
            NodeContent::Holes { count } => (position, end + 4 * count, DataLayout::Chunks, 0),
            NodeContent::Sparse(SparseChunks { count, .. }) => {
                (position, end.next_multiple_of(8) + 8 * count, DataLayout::Chunks, 0)
            }
            NodeContent::Meta(size) => {
                let place = MetaContent::place(position, self.head(), size, SLOT);
                let layout = if place.tail == 0 { DataLayout::Plain } else { DataLayout::Inline };
                (place.position, place.position + self.head() + place.tail, layout, place.blocks)
            }
        }
    }
}

impl<'a, D: AsRef<[u8]>> TreeImage<'a, D> {
    /// Plans the image of a tree. `layers` are the indexes of all layers, the lowest first.
    ///
    /// # Errors
    /// The format cannot express the tree.
    pub fn plan(tree: &'a Tree, layers: &'a [&'a Index<D>]) -> Result<Self, Inexpressible> {
        let (devices, device_of) = devices(tree, layers)?;
        let entries = || nodes(tree).map(|node| entry_of(tree, layers, node));
        let xattrs = XattrTable::collect(entries().flatten().map(|entry| entry.xattrs()))?;
        let mut image = Self {
            tree,
            layers,
            device_of,
            xattrs,
            time: most_frequent_time(tree, layers),
            numbers: vec![0; tree.len()],
            shared_start: 0,
            data_start: 0,
            size: 0,
            devices,
        };
        let mut position = image.inodes_start();
        let mut blocks = 0;
        let mut xattr_area = Vec::new();
        visit(tree, |node| {
            let shape = image.shape(node, std::mem::take(&mut xattr_area))?;
            let (start, end, _, more) = shape.place(position);
            image.numbers[node.index()] = u32::try_from(start / SLOT).map_err(|_| Inexpressible::Metadata)?;
            position = end.next_multiple_of(SLOT);
            blocks += more;
            xattr_area = shape.xattrs;
            Ok::<_, Inexpressible>(())
        })?;
        image.shared_start = position.next_multiple_of(BLOCK);
        image.data_start = (image.shared_start + image.xattrs.area().len() as u64).next_multiple_of(BLOCK);
        image.size = image.data_start + blocks * BLOCK;
        if image.size / BLOCK > CONTENT_START.into() {
            return Err(Inexpressible::Metadata);
        }
        Ok(image)
    }

    /// The length of the image in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The devices that the image must be mounted with, in this order: the layers that have content in the tree.
    pub fn devices(&self) -> impl ExactSizeIterator<Item = (LayerNo, &LayerDevice)> {
        self.devices.iter().map(|slot| (slot.layer, &slot.device))
    }

    /// The number of a node's inode, which the kernel shows.
    pub(super) fn number(&self, node: NodeId) -> u64 {
        self.numbers[node.index()].into()
    }

    /// The offset of the root's inode.
    pub(super) fn inodes_start(&self) -> u64 {
        SUPER_OFFSET + (SUPER_LEN + DEVICE_LEN * self.devices.len()) as u64
    }

    /// Describes a node. `xattrs` is a buffer.
    pub(super) fn shape(&self, node: NodeId, mut xattrs: Vec<u8>) -> Result<NodeShape<'a>, Inexpressible> {
        xattrs.clear();
        let attr = NodeAttr::of(self.tree, self.layers, node);
        if let Some(entry) = entry_of(self.tree, self.layers, node) {
            self.xattrs.write_area(entry.xattrs(), &mut xattrs)?;
        }
        let content = match attr.file_type {
            FileTypeByte::Directory => NodeContent::Meta(directory::size(self.tree, node)),
            FileTypeByte::Symlink => NodeContent::Meta(attr.size),
            FileTypeByte::Regular => self.file_content(node)?,
            FileTypeByte::CharDevice | FileTypeByte::BlockDevice | FileTypeByte::Fifo => NodeContent::None,
        };
        let size = if let NodeContent::Meta(size) = content { size } else { attr.size };
        let compact = attr.is_small() && attr.mtime == self.time && u32::try_from(size).is_ok();
        Ok(NodeShape { attr, size, compact, xattrs, content })
    }

    fn file_content(&self, node: NodeId) -> Result<NodeContent, Inexpressible> {
        let NodeSource::Entry { layer, entry } = self.tree.source(node) else { return Ok(NodeContent::None) };
        let index = self.layers[layer.index()];
        let content = index.stored_content(entry);
        let size = match content {
            StoredContent::None => return Ok(NodeContent::None),
            StoredContent::Hole { size } => {
                let count = size.div_ceil(CHUNK);
                return match count <= HOLE_CHUNKS_MAX {
                    true => Ok(NodeContent::Holes { count }),
                    false => Err(Inexpressible::Hole { bytes: size, max: HOLE_CHUNKS_MAX * CHUNK }),
                };
            }
            StoredContent::Tar { size, .. } | StoredContent::Sparse { size } => size,
        };
        let number = self.device_of[layer.index()].expect("a layer with content has a device");
        let slot = &self.devices[number];
        let offset = slot.device.offset_of(index, entry).expect("the entry has content");
        let block = u32::try_from(offset / BLOCK).expect("the device was limited");
        let device = u16::try_from(number + 1).expect("the number of devices was limited");
        if matches!(content, StoredContent::Sparse { .. }) {
            let bits = chunk_bits(size, slot.device.sparse_files());
            let count = size.div_ceil(BLOCK << bits);
            return Ok(NodeContent::Sparse(SparseChunks { layer, entry, device, start: block, bits, count }));
        }
        Ok(match slot.start {
            Some(start) => NodeContent::Blocks(start + block),
            None => NodeContent::Chunks { device, start: block, count: size.div_ceil(CHUNK) },
        })
    }
}

/// The size of the chunks of a sparse file, as a power of 2 in blocks: the smallest for which all sparse files of its layer together
/// have a limited number of chunks.
fn chunk_bits(size: u64, files: usize) -> u8 {
    let max = u64::try_from(SPARSE_CHUNKS_MAX / files.max(1)).unwrap_or(u64::MAX);
    let max = max.clamp(FILE_CHUNKS.start, FILE_CHUNKS.end);
    (0..CHUNK_BITS_MAX).find(|bits| size.div_ceil(BLOCK << bits) <= max).unwrap_or(CHUNK_BITS_MAX)
}

/// Calls `each` for every node, each directory before its files, in the order of the inodes.
pub(super) fn visit<E>(tree: &Tree, mut each: impl FnMut(NodeId) -> Result<(), E>) -> Result<(), E> {
    // Other nodes have numbers in the order of their first names, so a greater number was not visited yet.
    let mut next_file = NodeId::ROOT;
    for directory in nodes(tree).take_while(|node| tree.is_directory(*node)) {
        each(directory)?;
        for (_, child) in tree.children(directory) {
            if !tree.is_directory(child) && child >= next_file {
                next_file = NodeId::new(child.get() + 1);
                each(child)?;
            }
        }
    }
    Ok(())
}

fn nodes(tree: &Tree) -> impl Iterator<Item = NodeId> + use<> {
    let count = u32::try_from(tree.len()).expect("nodes have numbers of 32 bits");
    (0..count).map(NodeId::new)
}

/// The layers that have content in the tree, as devices with their addresses.
fn devices<D: AsRef<[u8]>>(
    tree: &Tree,
    layers: &[&Index<D>],
) -> Result<(Vec<DeviceSlot>, Vec<Option<usize>>), Inexpressible> {
    let mut used: Vec<Option<LayerNo>> = vec![None; layers.len()];
    for node in nodes(tree) {
        if let NodeSource::Entry { layer, entry } = tree.source(node)
            && used[layer.index()].is_none()
            && let StoredContent::Tar { .. } | StoredContent::Sparse { .. } =
                layers[layer.index()].stored_content(entry)
        {
            used[layer.index()] = Some(layer);
        }
    }
    let mut slots = Vec::new();
    let mut next = CONTENT_START;
    let device_of = used
        .into_iter()
        .map(|layer| {
            let Some(layer) = layer else { return Ok(None) };
            let device = LayerDevice::of(layers[layer.index()]);
            let max = u64::from(HOLE) * BLOCK;
            let blocks = u32::try_from(device.size() / BLOCK).ok().filter(|blocks| *blocks < HOLE);
            let blocks = blocks.ok_or_else(|| Inexpressible::Device {
                layer: layer.index() + 1,
                bytes: device.size(),
                max,
            })?;
            let end = next.checked_add(blocks).filter(|end| *end < HOLE);
            let start = end.map(|_| next);
            next = end.unwrap_or(next);
            slots.push(DeviceSlot { layer, device, blocks, start });
            Ok(Some(slots.len() - 1))
        })
        .collect::<Result<Vec<_>, Inexpressible>>()?;
    if slots.len() > DEVICES_MAX {
        return Err(Inexpressible::Devices { layers: slots.len(), max: DEVICES_MAX });
    }
    Ok((slots, device_of))
}

/// The time that most small inodes have; of several, the earliest.
fn most_frequent_time<D: AsRef<[u8]>>(tree: &Tree, layers: &[&Index<D>]) -> Timestamp {
    let mut counts: HashMap<(i64, u32), u32> = HashMap::new();
    for node in nodes(tree) {
        let attr = NodeAttr::of(tree, layers, node);
        if attr.is_small() {
            *counts.entry((attr.mtime.sec, attr.mtime.nsec)).or_insert(0) += 1;
        }
    }
    let most = counts.into_iter().max_by_key(|(time, count)| (*count, std::cmp::Reverse(*time)));
    most.map_or(Timestamp { sec: 0, nsec: 0 }, |((sec, nsec), _)| Timestamp { sec, nsec })
}

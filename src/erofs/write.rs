//! Writes a planned image.

use std::io::{self, Write};

use super::directory;
use super::error::ErofsError;
use super::format::{
    BLOCK, BLOCK_BITS, CHUNK_BITS_MAX, CHUNK_INDEXES, COMPAT_MTIME, COMPAT_XATTR_FILTER, DEVICE_LEN,
    DataLayout, FileTypeByte, HOLE, INCOMPAT_CHUNKED_FILE, INCOMPAT_DEVICE_TABLE, MAGIC, SLOT, SUPER_LEN,
    SUPER_OFFSET,
};
use super::inode::{InodeRecord, NodeAttr};
use super::plan::{NodeContent, NodeShape, SparseChunks, TreeImage, visit};
use crate::index::Piece;
use crate::tree::NodeId;

/// The length of a `struct erofs_inode_chunk_index`.
const CHUNK_RECORD: usize = 8;
/// Blocks in a chunk of the greatest size.
const CHUNK_BLOCKS: u32 = 1 << CHUNK_BITS_MAX;

/// Counts the bytes that it passes on.
struct CountingWriter<W> {
    inner: W,
    position: u64,
}

impl<W: Write> CountingWriter<W> {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.position += bytes.len() as u64;
        self.inner.write_all(bytes)
    }

    /// Writes zero bytes up to `position`.
    fn pad_to(&mut self, position: u64) -> io::Result<()> {
        const ZEROS: [u8; 512] = [0; 512];
        while self.position < position {
            let len = (position - self.position).min(ZEROS.len() as u64);
            self.put(&ZEROS[..usize::try_from(len).unwrap_or(0)])?;
        }
        Ok(())
    }
}

impl<D: AsRef<[u8]>> TreeImage<'_, D> {
    /// Writes the image, [`TreeImage::size`] bytes. `uuid` identifies the filesystem: overlayfs needs one for stable inode
    /// numbers (fs/overlayfs/super.c, `ovl_lower_uuid_ok`).
    ///
    /// # Errors
    /// `out` cannot be written.
    pub fn write(&self, uuid: [u8; 16], out: impl Write) -> Result<(), ErofsError> {
        let mut out = CountingWriter { inner: io::BufWriter::with_capacity(1 << 16, out), position: 0 };
        out.pad_to(SUPER_OFFSET)?;
        out.put(&self.superblock(uuid))?;
        for slot in &self.devices {
            let mut bytes = [0; DEVICE_LEN];
            let tag = self.layers[slot.layer.index()].layer().digest().hex();
            bytes[..64].copy_from_slice(&tag.as_bytes()[..64]);
            bytes[64..68].copy_from_slice(&slot.blocks.to_le_bytes());
            bytes[68..72].copy_from_slice(&slot.start.unwrap_or(0).to_le_bytes());
            out.put(&bytes)?;
        }
        self.write_inodes(&mut out)?;
        out.pad_to(self.shared_start)?;
        out.put(self.xattrs.area())?;
        out.pad_to(self.data_start)?;
        self.write_blocks(&mut out)?;
        debug_assert_eq!(out.position, self.size());
        out.inner.flush()?;
        Ok(())
    }

    /// `struct erofs_super_block`.
    fn superblock(&self, uuid: [u8; 16]) -> [u8; SUPER_LEN] {
        let mut bytes = [0; SUPER_LEN];
        let mut set = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        let block =
            |offset: u64| u32::try_from(offset / BLOCK).expect("`plan` limits the size").to_le_bytes();
        set(0, &MAGIC.to_le_bytes());
        set(8, &(COMPAT_MTIME | COMPAT_XATTR_FILTER).to_le_bytes());
        set(12, &[BLOCK_BITS, 0]);
        let root = u16::try_from(self.number(NodeId::ROOT)).expect("`plan` limits the number of devices");
        set(14, &root.to_le_bytes());
        set(16, &(self.tree.len() as u64).to_le_bytes());
        set(24, &self.time.sec.to_le_bytes());
        set(32, &self.time.nsec.to_le_bytes());
        set(36, &block(self.size()));
        // meta_blkaddr, at 40, is 0: the number of an inode is its offset in the image.
        set(44, &block(self.shared_start));
        set(48, &uuid);
        set(80, &(INCOMPAT_CHUNKED_FILE | INCOMPAT_DEVICE_TABLE).to_le_bytes());
        let devices = u16::try_from(self.devices.len()).expect("`plan` limits the number of devices");
        set(86, &devices.to_le_bytes());
        let table = u16::try_from((SUPER_OFFSET + SUPER_LEN as u64) / DEVICE_LEN as u64).expect("9");
        set(88, &table.to_le_bytes());
        bytes
    }

    fn write_inodes<W: Write>(&self, out: &mut CountingWriter<W>) -> Result<(), ErofsError> {
        let mut next_block = u32::try_from(self.data_start / BLOCK).expect("`plan` limits the size");
        let mut xattr_area = Vec::new();
        let mut bytes = Vec::new();
        visit(self.tree, |node| {
            let shape = self.shape(node, std::mem::take(&mut xattr_area))?;
            let (position, end, layout, blocks) = shape.place(out.position.next_multiple_of(SLOT));
            let union = match shape.content {
                NodeContent::None => shape.attr.device(),
                NodeContent::Meta(_) => next_block,
                NodeContent::Blocks(start) => start,
                NodeContent::Chunks { .. } => (u16::from(CHUNK_BITS_MAX) | CHUNK_INDEXES).into(),
                NodeContent::Holes { .. } => CHUNK_BITS_MAX.into(),
                NodeContent::Sparse(chunks) => (u16::from(chunks.bits) | CHUNK_INDEXES).into(),
            };
            next_block += u32::try_from(blocks).expect("`plan` limits the size");
            bytes.clear();
            let number = self.number(node);
            debug_assert_eq!(number * SLOT, position);
            InodeRecord {
                attr: &shape.attr,
                size: shape.size,
                compact: shape.compact,
                layout,
                union,
                xattrs_len: shape.xattrs.len(),
                number,
            }
            .write(&mut bytes);
            bytes.extend_from_slice(&shape.xattrs);
            self.write_records(&shape, &mut bytes);
            if layout == DataLayout::Inline {
                self.append_tail(node, &shape, &mut bytes)?;
            }
            out.pad_to(position)?;
            out.put(&bytes)?;
            debug_assert_eq!(out.position, end);
            xattr_area = shape.xattrs;
            Ok(())
        })
    }

    /// Appends the last, partial block of a directory or a symlink.
    fn append_tail(
        &self,
        node: NodeId,
        shape: &NodeShape<'_>,
        bytes: &mut Vec<u8>,
    ) -> Result<(), ErofsError> {
        let start = bytes.len();
        self.meta_blocks(node, shape, |block| {
            bytes.truncate(start);
            bytes.extend_from_slice(block);
            Ok(())
        })
    }

    /// Writes the blocks of directories and symlinks, without the tails behind inodes.
    fn write_blocks<W: Write>(&self, out: &mut CountingWriter<W>) -> Result<(), ErofsError> {
        let mut xattr_area = Vec::new();
        visit(self.tree, |node| {
            let file_type = NodeAttr::of(self.tree, self.layers, node).file_type;
            if !matches!(file_type, FileTypeByte::Directory | FileTypeByte::Symlink) {
                return Ok(());
            }
            let shape = self.shape(node, std::mem::take(&mut xattr_area))?;
            let position = self.number(node) * SLOT;
            let (_, _, layout, blocks) = shape.place(position);
            if blocks > 0 {
                let end = out.position + blocks * BLOCK;
                self.meta_blocks(node, &shape, |block| {
                    // The tail of an inline layout is the block after the last.
                    if layout == DataLayout::Plain || out.position < end {
                        out.put(block)?;
                    }
                    Ok(())
                })?;
                out.pad_to(end)?;
            }
            xattr_area = shape.xattrs;
            Ok(())
        })
    }

    /// Calls `each` for the blocks of a directory's or a symlink's content.
    fn meta_blocks(
        &self,
        node: NodeId,
        shape: &NodeShape<'_>,
        mut each: impl FnMut(&[u8]) -> Result<(), ErofsError>,
    ) -> Result<(), ErofsError> {
        if self.tree.is_directory(node) {
            let inode =
                |node: NodeId| (self.number(node), NodeAttr::of(self.tree, self.layers, node).file_type);
            return directory::write(self.tree, node, inode, each);
        }
        let block = usize::try_from(BLOCK).expect("512");
        shape.attr.target.chunks(block).try_for_each(&mut each)
    }

    /// Appends the records of a file's chunks (`struct erofs_inode_chunk_index`, or block addresses for holes).
    fn write_records(&self, shape: &NodeShape<'_>, bytes: &mut Vec<u8>) {
        match shape.content {
            NodeContent::Chunks { device, start, count } => {
                // The inode is at a multiple of 8.
                bytes.resize(bytes.len().next_multiple_of(8), 0);
                for chunk in 0..count {
                    let chunk = u32::try_from(chunk).expect("a device has at most two chunks");
                    chunk_record(bytes, device, start + chunk * CHUNK_BLOCKS);
                }
            }
            NodeContent::Holes { count } => {
                for _ in 0..count {
                    bytes.extend_from_slice(&HOLE.to_le_bytes());
                }
            }
            NodeContent::Sparse(chunks) => self.write_sparse_records(chunks, shape.size, bytes),
            NodeContent::None | NodeContent::Meta(_) | NodeContent::Blocks(_) => {}
        }
    }

    fn write_sparse_records(&self, chunks: SparseChunks, size: u64, bytes: &mut Vec<u8>) {
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        let first = bytes.len();
        for _ in 0..chunks.count {
            chunk_record(bytes, 0, HOLE);
        }
        let chunk_len = BLOCK << chunks.bits;
        let mut offset = 0;
        for piece in self.layers[chunks.layer.index()].pieces_from(chunks.entry, 0, size) {
            let (is_data, len) = match piece {
                Piece::Data { len, .. } => (true, len),
                Piece::Hole { len } => (false, len),
            };
            if is_data && len > 0 {
                for chunk in offset / chunk_len..=(offset + len - 1) / chunk_len {
                    let block = u32::try_from(chunk << chunks.bits).expect("the device was limited");
                    let mut record = Vec::with_capacity(CHUNK_RECORD);
                    chunk_record(&mut record, chunks.device, chunks.start + block);
                    let at = first + CHUNK_RECORD * usize::try_from(chunk).expect("chunks were limited");
                    bytes[at..at + CHUNK_RECORD].copy_from_slice(&record);
                }
            }
            offset += len;
        }
    }
}

/// Appends a `struct erofs_inode_chunk_index`.
fn chunk_record(bytes: &mut Vec<u8>, device: u16, block: u32) {
    bytes.extend_from_slice(&[0; 2]);
    bytes.extend_from_slice(&device.to_le_bytes());
    bytes.extend_from_slice(&block.to_le_bytes());
}

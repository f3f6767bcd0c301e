//! Follows the blocks of a zstd frame without decoding them (RFC 8878, 3.1.1.2).
//!
//! The end of a block is the only position at which it is certain which content the bytes before it decode to.

/// Length of a block header in bytes.
const HEADER_LEN: u8 = 3;
/// Length of the checksum after the last block in bytes.
const CHECKSUM_LEN: usize = 4;

/// A position in the blocks of a frame.
#[derive(Debug, Clone, Copy)]
pub(super) struct BlockCursor {
    part: FramePart,
    /// The offset in the blob.
    offset: u64,
    block_end: u64,
    has_checksum: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FramePart {
    /// The header of a block, of which `read` bytes were read as the number `value`.
    Header { read: u8, value: u32 },
    /// The content of a block, of which `left` bytes follow.
    Content { left: usize, is_last: bool },
    /// The checksum, of which `left` bytes follow.
    Checksum { left: usize },
}

impl BlockCursor {
    /// The position after a frame header that ends at `offset` of the blob.
    pub(super) fn new(offset: u64, has_checksum: bool) -> Self {
        let part = FramePart::Header { read: 0, value: 0 };
        Self { part, offset, block_end: offset, has_checksum }
    }

    /// The number of bytes up to the next position where a header, a block or the frame ends.
    pub(super) fn left(&self) -> usize {
        match self.part {
            FramePart::Header { read, .. } => usize::from(HEADER_LEN - read),
            FramePart::Content { left, .. } | FramePart::Checksum { left } => left,
        }
    }

    /// The end of the last block whose header was passed.
    pub(super) fn block_end(&self) -> u64 {
        self.block_end
    }

    /// Moves on by `bytes`, the next bytes of the frame, at most [`Self::left`] of them.
    pub(super) fn advance(&mut self, bytes: &[u8]) {
        self.offset += bytes.len() as u64;
        match &mut self.part {
            FramePart::Header { read, value } => {
                for byte in bytes {
                    *value |= u32::from(*byte) << (8 * *read);
                    *read += 1;
                }
                let (is_complete, header) = (*read == HEADER_LEN, *value);
                if is_complete {
                    self.enter_block(header);
                }
            }
            FramePart::Content { left, .. } | FramePart::Checksum { left } => *left -= bytes.len(),
        }
        if let FramePart::Content { left: 0, is_last } = self.part {
            self.part = match is_last {
                true => FramePart::Checksum { left: if self.has_checksum { CHECKSUM_LEN } else { 0 } },
                false => FramePart::Header { read: 0, value: 0 },
            };
        }
    }

    fn enter_block(&mut self, header: u32) {
        let size = (header >> 3) as usize;
        // A block of type 1 repeats its only byte `size` times. The decoder refuses type 3.
        let left = if header >> 1 & 3 == 1 { 1 } else { size };
        self.block_end = self.offset + left as u64;
        self.part = FramePart::Content { left, is_last: header & 1 == 1 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_of_raw_repeated_and_empty_blocks_are_found_whatever_is_read_at_once() {
        let raw = [&[5 << 3, 0, 0][..], b"hello"].concat();
        let repeated = [0x42 | 200, 1, 0, b'x'];
        let (empty, last) = ([0, 0, 0], [3 << 3 | 1, 0, 0, 1, 2, 3]);
        let frame = [&raw[..], &repeated, &empty, &last, &[9; CHECKSUM_LEN]].concat();
        for step in 1..=8 {
            let mut cursor = BlockCursor::new(100, true);
            let (mut ends, mut rest) = (vec![], &frame[..]);
            while cursor.left() > 0 {
                let (bytes, behind) = rest.split_at(cursor.left().min(step));
                cursor.advance(bytes);
                rest = behind;
                ends.push(cursor.block_end());
            }
            ends.dedup();
            assert!(rest.is_empty(), "{step}");
            assert_eq!(ends.split_off(usize::from(ends[0] == 100)), [108, 112, 115, 121], "{step}");
        }
    }
}

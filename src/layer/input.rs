//! Reads a blob and tracks the position in it.

use std::io::{self, BufRead};

use super::{BlobOffset, Codec, LayerError};

/// A blob that is being read. Reads the first bytes ahead, so that the codec can be recognised before decoding starts.
#[derive(Debug)]
pub(super) struct BlobInput<R> {
    reader: R,
    prefix: [u8; Codec::SNIFF_LEN],
    /// Bytes of the prefix that were read from the blob.
    prefix_len: usize,
    /// Bytes of the prefix that were consumed.
    prefix_consumed: usize,
    offset: u64,
}

impl<R: BufRead> BlobInput<R> {
    /// Reads the prefix from the start of the blob.
    pub(super) fn new(mut reader: R) -> Result<Self, LayerError> {
        let mut prefix = [0; Codec::SNIFF_LEN];
        let mut prefix_len = 0;
        while prefix_len < prefix.len() {
            let chunk = fill(&mut reader, prefix_len as u64)?;
            if chunk.is_empty() {
                break;
            }
            let take = chunk.len().min(prefix.len() - prefix_len);
            prefix[prefix_len..prefix_len + take].copy_from_slice(&chunk[..take]);
            reader.consume(take);
            prefix_len += take;
        }
        Ok(Self { reader, prefix, prefix_len, prefix_consumed: 0, offset: 0 })
    }

    /// The bytes of the prefix that were not consumed yet. Shorter than [`Codec::SNIFF_LEN`] if the blob is.
    pub(super) fn prefix(&self) -> &[u8] {
        &self.prefix[self.prefix_consumed..self.prefix_len]
    }

    /// Number of bytes consumed.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// Returns the next bytes; none at the end of the blob.
    pub(super) fn fill(&mut self) -> Result<&[u8], LayerError> {
        if self.prefix_consumed < self.prefix_len {
            return Ok(&self.prefix[self.prefix_consumed..self.prefix_len]);
        }
        fill(&mut self.reader, self.offset)
    }

    /// Consumes the first `bytes` bytes that `fill` returned.
    pub(super) fn consume(&mut self, bytes: usize) {
        self.offset += bytes as u64;
        if self.prefix_consumed < self.prefix_len {
            self.prefix_consumed += bytes;
        } else {
            self.reader.consume(bytes);
        }
    }

    /// Reads one byte. The end of the blob is an error, which names `part`.
    pub(super) fn byte(&mut self, codec: Codec, part: &'static str) -> Result<u8, LayerError> {
        match *self.fill()? {
            [byte, ..] => {
                self.consume(1);
                Ok(byte)
            }
            [] => Err(self.truncated(codec, part)),
        }
    }

    /// The error for a blob that ends here, in the middle of `part`.
    pub(super) fn truncated(&self, codec: Codec, part: &'static str) -> LayerError {
        LayerError::Truncated { codec, part, at: BlobOffset::new(self.offset) }
    }

    /// Returns the reader, from which the consumed bytes and at least the prefix have been read.
    pub(super) fn into_reader(self) -> R {
        self.reader
    }
}

fn fill<R: BufRead>(reader: &mut R, offset: u64) -> Result<&[u8], LayerError> {
    let failed = |source| LayerError::Read { at: BlobOffset::new(offset), source };
    loop {
        match reader.fill_buf() {
            Ok(_) => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failed(error)),
        }
    }
    // The borrow checker rejects returning the buffer from inside the loop. The second call returns the same buffer.
    reader.fill_buf().map_err(failed)
}

//! Reads sparse maps and validates them at the same time, so that a finished map can be trusted.

use super::header::number;
use super::pax::SparseRecords;
use super::pax_values::parse_size;
use super::{BLOCK, FileContent, MAX_SEGMENTS, Segment, TarFault};
use crate::layer::TarOffset;

/// A sparse file's map that is being read.
#[derive(Debug)]
pub(super) struct SparseMap {
    /// The file's length, including holes.
    size: u64,
    /// End of the last segment. The next one must not start before it.
    end: u64,
    /// Number of bytes of data so far.
    stored: u64,
    /// `tar` is relative to the first byte of data, whose position is known only after the map.
    segments: Vec<Segment>,
}

impl SparseMap {
    pub(super) fn new(size: u64) -> Self {
        Self { size, end: 0, stored: 0, segments: Vec::new() }
    }

    /// Adds a segment. Empty ones are allowed (GNU tar ends a map with one at the file's end) and ignored.
    fn push(&mut self, logical: u64, len: u64) -> Result<(), TarFault> {
        let end = logical.checked_add(len).filter(|end| *end <= self.size).ok_or(TarFault::SparseMap)?;
        if logical < self.end {
            return Err(TarFault::SparseMap);
        }
        let full = self.segments.len() == MAX_SEGMENTS;
        match self.segments.last_mut() {
            _ if len == 0 => {}
            Some(last) if last.logical + last.len == logical => last.len += len,
            _ if full => return Err(TarFault::ManySegments),
            _ => self.segments.push(Segment { logical, tar: TarOffset::new(self.stored), len }),
        }
        // Cannot overflow: the segments do not overlap and end within the size.
        self.stored += len;
        self.end = end;
        Ok(())
    }

    /// Adds the entries of one block of an old GNU map, 24 bytes each. Returns false if the map ends in this block.
    pub(super) fn push_gnu(&mut self, entries: &[u8]) -> Result<bool, TarFault> {
        for entry in entries.chunks_exact(24) {
            if entry[0] == 0 {
                return Ok(false);
            }
            let field = |field| number(field).and_then(|value| u64::try_from(value).ok());
            match (field(&entry[..12]), field(&entry[12..])) {
                (Some(logical), Some(len)) => self.push(logical, len)?,
                _ => return Err(TarFault::SparseMap),
            }
        }
        Ok(true)
    }

    /// Adds the map of PAX 0.0 or 0.1, which is in the extension header.
    pub(super) fn push_records(&mut self, records: &SparseRecords) -> Result<(), TarFault> {
        let segments = u64::try_from(records.map.len() / 2).ok();
        if !records.map.len().is_multiple_of(2) || records.segments != segments {
            return Err(TarFault::SparseMap);
        }
        records.map.chunks_exact(2).try_for_each(|pair| self.push(pair[0], pair[1]))
    }

    /// Returns the file's size and content. The data starts at `data` and has `stored` bytes, which the map must cover
    /// completely.
    pub(super) fn finish(mut self, data: u64, stored: u64) -> Result<(u64, FileContent), TarFault> {
        if self.stored != stored {
            return Err(TarFault::SparseMap);
        }
        for segment in &mut self.segments {
            // No stream is long enough for a position beyond 64 bits.
            let tar = segment.tar.get().checked_add(data).ok_or(TarFault::Range("size"))?;
            segment.tar = TarOffset::new(tar);
        }
        let content = if self.stored == self.size {
            FileContent::Contiguous(TarOffset::new(data))
        } else {
            self.segments.shrink_to_fit();
            FileContent::Sparse(self.segments)
        };
        Ok((self.size, content))
    }
}

/// A map of PAX 1.0 that is being read. It precedes the data: the number of segments, then the offset and length of each,
/// each number on a line of its own.
#[derive(Debug)]
pub(super) struct SparseLineMap {
    map: SparseMap,
    /// The current line.
    line: Vec<u8>,
    /// The number of lines that remain to be read; `None` before the number of segments is read.
    remaining: Option<u64>,
    /// Offset of the next segment, if its length is not read yet.
    logical: Option<u64>,
}

impl SparseLineMap {
    pub(super) fn new(size: u64) -> Self {
        Self { map: SparseMap::new(size), line: Vec::with_capacity(20), remaining: None, logical: None }
    }

    /// Reads the next block of the map. Returns true if it was the last.
    pub(super) fn push_block(&mut self, block: &[u8; BLOCK]) -> Result<bool, TarFault> {
        for &byte in block {
            if self.remaining == Some(0) {
                break;
            }
            match byte {
                b'\n' => self.finish_line()?,
                // No 64-bit number is longer than 20 digits.
                _ if self.line.len() == 20 => return Err(TarFault::SparseMap),
                _ => self.line.push(byte),
            }
        }
        Ok(self.remaining == Some(0))
    }

    fn finish_line(&mut self) -> Result<(), TarFault> {
        let value = parse_size(&self.line).ok_or(TarFault::SparseMap)?;
        self.line.clear();
        match (self.remaining, self.logical.take()) {
            (None, _) => self.remaining = Some(value.checked_mul(2).ok_or(TarFault::SparseMap)?),
            (Some(remaining), logical) => {
                self.remaining = Some(remaining - 1);
                match logical {
                    None => self.logical = Some(value),
                    Some(logical) => self.map.push(logical, value)?,
                }
            }
        }
        Ok(())
    }

    pub(super) fn into_map(self) -> SparseMap {
        self.map
    }
}

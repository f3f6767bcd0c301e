//! Sparse maps, checked while they are read, so that what comes out can be relied on.

use super::header::number;
use super::pax::{SparseRecords, size};
use super::{BLOCK, FileContent, MAX_SEGMENTS, Segment, TarFault};
use crate::layer::TarOffset;

/// Collects a sparse file's map.
#[derive(Debug)]
pub(super) struct Map {
    /// The file's length, holes included.
    size: u64,
    /// Where the segment before ended; none may start before that.
    end: u64,
    /// Bytes of data so far.
    stored: u64,
    /// `tar` counts from the first byte of data, since that is known only when the map has been read.
    segments: Vec<Segment>,
}

impl Map {
    pub(super) fn new(size: u64) -> Self {
        Self { size, end: 0, stored: 0, segments: Vec::new() }
    }

    /// Adds a stretch of data. Maps may have empty ones (GNU tar ends a map with one at the file's end).
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
        // No overflow: segments are apart and all end within the size.
        self.stored += len;
        self.end = end;
        Ok(())
    }

    /// Adds the entries of one block of an old GNU map, 24 bytes each. False when the map ends in it.
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

    /// Takes the map of PAX 0.0 and 0.1, which is in the extension header.
    pub(super) fn push_records(&mut self, records: &SparseRecords) -> Result<(), TarFault> {
        let segments = u64::try_from(records.map.len() / 2).ok();
        if !records.map.len().is_multiple_of(2) || records.segments != segments {
            return Err(TarFault::SparseMap);
        }
        records.map.chunks_exact(2).try_for_each(|pair| self.push(pair[0], pair[1]))
    }

    /// The finished map, of data that starts at `data` and has `stored` bytes: all of which the map must account for.
    pub(super) fn finish(mut self, data: u64, stored: u64) -> Result<(u64, FileContent), TarFault> {
        if self.stored != stored {
            return Err(TarFault::SparseMap);
        }
        for segment in &mut self.segments {
            // A sum beyond 64 bits is no position in any stream that could be read to its end.
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

/// The map of PAX 1.0, which stands before the data: a count, then offsets and lengths, each a line of decimal digits.
#[derive(Debug)]
pub(super) struct LineMap {
    map: Map,
    line: Vec<u8>,
    /// Numbers still to come; `None` until the count has been read.
    left: Option<u64>,
    logical: Option<u64>,
}

impl LineMap {
    pub(super) fn new(size: u64) -> Self {
        Self { map: Map::new(size), line: Vec::with_capacity(20), left: None, logical: None }
    }

    /// Takes the next block of the map. True when it was the last.
    pub(super) fn push_block(&mut self, block: &[u8; BLOCK]) -> Result<bool, TarFault> {
        for &byte in block {
            if self.left == Some(0) {
                break;
            }
            match byte {
                b'\n' => self.finish_line()?,
                // Longer than any 64-bit number.
                _ if self.line.len() == 20 => return Err(TarFault::SparseMap),
                _ => self.line.push(byte),
            }
        }
        Ok(self.left == Some(0))
    }

    fn finish_line(&mut self) -> Result<(), TarFault> {
        let value = size(&self.line).ok_or(TarFault::SparseMap)?;
        self.line.clear();
        match (self.left, self.logical.take()) {
            (None, _) => self.left = Some(value.checked_mul(2).ok_or(TarFault::SparseMap)?),
            (Some(left), logical) => {
                self.left = Some(left - 1);
                match logical {
                    None => self.logical = Some(value),
                    Some(logical) => self.map.push(logical, value)?,
                }
            }
        }
        Ok(())
    }

    pub(super) fn into_map(self) -> Map {
        self.map
    }
}

//! Encodes the windows and block headers of deflate checkpoints in groups, and decodes them.
//!
//! Neighbouring windows contain similar text, so a group compresses better than each window alone. A group of this size is
//! decoded in some 50 us, a tenth of the time for its span.

use super::open::IndexError;
use crate::layer::Window;

/// Bytes of windows at which a group is closed.
const GROUP_TARGET: usize = 32 << 10;
/// Largest uncompressed group in bytes: the target and one more window with all of its runs, and a block header.
pub(super) const GROUP_LIMIT: u32 = 256 << 10;
/// zstd level. The windows are compressed after the last byte of a layer arrives, so a pull waits for this. Level 12 saves 6 %
/// and takes six times as long.
const LEVEL: i32 = 3;

/// Collects windows into groups.
#[derive(Debug, Default)]
pub(super) struct WindowGroups {
    open_runs: Vec<u8>,
    open_bytes: Vec<u8>,
    open_count: u16,
    /// The closed groups: (offset in the heap, compressed bytes, uncompressed bytes).
    pub(super) records: Vec<(u64, u32, u32)>,
    /// The closed groups, compressed.
    pub(super) heap: Vec<u8>,
}

/// Appends a number in LEB128.
fn put_number(out: &mut Vec<u8>, mut number: u32) {
    while number >= 0x80 {
        out.push(number.to_le_bytes()[0] | 0x80);
        number >>= 7;
    }
    out.push(number.to_le_bytes()[0]);
}

/// Removes a number in LEB128 from the start of `bytes`; `None` if it is truncated or too long.
fn take_number(bytes: &mut &[u8]) -> Option<u32> {
    let mut number = 0;
    for shift in [0, 7, 14] {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u32::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(number);
        }
    }
    None
}

impl WindowGroups {
    /// Adds a window and the block header in which its span starts, which may be empty. Returns the group and the ordinal there.
    pub(super) fn push(&mut self, window: &Window, header: &[u8]) -> std::io::Result<(u32, u16)> {
        let position = (
            u32::try_from(self.records.len()).expect("there are at most as many groups as spans"),
            self.open_count,
        );
        let short = |length| u32::try_from(length).expect("headers and runs are within 32 KiB");
        put_number(&mut self.open_runs, short(header.len()));
        put_number(&mut self.open_runs, short(window.runs.len()));
        let mut end = 0;
        for &(start, length) in &window.runs {
            put_number(&mut self.open_runs, u32::from(start - end));
            put_number(&mut self.open_runs, length.into());
            end = start + length;
        }
        self.open_bytes.extend_from_slice(header);
        self.open_bytes.extend_from_slice(&window.bytes);
        self.open_count += 1;
        if self.open_bytes.len() + self.open_runs.len() >= GROUP_TARGET || self.open_count == u16::MAX {
            self.close()?;
        }
        Ok(position)
    }

    /// Closes the last group. The caller must call this after the last `push`.
    pub(super) fn close(&mut self) -> std::io::Result<()> {
        if self.open_count == 0 {
            return Ok(());
        }
        let mut raw = Vec::new();
        put_number(&mut raw, self.open_count.into());
        raw.append(&mut self.open_runs);
        raw.append(&mut self.open_bytes);
        self.open_count = 0;
        let frame = zstd::bulk::compress(&raw, LEVEL)?;
        let length = |bytes: &[u8]| u32::try_from(bytes.len()).expect("a group is below GROUP_LIMIT");
        self.records.push((self.heap.len() as u64, length(&frame), length(&raw)));
        self.heap.extend_from_slice(&frame);
        Ok(())
    }
}

/// Decodes one window of a group, and its block header; `None` if the group is damaged. Groups of version 2 of the index have no
/// headers.
pub(super) fn window_of(group: &[u8], ordinal: u16, has_headers: bool) -> Option<(Window, Vec<u8>)> {
    let mut rest = group;
    let count = take_number(&mut rest)?;
    let mut window = Window::default();
    let (mut skipped, mut header_len, mut window_len) = (0, 0, 0);
    for at in 0..count {
        if has_headers {
            let length = take_number(&mut rest)? as usize;
            match at.cmp(&ordinal.into()) {
                std::cmp::Ordering::Less => skipped += length,
                std::cmp::Ordering::Equal => header_len = length,
                std::cmp::Ordering::Greater => {}
            }
        }
        let mut end = 0;
        for _ in 0..take_number(&mut rest)? {
            let start = take_number(&mut rest)?.checked_add(end)?;
            let length = take_number(&mut rest)?;
            end = start.checked_add(length)?;
            if end > 1 << 15 {
                return None;
            }
            match at.cmp(&ordinal.into()) {
                std::cmp::Ordering::Less => skipped += length as usize,
                std::cmp::Ordering::Equal => {
                    window_len += length as usize;
                    window.runs.push((u16::try_from(start).ok()?, u16::try_from(length).ok()?));
                }
                std::cmp::Ordering::Greater => {}
            }
        }
    }
    let (header, bytes) = rest.get(skipped..skipped + header_len + window_len)?.split_at(header_len);
    window.bytes = bytes.to_vec();
    Some((window, header.to_vec()))
}

/// Decompresses a group to `raw_len` bytes.
pub(super) fn decompress(frame: &[u8], raw_len: usize, ordinal: u32) -> Result<Vec<u8>, IndexError> {
    match zstd::bulk::decompress(frame, raw_len) {
        Ok(raw) if raw.len() == raw_len => Ok(raw),
        _ => Err(IndexError::Inconsistent { record: "window group", ordinal: ordinal as usize }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(runs: &[(u16, u16)], seed: u8) -> Window {
        let length = runs.iter().map(|run| usize::from(run.1)).sum();
        Window { runs: runs.to_vec(), bytes: (0..length).map(|n| n.to_le_bytes()[0] ^ seed).collect() }
    }

    #[test]
    fn every_window_round_trips() {
        let windows: Vec<Window> = (0..200u8)
            .map(|n| match n % 4 {
                0 => window(&[], n),
                1 => window(&[(0, 32767)], n),
                2 => window(&[(u16::from(n), 3), (20_000, 258), (32_767, 1)], n),
                _ => window(&[(31_000, 700)], n),
            })
            .collect();
        let mut groups = WindowGroups::default();
        let headers: Vec<Vec<u8>> =
            (0..windows.len()).map(|n| vec![7; if n % 3 == 0 { n } else { 0 }]).collect();
        let positions: Vec<_> = windows
            .iter()
            .zip(&headers)
            .map(|(window, header)| groups.push(window, header).unwrap())
            .collect();
        groups.close().unwrap();
        assert!(groups.records.len() > 1);
        for ((window, header), (group, ordinal)) in windows.iter().zip(headers).zip(positions) {
            let (start, length, raw_len) = groups.records[group as usize];
            assert!(raw_len <= GROUP_LIMIT);
            let start = usize::try_from(start).unwrap();
            let raw =
                decompress(&groups.heap[start..start + length as usize], raw_len as usize, group).unwrap();
            assert_eq!(window_of(&raw, ordinal, true), Some((window.clone(), header)));
        }
    }

    #[test]
    fn damaged_groups_are_refused() {
        let mut groups = WindowGroups::default();
        groups.push(&window(&[(100, 50), (200, 50)], 1), b"header").unwrap();
        groups.close().unwrap();
        let raw = decompress(&groups.heap, groups.records[0].2 as usize, 0).unwrap();
        for cut in 0..raw.len() {
            assert_eq!(window_of(&raw[..cut], 0, true), None);
        }
        assert!(decompress(&groups.heap, raw.len() - 1, 0).is_err());
    }
}

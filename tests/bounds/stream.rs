//! Tars of any length, generated while they are read.

use std::io::{self, BufRead, Read};

use bytes::Bytes;

/// A reader over a sequence of chunks.
pub(crate) struct Stream<I> {
    chunks: I,
    current: Bytes,
}

impl<I: Iterator<Item = Bytes>> Stream<I> {
    pub(crate) fn new(chunks: impl IntoIterator<Item = Bytes, IntoIter = I>) -> Self {
        Self { chunks: chunks.into_iter(), current: Bytes::new() }
    }
}

impl<I: Iterator<Item = Bytes>> Read for Stream<I> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let length = available.len().min(out.len());
        out[..length].copy_from_slice(&available[..length]);
        self.consume(length);
        Ok(length)
    }
}

impl<I: Iterator<Item = Bytes>> BufRead for Stream<I> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.current.is_empty() {
            match self.chunks.next() {
                Some(chunk) => self.current = chunk,
                None => break,
            }
        }
        Ok(&self.current)
    }

    fn consume(&mut self, amount: usize) {
        let _ = self.current.split_to(amount);
    }
}

/// Returns a ustar header.
pub(crate) fn header(kind: u8, name: &[u8], size: u64) -> Bytes {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(tar::EntryType::new(kind));
    header.as_old_mut().name[..name.len()].copy_from_slice(name);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    header.set_cksum();
    Bytes::copy_from_slice(header.as_bytes())
}

/// Returns the zeros that fill a member's last block.
pub(crate) fn padding(size: u64) -> Bytes {
    Bytes::from(vec![0; usize::try_from(size.wrapping_neg() % 512).unwrap()])
}

/// Returns a member: header, data and padding.
pub(crate) fn member(kind: u8, name: &[u8], data: Bytes) -> [Bytes; 3] {
    let size = data.len() as u64;
    [header(kind, name, size), data, padding(size)]
}

/// Returns a PAX extension header with these records.
pub(crate) fn pax(records: &[(&str, &[u8])]) -> [Bytes; 3] {
    let mut data = Vec::new();
    for (key, value) in records {
        let rest = [b" ".as_slice(), key.as_bytes(), b"=", value, b"\n"].concat();
        let length = (1..).find(|digits| (rest.len() + digits).to_string().len() == *digits).unwrap();
        data.extend_from_slice((rest.len() + length).to_string().as_bytes());
        data.extend_from_slice(&rest);
    }
    member(b'x', b"PaxHeaders/x", data.into())
}

/// Returns the two zero blocks at the end of a tar.
pub(crate) fn end() -> Bytes {
    Bytes::from_static(&[0; 1024])
}

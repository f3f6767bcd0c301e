//! A blob that arrives in chunks from another thread, as one stream.

use std::io::{self, BufRead, Read};
use std::sync::mpsc::Receiver;

use bytes::Bytes;

/// Reads chunks from another thread as one stream.
#[derive(Debug)]
pub(super) struct ChunkReader {
    receiver: Receiver<io::Result<Bytes>>,
    current: Bytes,
}

impl ChunkReader {
    pub(super) fn new(receiver: Receiver<io::Result<Bytes>>) -> Self {
        Self { receiver, current: Bytes::new() }
    }
}

impl Read for ChunkReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let length = available.len().min(out.len());
        out[..length].copy_from_slice(&available[..length]);
        self.consume(length);
        Ok(length)
    }
}

impl BufRead for ChunkReader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.current.is_empty() {
            match self.receiver.recv() {
                Ok(chunk) => self.current = chunk?,
                Err(_) => break,
            }
        }
        Ok(&self.current)
    }

    fn consume(&mut self, amount: usize) {
        let _ = self.current.split_to(amount);
    }
}

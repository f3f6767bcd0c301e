//! Reads a blob that is sent, in chunks, and checks its digest.
//!
//! The last chunk is passed on only if the digest of the whole is right, so a registry never gets all bytes of wrong content.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use sha2::Digest as _;
use tokio::sync::mpsc;

use super::download::Download;
use super::outgoing::{BlobSource, OutgoingBlob};
use super::{Registry, RegistryError, RemoteObject};
use crate::image::Digest;

/// The chunks of a blob. A task reads the next one while the last one is sent.
pub(super) struct BlobChunks(mpsc::Receiver<Result<Bytes, RegistryError>>);

impl BlobChunks {
    /// Starts to read a blob in chunks of `size` bytes; the last one may be shorter.
    pub(super) fn of(registry: &Registry, blob: &OutgoingBlob, size: u64) -> Self {
        let (sender, receiver) = mpsc::channel(1);
        let (registry, blob) = (registry.clone(), blob.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = read_all(&registry, &blob, size, &sender) => {}
                // The upload has ended or starts again.
                () = sender.closed() => {}
            }
        });
        Self(receiver)
    }

    /// Returns the next chunk; `None` after the last one.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, RegistryError> {
        self.0.recv().await.transpose()
    }
}

async fn read_all(
    registry: &Registry,
    blob: &OutgoingBlob,
    size: u64,
    sender: &mpsc::Sender<Result<Bytes, RegistryError>>,
) {
    let mut reader = OutgoingReader::new(registry, blob);
    while reader.left > 0 {
        let chunk = reader.next(size).await;
        let is_last = chunk.is_err();
        if sender.send(chunk).await.is_err() || is_last {
            return;
        }
    }
}

struct OutgoingReader<'a> {
    blob: &'a OutgoingBlob,
    input: OutgoingBytes,
    hash: sha2::Sha256,
    /// Bytes that have not been read.
    left: u64,
}

enum OutgoingBytes {
    File {
        file: Arc<File>,
        offset: u64,
    },
    /// A download, and what it returned beyond the last chunk.
    Download {
        download: Box<Download>,
        rest: Bytes,
        object: RemoteObject,
    },
}

impl<'a> OutgoingReader<'a> {
    fn new(registry: &Registry, blob: &'a OutgoingBlob) -> Self {
        let input = match &blob.source {
            BlobSource::File(file) => OutgoingBytes::File { file: Arc::clone(file), offset: 0 },
            BlobSource::Repository(name) => OutgoingBytes::Download {
                download: Box::new(registry.download(name, &blob.descriptor, 0)),
                rest: Bytes::new(),
                object: RemoteObject::blob(name, blob.descriptor.digest),
            },
        };
        Self { blob, input, hash: sha2::Sha256::new(), left: blob.descriptor.size }
    }

    async fn next(&mut self, size: u64) -> Result<Bytes, RegistryError> {
        let length = self.left.min(size);
        let chunk = match &mut self.input {
            OutgoingBytes::File { file, offset } => {
                let chunk = read_file(Arc::clone(file), *offset, length).await;
                *offset += length;
                chunk.map_err(|source| RegistryError::Read { blob: self.blob.descriptor.digest, source })?
            }
            OutgoingBytes::Download { download, rest, .. } => read_download(download, rest, length).await?,
        };
        self.left -= length;
        self.hash.update(&chunk);
        if self.left == 0 {
            self.check_digest()?;
        }
        Ok(chunk)
    }

    fn check_digest(&mut self) -> Result<(), RegistryError> {
        let expected = self.blob.descriptor.digest;
        let actual = Digest::new(self.hash.finalize_reset().into());
        match &self.input {
            _ if actual == expected => Ok(()),
            OutgoingBytes::File { .. } => Err(RegistryError::Damaged { blob: expected, actual }),
            OutgoingBytes::Download { object, .. } => {
                Err(RegistryError::Digest { object: object.clone(), expected, actual })
            }
        }
    }
}

async fn read_file(file: Arc<File>, offset: u64, length: u64) -> io::Result<Bytes> {
    let read = move || {
        let mut bytes = vec![0; usize::try_from(length).map_err(io::Error::other)?];
        file.read_exact_at(&mut bytes, offset)?;
        Ok(bytes.into())
    };
    tokio::task::spawn_blocking(read).await.map_err(io::Error::other)?
}

async fn read_download(
    download: &mut Download,
    rest: &mut Bytes,
    length: u64,
) -> Result<Bytes, RegistryError> {
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    let mut chunk = BytesMut::new();
    loop {
        let piece = rest.split_to(rest.len().min(length - chunk.len()));
        chunk.extend_from_slice(&piece);
        if chunk.len() == length {
            return Ok(chunk.freeze());
        }
        match download.next_chunk().await? {
            Some(more) => *rest = more,
            // A download ends only after the last byte of the blob, and no more bytes than these are requested.
            None => return Ok(chunk.freeze()),
        }
    }
}

//! Stores an image that this program makes: a new layer in one pass, then the documents.
//!
//! ```text
//!  tar --gzip--> [write to disk, hash blob] --chunks--> [decode, walk tar] --spans--> [hash tar]
//! ```

use std::io::{self, BufWriter, Write};
use std::sync::mpsc::{SyncSender, sync_channel};

use bytes::Bytes;
use flate2::{Compression, GzBuilder};
use sha2::Digest as _;

use super::chunks::ChunkReader;
use super::layer::commit_derived;
use super::open::{open_current_index, validate};
use super::pull::IncomingImage;
use super::{PipelineError, ProgressSink, StoredImage};
use crate::image::{DiffId, Digest, LayerDigest, Manifest, ManifestDigest, Name, Tag};
use crate::index::{BuildError, BuildOptions, BuiltIndex, build};
use crate::layer::BlobOffset;
use crate::store::{Store, StoreError, TempFile};

/// Chunks in the queue to the thread that indexes them.
const QUEUE: usize = 4;
/// Length of a chunk, in bytes.
const CHUNK: usize = 256 << 10;

/// A layer that was written to the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewLayer {
    /// The digest of the blob.
    pub digest: LayerDigest,
    /// The digest of the tar.
    pub diff_id: DiffId,
    /// The size of the blob in bytes.
    pub size: u64,
}

/// Stores a layer compressed with gzip, whose tar `write` writes. The same tar always gives the same blob.
///
/// The caller must hold a [`GcLease`](crate::store::GcLease), until an image refers to the layer.
///
/// # Errors
/// `write` or the store fails, or the layer breaks a rule that layers of other origin must keep as well. Nothing of it remains.
pub fn store_new_layer<E: From<PipelineError>>(
    store: &Store,
    write: impl FnOnce(&mut dyn Write) -> Result<(), E>,
) -> Result<NewLayer, E> {
    let mut file = store.create_blob().map_err(PipelineError::from)?;
    let (sender, receiver) = sync_channel(QUEUE);
    let limits = store.layer_limits();
    let index = move || {
        // The ratio is checked below, when the size of the blob is known.
        let options = BuildOptions { tar_limit: limits.of_blob(u64::MAX), ..BuildOptions::default() };
        let seekable = || -> io::Result<TempFile> { Err(io::Error::other("gzip needs no seekable file")) };
        build(ChunkReader::new(receiver), &options, seekable).map(|(built, _)| built)
    };
    let (written, indexed) = std::thread::scope(|scope| {
        let indexing = std::thread::Builder::new()
            .name("layer-index".to_owned())
            .spawn_scoped(scope, index)
            .map_err(PipelineError::Thread)?;
        let written = compress(&mut file, sender, write);
        let indexed =
            indexing.join().map_err(|_| PipelineError::Thread(io::Error::other("the thread panicked")))?;
        Ok::<_, PipelineError>((written, indexed))
    })?;
    let written = match (written, indexed) {
        (Ok(written), Ok(built)) => (written, built),
        // The writer stops if the index cannot be built, and the index cannot be built if the writer stops.
        (Err(WriteFailure::Stopped), Err(error)) => return Err(PipelineError::NewLayer(error).into()),
        (Ok(_), Err(error)) => return Err(PipelineError::NewLayer(error).into()),
        (Err(WriteFailure::Stopped), Ok(_)) => {
            let stopped = io::Error::other("the thread that indexes the layer ended early");
            return Err(PipelineError::Thread(stopped).into());
        }
        (Err(WriteFailure::Store(error)), _) => return Err(PipelineError::from(error).into()),
        (Err(WriteFailure::Content(error)), _) => return Err(error),
    };
    let (WrittenBlob { digest, size, tar }, built) = written;
    let limit = limits.of_blob(size);
    if tar > limit.bytes() {
        let error = BuildError::TooLong { limit, at: BlobOffset::new(size) };
        return Err(PipelineError::NewLayer(error).into());
    }
    Ok(keep(store, file, digest, size, built)?)
}

/// Makes a written file a blob with an index, unless the store has the same layer already.
fn keep(
    store: &Store,
    file: TempFile,
    digest: LayerDigest,
    size: u64,
    built: BuiltIndex,
) -> Result<NewLayer, PipelineError> {
    let layer = NewLayer { digest, diff_id: *built.diff_id(), size };
    let lock = store.lock_blob(&digest.digest(), None)?;
    let is_stored = match store.has_blob(&digest.digest(), Some(size)) {
        Err(StoreError::Damaged { .. }) => false,
        result => result? && store.verify_blob(&digest.digest(), |_| ()).is_ok(),
    };
    if is_stored {
        open_current_index(store, &digest, &lock, &ProgressSink::none())?;
        return Ok(layer);
    }
    commit_derived(store, &digest, built, None, file.file())?;
    store.commit_blob(file, &lock)?;
    Ok(layer)
}

/// Makes an image of layers in the store visible as `NAME:TAG`.
///
/// The caller must hold a [`GcLease`](crate::store::GcLease).
///
/// # Errors
/// The documents contradict each other, the layers cannot be merged, or the store fails. The image is not visible then.
pub fn put_image(
    store: &Store,
    name: &Name,
    tag: &Tag,
    manifest: Manifest,
    config_bytes: Vec<u8>,
) -> Result<StoredImage, PipelineError> {
    let manifest_bytes = manifest.to_bytes();
    let digest = ManifestDigest::new(Digest::of(&manifest_bytes));
    let image = validate(digest, manifest, &config_bytes)?;
    let (name, tags) = (name.clone(), vec![tag.clone()]);
    let incoming = IncomingImage { name, tags, image, manifest_bytes, config_bytes, index: None };
    incoming.publish(store)?;
    Ok(incoming.into_stored(&[]))
}

/// The reason why a layer could not be written.
enum WriteFailure<E> {
    /// The content cannot be read.
    Content(E),
    /// The file of the blob cannot be written.
    Store(StoreError),
    /// The thread that indexes the layer has ended.
    Stopped,
}

/// A blob that is complete in its file.
struct WrittenBlob {
    digest: LayerDigest,
    size: u64,
    /// The length of the tar in bytes.
    tar: u64,
}

fn compress<E>(
    file: &mut TempFile,
    sender: SyncSender<io::Result<Bytes>>,
    write: impl FnOnce(&mut dyn Write) -> Result<(), E>,
) -> Result<WrittenBlob, WriteFailure<E>> {
    let mut sink = BlobSink { file, sender, hash: sha2::Sha256::new(), length: 0, failed: None };
    let (result, count) = {
        // Without a time and a file name in its header.
        let gzip = GzBuilder::new().write(BufWriter::with_capacity(CHUNK, &mut sink), Compression::default());
        let mut tar = TarCounter { out: gzip, count: 0 };
        let written = write(&mut tar);
        let count = tar.count;
        let result = match written {
            Err(error) => Err(Some(error)),
            Ok(()) => tar.out.finish().and_then(|mut out| out.flush()).map_err(|_| None),
        };
        (result, count)
    };
    match (sink.failed.take(), result) {
        (Some(SinkFailure::Store(error)), _) => {
            let _ = sink.sender.send(Err(io::Error::other("the blob cannot be written")));
            Err(WriteFailure::Store(error))
        }
        (Some(SinkFailure::Stopped), _) | (None, Err(None)) => Err(WriteFailure::Stopped),
        (None, Err(Some(error))) => {
            let _ = sink.sender.send(Err(io::Error::other("the content cannot be read")));
            Err(WriteFailure::Content(error))
        }
        (None, Ok(())) => {
            let digest = LayerDigest::new(Digest::new(sink.hash.finalize().into()));
            Ok(WrittenBlob { digest, size: sink.length, tar: count })
        }
    }
}

/// Why a [`BlobSink`] refuses bytes.
enum SinkFailure {
    Store(StoreError),
    Stopped,
}

/// Writes and hashes the bytes of a blob, and passes them on.
struct BlobSink<'a> {
    file: &'a mut TempFile,
    sender: SyncSender<io::Result<Bytes>>,
    hash: sha2::Sha256,
    length: u64,
    failed: Option<SinkFailure>,
}

impl Write for BlobSink<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.failed.is_some() {
            return Err(io::Error::other("the layer cannot be written"));
        }
        let path = self.file.path();
        let failure = match self.file.write_all(bytes) {
            Err(error) => Some(SinkFailure::Store(StoreError::from_write(&path, error))),
            Ok(()) => self.sender.send(Ok(Bytes::copy_from_slice(bytes))).err().map(|_| SinkFailure::Stopped),
        };
        if let Some(failure) = failure {
            self.failed = Some(failure);
            return Err(io::Error::other("the layer cannot be written"));
        }
        self.hash.update(bytes);
        self.length += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Counts the bytes of the tar.
struct TarCounter<W> {
    out: W,
    count: u64,
}

impl<W: Write> Write for TarCounter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = self.out.write(bytes)?;
        self.count += length as u64;
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

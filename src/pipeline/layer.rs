//! Stores one layer in one pass.
//!
//! ```text
//!  source --chunks--> [write to disk, hash blob] --chunks--> [decode, CRC, walk tar] --spans--> [hash tar]
//! ```
//!
//! With a plain layer, the last thread writes the tar as well.
//!
//! Each bracket is a thread, so a layer uses a second core while one core decodes. An interrupted download leaves a partial
//! file; the next attempt processes that file in the same way, and then continues the download where it ended.

use std::fs::File;
use std::io::{self, BufRead, Read, Write as _};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Duration;

use bytes::Bytes;
use sha2::Digest as _;
use tokio::sync::mpsc;

use super::chunks::ChunkReader;
use super::open::open_current_index;
use super::plain::{PlainPass, ensure_plain_layer};
use super::{PipelineError, ProgressEvent, ProgressSink};
use crate::image::{Compression, DiffId, Digest, ImageLayer, LayerDigest};
use crate::index::{BuildOptions, BuiltIndex, Index, build_and_pass_on};
use crate::layer::Codec;
use crate::store::{BlobLock, PartialBlob, PlainRoom, Store, StoreError, TempFile};

/// Chunks between two threads, of some 400 KiB each: enough to keep both busy, and few enough to stay in the cache.
const QUEUE: usize = 4;
/// Bytes of a partial file that are read at once.
const REPLAY: usize = 256 << 10;

/// The interval at which a thread that waits for another process checks whether it should stop.
const STOP_CHECK: Duration = Duration::from_millis(200);

/// How a layer is stored.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct StoreLayerOptions {
    /// The blob in the store is known to be damaged, and is replaced when the new one is complete.
    pub(super) is_damaged: bool,
    /// Also makes the plain layer, if there is room for it.
    pub(super) plain: Option<PlainRoom>,
}

/// The source of a blob: returns its bytes from an offset.
pub(super) type BlobFetcher<'a> = dyn Fn(u64) -> mpsc::Receiver<Result<Bytes, PipelineError>> + Sync + 'a;

/// Stores a layer unless the store already has it, and returns the number of bytes fetched.
///
/// Blocks on the disk, on the source, and on another process that holds the lock of the layer (until `stopped` returns true).
pub(super) fn store_layer(
    store: &Store,
    layer: &ImageLayer,
    options: StoreLayerOptions,
    fetch: &BlobFetcher<'_>,
    stopped: &dyn Fn() -> bool,
    progress: &ProgressSink,
) -> Result<u64, PipelineError> {
    let (digest, size) = (layer.digest(), layer.size());
    progress.send(ProgressEvent::Layer { digest, size });
    let blob = digest.digest();
    let lock = match store.try_lock_blob(&blob)? {
        Some(lock) => lock,
        None => {
            progress.send(ProgressEvent::Waiting { digest });
            wait_for_lock(store, &blob, stopped)?
        }
    };
    let mut fetched = 0;
    let mut finished = None;
    if !options.is_damaged && is_stored(store, layer, &lock, progress)? {
        tracing::debug!("layer {digest} is in the store");
    } else {
        let mut partial = store.partial(&lock)?;
        let resumed = partial.len();
        if resumed > size {
            partial.restart()?;
        }
        let resumed = partial.len();
        fetched = size - resumed;
        let mut pass = options.plain.and_then(|room| PlainPass::start(store, digest, room));
        match receive_and_index(store, layer, partial, fetch, pass.as_mut(), progress) {
            // The bytes of the earlier attempt may be damaged: fetch the layer again from the start.
            Err(PipelineError::WrongDigest { .. } | PipelineError::Layer { .. }) if resumed > 0 => {
                tracing::warn!(
                    "layer {digest}: the partial file of an earlier download is damaged; fetching the layer again"
                );
                let mut partial = store.partial(&lock)?;
                partial.restart()?;
                fetched = size;
                drop(pass);
                receive_and_index(store, layer, partial, fetch, None, progress)?;
            }
            result => {
                result?;
                finished = pass;
            }
        }
    }
    // The maker of a plain layer may wait for the lock of the blob.
    drop(lock);
    match (options.plain, finished) {
        (_, Some(pass)) => pass.finish(store),
        (Some(room), None) => ensure_plain_layer(store, &digest, room),
        (None, None) => {}
    }
    progress.send(ProgressEvent::Done { digest });
    Ok(fetched)
}

/// Waits for the lock of a blob until `stopped` returns true. The deadlines of the other process limit the wait.
fn wait_for_lock(
    store: &Store,
    blob: &Digest,
    stopped: &dyn Fn() -> bool,
) -> Result<BlobLock, PipelineError> {
    loop {
        match store.lock_blob(blob, Some(STOP_CHECK)) {
            Err(StoreError::Busy { .. }) if !stopped() => {}
            result => return Ok(result?),
        }
    }
}

/// Whether the store has the whole layer. Removes a damaged blob, so that it is fetched again.
fn is_stored(
    store: &Store,
    layer: &ImageLayer,
    lock: &BlobLock,
    progress: &ProgressSink,
) -> Result<bool, PipelineError> {
    let digest = layer.digest();
    let blob = digest.digest();
    let index = match store.has_blob(&blob, Some(layer.size())) {
        Ok(false) => return Ok(false),
        Ok(true) => open_current_index(store, &digest, lock, progress),
        // The manifest of this image may declare a wrong size, and other images may use the blob: check its digest first.
        Err(damaged @ StoreError::Damaged { .. }) => match store.verify_blob(&blob, |_| ()) {
            Ok(()) => {
                let actual = store.blob_size(&blob)?;
                return Err(PipelineError::WrongSize { layer: digest, actual, declared: layer.size() });
            }
            Err(StoreError::Damaged { .. }) => Err(damaged.into()),
            Err(error) => Err(error.into()),
        },
        Err(error) => Err(error.into()),
    };
    match index {
        Ok(index) => {
            check_index(layer, &index)?;
            warn_if_mislabelled(layer, index.codec());
            Ok(true)
        }
        Err(PipelineError::Store(error @ StoreError::Damaged { .. })) => {
            tracing::warn!("layer {digest}: {error}; fetching it again");
            store.discard_blob(lock)?;
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// Checks that an indexed blob is the layer that the image's documents describe.
pub(super) fn check_index<D: AsRef<[u8]>>(layer: &ImageLayer, index: &Index<D>) -> Result<(), PipelineError> {
    let (actual, declared) = (index.blob_size(), layer.size());
    if actual != declared {
        return Err(PipelineError::WrongSize { layer: layer.digest(), actual, declared });
    }
    check_diff_id(layer, *index.diff_id())
}

/// Warns if a layer is compressed in another way than its media type declares. Digest and diff ID show that this content was
/// meant, so only the label is wrong: some builders label every layer as gzip.
fn warn_if_mislabelled(layer: &ImageLayer, actual: Codec) {
    let declared = match layer.compression() {
        Some(Compression::None) => Codec::Tar,
        Some(Compression::Gzip) => Codec::Gzip,
        Some(Compression::Zstd) => Codec::Zstd,
        None => return,
    };
    // An empty blob has no compression.
    if declared != actual && layer.size() > 0 {
        let digest = layer.digest();
        tracing::warn!(
            "layer {digest}: media type declares {declared}, but the content is {actual}, and is read as such"
        );
    }
}

pub(super) fn check_diff_id(layer: &ImageLayer, actual: DiffId) -> Result<(), PipelineError> {
    let declared = layer.diff_id();
    if actual == declared {
        return Ok(());
    }
    Err(PipelineError::WrongDiffId { layer: layer.digest(), actual, declared })
}

fn receive_and_index(
    store: &Store,
    layer: &ImageLayer,
    partial: PartialBlob,
    fetch: &BlobFetcher<'_>,
    plain: Option<&mut PlainPass>,
    progress: &ProgressSink,
) -> Result<(), PipelineError> {
    let (digest, size) = (layer.digest(), layer.size());
    let (sender, receiver) = sync_channel(QUEUE);
    let mut input = ChunkReader::new(receiver);
    let (received, indexed) = std::thread::scope(|scope| {
        let receiving = std::thread::Builder::new()
            .name("layer-receive".to_owned())
            .spawn_scoped(scope, || receive(store, layer, partial, fetch, sender, progress))
            .map_err(PipelineError::Thread)?;
        let indexed = index_blob(store, digest, size, &mut input, plain);
        // After an error in the layer, still read the rest of the blob: a wrong digest is the better explanation.
        drop(input);
        let received =
            receiving.join().map_err(|_| PipelineError::Thread(io::Error::other("the thread panicked")))?;
        Ok::<_, PipelineError>((received, indexed))
    })?;
    let (partial, actual, length) = received?;
    if length != size {
        drop(partial);
        return Err(PipelineError::WrongSize { layer: digest, actual: length, declared: size });
    }
    if actual != digest.digest() {
        discard(partial)?;
        return Err(PipelineError::WrongDigest { layer: digest, actual });
    }
    let (built, seekable) = match indexed {
        Ok(indexed) => indexed,
        Err(error) => {
            discard(partial)?;
            return Err(error);
        }
    };
    if let Err(error) = check_diff_id(layer, *built.diff_id()) {
        discard(partial)?;
        return Err(error);
    }
    warn_if_mislabelled(layer, built.codec());
    commit_derived(store, &digest, built, seekable, &partial.reader()?)?;
    partial.commit(actual, length)?;
    Ok(())
}

/// Empties a partial file whose content is of no use to the next attempt.
fn discard(mut partial: PartialBlob) -> Result<(), PipelineError> {
    Ok(partial.restart()?)
}

/// Writes the files derived from a blob, which is read again for this. The index is written last: readers expect the seekable file
/// to exist if the index does.
pub(super) fn commit_derived(
    store: &Store,
    digest: &LayerDigest,
    built: BuiltIndex,
    seekable: Option<TempFile>,
    blob: &File,
) -> Result<(), PipelineError> {
    let index =
        built.finish(digest, blob).map_err(|source| PipelineError::Layer { layer: *digest, source })?;
    if let Some(seekable) = seekable {
        seekable.commit()?;
    }
    Ok(store.put_index(digest, &index)?)
}

/// Indexes a blob of `size` bytes while it arrives, and writes its tar to a plain layer.
pub(super) fn index_blob(
    store: &Store,
    digest: LayerDigest,
    size: u64,
    input: &mut impl BufRead,
    mut plain: Option<&mut PlainPass>,
) -> Result<(BuiltIndex, Option<TempFile>), PipelineError> {
    let options = BuildOptions { tar_limit: store.layer_limits().of_blob(size), ..BuildOptions::default() };
    let tar = |bytes: &[u8]| {
        if let Some(plain) = &mut plain {
            plain.append(bytes);
        }
    };
    build_and_pass_on(input, &options, || store.create_seekable(&digest).map_err(io::Error::other), tar)
        .map_err(|source| PipelineError::Layer { layer: digest, source })
}

/// Writes and hashes the bytes of a blob as they arrive, and passes them to the decoder. Continues if the decoder has failed:
/// the digest shows whether the layer is already damaged at its source.
fn receive(
    store: &Store,
    layer: &ImageLayer,
    mut partial: PartialBlob,
    fetch: &BlobFetcher<'_>,
    sender: SyncSender<io::Result<Bytes>>,
    progress: &ProgressSink,
) -> Result<(PartialBlob, Digest, u64), PipelineError> {
    let digest = layer.digest();
    let path = store.blob_path(&digest.digest());
    let mut hash = sha2::Sha256::new();
    let mut total = 0;
    let mut pass_on = |bytes: Bytes| {
        hash.update(&bytes);
        total += bytes.len() as u64;
        progress.send(ProgressEvent::Bytes { digest, total });
        let _ = sender.send(Ok(bytes));
    };
    let mut replayed = partial.reader()?;
    loop {
        let mut chunk = vec![0; REPLAY];
        let length =
            replayed.read(&mut chunk).map_err(|source| PipelineError::Partial { layer: digest, source })?;
        if length == 0 {
            break;
        }
        chunk.truncate(length);
        pass_on(chunk.into());
    }
    let mut source = fetch(partial.len());
    while let Some(chunk) = source.blocking_recv() {
        let outcome = chunk.and_then(|bytes| {
            partial.write_all(&bytes).map_err(|error| StoreError::from_write(&path, error))?;
            Ok(bytes)
        });
        match outcome {
            Ok(bytes) => pass_on(bytes),
            Err(error) => {
                let _ = sender.send(Err(io::Error::other("the download failed")));
                return Err(error);
            }
        }
    }
    Ok((partial, Digest::new(hash.finalize().into()), total))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::image::{Descriptor, Image, Manifest, ManifestDigest, media};

    /// A layer whose blob is `bytes`, an uncompressed tar, in an image that declares the size `size`.
    fn layer_of(bytes: &[u8], size: u64) -> ImageLayer {
        layer_in_image(Digest::of(bytes), size, Digest::of(bytes))
    }

    fn layer_in_image(digest: Digest, size: u64, diff_id: Digest) -> ImageLayer {
        let config = format!(r#"{{"rootfs":{{"type":"layers","diff_ids":["{diff_id}"]}}}}"#);
        let descriptor =
            Descriptor::new(media::OCI_CONFIG, Digest::of(config.as_bytes()), config.len() as u64);
        let manifest =
            Manifest::new(descriptor, vec![Descriptor::new(media::OCI_LAYER, digest, size)]).unwrap();
        let image = Image::new(ManifestDigest::new(Digest::of(b"manifest")), manifest, config.as_bytes());
        image.unwrap().layers()[0].clone()
    }

    /// An empty tar, and its layer.
    fn empty_layer() -> (Vec<u8>, ImageLayer) {
        let bytes = vec![0; 1024];
        let layer = layer_of(&bytes, 1024);
        (bytes, layer)
    }

    /// Stores a layer from `bytes`. Returns the result and how often the bytes were fetched.
    fn try_store(store: &Store, layer: &ImageLayer, bytes: &[u8]) -> (Result<u64, PipelineError>, usize) {
        let fetches = AtomicUsize::new(0);
        let fetch = |from: u64| {
            fetches.fetch_add(1, Ordering::Relaxed);
            let (sender, receiver) = mpsc::channel(1);
            let rest = bytes[usize::try_from(from).unwrap()..].to_vec();
            sender.try_send(Ok(Bytes::from(rest))).unwrap();
            receiver
        };
        let result =
            store_layer(store, layer, StoreLayerOptions::default(), &fetch, &|| false, &ProgressSink::none());
        (result, fetches.into_inner())
    }

    #[test]
    fn wrong_size_in_a_manifest_does_not_remove_an_intact_blob() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open_or_create(dir.path()).unwrap();
        let (bytes, layer) = empty_layer();
        assert!(matches!(try_store(&store, &layer, &bytes), (Ok(1024), 1)));
        let (result, fetches) = try_store(&store, &layer_of(&bytes, 1025), &bytes);
        assert!(
            matches!(result, Err(PipelineError::WrongSize { actual: 1024, declared: 1025, .. })),
            "{result:?}"
        );
        assert_eq!(fetches, 0);
        store.verify_blob(&layer.digest().digest(), |_| ()).unwrap();
        assert!(matches!(try_store(&store, &layer, &bytes), (Ok(0), 0)));
    }

    #[test]
    fn truncated_blob_is_fetched_again() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open_or_create(dir.path()).unwrap();
        let (bytes, layer) = empty_layer();
        try_store(&store, &layer, &bytes).0.unwrap();
        std::fs::write(store.blob_path(&layer.digest().digest()), b"short").unwrap();
        assert!(matches!(try_store(&store, &layer, &bytes), (Ok(1024), 1)));
        store.verify_blob(&layer.digest().digest(), |_| ()).unwrap();
    }

    #[test]
    fn stopping_ends_the_wait_for_another_process() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open_or_create(dir.path()).unwrap();
        let (_, layer) = empty_layer();
        let _other = store.lock_blob(&layer.digest().digest(), None).unwrap();
        let fetch = |_| unreachable!("a fetch needs the lock");
        let result = store_layer(
            &store,
            &layer,
            StoreLayerOptions::default(),
            &fetch,
            &|| true,
            &ProgressSink::none(),
        );
        assert!(matches!(result, Err(PipelineError::Store(StoreError::Busy { .. }))), "{result:?}");
    }

    #[test]
    fn layer_in_the_store_gets_an_index_of_the_current_version_without_being_fetched() {
        let fixture = |name: &str| {
            let fixtures = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
            std::fs::read(fixtures.join(name)).unwrap()
        };
        let (blob, old) = (fixture("golden.tar.gz"), fixture("version-2.tar.gz.idx"));
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open_or_create(dir.path()).unwrap();
        let digest = LayerDigest::new(Digest::of(&blob));
        store.put_small(&digest.digest(), &blob).unwrap();
        store.put_index(&digest, &old).unwrap();
        let diff_id = *Index::open(&old[..]).unwrap().diff_id();
        let layer = layer_in_image(digest.digest(), blob.len() as u64, diff_id.digest());
        assert!(matches!(try_store(&store, &layer, &blob), (Ok(0), 0)));
        let index = crate::index::open_file(&store.index_file(&digest).unwrap().unwrap(), &digest).unwrap();
        assert!(!index.is_outdated());
    }
}

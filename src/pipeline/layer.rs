//! Takes one layer into the store in one pass.
//!
//! ```text
//!  source --chunks--> [write to disk, hash blob] --chunks--> [decode, CRC, walk tar] --spans--> [hash tar]
//! ```
//!
//! Each bracket is a thread, so a layer uses two cores where one decodes. An interrupted download stays as a partial file;
//! the next attempt sends what is there through the same way and then goes on where it ended.

use std::io::{self, BufRead, Read, Write as _};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use bytes::Bytes;
use sha2::Digest as _;
use tokio::sync::mpsc;

use super::open::open_index;
use super::{Event, PipelineError, Progress};
use crate::image::{DiffId, Digest, LayerDigest};
use crate::index::{Build, BuildError, Built, build};
use crate::layer::{BlobOffset, Codec, LayerError};
use crate::store::{BlobLock, Partial, Store, StoreError, Temp};

/// Chunks between two threads, of some 400 KiB each: enough to keep both busy, and few enough to stay in the cache.
const QUEUE: usize = 4;
/// How much of a partial file goes through at once, in bytes.
const REPLAY: usize = 256 << 10;

/// After this time at most, a thread that waits for another process sees that it is to stop.
const STOP_SEEN: Duration = Duration::from_millis(200);

/// A layer as the image's documents describe it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    pub(super) digest: LayerDigest,
    pub(super) size: u64,
    pub(super) diff_id: DiffId,
    /// By its media type, where that says something.
    pub(super) codec: Option<Codec>,
}

/// Where the bytes of a blob come from: called with the offset from which on they are wanted.
pub(super) type Fetch<'a> = dyn Fn(u64) -> mpsc::Receiver<Result<Bytes, PipelineError>> + Sync + 'a;

/// Takes a layer in, unless it is there; returns how many bytes were fetched.
///
/// Blocks: for another process that has the layer at hand (until `stopped`), for the source, for the disk.
pub(super) fn ensure(
    store: &Store,
    wanted: &Wanted,
    fetch: &Fetch<'_>,
    stopped: &dyn Fn() -> bool,
    progress: &Progress,
) -> Result<u64, PipelineError> {
    let Wanted { digest, size, .. } = *wanted;
    progress.tell(Event::Layer { digest, size });
    let blob = digest.digest();
    let lock = match store.try_lock_blob(&blob)? {
        Some(lock) => lock,
        None => {
            progress.tell(Event::Waiting { digest });
            wait_for_lock(store, &blob, stopped)?
        }
    };
    let mut fetched = 0;
    if is_there(store, wanted, &lock, progress)? {
        tracing::debug!("layer {digest} is in the store");
    } else {
        let mut partial = store.partial(&lock)?;
        let resumed = partial.len();
        if resumed > size {
            partial.restart()?;
        }
        let resumed = partial.len();
        fetched = size - resumed;
        match take_in(store, wanted, partial, fetch, progress) {
            // What an earlier attempt left may be what is wrong: once more from the start.
            Err(PipelineError::WrongDigest { .. } | PipelineError::Layer { .. }) if resumed > 0 => {
                tracing::warn!("layer {digest}: what an earlier download left is damaged, fetching it again");
                let mut partial = store.partial(&lock)?;
                partial.restart()?;
                fetched = size;
                take_in(store, wanted, partial, fetch, progress)?;
            }
            result => result?,
        }
    }
    progress.tell(Event::Done { digest });
    Ok(fetched)
}

/// Waits for as long as another process has the blob: that one's own deadlines end it. Once `stopped`, it is an error.
fn wait_for_lock(
    store: &Store,
    blob: &Digest,
    stopped: &dyn Fn() -> bool,
) -> Result<BlobLock, PipelineError> {
    loop {
        match store.lock_blob(blob, Some(STOP_SEEN)) {
            Err(StoreError::Busy { .. }) if !stopped() => {}
            result => return Ok(result?),
        }
    }
}

/// Whether the store has the layer whole; a damaged blob is removed, so that it is fetched anew.
fn is_there(
    store: &Store,
    wanted: &Wanted,
    lock: &BlobLock,
    progress: &Progress,
) -> Result<bool, PipelineError> {
    let digest = wanted.digest;
    let blob = digest.digest();
    let index = match store.has_blob(&blob, Some(wanted.size)) {
        Ok(false) => return Ok(false),
        Ok(true) => open_index(store, &digest, Some(lock), progress),
        // It may be this image's manifest that is wrong, and the blob one that other images use: the digest tells.
        Err(damaged @ StoreError::Damaged { .. }) => match store.verify_blob(&blob, |_| ()) {
            Ok(()) => {
                let actual = store.blob_size(&blob)?;
                return Err(PipelineError::WrongSize { layer: digest, actual, declared: wanted.size });
            }
            Err(StoreError::Damaged { .. }) => Err(damaged.into()),
            Err(error) => Err(error.into()),
        },
        Err(error) => Err(error.into()),
    };
    match index {
        Ok(index) => {
            check_codec(wanted, index.codec())?;
            check_diff_id(wanted, index.diff_id())?;
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

fn check_codec(wanted: &Wanted, actual: Codec) -> Result<(), PipelineError> {
    match wanted.codec {
        Some(declared) if declared != actual => {
            Err(PipelineError::WrongCodec { layer: wanted.digest, declared, actual })
        }
        _ => Ok(()),
    }
}

fn check_diff_id(wanted: &Wanted, actual: &DiffId) -> Result<(), PipelineError> {
    if *actual == wanted.diff_id {
        return Ok(());
    }
    Err(PipelineError::WrongDiffId { layer: wanted.digest, actual: *actual, declared: wanted.diff_id })
}

fn take_in(
    store: &Store,
    wanted: &Wanted,
    partial: Partial,
    fetch: &Fetch<'_>,
    progress: &Progress,
) -> Result<(), PipelineError> {
    let Wanted { digest, size, .. } = *wanted;
    let (sender, receiver) = sync_channel(QUEUE);
    let mut input = Chunks { receiver, current: Bytes::new() };
    let (received, indexed) = std::thread::scope(|scope| {
        let receiving = std::thread::Builder::new()
            .name("layer-receive".to_owned())
            .spawn_scoped(scope, || receive(store, wanted, partial, fetch, sender, progress))
            .map_err(PipelineError::Thread)?;
        let indexed = index(store, wanted, &mut input);
        // After an error in the layer, the rest still has to be seen: a wrong digest explains it better.
        drop(input);
        let received = receiving.join().map_err(|_| PipelineError::Thread(io::Error::other("panicked")))?;
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
    if let Err(error) = check_diff_id(wanted, built.diff_id()) {
        discard(partial)?;
        return Err(error);
    }
    commit_derived(store, &digest, built, seekable)?;
    partial.commit(actual, length)?;
    Ok(())
}

/// Gives up what a partial file holds: nothing in it would help the next attempt.
fn discard(mut partial: Partial) -> Result<(), PipelineError> {
    Ok(partial.restart()?)
}

/// Writes what was derived from a blob: the index last, since a reader takes an index as the sign that all is there.
pub(super) fn commit_derived(
    store: &Store,
    digest: &LayerDigest,
    built: Built,
    seekable: Option<Temp>,
) -> Result<(), PipelineError> {
    if let Some(seekable) = seekable {
        seekable.commit()?;
    }
    let index = built.finish(digest).map_err(|source| PipelineError::Layer { layer: *digest, source })?;
    Ok(store.put_index(digest, &index)?)
}

/// Indexes a blob that streams in.
pub(super) fn index(
    store: &Store,
    wanted: &Wanted,
    input: &mut impl BufRead,
) -> Result<(Built, Option<Temp>), PipelineError> {
    let digest = wanted.digest;
    // The first chunk decides the codec; a media type that says otherwise is told before anything is decoded.
    let layer_error = |source| PipelineError::Layer { layer: digest, source };
    let first = input.fill_buf().map_err(|source| {
        layer_error(BuildError::Layer(LayerError::Read { at: BlobOffset::new(0), source }))
    })?;
    check_codec(wanted, Codec::sniff(first))?;
    let options = Build { tar_limit: store.layer_limits().of_blob(wanted.size), ..Build::default() };
    build(input, &options, || store.create_seekable(&digest).map_err(io::Error::other)).map_err(layer_error)
}

/// Writes and hashes a blob's bytes as they arrive, and passes them on. A receiver that has gone does not end it: the
/// digest tells whether the layer is broken at its source.
fn receive(
    store: &Store,
    wanted: &Wanted,
    mut partial: Partial,
    fetch: &Fetch<'_>,
    sender: SyncSender<io::Result<Bytes>>,
    progress: &Progress,
) -> Result<(Partial, Digest, u64), PipelineError> {
    let digest = wanted.digest;
    let path = store.blob_path(&digest.digest());
    let mut hash = sha2::Sha256::new();
    let mut total = 0;
    let mut pass_on = |bytes: Bytes| {
        hash.update(&bytes);
        total += bytes.len() as u64;
        progress.tell(Event::Bytes { digest, total });
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
                let _ = sender.send(Err(io::Error::other("the blob did not arrive")));
                return Err(error);
            }
        }
    }
    Ok((partial, Digest::new(hash.finalize().into()), total))
}

/// Chunks from another thread as one stream.
#[derive(Debug)]
struct Chunks {
    receiver: Receiver<io::Result<Bytes>>,
    current: Bytes,
}

impl Read for Chunks {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let length = available.len().min(out.len());
        out[..length].copy_from_slice(&available[..length]);
        self.consume(length);
        Ok(length)
    }
}

impl BufRead for Chunks {
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// An empty tar, and the layer that it is.
    fn layer() -> (Vec<u8>, Wanted) {
        let bytes = vec![0; 1024];
        let digest = Digest::of(&bytes);
        let wanted = Wanted {
            digest: LayerDigest::new(digest),
            size: 1024,
            diff_id: DiffId::new(digest),
            codec: Some(Codec::Tar),
        };
        (bytes, wanted)
    }

    /// Takes the layer in from `bytes`; tells how often they were asked for.
    fn take(store: &Store, wanted: &Wanted, bytes: &[u8]) -> (Result<u64, PipelineError>, usize) {
        let asked = AtomicUsize::new(0);
        let fetch = |from: u64| {
            asked.fetch_add(1, Ordering::Relaxed);
            let (sender, receiver) = mpsc::channel(1);
            let rest = bytes[usize::try_from(from).unwrap()..].to_vec();
            sender.try_send(Ok(Bytes::from(rest))).unwrap();
            receiver
        };
        let result = ensure(store, wanted, &fetch, &|| false, &Progress::none());
        (result, asked.into_inner())
    }

    #[test]
    fn a_wrong_size_in_a_manifest_does_not_cost_a_blob_that_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open_or_create(dir.path()).unwrap();
        let (bytes, wanted) = layer();
        assert!(matches!(take(&store, &wanted, &bytes), (Ok(1024), 1)));
        let wrong = Wanted { size: 1025, ..wanted };
        let (result, asked) = take(&store, &wrong, &bytes);
        assert!(
            matches!(result, Err(PipelineError::WrongSize { actual: 1024, declared: 1025, .. })),
            "{result:?}"
        );
        assert_eq!(asked, 0);
        store.verify_blob(&wanted.digest.digest(), |_| ()).unwrap();
        assert!(matches!(take(&store, &wanted, &bytes), (Ok(0), 0)));
    }

    #[test]
    fn a_truncated_blob_is_fetched_again() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open_or_create(dir.path()).unwrap();
        let (bytes, wanted) = layer();
        take(&store, &wanted, &bytes).0.unwrap();
        std::fs::write(store.blob_path(&wanted.digest.digest()), b"short").unwrap();
        assert!(matches!(take(&store, &wanted, &bytes), (Ok(1024), 1)));
        store.verify_blob(&wanted.digest.digest(), |_| ()).unwrap();
    }

    #[test]
    fn waiting_for_another_process_ends_when_it_is_stopped() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open_or_create(dir.path()).unwrap();
        let (_, wanted) = layer();
        let _other = store.lock_blob(&wanted.digest.digest(), None).unwrap();
        let fetch = |_| unreachable!("nobody may fetch without the lock");
        let result = ensure(&store, &wanted, &fetch, &|| true, &Progress::none());
        assert!(matches!(result, Err(PipelineError::Store(StoreError::Busy { .. }))), "{result:?}");
    }
}

//! The bodies of uploads: bytes in small pieces, so that their progress is seen.

use std::io;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};

use super::RegistryError;
use super::blob_chunks::BlobChunks;
use crate::os::ignore_poison;

/// Bytes of a piece. A connection that takes none of these for the length of a deadline counts as stuck.
const PIECE: usize = 32 << 10;

/// The reason why a blob cannot be read while it is sent. The HTTP client then knows only that the body ends.
#[derive(Clone, Default)]
pub(super) struct SourceFailure(Arc<Mutex<Option<RegistryError>>>);

impl SourceFailure {
    pub(super) fn take(&self) -> Option<RegistryError> {
        ignore_poison(self.0.lock()).take()
    }

    fn set(&self, error: RegistryError) -> io::Error {
        *ignore_poison(self.0.lock()) = Some(error);
        io::Error::other("the blob cannot be read")
    }
}

/// One chunk.
pub(super) fn pieces(chunk: Bytes) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    stream::unfold(chunk, |mut rest| async move {
        let piece = rest.split_to(rest.len().min(PIECE));
        (!piece.is_empty()).then(|| (Ok(piece), rest))
    })
}

/// All chunks of a blob. If one cannot be read, the body ends with an error, and `failure` has the reason.
pub(super) fn all_pieces(
    chunks: BlobChunks,
    failure: SourceFailure,
) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    let chunks = stream::unfold(Some((chunks, failure)), |state| async move {
        let (mut chunks, failure) = state?;
        match chunks.next().await {
            Ok(Some(chunk)) => Some((Ok(chunk), Some((chunks, failure)))),
            Ok(None) => None,
            Err(error) => Some((Err(failure.set(error)), None)),
        }
    });
    chunks.flat_map(|chunk| match chunk {
        Ok(chunk) => pieces(chunk).left_stream(),
        Err(error) => stream::once(async { Err(error) }).right_stream(),
    })
}

//! An upload that a registry has opened: where its next request goes, and how much has been received.

use bytes::Bytes;
use reqwest::Url;
use reqwest::header::{HeaderName, LOCATION, RANGE};

use super::blob_chunks::BlobChunks;
use super::exchange::redirect_target;
use super::write::WriteReply;
use super::{RegistryError, RemoteObject};

/// Size of a chunk in bytes. Registries on object storage need at least 5 MiB, and a broken connection costs up to this much.
pub(super) const CHUNK: u64 = 8 << 20;

/// Largest chunk that a registry may require. Beyond that, a blob is sent in one request, which takes less memory.
const CHUNK_MAX: u64 = 64 << 20;

/// The header in which a registry says how long a chunk must be (distribution-spec, "Pushing a blob in chunks").
const CHUNK_MIN_LENGTH: HeaderName = HeaderName::from_static("oci-chunk-min-length");

/// An upload that a registry has opened.
pub(super) struct UploadSession {
    /// Where the next request goes.
    pub(super) location: Url,
    /// The chunks behind `chunk`; `None` until the first one is sent.
    pub(super) chunks: Option<BlobChunks>,
    /// Size of all chunks but the last one; `None` if the registry wants larger ones than fit into memory.
    pub(super) chunk_size: Option<u64>,
    /// The bytes that are sent next; empty if they have not been read.
    pub(super) chunk: Bytes,
    /// Offset of `chunk` in the blob. The registry has received all bytes before it.
    pub(super) offset: u64,
    /// Whether a request failed, so that only the registry knows how much it has received.
    pub(super) is_uncertain: bool,
}

impl UploadSession {
    /// The upload that the answer to a request of `url` opens.
    pub(super) fn open(object: &RemoteObject, url: &Url, answer: &WriteReply) -> Result<Self, RegistryError> {
        let smallest: u64 =
            answer.header(CHUNK_MIN_LENGTH).and_then(|length| length.trim().parse().ok()).unwrap_or(0);
        let chunk_size = smallest.max(CHUNK);
        let Some(location) = next_location(object, url, answer)? else {
            let (host, reason) = (answer.reply.host(), "an upload to no address".to_owned());
            return Err(RegistryError::Redirect { object: object.clone(), host, reason });
        };
        let chunk_size = (chunk_size <= CHUNK_MAX).then_some(chunk_size);
        Ok(Self { location, chunks: None, chunk_size, chunk: Bytes::new(), offset: 0, is_uncertain: false })
    }

    /// Goes on behind the bytes that the registry has received. Returns false if they end neither in the current chunk nor at its
    /// ends: those bytes cannot be sent any more.
    #[must_use]
    pub(super) fn advance(&mut self, received: u64) -> bool {
        let within = received.checked_sub(self.offset).and_then(|within| usize::try_from(within).ok());
        match within {
            Some(within) if within <= self.chunk.len() => {
                self.chunk = self.chunk.split_off(within);
                self.offset = received;
                true
            }
            _ => false,
        }
    }
}

/// Where the next request of an upload goes after the answer to a request of `url`; `None` if the answer does not say.
pub(super) fn next_location(
    object: &RemoteObject,
    url: &Url,
    answer: &WriteReply,
) -> Result<Option<Url>, RegistryError> {
    let Some(location) = answer.reply.response.headers().get(LOCATION) else { return Ok(None) };
    redirect_target(url, location).map(Some).map_err(|reason| RegistryError::Redirect {
        object: object.clone(),
        host: answer.reply.host(),
        reason,
    })
}

/// How many bytes the registry has received, by the header `Range: 0-LAST`.
pub(super) fn received(answer: &WriteReply) -> Option<u64> {
    received_by(answer.header(RANGE)?)
}

/// `0-0` may mean no byte or one; no byte is more likely, and a repeated byte would be refused.
fn received_by(range: &str) -> Option<u64> {
    let range = range.trim();
    let (first, last) = range.strip_prefix("bytes=").unwrap_or(range).split_once('-')?;
    let (first, last) = (first.trim().parse::<u64>().ok()?, last.trim().parse::<u64>().ok()?);
    match last {
        0 => Some(0),
        last => last.checked_add(1).filter(|_| first == 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn received_bytes_are_counted_from_the_last_one() {
        for (range, count) in [
            ("0-0", Some(0)),
            ("0-1", Some(2)),
            ("bytes=0-8388607", Some(8 << 20)),
            (" 0-9 ", Some(10)),
            ("5-9", None),
            ("0-18446744073709551615", None),
            ("0-", None),
            ("-1", None),
            ("", None),
        ] {
            assert_eq!(received_by(range), count, "{range}");
        }
    }
}

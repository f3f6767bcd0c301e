//! A blob as a stream of bytes that survives what happens on the way.
//!
//! A download knows the next byte it needs. Whatever breaks, it asks for the rest from that byte on; a server that sends the
//! whole blob in answer has what was already there skipped. The bytes are *not* checked against the digest here: they
//! are hashed by whoever stores them, together with those from before a restart.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{CONTENT_RANGE, CONTENT_TYPE};
use reqwest::{Response, StatusCode};
use tokio::time::{Instant, timeout};

use super::client::Request;
use super::retry::{jittered, retry_after};
use super::{Place, Registry, RegistryError};
use crate::image::{Descriptor, Digest, Name};

/// What has to come within the idle deadline, in bytes, and what counts as progress between two failures. A server must not
/// keep a download alive with a byte now and then.
const PROGRESS_MIN: u64 = 32 << 10;

/// How long the end of a response is waited for once all bytes are there.
const END_WAIT: Duration = Duration::from_secs(1);

/// The bytes of a blob from some offset to its end.
pub struct Download {
    registry: Registry,
    place: Place,
    digest: Digest,
    size: u64,
    /// Position of the next byte to give out.
    offset: u64,
    body: Option<Body>,
    /// Failures since the last progress.
    failures: u32,
    /// Bytes given out since the last failure.
    since_failure: u64,
    /// Whether the server can be asked for ranges.
    ranges: bool,
}

/// A response that is being read.
struct Body {
    response: Response,
    /// Position in the blob of its next byte; behind the download's offset while what is already there is skipped.
    position: u64,
    /// Time waited for the bytes in `arrived`. The time in which nobody asks for more does not count.
    waited: Duration,
    arrived: u64,
}

impl Registry {
    /// Starts to fetch a blob from byte `from` on. Nothing is requested before the first call of
    /// [`Download::next_chunk`].
    #[must_use]
    pub fn download(&self, name: &Name, descriptor: &Descriptor, from: u64) -> Download {
        Download {
            registry: self.clone(),
            place: Place::blob(name, descriptor.digest),
            digest: descriptor.digest,
            size: descriptor.size,
            offset: from,
            body: None,
            failures: 0,
            since_failure: 0,
            ranges: true,
        }
    }
}

impl Download {
    /// Position in the blob of the next byte.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The next bytes, never empty; `None` once the blob's last byte has been given out.
    ///
    /// Waits between tries, each bounded, and fails when a number of them in a row brought nothing.
    ///
    /// # Errors
    /// See [`RegistryError`]; each names the blob.
    pub async fn next_chunk(&mut self) -> Result<Option<Bytes>, RegistryError> {
        loop {
            let error = match self.step().await {
                Ok(Some(bytes)) => {
                    let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
                    self.offset += length;
                    self.since_failure = self.since_failure.saturating_add(length);
                    return Ok(Some(bytes));
                }
                Ok(None) => return Ok(None),
                Err(error) => error,
            };
            self.body = None;
            if self.since_failure >= PROGRESS_MIN {
                self.failures = 0;
            }
            self.since_failure = 0;
            self.failures += 1;
            if matches!(error, RegistryError::Range { .. }) {
                self.ranges = false;
            }
            let first = self.registry.options().deadlines.backoff;
            let Some(pause) = retry_after(self.failures, &error, first) else { return Err(error) };
            tracing::info!(%error, offset = self.offset, attempt = self.failures, ?pause, "trying again");
            tokio::time::sleep(jittered(pause)).await;
        }
    }

    /// Reads on, without trying again.
    async fn step(&mut self) -> Result<Option<Bytes>, RegistryError> {
        if self.offset >= self.size {
            return self.end().await;
        }
        loop {
            let body = match &mut self.body {
                Some(body) => body,
                None => {
                    let body = self.open().await?;
                    self.body.insert(body)
                }
            };
            let Some(mut chunk) = body.read(&self.registry, &self.place).await? else {
                // A server may send less than the range asked for; the next request gets the rest.
                return Err(RegistryError::Short {
                    place: self.place.clone(),
                    wanted: self.size,
                    got: body.position,
                });
            };
            let start = body.position;
            body.position = start.saturating_add(u64::try_from(chunk.len()).unwrap_or(u64::MAX));
            if body.position > self.size {
                return Err(self.length(None));
            }
            if body.position <= self.offset {
                continue;
            }
            if start < self.offset {
                let known = usize::try_from(self.offset - start).expect("shorter than the chunk");
                chunk = chunk.split_off(known);
            }
            return Ok(Some(chunk));
        }
    }

    /// All bytes are there: anything that follows them is an error.
    async fn end(&mut self) -> Result<Option<Bytes>, RegistryError> {
        if self.offset > self.size {
            return Err(self.length(Some(self.offset)));
        }
        let Some(mut body) = self.body.take() else { return Ok(None) };
        match timeout(END_WAIT, body.read(&self.registry, &self.place)).await {
            Ok(Ok(Some(_))) => Err(self.length(None)),
            _ => Ok(None),
        }
    }

    fn length(&self, got: Option<u64>) -> RegistryError {
        RegistryError::Length { place: self.place.clone(), wanted: self.size, got }
    }

    /// Requests the rest and checks that the answer is that, or the whole blob.
    async fn open(&self) -> Result<Body, RegistryError> {
        let from = if self.ranges { self.offset } else { 0 };
        let path = format!("blobs/{}", self.digest);
        let request = Request { place: &self.place, path, accept: None, from };
        let response = self.registry.request(&request).await?;
        let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
        if header(CONTENT_TYPE).is_some_and(|media_type| media_type.trim_start().starts_with("text/html")) {
            return Err(RegistryError::Html { place: self.place.clone() });
        }
        let position = if response.status() == StatusCode::PARTIAL_CONTENT {
            let range = header(CONTENT_RANGE).unwrap_or_default();
            let wrong = || RegistryError::Range { place: self.place.clone(), from, got: range.to_owned() };
            let (first, total) = content_range(range).ok_or_else(wrong)?;
            if total.is_some_and(|total| total != self.size) {
                return Err(self.length(total));
            }
            if first != from {
                return Err(wrong());
            }
            first
        } else {
            0
        };
        if let Some(length) = response.content_length() {
            let end = position.saturating_add(length);
            let partial = response.status() == StatusCode::PARTIAL_CONTENT;
            if end > self.size || (end < self.size && !partial) {
                return Err(self.length(Some(end)));
            }
        }
        Ok(Body { response, position, waited: Duration::ZERO, arrived: 0 })
    }
}

impl Body {
    async fn read(&mut self, registry: &Registry, place: &Place) -> Result<Option<Bytes>, RegistryError> {
        let deadlines = &registry.options().deadlines;
        loop {
            let start = Instant::now();
            let left = deadlines.idle.saturating_sub(self.waited);
            let Ok(result) = timeout(left, self.response.chunk()).await else {
                if self.arrived < PROGRESS_MIN {
                    let (place, after) = (place.clone(), deadlines.idle);
                    return Err(RegistryError::Deadline { place, awaited: "further bytes", after });
                }
                (self.waited, self.arrived) = (Duration::ZERO, 0);
                continue;
            };
            let chunk = result.map_err(|source| RegistryError::transport(place, source, deadlines))?;
            self.waited += start.elapsed();
            let Some(chunk) = chunk else { return Ok(None) };
            self.arrived = self.arrived.saturating_add(u64::try_from(chunk.len()).unwrap_or(u64::MAX));
            if self.arrived >= PROGRESS_MIN {
                (self.waited, self.arrived) = (Duration::ZERO, 0);
            }
            if !chunk.is_empty() {
                return Ok(Some(chunk));
            }
        }
    }
}

/// First byte and total length of a `Content-Range: bytes FIRST-LAST/TOTAL` (RFC 9110, 14.4); the total may be `*`.
fn content_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last) = (first.trim().parse::<u64>().ok()?, last.trim().parse::<u64>().ok()?);
    let total = match total.trim() {
        "*" => None,
        total => Some(total.parse::<u64>().ok()?),
    };
    (first <= last && total.is_none_or(|total| last < total)).then_some((first, total))
}

impl fmt::Debug for Download {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Download")
            .field("place", &self.place)
            .field("size", &self.size)
            .field("offset", &self.offset)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_range_is_read_or_refused() {
        for (text, read) in [
            ("bytes 0-9/10", Some((0, Some(10)))),
            ("bytes 5-9/*", Some((5, None))),
            (" bytes 5-9/10 ", Some((5, Some(10)))),
            ("bytes 5-10/10", None),
            ("bytes 9-5/10", None),
            ("bytes */10", None),
            ("bytes 5-/10", None),
            ("5-9/10", None),
            ("items 5-9/10", None),
            ("bytes 5-9", None),
            ("bytes -1-9/10", None),
            ("bytes 0-18446744073709551616/*", None),
            ("", None),
        ] {
            assert_eq!(content_range(text), read, "{text}");
        }
    }
}

//! Downloads a blob as a stream of bytes, and resumes after errors.
//!
//! A download tracks the offset of the next byte. After an error it requests the rest from that offset. If the server sends
//! the whole blob instead, the download skips the bytes before the offset. It does *not* check the digest: the caller hashes
//! the bytes together with those of an earlier attempt.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{CONTENT_RANGE, CONTENT_TYPE};
use reqwest::{Response, StatusCode};
use tokio::time::{Instant, timeout};

use super::client::RegistryRequest;
use super::endpoint::Endpoint;
use super::exchange::host_of;
use super::retry::{pause_before_retry, retry_after};
use super::{Registry, RegistryError, RemoteObject};
use crate::image::{Descriptor, Digest, Name};

/// The number of bytes that must arrive within the idle deadline, and that count as progress between two failures.
///
/// A server must not be able to keep a download alive with single bytes.
const PROGRESS_MIN: u64 = 32 << 10;

/// How long to wait for the end of a response after its last expected byte.
const END_WAIT: Duration = Duration::from_secs(1);

/// The bytes of a blob, from an offset to its end.
pub struct Download {
    registry: Registry,
    name: Name,
    /// The places that have not failed yet, the registry itself last; empty before the first request.
    endpoints: VecDeque<Endpoint>,
    object: RemoteObject,
    digest: Digest,
    size: u64,
    /// Offset in the blob of the next byte to return.
    offset: u64,
    body: Option<DownloadBody>,
    /// Failures since the last progress.
    failures: u32,
    /// Bytes returned since the last failure.
    since_failure: u64,
    /// Whether to request ranges. False once the server has returned a wrong range.
    use_ranges: bool,
}

/// A response that is being read.
struct DownloadBody {
    response: Response,
    /// Offset in the blob of the next byte. Smaller than the download's offset while it skips bytes.
    position: u64,
    /// Time spent waiting for the bytes in `arrived`. Time between two calls of [`Download::next_chunk`] does not count.
    waited: Duration,
    /// Bytes received since the idle deadline was last reset.
    arrived: u64,
}

impl Registry {
    /// Prepares the download of a blob from offset `from`. The first call of [`Download::next_chunk`] sends the request.
    #[must_use]
    pub fn download(&self, name: &Name, descriptor: &Descriptor, from: u64) -> Download {
        Download {
            registry: self.clone(),
            name: name.clone(),
            endpoints: VecDeque::new(),
            object: RemoteObject::blob(name, descriptor.digest),
            digest: descriptor.digest,
            size: descriptor.size,
            offset: from,
            body: None,
            failures: 0,
            since_failure: 0,
            use_ranges: true,
        }
    }
}

impl Download {
    /// Offset in the blob of the next byte.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Returns the next bytes, never empty; `None` after the last byte of the blob.
    ///
    /// Retries after transient errors, with pauses, and fails after several attempts in a row without progress.
    ///
    /// # Errors
    ///
    /// See [`RegistryError`]; each error names the blob.
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
                self.use_ranges = false;
            }
            if self.pass_over_mirror(&error) {
                continue;
            }
            let first = self.registry.options().deadlines.backoff;
            let Some(pause) = retry_after(self.failures, &error, first) else { return Err(error) };
            pause_before_retry(self.failures, &error, pause).await;
        }
    }

    /// Goes on at the next place if the current one is a mirror. Returns false if it is the registry itself.
    ///
    /// A mirror may break a connection and go on from there: it can be the only place that is in reach.
    fn pass_over_mirror(&mut self, error: &RegistryError) -> bool {
        let is_broken = matches!(
            error,
            RegistryError::Broken { .. } | RegistryError::Short { .. } | RegistryError::Range { .. }
        );
        let Some(mirror) = self.endpoints.front().filter(|endpoint| endpoint.is_mirror) else { return false };
        if is_broken && retry_after(self.failures, error, Duration::ZERO).is_some() {
            return false;
        }
        self.registry.pass_over(mirror, error);
        self.endpoints.pop_front();
        (self.failures, self.use_ranges) = (0, true);
        true
    }

    /// Returns the next bytes, without retries.
    async fn step(&mut self) -> Result<Option<Bytes>, RegistryError> {
        if self.offset >= self.size {
            return self.check_end().await;
        }
        loop {
            let body = match &mut self.body {
                Some(body) => body,
                None => {
                    let body = self.open().await?;
                    self.body.insert(body)
                }
            };
            let Some(mut chunk) = body.read(&self.registry, &self.object).await? else {
                // A server may send less than the requested range. The retry requests the rest.
                return Err(RegistryError::Short {
                    object: self.object.clone(),
                    expected: self.size,
                    received: body.position,
                });
            };
            let start = body.position;
            body.position = start.saturating_add(u64::try_from(chunk.len()).unwrap_or(u64::MAX));
            if body.position > self.size {
                return Err(self.length_error(None));
            }
            if body.position <= self.offset {
                continue;
            }
            if start < self.offset {
                let skipped =
                    usize::try_from(self.offset - start).expect("the skipped part is shorter than the chunk");
                chunk = chunk.split_off(skipped);
            }
            return Ok(Some(chunk));
        }
    }

    /// Checks that the response ends after the last byte of the blob.
    async fn check_end(&mut self) -> Result<Option<Bytes>, RegistryError> {
        if self.offset > self.size {
            return Err(self.length_error(Some(self.offset)));
        }
        let Some(mut body) = self.body.take() else { return Ok(None) };
        match timeout(END_WAIT, body.read(&self.registry, &self.object)).await {
            Ok(Ok(Some(_))) => Err(self.length_error(None)),
            _ => Ok(None),
        }
    }

    fn length_error(&self, actual: Option<u64>) -> RegistryError {
        RegistryError::Length { object: self.object.clone(), expected: self.size, actual }
    }

    /// Requests the rest of the blob. Checks that the server sends the rest, or the whole blob.
    async fn open(&mut self) -> Result<DownloadBody, RegistryError> {
        if self.endpoints.is_empty() {
            self.endpoints = self.registry.endpoints(&self.name)?.into();
        }
        let endpoint = self.endpoints.front().expect("the registry itself is never passed over");
        let from = if self.use_ranges { self.offset } else { 0 };
        let path = format!("blobs/{}", self.digest);
        let request = RegistryRequest { object: &self.object, path, accept: None, from };
        let response = self.registry.request(endpoint, &request).await?;
        let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
        if header(CONTENT_TYPE).is_some_and(|media_type| media_type.trim_start().starts_with("text/html")) {
            return Err(RegistryError::Html { object: self.object.clone() });
        }
        let position = if response.status() == StatusCode::PARTIAL_CONTENT {
            let range = header(CONTENT_RANGE).unwrap_or_default();
            let wrong_range =
                || RegistryError::Range { object: self.object.clone(), from, returned: range.to_owned() };
            let (first, total) = content_range(range).ok_or_else(wrong_range)?;
            if total.is_some_and(|total| total != self.size) {
                return Err(self.length_error(total));
            }
            if first != from {
                return Err(wrong_range());
            }
            first
        } else {
            0
        };
        if let Some(length) = response.content_length() {
            let end = position.saturating_add(length);
            let partial = response.status() == StatusCode::PARTIAL_CONTENT;
            if end > self.size || (end < self.size && !partial) {
                return Err(self.length_error(Some(end)));
            }
        }
        Ok(DownloadBody { response, position, waited: Duration::ZERO, arrived: 0 })
    }
}

impl DownloadBody {
    /// Returns the next bytes of the response, never empty; `None` at its end.
    async fn read(
        &mut self,
        registry: &Registry,
        object: &RemoteObject,
    ) -> Result<Option<Bytes>, RegistryError> {
        let deadlines = &registry.options().deadlines;
        loop {
            let start = Instant::now();
            let remaining = deadlines.idle.saturating_sub(self.waited);
            let Ok(result) = timeout(remaining, self.response.chunk()).await else {
                if self.arrived < PROGRESS_MIN {
                    let host = host_of(self.response.url());
                    return Err(RegistryError::deadline(object, &host, "more data", deadlines.idle));
                }
                (self.waited, self.arrived) = (Duration::ZERO, 0);
                continue;
            };
            let chunk = result.map_err(|source| {
                RegistryError::transport(object, &host_of(self.response.url()), &source, deadlines)
            })?;
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

/// Parses the first byte and the total length of `Content-Range: bytes FIRST-LAST/TOTAL` (RFC 9110, 14.4).
///
/// The total may be `*`, for an unknown length.
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
            .field("object", &self.object)
            .field("size", &self.size)
            .field("offset", &self.offset)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn malformed_content_range_is_refused() {
        for (text, parsed) in [
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
            assert_eq!(content_range(text), parsed, "{text}");
        }
    }
}

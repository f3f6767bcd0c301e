//! Sends a blob to a registry in chunks, and goes on after errors (distribution-spec, "Pushing Blobs").
//!
//! Each answer says where the next request goes (`Location`). After a broken connection, the registry is asked how much it has, and
//! only the rest is sent again. A registry that takes no chunks gets the whole blob in one request.

use std::sync::atomic::{AtomicU64, Ordering};

use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Method, StatusCode, Url};

use super::blob_chunks::BlobChunks;
use super::endpoint::Endpoint;
use super::exchange::RequestBody;
use super::outgoing::{BlobDelivery, BlobSource, OutgoingBlob, PushEvent, PushProgress};
use super::retry::{pause_before_retry, retry_after};
use super::upload_body::{SourceFailure, all_pieces, pieces};
use super::upload_session::{CHUNK, UploadSession, next_location, received};
use super::write::{WriteReply, WriteRequest};
use super::{Registry, RegistryError, RemoteObject};
use crate::image::Name;

/// The number of received bytes that count as progress between two failures.
const PROGRESS_MIN: u64 = 32 << 10;

/// One blob on its way to a registry.
pub(super) struct Upload<'a> {
    registry: &'a Registry,
    name: &'a Name,
    endpoint: Endpoint,
    object: RemoteObject,
    blob: &'a OutgoingBlob,
    progress: PushProgress,
    /// A repository to mount the blob from, until that was tried.
    mount_from: Option<&'a Name>,
    session: Option<UploadSession>,
    /// Whether to send the blob in one request, because the registry takes no chunks.
    is_whole: bool,
    /// Whether bytes were sent: then the registry has the blob from this upload, even if its answer was lost.
    was_sent: bool,
    /// Failures since the last progress.
    failures: u32,
    /// The most bytes that the registry has had.
    best: u64,
    /// Whether the last error came from the source of the blob. Its retries are over.
    source_failed: bool,
}

impl<'a> Upload<'a> {
    pub(super) fn new(
        registry: &'a Registry,
        name: &'a Name,
        blob: &'a OutgoingBlob,
        progress: PushProgress,
    ) -> Result<Self, RegistryError> {
        Ok(Self {
            registry,
            name,
            endpoint: Endpoint::to_push(name)?,
            object: RemoteObject::blob(name, blob.descriptor.digest),
            blob,
            progress,
            mount_from: blob.mount_from.as_ref(),
            session: None,
            is_whole: false,
            was_sent: false,
            failures: 0,
            best: 0,
            source_failed: false,
        })
    }

    /// Sends the blob, unless the registry has it. Retries after transient errors, with pauses.
    pub(super) async fn run(mut self) -> Result<BlobDelivery, RegistryError> {
        loop {
            let error = match self.step().await {
                Ok(Some(delivery)) => return Ok(delivery),
                Ok(None) => continue,
                Err(error) => error,
            };
            if std::mem::take(&mut self.source_failed) {
                if !self.has_other_source(&error) {
                    return Err(error);
                }
                tracing::warn!("{error}; reading it from the registry itself");
                self.session = None;
                continue;
            }
            self.failures += 1;
            let first = self.registry.options().deadlines.backoff;
            let Some(pause) = retry_after(self.failures, &error, first) else { return Err(error) };
            pause_before_retry(self.failures, &error, pause).await;
            if let Some(session) = &mut self.session {
                session.is_uncertain = true;
            }
        }
    }

    /// Whether wrong content may have come from a mirror. From now on, the registry itself is read.
    fn has_other_source(&self, error: &RegistryError) -> bool {
        let BlobSource::Repository(source) = &self.blob.source else { return false };
        matches!(error, RegistryError::Digest { .. }) && self.registry.distrust_mirrors(source)
    }

    /// Does the next request. Returns `None` if more are needed.
    async fn step(&mut self) -> Result<Option<BlobDelivery>, RegistryError> {
        let size = self.blob.descriptor.size;
        let Some(session) = &self.session else { return self.begin().await };
        let in_chunks = !self.is_whole && session.chunk_size.is_some_and(|chunk| chunk < size);
        if session.is_uncertain {
            self.locate().await?;
        } else if in_chunks && session.offset < size {
            self.send_chunk().await?;
        } else {
            return self.finish().await.map(Some);
        }
        Ok(None)
    }

    /// Asks whether the registry has the blob, mounts it, or opens an upload.
    async fn begin(&mut self) -> Result<Option<BlobDelivery>, RegistryError> {
        let url = self.registry.url(&self.endpoint, &format!("blobs/{}", self.blob.descriptor.digest))?;
        let answer = self.ask(Method::HEAD, url).await?;
        match answer.status() {
            status if status.is_success() && self.was_sent => return Ok(Some(BlobDelivery::Sent)),
            status if status.is_success() => return Ok(Some(BlobDelivery::Present)),
            StatusCode::NOT_FOUND => {}
            _ => return Err(self.registry.write_refusal(&self.object, answer).await),
        }
        if let Some(from) = self.mount_from.take() {
            match self.mount(from).await {
                Ok(true) => return Ok(Some(BlobDelivery::Mounted)),
                Ok(false) => return Ok(None),
                // Whatever the reason, the blob can still be sent.
                Err(error) => tracing::debug!("cannot mount the blob from {from}: {error}"),
            }
        }
        let url = self.registry.url(&self.endpoint, "blobs/uploads/")?;
        let answer = self.ask(Method::POST, url.clone()).await?;
        match answer.status() {
            StatusCode::ACCEPTED => self.open(&url, &answer).map(|()| None),
            StatusCode::NOT_FOUND => {
                let (name, message) =
                    (self.name.clone(), self.registry.error_message(answer.reply.response).await);
                Err(RegistryError::NoRepository { name, message })
            }
            _ => Err(self.registry.write_refusal(&self.object, answer).await),
        }
    }

    /// Mounts the blob from another repository. Returns false if the registry has opened an upload instead.
    async fn mount(&mut self, from: &Name) -> Result<bool, RegistryError> {
        let endpoint = Endpoint::to_mount(self.name, from.repository())?;
        let mut url = self.registry.url(&endpoint, "blobs/uploads/")?;
        let digest = self.blob.descriptor.digest;
        url.query_pairs_mut()
            .append_pair("mount", &digest.to_string())
            .append_pair("from", from.repository());
        let request = WriteRequest {
            object: &self.object,
            endpoint: &endpoint,
            method: Method::POST,
            url: url.clone(),
            headers: HeaderMap::new(),
        };
        let answer = self.registry.write(&request, RequestBody::none).await?;
        match answer.status() {
            StatusCode::CREATED => answer.check_digest(&self.object, digest).map(|()| true),
            StatusCode::ACCEPTED => self.open(&url, &answer).map(|()| false),
            _ => Err(self.registry.write_refusal(&self.object, answer).await),
        }
    }

    fn open(&mut self, url: &Url, answer: &WriteReply) -> Result<(), RegistryError> {
        self.session = Some(UploadSession::open(&self.object, url, answer)?);
        Ok(())
    }

    /// Asks how much of the blob the registry has received. If it does not know, the upload begins again.
    async fn locate(&mut self) -> Result<(), RegistryError> {
        let Some(session) = &mut self.session else { return Ok(()) };
        let url = session.location.clone();
        let answer = self.ask(Method::GET, url.clone()).await?;
        let status = answer.status();
        let is_final = status.is_client_error()
            && !matches!(
                status,
                StatusCode::UNAUTHORIZED
                    | StatusCode::FORBIDDEN
                    | StatusCode::REQUEST_TIMEOUT
                    | StatusCode::TOO_MANY_REQUESTS
            );
        if !status.is_success() && !is_final {
            return Err(self.registry.write_refusal(&self.object, answer).await);
        }
        let received = received(&answer).unwrap_or(0);
        let location = next_location(&self.object, &url, &answer)?;
        self.session = self.session.take().filter(|_| !is_final).and_then(|mut session| {
            session.location = location.unwrap_or(url);
            session.is_uncertain = false;
            session.advance(received).then_some(session)
        });
        match self.session {
            Some(_) => self.count_progress(received),
            None => tracing::info!("{}: {} has lost the upload", self.object, answer.reply.host()),
        }
        Ok(())
    }

    async fn send_chunk(&mut self) -> Result<(), RegistryError> {
        let Some(session) = &mut self.session else { return Ok(()) };
        if session.chunk.is_empty() {
            let size = session.chunk_size.unwrap_or(CHUNK);
            let chunks = session.chunks.get_or_insert_with(|| BlobChunks::of(self.registry, self.blob, size));
            let next = chunks.next().await;
            self.source_failed = next.is_err();
            session.chunk = next?.unwrap_or_default();
        }
        let (url, chunk, offset) = (session.location.clone(), session.chunk.clone(), session.offset);
        let end = offset + u64::try_from(chunk.len()).unwrap_or(u64::MAX);
        let mut request = self.request(Method::PATCH, url.clone());
        request.headers = content_headers(end - offset);
        request.headers.insert(CONTENT_RANGE, number_range(offset, end));
        let body = || RequestBody::streamed(pieces(chunk.clone()), self.counter(offset));
        let answer = self.registry.write(&request, body).await;
        self.was_sent = true;
        let answer = answer?;
        let status = answer.status();
        if status.is_success() {
            // Registries disagree about the header that says how much they have; the digest is checked in the end.
            let received = received(&answer).filter(|received| (offset + 1..end).contains(received));
            let received = received.unwrap_or(end);
            let location = next_location(&self.object, &url, &answer)?.unwrap_or(url);
            self.session = self.session.take().and_then(|mut session| {
                session.location = location;
                session.advance(received).then_some(session)
            });
            self.count_progress(received);
            return Ok(());
        }
        let error = self.registry.write_refusal(&self.object, answer).await;
        if offset == 0 && takes_no_chunks(status, &error) {
            tracing::info!("{error}; sending the blob in one request");
            (self.session, self.is_whole) = (None, true);
            return Ok(());
        }
        Err(self.lost(status, error))
    }

    /// Ends the upload. A blob of one chunk, or for a registry that takes no chunks, is sent with this request.
    async fn finish(&mut self) -> Result<BlobDelivery, RegistryError> {
        let Some(session) = &self.session else { return Ok(BlobDelivery::Present) };
        let (digest, size) = (self.blob.descriptor.digest, self.blob.descriptor.size);
        let (mut url, offset) = (session.location.clone(), session.offset);
        url.query_pairs_mut().append_pair("digest", &digest.to_string());
        let mut request = self.request(Method::PUT, url);
        request.headers = content_headers(size - offset);
        let failure = SourceFailure::default();
        let answer = if offset < size {
            let body = || {
                let chunks = BlobChunks::of(self.registry, self.blob, CHUNK);
                RequestBody::streamed(all_pieces(chunks, failure.clone()), self.counter(0))
            };
            let answer = self.registry.write(&request, body).await;
            // If this fails, the upload begins again.
            self.session = None;
            answer
        } else {
            self.registry.write(&request, RequestBody::none).await
        };
        self.was_sent = true;
        if let Some(error) = failure.take() {
            self.source_failed = true;
            return Err(error);
        }
        let answer = answer?;
        let status = answer.status();
        if status.is_success() {
            answer.check_digest(&self.object, digest)?;
            return Ok(BlobDelivery::Sent);
        }
        let error = self.registry.write_refusal(&self.object, answer).await;
        Err(self.lost(status, error))
    }

    /// Drops an upload that the registry does not know any more, so that it begins again.
    fn lost(&mut self, status: StatusCode, error: RegistryError) -> RegistryError {
        let message = match (status, &error) {
            (StatusCode::NOT_FOUND, RegistryError::NotFound { message, .. }) => message.clone(),
            (StatusCode::RANGE_NOT_SATISFIABLE, _) => "it expects other bytes".to_owned(),
            _ => return error,
        };
        self.session = None;
        let (object, host) = (self.object.clone(), self.endpoint.host.clone());
        RegistryError::UploadLost { object, host, message }
    }

    /// Sends a request without a body.
    async fn ask(&self, method: Method, url: Url) -> Result<WriteReply, RegistryError> {
        self.registry.write(&self.request(method, url), RequestBody::none).await
    }

    fn request(&self, method: Method, url: Url) -> WriteRequest<'_> {
        let headers = HeaderMap::new();
        WriteRequest { object: &self.object, endpoint: &self.endpoint, method, url, headers }
    }

    /// Reports the progress of a body that starts at an offset of the blob.
    fn counter(&self, offset: u64) -> impl Fn(u64) + Send + 'static {
        let (progress, digest, total) =
            (self.progress.clone(), self.blob.descriptor.digest, AtomicU64::new(offset));
        move |sent| {
            let total = total.fetch_add(sent, Ordering::Relaxed) + sent;
            progress.send(PushEvent::Bytes { digest, total });
        }
    }

    fn count_progress(&mut self, received: u64) {
        if received >= self.best.saturating_add(PROGRESS_MIN) {
            (self.best, self.failures) = (received, 0);
        }
    }
}

/// Whether a registry refuses a chunk because it takes none.
fn takes_no_chunks(status: StatusCode, error: &RegistryError) -> bool {
    let message = match error {
        RegistryError::NotFound { message, .. } | RegistryError::Refused { message, .. } => message.as_str(),
        _ => "",
    };
    match status {
        StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED => true,
        StatusCode::NOT_FOUND => !message.starts_with("BLOB_UPLOAD"),
        _ => message.starts_with("UNSUPPORTED"),
    }
}

fn content_headers(length: u64) -> HeaderMap {
    let content_type = HeaderValue::from_static("application/octet-stream");
    HeaderMap::from_iter([(CONTENT_TYPE, content_type), (CONTENT_LENGTH, HeaderValue::from(length))])
}

/// The header `Content-Range` of a chunk; unlike in HTTP, it has no unit.
fn number_range(offset: u64, end: u64) -> HeaderValue {
    let text = format!("{offset}-{}", end.saturating_sub(1));
    HeaderValue::try_from(text).expect("digits are valid in a header")
}

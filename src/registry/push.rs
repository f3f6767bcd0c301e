//! Pushes an image: its blobs, then its manifests, and the tag last.
//!
//! A registry shows nothing of an image before its tag is set. An attempt that fails leaves blobs, which the next one finds.

use std::sync::Arc;

use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Method, StatusCode};
use tokio::task::JoinSet;

use super::endpoint::Endpoint;
use super::exchange::RequestBody;
use super::outgoing::{DeliveredBlob, OutgoingImage, OutgoingManifest, PushEvent, PushProgress};
use super::retry::with_retries;
use super::upload::Upload;
use super::write::WriteRequest;
use super::{Registry, RegistryError, RemoteObject};
use crate::image::{Name, Reference, Tag};

/// Number of blobs that are sent at the same time. Each needs the memory of three chunks.
const PARALLEL_BLOBS: usize = 3;

impl Registry {
    /// Sends an image: what the registry lacks of its blobs in parallel, the manifests by their digests, and the tag last.
    ///
    /// Needs a tokio runtime with time and I/O. Returns how the registry got each blob.
    ///
    /// # Errors
    ///
    /// See [`RegistryError`]. The first error of a blob stops the others; the tag is not changed.
    pub async fn push(
        &self,
        mut image: OutgoingImage,
        progress: &PushProgress,
    ) -> Result<Vec<DeliveredBlob>, RegistryError> {
        // The largest one takes longest, so it begins first.
        image.blobs.sort_by_key(|blob| std::cmp::Reverse(blob.descriptor.size));
        let image = Arc::new(image);
        let mut waiting = 0..image.blobs.len();
        // Dropping the set stops its tasks.
        let mut running = JoinSet::new();
        let mut delivered = Vec::new();
        loop {
            while running.len() < PARALLEL_BLOBS
                && let Some(number) = waiting.next()
            {
                let (registry, image, progress) = (self.clone(), Arc::clone(&image), progress.clone());
                running.spawn(async move { registry.push_blob(&image, number, &progress).await });
            }
            match running.join_next().await {
                None => break,
                Some(Ok(blob)) => delivered.push(blob?),
                Some(Err(error)) => std::panic::resume_unwind(error.into_panic()),
            }
        }
        for manifest in image.manifests.iter().chain([&image.top]) {
            self.push_manifest(&image.name, manifest, None).await?;
        }
        if let Some(tag) = &image.tag {
            self.push_manifest(&image.name, &image.top, Some(tag)).await?;
        }
        Ok(delivered)
    }

    async fn push_blob(
        &self,
        image: &OutgoingImage,
        number: usize,
        progress: &PushProgress,
    ) -> Result<DeliveredBlob, RegistryError> {
        let blob = &image.blobs[number];
        let (digest, size) = (blob.descriptor.digest, blob.descriptor.size);
        progress.send(PushEvent::Blob { digest, size });
        let delivery = Upload::new(self, &image.name, blob, progress.clone())?.run().await?;
        progress.send(PushEvent::Done { digest });
        Ok(DeliveredBlob { digest, size, delivery })
    }

    /// Sends a manifest under its digest, or under a tag.
    async fn push_manifest(
        &self,
        name: &Name,
        manifest: &OutgoingManifest,
        tag: Option<&Tag>,
    ) -> Result<(), RegistryError> {
        let digest = tag.is_none().then_some(manifest.digest);
        let object = RemoteObject::manifest(Reference { name: name.clone(), tag: tag.cloned(), digest });
        let endpoint = Endpoint::to_push(name)?;
        let target = tag.map_or_else(|| manifest.digest.to_string(), Tag::to_string);
        let media_type = HeaderValue::try_from(&manifest.media_type)
            .expect("the media type of a document is checked when it is parsed");
        let request = WriteRequest {
            object: &object,
            endpoint: &endpoint,
            method: Method::PUT,
            url: self.url(&endpoint, &format!("manifests/{target}"))?,
            headers: HeaderMap::from_iter([(CONTENT_TYPE, media_type)]),
        };
        with_retries(self.options().deadlines.backoff, async || {
            let answer = self.write(&request, || RequestBody::of(manifest.bytes.clone())).await?;
            match answer.status() {
                status if status.is_success() => answer.check_digest(&object, manifest.digest.digest()),
                StatusCode::NOT_FOUND => {
                    let (name, message) = (name.clone(), self.error_message(answer.reply.response).await);
                    Err(RegistryError::NoRepository { name, message })
                }
                _ => Err(self.write_refusal(&object, answer).await),
            }
        })
        .await
    }
}

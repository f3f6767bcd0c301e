//! Pushes an image of the store, or of a registry, to a registry.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::{PipelineError, ProgressEvent, ProgressSink};
use crate::image::{Digest, Document, LayerDigest, MANIFEST_MAX, ManifestDigest, ManifestError, Name, Tag};
use crate::registry::{
    BlobDelivery, BlobSource, DeliveredBlob, OutgoingBlob, OutgoingImage, OutgoingManifest, PushEvent,
    PushProgress, Registry,
};
use crate::store::{ImageRecord, Store};

/// An image that a registry has received.
#[derive(Debug, Clone)]
pub struct PushedImage {
    /// The repository.
    pub name: Name,
    /// The digest of the manifest or index.
    pub digest: ManifestDigest,
    /// The tag that was set.
    pub tag: Option<Tag>,
    /// The number of manifests and indexes.
    pub manifests: usize,
    /// The blobs, and how the registry got them.
    pub blobs: Vec<DeliveredBlob>,
}

impl PushedImage {
    /// The number of blobs that the registry got in one way, and their bytes.
    #[must_use]
    pub fn delivered(&self, delivery: BlobDelivery) -> (usize, u64) {
        let sizes = self.blobs.iter().filter(|blob| blob.delivery == delivery).map(|blob| blob.size);
        sizes.fold((0, 0), |(count, bytes), size| (count + 1, bytes + size))
    }
}

/// Collects what an image of the store consists of, to push it to the repository `target`.
///
/// The caller must hold a [`GcLease`](crate::store::GcLease) until the image is pushed.
///
/// # Errors
/// A blob is missing, the manifest is damaged, or a layer may not be distributed.
pub fn outgoing_image(
    store: &Store,
    image: &ImageRecord,
    target: &Name,
    tag: Option<Tag>,
) -> Result<OutgoingImage, PipelineError> {
    let digest = image.digest.digest();
    let bytes = store.read_small(&digest, MANIFEST_MAX)?;
    let document = |source| PipelineError::Document { kind: "manifest", digest, source };
    let manifest = match Document::parse(&bytes, Some(&image.media_type)).map_err(document)? {
        Document::Manifest(manifest) => manifest,
        Document::Index(_) => return Err(document(ManifestError::UnexpectedIndex)),
    };
    let elsewhere = blobs_of_other_repositories(store, &image.name, target)?;
    let mut seen = HashSet::new();
    let mut blobs = Vec::new();
    for descriptor in [manifest.config()].into_iter().chain(manifest.layers()) {
        if !seen.insert(descriptor.digest) {
            continue;
        }
        if !store.has_blob(&descriptor.digest, Some(descriptor.size))? {
            return Err(PipelineError::MissingBlob(descriptor.digest));
        }
        let source = BlobSource::File(Arc::new(store.open_blob(&descriptor.digest)?));
        let mount_from = elsewhere.get(&descriptor.digest).cloned();
        blobs.push(OutgoingBlob { descriptor: descriptor.clone(), source, mount_from });
    }
    let media_type = manifest.media_type().to_owned();
    let top = OutgoingManifest { digest: image.digest, media_type, bytes: bytes.into() };
    let outgoing = OutgoingImage { name: target.clone(), tag, blobs, manifests: Vec::new(), top };
    outgoing.check_distributable(&image.name)?;
    Ok(outgoing)
}

/// The blobs of images of other repositories of the registry, which it may have. For each, one repository: that of `preferred` if
/// it is one of them.
fn blobs_of_other_repositories(
    store: &Store,
    preferred: &Name,
    target: &Name,
) -> Result<HashMap<Digest, Name>, PipelineError> {
    let mut images = store.refs()?.images;
    images.retain(|image| image.name.host() == target.host() && image.name != *target);
    images.sort_by_key(|image| image.name != *preferred);
    let mut blobs = HashMap::new();
    for image in images {
        // An image that cannot be read is reported when it is used.
        let Ok(manifest) = super::read_manifest(store, &image.digest) else { continue };
        for blob in [manifest.config()].into_iter().chain(manifest.layers()) {
            blobs.entry(blob.digest).or_insert_with(|| image.name.clone());
        }
    }
    Ok(blobs)
}

/// Pushes an image to its repository.
///
/// # Errors
/// See [`Registry::push`].
pub async fn push(
    registry: &Registry,
    image: OutgoingImage,
    progress: &ProgressSink,
) -> Result<PushedImage, PipelineError> {
    progress.send(ProgressEvent::Image { size: image.size() });
    let (name, digest, tag) = (image.name.clone(), image.top.digest, image.tag.clone());
    let manifests = image.manifests.len() + 1;
    let progress = progress.clone();
    let events = PushProgress::new(move |event| progress.send(shown(event)));
    let blobs = registry.push(image, &events).await?;
    Ok(PushedImage { name, digest, tag, manifests, blobs })
}

/// A blob has the display of a layer, also if it is a configuration.
fn shown(event: PushEvent) -> ProgressEvent {
    match event {
        PushEvent::Blob { digest, size } => ProgressEvent::Layer { digest: LayerDigest::new(digest), size },
        PushEvent::Bytes { digest, total } => {
            ProgressEvent::Bytes { digest: LayerDigest::new(digest), total }
        }
        PushEvent::Done { digest } => ProgressEvent::Done { digest: LayerDigest::new(digest) },
    }
}

//! What is sent to a registry: an image with its blobs, and how far that is.

use std::fmt;
use std::fs::File;
use std::sync::Arc;

use bytes::Bytes;

use super::RegistryError;
use crate::image::{Descriptor, Digest, ManifestDigest, Name, Tag};

/// Where the bytes of a blob are.
#[derive(Debug, Clone)]
pub enum BlobSource {
    /// In a file of the store.
    File(Arc<File>),
    /// In this repository of a registry.
    Repository(Name),
}

/// A blob to send.
#[derive(Debug, Clone)]
pub struct OutgoingBlob {
    /// The digest and the size.
    pub descriptor: Descriptor,
    /// Where its bytes are.
    pub source: BlobSource,
    /// Another repository of the same registry that probably has the blob.
    pub mount_from: Option<Name>,
}

/// A manifest or an index to send.
#[derive(Debug, Clone)]
pub struct OutgoingManifest {
    /// Its digest.
    pub digest: ManifestDigest,
    /// Its media type.
    pub media_type: String,
    /// Its bytes, which are sent as they are.
    pub bytes: Bytes,
}

/// An image to send: see [`Registry::push`](super::Registry::push).
#[derive(Debug, Clone)]
pub struct OutgoingImage {
    /// The repository that receives it.
    pub name: Name,
    /// The tag that it gets there.
    pub tag: Option<Tag>,
    /// Its blobs, each once.
    pub blobs: Vec<OutgoingBlob>,
    /// The manifests of an index, and their blobs, come before the index.
    pub manifests: Vec<OutgoingManifest>,
    /// The image itself: a manifest or an index.
    pub top: OutgoingManifest,
}

impl OutgoingImage {
    /// The size of all blobs in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.blobs.iter().map(|blob| blob.descriptor.size).fold(0, u64::saturating_add)
    }

    /// Refuses an image with a layer that may not be distributed. `source` is its name here.
    ///
    /// # Errors
    /// [`RegistryError::NotDistributable`], which names the layer.
    pub fn check_distributable(&self, source: &Name) -> Result<(), RegistryError> {
        for OutgoingBlob { descriptor, .. } in &self.blobs {
            if let Some(reason) = descriptor.not_distributable() {
                let (name, layer) = (source.clone(), descriptor.digest);
                return Err(RegistryError::NotDistributable { name, layer, reason });
            }
        }
        Ok(())
    }
}

/// How a registry got a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlobDelivery {
    /// It had the blob.
    Present,
    /// It took the blob from another of its repositories.
    Mounted,
    /// The blob was sent.
    Sent,
}

/// A blob that a registry got.
#[derive(Debug, Clone, Copy)]
pub struct DeliveredBlob {
    /// The blob.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// How the registry got it.
    pub delivery: BlobDelivery,
}

/// Progress of a push, for a display.
#[derive(Debug, Clone, Copy)]
pub enum PushEvent {
    /// Work on a blob begins.
    Blob {
        /// The blob.
        digest: Digest,
        /// Its size in bytes.
        size: u64,
    },
    /// More bytes of a blob were sent.
    Bytes {
        /// The blob.
        digest: Digest,
        /// All bytes sent so far. A repetition counts again from where it starts.
        total: u64,
    },
    /// The registry has the blob.
    Done {
        /// The blob.
        digest: Digest,
    },
}

/// Receives the progress of a push, from several threads.
#[derive(Clone)]
pub struct PushProgress(Arc<dyn Fn(PushEvent) + Send + Sync>);

impl PushProgress {
    /// Passes events to `sink`, which must not block.
    pub fn new(sink: impl Fn(PushEvent) + Send + Sync + 'static) -> Self {
        Self(Arc::new(sink))
    }

    pub(super) fn send(&self, event: PushEvent) {
        (self.0)(event);
    }
}

impl fmt::Debug for PushProgress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PushProgress").finish_non_exhaustive()
    }
}

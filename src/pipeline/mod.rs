//! Joins the stages: a reference or an archive becomes verified blobs, indexes and an image that others can see.
//!
//! A layer goes through in one pass ([`layer`](self)): its bytes are written, hashed, decoded, hashed again and walked as
//! they arrive. What makes an image visible is the last step, one write of `index.json`; until then nothing refers to what
//! has been put, and an error anywhere leaves other images as they were.

mod layer;
mod load;
mod open;
mod pull;

use std::fmt;
use std::sync::Arc;

pub use load::{LoadJob, load};
pub use open::{OpenImage, open_image, open_layer, read_image, read_manifest, verified_diff_ids};
pub use pull::{PullJob, pull};

use crate::image::{DiffId, Digest, LayerDigest, ManifestDigest, ManifestError, Name, Tag};
use crate::import::ImportError;
use crate::index::BuildError;
use crate::registry::RegistryError;
use crate::store::StoreError;
use crate::tree::MergeError;

/// Why an image did not come in, or cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    /// The registry or the way to it.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The archive that is loaded.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The manifest or the configuration.
    #[error("{what} {digest}")]
    Document {
        /// Which of the two.
        what: &'static str,
        /// Its digest.
        digest: Digest,
        /// What is wrong with it.
        source: ManifestError,
    },
    /// The bytes that came are not the ones that the manifest names.
    #[error("layer {layer}: content has digest {actual}")]
    WrongDigest {
        /// What the manifest says.
        layer: LayerDigest,
        /// What came.
        actual: Digest,
    },
    /// The bytes that came are fewer or more than the manifest says.
    #[error("layer {layer}: content has {actual} bytes where the manifest says {declared}")]
    WrongSize {
        /// Which layer.
        layer: LayerDigest,
        /// What came.
        actual: u64,
        /// What the manifest says.
        declared: u64,
    },
    /// The layer decodes to another tar than the image's configuration says.
    #[error("layer {layer}: its tar has digest {actual}, and the image's configuration says {declared}")]
    WrongDiffId {
        /// Which layer.
        layer: LayerDigest,
        /// What it decodes to.
        actual: DiffId,
        /// What the configuration says.
        declared: DiffId,
    },
    /// What an earlier download left cannot be read.
    #[error("layer {layer}: what an earlier download left")]
    Partial {
        /// Which layer.
        layer: LayerDigest,
        /// What went wrong.
        source: std::io::Error,
    },
    /// The layer's media type contradicts what its bytes are.
    #[error("layer {layer}: media type says {declared}, its bytes are {actual}")]
    WrongCodec {
        /// Which layer.
        layer: LayerDigest,
        /// By the media type.
        declared: crate::layer::Codec,
        /// By its first bytes.
        actual: crate::layer::Codec,
    },
    /// The layer is not one that can be applied.
    #[error("layer {layer}")]
    Layer {
        /// Which layer.
        layer: LayerDigest,
        /// What is wrong with it.
        source: BuildError,
    },
    /// The layers do not go together.
    #[error("image {image}")]
    Merge {
        /// The manifest.
        image: ManifestDigest,
        /// What is wrong.
        source: MergeError,
    },
    /// A layer's blob is not in the store.
    #[error("blob {0} is missing from the store")]
    MissingBlob(Digest),
    /// An archive holds an image without a name, and none was given.
    #[error("image {image}{} has no name", with_tags(tags))]
    Unnamed {
        /// Which image in it.
        image: ManifestDigest,
        /// Tags that it has in the archive.
        tags: Vec<String>,
    },
    /// One name and tag was given for an archive with several images.
    #[error("the archive holds {count} images, so one tag does not do")]
    SeveralImages {
        /// How many.
        count: usize,
    },
    /// An archive ends early or cannot be read.
    #[error("blob {digest} of the archive")]
    ArchiveRead {
        /// Which blob.
        digest: Digest,
        /// What went wrong.
        source: std::io::Error,
    },
    /// A thread could not be started or ended early.
    #[error("worker thread")]
    Thread(#[source] std::io::Error),
}

fn with_tags(tags: &[String]) -> String {
    if tags.is_empty() { String::new() } else { format!(" (tagged {})", tags.join(", ")) }
}

impl PipelineError {
    /// What the user can do about it, where there is something.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::MissingBlob(_) => Some("pull or load the image again"),
            Self::Unnamed { .. } => Some("give it one with --name NAME[:TAG]"),
            Self::SeveralImages { .. } => {
                Some("give --name without a tag, or leave it out: the tags in the archive are used")
            }
            Self::Layer { source: BuildError::TooLong { .. }, .. } => {
                Some("if you trust the image, raise that key in the configuration")
            }
            Self::WrongDigest { .. } => Some(
                "the registry's copy is damaged, or something between changes it: compare with another client",
            ),
            _ => None,
        }
    }
}

/// What happens on the way, for a progress display.
#[derive(Debug, Clone, Copy)]
pub enum ProgressEvent {
    /// Work on a layer begins.
    Layer {
        /// Which one.
        digest: LayerDigest,
        /// Bytes of its blob.
        size: u64,
    },
    /// Bytes of a layer's blob went through.
    Bytes {
        /// Which layer.
        digest: LayerDigest,
        /// All bytes so far, those of an earlier attempt included.
        total: u64,
    },
    /// Another process works on this layer.
    Waiting {
        /// Which one.
        digest: LayerDigest,
    },
    /// A layer's index is missing or unusable and is built from the blob.
    Rebuilding {
        /// Which one.
        digest: LayerDigest,
    },
    /// A layer is in the store.
    Done {
        /// Which one.
        digest: LayerDigest,
    },
}

/// Takes events; called from several threads.
#[derive(Clone)]
pub struct ProgressSink(Option<Arc<dyn Fn(ProgressEvent) + Send + Sync>>);

impl ProgressSink {
    /// Passes events on to `sink`, which must be quick: the pipeline waits for it.
    pub fn new(sink: impl Fn(ProgressEvent) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(sink)))
    }

    /// Drops all events.
    #[must_use]
    pub fn none() -> Self {
        Self(None)
    }

    fn tell(&self, event: ProgressEvent) {
        if let Some(sink) = &self.0 {
            sink(event);
        }
    }
}

impl fmt::Debug for ProgressSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Progress").field(&self.0.is_some()).finish()
    }
}

/// An image that has come in.
#[derive(Debug, Clone)]
pub struct StoredImage {
    /// Its name, without tag.
    pub name: Name,
    /// Its manifest.
    pub digest: ManifestDigest,
    /// Its tags that were set.
    pub tags: Vec<Tag>,
    /// Layers that had to be fetched; the others were there.
    pub layers_fetched: usize,
    /// Layers of the image.
    pub layers: usize,
    /// Bytes of blobs that were fetched.
    pub bytes_fetched: u64,
}

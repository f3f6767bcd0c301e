//! Joins the stages: from a reference or an archive to verified blobs, their indexes and a visible image, and from there to a
//! registry.
//!
//! Each layer is processed in one pass: its bytes are written, hashed, decoded, hashed again and walked as they arrive. The
//! last step, one write of `index.json`, makes the image visible. Until then nothing refers to the new blobs, and an error
//! leaves all other images unchanged.

mod chunks;
mod describe;
mod layer;
mod load;
mod new_image;
mod node_path;
mod open;
mod plain;
mod pull;
mod push;
mod trace;
mod tree_image;

use std::fmt;
use std::sync::Arc;

pub use describe::{
    ImageDescription, ImageSummary, IndexDescription, LayerDescription, ReadFailureText, describe_image,
    list_images,
};
pub use load::{FailedImage, LoadJob, LoadedImages, load};
pub use new_image::{NewLayer, put_image, store_new_layer};
pub use node_path::{FoundNode, NodePathError};
pub use open::{
    OpenImage, open_image, open_layer, read_image, read_manifest, update_index, update_indexes,
    verified_diff_ids,
};
pub use plain::{PlainCheck, check_plain_layer, make_plain_layer, plain_layer};
pub use pull::{PullJob, pull};
pub use push::{PushedImage, outgoing_image, push};
pub use trace::{LayerSpan, ReadTrace, read_trace, save_trace};
pub use tree_image::{existing_tree_image, make_tree_image, make_tree_images, tree_image, tree_key};

use crate::erofs::{ErofsError, PlainLayerError};
use crate::error::ErrorCode;
use crate::image::{DiffId, Digest, LayerDigest, ManifestDigest, ManifestError, Name, Platform, Tag};
use crate::import::ImportError;
use crate::index::BuildError;
use crate::registry::RegistryError;
use crate::store::StoreError;
use crate::tree::MergeError;

/// The reason why an image cannot be stored or opened.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    /// The registry or the connection to it failed.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The archive cannot be read.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The manifest or the configuration is not valid.
    #[error("{kind} {digest}")]
    Document {
        /// `manifest` or `configuration`.
        kind: &'static str,
        /// Its digest.
        digest: Digest,
        /// The reason.
        source: ManifestError,
    },
    /// The image's configuration states another platform than the requested one.
    #[error("image {image} is for {stated}, not for {wanted}")]
    OtherPlatform {
        /// The digest of the manifest.
        image: ManifestDigest,
        /// The platform in the configuration.
        stated: Platform,
        /// The requested platform.
        wanted: Platform,
    },
    /// The content of a layer does not have the digest in the manifest.
    #[error("layer {layer}: content has digest {actual}")]
    WrongDigest {
        /// The digest in the manifest.
        layer: LayerDigest,
        /// The digest of the content.
        actual: Digest,
    },
    /// The content of a layer is shorter or longer than the manifest declares.
    #[error("layer {layer}: content has {actual} bytes, but the manifest declares {declared}")]
    WrongSize {
        /// The layer.
        layer: LayerDigest,
        /// The length of the content in bytes.
        actual: u64,
        /// The size in the manifest.
        declared: u64,
    },
    /// The layer decodes to another tar than the image's configuration declares.
    #[error("layer {layer}: tar has digest {actual}, but the image's configuration declares {declared}")]
    WrongDiffId {
        /// The layer.
        layer: LayerDigest,
        /// The digest of the decoded tar.
        actual: DiffId,
        /// The diff ID in the configuration.
        declared: DiffId,
    },
    /// The partial file of an earlier download cannot be read.
    #[error("layer {layer}: cannot read the partial file of an earlier download")]
    Partial {
        /// The layer.
        layer: LayerDigest,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// The layer cannot be indexed.
    #[error("layer {layer}")]
    Layer {
        /// The layer.
        layer: LayerDigest,
        /// The reason.
        source: BuildError,
    },
    /// A layer that this program writes cannot be indexed.
    #[error("new layer")]
    NewLayer(#[source] BuildError),
    /// The layers cannot be merged.
    #[error("image {image}")]
    Merge {
        /// The digest of the manifest.
        image: ManifestDigest,
        /// The reason.
        source: MergeError,
    },
    /// The image has no tree image.
    #[error("image {image}")]
    TreeImage {
        /// The digest of the manifest.
        image: ManifestDigest,
        /// The reason.
        source: ErofsError,
    },
    /// The plain layer of a layer cannot be written.
    #[error("layer {layer}")]
    PlainLayer {
        /// The layer.
        layer: LayerDigest,
        /// The reason.
        source: PlainLayerError,
    },
    /// A layer's blob is not in the store.
    #[error("blob {0} is missing from the store")]
    MissingBlob(Digest),
    /// An archive gives an image a tag that another image has.
    #[error("tag {name}:{tag} moves from {from} to {to}")]
    TagMoves {
        /// The name.
        name: Name,
        /// The tag.
        tag: Tag,
        /// The image that has the tag.
        from: ManifestDigest,
        /// The image in the archive.
        to: ManifestDigest,
    },
    /// The user gave one tag for an archive with several images.
    #[error("a tag can name only one of several images: the archive contains {count}")]
    SeveralImages {
        /// The number of images.
        count: usize,
    },
    /// A blob of an archive cannot be read.
    #[error("cannot read blob {digest} of the archive")]
    ArchiveRead {
        /// The blob.
        digest: Digest,
        /// The error of reading or decompressing.
        source: std::io::Error,
    },
    /// A worker thread could not be started, or panicked.
    #[error("a worker thread failed")]
    Thread(#[source] std::io::Error),
}

impl PipelineError {
    /// The stable code of this error.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Registry(source) => source.code(),
            Self::Import(source) => source.code(),
            Self::Store(source) => source.code(),
            Self::Document { source, .. } => source.code(),
            Self::Layer { source, .. } | Self::NewLayer(source) => source.code(),
            Self::Merge { source, .. } => source.code(),
            Self::TreeImage { source, .. } => source.code(),
            Self::PlainLayer { source, .. } => source.code(),
            Self::OtherPlatform { .. } => ErrorCode::NoPlatform,
            Self::WrongDigest { .. } | Self::WrongSize { .. } => ErrorCode::WrongContent,
            Self::WrongDiffId { .. } => ErrorCode::ImageMismatch,
            Self::Partial { .. } => ErrorCode::Io,
            Self::MissingBlob(_) => ErrorCode::NoBlob,
            Self::SeveralImages { .. } => ErrorCode::Usage,
            Self::TagMoves { .. } => ErrorCode::Exists,
            Self::ArchiveRead { .. } => ErrorCode::Archive,
            Self::Thread(_) => ErrorCode::Internal,
        }
    }

    /// What the user can do next, if anything.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Store(error) => error.hint().map(str::to_owned),
            Self::Registry(error) => error.hint(),
            Self::Import(error) => error.hint(),
            error => error.own_hint().map(str::to_owned),
        }
    }

    /// The hint of an error that wraps none of the store, the registry or an import.
    fn own_hint(&self) -> Option<&'static str> {
        match self {
            Self::MissingBlob(_) => Some("pull or load the image again"),
            Self::OtherPlatform { .. } => Some(
                "request the image's own platform with --platform, or accept any platform with --any-platform",
            ),
            Self::TagMoves { .. } => {
                Some("use --replace to move it, or load the image under another name with --name NAME:TAG")
            }
            Self::SeveralImages { .. } => {
                Some("use --name without a tag, or leave --name out, to keep the tags of the archive")
            }
            Self::Layer { source: BuildError::TooLong { .. }, .. }
            | Self::NewLayer(BuildError::TooLong { .. }) => {
                Some("if you trust the image, raise this limit in the configuration")
            }
            Self::WrongDigest { .. } => Some(
                "the copy in the registry is damaged, or a proxy changes it: compare with another client",
            ),
            _ => None,
        }
    }
}

/// Progress of an operation, for a display.
#[derive(Debug, Clone, Copy)]
pub enum ProgressEvent {
    /// Work on an image begins.
    Image {
        /// The size of the blobs of its layers in bytes.
        size: u64,
    },
    /// Work on a layer begins.
    Layer {
        /// The layer.
        digest: LayerDigest,
        /// The size of its blob in bytes.
        size: u64,
    },
    /// More bytes of a layer's blob were processed.
    Bytes {
        /// The layer.
        digest: LayerDigest,
        /// All bytes processed so far, including those of an earlier attempt.
        total: u64,
    },
    /// Another process holds the lock of the layer.
    Waiting {
        /// The layer.
        digest: LayerDigest,
    },
    /// The index of a layer is missing or unusable, and is being built from the blob.
    Rebuilding {
        /// The layer.
        digest: LayerDigest,
    },
    /// A layer is in the store.
    Done {
        /// The layer.
        digest: LayerDigest,
    },
}

/// Receives progress events, from several threads.
#[derive(Clone)]
pub struct ProgressSink(Option<Arc<dyn Fn(ProgressEvent) + Send + Sync>>);

impl ProgressSink {
    /// Passes events to `sink`. The pipeline waits for each call.
    pub fn new(sink: impl Fn(ProgressEvent) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(sink)))
    }

    /// Drops all events.
    #[must_use]
    pub fn none() -> Self {
        Self(None)
    }

    fn send(&self, event: ProgressEvent) {
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

/// An image that was pulled or loaded.
#[derive(Debug, Clone)]
pub struct StoredImage {
    /// The name, without a tag.
    pub name: Name,
    /// The digest of the manifest.
    pub digest: ManifestDigest,
    /// The tags that were set.
    pub tags: Vec<Tag>,
    /// The number of layers that were fetched. The store already had the other layers.
    pub layers_fetched: usize,
    /// The number of layers of the image.
    pub layers: usize,
    /// The bytes of blobs that were fetched.
    pub bytes_fetched: u64,
}

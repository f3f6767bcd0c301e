//! The filesystem's errors, and the one table that maps them to errno values.

use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;

use super::{Ino, SpanFault};
use crate::error::ErrorCode;
use crate::image::{Digest, LayerDigest};
use crate::index::ReadError;
use crate::os::PathError;
use crate::pipeline::PipelineError;
use crate::store::StoreError;

/// The error of a filesystem request.
#[derive(Debug, thiserror::Error)]
pub enum FsError {
    /// The name does not exist.
    #[error("no such name")]
    NotFound,
    /// The name is longer than [`super::NAME_MAX`].
    #[error("name too long")]
    NameTooLong,
    /// The inode number does not belong to any file of this mount.
    #[error("no inode {0}")]
    Stale(Ino),
    /// The request needs a directory.
    #[error("inode {0} is not a directory")]
    NotADirectory(Ino),
    /// The request needs something other than a directory.
    #[error("inode {0} is a directory")]
    IsADirectory(Ino),
    /// The request does not apply to this type of file, such as reading a fifo or the link target of a regular file.
    #[error("inode {0} has the wrong file type for this request")]
    WrongKind(Ino),
    /// The inode does not have this extended attribute.
    #[error("no such extended attribute")]
    NoAttribute,
    /// The answer is larger than the caller's buffer.
    #[error("the answer does not fit into the buffer")]
    BufferTooSmall,
    /// There is no data, or no hole, at or after this offset.
    #[error("no data or hole at or after the offset")]
    PastEnd,
    /// An argument is invalid.
    #[error("invalid argument")]
    Invalid,
    /// The request would change an image.
    #[error("images are read-only")]
    ReadOnly,
    /// The filesystem leaves this request to the kernel.
    #[error("not implemented")]
    NotImplemented,
    /// The image is published but cannot be opened.
    #[error(transparent)]
    Image(#[from] Arc<ImageFault>),
    /// A layer cannot be opened, although the kernel still uses it.
    #[error("cannot open the layer with slot {slot}")]
    Layer {
        /// The layer's slot in the store.
        slot: u32,
        /// The underlying error.
        source: LoadError,
    },
    /// The layer of a layer file cannot be opened.
    #[error("cannot open layer {layer}")]
    LayerFile {
        /// The layer.
        layer: LayerDigest,
        /// The underlying error.
        source: LoadError,
    },
    /// The content of a layer file cannot be read.
    #[error("cannot read layer {layer} ({len} bytes from {offset} on)")]
    LayerContent {
        /// The layer.
        layer: LayerDigest,
        /// The offset in the layer's file.
        offset: u64,
        /// The number of bytes that were requested.
        len: u32,
        /// The underlying error.
        #[source]
        fault: Box<SpanFault<ReadError>>,
    },
    /// File content cannot be read.
    #[error(transparent)]
    Content(#[from] Box<ContentFault>),
    /// The tree and an index contradict each other although both were validated.
    #[error("inode {0}: tree and index contradict each other")]
    Inconsistent(Ino),
    /// The request's handler panicked.
    #[error("the request's handler panicked")]
    Panicked,
}

/// The reason why a file's content cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {path:?} of layer {layer}")]
pub struct ContentFault {
    /// The file's path in the layer.
    pub path: String,
    /// The layer.
    pub layer: LayerDigest,
    /// The image's path in the mount, for a file that belongs to one image.
    pub image: Option<String>,
    /// The underlying error.
    #[source]
    pub fault: SpanFault<ReadError>,
}

/// The content that a request could not read because an image cannot be served.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FailedContent {
    /// The image's path in the mount.
    pub image: Option<String>,
    /// The layer.
    pub layer: Option<LayerDigest>,
    /// The blob that is missing or damaged.
    pub blob: Option<Digest>,
    /// The path in the image.
    pub path: Option<String>,
}

/// The reason why a published image cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum ImageFault {
    /// A blob, an index or the merge is faulty.
    #[error("image {image}")]
    Open {
        /// The image's path in the mount.
        image: String,
        /// The underlying error.
        source: LoadError,
    },
    /// The thread that opened the image panicked.
    #[error("image {0}: the thread that opened it panicked")]
    Panicked(String),
    /// Another thread did not finish opening the image in time.
    #[error("image {image}: another request did not finish opening it within {waited:?}")]
    Deadline {
        /// The image's path in the mount.
        image: String,
        /// How long this request waited.
        waited: Duration,
    },
}

/// The error of reading references, or of opening an image or a layer.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The image or layer cannot be opened.
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
    /// A file in the store cannot be examined.
    #[error(transparent)]
    Io(#[from] PathError),
}

impl FsError {
    /// The errno that the kernel receives.
    #[must_use]
    pub fn errno(&self) -> Errno {
        match self {
            Self::NotFound => Errno::NOENT,
            Self::NameTooLong => Errno::NAMETOOLONG,
            Self::Stale(_) => Errno::STALE,
            Self::NotADirectory(_) => Errno::NOTDIR,
            Self::IsADirectory(_) => Errno::ISDIR,
            Self::WrongKind(_) | Self::Invalid => Errno::INVAL,
            Self::NoAttribute => Errno::NODATA,
            Self::BufferTooSmall => Errno::RANGE,
            Self::PastEnd => Errno::NXIO,
            Self::ReadOnly => Errno::ROFS,
            Self::NotImplemented => Errno::NOSYS,
            // A hung disk, which an administrator treats differently from a damaged image.
            Self::Image(fault) if matches!(**fault, ImageFault::Deadline { .. }) => Errno::TIMEDOUT,
            Self::Content(content) if matches!(content.fault, SpanFault::Deadline(_)) => Errno::TIMEDOUT,
            Self::LayerContent { fault, .. } if matches!(**fault, SpanFault::Deadline(_)) => Errno::TIMEDOUT,
            Self::Image(_)
            | Self::Layer { .. }
            | Self::LayerFile { .. }
            | Self::LayerContent { .. }
            | Self::Content(_)
            | Self::Inconsistent(_)
            | Self::Panicked => Errno::IO,
        }
    }

    /// Returns the content that the request could not read; `None` if the error is a correct answer about an intact image.
    #[must_use]
    pub fn failed_content(&self) -> Option<FailedContent> {
        match self {
            Self::Image(fault) => Some(fault.failed_content()),
            Self::Layer { source, .. } => Some(source.failed_content()),
            Self::Content(content) => Some(FailedContent {
                image: content.image.clone(),
                layer: Some(content.layer),
                blob: Some(content.layer.digest()),
                path: Some(content.path.clone()),
            }),
            Self::LayerFile { layer, source } => {
                let failed = source.failed_content();
                let blob = failed.blob.or(Some(layer.digest()));
                Some(FailedContent { layer: Some(*layer), blob, ..failed })
            }
            Self::LayerContent { layer, .. } => Some(FailedContent {
                layer: Some(*layer),
                blob: Some(layer.digest()),
                ..FailedContent::default()
            }),
            Self::Inconsistent(_) | Self::Panicked => Some(FailedContent::default()),
            Self::NotFound
            | Self::NameTooLong
            | Self::Stale(_)
            | Self::NotADirectory(_)
            | Self::IsADirectory(_)
            | Self::WrongKind(_)
            | Self::NoAttribute
            | Self::BufferTooSmall
            | Self::PastEnd
            | Self::Invalid
            | Self::ReadOnly
            | Self::NotImplemented => None,
        }
    }

    /// The stable code of this error.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::NotFound
            | Self::NameTooLong
            | Self::Stale(_)
            | Self::NotADirectory(_)
            | Self::IsADirectory(_)
            | Self::WrongKind(_)
            | Self::NoAttribute
            | Self::BufferTooSmall
            | Self::PastEnd
            | Self::Invalid
            | Self::NotImplemented => ErrorCode::Io,
            Self::ReadOnly => ErrorCode::ReadOnlyFilesystem,
            Self::Image(fault) => fault.code(),
            Self::Layer { source, .. } | Self::LayerFile { source, .. } => source.code(),
            Self::LayerContent { fault, .. } => fault.code(),
            Self::Content(content) => content.fault.code(),
            Self::Inconsistent(_) | Self::Panicked => ErrorCode::Internal,
        }
    }
}

impl ImageFault {
    /// The stable code of this error.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Open { source, .. } => source.code(),
            Self::Panicked(_) => ErrorCode::Internal,
            Self::Deadline { .. } => ErrorCode::Timeout,
        }
    }
}

impl ImageFault {
    fn failed_content(&self) -> FailedContent {
        match self {
            Self::Open { image, source } => {
                FailedContent { image: Some(image.clone()), ..source.failed_content() }
            }
            Self::Panicked(image) | Self::Deadline { image, .. } => {
                FailedContent { image: Some(image.clone()), ..FailedContent::default() }
            }
        }
    }
}

impl LoadError {
    /// The layer and the blob that cannot be opened, as far as the error names them.
    fn failed_content(&self) -> FailedContent {
        let blob = |digest: &Digest| FailedContent { blob: Some(*digest), ..FailedContent::default() };
        match self {
            Self::Pipeline(error) => match error {
                PipelineError::MissingBlob(digest) | PipelineError::Document { digest, .. } => blob(digest),
                PipelineError::Store(StoreError::NoBlob { digest } | StoreError::Damaged { digest, .. }) => {
                    blob(digest)
                }
                PipelineError::WrongDigest { layer, .. }
                | PipelineError::WrongSize { layer, .. }
                | PipelineError::WrongDiffId { layer, .. }
                | PipelineError::Layer { layer, .. } => {
                    FailedContent { layer: Some(*layer), ..blob(&layer.digest()) }
                }
                // The remaining errors name no blob, or do not occur when an image is opened.
                _ => FailedContent::default(),
            },
            Self::Store(StoreError::NoBlob { digest } | StoreError::Damaged { digest, .. }) => blob(digest),
            Self::Store(_) | Self::Io(_) => FailedContent::default(),
        }
    }

    /// The stable code of this error.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Store(error) => error.code(),
            Self::Pipeline(error) => error.code(),
            Self::Io(error) => error.code(),
        }
    }

    /// What the user can do about the error, if anything.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Store(error) => error.hint().map(str::to_owned),
            Self::Pipeline(error) => error.hint(),
            Self::Io(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(fault: SpanFault<ReadError>) -> FsError {
        let layer = LayerDigest::new(Digest::of(b"layer"));
        FsError::from(Box::new(ContentFault { path: "bin/sh".to_owned(), layer, image: None, fault }))
    }

    #[test]
    fn hanging_disk_and_damaged_image_have_different_errnos() {
        let waited = Duration::from_secs(30);
        let image = || "lab/a@sha256:12".to_owned();
        let hanging = Arc::new(ImageFault::Deadline { image: image(), waited });
        assert_eq!(FsError::from(hanging).errno(), Errno::TIMEDOUT);
        assert_eq!(content(SpanFault::Deadline(waited)).errno(), Errno::TIMEDOUT);
        assert_eq!(FsError::from(Arc::new(ImageFault::Panicked(image()))).errno(), Errno::IO);
        assert_eq!(content(SpanFault::Shared).errno(), Errno::IO);
    }

    #[test]
    fn failed_content_names_image_layer_blob_and_path() {
        let blob = Digest::of(b"blob");
        let source = LoadError::from(PipelineError::MissingBlob(blob));
        let image = "lab/a@sha256:12".to_owned();
        let missing = FsError::from(Arc::new(ImageFault::Open { image: image.clone(), source }));
        let expected = FailedContent { image: Some(image), blob: Some(blob), ..FailedContent::default() };
        assert_eq!(missing.failed_content(), Some(expected));
        let layer = LayerDigest::new(Digest::of(b"layer"));
        let expected = FailedContent {
            image: None,
            layer: Some(layer),
            blob: Some(layer.digest()),
            path: Some("bin/sh".to_owned()),
        };
        assert_eq!(content(SpanFault::Shared).failed_content(), Some(expected));
        assert_eq!(FsError::NotFound.failed_content(), None);
    }
}

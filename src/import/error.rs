//! Errors from loading an archive. The caller adds the archive's own path.

use std::io;
use std::path::PathBuf;

use super::PATH_MAX;
use crate::error::ErrorCode;
use crate::image::{Digest, ManifestError};
use crate::layer::LayerError;

/// An archive cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The archive cannot be opened.
    #[error("cannot open the archive")]
    Open(#[source] io::Error),
    /// A file of the archive cannot be read.
    #[error("cannot read {file}")]
    Read {
        /// The file.
        file: String,
        /// The error of the operating system.
        source: io::Error,
    },
    /// The archive as a whole is compressed, and damaged.
    #[error("cannot decompress the archive")]
    Compression(#[source] LayerError),
    /// The archive as a whole is compressed with xz or bzip2, and damaged or truncated.
    #[error("cannot decompress the archive with {program}")]
    Decompression {
        /// The program.
        program: &'static str,
        /// The error of decompressing or reading.
        source: io::Error,
    },
    /// The archive decompresses to too much.
    #[error("the archive decompresses to more than {ratio} times its size")]
    Bomb {
        /// The limit.
        ratio: u64,
    },
    /// Reading the compressed archive at any position would take too much memory.
    #[error("the archive is too large to be read in compressed form")]
    Checkpoints,
    /// The temporary file for a compressed archive cannot be written.
    #[error("cannot write a temporary file in {}", .directory.display())]
    Temporary {
        /// The directory.
        directory: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
    /// Several members of the tar have one name, but different content.
    #[error("{0} occurs twice with different content")]
    Twice(String),
    /// The path names a device, a pipe or a socket.
    #[error("neither a directory nor a regular file")]
    FileType,
    /// The file is not a tar archive, or it is damaged.
    #[error("not a tar archive, or damaged, at byte {offset}: {reason}")]
    Tar {
        /// Position in the archive.
        offset: u64,
        /// The fault at that position.
        reason: &'static str,
    },
    /// The tar ends inside a file.
    #[error("the archive is truncated inside {0}")]
    Truncated(String),
    /// The tar or directory has an unknown format.
    #[error("neither an OCI layout nor a `docker save` archive: {0}")]
    Unknown(&'static str),
    /// The version of the OCI layout is not supported.
    #[error("OCI layout version `{0}` is not supported (only 1 is)")]
    LayoutVersion(String),
    /// The archive lacks a file.
    #[error("{0} is missing")]
    Missing(String),
    /// A link leads out of the archive, to a missing file, or into a loop.
    #[error("{0} is a link that does not lead to a file inside the archive")]
    Link(String),
    /// The archive lacks a blob that a manifest names.
    #[error("blob {0} is missing")]
    MissingBlob(Digest),
    /// A blob does not have the length that its descriptor declares.
    #[error("blob {digest} has {actual} bytes, but its descriptor declares {expected}")]
    BlobSize {
        /// The blob.
        digest: Digest,
        /// Length in the descriptor.
        expected: u64,
        /// Length in the archive.
        actual: u64,
    },
    /// The content of a blob does not have the blob's digest.
    #[error("the content of blob {expected} has digest {actual}")]
    Digest {
        /// Digest in the descriptor.
        expected: Digest,
        /// Digest of the content.
        actual: Digest,
    },
    /// A document is too long.
    #[error("{file} is longer than {limit} bytes")]
    TooLong {
        /// The file.
        file: String,
        /// Maximum number of bytes allowed.
        limit: u64,
    },
    /// The archive has more images or names than the limit.
    #[error("the archive has more than {limit} {what}")]
    TooMany {
        /// `images` or `names of images`.
        what: &'static str,
        /// Most of them allowed.
        limit: usize,
    },
    /// A path in the archive is too long.
    #[error("the archive has a path of {length} bytes, which is longer than {limit} bytes: {start}...")]
    PathTooLong {
        /// Its first characters.
        start: String,
        /// Its length in bytes.
        length: usize,
        /// The longest allowed.
        limit: usize,
    },
    /// A file is not the expected JSON.
    #[error("cannot parse {file}")]
    Json {
        /// The file.
        file: String,
        /// The parser's error.
        source: serde_json::Error,
    },
    /// A manifest, index or configuration is refused.
    #[error("{document}")]
    Document {
        /// The file or digest of the document.
        document: String,
        /// The reason.
        source: Box<ManifestError>,
    },
    /// The archive contains no image.
    #[error("the archive contains no image")]
    Empty,
}

impl ImportError {
    /// Refuses a path that is longer than the limit.
    pub(super) fn check_path(path: &str) -> Result<(), Self> {
        if path.len() <= PATH_MAX {
            return Ok(());
        }
        let start = path.chars().take(40).collect();
        Err(Self::PathTooLong { start, length: path.len(), limit: PATH_MAX })
    }

    pub(super) fn document(document: impl ToString, source: ManifestError) -> Self {
        Self::Document { document: document.to_string(), source: Box::new(source) }
    }

    /// Returns the stable code of this error.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Open(source) | Self::Read { source, .. } | Self::Temporary { source, .. } => {
                ErrorCode::of_io(source)
            }
            Self::Compression(_)
            | Self::Decompression { .. }
            | Self::Bomb { .. }
            | Self::Checkpoints
            | Self::Twice(_)
            | Self::FileType
            | Self::Tar { .. }
            | Self::Truncated(_)
            | Self::Unknown(_)
            | Self::LayoutVersion(_)
            | Self::Missing(_)
            | Self::Link(_)
            | Self::MissingBlob(_)
            | Self::TooLong { .. }
            | Self::TooMany { .. }
            | Self::PathTooLong { .. }
            | Self::Json { .. }
            | Self::Empty => ErrorCode::Archive,
            Self::BlobSize { .. } | Self::Digest { .. } => ErrorCode::WrongContent,
            Self::Document { source, .. } => source.code(),
        }
    }

    /// Returns what the user can do about the error.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Bomb { .. } | Self::Checkpoints => {
                Some("if you trust the archive, decompress it first, then load the result".to_owned())
            }
            Self::Temporary { .. } => Some("choose another directory with the variable TMPDIR".to_owned()),
            Self::Unknown(_) => {
                Some("convert it with skopeo, for example `skopeo copy dir:PATH oci-archive:FILE`".to_owned())
            }
            Self::Document { source, .. } if matches!(**source, ManifestError::NoPlatform { .. }) => {
                Some("choose a platform with --platform".to_owned())
            }
            _ => None,
        }
    }
}

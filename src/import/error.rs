//! Why an archive cannot be loaded. The archive's own path is for the caller to add.

use std::io;

use crate::image::{Digest, ManifestError};

/// What is wrong with an archive.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The path cannot be opened.
    #[error("cannot open")]
    Open(#[source] io::Error),
    /// Reading failed.
    #[error("{what}")]
    Read {
        /// The file within the archive.
        what: String,
        /// Why.
        source: io::Error,
    },
    /// The whole archive is compressed.
    #[error("the archive is compressed ({0})")]
    Compressed(&'static str),
    /// Neither a directory nor a file: a device, a pipe.
    #[error("neither a directory nor a regular file")]
    FileType,
    /// No tar at all, or one that is damaged.
    #[error("not a tar archive, or damaged: {reason} at byte {offset}")]
    Tar {
        /// Position in the archive.
        offset: u64,
        /// What is wrong there.
        reason: &'static str,
    },
    /// The tar ends within a file.
    #[error("the archive is truncated within {0}")]
    Truncated(String),
    /// A tar or a directory of something else.
    #[error("neither an OCI layout nor a `docker save` archive: {0}")]
    Unknown(&'static str),
    /// A version of the layout that is not known.
    #[error("OCI layout has version `{0}`, not 1.0.0")]
    LayoutVersion(String),
    /// A file that the archive should have.
    #[error("{0} is missing")]
    Missing(String),
    /// A link leads out of the archive, nowhere, or round in a circle.
    #[error("{0} is a link that does not lead to a file of the archive")]
    Link(String),
    /// A blob that a manifest names.
    #[error("blob {0} is missing")]
    MissingBlob(Digest),
    /// A blob of another length than its manifest says.
    #[error("blob {digest} has {found} bytes, not {wanted}")]
    BlobSize {
        /// The blob.
        digest: Digest,
        /// Its length by the manifest.
        wanted: u64,
        /// Its length in the archive.
        found: u64,
    },
    /// A blob with other bytes than its name says.
    #[error("blob {expected} has digest {found}")]
    Digest {
        /// What it should be.
        expected: Digest,
        /// What it is.
        found: Digest,
    },
    /// A file that is too long for what it should be.
    #[error("{what} is longer than {limit} bytes")]
    TooLong {
        /// The file.
        what: String,
        /// What is allowed.
        limit: u64,
    },
    /// A file that is not the JSON it should be.
    #[error("{what}")]
    Json {
        /// The file.
        what: String,
        /// Why.
        source: serde_json::Error,
    },
    /// A manifest, index or config that is refused.
    #[error("{what}")]
    Document {
        /// The document.
        what: String,
        /// Why.
        source: Box<ManifestError>,
    },
    /// Nothing in it is an image.
    #[error("there is no image in it")]
    Empty,
}

impl ImportError {
    pub(super) fn document(what: impl ToString, source: ManifestError) -> Self {
        Self::Document { what: what.to_string(), source: Box::new(source) }
    }

    /// What the user may do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Compressed(program) => {
                Some(format!("decompress it first, as with `{program} -dk FILE`, and load what comes out"))
            }
            Self::Unknown(_) => Some(
                "`skopeo copy` turns other forms into one, as in `skopeo copy dir:PATH oci-archive:FILE`"
                    .to_owned(),
            ),
            Self::Document { source, .. } if matches!(**source, ManifestError::NoPlatform { .. }) => {
                Some("choose one with --platform".to_owned())
            }
            _ => None,
        }
    }
}

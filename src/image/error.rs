//! Errors in manifests, indexes and configurations.

use std::fmt;

use super::{Digest, Platform};
use crate::error::ErrorCode;

/// The reason why a document is refused.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// The document is larger than its limit.
    #[error("document has {size} bytes, more than the limit of {limit}")]
    TooLong {
        /// The size in bytes.
        size: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// The document is a web page: a login form, or the message of a proxy.
    #[error("document is an HTML page, not a manifest")]
    Html,
    /// The document is not a JSON object, or one of its fields has the wrong form.
    #[error("manifest is not valid")]
    Json(#[from] serde_json::Error),
    /// The JSON is neither a manifest nor an index.
    #[error("document is neither an image manifest nor an index: it has {0}")]
    Neither(String),
    /// The JSON has the fields of a manifest and those of an index.
    #[error("document is both a manifest and an index")]
    Both,
    /// Docker's manifest format from before 2016.
    #[error("manifest has schema version 1, which is not supported")]
    Schema1,
    /// A schema version other than 1 and 2.
    #[error("manifest has schema version {0}, not 2")]
    SchemaVersion(u64),
    /// The content does not match the media type in the document, or the announced media type.
    #[error("{kind} is declared as `{declared}`")]
    Contradiction {
        /// The kind of the content.
        kind: DocumentKind,
        /// The media type that contradicts it.
        declared: String,
    },
    /// The document is an index where only an image manifest is allowed.
    #[error("document is a multi-platform index, not an image manifest")]
    UnexpectedIndex,
    /// The document is an image manifest where only an index is allowed.
    #[error("document is an image manifest, not an index")]
    UnexpectedManifest,
    /// An artifact that is not an image: a Helm chart, a signature, an SBOM.
    #[error("document is an artifact of type `{0}`, not an image")]
    Artifact(String),
    /// The layer is encrypted.
    #[error("layer {digest} is encrypted (`{media_type}`), which is not supported")]
    EncryptedLayer {
        /// The layer.
        digest: Digest,
        /// Its media type.
        media_type: String,
    },
    /// The layer has a media type that is not supported.
    #[error("layer {digest} has the unknown media type `{media_type}`")]
    LayerType {
        /// The layer.
        digest: Digest,
        /// Its media type.
        media_type: String,
    },
    /// The document has more entries than the limit.
    #[error("document has {count} {items}, more than the limit of {limit}")]
    TooMany {
        /// The kind of entry.
        items: &'static str,
        /// The number of entries.
        count: usize,
        /// The limit.
        limit: usize,
    },
    /// The descriptor has a size of 0, or a size beyond the limit.
    #[error("{object} {digest} has an impossible size of {size} bytes")]
    Size {
        /// `config`, `layer` or `manifest`.
        object: &'static str,
        /// The digest in the descriptor.
        digest: Digest,
        /// The size in the descriptor.
        size: u64,
    },
    /// The configuration has another digest than the manifest declares.
    #[error("configuration has digest {0}, but the manifest declares another")]
    ConfigDigest(Digest),
    /// The configuration has another size than the manifest declares.
    #[error("configuration has {actual} bytes, but the manifest declares {declared}")]
    ConfigSize {
        /// The length in bytes.
        actual: u64,
        /// The size in the manifest.
        declared: u64,
    },
    /// The configuration describes more or fewer layers than the manifest lists.
    #[error("configuration has {diff_ids} diff IDs, but the manifest has {layers} layers")]
    LayerCount {
        /// The number of diff IDs in the configuration.
        diff_ids: usize,
        /// The number of layers in the manifest.
        layers: usize,
    },
    /// The root filesystem in the configuration does not consist of layers.
    #[error("configuration has a root filesystem of type `{0}`, not `layers`")]
    RootfsType(String),
    /// The configuration is not a JSON object, or one of its fields has the wrong form.
    #[error("image configuration is not valid")]
    Config(#[source] serde_json::Error),
    /// The index has no manifest for the platform.
    #[error("no manifest for {requested}; available: {}", PlatformList(.available))]
    NoPlatform {
        /// The requested platform.
        requested: Platform,
        /// The platforms in the index.
        available: Vec<Platform>,
    },
}

impl ManifestError {
    /// Whether the document is sound but no image that can be used. An index may have another entry for the same platform: twins of
    /// images for lazy filesystems stand beside them, and not all are marked.
    #[must_use]
    pub fn is_of_no_image(&self) -> bool {
        matches!(self, Self::Artifact(_) | Self::LayerType { .. })
    }

    /// The stable code of this error.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::TooLong { .. }
            | Self::Html
            | Self::Json(_)
            | Self::Neither(_)
            | Self::Both
            | Self::SchemaVersion(_)
            | Self::Contradiction { .. }
            | Self::UnexpectedIndex
            | Self::UnexpectedManifest
            | Self::TooMany { .. }
            | Self::Size { .. }
            | Self::RootfsType(_)
            | Self::Config(_) => ErrorCode::Document,
            Self::Schema1 | Self::Artifact(_) | Self::EncryptedLayer { .. } | Self::LayerType { .. } => {
                ErrorCode::UnsupportedImage
            }
            Self::ConfigDigest(_) => ErrorCode::WrongContent,
            Self::ConfigSize { .. } | Self::LayerCount { .. } => ErrorCode::ImageMismatch,
            Self::NoPlatform { .. } => ErrorCode::NoPlatform,
        }
    }
}

/// Formats the platforms of an index for a message.
struct PlatformList<'a>(&'a [Platform]);

impl fmt::Display for PlatformList<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("none");
        }
        let texts: Vec<_> = self.0.iter().map(Platform::to_string).collect();
        f.write_str(&texts.join(", "))
    }
}

/// The kind of a document, by its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DocumentKind {
    /// Has a configuration and layers.
    Manifest,
    /// Has manifests.
    Index,
}

impl fmt::Display for DocumentKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Manifest => "manifest",
            Self::Index => "index",
        })
    }
}

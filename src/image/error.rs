//! Why a manifest, index or config is refused.

use std::fmt;

use super::{Digest, Platform};

/// Why a document is refused.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Longer than its limit.
    #[error("document of {size} bytes is longer than {limit}")]
    TooLong {
        /// Its length in bytes.
        size: u64,
        /// What is allowed.
        limit: u64,
    },
    /// A web page: a login form, a proxy's message.
    #[error("this is an HTML page, not a manifest")]
    Html,
    /// No JSON object, or one whose fields do not have the form they must have.
    #[error("manifest is not valid")]
    Json(#[from] serde_json::Error),
    /// JSON that is neither a manifest nor an index.
    #[error("document is neither an image manifest nor an index: it has {0}")]
    Neither(String),
    /// JSON that is both.
    #[error("document is a manifest and an index at once")]
    Both,
    /// Docker's manifest format before 2016.
    #[error("manifest has schema version 1, which is not supported")]
    Schema1,
    /// A schema version other than 1 and 2.
    #[error("manifest has schema version {0}, not 2")]
    SchemaVersion(u64),
    /// What it says to be, or was said to be, is not what it is.
    #[error("{kind} is declared as `{declared}`")]
    Contradiction {
        /// What the content is.
        kind: DocumentKind,
        /// The media type that does not fit.
        declared: String,
    },
    /// Its own media type and the announced one differ.
    #[error("manifest says that it is `{own}`, but came as `{announced}`")]
    AnnouncedOtherwise {
        /// The media type in the document.
        own: String,
        /// The media type of the response or the descriptor.
        announced: String,
    },
    /// No image: a Helm chart, a signature, an SBOM and the like.
    #[error("this is an artifact of type `{0}`, not an image")]
    Artifact(String),
    /// The layer needs a key.
    #[error("layer {digest} is encrypted (`{media_type}`)")]
    EncryptedLayer {
        /// The layer.
        digest: Digest,
        /// Its media type.
        media_type: String,
    },
    /// No layer type that is known.
    #[error("layer {digest} has the unknown media type `{media_type}`")]
    LayerType {
        /// The layer.
        digest: Digest,
        /// Its media type.
        media_type: String,
    },
    /// More entries than the limit.
    #[error("{count} {what} are more than {limit}")]
    TooMany {
        /// What there are too many of.
        what: &'static str,
        /// How many there are.
        count: usize,
        /// How many are allowed.
        limit: usize,
    },
    /// A size that nothing real has.
    #[error("{what} {digest} has a size of {size} bytes")]
    Size {
        /// Config, layer or manifest.
        what: &'static str,
        /// What the descriptor points at.
        digest: Digest,
        /// Its size.
        size: u64,
    },
    /// The configuration has another digest than the manifest declares.
    #[error("content has digest {0}")]
    ConfigDigest(Digest),
    /// The configuration has another size than the manifest declares.
    #[error("content has {actual} bytes, but the manifest declares {declared}")]
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
    /// The config's root filesystem is not made of layers.
    #[error("config has a root filesystem of type `{0}`, not `layers`")]
    RootfsType(String),
    /// The config is no JSON of the right form.
    #[error("image config is not valid")]
    Config(#[source] serde_json::Error),
    /// Nothing in the index is for the wanted platform.
    #[error("no manifest for {wanted}; there are {}", PlatformList(.offered))]
    NoPlatform {
        /// The platform asked for.
        wanted: Platform,
        /// What the index has.
        offered: Vec<Platform>,
    },
}

/// Writes the platforms of an index for a message.
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

/// What a document is by its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DocumentKind {
    /// Has a config and layers.
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

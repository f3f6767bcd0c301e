//! Names of images, and the documents that describe them. No I/O.

mod config;
mod descriptor;
mod digest;
mod document;
mod document_links;
mod error;
mod image_index;
mod limits;
mod manifest;
mod name;
mod platform;
mod reference;
mod refusal;
mod tree_key;
mod validated;

pub use config::ImageConfig;
pub use descriptor::{Compression, Descriptor, LayerMedia, media};
pub use digest::{DiffId, Digest, DigestError, LayerDigest, ManifestDigest};
pub use document::Document;
pub use document_links::DocumentLinks;
pub use error::{DocumentKind, ManifestError};
pub use image_index::ImageIndex;
pub use limits::{CONFIG_MAX, LAYERS_MAX, MANIFEST_MAX, TWINS_MAX};
pub use manifest::Manifest;
pub use name::{DOCKER_HUB, NAME_MAX, Name, TAG_MAX, Tag};
pub use platform::{Platform, PlatformError};
pub use reference::{Reference, ReferenceError};
pub use tree_key::TreeKey;
pub use validated::{Image, ImageLayer};

//! Names of images and their parts, and the documents that describe them: no I/O.

mod config;
mod descriptor;
mod digest;
mod error;
mod manifest;
mod name;
mod platform;
mod reference;
mod validated;

pub use config::{CONFIG_MAX, ImageConfig};
pub use descriptor::{Compression, Descriptor, LayerMedia, media};
pub use digest::{DiffId, Digest, DigestError, LayerDigest, ManifestDigest};
pub use error::{DocumentKind, ManifestError};
pub use manifest::{Document, ImageIndex, LAYERS_MAX, MANIFEST_MAX, Manifest};
pub use name::{DOCKER_HUB, NAME_MAX, Name, TAG_MAX, Tag};
pub use platform::{Platform, PlatformError};
pub use reference::{Reference, ReferenceError};
pub use validated::{Image, ImageLayer};

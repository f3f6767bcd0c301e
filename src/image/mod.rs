//! Names of images and their parts, and the documents that describe them: no I/O.

mod digest;

pub use digest::{DiffId, Digest, DigestError, LayerDigest, ManifestDigest};

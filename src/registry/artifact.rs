//! Small artifacts: documents in a repository, under a tag like an image.
//!
//! An artifact is a manifest with an empty configuration; each of its layers is a document (image-spec, manifest.md, "Guidelines for
//! Artifact Usage").

use std::fs::File;
use std::io::Write as _;
use std::sync::Arc;

use rustix::fs::MemfdFlags;
use serde::Deserialize;
use serde_json::json;

use super::{
    BlobSource, OutgoingBlob, OutgoingImage, OutgoingManifest, PushProgress, Registry, RegistryError,
    RemoteObject,
};
use crate::image::{Descriptor, Digest, ManifestDigest, ManifestError, Name, Reference, Tag, media};

/// The media type of an empty configuration.
const EMPTY_TYPE: &str = "application/vnd.oci.empty.v1+json";
/// The content of an empty configuration.
const EMPTY: &[u8] = b"{}";
/// Maximum number of documents of an artifact.
const DOCUMENTS_MAX: usize = 16;

/// An artifact of a registry. All digests are checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteArtifact {
    /// The digest of its manifest.
    pub digest: ManifestDigest,
    /// Its documents.
    pub documents: Vec<ArtifactDocument>,
}

/// A document of an artifact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArtifactDocument {
    /// Its media type.
    pub media_type: String,
    /// Its content.
    pub bytes: Vec<u8>,
}

impl RemoteArtifact {
    /// The content of the document of a media type.
    #[must_use]
    pub fn document(&self, media_type: &str) -> Option<&[u8]> {
        let document = self.documents.iter().find(|document| document.media_type == media_type);
        document.map(|document| document.bytes.as_slice())
    }
}

/// The fields of a manifest that matter here. Those of an index have no `layers`.
#[derive(Debug, Deserialize)]
struct ArtifactManifest {
    layers: Vec<Descriptor>,
}

impl Registry {
    /// Fetches an artifact whose documents have at most `limit` bytes each.
    ///
    /// # Errors
    ///
    /// See [`RegistryError`]; each error names the reference or the blob.
    pub async fn fetch_artifact(
        &self,
        reference: &Reference,
        limit: u64,
    ) -> Result<RemoteArtifact, RegistryError> {
        let object = RemoteObject::manifest(reference.clone());
        let fetched = self.document(&object, reference, parse_manifest).await?;
        let mut documents = Vec::new();
        for layer in &fetched.document.layers {
            let bytes = self.fetch_small(&reference.name, layer, limit).await?;
            documents.push(ArtifactDocument { media_type: layer.media_type.clone(), bytes });
        }
        Ok(RemoteArtifact { digest: fetched.digest, documents })
    }

    /// Sends an artifact, and sets each of `tags` in this order. Before that, its documents are complete. Returns the digest of its manifest.
    ///
    /// # Errors
    ///
    /// See [`RegistryError`]. A tag behind the one that could not be set is not changed.
    pub async fn push_artifact(
        &self,
        name: &Name,
        tags: &[Tag],
        artifact_type: &str,
        documents: &[ArtifactDocument],
    ) -> Result<ManifestDigest, RegistryError> {
        let config = ArtifactDocument { media_type: EMPTY_TYPE.to_owned(), bytes: EMPTY.to_vec() };
        let mut blobs = Vec::new();
        for document in [&config].into_iter().chain(documents) {
            blobs.push(outgoing(document)?);
        }
        let bytes = serde_json::to_vec(&json!({
            "schemaVersion": 2,
            "mediaType": media::OCI_MANIFEST,
            "artifactType": artifact_type,
            "config": blobs[0].descriptor,
            "layers": blobs[1..].iter().map(|blob| &blob.descriptor).collect::<Vec<_>>(),
        }))
        .expect("strings and numbers always serialize");
        let digest = ManifestDigest::new(Digest::of(&bytes));
        let top =
            OutgoingManifest { digest, media_type: media::OCI_MANIFEST.to_owned(), bytes: bytes.into() };
        for tag in tags {
            let image = OutgoingImage {
                name: name.clone(),
                tag: Some(tag.clone()),
                blobs: blobs.clone(),
                manifests: Vec::new(),
                top: top.clone(),
            };
            self.push(image, &PushProgress::new(|_| ())).await?;
        }
        Ok(digest)
    }
}

fn parse_manifest(bytes: &[u8], _announced: Option<&str>) -> Result<ArtifactManifest, ManifestError> {
    let manifest: ArtifactManifest = serde_json::from_slice(bytes)?;
    match manifest.layers.len() {
        count if count > DOCUMENTS_MAX => {
            Err(ManifestError::TooMany { items: "layers", count, limit: DOCUMENTS_MAX })
        }
        _ => Ok(manifest),
    }
}

/// A document as a blob. Blobs are read from files, so that the source of each can be read again.
fn outgoing(document: &ArtifactDocument) -> Result<OutgoingBlob, RegistryError> {
    let digest = Digest::of(&document.bytes);
    let in_memory = || {
        let mut file = File::from(rustix::fs::memfd_create("document", MemfdFlags::CLOEXEC)?);
        file.write_all(&document.bytes).map(|()| file)
    };
    let file = in_memory().map_err(|source| RegistryError::Read { blob: digest, source })?;
    Ok(OutgoingBlob {
        descriptor: Descriptor::new(&document.media_type, digest, document.bytes.len() as u64),
        source: BlobSource::File(Arc::new(file)),
        mount_from: None,
    })
}

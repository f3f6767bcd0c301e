//! Finds the files that the images of a store need.

use std::collections::HashSet;

use serde::Deserialize;

use super::Store;
use super::error::StoreError;
use crate::image::{Digest, LayerDigest, MANIFEST_MAX, ManifestDigest, Name, TreeKey};

/// What the images of a store need.
#[derive(Debug, Default)]
pub(super) struct MarkedFiles {
    /// All blobs.
    pub(super) blobs: HashSet<Digest>,
    /// The names of their tree images, without the suffix.
    pub(super) trees: HashSet<String>,
}

/// All fields of a manifest or an index that can refer to a blob.
#[derive(Deserialize)]
struct BlobReferences {
    config: Option<BlobReference>,
    layers: Option<Vec<BlobReference>>,
    manifests: Option<Vec<BlobReference>>,
    blobs: Option<Vec<BlobReference>>,
    subject: Option<BlobReference>,
}

#[derive(Deserialize)]
struct BlobReference {
    digest: String,
    #[serde(rename = "mediaType", default)]
    media_type: String,
}

impl Store {
    /// Returns the files of all images that `index.json` refers to, directly or through manifests, except those of the images in
    /// `without`. Adds missing manifests to `missing`.
    pub(super) fn mark(
        &self,
        without: &[(Name, ManifestDigest)],
        missing: &mut Vec<Digest>,
    ) -> Result<MarkedFiles, StoreError> {
        let MarkedFiles { blobs: mut marked, mut trees } = MarkedFiles::default();
        // The flag is true for a manifest that `index.json` lists, which should be in the store.
        let mut pending: Vec<(BlobReference, bool)> = Vec::new();
        for entry in self.entries()? {
            if without.iter().any(|(name, digest)| entry.matches(name, *digest)) {
                continue;
            }
            // Keeps the index itself, but does not follow it: only the manifest of the chosen platform is in the store.
            marked.extend(entry.index().map(|index| index.digest()));
            pending.push((BlobReference { digest: entry.digest, media_type: entry.media_type }, true));
        }
        let mut visited = HashSet::new();
        while let Some((reference, is_listed)) = pending.pop() {
            let Ok(digest) = reference.digest.parse::<Digest>() else { continue };
            marked.insert(digest);
            // Only JSON documents refer to other blobs. A descriptor without a media type may point to one.
            let is_document = reference.media_type.is_empty() || reference.media_type.ends_with("json");
            if !is_document || !visited.insert(digest) {
                continue;
            }
            let bytes = match self.read_small(&digest, MANIFEST_MAX) {
                Ok(bytes) => bytes,
                Err(StoreError::NoBlob { .. }) => {
                    missing.extend(is_listed.then_some(digest));
                    continue;
                }
                Err(error) => return Err(error),
            };
            let path = self.blob_path(&digest);
            let references: BlobReferences =
                serde_json::from_slice(&bytes).map_err(|source| StoreError::Json { path, source })?;
            if let Some(layers) = &references.layers {
                let layers = layers.iter().filter_map(|layer| layer.digest.parse().ok());
                trees.insert(TreeKey::of(layers.map(LayerDigest::new)).hex());
            }
            let lists = [references.layers, references.blobs].into_iter().flatten().flatten();
            let blobs = references.config.into_iter().chain(lists);
            marked.extend(blobs.filter_map(|blob| blob.digest.parse::<Digest>().ok()));
            let manifests = references.manifests.into_iter().flatten().chain(references.subject);
            pending.extend(manifests.map(|manifest| (manifest, false)));
        }
        Ok(MarkedFiles { blobs: marked, trees })
    }
}

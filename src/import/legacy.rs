//! Finds images in the archives of docker before version 1.10. Each layer has a directory `ID` with a file `json`, which names the
//! layer below, and a file `layer.tar`. The file `repositories` names the top layers.
//!
//! An image of that time has neither a configuration nor diff IDs. Both are generated: from the top layer's `json`, and from the
//! content of the layers.

use std::collections::{BTreeMap, HashMap};
use std::io::BufReader;

use serde::Deserialize;
use serde_json::{Value, json};
use sha2::Digest as _;

use super::docker::KnownFiles;
use super::files::ArchiveFiles;
use super::found::{ArchiveBlobs, RefusedImage, merge};
use super::{IMAGES_MAX, ImportError, ImportImage};
use crate::image::{
    CONFIG_MAX, Descriptor, DiffId, Digest, LAYERS_MAX, MANIFEST_MAX, Manifest, ManifestError, Reference,
    media,
};
use crate::layer::{SpanDecoder, SpanLimits};

/// The content of the file `repositories`: name, tag, ID of the top layer.
type Repositories = BTreeMap<String, BTreeMap<String, String>>;

/// The fields of a layer's `json` that matter here.
#[derive(Deserialize)]
struct LegacyLayer {
    #[serde(default)]
    parent: Option<String>,
}

/// Whether an archive is of that form.
pub(super) fn is_legacy(files: &ArchiveFiles) -> Result<bool, ImportError> {
    Ok(files.has("repositories")? || !layer_ids(files).is_empty())
}

/// The directories at the top of the archive that are layers.
fn layer_ids(files: &ArchiveFiles) -> Vec<String> {
    let is_layer = |id: &String| files.has(&format!("{id}/layer.tar")).unwrap_or(false);
    files.directories_with("json").into_iter().filter(is_layer).collect()
}

/// Returns all images and those that cannot be loaded. Adds the places of their blobs to `blobs`.
pub(super) fn images(
    files: &ArchiveFiles,
    blobs: &mut ArchiveBlobs,
) -> Result<(Vec<ImportImage>, Vec<RefusedImage>), ImportError> {
    let mut layers = LegacyLayers { files, known: KnownFiles::default(), diff_ids: HashMap::new() };
    let mut images = Vec::new();
    let mut refused = Vec::new();
    for (id, names) in layers.tops()? {
        let label = names.first().map_or_else(|| id.clone(), Reference::to_string);
        match layers.image(&id, names, blobs) {
            Ok(image) => merge(&mut images, image),
            Err(error) => refused.push(RefusedImage::new(label, error)),
        }
    }
    Ok((images, refused))
}

/// The layers of an archive, each of which is read only once.
struct LegacyLayers<'a> {
    files: &'a ArchiveFiles,
    known: KnownFiles,
    diff_ids: HashMap<String, DiffId>,
}

impl LegacyLayers<'_> {
    /// The IDs of the top layers, each with its names: those in `repositories`, and those above which no other layer is.
    fn tops(&self) -> Result<BTreeMap<String, Vec<Reference>>, ImportError> {
        let file = "repositories".to_owned();
        let repositories: Repositories = match self.files.read_document(&file, MANIFEST_MAX)? {
            Some(bytes) => {
                serde_json::from_slice(&bytes).map_err(|source| ImportError::Json { file, source })?
            }
            None => Repositories::new(),
        };
        let mut tops: BTreeMap<String, Vec<Reference>> = BTreeMap::new();
        for (name, tags) in repositories {
            for (tag, id) in tags {
                let names = tops.entry(id).or_default();
                match Reference::from_archive(&format!("{name}:{tag}")) {
                    Ok(name) => names.push(name),
                    Err(error) => tracing::warn!(%error, "ignoring an invalid image name"),
                }
            }
        }
        let ids = layer_ids(self.files);
        let parents: Vec<String> = ids.iter().filter_map(|id| self.json(id).ok()?.1.parent).collect();
        for id in ids {
            if !parents.contains(&id) {
                tops.entry(id).or_default();
            }
        }
        if tops.len() > IMAGES_MAX {
            return Err(ImportError::TooMany { what: "images", limit: IMAGES_MAX });
        }
        Ok(tops)
    }

    /// Reads a layer's `json`, as a whole and its important fields.
    fn json(&self, id: &str) -> Result<(Value, LegacyLayer), ImportError> {
        let file = format!("{id}/json");
        let bytes = self.files.read_document(&file, CONFIG_MAX)?;
        let bytes = bytes.ok_or_else(|| ImportError::Missing(file.clone()))?;
        let parsed = || -> serde_json::Result<_> {
            Ok((serde_json::from_slice(&bytes)?, serde_json::from_slice(&bytes)?))
        };
        parsed().map_err(|source| ImportError::Json { file, source })
    }

    fn image(
        &mut self,
        top: &str,
        names: Vec<Reference>,
        blobs: &mut ArchiveBlobs,
    ) -> Result<ImportImage, ImportError> {
        let (mut config, _) = self.json(top)?;
        let mut ids = Vec::new();
        let mut next = Some(top.to_owned());
        while let Some(id) = next {
            next = self.json(&id)?.1.parent.filter(|parent| !parent.is_empty());
            ids.push(id);
            // Also ends a circle of layers.
            if ids.len() > LAYERS_MAX {
                let (items, count, limit) = ("layers", ids.len(), LAYERS_MAX);
                return Err(ImportError::document(top, ManifestError::TooMany { items, count, limit }));
            }
        }
        let (mut layers, mut diff_ids) = (Vec::new(), Vec::new());
        for id in ids.iter().rev() {
            let path = format!("{id}/layer.tar");
            let diff_id = match self.diff_ids.get(id) {
                Some(known) => *known,
                None => diff_id(self.files, &path)?,
            };
            self.diff_ids.insert(id.clone(), diff_id);
            let descriptor = self.known.layer(self.files, &path, diff_id)?;
            blobs.add_path(descriptor.digest, &path);
            layers.push(descriptor);
            diff_ids.push(diff_id);
        }
        let fields = config.as_object_mut();
        if let Some(fields) = fields {
            // These describe the top layer, and not the image.
            for field in ["id", "parent", "layer_id", "Size", "throwaway"] {
                fields.remove(field);
            }
            fields.insert("rootfs".to_owned(), json!({"type": "layers", "diff_ids": diff_ids}));
        }
        let bytes = config.to_string().into_bytes();
        let size = bytes.len() as u64;
        let descriptor = Descriptor::new(media::OCI_CONFIG, blobs.add_document(bytes), size);
        let manifest =
            Manifest::new(descriptor, layers).map_err(|source| ImportError::document(top, source))?;
        Ok(ImportImage::generated(manifest, names))
    }
}

/// Computes the digest of a layer's tar.
fn diff_id(files: &ArchiveFiles, path: &str) -> Result<DiffId, ImportError> {
    let file = files.file(path)?.ok_or_else(|| ImportError::Missing(path.to_owned()))?;
    let failed = |error| ImportError::Read { file: path.to_owned(), source: std::io::Error::other(error) };
    let mut decoder =
        SpanDecoder::new(BufReader::with_capacity(1 << 20, file), SpanLimits::PRODUCTION).map_err(failed)?;
    let mut hash = sha2::Sha256::new();
    while let Some(span) = decoder.next_span().map_err(failed)? {
        hash.update(&span.bytes);
        decoder.recycle(span.bytes);
    }
    Ok(DiffId::new(Digest::new(hash.finalize().into())))
}

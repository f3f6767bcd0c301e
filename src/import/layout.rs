//! Images of an OCI layout (image-spec, image-layout.md). Current `docker save` archives are layouts, too.
//!
//! The names of images are annotations. Some tools write a full reference to `org.opencontainers.image.ref.name`, others
//! only a tag. docker writes the tag to that annotation, and the full name to another one and to a manifest.json in its
//! older format.

use std::collections::HashMap;

use serde::Deserialize;

use super::files::ArchiveFiles;
use super::{IMAGES_MAX, ImportError, ImportImage, docker};
use crate::image::{
    Descriptor, Digest, Document, ImageIndex, MANIFEST_MAX, ManifestDigest, ManifestError, Platform,
    Reference, Tag,
};
use crate::registry::ResolvedIndex;

/// Name or tag of an image (image-spec, annotations.md).
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// Full name of an image, written by containerd and docker in addition.
const IMAGE_NAME: &str = "io.containerd.image.name";

/// Deepest nesting of indexes, not counting index.json itself.
const INDEX_DEPTH_MAX: usize = 4;

/// Longest index.json, in bytes. It has one entry for each image of the layout.
const INDEX_MAX: u64 = MANIFEST_MAX;

/// The file `oci-layout`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct LayoutFile {
    image_layout_version: String,
}

/// Returns all images for `platform`.
pub(super) fn images(files: &ArchiveFiles, platform: &Platform) -> Result<Vec<ImportImage>, ImportError> {
    check_version(files)?;
    let bytes = files
        .read_document("index.json", INDEX_MAX)?
        .ok_or_else(|| ImportError::Missing("index.json".to_owned()))?;
    let index = match Document::parse(&bytes, None) {
        Ok(Document::Index(index)) => index,
        Ok(Document::Manifest(_)) => {
            return Err(ImportError::document("index.json", ManifestError::UnexpectedManifest));
        }
        Err(source) => return Err(ImportError::document("index.json", source)),
    };
    let docker_names = docker::names_by_config(files)?;
    let mut images: Vec<ImportImage> = Vec::new();
    let mut artifact = None;
    let entries = image_entries(&index, platform)?;
    if entries.len() > IMAGES_MAX {
        return Err(ImportError::TooMany { what: "images", limit: IMAGES_MAX });
    }
    for entry in entries {
        let image = match resolve(files, &entry, platform) {
            Ok(image) => image,
            // A layout may contain artifacts such as signatures beside its images.
            Err(ImportError::Document { document, source })
                if matches!(*source, ManifestError::Artifact(_)) =>
            {
                tracing::info!(digest = %entry.digest, "ignoring an artifact that is not an image");
                artifact = Some(ImportError::Document { document, source });
                continue;
            }
            Err(error) => return Err(error),
        };
        docker::merge(&mut images, with_names(image, &entry, &docker_names));
    }
    match artifact {
        Some(error) if images.is_empty() => Err(error),
        _ => Ok(images),
    }
}

fn check_version(files: &ArchiveFiles) -> Result<(), ImportError> {
    let bytes = files.read_document("oci-layout", MANIFEST_MAX)?.unwrap_or_default();
    let layout: LayoutFile = serde_json::from_slice(&bytes)
        .map_err(|source| ImportError::Json { file: "oci-layout".to_owned(), source })?;
    if layout.image_layout_version == "1.0.0" {
        Ok(())
    } else {
        Err(ImportError::LayoutVersion(layout.image_layout_version))
    }
}

/// Returns one entry for each image. If several entries have the same name and different platforms, the best match for
/// `platform` is chosen.
fn image_entries(index: &ImageIndex, platform: &Platform) -> Result<Vec<Descriptor>, ImportError> {
    let candidates = index
        .manifests()
        .iter()
        .filter(|entry| (entry.is_manifest() || entry.is_index()) && !entry.is_attestation());
    let mut groups: Vec<Vec<&Descriptor>> = Vec::new();
    for entry in candidates {
        let is_same_image = |group: &&mut Vec<&Descriptor>| {
            let other = group[0];
            other.platform.is_some()
                && entry.platform.is_some()
                && other.platform != entry.platform
                && [REF_NAME, IMAGE_NAME].iter().all(|key| other.annotation(key) == entry.annotation(key))
        };
        match groups.iter_mut().find(is_same_image) {
            Some(group) => group.push(entry),
            None => groups.push(vec![entry]),
        }
    }
    let chosen = groups.into_iter().map(|group| match group.as_slice() {
        // Nothing to choose from. The caller compares the image's configuration with the platform.
        [only] => Ok((*only).clone()),
        several => {
            let platforms = || several.iter().filter_map(|entry| entry.platform.as_ref());
            let position = platform.choose(platforms()).ok_or_else(|| {
                let (requested, available) = (platform.clone(), platforms().cloned().collect());
                ImportError::document("index.json", ManifestError::NoPlatform { requested, available })
            })?;
            Ok(several[position].clone())
        }
    });
    chosen.collect()
}

/// Reads the manifest of an entry, through nested indexes.
fn resolve(
    files: &ArchiveFiles,
    entry: &Descriptor,
    platform: &Platform,
) -> Result<ImportImage, ImportError> {
    let mut entry = entry.clone();
    let mut index = None;
    for _ in 0..=INDEX_DEPTH_MAX {
        let bytes = files.read_blob(&entry.digest, MANIFEST_MAX)?;
        let invalid = |source| ImportError::document(entry.digest, source);
        let actual = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        if actual != entry.size {
            return Err(ImportError::BlobSize { digest: entry.digest, expected: entry.size, actual });
        }
        match Document::parse(&bytes, Some(&entry.media_type)).map_err(invalid)? {
            Document::Manifest(manifest) => {
                return Ok(ImportImage {
                    names: Vec::new(),
                    tags: Vec::new(),
                    manifest_digest: ManifestDigest::new(entry.digest),
                    media_type: manifest.media_type().to_owned(),
                    manifest,
                    manifest_bytes: bytes,
                    index,
                });
            }
            Document::Index(nested) => {
                let next = nested.choose(platform).map_err(invalid)?.clone();
                let media_type = nested.media_type().to_owned();
                let digest = ManifestDigest::new(entry.digest);
                index.get_or_insert(ResolvedIndex { digest, bytes, media_type });
                entry = next;
            }
        }
    }
    let (count, limit) = (INDEX_DEPTH_MAX + 1, INDEX_DEPTH_MAX);
    Err(ImportError::document(entry.digest, ManifestError::TooMany { items: "nested indexes", count, limit }))
}

/// Adds the names from docker's manifest.json or, without any, from the entry's annotations.
fn with_names(
    mut image: ImportImage,
    entry: &Descriptor,
    docker_names: &HashMap<Digest, Vec<Reference>>,
) -> ImportImage {
    if let Some(names) = docker_names.get(&image.manifest.config().digest) {
        image.names.clone_from(names);
        return image;
    }
    let (full, reference) = (entry.annotation(IMAGE_NAME), entry.annotation(REF_NAME));
    for text in full.into_iter().chain(reference.filter(|_| full.is_none())) {
        match (text.contains(['/', ':', '@']), Reference::from_archive(text), text.parse::<Tag>()) {
            (true, Ok(name), _) => image.names.push(name),
            (false, _, Ok(tag)) => image.tags.push(tag),
            (true, Err(error), _) | (false, _, Err(error)) => {
                tracing::warn!(%error, digest = %image.manifest_digest, "ignoring an invalid image name");
            }
        }
    }
    image
}

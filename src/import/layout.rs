//! Images of an OCI layout (image-spec, image-layout.md), which a `docker save` archive of today is too.
//!
//! Names stand in annotations. `org.opencontainers.image.ref.name` is a full reference by some tools and only a tag by
//! others; docker writes the tag there and the name elsewhere, and in a manifest.json of its older form beside it.

use std::collections::HashMap;

use serde::Deserialize;

use super::archive::Files;
use super::{ImportError, ImportImage, docker};
use crate::image::{
    Descriptor, Digest, Document, ImageIndex, MANIFEST_MAX, ManifestDigest, ManifestError, Platform,
    Reference, Tag,
};
use crate::registry::ResolvedIndex;

/// Name or tag of an image (image-spec, annotations.md).
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// The full name that containerd and docker write beside it.
const IMAGE_NAME: &str = "io.containerd.image.name";

/// Deepest nesting of indexes that is followed, the layout's own not counted.
const INDEX_DEPTH_MAX: usize = 4;

/// Longest index.json, in bytes: a store's has an entry for each of its images.
const INDEX_MAX: u64 = MANIFEST_MAX;

/// Finds all images.
pub(super) fn images(files: &Files, platform: &Platform) -> Result<Vec<ImportImage>, ImportError> {
    check_version(files)?;
    let bytes =
        files.small("index.json", INDEX_MAX)?.ok_or_else(|| ImportError::Missing("index.json".to_owned()))?;
    let index = match Document::parse(&bytes, None) {
        Ok(Document::Index(index)) => index,
        Ok(Document::Manifest(_)) => {
            let what = "a config and layers where an index should be".to_owned();
            return Err(ImportError::document("index.json", ManifestError::Neither(what)));
        }
        Err(source) => return Err(ImportError::document("index.json", source)),
    };
    let docker_names = docker::names_by_config(files)?;
    let mut images: Vec<ImportImage> = Vec::new();
    let mut artifact = None;
    for entry in entries(&index, platform)? {
        let image = match resolve(files, &entry, platform) {
            Ok(image) => image,
            // Signatures and the like may stand beside an image, but are none.
            Err(ImportError::Document { what, source }) if matches!(*source, ManifestError::Artifact(_)) => {
                tracing::info!(digest = %entry.digest, "passing over an artifact");
                artifact = Some(ImportError::Document { what, source });
                continue;
            }
            Err(error) => return Err(error),
        };
        merge(&mut images, name(image, &entry, &docker_names));
    }
    match artifact {
        Some(error) if images.is_empty() => Err(error),
        _ => Ok(images),
    }
}

fn check_version(files: &Files) -> Result<(), ImportError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Layout {
        image_layout_version: String,
    }
    let bytes = files.small("oci-layout", MANIFEST_MAX)?.unwrap_or_default();
    let layout: Layout = serde_json::from_slice(&bytes)
        .map_err(|source| ImportError::Json { what: "oci-layout".to_owned(), source })?;
    if layout.image_layout_version == "1.0.0" {
        Ok(())
    } else {
        Err(ImportError::LayoutVersion(layout.image_layout_version))
    }
}

/// The entries that stand for an image each. Of several with one name, for different platforms, the best fit is taken.
fn entries(index: &ImageIndex, platform: &Platform) -> Result<Vec<Descriptor>, ImportError> {
    let possible = index
        .manifests()
        .iter()
        .filter(|entry| (entry.is_manifest() || entry.is_index()) && !entry.is_attestation());
    let mut groups: Vec<Vec<&Descriptor>> = Vec::new();
    for entry in possible {
        let same = |group: &&mut Vec<&Descriptor>| {
            let other = group[0];
            other.platform.is_some()
                && entry.platform.is_some()
                && other.platform != entry.platform
                && [REF_NAME, IMAGE_NAME].iter().all(|key| other.annotation(key) == entry.annotation(key))
        };
        match groups.iter_mut().find(same) {
            Some(group) => group.push(entry),
            None => groups.push(vec![entry]),
        }
    }
    let chosen = groups.into_iter().map(|group| match group.as_slice() {
        // One image is taken as it is: its platform is for whoever loads it to know.
        [only] => Ok((*only).clone()),
        several => {
            let platforms = || several.iter().filter_map(|entry| entry.platform.as_ref());
            let position = platform.choose(platforms()).ok_or_else(|| {
                let (wanted, offered) = (platform.clone(), platforms().cloned().collect());
                ImportError::document("index.json", ManifestError::NoPlatform { wanted, offered })
            })?;
            Ok(several[position].clone())
        }
    });
    chosen.collect()
}

/// Follows an entry to its manifest, through nested indexes.
fn resolve(files: &Files, entry: &Descriptor, platform: &Platform) -> Result<ImportImage, ImportError> {
    let mut entry = entry.clone();
    let mut index = None;
    for _ in 0..=INDEX_DEPTH_MAX {
        let bytes = files.small_blob(&entry.digest, MANIFEST_MAX)?;
        let wrong = |source| ImportError::document(entry.digest, source);
        let found = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        if found != entry.size {
            return Err(ImportError::BlobSize { digest: entry.digest, wanted: entry.size, found });
        }
        match Document::parse(&bytes, Some(&entry.media_type)).map_err(wrong)? {
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
                let next = nested.choose(platform).map_err(wrong)?.clone();
                let media_type = nested.media_type().to_owned();
                let digest = ManifestDigest::new(entry.digest);
                index.get_or_insert(ResolvedIndex { digest, bytes, media_type });
                entry = next;
            }
        }
    }
    let (count, limit) = (INDEX_DEPTH_MAX + 1, INDEX_DEPTH_MAX);
    Err(ImportError::document(entry.digest, ManifestError::TooMany { what: "nested indexes", count, limit }))
}

/// Adds what an entry and docker's own list call an image.
fn name(
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
        match (text.contains(['/', ':', '@']), Reference::given(text), text.parse::<Tag>()) {
            (true, Ok(name), _) => image.names.push(name),
            (false, _, Ok(tag)) => image.tags.push(tag),
            (true, Err(error), _) | (false, _, Err(error)) => {
                tracing::warn!(%error, digest = %image.manifest_digest, "passing over a name");
            }
        }
    }
    image
}

/// One image may stand there once for each of its names.
fn merge(images: &mut Vec<ImportImage>, image: ImportImage) {
    match images.iter_mut().find(|other| other.manifest_digest == image.manifest_digest) {
        Some(other) => {
            other.names.extend(image.names);
            other.tags.extend(image.tags);
            let mut seen = std::collections::HashSet::new();
            other.names.retain(|name| seen.insert(name.to_string()));
            other.tags.sort();
            other.tags.dedup();
        }
        None => images.push(image),
    }
}

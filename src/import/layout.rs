//! Images of an OCI layout (image-spec, image-layout.md). Current `docker save` archives are layouts, too.
//!
//! The names of images are annotations. Some tools write a full reference to `org.opencontainers.image.ref.name`, others
//! only a tag. docker writes the tag to that annotation, and the full name to another one and to a manifest.json in its
//! older format.

use serde::Deserialize;

use super::files::ArchiveFiles;
use super::found::{RefusedImage, merge};
use super::{IMAGES_MAX, ImportError, ImportImage};
use crate::image::{
    Descriptor, Document, ImageIndex, MANIFEST_MAX, ManifestDigest, ManifestError, Platform, Reference,
    TWINS_MAX, Tag,
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

/// The images of a layout.
#[derive(Default)]
pub(super) struct LayoutImages {
    pub(super) images: Vec<ImportImage>,
    /// The images that cannot be loaded.
    pub(super) refused: Vec<RefusedImage>,
}

/// Returns all images for `platform`.
pub(super) fn images(files: &ArchiveFiles, platform: &Platform) -> Result<LayoutImages, ImportError> {
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
    let mut found = LayoutImages::default();
    let mut artifact = None;
    let groups = image_groups(&index);
    if groups.len() > IMAGES_MAX {
        return Err(ImportError::TooMany { what: "images", limit: IMAGES_MAX });
    }
    for group in groups {
        let entry = group[0];
        let image = choose(&group, platform).and_then(|entry| resolve(files, entry, platform));
        match image {
            Ok(image) => merge(&mut found.images, with_names(image, entry)),
            // A layout may contain artifacts such as signatures beside its images.
            Err(ImportError::Document { document, source })
                if matches!(*source, ManifestError::Artifact(_) | ManifestError::LayerType { .. }) =>
            {
                tracing::warn!("ignoring {}, which is not an image: {source}", entry.digest);
                artifact = Some(ImportError::Document { document, source });
            }
            Err(error) => {
                let (names, tags) = names_of(entry);
                let label = match (names.first(), tags.first()) {
                    (Some(name), _) => name.to_string(),
                    (None, Some(tag)) => format!("{} (tagged {tag})", entry.digest),
                    (None, None) => entry.digest.to_string(),
                };
                found.refused.push(RefusedImage { label, error, names });
            }
        }
    }
    match artifact {
        Some(error) if found.images.is_empty() && found.refused.is_empty() => Err(error),
        _ => Ok(found),
    }
}

/// Checks the version of the layout. Some tools do not write it.
fn check_version(files: &ArchiveFiles) -> Result<(), ImportError> {
    let Some(bytes) = files.read_document("oci-layout", MANIFEST_MAX)? else { return Ok(()) };
    let layout: LayoutFile = serde_json::from_slice(&bytes)
        .map_err(|source| ImportError::Json { file: "oci-layout".to_owned(), source })?;
    if layout.image_layout_version.starts_with("1.") {
        Ok(())
    } else {
        Err(ImportError::LayoutVersion(layout.image_layout_version))
    }
}

/// Returns the entries of each image: those with the same name and different platforms.
fn image_groups(index: &ImageIndex) -> Vec<Vec<&Descriptor>> {
    let mut groups: Vec<Vec<&Descriptor>> = Vec::new();
    for entry in index.manifests().iter().filter(|entry| entry.may_be_image()) {
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
    groups
}

/// Returns the best match for a platform among the entries of an image.
fn choose<'a>(group: &[&'a Descriptor], platform: &Platform) -> Result<&'a Descriptor, ImportError> {
    // With nothing to choose from, the caller compares the image's configuration with the platform.
    if let [only] = group {
        return Ok(only);
    }
    let platforms = || group.iter().filter_map(|entry| entry.platform.as_ref());
    let position = platform.choose(platforms()).ok_or_else(|| {
        let (requested, available) = (platform.clone(), platforms().cloned().collect());
        ImportError::document("index.json", ManifestError::NoPlatform { requested, available })
    })?;
    Ok(group[position])
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
                let next = choose_nested(files, &nested, platform).map_err(invalid)?;
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

/// Returns the entry of a nested index for a platform; if that is no image, the next best entry.
fn choose_nested(
    files: &ArchiveFiles,
    index: &ImageIndex,
    platform: &Platform,
) -> Result<Descriptor, ManifestError> {
    let first = index.choose(platform)?;
    let is_image = |entry: &Descriptor| match files.read_blob(&entry.digest, MANIFEST_MAX) {
        Ok(bytes) => {
            !Document::parse(&bytes, Some(&entry.media_type)).is_err_and(|error| error.is_of_no_image())
        }
        // The caller reports the error.
        Err(_) => true,
    };
    let (mut entry, mut others) = (first.clone(), index.clone());
    for _ in 0..=TWINS_MAX {
        if is_image(&entry) {
            return Ok(entry);
        }
        others = others.without(&entry.digest);
        let Ok(next) = others.choose(platform) else { break };
        entry = next.clone();
    }
    Ok(first.clone())
}

/// Adds the names and tags in an entry's annotations.
fn with_names(image: ImportImage, entry: &Descriptor) -> ImportImage {
    let (names, tags) = names_of(entry);
    ImportImage { names, tags, ..image }
}

/// The valid full names of an entry, and its tags without a name.
fn names_of(entry: &Descriptor) -> (Vec<Reference>, Vec<Tag>) {
    let (mut names, mut tags) = (Vec::new(), Vec::new());
    let (full, reference) = (entry.annotation(IMAGE_NAME), entry.annotation(REF_NAME));
    for text in full.into_iter().chain(reference.filter(|_| full.is_none())) {
        match (text.contains(['/', ':', '@']), Reference::from_archive(text), text.parse::<Tag>()) {
            (true, Ok(name), _) => names.push(name),
            (false, _, Ok(tag)) => tags.push(tag),
            (true, Err(error), _) | (false, _, Err(error)) => {
                tracing::warn!(%error, digest = %entry.digest, "ignoring an invalid image name");
            }
        }
    }
    (names, tags)
}

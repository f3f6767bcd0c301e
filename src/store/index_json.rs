//! The file `index.json`: the descriptors of all images, and those that other tools add.
//!
//! An image has one descriptor per tag, or a single one if it has no tag. Annotations hold its name:
//!
//! - `org.opencontainers.image.ref.name` = `NAME:TAG`, canonical (image-spec, annotations.md). Other tools read this one. It
//!   is absent if the image has no tag.
//! - `io.rcx-imagefs.name` = `NAME`, canonical. It keeps the name of an image that lost its tag.
//! - `io.rcx-imagefs.index` = digest of the multi-platform index from which the manifest was chosen.
//!
//! If the first annotation is present, it takes precedence: other tools copy and rewrite descriptors and know only that one.
//! Descriptors that cannot be parsed as images are kept unchanged.

use std::collections::BTreeMap;

use rustix::io::Errno;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use super::dir::{Dir, read_bounded};
use super::error::StoreError;
use super::layout::INDEX_JSON;
use crate::image::{Descriptor, ManifestDigest, Name, Platform, Reference, Tag};
use crate::os::PathError;

/// Largest `index.json` that is read, in bytes: room for some hundred thousand tags.
const INDEX_JSON_LIMIT: u64 = 64 << 20;
const REF_NAME: &str = "org.opencontainers.image.ref.name";
const NAME: &str = "io.rcx-imagefs.name";
const PLATFORM: &str = "platform";
const INDEX: &str = "io.rcx-imagefs.index";

/// The whole file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct IndexJson {
    #[serde(rename = "schemaVersion")]
    schema_version: u32,
    #[serde(deserialize_with = "list_or_null")]
    manifests: Vec<IndexJsonEntry>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// One descriptor.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct IndexJsonEntry {
    #[serde(rename = "mediaType", default)]
    pub(super) media_type: String,
    /// Kept as text, since other tools may use other hash algorithms.
    pub(super) digest: String,
    pub(super) size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    annotations: Option<BTreeMap<String, String>>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// Reads a list, or `null`, which Go writes for an empty list.
fn list_or_null<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<IndexJsonEntry>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

impl IndexJson {
    /// Reads the file. A damaged or missing file is an error, never an empty list: `gc` would remove every blob.
    pub(super) fn read(root: &Dir) -> Result<Self, StoreError> {
        let path = root.path_of(INDEX_JSON);
        let Some(file) = root.file(INDEX_JSON)? else {
            return Err(PathError::new("open", path, Errno::NOENT).into());
        };
        let bytes = read_bounded(&file, &path, INDEX_JSON_LIMIT)?;
        serde_json::from_slice(&bytes).map_err(|source| StoreError::Json { path, source })
    }

    /// All descriptors, in the file's order.
    pub(super) fn into_entries(self) -> Vec<IndexJsonEntry> {
        self.manifests
    }

    /// Adds an image, or updates its descriptor. The caller must first [remove](Self::remove_tag) the tag from
    /// all other images.
    pub(super) fn add(
        &mut self,
        name: &Name,
        tag: Option<&Tag>,
        manifest: &Descriptor,
        index: Option<ManifestDigest>,
    ) {
        let digest = ManifestDigest::from(manifest);
        let accepts_tag = |entry: &IndexJsonEntry| match tag {
            // The entry of this tag, or an entry without a tag, which then receives this tag.
            Some(tag) => entry.has_tag(name, tag) || entry.annotation(REF_NAME).is_none(),
            None => true,
        };
        let existing =
            self.manifests.iter().position(|entry| entry.matches(name, digest) && accepts_tag(entry));
        let position = existing.unwrap_or_else(|| {
            self.manifests.push(IndexJsonEntry { digest: digest.to_string(), ..IndexJsonEntry::default() });
            self.manifests.len() - 1
        });
        let entry = &mut self.manifests[position];
        entry.media_type.clone_from(&manifest.media_type);
        entry.size = manifest.size;
        if let Some(platform) = &manifest.platform {
            let value = serde_json::to_value(platform).expect("a struct of strings serializes to JSON");
            entry.rest.insert(PLATFORM.to_owned(), value);
        }
        entry.set(NAME, name.as_str());
        if let Some(tag) = tag {
            entry.set(REF_NAME, &format!("{name}:{tag}"));
        }
        if let Some(index) = index {
            entry.set(INDEX, &index.to_string());
        }
    }

    /// Removes a tag from every digest but `except`. Each digest keeps an entry with the name.
    ///
    /// Returns the digest that had the tag.
    pub(super) fn remove_tag(
        &mut self,
        name: &Name,
        tag: &Tag,
        except: Option<ManifestDigest>,
    ) -> Option<ManifestDigest> {
        let mut tagged = None;
        let mut position = 0;
        while position < self.manifests.len() {
            let digest = self.manifests[position].digest.parse().ok();
            if !self.manifests[position].has_tag(name, tag) || (except.is_some() && digest == except) {
                position += 1;
                continue;
            }
            tagged = tagged.or(digest);
            let mut others = self.manifests.iter().enumerate().filter(|&(other, _)| other != position);
            if digest.is_some_and(|digest| others.any(|(_, entry)| entry.matches(name, digest))) {
                self.manifests.remove(position);
            } else {
                self.manifests[position].unset(REF_NAME);
                self.manifests[position].set(NAME, name.as_str());
                position += 1;
            }
        }
        tagged
    }

    /// Whether an image has a tag.
    pub(super) fn is_tagged(&self, name: &Name, digest: ManifestDigest) -> bool {
        let tagged = |entry: &IndexJsonEntry| entry.identity().is_some_and(|(_, tag)| tag.is_some());
        self.manifests.iter().any(|entry| entry.matches(name, digest) && tagged(entry))
    }

    /// Removes all entries of an image; returns whether it had any.
    pub(super) fn remove(&mut self, name: &Name, digest: ManifestDigest) -> bool {
        let before = self.manifests.len();
        self.manifests.retain(|entry| !entry.matches(name, digest));
        self.manifests.len() < before
    }
}

impl IndexJsonEntry {
    fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.as_ref()?.get(key).map(String::as_str)
    }

    fn set(&mut self, key: &str, value: &str) {
        self.annotations.get_or_insert_default().insert(key.to_owned(), value.to_owned());
    }

    fn unset(&mut self, key: &str) {
        if let Some(annotations) = &mut self.annotations {
            annotations.remove(key);
        }
    }

    /// The digest of the multi-platform index from which the manifest was chosen.
    pub(super) fn index(&self) -> Option<ManifestDigest> {
        self.annotation(INDEX)?.parse().ok()
    }

    /// The platform; `None` if it is absent or malformed.
    pub(super) fn platform(&self) -> Option<Platform> {
        self.rest.get(PLATFORM).and_then(|value| serde_json::from_value(value.clone()).ok())
    }

    /// The name and the tag; `None` if the entry has no valid name.
    pub(super) fn identity(&self) -> Option<(Name, Option<Tag>)> {
        match self.annotation(REF_NAME).and_then(|text| Reference::from_archive(text).ok()) {
            // `NAME@DIGEST` has no tag. A name alone means its tag `latest`.
            Some(reference) if reference.digest.is_some() => Some((reference.name, reference.tag)),
            Some(reference) => Some((reference.name.clone(), Some(reference.tag_or_latest()))),
            None => Some((Name::from_archive(self.annotation(NAME)?).ok()?, None)),
        }
    }

    pub(super) fn matches(&self, name: &Name, digest: ManifestDigest) -> bool {
        self.digest.parse() == Ok(digest) && self.identity().is_some_and(|(own_name, _)| own_name == *name)
    }

    fn has_tag(&self, name: &Name, tag: &Tag) -> bool {
        self.identity().is_some_and(|(own_name, own_tag)| own_name == *name && own_tag.as_ref() == Some(tag))
    }
}

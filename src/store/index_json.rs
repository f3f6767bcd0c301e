//! The file `index.json`: one descriptor for each image and tag, and whatever other tools put there.
//!
//! Each image has one descriptor per tag, or one without a tag. Annotations tell what it is:
//!
//! - `org.opencontainers.image.ref.name` = `NAME:TAG`, in the canonical form (image-spec, annotations.md): what other
//!   tools go by; absent where there is no tag.
//! - `io.rcx-imagefs.name` = `NAME`, canonical: keeps the name of an image that has lost its tag.
//! - `io.rcx-imagefs.index` = digest of the multi-platform index that the manifest was chosen from.
//!
//! Where the first is there, it decides, since other tools copy or rewrite descriptors and know only that one. What does
//! not read as an image of ours is kept as it is.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use super::dir::{Dir, read_bounded};
use super::error::StoreError;
use super::layout::INDEX_JSON;
use crate::image::{Descriptor, ManifestDigest, Name, Platform, Reference, Tag};

/// Bytes of `index.json` that are read: some hundred thousand tags.
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
    manifests: Vec<Entry>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// One descriptor.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Entry {
    #[serde(rename = "mediaType", default)]
    pub(super) media_type: String,
    /// Not parsed on reading: other algorithms are other tools' business.
    pub(super) digest: String,
    pub(super) size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    annotations: Option<BTreeMap<String, String>>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// Go writes an empty list as `null`.
fn list_or_null<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Entry>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

impl IndexJson {
    /// Reads the file of a layout. A damaged or missing one is an error, never an empty list: gc would free everything.
    pub(super) fn read(root: &Dir) -> Result<Self, StoreError> {
        let path = root.path_of(INDEX_JSON);
        let Some(file) = root.file(INDEX_JSON)? else {
            return Err(StoreError::io("open", &path, std::io::ErrorKind::NotFound.into()));
        };
        let bytes = read_bounded(&file, &path, INDEX_JSON_LIMIT)?;
        serde_json::from_slice(&bytes).map_err(|source| StoreError::Json { path, source })
    }

    /// All descriptors, in the file's order.
    pub(super) fn into_entries(self) -> Vec<Entry> {
        self.manifests
    }

    /// Enters a manifest; the tag must have been [taken](Self::take_tag) from others.
    pub(super) fn enter(
        &mut self,
        name: &Name,
        tag: Option<&Tag>,
        manifest: &Descriptor,
        index: Option<ManifestDigest>,
    ) {
        let digest = ManifestDigest::from(manifest);
        let suits = |entry: &Entry| match tag {
            // The tag's own entry, or one that has no tag yet and can take it.
            Some(tag) => entry.has_tag(name, tag) || entry.annotation(REF_NAME).is_none(),
            None => true,
        };
        let found = self.manifests.iter().position(|entry| entry.is(name, digest) && suits(entry));
        let place = found.unwrap_or_else(|| {
            self.manifests.push(Entry { digest: digest.to_string(), ..Entry::default() });
            self.manifests.len() - 1
        });
        let entry = &mut self.manifests[place];
        entry.media_type.clone_from(&manifest.media_type);
        entry.size = manifest.size;
        if let Some(platform) = &manifest.platform {
            let value = serde_json::to_value(platform).expect("a struct of strings has a JSON form");
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

    /// Takes a tag from every digest but `except`; each digest keeps an entry of that name. Returns what the tag stood for.
    pub(super) fn take_tag(
        &mut self,
        name: &Name,
        tag: &Tag,
        except: Option<ManifestDigest>,
    ) -> Option<ManifestDigest> {
        let mut former = None;
        let mut place = 0;
        while place < self.manifests.len() {
            let digest = self.manifests[place].digest.parse().ok();
            if !self.manifests[place].has_tag(name, tag) || (except.is_some() && digest == except) {
                place += 1;
                continue;
            }
            former = former.or(digest);
            let mut others = self.manifests.iter().enumerate().filter(|&(other, _)| other != place);
            if digest.is_some_and(|digest| others.any(|(_, entry)| entry.is(name, digest))) {
                self.manifests.remove(place);
            } else {
                self.manifests[place].unset(REF_NAME);
                self.manifests[place].set(NAME, name.as_str());
                place += 1;
            }
        }
        former
    }

    /// Whether a name and digest has a tag.
    pub(super) fn is_tagged(&self, name: &Name, digest: ManifestDigest) -> bool {
        let tagged = |entry: &Entry| entry.identity().is_some_and(|(_, tag)| tag.is_some());
        self.manifests.iter().any(|entry| entry.is(name, digest) && tagged(entry))
    }

    /// Removes all entries of a name and digest; tells whether there was one.
    pub(super) fn remove(&mut self, name: &Name, digest: ManifestDigest) -> bool {
        let before = self.manifests.len();
        self.manifests.retain(|entry| !entry.is(name, digest));
        self.manifests.len() < before
    }
}

impl Entry {
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

    /// The digest of the multi-platform index, where there is one.
    pub(super) fn index(&self) -> Option<ManifestDigest> {
        self.annotation(INDEX)?.parse().ok()
    }

    /// The platform; one that does not read is as good as none.
    pub(super) fn platform(&self) -> Option<Platform> {
        self.rest.get(PLATFORM).and_then(|value| serde_json::from_value(value.clone()).ok())
    }

    /// Name and tag, where the entry has a name that we can show.
    pub(super) fn identity(&self) -> Option<(Name, Option<Tag>)> {
        match self.annotation(REF_NAME).and_then(|text| Reference::given(text).ok()) {
            // `NAME@DIGEST` is no tag; a bare word is how the tag `latest` of that name is written.
            Some(reference) if reference.digest.is_some() => Some((reference.name, reference.tag)),
            Some(reference) => Some((reference.name.clone(), Some(reference.tag_or_latest()))),
            None => Some((Name::given(self.annotation(NAME)?).ok()?, None)),
        }
    }

    fn is(&self, name: &Name, digest: ManifestDigest) -> bool {
        self.digest.parse() == Ok(digest) && self.identity().is_some_and(|(ours, _)| ours == *name)
    }

    fn has_tag(&self, name: &Name, tag: &Tag) -> bool {
        self.identity().is_some_and(|(ours, our_tag)| ours == *name && our_tag.as_ref() == Some(tag))
    }
}

//! Indexes of manifests for several platforms (image-spec, image-index.md).

use std::collections::BTreeMap;

use super::limits::{INDEX_ENTRIES_MAX, MANIFEST_MAX};
use super::{Descriptor, Digest, ManifestError, Platform};

/// An index of manifests, or a Docker manifest list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageIndex {
    media_type: String,
    manifests: Vec<Descriptor>,
    annotations: BTreeMap<String, String>,
}

impl ImageIndex {
    pub(super) fn checked(
        media_type: String,
        manifests: Vec<Descriptor>,
        annotations: BTreeMap<String, String>,
    ) -> Result<Self, ManifestError> {
        let count = manifests.len();
        if count > INDEX_ENTRIES_MAX {
            return Err(ManifestError::TooMany { items: "manifests", count, limit: INDEX_ENTRIES_MAX });
        }
        Ok(Self { media_type, manifests, annotations })
    }

    /// The media type of the index.
    #[must_use]
    pub fn media_type(&self) -> &str {
        &self.media_type
    }

    /// All entries.
    #[must_use]
    pub fn manifests(&self) -> &[Descriptor] {
        &self.manifests
    }

    /// Annotations.
    #[must_use]
    pub fn annotations(&self) -> &BTreeMap<String, String> {
        &self.annotations
    }

    /// Returns the entry for a platform: the best match, or the only entry that may be an image if it declares no platform.
    ///
    /// The entry may be an index itself. Entries that cannot be images are ignored.
    ///
    /// # Errors
    /// [`ManifestError::NoPlatform`], with the platforms of the index.
    pub fn choose(&self, platform: &Platform) -> Result<&Descriptor, ManifestError> {
        let images = self.manifests.iter().filter(|entry| entry.may_be_image());
        let stated =
            |entry: &Descriptor| entry.platform.as_ref().filter(|stated| !stated.is_unstated()).cloned();
        let (typed, untyped): (Vec<_>, Vec<_>) = images.partition(|entry| stated(entry).is_some());
        let platforms: Vec<Platform> = typed.iter().filter_map(|entry| stated(entry)).collect();
        let chosen = match (platform.choose(&platforms), untyped.as_slice()) {
            (Some(position), _) => typed[position],
            (None, [only]) if typed.is_empty() => only,
            _ => {
                return Err(ManifestError::NoPlatform { requested: platform.clone(), available: platforms });
            }
        };
        if chosen.size == 0 || chosen.size > MANIFEST_MAX {
            return Err(ManifestError::Size { object: "manifest", digest: chosen.digest, size: chosen.size });
        }
        Ok(chosen)
    }

    /// Returns the index without an entry that turned out to be no image, so that another one can be chosen.
    #[must_use]
    pub fn without(&self, digest: &Digest) -> Self {
        let mut others = self.clone();
        others.manifests.retain(|entry| entry.digest != *digest);
        others
    }
}

//! Indexes of manifests for several platforms (image-spec, image-index.md).

use std::collections::BTreeMap;

use super::limits::{INDEX_ENTRIES_MAX, MANIFEST_MAX};
use super::{Descriptor, ManifestError, Platform};

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
        let is_image = |entry: &&Descriptor| entry.is_manifest() || entry.is_index();
        if let Some(entry) =
            manifests.iter().filter(is_image).find(|entry| entry.size == 0 || entry.size > MANIFEST_MAX)
        {
            return Err(ManifestError::Size { object: "manifest", digest: entry.digest, size: entry.size });
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

    /// Returns the entry for a platform: the best match, or the only entry if it declares no platform.
    ///
    /// The entry may be an index itself.
    ///
    /// # Errors
    /// [`ManifestError::NoPlatform`], with the platforms of the index.
    pub fn choose(&self, platform: &Platform) -> Result<&Descriptor, ManifestError> {
        let images: Vec<&Descriptor> = self
            .manifests
            .iter()
            .filter(|entry| (entry.is_manifest() || entry.is_index()) && !entry.is_attestation())
            .collect();
        let (typed, untyped): (Vec<_>, Vec<_>) =
            images.iter().copied().partition(|entry| entry.platform.is_some());
        let platforms = || typed.iter().filter_map(|entry| entry.platform.as_ref());
        match (platform.choose(platforms()), untyped.as_slice()) {
            (Some(position), _) => Ok(typed[position]),
            (None, [only]) if typed.is_empty() => Ok(only),
            _ => Err(ManifestError::NoPlatform {
                requested: platform.clone(),
                available: platforms().cloned().collect(),
            }),
        }
    }
}

//! `environments.json`: the environments that workers are to offer, and where their images are.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::id::{EnvironmentId, HardwareGroup, RevisionId, RevisionNumber};
use super::records::text;
use crate::error::{ErrorCode, chain_text};
use crate::image::{Name, Platform, Reference, ReferenceError, Tag};

/// An environment that workers are to offer: an entry of `environments.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Offer {
    /// Its ID.
    pub id: EnvironmentId,
    /// Its image, with the registry and the digest.
    #[serde(with = "complete_name")]
    pub image: Reference,
    /// The revision that the image was built from.
    pub revision: RevisionNumber,
    /// The platform of the image.
    #[serde(with = "text")]
    pub platform: Platform,
    /// The groups of workers that are to offer it; all if there is none.
    #[serde(default)]
    pub hwgroups: Vec<HardwareGroup>,
    /// The command that shows whether the image works, instead of that of the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub smoke: Option<String>,
    /// Other fields.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

impl Offer {
    /// The revision as users write it.
    #[must_use]
    pub fn revision_id(&self) -> RevisionId {
        RevisionId { environment: self.id.clone(), number: self.revision }
    }

    /// Whether workers of this group and platform are to offer the environment.
    #[must_use]
    pub fn is_for(&self, hwgroup: Option<&HardwareGroup>, platform: &Platform) -> bool {
        let is_of_group =
            self.hwgroups.is_empty() || hwgroup.is_some_and(|group| self.hwgroups.contains(group));
        is_of_group && platform.choose([&self.platform]).is_some()
    }
}

/// All environments that workers are to offer, sorted by their IDs.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct OfferList(Vec<Offer>);

/// A text is no list of environments.
#[derive(Debug, thiserror::Error)]
pub enum OfferListError {
    /// It is not a JSON list.
    #[error("the list of environments is not a JSON list")]
    Json(#[source] serde_json::Error),
    /// An entry lacks a field, or a field has another form.
    #[error("entry {entry} of the list of environments")]
    Entry {
        /// The ID of the entry, or its number.
        entry: String,
        /// The underlying error.
        source: serde_json::Error,
    },
    /// An image has no digest.
    #[error("entry `{id}` of the list of environments: the image {image} has no digest")]
    NoDigest {
        /// The environment.
        id: EnvironmentId,
        /// The image.
        image: Reference,
    },
    /// Two entries have the same ID.
    #[error("the list of environments has two entries for `{0}`")]
    Duplicate(EnvironmentId),
    /// The artifact is something else.
    #[error("{0} is not a list of environments: it has no document of the type {OFFERS_TYPE}")]
    OtherArtifact(Reference),
}

impl OfferListError {
    /// The stable code of this error.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        ErrorCode::EnvironmentList
    }
}

/// The media type of the list.
pub const OFFERS_TYPE: &str = "application/vnd.rcx-imagefs.environments.v1+json";
/// The media type of its signature.
pub const SIGNATURE_TYPE: &str = "application/vnd.rcx-imagefs.signature.v1";
/// Maximum size of the list and of its signature, in bytes.
pub const OFFERS_MAX: u64 = 8 << 20;

impl<'de> Deserialize<'de> for OfferList {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let entries = Vec::deserialize(deserializer)?;
        Self::of_entries(entries).map_err(|error| serde::de::Error::custom(chain_text(&error)))
    }
}

impl OfferList {
    /// Sorts entries, whose IDs differ.
    #[must_use]
    pub fn new(mut offers: Vec<Offer>) -> Self {
        offers.sort_by(|a, b| a.id.cmp(&b.id));
        Self(offers)
    }

    /// Parses the JSON list.
    ///
    /// # Errors
    ///
    /// The first entry that is not valid.
    pub fn parse(bytes: &[u8]) -> Result<Self, OfferListError> {
        Self::of_entries(serde_json::from_slice(bytes).map_err(OfferListError::Json)?)
    }

    fn of_entries(entries: Vec<Value>) -> Result<Self, OfferListError> {
        let mut offers = Vec::new();
        let mut ids = BTreeSet::new();
        for (entry, number) in entries.into_iter().zip(1..) {
            let shown = entry["id"].as_str().map_or_else(|| format!("{number}"), |id| format!("`{id}`"));
            let offer: Offer = serde_json::from_value(entry)
                .map_err(|source| OfferListError::Entry { entry: shown, source })?;
            if offer.image.digest.is_none() {
                return Err(OfferListError::NoDigest { id: offer.id, image: offer.image });
            }
            if !ids.insert(offer.id.clone()) {
                return Err(OfferListError::Duplicate(offer.id));
            }
            offers.push(offer);
        }
        Ok(Self::new(offers))
    }

    /// The list as JSON. The same list always has the same bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut text = serde_json::to_vec_pretty(&self.0).expect("text and numbers always serialize");
        text.push(b'\n');
        text
    }

    /// The environments.
    #[must_use]
    pub fn offers(&self) -> &[Offer] {
        &self.0
    }

    /// The entry of an environment.
    #[must_use]
    pub fn get(&self, id: &EnvironmentId) -> Option<&Offer> {
        self.0.iter().find(|offer| offer.id == *id)
    }
}

/// Where a registry has the images of environments: `HOST[:PORT][/PREFIX]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnvironmentsPrefix(Name);

impl EnvironmentsPrefix {
    /// The repository of the list of environments.
    #[must_use]
    pub fn list(&self) -> &Name {
        &self.0
    }

    /// The list that workers use.
    #[must_use]
    pub fn current(&self) -> Reference {
        Reference { name: self.0.clone(), tag: Some(Self::current_tag()), digest: None }
    }

    /// The tag of the list that workers use.
    #[must_use]
    pub fn current_tag() -> Tag {
        "current".parse().expect("the word is a tag")
    }
}

impl FromStr for EnvironmentsPrefix {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let (host, repository) = match text.split_once('/') {
            Some((host, prefix)) => (host, format!("{prefix}/environments")),
            None => (text, "environments".to_owned()),
        };
        Name::new(host, &repository).map(Self)
    }
}

impl fmt::Display for EnvironmentsPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str().trim_end_matches("/environments"))
    }
}

/// A reference as text, with its registry.
mod complete_name {
    use serde::{Deserialize as _, Deserializer, Serializer};

    use crate::image::Reference;

    pub(super) fn serialize<S: Serializer>(reference: &Reference, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(reference)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Reference, D::Error> {
        let text = String::deserialize(deserializer)?;
        Reference::parse(&text, None).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::image::Digest;

    fn entry(id: &str) -> Value {
        let image = format!("reg.example/env/{id}@{}", Digest::of(id.as_bytes()));
        json!({"id": id, "image": image, "revision": 2, "platform": "linux/amd64", "hwgroups": []})
    }

    fn parse(list: &Value) -> Result<OfferList, String> {
        OfferList::parse(&serde_json::to_vec(list).unwrap()).map_err(|error| chain_text(&error))
    }

    #[test]
    fn list_is_sorted_and_keeps_unknown_fields() {
        let mut first = entry("python3");
        first["services"] = json!([{"name": "db"}]);
        let list = parse(&json!([first, entry("c-gcc-linux")])).unwrap();
        assert_eq!(list.offers()[1].unknown["services"], json!([{"name": "db"}]));
        assert_eq!(
            serde_json::from_slice::<Value>(&list.to_bytes()).unwrap(),
            json!([entry("c-gcc-linux"), first])
        );
    }

    #[test]
    fn malformed_list_is_refused_and_the_entry_is_named() {
        let changed = |field: &str, value: Value| {
            let mut entry = entry("python3");
            entry[field] = value;
            json!([entry])
        };
        for (list, expected) in [
            (json!({}), "not a JSON list"),
            (json!([entry("a"), entry("a")]), "two entries for `a`"),
            (json!([entry("a"), 7]), "entry 2 of the list"),
            (changed("image", json!("reg.example/env/python3:1")), "reg.example/env/python3:1 has no digest"),
            (changed("id", json!("a".repeat(33))), "33 characters; at most 32"),
            (changed("revision", json!(0)), "entry `python3`"),
            (changed("platform", json!("linux")), "entry `python3`"),
            (changed("hwgroups", json!(["a b"])), "hardware group `a b`"),
        ] {
            let error = parse(&list).unwrap_err();
            assert!(error.contains(expected), "{list}: {error}");
        }
        assert!(OfferList::parse(b"<html>").is_err());
    }

    #[test]
    fn offer_is_for_its_groups_and_its_platform() {
        let mut value = entry("a");
        let offer = |value: &Value| serde_json::from_value::<Offer>(value.clone()).unwrap();
        let (group, platform) = ("group1".parse().unwrap(), "linux/amd64".parse().unwrap());
        assert!(offer(&value).is_for(None, &platform));
        assert!(!offer(&value).is_for(None, &"linux/arm64".parse().unwrap()));
        value["hwgroups"] = json!(["group1", "group2"]);
        assert!(offer(&value).is_for(Some(&group), &platform));
        assert!(!offer(&value).is_for(Some(&"group3".parse().unwrap()), &platform));
        assert!(!offer(&value).is_for(None, &platform));
    }

    #[test]
    fn prefix_is_a_host_with_an_optional_path() {
        for (text, list) in [
            ("reg.example/lab/env", "reg.example/lab/env/environments:current"),
            ("127.0.0.1:5000", "127.0.0.1:5000/environments:current"),
        ] {
            let prefix: EnvironmentsPrefix = text.parse().unwrap();
            assert_eq!(
                (prefix.current().to_string(), prefix.to_string()),
                (list.to_owned(), text.to_owned())
            );
        }
        for text in ["env", "env/python", "", "reg.example/", "https://reg.example"] {
            assert!(text.parse::<EnvironmentsPrefix>().is_err(), "{text}");
        }
    }
}

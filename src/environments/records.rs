//! The documents of a revision. Each is written once; fields that this program does not know are kept.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::context::ContextSummary;
use super::fault::{BuildFailure, BuildFault};
use super::id::{BuildHost, HardwareGroup, RevisionNumber};
use crate::image::{Digest, ManifestDigest, Platform, Reference};

/// Longest name of a person, in bytes.
const NAME_OF_PERSON_MAX: usize = 100;
/// Longest message or command, in bytes.
const MESSAGE_MAX: usize = 10_000;

/// Who made a change, when, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attribution {
    /// The time by the clock of the host. Nothing depends on it: revisions are ordered by their numbers.
    pub when: Timestamp,
    /// The name that the person or program gave.
    pub who: String,
    /// The reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// The reason why an attribution is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AttributionError {
    /// The name is empty, too long, or has control characters.
    #[error(
        "name `{0}` is not valid: it must have 1 to {NAME_OF_PERSON_MAX} bytes and no control characters"
    )]
    Name(String),
    /// The message is too long.
    #[error("the message has more than {MESSAGE_MAX} bytes")]
    Message,
}

impl AttributionError {
    /// The stable code of this error.
    #[must_use]
    pub fn code(&self) -> crate::error::ErrorCode {
        crate::error::ErrorCode::Usage
    }
}

impl Attribution {
    /// Attributes a change to somebody, now.
    ///
    /// # Errors
    ///
    /// The name or the message is not allowed.
    pub fn now(who: &str, message: Option<&str>) -> Result<Self, AttributionError> {
        if who.trim().is_empty() || who.len() > NAME_OF_PERSON_MAX || who.chars().any(char::is_control) {
            return Err(AttributionError::Name(who.to_owned()));
        }
        if message.is_some_and(|message| message.len() > MESSAGE_MAX) {
            return Err(AttributionError::Message);
        }
        let now = Timestamp::now();
        // Fractions of a second say nothing.
        let when = Timestamp::from_second(now.as_second()).unwrap_or(now);
        Ok(Self { when, who: who.to_owned(), message: message.map(str::to_owned) })
    }
}

/// `submission.json`: what an author asks for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Submission {
    /// The author.
    #[serde(flatten)]
    pub by: Attribution,
    /// The tar beside this file.
    pub context: ContextSummary,
    /// The platform to build for.
    #[serde(with = "text")]
    pub platform: Platform,
    /// The command that shows whether the image works.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub smoke: Option<String>,
    /// The hosts that the build needs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<BuildHost>,
    /// The groups of workers that are to offer the environment; all if there is none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hwgroups: Vec<HardwareGroup>,
    /// Other fields.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

impl Submission {
    /// Whether both ask for the same, whoever submitted them.
    #[must_use]
    pub fn asks_for_the_same_as(&self, other: &Self) -> bool {
        let fields = |submission: &Self| Self { by: other.by.clone(), ..submission.clone() };
        fields(self) == fields(other)
    }
}

/// What happens to a revision that was submitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReviewDecision {
    /// It may be built.
    Approved,
    /// It is refused.
    Rejected,
    /// Its author took it back before a decision.
    Withdrawn,
}

/// `review.json`: the decision about a revision.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Review {
    /// The decision.
    pub decision: ReviewDecision,
    /// Who decided.
    #[serde(flatten)]
    pub by: Attribution,
    /// The digest of the context that was approved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context: Option<Digest>,
    /// The images that the build uses, each name once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bases: Vec<ApprovedBase>,
    /// The hosts that the build may reach.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<BuildHost>,
    /// Other fields.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

/// An image that an approved build uses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApprovedBase {
    /// The name by which the Dockerfile asks for the image, with the values of variables.
    pub name: String,
    /// The complete name of the image, as in the Dockerfile.
    pub reference: String,
    /// The digest that the reference had at the approval: of an index, or of a manifest.
    pub digest: ManifestDigest,
}

impl ApprovedBase {
    /// The image with the approved digest; `None` if the reference in the file is not one.
    #[must_use]
    pub fn image(&self) -> Option<Reference> {
        let reference = Reference::parse(&self.reference, None).ok()?;
        Some(Reference { digest: Some(self.digest), ..reference })
    }
}

/// How the life of an approved revision ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BuildOutcome {
    /// Its image is in the registry.
    Published,
    /// The build failed, or its image did not work.
    Failed,
    /// It was taken back after its approval, before it was built.
    Withdrawn,
}

/// `result.json`: the end of an approved revision.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BuildResult {
    /// How it ended.
    pub outcome: BuildOutcome,
    /// The builder; for a withdrawn revision, who withdrew it. The message says why a build failed.
    #[serde(flatten)]
    pub by: Attribution,
    /// The image in the registry, as `NAME@DIGEST`, if it is published.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The kind of a failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<BuildFault>,
    /// How long the build took, from its first download to the end of the smoke command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<u64>,
    /// The length of `build.log` in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_size: Option<u64>,
    /// Other fields.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

impl BuildResult {
    /// The result of a build that published an image.
    #[must_use]
    pub fn published(by: Attribution, image: &Reference) -> Self {
        Self { image: Some(image.to_string()), ..Self::without_image(BuildOutcome::Published, by) }
    }

    /// The result of a build that failed.
    #[must_use]
    pub fn failed(by: Attribution, failure: &BuildFailure) -> Self {
        let by = Attribution { message: Some(failure.message.clone()), ..by };
        Self { fault: Some(failure.fault), ..Self::without_image(BuildOutcome::Failed, by) }
    }

    /// The result of a revision that was taken back.
    pub(super) fn withdrawn(by: Attribution) -> Self {
        Self::without_image(BuildOutcome::Withdrawn, by)
    }

    fn without_image(outcome: BuildOutcome, by: Attribution) -> Self {
        Self { outcome, by, image: None, fault: None, seconds: None, log_size: None, unknown: Map::new() }
    }

    /// The published image; `None` if there is none.
    #[must_use]
    pub fn image(&self) -> Option<Reference> {
        self.image.as_deref().and_then(|image| Reference::parse(image, None).ok())
    }
}

/// `built.json`: an image that was built and works, and that the registry does not have yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuiltImage {
    /// Its digest, in the store of the builder.
    pub digest: ManifestDigest,
    /// How long the build took.
    pub seconds: u64,
    /// The length of `build.log` in bytes.
    pub log_size: u64,
}

/// `current.json` of an environment: a decision which of its published revisions workers offer.
///
/// Without the file, that is the published revision with the highest number.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CurrentChoice {
    /// Who decided.
    #[serde(flatten)]
    pub by: Attribution,
    /// The revision that workers offer; `None` if the environment is retired.
    pub revision: Option<RevisionNumber>,
    /// The decision holds until a revision with a higher number is published.
    pub through: RevisionNumber,
    /// Other fields.
    #[serde(flatten)]
    pub unknown: Map<String, Value>,
}

/// A value in its text form.
pub(super) mod text {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(in crate::environments) fn serialize<T: Display, S: Serializer>(
        value: &T,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub(in crate::environments) fn deserialize<'de, T: FromStr<Err: Display>, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<T, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn unknown_fields_are_kept() {
        let digest = Digest::of(b"x");
        let submission = json!({
            "when": "2024-05-06T07:08:09Z", "who": "alice", "message": "first",
            "context": {"digest": digest, "size": 1024, "entries": 1},
            "platform": "linux/amd64", "smoke": "python3 -V", "hosts": ["pypi.example"], "hwgroups": ["group1"],
            "services": [{"name": "db"}], "course": 7,
        });
        let parsed: Submission = serde_json::from_value(submission.clone()).unwrap();
        assert_eq!(parsed.unknown.keys().collect::<Vec<_>>(), ["course", "services"]);
        assert_eq!(serde_json::to_value(&parsed).unwrap(), submission);
        let review = json!({
            "decision": "approved", "when": "2024-05-06T07:08:09Z", "who": "bob", "context": digest,
            "bases": [{"name": "python:3.12", "reference": "docker.io/library/python:3.12", "digest": digest}], "ticket": "x",
        });
        let parsed: Review = serde_json::from_value(review.clone()).unwrap();
        assert_eq!(
            parsed.bases[0].image().unwrap().to_string(),
            format!("docker.io/library/python:3.12@{digest}")
        );
        assert_eq!(serde_json::to_value(&parsed).unwrap(), review);
        let result = json!({
            "outcome": "published", "when": "2024-05-06T07:08:09Z", "who": "builder", "image": format!("reg.example/a@{digest}"), "seconds": 9,
        });
        let parsed: BuildResult = serde_json::from_value(result.clone()).unwrap();
        assert_eq!(parsed.image().unwrap().digest.unwrap().digest(), digest);
        assert_eq!(serde_json::to_value(&parsed).unwrap(), result);
    }

    #[test]
    fn names_are_lines_of_text_and_messages_have_a_limit() {
        for who in ["", " ", "a\nb", "\u{1b}[2J", &"a".repeat(101)] {
            assert_eq!(Attribution::now(who, None), Err(AttributionError::Name(who.to_owned())));
        }
        assert_eq!(Attribution::now("a", Some(&"m".repeat(10_001))), Err(AttributionError::Message));
        let by = Attribution::now("Alice Ä", Some("two\nlines")).unwrap();
        assert_eq!(
            (by.who.as_str(), by.message.as_deref(), by.when.subsec_nanosecond()),
            ("Alice Ä", Some("two\nlines"), 0)
        );
    }
}

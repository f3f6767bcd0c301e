//! Suggests names and tags where a reference leads to no image.

use std::time::Duration;

use super::error;
use crate::image::{Reference, Tag};
use crate::registry::{Registry, RegistryError};

/// How long a command waits for the tags of a repository before it reports that a tag is missing.
const TAGS_WAIT: Duration = Duration::from_secs(5);
/// Maximum number of suggested tags.
const TAGS_MAX: usize = 10;
/// Maximum number of suggested names.
const NAMES_MAX: usize = 3;

/// Adds what the registry has to the error that it lacks a tag. Leaves other errors as they are.
pub(super) async fn for_registry(
    registry: &Registry,
    reference: &Reference,
    error: RegistryError,
) -> anyhow::Error {
    if reference.digest.is_some() || !matches!(error, RegistryError::NotFound { .. }) {
        return error.into();
    }
    let tags = tokio::time::timeout(TAGS_WAIT, registry.tags(&reference.name)).await;
    let tags = match tags {
        Ok(Ok(tags)) if !tags.is_empty() => tags,
        failed => {
            tracing::debug!("cannot list the tags of {}: {failed:?}", reference.name);
            return match assumed(reference) {
                Some(assumed) => {
                    let hint = error.hint().unwrap_or_default();
                    error::with_hint(error.into(), format!("{assumed}; {hint}"))
                }
                None => error.into(),
            };
        }
    };
    let hint = tag_hint(reference, &tags, "the registry");
    error::with_hint(error.into(), hint)
}

/// Says which tags there are, nearest first, and that `latest` was assumed if no tag was given.
pub(super) fn tag_hint(reference: &Reference, tags: &[Tag], place: &str) -> String {
    let wanted = reference.tag_or_latest();
    let mut nearest: Vec<&str> = tags.iter().map(Tag::as_str).collect();
    if reference.tag.is_some() {
        // Stable: equally near tags stay in order.
        nearest.sort_by_key(|tag| strsim::damerau_levenshtein(tag, wanted.as_str()));
    }
    let more = nearest.len().saturating_sub(TAGS_MAX);
    nearest.truncate(TAGS_MAX);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let assumed = assumed(reference).map(|assumed| format!("{assumed}; ")).unwrap_or_default();
    format!("{assumed}{place} has this image with other tags: {}{more}", nearest.join(", "))
}

/// Says that the tag `latest` was assumed, if it was.
fn assumed(reference: &Reference) -> Option<&'static str> {
    let is_assumed = reference.tag.is_none() && reference.digest.is_none();
    is_assumed.then_some("no tag was given, so `latest` was assumed")
}

/// Returns the names that end with the one that a user wrote, after a slash, or are near to it; nearest first.
pub(super) fn near_names(wanted: &str, names: impl IntoIterator<Item = String>) -> Vec<String> {
    let limit = (wanted.chars().count() / 4).clamp(1, 3);
    let end = format!("/{wanted}");
    let distance = |name: &str| match name.ends_with(&end) {
        // The user left out the registry.
        true => 0,
        false => strsim::damerau_levenshtein(wanted, name),
    };
    let mut near: Vec<(usize, String)> = names
        .into_iter()
        .map(|name| (distance(&name), name))
        .filter(|(distance, _)| *distance <= limit)
        .collect();
    near.sort();
    near.dedup();
    near.truncate(NAMES_MAX);
    near.into_iter().map(|(_, name)| name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_tags_come_first_and_the_rest_is_counted() {
        let tags = |list: &str| list.split(' ').map(|tag| tag.parse().unwrap()).collect::<Vec<Tag>>();
        let reference = |text| Reference::parse(text, None).unwrap();
        let hint = tag_hint(&reference("python:3.21"), &tags("2.7 3.11 3.12 latest"), "the store");
        assert_eq!(hint, "the store has this image with other tags: 3.11, 3.12, 2.7, latest");
        let hint = tag_hint(&reference("python"), &tags("2.7 3.11"), "the store");
        let expected =
            "no tag was given, so `latest` was assumed; the store has this image with other tags: 2.7, 3.11";
        assert_eq!(hint, expected);
        let many: Vec<Tag> = (0..25).map(|number| format!("v{number}").parse().unwrap()).collect();
        assert!(tag_hint(&reference("a:x"), &many, "the registry").ends_with(" and 15 more"));
    }

    #[test]
    fn only_near_names_are_suggested() {
        let names = ["python", "pyhton", "perl", "gcc"].map(str::to_owned);
        assert_eq!(near_names("pythn", names.clone()), ["python"]);
        assert_eq!(near_names("lab/gcc", names.clone()), Vec::<String>::new());
        assert_eq!(near_names("gc", names), ["gcc"]);
    }

    #[test]
    fn names_on_a_registry_are_suggested_for_their_ends() {
        let names = ["host:5000/lab/gcc", "host:5000/lab/gcc:13", "host:5000/lab/mygcc"].map(str::to_owned);
        assert_eq!(near_names("gcc:13", names.clone()), ["host:5000/lab/gcc:13"]);
        assert_eq!(near_names("lab/gcc", names.clone()), ["host:5000/lab/gcc"]);
        assert_eq!(near_names("cc", names), Vec::<String>::new());
    }
}

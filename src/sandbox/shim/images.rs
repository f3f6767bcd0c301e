//! Names of images in the mount, and the images of boxes whose calls name no image.

use std::fmt;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::ShimError;

/// The name of an image in the mount: `NAME[:TAG][@DIGEST]`. The tag is `latest` if there is neither tag nor digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageName(PathBuf);

impl ImageName {
    /// The path below the mountpoint. It has no component `.` or `..`.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl FromStr for ImageName {
    type Err = ShimError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let plain = |part: &str| !matches!(part, "" | "." | "..") && !part.chars().any(char::is_control);
        if !text.split('/').all(plain) {
            return Err(ShimError::ImageName(text.to_owned()));
        }
        let (name, digest) = match text.rsplit_once('@') {
            Some((name, digest)) => (name, Some(digest)),
            None => (text, None),
        };
        // The colon in `host:5000/name` does not begin a tag.
        let last = name.rfind('/').map_or(0, |slash| slash + 1);
        let colon = name[last..].find(':').map(|colon| last + colon);
        let path = match (digest, colon) {
            // The mount has no names with both a tag and a digest. The digest identifies the image.
            (Some(digest), colon) => format!("{}@{digest}", &name[..colon.unwrap_or(name.len())]),
            (None, Some(_)) => name.to_owned(),
            (None, None) => format!("{name}:latest"),
        };
        Ok(Self(path.into()))
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.display())
    }
}

/// The images of boxes whose calls name no image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BoxImages {
    default: Option<ImageName>,
    /// Ranges that do not overlap. A range without an image overrides the default.
    ranges: Vec<(RangeInclusive<u32>, Option<ImageName>)>,
}

impl BoxImages {
    /// Parses pairs of boxes (`7`, `10-19`, or `default`) and images. An empty image means no image.
    ///
    /// # Errors
    /// [`ShimError::Boxes`], [`ShimError::BoxTwice`] and [`ShimError::ImageName`].
    pub fn new<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self, ShimError> {
        let mut images = Self::default();
        for (boxes, name) in pairs {
            let image = if name.is_empty() { None } else { Some(name.parse()?) };
            if boxes == "default" {
                images.default = image;
                continue;
            }
            let range = range(boxes).ok_or_else(|| ShimError::Boxes(boxes.to_owned()))?;
            let overlaps = |(other, _): &&(RangeInclusive<u32>, _)| {
                other.start() <= range.end() && range.start() <= other.end()
            };
            if let Some((other, _)) = images.ranges.iter().find(overlaps) {
                return Err(ShimError::BoxTwice(*range.start().max(other.start())));
            }
            images.ranges.push((range, image));
        }
        Ok(images)
    }

    /// Returns whether no box has an image.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.default.is_none() && self.ranges.iter().all(|(_, image)| image.is_none())
    }

    /// Returns the image of a box, if it has one.
    #[must_use]
    pub fn of_box(&self, id: u32) -> Option<&ImageName> {
        match self.ranges.iter().find(|(range, _)| range.contains(&id)) {
            Some((_, image)) => image.as_ref(),
            None => self.default.as_ref(),
        }
    }
}

/// Parses `7` or `10-19`.
fn range(text: &str) -> Option<RangeInclusive<u32>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let number = |text: &str| {
        let plain = text.bytes().all(|byte| byte.is_ascii_digit());
        plain.then(|| text.parse::<u32>().ok()).flatten()
    };
    let (first, last) = (number(first)?, number(last)?);
    (first <= last).then_some(first..=last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_names_match_the_names_in_the_mount() {
        let path = |text: &str| text.parse::<ImageName>().map(|name| name.to_string()).ok();
        for (text, expected) in [
            ("python", "python:latest"),
            ("python:3.12", "python:3.12"),
            ("host:5000/lab/python", "host:5000/lab/python:latest"),
            ("host:5000/lab/python:1", "host:5000/lab/python:1"),
            ("python:3.12@sha256:ab", "python@sha256:ab"),
            ("host:5000/python@sha256:ab", "host:5000/python@sha256:ab"),
            ("python@sha256-ab", "python@sha256-ab"),
        ] {
            assert_eq!(path(text).as_deref(), Some(expected), "{text}");
        }
        for text in ["", "/", "/python", "python/", "a//b", "../a", "a/../b", "a/.", ".", "a\nb", "a\0"] {
            assert_eq!(path(text), None, "{text:?}");
        }
    }

    #[test]
    fn range_of_a_box_overrides_the_default() {
        let pairs = [("default", "a:1"), ("7", "b:1"), ("10-19", "c:1"), ("20-29", "")];
        let images = BoxImages::new(pairs).unwrap();
        let of = |id| images.of_box(id).map(ToString::to_string);
        let expected = [(0, Some("a:1")), (7, Some("b:1")), (10, Some("c:1")), (19, Some("c:1")), (20, None)];
        for (id, image) in expected {
            assert_eq!(of(id).as_deref(), image, "box {id}");
        }
        assert!(!images.is_empty() && BoxImages::default().is_empty());
        assert!(BoxImages::new([("1", "")]).unwrap().is_empty());
    }

    #[test]
    fn malformed_and_overlapping_ranges_are_errors() {
        for boxes in ["", "x", "-", "1-", "-1", "5-3", "+1", "1-2-3", "99999999999", "1 - 2"] {
            assert!(matches!(BoxImages::new([(boxes, "a")]), Err(ShimError::Boxes(_))), "{boxes:?}");
        }
        for pairs in [[("5-9", "a"), ("7", "b")], [("7", "a"), ("5-9", "b")], [("1-5", "a"), ("5-6", "b")]] {
            assert!(matches!(BoxImages::new(pairs), Err(ShimError::BoxTwice(_))), "{pairs:?}");
        }
        assert!(matches!(BoxImages::new([("1", "../x")]), Err(ShimError::ImageName(_))));
    }
}

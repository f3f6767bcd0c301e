//! Platforms, and the choice of a manifest for a platform.
//!
//! Names are normalized when they are parsed (`aarch64` is `arm64`, `arm64/v8` is `arm64`, `arm` is `arm/v7`, `amd64/v1` is
//! `amd64`), so that equal platforms compare equal. A machine also runs programs for older variants of its architecture. An
//! image for another architecture is chosen only if the user asks for it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::descriptor::text_or_null;
use crate::error::ErrorCode;

/// An operating system and a processor; its text form is `os/architecture[/variant]` (image-spec, image-index.md).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "PlatformJson", into = "PlatformJson")]
pub struct Platform {
    os: String,
    architecture: String,
    variant: Option<String>,
    /// Whether an image needs features of the operating system (`os.features`). Images in lazy formats, which only special
    /// daemons can read, are marked so beside their ordinary twins.
    needs_features: bool,
}

/// The JSON form of a platform, in descriptors and configurations. The version of the operating system is ignored.
#[derive(Serialize, Deserialize)]
struct PlatformJson {
    #[serde(default, deserialize_with = "text_or_null")]
    os: String,
    #[serde(default, deserialize_with = "text_or_null")]
    architecture: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    variant: Option<String>,
    #[serde(rename = "os.features", default, skip_serializing_if = "Option::is_none")]
    features: Option<Vec<String>>,
}

/// The reason why a text is not a platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("platform `{0}` is not of the form OS/ARCH[/VARIANT], as in linux/amd64 or linux/arm/v7")]
pub struct PlatformError(String);

impl PlatformError {
    /// The stable code of this error.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        ErrorCode::Reference
    }
}

impl Platform {
    /// Normalizes the names of a platform. An empty variant counts as none.
    #[must_use]
    pub fn new(os: &str, architecture: &str, variant: Option<&str>) -> Self {
        let architecture = architecture.to_ascii_lowercase();
        let variant = variant.map(str::to_ascii_lowercase).filter(|variant| !variant.is_empty());
        let (architecture, variant) = match (architecture.as_str(), variant.as_deref()) {
            ("x86_64" | "x86-64" | "amd64", None | Some("v1" | "1")) => ("amd64", None),
            ("x86_64" | "x86-64" | "amd64", Some(other)) => ("amd64", Some(with_v(other))),
            ("aarch64" | "arm64", None | Some("v8" | "8")) => ("arm64", None),
            ("aarch64" | "arm64", Some(other)) => ("arm64", Some(with_v(other))),
            ("armhf", _) | ("arm", None) => ("arm", Some("v7".to_owned())),
            ("armel", _) => ("arm", Some("v6".to_owned())),
            ("arm", Some(other)) => ("arm", Some(with_v(other))),
            ("i386" | "i686", variant) => ("386", variant.map(str::to_owned)),
            (other, variant) => (other, variant.map(str::to_owned)),
        };
        Self {
            os: os.to_ascii_lowercase(),
            architecture: architecture.to_owned(),
            variant,
            needs_features: false,
        }
    }

    /// The platform that this program was built for. The operating system is always Linux.
    #[must_use]
    pub fn host() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86" => ("386", None),
            "powerpc64" if cfg!(target_endian = "little") => ("ppc64le", None),
            "loongarch64" => ("loong64", None),
            other => (other, None),
        };
        Self::new("linux", architecture, variant)
    }

    /// The operating system, lower case.
    #[must_use]
    pub fn os(&self) -> &str {
        &self.os
    }

    /// The processor architecture, in the names of Go.
    #[must_use]
    pub fn architecture(&self) -> &str {
        &self.architecture
    }

    /// The variant of the architecture; `None` for the default one.
    #[must_use]
    pub fn variant(&self) -> Option<&str> {
        self.variant.as_deref()
    }

    /// Whether neither operating system nor architecture is stated.
    #[must_use]
    pub fn is_unstated(&self) -> bool {
        self.os.is_empty() && self.architecture.is_empty()
    }

    /// Whether the platform is unknown. Indexes list build attestations as `unknown/unknown`.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        self.os == "unknown" || self.architecture == "unknown"
    }

    /// The position of the best match in `offered`: this platform itself, otherwise its highest lower variant. Among equal
    /// matches, the first one. A platform that needs features of the operating system matches only if no other does.
    #[must_use]
    pub fn choose<'a>(&self, offered: impl IntoIterator<Item = &'a Self>) -> Option<usize> {
        offered
            .into_iter()
            .enumerate()
            .filter_map(|(position, platform)| {
                Some((platform.needs_features, self.distance(platform)?, position))
            })
            .min()
            .map(|(.., position)| position)
    }

    /// The number of variants that `other` is below this platform: 0 if equal, `None` if its programs do not run here.
    fn distance(&self, other: &Self) -> Option<u32> {
        if self.os != other.os || self.architecture != other.architecture {
            return None;
        }
        if self.variant == other.variant {
            return Some(0);
        }
        // Only in these architectures does a higher variant run the programs of a lower one.
        let (own, offered) = match self.architecture.as_str() {
            "amd64" => (self.level(1)?, other.level(1)?),
            "arm64" => (self.level(80)?, other.level(80)?),
            "arm" => (self.level(7)?, other.level(7)?),
            _ => return None,
        };
        own.checked_sub(offered)
    }

    /// The variant as a number: a higher one runs the programs of a lower one (for arm64, `v9.2` is 92 and `v8` is 80).
    fn level(&self, default: u32) -> Option<u32> {
        let Some(variant) = &self.variant else { return Some(default) };
        let digits = variant.strip_prefix('v')?;
        if self.architecture != "arm64" {
            return digits.parse().ok();
        }
        let (major, minor) = digits.split_once('.').unwrap_or((digits, "0"));
        major
            .parse::<u32>()
            .ok()?
            .checked_mul(10)?
            .checked_add(minor.parse::<u32>().ok().filter(|m| *m < 10)?)
    }
}

/// Adds the `v` that some documents leave out.
fn with_v(variant: &str) -> String {
    if variant.starts_with(|c: char| c.is_ascii_digit()) { format!("v{variant}") } else { variant.to_owned() }
}

impl From<PlatformJson> for Platform {
    fn from(document: PlatformJson) -> Self {
        let platform = Self::new(&document.os, &document.architecture, document.variant.as_deref());
        let needs_features = document.features.is_some_and(|features| !features.is_empty());
        Self { needs_features, ..platform }
    }
}

impl From<Platform> for PlatformJson {
    fn from(platform: Platform) -> Self {
        let Platform { os, architecture, variant, needs_features: _ } = platform;
        Self { os, architecture, variant, features: None }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.iter().try_for_each(|variant| write!(f, "/{variant}"))
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let parts: Vec<&str> = text.split('/').collect();
        let plain = |part: &&str| {
            !part.is_empty()
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
        };
        match parts.as_slice() {
            [os, architecture, variant @ ..] if variant.len() <= 1 && parts.iter().all(plain) => {
                Ok(Self::new(os, architecture, variant.first().copied()))
            }
            _ => Err(PlatformError(text.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        text.parse().unwrap()
    }

    #[test]
    fn one_platform_has_one_spelling() {
        for (written, shown) in [
            ("linux/amd64", "linux/amd64"),
            ("linux/x86_64", "linux/amd64"),
            ("Linux/amd64/v1", "linux/amd64"),
            ("linux/amd64/3", "linux/amd64/v3"),
            ("linux/aarch64", "linux/arm64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/arm", "linux/arm/v7"),
            ("linux/arm/6", "linux/arm/v6"),
            ("linux/armhf", "linux/arm/v7"),
            ("linux/armel", "linux/arm/v6"),
            ("linux/i386", "linux/386"),
            ("linux/riscv64", "linux/riscv64"),
        ] {
            assert_eq!(platform(written).to_string(), shown, "{written}");
        }
    }

    #[test]
    fn malformed_platforms_are_refused() {
        for text in ["", "linux", "linux/", "/amd64", "linux/arm/v7/x", "linux//v7", "linux/arm 64"] {
            assert!(text.parse::<Platform>().is_err(), "{text}");
        }
    }

    #[test]
    fn best_match_is_chosen_and_never_a_higher_variant() {
        for (own, offered, chosen) in [
            ("linux/arm/v7", &["linux/arm/v5", "linux/arm/v6", "linux/arm/v7"][..], Some(2)),
            ("linux/arm/v7", &["linux/arm/v5", "linux/arm/v6"], Some(1)),
            ("linux/arm/v6", &["linux/arm/v7", "linux/arm/v5"], Some(1)),
            ("linux/arm/v6", &["linux/arm/v7"], None),
            ("linux/amd64", &["linux/arm64", "linux/amd64"], Some(1)),
            ("linux/amd64", &["linux/amd64/v2"], None),
            ("linux/amd64/v3", &["linux/amd64", "linux/amd64/v2", "linux/amd64/v4"], Some(1)),
            ("linux/arm64", &["linux/arm/v7", "linux/arm64/v8"], Some(1)),
            ("linux/arm64/v9", &["linux/arm64", "linux/arm64/v8.2"], Some(1)),
            ("linux/amd64", &["windows/amd64", "unknown/unknown"], None),
            ("linux/amd64", &["linux/amd64", "linux/amd64"], Some(0)),
        ] {
            let offered: Vec<_> = offered.iter().map(|text| platform(text)).collect();
            assert_eq!(platform(own).choose(&offered), chosen, "{own} of {offered:?}");
        }
    }
}

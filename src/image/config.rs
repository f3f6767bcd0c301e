//! The configuration of an image: the diff IDs of its layers, and the defaults for its program.

use serde::Deserialize;

use super::limits::{CONFIG_MAX, check_length};
use super::{DiffId, ManifestError, Platform};

/// The parts of an image's configuration that this program uses (image-spec, config.md).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageConfig {
    /// The diff IDs of the layers, lowest first. [`Image`](super::Image) pairs them with the layers.
    pub diff_ids: Vec<DiffId>,
    /// The platform that the image runs on.
    pub platform: Platform,
    /// Environment variables, as `NAME=VALUE`.
    pub env: Vec<String>,
    /// The working directory of the program; empty for `/`.
    pub working_dir: String,
    /// The first words of the command.
    pub entrypoint: Vec<String>,
    /// The words after the entrypoint, or the whole command.
    pub cmd: Vec<String>,
    /// `USER[:GROUP]`, names or numbers; empty for root.
    pub user: String,
    /// The time of creation, as in RFC 3339.
    pub created: Option<String>,
    /// The whole document.
    pub raw: serde_json::Value,
}

impl ImageConfig {
    /// Parses a configuration.
    ///
    /// # Errors
    /// [`ManifestError::Config`], [`ManifestError::RootfsType`] or [`ManifestError::TooLong`].
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        #[derive(Deserialize)]
        struct ConfigDocument {
            rootfs: Rootfs,
            #[serde(default)]
            os: String,
            #[serde(default)]
            architecture: String,
            #[serde(default)]
            variant: Option<String>,
            #[serde(default)]
            config: Option<ProgramConfig>,
            #[serde(default)]
            created: Option<String>,
        }
        #[derive(Deserialize)]
        struct Rootfs {
            #[serde(rename = "type")]
            kind: String,
            #[serde(default)]
            diff_ids: Option<Vec<DiffId>>,
        }
        #[derive(Deserialize, Default)]
        #[serde(rename_all = "PascalCase", default)]
        struct ProgramConfig {
            env: Option<Vec<String>>,
            working_dir: Option<String>,
            entrypoint: Option<Vec<String>>,
            cmd: Option<Vec<String>>,
            user: Option<String>,
        }
        check_length(bytes, CONFIG_MAX)?;
        let outer: ConfigDocument = serde_json::from_slice(bytes).map_err(ManifestError::Config)?;
        if outer.rootfs.kind != "layers" {
            return Err(ManifestError::RootfsType(outer.rootfs.kind));
        }
        let inner = outer.config.unwrap_or_default();
        Ok(Self {
            diff_ids: outer.rootfs.diff_ids.unwrap_or_default(),
            platform: Platform::new(&outer.os, &outer.architecture, outer.variant.as_deref()),
            env: inner.env.unwrap_or_default(),
            working_dir: inner.working_dir.unwrap_or_default(),
            entrypoint: inner.entrypoint.unwrap_or_default(),
            cmd: inner.cmd.unwrap_or_default(),
            user: inner.user.unwrap_or_default(),
            created: outer.created,
            raw: serde_json::from_slice(bytes).map_err(ManifestError::Config)?,
        })
    }

    /// Whether the image is for a platform. A part of the platform that the configuration does not state fits any.
    #[must_use]
    pub fn is_for(&self, wanted: &Platform) -> bool {
        let (os, architecture) = (self.platform.os(), self.platform.architecture());
        if os.is_empty() || architecture.is_empty() {
            return (os.is_empty() || os == wanted.os())
                && (architecture.is_empty() || architecture == wanted.architecture());
        }
        // Many images for older variants of arm state no variant, and `Platform` then assumes v7.
        let states_variant = self.raw["variant"].as_str().is_some_and(|variant| !variant.is_empty());
        if states_variant {
            wanted.choose([&self.platform]).is_some()
        } else {
            os == wanted.os() && architecture == wanted.architecture()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Digest;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn fields_may_be_missing_or_null() {
        let config =
            ImageConfig::parse(br#"{"rootfs":{"type":"layers","diff_ids":null},"config":null}"#).unwrap();
        assert!(config.diff_ids.is_empty() && config.env.is_empty());
        let text = format!(
            r#"{{"os":"linux","architecture":"aarch64","created":"2024-01-01T00:00:00Z","config":{{"Env":["A=b"],"Cmd":["sh"],
            "Entrypoint":null,"WorkingDir":"/w","User":"1:2"}},"rootfs":{{"type":"layers","diff_ids":["sha256:{HEX}"]}}}}"#
        );
        let config = ImageConfig::parse(text.as_bytes()).unwrap();
        assert_eq!(config.platform.to_string(), "linux/arm64");
        assert_eq!((config.env, config.cmd), (vec!["A=b".to_owned()], vec!["sh".to_owned()]));
        assert_eq!((config.working_dir.as_str(), config.user.as_str()), ("/w", "1:2"));
        assert_eq!(config.diff_ids, [DiffId::new(Digest::of(b""))]);
        assert_eq!(config.raw["os"], "linux");
    }

    #[test]
    fn platform_of_a_configuration_must_match_as_far_as_it_is_stated() {
        for (stated, wanted, fits) in [
            (r#""os":"linux","architecture":"amd64""#, "linux/amd64", true),
            (r#""os":"linux","architecture":"x86_64""#, "linux/amd64", true),
            (r#""os":"linux","architecture":"amd64""#, "linux/arm64", false),
            (r#""os":"windows","architecture":"amd64""#, "linux/amd64", false),
            (r#""os":"linux","architecture":"amd64","variant":"v3""#, "linux/amd64", false),
            (r#""os":"linux","architecture":"amd64","variant":"v2""#, "linux/amd64/v3", true),
            (r#""os":"linux","architecture":"arm""#, "linux/arm/v6", true),
            (r#""os":"linux","architecture":"arm","variant":"v7""#, "linux/arm/v6", false),
            (r#""os":"linux""#, "linux/arm64", true),
            (r#""os":"windows""#, "linux/arm64", false),
            (r#""architecture":"amd64""#, "linux/arm64", false),
            (r#""created":null"#, "linux/arm64", true),
        ] {
            let text = format!(r#"{{{stated},"rootfs":{{"type":"layers"}}}}"#);
            let config = ImageConfig::parse(text.as_bytes()).unwrap();
            assert_eq!(config.is_for(&wanted.parse().unwrap()), fits, "{stated} for {wanted}");
        }
    }

    #[test]
    fn malformed_configuration_is_refused() {
        assert!(matches!(ImageConfig::parse(b"{}"), Err(ManifestError::Config(_))));
        assert!(matches!(ImageConfig::parse(b"<html>"), Err(ManifestError::Config(_))));
        assert!(matches!(
            ImageConfig::parse(br#"{"rootfs":{"type":"layers+base","diff_ids":[]}}"#),
            Err(ManifestError::RootfsType(_))
        ));
        assert!(matches!(
            ImageConfig::parse(br#"{"rootfs":{"type":"layers","diff_ids":["sha256:00"]}}"#),
            Err(ManifestError::Config(_))
        ));
    }
}

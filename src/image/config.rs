//! The configuration of an image: the diff IDs of its layers, and the defaults for its program.

use serde::Deserialize as _;
use serde_json::Value;

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
    pub raw: Value,
}

impl ImageConfig {
    /// Parses a configuration.
    ///
    /// Only the diff IDs must have the form that the specification demands, since only they matter for the files. All
    /// other fields may be missing or `null`; a field of an unexpected form counts as missing.
    ///
    /// # Errors
    /// [`ManifestError::Config`], [`ManifestError::RootfsType`] or [`ManifestError::TooLong`].
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        check_length(bytes, CONFIG_MAX)?;
        let raw: Value = serde_json::from_slice(bytes).map_err(ManifestError::Config)?;
        let rootfs = field(&raw, "rootfs");
        let kind = text(field(rootfs, "type"));
        if !kind.is_empty() && kind != "layers" {
            return Err(ManifestError::RootfsType(kind));
        }
        let diff_ids = match field(rootfs, "diff_ids") {
            // Without the root filesystem, the document is of another kind.
            Value::Null if !rootfs.is_object() => return Err(ManifestError::Config(missing_rootfs())),
            diff_ids => Option::deserialize(diff_ids).map_err(ManifestError::Config)?.unwrap_or_default(),
        };
        let program = field(&raw, "config");
        let variant = text(field(&raw, "variant"));
        Ok(Self {
            diff_ids,
            platform: Platform::new(
                &text(field(&raw, "os")),
                &text(field(&raw, "architecture")),
                Some(&variant),
            ),
            env: texts(field(program, "Env")),
            working_dir: text(field(program, "WorkingDir")),
            entrypoint: texts(field(program, "Entrypoint")),
            cmd: texts(field(program, "Cmd")),
            user: text(field(program, "User")),
            created: Some(text(field(&raw, "created"))).filter(|created| !created.is_empty()),
            raw,
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
        let states_variant = !text(field(&self.raw, "variant")).is_empty();
        if states_variant {
            wanted.choose([&self.platform]).is_some()
        } else {
            os == wanted.os() && architecture == wanted.architecture()
        }
    }
}

/// Returns a field of an object, or `null`. A name in other letter case is accepted if the field is missing, as in Go.
fn field<'a>(object: &'a Value, name: &str) -> &'a Value {
    let Value::Object(fields) = object else { return &Value::Null };
    let in_other_case =
        || fields.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value);
    fields.get(name).or_else(in_other_case).unwrap_or(&Value::Null)
}

/// Returns a text, or a number as text. Builders write user IDs as numbers.
fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => String::new(),
    }
}

/// Returns a list of texts. A single text is a list of one word, as in docker.
fn texts(value: &Value) -> Vec<String> {
    match value {
        Value::Array(values) => values.iter().filter(|value| !value.is_null()).map(text).collect(),
        Value::String(text) if !text.is_empty() => vec![text.clone()],
        _ => Vec::new(),
    }
}

fn missing_rootfs() -> serde_json::Error {
    serde::de::Error::missing_field("rootfs")
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
    fn fields_for_the_program_may_have_other_forms() {
        let parse = |program: &str| {
            let text = format!(
                r#"{{"config":{program},"rootfs":{{"diff_ids":[]}},"created":null,"os":null,"variant":7}}"#
            );
            ImageConfig::parse(text.as_bytes()).unwrap_or_else(|error| panic!("{program}: {error:?}"))
        };
        let words = |words: &[&str]| words.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(parse(r#"{"Entrypoint":"/bin/sh -c"}"#).entrypoint, words(&["/bin/sh -c"]));
        assert_eq!(parse(r#"{"Cmd":["a",null,1]}"#).cmd, words(&["a", "1"]));
        assert_eq!(parse(r#"{"cmd":["a"],"env":["A=b"]}"#).cmd, words(&["a"]));
        assert_eq!(parse(r#"{"cmd":["a"],"Cmd":["b"]}"#).cmd, words(&["b"]));
        assert_eq!(parse(r#"{"Env":{"A":"b"},"WorkingDir":[]}"#).env, words(&[]));
        assert_eq!(parse(r#"{"User":1000,"WorkingDir":null}"#).user, "1000");
        assert_eq!(parse("[]").created, None);
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
            (r#""os":null,"architecture":1,"variant":null"#, "linux/1", true),
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

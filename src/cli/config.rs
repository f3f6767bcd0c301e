//! The configuration file: TOML, every key optional, an unknown key an error.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::Deserialize;

use crate::image::Platform;

/// Where the configuration is looked for when `--config` is not given; it need not exist then.
pub(super) const DEFAULT_PATH: &str = "/etc/rcx-imagefs/config.toml";

/// What the file can say. Command line and environment go before it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Config {
    /// Directory of the store.
    pub(super) store: Option<PathBuf>,
    /// Directory of the control socket.
    pub(super) run_dir: Option<PathBuf>,
    /// Registry of references without a host, in place of docker.io; its host is left out of names.
    pub(super) default_registry: Option<String>,
    /// Registries that are spoken to in plain HTTP besides those on loopback: `host` or `host:port`.
    #[serde(default)]
    pub(super) plain_http: Vec<String>,
    /// Platform to choose from multi-platform images: `os/arch[/variant]`.
    pub(super) platform: Option<String>,
    /// The mount.
    #[serde(default)]
    pub(super) mount: MountConfig,
}

/// Table `[mount]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct MountConfig {
    /// Threads that answer the kernel.
    pub(super) threads: Option<NonZeroUsize>,
    /// Memory for decoded spans, in MiB.
    pub(super) cache_mib: Option<u64>,
    /// Readahead of the kernel on the mount, in KiB.
    pub(super) read_ahead_kib: Option<u32>,
}

impl Config {
    /// Reads `path`, or the default place where none is given.
    pub(super) fn load(path: Option<&Path>) -> anyhow::Result<Self> {
        let file = path.unwrap_or(Path::new(DEFAULT_PATH));
        let text = match std::fs::read_to_string(file) {
            Ok(text) => text,
            Err(error) if path.is_none() && error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self::default());
            }
            Err(error) => return Err(error).with_context(|| format!("configuration {}", file.display())),
        };
        toml::from_str(&text).with_context(|| format!("configuration {}", file.display()))
    }

    /// The platform that images are chosen for.
    pub(super) fn platform(&self, flag: Option<&str>) -> anyhow::Result<Platform> {
        match flag.or(self.platform.as_deref()) {
            None => Ok(Platform::host()),
            Some(text) => text.parse().with_context(|| format!("platform `{text}`")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_optional_and_an_unknown_one_is_an_error() {
        let empty: Config = toml::from_str("").unwrap();
        assert!(empty.default_registry.is_none());
        let full: Config = toml::from_str(
            "default-registry = 'reg.example:5000'\nplain-http = ['a:1']\nplatform = 'linux/arm64'\n\
             store = '/s'\nrun-dir = '/r'\n[mount]\nthreads = 3\ncache-mib = 64\nread-ahead-kib = 512\n",
        )
        .unwrap();
        assert_eq!(full.mount.cache_mib, Some(64));
        let error = toml::from_str::<Config>("default_registry = 'x'").unwrap_err();
        assert!(error.to_string().contains("unknown field `default_registry`"), "{error}");
    }

    #[test]
    fn a_named_file_has_to_exist() {
        let error = Config::load(Some(Path::new("/nonexistent/config.toml"))).unwrap_err();
        assert!(format!("{error:#}").starts_with("configuration /nonexistent/config.toml: "));
    }
}

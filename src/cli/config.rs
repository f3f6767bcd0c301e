//! The configuration file: TOML, every key optional, an unknown key an error.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::num::{NonZeroU64, NonZeroUsize};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::Deserialize;

use super::engine::EngineChoice;
use crate::image::{Platform, Reference};
use crate::index::LayerLimits;
use crate::roots::{RootsError, Upper};
use crate::sandbox::shim::{self, BoxImages, ShimError};
use crate::sandbox::{BoxRange, SandboxKind, User};

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
    /// How roots have their image.
    pub(super) engine: Option<EngineChoice>,
    /// What layers may come to.
    #[serde(default)]
    pub(super) limits: LimitsConfig,
    /// The mount.
    #[serde(default)]
    pub(super) mount: MountConfig,
    /// Writable roots.
    #[serde(default)]
    pub(super) root: RootConfig,
    /// Isolated runs.
    #[serde(default)]
    pub(super) run: RunConfig,
    /// The stand-in for isolate.
    #[serde(default)]
    pub(super) isolate: IsolateConfig,
}

/// Table `[limits]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct LimitsConfig {
    /// Longest tar of a layer, in MiB.
    layer_size_mib: Option<NonZeroU64>,
    /// Most bytes of tar for each byte of a layer's blob, where the tar is longer than 1 GiB.
    layer_ratio: Option<NonZeroU64>,
}

impl LimitsConfig {
    /// What layers may come to that are taken into the store.
    pub(super) fn layer(&self) -> LayerLimits {
        let default = LayerLimits::default();
        LayerLimits {
            tar_bytes: self.layer_size_mib.map_or(default.tar_bytes, |mib| mib.get().saturating_mul(1 << 20)),
            ratio: self.layer_ratio.map_or(default.ratio, NonZeroU64::get),
        }
    }
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

/// Table `[root]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct RootConfig {
    /// Directory for what is written in roots, in place of one in the store.
    pub(super) upper_dir: Option<PathBuf>,
    /// Upper layer of roots: `dir`, `dir:SIZE`, `tmpfs:SIZE` or `none`.
    upper: Option<String>,
}

/// Table `[run]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct RunConfig {
    /// Sandbox: `auto`, `isolate` or `bwrap`.
    sandbox: Option<String>,
    /// Boxes of runs that name none: `FIRST-LAST`.
    box_ids: Option<String>,
    /// Who programs are under bubblewrap: `UID[:GID]`, numbers.
    bwrap_user: Option<String>,
}

impl RunConfig {
    /// The sandbox to use.
    pub(super) fn sandbox(&self) -> anyhow::Result<SandboxKind> {
        let Some(text) = &self.sandbox else { return Ok(SandboxKind::default()) };
        text.parse().map_err(|why| anyhow::anyhow!("sandbox `{text}`: {why}"))
    }

    /// The boxes to choose from.
    pub(super) fn box_ids(&self) -> anyhow::Result<BoxRange> {
        self.box_ids.as_deref().map_or(Ok(BoxRange::default()), |text| Ok(text.parse()?))
    }

    /// Who programs are under bubblewrap.
    pub(super) fn bwrap_user(&self) -> anyhow::Result<User> {
        let Some(text) = &self.bwrap_user else { return Ok(User::default()) };
        text.parse().map_err(|why| anyhow::anyhow!("bwrap-user `{text}`: {why}"))
    }
}

/// Table `[isolate]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct IsolateConfig {
    /// The real isolate.
    pub(super) path: Option<PathBuf>,
    /// Where the images are mounted, if not where the store's daemon says.
    pub(super) mountpoint: Option<PathBuf>,
    /// What takes the writes to a root: `dir`, `dir:SIZE`, `tmpfs:SIZE`.
    pub(super) upper: Option<String>,
    /// Whether a root can be written to where the call does not say.
    #[serde(default)]
    pub(super) writable: bool,
    /// Images of boxes whose calls name none: `7`, `10-19` or `default` = image.
    #[serde(default)]
    pub(super) images: BTreeMap<String, String>,
}

impl IsolateConfig {
    /// The images, by box.
    pub(super) fn box_images(&self) -> Result<BoxImages, ShimError> {
        BoxImages::new(self.images.iter().map(|(boxes, image)| (boxes.as_str(), image.as_str())))
    }

    /// The upper of roots that can be written to.
    pub(super) fn upper(&self) -> Result<Upper, RootsError> {
        self.upper.as_deref().map_or(Ok(Upper::default()), str::parse)
    }
}

impl Config {
    /// Reads the default place, where there may be none, for a program that has more rights than its caller: it has to be
    /// such that only root can have written it.
    pub(super) fn load_trusted() -> anyhow::Result<Self> {
        let path = Path::new(DEFAULT_PATH);
        let named = || format!("configuration {}", path.display());
        // A file that only root can write, in a directory where somebody else can put another in its place.
        if let Some(directory) = path.parent() {
            match File::open(directory) {
                Ok(open) => shim::require_trusted(&open, directory).with_context(named)?,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
                Err(error) => return Err(error).with_context(named),
            }
        }
        let mut file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(error).with_context(named),
        };
        shim::require_trusted(&file, path).with_context(named)?;
        let mut text = String::new();
        file.read_to_string(&mut text).with_context(named)?;
        Self::parse(&text).with_context(named)
    }

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
        Self::parse(&text).with_context(|| format!("configuration {}", file.display()))
    }

    /// Reads a file's text. What is wrong with it is found here, whether or not the command at hand needs it.
    pub(super) fn parse(text: &str) -> anyhow::Result<Self> {
        let config: Self = toml::from_str(text).map_err(|error| {
            // The error itself is a picture of several lines.
            let before = error.span().and_then(|span| text.as_bytes().get(..span.start)).unwrap_or_default();
            let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
            anyhow::anyhow!("line {line}: {}", error.message().replace('\n', ", "))
        })?;
        if let Some(host) = &config.default_registry {
            Reference::parse("name", Some(host))?;
        }
        if let Some(platform) = &config.platform {
            platform.parse::<Platform>()?;
        }
        config.isolate.box_images().context("table [isolate.images]")?;
        config.isolate.upper().context("table [isolate]")?;
        config.upper(None)?;
        config.run.sandbox()?;
        config.run.box_ids()?;
        config.run.bwrap_user()?;
        Ok(config)
    }

    /// The platform that images are chosen for.
    pub(super) fn platform(&self, flag: Option<&str>) -> anyhow::Result<Platform> {
        match flag.or(self.platform.as_deref()) {
            None => Ok(Platform::host()),
            Some(text) => Ok(text.parse()?),
        }
    }

    /// The upper layer that a root gets.
    pub(super) fn upper(&self, flag: Option<Upper>) -> anyhow::Result<Upper> {
        match (flag, &self.root.upper) {
            (Some(upper), _) => Ok(upper),
            (None, Some(text)) => Ok(text.parse()?),
            (None, None) => Ok(Upper::default()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_optional_and_an_unknown_one_is_an_error() {
        let empty = Config::parse("").unwrap();
        assert!(empty.default_registry.is_none());
        let full = Config::parse(
            "default-registry = 'reg.example:5000'\nplain-http = ['a:1']\nplatform = 'linux/arm64'\n\
             store = '/s'\nrun-dir = '/r'\n[limits]\nlayer-size-mib = 7\nlayer-ratio = 30\n[mount]\nthreads = 3\ncache-mib = 64\nread-ahead-kib = 512\n\
             [root]\nupper-dir = '/u'\nupper = 'tmpfs:64M'\n\
             [run]\nsandbox = 'bwrap'\nbox-ids = '5-7'\nbwrap-user = '1000:5'\n\
             [isolate]\npath = '/i'\nmountpoint = '/images'\nupper = 'tmpfs:64M'\nwritable = true\n\
             [isolate.images]\ndefault = 'a'\n7 = 'b:1'\n10-19 = 'c'\n",
        )
        .unwrap();
        let image = |id| full.isolate.box_images().unwrap().of_box(id).map(ToString::to_string);
        assert_eq!((image(7).as_deref(), image(12).as_deref()), (Some("b:1"), Some("c:latest")));
        assert_eq!(full.upper(None).unwrap(), Upper::Tmpfs { size: 64 << 20 });
        assert_eq!(full.upper(Some(Upper::None)).unwrap(), Upper::None);
        assert_eq!(empty.upper(None).unwrap(), Upper::Dir { limit: None });
        assert_eq!(full.mount.cache_mib, Some(64));
        assert_eq!(full.limits.layer(), LayerLimits { tar_bytes: 7 << 20, ratio: 30 });
        assert_eq!(empty.limits.layer(), LayerLimits::default());
        assert_eq!(full.run.sandbox().unwrap(), SandboxKind::Bwrap);
        assert_eq!(full.run.box_ids().unwrap(), "5-7".parse().unwrap());
        assert_eq!(full.run.bwrap_user().unwrap(), "1000:5".parse().unwrap());
        assert_eq!(empty.run.box_ids().unwrap(), "900-999".parse().unwrap());
        let error = Config::parse("\n\ndefault_registry = 'x'").unwrap_err().to_string();
        assert!(error.starts_with("line 3: unknown field `default_registry`, expected one of"), "{error}");
    }

    #[test]
    fn wrong_values_are_found_when_the_file_is_read() {
        for (text, wanted) in [
            ("default-registry = 'no host'", "default registry `no host` is not a host"),
            ("platform = 'x'", "platform `x` is not of the form"),
            ("[mount]\nthreads = 0", "line 2: invalid value: integer `0`"),
            ("[limits]\nlayer-ratio = 0", "line 2: invalid value: integer `0`"),
            ("store =\nrun-dir = 1", "line 1: "),
            ("[run]\nsandbox = 'docker'", "sandbox `docker`: one of auto, isolate, bwrap is expected"),
            ("[run]\nbox-ids = '9-1'", "box ids `9-1` are not of the form FIRST-LAST"),
            ("[run]\nbwrap-user = 'root'", "bwrap-user `root`: it is not of the form UID[:GID], in numbers"),
            ("[root]\nupper = 'ram'", "upper `ram`: known are"),
            ("[isolate]\nupper = 'disk'", "table [isolate]"),
            ("[isolate.images]\nx = 'a'", "table [isolate.images]"),
        ] {
            let error = Config::parse(text).unwrap_err().to_string();
            assert!(error.starts_with(wanted) && !error.contains('\n'), "{text}: {error}");
        }
    }

    #[test]
    fn a_named_file_has_to_exist() {
        let error = Config::load(Some(Path::new("/nonexistent/config.toml"))).unwrap_err();
        assert!(format!("{error:#}").starts_with("configuration /nonexistent/config.toml: "));
    }
}

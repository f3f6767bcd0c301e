//! The configuration file: TOML. Every key is optional; an unknown key is an error.
//!
//! The manual page rcx-imagefs-config(5) describes the keys; a test compares the two.

mod environments;
mod erofs;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::num::{NonZeroU64, NonZeroUsize};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::Deserialize;

use self::environments::EnvironmentsConfig;
use self::erofs::ErofsConfig;
pub(in crate::cli) use self::erofs::PlainChoice;
use crate::cli::engine::EngineChoice;
use crate::cli::error::{self, ConfigurationError};
use crate::cli::output::plain;
use crate::error::ErrorCode;
use crate::image::{Platform, Reference};
use crate::index::LayerLimits;
use crate::registry::Mirror;
use crate::roots::{InodeWidth, RootsError, Upper};
use crate::sandbox::shim::{self, BoxImages, HostCommands, ShimError};
use crate::sandbox::{BoxRange, SandboxKind, User};

/// The configuration file if `--config` is not given. It may be missing.
pub(in crate::cli) const DEFAULT_PATH: &str = "/etc/rcx-imagefs/config.toml";

/// The content of the file. Options and environment variables override it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(in crate::cli) struct Config {
    /// Directory of the store.
    pub(in crate::cli) store: Option<PathBuf>,
    /// Group that may read the store: a name or a number.
    store_group: Option<String>,
    /// Directory of the control socket and of roots.
    pub(in crate::cli) run_dir: Option<PathBuf>,
    /// Registry of references without a host, instead of docker.io; names omit its host.
    pub(in crate::cli) default_registry: Option<String>,
    /// Registries with plain HTTP, besides those on loopback: `host` or `host:port`.
    #[serde(default)]
    pub(in crate::cli) plain_http: Vec<String>,
    /// Mirrors of registries, by the host of the registry: `host[:port][/prefix]`.
    #[serde(default)]
    mirrors: BTreeMap<String, Vec<String>>,
    /// Platform to choose from multi-platform images: `os/arch[/variant]`.
    pub(in crate::cli) platform: Option<String>,
    /// Engine of roots and runs.
    pub(in crate::cli) engine: Option<EngineChoice>,
    /// Limits of layers.
    #[serde(default)]
    pub(in crate::cli) limits: LimitsConfig,
    /// The engine `erofs`.
    #[serde(default)]
    pub(in crate::cli) erofs: ErofsConfig,
    /// The mount.
    #[serde(default)]
    pub(in crate::cli) mount: MountConfig,
    /// Writable roots.
    #[serde(default)]
    pub(in crate::cli) root: RootConfig,
    /// Isolated runs.
    #[serde(default)]
    pub(in crate::cli) run: RunConfig,
    /// The stand-in for isolate.
    #[serde(default)]
    pub(in crate::cli) isolate: IsolateConfig,
    /// The queue of environments.
    #[serde(default)]
    pub(in crate::cli) environments: EnvironmentsConfig,
}

/// Table `[limits]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(in crate::cli) struct LimitsConfig {
    /// Maximum size of a layer's tar, in MiB.
    layer_size_mib: Option<NonZeroU64>,
    /// Maximum ratio of a layer's tar to its blob; applies only if the tar is larger than 1 GiB.
    layer_ratio: Option<NonZeroU64>,
}

impl LimitsConfig {
    /// Returns the limits of layers that are pulled, loaded or indexed again.
    pub(in crate::cli) fn layer(&self) -> LayerLimits {
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
pub(in crate::cli) struct MountConfig {
    /// Number of threads that answer kernel requests.
    pub(in crate::cli) threads: Option<NonZeroUsize>,
    /// Memory for decoded spans, in MiB.
    pub(in crate::cli) cache_mib: Option<u64>,
    /// Kernel readahead on the mount, in KiB.
    pub(in crate::cli) read_ahead_kib: Option<u32>,
}

/// Table `[root]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(in crate::cli) struct RootConfig {
    /// Directory of uppers, instead of one in the store.
    pub(in crate::cli) upper_dir: Option<PathBuf>,
    /// Upper layer of roots: `dir`, `dir:SIZE`, `tmpfs:SIZE` or `none`.
    upper: Option<String>,
    /// Inode numbers of roots: `64bit` or `32bit`.
    inodes: Option<String>,
}

/// Table `[run]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(in crate::cli) struct RunConfig {
    /// Sandbox: `auto`, `isolate` or `bwrap`.
    sandbox: Option<String>,
    /// Boxes of runs without `--box-id`: `FIRST-LAST`.
    box_ids: Option<String>,
    /// User and group of programs under bubblewrap: `UID[:GID]`, in numbers.
    bwrap_user: Option<String>,
    /// Whether the image's `User` replaces `bwrap-user`.
    #[serde(default)]
    pub(in crate::cli) bwrap_image_user: bool,
}

impl RunConfig {
    /// Returns the sandbox to use.
    pub(in crate::cli) fn sandbox(&self) -> anyhow::Result<SandboxKind> {
        let Some(text) = &self.sandbox else { return Ok(SandboxKind::default()) };
        text.parse().map_err(|why| anyhow::anyhow!("sandbox `{text}`: {why}"))
    }

    /// Returns the boxes of runs that name no box.
    pub(in crate::cli) fn box_ids(&self) -> anyhow::Result<BoxRange> {
        self.box_ids.as_deref().map_or(Ok(BoxRange::default()), |text| Ok(text.parse()?))
    }

    /// Returns the user and group of programs under bubblewrap.
    pub(in crate::cli) fn bwrap_user(&self) -> anyhow::Result<User> {
        let Some(text) = &self.bwrap_user else { return Ok(User::default()) };
        text.parse().map_err(|why| anyhow::anyhow!("bwrap-user `{text}`: {why}"))
    }
}

/// Table `[isolate]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(in crate::cli) struct IsolateConfig {
    /// The real isolate's program file.
    pub(in crate::cli) path: Option<PathBuf>,
    /// Where the images are mounted, if not at the mountpoint of the store's daemon.
    pub(in crate::cli) mountpoint: Option<PathBuf>,
    /// Upper layer of writable roots: `dir`, `dir:SIZE` or `tmpfs:SIZE`.
    pub(in crate::cli) upper: Option<String>,
    /// Whether roots are writable unless the call overrides it.
    #[serde(default)]
    pub(in crate::cli) writable: bool,
    /// Whether a root gets names for its user and `localhost`, and a default `HOME`; true by default.
    pub(in crate::cli) inject: Option<bool>,
    /// Variables whose value in the image overrides that of the caller.
    env_from_image: Option<Vec<String>>,
    /// Commands that run on the host, whatever the box: absolute paths with `*`.
    #[serde(default)]
    host_commands: Vec<String>,
    /// Images of boxes whose calls name no image: `7`, `10-19` or `default` = image.
    #[serde(default)]
    pub(in crate::cli) images: BTreeMap<String, String>,
}

impl IsolateConfig {
    /// The images, by box.
    pub(in crate::cli) fn box_images(&self) -> Result<BoxImages, ShimError> {
        BoxImages::new(self.images.iter().map(|(boxes, image)| (boxes.as_str(), image.as_str())))
    }

    /// The commands that run on the host.
    pub(in crate::cli) fn host_commands(&self) -> Result<HostCommands, ShimError> {
        HostCommands::new(self.host_commands.iter().map(String::as_str))
    }

    /// The variables whose value in the image overrides that of the caller: by default `PATH`, because that of a worker is for
    /// programs of the host.
    pub(in crate::cli) fn env_from_image(&self) -> anyhow::Result<Vec<String>> {
        let names = self.env_from_image.clone().unwrap_or_else(|| vec!["PATH".to_owned()]);
        match names.iter().find(|name| name.is_empty() || name.contains(['=', '\0'])) {
            Some(name) => anyhow::bail!("env-from-image: `{}` is not the name of a variable", plain(name)),
            None => Ok(names),
        }
    }

    /// The upper of writable roots.
    pub(in crate::cli) fn upper(&self) -> Result<Upper, RootsError> {
        self.upper.as_deref().map_or(Ok(Upper::default()), str::parse)
    }
}

impl Config {
    /// Reads the default file on behalf of a set-uid program: fails unless only root can have written it.
    pub(in crate::cli) fn load_trusted() -> anyhow::Result<Self> {
        let path = Path::new(DEFAULT_PATH);
        Self::read_trusted(path).map_err(|source| ConfigurationError { path: path.to_owned(), source }.into())
    }

    fn read_trusted(path: &Path) -> anyhow::Result<Self> {
        // Whoever can write to a directory above the file can replace it.
        shim::require_trusted_path(path)?;
        let mut file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(error.into()),
        };
        shim::require_trusted(&file, path)?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        Self::parse(&text)
    }

    /// Reads `path`, or the default file, which may be missing.
    pub(in crate::cli) fn load(path: Option<&Path>) -> anyhow::Result<Self> {
        let file = path.unwrap_or(Path::new(DEFAULT_PATH));
        let text = match std::fs::read_to_string(file) {
            Err(error) if path.is_none() && error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self::default());
            }
            result => result.map_err(anyhow::Error::from),
        };
        text.and_then(|text| Self::parse(&text))
            .map_err(|source| ConfigurationError { path: file.to_owned(), source }.into())
    }

    /// Parses the text of a file. All values are checked, including those that the current command does not use.
    pub(in crate::cli) fn parse(text: &str) -> anyhow::Result<Self> {
        let config: Self = toml::from_str(text).map_err(|error| {
            // The error's own text has several lines, with an excerpt of the file.
            let before = error.span().and_then(|span| text.as_bytes().get(..span.start)).unwrap_or_default();
            let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
            anyhow::anyhow!("line {line}: {}", error.message().replace('\n', ", "))
        })?;
        if let Some(host) = &config.default_registry {
            Reference::parse("name", Some(host))?;
        }
        config.mirrors()?;
        if let Some(platform) = &config.platform {
            platform.parse::<Platform>()?;
        }
        config.isolate.box_images().context("table [isolate.images]")?;
        config.isolate.host_commands().context("table [isolate]")?;
        config.isolate.env_from_image().context("table [isolate]")?;
        config.isolate.upper().context("table [isolate]")?;
        config.erofs.plain_budget().context("table [erofs]")?;
        config.environments.registries().context("table [environments]")?;
        config.environments.check().context("table [environments]")?;
        config.upper(None)?;
        config.inodes(None)?;
        config.run.sandbox()?;
        config.run.box_ids()?;
        config.run.bwrap_user()?;
        Ok(config)
    }

    /// The mirrors of registries, by the host of the registry.
    pub(in crate::cli) fn mirrors(&self) -> anyhow::Result<BTreeMap<String, Vec<Mirror>>> {
        let parse = |(registry, mirrors): (&String, &Vec<String>)| {
            let name = Reference::parse("name", Some(registry)).context("table [mirrors]")?.name;
            // Docker Hub has several names.
            let host = name.host().unwrap_or(registry).to_owned();
            let parse = |mirror: &String| {
                mirror.parse().with_context(|| format!("table [mirrors]: mirror `{mirror}` of {registry}"))
            };
            Ok((host, mirrors.iter().map(parse).collect::<anyhow::Result<_>>()?))
        };
        self.mirrors.iter().map(parse).collect()
    }

    /// The number of the group that may read the store. The group must exist, unless the key is a number.
    pub(in crate::cli) fn store_group(&self) -> anyhow::Result<Option<u32>> {
        let Some(text) = &self.store_group else { return Ok(None) };
        if let Ok(number) = text.parse() {
            return Ok(Some(number));
        }
        let group = nix::unistd::Group::from_name(text).with_context(|| format!("store-group `{text}`"))?;
        let missing =
            || error::fail(ErrorCode::Configuration, format!("store-group `{text}` does not exist"));
        group.map(|group| Some(group.gid.as_raw())).ok_or_else(missing)
    }

    /// The platform to choose from multi-platform images.
    pub(in crate::cli) fn platform(&self, flag: Option<&str>) -> anyhow::Result<Platform> {
        match flag.or(self.platform.as_deref()) {
            None => Ok(Platform::host()),
            Some(text) => Ok(text.parse()?),
        }
    }

    /// The width of the inode numbers of a root.
    pub(in crate::cli) fn inodes(&self, flag: Option<InodeWidth>) -> anyhow::Result<InodeWidth> {
        match (flag, &self.root.inodes) {
            (Some(inodes), _) => Ok(inodes),
            (None, Some(text)) => Ok(text.parse()?),
            (None, None) => Ok(InodeWidth::default()),
        }
    }

    /// The upper layer of a root.
    pub(in crate::cli) fn upper(&self, flag: Option<Upper>) -> anyhow::Result<Upper> {
        match (flag, &self.root.upper) {
            (Some(upper), _) => Ok(upper),
            (None, Some(text)) => Ok(text.parse()?),
            (None, None) => Ok(Upper::default()),
        }
    }
}

#[cfg(test)]
mod tests;

//! The configuration file: TOML. Every key is optional; an unknown key is an error.
//!
//! The manual page rcx-imagefs-config(5) describes the keys; a test compares the two.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::num::{NonZeroU64, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use serde::Deserialize;

use super::engine::EngineChoice;
use super::error::{self, ConfigurationError};
use super::output::plain;
use crate::environments::{AllowedRegistries, BuildLimits, EnvironmentsPrefix, HardwareGroup, RevisionId};
use crate::error::ErrorCode;
use crate::image::{Platform, Reference};
use crate::index::LayerLimits;
use crate::registry::Mirror;
use crate::roots::{InodeWidth, RootsError, TreeMounts, Upper, parse_size};
use crate::sandbox::shim::{self, BoxImages, HostCommands, ShimError};
use crate::sandbox::{BoxRange, SandboxKind, User};

/// The configuration file if `--config` is not given. It may be missing.
pub(super) const DEFAULT_PATH: &str = "/etc/rcx-imagefs/config.toml";

/// The content of the file. Options and environment variables override it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Config {
    /// Directory of the store.
    pub(super) store: Option<PathBuf>,
    /// Group that may read the store: a name or a number.
    store_group: Option<String>,
    /// Directory of the control socket and of roots.
    pub(super) run_dir: Option<PathBuf>,
    /// Registry of references without a host, instead of docker.io; names omit its host.
    pub(super) default_registry: Option<String>,
    /// Registries with plain HTTP, besides those on loopback: `host` or `host:port`.
    #[serde(default)]
    pub(super) plain_http: Vec<String>,
    /// Mirrors of registries, by the host of the registry: `host[:port][/prefix]`.
    #[serde(default)]
    mirrors: BTreeMap<String, Vec<String>>,
    /// Platform to choose from multi-platform images: `os/arch[/variant]`.
    pub(super) platform: Option<String>,
    /// Engine of roots and runs.
    pub(super) engine: Option<EngineChoice>,
    /// Limits of layers.
    #[serde(default)]
    pub(super) limits: LimitsConfig,
    /// The engine `erofs`.
    #[serde(default)]
    pub(super) erofs: ErofsConfig,
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
    /// The queue of environments.
    #[serde(default)]
    pub(super) environments: EnvironmentsConfig,
}

/// Table `[limits]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct LimitsConfig {
    /// Maximum size of a layer's tar, in MiB.
    layer_size_mib: Option<NonZeroU64>,
    /// Maximum ratio of a layer's tar to its blob; applies only if the tar is larger than 1 GiB.
    layer_ratio: Option<NonZeroU64>,
}

impl LimitsConfig {
    /// Returns the limits of layers that are pulled, loaded or indexed again.
    pub(super) fn layer(&self) -> LayerLimits {
        let default = LayerLimits::default();
        LayerLimits {
            tar_bytes: self.layer_size_mib.map_or(default.tar_bytes, |mib| mib.get().saturating_mul(1 << 20)),
            ratio: self.layer_ratio.map_or(default.ratio, NonZeroU64::get),
        }
    }
}

/// Table `[erofs]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct ErofsConfig {
    /// Which layers become plain layers.
    #[serde(default)]
    pub(super) plain: PlainChoice,
    /// Disk space of all plain layers: a size as for an upper.
    plain_budget: Option<String>,
    /// Seconds for which the pages of an image without roots are kept.
    idle: Option<u64>,
    /// Whether the daemon decodes ahead what earlier runs have read.
    #[serde(default = "yes")]
    pub(super) prefetch: bool,
}

fn yes() -> bool {
    true
}

/// A value of the configuration's `plain`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum PlainChoice {
    /// Only those of `--plain`.
    #[default]
    Never,
    /// Also those that roots use: the daemon makes them.
    Used,
    /// Also those that are pulled or loaded.
    Always,
}

impl Default for ErofsConfig {
    fn default() -> Self {
        Self { plain: PlainChoice::default(), plain_budget: None, idle: None, prefetch: true }
    }
}

impl ErofsConfig {
    /// How long a holder keeps the superblock of an image without roots.
    pub(super) fn idle(&self) -> Duration {
        self.idle.map_or(TreeMounts::IDLE, Duration::from_secs)
    }

    /// The disk space of all plain layers, in bytes; `None` for the default.
    pub(super) fn plain_budget(&self) -> anyhow::Result<Option<u64>> {
        let parse = |text: &String| {
            parse_size(text).map_err(|why| anyhow::anyhow!("plain-budget `{text}` is invalid: {why}"))
        };
        self.plain_budget.as_ref().map(parse).transpose()
    }
}

/// Table `[environments]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct EnvironmentsConfig {
    /// Directory of the queue.
    pub(super) queue: Option<PathBuf>,
    /// Registries that base images may come from: `host[:port][/prefix]`. All, if the key is missing.
    registries: Option<Vec<String>>,
    /// Largest context: a size as for an upper.
    context_limit: Option<String>,
    /// Where images of environments are pushed, and the list of them: `HOST[:PORT][/PREFIX]`.
    registry: Option<String>,
    /// Longest build, in seconds.
    build_time: Option<NonZeroU64>,
    /// Disk space of a build: a size as for an upper.
    build_disk: Option<String>,
    /// Longest output of a build: a size as for an upper.
    build_log: Option<String>,
    /// File with the keys whose signatures of the list are accepted.
    pub(super) allowed_signers: Option<PathBuf>,
    /// Hardware group of this host's workers.
    hwgroup: Option<String>,
}

impl EnvironmentsConfig {
    /// The default of `context-limit`: 1 GiB. A build has no network, so its context may have packages.
    const CONTEXT_LIMIT: u64 = 1 << 30;
    /// The smallest `build-disk`.
    const BUILD_DISK_MIN: u64 = 16 << 20;
    /// The host in names of images that no registry has.
    const NO_REGISTRY: &str = "localhost";

    /// The registries that base images may come from; `None` if all are allowed.
    pub(super) fn registries(&self) -> anyhow::Result<Option<AllowedRegistries>> {
        let parse = |texts: &Vec<String>| AllowedRegistries::parse(texts).map_err(anyhow::Error::msg);
        self.registries.as_ref().map(parse).transpose()
    }

    /// Where the registry has the list of environments: what the option says, otherwise the configuration.
    pub(super) fn registry(&self, option: Option<&EnvironmentsPrefix>) -> anyhow::Result<EnvironmentsPrefix> {
        let given = option.cloned().map_or_else(|| self.prefix(), |prefix| Ok(Some(prefix)))?;
        given.ok_or_else(|| {
            error::fail_with_hint(
                ErrorCode::Usage,
                "no registry is given for the list of environments",
                "use `--registry HOST/PREFIX`, or set `registry` in the table `[environments]` of the configuration",
            )
        })
    }

    fn prefix(&self) -> anyhow::Result<Option<EnvironmentsPrefix>> {
        self.registry.as_ref().map(|text| Ok(text.parse()?)).transpose()
    }

    /// The hardware group of this host's workers.
    pub(super) fn hwgroup(&self) -> anyhow::Result<Option<HardwareGroup>> {
        self.hwgroup.as_ref().map(|text| Ok(text.parse()?)).transpose()
    }

    /// The largest context, in bytes.
    pub(super) fn context_limit(&self) -> anyhow::Result<u64> {
        size("context-limit", self.context_limit.as_deref(), Self::CONTEXT_LIMIT)
    }

    /// The limits of a build.
    pub(super) fn build_limits(&self) -> anyhow::Result<BuildLimits> {
        let disk = size("build-disk", self.build_disk.as_deref(), 10 << 30)?;
        if disk < Self::BUILD_DISK_MIN {
            anyhow::bail!("build-disk: a filesystem has at least {} bytes", Self::BUILD_DISK_MIN);
        }
        let log = size("build-log", self.build_log.as_deref(), 16 << 20)?;
        Ok(BuildLimits {
            time: Duration::from_secs(self.build_time.map_or(3600, NonZeroU64::get)),
            disk,
            log,
        })
    }

    /// The name of a revision's image: in the registry, or if there is none, only in the store.
    pub(super) fn image_of(&self, revision: &RevisionId) -> anyhow::Result<Reference> {
        let place = self.registry.as_deref().unwrap_or(Self::NO_REGISTRY);
        let reference =
            Reference::parse(&format!("{place}/{}:{}", revision.environment, revision.number), None)?;
        match reference.name.host() == place.split('/').next() {
            true => Ok(reference),
            false => anyhow::bail!("registry `{place}`: expected HOST[:PORT][/PREFIX]"),
        }
    }

    /// Checks the values.
    fn check(&self) -> anyhow::Result<()> {
        self.context_limit()?;
        self.build_limits()?;
        self.image_of(&"x@1".parse()?)?;
        self.prefix()?;
        self.hwgroup()?;
        Ok(())
    }

    /// Whether images are pushed to a registry.
    pub(super) fn has_registry(&self) -> bool {
        self.registry.is_some()
    }
}

/// A size of the table `[environments]`.
fn size(key: &str, text: Option<&str>, default: u64) -> anyhow::Result<u64> {
    let Some(text) = text else { return Ok(default) };
    parse_size(text).map_err(|why| anyhow::anyhow!("{key} `{text}` is invalid: {why}"))
}

/// Table `[mount]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct MountConfig {
    /// Number of threads that answer kernel requests.
    pub(super) threads: Option<NonZeroUsize>,
    /// Memory for decoded spans, in MiB.
    pub(super) cache_mib: Option<u64>,
    /// Kernel readahead on the mount, in KiB.
    pub(super) read_ahead_kib: Option<u32>,
}

/// Table `[root]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct RootConfig {
    /// Directory of uppers, instead of one in the store.
    pub(super) upper_dir: Option<PathBuf>,
    /// Upper layer of roots: `dir`, `dir:SIZE`, `tmpfs:SIZE` or `none`.
    upper: Option<String>,
    /// Inode numbers of roots: `64bit` or `32bit`.
    inodes: Option<String>,
}

/// Table `[run]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct RunConfig {
    /// Sandbox: `auto`, `isolate` or `bwrap`.
    sandbox: Option<String>,
    /// Boxes of runs without `--box-id`: `FIRST-LAST`.
    box_ids: Option<String>,
    /// User and group of programs under bubblewrap: `UID[:GID]`, in numbers.
    bwrap_user: Option<String>,
    /// Whether the image's `User` replaces `bwrap-user`.
    #[serde(default)]
    pub(super) bwrap_image_user: bool,
}

impl RunConfig {
    /// Returns the sandbox to use.
    pub(super) fn sandbox(&self) -> anyhow::Result<SandboxKind> {
        let Some(text) = &self.sandbox else { return Ok(SandboxKind::default()) };
        text.parse().map_err(|why| anyhow::anyhow!("sandbox `{text}`: {why}"))
    }

    /// Returns the boxes of runs that name no box.
    pub(super) fn box_ids(&self) -> anyhow::Result<BoxRange> {
        self.box_ids.as_deref().map_or(Ok(BoxRange::default()), |text| Ok(text.parse()?))
    }

    /// Returns the user and group of programs under bubblewrap.
    pub(super) fn bwrap_user(&self) -> anyhow::Result<User> {
        let Some(text) = &self.bwrap_user else { return Ok(User::default()) };
        text.parse().map_err(|why| anyhow::anyhow!("bwrap-user `{text}`: {why}"))
    }
}

/// Table `[isolate]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct IsolateConfig {
    /// The real isolate's program file.
    pub(super) path: Option<PathBuf>,
    /// Where the images are mounted, if not at the mountpoint of the store's daemon.
    pub(super) mountpoint: Option<PathBuf>,
    /// Upper layer of writable roots: `dir`, `dir:SIZE` or `tmpfs:SIZE`.
    pub(super) upper: Option<String>,
    /// Whether roots are writable unless the call overrides it.
    #[serde(default)]
    pub(super) writable: bool,
    /// Whether a root gets names for its user and `localhost`, and a default `HOME`; true by default.
    pub(super) inject: Option<bool>,
    /// Variables whose value in the image overrides that of the caller.
    env_from_image: Option<Vec<String>>,
    /// Commands that run on the host, whatever the box: absolute paths with `*`.
    #[serde(default)]
    host_commands: Vec<String>,
    /// Images of boxes whose calls name no image: `7`, `10-19` or `default` = image.
    #[serde(default)]
    pub(super) images: BTreeMap<String, String>,
}

impl IsolateConfig {
    /// The images, by box.
    pub(super) fn box_images(&self) -> Result<BoxImages, ShimError> {
        BoxImages::new(self.images.iter().map(|(boxes, image)| (boxes.as_str(), image.as_str())))
    }

    /// The commands that run on the host.
    pub(super) fn host_commands(&self) -> Result<HostCommands, ShimError> {
        HostCommands::new(self.host_commands.iter().map(String::as_str))
    }

    /// The variables whose value in the image overrides that of the caller: by default `PATH`, because that of a worker is for
    /// programs of the host.
    pub(super) fn env_from_image(&self) -> anyhow::Result<Vec<String>> {
        let names = self.env_from_image.clone().unwrap_or_else(|| vec!["PATH".to_owned()]);
        match names.iter().find(|name| name.is_empty() || name.contains(['=', '\0'])) {
            Some(name) => anyhow::bail!("env-from-image: `{}` is not the name of a variable", plain(name)),
            None => Ok(names),
        }
    }

    /// The upper of writable roots.
    pub(super) fn upper(&self) -> Result<Upper, RootsError> {
        self.upper.as_deref().map_or(Ok(Upper::default()), str::parse)
    }
}

impl Config {
    /// Reads the default file on behalf of a set-uid program: fails unless only root can have written it.
    pub(super) fn load_trusted() -> anyhow::Result<Self> {
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
    pub(super) fn load(path: Option<&Path>) -> anyhow::Result<Self> {
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
    pub(super) fn parse(text: &str) -> anyhow::Result<Self> {
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
    pub(super) fn mirrors(&self) -> anyhow::Result<BTreeMap<String, Vec<Mirror>>> {
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
    pub(super) fn store_group(&self) -> anyhow::Result<Option<u32>> {
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
    pub(super) fn platform(&self, flag: Option<&str>) -> anyhow::Result<Platform> {
        match flag.or(self.platform.as_deref()) {
            None => Ok(Platform::host()),
            Some(text) => Ok(text.parse()?),
        }
    }

    /// The width of the inode numbers of a root.
    pub(super) fn inodes(&self, flag: Option<InodeWidth>) -> anyhow::Result<InodeWidth> {
        match (flag, &self.root.inodes) {
            (Some(inodes), _) => Ok(inodes),
            (None, Some(text)) => Ok(text.parse()?),
            (None, None) => Ok(InodeWidth::default()),
        }
    }

    /// The upper layer of a root.
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
    fn every_key_is_optional_and_unknown_keys_are_errors() {
        let empty = Config::parse("").unwrap();
        assert!(empty.default_registry.is_none());
        let full = Config::parse(
            "default-registry = 'reg.example:5000'\nmirrors.'index.docker.io' = ['mirror.example/hub', 'b:1']\nplain-http = ['a:1']\nplatform = 'linux/arm64'\n\
             store = '/s'\nstore-group = '7'\nrun-dir = '/r'\n[limits]\nlayer-size-mib = 7\nlayer-ratio = 30\n[erofs]\nplain = 'used'\nplain-budget = '20G'\nidle = 300\nprefetch = false\n[mount]\nthreads = 3\ncache-mib = 64\nread-ahead-kib = 512\n\
             [root]\nupper-dir = '/u'\nupper = 'tmpfs:64M'\ninodes = '32bit'\n\
             [run]\nsandbox = 'bwrap'\nbox-ids = '5-7'\nbwrap-user = '1000:5'\nbwrap-image-user = true\n\
             [isolate]\npath = '/i'\nmountpoint = '/images'\nupper = 'tmpfs:64M'\nwritable = true\ninject = false\nenv-from-image = ['PATH', 'LANG']\nhost-commands = ['/usr/bin/recodex-*']\n\
             [environments]\nqueue = '/q'\nregistries = ['reg.example/lab']\ncontext-limit = '64M'\nregistry = 'reg.example/env'\nallowed-signers = '/k'\nhwgroup = 'group1'\n\
             [isolate.images]\ndefault = 'a'\n7 = 'b:1'\n10-19 = 'c'\n",
        )
        .unwrap();
        assert_eq!(full.mirrors().unwrap()["docker.io"].len(), 2);
        let image = |id| full.isolate.box_images().unwrap().of_box(id).map(ToString::to_string);
        assert_eq!((image(7).as_deref(), image(12).as_deref()), (Some("b:1"), Some("c:latest")));
        assert_eq!(full.upper(None).unwrap(), Upper::Tmpfs { size: 64 << 20 });
        assert_eq!(full.upper(Some(Upper::None)).unwrap(), Upper::None);
        assert_eq!(empty.upper(None).unwrap(), Upper::Dir { limit: None });
        assert_eq!(full.inodes(None).unwrap(), InodeWidth::Bits32);
        assert_eq!(full.inodes(Some(InodeWidth::Bits64)).unwrap(), InodeWidth::Bits64);
        assert_eq!(empty.inodes(None).unwrap(), InodeWidth::Bits64);
        assert_eq!((full.store_group().unwrap(), empty.store_group().unwrap()), (Some(7), None));
        assert_eq!(full.mount.cache_mib, Some(64));
        assert_eq!(
            (full.erofs.plain, full.erofs.plain_budget().unwrap()),
            (PlainChoice::Used, Some(20 << 30))
        );
        assert_eq!((full.erofs.idle(), full.erofs.prefetch), (Duration::from_secs(300), false));
        assert_eq!((empty.erofs.plain, empty.erofs.plain_budget().unwrap()), (PlainChoice::Never, None));
        assert_eq!((empty.erofs.idle(), empty.erofs.prefetch), (Duration::from_secs(60), true));
        assert_eq!(full.environments.queue.as_deref(), Some(Path::new("/q")));
        assert_eq!(
            (full.environments.context_limit().unwrap(), empty.environments.context_limit().unwrap()),
            (64 << 20, 1 << 30)
        );
        assert!(
            full.environments.registries().unwrap().is_some()
                && empty.environments.registries().unwrap().is_none()
        );
        assert_eq!(full.environments.registry(None).unwrap().to_string(), "reg.example/env");
        assert!(empty.environments.registry(None).is_err());
        assert_eq!(full.environments.hwgroup().unwrap(), Some("group1".parse().unwrap()));
        assert_eq!(full.limits.layer(), LayerLimits { tar_bytes: 7 << 20, ratio: 30 });
        assert_eq!(empty.limits.layer(), LayerLimits::default());
        assert_eq!(full.isolate.env_from_image().unwrap(), ["PATH", "LANG"]);
        assert_eq!(empty.isolate.env_from_image().unwrap(), ["PATH"]);
        assert_eq!((full.isolate.inject, empty.isolate.inject), (Some(false), None));
        assert_eq!(full.run.sandbox().unwrap(), SandboxKind::Bwrap);
        assert_eq!(full.run.box_ids().unwrap(), "5-7".parse().unwrap());
        assert_eq!(full.run.bwrap_user().unwrap(), "1000:5".parse().unwrap());
        assert!(full.run.bwrap_image_user && !empty.run.bwrap_image_user);
        assert_eq!(empty.run.box_ids().unwrap(), "900-999".parse().unwrap());
        let error = Config::parse("\n\ndefault_registry = 'x'").unwrap_err().to_string();
        assert!(error.starts_with("line 3: unknown field `default_registry`, expected one of"), "{error}");
    }

    #[test]
    fn invalid_values_are_errors_when_the_file_is_read() {
        for (text, expected) in [
            ("default-registry = 'no host'", "default registry `no host` is not a host"),
            ("[mirrors]\n'docker.io' = ['mirror']", "table [mirrors]: mirror `mirror` of docker.io"),
            ("[mirrors]\n'no host' = ['m:1']", "table [mirrors]"),
            ("[mirrors]\n'docker.io' = 'm:1'", "line 2: "),
            ("platform = 'x'", "platform `x` is not of the form"),
            ("[mount]\nthreads = 0", "line 2: invalid value: integer `0`"),
            ("[limits]\nlayer-ratio = 0", "line 2: invalid value: integer `0`"),
            (
                "[erofs]\nplain = 'sometimes'",
                "line 2: unknown variant `sometimes`, expected one of `never`, `used`",
            ),
            ("[erofs]\nplain-budget = '20 GB'", "table [erofs]"),
            ("[erofs]\nplain-budget = 20", "line 2: invalid type: integer `20`, expected a string"),
            ("[environments]\nregistries = ['lab']", "table [environments]"),
            ("[environments]\ncontext-limit = '1 GB'", "table [environments]"),
            ("[environments]\nregistry = 'env'", "table [environments]"),
            ("[environments]\nhwgroup = 'a b'", "table [environments]"),
            ("store =\nrun-dir = 1", "line 1: "),
            ("[run]\nsandbox = 'docker'", "sandbox `docker`: expected auto, isolate or bwrap"),
            ("[run]\nbox-ids = '9-1'", "box ids `9-1` do not have the form FIRST-LAST"),
            ("[run]\nbwrap-user = 'root'", "bwrap-user `root`: expected UID[:GID], in numbers"),
            ("[root]\nupper = 'ram'", "upper `ram` is invalid: expected"),
            ("[root]\ninodes = '16bit'", "inode numbers `16bit` are not supported: expected"),
            ("[isolate]\nupper = 'disk'", "table [isolate]"),
            ("[isolate]\nhost-commands = ['recodex-*']", "table [isolate]"),
            ("[isolate]\nenv-from-image = ['A=1']", "table [isolate]"),
            ("[isolate.images]\nx = 'a'", "table [isolate.images]"),
        ] {
            let error = Config::parse(text).unwrap_err().to_string();
            assert!(error.starts_with(expected) && !error.contains('\n'), "{text}: {error}");
        }
    }

    #[test]
    fn file_in_the_config_option_must_exist() {
        let error = Config::load(Some(Path::new("/nonexistent/config.toml"))).unwrap_err();
        assert!(format!("{error:#}").starts_with("configuration /nonexistent/config.toml: "));
    }
}

//! Chooses the engine of a root and prepares the image for it.

use std::io::IsTerminal as _;

use anyhow::Context as _;
use clap::ValueEnum;
use serde::Deserialize;

use super::{Context, error};
use crate::daemon::{AccountedImage, RunAccount};
use crate::error::ErrorCode;
use crate::image::{Image, ManifestDigest};
use crate::pipeline::{self, OpenImage};
use crate::roots::{Engine, HeldTree, LayerDirectories, Lower, TreeMounts, try_erofs_file};
use crate::sandbox::SandboxError;
use crate::store::{DaemonInfo, Store};

/// A value of `--engine` and of the configuration's `engine`. Without one: `erofs` if the kernel and the image allow it, otherwise
/// `fuse`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum EngineChoice {
    /// The first that works: erofs; fuse if the daemon answers; overlay2
    Auto,
    /// An EROFS of the image, which all its roots share: the fastest. The daemon serves the layers that are not plain files in the
    /// store. Needs Linux 6.12
    Erofs,
    /// The image's directory in the mount: nothing is unpacked, but the daemon must run
    Fuse,
    /// Each layer is unpacked once, into a directory that images share; no daemon
    Overlay2,
    /// A full copy of the image for each root: slow, and large on disk. Only for comparison with the other engines; for a
    /// plain directory, use `rcx-imagefs unpack`
    Unpack,
}

/// An image for a run, and the account of the run's reads.
pub(super) struct PreparedImage {
    pub(super) lower: Lower,
    /// `None` for an image whose bytes do not come from a daemon.
    pub(super) account: Option<(RunAccount, AccountedImage)>,
}

impl Context {
    /// Calls `attempt` with the engines of a choice until one can be used on this host and for the image.
    pub(super) fn with_engine<T>(
        &self,
        choice: Option<EngineChoice>,
        attempt: impl Fn(Engine) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let engines: &[Engine] = match choice.or(self.config.engine) {
            None => &[Engine::Erofs, Engine::Fuse],
            Some(EngineChoice::Auto) => &[Engine::Erofs, Engine::Fuse, Engine::Overlay2],
            Some(EngineChoice::Erofs) => &[Engine::Erofs],
            Some(EngineChoice::Fuse) => &[Engine::Fuse],
            Some(EngineChoice::Overlay2) => &[Engine::Overlay2],
            Some(EngineChoice::Unpack) => &[Engine::Unpack],
        };
        let (last, others) = engines.split_last().expect("every choice has an engine");
        for engine in others {
            match attempt(*engine) {
                Err(error) if is_out_of_reach(&error) => {
                    tracing::info!("not with the engine {engine}: {error:#}");
                }
                result => return result,
            }
        }
        attempt(*last)
    }

    /// Prepares an image for a run. `name` is the name to show in errors.
    pub(super) fn prepare(
        &self,
        store: &Store,
        image: &Image,
        name: &str,
        engine: Engine,
    ) -> anyhow::Result<PreparedImage> {
        // Before the image is opened, so that a daemon that is replaced in between is detected.
        let account = self.account(store, engine, image, name)?;
        let lower = self.lower(store, image, name, engine).map_err(|error| match &account {
            Some((account, image)) => account
                .failed_reads(std::process::id(), image)
                .map_or(error, |fault| SandboxError::from(fault).into()),
            None => error,
        })?;
        Ok(PreparedImage { lower, account })
    }

    /// Whether roots use tree images: the configuration allows it, and the kernel can mount them.
    pub(super) fn uses_tree_images(&self, store: &Store) -> bool {
        matches!(self.config.engine, None | Some(EngineChoice::Auto | EngineChoice::Erofs))
            && try_erofs_file(store.path()).is_ok()
    }

    /// Makes the tree images of images that were stored, if roots will use them.
    pub(super) fn make_tree_images(&self, store: &Store, images: impl IntoIterator<Item = ManifestDigest>) {
        if self.uses_tree_images(store) {
            pipeline::make_tree_images(store, images, &|| false);
        }
    }

    /// Opens the account of a run with the daemon of its image; `None` for an engine that needs no daemon.
    fn account(
        &self,
        store: &Store,
        engine: Engine,
        image: &Image,
        name: &str,
    ) -> anyhow::Result<Option<(RunAccount, AccountedImage)>> {
        let daemon = match engine {
            Engine::Fuse => self.daemon_of_fuse(store)?,
            // Without a daemon, all bytes come from files.
            Engine::Erofs => match store.running_daemon()? {
                Some(daemon) => daemon,
                None => return Ok(None),
            },
            Engine::Overlay2 | Engine::Unpack => return Ok(None),
        };
        let account = RunAccount::open(&daemon.socket, &daemon.mountpoint)?;
        Ok(Some((account, AccountedImage::new(name, image))))
    }

    /// Returns a mount of an image's tree image.
    pub(super) fn held_tree(&self, store: &Store, image: &Image) -> anyhow::Result<HeldTree> {
        let layers = store.running_daemon()?.and_then(|daemon| daemon.layers);
        let trees = TreeMounts::open(&self.run_dir)?.with_idle(self.config.erofs.idle());
        Ok(trees.mount(store, image, layers.as_deref())?)
    }

    fn daemon_of_fuse(&self, store: &Store) -> anyhow::Result<DaemonInfo> {
        let hint =
            "start one with `rcx-imagefs mount DIR`, or use `--engine overlay2`, which needs no daemon";
        self.daemon_or(store, hint)
    }

    /// Returns an image as the lower layers of a root.
    pub(super) fn lower(
        &self,
        store: &Store,
        image: &Image,
        name: &str,
        engine: Engine,
    ) -> anyhow::Result<Lower> {
        Ok(match engine {
            Engine::Erofs => Lower::in_tree(self.held_tree(store, image)?, name),
            Engine::Fuse => Lower::in_mount(&self.daemon_of_fuse(store)?.mountpoint, name.as_ref())?,
            Engine::Overlay2 => {
                // The lease keeps `gc` from freeing the layers while they are unpacked.
                let _lease = store.lease(None)?;
                let directories = LayerDirectories::open(store)?;
                directories.lower(store, image.digest(), name, &show_progress)?
            }
            Engine::Unpack => {
                let open = OpenImage::open(store, image, |_| None).with_context(|| name.to_owned())?;
                Lower::copy_of(open, name)
            }
        })
    }
}

/// Whether an engine cannot be used on this host or for this image, though another one may.
fn is_out_of_reach(error: &anyhow::Error) -> bool {
    let code = error::code_of(error.as_ref());
    matches!(
        code,
        ErrorCode::NoDaemon
            | ErrorCode::Timeout
            | ErrorCode::Kernel
            | ErrorCode::Mount
            | ErrorCode::UnsupportedImage
    )
}

/// Shows on a terminal how many layers are unpacked.
fn show_progress(done: usize, total: usize) {
    if std::io::stderr().is_terminal() {
        eprint!("\runpacking layers: {done} of {total}{}", if done == total { "\n" } else { "" });
    }
}

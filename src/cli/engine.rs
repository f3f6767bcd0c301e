//! Chooses the engine of a root and prepares the image for it.

use std::io::IsTerminal as _;
use std::time::Duration;

use anyhow::Context as _;
use clap::ValueEnum;
use serde::Deserialize;

use super::Context;
use crate::daemon::{AccountedImage, ControlRequest, RunAccount, ask};
use crate::image::Image;
use crate::pipeline::{open_image, read_image};
use crate::roots::{Engine, LayerDirectories, Lower, TreeMounts};
use crate::store::{DaemonInfo, Store};

/// How long to wait for a daemon's answer to a ping.
const PING: Duration = Duration::from_secs(2);

/// A value of `--engine` and of the configuration's `engine`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum EngineChoice {
    /// fuse if the daemon answers, otherwise overlay2
    Auto,
    /// The image's directory in the mount: nothing is unpacked, but the daemon must run
    #[default]
    Fuse,
    /// An EROFS of the image, which all its roots share: the fastest. The daemon serves the layers that are not decoded in the store;
    /// needs Linux 6.12
    Erofs,
    /// Each layer is unpacked once, into a directory that images share; no daemon
    Overlay2,
    /// A full copy of the image for each root: slow, and large on disk. Only for comparison with the other engines; for a
    /// plain directory, use `rcx-imagefs unpack`
    Unpack,
}

impl Context {
    /// Chooses the engine of a root.
    pub(super) fn engine(&self, store: &Store, choice: Option<EngineChoice>) -> anyhow::Result<Engine> {
        Ok(match choice.or(self.config.engine).unwrap_or_default() {
            EngineChoice::Fuse => Engine::Fuse,
            EngineChoice::Erofs => Engine::Erofs,
            EngineChoice::Overlay2 => Engine::Overlay2,
            EngineChoice::Unpack => Engine::Unpack,
            EngineChoice::Auto => match store.running_daemon()? {
                Some(daemon) if ask(&daemon.socket, ControlRequest::Ping, PING).is_ok() => Engine::Fuse,
                _ => Engine::Overlay2,
            },
        })
    }

    /// Opens the account of a run with the daemon of its image; `None` for an engine that needs no daemon. `name` is the name to
    /// show in errors.
    ///
    /// Call it before [`Self::lower`], so that a daemon that is replaced in between is detected.
    pub(super) fn account(
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

    fn daemon_of_fuse(&self, store: &Store) -> anyhow::Result<DaemonInfo> {
        let hint =
            "start one with `rcx-imagefs mount DIR`, or use `--engine overlay2`, which needs no daemon";
        self.daemon_or(store, hint)
    }

    /// Returns the image of a reference as the lower layers of a root.
    pub(super) fn lower(&self, store: &Store, text: &str, engine: Engine) -> anyhow::Result<Lower> {
        let image = self.find(store, text)?.image;
        let name = format!("{}@{}", self.familiar(&image.name), image.digest);
        Ok(match engine {
            Engine::Erofs => {
                let read = read_image(store, &image.digest).with_context(|| name.clone())?;
                let layers = store.running_daemon()?.map(|daemon| daemon.socket.with_file_name("layers"));
                let trees = TreeMounts::open(&self.run_dir)?;
                Lower::in_tree(trees.mount(store, &read, layers.as_deref())?, &name)
            }
            Engine::Fuse => Lower::in_mount(&self.daemon_of_fuse(store)?.mountpoint, name.as_ref())?,
            Engine::Overlay2 => {
                // The lease keeps `gc` from freeing the layers while they are unpacked.
                let _lease = store.lease(None)?;
                let directories = LayerDirectories::open(store)?;
                directories.lower(store, image.digest, &name, &show_progress)?
            }
            Engine::Unpack => {
                let open = open_image(store, image.digest, |_| None).with_context(|| name.clone())?;
                Lower::copy_of(open, &name)
            }
        })
    }
}

/// Shows on a terminal how many layers are unpacked.
fn show_progress(done: usize, total: usize) {
    if std::io::stderr().is_terminal() {
        eprint!("\runpacking layers: {done} of {total}{}", if done == total { "\n" } else { "" });
    }
}

//! Which engine shows an image to a root, and the image as that engine has it.

use std::io::IsTerminal as _;
use std::time::Duration;

use anyhow::Context as _;
use clap::ValueEnum;
use serde::Deserialize;

use super::{Context, error};
use crate::daemon::{ControlRequest, ask};
use crate::pipeline::open_image;
use crate::roots::{Engine, LayerDirectories, Lower};
use crate::store::Store;

/// How long a daemon may take to say that it is there.
const PING: Duration = Duration::from_secs(2);

/// What `--engine` and the configuration take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum EngineChoice {
    /// fuse where its daemon answers, else overlay2
    Auto,
    /// A directory of the mount: nothing is unpacked; needs the daemon
    #[default]
    Fuse,
    /// Layers unpacked once into directories that images share; needs no daemon
    Overlay2,
    /// A plain copy for each root
    Unpack,
}

impl Context {
    /// The engine to use, and the image that a reference stands for as the lower layers of a root.
    pub(super) fn lower(
        &self,
        store: &Store,
        text: &str,
        choice: Option<EngineChoice>,
    ) -> anyhow::Result<(Engine, Lower)> {
        let image = self.find(store, text)?.image;
        let name = format!("{}@{}", self.familiar(&image.name), image.digest);
        let engine = match choice.or(self.config.engine).unwrap_or_default() {
            EngineChoice::Fuse => Engine::Fuse,
            EngineChoice::Overlay2 => Engine::Overlay2,
            EngineChoice::Unpack => Engine::Unpack,
            EngineChoice::Auto => match store.running_daemon()? {
                Some(daemon) if ask(&daemon.socket, ControlRequest::Ping, PING).is_ok() => Engine::Fuse,
                _ => Engine::Overlay2,
            },
        };
        let lower = match engine {
            Engine::Fuse => {
                let daemon = store.running_daemon()?.ok_or_else(|| {
                    error::advise(
                        format!("no daemon serves the store {}", store.path().display()),
                        "start one with `rcx-imagefs mount DIR`, or use `--engine overlay2`, which needs none",
                    )
                })?;
                Lower::in_mount(&daemon.mountpoint, name.as_ref())?
            }
            Engine::Overlay2 => {
                // What is read must not be collected meanwhile.
                let _lease = store.lease(None)?;
                let directories = LayerDirectories::open(&store.layers_path()?)?;
                directories.lower(store, image.digest, &name, &tell)?
            }
            Engine::Unpack => {
                let open = open_image(store, image.digest, |_| None).with_context(|| name.clone())?;
                Lower::to_copy(open, &name)
            }
        };
        Ok((engine, lower))
    }
}

/// Says on a terminal how far the unpacking of layers is.
fn tell(done: usize, of: usize) {
    if std::io::stderr().is_terminal() {
        eprint!("\runpacking layers: {done} of {of}{}", if done == of { "\n" } else { "" });
    }
}

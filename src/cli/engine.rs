//! Chooses the engine of a root and prepares the image for it.

use std::io::IsTerminal as _;
use std::time::Duration;

use anyhow::Context as _;
use clap::ValueEnum;
use serde::Deserialize;

use super::Context;
use crate::daemon::{ControlRequest, ask};
use crate::pipeline::open_image;
use crate::roots::{Engine, LayerDirectories, Lower};
use crate::store::Store;

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
    /// Each layer is unpacked once, into a directory that images share; no daemon
    Overlay2,
    /// A full copy of the image for each root: slow, and large on disk. Only for comparison with the other engines; for a
    /// plain directory, use `rcx-imagefs unpack`
    Unpack,
}

impl Context {
    /// Chooses the engine and returns the image of a reference as the lower layers of a root.
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
                let hint = "start one with `rcx-imagefs mount DIR`, or use `--engine overlay2`, which needs no daemon";
                let daemon = self.daemon_or(store, hint)?;
                Lower::in_mount(&daemon.mountpoint, name.as_ref())?
            }
            Engine::Overlay2 => {
                // The lease keeps `gc` from freeing the layers while they are unpacked.
                let _lease = store.lease(None)?;
                let directories = LayerDirectories::open(&store.layers_path()?)?;
                directories.lower(store, image.digest, &name, &show_progress)?
            }
            Engine::Unpack => {
                let open = open_image(store, image.digest, |_| None).with_context(|| name.clone())?;
                Lower::copy_of(open, &name)
            }
        };
        Ok((engine, lower))
    }
}

/// Shows on a terminal how many layers are unpacked.
fn show_progress(done: usize, total: usize) {
    if std::io::stderr().is_terminal() {
        eprint!("\runpacking layers: {done} of {total}{}", if done == total { "\n" } else { "" });
    }
}

//! The mount of the layer files, over which the kernel mounts tree images.
//!
//! Only root may use it: the files hold what upper layers hide, and files of all users.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{CWD, Mode};
use tracing::{info, warn};

use super::error::DaemonError;
use super::status::LayerFilesStatus;
use crate::error::chain_text;
use crate::fs::{ImageFs, LayerFiles};
use crate::fuse::{self, CacheInvalidator, FuseMount, FuseSession, ReadAccounts, UnmountResult};
use crate::os::AtPath as _;

/// The mountpoint in the run directory.
pub const LAYERS: &str = "layers";
/// How far the kernel reads ahead in a layer, in KiB. Neighbouring files of a tar are often read together.
const READ_AHEAD_KIB: u32 = 512;
/// The kernel forgets a file this long after its last use, at the earliest, and after twice this time at the latest.
const IDLE: Duration = Duration::from_secs(60);

/// How often to look for records of what was read that are to be stored.
const STORE_TRACES: Duration = Duration::from_secs(2);

/// A served mount of the layer files. Unmounted on drop.
#[derive(Debug)]
pub(super) struct LayerMount {
    mount: FuseMount,
    session: FuseSession,
    files: Arc<LayerFiles>,
}

/// What `status` shows of the mount.
#[derive(Debug)]
pub(super) struct LayerMountCounters {
    path: PathBuf,
    requests: Arc<fuse::RequestCounters>,
    files: Arc<LayerFiles>,
}

impl LayerMount {
    /// Mounts and serves the layers of `fs` in the run directory, if this process is root. If it cannot, logs the reason: everything else
    /// works without these files.
    pub(super) fn start(
        run_dir: &Path,
        fs: &ImageFs,
        threads: NonZeroUsize,
        accounts: &Arc<ReadAccounts>,
    ) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            return None;
        }
        match Self::try_start(run_dir, fs, threads, accounts) {
            Ok(started) => Some(started),
            Err(error) => {
                warn!("no lazy layers, which the engine `erofs` uses: {}", chain_text(&error));
                None
            }
        }
    }

    fn try_start(
        run_dir: &Path,
        fs: &ImageFs,
        threads: NonZeroUsize,
        accounts: &Arc<ReadAccounts>,
    ) -> Result<Self, DaemonError> {
        let path = run_dir.join(LAYERS);
        // Does not touch a dead daemon's mount, which `fuse::mount` detaches.
        crate::os::make_directory(CWD, &path, Mode::RWXU).at("make directory", &path)?;
        let files = Arc::new(fs.layer_files());
        let mounted = fuse::mount(&path, false)?;
        let session =
            fuse::serve_layers(mounted.connection, Arc::clone(&files), threads, Arc::clone(accounts))?;
        let mount = mounted.mount;
        // Only after the session has started, as for the mount of the images.
        if let Err(error) = mount.set_readahead(READ_AHEAD_KIB) {
            warn!(%error, "cannot set the readahead of the layers; using the kernel's default");
        }
        Ok(Self { mount, session, files })
    }

    /// The files that are served.
    pub(super) fn files(&self) -> Arc<LayerFiles> {
        Arc::clone(&self.files)
    }

    pub(super) fn path(&self) -> &Path {
        self.mount.path()
    }

    pub(super) fn counters(&self) -> LayerMountCounters {
        LayerMountCounters {
            path: self.path().to_owned(),
            requests: Arc::clone(self.session.counters()),
            files: Arc::clone(&self.files),
        }
    }

    /// Makes the kernel forget idle files, so that their layers are closed. Does not end.
    pub(super) async fn close_idle(&self) {
        let mut interval = tokio::time::interval(IDLE);
        loop {
            interval.tick().await;
            let names = self.files.idle_names();
            if names.is_empty() {
                continue;
            }
            let invalidator: CacheInvalidator = self.session.invalidator().clone();
            // Waits for lookups in progress.
            let _ = tokio::task::spawn_blocking(move || invalidator.invalidate_names(&names)).await;
        }
    }

    /// Stores what was read first from the layers of each image, each time nothing has been read for a while. Does not end.
    pub(super) async fn store_traces(&self) {
        let mut interval = tokio::time::interval(STORE_TRACES);
        loop {
            interval.tick().await;
            let files = self.files();
            let _ = tokio::task::spawn_blocking(move || files.store_traces(false)).await;
        }
    }

    /// Unmounts. Does not wait for superblocks that still use the files: one outlives its last run by a minute.
    pub(super) fn stop(self) {
        self.files.store_traces(true);
        match self.mount.unmount() {
            Ok(UnmountResult::Detached) => {
                info!("EROFS mounts still use the lazy layers; their next read fails");
            }
            Ok(UnmountResult::Complete | UnmountResult::AlreadyGone) => {}
            Err(error) => warn!("{}", chain_text(&error)),
        }
    }
}

impl LayerMountCounters {
    pub(super) fn status(&self) -> LayerFilesStatus {
        LayerFilesStatus {
            mountpoint: self.path.clone(),
            known: self.files.known(),
            requests: self.requests.counts().map(|(name, count)| (name.to_owned(), count)).collect(),
        }
    }

    /// Number of requests answered with EIO or ETIMEDOUT.
    pub(super) fn errors(&self) -> u64 {
        self.requests.errors()
    }

    /// Number of these requests whose handler panicked.
    pub(super) fn panics(&self) -> u64 {
        self.requests.panics()
    }
}

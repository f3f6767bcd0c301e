//! Serves a FUSE connection, and invalidates the kernel's caches.

use std::ffi::OsStr;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use fuser::{Config, Filesystem, INodeNo, Notifier, Session, SessionACL};
use tracing::debug;

use super::SessionError;
use super::adapter::Adapter;
use super::failures::ReadAccounts;
use super::layer_adapter::LayerAdapter;
use super::requests::RequestCounters;
use crate::fs::{ImageFs, Ino, LayerFiles, NamespaceChanges};

/// A session that answers kernel requests in its own threads until the connection ends.
#[derive(Debug)]
pub struct FuseSession {
    thread: JoinHandle<io::Result<()>>,
    invalidator: CacheInvalidator,
    counters: Arc<RequestCounters>,
}

/// Invalidates the kernel's caches. A copy may outlive the session; it then has no effect.
#[derive(Debug, Clone)]
pub struct CacheInvalidator {
    notifier: Notifier,
}

/// Answers the requests of a connection with `fs` in `threads` threads. Records failed reads in `accounts`.
///
/// Calls `ended` when the session is over: the mount is gone, or the connection broke.
///
/// # Errors
///
/// FUSE_INIT negotiation failed, or a thread could not be started.
pub fn serve(
    connection: OwnedFd,
    fs: Arc<ImageFs>,
    threads: NonZeroUsize,
    accounts: Arc<ReadAccounts>,
    ended: impl FnOnce() + Send + 'static,
) -> Result<FuseSession, SessionError> {
    let counters = Arc::new(RequestCounters::default());
    start("fuse", Adapter::new(fs, Arc::clone(&counters), accounts), counters, connection, threads, ended)
}

/// The same for the mount of the layer files.
///
/// # Errors
///
/// FUSE_INIT negotiation failed, or a thread could not be started.
pub fn serve_layers(
    connection: OwnedFd,
    files: Arc<LayerFiles>,
    threads: NonZeroUsize,
    accounts: Arc<ReadAccounts>,
) -> Result<FuseSession, SessionError> {
    let counters = Arc::new(RequestCounters::default());
    let adapter = LayerAdapter::new(files, Arc::clone(&counters), accounts);
    start("fuse-layers", adapter, counters, connection, threads, || {})
}

fn start(
    name: &str,
    adapter: impl Filesystem,
    counters: Arc<RequestCounters>,
    connection: OwnedFd,
    threads: NonZeroUsize,
    ended: impl FnOnce() + Send + 'static,
) -> Result<FuseSession, SessionError> {
    let mut config = Config::default();
    config.n_threads = Some(threads.get());
    // All users have access: the kernel checks permissions itself (`default_permissions`).
    let session =
        Session::from_fd(adapter, connection, SessionACL::All, config).map_err(SessionError::Serve)?;
    let invalidator = CacheInvalidator { notifier: session.notifier() };
    let run = move || {
        let result = session.run();
        ended();
        result
    };
    let thread = thread::Builder::new().name(name.to_owned()).spawn(run).map_err(SessionError::Serve)?;
    Ok(FuseSession { thread, invalidator, counters })
}

impl FuseSession {
    /// The counters of the session's requests.
    #[must_use]
    pub fn counters(&self) -> &Arc<RequestCounters> {
        &self.counters
    }

    /// Invalidates the caches that the kernel keeps for this session.
    #[must_use]
    pub fn invalidator(&self) -> &CacheInvalidator {
        &self.invalidator
    }

    /// Waits until the connection ends.
    ///
    /// # Errors
    ///
    /// The connection broke.
    pub fn join(self) -> Result<(), SessionError> {
        let panicked = |_| Err(io::Error::other("the session's thread panicked"));
        self.thread.join().unwrap_or_else(panicked).map_err(SessionError::Serve)
    }
}

impl CacheInvalidator {
    /// Makes the kernel forget names, and the attributes and listings of directories.
    ///
    /// When this returns, no earlier answer is cached. The kernel waits for lookups in progress, so no request handler may
    /// wait for this call.
    pub fn invalidate(&self, changes: &NamespaceChanges) {
        for (parent, name) in &changes.names {
            log(self.notifier.inval_entry(INodeNo(parent.get()), OsStr::new(&**name)));
        }
        for directory in &changes.directories {
            // Offset 0 to the end: the kernel caches a listing in the pages of the directory.
            log(self.notifier.inval_inode(INodeNo(directory.get()), 0, 0));
        }
    }

    /// Makes the kernel forget names of the root. It then also forgets the files that nobody has open. No request handler may wait for
    /// this call.
    pub fn invalidate_names(&self, names: &[String]) {
        for name in names {
            log(self.notifier.inval_entry(INodeNo(Ino::ROOT.get()), OsStr::new(name)));
        }
    }
}

/// Logs that an invalidation failed: the kernel has nothing cached, or the connection has ended.
fn log(result: io::Result<()>) {
    if let Err(error) = result {
        debug!(%error, "the kernel did not invalidate a cache entry");
    }
}

//! Serves a connection in threads, and tells the kernel what to forget.

use std::ffi::OsStr;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use fuser::{Config, INodeNo, Notifier, Session, SessionACL};
use tracing::debug;

use super::SessionError;
use super::adapter::Adapter;
use super::requests::RequestCounters;
use crate::fs::{ImageFs, NamespaceChanges};

/// A session that answers the kernel, in threads of its own, until the connection ends.
#[derive(Debug)]
pub struct FuseSession {
    thread: JoinHandle<io::Result<()>>,
    kernel: CacheInvalidator,
    requests: Arc<RequestCounters>,
}

/// Tells the kernel what to forget. A copy may outlive the session; it then tells nobody.
#[derive(Debug, Clone)]
pub struct CacheInvalidator {
    notifier: Notifier,
}

/// Answers the requests of a connection with `fs`, with `threads` at once. `ended` is called when that is over: the mount
/// is gone, or the connection broke.
///
/// # Errors
///
/// The kernel's first request is not one that this program can answer, or a thread could not be started.
pub fn serve(
    connection: OwnedFd,
    fs: Arc<ImageFs>,
    threads: NonZeroUsize,
    ended: impl FnOnce() + Send + 'static,
) -> Result<FuseSession, SessionError> {
    let requests = Arc::new(RequestCounters::default());
    let adapter = Adapter::new(fs, Arc::clone(&requests));
    let mut config = Config::default();
    config.n_threads = Some(threads.get());
    // The kernel checks permissions (`default_permissions`), for everybody.
    let session =
        Session::from_fd(adapter, connection, SessionACL::All, config).map_err(SessionError::Serve)?;
    let kernel = CacheInvalidator { notifier: session.notifier() };
    let run = move || {
        let result = session.run();
        ended();
        result
    };
    let thread = thread::Builder::new().name("fuse".to_owned()).spawn(run).map_err(SessionError::Serve)?;
    Ok(FuseSession { thread, kernel, requests })
}

impl FuseSession {
    /// How many requests have come.
    #[must_use]
    pub fn requests(&self) -> &Arc<RequestCounters> {
        &self.requests
    }

    /// For telling the kernel what to forget.
    #[must_use]
    pub fn kernel(&self) -> &CacheInvalidator {
        &self.kernel
    }

    /// Waits for the end of the connection.
    ///
    /// # Errors
    ///
    /// How the connection broke.
    pub fn join(self) -> Result<(), SessionError> {
        let panicked = |_| Err(io::Error::other("the session's thread panicked"));
        self.thread.join().unwrap_or_else(panicked).map_err(SessionError::Serve)
    }
}

impl CacheInvalidator {
    /// Has the kernel forget names, and attributes and listings of directories. When this returns, no answer from before
    /// is cached: the kernel waits for lookups that are under way. So no handler may wait for this.
    pub fn forget(&self, changes: &NamespaceChanges) {
        let told = |result: io::Result<()>| {
            if let Err(error) = result {
                debug!(%error, "the kernel does not forget");
            }
        };
        for (parent, name) in &changes.names {
            told(self.notifier.inval_entry(INodeNo(parent.get()), OsStr::new(&**name)));
        }
        for directory in &changes.directories {
            // From offset 0 to the end: the pages of a directory are its cached listing.
            told(self.notifier.inval_inode(INodeNo(directory.get()), 0, 0));
        }
    }
}

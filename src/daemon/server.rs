//! Runs the daemon from lock to unmount.

use std::io;
use std::num::NonZeroUsize;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tracing::{error, info, warn};

use super::control::{ControlError, ControlListener, ControlRequest, ControlResponse, ask};
use super::status::DaemonStatus;
use super::watch::StoreWatch;
use crate::fs::{FsOptions, ImageFs, ImageSource, LoadError};
use crate::fuse::{self, CacheInvalidator, FuseSession, RequestCounters, SessionError, UnmountResult};
use crate::store::{DaemonInfo, Store, StoreError};

/// Name of the control socket in the run directory.
const SOCKET: &str = "control.sock";
/// For how long programs that still use a detached mount are waited for.
const DETACHED: Duration = Duration::from_secs(5);
/// For how long a command that changed the store waits until the mount shows it.
const REFRESH: Duration = Duration::from_secs(5);

/// Settings of a daemon.
#[derive(Debug, Clone)]
pub struct ServeOptions {
    /// Where the images are to be.
    pub mountpoint: PathBuf,
    /// Directory of the control socket; made where it is missing.
    pub run_dir: PathBuf,
    /// Registry whose names are shown without it.
    pub default_registry: Option<String>,
    /// Threads that answer the kernel; `None`: two for each processor, at least four, since a thread that decodes or opens
    /// an image answers nobody else.
    pub threads: Option<NonZeroUsize>,
    /// How far the kernel reads ahead in a file; `None`: as it does by itself.
    pub kernel_read_ahead_kib: Option<u32>,
    /// Whether the mountpoint may have entries, which are hidden then.
    pub allow_nonempty: bool,
    /// Of the filesystem.
    pub fs: FsOptions,
}

/// Why a daemon could not start, or ended other than by being told to.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The store cannot be served, or asked who does.
    #[error("store {path}")]
    Store {
        /// Its directory.
        path: PathBuf,
        /// What came of it.
        source: Box<StoreError>,
    },
    /// The store's references.
    #[error("references of the store")]
    References(#[source] LoadError),
    /// Mounting or serving.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The control socket.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// A directory of the run.
    #[error("run directory {path}")]
    RunDir {
        /// Which.
        path: PathBuf,
        /// What came of it.
        source: io::Error,
    },
    /// What the daemon works with would be behind its own mount.
    #[error("mountpoint {mountpoint} would hide {path}, which the daemon works with")]
    Hidden {
        /// The mountpoint.
        mountpoint: PathBuf,
        /// The store or the run directory.
        path: PathBuf,
    },
    /// What every process has, and this one does not get.
    #[error("{what}")]
    System {
        /// What it was.
        what: &'static str,
        /// What came of it.
        source: io::Error,
    },
}

/// Asks the daemon that serves `store`, if there is one, to show the store as it is, and waits until it does. Commands
/// that changed the store call this before they tell their user so.
///
/// # Errors
///
/// There is a daemon and it does not answer.
pub fn refresh(store: &Store) -> Result<(), DaemonError> {
    match store.running_daemon().map_err(|error| at_store(store, error))? {
        Some(daemon) => match ask(&daemon.socket, ControlRequest::Refresh, REFRESH) {
            // It ended in between.
            Err(ControlError::NoDaemon(_)) | Ok(_) => Ok(()),
            Err(error) => Err(error.into()),
        },
        None => Ok(()),
    }
}

fn at_store(store: &Store, source: StoreError) -> DaemonError {
    DaemonError::Store { path: store.path().to_owned(), source: Box::new(source) }
}

/// Serves `store` until SIGTERM or SIGINT, or until the mount is taken away. `ready` is called once the mount can be used.
///
/// # Errors
///
/// Another daemon serves the store, or what starting takes is not there.
pub fn serve(store: Store, options: &ServeOptions, ready: impl FnOnce(&Path)) -> Result<(), DaemonError> {
    let system = |what| move |source| DaemonError::System { what, source };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(system("start runtime"))?;
    raise_descriptor_limit();
    let result = runtime.block_on(run(store, options, ready));
    // A refresh may be waiting for a lookup that waits for an image; nobody needs either now.
    runtime.shutdown_background();
    result
}

async fn run(store: Store, options: &ServeOptions, ready: impl FnOnce(&Path)) -> Result<(), DaemonError> {
    let system = |what| move |source| DaemonError::System { what, source };
    let mut terminate = signal(SignalKind::terminate()).map_err(system("handle SIGTERM"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(system("handle SIGINT"))?;
    let run_dir = |source| DaemonError::RunDir { path: options.run_dir.clone(), source };
    std::fs::create_dir_all(&options.run_dir).map_err(run_dir)?;
    let socket = options.run_dir.canonicalize().map_err(run_dir)?.join(SOCKET);
    let mountpoint = &options.mountpoint;
    let info = DaemonInfo {
        pid: std::process::id(),
        socket: socket.clone(),
        mountpoint: mountpoint.canonicalize().unwrap_or_else(|_| mountpoint.clone()),
    };
    // Not only useless: a handler that opens the store would wait for itself.
    for path in [Some(store.path()), socket.parent()].into_iter().flatten() {
        let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        if path.starts_with(&info.mountpoint) {
            return Err(DaemonError::Hidden { mountpoint: info.mountpoint, path });
        }
    }
    let _lock = store.lock_daemon(&info).map_err(|error| at_store(&store, error))?;

    // Before the first look at the references, so that no change falls between the two.
    let watch = StoreWatch::new(&store.index_json_path()).map_err(system("watch the store"))?;
    let fs = Arc::new(ImageFs::new(
        ImageSource::new(store.clone(), options.default_registry.clone()),
        &options.fs,
    ));
    fs.refresh().map_err(DaemonError::References)?;
    let listener = ControlListener::bind(&socket)?;
    let mounted = fuse::mount(mountpoint, options.allow_nonempty)?;
    let threads = options.threads.unwrap_or_else(default_threads);
    let (end, ended) = oneshot::channel();
    let serving = fuse::serve(mounted.connection, Arc::clone(&fs), threads, move || {
        let _ = end.send(());
    })?;
    // Not before the session has begun: the kernel takes the lesser of this and what was negotiated then.
    if let Some(kib) = options.kernel_read_ahead_kib
        && let Err(error) = mounted.mount.set_readahead(kib)
    {
        warn!(%error, "the kernel's readahead stays as it is");
    }
    let daemon = Arc::new(Daemon {
        fs,
        kernel: serving.kernel().clone(),
        requests: Arc::clone(serving.requests()),
        refreshing: Mutex::new(()),
        started: Instant::now(),
        info: DaemonInfo { mountpoint: mounted.mount.path().to_owned(), ..info },
        store: store.path().to_owned(),
        threads,
    });
    info!(store = %store.path().display(), mountpoint = %mounted.mount.path().display(), %threads, "serving");
    notify_systemd("READY=1");
    ready(mounted.mount.path());

    let mut ended = ended;
    let handle = {
        let daemon = Arc::clone(&daemon);
        move |request| daemon.handle(request)
    };
    let gone = tokio::select! {
        _ = terminate.recv() => false,
        _ = interrupt.recv() => false,
        _ = &mut ended => true,
        () = listener.answer(handle) => false,
        () = follow(&watch, &daemon) => false,
    };
    notify_systemd("STOPPING=1");
    if gone {
        info!("the mount has been taken away");
        drop(mounted.mount);
        return end_of(serving);
    }
    match mounted.mount.unmount()? {
        UnmountResult::Clean | UnmountResult::Before => {}
        UnmountResult::Detached => warn!("programs still use the mount; waiting {DETACHED:?} for them"),
    }
    match tokio::time::timeout(DETACHED, ended).await {
        Ok(_) => end_of(serving),
        Err(_) => {
            warn!("programs that still use the mount lose it now");
            Ok(())
        }
    }
}

/// Waits for the session's thread, which has said that it ends.
fn end_of(serving: FuseSession) -> Result<(), DaemonError> {
    Ok(serving.join()?)
}

/// Shows what the store publishes, whenever that changes.
async fn follow(watch: &StoreWatch, daemon: &Arc<Daemon>) {
    loop {
        if let Err(error) = watch.changed().await {
            error!(%error, "the store is not watched any more");
            return std::future::pending().await;
        }
        let daemon = Arc::clone(daemon);
        // What the change is reported by, if anything goes wrong, is the log.
        let _ = tokio::task::spawn_blocking(move || daemon.refresh()).await;
    }
}

/// What the control socket speaks for.
#[derive(Debug)]
struct Daemon {
    fs: Arc<ImageFs>,
    kernel: CacheInvalidator,
    requests: Arc<RequestCounters>,
    /// Held until the kernel has forgotten what it must: whoever asks for a refresh that another has begun gets the answer
    /// when that one is done too. Handlers never take it.
    refreshing: Mutex<()>,
    started: Instant,
    info: DaemonInfo,
    store: PathBuf,
    threads: NonZeroUsize,
}

impl Daemon {
    fn handle(&self, request: ControlRequest) -> ControlResponse {
        match request {
            ControlRequest::Ping => ControlResponse::Pong,
            ControlRequest::Status => ControlResponse::Status(Box::new(self.status())),
            ControlRequest::Refresh => match self.refresh() {
                Ok(()) => ControlResponse::Refreshed,
                Err(error) => ControlResponse::Error(format!("references of the store: {error}")),
            },
        }
    }

    fn refresh(&self) -> Result<(), LoadError> {
        let _one = self.refreshing.lock().unwrap_or_else(PoisonError::into_inner);
        let changes = self.fs.refresh().inspect_err(|error| {
            error!(%error, "references of the store cannot be read; the mount stays as it was");
        })?;
        self.kernel.forget(&changes);
        Ok(())
    }

    fn status(&self) -> DaemonStatus {
        DaemonStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: self.info.pid,
            mountpoint: self.info.mountpoint.clone(),
            store: self.store.clone(),
            uptime_seconds: self.started.elapsed().as_secs(),
            threads: self.threads.get(),
            filesystem: self.fs.status(),
            requests: self.requests.counts().map(|(name, count)| (name.to_owned(), count)).collect(),
            errors: self.requests.errors(),
            panics: self.requests.panics(),
        }
    }
}

fn default_threads() -> NonZeroUsize {
    let processors = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    NonZeroUsize::new(processors * 2).map_or(MIN_THREADS, |threads| threads.max(MIN_THREADS))
}

const MIN_THREADS: NonZeroUsize = NonZeroUsize::new(4).expect("four is not zero");

/// Each open layer is an open file, and a thousand images have thousands of layers.
fn raise_descriptor_limit() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = rustix::process::setrlimit(Resource::Nofile, raised) {
        warn!(%error, "the limit of open files stays as it is");
    }
}

/// Tells systemd, where it waits for that (sd_notify(3)).
fn notify_systemd(state: &str) {
    let Some(name) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let address = match name.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        _ => SocketAddr::from_pathname(&name),
    };
    let sent = address.and_then(|address| {
        let socket = UnixDatagram::unbound()?;
        // Without a reader, sending would wait for room.
        socket.set_nonblocking(true)?;
        socket.send_to_addr(state.as_bytes(), &address)
    });
    if let Err(error) = sent {
        warn!(%error, "systemd is not told {state}");
    }
}

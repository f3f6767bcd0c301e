//! Runs the daemon, from taking the store's lock to unmounting.

use std::num::NonZeroUsize;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tracing::{error, info, warn};

use super::control::{ControlError, ask};
use super::error::DaemonError;
use super::layer_mount::{LayerMount, LayerMountCounters};
use super::listener::ControlListener;
use super::protocol::{ControlRequest, ControlResponse};
use super::status::{DaemonStatus, PlainLayersStatus};
use super::upkeep::{DerivedUpkeep, PlainUpkeep};
use super::watch::StoreWatch;
use crate::error::chain_text;
use crate::fs::{FsOptions, ImageFs, ImageSource, LoadError};
use crate::fuse::{self, CacheInvalidator, ReadAccounts, RequestCounters, UnmountResult};
use crate::image::ManifestDigest;
use crate::os::{AtPath as _, ignore_poison};
use crate::pipeline::{describe_image, list_images};
use crate::store::{DaemonInfo, Refs, Store, StoreError};

/// Name of the control socket in the run directory.
const SOCKET: &str = "control.sock";
/// How long to wait for programs that still use a detached mount.
const DETACHED: Duration = Duration::from_secs(5);
/// The interval at which images that nobody has used for a while are closed.
const CLOSE_UNUSED: Duration = Duration::from_secs(30);
/// How long a command that changed the store waits until the mount shows the change.
const REFRESH: Duration = Duration::from_secs(5);

/// Settings of a daemon.
#[derive(Debug, Clone)]
pub struct ServeOptions {
    /// Where to mount the images.
    pub mountpoint: PathBuf,
    /// Directory of the control socket. Created if missing.
    pub run_dir: PathBuf,
    /// The registry that the mount omits from the names of images.
    pub default_registry: Option<String>,
    /// Number of threads that answer kernel requests. `None`: two for each processor and at least four, because a thread that
    /// decodes a span or opens an image cannot answer other requests.
    pub threads: Option<NonZeroUsize>,
    /// The kernel's readahead in KiB; `None` for the kernel's default.
    pub kernel_read_ahead_kib: Option<u32>,
    /// Whether the mountpoint may have entries. The mount hides them.
    pub allow_nonempty: bool,
    /// Whether images get the tree images that they lack.
    pub makes_tree_images: bool,
    /// Whether layers that are used become plain layers.
    pub makes_plain: bool,
    /// Settings of the filesystem.
    pub fs: FsOptions,
}

/// The control socket of the daemon with this run directory.
#[must_use]
pub fn control_socket(run_dir: &Path) -> PathBuf {
    run_dir.join(SOCKET)
}

/// Makes the daemon that serves `store`, if any, show the current content of the store, and waits until it does.
///
/// Commands that change the store must call this before they report success.
///
/// # Errors
///
/// A daemon serves the store but does not answer.
pub fn refresh(store: &Store) -> Result<(), DaemonError> {
    match store.running_daemon().map_err(|error| at_store(store, error))? {
        Some(daemon) => match ask(&daemon.socket, ControlRequest::Refresh, REFRESH) {
            // The daemon has just ended.
            Err(ControlError::NoDaemon(_)) | Ok(_) => Ok(()),
            Err(error) => Err(error.into()),
        },
        None => Ok(()),
    }
}

fn at_store(store: &Store, source: StoreError) -> DaemonError {
    DaemonError::Store { path: store.path().to_owned(), source: Box::new(source) }
}

/// Serves `store` until SIGTERM, SIGINT or an unmount. Calls `ready` when the mount is usable.
///
/// # Errors
///
/// Another daemon serves the store, or the daemon cannot start or unmount.
pub fn serve(store: Store, options: &ServeOptions, ready: impl FnOnce(&Path)) -> Result<(), DaemonError> {
    let system = |failure| move |source| DaemonError::System { failure, source };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(system("cannot start the tokio runtime"))?;
    raise_descriptor_limit();
    let result = runtime.block_on(run(store, options, ready));
    // Does not wait for a refresh, which may wait for a lookup that is opening an image.
    runtime.shutdown_background();
    result
}

async fn run(store: Store, options: &ServeOptions, ready: impl FnOnce(&Path)) -> Result<(), DaemonError> {
    let system = |failure| move |source| DaemonError::System { failure, source };
    let mut terminate = signal(SignalKind::terminate()).map_err(system("cannot handle SIGTERM"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(system("cannot handle SIGINT"))?;
    let run_dir = &options.run_dir;
    crate::os::make_directories(run_dir, rustix::fs::Mode::from_raw_mode(0o755))?;
    let socket = control_socket(&run_dir.canonicalize().at("resolve run directory", run_dir)?);
    let mountpoint = &options.mountpoint;
    let info = DaemonInfo {
        pid: std::process::id(),
        socket: socket.clone(),
        mountpoint: mountpoint.canonicalize().unwrap_or_else(|_| mountpoint.clone()),
        layers: None,
    };
    check_not_hidden(&store, &info)?;
    let mut lock = store.lock_daemon(&info).map_err(|error| at_store(&store, error))?;

    // Start watching before the references are first read, so that no change is missed.
    let watch = StoreWatch::new(&store.index_json_path()).map_err(system("cannot watch the store"))?;
    let fs = Arc::new(ImageFs::new(
        ImageSource::new(store.clone(), options.default_registry.clone()),
        &options.fs,
    ));
    fs.refresh().map_err(DaemonError::References)?;
    let listener = ControlListener::bind(&socket)?;
    let mounted = fuse::mount(mountpoint, options.allow_nonempty)?;
    let threads = options.threads.unwrap_or_else(default_threads);
    let (end, ended) = oneshot::channel();
    let accounts = Arc::new(ReadAccounts::default());
    let ended_by_kernel = move || {
        let _ = end.send(());
    };
    let session =
        fuse::serve(mounted.connection, Arc::clone(&fs), threads, Arc::clone(&accounts), ended_by_kernel)?;
    // Only after the session has started: the kernel uses the smaller of this value and the negotiated one.
    if let Some(kib) = options.kernel_read_ahead_kib
        && let Err(error) = mounted.mount.set_readahead(kib)
    {
        warn!(%error, "cannot set the kernel's readahead; using the default");
    }
    let run_dir = socket.parent().unwrap_or(run_dir);
    let layers = LayerMount::start(run_dir, &fs, threads, &accounts);
    let info = DaemonInfo {
        mountpoint: mounted.mount.path().to_owned(),
        layers: layers.as_ref().map(|layers| layers.path().to_owned()),
        ..info
    };
    lock.publish(&info).map_err(|error| at_store(&store, error))?;
    let daemon = Arc::new(Daemon {
        fs,
        invalidator: session.invalidator().clone(),
        counters: Arc::clone(session.counters()),
        accounts,
        layers: layers.as_ref().map(LayerMount::counters),
        refreshing: Mutex::new(()),
        started: Instant::now(),
        info,
        store: store.clone(),
        threads,
    });
    info!(store = %store.path().display(), mountpoint = %mounted.mount.path().display(), %threads, "serving");
    notify_systemd("READY=1");
    ready(mounted.mount.path());
    let _upkeep = DerivedUpkeep::start(store.clone(), options.makes_tree_images);
    let used = layers.as_ref().filter(|_| options.makes_plain).map(LayerMount::files);
    let _plain = used.map(|files| PlainUpkeep::start(store.clone(), files));

    let mut ended = ended;
    let handle = {
        let daemon = Arc::clone(&daemon);
        move |request| daemon.handle(request)
    };
    let unmounted = tokio::select! {
        _ = terminate.recv() => false,
        _ = interrupt.recv() => false,
        _ = &mut ended => true,
        () = listener.answer(handle) => false,
        () = follow(&watch, &daemon) => false,
        () = look_after_layers(layers.as_ref()) => false,
        () = close_unused(&daemon) => false,
    };
    notify_systemd("STOPPING=1");
    if unmounted {
        info!("the mount was removed");
        drop(mounted.mount);
        layers.into_iter().for_each(LayerMount::stop);
        return Ok(session.join()?);
    }
    match mounted.mount.unmount()? {
        UnmountResult::Complete | UnmountResult::AlreadyGone => {}
        UnmountResult::Detached => warn!("programs still use the mount; waiting up to {DETACHED:?} for them"),
    }
    // After the images, whose users may also use the layers.
    layers.into_iter().for_each(LayerMount::stop);
    match tokio::time::timeout(DETACHED, ended).await {
        // The session's thread is about to end.
        Ok(_) => Ok(session.join()?),
        Err(_) => {
            warn!("programs still use the mount; their next access to it fails");
            Ok(())
        }
    }
}

/// Checks that the mount would not hide the store or the control socket: a request that opened one of them through the mount
/// would wait for itself.
fn check_not_hidden(store: &Store, info: &DaemonInfo) -> Result<(), DaemonError> {
    for path in [Some(store.path()), info.socket.parent()].into_iter().flatten() {
        let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        if path.starts_with(&info.mountpoint) {
            return Err(DaemonError::Hidden { mountpoint: info.mountpoint.clone(), path });
        }
    }
    Ok(())
}

/// Refreshes the mount whenever the store's references change.
async fn follow(watch: &StoreWatch, daemon: &Arc<Daemon>) {
    loop {
        if let Err(error) = watch.changed().await {
            error!(%error, "cannot watch the store any more; changes by other programs do not appear");
            return std::future::pending().await;
        }
        let daemon = Arc::clone(daemon);
        // `refresh` logs its errors.
        let _ = tokio::task::spawn_blocking(move || daemon.refresh()).await;
    }
}

async fn look_after_layers(layers: Option<&LayerMount>) {
    match layers {
        Some(layers) => {
            tokio::join!(layers.close_idle(), layers.store_traces());
        }
        None => std::future::pending().await,
    }
}

/// Closes images that nobody has used for a while, again and again.
async fn close_unused(daemon: &Arc<Daemon>) {
    loop {
        tokio::time::sleep(CLOSE_UNUSED).await;
        let fs = Arc::clone(&daemon.fs);
        let _ = tokio::task::spawn_blocking(move || fs.close_unused()).await;
    }
}

/// The state behind the control socket.
#[derive(Debug)]
struct Daemon {
    fs: Arc<ImageFs>,
    invalidator: CacheInvalidator,
    counters: Arc<RequestCounters>,
    accounts: Arc<ReadAccounts>,
    layers: Option<LayerMountCounters>,
    /// Held until the kernel's caches are invalidated, so that a concurrent refresh is answered only when the first one is
    /// complete. FUSE handlers never take this lock.
    refreshing: Mutex<()>,
    started: Instant,
    info: DaemonInfo,
    store: Store,
    threads: NonZeroUsize,
}

impl Daemon {
    fn handle(&self, request: ControlRequest) -> ControlResponse {
        match request {
            ControlRequest::Ping => ControlResponse::Pong(self.accounts.mark()),
            ControlRequest::Status => ControlResponse::Status(Box::new(self.status())),
            ControlRequest::Images => match list_images(&self.store) {
                Ok(images) => ControlResponse::Images(images),
                Err(error) => ControlResponse::Error(chain_text(&error)),
            },
            ControlRequest::Image { digest } => self.image(digest),
            ControlRequest::ReadFailures { since, readers } => {
                ControlResponse::ReadFailures(self.accounts.failures_since(since, readers))
            }
            ControlRequest::Refresh => match self.refresh() {
                Ok(()) => ControlResponse::Refreshed,
                Err(error) => {
                    ControlResponse::Error(format!("cannot read the references of the store: {error}"))
                }
            },
        }
    }

    /// Describes an image that has a name. The digest of any other document in the store must not lead to its content.
    fn image(&self, digest: ManifestDigest) -> ControlResponse {
        let is_named = |refs: Refs| refs.images.iter().any(|image| image.digest == digest);
        match self.store.refs().map(is_named) {
            Ok(true) => match describe_image(&self.store, &digest) {
                Ok(description) => ControlResponse::Image(Box::new(description)),
                Err(error) => ControlResponse::UnreadableImage((&error).into()),
            },
            Ok(false) => ControlResponse::Error(format!("no image in the store has the digest {digest}")),
            Err(error) => ControlResponse::Error(chain_text(&error)),
        }
    }

    fn refresh(&self) -> Result<(), LoadError> {
        let _lock = ignore_poison(self.refreshing.lock());
        let changes = self.fs.refresh().inspect_err(|error| {
            error!(%error, "cannot read the references of the store; the mount is unchanged");
        })?;
        self.invalidator.invalidate(&changes);
        Ok(())
    }

    fn plain_layers(&self) -> PlainLayersStatus {
        // A directory that cannot be read is reported when a layer is used.
        let sizes = self.store.plain_sizes().unwrap_or_default();
        PlainLayersStatus { count: sizes.len(), bytes: sizes.values().sum() }
    }

    fn status(&self) -> DaemonStatus {
        let layers = self.layers.as_ref();
        DaemonStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: self.info.pid,
            mountpoint: self.info.mountpoint.clone(),
            store: self.store.path().to_owned(),
            uptime_seconds: self.started.elapsed().as_secs(),
            threads: self.threads.get(),
            filesystem: self.fs.status(),
            requests: self.counters.counts().map(|(name, count)| (name.to_owned(), count)).collect(),
            reads: self.accounts.total_reads(),
            layer_files: layers.map(LayerMountCounters::status),
            plain_layers: self.plain_layers(),
            errors: self.counters.errors() + layers.map_or(0, LayerMountCounters::errors),
            panics: self.counters.panics() + layers.map_or(0, LayerMountCounters::panics),
        }
    }
}

fn default_threads() -> NonZeroUsize {
    let processors = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    NonZeroUsize::new(processors * 2).map_or(MIN_THREADS, |threads| threads.max(MIN_THREADS))
}

const MIN_THREADS: NonZeroUsize = NonZeroUsize::new(4).expect("four is not zero");

/// Raises the limit on open files: each open layer needs a descriptor, and a thousand images have thousands of layers.
fn raise_descriptor_limit() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = rustix::process::setrlimit(Resource::Nofile, raised) {
        warn!(%error, "cannot raise the limit on open files");
    }
}

/// Notifies systemd if it has asked for notifications (sd_notify(3)).
fn notify_systemd(state: &str) {
    let Some(name) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let address = match name.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        _ => SocketAddr::from_pathname(&name),
    };
    let sent = address.and_then(|address| {
        let socket = UnixDatagram::unbound()?;
        // A full socket that nobody reads must not block the daemon.
        socket.set_nonblocking(true)?;
        socket.send_to_addr(state.as_bytes(), &address)
    });
    if let Err(error) = sent {
        warn!(%error, "cannot notify systemd of {state}");
    }
}

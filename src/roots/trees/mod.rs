//! The erofs engine: one EROFS superblock for each image and host, shared by all roots of the image.
//!
//! A superblock for each root would throw the page cache away with the root. So a small process, the *holder*, keeps the
//! superblock in a mount namespace of its own, and hands out clones of the mount ([`holder`]). The first root of an image
//! starts it; it ends when the image has had no root for a while.
//!
//! ```text
//! <run-dir>/trees/NAME         the socket of a holder; only root may enter the directory
//! <run-dir>/trees/NAME.lock    held while a holder starts or ends
//! ```
//!
//! NAME is made from the key of the tree image ([`TreeKey`]) and the origin of its devices. A superblock whose devices are
//! served by a daemon is of no use once that daemon has ended, and is not found any more.

mod holder;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};
use rustix::io::Errno;

use self::holder::Holder;
use super::RootsError;
use super::mounts::{HeldTree, OPEN_LAYER, mount_tree_image, wire};
use super::trusted::{check_trusted, open_trusted};
use crate::erofs::{TreeDevice, TreeFile};
use crate::fs::layer_file_name;
use crate::image::{Image, TreeKey};
use crate::os::{self, AtPath as _, NamedLock, PathError, Sharing, lock_named};
use crate::pipeline::{self, PipelineError};
use crate::store::Store;

/// The directory of the sockets in the run directory.
const TREES: &str = "trees";
/// How long to wait while another process starts or ends a holder.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a daemon may take to answer.
const DAEMON_TIMEOUT: Duration = Duration::from_secs(10);
/// Digits of the key in the name of a socket.
const KEY_DIGITS: usize = 32;

/// The superblocks of tree images on this host.
#[derive(Debug)]
pub struct TreeMounts {
    dir: OwnedFd,
    path: PathBuf,
    idle: Duration,
}

/// Where the layers are that are no files.
#[derive(Debug)]
struct LazyLayers {
    dir: OwnedFd,
    path: PathBuf,
    /// The device of the filesystem: the same in every mount namespace, and not used again while a mounted tree image has files
    /// of it.
    device: u64,
}

impl TreeMounts {
    /// How long a holder keeps the superblock of an image without roots, unless it is told otherwise.
    pub const IDLE: Duration = Duration::from_secs(60);

    /// Opens the directory of the sockets in a run directory; makes the directories that do not exist.
    ///
    /// # Errors
    /// A directory cannot be made, or another user could change it.
    pub fn open(run_dir: &Path) -> Result<Self, RootsError> {
        os::make_directories(run_dir, Mode::from_raw_mode(0o755))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let run = rustix::fs::open(run_dir, flags, Mode::empty()).at("open", run_dir)?;
        check_trusted(&run, run_dir)?;
        let path = run_dir.join(TREES);
        os::make_directory(&run, TREES, Mode::RWXU).at("make directory", &path)?;
        let dir = open_trusted(run.as_fd(), TREES, &path)?;
        // Another process may have relative paths.
        let path = path.canonicalize().at("resolve", &path)?;
        Ok(Self { dir, path, idle: Self::IDLE })
    }

    /// Sets how long holders that are started from now on keep the superblock of an image without roots.
    #[must_use]
    pub fn with_idle(self, idle: Duration) -> Self {
        Self { idle, ..self }
    }

    /// Returns a mount of a superblock that exists.
    fn shared(&self, key: &TreeKey, layers: Option<&Path>) -> Result<Option<HeldTree>, RootsError> {
        if let Some(tree) = self.ask(&socket_name(key, None), None)? {
            return Ok(Some(tree));
        }
        match LazyLayers::open(layers)? {
            Some(lazy) => self.ask(&socket_name(key, Some(lazy.device)), Some(lazy.device)),
            None => Ok(None),
        }
    }

    /// Returns a mount of an image. Makes its tree image and starts its holder if they do not exist.
    ///
    /// `layers` is the directory in which a daemon serves layers, if one runs.
    ///
    /// # Errors
    /// The tree image cannot be made, the kernel refuses it, or a layer is neither a file nor served by a daemon.
    pub fn mount(&self, store: &Store, image: &Image, layers: Option<&Path>) -> Result<HeldTree, RootsError> {
        let key = pipeline::tree_key(image);
        if let Some(tree) = self.shared(&key, layers)? {
            return Ok(tree);
        }
        let digest = image.digest();
        let failed =
            |source: PipelineError| RootsError::StoredImage { image: digest, source: Box::new(source) };
        // The lease keeps `gc` from freeing the files before they are open.
        let _lease = store.lease(None)?;
        let tree = pipeline::tree_image(store, image).map_err(failed)?;
        self.start(store, &key, &tree, layers)
    }

    /// Does the same with a tree image that exists. Returns `None` if it does not, or cannot be used: no layer is read to make it.
    ///
    /// # Errors
    /// The kernel refuses the tree image, or a layer is neither a file nor served by a daemon.
    pub fn mount_made(
        &self,
        store: &Store,
        image: &Image,
        layers: Option<&Path>,
    ) -> Result<Option<HeldTree>, RootsError> {
        let key = pipeline::tree_key(image);
        if let Some(tree) = self.shared(&key, layers)? {
            return Ok(Some(tree));
        }
        let failed = |source| RootsError::StoredImage { image: image.digest(), source: Box::new(source) };
        let tree = pipeline::existing_tree_image(store, &key).map_err(failed)?;
        tree.map(|tree| self.start(store, &key, &tree, layers)).transpose()
    }

    /// Starts a holder, unless another process has started it meanwhile. Returns a mount of it.
    fn start(
        &self,
        store: &Store,
        key: &TreeKey,
        tree: &TreeFile,
        layers: Option<&Path>,
    ) -> Result<HeldTree, RootsError> {
        let (devices, lazy) = open_devices(store, key, tree.devices(), layers)?;
        let lazy = lazy.map(|lazy| lazy.device);
        let name = &socket_name(key, lazy);
        let Some(lock) = self.lock(name, START_TIMEOUT)? else {
            let busy = io::Error::from(io::ErrorKind::TimedOut);
            return Err(PathError::new("lock", self.path.join(lock_name(name)), busy).into());
        };
        if let Some(tree) = self.ask(name, lazy)? {
            return Ok(tree);
        }
        let fds: Vec<_> = devices.iter().map(File::as_fd).collect();
        let mount = mount_tree_image("rcx-imagefs", tree.file().as_fd(), &fds)?;
        // The locks of plain layers keep them from being removed to make room.
        Holder::start(self, name, mount, devices)?;
        drop(lock);
        let ended = || io::Error::other("the process has ended");
        self.ask(name, lazy)?
            .ok_or_else(|| PathError::new("ask the holder of", self.path.join(name), ended()).into())
    }

    /// Asks the holder with this name for a mount. Returns `None` if there is no such holder.
    fn ask(&self, name: &str, layers: Option<u64>) -> Result<Option<HeldTree>, RootsError> {
        let path = self.path.join(name);
        let Some(connection) = wire::connect(self.dir.as_fd(), name).at("connect to", &path)? else {
            return Ok(None);
        };
        let mount = match wire::receive(connection.as_fd()) {
            Ok(Some(mount)) => mount,
            // The holder was about to end.
            Ok(None) | Err(Errno::CONNRESET) => return Ok(None),
            Err(errno) => return Err(PathError::new("ask the holder of", path, errno).into()),
        };
        Ok(Some(HeldTree::new(mount, connection, layers).at("stat", &path)?))
    }

    /// Takes the lock under which a holder starts or ends. Dropping it releases it.
    fn lock(&self, name: &str, timeout: Duration) -> Result<Option<StartLock<'_>>, PathError> {
        let (name, path) = (lock_name(name), self.path.join(lock_name(name)));
        let open = || {
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = rustix::fs::openat(&self.dir, &name, flags, Mode::RUSR | Mode::WUSR);
            file.map(Some).at("open", &path)
        };
        let deadline = Some(Instant::now() + timeout);
        match lock_named(self.dir.as_fd(), &path, Sharing::Exclusive, deadline, open)? {
            NamedLock::Locked(file) => Ok(Some(StartLock { trees: self, name, file })),
            NamedLock::Busy | NamedLock::Missing => Ok(None),
        }
    }
}

/// Returns whether a daemon still serves layers in this filesystem, in the directory `path`. A daemon that does not answer in time
/// counts as serving.
pub(super) fn serves_layers(path: &Path, device: u64, timeout: Duration) -> Result<bool, PathError> {
    let Some(lazy) = LazyLayers::open(Some(path))? else { return Ok(false) };
    let is_dead = || {
        let answer = os::statfs_within(path, timeout).at("statfs", path)?;
        Ok(matches!(answer, Some(Err(Errno::NOTCONN | Errno::CONNABORTED))))
    };
    Ok(lazy.device == device && !is_dead()?)
}

impl LazyLayers {
    /// Does the same as [`LazyLayers::open`], and checks that the daemon answers: whoever uses its files waits for it.
    fn of_daemon(path: Option<&Path>) -> Result<Option<Self>, PathError> {
        let Some(lazy) = Self::open(path)? else { return Ok(None) };
        match os::statfs_within(&lazy.path, DAEMON_TIMEOUT).at("statfs", &lazy.path)? {
            Some(Ok(())) => Ok(Some(lazy)),
            Some(Err(Errno::NOTCONN | Errno::CONNABORTED)) => Ok(None),
            Some(Err(errno)) => Err(PathError::new("statfs", lazy.path, errno)),
            None => Err(PathError::new("statfs", lazy.path, io::Error::from(io::ErrorKind::TimedOut))),
        }
    }

    /// Returns `None` if no daemon serves layers there. Sends no request to a daemon.
    fn open(path: Option<&Path>) -> Result<Option<Self>, PathError> {
        let Some(path) = path else { return Ok(None) };
        let dir = match rustix::fs::open(path, OPEN_LAYER, Mode::empty()) {
            Err(Errno::NOENT | Errno::NOTCONN) => return Ok(None),
            result => result.at("open", path)?,
        };
        // Sends no request to the daemon.
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        let stat = rustix::fs::statx(&dir, "", flags, StatxFlags::TYPE).at("stat", path)?;
        Ok(Some(Self {
            dir,
            path: path.to_owned(),
            device: rustix::fs::makedev(stat.stx_dev_major, stat.stx_dev_minor),
        }))
    }
}

/// Opens the devices of a tree image: plain layers where the store has them, and others from the daemon. Also returns where the
/// others are.
fn open_devices(
    store: &Store,
    key: &TreeKey,
    devices: &[TreeDevice],
    layers: Option<&Path>,
) -> Result<(Vec<File>, Option<LazyLayers>), RootsError> {
    let mut lazy = None;
    let mut opened = Vec::with_capacity(devices.len());
    for device in devices {
        let plain = pipeline::plain_layer(store, &device.layer)
            .map_err(|source| RootsError::PlainLayer { layer: device.layer, source: Box::new(source) })?;
        if let Some(plain) = plain.filter(|plain| plain.device_size() == device.size) {
            opened.push(plain.into_file());
            continue;
        }
        if lazy.is_none() {
            lazy = LazyLayers::of_daemon(layers)?;
        }
        let Some(lazy) = &lazy else { return Err(RootsError::NoLayer(device.layer)) };
        // The daemon records what is read from the files of this tree image.
        let name = layer_file_name(device.layer, Some(key));
        let path = lazy.path.join(&name);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file: File = rustix::fs::openat(&lazy.dir, &name, flags, Mode::empty()).at("open", &path)?.into();
        let actual = file.metadata().at("stat", &path)?.len();
        if actual != device.size {
            let error = io::Error::other(format!("it has {actual} bytes instead of {}", device.size));
            return Err(PathError::new("use", path, error).into());
        }
        opened.push(file);
    }
    Ok((opened, lazy))
}

/// The name of a holder's socket.
fn socket_name(key: &TreeKey, layers: Option<u64>) -> String {
    let mut name = key.hex();
    name.truncate(KEY_DIGITS);
    match layers {
        Some(device) => format!("{name}-{device:x}"),
        None => name,
    }
}

fn lock_name(name: &str) -> String {
    format!("{name}.lock")
}

/// The lock under which a holder starts or ends. Its file is removed with it.
#[derive(Debug)]
struct StartLock<'a> {
    trees: &'a TreeMounts,
    name: String,
    file: OwnedFd,
}

impl Drop for StartLock<'_> {
    fn drop(&mut self) {
        // A process that waits for the lock finds the file gone, and makes another one.
        let _ = rustix::fs::unlinkat(&self.trees.dir, &self.name, AtFlags::empty());
        os::unlock(&self.file);
    }
}

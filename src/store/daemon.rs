//! The lock and the description of the daemon: at most one daemon serves a store, and other commands can find it.
//!
//! The daemon holds the private lock, that of `locks/daemon`, which only the store's owner can open. The file `daemon`, which
//! all users can read, describes the daemon. The daemon locks that file too, unless another process holds its lock. This
//! visible lock shows that the description is valid: to users who cannot open `locks/daemon`, and to version 0.1, whose daemon
//! takes only the visible lock. Any user can take the visible lock, so nothing else depends on it.

use std::fs::File;
use std::io::{Seek as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use super::Store;
use super::dir::read_bounded;
use super::error::StoreError;
use super::layout::{FILE_MODE, Subdir};
use super::locks::Flock;
use crate::os::{self, AtPath as _, Sharing};

/// The file that describes the daemon, and the lock file below `locks/`.
const DAEMON: &str = "daemon";
/// Largest file that describes a daemon and is read, in bytes.
const INFO_MAX: u64 = 64 << 10;
/// How long a daemon may take to write its [`DaemonInfo`] after it has taken the lock.
const INFO_WAIT: Duration = Duration::from_secs(2);
/// [`Store::running_daemon`] holds the lock for some microseconds. A process that holds it for longer than this is a daemon.
const QUERY_WAIT: Duration = Duration::from_millis(200);

/// The daemon that serves a store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DaemonInfo {
    /// The process ID.
    pub pid: u32,
    /// The control socket.
    pub socket: PathBuf,
    /// The mountpoint of the images.
    pub mountpoint: PathBuf,
    /// The directory of the layer files, which only root may use; `None` if the daemon does not serve them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers: Option<PathBuf>,
}

/// The content of the file that describes the daemon.
#[derive(Serialize, Deserialize)]
struct DaemonFile {
    #[serde(flatten)]
    info: DaemonInfo,
    /// Whether this daemon holds the lock of `locks/daemon`. Version 0.1 does not.
    #[serde(default)]
    holds_private_lock: bool,
}

/// The exclusive right to serve a store. Released when dropped or when the process dies.
///
/// The file `daemon` and its content are kept: otherwise, two daemons of version 0.1 could lock two files with the same name,
/// and [`Store::last_daemon`] could not find the last mountpoint.
#[derive(Debug)]
pub struct DaemonLock {
    file: File,
    path: PathBuf,
    /// The lock of the file `daemon`; `None` if another process holds it.
    _visible: Option<Flock>,
    _private: Flock,
}

impl DaemonLock {
    /// Publishes another description of this daemon.
    pub fn publish(&mut self, info: &DaemonInfo) -> Result<(), StoreError> {
        let content = DaemonFile { info: info.clone(), holds_private_lock: true };
        let json = serde_json::to_vec(&content)
            .map_err(|source| StoreError::Json { path: self.path.clone(), source })?;
        // A reader that finds the end of a longer, earlier description reads again.
        self.file.rewind().at("write", &self.path)?;
        self.file.write_all(&json).at("write", &self.path)?;
        self.file.set_len(json.len() as u64).at("write", &self.path)?;
        Ok(())
    }
}

impl Store {
    /// Takes the daemon lock of this store and publishes `info` to other commands.
    ///
    /// Fails with [`StoreError::DaemonRuns`] if another daemon serves the store.
    pub fn lock_daemon(&self, info: &DaemonInfo) -> Result<DaemonLock, StoreError> {
        let top = self.make_top()?;
        let path = top.path_of(DAEMON);
        let file = top.file_with(DAEMON, OFlags::RDWR | OFlags::CREATE, FILE_MODE)?;
        let runs = |info: DaemonInfo| StoreError::DaemonRuns { pid: info.pid, mountpoint: info.mountpoint };
        let locks = self.make_subdir(Subdir::Locks)?;
        let Some(private) = Flock::open(&locks, DAEMON, Sharing::Exclusive, Some(QUERY_WAIT))? else {
            return Err(runs(wait_for_info(&file, &path)?));
        };
        // A second descriptor of the same open file, since `Flock` owns its file.
        let visible = file.try_clone().at("open", &path)?;
        let deadline = Some(Instant::now() + QUERY_WAIT);
        let visible = if os::lock_until(&visible, Sharing::Exclusive, deadline).at("lock", &path)? {
            Some(Flock { file: visible })
        } else if let Some(old) = old_daemon(&file, &path)? {
            return Err(runs(old));
        } else {
            let path = path.display();
            tracing::warn!(
                "a process that is not a daemon holds the lock of {path}; users without access to the store's locks may not find this daemon"
            );
            None
        };
        let mut lock = DaemonLock { file, path, _visible: visible, _private: private };
        lock.publish(info)?;
        Ok(lock)
    }

    /// Returns the daemon that serves this store; `None` if no daemon runs.
    pub fn running_daemon(&self) -> Result<Option<DaemonInfo>, StoreError> {
        let Some(top) = self.top()? else { return Ok(None) };
        let path = top.path_of(DAEMON);
        let Some(file) = top.file(DAEMON)? else { return Ok(None) };
        match self.is_private_lock_held() {
            Ok(true) => wait_for_info(&file, &path).map(Some),
            Ok(false) if is_locked(&file, &path)? => old_daemon(&file, &path),
            Err(StoreError::Permission { .. }) if is_locked(&file, &path)? => {
                wait_for_info(&file, &path).map(Some)
            }
            Ok(false) | Err(StoreError::Permission { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Returns the daemon that serves this store now, otherwise the last one. Its mountpoint may be unmounted.
    pub fn last_daemon(&self) -> Result<Option<DaemonInfo>, StoreError> {
        let Some(top) = self.top()? else { return Ok(None) };
        let path = top.path_of(DAEMON);
        let Some(file) = top.file(DAEMON)? else { return Ok(None) };
        // The file is empty while a daemon starts, and after a daemon of version 0.1 has ended.
        let bytes = read_bounded(&file, &path, INFO_MAX)?;
        match serde_json::from_slice::<DaemonFile>(&bytes) {
            Ok(content) => Ok(Some(content.info)),
            Err(_) => self.running_daemon(),
        }
    }

    fn is_private_lock_held(&self) -> Result<bool, StoreError> {
        let Some(locks) = self.subdir(Subdir::Locks)? else { return Ok(false) };
        let Some(file) = locks.file(DAEMON)? else { return Ok(false) };
        is_locked(&file, &locks.path_of(DAEMON))
    }
}

/// Whether another open file holds an exclusive lock of `file`.
fn is_locked(file: &File, path: &Path) -> Result<bool, StoreError> {
    if os::try_lock(file, Sharing::Shared).at("lock", path)? {
        os::unlock(file);
        return Ok(false);
    }
    Ok(true)
}

/// Returns the daemon of version 0.1 that holds the visible lock; `None` if the holder is not a daemon.
///
/// Call it only if the visible lock is held and the private lock is free.
fn old_daemon(file: &File, path: &Path) -> Result<Option<DaemonInfo>, StoreError> {
    let owner = file.metadata().at("stat", path)?.uid();
    let runs =
        |pid: u32| std::fs::metadata(format!("/proc/{pid}")).is_ok_and(|process| process.uid() == owner);
    match read_info(file, path) {
        // The description of a newer daemon that was killed: a running one would hold the private lock.
        Ok(DaemonFile { holds_private_lock: true, .. }) | Err(StoreError::Json { .. }) => Ok(None),
        Ok(DaemonFile { info, .. }) => Ok(runs(info.pid).then_some(info)),
        Err(error) => Err(error),
    }
}

/// Reads the description of the daemon that holds a lock; waits if the daemon has not written it yet.
fn wait_for_info(file: &File, path: &Path) -> Result<DaemonInfo, StoreError> {
    let deadline = Instant::now() + INFO_WAIT;
    loop {
        match read_info(file, path) {
            Err(StoreError::Json { .. }) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5));
            }
            result => return result.map(|content| content.info),
        }
    }
}

fn read_info(mut file: &File, path: &Path) -> Result<DaemonFile, StoreError> {
    file.rewind().at("read", path)?;
    let bytes = read_bounded(file, path, INFO_MAX)?;
    serde_json::from_slice(&bytes).map_err(|source| StoreError::Json { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::new_store;

    #[test]
    fn second_daemon_is_refused_with_the_info_of_the_first() {
        let (_dir, store) = new_store();
        assert_eq!(store.running_daemon().unwrap(), None);
        let info =
            DaemonInfo { pid: 4711, socket: "/run/s".into(), mountpoint: "/images".into(), layers: None };
        let lock = store.lock_daemon(&info).unwrap();
        assert_eq!(store.running_daemon().unwrap(), Some(info.clone()));
        let error = store.lock_daemon(&DaemonInfo { pid: 1, ..info.clone() }).unwrap_err();
        assert!(
            matches!(&error, StoreError::DaemonRuns { pid: 4711, mountpoint } if mountpoint == Path::new("/images"))
        );
        drop(lock);
        assert_eq!(store.running_daemon().unwrap(), None);
        assert_eq!(store.last_daemon().unwrap(), Some(info));
    }

    /// Takes the visible lock through a separate open file, as another process does.
    fn lock_visible_file(store: &Store, sharing: Sharing) -> File {
        let file =
            store.make_top().unwrap().file_with(DAEMON, OFlags::RDWR | OFlags::CREATE, FILE_MODE).unwrap();
        assert!(os::try_lock(&file, sharing).unwrap());
        file
    }

    #[test]
    fn visible_lock_of_another_program_is_not_taken_for_a_daemon_and_blocks_none() {
        for sharing in [Sharing::Shared, Sharing::Exclusive] {
            let (_dir, store) = new_store();
            let foreign = lock_visible_file(&store, sharing);
            assert_eq!(store.running_daemon().unwrap(), None);
            let info = DaemonInfo {
                pid: std::process::id(),
                socket: "/run/s".into(),
                mountpoint: "/images".into(),
                layers: None,
            };
            let lock = store.lock_daemon(&info).unwrap();
            assert_eq!(store.running_daemon().unwrap(), Some(info.clone()));
            assert!(matches!(store.lock_daemon(&info), Err(StoreError::DaemonRuns { .. })));
            drop(lock);
            assert_eq!(store.running_daemon().unwrap(), None);
            drop(foreign);
        }
    }

    #[test]
    fn daemon_of_version_0_1_is_detected_while_it_runs() {
        let (_dir, store) = new_store();
        let mut old = lock_visible_file(&store, Sharing::Exclusive);
        let pid = std::process::id();
        let text =
            format!(r#"{{"pid":{pid},"socket":"/run/rcx-imagefs/control.sock","mountpoint":"/images"}}"#);
        old.write_all(text.as_bytes()).unwrap();
        let found = store.running_daemon().unwrap().unwrap();
        assert_eq!((found.pid, found.mountpoint.as_path()), (pid, Path::new("/images")));
        assert!(
            matches!(store.lock_daemon(&found), Err(StoreError::DaemonRuns { pid: old, .. }) if old == pid)
        );
        drop(old);
        assert_eq!(store.running_daemon().unwrap(), None);
        // The description of a killed daemon remains. The lock of another program does not make it valid again.
        let unused = DaemonFile {
            info: DaemonInfo { pid: u32::MAX >> 1, ..found.clone() },
            holds_private_lock: false,
        };
        let path = store.make_top().unwrap().path_of(DAEMON);
        std::fs::write(path, serde_json::to_vec(&unused).unwrap()).unwrap();
        let _foreign = lock_visible_file(&store, Sharing::Shared);
        assert_eq!(store.running_daemon().unwrap(), None);
        store.lock_daemon(&found).unwrap();
    }

    #[test]
    fn info_of_a_killed_daemon_is_ignored() {
        let (_dir, store) = new_store();
        let info =
            DaemonInfo { pid: 4711, socket: "/run/s".into(), mountpoint: "/images".into(), layers: None };
        drop(store.lock_daemon(&info).unwrap());
        std::fs::write(store.make_top().unwrap().path_of(DAEMON), serde_json::to_vec(&info).unwrap())
            .unwrap();
        assert_eq!(store.running_daemon().unwrap(), None);
        store.lock_daemon(&DaemonInfo { pid: 1, ..info }).unwrap();
    }
}

//! The daemon lock: at most one daemon serves a store, and other commands can find that daemon.

use std::fs::File;
use std::io::{Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use super::Store;
use super::dir::read_bounded;
use super::error::StoreError;
use super::layout::FILE_MODE;
use super::locks::Flock;
use crate::os::{self, AtPath as _, Sharing};

/// The file that the daemon locks and writes its [`DaemonInfo`] to.
const DAEMON: &str = "daemon";
/// How long a daemon may take to write its [`DaemonInfo`] after it has locked the file.
const INFO_WAIT: Duration = Duration::from_secs(2);
/// [`Store::running_daemon`] holds the lock for some microseconds. A process that holds it for longer than this is a daemon.
const QUERY_WAIT: Duration = Duration::from_millis(200);

/// The daemon that serves a store. The daemon writes this to its lock file, where other commands read it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DaemonInfo {
    /// The process ID.
    pub pid: u32,
    /// The control socket.
    pub socket: PathBuf,
    /// The mountpoint of the images.
    pub mountpoint: PathBuf,
}

/// The exclusive right to serve a store. Released when dropped or when the process dies.
#[derive(Debug)]
pub struct DaemonLock {
    flock: Flock,
}

impl Drop for DaemonLock {
    fn drop(&mut self) {
        // The file itself must stay: otherwise two daemons could lock two files of the same name.
        let _ = self.flock.file.set_len(0);
    }
}

impl Store {
    /// Takes the daemon lock of this store and publishes `info` to other commands.
    ///
    /// Fails with [`StoreError::DaemonRuns`] if another daemon serves the store.
    pub fn lock_daemon(&self, info: &DaemonInfo) -> Result<DaemonLock, StoreError> {
        let top = self.make_top()?;
        let path = top.path_of(DAEMON);
        // All users may read the file: a user who lists images may need the daemon's address.
        let file = top.file_with(DAEMON, OFlags::RDWR | OFlags::CREATE, FILE_MODE)?;
        let deadline = Some(Instant::now() + QUERY_WAIT);
        if !os::lock_until(&file, Sharing::Exclusive, deadline).at("lock", &path)? {
            let running = read_info(&file, &path)?;
            return Err(StoreError::DaemonRuns { pid: running.pid, mountpoint: running.mountpoint });
        }
        let mut flock = Flock { file };
        let json =
            serde_json::to_vec(info).map_err(|source| StoreError::Json { path: path.clone(), source })?;
        flock.file.set_len(0).at("write", &path)?;
        flock.file.rewind().at("write", &path)?;
        flock.file.write_all(&json).at("write", &path)?;
        Ok(DaemonLock { flock })
    }

    /// Returns the daemon that serves this store; `None` if no daemon runs.
    pub fn running_daemon(&self) -> Result<Option<DaemonInfo>, StoreError> {
        let Some(top) = self.top()? else { return Ok(None) };
        let path = top.path_of(DAEMON);
        let Some(file) = top.file(DAEMON)? else { return Ok(None) };
        if os::try_lock(&file, Sharing::Shared).at("lock", &path)? {
            os::unlock(&file);
            return Ok(None);
        }
        read_info(&file, &path).map(Some)
    }
}

/// Reads the [`DaemonInfo`] of the daemon that holds the lock; waits if it has not written it yet.
fn read_info(mut file: &File, path: &Path) -> Result<DaemonInfo, StoreError> {
    let deadline = Instant::now() + INFO_WAIT;
    loop {
        file.rewind().at("read", path)?;
        let bytes = read_bounded(file, path, 64 << 10)?;
        match serde_json::from_slice(&bytes) {
            Ok(info) => return Ok(info),
            Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
            Err(source) => return Err(StoreError::Json { path: path.to_owned(), source }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::new_store;

    #[test]
    fn second_daemon_is_refused_with_the_info_of_the_first() {
        let (_dir, store) = new_store();
        assert_eq!(store.running_daemon().unwrap(), None);
        let info = DaemonInfo { pid: 4711, socket: "/run/s".into(), mountpoint: "/images".into() };
        let lock = store.lock_daemon(&info).unwrap();
        assert_eq!(store.running_daemon().unwrap(), Some(info.clone()));
        let error = store.lock_daemon(&DaemonInfo { pid: 1, ..info.clone() }).unwrap_err();
        assert!(
            matches!(&error, StoreError::DaemonRuns { pid: 4711, mountpoint } if mountpoint == Path::new("/images"))
        );
        drop(lock);
        assert_eq!(store.running_daemon().unwrap(), None);
    }

    #[test]
    fn info_of_a_killed_daemon_is_ignored() {
        let (_dir, store) = new_store();
        let info = DaemonInfo { pid: 4711, socket: "/run/s".into(), mountpoint: "/images".into() };
        drop(store.lock_daemon(&info).unwrap());
        std::fs::write(store.make_top().unwrap().path_of(DAEMON), serde_json::to_vec(&info).unwrap())
            .unwrap();
        assert_eq!(store.running_daemon().unwrap(), None);
        store.lock_daemon(&DaemonInfo { pid: 1, ..info }).unwrap();
    }
}

//! Plain layers: the decoded form of layers, which the kernel reads without the daemon, within a budget of disk space.
//!
//! A user of a plain layer holds a shared lock (flock) on its file, and each use sets the file's time of modification. If a new
//! plain layer has no room, those that were not used for the longest time are removed. To remove one, its lock is taken exclusively
//! and without waiting, so one in use stays.
//!
//! A file holds what upper layers hide, so the directory has mode 0700 and the files 0600.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileExt, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::{Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};

use super::Store;
use super::dir::{Dir, TempFile};
use super::error::StoreError;
use super::layout::Subdir;
use super::locks::Flock;
use super::partial::{WRITEBACK_STEP, start_writeback};
use crate::image::{Digest, LayerDigest};
use crate::os::{self, AtPath as _, NamedLock, Sharing};

/// File name suffix of a plain layer, in `plain`, and of the lock of its makers, in `locks`.
pub(super) const PLAIN_SUFFIX: &str = ".plain";
const PLAIN_MODE: u32 = 0o600;
/// Without a budget, plain layers may take this part of the filesystem.
const DEFAULT_BUDGET_PART: u64 = 4;
/// This part of the filesystem stays free, whatever the budget.
const FREE_PART: u64 = 20;
/// Room is made for this many bytes at a time.
const ROOM_STEP: u64 = 1 << 20;
/// How long to wait for a process that removes or commits a file.
const LOCK_WAIT: Duration = Duration::from_secs(5);

/// How much room a new plain layer may take.
#[derive(Debug, Clone, Copy, Default)]
pub struct PlainRoom {
    /// Bytes of the disk that must stay free for other files.
    pub reserve: u64,
    /// How long others must not have been used to be removed for it.
    pub min_idle: Duration,
}

/// The exclusive right to make the plain layer of one layer.
///
/// Lock order: after the lock of the blob. A holder of a blob's lock must not wait for it: its holder may wait for the blob.
#[derive(Debug)]
pub struct PlainLock {
    dir: Dir,
    name: String,
    _flock: Flock,
}

impl Drop for PlainLock {
    fn drop(&mut self) {
        // The lock is still held: fields are dropped after this function.
        if let Err(error) = self.dir.remove(&self.name) {
            tracing::debug!("cannot remove a lock file: {error}");
        }
    }
}

/// A plain layer that is being written. Each write first makes room in the budget. Dropping it without a commit leaves nothing.
#[derive(Debug)]
pub struct PlainDraft {
    temp: TempFile,
    store: Store,
    limits: PlainRoom,
    /// Room has been made for the bytes before this offset.
    room: AtomicU64,
    /// Writeback of the bytes before this offset has started.
    written_back: AtomicU64,
    _lock: PlainLock,
}

impl PlainDraft {
    /// Puts the plain layer in place when it is on disk.
    pub fn commit(self) -> Result<(), StoreError> {
        self.temp.commit()
    }

    /// The final path of the file.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.temp.path()
    }

    /// Makes room for the first `bytes` bytes, so that a lack of it is found before they are written.
    pub fn require_room(&self, bytes: u64) -> Result<(), StoreError> {
        self.make_room(0, bytes)
    }

    /// Makes room for the bytes from `offset` on. There is room already for those of an earlier call. Holes take none.
    fn make_room(&self, offset: u64, len: u64) -> Result<(), StoreError> {
        if offset.saturating_add(len) > self.room.load(Ordering::Relaxed) {
            let len = len.max(ROOM_STEP);
            self.store.make_room(&self.path(), self.limits, len)?;
            self.room.store(offset.saturating_add(len), Ordering::Relaxed);
        }
        Ok(())
    }
}

impl FileExt for PlainDraft {
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
        self.temp.file().read_at(bytes, offset)
    }

    /// Wraps a [`StoreError`] into the error; [`StoreError::from_write`] unwraps it.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        self.make_room(offset, bytes.len() as u64).map_err(StoreError::into_io)?;
        let written = self.temp.file().write_at(bytes, offset)?;
        let (from, end) = (self.written_back.load(Ordering::Relaxed), offset + written as u64);
        // So that the final sync is short.
        if end > from.saturating_add(WRITEBACK_STEP) {
            start_writeback(self.temp.file(), from..end);
            self.written_back.store(end, Ordering::Relaxed);
        }
        Ok(written)
    }
}

/// A plain layer in the store.
struct StoredPlain {
    layer: Digest,
    /// The disk space in bytes.
    bytes: u64,
    used: SystemTime,
}

fn name_of(layer: &LayerDigest) -> String {
    layer.hex() + PLAIN_SUFFIX
}

impl Store {
    /// Takes the right to make a plain layer. Returns `None` if another process has it for longer than `wait`.
    pub fn lock_plain(&self, layer: &LayerDigest, wait: Duration) -> Result<Option<PlainLock>, StoreError> {
        let (dir, name) = (self.make_subdir(Subdir::Locks)?, name_of(layer));
        let flock = Flock::open(&dir, &name, Sharing::Exclusive, Some(wait))?;
        Ok(flock.map(|flock| PlainLock { dir, name, _flock: flock }))
    }

    /// Creates the file for a plain layer.
    pub fn create_plain(
        &self,
        layer: &LayerDigest,
        lock: PlainLock,
        limits: PlainRoom,
    ) -> Result<PlainDraft, StoreError> {
        let (tmp, target) = (self.make_subdir(Subdir::Tmp)?, self.make_subdir(Subdir::Plain)?);
        Ok(PlainDraft {
            temp: TempFile::new(tmp, target, &name_of(layer), PLAIN_MODE)?,
            store: self.clone(),
            limits,
            room: AtomicU64::new(0),
            written_back: AtomicU64::new(0),
            _lock: lock,
        })
    }

    /// Whether a layer has a plain layer, which may be damaged.
    pub fn has_plain(&self, layer: &LayerDigest) -> Result<bool, StoreError> {
        match self.subdir(Subdir::Plain)? {
            Some(dir) => Ok(dir.stat(&name_of(layer))?.is_some()),
            None => Ok(false),
        }
    }

    /// Opens a plain layer with a shared lock; `None` if it is missing. It is not removed while the file is open.
    pub fn plain_file(&self, layer: &LayerDigest) -> Result<Option<File>, StoreError> {
        let Some(dir) = self.subdir(Subdir::Plain)? else { return Ok(None) };
        let name = name_of(layer);
        let path = dir.path_of(&name);
        let deadline = Some(Instant::now() + LOCK_WAIT);
        match os::lock_named(dir.as_fd(), &path, Sharing::Shared, deadline, || dir.file(&name))? {
            NamedLock::Locked(file) => Ok(Some(file)),
            NamedLock::Missing => Ok(None),
            NamedLock::Busy => Err(StoreError::Busy {
                holder: "a process that removes the plain layer".to_owned(),
                path,
                waited: LOCK_WAIT,
            }),
        }
    }

    /// Notes that a plain layer is used now. Has no effect in a store that this process may not change.
    pub fn note_plain_use(&self, file: &File) {
        let omit = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        let times = Timestamps { last_access: omit, last_modification: now };
        if let Err(error) = rustix::fs::futimens(file, &times) {
            tracing::debug!("store {}: cannot note the use of a plain layer: {error}", self.path().display());
        }
    }

    /// Removes a plain layer that is damaged, even if it is in use, unless another file has replaced it. Returns whether it did.
    ///
    /// The caller must hold the lock of its makers, and no lock on the file but that of `file`.
    pub fn discard_plain(
        &self,
        layer: &LayerDigest,
        file: &File,
        _lock: &PlainLock,
    ) -> Result<bool, StoreError> {
        let Some(dir) = self.subdir(Subdir::Plain)? else { return Ok(false) };
        let name = name_of(layer);
        Ok(os::is_linked(&dir, &name, file).at("stat", &dir.path_of(&name))? && dir.remove(&name)?)
    }

    /// The disk space of all plain layers, in bytes.
    pub fn plain_sizes(&self) -> Result<BTreeMap<Digest, u64>, StoreError> {
        Ok(self.plain_layers()?.into_iter().map(|plain| (plain.layer, plain.bytes)).collect())
    }

    /// Removes a plain layer unless it is in use. Returns the bytes that this freed, or would free in a dry run.
    pub(super) fn remove_idle_plain(
        &self,
        layer: &LayerDigest,
        dry_run: bool,
    ) -> Result<Option<u64>, StoreError> {
        let Some(dir) = self.subdir(Subdir::Plain)? else { return Ok(None) };
        let Some(file) = lock_idle(&dir, &name_of(layer))? else { return Ok(None) };
        let bytes = file.metadata().at("stat", &dir.path_of(&name_of(layer)))?.blocks().saturating_mul(512);
        if !dry_run {
            dir.remove(&name_of(layer))?;
            dir.sync()?;
        }
        Ok(Some(bytes))
    }

    fn plain_layers(&self) -> Result<Vec<StoredPlain>, StoreError> {
        let Some(dir) = self.subdir(Subdir::Plain)? else { return Ok(Vec::new()) };
        let mut layers = Vec::new();
        for name in dir.names()? {
            let Some(layer) = name.strip_suffix(PLAIN_SUFFIX).and_then(Digest::from_hex) else { continue };
            // Another process may have removed the file.
            let Some(stat) = dir.stat(&name)? else { continue };
            let bytes = u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512);
            let seconds = Duration::from_secs(u64::try_from(stat.st_mtime).unwrap_or(0));
            let used = SystemTime::UNIX_EPOCH + seconds + Duration::from_nanos(stat.st_mtime_nsec);
            layers.push(StoredPlain { layer, bytes, used });
        }
        Ok(layers)
    }

    /// Makes room for `bytes` more bytes of the plain layer that will be at `path`: removes those that were not used for the longest
    /// time, but none if that does not suffice.
    fn make_room(&self, path: &Path, limits: PlainRoom, bytes: u64) -> Result<(), StoreError> {
        let stat = rustix::fs::fstatvfs(self.root()).at("determine the free space of", self.path())?;
        let size = stat.f_blocks.saturating_mul(stat.f_frsize);
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        let mut layers = self.plain_layers()?;
        let taken = self.plain_drafts()? + layers.iter().map(|plain| plain.bytes).sum::<u64>();
        let disk = taken.saturating_add(free).saturating_sub(limits.reserve).saturating_sub(size / FREE_PART);
        let budget = self.plain_budget.unwrap_or(size / DEFAULT_BUDGET_PART).min(disk);
        let mut excess = taken.saturating_add(bytes).saturating_sub(budget);
        if excess == 0 {
            return Ok(());
        }
        // A time in the future counts as now.
        let now = SystemTime::now();
        layers.retain(|plain| now.duration_since(plain.used).unwrap_or_default() >= limits.min_idle);
        layers.sort_by_key(|plain| plain.used);
        let no_room = |used| StoreError::PlainBudget { path: path.to_owned(), budget, used };
        let dir = self.subdir(Subdir::Plain)?.ok_or_else(|| no_room(taken))?;
        let mut due = Vec::new();
        let mut freed = 0;
        for plain in &layers {
            if excess == 0 {
                break;
            }
            let name = name_of(&LayerDigest::new(plain.layer));
            let Some(file) = lock_idle(&dir, &name)? else { continue };
            excess = excess.saturating_sub(plain.bytes);
            freed += plain.bytes;
            due.push((name, file));
        }
        if excess > 0 {
            return Err(no_room(taken - freed));
        }
        for (name, _lock) in &due {
            tracing::info!("removing {}, for which the budget has no room", dir.path_of(name).display());
            dir.remove(name)?;
        }
        dir.sync()
    }

    /// The disk space of plain layers that are being written, and of their remains.
    fn plain_drafts(&self) -> Result<u64, StoreError> {
        let Some(dir) = self.subdir(Subdir::Tmp)? else { return Ok(0) };
        let mut bytes = 0_u64;
        for name in dir.names()?.iter().filter(|name| name.ends_with(PLAIN_SUFFIX)) {
            let Some(stat) = dir.stat(name)? else { continue };
            bytes = bytes.saturating_add(u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512));
        }
        Ok(bytes)
    }
}

/// Opens a file with an exclusive lock; `None` if it is missing or in use.
fn lock_idle(dir: &Dir, name: &str) -> Result<Option<File>, StoreError> {
    let now = Some(Instant::now());
    match os::lock_named(dir.as_fd(), &dir.path_of(name), Sharing::Exclusive, now, || dir.file(name))? {
        NamedLock::Locked(file) => Ok(Some(file)),
        NamedLock::Busy | NamedLock::Missing => Ok(None),
    }
}

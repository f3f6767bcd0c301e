//! Boxes: numbered directories for the files of a run, each used by one run at a time.
//!
//! While a run uses box N, it holds the locks of the file `<run-dir>/boxes/N` and of the directory of the box. Locks end when
//! their holder dies, and the file records what the holder has made. A sweep cleans every box that has a file and no lock
//! holder. A run that has cleaned up removes the file just before it releases the lock.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

use super::box_directories::{BoxDirectories, numbers_in};
use super::box_lock::{BoxLock, BoxRecord, lock_directory};
use super::box_locks::BoxLocks;
use super::error::SandboxError;
use super::isolate;
use crate::os::{AtPath as _, NamedLock, Sharing};
use crate::roots::processes_with_mount;

/// How long to wait for the processes of a killed run to end before their box counts as in use.
pub const EXIT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long to wait for the lock of a box that the caller named. A sweep may hold it, or an isolate whose caller was killed.
const LOCK_TIMEOUT: Duration = Duration::from_millis(200);
/// Pause between two checks of the processes of a killed run.
const EXIT_PAUSE: Duration = Duration::from_millis(2);

/// The boxes that runs choose from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BoxRange {
    first: u32,
    last: u32,
}

impl Default for BoxRange {
    /// The last hundred of the thousand boxes in isolate's default configuration.
    fn default() -> Self {
        Self { first: 900, last: 999 }
    }
}

impl FromStr for BoxRange {
    type Err = SandboxError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let halves = text.split_once('-').unwrap_or((text, text));
        match (halves.0.trim().parse(), halves.1.trim().parse()) {
            (Ok(first), Ok(last)) if first <= last => Ok(Self { first, last }),
            _ => Err(SandboxError::BoxRange(text.to_owned())),
        }
    }
}

/// All boxes of one run directory.
#[derive(Debug, Clone)]
pub struct Boxes {
    locks: BoxLocks,
    /// The program that made boxes of isolate.
    isolate: Option<PathBuf>,
    /// The directory that contains the boxes of backends other than isolate.
    directories: BoxDirectories,
}

impl Boxes {
    /// Returns the boxes of a run directory. `isolate` is the program that cleans boxes of isolate. Backends other than isolate
    /// make their boxes in a subdirectory of the open directory `parent`, which is given with its path.
    #[must_use]
    pub fn new(run_dir: &Path, parent: (OwnedFd, PathBuf), isolate: Option<PathBuf>) -> Self {
        let directories = BoxDirectories::below(parent.0, &parent.1);
        Self { locks: BoxLocks::new(run_dir), isolate, directories }
    }

    /// Returns the directory that contains the boxes of backends other than isolate.
    pub(super) fn directories(&self) -> &BoxDirectories {
        &self.directories
    }

    /// Takes the box `requested`, or the first free box of `range`, and calls `make` to make it. Returns the path that `make`
    /// returns: the directory of the box.
    ///
    /// A box that is in use, or for which `make` returns [`SandboxError::BoxTaken`], is an error only if the caller requested
    /// this box.
    pub(super) fn take(
        &self,
        requested: Option<u32>,
        range: BoxRange,
        record: &BoxRecord,
        mut make: impl FnMut(&BoxLock) -> Result<PathBuf, SandboxError>,
    ) -> Result<(BoxLock, PathBuf), SandboxError> {
        let candidates = requested.map_or(range.first..=range.last, |id| id..=id);
        for id in candidates {
            let timeout = if requested.is_some() { LOCK_TIMEOUT } else { Duration::ZERO };
            let Some(mut lock) = self.locks.lock(id, true, timeout)? else {
                if requested.is_some() {
                    return Err(SandboxError::BoxInUse(id));
                }
                continue;
            };
            let timeout = if requested.is_some() { EXIT_TIMEOUT } else { Duration::ZERO };
            match self.clean(&mut lock, timeout) {
                Err(error) if requested.is_some() => return Err(error),
                Err(error) => {
                    log_unclean(id, &error);
                    continue;
                }
                Ok(_) => {}
            }
            // Write the record first, so that a sweep finds the box even if this process is killed while making it.
            lock.write(record)?;
            let made = make(&lock).and_then(|path| {
                lock.lock_made(&path, LOCK_TIMEOUT)?;
                Ok(path)
            });
            match made {
                Ok(path) => return Ok((lock, path)),
                Err(error) => {
                    lock.release()?;
                    match error {
                        SandboxError::BoxTaken { .. } | SandboxError::BoxInUse(_) if requested.is_none() => {
                            tracing::debug!("{error}")
                        }
                        error => return Err(error),
                    }
                }
            }
        }
        Err(SandboxError::NoFreeBox { first: range.first, last: range.last })
    }

    /// Cleans the boxes of killed runs and returns their number.
    ///
    /// A box whose processes do not end within `timeout` stays for the next sweep.
    ///
    /// # Errors
    /// The directories of boxes cannot be read.
    pub fn sweep(&self, timeout: Duration) -> Result<usize, SandboxError> {
        let mut swept = 0;
        let locks = match self.locks.open(false)? {
            Some(locks) => numbers_in(&locks, self.locks.path())?,
            None => Vec::new(),
        };
        let locks = locks.into_iter().map(|id| (id, false));
        let directories = self.directories.numbers()?.into_iter().map(|id| (id, true));
        for (id, create) in locks.chain(directories) {
            // Do not make the file of a box that was released meanwhile: the next run in the box would find it locked.
            let mut lock = match self.locks.lock(id, create, Duration::ZERO) {
                Ok(Some(lock)) => lock,
                Ok(None) => continue,
                // Another user made this record. The other boxes do not depend on it.
                Err(error @ SandboxError::Untrusted { .. }) => {
                    log_unclean(id, &error);
                    continue;
                }
                Err(error) => return Err(error),
            };
            match self.clean(&mut lock, timeout) {
                Ok(dirty) => {
                    swept += usize::from(dirty);
                    lock.release()?;
                }
                Err(error) => log_unclean(id, &error),
            }
        }
        Ok(swept)
    }

    /// Removes the remains of a killed run from a box. Returns whether there were any.
    fn clean(&self, lock: &mut BoxLock, timeout: Duration) -> Result<bool, SandboxError> {
        let record = lock.read()?;
        let deadline = Instant::now() + timeout;
        if let Some(record) = &record {
            // The kernel has killed the processes of the run, but some may still be ending. They could write to the box of
            // the next run.
            while !record.root().is_empty()
                && !processes_with_mount(record.root()).at("list", Path::new("/proc"))?.is_empty()
            {
                if Instant::now() >= deadline {
                    return Err(SandboxError::BoxInUse(lock.id()));
                }
                std::thread::sleep(EXIT_PAUSE);
            }
        }
        // A run in the box holds the lock of its directory even if the file in the run directory was removed.
        let lock_free = |directory: &Path| match lock_directory(directory, Sharing::Exclusive, timeout)? {
            NamedLock::Busy => Err(SandboxError::BoxInUse(lock.id())),
            NamedLock::Locked(directory) => Ok(Some(directory)),
            NamedLock::Missing => Ok(None),
        };
        if let Some(program) = &self.isolate {
            let _directory = lock_free(&isolate::box_directory(&isolate::box_root(program), lock.id()))?;
            if let Some(BoxRecord::Isolate { cg, .. }) = &record {
                isolate::remove_abandoned(program, lock.id(), *cg, lock.file(), deadline)?;
            }
        } else if let Some(BoxRecord::Isolate { .. }) = &record {
            return Err(SandboxError::Missing("isolate"));
        }
        let directory = lock_free(&self.directories.path_of(lock.id()))?;
        if directory.is_some() {
            self.directories.remove(lock.id())?;
        }
        Ok(record.is_some() || directory.is_some())
    }
}

/// Logs that the box of a killed run stays for the next sweep.
fn log_unclean(id: u32, error: &SandboxError) {
    match error {
        SandboxError::BoxInUse(_) => {
            tracing::debug!("box {id} is in use, or the processes of a killed run are still ending")
        }
        _ => tracing::warn!("cannot clean box {id} of a killed run: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::sandbox::User;

    fn test_boxes() -> (tempfile::TempDir, Boxes) {
        let dir = tempfile::tempdir().unwrap();
        let parent = fs::File::open(dir.path()).unwrap().into();
        let boxes = Boxes::new(&dir.path().join("run"), (parent, dir.path().to_owned()), None);
        (dir, boxes)
    }

    fn bwrap_record() -> BoxRecord {
        BoxRecord::Bwrap { root: String::new() }
    }

    fn take(boxes: &Boxes, requested: Option<u32>, range: &str) -> Result<(BoxLock, PathBuf), SandboxError> {
        boxes.take(requested, range.parse()?, &bwrap_record(), |lock| {
            Ok(boxes.directories.make(lock.id(), User::default())?)
        })
    }

    #[test]
    fn range_is_two_numbers_in_order() {
        assert_eq!("5-7".parse::<BoxRange>().unwrap(), BoxRange { first: 5, last: 7 });
        assert_eq!(" 5 - 5 ".parse::<BoxRange>().unwrap(), "5".parse().unwrap());
        for text in ["", "-", "7-5", "a-b", "1-", "-1", "1-2-3"] {
            let error = text.parse::<BoxRange>().unwrap_err().to_string();
            assert_eq!(error, format!("box ids `{text}` do not have the form FIRST-LAST"));
        }
    }

    #[test]
    fn box_belongs_to_one_run_at_a_time_and_leaves_no_files() {
        let (dir, boxes) = test_boxes();
        let (first, path) = take(&boxes, None, "5-6").unwrap();
        let (second, _) = take(&boxes, None, "5-6").unwrap();
        assert_eq!((first.id(), second.id()), (5, 6));
        assert!(matches!(take(&boxes, None, "5-6"), Err(SandboxError::NoFreeBox { first: 5, last: 6 })));
        assert!(matches!(take(&boxes, Some(5), "7-8"), Err(SandboxError::BoxInUse(5))));
        fs::write(path.join("file"), "x").unwrap();
        for lock in [first, second] {
            boxes.directories.remove(lock.id()).unwrap();
            lock.release().unwrap();
        }
        for name in ["run/boxes", "boxes"] {
            assert_eq!(fs::read_dir(dir.path().join(name)).unwrap().count(), 0, "{name}");
        }
        assert_eq!(take(&boxes, Some(5), "7-8").unwrap().0.id(), 5);
    }

    #[test]
    fn box_of_another_program_is_skipped_or_an_error_if_requested() {
        let (_dir, boxes) = test_boxes();
        let make = |lock: &BoxLock| match lock.id() {
            id @ 5 => Err(SandboxError::BoxTaken { id, message: "already exists".to_owned() }),
            id => Ok(boxes.directories.make(id, User::default())?),
        };
        let range: BoxRange = "5-6".parse().unwrap();
        let (lock, path) = boxes.take(None, range, &bwrap_record(), make).unwrap();
        assert_eq!(path, boxes.directories.path_of(6));
        boxes.directories.remove(6).unwrap();
        lock.release().unwrap();
        let error = boxes.take(Some(5), range, &bwrap_record(), make).unwrap_err();
        assert_eq!(error.to_string(), "box 5: already exists");
        assert_eq!(boxes.sweep(EXIT_TIMEOUT).unwrap(), 0, "neither attempt leaves anything");
    }

    #[test]
    fn sweep_cleans_boxes_of_killed_runs_and_leaves_live_ones() {
        let (dir, boxes) = test_boxes();
        // Dropping a lock without releasing it leaves what a killed process leaves.
        drop(take(&boxes, Some(5), "5-6").unwrap());
        let (live, path) = take(&boxes, Some(6), "5-6").unwrap();
        // A directory whose lock file is gone, as after a reboot.
        fs::create_dir_all(dir.path().join("boxes/7/deep")).unwrap();
        assert_eq!(boxes.sweep(EXIT_TIMEOUT).unwrap(), 2);
        assert!(path.exists());
        assert_eq!(boxes.directories.numbers().unwrap(), [6]);
        let locks = boxes.locks.open(false).unwrap().unwrap();
        assert_eq!(numbers_in(&locks, boxes.locks.path()).unwrap(), [live.id()]);
        // The next run can take a dead box without a sweep.
        drop(take(&boxes, Some(5), "5-6").unwrap());
        take(&boxes, Some(5), "5-6").unwrap();
    }

    #[test]
    fn box_is_not_taken_or_swept_while_it_is_used_although_the_run_directory_was_cleaned() {
        let (dir, boxes) = test_boxes();
        let (lock, path) = take(&boxes, Some(5), "5-6").unwrap();
        fs::write(path.join("file"), "x").unwrap();
        fs::remove_dir_all(dir.path().join("run")).unwrap();
        assert_eq!(boxes.sweep(Duration::ZERO).unwrap(), 0);
        assert!(matches!(take(&boxes, Some(5), "5-6"), Err(SandboxError::BoxInUse(5))));
        assert_eq!(take(&boxes, None, "5-6").unwrap().0.id(), 6);
        assert!(path.join("file").exists());
        // Another process may hold the new file of the box. The old holder must not remove it.
        let other = boxes.locks.lock(5, true, Duration::ZERO).unwrap().unwrap();
        lock.release().unwrap();
        assert!(dir.path().join("run/boxes/5").exists());
        drop(other);
        assert_eq!(boxes.sweep(Duration::ZERO).unwrap(), 2);
        assert!(!path.exists());
    }

    #[test]
    fn box_of_a_killed_run_stays_locked_while_its_isolate_lives() {
        let (dir, boxes) = test_boxes();
        let (lock, path) = take(&boxes, Some(5), "5-6").unwrap();
        let in_isolate = lock.file().try_clone().unwrap();
        drop(lock);
        assert_eq!(boxes.sweep(EXIT_TIMEOUT).unwrap(), 0);
        assert!(path.exists());
        drop(in_isolate);
        assert_eq!(boxes.sweep(EXIT_TIMEOUT).unwrap(), 1);
        assert_eq!(fs::read_dir(dir.path().join("run/boxes")).unwrap().count(), 0);
    }

    #[test]
    fn box_has_one_holder_at_a_time_although_holders_remove_its_file() {
        let (_dir, boxes) = test_boxes();
        let inside = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let mut count = 0;
                    while count < 50 {
                        match take(&boxes, Some(5), "5-6") {
                            Ok((lock, _)) => {
                                use std::sync::atomic::Ordering::SeqCst;
                                assert!(!inside.swap(true, SeqCst));
                                boxes.directories.remove(5).unwrap();
                                inside.store(false, SeqCst);
                                lock.release().unwrap();
                                count += 1;
                            }
                            Err(SandboxError::BoxInUse(5)) => std::thread::yield_now(),
                            Err(error) => panic!("{error}"),
                        }
                    }
                });
            }
        });
    }
}

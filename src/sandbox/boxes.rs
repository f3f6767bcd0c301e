//! Boxes: a number that stands for a user id and a directory, used by one run at a time.
//!
//! Each box has a file `<run-dir>/boxes/<number>` while a run has it: locked (flock(2), so that it ends with its holder),
//! and holding what is to be done when the holder is killed. Such a file that nobody locks is swept. The holder removes
//! the file just before it lets go; a waiter that then has the lock of a file without a name starts over.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::error::{At as _, SandboxError};
use super::installed::{self, clean_up};
use super::isolate::{GivenOption, IsolateOption};
use super::spec;
use crate::os::remove_tree;
use crate::roots::holders;

/// How long the processes of a killed run may take to be gone, where a box is wanted that they had.
pub const DYING: Duration = Duration::from_secs(5);
/// How long a box that is wanted may be locked by a sweep, or by an isolate whose caller was killed.
const HANDED_OVER: Duration = Duration::from_millis(200);

/// The boxes that runs choose from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BoxRange {
    first: u32,
    last: u32,
}

impl Default for BoxRange {
    /// The last hundred of the thousand that isolate has unless its configuration says otherwise.
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

/// What a run left if it is dead.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "sandbox")]
pub(super) enum BoxRecord {
    /// A box of isolate's.
    Isolate { program: PathBuf, cg: bool, root: String },
    /// A directory of ours.
    Bwrap { root: String },
}

impl BoxRecord {
    /// What the mount table calls the root of the run.
    fn root(&self) -> &str {
        match self {
            Self::Isolate { root, .. } | Self::Bwrap { root } => root,
        }
    }
}

/// Where the boxes of one run directory are.
#[derive(Debug, Clone)]
pub struct Boxes {
    locks: PathBuf,
    directories: PathBuf,
}

/// A box that belongs to this process.
#[derive(Debug)]
pub(super) struct BoxLock {
    id: u32,
    file: File,
    path: PathBuf,
}

/// What asking for a box came to.
pub(super) enum Asked<T> {
    /// It is ready.
    Ready(T),
    /// Somebody else has it.
    Taken(String),
}

impl Boxes {
    /// The boxes of a run directory; the boxes that isolate does not make are directories in `directories`.
    #[must_use]
    pub fn new(run_dir: &Path, directories: &Path) -> Self {
        Self { locks: run_dir.join("boxes"), directories: directories.to_owned() }
    }

    /// Takes a box, `wanted` or else the first free one of `range`, and has `prepare` make it.
    pub(super) fn take<T>(
        &self,
        wanted: Option<u32>,
        range: BoxRange,
        record: &BoxRecord,
        mut prepare: impl FnMut(&BoxLock) -> Result<Asked<T>, SandboxError>,
    ) -> Result<(BoxLock, T), SandboxError> {
        fs::DirBuilder::new().recursive(true).mode(0o755).create(&self.locks).at("make", &self.locks)?;
        let candidates = wanted.map_or(range.first..=range.last, |id| id..=id);
        for id in candidates {
            let patience = if wanted.is_some() { HANDED_OVER } else { Duration::ZERO };
            let Some(mut lock) = self.lock_within(id, patience)? else {
                if wanted.is_some() {
                    return Err(SandboxError::BoxInUse(id));
                }
                continue;
            };
            let patience = if wanted.is_some() { DYING } else { Duration::ZERO };
            match self.clean(&mut lock, patience) {
                Err(error) if wanted.is_some() => return Err(error),
                Err(error) => {
                    left(id, &error);
                    continue;
                }
                Ok(_) => {}
            }
            // Before the box is there: whatever happens then, it is known.
            lock.write(record)?;
            match prepare(&lock) {
                Ok(Asked::Ready(made)) => return Ok((lock, made)),
                Ok(Asked::Taken(message)) => {
                    lock.release()?;
                    if wanted.is_some() {
                        return Err(SandboxError::BoxTaken { id, message });
                    }
                    tracing::debug!("box {id}: {message}");
                }
                Err(error) => {
                    lock.release()?;
                    return Err(error);
                }
            }
        }
        Err(SandboxError::NoFreeBox { first: range.first, last: range.last })
    }

    /// Makes the directory of a box that isolate does not make.
    pub(super) fn make_directory(&self, id: u32) -> Result<PathBuf, SandboxError> {
        let mut builder = fs::DirBuilder::new();
        builder.mode(0o700);
        builder.recursive(true).create(&self.directories).at("make", &self.directories)?;
        let path = self.directories.join(id.to_string());
        builder.recursive(false).create(&path).at("make", &path)?;
        Ok(path)
    }

    /// Removes it with everything in it.
    pub(super) fn remove_directory(&self, id: u32) -> Result<(), SandboxError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let parent = match rustix::fs::open(&self.directories, flags, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(()),
            other => other.at("open", &self.directories)?,
        };
        let name = id.to_string();
        match remove_tree(std::os::fd::AsFd::as_fd(&parent), OsStr::new(&name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result.at("remove", &self.directories.join(name)),
        }
    }

    /// Cleans the boxes of runs that were killed, and tells how many. Those that cannot be cleaned within `patience`, since
    /// their processes are about to end, stay for the next time.
    ///
    /// # Errors
    /// That the directory of boxes cannot be read.
    pub fn sweep(&self, patience: Duration) -> Result<usize, SandboxError> {
        let mut swept = 0;
        let locks = numbers(&self.locks)?.into_iter().map(|id| (id, false));
        let directories = numbers(&self.directories)?.into_iter().map(|id| (id, true));
        for (id, make) in locks.chain(directories) {
            // A box that was given back meanwhile is nobody's: whoever wants it next is not to find it locked.
            let Some(mut lock) = self.lock(id, make)? else { continue };
            match self.clean(&mut lock, patience) {
                Ok(dirty) => {
                    swept += usize::from(dirty);
                    lock.release()?;
                }
                Err(error) => left(id, &error),
            }
        }
        Ok(swept)
    }

    /// Locks a box's file, made where there is none; none where another process has it for longer than `patience`.
    fn lock_within(&self, id: u32, patience: Duration) -> Result<Option<BoxLock>, SandboxError> {
        let until = Instant::now() + patience;
        loop {
            match self.lock(id, true)? {
                None if Instant::now() < until => std::thread::sleep(Duration::from_millis(2)),
                result => return Ok(result),
            }
        }
    }

    /// Locks a box's file; none where another process has it, or where there is none and it is not to be made.
    fn lock(&self, id: u32, make: bool) -> Result<Option<BoxLock>, SandboxError> {
        let path = self.locks.join(id.to_string());
        loop {
            let mut options = File::options();
            options.read(true).write(true).create(make).truncate(false).mode(0o600);
            let file = match options.open(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound && !make => return Ok(None),
                // A sweep of directories alone, where nothing has run yet.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    fs::DirBuilder::new()
                        .recursive(true)
                        .mode(0o755)
                        .create(&self.locks)
                        .at("make", &self.locks)?;
                    continue;
                }
                other => other.at("open", &path)?,
            };
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Err(Errno::WOULDBLOCK) => return Ok(None),
                other => other.at("lock", &path)?,
            }
            let ours = file.metadata().at("stat", &path)?;
            match fs::symlink_metadata(&path) {
                Ok(there) if (there.dev(), there.ino()) == (ours.dev(), ours.ino()) => {
                    return Ok(Some(BoxLock { id, file, path }));
                }
                _ => {}
            }
        }
    }

    /// Undoes what a dead run has left of a box; tells whether there was anything.
    fn clean(&self, lock: &mut BoxLock, patience: Duration) -> Result<bool, SandboxError> {
        let record = lock.read()?;
        let until = Instant::now() + patience;
        if let Some(record) = &record {
            // Its processes are killed, and may not be gone: they would go on in the box of the next run.
            while !record.root().is_empty()
                && !holders(record.root()).at("list", Path::new("/proc"))?.is_empty()
            {
                if Instant::now() >= until {
                    return Err(SandboxError::BoxInUse(lock.id));
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        if let Some(BoxRecord::Isolate { program, cg, .. }) = &record {
            // isolate 1 leaves an empty directory behind where it cleans a box that was never made. One that was is refused.
            let cg: &[GivenOption] =
                if *cg { &[GivenOption { option: IsolateOption::Cg, value: None }] } else { &[] };
            let init = spec::init_arguments(lock.id, cg);
            if let Err(error) = installed::init(program, &init, &lock.file) {
                tracing::debug!("box {}: {error}", lock.id);
            }
            // Control groups are free some moments after their last process has gone.
            while let Err(error) = clean_up(program, lock.id, !cg.is_empty(), &lock.file) {
                if Instant::now() >= until {
                    return Err(error);
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        let had_directory = self.directories.join(lock.id.to_string()).exists();
        self.remove_directory(lock.id)?;
        Ok(record.is_some() || had_directory)
    }
}

impl BoxLock {
    /// The box's number.
    pub(super) fn id(&self) -> u32 {
        self.id
    }

    /// Its file: whoever has it open, too, keeps the box locked.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// What its file says; none where a run ended in good order, or before it had written anything.
    fn read(&mut self) -> Result<Option<BoxRecord>, SandboxError> {
        let mut bytes = Vec::new();
        self.file.rewind().at("read", &self.path)?;
        (&self.file).take(64 << 10).read_to_end(&mut bytes).at("read", &self.path)?;
        // One that was being written: nothing was made yet.
        Ok(serde_json::from_slice(&bytes).ok())
    }

    fn write(&mut self, record: &BoxRecord) -> Result<(), SandboxError> {
        let text = serde_json::to_vec(record).map_err(io::Error::from).at("write", &self.path)?;
        self.file.set_len(0).at("write", &self.path)?;
        self.file.rewind().at("write", &self.path)?;
        self.file.write_all(&text).at("write", &self.path)
    }

    /// Gives the box back, after it was cleaned.
    pub(super) fn release(self) -> Result<(), SandboxError> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).at("remove", &self.path);
            }
            _ => {}
        }
        // Closing is not enough while a child between fork and exec has the same open file.
        rustix::fs::flock(&self.file, FlockOperation::Unlock).at("unlock", &self.path)
    }
}

/// The names in a directory that are numbers; none where there is no directory.
fn numbers(directory: &Path) -> Result<Vec<u32>, SandboxError> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.at("list", directory)?,
    };
    let mut numbers = Vec::new();
    for entry in entries {
        let name = entry.at("list", directory)?.file_name();
        numbers.extend(name.to_str().and_then(|name| name.parse::<u32>().ok()));
    }
    Ok(numbers)
}

/// Logs that a box of a killed run stays for now.
fn left(id: u32, error: &SandboxError) {
    match error {
        SandboxError::BoxInUse(_) => {
            tracing::debug!("box {id}: the processes of a killed run are still there")
        }
        _ => tracing::warn!("box {id} is left by a killed run, and cannot be cleaned: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scene() -> (tempfile::TempDir, Boxes) {
        let dir = tempfile::tempdir().unwrap();
        let boxes = Boxes::new(&dir.path().join("run"), &dir.path().join("made"));
        (dir, boxes)
    }

    fn bwrap() -> BoxRecord {
        BoxRecord::Bwrap { root: String::new() }
    }

    fn take(boxes: &Boxes, wanted: Option<u32>, range: &str) -> Result<(BoxLock, PathBuf), SandboxError> {
        boxes
            .take(wanted, range.parse()?, &bwrap(), |lock| Ok(Asked::Ready(boxes.make_directory(lock.id())?)))
    }

    #[test]
    fn ranges_are_two_numbers_in_order() {
        assert_eq!("5-7".parse::<BoxRange>().unwrap(), BoxRange { first: 5, last: 7 });
        assert_eq!(" 5 - 5 ".parse::<BoxRange>().unwrap(), "5".parse().unwrap());
        for text in ["", "-", "7-5", "a-b", "1-", "-1", "1-2-3"] {
            let error = text.parse::<BoxRange>().unwrap_err().to_string();
            assert_eq!(error, format!("box ids `{text}` are not of the form FIRST-LAST"));
        }
    }

    #[test]
    fn a_box_belongs_to_one_run_at_a_time_and_leaves_nothing() {
        let (dir, boxes) = scene();
        let (first, made) = take(&boxes, None, "5-6").unwrap();
        let (second, _) = take(&boxes, None, "5-6").unwrap();
        assert_eq!((first.id(), second.id()), (5, 6));
        assert!(matches!(take(&boxes, None, "5-6"), Err(SandboxError::NoFreeBox { first: 5, last: 6 })));
        assert!(matches!(take(&boxes, Some(5), "7-8"), Err(SandboxError::BoxInUse(5))));
        fs::write(made.join("file"), "x").unwrap();
        for lock in [first, second] {
            boxes.remove_directory(lock.id()).unwrap();
            lock.release().unwrap();
        }
        for place in ["run/boxes", "made"] {
            assert_eq!(fs::read_dir(dir.path().join(place)).unwrap().count(), 0, "{place}");
        }
        assert_eq!(take(&boxes, Some(5), "7-8").unwrap().0.id(), 5);
    }

    #[test]
    fn box_of_somebody_else_is_passed_over_or_named() {
        let (_dir, boxes) = scene();
        let others = |lock: &BoxLock| match lock.id() {
            5 => Ok(Asked::Taken("it is mine".to_owned())),
            id => Ok(Asked::Ready(id)),
        };
        let range: BoxRange = "5-6".parse().unwrap();
        let (lock, id) = boxes.take(None, range, &bwrap(), others).unwrap();
        assert_eq!(id, 6);
        lock.release().unwrap();
        let error = boxes.take(Some(5), range, &bwrap(), others).unwrap_err();
        assert_eq!(error.to_string(), "box 5: it is mine");
        assert_eq!(boxes.sweep(DYING).unwrap(), 0, "nothing is left of either");
    }

    #[test]
    fn what_a_killed_run_left_is_swept_and_what_lives_is_not() {
        let (dir, boxes) = scene();
        // Dropped without being released, as the kernel does it for a killed process.
        drop(take(&boxes, Some(5), "5-6").unwrap());
        let (living, made) = take(&boxes, Some(6), "5-6").unwrap();
        // The run directory may have gone with a reboot.
        fs::create_dir_all(dir.path().join("made/7/deep")).unwrap();
        assert_eq!(boxes.sweep(DYING).unwrap(), 2);
        assert!(made.exists());
        assert_eq!(numbers(&dir.path().join("made")).unwrap(), [6]);
        assert_eq!(numbers(&dir.path().join("run/boxes")).unwrap(), [living.id()]);
        // Nor does the next run need a sweep.
        drop(take(&boxes, Some(5), "5-6").unwrap());
        take(&boxes, Some(5), "5-6").unwrap();
    }

    #[test]
    fn box_of_a_killed_run_stays_locked_while_its_isolate_lives() {
        let (dir, boxes) = scene();
        let (lock, made) = take(&boxes, Some(5), "5-6").unwrap();
        let isolates = lock.file().try_clone().unwrap();
        drop(lock);
        assert_eq!(boxes.sweep(DYING).unwrap(), 0);
        assert!(made.exists());
        drop(isolates);
        assert_eq!(boxes.sweep(DYING).unwrap(), 1);
        assert_eq!(fs::read_dir(dir.path().join("run/boxes")).unwrap().count(), 0);
    }

    #[test]
    fn only_one_thread_at_a_time_has_a_box_although_files_are_removed() {
        let (_dir, boxes) = scene();
        let inside = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let mut had = 0;
                    while had < 50 {
                        match take(&boxes, Some(5), "5-6") {
                            Ok((lock, _)) => {
                                use std::sync::atomic::Ordering::SeqCst;
                                assert!(!inside.swap(true, SeqCst));
                                boxes.remove_directory(5).unwrap();
                                inside.store(false, SeqCst);
                                lock.release().unwrap();
                                had += 1;
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

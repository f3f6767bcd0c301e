//! Directories of the target: made, and opened again, never by way of a link or out of the target.

use std::ffi::OsStr;
use std::num::NonZeroUsize;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lru::LruCache;
use rustix::fs::{Mode, OFlags, ResolveFlags};

use super::{DirectoryNo, PlanName, UnpackError, UnpackPlan};

/// Bytes of a path that are handed to the kernel at once; it takes less than `PATH_MAX`, 4096 (linux/limits.h).
const STEP: usize = 3000;
/// Directories that a thread keeps open.
const OPEN: NonZeroUsize = NonZeroUsize::new(32).expect("not 0");

/// The directories of a plan, below the target.
#[derive(Debug)]
pub(super) struct Places<'a> {
    plan: &'a UnpackPlan,
    root: BorrowedFd<'a>,
    path: &'a Path,
}

impl<'a> Places<'a> {
    pub(super) fn new(plan: &'a UnpackPlan, root: BorrowedFd<'a>, path: &'a Path) -> Self {
        Self { plan, root, path }
    }

    /// Makes all directories but the root, which is there.
    pub(super) fn make_directories(&self, mode: Mode) -> Result<(), UnpackError> {
        let mut directories = self.cache();
        for directory in &self.plan.directories[1..] {
            let parent = directories.open(self, directory.place.directory)?;
            rustix::fs::mkdirat(parent, &*directory.place.name, mode).map_err(|errno| {
                UnpackError::new(self.path(&directory.place), "make the directory", errno)
            })?;
        }
        Ok(())
    }

    /// Opens a directory for reading.
    pub(super) fn open(&self, directory: DirectoryNo) -> Result<OwnedFd, UnpackError> {
        let failed = |errno| {
            UnpackError::new(self.path(&self.plan.directories[directory.index()].place), "open", errno)
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // Nothing but this process's own work is in there; that it stays so is not left to trust.
        let inside = ResolveFlags::BENEATH
            | ResolveFlags::NO_SYMLINKS
            | ResolveFlags::NO_MAGICLINKS
            | ResolveFlags::NO_XDEV;
        let mut opened: Option<OwnedFd> = None;
        for step in self.steps(directory) {
            let next = match &opened {
                None => {
                    rustix::fs::openat2(self.root, OsStr::from_bytes(&step), flags, Mode::empty(), inside)
                }
                Some(at) => rustix::fs::openat2(at, OsStr::from_bytes(&step), flags, Mode::empty(), inside),
            };
            opened = Some(next.map_err(failed)?);
        }
        opened.map_or_else(
            || rustix::fs::openat2(self.root, ".", flags, Mode::empty(), inside).map_err(failed),
            Ok,
        )
    }

    /// The path to a directory, relative to the root, in steps that the kernel takes.
    fn steps(&self, directory: DirectoryNo) -> Vec<Vec<u8>> {
        let mut names: Vec<&[u8]> = Vec::new();
        let mut at = directory;
        while at != DirectoryNo::ROOT {
            let place = &self.plan.directories[at.index()].place;
            names.push(&place.name);
            at = place.directory;
        }
        let mut steps: Vec<Vec<u8>> = Vec::new();
        for name in names.into_iter().rev() {
            match steps.last_mut() {
                Some(step) if step.len() < STEP => {
                    step.push(b'/');
                    step.extend_from_slice(name);
                }
                _ => steps.push(name.to_vec()),
            }
        }
        steps
    }

    /// A path for messages.
    pub(super) fn path(&self, name: &PlanName) -> PathBuf {
        let mut path = self.path.to_owned();
        path.extend(self.steps(name.directory).iter().map(|step| OsStr::from_bytes(step)));
        if !name.name.is_empty() {
            path.push(OsStr::from_bytes(&name.name));
        }
        path
    }

    /// A cache for one thread.
    pub(super) fn cache(&self) -> Cache {
        Cache(LruCache::new(OPEN))
    }
}

/// Directories that a thread has open: neighbours in a tar mostly stand in one.
#[derive(Debug)]
pub(super) struct Cache(LruCache<DirectoryNo, Arc<OwnedFd>>);

impl Cache {
    pub(super) fn open(
        &mut self,
        places: &Places<'_>,
        directory: DirectoryNo,
    ) -> Result<Arc<OwnedFd>, UnpackError> {
        if let Some(open) = self.0.get(&directory) {
            return Ok(Arc::clone(open));
        }
        let opened = Arc::new(places.open(directory)?);
        self.0.put(directory, Arc::clone(&opened));
        Ok(opened)
    }
}

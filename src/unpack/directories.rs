//! Makes and opens the directories of a plan, without following links and without leaving the target.

use std::ffi::OsStr;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lru::LruCache;
use rustix::fs::{Mode, OFlags, ResolveFlags};

use super::{DirectoryNo, PlanName, UnpackError, UnpackPlan};

/// Length at which a path is divided, in bytes. With one more name of 255 bytes, the path stays below `PATH_MAX`, 4096
/// (linux/limits.h).
const PATH_BYTES: usize = 3000;
/// Number of directories that a thread keeps open.
const OPEN_MAX: NonZeroUsize = NonZeroUsize::new(32).expect("not 0");

/// The directories of a plan below the target.
#[derive(Debug)]
pub(super) struct TargetDirs<'a> {
    plan: &'a UnpackPlan,
    root: BorrowedFd<'a>,
    path: &'a Path,
}

impl<'a> TargetDirs<'a> {
    pub(super) fn new(plan: &'a UnpackPlan, root: BorrowedFd<'a>, path: &'a Path) -> Self {
        Self { plan, root, path }
    }

    /// Makes all directories except the root, which must exist.
    pub(super) fn make_all(&self, mode: Mode) -> Result<(), UnpackError> {
        let mut directories = self.cache();
        for directory in &self.plan.directories[1..] {
            let parent = directories.open(self, directory.place.directory)?;
            rustix::fs::mkdirat(parent, &*directory.place.name, mode)
                .map_err(|errno| UnpackError::new("make directory", self.path(&directory.place), errno))?;
        }
        Ok(())
    }

    /// Opens a directory for reading.
    pub(super) fn open(&self, directory: DirectoryNo) -> Result<OwnedFd, UnpackError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // Only this process should write in the target. The flags confine the path even if another process does.
        let inside = ResolveFlags::BENEATH
            | ResolveFlags::NO_SYMLINKS
            | ResolveFlags::NO_MAGICLINKS
            | ResolveFlags::NO_XDEV;
        let open = |at: BorrowedFd<'_>, path: &[u8]| {
            rustix::fs::openat2(at, OsStr::from_bytes(path), flags, Mode::empty(), inside).map_err(|errno| {
                let place = &self.plan.directories[directory.index()].place;
                UnpackError::new("open", self.path(place), errno)
            })
        };
        let paths = self.relative_paths(directory);
        let Some((first, rest)) = paths.split_first() else { return open(self.root, b".") };
        let mut opened = open(self.root, first)?;
        for path in rest {
            opened = open(opened.as_fd(), path)?;
        }
        Ok(opened)
    }

    /// Returns the path of a directory relative to the root, in pieces that are short enough for the kernel.
    fn relative_paths(&self, directory: DirectoryNo) -> Vec<Vec<u8>> {
        let mut names: Vec<&[u8]> = Vec::new();
        let mut at = directory;
        while at != DirectoryNo::ROOT {
            let place = &self.plan.directories[at.index()].place;
            names.push(&place.name);
            at = place.directory;
        }
        let mut paths: Vec<Vec<u8>> = Vec::new();
        for name in names.into_iter().rev() {
            match paths.last_mut() {
                Some(path) if path.len() < PATH_BYTES => {
                    path.push(b'/');
                    path.extend_from_slice(name);
                }
                _ => paths.push(name.to_vec()),
            }
        }
        paths
    }

    /// Returns the path of a name, for messages.
    pub(super) fn path(&self, name: &PlanName) -> PathBuf {
        let mut path = self.path.to_owned();
        path.extend(self.relative_paths(name.directory).iter().map(|path| OsStr::from_bytes(path)));
        if !name.name.is_empty() {
            path.push(OsStr::from_bytes(&name.name));
        }
        path
    }

    /// Returns an empty cache for one thread.
    pub(super) fn cache(&self) -> DirCache {
        DirCache(LruCache::new(OPEN_MAX))
    }
}

/// The directories that a thread has open. Neighbours in a tar are mostly in the same directory.
#[derive(Debug)]
pub(super) struct DirCache(LruCache<DirectoryNo, Arc<OwnedFd>>);

impl DirCache {
    pub(super) fn open(
        &mut self,
        directories: &TargetDirs<'_>,
        directory: DirectoryNo,
    ) -> Result<Arc<OwnedFd>, UnpackError> {
        if let Some(open) = self.0.get(&directory) {
            return Ok(Arc::clone(open));
        }
        let opened = Arc::new(directories.open(directory)?);
        self.0.put(directory, Arc::clone(&opened));
        Ok(opened)
    }
}

//! Roots on disk: homes and their locks, leased and named roots, listing and sweeping.

mod home;
mod lease;
mod location;
mod marker;
mod named;
mod processes;
mod reading;
mod record;
mod sweep;

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};

use self::home::Homes;
pub use self::lease::RootLease;
pub use self::location::HomesLocation;
pub use self::named::RootRemoval;
pub use self::processes::processes_with_mount;
pub use self::reading::{NamedRoot, RootDirectories};
pub use self::sweep::{RootInfo, RootState, SweepReport};
use super::trusted::{check_trusted, open_trusted};
use super::{InodeWidth, Lower, OverlayCalls, RootsError, Upper};
use crate::os::{self, AtPath as _};

/// The mountpoint of leased roots in the run directory. All use the same mountpoint, each in its own mount namespace.
const PRIVATE: &str = "root";
/// The directory of the mountpoints of named roots in the run directory.
const NAMED: &str = "roots";
/// Mode of both directories. isolate opens the root with the rights of its caller.
const MODE: Mode = Mode::from_raw_mode(0o755);

/// The roots of one store and run directory. Clones share the open directories.
#[derive(Debug, Clone)]
pub struct Roots {
    dirs: Arc<RootDirs>,
    inodes: InodeWidth,
    calls: OverlayCalls,
}

/// The directories that hold the files and mountpoints of roots.
#[derive(Debug)]
struct RootDirs {
    homes: Homes,
    run: OwnedFd,
    /// The path of `run`, without symlinks.
    run_dir: PathBuf,
}

impl RootDirs {
    /// The mountpoint of leased roots.
    fn private_root(&self) -> PathBuf {
        self.run_dir.join(PRIVATE)
    }

    fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        [self.homes.fd(), self.run.as_fd()]
    }
}

impl Roots {
    /// Opens the directory of `homes`, for the files of roots, and `run_dir`, for their mountpoints.
    ///
    /// Makes the directories that do not exist. They may be on different filesystems.
    ///
    /// # Errors
    ///
    /// A directory cannot be made or opened, another user could change it, or the path of the run directory contains `:` or
    /// `,`.
    pub fn open(homes: &HomesLocation, run_dir: &Path) -> Result<Self, RootsError> {
        // Check the path before the directory is made, and again after its links are resolved.
        check_separators(&std::path::absolute(run_dir).at("make absolute", run_dir)?)?;
        os::make_directories(run_dir, MODE)?;
        let run_dir = run_dir.canonicalize().at("resolve", run_dir)?;
        check_separators(&run_dir)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let run = rustix::fs::open(&run_dir, flags, Mode::empty()).at("open", &run_dir)?;
        check_trusted(&run, &run_dir)?;
        for name in [PRIVATE, NAMED] {
            let path = run_dir.join(name);
            os::make_directory(&run, name, MODE).at("make directory", &path)?;
            open_trusted(run.as_fd(), name, &path)?;
        }
        let dirs = Arc::new(RootDirs { homes: Homes::open(homes)?, run, run_dir });
        Ok(Self { dirs, inodes: InodeWidth::default(), calls: OverlayCalls::default() })
    }

    /// Sets the width of the inode numbers of roots made from now on.
    #[must_use]
    pub fn with_inodes(self, inodes: InodeWidth) -> Self {
        Self { inodes, ..self }
    }

    /// Sets how the overlays of roots made from now on are mounted.
    #[must_use]
    pub fn with_overlay_calls(self, calls: OverlayCalls) -> Self {
        Self { calls, ..self }
    }

    /// Takes a lease of a new root. Nothing is mounted yet.
    ///
    /// # Errors
    ///
    /// The filesystem of the homes cannot hold or limit the upper.
    pub fn lease(&self, upper: &Upper) -> Result<RootLease, RootsError> {
        RootLease::new(self, upper, false)
    }

    /// Takes a lease of a new root of this image, which may need a home on disk for a copy.
    ///
    /// # Errors
    ///
    /// Fails like [`Roots::lease`].
    pub fn lease_for(&self, upper: &Upper, image: &Lower) -> Result<RootLease, RootsError> {
        RootLease::new(self, upper, image.needs_copy())
    }
}

fn check_separators(run_dir: &Path) -> Result<(), RootsError> {
    match run_dir.to_string_lossy().chars().find(|character| matches!(character, ':' | ',')) {
        Some(character) => Err(RootsError::Separator { path: run_dir.to_owned(), character }),
        None => Ok(()),
    }
}

//! Where roots are, and the doors to them.

pub(super) mod home;
pub(super) mod lease;
pub(super) mod named;
pub(super) mod processes;
mod record;
pub(super) mod sweep;

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use crate::roots::error::{At as _, RootsError};
use crate::roots::homes::home::Homes;
use crate::roots::{Lower, RootLease, Upper};

/// Mountpoint of leased roots, in the run directory: one for all, since each is in a namespace of its own.
const PRIVATE: &str = "root";
/// Directory of the mountpoints of named roots.
pub(crate) const NAMED: &str = "roots";
/// Others have to get to a root: isolate opens it with its caller's rights.
const OPEN_MODE: Mode = Mode::from_raw_mode(0o755);

/// The roots of one store and run directory. Clones are the same.
#[derive(Debug, Clone)]
pub struct Roots {
    pub(super) places: Arc<Places>,
}

/// The directories that roots are in.
#[derive(Debug)]
pub(crate) struct Places {
    pub(crate) homes: Homes,
    pub(crate) run: OwnedFd,
    /// Without symlinks.
    pub(crate) run_dir: PathBuf,
}

impl Places {
    pub(crate) fn private_root(&self) -> PathBuf {
        self.run_dir.join(PRIVATE)
    }

    /// The descriptors that are open for as long as this lives.
    pub(crate) fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        [self.homes.fd(), self.run.as_fd()]
    }
}

impl Roots {
    /// Opens the places of roots: `homes` for what they have on disk, and `run_dir` for where they are mounted. Both are
    /// made where they are missing; they need not be on one filesystem.
    ///
    /// # Errors
    ///
    /// They cannot be made, or the path of the run directory has a `:` or `,`.
    pub fn open(homes: &Path, run_dir: &Path) -> Result<Self, RootsError> {
        // Before it is made, and once more where its links lead.
        check_separators(&std::path::absolute(run_dir).at("make absolute", run_dir)?)?;
        std::fs::create_dir_all(run_dir).at("make", run_dir)?;
        let run_dir = run_dir.canonicalize().at("find", run_dir)?;
        check_separators(&run_dir)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let run = rustix::fs::open(&run_dir, flags, Mode::empty()).at("open", &run_dir)?;
        for name in [PRIVATE, NAMED] {
            match rustix::fs::mkdirat(&run, name, OPEN_MODE) {
                Err(Errno::EXIST) => {}
                // The umask may have taken something.
                Ok(()) => rustix::fs::chmodat(&run, name, OPEN_MODE, AtFlags::empty())
                    .at("change the mode of", &run_dir.join(name))?,
                Err(errno) => return Err(RootsError::io("make", &run_dir.join(name), errno)),
            }
        }
        Ok(Self { places: Arc::new(Places { homes: Homes::open(homes)?, run, run_dir }) })
    }

    /// Takes the right to one new root; nothing is mounted yet.
    ///
    /// # Errors
    ///
    /// The directory of homes does not serve for this upper.
    pub fn lease(&self, upper: &Upper) -> Result<RootLease, RootsError> {
        RootLease::new(&self.places, upper, false)
    }

    /// The same for a root of this image, which may be one that each root has a copy of.
    ///
    /// # Errors
    ///
    /// As [`Roots::lease`].
    pub fn lease_for(&self, upper: &Upper, image: &Lower) -> Result<RootLease, RootsError> {
        RootLease::new(&self.places, upper, image.is_to_copy())
    }
}

fn check_separators(run_dir: &Path) -> Result<(), RootsError> {
    match run_dir.to_string_lossy().chars().find(|one| matches!(one, ':' | ',')) {
        Some(character) => Err(RootsError::Separator { path: run_dir.to_owned(), character }),
        None => Ok(()),
    }
}

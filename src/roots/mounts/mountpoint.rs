//! Finds or makes the mountpoints of a sandbox inside a root.
//!
//! The kernel walks the links (`RESOLVE_IN_ROOT`), not `os::PathWalk`: the root is one mounted tree, so a single call looks
//! up the whole path, and its rules for links, permissions and limits are by definition those of a program in the root.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, Mode, ResolveFlags};
use rustix::io::Errno;

use super::lower::path_of;
use super::{OPEN_LAYER, PrivateRoot};
use crate::os::{LINKS_MAX, retry_again};
use crate::roots::RootsError;

/// Mode of new directories.
const MODE: Mode = Mode::from_raw_mode(0o755);

const NOT_A_DIRECTORY: &str = "a component is not a directory";
const TOO_MANY_LINKS: &str = "too many symbolic links";
const CANNOT_MAKE: &str = "the directory cannot be made";

/// The reason why a path cannot be used, and the underlying error.
type Failure = (&'static str, Errno);

/// The first component of a path that does not exist.
struct MissingComponent {
    parent: PathBuf,
    name: OsString,
    rest: PathBuf,
}

impl PrivateRoot {
    /// Finds the directory `inside` of the root, and makes the components that do not exist.
    ///
    /// Links are resolved as for a program in the root. The returned path has none, and is relative to the root.
    ///
    /// # Errors
    ///
    /// A component is not a directory, or cannot be made because the root is read-only or its upper is full.
    pub fn directory(&self, inside: &Path) -> Result<PathBuf, RootsError> {
        self.find_or_make(inside).map_err(|(why, errno)| RootsError::InRoot {
            path: inside.to_owned(),
            why,
            source: errno.into(),
        })
    }

    fn find_or_make(&self, inside: &Path) -> Result<PathBuf, Failure> {
        let mut path = inside.to_owned();
        for _ in 0..=LINKS_MAX {
            match self.open(&path) {
                Ok(directory) => return self.path_inside(directory.as_fd()),
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(open_failure(errno)),
            }
            // Make all missing components. At a dangling link, start again with its target.
            while let Some(missing) = self.first_missing(&path)? {
                let parent = self.open(&missing.parent).map_err(open_failure)?;
                match rustix::fs::mkdirat(&parent, &missing.name, MODE) {
                    // mkdirat(2) applies the umask.
                    Ok(()) => rustix::fs::chmodat(&parent, &missing.name, MODE, AtFlags::empty())
                        .map_err(|errno| (CANNOT_MAKE, errno))?,
                    Err(Errno::EXIST) => {
                        let target = rustix::fs::readlinkat(&parent, &missing.name, Vec::new())
                            .map_err(|errno| (NOT_A_DIRECTORY, errno))?;
                        // `join` drops the parent if the target is absolute.
                        path = missing.parent.join(OsStr::from_bytes(target.to_bytes())).join(missing.rest);
                        break;
                    }
                    Err(errno @ Errno::ROFS) => {
                        return Err(("it does not exist and the root is read-only", errno));
                    }
                    Err(errno) => return Err((CANNOT_MAKE, errno)),
                }
            }
        }
        Err((TOO_MANY_LINKS, Errno::LOOP))
    }

    /// Finds the first component of a path that does not resolve to a directory.
    fn first_missing(&self, path: &Path) -> Result<Option<MissingComponent>, Failure> {
        let mut parent = PathBuf::from("/");
        let mut components = path.components();
        while let Some(component) = components.next() {
            let next = parent.join(component);
            match (self.open(&next), component) {
                (Ok(_), _) => parent = next,
                (Err(Errno::NOENT), Component::Normal(name)) => {
                    let rest = components.as_path().to_owned();
                    return Ok(Some(MissingComponent { parent, name: name.to_owned(), rest }));
                }
                (Err(errno), _) => return Err(open_failure(errno)),
            }
        }
        Ok(None)
    }

    fn open(&self, path: &Path) -> Result<OwnedFd, Errno> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        retry_again(|| rustix::fs::openat2(self.fd(), path, OPEN_LAYER, Mode::empty(), resolve))
    }

    /// Returns the path of an open directory relative to the root.
    fn path_inside(&self, directory: BorrowedFd<'_>) -> Result<PathBuf, Failure> {
        let path_of = |fd| {
            path_of(fd).map_err(|error| {
                ("its path cannot be read", Errno::from_io_error(&error).unwrap_or(Errno::IO))
            })
        };
        let (path, root) = (path_of(directory)?, path_of(self.fd())?);
        match path.strip_prefix(&root) {
            Ok(inside) => Ok(inside.to_owned()),
            Err(_) => Err(("it is not below the root", Errno::XDEV)),
        }
    }
}

fn open_failure(errno: Errno) -> Failure {
    match errno {
        Errno::NOTDIR => (NOT_A_DIRECTORY, errno),
        Errno::LOOP => (TOO_MANY_LINKS, errno),
        _ => ("it cannot be opened", errno),
    }
}

//! Mount points for a sandbox inside a root: directories that are there, under paths without links.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, Mode, ResolveFlags};
use rustix::io::Errno;

use crate::roots::mounts::lower;
use crate::roots::{PrivateRoot, RootsError};

/// As many links as the kernel follows in one path.
const MAX_LINKS: usize = 40;
/// Mode of directories that are made.
const MADE: Mode = Mode::from_raw_mode(0o755);

/// Why a directory is not to be had.
type Fault = (&'static str, Errno);

/// The first part of a path that is not there.
struct Missing {
    parent: PathBuf,
    name: OsString,
    rest: PathBuf,
}

impl PrivateRoot {
    /// Finds the directory `inside` of the root, for a sandbox to mount something upon, and makes what is missing of it. Links
    /// are resolved as a program in the root would see them; the path that is returned has none. It is relative to the root.
    ///
    /// # Errors
    ///
    /// Something that is no directory is in the way, or a directory cannot be made: the root is read-only, or its upper full.
    pub fn directory(&self, inside: &Path) -> Result<PathBuf, RootsError> {
        self.find_or_make(inside).map_err(|(why, errno)| RootsError::InRoot {
            path: inside.to_owned(),
            why,
            source: errno.into(),
        })
    }

    fn find_or_make(&self, inside: &Path) -> Result<PathBuf, Fault> {
        let mut wanted = inside.to_owned();
        for _ in 0..=MAX_LINKS {
            match self.open(&wanted) {
                Ok(found) => return self.inside(&found),
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(of_open(errno)),
            }
            // All that is missing is made in one go, up to a link that leads nowhere.
            while let Some(missing) = self.first_missing(&wanted)? {
                let parent = self.open(&missing.parent).map_err(of_open)?;
                match rustix::fs::mkdirat(&parent, &missing.name, MADE) {
                    // The umask may have taken something.
                    Ok(()) => rustix::fs::chmodat(&parent, &missing.name, MADE, AtFlags::empty())
                        .map_err(|errno| ("it cannot be made", errno))?,
                    Err(Errno::EXIST) => {
                        let target = rustix::fs::readlinkat(&parent, &missing.name, Vec::new())
                            .map_err(|errno| ("something that is no directory is in the way", errno))?;
                        // Of an absolute target, nothing stays before it.
                        wanted = missing.parent.join(OsStr::from_bytes(target.to_bytes())).join(missing.rest);
                        break;
                    }
                    Err(errno @ Errno::ROFS) => {
                        return Err(("it is missing and the root is read-only", errno));
                    }
                    Err(errno) => return Err(("it cannot be made", errno)),
                }
            }
        }
        Err(("too many links", Errno::LOOP))
    }

    /// The first part of the path that does not lead to a directory.
    fn first_missing(&self, wanted: &Path) -> Result<Option<Missing>, Fault> {
        let mut parent = PathBuf::from("/");
        let mut components = wanted.components();
        while let Some(component) = components.next() {
            let next = parent.join(component);
            match (self.open(&next), component) {
                (Ok(_), _) => parent = next,
                (Err(Errno::NOENT), Component::Normal(name)) => {
                    let rest = components.as_path().to_owned();
                    return Ok(Some(Missing { parent, name: name.to_owned(), rest }));
                }
                (Err(errno), _) => return Err(of_open(errno)),
            }
        }
        Ok(None)
    }

    fn open(&self, path: &Path) -> Result<OwnedFd, Errno> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        lower::undisturbed(|| rustix::fs::openat2(self.fd(), path, lower::AS_LAYER, Mode::empty(), resolve))
    }

    /// Where a directory of the root is in it.
    fn inside(&self, found: &OwnedFd) -> Result<PathBuf, Fault> {
        let path_of = |fd| {
            lower::path_of(fd).map_err(|error: io::Error| {
                ("its path is not known", Errno::from_io_error(&error).unwrap_or(Errno::IO))
            })
        };
        let (path, root) = (path_of(found.as_fd())?, path_of(self.fd())?);
        match path.strip_prefix(&root) {
            Ok(inside) => Ok(inside.to_owned()),
            Err(_) => Err(("it is not below the root", Errno::XDEV)),
        }
    }
}

fn of_open(errno: Errno) -> Fault {
    match errno {
        Errno::NOTDIR => ("something that is no directory is in the way", errno),
        Errno::LOOP => ("too many links", errno),
        _ => ("it cannot be opened", errno),
    }
}

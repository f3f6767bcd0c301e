//! Removes a directory tree, whatever a program has left in it.

use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, Dir, FileType, IFlags, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// Directories open at once. What lies deeper is moved to the top of the tree and removed from there, so that neither
/// descriptors nor memory grow with the depth.
const OPEN_MAX: usize = 32;
/// How many directories are read again because something was put into them after they had been listed: in all, since one
/// below the other they would multiply.
const REREADS_MAX: u32 = 64;
/// A tree has no more names than its filesystem has files, but for hard links, of which this many are allowed for.
const NAMES_BEYOND_FILES: u64 = 1 << 15;
/// Names of a tree on a filesystem that does not count its files.
const NAMES_UNCOUNTED: u64 = 1 << 26;
/// Attributes that keep a file from being removed, even by root (FS_IOC_SETFLAGS(2const)).
const KEPT: IFlags = IFlags::IMMUTABLE.union(IFlags::APPEND);

const OPEN: OFlags = OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);

/// Removes `name` in `parent`, and all that is below it where it is a directory.
///
/// Follows no link and enters no other mount. What bars the way is cleared: permissions, and the attributes immutable and
/// append-only. Takes bounded memory and descriptors for a tree of any depth and size. Ends, too, when a program writes into
/// the tree meanwhile, with an error when that is as fast as removing. Something that is not there is removed already.
///
/// # Errors
///
/// The first thing that could not be removed; as much as possible of the rest is. Calling again goes on where this ended.
pub fn remove_tree(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    let name = CString::new(name.as_encoded_bytes())?;
    // Most trees are directories; trying that first saves a call.
    let Some(top) = remove_entry(parent, &name, FileType::Directory)? else { return Ok(()) };
    let names = names_at_most(&top)?;
    let levels = vec![Level::new(top, name)?];
    let mut walk = Walk { parent, levels, moves: 0, names, rereads: REREADS_MAX, first: None };
    while !walk.levels.is_empty() {
        walk.step();
    }
    walk.first.map_or(Ok(()), |errno| Err(errno.into()))
}

/// How many names a tree on the filesystem of `top` can have had when its removal began. A program that makes files as fast as
/// they are removed is noticed by there being more; in memory, one pass over a directory sees new names for ever.
fn names_at_most(top: &OwnedFd) -> Result<u64, Errno> {
    let stat = rustix::fs::fstatfs(top)?;
    Ok(match stat.f_files {
        0 => NAMES_UNCOUNTED,
        all => all.saturating_sub(stat.f_ffree).saturating_add(NAMES_BEYOND_FILES),
    })
}

/// One open directory on the way down.
struct Level {
    directory: Dir,
    /// Its name in the level above.
    name: CString,
    /// Something in it cannot be removed.
    refused: bool,
    /// Something was put into it by this walk, so that it has to be read again.
    filled: bool,
}

impl Level {
    fn new(fd: OwnedFd, name: CString) -> Result<Self, Errno> {
        Ok(Self { directory: Dir::new(fd)?, name, refused: false, filled: false })
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.directory.fd().expect("this stream of entries always has its descriptor")
    }
}

struct Walk<'fd> {
    parent: BorrowedFd<'fd>,
    /// From the top of the tree down, each in the one before it.
    levels: Vec<Level>,
    /// Directories that were moved to the top.
    moves: u64,
    /// Names that may still be seen.
    names: u64,
    /// Directories that may still be read again.
    rereads: u32,
    first: Option<Errno>,
}

impl Walk<'_> {
    /// Takes the next entry of the deepest open directory, or the directory itself when there is none left.
    fn step(&mut self) {
        let deepest = self.levels.last_mut().expect("the caller has looked");
        match deepest.directory.read() {
            Some(Ok(entry)) => {
                let name = entry.file_name();
                if name != c"." && name != c".." {
                    let Some(names) = self.names.checked_sub(1) else {
                        self.refuse(Errno::NOTEMPTY);
                        return self.ascend();
                    };
                    self.names = names;
                    let found = remove_entry(deepest.fd(), name, entry.file_type());
                    let done = found.and_then(|inner| match inner {
                        Some(inner) => self.descend(inner, name),
                        None => Ok(()),
                    });
                    if let Err(errno) = done {
                        self.refuse(errno);
                    }
                }
            }
            // What linux_dirent64 readers get of a directory that was removed while open.
            Some(Err(Errno::NOENT)) | None => self.ascend(),
            Some(Err(errno)) => {
                self.refuse(errno);
                self.ascend();
            }
        }
    }

    fn refuse(&mut self, errno: Errno) {
        self.first.get_or_insert(errno);
        if let Some(level) = self.levels.last_mut() {
            level.refused = true;
        }
    }

    /// Goes on in a directory that is not empty, or moves it to where that is possible.
    fn descend(&mut self, inner: OwnedFd, name: &CStr) -> Result<(), Errno> {
        if self.levels.len() < OPEN_MAX {
            self.levels.push(Level::new(inner, name.to_owned())?);
            return Ok(());
        }
        drop(inner);
        let from = self.levels.last().expect("at least OPEN_MAX").fd();
        let top = self.levels.first().expect("at least OPEN_MAX").fd();
        loop {
            let to = format!(".deep-{}", self.moves);
            self.moves += 1;
            let moved = unbarred(from, name, || rustix::fs::renameat(from, name, top, &to));
            match moved {
                Ok(()) => {
                    self.levels[0].filled = true;
                    return Ok(());
                }
                // Left by one that was interrupted, or by the program.
                Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) => {}
                Err(Errno::NOENT) => return Ok(()),
                Err(errno) => return Err(errno),
            }
        }
    }

    /// Removes the deepest directory, which has been read to its end.
    fn ascend(&mut self) {
        let Some(mut level) = self.levels.pop() else { return };
        let parent = self.levels.last().map_or(self.parent, Level::fd);
        let again = level.filled || !level.refused;
        let removed = match level.refused && !level.filled {
            true => Err(Errno::NOTEMPTY),
            false => unbarred(parent, &level.name, || {
                rustix::fs::unlinkat(parent, &level.name, AtFlags::REMOVEDIR)
            }),
        };
        match removed {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::NOTEMPTY | Errno::EXIST) if again && (level.filled || self.rereads > 0) => {
                if !std::mem::take(&mut level.filled) {
                    self.rereads -= 1;
                }
                level.directory.rewind();
                self.levels.push(level);
            }
            Err(errno) => self.refuse(errno),
        }
    }
}

/// Removes an entry; a directory that is not empty is opened instead.
fn remove_entry(parent: BorrowedFd<'_>, name: &CStr, kind: FileType) -> Result<Option<OwnedFd>, Errno> {
    let unlink = |flags| match unbarred(parent, name, || rustix::fs::unlinkat(parent, name, flags)) {
        Err(Errno::NOENT) => Ok(()),
        done => done,
    };
    if kind != FileType::Directory {
        match unlink(AtFlags::empty()) {
            Err(Errno::ISDIR) => {}
            done => return done.map(|()| None),
        }
    }
    match unlink(AtFlags::REMOVEDIR) {
        Ok(()) => Ok(None),
        Err(Errno::NOTEMPTY | Errno::EXIST) => open_directory(parent, name),
        // The listing was wrong, or is out of date.
        Err(Errno::NOTDIR) => unlink(AtFlags::empty()).map(|()| None),
        Err(errno) => Err(errno),
    }
}

/// Opens a directory of this very mount; `None` where it has gone meanwhile.
fn open_directory(parent: BorrowedFd<'_>, name: &CStr) -> Result<Option<OwnedFd>, Errno> {
    let resolve = ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS;
    let open = || rustix::fs::openat2(parent, name, OPEN | OFlags::DIRECTORY, Mode::empty(), resolve);
    let opened = match open() {
        Err(Errno::ACCESS) => {
            allow(parent, name)?;
            open()
        }
        opened => opened,
    };
    match opened {
        Ok(directory) => Ok(Some(directory)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        // Something is mounted there.
        Err(Errno::XDEV) => Err(Errno::BUSY),
        Err(errno) => Err(errno),
    }
}

/// Does what changes an entry of a directory, once more when something barred it that can be cleared.
fn unbarred(
    parent: BorrowedFd<'_>,
    name: &CStr,
    change: impl Fn() -> Result<(), Errno>,
) -> Result<(), Errno> {
    match change() {
        Err(Errno::PERM | Errno::ACCESS) => {}
        done => return done,
    }
    // The directory first: else the entry itself may be out of reach.
    let _ = rustix::fs::fchmod(parent, Mode::RWXU);
    clear_attributes(parent);
    if let Ok(stat) = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)
        // Nothing else has such attributes, and opening a device does things.
        && matches!(FileType::from_raw_mode(stat.st_mode), FileType::RegularFile | FileType::Directory)
        && let Ok(entry) = rustix::fs::openat(parent, name, OPEN | OFlags::NOCTTY, Mode::empty())
    {
        clear_attributes(entry);
    }
    change()
}

fn clear_attributes(file: impl rustix::fd::AsFd) {
    if let Ok(flags) = rustix::fs::ioctl_getflags(&file)
        && flags.intersects(KEPT)
    {
        let _ = rustix::fs::ioctl_setflags(&file, flags - KEPT);
    }
}

/// Gives its owner all rights to a directory.
fn allow(parent: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::openat(parent, name, flags, Mode::empty())?;
    // By the descriptor, since the name may be a link by now. fchmod(2) takes none that was opened as a path.
    let path = format!("/proc/self/fd/{}", directory.as_raw_fd());
    rustix::fs::chmodat(CWD, path, Mode::RWXU, AtFlags::empty())
}

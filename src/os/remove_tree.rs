//! Removes a directory tree with hostile content.

use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, Dir, FileType, IFlags, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// Maximum number of open directories. A deeper directory is moved to the top of the tree and removed from there, so that
/// descriptors and memory do not grow with the depth.
const OPEN_MAX: usize = 32;
/// How often a directory is listed again because another process added an entry after the first listing.
///
/// The limit is for the whole tree: limits per directory would multiply with the depth.
const REREADS_MAX: u32 = 64;
/// Without hard links, a tree has no more names than its filesystem has files. This many hard links are allowed in addition.
const NAMES_BEYOND_FILES: u64 = 1 << 15;
/// Maximum number of names in a tree on a filesystem that does not count its files.
const NAMES_UNCOUNTED: u64 = 1 << 26;
/// Attributes that prevent the removal of a file, even by root (FS_IOC_SETFLAGS(2const)).
const UNREMOVABLE: IFlags = IFlags::IMMUTABLE.union(IFlags::APPEND);

const OPEN: OFlags = OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);

/// Removes `name` in `parent`, with its content if it is a directory. A missing name is not an error.
///
/// Follows no link and enters no other mount. Changes permissions in the tree, and clears the attributes immutable and
/// append-only there, if they prevent the removal; never those of `parent`. Uses bounded memory and descriptors for a tree of any depth and size. Terminates even if another
/// process adds files to the tree; fails if that process adds files as fast as they are removed.
///
/// # Errors
///
/// The first failed removal. Everything else that can be removed is removed; a second call continues with the rest.
pub fn remove_tree(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    let name = CString::new(name.as_encoded_bytes())?;
    let parent = EntryParent { fd: parent, is_in_tree: false };
    // Most trees are directories, so trying that first saves a system call.
    let Some(top) = remove_entry(parent, &name, FileType::Directory)? else { return Ok(()) };
    let names_left = names_max(&top)?;
    let levels = vec![OpenLevel::new(top, name)?];
    let mut walk =
        RemovalWalk { parent, levels, moves: 0, names_left, rereads_left: REREADS_MAX, first_error: None };
    while !walk.levels.is_empty() {
        walk.step();
    }
    walk.first_error.map_or(Ok(()), |errno| Err(errno.into()))
}

/// The largest possible number of names in a tree on the filesystem of `top`, at the start of the removal.
///
/// A walk that sees more names races with a process that creates files. On tmpfs, such a process can keep the listing of one
/// directory from ever reaching its end.
fn names_max(top: &OwnedFd) -> Result<u64, Errno> {
    let stat = rustix::fs::fstatfs(top)?;
    Ok(match stat.f_files {
        0 => NAMES_UNCOUNTED,
        all => all.saturating_sub(stat.f_ffree).saturating_add(NAMES_BEYOND_FILES),
    })
}

/// The directory of an entry to remove.
#[derive(Clone, Copy)]
struct EntryParent<'fd> {
    fd: BorrowedFd<'fd>,
    /// Whether it is in the tree that is removed. Only then may its mode and attributes be changed.
    is_in_tree: bool,
}

/// An open directory of the walk.
struct OpenLevel {
    directory: Dir,
    /// Its name in the level above.
    name: CString,
    /// Whether the removal of one of its entries failed.
    has_failed: bool,
    /// Whether this walk has moved entries into it, so that it must be listed again.
    has_new_entries: bool,
}

impl OpenLevel {
    fn new(fd: OwnedFd, name: CString) -> Result<Self, Errno> {
        Ok(Self { directory: Dir::new(fd)?, name, has_failed: false, has_new_entries: false })
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.directory.fd().expect("an open directory stream has a descriptor")
    }

    fn as_parent(&self) -> EntryParent<'_> {
        EntryParent { fd: self.fd(), is_in_tree: true }
    }
}

/// The state of one call of [`remove_tree`].
struct RemovalWalk<'fd> {
    parent: EntryParent<'fd>,
    /// From the top of the tree down; each is in the one before it.
    levels: Vec<OpenLevel>,
    /// Number of attempts to move a directory to the top.
    moves: u64,
    names_left: u64,
    rereads_left: u32,
    first_error: Option<Errno>,
}

impl RemovalWalk<'_> {
    /// Removes the next entry of the deepest open directory, or that directory if it has no more entries.
    fn step(&mut self) {
        let deepest = self.levels.last_mut().expect("the caller checks that a level is open");
        match deepest.directory.read() {
            Some(Ok(entry)) => {
                let name = entry.file_name();
                if name != c"." && name != c".." {
                    let Some(names_left) = self.names_left.checked_sub(1) else {
                        self.record(Errno::NOTEMPTY);
                        return self.ascend();
                    };
                    self.names_left = names_left;
                    let removed = remove_entry(deepest.as_parent(), name, entry.file_type());
                    let result = removed.and_then(|inner| match inner {
                        Some(inner) => self.descend(inner, name),
                        None => Ok(()),
                    });
                    if let Err(errno) = result {
                        self.record(errno);
                    }
                }
            }
            // getdents64(2) fails with ENOENT if the open directory was removed.
            Some(Err(Errno::NOENT)) | None => self.ascend(),
            Some(Err(errno)) => {
                self.record(errno);
                self.ascend();
            }
        }
    }

    /// Records that an entry of the deepest open directory could not be removed.
    fn record(&mut self, errno: Errno) {
        self.first_error.get_or_insert(errno);
        if let Some(level) = self.levels.last_mut() {
            level.has_failed = true;
        }
    }

    /// Enters a directory that is not empty. If it is too deep, moves it to the top of the tree instead.
    fn descend(&mut self, inner: OwnedFd, name: &CStr) -> Result<(), Errno> {
        if self.levels.len() < OPEN_MAX {
            self.levels.push(OpenLevel::new(inner, name.to_owned())?);
            return Ok(());
        }
        drop(inner);
        let from = self.levels.last().expect("OPEN_MAX levels are open").as_parent();
        let top = self.levels.first().expect("OPEN_MAX levels are open").fd();
        loop {
            let to = format!(".deep-{}", self.moves);
            self.moves += 1;
            let moved = retry_unprotected(from, name, || rustix::fs::renameat(from.fd, name, top, &to));
            match moved {
                Ok(()) => {
                    self.levels[0].has_new_entries = true;
                    return Ok(());
                }
                // The name is taken: by an interrupted removal, or by the program that wrote the tree.
                Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) => {}
                Err(Errno::NOENT) => return Ok(()),
                Err(errno) => return Err(errno),
            }
        }
    }

    /// Removes the deepest open directory, whose listing is complete.
    fn ascend(&mut self) {
        let Some(mut level) = self.levels.pop() else { return };
        let parent = self.levels.last().map_or(self.parent, OpenLevel::as_parent);
        let can_succeed = level.has_new_entries || !level.has_failed;
        let removed = match can_succeed {
            false => Err(Errno::NOTEMPTY),
            true => retry_unprotected(parent, &level.name, || {
                rustix::fs::unlinkat(parent.fd, &level.name, AtFlags::REMOVEDIR)
            }),
        };
        match removed {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::NOTEMPTY | Errno::EXIST)
                if can_succeed && (level.has_new_entries || self.rereads_left > 0) =>
            {
                if !std::mem::take(&mut level.has_new_entries) {
                    self.rereads_left -= 1;
                }
                level.directory.rewind();
                self.levels.push(level);
            }
            Err(errno) => self.record(errno),
        }
    }
}

/// Removes an entry. If it is a directory that is not empty, opens and returns it instead.
fn remove_entry(parent: EntryParent<'_>, name: &CStr, kind: FileType) -> Result<Option<OwnedFd>, Errno> {
    let unlink =
        |flags| match retry_unprotected(parent, name, || rustix::fs::unlinkat(parent.fd, name, flags)) {
            Err(Errno::NOENT) => Ok(()),
            result => result,
        };
    if kind != FileType::Directory {
        match unlink(AtFlags::empty()) {
            Err(Errno::ISDIR) => {}
            result => return result.map(|()| None),
        }
    }
    match unlink(AtFlags::REMOVEDIR) {
        Ok(()) => Ok(None),
        Err(Errno::NOTEMPTY | Errno::EXIST) => open_directory(parent.fd, name),
        // The type in the listing was wrong, or the entry was replaced.
        Err(Errno::NOTDIR) => unlink(AtFlags::empty()).map(|()| None),
        Err(errno) => Err(errno),
    }
}

/// Opens a directory on the same mount; `None` if it was removed or replaced.
fn open_directory(parent: BorrowedFd<'_>, name: &CStr) -> Result<Option<OwnedFd>, Errno> {
    let resolve = ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS;
    let open = || rustix::fs::openat2(parent, name, OPEN | OFlags::DIRECTORY, Mode::empty(), resolve);
    let opened = match open() {
        Err(Errno::ACCESS) => {
            grant_owner_access(parent, name)?;
            open()
        }
        opened => opened,
    };
    match opened {
        Ok(directory) => Ok(Some(directory)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        // It is a mountpoint.
        Err(Errno::XDEV) => Err(Errno::BUSY),
        Err(errno) => Err(errno),
    }
}

/// Calls `change`, which changes the entry `name`. If permissions or attributes prevent that, clears them and calls it again.
fn retry_unprotected(
    parent: EntryParent<'_>,
    name: &CStr,
    change: impl Fn() -> Result<(), Errno>,
) -> Result<(), Errno> {
    match change() {
        Err(Errno::PERM | Errno::ACCESS) => {}
        result => return result,
    }
    if parent.is_in_tree {
        // Start with the directory: without access to it, the entry cannot be opened.
        let _ = rustix::fs::fchmod(parent.fd, Mode::RWXU);
        clear_attributes(parent.fd);
    }
    if let Ok(stat) = rustix::fs::statat(parent.fd, name, AtFlags::SYMLINK_NOFOLLOW)
        // Other types have no such attributes, and opening a device can have side effects.
        && matches!(FileType::from_raw_mode(stat.st_mode), FileType::RegularFile | FileType::Directory)
        && let Ok(entry) = rustix::fs::openat(parent.fd, name, OPEN | OFlags::NOCTTY, Mode::empty())
    {
        clear_attributes(entry);
    }
    change()
}

fn clear_attributes(file: impl rustix::fd::AsFd) {
    if let Ok(flags) = rustix::fs::ioctl_getflags(&file)
        && flags.intersects(UNREMOVABLE)
    {
        let _ = rustix::fs::ioctl_setflags(&file, flags - UNREMOVABLE);
    }
}

/// Gives the owner full access to a directory.
fn grant_owner_access(parent: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::openat(parent, name, flags, Mode::empty())?;
    // Use the descriptor, since the name may have become a link. fchmod(2) does not accept an O_PATH descriptor.
    let path = format!("/proc/self/fd/{}", directory.as_raw_fd());
    rustix::fs::chmodat(CWD, path, Mode::RWXU, AtFlags::empty())
}

//! The files that a program will see, before the sandbox has mounted them.
//!
//! A [`RootView`] is the mounted root, together with a list of the mounts that the sandbox will make in it. Paths are resolved
//! one component at a time, so that no link leads out to the host or past a directory that the sandbox will mount.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::User;
use super::interpreter::{self, InterpreterKind};
use crate::os::{LINKS_MAX, PathWalk, retry_again};

/// The root, and the mounts that the sandbox will make in it.
#[derive(Debug)]
pub(super) struct RootView {
    mounts: Vec<ViewMount>,
}

#[derive(Debug)]
struct ViewMount {
    /// Absolute, without links.
    path: PathBuf,
    content: MountContent,
    /// Whether everything in the mount will belong to the program's user.
    owned_by_user: bool,
}

/// The content of a mount that the sandbox will make.
#[derive(Debug)]
pub(super) enum MountContent {
    /// An existing directory.
    Directory(OwnedFd),
    /// A new, empty directory.
    Empty,
    /// A filesystem whose content is unknown until it is mounted.
    Unknown,
}

/// The result of resolving a path.
#[derive(Debug)]
pub(super) enum ViewedPath {
    /// A file of the root or of a mount.
    File {
        /// Absolute, without links.
        path: PathBuf,
        /// Type and permissions, as in `st_mode`.
        mode: u32,
        /// Whether the user may search all directories on the path, including the file itself if it is a directory.
        searchable: bool,
    },
    /// The path leads into a mount whose content is unknown.
    Unknown,
}

/// Attributes of a file in the view.
struct ViewedFile {
    mode: u32,
    uid: u32,
    gid: u32,
    /// Whether the file will belong to the program's user.
    owned_by_user: bool,
}

impl ViewedFile {
    fn file_type(&self) -> FileType {
        FileType::from_raw_mode(self.mode)
    }

    /// Returns whether the user may search this directory.
    fn is_searchable_by(&self, user: User) -> bool {
        let class = if self.owned_by_user || self.uid == user.uid {
            0o100
        } else if self.gid == user.gid {
            0o010
        } else {
            0o001
        };
        user.uid == 0 || self.mode & class != 0
    }
}

impl RootView {
    /// Returns the view of a root in which nothing is mounted.
    pub(super) fn new(root: OwnedFd) -> Self {
        let content = MountContent::Directory(root);
        Self { mounts: vec![ViewMount { path: PathBuf::from("/"), content, owned_by_user: false }] }
    }

    /// Adds a mount, or replaces the mount at the same path. If `owned_by_user`, its files will belong to the program's user.
    pub(super) fn mount(&mut self, path: &Path, content: MountContent, owned_by_user: bool) {
        self.mounts.retain(|mount| mount.path != path);
        self.mounts.push(ViewMount { path: path.to_owned(), content, owned_by_user });
    }

    /// Removes the mount at a path.
    pub(super) fn unmount(&mut self, path: &Path) {
        self.mounts.retain(|mount| mount.path != path || path == Path::new("/"));
    }

    /// Returns the path of the sandbox's own mount that will hide a directory bound at `path`.
    pub(super) fn covered_by(&self, path: &Path) -> Option<&Path> {
        let mount = self.mount_of(path.parent()?);
        (!matches!(mount.content, MountContent::Directory(_))).then_some(&*mount.path)
    }

    /// Returns the path of the innermost mount at or above `path`, which has no links.
    pub(super) fn mountpoint(&self, path: &Path) -> &Path {
        &self.mount_of(path).path
    }

    /// Returns the innermost mount at or above `path`, which has no links.
    fn mount_of(&self, path: &Path) -> &ViewMount {
        let above = self.mounts.iter().filter(|mount| path.starts_with(&mount.path));
        above.max_by_key(|mount| mount.path.as_os_str().len()).expect("the root is above every path")
    }

    /// Resolves a path. A relative path is resolved from `directory`.
    pub(super) fn resolve(&self, path: &Path, directory: &Path, user: User) -> Result<ViewedPath, Errno> {
        let mut walk = PathWalk::new(path, directory, LINKS_MAX);
        let mut file = self.look_up(walk.at())?.ok_or(Errno::NOENT)?;
        let mut searchable = true;
        loop {
            let is_directory = file.file_type() == FileType::Directory;
            searchable &= !is_directory || file.is_searchable_by(user);
            if walk.step().is_none() {
                break;
            }
            if !is_directory {
                return Err(Errno::NOTDIR);
            }
            let Some(next) = self.look_up(walk.at())? else { return Ok(ViewedPath::Unknown) };
            file = next;
            if file.file_type() == FileType::Symlink {
                let target = self.read_link(walk.at())?;
                walk.follow(&target).map_err(|_| Errno::LOOP)?;
                let Some(directory) = self.look_up(walk.at())? else { return Ok(ViewedPath::Unknown) };
                file = directory;
            }
        }
        Ok(ViewedPath::File { path: walk.into_path(), mode: file.mode, searchable })
    }

    /// Returns the interpreter that a program names. `path` is absolute and without links. `None` also if the file cannot be read.
    pub(super) fn interpreter(&self, path: &Path) -> Option<(InterpreterKind, PathBuf)> {
        let mount = self.mount_of(path);
        let MountContent::Directory(directory) = &mount.content else { return None };
        let file = open_below(directory, path_in_mount(mount, path)).ok()?;
        // Opening a device or a fifo would have effects.
        let stat = rustix::fs::fstat(&file).ok()?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return None;
        }
        let file = File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).ok()?;
        interpreter::interpreter(&file).ok()?
    }

    /// Returns the attributes of a file, without following a link. The other components of `path` must not be links. Returns
    /// `None` if the file is in a mount whose content is unknown.
    fn look_up(&self, path: &Path) -> Result<Option<ViewedFile>, Errno> {
        let mount = self.mount_of(path);
        let owned_by_user = mount.owned_by_user;
        match &mount.content {
            MountContent::Directory(directory) => {
                let stat = rustix::fs::fstat(open_below(directory, path_in_mount(mount, path))?)?;
                Ok(Some(ViewedFile { mode: stat.st_mode, uid: stat.st_uid, gid: stat.st_gid, owned_by_user }))
            }
            MountContent::Empty if path == mount.path => {
                let mode = FileType::Directory.as_raw_mode() | 0o700;
                Ok(Some(ViewedFile { mode, uid: 0, gid: 0, owned_by_user: true }))
            }
            MountContent::Empty => Err(Errno::NOENT),
            MountContent::Unknown => Ok(None),
        }
    }

    fn read_link(&self, path: &Path) -> Result<PathBuf, Errno> {
        let mount = self.mount_of(path);
        let MountContent::Directory(directory) = &mount.content else { return Err(Errno::NOENT) };
        let link = open_below(directory, path_in_mount(mount, path))?;
        let target = rustix::fs::readlinkat(link, "", Vec::new())?;
        Ok(PathBuf::from(OsString::from_vec(target.into_bytes())))
    }
}

fn path_in_mount<'a>(mount: &ViewMount, path: &'a Path) -> &'a Path {
    match path.strip_prefix(&mount.path) {
        Ok(rest) if !rest.as_os_str().is_empty() => rest,
        _ => Path::new("."),
    }
}

/// Opens a file in a directory without following a link at the end. The other components of `path` must not be links. If
/// another process replaces one meanwhile, the result is still in the directory.
fn open_below(directory: &OwnedFd, path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    retry_again(|| rustix::fs::openat2(directory.as_fd(), path, flags, Mode::empty(), resolve))
}

#[cfg(test)]
pub(super) mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    pub(in crate::sandbox) const NOBODY: User = User { uid: 65_534, gid: 65_534 };

    /// A root with programs and mounts. Links in the root point to files of the host beside the root.
    pub(in crate::sandbox) fn view_with_programs() -> (tempfile::TempDir, RootView) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        let program = |path: &str, mode| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, "").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        };
        program("root/usr/bin/tool", 0o755);
        program("root/usr/bin/plain", 0o644);
        program("root/opt/bin/plain", 0o755);
        program("root/private/tool", 0o755);
        program("root/data/hidden", 0o755);
        program("box/submission", 0o755);
        program("data/bound", 0o755);
        program("host/secret", 0o755);
        fs::create_dir_all(root.join("usr/bin/directory")).unwrap();
        fs::set_permissions(root.join("private"), fs::Permissions::from_mode(0o700)).unwrap();
        symlink("usr/bin", root.join("bin")).unwrap();
        symlink("/usr/bin/tool", root.join("usr/bin/absolute")).unwrap();
        symlink("../../../../../usr/bin/tool", root.join("usr/bin/climbing")).unwrap();
        symlink(dir.path().join("host/secret"), root.join("usr/bin/leaking")).unwrap();
        symlink("circle", root.join("usr/bin/circle")).unwrap();
        symlink("/box", root.join("work")).unwrap();
        let open = |name: &str| {
            rustix::fs::open(dir.path().join(name), OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap()
        };
        let mut view = RootView::new(open("root"));
        view.mount(Path::new("/box"), MountContent::Directory(open("box")), true);
        view.mount(Path::new("/data"), MountContent::Directory(open("data")), false);
        view.mount(Path::new("/proc"), MountContent::Unknown, false);
        view.mount(Path::new("/tmp"), MountContent::Empty, true);
        (dir, view)
    }

    #[test]
    fn directory_that_the_user_may_not_enter_is_not_searchable() {
        let (_dir, view) = view_with_programs();
        let searchable = |path: &str, user| match view.resolve(Path::new(path), Path::new("/"), user).unwrap()
        {
            ViewedPath::File { searchable, .. } => searchable,
            ViewedPath::Unknown => panic!("{path} is unknown"),
        };
        let root = User { uid: 0, gid: 0 };
        assert!(searchable("/private", root) && searchable("/usr/bin", root));
        assert!(searchable("/usr/bin", NOBODY) && !searchable("/private", NOBODY));
        assert!(searchable("/box", NOBODY), "the box will belong to the program's user");
    }
}

//! Copies files and directories into and out of a box.
//!
//! Files copied in may come from an untrusted upload; files copied out were written by an untrusted program. Copying never
//! follows a symlink, opens a fifo or a device, or crosses a mount. Holes stay holes: an empty sparse file of a terabyte
//! takes no space on the disk of the copy.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Uid};
use rustix::io::Errno;

use super::{CopyError, FileCopy};
use crate::os::{AtPath as _, PathError};
use crate::sandbox::BOX;

/// Deepest nesting of directories that is copied.
const DEPTH_MAX: usize = 100;

/// Copies a file or directory from the host into the box. New files belong to `owner`, if any.
///
/// # Errors
/// The source contains something that cannot be read or is neither a file nor a directory, or the target already exists.
pub(in crate::sandbox) fn copy_in(
    the_box: BorrowedFd<'_>,
    copy: &FileCopy,
    owner: Option<(Uid, Gid)>,
) -> Result<(), CopyError> {
    let source = open_source(rustix::fs::CWD, copy.host.as_os_str(), &copy.host)?;
    let name = copy.name.file_name().ok_or_else(|| CopyError::Name(copy.name.clone().into()))?;
    let directory = make_directories(the_box, copy.name.parent().unwrap_or(Path::new("")), owner)?;
    CopyWriter { owner, replace: false, depth: 0 }.copy(source, directory.as_fd(), name, &copy.name)
}

/// Copies a file or directory from the box to the host. An existing file is replaced; the content of a directory goes into an
/// existing directory.
///
/// # Errors
/// The source is missing, contains something that is neither a file nor a directory, or cannot be written. The other entries of
/// a directory are copied nevertheless.
pub(in crate::sandbox) fn copy_out(the_box: BorrowedFd<'_>, copy: &FileCopy) -> Result<(), CopyError> {
    let display_path = Path::new(BOX).join(&copy.name);
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let handle = match rustix::fs::openat2(the_box, &copy.name, flags, Mode::empty(), resolve) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Err(CopyError::Missing(display_path)),
        Err(Errno::LOOP) => return Err(CopyError::Kind { path: display_path, kind: "a symlink" }),
        other => other.at("open", &display_path)?,
    };
    let source = open_for_reading(&handle, &display_path)?;
    let parent = match copy.host.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let name = copy.host.file_name().ok_or_else(|| CopyError::Name(copy.host.clone().into()))?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let parent = rustix::fs::open(parent, flags, Mode::empty()).at("open", parent)?;
    CopyWriter { owner: None, replace: true, depth: 0 }.copy(source, parent.as_fd(), name, &display_path)
}

/// A file or directory that is open for reading.
struct CopySource {
    file: File,
    stat: Stat,
}

/// Opens a file or directory for reading. Never follows a symlink, and refuses other file types.
fn open_source(parent: BorrowedFd<'_>, name: &OsStr, display_path: &Path) -> Result<CopySource, CopyError> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let handle = rustix::fs::openat(parent, name, flags, Mode::empty()).at("open", display_path)?;
    open_for_reading(&handle, display_path)
}

/// Opens the file of an `O_PATH` handle for reading, if it is a file or a directory.
fn open_for_reading(handle: &OwnedFd, display_path: &Path) -> Result<CopySource, CopyError> {
    let stat = rustix::fs::fstat(handle).at("stat", display_path)?;
    let refused = |kind| Err(CopyError::Kind { path: display_path.to_owned(), kind });
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile | FileType::Directory => {}
        FileType::Symlink => return refused("a symlink"),
        FileType::Fifo => return refused("a fifo"),
        FileType::Socket => return refused("a socket"),
        _ => return refused("a device"),
    }
    // Open the checked file through its handle: the name may refer to another file by now.
    let link = format!("/proc/self/fd/{}", handle.as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = rustix::fs::open(link, flags, Mode::empty()).at("open", display_path)?;
    Ok(CopySource { file: file.into(), stat })
}

/// Makes or opens a directory in the box and all directories above it. New directories belong to `owner`, if any.
pub(in crate::sandbox) fn make_directories(
    the_box: BorrowedFd<'_>,
    path: &Path,
    owner: Option<(Uid, Gid)>,
) -> Result<OwnedFd, CopyError> {
    let mut directory = the_box.try_clone_to_owned().at("open", path)?;
    for name in path {
        directory = make_directory(directory.as_fd(), name, path, owner)?;
    }
    Ok(directory)
}

/// Makes or opens a directory. Never follows a symlink.
fn make_directory(
    parent: BorrowedFd<'_>,
    name: &OsStr,
    display_path: &Path,
    owner: Option<(Uid, Gid)>,
) -> Result<OwnedFd, CopyError> {
    let is_new = match rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755)) {
        Ok(()) => true,
        Err(Errno::EXIST) => false,
        Err(errno) => Err(errno).at("make", display_path)?,
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = rustix::fs::openat(parent, name, flags, Mode::empty()).at("open", display_path)?;
    if is_new {
        change_owner(&directory, owner, display_path)?;
    }
    Ok(directory)
}

fn change_owner(file: impl AsFd, owner: Option<(Uid, Gid)>, display_path: &Path) -> Result<(), PathError> {
    let Some((uid, gid)) = owner else { return Ok(()) };
    rustix::fs::fchown(file, Some(uid), Some(gid)).at("change the owner of", display_path)
}

struct CopyWriter {
    owner: Option<(Uid, Gid)>,
    /// Whether to replace existing files and to use existing directories.
    replace: bool,
    depth: usize,
}

impl CopyWriter {
    /// Copies `source` to `name` in `parent`. Errors name `display_path`.
    fn copy(
        &mut self,
        source: CopySource,
        parent: BorrowedFd<'_>,
        name: &OsStr,
        display_path: &Path,
    ) -> Result<(), CopyError> {
        match FileType::from_raw_mode(source.stat.st_mode) {
            FileType::Directory => self.directory(&source, parent, name, display_path),
            _ => self.file(source, parent, name, display_path),
        }
    }

    /// Copies a directory. Continues after an entry that cannot be copied, and returns the first error.
    fn directory(
        &mut self,
        source: &CopySource,
        parent: BorrowedFd<'_>,
        name: &OsStr,
        display_path: &Path,
    ) -> Result<(), CopyError> {
        if self.depth == DEPTH_MAX {
            return Err(CopyError::TooDeep { path: display_path.to_owned(), limit: DEPTH_MAX });
        }
        let target = make_directory(parent, name, display_path, self.owner)?;
        self.depth += 1;
        let mut first = Ok(());
        for name in names(&source.file, display_path)? {
            let display_path = display_path.join(&name);
            let copied = open_source(source.file.as_fd(), &name, &display_path).and_then(|entry| {
                if entry.stat.st_dev != source.stat.st_dev {
                    return Err(CopyError::Mount(display_path.clone()));
                }
                self.copy(entry, target.as_fd(), &name, &display_path)
            });
            first = first.and(copied);
        }
        self.depth -= 1;
        first
    }

    fn file(
        &self,
        mut source: CopySource,
        parent: BorrowedFd<'_>,
        name: &OsStr,
        display_path: &Path,
    ) -> Result<(), CopyError> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // Set-user-ID, set-group-ID and sticky bits are not copied.
        let mode = Mode::from_raw_mode(source.stat.st_mode & 0o777);
        let target = match rustix::fs::openat(parent, name, flags, mode) {
            Err(Errno::EXIST) if self.replace => rustix::fs::unlinkat(parent, name, AtFlags::empty())
                .and_then(|()| rustix::fs::openat(parent, name, flags, mode)),
            other => other,
        };
        let target: File = target.at("write", display_path)?.into();
        copy_content(&mut source.file, &target, source.stat.st_size.cast_unsigned())
            .at("copy", display_path)?;
        Ok(change_owner(&target, self.owner, display_path)?)
    }
}

fn names(directory: &File, display_path: &Path) -> Result<Vec<OsString>, PathError> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(directory).at("list", display_path)? {
        let entry = entry.at("list", display_path)?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name != "." && name != ".." {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

/// Copies the data of a file and skips its holes. Reads at most `size` bytes, even if the file grows meanwhile.
fn copy_content(source: &mut File, mut target: &File, size: u64) -> io::Result<()> {
    let mut offset = 0;
    while offset < size {
        let data = match rustix::fs::seek(&*source, rustix::fs::SeekFrom::Data(offset)) {
            Ok(data) => data.min(size),
            Err(Errno::NXIO) => break,
            // The filesystem does not support SEEK_DATA.
            Err(_) => offset,
        };
        let end =
            rustix::fs::seek(&*source, rustix::fs::SeekFrom::Hole(data)).map_or(size, |end| end.min(size));
        source.seek(SeekFrom::Start(data))?;
        target.seek(SeekFrom::Start(data))?;
        io::copy(&mut source.by_ref().take(end - data), &mut target)?;
        // Advance at least one byte, so that the loop ends if the file shrinks meanwhile.
        offset = end.max(data + 1);
    }
    target.set_len(size)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink};
    use std::path::PathBuf;

    use super::*;

    /// A box and a directory on the host.
    struct CopyScene {
        dir: tempfile::TempDir,
        the_box: OwnedFd,
    }

    impl CopyScene {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            for name in ["box", "host"] {
                fs::create_dir(dir.path().join(name)).unwrap();
            }
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let the_box = rustix::fs::open(dir.path().join("box"), flags, Mode::empty()).unwrap();
            Self { dir, the_box }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }

        fn copy_in(&self, host: &str, name: &str) -> Result<(), CopyError> {
            let text = format!("{}={name}", self.path(host).display());
            copy_in(self.the_box.as_fd(), &FileCopy::into_box(OsStr::new(&text))?, None)
        }

        fn copy_out(&self, name: &str, host: &str) -> Result<(), CopyError> {
            let text = format!("{name}={}", self.path(host).display());
            copy_out(self.the_box.as_fd(), &FileCopy::out_of_box(OsStr::new(&text))?)
        }
    }

    #[test]
    fn files_and_directories_are_copied_both_ways() {
        let scene = CopyScene::new();
        fs::create_dir_all(scene.path("host/tree/sub")).unwrap();
        fs::write(scene.path("host/tree/sub/file"), "content").unwrap();
        fs::write(scene.path("host/tree/run"), "#!").unwrap();
        fs::set_permissions(scene.path("host/tree/run"), fs::Permissions::from_mode(0o4755)).unwrap();
        scene.copy_in("host/tree", "a/b").unwrap();
        assert_eq!(fs::read_to_string(scene.path("box/a/b/sub/file")).unwrap(), "content");
        assert_eq!(fs::metadata(scene.path("box/a/b/run")).unwrap().mode() & 0o7777, 0o755);
        scene.copy_out("a/b", "host/back").unwrap();
        assert_eq!(fs::read_to_string(scene.path("host/back/sub/file")).unwrap(), "content");
        // Copying out again replaces the files.
        fs::write(scene.path("box/a/b/sub/file"), "new").unwrap();
        scene.copy_out("a/b", "host/back").unwrap();
        assert_eq!(fs::read_to_string(scene.path("host/back/sub/file")).unwrap(), "new");
        // Copying in replaces nothing: two files with one name are the caller's mistake.
        let error = scene.copy_in("host/tree/run", "a/b/run").unwrap_err();
        assert!(error.to_string().contains("a/b/run"), "{error}");
    }

    #[test]
    fn holes_stay_holes() {
        let scene = CopyScene::new();
        let file = File::create(scene.path("box/sparse")).unwrap();
        file.set_len(1 << 40).unwrap();
        file.write_all_at(b"middle", 1 << 39).unwrap();
        scene.copy_out("sparse", "host/sparse").unwrap();
        let copy = File::open(scene.path("host/sparse")).unwrap();
        assert_eq!(copy.metadata().unwrap().len(), 1 << 40);
        assert!(copy.metadata().unwrap().blocks() < 1000);
        let mut bytes = [0; 6];
        copy.read_exact_at(&mut bytes, 1 << 39).unwrap();
        assert_eq!(&bytes, b"middle");
    }

    #[test]
    fn symlinks_and_fifos_are_not_followed_or_opened() {
        let scene = CopyScene::new();
        fs::write(scene.path("secret"), "secret of the host").unwrap();
        fs::create_dir_all(scene.path("box/tree")).unwrap();
        fs::write(scene.path("box/tree/zz-good"), "good").unwrap();
        symlink(scene.path("secret"), scene.path("box/link")).unwrap();
        symlink(scene.path("secret"), scene.path("box/tree/link")).unwrap();
        symlink("..", scene.path("box/up")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, scene.path("box/fifo"), Mode::RUSR).unwrap();
        for (name, expected) in [
            ("link", "/box/link is a symlink"),
            ("up/secret", "/box/up/secret is a symlink"),
            ("fifo", "/box/fifo is a fifo"),
            ("absent", "/box/absent"),
            ("tree/zz-good/below", "/box/tree/zz-good/below"),
        ] {
            let error = scene.copy_out(name, "host/out").unwrap_err().to_string();
            assert!(error.contains(expected), "{name}: {error}");
            assert!(!scene.path("host/out").exists(), "{name}");
        }
        // The rest of the directory is copied.
        let error = scene.copy_out("tree", "host/tree").unwrap_err().to_string();
        assert!(error.contains("/box/tree/link is a symlink"), "{error}");
        assert_eq!(fs::read_to_string(scene.path("host/tree/zz-good")).unwrap(), "good");
        assert!(!scene.path("host/tree/link").exists());
        // Copying in refuses symlinks too.
        symlink(scene.path("secret"), scene.path("host/upload")).unwrap();
        for host in ["host/upload", "box/tree"] {
            let error = scene.copy_in(host, "in").unwrap_err().to_string();
            assert!(error.contains("is a symlink"), "{error}");
        }
    }

    #[test]
    fn replaced_symlink_is_removed_and_not_written_through() {
        let scene = CopyScene::new();
        fs::write(scene.path("box/out"), "new").unwrap();
        fs::write(scene.path("kept"), "old").unwrap();
        symlink(scene.path("kept"), scene.path("host/out")).unwrap();
        scene.copy_out("out", "host/out").unwrap();
        assert_eq!(fs::read_to_string(scene.path("kept")).unwrap(), "old");
        assert_eq!(fs::read_to_string(scene.path("host/out")).unwrap(), "new");
    }

    #[test]
    fn too_deep_directory_is_an_error() {
        let scene = CopyScene::new();
        let mut deep = scene.path("box/deep");
        for _ in 0..150 {
            deep.push("d");
        }
        fs::create_dir_all(&deep).unwrap();
        let error = scene.copy_out("deep", "host/deep").unwrap_err().to_string();
        assert!(error.contains("100"), "{error}");
    }
}

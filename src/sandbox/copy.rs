//! Files into and out of the box: the directory that a program runs in and writes to.
//!
//! What goes in may come from an untrusted upload, what comes out was made by an untrusted program. Neither way is a
//! symlink followed, a fifo or a device opened, or a mount crossed, and holes stay holes: a file of a terabyte with
//! nothing in it does not fill the disk that it is copied to.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Uid};
use rustix::io::Errno;

use super::error::{At as _, SandboxError};

/// Directories within directories that are copied.
const DEPTH_MAX: usize = 100;

/// A file or directory to copy, by its name in the box and its path on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileCopy {
    /// Relative to the box.
    pub name: PathBuf,
    /// On the host.
    pub host: PathBuf,
}

impl FileCopy {
    /// Reads `HOST[=NAME]`; the name is that of the host's file unless it is given.
    ///
    /// # Errors
    /// [`SandboxError::CopyName`].
    pub fn into_box(text: &OsStr) -> Result<Self, SandboxError> {
        let (host, name) = halves(text);
        Self::new(name.unwrap_or_else(|| last_name(host)), host)
    }

    /// Reads `NAME[=HOST]`; the host's file is of the same name in the working directory unless it is given.
    ///
    /// # Errors
    /// [`SandboxError::CopyName`].
    pub fn out_of_box(text: &OsStr) -> Result<Self, SandboxError> {
        let (name, host) = halves(text);
        Self::new(name, host.unwrap_or_else(|| last_name(name)))
    }

    fn new(name: &OsStr, host: &OsStr) -> Result<Self, SandboxError> {
        // A path that begins with `/box/` means the same.
        let path = Path::new(name);
        let path = path.strip_prefix("/box").unwrap_or(path);
        let plain = path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
        if host.is_empty() || path.file_name().is_none() || !plain {
            return Err(SandboxError::CopyName(name.to_owned()));
        }
        let name = path.components().filter(|part| matches!(part, Component::Normal(_))).collect();
        Ok(Self { name, host: host.into() })
    }
}

fn halves(text: &OsStr) -> (&OsStr, Option<&OsStr>) {
    let bytes = text.as_bytes();
    match bytes.iter().position(|byte| *byte == b'=') {
        None => (text, None),
        Some(at) => (OsStr::from_bytes(&bytes[..at]), Some(OsStr::from_bytes(&bytes[at + 1..]))),
    }
}

fn last_name(path: &OsStr) -> &OsStr {
    Path::new(path).file_name().unwrap_or_default()
}

/// Copies a file or directory of the host into the box; what is made there belongs to `owner`, where one is given.
///
/// # Errors
/// What cannot be read, is a symlink, or is neither file nor directory, by its path.
pub(super) fn copy_in(
    the_box: BorrowedFd<'_>,
    copy: &FileCopy,
    owner: Option<(Uid, Gid)>,
) -> Result<(), SandboxError> {
    let source = open_source(rustix::fs::CWD, copy.host.as_os_str(), &copy.host)?;
    let name = copy.name.file_name().ok_or_else(|| SandboxError::CopyName(copy.name.clone().into()))?;
    let directory = make_directories(the_box, copy.name.parent().unwrap_or(Path::new("")), owner)?;
    CopyWriter { owner, replace: false, depth: 0 }.copy(source, directory.as_fd(), name, &copy.name)
}

/// Copies what the program left under a name out to the host. A file that is there is replaced; what is in a directory
/// goes into one that is there.
///
/// # Errors
/// That there is nothing of that name, that it or something in it is a symlink or no file, or what writing came to. What
/// can be copied is copied nonetheless.
pub(super) fn copy_out(the_box: BorrowedFd<'_>, copy: &FileCopy) -> Result<(), SandboxError> {
    let shown = Path::new("/box").join(&copy.name);
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let there = rustix::fs::openat2(the_box, &copy.name, flags, Mode::empty(), resolve);
    let there = match there {
        Err(Errno::NOENT | Errno::NOTDIR) => return Err(SandboxError::NotLeft(shown)),
        Err(Errno::LOOP) => return Err(SandboxError::NotCopied { path: shown, what: "a symlink" }),
        other => other.at("open", &shown)?,
    };
    let source = open_found(&there, &shown)?;
    let parent = match copy.host.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let name = copy.host.file_name().ok_or_else(|| SandboxError::CopyName(copy.host.clone().into()))?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let parent = rustix::fs::open(parent, flags, Mode::empty()).at("open", parent)?;
    CopyWriter { owner: None, replace: true, depth: 0 }.copy(source, parent.as_fd(), name, &shown)
}

/// An opened file or directory to copy.
struct CopySource {
    file: File,
    stat: Stat,
}

/// Opens a name for reading where it is a file or a directory; never through a link, and nothing else at all.
fn open_source(parent: BorrowedFd<'_>, name: &OsStr, shown: &Path) -> Result<CopySource, SandboxError> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let there = rustix::fs::openat(parent, name, flags, Mode::empty()).at("open", shown)?;
    open_found(&there, shown)
}

fn open_found(there: &OwnedFd, shown: &Path) -> Result<CopySource, SandboxError> {
    let stat = rustix::fs::fstat(there).at("stat", shown)?;
    let refused = |what| Err(SandboxError::NotCopied { path: shown.to_owned(), what });
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile | FileType::Directory => {}
        FileType::Symlink => return refused("a symlink"),
        FileType::Fifo => return refused("a fifo"),
        FileType::Socket => return refused("a socket"),
        _ => return refused("a device"),
    }
    // The descriptor of this very file once more, now to be read: its name may lead elsewhere meanwhile.
    let own = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(there));
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = rustix::fs::open(own, flags, Mode::empty()).at("open", shown)?;
    Ok(CopySource { file: file.into(), stat })
}

/// Makes or opens a directory in the box, and those above it; what is made there belongs to `owner`, where one is given.
pub(super) fn make_directories(
    the_box: BorrowedFd<'_>,
    path: &Path,
    owner: Option<(Uid, Gid)>,
) -> Result<OwnedFd, SandboxError> {
    let mut directory = the_box.try_clone_to_owned().at("open", path)?;
    for name in path {
        directory = make_directory(directory.as_fd(), name, path, owner)?;
    }
    Ok(directory)
}

/// Makes or opens a directory, never through a link.
fn make_directory(
    parent: BorrowedFd<'_>,
    name: &OsStr,
    shown: &Path,
    owner: Option<(Uid, Gid)>,
) -> Result<OwnedFd, SandboxError> {
    let made = match rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755)) {
        Ok(()) => true,
        Err(Errno::EXIST) => false,
        Err(errno) => return Err(errno).at("make", shown),
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = rustix::fs::openat(parent, name, flags, Mode::empty()).at("open", shown)?;
    if let (true, Some((uid, gid))) = (made, owner) {
        rustix::fs::fchown(&directory, Some(uid), Some(gid)).at("chown", shown)?;
    }
    Ok(directory)
}

struct CopyWriter {
    owner: Option<(Uid, Gid)>,
    /// Whether files that are there are replaced, and directories that are there are used.
    replace: bool,
    depth: usize,
}

impl CopyWriter {
    fn copy(
        &mut self,
        source: CopySource,
        parent: BorrowedFd<'_>,
        name: &OsStr,
        shown: &Path,
    ) -> Result<(), SandboxError> {
        match FileType::from_raw_mode(source.stat.st_mode) {
            FileType::Directory => self.directory(&source, parent, name, shown),
            _ => self.file(source, parent, name, shown),
        }
    }

    fn directory(
        &mut self,
        source: &CopySource,
        parent: BorrowedFd<'_>,
        name: &OsStr,
        shown: &Path,
    ) -> Result<(), SandboxError> {
        if self.depth == DEPTH_MAX {
            return Err(SandboxError::TooDeep { path: shown.to_owned(), limit: DEPTH_MAX });
        }
        let target = make_directory(parent, name, shown, self.owner)?;
        self.depth += 1;
        let mut first = Ok(());
        for name in names(&source.file, shown)? {
            let shown = shown.join(&name);
            let copied = open_source(source.file.as_fd(), &name, &shown).and_then(|entry| {
                match entry.stat.st_dev == source.stat.st_dev {
                    true => self.copy(entry, target.as_fd(), &name, &shown),
                    false => {
                        Err(SandboxError::NotCopied { path: shown.clone(), what: "on another filesystem" })
                    }
                }
            });
            if first.is_ok() {
                first = copied;
            }
        }
        self.depth -= 1;
        first
    }

    fn file(
        &self,
        mut source: CopySource,
        parent: BorrowedFd<'_>,
        name: &OsStr,
        shown: &Path,
    ) -> Result<(), SandboxError> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // Neither set-user-ID nor the like goes along.
        let mode = Mode::from_raw_mode(source.stat.st_mode & 0o777);
        let target = match rustix::fs::openat(parent, name, flags, mode) {
            Err(Errno::EXIST) if self.replace => rustix::fs::unlinkat(parent, name, AtFlags::empty())
                .and_then(|()| rustix::fs::openat(parent, name, flags, mode)),
            other => other,
        };
        let target: File = target.at("write", shown)?.into();
        copy_content(&mut source.file, &target, source.stat.st_size.cast_unsigned()).at("copy", shown)?;
        if let Some((uid, gid)) = self.owner {
            rustix::fs::fchown(&target, Some(uid), Some(gid)).at("chown", shown)?;
        }
        Ok(())
    }
}

fn names(directory: &File, shown: &Path) -> Result<Vec<OsString>, SandboxError> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(directory).at("list", shown)? {
        let entry = entry.at("list", shown)?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name != "." && name != ".." {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

/// Copies the data of a file and leaves its holes out. Nothing beyond `size` is read, though the file may grow meanwhile.
fn copy_content(source: &mut File, target: &File, size: u64) -> io::Result<()> {
    let mut target = target;
    let mut at = 0;
    while at < size {
        let data = match rustix::fs::seek(&*source, rustix::fs::SeekFrom::Data(at)) {
            Ok(data) => data.min(size),
            Err(Errno::NXIO) => break,
            // The filesystem knows no holes.
            Err(_) => at,
        };
        let end =
            rustix::fs::seek(&*source, rustix::fs::SeekFrom::Hole(data)).map_or(size, |end| end.min(size));
        source.seek(SeekFrom::Start(data))?;
        target.seek(SeekFrom::Start(data))?;
        io::copy(&mut source.by_ref().take(end - data), &mut target)?;
        // A file that has shrunk ends here.
        at = end.max(data + 1);
    }
    target.set_len(size)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink};

    use super::*;

    /// A box and a host directory, opened.
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

        fn copy_in(&self, host: &str, name: &str) -> Result<(), SandboxError> {
            let text = format!("{}={name}", self.path(host).display());
            copy_in(self.the_box.as_fd(), &FileCopy::into_box(OsStr::new(&text))?, None)
        }

        fn copy_out(&self, name: &str, host: &str) -> Result<(), SandboxError> {
            let text = format!("{name}={}", self.path(host).display());
            copy_out(self.the_box.as_fd(), &FileCopy::out_of_box(OsStr::new(&text))?)
        }
    }

    #[test]
    fn names_of_copies_have_their_usual_forms() {
        let parsed = |copy: Result<FileCopy, _>| copy.map(|copy| (copy.name, copy.host)).ok();
        let pair = |name: &str, host: &str| Some((PathBuf::from(name), PathBuf::from(host)));
        for (text, expected) in [
            ("/home/a/main.c", pair("main.c", "/home/a/main.c")),
            ("main.c=src/a.c", pair("src/a.c", "main.c")),
            ("main.c=/box/a.c", pair("a.c", "main.c")),
            ("a=b=c", pair("b=c", "a")),
            ("./main.c=./x/./y", pair("x/y", "./main.c")),
            ("main.c=", None),
            ("main.c=/etc/passwd", None),
            ("main.c=../a", None),
            ("main.c=/box", None),
            ("=a", None),
            ("/", None),
            ("..", None),
        ] {
            assert_eq!(parsed(FileCopy::into_box(OsStr::new(text))), expected, "{text}");
        }
        for (text, expected) in [
            ("out.txt", pair("out.txt", "out.txt")),
            ("dir/out.txt", pair("dir/out.txt", "out.txt")),
            ("/box/out=/tmp/x", pair("out", "/tmp/x")),
            ("../out", None),
            ("out=", None),
        ] {
            assert_eq!(parsed(FileCopy::out_of_box(OsStr::new(text))), expected, "{text}");
        }
    }

    #[test]
    fn files_and_directories_go_in_and_out() {
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
        // Once more, over what is there.
        fs::write(scene.path("box/a/b/sub/file"), "new").unwrap();
        scene.copy_out("a/b", "host/back").unwrap();
        assert_eq!(fs::read_to_string(scene.path("host/back/sub/file")).unwrap(), "new");
        // Into the box nothing is replaced: two files of one name are a mistake.
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
    fn nothing_is_followed_or_opened_that_a_program_or_an_upload_may_have_planted() {
        let scene = CopyScene::new();
        fs::write(scene.path("secret"), "of the host").unwrap();
        fs::create_dir_all(scene.path("box/tree")).unwrap();
        fs::write(scene.path("box/tree/zz-good"), "good").unwrap();
        symlink(scene.path("secret"), scene.path("box/link")).unwrap();
        symlink(scene.path("secret"), scene.path("box/tree/link")).unwrap();
        symlink("..", scene.path("box/up")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, scene.path("box/fifo"), Mode::RUSR).unwrap();
        for (name, wanted) in [
            ("link", "/box/link is a symlink"),
            ("up/secret", "/box/up/secret is a symlink"),
            ("fifo", "/box/fifo is a fifo"),
            ("absent", "/box/absent"),
            ("tree/zz-good/below", "/box/tree/zz-good/below"),
        ] {
            let error = scene.copy_out(name, "host/out").unwrap_err().to_string();
            assert!(error.contains(wanted), "{name}: {error}");
            assert!(!scene.path("host/out").exists(), "{name}");
        }
        // What can be copied is.
        let error = scene.copy_out("tree", "host/tree").unwrap_err().to_string();
        assert!(error.contains("/box/tree/link is a symlink"), "{error}");
        assert_eq!(fs::read_to_string(scene.path("host/tree/zz-good")).unwrap(), "good");
        assert!(!scene.path("host/tree/link").exists());
        // The other way round.
        symlink(scene.path("secret"), scene.path("host/upload")).unwrap();
        for host in ["host/upload", "box/tree"] {
            let error = scene.copy_in(host, "in").unwrap_err().to_string();
            assert!(error.contains("is a symlink"), "{error}");
        }
    }

    #[test]
    fn file_that_the_copy_replaces_is_not_written_through_a_link() {
        let scene = CopyScene::new();
        fs::write(scene.path("box/out"), "new").unwrap();
        fs::write(scene.path("kept"), "old").unwrap();
        symlink(scene.path("kept"), scene.path("host/out")).unwrap();
        scene.copy_out("out", "host/out").unwrap();
        assert_eq!(fs::read_to_string(scene.path("kept")).unwrap(), "old");
        assert_eq!(fs::read_to_string(scene.path("host/out")).unwrap(), "new");
    }

    #[test]
    fn directories_end_somewhere() {
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

//! The program of a run: its words, and which file of the root the first one is.
//!
//! isolate executes the first word as it stands, without a search, and a program that is not there is its verdict on the
//! program. Here it is searched for as a shell would, in what the program will see, and what cannot be executed is an
//! error of the call. The way to it is walked one component at a time, so that no link leads out to the host and none
//! past a directory that the sandbox mounts.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::bwrap::User;
use crate::image::ImageConfig;

/// Where programs are searched for when neither the image nor the caller says.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Links that are followed on one way, as in the kernel (path_resolution(7)).
const LINKS_MAX: u32 = 40;

/// The words to execute: the image's entrypoint, then the caller's words or else the image's own.
///
/// An `entrypoint` of the caller's replaces the image's, and its further words with it; an empty one is none.
pub(super) fn words(config: &ImageConfig, entrypoint: Option<&OsStr>, given: &[OsString]) -> Vec<OsString> {
    let owned = |words: &[String]| words.iter().map(OsString::from).collect::<Vec<_>>();
    let mut words = match entrypoint {
        None => owned(&config.entrypoint),
        Some(word) if word.is_empty() => Vec::new(),
        Some(word) => vec![word.to_owned()],
    };
    if !given.is_empty() {
        words.extend_from_slice(given);
    } else if entrypoint.is_none() {
        words.extend(owned(&config.cmd));
    }
    words
}

/// Why a program cannot be executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProgramFault {
    /// There is nothing of that name.
    #[error("there is no such file in the image")]
    Missing,
    /// It is in no directory of `PATH`.
    #[error("it is in no directory of the PATH")]
    NotInPath,
    /// It is a directory.
    #[error("it is a directory")]
    Directory,
    /// It is neither a file nor a directory.
    #[error("it is not a regular file")]
    Special,
    /// No one may execute it.
    #[error("it is not executable")]
    NotExecutable,
    /// The way to it cannot be walked.
    #[error("{0}")]
    Path(Errno),
}

/// What the program will see, before it is there: the root, and what the sandbox mounts in it.
#[derive(Debug)]
pub(super) struct RootView {
    mounts: Vec<ViewMount>,
}

#[derive(Debug)]
struct ViewMount {
    /// Absolute, without links.
    at: PathBuf,
    what: MountContent,
    /// Whether it belongs to the program's user.
    own: bool,
}

/// What the sandbox mounts at a place.
#[derive(Debug)]
pub(super) enum MountContent {
    /// A directory that is there already.
    Directory(OwnedFd),
    /// A new directory of the program's own.
    Empty,
    /// Something that is not known before it is there.
    Unknown,
}

/// What is at a path.
#[derive(Debug)]
pub(super) enum ResolvedPath {
    /// Something of the root or of a mount, at this path without links. `open` tells whether the user may search all
    /// directories on the way, and it itself where it is one.
    There { path: PathBuf, mode: u32, open: bool },
    /// Something that only the sandbox brings.
    Unknown,
}

/// Attributes of something in the view.
struct ViewedFile {
    mode: u32,
    uid: u32,
    gid: u32,
    /// Whether it will belong to the program's user.
    own: bool,
}

impl ViewedFile {
    fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.mode)
    }

    /// Whether the user may go through it, a directory.
    fn is_open_to(&self, user: User) -> bool {
        let class = match self.own || self.uid == user.uid {
            true => 0o100,
            false if self.gid == user.gid => 0o010,
            false => 0o001,
        };
        user.uid == 0 || self.mode & class != 0
    }
}

impl RootView {
    /// A view of a root in which nothing is mounted.
    pub(super) fn new(root: OwnedFd) -> Self {
        Self {
            mounts: vec![ViewMount {
                at: PathBuf::from("/"),
                what: MountContent::Directory(root),
                own: false,
            }],
        }
    }

    /// Mounts something; `own` tells whether it belongs to the program's user.
    pub(super) fn mount(&mut self, at: &Path, what: MountContent, own: bool) {
        self.mounts.retain(|mounted| mounted.at != at);
        self.mounts.push(ViewMount { at: at.to_owned(), what, own });
    }

    /// Takes back what was said to be mounted at a path.
    pub(super) fn unmount(&mut self, at: &Path) {
        self.mounts.retain(|mounted| mounted.at != at || at == Path::new("/"));
    }

    /// What the sandbox itself mounts above a path, so that what is put there before will not be seen.
    pub(super) fn covered_by(&self, path: &Path) -> Option<&Path> {
        let mounted = self.mounted(path.parent()?);
        (!matches!(mounted.what, MountContent::Directory(_))).then_some(&*mounted.at)
    }

    /// Where the innermost mount at or above a path without links is.
    pub(super) fn mountpoint(&self, path: &Path) -> &Path {
        &self.mounted(path).at
    }

    /// The innermost mount at or above a path without links.
    fn mounted(&self, path: &Path) -> &ViewMount {
        let above = self.mounts.iter().filter(|mounted| path.starts_with(&mounted.at));
        above.max_by_key(|mounted| mounted.at.as_os_str().len()).expect("the root is above every path")
    }

    /// Follows a path, a relative one from `directory`.
    pub(super) fn resolve(&self, path: &Path, directory: &Path, user: User) -> Result<ResolvedPath, Errno> {
        let mut rest: VecDeque<OsString> = VecDeque::new();
        queue(&mut rest, path);
        if path.is_relative() {
            queue(&mut rest, directory);
        }
        let mut at = PathBuf::from("/");
        let mut links = 0;
        let mut seen = self.look(&at)?.ok_or(Errno::NOENT)?;
        let mut open = true;
        while let Some(name) = rest.pop_front() {
            if seen.kind() != FileType::Directory {
                return Err(Errno::NOTDIR);
            }
            open &= seen.is_open_to(user);
            if name == ".." {
                at.pop();
            } else {
                at.push(&name);
            }
            let Some(next) = self.look(&at)? else { return Ok(ResolvedPath::Unknown) };
            seen = next;
            if seen.kind() == FileType::Symlink {
                links += 1;
                if links > LINKS_MAX {
                    return Err(Errno::LOOP);
                }
                let target = self.read_link(&at)?;
                at.pop();
                if target.is_absolute() {
                    at = PathBuf::from("/");
                }
                queue(&mut rest, &target);
                // The directory that the walk goes on from.
                let Some(next) = self.look(&at)? else { return Ok(ResolvedPath::Unknown) };
                seen = next;
            }
        }
        if seen.kind() == FileType::Directory {
            open &= seen.is_open_to(user);
        }
        Ok(ResolvedPath::There { path: at, mode: seen.mode, open })
    }

    /// Attributes of a path without links before its last name; none where they are not known.
    fn look(&self, path: &Path) -> Result<Option<ViewedFile>, Errno> {
        let mounted = self.mounted(path);
        let what = match &mounted.what {
            MountContent::Directory(what) => what,
            MountContent::Empty if path == mounted.at => {
                let mode = FileType::Directory.as_raw_mode() | 0o700;
                return Ok(Some(ViewedFile { mode, uid: 0, gid: 0, own: true }));
            }
            MountContent::Empty => return Err(Errno::NOENT),
            MountContent::Unknown => return Ok(None),
        };
        let stat = rustix::fs::fstat(open_in(what, below(mounted, path))?)?;
        Ok(Some(ViewedFile { mode: stat.st_mode, uid: stat.st_uid, gid: stat.st_gid, own: mounted.own }))
    }

    fn read_link(&self, path: &Path) -> Result<PathBuf, Errno> {
        let mounted = self.mounted(path);
        let MountContent::Directory(what) = &mounted.what else { return Err(Errno::NOENT) };
        let target = rustix::fs::readlinkat(open_in(what, below(mounted, path))?, "", Vec::new())?;
        Ok(PathBuf::from(OsString::from_vec(target.into_bytes())))
    }

    /// Finds the program that the first word names: its path, to be executed as it is.
    ///
    /// A word with a `/` is checked and stays; any other is searched for in the directories of `path`.
    pub(super) fn program(
        &self,
        word: &OsStr,
        path: &OsStr,
        directory: &Path,
        user: User,
    ) -> Result<PathBuf, ProgramFault> {
        if word.as_bytes().contains(&b'/') {
            return self.check(Path::new(word), directory, user).map(|_| word.into());
        }
        if word.is_empty() {
            return Err(ProgramFault::Missing);
        }
        let (mut fault, mut perhaps) = (ProgramFault::NotInPath, None);
        for place in path.as_bytes().split(|byte| *byte == b':') {
            // An empty entry is the working directory.
            let place = if place.is_empty() { OsStr::new(".") } else { OsStr::from_bytes(place) };
            let candidate = Path::new(place).join(word);
            match self.check(&candidate, directory, user) {
                Ok(true) => return Ok(candidate),
                // A place that is not known may have it; one that is known to have it goes before.
                Ok(false) => perhaps = perhaps.or(Some(candidate)),
                Err(ProgramFault::NotExecutable) => fault = ProgramFault::NotExecutable,
                // What is of another kind, or behind a link that leads nowhere, does not end the search.
                Err(_) => {}
            }
        }
        perhaps.ok_or(fault)
    }

    /// Checks that a path can be executed; false where that shows only when it is.
    fn check(&self, path: &Path, directory: &Path, user: User) -> Result<bool, ProgramFault> {
        let mode = match self.resolve(path, directory, user) {
            Ok(ResolvedPath::There { mode, .. }) => mode,
            Ok(ResolvedPath::Unknown) => return Ok(false),
            Err(Errno::NOENT | Errno::NOTDIR) => return Err(ProgramFault::Missing),
            Err(errno) => return Err(ProgramFault::Path(errno)),
        };
        match FileType::from_raw_mode(mode) {
            FileType::RegularFile if mode & 0o111 == 0 => Err(ProgramFault::NotExecutable),
            FileType::RegularFile => Ok(true),
            FileType::Directory => Err(ProgramFault::Directory),
            _ => Err(ProgramFault::Special),
        }
    }
}

/// Puts a path's components in front of what is left to walk; `..` stays, since what it leads to depends on links.
fn queue(rest: &mut VecDeque<OsString>, path: &Path) {
    for component in path.components().rev() {
        match component {
            Component::Normal(name) => rest.push_front(name.to_owned()),
            Component::ParentDir => rest.push_front("..".into()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
}

fn below<'a>(mounted: &ViewMount, path: &'a Path) -> &'a Path {
    match path.strip_prefix(&mounted.at) {
        Ok(rest) if !rest.as_os_str().is_empty() => rest,
        _ => Path::new("."),
    }
}

/// Opens what is at a path in a directory, a link itself; nothing of the way may be a link any more.
fn open_in(directory: &OwnedFd, path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    loop {
        match rustix::fs::openat2(directory.as_fd(), path, flags, Mode::empty(), resolve) {
            // The kernel saw a rename somewhere meanwhile (openat2(2)).
            Err(Errno::AGAIN) => {}
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    const NOBODY: User = User { uid: 65_534, gid: 65_534 };

    fn config(entrypoint: &[&str], cmd: &[&str]) -> ImageConfig {
        let text = serde_json::json!({
            "config": { "Entrypoint": entrypoint, "Cmd": cmd }, "rootfs": { "type": "layers" },
        });
        ImageConfig::parse(text.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn words_are_put_together_as_docker_does() {
        // Entrypoint and Cmd of the image, then the option and the words given, then what is run.
        for (image, flag, given, expected) in [
            ((&[][..], &["sh"][..]), None, &[][..], "sh"),
            ((&[], &["sh"]), None, &["ls", "-l"], "ls -l"),
            ((&["tini", "--"], &["sh"]), None, &[], "tini -- sh"),
            ((&["tini", "--"], &["sh"]), None, &["ls"], "tini -- ls"),
            ((&["tini", "--"], &["sh"]), Some(""), &["ls"], "ls"),
            ((&["tini", "--"], &["sh"]), Some(""), &[], ""),
            ((&["tini", "--"], &["sh"]), Some("env"), &["ls"], "env ls"),
            ((&["tini", "--"], &["sh"]), Some("env"), &[], "env"),
            ((&[], &[]), None, &[], ""),
        ] {
            let given: Vec<OsString> = given.iter().map(OsString::from).collect();
            let words = words(&config(image.0, image.1), flag.map(OsStr::new), &given);
            assert_eq!(words.join(OsStr::new(" ")), expected, "{image:?} {flag:?} {given:?}");
        }
    }

    /// A root with programs, and a host beside it that links of the root point to.
    fn view() -> (tempfile::TempDir, RootView) {
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
        program("data/given", 0o755);
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
    fn program_is_searched_for_in_the_root_alone() {
        let (_dir, view) = view();
        let find = |word: &str, path: &str| {
            let found = view.program(OsStr::new(word), OsStr::new(path), Path::new("/box"), NOBODY);
            found.map(|path| path.into_os_string().into_string().unwrap())
        };
        let path = "/nowhere:/usr/bin:/opt/bin";
        assert_eq!(find("tool", path).as_deref(), Ok("/usr/bin/tool"));
        assert_eq!(find("tool", "/bin").as_deref(), Ok("/bin/tool"));
        assert_eq!(find("plain", path).as_deref(), Ok("/opt/bin/plain"), "the first one cannot be executed");
        assert_eq!(find("plain", "/usr/bin"), Err(ProgramFault::NotExecutable));
        assert_eq!(find("absolute", path).as_deref(), Ok("/usr/bin/absolute"));
        assert_eq!(find("climbing", path).as_deref(), Ok("/usr/bin/climbing"), "`..` stops at the root");
        for missing in ["leaking", "circle", "directory", "absent", "", "."] {
            let fault = find(missing, path).unwrap_err();
            assert!(matches!(fault, ProgramFault::NotInPath | ProgramFault::Missing), "{missing}: {fault:?}");
        }
        // What is not known goes behind what is; what is empty has nothing.
        assert_eq!(find("tool", "/proc/x:/tmp:/usr/bin").as_deref(), Ok("/usr/bin/tool"));
        assert_eq!(find("absent", "/tmp:/proc/x:/usr/bin").as_deref(), Ok("/proc/x/absent"));
        assert_eq!(find("absent", "/tmp:/usr/bin"), Err(ProgramFault::NotInPath));
        // An empty entry is the working directory.
        assert_eq!(find("submission", "/usr/bin:").as_deref(), Ok("./submission"));
    }

    #[test]
    fn program_with_a_slash_is_checked_where_it_will_be() {
        let (_dir, view) = view();
        let check =
            |word: &str| view.program(OsStr::new(word), OsStr::new("/usr/bin"), Path::new("/box"), NOBODY);
        for there in [
            "/bin/tool",
            "./submission",
            "/box/submission",
            "/work/submission",
            "../data/given",
            "/data/given",
            "/proc/self/exe",
            "/private/tool",
        ] {
            assert_eq!(check(there).unwrap(), Path::new(there));
        }
        for (word, fault) in [
            ("/bin/absent", ProgramFault::Missing),
            ("/bin/tool/below", ProgramFault::Missing),
            ("/bin/leaking", ProgramFault::Missing),
            ("/data/hidden", ProgramFault::Missing),
            ("./tool", ProgramFault::Missing),
            ("/bin/circle", ProgramFault::Path(Errno::LOOP)),
            ("/bin/directory", ProgramFault::Directory),
            ("/box", ProgramFault::Directory),
            ("/tmp", ProgramFault::Directory),
            ("/tmp/tool", ProgramFault::Missing),
            ("/", ProgramFault::Directory),
            ("/usr/bin/plain", ProgramFault::NotExecutable),
        ] {
            assert_eq!(check(word), Err(fault), "{word}");
        }
    }

    #[test]
    fn directory_that_the_user_cannot_enter_is_told_apart() {
        let (_dir, view) = view();
        let open = |path: &str, user| match view.resolve(Path::new(path), Path::new("/"), user).unwrap() {
            ResolvedPath::There { open, .. } => open,
            ResolvedPath::Unknown => panic!("{path} is unknown"),
        };
        let root = User { uid: 0, gid: 0 };
        assert!(open("/private", root) && open("/usr/bin", root) && open("/usr/bin", NOBODY));
        assert!(open("/box", NOBODY), "the box belongs to the program's user, whatever its owner now");
        assert!(!open("/private", NOBODY));
    }
}

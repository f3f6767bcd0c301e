//! Directories of this program: made with an exact mode, and not used if another user could change them.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::path_error::{AtPath as _, PathError};
use super::walk::{LINKS_MAX, PathWalk};

/// The group `staff` of Debian: `/usr/local` and `/var/local` may be writable by it, and Debian's policy counts its members as
/// root (base-passwd, users-and-groups).
const DEBIAN_STAFF: (u32, &str) = (50, "staff:");

/// A part of a path that another user could replace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UntrustedPart {
    /// The file or directory.
    pub path: PathBuf,
    /// Why it is not trusted.
    pub reason: String,
}

/// Makes a directory with this mode, whatever the umask; returns false if the name exists.
///
/// # Errors
///
/// Those of mkdirat(2), except `EEXIST`, and of openat(2) and fchmod(2) for the new directory.
pub fn make_directory(
    parent: impl AsFd,
    name: impl rustix::path::Arg + Copy,
    mode: Mode,
) -> Result<bool, Errno> {
    match rustix::fs::mkdirat(&parent, name, mode) {
        Err(Errno::EXIST) => return Ok(false),
        result => result?,
    }
    // Through a descriptor: another user who may write to `parent` could put a link in place of the directory.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::fchmod(rustix::fs::openat(&parent, name, flags, Mode::empty())?, mode)?;
    Ok(true)
}

/// Makes a directory and those above it that do not exist, all with this mode, whatever the umask.
///
/// # Errors
///
/// A directory cannot be made.
pub fn make_directories(path: &Path, mode: Mode) -> Result<(), PathError> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(above) = path.parent().filter(|above| !above.as_os_str().is_empty()) {
        make_directories(above, mode)?;
    }
    make_directory(CWD, path, mode).at("make directory", path)?;
    Ok(())
}

/// Returns why the owner of a file is not trusted: it is neither root nor the effective user of this process.
#[must_use]
pub fn foreign_owner(stat: &Stat) -> Option<String> {
    let is_own = stat.st_uid == 0 || stat.st_uid == rustix::process::geteuid().as_raw();
    (!is_own).then(|| format!("it belongs to user {}", stat.st_uid))
}

/// Returns why the mode of a file is not trusted: users other than its owner may write to it.
#[must_use]
pub fn foreign_writers(stat: &Stat) -> Option<String> {
    let mode = stat.st_mode & 0o7777;
    (mode & 0o022 != 0).then(|| format!("other users may write to it (its mode is {mode:04o})"))
}

/// Finds the part of a path through which another user could make the path lead elsewhere; `None` if there is none.
///
/// Every directory and symbolic link on the way must belong to root or the effective user. Nobody else may be able to write to
/// a directory, unless it is sticky and more of the path follows. If the end of the path
/// does not exist, the check covers the part that does.
///
/// # Errors
///
/// A part cannot be examined, or the path has too many links.
pub fn untrusted_part(path: &Path) -> Result<Option<UntrustedPart>, PathError> {
    let untrusted = |path: &Path, reason: String| Ok(Some(UntrustedPart { path: path.to_owned(), reason }));
    if path.is_relative() {
        return untrusted(path, "it is not an absolute path".to_owned());
    }
    let mut walk = PathWalk::new(path, Path::new("/"), LINKS_MAX);
    // The last directory if others may write to it, but are kept from replacing the files of others in it.
    let mut sticky;
    loop {
        let at = walk.at().to_owned();
        let stat = match rustix::fs::lstat(&at) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            result => result.at("stat", &at)?,
        };
        if let Some(reason) = foreign_owner(&stat) {
            return untrusted(&at, reason);
        }
        if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
            let target = rustix::fs::readlink(&at, Vec::new()).at("read the link", &at)?;
            let target = Path::new(OsStr::from_bytes(target.to_bytes()));
            walk.follow(target).map_err(|error| PathError::new("resolve", path, io::Error::other(error)))?;
            // The directory of the link was checked before. It is checked again as the start of the target.
            continue;
        }
        sticky = match foreign_writers(&stat).filter(|_| !is_writable_by_staff_only(&stat)) {
            Some(reason) if Mode::from_raw_mode(stat.st_mode).contains(Mode::SVTX) => {
                Some(UntrustedPart { path: at, reason })
            }
            Some(reason) => return untrusted(&at, reason),
            None => None,
        };
        if walk.step().is_none() {
            return Ok(sticky);
        }
    }
}

/// Returns whether only the members of Debian's `staff` may write to a file besides its owner.
fn is_writable_by_staff_only(stat: &Stat) -> bool {
    let (staff, name) = DEBIAN_STAFF;
    let is_staff = || {
        let groups = fs::read_to_string("/etc/group").unwrap_or_default();
        let id = format!(":{staff}:");
        groups.lines().any(|line| line.starts_with(name) && line.contains(&id))
    };
    stat.st_mode & 0o002 == 0 && stat.st_gid == staff && is_staff()
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn directory_is_made_once_and_with_its_mode() {
        let dir = tempfile::tempdir().unwrap();
        let handle = File::open(dir.path()).unwrap();
        // No usual umask permits this mode.
        assert!(make_directory(&handle, "new", Mode::from_raw_mode(0o777)).unwrap());
        let mode = || fs::metadata(dir.path().join("new")).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode(), 0o777);
        assert!(!make_directory(&handle, "new", Mode::RWXU).unwrap());
        assert_eq!(mode(), 0o777, "a directory that exists is not changed");
    }

    #[test]
    fn missing_directories_of_a_path_are_made_with_the_mode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("one/two");
        make_directories(&path, Mode::from_raw_mode(0o777)).unwrap();
        for path in [path.as_path(), path.parent().unwrap()] {
            assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o7777, 0o777);
        }
        make_directories(&path, Mode::RWXU).unwrap();
        File::create(dir.path().join("file")).unwrap();
        let error = make_directories(&dir.path().join("file/new"), Mode::RWXU).unwrap_err();
        assert!(error.to_string().ends_with("file/new"), "{error}");
    }

    #[test]
    fn directory_that_others_may_write_to_is_not_trusted() {
        let dir = tempfile::tempdir().unwrap();
        let reason = |mode| {
            fs::set_permissions(dir.path(), fs::Permissions::from_mode(mode)).unwrap();
            let stat = rustix::fs::stat(dir.path()).unwrap();
            assert_eq!(foreign_owner(&stat), None);
            foreign_writers(&stat)
        };
        assert_eq!((reason(0o700), reason(0o755)), (None, None));
        for mode in [0o770, 0o702, 0o1777] {
            assert_eq!(reason(mode), Some(format!("other users may write to it (its mode is {mode:04o})")));
        }
    }

    #[test]
    fn path_is_trusted_only_if_no_other_user_can_make_it_lead_elsewhere() {
        use std::os::unix::fs::{chown, symlink};
        let dir = tempfile::tempdir().unwrap();
        let (open, file) = (dir.path().join("open"), dir.path().join("open/sub/file"));
        fs::create_dir_all(open.join("sub")).unwrap();
        fs::write(&file, "").unwrap();
        let set = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        let part = |path: &Path| untrusted_part(path).unwrap().map(|part| part.path);
        set(&file, 0o644);
        assert_eq!(part(&file), None);
        // Others can replace `sub` unless the directory is sticky. They could still add names to a sticky one.
        set(&open, 0o777);
        assert_eq!(part(&file), Some(open.clone()));
        set(&open, 0o1777);
        assert_eq!((part(&file), part(&open)), (None, Some(open.clone())));
        set(&file, 0o666);
        assert_eq!(part(&file), Some(file.clone()));
        set(&file, 0o644);
        set(&open, 0o755);
        let link = dir.path().join("link");
        symlink("open/sub", &link).unwrap();
        assert_eq!(part(&link.join("file")), None);
        set(&open.join("sub"), 0o757);
        assert_eq!(part(&link.join("file")), Some(open.join("sub")), "the target of a link is checked");
        assert_eq!(part(&link.join("missing/file")), Some(open.join("sub")));
        set(&open.join("sub"), 0o755);
        assert_eq!(part(&link.join("missing/file")), None);
        assert_eq!(part(Path::new("relative")), Some("relative".into()));
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::lchown(&link, Some(12_345), None).unwrap();
            assert_eq!(part(&link.join("file")), Some(link.clone()), "its owner could replace the link");
            chown(&open, Some(12_345), None).unwrap();
            assert_eq!(part(&file), Some(open));
        }
    }

    #[test]
    fn only_root_and_the_effective_user_are_trusted_owners() {
        let mut stat = rustix::fs::stat("/").unwrap();
        stat.st_uid = rustix::process::geteuid().as_raw() + 1;
        assert_eq!(foreign_owner(&stat), Some(format!("it belongs to user {}", stat.st_uid)));
        stat.st_uid = 0;
        assert_eq!(foreign_owner(&stat), None);
    }
}

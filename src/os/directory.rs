//! Directories of this program: made with an exact mode, and not used if another user could change them.

use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, Stat};
use rustix::io::Errno;

use super::path_error::{AtPath as _, PathError};

/// Makes a directory with this mode, whatever the umask; returns false if the name exists.
///
/// Another user must not be able to write to `parent`: the mode is set by name.
///
/// # Errors
///
/// Those of mkdirat(2), except `EEXIST`, and of fchmodat(2).
pub fn make_directory(
    parent: impl AsFd,
    name: impl rustix::path::Arg + Copy,
    mode: Mode,
) -> Result<bool, Errno> {
    match rustix::fs::mkdirat(&parent, name, mode) {
        Err(Errno::EXIST) => return Ok(false),
        result => result?,
    }
    rustix::fs::chmodat(&parent, name, mode, AtFlags::empty())?;
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
    fn only_root_and_the_effective_user_are_trusted_owners() {
        let mut stat = rustix::fs::stat("/").unwrap();
        stat.st_uid = rustix::process::geteuid().as_raw() + 1;
        assert_eq!(foreign_owner(&stat), Some(format!("it belongs to user {}", stat.st_uid)));
        stat.st_uid = 0;
        assert_eq!(foreign_owner(&stat), None);
    }
}

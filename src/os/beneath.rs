//! Lookups below a directory, and names that another process may have replaced.

use std::os::fd::AsFd;

use rustix::fs::AtFlags;
use rustix::io::Errno;

/// Calls of [`retry_again`] before it gives up: a process that keeps renaming files must not block the caller
/// forever.
const CALLS_MAX: u32 = 1000;

/// Repeats an `openat2` call while it fails with `EAGAIN`, for at most 1000 calls.
///
/// The kernel does so when a concurrent rename or mount, anywhere on the host, interferes with a `RESOLVE_BENEATH` or
/// `RESOLVE_IN_ROOT` walk of a path with `..` (openat2(2)).
///
/// # Errors
///
/// Any other error of the call, and `EAGAIN` of the last one.
pub fn retry_again<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    for _ in 1..CALLS_MAX {
        match call() {
            Err(Errno::AGAIN) => {}
            result => return result,
        }
    }
    call()
}

/// Whether `name` in the directory `dir` still refers to the open file `file`: false once it was removed or replaced.
///
/// # Errors
///
/// The errors of fstat(2) and fstatat(2), except `ENOENT`.
pub fn is_linked(dir: impl AsFd, name: impl rustix::path::Arg, file: impl AsFd) -> Result<bool, Errno> {
    let ours = rustix::fs::fstat(file)?;
    match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(named) => Ok((named.st_dev, named.st_ino) == (ours.st_dev, ours.st_ino)),
        Err(Errno::NOENT) => Ok(false),
        Err(errno) => Err(errno),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use super::*;

    #[test]
    fn removed_or_replaced_name_no_longer_refers_to_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let handle = File::open(dir.path()).unwrap();
        let file = File::create(dir.path().join("name")).unwrap();
        assert!(is_linked(&handle, "name", &file).unwrap());
        fs::rename(dir.path().join("name"), dir.path().join("other")).unwrap();
        assert!(!is_linked(&handle, "name", &file).unwrap());
        File::create(dir.path().join("name")).unwrap();
        assert!(!is_linked(&handle, "name", &file).unwrap());
        assert!(is_linked(&handle, "other", &file).unwrap());
    }

    #[test]
    fn only_eagain_is_retried() {
        let mut answers = vec![Err(Errno::NOENT), Err(Errno::AGAIN), Ok(1), Err(Errno::AGAIN)];
        assert_eq!(retry_again(|| answers.pop().expect("an answer")), Ok(1));
        assert_eq!(retry_again(|| answers.pop().expect("an answer")), Err(Errno::NOENT));
        let mut calls = 0;
        let busy = || {
            calls += 1;
            Err::<(), _>(Errno::AGAIN)
        };
        assert_eq!(retry_again(busy), Err(Errno::AGAIN));
        assert_eq!(calls, CALLS_MAX);
    }
}

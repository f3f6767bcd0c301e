//! Who may use a store: the mode of its directory, and its owner.
//!
//! The files in an image have modes that keep users out, and the mount enforces them. The blobs hold the content of all these
//! files, so only the store's owner, and perhaps a group, may read the store. The mode of the store's directory alone decides
//! that: everything in it is below this directory.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use rustix::fs::{Access, AtFlags, Gid};
use rustix::io::Errno;

use super::Store;
use super::dir::Dir;
use super::error::StoreError;
use crate::os::{self, AtPath as _};

/// Mode of the directory of a store that only its owner may read.
pub(super) const PRIVATE: u32 = 0o700;
/// Mode of the directory of a store that a group may read.
const SHARED: u32 = 0o750;
/// The access that only the owner may have: writing for the group, and everything for others.
const OWNER_ONLY: u32 = 0o027;

/// A change of the mode of a store that other users could read or change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModeChange {
    /// The mode before the change.
    pub before: u32,
    /// The mode now.
    pub after: u32,
}

impl Store {
    /// Takes the access to the store's directory from other users, and lets `group` read it. Returns the change if others had
    /// access.
    ///
    /// Without `group`, a directory that gives others nothing keeps its mode. Does nothing if the process is not of the owner or
    /// of root, or if the filesystem is read-only. A group that the process cannot give the store to gets no access.
    pub fn make_private(&self, group: Option<u32>) -> Result<Option<ModeChange>, StoreError> {
        make_private(self.root(), group)
    }

    /// Whether users other than the store's owner may write to its directory.
    pub fn is_writable_by_others(&self) -> Result<bool, StoreError> {
        Ok(os::foreign_writers(&self.root().attributes()?).is_some())
    }

    /// Fails with [`StoreError::Private`] unless this process may change the store.
    pub fn require_write_access(&self) -> Result<(), StoreError> {
        let root = self.root();
        let (access, flags) = (Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS);
        match rustix::fs::accessat(root, ".", access, flags) {
            Err(errno @ Errno::ACCESS) => Err(StoreError::private(self.path(), &root.attributes()?, errno)),
            // Writing to a read-only filesystem fails with an error of its own.
            _ => Ok(()),
        }
    }

    /// Fails with [`StoreError::Untrusted`] unless the store belongs to root or the effective user, and only its owner may
    /// write to it.
    ///
    /// Call it before root makes a root or runs a program: the store says where the images are mounted.
    pub fn require_trusted(&self) -> Result<(), StoreError> {
        let stat = self.root().attributes()?;
        match os::foreign_owner(&stat).or_else(|| os::foreign_writers(&stat)) {
            Some(reason) => Err(StoreError::Untrusted { path: self.path().to_owned(), reason }),
            None => Ok(()),
        }
    }

    /// Opens `rcx-imagefs` without following links, creating it if missing; returns its path too.
    ///
    /// For the directories of other modules in it, which the functions of this module do not touch: the layers of overlay2
    /// and the boxes of sandboxes.
    pub fn private_dir(&self) -> Result<(OwnedFd, PathBuf), StoreError> {
        Ok(self.make_top()?.into_parts())
    }
}

/// See [`Store::make_private`].
pub(super) fn make_private(root: &Dir, group: Option<u32>) -> Result<Option<ModeChange>, StoreError> {
    let stat = root.attributes()?;
    let user = rustix::process::geteuid();
    let before = stat.st_mode & 0o7777;
    if !user.is_root() && user.as_raw() != stat.st_uid {
        return Ok(None);
    }
    let is_open = before & OWNER_ONLY != 0;
    let group = group.filter(|&group| match stat.st_gid == group && before & 0o050 == 0o050 {
        true => true,
        false => give_to_group(root, group),
    });
    let after = match group {
        Some(_) => SHARED,
        None if is_open => PRIVATE,
        None => return Ok(None),
    };
    if before == after {
        return Ok(None);
    }
    match root.set_mode(after) {
        Err(error @ StoreError::ReadOnly { .. }) => {
            tracing::debug!("{error}");
            return Ok(None);
        }
        result => result?,
    }
    Ok(is_open.then_some(ModeChange { before, after }))
}

/// Makes `group` the group of a directory; returns whether that succeeded.
fn give_to_group(root: &Dir, group: u32) -> bool {
    let user = rustix::process::geteuid();
    match rustix::fs::fchown(root, None, Some(Gid::from_raw(group))).at("change the group of", root.path()) {
        Ok(()) => true,
        // The configuration of the host names the group. It need not be one of the groups of each user with a store.
        Err(error) if !user.is_root() => {
            tracing::debug!("{error}: {}", error.source);
            false
        }
        Err(error) => {
            tracing::warn!("{error}: {}; only its owner can read the store", error.source);
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::Path;

    use super::*;
    use crate::store::tests::new_store;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn store_that_others_could_use_becomes_private_and_another_one_keeps_its_mode() {
        let (_dir, store) = new_store();
        for (before, after) in [
            (0o755, PRIVATE),
            (0o775, PRIVATE),
            (0o777, PRIVATE),
            (0o711, PRIVATE),
            (0o770, PRIVATE),
            (0o700, 0o700),
            (0o750, 0o750),
            (0o710, 0o710),
        ] {
            fs::set_permissions(store.path(), fs::Permissions::from_mode(before)).unwrap();
            let change = store.make_private(None).unwrap();
            assert_eq!(change, (before != after).then_some(ModeChange { before, after }));
            assert_eq!(mode(store.path()), after, "{before:o}");
            assert_eq!(store.make_private(None).unwrap(), None);
        }
    }

    #[test]
    fn group_may_read_the_store_and_nothing_else() {
        let (_dir, store) = new_store();
        let group = rustix::process::getegid().as_raw();
        assert_eq!(store.make_private(Some(group)).unwrap(), None, "nobody else had access");
        assert_eq!(mode(store.path()), SHARED);
        fs::set_permissions(store.path(), fs::Permissions::from_mode(0o775)).unwrap();
        let change = ModeChange { before: 0o775, after: SHARED };
        assert_eq!(store.make_private(Some(group)).unwrap(), Some(change));
    }

    #[test]
    fn store_that_others_may_write_to_is_not_trusted() {
        let (_dir, store) = new_store();
        store.require_trusted().unwrap();
        assert!(!store.is_writable_by_others().unwrap());
        for mode in [0o720, 0o702] {
            fs::set_permissions(store.path(), fs::Permissions::from_mode(mode)).unwrap();
            assert!(matches!(store.require_trusted(), Err(StoreError::Untrusted { .. })));
            assert!(store.is_writable_by_others().unwrap());
        }
    }
}

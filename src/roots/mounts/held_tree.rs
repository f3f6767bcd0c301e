//! The mount of a tree image, as a holder ([`crate::roots::TreeMounts`]) gives it to a root.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::wire;

/// A mount of a tree image, and the connection to its holder.
#[derive(Debug)]
pub struct HeldTree {
    mount: OwnedFd,
    stat: Stat,
    connection: OwnedFd,
    /// The device of the filesystem in which a daemon serves layers; `None` if all layers are files.
    layers: Option<u64>,
}

impl HeldTree {
    pub(in crate::roots) fn new(
        mount: OwnedFd,
        connection: OwnedFd,
        layers: Option<u64>,
    ) -> Result<Self, Errno> {
        let stat = rustix::fs::fstat(&mount)?;
        Ok(Self { mount, stat, connection, layers })
    }

    /// The root directory of the image: a mount of its own, attached nowhere.
    pub(super) fn directory(&self) -> BorrowedFd<'_> {
        self.mount.as_fd()
    }

    /// Opens a regular file of the image for reading. `path` has no links: those in the tree are not followed.
    ///
    /// # Errors
    /// There is no such file.
    pub fn open_file(&self, path: &[u8]) -> io::Result<File> {
        let path = path.strip_prefix(b"/").unwrap_or(path);
        // O_NONBLOCK: does not wait for the writer of a FIFO.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let within = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        Ok(rustix::fs::openat2(&self.mount, path, flags, Mode::empty(), within)?.into())
    }

    /// The attributes of the root directory.
    pub(super) fn stat(&self) -> &Stat {
        &self.stat
    }

    /// The device of the filesystem in which a daemon serves layers; `None` if all layers are files.
    pub(super) fn layers(&self) -> Option<u64> {
        self.layers
    }

    /// Tells the holder about a root, so that it keeps the superblock as long as the root exists. `root` is the root directory
    /// of the overlay.
    pub(super) fn keep_for(&self, root: BorrowedFd<'_>) {
        // Without the holder, later roots of the image have another superblock.
        // The holder closes the connection when it has closed its descriptor of the root, which would count as a use.
        let told = wire::send(self.connection.as_fd(), root)
            .and_then(|()| wire::receive(self.connection.as_fd()).map(drop));
        if let Err(errno) = told {
            tracing::debug!("cannot tell the holder of an image about a root: {errno}");
        }
    }
}

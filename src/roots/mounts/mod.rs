//! The filesystems of one root: the image, the skeleton and the upper, joined by an overlay.
//!
//! Mount options are planned as data ([`plan`]) and then applied ([`mount`]), so that tests can compare them as text.

mod assemble;
mod etc;
mod held_tree;
mod inode_width;
mod legacy;
mod lower;
pub(super) mod mount;
mod mountpoint;
mod plan;
mod private_root;
mod probe;
pub(super) mod quota;
mod skeleton;
mod terminals;
mod unattached;
mod upper;
mod upper_dirs;
mod watch;
pub(super) mod wire;

use rustix::fs::OFlags;

pub(super) use assemble::{RootOverlay, RootParts, make_overlay};
pub use etc::Injection;
pub use held_tree::HeldTree;
pub use inode_width::InodeWidth;
pub use lower::Lower;
pub(super) use lower::reopen;
pub use mount::{enter_private_namespace, mount_tree_image};
pub use private_root::PrivateRoot;
pub use probe::{loaded_filesystems, try_erofs_file, try_filesystem, try_overlay};
pub use terminals::mount_terminals;
pub use unattached::OverlayCalls;
pub use upper::{Upper, parse_size};
pub use watch::RootWatch;

/// The directories that every root has, for the mounts of a sandbox, with their modes.
pub(crate) const SKELETON: [(&str, u32); 5] =
    [("box", 0o755), ("dev", 0o755), ("proc", 0o555), ("sys", 0o555), ("tmp", 0o1777)];

/// Flags for opening a directory in which files are made and removed.
pub(super) const OPEN_DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Flags for opening a directory as a layer of an overlay.
pub(super) const OPEN_LAYER: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

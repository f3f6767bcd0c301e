//! Kernel helpers that several modules use: locks by name, lookups below a directory, walks inside a root, removal of trees, processes that outlive their caller, questions with a deadline,
//! available memory, I/O errors that name their path.
//!
//! Nothing here depends on images. A helper moves here when a second module needs it.

mod beneath;
mod control_groups;
mod directory;
mod heap;
mod lock;
mod memory;
mod namespace;
mod path_error;
mod poison;
mod process;
mod remove_tree;
mod statfs;
mod walk;
mod xattrs;

pub use beneath::{is_linked, retry_again};
pub use control_groups::leave_control_groups;
pub use directory::{
    UntrustedPart, foreign_owner, foreign_writers, make_directories, make_directory, untrusted_part,
};
pub(crate) use heap::release_freed_memory;
pub use lock::{NamedLock, Sharing, lock_named, lock_until, try_lock, unlock};
pub use memory::available_memory;
pub use namespace::pid_namespace;
pub use path_error::{AtPath, PathError};
pub use poison::ignore_poison;
pub use process::{Forked, close_all_but, detach_from_caller, end_now, fork};
pub use remove_tree::remove_tree;
pub use statfs::statfs_within;
pub use walk::{LINKS_MAX, PathWalk, TooManyLinks};
pub use xattrs::{XATTR_MAX, read_xattrs};

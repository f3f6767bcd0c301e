//! The kernel's side: FUSE requests in, answers of the filesystem out.

mod session;

pub use session::{MOUNT_NAME, Mount, MountedFuse, SessionError, Unmounted, mount};

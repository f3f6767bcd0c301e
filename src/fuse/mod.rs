//! The kernel's side: FUSE requests in, answers of the filesystem out.

mod adapter;
mod requests;
mod session;

pub use requests::{Operation, Requests};
pub use session::{Kernel, MOUNT_NAME, Mount, MountedFuse, Serving, SessionError, Unmounted, mount, serve};
